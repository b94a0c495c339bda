//! From what a request asks for to a composition.
//!
//! Called on admission, off the engine thread: routers plan here, artefacts are computed here, and gates
//! are packed here. Equal compositions are made once and shared.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, RwLock, Weak};
use std::time::Instant;

use dashmap::DashMap;
use polyskill_adapters::apply::Combine;
use polyskill_adapters::{Generation, Lease, Library, Snapshot};
use polyskill_model::{Decoder, ModelConfig};
use polyskill_sdk::experts::ExpertLayer;
use polyskill_sdk::runtime::{Fault, LibraryView};

use self::chain::{
    as_given, check_narrowed, check_picks, check_prefixes, count, identity, offered, refused,
    request_for,
};
use self::expert_plans::AskedExperts;
use self::plan_log::KeptPlans;
pub use self::plan_log::PlannedRequest;
pub use self::selection::{ComposeError, MAX_WEIGHT, RouterRequest, Selection};
use self::selection::{candidates, named_modules, partial_start};
pub use self::versions::RouterError;
use self::versions::Versions;
use crate::compose::composition::{Beyond, Composition, LeasedModule, Plan, RouterIdentity};
use crate::hooks::expert_choice::{self as experts, ExpertPlan};
use crate::hooks::gates::{Gates, combine_rule};
use crate::routers::health::Standing;
use crate::routers::library_view::{Views, model_info};
use crate::routers::version::RouterSlot;

mod chain;
pub(crate) mod composition;
mod expert_plans;
mod plan_log;
mod selection;
mod versions;

/// Separates the routers of a chain: `retrieval+arrow`.
pub const CHAIN: char = '+';

/// Makes compositions.
pub struct Composer {
    library: Arc<Library>,
    config: ModelConfig,
    /// Of a sparse base.
    expert_layers: Vec<ExpertLayer>,
    views: Arc<Views>,
    routers: RwLock<BTreeMap<String, Versions>>,
    cache: DashMap<Generation, Weak<Composition>>,
    /// Compiled programs that some request still uses.
    gates: DashMap<Generation, Weak<Gates>>,
    plans: Mutex<KeptPlans>,
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
            expert_layers: experts::layers(model.config()),
            views: Arc::new(views),
            routers: RwLock::default(),
            cache: DashMap::new(),
            gates: DashMap::new(),
            plans: Mutex::default(),
        }
    }

    /// The library that names are looked up in.
    pub fn library(&self) -> &Arc<Library> {
        &self.library
    }

    /// The library as a router sees it when it starts.
    pub fn view(&self) -> Arc<dyn LibraryView> {
        Arc::new(self.views.view(&self.library.snapshot(), Arc::default()))
    }

    /// Makes the composition of a request.
    ///
    /// # Errors
    /// If the request names what does not exist or cannot be used.
    pub fn compose(&self, selection: &Selection) -> Result<Arc<Composition>, ComposeError> {
        let snapshot = self.library.snapshot();
        match selection {
            Selection::Base => Ok(self.base(None, None)),
            Selection::Weighted(weights) => self.weighted(named_modules(&snapshot, weights)?),
            Selection::Routed(asked) => {
                let beside = named_modules(&snapshot, &asked.beside)?;
                self.routed(&snapshot, asked, beside)
            }
        }
    }

    /// The modules that a request names, in their weights.
    fn weighted(
        &self,
        weighted: Vec<(LeasedModule, f32)>,
    ) -> Result<Arc<Composition>, ComposeError> {
        if weighted.is_empty() {
            return Ok(self.base(None, None));
        }
        let (modules, picks) = numbered(weighted, 0);
        let digest = self.digest(&modules, None, &format!("{picks:?}"));
        let plan = Plan::Fixed { picks, combine: Combine::OutputSum };
        let experts = self.policies(plan.fixed_picks(), &modules);
        let (beside, router, slot) = (Vec::new(), None, None);
        self.ready(Parts { digest, modules, plan, beside, router, slot, experts }, None)
    }

    /// What answers in place of a router that gave no usable plan: the base, with the modules beside it.
    fn without_router(
        &self,
        beside: Vec<(LeasedModule, f32)>,
        router: RouterIdentity,
        fallback: String,
    ) -> Result<Arc<Composition>, ComposeError> {
        if beside.is_empty() {
            return Ok(self.base(Some(router), Some(fallback)));
        }
        let (modules, beside) = numbered(beside, 0);
        let digest = self.digest(&modules, None, &format!("{beside:?}"));
        let experts = self.policies(&beside, &modules);
        let (plan, router, slot) = (Plan::Base, Some(router), None);
        self.ready(Parts { digest, modules, plan, beside, router, slot, experts }, Some(fallback))
    }

    /// What policies that act on every row say of experts.
    fn policies(&self, acting: &[(u32, f32)], modules: &[LeasedModule]) -> ExpertPlan {
        ExpertPlan::default().with_policies(acting.iter(), modules, &self.config)
    }

    fn base(&self, router: Option<RouterIdentity>, fallback: Option<String>) -> Arc<Composition> {
        let digest = Generation::of(&[b"base", self.views.model().digest.as_bytes()]);
        let (modules, beside) = (Vec::new(), Vec::new());
        let (plan, slot, experts) = (Plan::Base, None, ExpertPlan::default());
        let parts = Parts { digest, modules, plan, beside, router, slot, experts };
        Arc::new(parts.with(Vec::new(), Some(digest), fallback))
    }

    /// Asks the routers of a chain in turn: one may narrow the candidates for the next, or leave the
    /// decision to it.
    fn routed(
        &self,
        snapshot: &Snapshot,
        asked: &RouterRequest,
        beside: Vec<(LeasedModule, f32)>,
    ) -> Result<Arc<Composition>, ComposeError> {
        let chain = &self.chain(&asked.router)?;
        let name = &asked.router;
        check_prefixes(asked, chain).map_err(ComposeError::Parameter)?;
        let mut candidates = candidates(snapshot, &asked.modules, &beside);
        let experts = self.asked_experts(snapshot, (asked, chain), &candidates)?;
        if candidates.is_empty() && experts.is_none() {
            return Err(ComposeError::NoModules { patterns: asked.modules.clone() });
        }
        let experts = experts.as_ref();
        let mut digests: Vec<&str> = Vec::new();
        let mut reasons: Vec<String> = Vec::new();
        for (at, link) in chain.iter().enumerate() {
            let is_last = at + 1 == chain.len();
            let mut failure = None;
            for (version, slot) in link.versions().enumerate() {
                if version > 0 {
                    digests.pop();
                }
                digests.push(&slot.digest);
                let reason =
                    match self.ask_version(snapshot, slot, (asked, is_last), &candidates)? {
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
                            let planned = (plan, candidates.as_slice(), beside.as_slice());
                            match self.compile(snapshot, slot, (planned, experts), &identity) {
                                Ok(parts) => return self.ready(parts, None),
                                Err(Unusable::Alone(reason)) => {
                                    slot.count_unusable(&reason);
                                    Some(reason)
                                }
                                Err(Unusable::Plan(reason)) => {
                                    count(slot, asked, &reason);
                                    Some(reason)
                                }
                            }
                        }
                    };
                failure = reason;
                let Some(reason) = &failure else { break };
                refused(&link.slot, reason)?;
            }
            if let Some(failure) = failure {
                return self.without_router(beside, identity(name, &digests), failure);
            }
        }
        if let Some(experts) = experts {
            return self.experts_alone(beside, identity(name, &digests), experts);
        }
        let reason = format!("no router of the chain decided: {}", reasons.join("; "));
        self.without_router(beside, identity(name, &digests), reason)
    }

    /// Asks one version of a router.
    fn ask_version(
        &self,
        snapshot: &Snapshot,
        slot: &RouterSlot,
        (asked, is_last): (&RouterRequest, bool),
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
        let request = request_for(slot, (asked, is_last), candidates);
        let failed = |reason: String| {
            slot.count_fault(&reason);
            Ok(Outcome::Failed(reason))
        };
        let declined = |reason: String| {
            count(slot, asked, &reason);
            Ok(Outcome::Failed(reason))
        };
        let planned = slot.plan(snapshot, request.clone());
        self.keep(slot, &request, &planned);
        match planned {
            Err(Fault::InvalidParameter(error)) => {
                Err(ComposeError::Parameter(as_given(asked, slot, error)))
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
        ((plan, candidates, beside), experts): (Planned<'_>, Option<&AskedExperts>),
        identity: &RouterIdentity,
    ) -> Result<Parts, Unusable> {
        let all: Vec<_> = snapshot.iter().collect();
        let named = |index: &u32| {
            let (name, module) = all[*index as usize];
            LeasedModule { name: name.to_owned(), module: Arc::clone(module) }
        };
        let mut text = format!("{plan:?}");
        let (mut modules, plan) = match plan {
            polyskill_sdk::Plan::Fixed { picks, combine } => {
                let picks = check_picks(&picks, candidates)?;
                // Modules that are not picked need no memory.
                let modules: Vec<LeasedModule> =
                    picks.iter().map(|(at, _)| named(&candidates[*at as usize])).collect();
                let picks: Vec<(u32, f32)> = (0..).zip(picks).map(|(at, (_, w))| (at, w)).collect();
                let weights = picks.iter().map(|(_, weight)| *weight);
                let partial = |(lease, weight)| partial_start(lease, weight);
                // What a router picks is the router's: the request has named no weight.
                if let Some(error) = modules.iter().zip(weights).find_map(partial) {
                    return Err(Unusable::Plan(error.to_string()));
                }
                (modules, Plan::Fixed { picks, combine: combine_rule(combine) })
            }
            polyskill_sdk::Plan::Gated(programs) => {
                let modules: Vec<LeasedModule> = candidates
                    .iter()
                    .map(named)
                    .filter(|lease| lease.module.shape().is_per_row())
                    .collect();
                let gates = self.gates(&programs, &modules, (slot, identity, &text))?;
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
        let (named, beside) = numbered(beside.to_vec(), modules.len());
        if !beside.is_empty() {
            text.push_str(&format!(" beside {beside:?}"));
        }
        modules.extend(named);
        let asked = experts.map(|asked| {
            text.push_str(asked.text());
            asked.attached(&mut modules)
        });
        let acting = beside.iter().chain(plan.fixed_picks());
        let experts = asked.unwrap_or_default().with_policies(acting, &modules, &self.config);
        let digest = self.digest(&modules, Some(identity), &text);
        let (router, slot) = (Some(identity.clone()), Some(Arc::clone(slot)));
        Ok(Parts { digest, modules, plan, beside, router, slot, experts })
    }

    /// Programs made ready, which takes megabytes of copies: those of a request that runs are used again, as long as the
    /// router has defined nothing since.
    fn gates(
        &self,
        programs: &[polyskill_sdk::gate::Program],
        modules: &[LeasedModule],
        (slot, identity, plan): (&RouterSlot, &RouterIdentity, &str),
    ) -> Result<Arc<Gates>, String> {
        let version = slot.definitions.version();
        let key = self.digest(modules, Some(identity), &format!("{} {version} {plan}", slot.name));
        if let Some(known) = self.gates.get(&key).and_then(|known| known.upgrade()) {
            return Ok(known);
        }
        let hidden = slot.settings.hidden;
        let compiled =
            Gates::compile(programs, modules, &slot.definitions, (&self.config, hidden))?;
        let compiled = Arc::new(compiled);
        if self.gates.len() > 1_024 {
            self.gates.retain(|_, gates| gates.strong_count() > 0);
        }
        self.gates.insert(key, Arc::downgrade(&compiled));
        Ok(compiled)
    }

    /// Leases the weights; waits for room.
    ///
    /// Also where the same composition serves already: who waits for room must not be overtaken for ever.
    fn ready(
        &self,
        parts: Parts,
        fallback: Option<String>,
    ) -> Result<Arc<Composition>, ComposeError> {
        let modules = parts.modules.iter().map(|lease| &lease.module);
        let leases = self.library.lease(modules).map_err(ComposeError::Weights)?;
        let identity = self.cache_identity(&parts);
        if fallback.is_some() {
            return Ok(Arc::new(parts.with(leases, identity, fallback)));
        }
        Ok(self.shared(parts.digest, || parts.with(leases, identity, None)))
    }

    /// What keys and values depend on: generations and plan; editions too where rows were derived from them.
    ///
    /// `None` where a router decides rows in its own code and does not say that its choice depends on the
    /// tokens before alone.
    fn cache_identity(&self, parts: &Parts) -> Option<Generation> {
        let causal = parts.slot.as_ref().is_none_or(|slot| slot.is_causal());
        match &parts.plan {
            // Programs are in the digest, not in the mixture's identity.
            Plan::Fixed { .. } | Plan::Base if !parts.experts.is_empty() => Some(parts.digest),
            Plan::Gated(gates) => (causal || !gates.any_routed()).then_some(parts.digest),
            Plan::Fixed { picks, combine } => Some(self.mixture_identity(parts, picks, *combine)),
            Plan::Base => Some(self.mixture_identity(parts, &[], Combine::OutputSum)),
        }
    }

    /// Generations and weights in the order in which they act: edits depend on it.
    fn mixture_identity(
        &self,
        parts: &Parts,
        picks: &[(u32, f32)],
        combine: Combine,
    ) -> Generation {
        let model = self.views.model().digest.as_bytes().to_vec();
        let picked = parts.beside.iter().chain(picks).flat_map(|(module, weight)| {
            let generation = parts.modules[*module as usize].module.generation();
            [generation.0.to_vec(), weight.to_le_bytes().to_vec()]
        });
        // Where all are summed alike, it does not matter who chose them.
        let rule = match parts.beside.len() {
            beside if beside > 0 && combine != Combine::OutputSum => {
                format!("fixed {combine:?}, {beside} beside")
            }
            _ => format!("fixed {combine:?}"),
        };
        let all: Vec<Vec<u8>> = [rule.into_bytes(), model].into_iter().chain(picked).collect();
        let all: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
        Generation::of(&all)
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

/// A composition before its weights are leased.
struct Parts {
    digest: Generation,
    modules: Vec<LeasedModule>,
    plan: Plan,
    /// Indices into `modules` of those that act on every row beside the plan, with weights.
    beside: Vec<(u32, f32)>,
    router: Option<RouterIdentity>,
    slot: Option<Arc<RouterSlot>>,
    experts: ExpertPlan,
}

/// A router's plan, what it was offered, and what acts beside it.
type Planned<'a> = (polyskill_sdk::Plan, &'a [u32], &'a [(LeasedModule, f32)]);

/// Modules and their weights apart, with indices from `first` on.
fn numbered(
    weighted: Vec<(LeasedModule, f32)>,
    first: usize,
) -> (Vec<LeasedModule>, Vec<(u32, f32)>) {
    let number = |(at, (module, weight))| (module, (at, weight));
    (first as u32..).zip(weighted).map(number).unzip()
}

impl Parts {
    fn with(
        self,
        leases: Vec<Lease>,
        cache_identity: Option<Generation>,
        fallback: Option<String>,
    ) -> Composition {
        let Self { digest, modules, plan, beside, router, slot, experts } = self;
        let beyond = Beyond::of(beside.iter().chain(plan.fixed_picks()), &leases);
        let has_feed_forwards = leases.iter().any(|lease| !lease.feed_forwards.is_empty());
        Composition {
            digest,
            modules,
            leases,
            plan,
            beside,
            router,
            slot,
            fallback,
            cache_identity,
            beyond,
            experts,
            has_feed_forwards,
        }
    }
}

/// Why a plan does not become a composition.
enum Unusable {
    /// The router's answer is at fault.
    Plan(String),
    /// The router was asked for what it does not do: no fault of its own.
    Alone(String),
}

impl From<String> for Unusable {
    fn from(reason: String) -> Self {
        Self::Plan(reason)
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
