//! The host's side of the component: imports, and conversions between wire and SDK types.

use std::sync::Arc;

use polyskill_sdk::gate::{Combine, Op, Program, Share, SiteSelector};
use polyskill_sdk::runtime::{Definition, Fault, LibraryView, check_definition};
use polyskill_sdk::{
    ModelInfo, ModuleInfo, ParameterError, Parameters, Part, Pick, Plan, Request, SvdMethod,
    Tensor, Value,
};
use wasmtime::{StoreLimits, StoreLimitsBuilder};

use crate::limits::Limits;

wasmtime::component::bindgen!({ path: "../../sdk/wit/router-0.1", world: "router" });

use exports::polyskill::router::planner as wire;
use polyskill::router::{gate as wire_gate, host as wire_host};

pub(crate) use wire::Descriptor as WireDescriptor;

/// Longest log message that is kept.
const MAX_LOG_BYTES: usize = 4_096;

/// The data behind one instance.
pub(crate) struct State {
    pub(crate) plugin: Arc<str>,
    pub(crate) library: Arc<dyn LibraryView>,
    pub(crate) definitions: Vec<Definition>,
    pub(crate) store_limits: StoreLimits,
    definition_bytes_left: usize,
    log_messages_left: usize,
}

/// What an instance sees between calls: nothing, so that it keeps no module alive.
struct NoLibrary(ModelInfo);

impl LibraryView for NoLibrary {
    fn model(&self) -> &ModelInfo {
        &self.0
    }
    fn modules(&self) -> &[ModuleInfo] {
        &[]
    }
    fn tensor(&self, _: u32, _: u32, _: Part) -> Result<Tensor, String> {
        Err("no call is running".to_owned())
    }
    fn artefact(&self, _: u32, _: u32, _: &str) -> Option<Tensor> {
        None
    }
    fn singular_vector(&self, _: u32, _: u32, _: SvdMethod) -> Result<Vec<f32>, String> {
        Err("no call is running".to_owned())
    }
    fn defined(&self, _: &str, _: u32) -> bool {
        false
    }
}

impl State {
    /// Lets go of the library after a call.
    pub(crate) fn end_call(&mut self) {
        self.library = Arc::new(NoLibrary(ModelInfo {
            digest: String::new(),
            family: String::new(),
            num_layers: 0,
            hidden_size: 0,
            sites: Vec::new(),
        }));
    }

    pub(crate) fn new(plugin: Arc<str>, library: Arc<dyn LibraryView>, limits: &Limits) -> Self {
        let store_limits = StoreLimitsBuilder::new()
            .memory_size(limits.memory_mib << 20)
            .table_elements(10_000)
            .instances(8)
            .memories(1)
            .tables(8)
            .trap_on_grow_failure(false)
            .build();
        let mut state = Self {
            plugin,
            library,
            definitions: Vec::new(),
            store_limits,
            definition_bytes_left: 0,
            log_messages_left: 0,
        };
        state.begin_call(limits);
        state
    }

    /// Renews the budgets of one call.
    pub(crate) fn begin_call(&mut self, limits: &Limits) {
        self.definitions.clear();
        self.definition_bytes_left = limits.definition_mib << 20;
        self.log_messages_left = limits.log_messages;
    }
}

impl polyskill::router::gate::Host for State {}

impl wire_host::Host for State {
    fn log(&mut self, level: wire_host::Level, mut message: String) {
        if self.log_messages_left == 0 {
            return;
        }
        self.log_messages_left -= 1;
        if message.len() > MAX_LOG_BYTES {
            message.truncate(message.floor_char_boundary(MAX_LOG_BYTES));
        }
        let plugin = &*self.plugin;
        match level {
            wire_host::Level::Debug => tracing::debug!(plugin, "{message}"),
            wire_host::Level::Info => tracing::info!(plugin, "{message}"),
            wire_host::Level::Warn => tracing::warn!(plugin, "{message}"),
            wire_host::Level::Error => tracing::error!(plugin, "{message}"),
        }
    }

    fn model(&mut self) -> wire_host::ModelInfo {
        let model = self.library.model();
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
        let site = |at: &polyskill_sdk::ModuleSite| wire_host::ModuleSite {
            site: at.site,
            rank: at.rank,
            scale: at.scale,
        };
        let module = |module: &polyskill_sdk::ModuleInfo| wire_host::ModuleInfo {
            index: module.index,
            name: module.name.clone(),
            generation: module.generation.clone(),
            kind: module.kind.clone(),
            tags: module.tags.clone(),
            metadata: module.metadata.clone(),
            sites: module.sites.iter().map(site).collect(),
        };
        self.library.modules().iter().map(module).collect()
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
        self.library.tensor(module, site, part).map(to_wire_tensor)
    }

    fn artefact(&mut self, module: u32, site: u32, name: String) -> Option<wire_host::Tensor> {
        self.library.artefact(module, site, &name).map(to_wire_tensor)
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
        self.library.singular_vector(module, site, method)
    }

    fn defined(&mut self, name: String, module: u32) -> bool {
        self.library.defined(&name, module)
    }

    fn define(
        &mut self,
        name: String,
        module: u32,
        site: u32,
        row: Vec<f32>,
    ) -> Result<(), String> {
        check_definition(&*self.library, module, site, &row)?;
        let bytes = name.len() + size_of_val(&*row);
        self.definition_bytes_left = self
            .definition_bytes_left
            .checked_sub(bytes)
            .ok_or("the call defines more than its limit `definition_mib`")?;
        self.definitions.push(Definition { name, module, site, row });
        Ok(())
    }
}

fn to_wire_tensor(tensor: polyskill_sdk::Tensor) -> wire_host::Tensor {
    wire_host::Tensor { shape: tensor.shape, values: tensor.values }
}

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

pub(crate) fn to_wire_request(request: &Request) -> wire::Request {
    wire::Request {
        parameters: to_wire_parameters(&request.parameters),
        candidates: request.candidates.clone(),
        prompt_tokens: request.prompt_tokens,
        text: request.text.clone(),
        bucket: request.bucket,
    }
}

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

/// Bounds a plan's size; its content is checked where it is compiled.
pub(crate) fn from_wire_plan(plan: wire::RoutePlan, max_items: usize) -> Result<Plan, Fault> {
    let too_many = |count: usize, what: &str| {
        Fault::Failed(format!("a plan with {count} {what}, at most {max_items} are allowed"))
    };
    match plan {
        wire::RoutePlan::Fixed(picks) if picks.len() > max_items => {
            Err(too_many(picks.len(), "picks"))
        }
        wire::RoutePlan::Fixed(picks) => {
            let pick = |pick: wire::Pick| Pick { module: pick.module, weight: pick.weight };
            Ok(Plan::Fixed(picks.into_iter().map(pick).collect()))
        }
        wire::RoutePlan::Gated(programs) => {
            let items = programs.iter().map(|program| 1 + program.ops.len()).sum();
            if items > max_items {
                return Err(too_many(items, "programs and ops"));
            }
            Ok(Plan::Gated(programs.into_iter().map(from_wire_program).collect()))
        }
    }
}

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
        combine: match program.combine {
            wire_gate::Combine::OutputSum => Combine::OutputSum,
            wire_gate::Combine::AbMerge => Combine::AbMerge,
        },
    }
}

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
    }
}
