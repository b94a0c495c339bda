//! The routers that serve, by name, and those before them.

use std::sync::{Arc, PoisonError};

use polyskill_sdk::runtime::{Fault, LoadedRouter};

use super::selection::ComposeError;
use super::{CHAIN, Composer};
use crate::routers::health::OnFault;
use crate::routers::row_log::RoutedRows;
use crate::routers::version::{RouterInfo, RouterSettings, RouterVersion};

/// Versions of a router that are kept to roll back to.
const MAX_PREVIOUS: usize = 3;
/// Routers in a chain.
pub(super) const MAX_CHAIN: usize = 8;

/// What a router cannot be rolled back or released for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RouterError {
    /// No such router.
    #[error("the router `{name}` does not exist")]
    Unknown {
        /// The name.
        name: String,
    },
    /// No such version.
    #[error("router `{name}` has no version {digest}; kept are: {}", kept.join(", "))]
    UnknownVersion {
        /// The router.
        name: String,
        /// The digest that was asked for.
        digest: String,
        /// Digests that are kept.
        kept: Vec<String>,
    },
}

/// The serving version of a router and those before it, the last one first.
pub(super) struct Versions {
    pub(super) current: Arc<RouterVersion>,
    pub(super) previous: Vec<Arc<RouterVersion>>,
}

impl Versions {
    fn publish(&mut self, slot: Arc<RouterVersion>) {
        let before = std::mem::replace(&mut self.current, slot);
        let serving = &self.current.digest;
        self.previous.retain(|slot| slot.digest != before.digest && slot.digest != *serving);
        self.previous.insert(0, before);
        self.previous.truncate(MAX_PREVIOUS);
    }
}

/// One router of a chain.
pub(super) struct Link {
    pub(super) slot: Arc<RouterVersion>,
    previous: Option<Arc<RouterVersion>>,
}

impl Link {
    /// The router's name in the chain.
    pub(super) fn name(&self) -> &str {
        &self.slot.name
    }

    /// The version that is asked after a fault of the serving one, where the policy says so.
    pub(super) fn previous_after_fault(&self) -> Option<&Arc<RouterVersion>> {
        let previous = self.slot.health.policy().on_fault == OnFault::Previous;
        self.previous.as_ref().filter(|_| previous)
    }
}

impl Composer {
    /// Publishes a router under a name, after it has seen the library once. What served before is kept to
    /// roll back to; requests that it planned finish with it.
    ///
    /// # Errors
    /// If the router cannot work with the library; nothing changes then.
    pub fn add_router(
        &self,
        name: &str,
        digest: String,
        router: Box<dyn LoadedRouter>,
        settings: RouterSettings,
    ) -> Result<(), Fault> {
        let (library, views) = (Arc::clone(&self.library), Arc::clone(&self.views));
        let slot = Arc::new(RouterVersion::new(name, digest, router, settings, library, views)?);
        let mut routers = self.routers.write().unwrap_or_else(PoisonError::into_inner);
        match routers.get_mut(name) {
            Some(versions) => versions.publish(slot),
            None => {
                let versions = Versions { current: slot, previous: Vec::new() };
                routers.insert(name.to_owned(), versions);
            }
        }
        Ok(())
    }

    /// Takes a router away; requests that it planned finish with it.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn remove_router(&self, name: &str) -> Result<(), RouterError> {
        let mut routers = self.routers.write().unwrap_or_else(PoisonError::into_inner);
        let unknown = || RouterError::Unknown { name: name.to_owned() };
        routers.remove(name).map(drop).ok_or_else(unknown)
    }

    /// Lets an earlier version of a router serve again, by the first digits of its digest.
    ///
    /// # Errors
    /// If there is no such router or version.
    pub fn roll_back(&self, name: &str, digest: &str) -> Result<(), RouterError> {
        let mut routers = self.routers.write().unwrap_or_else(PoisonError::into_inner);
        let versions =
            routers.get_mut(name).ok_or_else(|| RouterError::Unknown { name: name.to_owned() })?;
        let fits =
            |slot: &Arc<RouterVersion>| !digest.is_empty() && slot.digest.starts_with(digest);
        let Some(at) = versions.previous.iter().position(fits) else {
            return Err(RouterError::UnknownVersion {
                name: name.to_owned(),
                digest: digest.to_owned(),
                kept: versions.previous.iter().map(|slot| slot.digest.clone()).collect(),
            });
        };
        let slot = versions.previous.remove(at);
        slot.health.release();
        versions.publish(slot);
        Ok(())
    }

    /// Ends a router's quarantine.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn release_router(&self, name: &str) -> Result<(), RouterError> {
        let routers = self.routers.read().unwrap_or_else(PoisonError::into_inner);
        let unknown = || RouterError::Unknown { name: name.to_owned() };
        routers.get(name).map(|versions| versions.current.health.release()).ok_or_else(unknown)
    }

    /// Lets every router see the current library now, rather than on its next request.
    pub fn refresh_routers(&self) {
        let routers = self.routers.read().unwrap_or_else(PoisonError::into_inner);
        let slots: Vec<_> =
            routers.values().map(|versions| Arc::clone(&versions.current)).collect();
        drop(routers);
        for slot in slots {
            if let Err(fault) = slot.sync() {
                slot.count_setup_fault(&format!("`library-changed`: {fault}"));
            }
        }
    }

    /// The loaded routers.
    pub fn routers(&self) -> Vec<RouterInfo> {
        let routers = self.routers.read().unwrap_or_else(PoisonError::into_inner);
        let info = |versions: &Versions| {
            let previous = versions.previous.iter().map(|slot| slot.digest.clone()).collect();
            versions.current.info(previous)
        };
        routers.values().map(info).collect()
    }

    /// Looks up the routers of a chain.
    ///
    /// # Errors
    /// The first that does not exist.
    pub fn check_chain(&self, chain: &str) -> Result<(), ComposeError> {
        self.chain(chain).map(drop)
    }

    pub(super) fn chain(&self, chain: &str) -> Result<Vec<Link>, ComposeError> {
        let routers = self.routers.read().unwrap_or_else(PoisonError::into_inner);
        let names: Vec<&str> = chain.split(CHAIN).map(str::trim).collect();
        if names.len() > MAX_CHAIN {
            return Err(ComposeError::LongChain { found: names.len() });
        }
        let repeated = |(at, name): &(usize, &&str)| names[..*at].contains(*name);
        if let Some((_, name)) = names.iter().enumerate().find(repeated) {
            let (chain, name) = (chain.to_owned(), (*name).to_owned());
            return Err(ComposeError::RepeatedRouter { chain, name });
        }
        let link = |name: &&str| {
            let versions = routers.get(*name).ok_or_else(|| ComposeError::UnknownRouter {
                name: (*name).to_owned(),
                loaded: routers.keys().cloned().collect(),
            })?;
            let previous = versions.previous.first().cloned();
            Ok(Link { slot: Arc::clone(&versions.current), previous })
        };
        names.iter().map(link).collect()
    }

    /// A sample of the rows that the serving routers decided in `route`, where
    /// [`RouterSettings::keep_rows`] asks for it.
    pub fn recorded_rows(&self) -> Vec<RoutedRows> {
        let routers = self.routers.read().unwrap_or_else(PoisonError::into_inner);
        routers.values().map(|versions| versions.current.recorded_rows()).collect()
    }
}
