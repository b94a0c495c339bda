//! The versions of routers, by name: the one that serves, and those before it.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use polyskill_sdk::runtime::{Fault, LoadedRouter};

use super::selection::ComposeError;
use super::{CHAIN, Composer};
use crate::routers::health::{OnFault, Standing};
use crate::routers::row_log::RoutedRows;
use crate::routers::version::{RouterInfo, RouterSettings, RouterVersion};

/// Earlier versions of a router to which it can be rolled back. Each holds an instance in memory.
const MAX_PREVIOUS: usize = 3;
/// Most routers in a chain.
pub(super) const MAX_CHAIN: usize = 8;

/// A reason for which a router cannot be rolled back, released or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RouterError {
    /// No such router.
    #[error("the router `{name}` does not exist")]
    Unknown {
        /// The name.
        name: String,
    },
    /// No earlier version has a digest that begins so.
    #[error("router `{name}` has no version {digest}; kept are: {}", kept.join(", "))]
    UnknownVersion {
        /// The router.
        name: String,
        /// The beginning of a digest, as it was given.
        digest: String,
        /// Digests of the earlier versions, the last one first.
        kept: Vec<String>,
    },
}

/// The serving version of a router and those before it, the last one first.
pub(super) struct Versions {
    /// The version that serves.
    pub(super) current: Arc<RouterVersion>,
    /// At most [`MAX_PREVIOUS`] earlier versions, each digest once.
    pub(super) previous: Vec<Arc<RouterVersion>>,
}

impl Versions {
    /// Lets a version serve; the one that served becomes the first of the previous ones.
    fn publish(&mut self, version: Arc<RouterVersion>) {
        let before = std::mem::replace(&mut self.current, version);
        let serving = &self.current.digest;
        self.previous
            .retain(|version| version.digest != before.digest && version.digest != *serving);
        self.previous.insert(0, before);
        self.previous.truncate(MAX_PREVIOUS);
    }
}

/// One router of a chain, with its versions as they were when the chain was looked up.
pub(super) struct Link {
    /// The version that serves.
    pub(super) version: Arc<RouterVersion>,
    /// The version that served before, if any.
    previous: Option<Arc<RouterVersion>>,
}

impl Link {
    /// The router's name in the chain.
    pub(super) fn name(&self) -> &str {
        &self.version.name
    }

    /// The version that is asked after a fault of the serving one; `None` where there is none, or
    /// the policy is another than [`OnFault::Previous`].
    pub(super) fn previous_after_fault(&self) -> Option<&Arc<RouterVersion>> {
        let previous = self.version.health.policy().on_fault == OnFault::Previous;
        self.previous.as_ref().filter(|_| previous)
    }
}

impl Composer {
    /// Publishes a router under a name, after it has seen the library once. The version that served
    /// before can be rolled back to; requests that it planned finish with it.
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
        let version = Arc::new(RouterVersion::new(name, digest, router, settings, library, views)?);
        let mut routers = self.routers.write().unwrap_or_else(PoisonError::into_inner);
        match routers.get_mut(name) {
            Some(versions) => versions.publish(version),
            None => {
                let versions = Versions { current: version, previous: Vec::new() };
                routers.insert(name.to_owned(), versions);
            }
        }
        Ok(())
    }

    /// Takes a router away with all its versions; requests that it planned finish with it.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn remove_router(&self, name: &str) -> Result<(), RouterError> {
        let mut routers = self.routers.write().unwrap_or_else(PoisonError::into_inner);
        let unknown = || RouterError::Unknown { name: name.to_owned() };
        routers.remove(name).map(drop).ok_or_else(unknown)
    }

    /// Lets an earlier version of a router serve again, by the first digits of its digest. Its
    /// quarantine ends, if it was in one; the version that served until now stays as an earlier
    /// one.
    ///
    /// # Errors
    /// If there is no such router or version.
    pub fn roll_back(&self, name: &str, digest: &str) -> Result<(), RouterError> {
        let mut routers = self.routers.write().unwrap_or_else(PoisonError::into_inner);
        let versions =
            routers.get_mut(name).ok_or_else(|| RouterError::Unknown { name: name.to_owned() })?;
        let fits =
            |version: &Arc<RouterVersion>| !digest.is_empty() && version.digest.starts_with(digest);
        let Some(at) = versions.previous.iter().position(fits) else {
            return Err(RouterError::UnknownVersion {
                name: name.to_owned(),
                digest: digest.to_owned(),
                kept: versions.previous.iter().map(|version| version.digest.clone()).collect(),
            });
        };
        let version = versions.previous.remove(at);
        version.health.release();
        versions.publish(version);
        Ok(())
    }

    /// Ends a router's quarantine, and forgets the earlier ones.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn release_router(&self, name: &str) -> Result<(), RouterError> {
        let routers = self.routers.read().unwrap_or_else(PoisonError::into_inner);
        let unknown = || RouterError::Unknown { name: name.to_owned() };
        routers.get(name).map(|versions| versions.current.health.release()).ok_or_else(unknown)
    }

    /// Lets every router see the current library now, rather than on its next request. A router
    /// that fails at it is quarantined at once.
    pub fn refresh_routers(&self) {
        let routers = self.routers.read().unwrap_or_else(PoisonError::into_inner);
        let slots: Vec<_> =
            routers.values().map(|versions| Arc::clone(&versions.current)).collect();
        drop(routers);
        // A router that is out hears of the library when it is asked again.
        let in_service = |version: &&Arc<RouterVersion>| {
            version.health.standing(Instant::now()) != Standing::Out
        };
        for version in slots.iter().filter(in_service) {
            if let Err(fault) = version.sync() {
                version.count_setup_fault(&format!("`library-changed`: {fault}"));
            }
        }
    }

    /// The loaded routers, in alphabetical order, with their counters.
    pub fn routers(&self) -> Vec<RouterInfo> {
        let routers = self.routers.read().unwrap_or_else(PoisonError::into_inner);
        let info = |versions: &Versions| {
            let previous = versions.previous.iter().map(|version| version.digest.clone()).collect();
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

    /// Looks up the routers of a chain, in its order. Spaces around names do not count.
    ///
    /// An error is a chain that is too long, a name that comes twice, or the first router that does
    /// not exist.
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
            Ok(Link { version: Arc::clone(&versions.current), previous })
        };
        names.iter().map(link).collect()
    }

    /// A sample of the rows that the serving routers decided in `route`, one entry per router; the
    /// rows are empty unless [`RouterSettings::keep_rows`] asks for them.
    pub fn recorded_rows(&self) -> Vec<RoutedRows> {
        let routers = self.routers.read().unwrap_or_else(PoisonError::into_inner);
        routers.values().map(|versions| versions.current.recorded_rows()).collect()
    }
}
