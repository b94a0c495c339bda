//! From what a request asks for to a composition.
//!
//! Called on admission, off the engine thread: routers plan here, artefacts are computed here, and gates
//! are packed here. Equal compositions are made once and shared.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Instant;

use dashmap::DashMap;
use polyskill_adapters::apply::Combine;
use polyskill_adapters::{Generation, Lease, Library, Snapshot};
use polyskill_model::{Decoder, ModelConfig};
use polyskill_sdk::runtime::{Fault, LibraryView, LoadedRouter};
use polyskill_sdk::{ModuleInfo, ParameterError, Parameters, Pick, Request};

use crate::composition::{Beyond, Composition, LeasedModule, Plan, RouterIdentity};
use crate::gates::{Gates, combine_rule};
use crate::health::{OnFault, Standing};
use crate::library_view::{Views, model_info};
use crate::router_slot::{RouterInfo, RouterSettings, RouterSlot};
use crate::row_sample::RoutedRows;

/// Separates the routers of a chain: `retrieval+arrow`.
pub const CHAIN: char = '+';
/// Versions of a router that are kept to roll back to.
const MAX_PREVIOUS: usize = 3;
/// Routers in a chain.
const MAX_CHAIN: usize = 8;
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
        /// Name of the router, or of several in a chain: `retrieval+arrow`.
        router: String,
        /// Parameters of the request, over the configured ones. In a chain, `retrieval.k` is for the
        /// router of that name, and a plain name for the last.
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
    /// The chain is too long.
    #[error("a chain of {found} routers, at most {MAX_CHAIN} are allowed")]
    LongChain {
        /// Routers in it.
        found: usize,
    },
    /// A module that comes before the sequence is there or not.
    #[error("adapter `{name}` comes before the sequence: its weight is {weight}, expected 1")]
    PartialStart {
        /// The module.
        name: String,
        /// The weight.
        weight: f32,
    },
    /// The modules' weights cannot be had; not the caller's fault, unless they are too large together.
    #[error("the adapters of this request are not at hand: {0}")]
    Weights(polyskill_adapters::Error),
    /// A router is asked twice: it would see what it has decided already.
    #[error("the chain `{chain}` names the router `{name}` twice, expected each name once")]
    RepeatedRouter {
        /// The chain.
        chain: String,
        /// The router.
        name: String,
    },
    /// The router failed, and its policy is to fail the request; not the caller's fault.
    #[error("the router `{router}` failed: {reason}")]
    RouterFailed {
        /// The router.
        router: String,
        /// Why.
        reason: String,
    },
}

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

/// Makes compositions.
pub struct Composer {
    library: Arc<Library>,
    config: ModelConfig,
    views: Arc<Views>,
    routers: RwLock<BTreeMap<String, Versions>>,
    cache: DashMap<Generation, Weak<Composition>>,
    plans: Mutex<KeptPlans>,
}

/// A request that a router planned, kept to make fixtures of.
#[derive(Clone, Debug)]
pub struct PlannedRequest {
    /// The router's name.
    pub router: String,
    /// Digest of its code.
    pub digest: String,
    /// What it was asked, with the request's own parameters.
    pub request: Request,
    /// The candidates, in the order of the request.
    pub candidates: Vec<ModuleInfo>,
    /// What it answered.
    pub plan: Result<polyskill_sdk::Plan, Fault>,
}

/// The last plans, as many as the operator wants.
#[derive(Debug, Default)]
struct KeptPlans {
    most: usize,
    plans: VecDeque<PlannedRequest>,
}

/// The serving version of a router and those before it, the last one first.
struct Versions {
    current: Arc<RouterSlot>,
    previous: Vec<Arc<RouterSlot>>,
}

impl std::fmt::Debug for Composer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Composer").field("routers", &self.routers()).finish_non_exhaustive()
    }
}

impl Composer {
    /// A composer without routers.
    pub fn new(model: &Decoder, library: Arc<Library>) -> Self {
        let views = Views::new(Arc::new(model_info(model)), Arc::clone(&library));
        Self {
            library,
            config: model.config().clone(),
            views: Arc::new(views),
            routers: RwLock::default(),
            cache: DashMap::new(),
            plans: Mutex::default(),
        }
    }

    /// Keeps the last `most` plans, with the texts that users wrote; none by default.
    pub fn keep_plans(&self, most: usize) {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner).most = most;
    }

    /// The plans that are kept, oldest first.
    pub fn kept_plans(&self) -> Vec<PlannedRequest> {
        let kept = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        kept.plans.iter().cloned().collect()
    }

    /// A sample of the rows that the serving routers decided in `route`, where
    /// [`RouterSettings::keep_rows`] asks for it.
    pub fn kept_rows(&self) -> Vec<RoutedRows> {
        let routers = self.routers.read().unwrap_or_else(PoisonError::into_inner);
        routers.values().map(|versions| versions.current.kept_rows()).collect()
    }

    fn keep(
        &self,
        slot: &RouterSlot,
        request: &Request,
        plan: &Result<polyskill_sdk::Plan, Fault>,
    ) {
        let mut kept = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.most == 0 {
            return;
        }
        let modules = self.views.modules(&self.library.snapshot());
        let candidate = |index: &u32| modules.get(*index as usize).cloned();
        let candidates = request.candidates.iter().filter_map(candidate).collect();
        while kept.plans.len() >= kept.most {
            kept.plans.pop_front();
        }
        kept.plans.push_back(PlannedRequest {
            router: slot.name.clone(),
            digest: slot.digest.clone(),
            request: request.clone(),
            candidates,
            plan: plan.clone(),
        });
    }

    /// The library that names are looked up in.
    pub fn library(&self) -> &Arc<Library> {
        &self.library
    }

    /// The library as a router sees it when it starts.
    pub fn view(&self) -> Arc<dyn LibraryView> {
        Arc::new(self.views.view(&self.library.snapshot(), Arc::default()))
    }

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
        let slot = Arc::new(RouterSlot::new((name, digest), router, settings, library, views)?);
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
        let fits = |slot: &Arc<RouterSlot>| !digest.is_empty() && slot.digest.starts_with(digest);
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

    fn chain(&self, chain: &str) -> Result<Vec<Link>, ComposeError> {
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
                let chain = self.chain(router)?;
                self.routed(&snapshot, (router, &chain), selection)
            }
        }
    }

    fn base(&self, router: Option<RouterIdentity>, fallback: Option<String>) -> Arc<Composition> {
        let digest = Generation::of(&[b"base", self.views.model().digest.as_bytes()]);
        let parts = Parts { digest, modules: Vec::new(), plan: Plan::Base, router, slot: None };
        Arc::new(parts.with(Vec::new(), Some(digest), fallback))
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
            let (name, module) = snapshot
                .resolve(name)
                .ok_or_else(|| ComposeError::UnknownModule { name: name.clone() })?;
            picks.push((modules.len() as u32, *weight));
            modules.push(LeasedModule { name: name.to_owned(), module: Arc::clone(module) });
        }
        if let Some(error) = partial_start(&modules, &picks) {
            return Err(error);
        }
        let digest = self.digest(&modules, None, &format!("{picks:?}"));
        let plan = Plan::Fixed { picks, combine: Combine::OutputSum };
        self.ready(Parts { digest, modules, plan, router: None, slot: None })
    }

    /// Asks the routers of a chain in turn: one may narrow the candidates for the next, or leave the
    /// decision to it.
    fn routed(
        &self,
        snapshot: &Snapshot,
        (name, chain): (&str, &[Link]),
        selection: &Selection,
    ) -> Result<Arc<Composition>, ComposeError> {
        let Selection::Routed { modules: patterns, .. } = selection else {
            return Ok(self.base(None, None));
        };
        check_prefixes(selection, chain).map_err(ComposeError::Parameter)?;
        let mut candidates = candidates(snapshot, patterns);
        if candidates.is_empty() {
            return Err(ComposeError::NoModules { patterns: patterns.clone() });
        }
        let mut digests: Vec<&str> = Vec::new();
        let mut reasons: Vec<String> = Vec::new();
        for (at, link) in chain.iter().enumerate() {
            let asked = (selection, at + 1 == chain.len());
            let mut failure = None;
            for (version, slot) in link.versions().enumerate() {
                if version > 0 {
                    digests.pop();
                }
                digests.push(&slot.digest);
                let reason = match self.ask_version(snapshot, slot, asked, &candidates)? {
                    Outcome::Narrowed(fewer) => {
                        candidates = fewer;
                        None
                    }
                    Outcome::Passed(reason) => {
                        reasons.push(format!("{}: {reason}", slot.name));
                        None
                    }
                    Outcome::Failed(reason) => Some(reason),
                    Outcome::Planned(plan) => {
                        let identity = identity(name, &digests);
                        let candidates = offered(snapshot, slot, &candidates);
                        match self.compile(snapshot, slot, plan, &candidates, &identity) {
                            Ok(parts) => return self.ready(parts),
                            Err(Unusable::Request(error)) => return Err(error),
                            Err(Unusable::Alone(reason)) => {
                                slot.count_unusable(&reason);
                                Some(reason)
                            }
                            Err(Unusable::Plan(reason)) => {
                                count(slot, selection, &reason);
                                Some(reason)
                            }
                        }
                    }
                };
                failure = reason;
                let Some(reason) = &failure else { break };
                refused(&link.slot, reason)?;
            }
            if failure.is_some() {
                return Ok(self.base(Some(identity(name, &digests)), failure));
            }
        }
        let reason = format!("no router of the chain decided: {}", reasons.join("; "));
        Ok(self.base(Some(identity(name, &digests)), Some(reason)))
    }

    /// Asks one version of a router.
    fn ask_version(
        &self,
        snapshot: &Snapshot,
        slot: &RouterSlot,
        (selection, is_last): (&Selection, bool),
        candidates: &[u32],
    ) -> Result<Outcome, ComposeError> {
        match slot.health.standing(Instant::now()) {
            Standing::Serving => {}
            Standing::Quarantined(left) => {
                let seconds = left.as_secs_f64().ceil();
                return Ok(Outcome::Failed(format!("it is quarantined for {seconds} s more")));
            }
            Standing::Out => {
                let reason = "it is out after too many faults, until it is released or replaced";
                return Ok(Outcome::Failed(reason.to_owned()));
            }
        }
        let offered = offered(snapshot, slot, candidates);
        if offered.is_empty() {
            let reason = "no candidate is of a kind that it picks from";
            return Ok(Outcome::Passed(reason.to_owned()));
        }
        let candidates = offered.as_slice();
        let request = request_for(slot, (selection, is_last), candidates);
        let failed = |reason: String| {
            slot.count_fault(&reason);
            Ok(Outcome::Failed(reason))
        };
        let declined = |reason: String| {
            count(slot, selection, &reason);
            Ok(Outcome::Failed(reason))
        };
        let planned = slot.plan(snapshot, request.clone());
        self.keep(slot, &request, &planned);
        match planned {
            Err(Fault::InvalidParameter(error)) => {
                Err(ComposeError::Parameter(as_given(selection, slot, error)))
            }
            Err(fault @ (Fault::Abstain | Fault::NotReady(_))) => {
                slot.health.abstentions.fetch_add(1, Relaxed);
                Ok(Outcome::Passed(fault.to_string()))
            }
            Err(fault @ Fault::Failed(_)) => declined(fault.to_string()),
            Err(fault) => failed(fault.to_string()),
            Ok(polyskill_sdk::Plan::Narrowed(narrowed)) if !is_last => {
                match check_narrowed(narrowed, candidates) {
                    Ok(fewer) => Ok(Outcome::Narrowed(fewer)),
                    Err(reason) => failed(reason),
                }
            }
            Ok(plan) => Ok(Outcome::Planned(plan)),
        }
    }

    /// Checks a plan and makes it ready; a reason where it is not usable.
    fn compile(
        &self,
        snapshot: &Snapshot,
        slot: &Arc<RouterSlot>,
        plan: polyskill_sdk::Plan,
        candidates: &[u32],
        identity: &RouterIdentity,
    ) -> Result<Parts, Unusable> {
        let all: Vec<_> = snapshot.iter().collect();
        let named = |index: &u32| {
            let (name, module) = all[*index as usize];
            LeasedModule { name: name.to_owned(), module: Arc::clone(module) }
        };
        let text = format!("{plan:?}");
        let (modules, plan) = match plan {
            polyskill_sdk::Plan::Fixed { picks, combine } => {
                let picks = check_picks(&picks, candidates)?;
                // Modules that are not picked need no memory.
                let modules: Vec<LeasedModule> =
                    picks.iter().map(|(at, _)| named(&candidates[*at as usize])).collect();
                let picks: Vec<(u32, f32)> = (0..).zip(picks).map(|(at, (_, w))| (at, w)).collect();
                if let Some(error) = partial_start(&modules, &picks) {
                    return Err(Unusable::Request(error));
                }
                (modules, Plan::Fixed { picks, combine: combine_rule(combine) })
            }
            polyskill_sdk::Plan::Gated(programs) => {
                let modules: Vec<LeasedModule> = candidates
                    .iter()
                    .map(named)
                    .filter(|lease| lease.module.shape().is_linear())
                    .collect();
                let hidden = slot.settings.hidden;
                let gates =
                    Gates::compile(&programs, &modules, &slot.definitions, (&self.config, hidden))?;
                if gates.any_routed() {
                    slot.prepare_stepper().map_err(|fault| fault.to_string())?;
                }
                (modules, Plan::Gated(gates))
            }
            polyskill_sdk::Plan::Narrowed(_) => {
                let reason = "it narrows the candidates, but no router follows it";
                return Err(Unusable::Alone(reason.to_owned()));
            }
        };
        let digest = self.digest(&modules, Some(identity), &text);
        let (router, slot) = (Some(identity.clone()), Some(Arc::clone(slot)));
        Ok(Parts { digest, modules, plan, router, slot })
    }

    /// Leases the weights; waits for room.
    ///
    /// Also where the same composition serves already: who waits for room must not be overtaken for ever.
    fn ready(&self, parts: Parts) -> Result<Arc<Composition>, ComposeError> {
        let modules = parts.modules.iter().map(|lease| &lease.module);
        let leases = self.library.lease(modules).map_err(ComposeError::Weights)?;
        let identity = self.cache_identity(&parts);
        Ok(self.shared(parts.digest, || parts.with(leases, identity, None)))
    }

    /// What keys and values depend on: generations and plan; editions too where rows were derived from them.
    ///
    /// `None` where a router decides rows in its own code and does not say that its choice depends on the
    /// tokens before alone.
    fn cache_identity(&self, parts: &Parts) -> Option<Generation> {
        let causal = parts.slot.as_ref().is_none_or(|slot| slot.is_causal());
        match &parts.plan {
            Plan::Gated(gates) => (causal || !gates.any_routed()).then_some(parts.digest),
            Plan::Fixed { picks, combine } => {
                let model = self.views.model().digest.as_bytes().to_vec();
                let picked = picks.iter().flat_map(|(module, weight)| {
                    let generation = parts.modules[*module as usize].module.generation();
                    [generation.0.to_vec(), weight.to_le_bytes().to_vec()]
                });
                let all: Vec<Vec<u8>> = [format!("fixed {combine:?}").into_bytes(), model]
                    .into_iter()
                    .chain(picked)
                    .collect();
                let all: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
                Some(Generation::of(&all))
            }
            Plan::Base => Some(parts.digest),
        }
    }

    fn digest(
        &self,
        modules: &[LeasedModule],
        router: Option<&RouterIdentity>,
        plan: &str,
    ) -> Generation {
        let router = router.map_or("", |router| &router.digest);
        let mut parts: Vec<&[u8]> =
            vec![self.views.model().digest.as_bytes(), router.as_bytes(), plan.as_bytes()];
        let editions: Vec<Generation> =
            modules.iter().map(|lease| lease.module.edition()).collect();
        parts.extend(editions.iter().map(|edition| edition.0.as_slice()));
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

impl Versions {
    fn publish(&mut self, slot: Arc<RouterSlot>) {
        let before = std::mem::replace(&mut self.current, slot);
        let serving = &self.current.digest;
        self.previous.retain(|slot| slot.digest != before.digest && slot.digest != *serving);
        self.previous.insert(0, before);
        self.previous.truncate(MAX_PREVIOUS);
    }
}

/// A composition before its weights are leased.
struct Parts {
    digest: Generation,
    modules: Vec<LeasedModule>,
    plan: Plan,
    router: Option<RouterIdentity>,
    slot: Option<Arc<RouterSlot>>,
}

impl Parts {
    fn with(
        self,
        leases: Vec<Lease>,
        cache_identity: Option<Generation>,
        fallback: Option<String>,
    ) -> Composition {
        let Self { digest, modules, plan, router, slot } = self;
        let beyond = match &plan {
            Plan::Fixed { picks, .. } => Beyond::of(picks, &leases),
            _ => Beyond::default(),
        };
        Composition {
            digest,
            modules,
            leases,
            plan,
            router,
            slot,
            fallback,
            cache_identity,
            beyond,
        }
    }
}

/// A mixture that would put a part of a prompt or prefix before the sequence.
fn partial_start(modules: &[LeasedModule], picks: &[(u32, f32)]) -> Option<ComposeError> {
    let partial = picks.iter().find(|(module, weight)| {
        let shape = modules[*module as usize].module.shape();
        shape.num_prefix + shape.num_prompt > 0 && *weight != 1.0
    });
    partial.map(|(module, weight)| ComposeError::PartialStart {
        name: modules[*module as usize].name.clone(),
        weight: *weight,
    })
}

/// One router of a chain.
struct Link {
    slot: Arc<RouterSlot>,
    previous: Option<Arc<RouterSlot>>,
}

impl Link {
    /// Who is asked in turn, until one answers: after the serving version the previous one, where the
    /// policy says so.
    fn versions(&self) -> impl Iterator<Item = &Arc<RouterSlot>> {
        let previous = self.slot.health.policy().on_fault == OnFault::Previous;
        std::iter::once(&self.slot).chain(self.previous.as_ref().filter(|_| previous))
    }
}

/// Why a plan does not become a composition.
enum Unusable {
    /// The router's answer is at fault.
    Plan(String),
    /// The request asks for what cannot be.
    Request(ComposeError),
    /// The router was asked for what it does not do: no fault of its own.
    Alone(String),
}

impl From<String> for Unusable {
    fn from(reason: String) -> Self {
        Self::Plan(reason)
    }
}

/// Counts an answer that is not usable. Where the request gave parameters or candidates of its own, these may
/// be the reason, and no client may take a router from all others.
fn count(slot: &RouterSlot, selection: &Selection, reason: &str) {
    let asks = match selection {
        Selection::Routed { parameters, modules, .. } => {
            !parameters.0.is_empty() || !modules.is_empty()
        }
        _ => false,
    };
    match asks {
        true => slot.count_unusable(reason),
        false => slot.count_fault(reason),
    }
}

/// What a router answered.
enum Outcome {
    /// A mixture or programs.
    Planned(polyskill_sdk::Plan),
    /// Fewer candidates for the next router, ascending.
    Narrowed(Vec<u32>),
    /// It leaves the decision to the next router.
    Passed(String),
    /// A fault, already counted.
    Failed(String),
}

/// The candidates that a router may be offered.
fn offered(snapshot: &Snapshot, slot: &RouterSlot, candidates: &[u32]) -> Vec<u32> {
    if slot.settings.any_kind {
        return candidates.to_vec();
    }
    let all: Vec<&Arc<polyskill_adapters::Module>> =
        snapshot.iter().map(|(_, module)| module).collect();
    let is_low_rank = |index: &u32| all[*index as usize].shape().is_low_rank();
    candidates.iter().copied().filter(is_low_rank).collect()
}

/// An error where the policy is to fail the request.
fn refused(slot: &RouterSlot, reason: &str) -> Result<(), ComposeError> {
    if slot.health.policy().on_fault != OnFault::FailRequest {
        return Ok(());
    }
    Err(ComposeError::RouterFailed { router: slot.name.clone(), reason: reason.to_owned() })
}

/// Refuses parameters of routers that are not in the chain.
fn check_prefixes(selection: &Selection, chain: &[Link]) -> Result<(), ParameterError> {
    let Selection::Routed { parameters, .. } = selection else { return Ok(()) };
    let known = |name: &str| chain.iter().any(|link| link.slot.name == name);
    let stranger = |(name, _): &&(String, polyskill_sdk::Value)| {
        name.split_once('.').is_some_and(|(router, _)| !known(router))
    };
    let Some((name, _)) = parameters.0.iter().find(stranger) else { return Ok(()) };
    let routers: Vec<&str> = chain.iter().map(|link| link.slot.name.as_str()).collect();
    let message = format!("found the prefix of another router, asked are: {}", routers.join(", "));
    Err(ParameterError { name: name.clone(), message })
}

/// A parameter as the request names it: with its router where it was given so.
fn as_given(selection: &Selection, slot: &RouterSlot, mut error: ParameterError) -> ParameterError {
    let Selection::Routed { parameters, .. } = selection else { return error };
    let prefixed = format!("{}.{}", slot.name, error.name);
    if parameters.get(&prefixed).is_some() {
        error.name = prefixed;
    }
    error
}

/// What one router of a chain is told: parameters under its own name, and if it is the last, plain ones.
fn request_for(
    slot: &RouterSlot,
    (selection, is_last): (&Selection, bool),
    candidates: &[u32],
) -> Request {
    let mut request = Request::for_candidates(candidates);
    if let Selection::Routed { parameters, prompt_tokens, text, bucket, .. } = selection {
        let own = |(name, value): &(String, polyskill_sdk::Value)| match name.split_once('.') {
            Some((router, name)) if router == slot.name => Some((name.to_owned(), value.clone())),
            None if is_last => Some((name.clone(), value.clone())),
            _ => None,
        };
        request.parameters = Parameters(parameters.0.iter().filter_map(own).collect());
        request.prompt_tokens = u32::try_from(*prompt_tokens).unwrap_or(u32::MAX);
        request.text.clone_from(text);
        request.bucket = *bucket;
    }
    request
}

/// A chain is identified by the digests of the routers that were asked.
fn identity(name: &str, digests: &[&str]) -> RouterIdentity {
    let digest = match digests {
        [one] => (*one).to_owned(),
        several => {
            let parts: Vec<&[u8]> = several.iter().map(|digest| digest.as_bytes()).collect();
            Generation::of(&parts).to_string()
        }
    };
    RouterIdentity { name: name.to_owned(), digest }
}

/// Checks what is left of the candidates, and sorts it.
fn check_narrowed(mut narrowed: Vec<u32>, candidates: &[u32]) -> Result<Vec<u32>, String> {
    if narrowed.is_empty() {
        return Err("it narrowed the candidates to none".to_owned());
    }
    narrowed.sort_unstable();
    if let Some(pair) = narrowed.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("it narrowed to module {} twice", pair[0]));
    }
    match narrowed.iter().find(|module| candidates.binary_search(module).is_err()) {
        Some(module) => Err(format!("it narrowed to module {module}, which is no candidate")),
        None => Ok(narrowed),
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
    // In ascending order, as a program's picks are: the sum's order is part of the result, and the first
    // pick gives a merge its scale.
    checked.sort_unstable_by_key(|(index, _)| *index);
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
