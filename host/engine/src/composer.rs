//! From what a request asks for to a composition.
//!
//! Called on admission, off the engine thread: routers plan here, artefacts are computed here, and gates
//! are packed here. Equal compositions are made once and shared.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use dashmap::DashMap;
use polyskill_adapters::{Generation, Library, Snapshot};
use polyskill_model::{Decoder, ModelConfig};
use polyskill_sdk::runtime::{Fault, LibraryView, LoadedRouter};
use polyskill_sdk::{LibraryChange, ModelInfo, ParameterError, Parameters, Pick};

use crate::composition::{Composition, LeasedModule, Plan, RouterIdentity};
use crate::gates::Gates;
use crate::library_view::{Definitions, View, model_info};

/// Largest weight of a module in a request; far beyond it, hidden states overflow.
const MAX_WEIGHT: f32 = 1e3;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Selection {
    /// The base model alone.
    Base,
    /// An exact weighted sum of modules by name.
    Weighted(Vec<(String, f32)>),
    /// A router decides.
    Routed {
        /// Name of the router.
        router: String,
        /// Parameters of the request, over the configured ones.
        parameters: Parameters,
        /// Names, globs (`*`) or `tag:...` of the modules that may be picked; empty means all.
        modules: Vec<String>,
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// The last user message.
        text: Option<String>,
        /// Hash of the request's unit.
        bucket: u64,
    },
}

/// Why a request cannot be composed; the caller's fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ComposeError {
    /// No such module.
    #[error("the adapter `{name}` does not exist")]
    UnknownModule {
        /// The name.
        name: String,
    },
    /// No such router.
    #[error("the router `{name}` does not exist; loaded are: {}", loaded.join(", "))]
    UnknownRouter {
        /// The name.
        name: String,
        /// What is loaded.
        loaded: Vec<String>,
    },
    /// No module matches.
    #[error("no loaded adapter matches {patterns:?}")]
    NoModules {
        /// The patterns of the request.
        patterns: Vec<String>,
    },
    /// A weight is not usable.
    #[error("the weight of adapter `{name}` is {weight}, expected -1000 to 1000")]
    BadWeight {
        /// The module.
        name: String,
        /// The weight.
        weight: f32,
    },
    /// A router parameter is not usable.
    #[error("router {0}")]
    Parameter(ParameterError),
}

/// A loaded router, for reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterInfo {
    /// Name in the configuration.
    pub name: String,
    /// Digest of its code.
    pub digest: String,
    /// The router's own name and version.
    pub descriptor: String,
    /// Calls that trapped or gave an unusable answer.
    pub faults: u64,
    /// The last fault.
    pub last_fault: Option<String>,
}

/// Makes compositions.
pub struct Composer {
    library: Arc<Library>,
    config: ModelConfig,
    model: Arc<ModelInfo>,
    routers: RwLock<BTreeMap<String, Arc<RouterSlot>>>,
    cache: DashMap<Generation, Weak<Composition>>,
}

impl std::fmt::Debug for Composer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Composer").field("routers", &self.routers()).finish_non_exhaustive()
    }
}

struct RouterSlot {
    name: String,
    digest: String,
    descriptor: String,
    parameters: Parameters,
    definitions: Arc<Definitions>,
    state: Mutex<RouterState>,
}

struct RouterState {
    router: Box<dyn LoadedRouter>,
    /// The library version that the router was last told about.
    version: Option<u64>,
    known: Vec<Generation>,
    faults: u64,
    last_fault: Option<String>,
}

impl Composer {
    /// A composer without routers.
    pub fn new(model: &Decoder, library: Arc<Library>) -> Self {
        Self {
            library,
            config: model.config().clone(),
            model: Arc::new(model_info(model)),
            routers: RwLock::default(),
            cache: DashMap::new(),
        }
    }

    /// The library that names are looked up in.
    pub fn library(&self) -> &Arc<Library> {
        &self.library
    }

    /// The library as a router sees it when it starts.
    pub fn view(&self) -> Arc<dyn LibraryView> {
        let snapshot = self.library.snapshot();
        Arc::new(View::new(Arc::clone(&self.model), &snapshot, Arc::default()))
    }

    /// Publishes a router under a name, after it has seen the library once; replaces what was there.
    ///
    /// # Errors
    /// If the router cannot work with the library; nothing changes then.
    pub fn add_router(
        &self,
        name: &str,
        digest: String,
        router: Box<dyn LoadedRouter>,
        parameters: Parameters,
    ) -> Result<(), Fault> {
        let descriptor = router.descriptor();
        let slot = RouterSlot {
            name: name.to_owned(),
            digest,
            descriptor: format!("{} {}", descriptor.name, descriptor.version),
            parameters,
            definitions: Arc::default(),
            state: Mutex::new(RouterState {
                router,
                version: None,
                known: Vec::new(),
                faults: 0,
                last_fault: None,
            }),
        };
        slot.sync(&self.model, &self.library.snapshot(), &mut lock(&slot.state))?;
        let mut routers = self.routers.write().unwrap_or_else(PoisonError::into_inner);
        routers.insert(name.to_owned(), Arc::new(slot));
        Ok(())
    }

    /// Lets every router see the current library now, rather than on its next request.
    pub fn refresh_routers(&self) {
        let routers = self.routers.read().unwrap_or_else(PoisonError::into_inner);
        let slots: Vec<_> = routers.values().cloned().collect();
        drop(routers);
        for slot in slots {
            let synced = slot.sync(&self.model, &self.library.snapshot(), &mut lock(&slot.state));
            if let Err(fault) = synced {
                tracing::warn!(router = slot.name, %fault, "the router cannot use the changed library");
                slot.count_fault(&fault.to_string());
            }
        }
    }

    /// The loaded routers.
    pub fn routers(&self) -> Vec<RouterInfo> {
        let routers = self.routers.read().unwrap_or_else(PoisonError::into_inner);
        let info = |slot: &Arc<RouterSlot>| {
            let state = lock(&slot.state);
            RouterInfo {
                name: slot.name.clone(),
                digest: slot.digest.clone(),
                descriptor: slot.descriptor.clone(),
                faults: state.faults,
                last_fault: state.last_fault.clone(),
            }
        };
        routers.values().map(info).collect()
    }

    /// Makes the composition of a request.
    ///
    /// # Errors
    /// If the request names what does not exist or cannot be used.
    pub fn compose(&self, selection: &Selection) -> Result<Arc<Composition>, ComposeError> {
        let snapshot = self.library.snapshot();
        match selection {
            Selection::Base => Ok(self.base(None, None)),
            Selection::Weighted(weights) => self.weighted(&snapshot, weights),
            Selection::Routed { router, .. } => {
                let routers = self.routers.read().unwrap_or_else(PoisonError::into_inner);
                let slot =
                    routers.get(router).cloned().ok_or_else(|| ComposeError::UnknownRouter {
                        name: router.clone(),
                        loaded: routers.keys().cloned().collect(),
                    })?;
                drop(routers);
                self.routed(&snapshot, &slot, selection)
            }
        }
    }

    fn base(&self, router: Option<RouterIdentity>, fallback: Option<String>) -> Arc<Composition> {
        let digest = Generation::of(&[b"base", self.model.digest.as_bytes()]);
        Arc::new(Composition { digest, modules: Vec::new(), plan: Plan::Base, router, fallback })
    }

    fn weighted(
        &self,
        snapshot: &Snapshot,
        weights: &[(String, f32)],
    ) -> Result<Arc<Composition>, ComposeError> {
        let mut modules = Vec::new();
        let mut picks = Vec::new();
        for (name, weight) in weights {
            if !(-MAX_WEIGHT..=MAX_WEIGHT).contains(weight) {
                return Err(ComposeError::BadWeight { name: name.clone(), weight: *weight });
            }
            let module = snapshot.get(name).cloned();
            let module =
                module.ok_or_else(|| ComposeError::UnknownModule { name: name.clone() })?;
            picks.push((modules.len() as u32, *weight));
            modules.push(LeasedModule { name: name.clone(), module });
        }
        let digest = self.digest(&modules, None, &format!("{picks:?}"));
        Ok(self.shared(digest, || Composition {
            digest,
            modules,
            plan: Plan::Fixed(picks),
            router: None,
            fallback: None,
        }))
    }

    fn routed(
        &self,
        snapshot: &Snapshot,
        slot: &RouterSlot,
        selection: &Selection,
    ) -> Result<Arc<Composition>, ComposeError> {
        let Selection::Routed { modules: patterns, .. } = selection else {
            return Ok(self.base(None, None));
        };
        let candidates = candidates(snapshot, patterns);
        if candidates.is_empty() {
            return Err(ComposeError::NoModules { patterns: patterns.clone() });
        }
        let identity = RouterIdentity { name: slot.name.clone(), digest: slot.digest.clone() };
        let plan = slot.plan(&self.model, snapshot, selection, &candidates);
        let composed = match plan {
            Err(Fault::InvalidParameter(error)) => return Err(ComposeError::Parameter(error)),
            // Abstaining is a decision, not a fault; there is no next router yet, so the base answers.
            Err(Fault::Abstain) => {
                return Ok(self.base(Some(identity), Some(Fault::Abstain.to_string())));
            }
            Err(fault) => Err(fault.to_string()),
            Ok(plan) => self.compile(snapshot, slot, plan, &candidates, &identity),
        };
        Ok(composed.unwrap_or_else(|reason| {
            tracing::warn!(
                router = slot.name,
                reason,
                "the router gave no usable plan; the base answers"
            );
            slot.count_fault(&reason);
            self.base(Some(identity), Some(reason))
        }))
    }

    /// Checks a plan and makes it ready; a reason where it is not usable.
    fn compile(
        &self,
        snapshot: &Snapshot,
        slot: &RouterSlot,
        plan: polyskill_sdk::Plan,
        candidates: &[u32],
        identity: &RouterIdentity,
    ) -> Result<Arc<Composition>, String> {
        let all: Vec<_> = snapshot.iter().collect();
        let leases: Vec<LeasedModule> = candidates
            .iter()
            .map(|&index| {
                let (name, module) = all[index as usize];
                LeasedModule { name: name.to_owned(), module: Arc::clone(module) }
            })
            .collect();
        let digest = self.digest(&leases, Some(identity), &format!("{plan:?}"));
        if let Some(known) = self.cache.get(&digest).and_then(|entry| entry.upgrade()) {
            return Ok(known);
        }
        let plan = match plan {
            polyskill_sdk::Plan::Fixed(picks) => Plan::Fixed(check_picks(&picks, candidates)?),
            polyskill_sdk::Plan::Gated(programs) => {
                Plan::Gated(Gates::compile(&programs, &leases, &slot.definitions, &self.config)?)
            }
        };
        let router = Some(identity.clone());
        Ok(self.shared(digest, || Composition {
            digest,
            modules: leases,
            plan,
            router,
            fallback: None,
        }))
    }

    fn digest(
        &self,
        modules: &[LeasedModule],
        router: Option<&RouterIdentity>,
        plan: &str,
    ) -> Generation {
        let router = router.map_or("", |router| &router.digest);
        let mut parts: Vec<&[u8]> =
            vec![self.model.digest.as_bytes(), router.as_bytes(), plan.as_bytes()];
        let generations: Vec<Generation> =
            modules.iter().map(|lease| lease.module.generation()).collect();
        parts.extend(generations.iter().map(|generation| generation.0.as_slice()));
        // Names too: traces and responses carry them.
        parts.extend(modules.iter().map(|lease| lease.name.as_bytes()));
        Generation::of(&parts)
    }

    fn shared(&self, digest: Generation, make: impl FnOnce() -> Composition) -> Arc<Composition> {
        if self.cache.len() > 1_024 {
            self.cache.retain(|_, composition| composition.strong_count() > 0);
        }
        let mut entry = self.cache.entry(digest).or_default();
        if let Some(known) = entry.upgrade() {
            return known;
        }
        let composition = Arc::new(make());
        *entry = Arc::downgrade(&composition);
        composition
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RouterSlot {
    /// Tells the router about the library if it changed since the last call.
    fn sync(
        &self,
        model: &Arc<ModelInfo>,
        snapshot: &Snapshot,
        state: &mut RouterState,
    ) -> Result<Arc<View>, Fault> {
        let view = Arc::new(View::new(Arc::clone(model), snapshot, Arc::clone(&self.definitions)));
        if state.version == Some(snapshot.version()) {
            return Ok(view);
        }
        let generations: Vec<Generation> =
            snapshot.iter().map(|(_, module)| module.generation()).collect();
        let change = LibraryChange {
            added: (0..)
                .zip(&generations)
                .filter(|(_, generation)| !state.known.contains(generation))
                .map(|(index, _)| index)
                .collect(),
            removed: state
                .known
                .iter()
                .filter(|known| !generations.contains(known))
                .map(Generation::to_string)
                .collect(),
        };
        let library: Arc<dyn LibraryView> = view.clone();
        let definitions = state.router.library_changed(&library, &change)?;
        self.definitions.store(&view, definitions);
        self.definitions.retain(|generation| generations.contains(&generation));
        state.version = Some(snapshot.version());
        state.known = generations;
        Ok(view)
    }

    fn plan(
        &self,
        model: &Arc<ModelInfo>,
        snapshot: &Snapshot,
        selection: &Selection,
        candidates: &[u32],
    ) -> Result<polyskill_sdk::Plan, Fault> {
        let Selection::Routed { parameters, prompt_tokens, text, bucket, .. } = selection else {
            return Err(Fault::Failed("not a routed request".to_owned()));
        };
        let mut merged = self.parameters.clone();
        merged.0.retain(|(name, _)| parameters.get(name).is_none());
        merged.0.extend(parameters.0.iter().cloned());
        let request = polyskill_sdk::Request {
            parameters: merged,
            candidates: candidates.to_vec(),
            prompt_tokens: u32::try_from(*prompt_tokens).unwrap_or(u32::MAX),
            text: text.clone(),
            bucket: *bucket,
        };
        let mut state = lock(&self.state);
        let view = self.sync(model, snapshot, &mut state)?;
        let library: Arc<dyn LibraryView> = view.clone();
        let (plan, definitions) = state.router.plan(&library, &request)?;
        self.definitions.store(&view, definitions);
        Ok(plan)
    }

    fn count_fault(&self, reason: &str) {
        let mut state = lock(&self.state);
        state.faults += 1;
        state.last_fault = Some(reason.chars().take(500).collect());
    }
}

/// Indices of the modules that match any pattern; all, without patterns.
fn candidates(snapshot: &Snapshot, patterns: &[String]) -> Vec<u32> {
    let matches = |name: &str, tags: &[String]| {
        patterns.is_empty()
            || patterns.iter().any(|pattern| match pattern.strip_prefix("tag:") {
                Some(tag) => tags.iter().any(|found| found == tag),
                None => glob(pattern, name),
            })
    };
    (0..)
        .zip(snapshot.iter())
        .filter(|(_, (name, module))| matches(name, module.tags()))
        .map(|(index, _)| index)
        .collect()
}

/// `*` stands for any run of characters.
fn glob(pattern: &str, name: &str) -> bool {
    let Some((prefix, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut left) = name.strip_prefix(prefix) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.ends_with(last)
}

/// Checks a fixed mixture and turns library indices into the composition's.
fn check_picks(picks: &[Pick], candidates: &[u32]) -> Result<Vec<(u32, f32)>, String> {
    let mut checked: Vec<(u32, f32)> = Vec::with_capacity(picks.len());
    for (at, pick) in picks.iter().enumerate() {
        let Ok(index) = candidates.binary_search(&pick.module) else {
            return Err(format!("pick {at} names module {}, which is no candidate", pick.module));
        };
        if !pick.weight.is_finite() {
            return Err(format!("pick {at} has the weight {}", pick.weight));
        }
        if checked.iter().any(|(known, _)| *known == index as u32) {
            return Err(format!("pick {at} names module {} a second time", pick.module));
        }
        checked.push((index as u32, pick.weight));
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, name, expected) in [
            ("*", "anything", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*c*e", "abcde", true),
            ("a*c", "abcd", false),
            ("abc", "abc", true),
            ("ab", "abc", false),
        ] {
            assert_eq!(glob(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn picks_are_untrusted() {
        let pick = |module, weight| Pick { module, weight };
        assert_eq!(check_picks(&[pick(5, 0.5)], &[2, 5]), Ok(vec![(1, 0.5)]));
        for bad in [vec![pick(3, 1.0)], vec![pick(5, f32::NAN)], vec![pick(5, 1.0), pick(5, 1.0)]] {
            assert!(check_picks(&bad, &[2, 5]).is_err());
        }
    }
}
