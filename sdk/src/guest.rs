//! Glue between the generated bindings and the [`Router`] trait, inside a plugin.

use std::sync::Mutex;

use crate::batch::{Batch, Decision};
use crate::bindings::polyskill::router::{gate as wire_gate, host as wire_host};
use crate::experts::{ExpertLayer, ExpertOp, ExpertProgram};
use crate::gate::{Combine, Op, Program, Share, SiteSelector};
use crate::parameters::{Parameters, Value};
use crate::router::{
    Host, Level, LibraryChange, ModelInfo, ModuleInfo, ModuleSite, Part, Plan, Request, RouteError,
    Router, SiteInfo, SvdMethod, Tensor,
};

pub use crate::bindings::exports::polyskill::router::expert_planner::Guest as ExpertGuest;
pub use crate::bindings::exports::polyskill::router::planner as wire;
pub use crate::bindings::exports::polyskill::router::stepper as wire_stepper;
pub use crate::bindings::polyskill::router::experts as wire_experts;
pub use wire::Guest;
pub use wire_stepper::Guest as StepperGuest;

/// A panic ends as a trap without words; its own go to the host's log.
fn report_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    let hook = |info: &std::panic::PanicHookInfo<'_>| Imports.log(Level::Error, &info.to_string());
    ONCE.call_once(|| std::panic::set_hook(Box::new(hook)));
}

/// The one instance of a plugin. A component runs one call at a time, so the lock is never waited
/// for.
#[derive(Debug)]
pub struct Instance<R>(Mutex<Option<R>>);

impl<R: Router> Instance<R> {
    /// Not initialised yet.
    pub const fn empty() -> Self {
        Self(Mutex::new(None))
    }

    /// Runs a call on the router, `None` before `init`. A lock that a panic left is taken anyway.
    fn with<T>(&self, call: impl FnOnce(&mut Option<R>) -> T) -> T {
        match self.0.lock() {
            Ok(mut router) => call(&mut router),
            Err(poisoned) => call(&mut poisoned.into_inner()),
        }
    }

    /// The export `init`. A second call replaces the router.
    ///
    /// # Errors
    /// The router's reason to refuse the parameters.
    pub fn init(&self, parameters: Vec<wire::Parameter>) -> Result<wire::Descriptor, String> {
        report_panics();
        let router = R::init(&mut Imports, &from_wire(parameters))?;
        let descriptor = router.descriptor();
        self.with(|slot| *slot = Some(router));
        Ok(wire::Descriptor {
            name: descriptor.name,
            version: descriptor.version,
            causal: descriptor.causal,
        })
    }

    /// The export `library-changed`. Rows are defined through the imports meanwhile.
    ///
    /// # Errors
    /// The router's reason, or that `init` was not called.
    pub fn library_changed(&self, added: Vec<u32>, removed: Vec<String>) -> Result<(), String> {
        self.with(|slot| {
            let router = slot.as_mut().ok_or("init was not called")?;
            router.library_changed(&mut Imports, &LibraryChange { added, removed })
        })
    }

    /// The export `plan`. Converts the answer and nothing else: the host checks it.
    ///
    /// # Errors
    /// The router's, in the bindings' form.
    pub fn plan(&self, request: wire::Request) -> Result<wire::RoutePlan, wire::RouteError> {
        let request = from_wire_request(request);
        let plan = self.with(|slot| match slot.as_mut() {
            Some(router) => router.plan(&mut Imports, &request),
            None => Err(RouteError::NotReady("init was not called".to_owned())),
        });
        match plan {
            Ok(Plan::Fixed { picks, combine }) => {
                let pick =
                    |pick: crate::Pick| wire::Pick { module: pick.module, weight: pick.weight };
                let picks = picks.into_iter().map(pick).collect();
                Ok(wire::RoutePlan::Fixed(wire::Mixture {
                    picks,
                    combine: to_wire_combine(combine),
                }))
            }
            Ok(Plan::Gated(programs)) => {
                Ok(wire::RoutePlan::Gated(programs.into_iter().map(to_wire_program).collect()))
            }
            Ok(Plan::Narrowed(candidates)) => Ok(wire::RoutePlan::Narrowed(candidates)),
            Err(error) => Err(to_wire_error(error)),
        }
    }

    /// The export `plan-experts`. A router without a method of its own abstains.
    ///
    /// # Errors
    /// The router's, in the bindings' form.
    pub fn plan_experts(
        &self,
        request: wire::Request,
        layers: Vec<wire_experts::Layer>,
    ) -> Result<Vec<wire_experts::Program>, wire::RouteError> {
        let request = from_wire_request(request);
        let layer = |layer: wire_experts::Layer| ExpertLayer {
            layer: layer.layer,
            num_experts: layer.experts,
            top_k: layer.top_k,
            renormalise: layer.renormalise,
        };
        let layers: Vec<ExpertLayer> = layers.into_iter().map(layer).collect();
        let programs = self.with(|slot| match slot.as_mut() {
            Some(router) => router.plan_experts(&mut Imports, &request, &layers),
            None => Err(RouteError::NotReady("init was not called".to_owned())),
        });
        let program = |program: ExpertProgram| wire_experts::Program {
            layers: program.layers,
            ops: program.ops.into_iter().map(to_wire_expert_op).collect(),
            module: program.module,
        };
        Ok(programs.map_err(to_wire_error)?.into_iter().map(program).collect())
    }

    /// The export `route`. The batch is copied into the sandbox's memory by the bindings; the view
    /// borrows it there.
    ///
    /// # Errors
    /// The router's, in the bindings' form.
    pub fn route(
        &self,
        batch: wire_stepper::Batch,
    ) -> Result<wire_stepper::Decision, wire::RouteError> {
        let view = Batch {
            site: batch.site,
            num_rows: batch.rows as usize,
            candidates: &batch.candidates,
            scores: &batch.scores,
            hidden: &batch.hidden,
            arguments: &batch.arguments,
        };
        let mut decision = Decision::default();
        let routed = self.with(|slot| match slot.as_mut() {
            Some(router) => router.route(&view, &mut decision),
            None => Err(RouteError::NotReady("init was not called".to_owned())),
        });
        routed.map_err(to_wire_error)?;
        let Decision { offsets, columns, weights } = decision;
        Ok(wire_stepper::Decision { offsets, columns, weights })
    }
}

/// The bindings' request as the SDK's.
fn from_wire_request(request: wire::Request) -> Request {
    Request {
        parameters: from_wire(request.parameters),
        candidates: request.candidates,
        prompt_tokens: request.prompt_tokens,
        text: request.text,
        bucket: request.bucket,
    }
}

/// An op of an expert program in the bindings' form.
fn to_wire_expert_op(op: ExpertOp) -> wire_experts::Op {
    match op {
        ExpertOp::LoadNativeLogits => wire_experts::Op::LoadNativeLogits,
        ExpertOp::Mask { keep } => wire_experts::Op::Mask(keep),
        ExpertOp::Softmax => wire_experts::Op::Softmax,
        ExpertOp::TopK { k } => wire_experts::Op::TopK(k),
        ExpertOp::SkipRatio { beta } => wire_experts::Op::SkipRatio(beta),
        ExpertOp::Renormalise { epsilon } => wire_experts::Op::Renormalise(epsilon),
        ExpertOp::Alias { targets } => wire_experts::Op::Alias(targets),
        ExpertOp::Emit => wire_experts::Op::Emit,
    }
}

/// An error in the bindings' form.
fn to_wire_error(error: RouteError) -> wire::RouteError {
    match error {
        RouteError::Abstain => wire::RouteError::Abstain,
        RouteError::NotReady(reason) => wire::RouteError::NotReady(reason),
        RouteError::InvalidParameter(error) => {
            let error = wire::ParameterError { name: error.name, message: error.message };
            wire::RouteError::InvalidParameter(error)
        }
        RouteError::Failed(reason) => wire::RouteError::Failed(reason),
    }
}

/// Parameters of the bindings as the SDK's, in their order.
fn from_wire(parameters: Vec<wire::Parameter>) -> Parameters {
    let value = |value| match value {
        wire::Value::Flag(value) => Value::Flag(value),
        wire::Value::Number(value) => Value::Number(value),
        wire::Value::Text(value) => Value::Text(value),
    };
    Parameters(parameters.into_iter().map(|p| (p.name, value(p.value))).collect())
}

/// A gate program in the bindings' form.
fn to_wire_program(program: Program) -> wire_gate::Program {
    wire_gate::Program {
        sites: match program.sites {
            SiteSelector::All => wire_gate::SiteSelector::All,
            SiteSelector::Listed(sites) => wire_gate::SiteSelector::Listed(sites),
        },
        share: match program.share {
            Share::Site => wire_gate::Share::Site,
            Share::Group => wire_gate::Share::Group,
            Share::Layer => wire_gate::Share::Layer,
        },
        ops: program.ops.into_iter().map(to_wire_op).collect(),
        combine: to_wire_combine(program.combine),
    }
}

/// A way to combine picks in the bindings' form.
fn to_wire_combine(combine: Combine) -> wire_gate::Combine {
    match combine {
        Combine::OutputSum => wire_gate::Combine::OutputSum,
        Combine::AbMerge => wire_gate::Combine::AbMerge,
    }
}

/// An op of a gate program in the bindings' form.
fn to_wire_op(op: Op) -> wire_gate::Op {
    match op {
        Op::LoadInput => wire_gate::Op::LoadInput,
        Op::LayerNorm { epsilon } => wire_gate::Op::LayerNorm(epsilon),
        Op::Linear { name } => wire_gate::Op::Linear(name),
        Op::Abs => wire_gate::Op::Abs,
        Op::Affine { scale, shift } => wire_gate::Op::Affine(wire_gate::AffineMap { scale, shift }),
        Op::Sigmoid => wire_gate::Op::Sigmoid,
        Op::Relu => wire_gate::Op::Relu,
        Op::Softmax => wire_gate::Op::Softmax,
        Op::TopK { k } => wire_gate::Op::TopK(k),
        Op::Threshold { least } => wire_gate::Op::Threshold(least),
        Op::Renormalise { epsilon } => wire_gate::Op::Renormalise(epsilon),
        Op::Emit => wire_gate::Op::Emit,
        Op::Route { hidden, arguments } => {
            wire_gate::Op::Route(wire_gate::RouteCall { hidden, arguments })
        }
    }
}

/// The host behind the component's imports. The wire types are the SDK's under other names.
struct Imports;

impl Host for Imports {
    fn log(&mut self, level: Level, message: &str) {
        let level = match level {
            Level::Debug => wire_host::Level::Debug,
            Level::Info => wire_host::Level::Info,
            Level::Warn => wire_host::Level::Warn,
            Level::Error => wire_host::Level::Error,
        };
        wire_host::log(level, message);
    }

    fn model(&self) -> ModelInfo {
        let model = wire_host::model();
        let site = |site: wire_host::SiteInfo| SiteInfo {
            index: site.index,
            layer: site.layer,
            projection: site.projection,
            inputs: site.inputs,
            outputs: site.outputs,
        };
        ModelInfo {
            digest: model.digest,
            family: model.family,
            num_layers: model.layers,
            hidden_size: model.hidden_size,
            sites: model.sites.into_iter().map(site).collect(),
        }
    }

    fn modules(&self) -> Vec<ModuleInfo> {
        wire_host::modules().into_iter().map(from_wire_module).collect()
    }

    fn module(&self, module: u32) -> Option<ModuleInfo> {
        wire_host::module(module).map(from_wire_module)
    }

    fn sites(&self, module: u32) -> Vec<ModuleSite> {
        let site = |site: wire_host::ModuleSite| ModuleSite {
            site: site.site,
            rank: site.rank,
            scale: site.scale,
        };
        wire_host::sites(module).into_iter().map(site).collect()
    }

    fn tensor(&self, module: u32, site: u32, part: Part) -> Result<Tensor, String> {
        let part = match part {
            Part::LoraA => wire_host::Part::LoraA,
            Part::LoraB => wire_host::Part::LoraB,
        };
        wire_host::weight(module, site, part).map(from_wire_tensor)
    }

    fn artefact(&self, module: u32, site: u32, name: &str) -> Option<Tensor> {
        wire_host::artefact(module, site, name).map(from_wire_tensor)
    }

    fn singular_vector(
        &self,
        module: u32,
        site: u32,
        method: SvdMethod,
    ) -> Result<Vec<f32>, String> {
        let method = match method {
            SvdMethod::Exact => wire_host::SvdMethod::Exact,
            SvdMethod::Power { iterations, seed } => {
                wire_host::SvdMethod::Power(wire_host::PowerIteration { iterations, seed })
            }
        };
        wire_host::singular_vector(module, site, method)
    }

    fn defined(&self, name: &str, module: u32) -> bool {
        wire_host::defined(name, module)
    }

    fn define(&mut self, name: &str, module: u32, site: u32, row: Vec<f32>) -> Result<(), String> {
        wire_host::define(name, module, site, &row)
    }
}

/// A module of the bindings as the SDK's.
fn from_wire_module(module: wire_host::ModuleInfo) -> ModuleInfo {
    ModuleInfo {
        index: module.index,
        name: module.name,
        generation: module.generation,
        kind: module.kind,
        tags: module.tags,
        metadata: module.metadata,
    }
}

/// A tensor of the bindings as the SDK's.
fn from_wire_tensor(tensor: wire_host::Tensor) -> Tensor {
    Tensor { shape: tensor.shape, values: tensor.values }
}
