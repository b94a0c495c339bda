//! Asking one router of a chain, and making a draft of its plan.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use polyskill_adapters::{Module, Snapshot};
use polyskill_sdk::gate::Program;
use polyskill_sdk::runtime::Fault;
use polyskill_sdk::{Pick, Plan, gate};

use super::Composer;
use super::chain::{
    as_given, check_narrowed, check_picks, count, identity, offered, refused, request_for,
};
use super::draft::{Draft, modules_into};
use super::expert_plans::RoutedExperts;
use super::selection::{ComposeError, RouterRequest, partial_start};
use super::versions::Link;
use crate::compose::composition::{self, NamedModule, RouterIdentity};
use crate::hooks::gates::{Gates, combine_rule};
use crate::identity::Fields;
use crate::routers::health::Standing;
use crate::routers::version::RouterVersion;

/// Compiled programs above which those that no composition uses are swept from the cache.
const MAX_UNUSED: usize = 1_024;

/// The question to a chain of routers, as it stands after those that were asked already.
pub(super) struct Question<'a> {
    /// The caller's request, with the parameters and patterns for the whole chain.
    pub(super) request: &'a RouterRequest,
    /// The library as the whole chain sees it; every index of the question is one of its modules.
    pub(super) snapshot: &'a Snapshot,
    /// The snapshot's modules by index, as plans and candidates name them.
    pub(super) modules: Vec<(&'a str, &'a Arc<Module>)>,
    /// Modules that act on every row, whatever is picked, with their weights.
    pub(super) always_on: Vec<(NamedModule, f32)>,
    /// Indices of the modules that may be picked, ascending. A router that narrows leaves fewer to
    /// the next one.
    pub(super) candidates: Vec<u32>,
    /// The experts of a sparse base that a router of the chain chose; `None` leaves them to the
    /// base.
    pub(super) experts: Option<RoutedExperts>,
    /// Versions that have answered, in the order of the chain; the router's identity covers them.
    pub(super) asked: Vec<Arc<RouterVersion>>,
    /// True for the last router, which must decide and gets the parameters without a prefix.
    pub(super) is_last: bool,
}

impl<'a> Question<'a> {
    /// The question to the first router of a chain.
    pub(super) fn new(
        snapshot: &'a Snapshot,
        request: &'a RouterRequest,
        always_on: Vec<(NamedModule, f32)>,
        candidates: Vec<u32>,
    ) -> Self {
        Self {
            request,
            snapshot,
            modules: snapshot.iter().collect(),
            always_on,
            candidates,
            experts: None,
            asked: Vec::new(),
            is_last: false,
        }
    }

    /// A module of the snapshot, by the index that plans use. The index must be one of the
    /// snapshot's, as those of candidates are.
    fn named(&self, index: u32) -> NamedModule {
        let (name, module) = self.modules[index as usize];
        NamedModule { name: name.to_owned(), module: Arc::clone(module) }
    }
}

/// The answer of one router of a chain.
pub(super) enum LinkAnswer {
    /// A mixture or programs, checked.
    Planned(Box<Draft>),
    /// Fewer candidates for the next router, ascending.
    Narrowed(Vec<u32>),
    /// It leaves the decision to the next router, for a reason: it abstains, is not ready, or no
    /// candidate is of its kind.
    Passed(String),
    /// No usable plan, for a reason that is counted already, or a version that is out of service.
    /// The chain ends here.
    Failed(String),
}

/// An answer of a router, and the version that gave it.
pub(super) struct Answered {
    /// The version whose answer counts: the previous one where that was asked after a fault.
    pub(super) version: Arc<RouterVersion>,
    pub(super) answer: LinkAnswer,
}

impl Answered {
    /// The answer of this version.
    fn by(version: &Arc<RouterVersion>, answer: LinkAnswer) -> Self {
        Self { version: Arc::clone(version), answer }
    }
}

/// A reason for which a plan does not become a composition.
enum Unusable {
    /// The plan breaks a rule: a fault of the router, unless what the request said may be the
    /// reason.
    Plan(String),
    /// The router narrows and does not decide, and the request names no router behind it: no fault
    /// of the router.
    Alone(String),
}

impl From<String> for Unusable {
    fn from(reason: String) -> Self {
        Self::Plan(reason)
    }
}

impl Composer {
    /// Asks the serving version of a router; after a failure its previous version, where the policy
    /// says so.
    ///
    /// An error ends the request: a parameter that the router refuses, or a failure where the
    /// policy is to fail.
    pub(super) fn ask_link(
        &self,
        question: &Question<'_>,
        link: &Link,
    ) -> Result<Answered, ComposeError> {
        let first = self.ask_version(question, &link.version)?;
        let LinkAnswer::Failed(reason) = &first else {
            return Ok(Answered::by(&link.version, first));
        };
        refused(&link.version, reason)?;
        let Some(previous) = link.previous_after_fault() else {
            return Ok(Answered::by(&link.version, first));
        };
        let second = self.ask_version(question, previous)?;
        if let LinkAnswer::Failed(reason) = &second {
            refused(&link.version, reason)?;
        }
        Ok(Answered::by(previous, second))
    }

    /// Asks one version of a router, checks its answer, and counts what that is worth.
    ///
    /// A trap or a bad narrowing counts against the router whatever the request. A failure that it
    /// reports, or a plan that is not usable, counts only where the request gave neither parameters
    /// nor patterns: see [`count`]. Abstaining is no fault.
    fn ask_version(
        &self,
        question: &Question<'_>,
        version: &Arc<RouterVersion>,
    ) -> Result<LinkAnswer, ComposeError> {
        if let Some(reason) = out_of_service(version) {
            return Ok(LinkAnswer::Failed(reason));
        }
        let candidates = offered(question, version);
        if candidates.is_empty() {
            let reason = "no candidate is of a kind that it picks from";
            return Ok(LinkAnswer::Passed(reason.to_owned()));
        }
        let router_request = question.request;
        let request = request_for(version, router_request, question.is_last, &candidates);
        let planned = version.plan(question.snapshot, request.clone());
        self.log_plan(question.snapshot, version, &request, &planned);
        let failed = |reason: String| {
            version.count_fault(&reason);
            Ok(LinkAnswer::Failed(reason))
        };
        let declined = |reason: String| {
            count(version, router_request, &reason);
            Ok(LinkAnswer::Failed(reason))
        };
        match planned {
            Err(Fault::InvalidParameter(error)) => {
                Err(ComposeError::Parameter(as_given(router_request, version, error)))
            }
            Err(fault @ (Fault::Abstain | Fault::NotReady(_))) => {
                version.health.abstentions.fetch_add(1, Relaxed);
                Ok(LinkAnswer::Passed(fault.to_string()))
            }
            Err(fault @ Fault::Failed(_)) => declined(fault.to_string()),
            Err(fault) => failed(fault.to_string()),
            Ok(Plan::Narrowed(narrowed)) if !question.is_last => {
                match check_narrowed(narrowed, &candidates) {
                    Ok(fewer) => Ok(LinkAnswer::Narrowed(fewer)),
                    Err(reason) => failed(reason),
                }
            }
            Ok(plan) => match self.draft(question, version, plan, &candidates) {
                Ok(draft) => Ok(LinkAnswer::Planned(Box::new(draft))),
                Err(Unusable::Plan(reason)) => declined(reason),
                Err(Unusable::Alone(reason)) => {
                    version.count_unusable(&reason);
                    Ok(LinkAnswer::Failed(reason))
                }
            },
        }
    }

    /// Checks a plan over `candidates` and makes a draft of it, with the modules that are always on
    /// and the experts that were chosen before.
    fn draft(
        &self,
        question: &Question<'_>,
        version: &Arc<RouterVersion>,
        plan: Plan,
        candidates: &[u32],
    ) -> Result<Draft, Unusable> {
        let asked: Vec<_> = question.asked.iter().chain([version]).cloned().collect();
        let router = identity(&question.request.router, &asked);
        let draft = match plan {
            Plan::Fixed { picks, combine } => fixed(question, &picks, combine, candidates)?,
            Plan::Gated(programs) => {
                self.gated(question, version, &router, &programs, candidates)?
            }
            Plan::Narrowed(_) => {
                let reason = "it narrows the candidates, but no router follows it";
                return Err(Unusable::Alone(reason.to_owned()));
            }
        };
        let draft = Draft { router: Some(router), version: Some(Arc::clone(version)), ..draft };
        let draft = draft.with_always_on(question.always_on.clone());
        Ok(draft.with_experts(question.experts.as_ref()))
    }

    /// A draft whose rows are decided one by one, by programs. Candidates that cannot be picked per
    /// row, such as soft prompts, are left out. The instance that decides rows is made here where a
    /// program ends with `route`.
    fn gated(
        &self,
        question: &Question<'_>,
        version: &RouterVersion,
        router: &RouterIdentity,
        programs: &[Program],
        candidates: &[u32],
    ) -> Result<Draft, String> {
        let acts_per_row = |(_, named): &(u32, NamedModule)| named.module.shape().is_per_row();
        let (positions, modules): (Vec<u32>, Vec<NamedModule>) = (0..)
            .zip(candidates.iter().map(|&index| question.named(index)))
            .filter(acts_per_row)
            .unzip();
        let gates = self.gates(programs, &modules, positions, version, router)?;
        if gates.any_routed() {
            version.prepare_stepper().map_err(|fault| fault.to_string())?;
        }
        let mut plan_fields = Fields::of("gated");
        plan_fields.list(programs);
        let plan = composition::Plan::Gated(gates);
        Ok(Draft { modules, plan, plan_fields, ..Draft::default() })
    }

    /// Programs made ready, which takes megabytes of copies: those of a composition that is in use
    /// are shared, as long as the router has defined nothing since.
    ///
    /// Two callers at once may compile the same programs; the last one's are shared from then on.
    fn gates(
        &self,
        programs: &[Program],
        modules: &[NamedModule],
        positions: Vec<u32>,
        version: &RouterVersion,
        router: &RouterIdentity,
    ) -> Result<Arc<Gates>, String> {
        let mut fields = Fields::of("gates");
        fields.text(&version.name).text(&router.digest).number(version.definitions.version());
        fields.list(programs).list(&positions);
        modules_into(&mut fields, modules);
        let key = fields.digest();
        if let Some(known) = self.gates.get(&key).and_then(|known| known.upgrade()) {
            return Ok(known);
        }
        let definitions = &version.definitions;
        let hidden = version.settings.hidden;
        let compiled = Gates::compile(programs, modules, definitions, &self.config, hidden)?;
        let compiled = Arc::new(compiled.with_positions(positions));
        if self.gates.len() > MAX_UNUSED {
            self.gates.retain(|_, gates| gates.strong_count() > 0);
        }
        self.gates.insert(key, Arc::downgrade(&compiled));
        Ok(compiled)
    }
}

/// The reason for which a version is not asked: a quarantine. `None` for one that serves.
fn out_of_service(version: &RouterVersion) -> Option<String> {
    match version.health.standing(Instant::now()) {
        Standing::Serving => None,
        Standing::Quarantined(left) => {
            let seconds = left.as_secs_f64().ceil();
            Some(format!("it is quarantined for {seconds} s more"))
        }
        Standing::Out => {
            let reason = "it is out after too many faults, until it is released or replaced";
            Some(reason.to_owned())
        }
    }
}

/// A draft with one mixture for every row and site. Candidates that are not picked are left out, so
/// they need no memory. A soft prompt, prefix or expert policy must be picked with the weight 1.
fn fixed(
    question: &Question<'_>,
    picks: &[Pick],
    combine: gate::Combine,
    candidates: &[u32],
) -> Result<Draft, String> {
    let picks = check_picks(picks, candidates)?;
    let modules: Vec<NamedModule> =
        picks.iter().map(|(at, _)| question.named(candidates[*at as usize])).collect();
    let picks: Vec<(u32, f32)> = (0..).zip(picks).map(|(at, (_, weight))| (at, weight)).collect();
    let partial = |(named, (_, weight)): (&NamedModule, &(u32, f32))| partial_start(named, *weight);
    // The weight is the router's own: the request has named none.
    if let Some(error) = modules.iter().zip(&picks).find_map(partial) {
        return Err(error.to_string());
    }
    Ok(Draft { modules, ..Draft::default() }.fixed(picks, combine_rule(combine)))
}
