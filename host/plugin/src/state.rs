//! State that the host keeps for one plugin instance, and its answers to the plugin's calls: one
//! place for every kind of plugin.

use std::sync::Arc;

use polyskill_sdk::runtime::{Definition, LibraryView, check_definition};
use polyskill_sdk::{
    Host, Level, ModelInfo, ModuleInfo, ModuleSite, Parameters, Part, Plan, SvdMethod, Tensor,
};
use wasmtime::{ResourceLimiter, StoreLimits, StoreLimitsBuilder};

use crate::instance::Seat;
use crate::limits::Limits;

/// Longest log message that is kept, in bytes; the rest is cut off.
const MAX_LOG_BYTES: usize = 4_096;

/// The data behind one instance.
pub(crate) struct State {
    /// The plugin's name, for its log messages.
    plugin: Arc<str>,
    /// The library of the call that runs; an empty one between calls.
    library: Arc<dyn LibraryView>,
    /// The plugin's limits.
    limits: Limits,
    /// Rows that the call has defined so far.
    definitions: Vec<Definition>,
    /// Bytes that the call may still define.
    definition_bytes_left: usize,
    /// Messages that the call may still log.
    log_messages_left: usize,
    /// Bounds of memories and tables, which wasmtime asks for.
    pub(crate) caps: Caps,
    /// Held for as long as the instance lives.
    pub(crate) seat: Option<Seat>,
    /// Arguments and answers that a plugin of the flat ABI reads and writes through calls of the
    /// host.
    pub(crate) exchange: Exchange,
}

/// The growth that an instance is allowed.
///
/// `memory_mib` is for all of its memories together: a component has one per core module.
pub(crate) struct Caps {
    /// Bounds of tables, and counts of instances, tables and memories.
    limits: StoreLimits,
    /// Bytes by which all memories together may still grow.
    memory_left: usize,
}

impl ResourceLimiter for Caps {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let left = self.memory_left.checked_sub(desired.saturating_sub(current));
        let Some(left) = left else { return Ok(false) };
        let grows = self.limits.memory_growing(current, desired, maximum)?;
        if grows {
            self.memory_left = left;
        }
        Ok(grows)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.limits.table_growing(current, desired, maximum)
    }

    fn instances(&self) -> usize {
        self.limits.instances()
    }

    fn tables(&self) -> usize {
        self.limits.tables()
    }

    fn memories(&self) -> usize {
        self.limits.memories()
    }
}

/// Arguments and answers of one call in the flat ABI.
///
/// Emptied before each call.
#[derive(Default)]
pub(crate) struct Exchange {
    /// The parameters of the router or of the request.
    pub(crate) parameters: Parameters,
    /// The answer of `init`.
    pub(crate) descriptor: Option<polyskill_sdk::Descriptor>,
    /// The answer of `plan`, or the reason for which it cannot be used. The last answer counts.
    pub(crate) plan: Option<Result<Plan, String>>,
    /// True while a plan is asked for. Answers are refused at other times: reading them costs the
    /// host time, which `route` has not.
    pub(crate) planning: bool,
    /// Parameter and message of an answer that is an error.
    pub(crate) error: (String, String),
}

/// The library that an instance sees between calls: an empty one, so that it keeps no module alive.
struct NoLibrary(ModelInfo);

/// The reason that it gives.
const NO_CALL: &str = "no call is running";

impl LibraryView for NoLibrary {
    fn model(&self) -> &ModelInfo {
        &self.0
    }
    fn modules(&self) -> &[ModuleInfo] {
        &[]
    }
    fn sites(&self, _: u32) -> &[ModuleSite] {
        &[]
    }
    fn tensor(&self, _: u32, _: u32, _: Part) -> Result<Tensor, String> {
        Err(NO_CALL.to_owned())
    }
    fn artefact(&self, _: u32, _: u32, _: &str) -> Option<Tensor> {
        None
    }
    fn singular_vector(&self, _: u32, _: u32, _: SvdMethod) -> Result<Vec<f32>, String> {
        Err(NO_CALL.to_owned())
    }
    fn defined(&self, _: &str, _: u32) -> bool {
        false
    }
}

impl State {
    /// The state of a new instance, whose start code and `init` see `library`.
    pub(crate) fn new(plugin: Arc<str>, library: Arc<dyn LibraryView>, limits: &Limits) -> Self {
        let limited = StoreLimitsBuilder::new()
            .memory_size(limits.memory_mib << 20)
            .table_elements(limits.table_elements)
            .instances(64)
            .memories(8)
            .tables(64)
            .trap_on_grow_failure(false)
            .build();
        let mut state = Self {
            plugin,
            library: Arc::clone(&library),
            limits: limits.clone(),
            definitions: Vec::new(),
            definition_bytes_left: 0,
            log_messages_left: 0,
            caps: Caps { limits: limited, memory_left: limits.memory_mib << 20 },
            seat: None,
            exchange: Exchange::default(),
        };
        state.begin_call(library);
        state
    }

    /// Renews the budgets of definitions and log messages for a call that sees this library.
    pub(crate) fn begin_call(&mut self, library: Arc<dyn LibraryView>) {
        self.library = library;
        self.definitions.clear();
        self.definition_bytes_left = self.limits.definition_mib << 20;
        self.log_messages_left = self.limits.log_messages;
        self.exchange = Exchange::default();
    }

    /// Lets go of the library after a call; returns the rows that the plugin has defined in it.
    pub(crate) fn end_call(&mut self) -> Vec<Definition> {
        self.library = Arc::new(NoLibrary(ModelInfo {
            digest: String::new(),
            family: String::new(),
            num_layers: 0,
            hidden_size: 0,
            sites: Vec::new(),
        }));
        std::mem::take(&mut self.definitions)
    }

    /// The plugin's limits.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The library of the call that runs.
    pub(crate) fn library(&self) -> &dyn LibraryView {
        &*self.library
    }
}

/// A character as it stands in the log: control characters, line ends among them, are escaped.
fn one_line(c: char) -> impl Iterator<Item = char> {
    let escaped = c.is_control().then(|| c.escape_default());
    let plain = escaped.is_none().then_some(c);
    escaped.into_iter().flatten().chain(plain)
}

impl Host for State {
    fn log(&mut self, level: Level, message: &str) {
        let Some(left) = self.log_messages_left.checked_sub(1) else { return };
        self.log_messages_left = left;
        let message = &message[..message.floor_char_boundary(MAX_LOG_BYTES)];
        // A message is one line of the log: nobody writes lines of their own.
        let message: String = message.chars().flat_map(one_line).collect();
        let plugin = &*self.plugin;
        match level {
            Level::Debug => tracing::debug!(plugin, "{message}"),
            Level::Info => tracing::info!(plugin, "{message}"),
            Level::Warn => tracing::warn!(plugin, "{message}"),
            Level::Error => tracing::error!(plugin, "{message}"),
        }
    }

    fn model(&self) -> ModelInfo {
        self.library.model().clone()
    }

    fn modules(&self) -> Vec<ModuleInfo> {
        self.library.modules().to_vec()
    }

    fn module(&self, module: u32) -> Option<ModuleInfo> {
        self.library.modules().get(module as usize).cloned()
    }

    fn sites(&self, module: u32) -> Vec<ModuleSite> {
        self.library.sites(module).to_vec()
    }

    fn tensor(&self, module: u32, site: u32, part: Part) -> Result<Tensor, String> {
        self.library.tensor(module, site, part)
    }

    fn artefact(&self, module: u32, site: u32, name: &str) -> Option<Tensor> {
        self.library.artefact(module, site, name)
    }

    fn singular_vector(
        &self,
        module: u32,
        site: u32,
        method: SvdMethod,
    ) -> Result<Vec<f32>, String> {
        self.library.singular_vector(module, site, method)
    }

    fn defined(&self, name: &str, module: u32) -> bool {
        self.library.defined(name, module)
    }

    fn define(&mut self, name: &str, module: u32, site: u32, row: Vec<f32>) -> Result<(), String> {
        check_definition(&*self.library, module, site, &row)?;
        let bytes = name.len() + size_of_val(&*row);
        self.definition_bytes_left = self
            .definition_bytes_left
            .checked_sub(bytes)
            .ok_or("the call defines more than its limit `definition_mib`")?;
        self.definitions.push(Definition { name: name.to_owned(), module, site, row });
        Ok(())
    }
}
