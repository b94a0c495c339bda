//! Composing: modules, router and plan of a request, resolved and pinned before it is queued.
//!
//! Called on admission, off the engine thread: routers plan here, artefacts are computed here, and
//! gates are packed here. Equal compositions are made once and shared.

mod ask;
mod chain;
pub(crate) mod composition;
mod draft;
mod expert_plans;
mod plan_log;
mod selection;
mod versions;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, RwLock, Weak};

use dashmap::DashMap;
use polyskill_adapters::{Generation, Library, Snapshot};
use polyskill_model::{Decoder, ModelConfig};
use polyskill_sdk::experts::ExpertLayer;
use polyskill_sdk::runtime::LibraryView;

use self::ask::{LinkAnswer, Question};
use self::chain::{check_prefixes, identity};
use self::draft::Draft;
use self::plan_log::PlanLog;
pub use self::plan_log::PlannedRequest;
pub use self::selection::{ComposeError, MAX_WEIGHT, RouterRequest, Selection};
use self::selection::{candidates, named_modules};
pub use self::versions::RouterError;
use self::versions::Versions;
use crate::compose::composition::Composition;
use crate::hooks::expert_programs as experts;
use crate::hooks::gates::Gates;
use crate::routers::library_view::{Views, model_info};

/// The character between the routers of a chain: `retrieval+arrow`.
pub const CHAIN: char = '+';

/// The maker of compositions. It resolves a request's modules, asks its routers for a plan, and
/// shares equal compositions between requests.
///
/// Its methods may block, on a router that plans for another request or on room for weights. They
/// are not for the engine thread.
pub struct Composer {
    /// The modules that are loaded, and the pool of their weights.
    library: Arc<Library>,
    /// The shape of the base: its sites, and the experts of its sparse layers.
    config: ModelConfig,
    /// The layers of a sparse base that have experts; empty for others.
    expert_layers: Vec<ExpertLayer>,
    /// Makes the views of the library that routers get.
    views: Arc<Views>,
    /// The routers by name, with their earlier versions. The lock is held to look one up, and never
    /// while a router plans.
    routers: RwLock<BTreeMap<String, Versions>>,
    /// Compositions that some request still uses, by digest. The entries are weak: a composition
    /// ends with its last request.
    cache: DashMap<Generation, Weak<Composition>>,
    /// Compiled programs that some composition still uses, by the digest of programs, candidates,
    /// router and the version of the router's rows.
    gates: DashMap<Generation, Weak<Gates>>,
    /// The last plans; empty unless the operator wants them recorded.
    plans: Mutex<PlanLog>,
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

    /// The library as a router sees it when it starts: the current snapshot, without rows that a
    /// router has defined.
    pub fn view(&self) -> Arc<dyn LibraryView> {
        Arc::new(self.views.view(&self.library.snapshot(), Arc::default()))
    }

    /// Makes the composition of a request, over one snapshot of the library. Blocks while a router
    /// plans, and until there is room for the modules' weights.
    ///
    /// A router that fails is no error unless its policy says so: the base answers, and
    /// [`Composition::fallback`] gives the reason.
    ///
    /// # Errors
    /// If the request names what does not exist or cannot be used.
    pub fn compose(&self, selection: &Selection) -> Result<Arc<Composition>, ComposeError> {
        let snapshot = self.library.snapshot();
        match selection {
            Selection::Base => self.ready(Draft::default()),
            Selection::Weighted(weights) => {
                self.ready(Draft::default().with_mixture(named_modules(&snapshot, weights)?))
            }
            Selection::Routed(request) => self.routed(&snapshot, request),
        }
    }

    /// Asks the routers of a chain in turn: one may narrow the candidates for the next, or leave
    /// the decision to it. The base answers, with the modules that are always on, where none of
    /// them decides.
    ///
    /// The experts of a sparse base are asked for first and apart: they may come from another
    /// router of the chain than the plan. A chain is over with the first plan or failure.
    fn routed(
        &self,
        snapshot: &Snapshot,
        request: &RouterRequest,
    ) -> Result<Arc<Composition>, ComposeError> {
        let chain = self.chain(&request.router)?;
        check_prefixes(request, &chain).map_err(ComposeError::Parameter)?;
        let always_on = named_modules(snapshot, &request.always_on)?;
        let candidates = candidates(snapshot, &request.modules, &always_on);
        let mut question = Question::new(snapshot, request, always_on, candidates);
        question.experts = self.ask_experts(&question, &chain)?;
        if question.candidates.is_empty() && question.experts.is_none() {
            return Err(ComposeError::NoModules { patterns: request.modules.clone() });
        }
        let mut reasons: Vec<String> = Vec::new();
        for (at, link) in chain.iter().enumerate() {
            question.is_last = at + 1 == chain.len();
            let answered = self.ask_link(&question, link)?;
            question.asked.push(answered.version);
            match answered.answer {
                LinkAnswer::Planned(draft) => return self.ready(*draft),
                LinkAnswer::Narrowed(fewer) => question.candidates = fewer,
                LinkAnswer::Passed(reason) => reasons.push(format!("{}: {reason}", link.name())),
                LinkAnswer::Failed(reason) => {
                    return self.ready(Self::without_router(question, reason));
                }
            }
        }
        if question.experts.is_some() {
            return self.ready(Self::experts_alone(question));
        }
        let reason = format!("no router of the chain decided: {}", reasons.join("; "));
        self.ready(Self::without_router(question, reason))
    }

    /// The base in place of a router that gave no usable plan, with the modules that are always on.
    /// Experts that a router of the chain has chosen are dropped with it.
    fn without_router(question: Question<'_>, reason: String) -> Draft {
        let router = identity(&question.request.router, &question.asked);
        let draft = Draft::default().with_always_on(question.always_on);
        Draft { router: Some(router), fallback: Some(reason), ..draft }
    }

    /// The base with the experts that a router chose, and the modules that are always on: no router
    /// of the chain has picked modules, and none failed.
    fn experts_alone(question: Question<'_>) -> Draft {
        let router = identity(&question.request.router, &question.asked);
        let draft = Draft::default().with_always_on(question.always_on);
        Draft { router: Some(router), ..draft }.with_experts(question.experts.as_ref())
    }
}
