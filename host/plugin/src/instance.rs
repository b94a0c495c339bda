//! One guard for every kind of plugin: budgets per call, a fresh instance after a trap.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use polyskill_sdk::experts::{ExpertLayer, ExpertProgram};
use polyskill_sdk::runtime::{Definition, Fault, LibraryView, LoadedRouter, Stepper};
use polyskill_sdk::{
    Batch, Decision, Descriptor, LibraryChange, ParameterError, Parameters, Plan, Request,
};

use crate::clock::Clock;
use crate::limits::{Budget, Limits};
use crate::state::State;

/// Longest reason that is kept of a fault: it goes into logs and replies.
const MAX_REASON_BYTES: usize = 1_000;
/// Longest name and version that a plugin gives itself.
const MAX_DESCRIPTOR_BYTES: usize = 200;

/// Compiled code of which instances can be made.
pub(crate) trait Code: Send + Sync {
    /// Makes an instance and runs its start code within the budget.
    fn instantiate(&self, state: State, budget: Budget) -> Result<Box<dyn Instance>, Fault>;
}

/// A running plugin. After a [`Fault::Trap`] it is not called again.
pub(crate) trait Instance: Send {
    /// The host's state, on which [`State::begin_call`] and [`State::end_call`] are called around
    /// the functions below.
    fn state(&mut self) -> &mut State;
    /// Renews fuel and deadline.
    ///
    /// Without an effect on dynamic libraries.
    fn set_budget(&mut self, budget: Budget) -> Result<(), Fault>;
    /// Reads the configured parameters and names the router. Called once.
    fn init(&mut self, parameters: &Parameters) -> Result<Descriptor, Fault>;
    /// Tells of modules that came and went; the indices hold for this call.
    fn library_changed(&mut self, change: &LibraryChange) -> Result<(), Fault>;
    /// Decides a request's modules, or the programs that do.
    fn plan(&mut self, request: &Request) -> Result<Plan, Fault>;
    /// Plans the base's experts of a request; abstains where the plugin exports no such function.
    fn plan_experts(
        &mut self,
        request: &Request,
        layers: &[ExpertLayer],
    ) -> Result<Vec<ExpertProgram>, Fault> {
        let _ = (request, layers);
        Err(Fault::Abstain)
    }
    /// True if the plugin exports `route`.
    fn routes(&self) -> bool;
    /// Decides the rows of a batch at one site. The decision is not checked here.
    fn route(&mut self, batch: &Batch<'_>, decision: &mut Decision) -> Result<(), Fault>;
}

/// A fault whose reason has a bounded length, whatever the plugin said or a parser quoted of it.
fn shortened(fault: Fault) -> Fault {
    let cut = |mut text: String| {
        if text.len() > MAX_REASON_BYTES {
            text.truncate(text.floor_char_boundary(MAX_REASON_BYTES));
            text.push('…');
        }
        text
    };
    match fault {
        Fault::Abstain => Fault::Abstain,
        Fault::NotReady(reason) => Fault::NotReady(cut(reason)),
        Fault::Failed(reason) => Fault::Failed(cut(reason)),
        Fault::Trap(reason) => Fault::Trap(cut(reason)),
        Fault::InvalidParameter(ParameterError { name, message }) => {
            Fault::InvalidParameter(ParameterError { name: cut(name), message: cut(message) })
        }
    }
}

/// The parts that instances of one plugin are made of.
#[derive(Clone)]
pub(crate) struct Source {
    /// The plugin's name, for its log messages.
    pub(crate) name: Arc<str>,
    /// The compiled code.
    pub(crate) code: Arc<dyn Code>,
    /// Limits of each instance.
    pub(crate) limits: Limits,
    /// Instances that may still be made.
    pub(crate) room: Arc<Room>,
    /// The clock of deadlines.
    pub(crate) clock: Arc<Clock>,
}

/// Instances that may still be made, over all plugins of a loader.
#[derive(Debug)]
pub(crate) struct Room {
    /// Instances that there is room for.
    left: AtomicU32,
    /// `max_instances`, for messages.
    most: u32,
}

impl Room {
    /// Room for `max_instances`.
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        let most = limits.max_instances;
        Arc::new(Self { left: AtomicU32::new(most), most })
    }
}

/// The place of one instance; dropping it makes room.
///
/// Kept in the instance's [`State`], so that it lives exactly as long.
pub(crate) struct Seat(Arc<Room>);

impl Seat {
    /// A place, or `None` if all are in use.
    fn take(room: &Arc<Room>) -> Option<Self> {
        let one_less = |left: u32| left.checked_sub(1);
        room.left.fetch_update(Relaxed, Relaxed, one_less).ok().map(|_| Self(Arc::clone(room)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.left.fetch_add(1, Relaxed);
    }
}

impl Source {
    /// Makes an instance and initialises it.
    ///
    /// The start code and `init` have a setup budget together.
    ///
    /// # Errors
    /// If there is no room, the code traps, `init` refuses the parameters, or the descriptor's
    /// texts are too long.
    fn start(
        &self,
        library: &Arc<dyn LibraryView>,
        parameters: &Parameters,
    ) -> Result<(Box<dyn Instance>, Descriptor), Fault> {
        let seat = Seat::take(&self.room).ok_or_else(|| {
            let most = self.room.most;
            Fault::Failed(format!("`max_instances` allows {most}, and all are in use"))
        })?;
        let mut state = State::new(Arc::clone(&self.name), Arc::clone(library), &self.limits);
        state.seat = Some(seat);
        let _ticking = self.clock.run();
        let started = self.code.instantiate(state, self.limits.setup_budget());
        let mut instance = started.map_err(shortened)?;
        let descriptor = instance.init(parameters).map_err(shortened)?;
        instance.state().end_call();
        for (what, text) in [("name", &descriptor.name), ("version", &descriptor.version)] {
            if text.len() > MAX_DESCRIPTOR_BYTES {
                let found = text.len();
                return Err(Fault::Failed(format!(
                    "its {what} has {found} bytes, at most {MAX_DESCRIPTOR_BYTES} are kept"
                )));
            }
        }
        Ok((instance, descriptor))
    }

    /// A router with an instance that is initialised already, so that wrong parameters are found at
    /// once.
    pub(crate) fn router(
        self,
        library: &Arc<dyn LibraryView>,
        parameters: Parameters,
    ) -> Result<Box<dyn LoadedRouter>, Fault> {
        let (instance, descriptor) = self.start(library, &parameters)?;
        Ok(Box::new(Guarded { source: self, parameters, descriptor, instance: Some(instance) }))
    }
}

/// A router in its sandbox.
///
/// A trap takes the instance away; the next call makes a fresh one, with the same parameters.
struct Guarded {
    /// Makes further instances: after a trap, and for deciding rows.
    source: Source,
    /// The configured parameters.
    parameters: Parameters,
    /// The answer of the first `init`.
    descriptor: Descriptor,
    /// The instance that plans; `None` after a trap.
    instance: Option<Box<dyn Instance>>,
}

impl Guarded {
    /// Runs one call within a budget; returns its answer and the rows that it defined. The rows of
    /// a call that fails are dropped.
    fn call<T>(
        &mut self,
        library: &Arc<dyn LibraryView>,
        budget: Budget,
        call: impl FnOnce(&mut dyn Instance) -> Result<T, Fault>,
    ) -> Result<(T, Vec<Definition>), Fault> {
        let mut instance = match self.instance.take() {
            Some(instance) => instance,
            None => self.source.start(library, &self.parameters)?.0,
        };
        let _ticking = self.source.clock.run();
        instance.state().begin_call(Arc::clone(library));
        instance.set_budget(budget)?;
        match call(&mut *instance).map_err(shortened) {
            Err(Fault::Trap(reason)) => Err(Fault::Trap(reason)),
            result => {
                let definitions = instance.state().end_call();
                self.instance = Some(instance);
                Ok((result?, definitions))
            }
        }
    }
}

impl LoadedRouter for Guarded {
    fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    fn library_changed(
        &mut self,
        library: &Arc<dyn LibraryView>,
        change: &LibraryChange,
    ) -> Result<Vec<Definition>, Fault> {
        let budget = self.source.limits.setup_budget();
        let call = |instance: &mut dyn Instance| instance.library_changed(change);
        Ok(self.call(library, budget, call)?.1)
    }

    fn plan(
        &mut self,
        library: &Arc<dyn LibraryView>,
        request: &Request,
    ) -> Result<(Plan, Vec<Definition>), Fault> {
        let limits = &self.source.limits;
        let (budget, max_items) = (limits.plan_budget(), limits.plan_items);
        let (plan, definitions) = self.call(library, budget, |instance| instance.plan(request))?;
        check_size(&plan, max_items)?;
        Ok((plan, definitions))
    }

    fn plan_experts(
        &mut self,
        library: &Arc<dyn LibraryView>,
        request: &Request,
        layers: &[ExpertLayer],
    ) -> Result<Vec<ExpertProgram>, Fault> {
        let limits = &self.source.limits;
        let (budget, max_items) = (limits.plan_budget(), limits.plan_items);
        let call = |instance: &mut dyn Instance| instance.plan_experts(request, layers);
        let (programs, _) = self.call(library, budget, call)?;
        let count = programs.iter().map(|p| 1 + p.layers.len() + p.ops.len()).sum::<usize>();
        if count > max_items {
            return Err(Fault::Failed(format!(
                "{count} expert programs, layers and ops, `plan_items` allows {max_items}"
            )));
        }
        Ok(programs)
    }

    fn stepper(&self, library: &Arc<dyn LibraryView>) -> Result<Box<dyn Stepper>, Fault> {
        let (instance, _) = self.source.start(library, &self.parameters)?;
        if !instance.routes() {
            return Err(Fault::Failed(
                "its plan leaves rows to `route`, which it lacks".to_owned(),
            ));
        }
        let budget = self.source.limits.route_budget();
        Ok(Box::new(GuardedStepper { instance, budget, clock: Arc::clone(&self.source.clock) }))
    }
}

/// Bounds a plan's size; its content is checked where it is compiled.
///
/// An expert program is counted with its layers and ops elsewhere, in `plan_experts`.
fn check_size(plan: &Plan, max_items: usize) -> Result<(), Fault> {
    let (count, what) = match plan {
        Plan::Fixed { picks, .. } => (picks.len(), "picks"),
        Plan::Narrowed(candidates) => (candidates.len(), "candidates"),
        Plan::Gated(programs) => {
            (programs.iter().map(|program| 1 + program.ops.len()).sum(), "programs and ops")
        }
    };
    if count <= max_items {
        return Ok(());
    }
    Err(Fault::Failed(format!("a plan with {count} {what}, `plan_items` allows {max_items}")))
}

/// An instance that decides rows, apart from the one that plans: both may run at the same time.
struct GuardedStepper {
    /// The instance. After a trap the engine makes another stepper.
    instance: Box<dyn Instance>,
    /// The budget of each batch.
    budget: Budget,
    /// The clock of deadlines.
    clock: Arc<Clock>,
}

impl Stepper for GuardedStepper {
    fn route(&mut self, batch: &Batch<'_>, decision: &mut Decision) -> Result<(), Fault> {
        let _ticking = self.clock.run();
        self.instance.set_budget(self.budget)?;
        self.instance.route(batch, decision).map_err(shortened)
    }
}
