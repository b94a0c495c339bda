//! Plugins that are WebAssembly components of the WIT worlds `plan-only` and `router`.

use polyskill_sdk::experts::{ExpertLayer, ExpertOp, ExpertProgram};
use polyskill_sdk::gate::{Combine, Op, Program, Share, SiteSelector};
use polyskill_sdk::runtime::Fault;
use polyskill_sdk::{
    Batch, Decision, Descriptor, Host, Level, LibraryChange, ParameterError, Parameters, Part,
    Pick, Plan, Request, SvdMethod, Value,
};
use wasmtime::component::{
    Component, ComponentExportIndex, ComponentType, Func, HasSelf, Lift, Linker, Lower, TypedFunc,
};
use wasmtime::{Engine, Store};

use crate::error::Error;
use crate::instance::{Code, Instance};
use crate::limits::Budget;
use crate::sandbox::{compile_error, set_budget, trap};
use crate::state::State;

wasmtime::component::bindgen!({ path: "../../sdk/wit/router-0.1", world: "plan-only" });

use exports::polyskill::router::planner as wire;
use polyskill::router::{gate as wire_gate, host as wire_host};

/// The interface that every plugin of this minor exports, without the patch number.
const PLANNER: &str = "polyskill:router/planner@0.1.";
/// The interface of plugins that decide rows themselves.
const STEPPER: &str = "polyskill:router/stepper@0.1.";
/// The interface of plugins that choose the base's experts.
const EXPERT_PLANNER: &str = "polyskill:router/expert-planner@0.1.";
/// Stands for the exports of a plugin that has none.
pub(crate) const NO_EXPORTS: &str = "nothing";

/// A compiled component.
pub(crate) struct ComponentCode {
    /// The component with its imports linked and its types checked.
    pre: PlanOnlyPre<State>,
    /// The export `stepper.route`; `None` for a plugin of the world `plan-only`.
    route: Option<ComponentExportIndex>,
    /// The export `expert-planner.plan-experts`; `None` for a plugin that leaves experts to the
    /// model.
    plan_experts: Option<ComponentExportIndex>,
}

impl ComponentCode {
    /// Links a compiled component.
    ///
    /// # Errors
    /// If it exports no planner of this minor, or imports anything but the host's interfaces.
    pub(crate) fn new(name: &str, engine: &Engine, component: &Component) -> Result<Self, Error> {
        check_exports(name, engine, component)?;
        let link = || {
            let mut linker = Linker::new(engine);
            PlanOnly::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
            PlanOnlyPre::new(linker.instantiate_pre(component)?)
        };
        let pre = link().map_err(|error| compile_error(name, &error))?;
        let exports = component.component_type();
        let function = |interface: &str, name: &str| {
            let (export, _) =
                exports.exports(engine).find(|(export, _)| export.starts_with(interface))?;
            let interface = component.get_export_index(None, export)?;
            component.get_export_index(Some(&interface), name)
        };
        let route = function(STEPPER, "route");
        let plan_experts = function(EXPERT_PLANNER, "plan-experts");
        Ok(Self { pre, route, plan_experts })
    }
}

/// Refuses a plugin of another minor by the names of its exports, before any of its code runs.
fn check_exports(name: &str, engine: &Engine, component: &Component) -> Result<(), Error> {
    let exports: Vec<String> =
        component.component_type().exports(engine).map(|(export, _)| export.to_owned()).collect();
    if exports.iter().any(|export| export.starts_with(PLANNER)) {
        return Ok(());
    }
    let found = if exports.is_empty() { NO_EXPORTS.to_owned() } else { exports.join(", ") };
    Err(Error::Version { name: name.to_owned(), found })
}

impl Code for ComponentCode {
    fn instantiate(&self, state: State, budget: Budget) -> Result<Box<dyn Instance>, Fault> {
        let mut store = Store::new(self.pre.engine(), state);
        store.limiter(|state| &mut state.caps);
        set_budget(&mut store, budget)?;
        let instance = self.pre.instance_pre().instantiate(&mut store);
        let instance = instance.map_err(|error| trap("instantiate", &error))?;
        let exports = PlanOnly::new(&mut store, &instance);
        let exports = exports.map_err(|error| trap("instantiate", &error))?;
        let route = self.route.and_then(|route| instance.get_func(&mut store, route));
        if let Some(route) = &route {
            let typed = route.typed::<(WireBatch<'_>,), (RouteAnswer,)>(&store);
            typed.map_err(|error| Fault::Failed(format!("its `stepper.route`: {error:#}")))?;
        }
        let plan_experts = self.plan_experts.and_then(|at| instance.get_func(&mut store, at));
        let plan_experts = plan_experts.map(|plan| plan.typed(&store)).transpose();
        let plan_experts = plan_experts.map_err(|error| {
            Fault::Failed(format!("its `expert-planner.plan-experts`: {error:#}"))
        })?;
        Ok(Box::new(ComponentInstance { exports, route, plan_experts, store }))
    }
}

/// The answer of `stepper.route`.
type RouteAnswer = Result<WireDecision, wire::RouteError>;

/// `stepper.batch`, borrowed.
///
/// Written into the guest's memory without a copy in between, as it is on the path of every step.
#[derive(ComponentType, Lower)]
#[component(record)]
struct WireBatch<'a> {
    site: u32,
    rows: u32,
    candidates: &'a [u32],
    scores: &'a [f32],
    hidden: &'a [f32],
    arguments: &'a [f32],
}

/// `stepper.decision`
#[derive(ComponentType, Lift)]
#[component(record)]
struct WireDecision {
    offsets: Vec<u32>,
    columns: Vec<u32>,
    weights: Vec<f32>,
}

/// The function `expert-planner.plan-experts`.
type PlanExperts =
    TypedFunc<(wire::Request, Vec<WireLayer>), (Result<Vec<WireExpertProgram>, wire::RouteError>,)>;

/// `experts.layer`
#[derive(ComponentType, Lower)]
#[component(record)]
struct WireLayer {
    layer: u32,
    experts: u32,
    #[component(name = "top-k")]
    top_k: u32,
    renormalise: bool,
}

/// `experts.op`
#[derive(ComponentType, Lift)]
#[component(variant)]
enum WireExpertOp {
    #[component(name = "load-native-logits")]
    LoadNativeLogits,
    #[component(name = "mask")]
    Mask(Vec<u32>),
    #[component(name = "softmax")]
    Softmax,
    #[component(name = "top-k")]
    TopK(u32),
    #[component(name = "skip-ratio")]
    SkipRatio(f32),
    #[component(name = "renormalise")]
    Renormalise(f32),
    #[component(name = "alias")]
    Alias(Vec<u32>),
    #[component(name = "emit")]
    Emit,
}

/// `experts.program`
#[derive(ComponentType, Lift)]
#[component(record)]
struct WireExpertProgram {
    layers: Vec<u32>,
    ops: Vec<WireExpertOp>,
    module: Option<u32>,
}

/// A running component.
struct ComponentInstance {
    /// Memory, fuel and the host's state.
    store: Store<State>,
    /// The planner's functions.
    exports: PlanOnly,
    /// `expert-planner.plan-experts`, where it is exported.
    plan_experts: Option<PlanExperts>,
    /// `stepper.route`, where it is exported; checked to take a batch and to give a
    /// [`RouteAnswer`].
    route: Option<Func>,
}

impl Instance for ComponentInstance {
    fn state(&mut self) -> &mut State {
        self.store.data_mut()
    }

    fn set_budget(&mut self, budget: Budget) -> Result<(), Fault> {
        set_budget(&mut self.store, budget)
    }

    fn init(&mut self, parameters: &Parameters) -> Result<Descriptor, Fault> {
        let planner = self.exports.polyskill_router_planner();
        let descriptor = planner
            .call_init(&mut self.store, &to_wire_parameters(parameters))
            .map_err(|error| trap("init", &error))?
            .map_err(Fault::Failed)?;
        let wire::Descriptor { name, version, causal } = descriptor;
        Ok(Descriptor { name, version, causal })
    }

    fn library_changed(&mut self, change: &LibraryChange) -> Result<(), Fault> {
        let planner = self.exports.polyskill_router_planner();
        planner
            .call_library_changed(&mut self.store, &change.added, &change.removed)
            .map_err(|error| trap("library-changed", &error))?
            .map_err(Fault::Failed)
    }

    fn plan(&mut self, request: &Request) -> Result<Plan, Fault> {
        let planner = self.exports.polyskill_router_planner();
        planner
            .call_plan(&mut self.store, &to_wire_request(request))
            .map_err(|error| trap("plan", &error))?
            .map_err(from_wire_error)
            .map(from_wire_plan)
    }

    fn plan_experts(
        &mut self,
        request: &Request,
        layers: &[ExpertLayer],
    ) -> Result<Vec<ExpertProgram>, Fault> {
        let Some(plan) = &self.plan_experts else { return Err(Fault::Abstain) };
        let layers = layers.iter().map(|layer| WireLayer {
            layer: layer.layer,
            experts: layer.num_experts,
            top_k: layer.top_k,
            renormalise: layer.renormalise,
        });
        let (answer,) = plan
            .call(&mut self.store, (to_wire_request(request), layers.collect()))
            .map_err(|error| trap("plan-experts", &error))?;
        let program = |program: WireExpertProgram| ExpertProgram {
            layers: program.layers,
            ops: program.ops.into_iter().map(from_wire_expert_op).collect(),
            module: program.module,
        };
        Ok(answer.map_err(from_wire_error)?.into_iter().map(program).collect())
    }

    fn routes(&self) -> bool {
        self.route.is_some()
    }

    #[expect(unsafe_code, reason = "a typed function cannot be kept with a borrowed argument")]
    fn route(&mut self, batch: &Batch<'_>, decision: &mut Decision) -> Result<(), Fault> {
        let Some(route) = self.route else {
            return Err(Fault::Failed("it exports no `stepper`".to_owned()));
        };
        let batch = WireBatch {
            site: batch.site,
            rows: batch.num_rows as u32,
            candidates: batch.candidates,
            scores: batch.scores,
            hidden: batch.hidden,
            arguments: batch.arguments,
        };
        // SAFETY: its type was checked when the instance was made.
        let route = unsafe { TypedFunc::<(WireBatch<'_>,), (RouteAnswer,)>::new_unchecked(route) };
        let (answer,) =
            route.call(&mut self.store, (batch,)).map_err(|error| trap("route", &error))?;
        let WireDecision { offsets, columns, weights } = answer.map_err(from_wire_error)?;
        *decision = Decision { offsets, columns, weights };
        Ok(())
    }
}

impl polyskill::router::gate::Host for State {}

impl wire_host::Host for State {
    fn log(&mut self, level: wire_host::Level, message: String) {
        let level = match level {
            wire_host::Level::Debug => Level::Debug,
            wire_host::Level::Info => Level::Info,
            wire_host::Level::Warn => Level::Warn,
            wire_host::Level::Error => Level::Error,
        };
        Host::log(self, level, &message);
    }

    fn model(&mut self) -> wire_host::ModelInfo {
        let model = self.library().model();
        let site = |site: &polyskill_sdk::SiteInfo| wire_host::SiteInfo {
            index: site.index,
            layer: site.layer,
            projection: site.projection.clone(),
            inputs: site.inputs,
            outputs: site.outputs,
        };
        wire_host::ModelInfo {
            digest: model.digest.clone(),
            family: model.family.clone(),
            layers: model.num_layers,
            hidden_size: model.hidden_size,
            sites: model.sites.iter().map(site).collect(),
        }
    }

    fn modules(&mut self) -> Vec<wire_host::ModuleInfo> {
        self.library().modules().iter().map(to_wire_module).collect()
    }

    fn module(&mut self, module: u32) -> Option<wire_host::ModuleInfo> {
        self.library().modules().get(module as usize).map(to_wire_module)
    }

    fn sites(&mut self, module: u32) -> Vec<wire_host::ModuleSite> {
        let site = |at: &polyskill_sdk::ModuleSite| wire_host::ModuleSite {
            site: at.site,
            rank: at.rank,
            scale: at.scale,
        };
        self.library().sites(module).iter().map(site).collect()
    }

    fn weight(
        &mut self,
        module: u32,
        site: u32,
        part: wire_host::Part,
    ) -> Result<wire_host::Tensor, String> {
        let part = match part {
            wire_host::Part::LoraA => Part::LoraA,
            wire_host::Part::LoraB => Part::LoraB,
        };
        Host::tensor(self, module, site, part).map(to_wire_tensor)
    }

    fn artefact(&mut self, module: u32, site: u32, name: String) -> Option<wire_host::Tensor> {
        Host::artefact(self, module, site, &name).map(to_wire_tensor)
    }

    fn singular_vector(
        &mut self,
        module: u32,
        site: u32,
        method: wire_host::SvdMethod,
    ) -> Result<Vec<f32>, String> {
        let method = match method {
            wire_host::SvdMethod::Exact => SvdMethod::Exact,
            wire_host::SvdMethod::Power(power) => {
                SvdMethod::Power { iterations: power.iterations, seed: power.seed }
            }
        };
        Host::singular_vector(self, module, site, method)
    }

    fn defined(&mut self, name: String, module: u32) -> bool {
        Host::defined(self, &name, module)
    }

    fn define(
        &mut self,
        name: String,
        module: u32,
        site: u32,
        row: Vec<f32>,
    ) -> Result<(), String> {
        Host::define(self, &name, module, site, row)
    }
}

/// A module's card as the guest sees it.
fn to_wire_module(module: &polyskill_sdk::ModuleInfo) -> wire_host::ModuleInfo {
    wire_host::ModuleInfo {
        index: module.index,
        name: module.name.clone(),
        generation: module.generation.clone(),
        kind: module.kind.clone(),
        tags: module.tags.clone(),
        metadata: module.metadata.clone(),
    }
}

/// A tensor as the guest sees it.
fn to_wire_tensor(tensor: polyskill_sdk::Tensor) -> wire_host::Tensor {
    wire_host::Tensor { shape: tensor.shape, values: tensor.values }
}

/// Parameters as the guest sees them.
pub(crate) fn to_wire_parameters(parameters: &Parameters) -> Vec<wire::Parameter> {
    let value = |value: &Value| match value {
        Value::Flag(value) => wire::Value::Flag(*value),
        Value::Number(value) => wire::Value::Number(*value),
        Value::Text(value) => wire::Value::Text(value.clone()),
    };
    let parameter =
        |(name, v): &(String, Value)| wire::Parameter { name: name.clone(), value: value(v) };
    parameters.0.iter().map(parameter).collect()
}

/// A request as the guest sees it.
pub(crate) fn to_wire_request(request: &Request) -> wire::Request {
    wire::Request {
        parameters: to_wire_parameters(&request.parameters),
        candidates: request.candidates.clone(),
        prompt_tokens: request.prompt_tokens,
        text: request.text.clone(),
        bucket: request.bucket,
    }
}

/// A guest's refusal as a fault.
pub(crate) fn from_wire_error(error: wire::RouteError) -> Fault {
    match error {
        wire::RouteError::Abstain => Fault::Abstain,
        wire::RouteError::NotReady(reason) => Fault::NotReady(reason),
        wire::RouteError::InvalidParameter(error) => {
            Fault::InvalidParameter(ParameterError { name: error.name, message: error.message })
        }
        wire::RouteError::Failed(reason) => Fault::Failed(reason),
    }
}

/// A guest's plan, unchecked.
pub(crate) fn from_wire_plan(plan: wire::RoutePlan) -> Plan {
    match plan {
        wire::RoutePlan::Fixed(mixture) => {
            let pick = |pick: wire::Pick| Pick { module: pick.module, weight: pick.weight };
            let picks = mixture.picks.into_iter().map(pick).collect();
            Plan::Fixed { picks, combine: from_wire_combine(mixture.combine) }
        }
        wire::RoutePlan::Gated(programs) => {
            Plan::Gated(programs.into_iter().map(from_wire_program).collect())
        }
        wire::RoutePlan::Narrowed(candidates) => Plan::Narrowed(candidates),
    }
}

/// A gate program, op by op.
fn from_wire_program(program: wire_gate::Program) -> Program {
    Program {
        sites: match program.sites {
            wire_gate::SiteSelector::All => SiteSelector::All,
            wire_gate::SiteSelector::Listed(sites) => SiteSelector::Listed(sites),
        },
        share: match program.share {
            wire_gate::Share::Site => Share::Site,
            wire_gate::Share::Group => Share::Group,
            wire_gate::Share::Layer => Share::Layer,
        },
        ops: program.ops.into_iter().map(from_wire_op).collect(),
        combine: from_wire_combine(program.combine),
    }
}

/// The rule by which picks combine.
fn from_wire_combine(combine: wire_gate::Combine) -> Combine {
    match combine {
        wire_gate::Combine::OutputSum => Combine::OutputSum,
        wire_gate::Combine::AbMerge => Combine::AbMerge,
    }
}

/// An op of a gate program.
fn from_wire_op(op: wire_gate::Op) -> Op {
    match op {
        wire_gate::Op::LoadInput => Op::LoadInput,
        wire_gate::Op::LayerNorm(epsilon) => Op::LayerNorm { epsilon },
        wire_gate::Op::Linear(name) => Op::Linear { name },
        wire_gate::Op::Abs => Op::Abs,
        wire_gate::Op::Affine(map) => Op::Affine { scale: map.scale, shift: map.shift },
        wire_gate::Op::Sigmoid => Op::Sigmoid,
        wire_gate::Op::Relu => Op::Relu,
        wire_gate::Op::Softmax => Op::Softmax,
        wire_gate::Op::TopK(k) => Op::TopK { k },
        wire_gate::Op::Threshold(least) => Op::Threshold { least },
        wire_gate::Op::Renormalise(epsilon) => Op::Renormalise { epsilon },
        wire_gate::Op::Emit => Op::Emit,
        wire_gate::Op::Route(call) => Op::Route { hidden: call.hidden, arguments: call.arguments },
    }
}

/// An op of an expert program.
fn from_wire_expert_op(op: WireExpertOp) -> ExpertOp {
    match op {
        WireExpertOp::LoadNativeLogits => ExpertOp::LoadNativeLogits,
        WireExpertOp::Mask(keep) => ExpertOp::Mask { keep },
        WireExpertOp::Softmax => ExpertOp::Softmax,
        WireExpertOp::TopK(k) => ExpertOp::TopK { k },
        WireExpertOp::SkipRatio(beta) => ExpertOp::SkipRatio { beta },
        WireExpertOp::Renormalise(epsilon) => ExpertOp::Renormalise { epsilon },
        WireExpertOp::Alias(targets) => ExpertOp::Alias { targets },
        WireExpertOp::Emit => ExpertOp::Emit,
    }
}
