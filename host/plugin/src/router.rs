//! Compiling plugins and calling them under guard.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use polyskill_sdk::runtime::{Definition, Fault, LibraryView, LoadedRouter};
use polyskill_sdk::{Descriptor, LibraryChange, Parameters, Plan, Request};
use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, Store};

use crate::bundle::Bundle;
use crate::error::Error;
use crate::host::{
    Router, RouterPre, State, WireDescriptor, from_wire_error, from_wire_plan, to_wire_parameters,
    to_wire_request,
};
use crate::limits::{Budget, Limits};

/// The unit of wall-clock deadlines.
const EPOCH: Duration = Duration::from_millis(10);
/// The first bytes of a component and of a core module.
const COMPONENT_MAGIC: [u8; 8] = *b"\0asm\x0d\0\x01\0";
const CORE_MAGIC: [u8; 8] = *b"\0asm\x01\0\0\0";
/// What every plugin of this minor exports, without the patch number.
const EXPORT: &str = "polyskill:router/planner@0.1.";
/// What a plugin without exports is said to export.
const NO_EXPORTS: &str = "nothing";
/// Instances alive at once, over all plugins: one per router and one more while it is swapped.
const MAX_INSTANCES: u32 = 64;

/// Compiles plugins. One per process.
pub struct Loader {
    engine: Engine,
    linker: Linker<State>,
    limits: Limits,
    ticking: Arc<AtomicBool>,
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.ticking.store(false, Ordering::Relaxed);
    }
}

impl Loader {
    /// Prepares wasmtime and its clock thread.
    ///
    /// # Errors
    /// If wasmtime does not support this machine.
    pub fn new(limits: Limits) -> Result<Self, Error> {
        let fail = |error: wasmtime::Error| compile_error("wasmtime", &error);
        let mut pool = PoolingAllocationConfig::default();
        pool.max_memory_size(limits.memory_mib << 20)
            .total_component_instances(MAX_INSTANCES)
            .total_core_instances(4 * MAX_INSTANCES)
            .total_memories(MAX_INSTANCES)
            .total_tables(8 * MAX_INSTANCES)
            .linear_memory_keep_resident(0);
        let mut config = Config::new();
        config
            .consume_fuel(true)
            .epoch_interruption(true)
            .wasm_component_model(true)
            .memory_reservation((limits.memory_mib as u64) << 20)
            .max_wasm_stack(512 << 10)
            .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        let engine = Engine::new(&config).map_err(fail)?;
        let mut linker = Linker::new(&engine);
        Router::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state).map_err(fail)?;
        let ticking = Arc::new(AtomicBool::new(true));
        let (clock, on) = (engine.weak(), Arc::clone(&ticking));
        let tick = move || {
            while let (true, Some(engine)) = (on.load(Ordering::Relaxed), clock.upgrade()) {
                engine.increment_epoch();
                drop(engine);
                std::thread::sleep(EPOCH);
            }
        };
        std::thread::Builder::new()
            .name("plugin-clock".to_owned())
            .spawn(tick)
            .map_err(|source| Error::Io { path: PathBuf::from("plugin-clock"), source })?;
        Ok(Self { engine, linker, limits, ticking })
    }

    /// The bundles in a directory.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn find(directory: &Path) -> Result<Vec<PathBuf>, Error> {
        Bundle::find(directory)
    }

    /// Reads, checks and compiles a bundle.
    ///
    /// # Errors
    /// If it is not a plugin that this host can run.
    pub fn load(&self, path: &Path) -> Result<Plugin, Error> {
        let Bundle { name, bytes, digest } = Bundle::read(path)?;
        let not_a_plugin = |reason: String| Error::NotAPlugin { name: name.clone(), reason };
        let core = bytes.starts_with(&CORE_MAGIC);
        let component = match bytes.get(..8) {
            Some(magic) if magic == COMPONENT_MAGIC => bytes,
            Some(magic) if magic == CORE_MAGIC => wrap_core(&bytes).map_err(not_a_plugin)?,
            _ => {
                let reason =
                    "not WebAssembly: expected a component, or a core module built with the SDK";
                return Err(not_a_plugin(reason.to_owned()));
            }
        };
        let component = Component::new(&self.engine, &component)
            .map_err(|error| compile_error(&name, &error))?;
        match check_exports(&name, &self.engine, &component) {
            // Such a module carries no component type, so wrapping it gave a component without exports.
            Err(Error::Version { found, .. }) if core && found == NO_EXPORTS => {
                let reason = "this core module carries no component type; build it with the SDK's export! macro";
                return Err(not_a_plugin(reason.to_owned()));
            }
            checked => checked?,
        }
        let pre = self
            .linker
            .instantiate_pre(&component)
            .and_then(RouterPre::new)
            .map_err(|error| compile_error(&name, &error))?;
        Ok(Plugin { name: name.into(), digest, pre, limits: self.limits.clone() })
    }
}

fn compile_error(name: &str, error: &wasmtime::Error) -> Error {
    Error::Compile { name: name.to_owned(), reason: format!("{error:#}") }
}

/// Makes a component of a core module that carries a component-type section.
fn wrap_core(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let encode =
        || wit_component::ComponentEncoder::default().module(bytes)?.validate(true).encode();
    encode().map_err(|error| {
        format!("this core module is not a router built with the SDK's export! macro: {error:#}")
    })
}

/// Names what a plugin of another minor exports, before any of its code runs.
fn check_exports(name: &str, engine: &Engine, component: &Component) -> Result<(), Error> {
    let exports: Vec<String> =
        component.component_type().exports(engine).map(|(export, _)| export.to_owned()).collect();
    if exports.iter().any(|export| export.starts_with(EXPORT)) {
        return Ok(());
    }
    let found = if exports.is_empty() { NO_EXPORTS.to_owned() } else { exports.join(", ") };
    Err(Error::Version { name: name.to_owned(), found })
}

/// A compiled plugin.
pub struct Plugin {
    name: Arc<str>,
    digest: String,
    pre: RouterPre<State>,
    limits: Limits,
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugin").field("name", &self.name).field("digest", &self.digest).finish()
    }
}

impl Plugin {
    /// The name from the manifest, or the file's stem.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// SHA-256 over manifest and plugin, hexadecimal.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Makes an instance and initialises it.
    ///
    /// # Errors
    /// If the plugin traps or refuses its parameters.
    pub fn start(
        self,
        library: &Arc<dyn LibraryView>,
        parameters: Parameters,
    ) -> Result<Box<dyn LoadedRouter>, Fault> {
        let (live, descriptor) = self.instantiate(library, &parameters)?;
        let descriptor = Descriptor {
            name: descriptor.name,
            version: descriptor.version,
            causal: descriptor.causal,
        };
        Ok(Box::new(WasmRouter { plugin: self, parameters, descriptor, live: Some(live) }))
    }

    fn instantiate(
        &self,
        library: &Arc<dyn LibraryView>,
        parameters: &Parameters,
    ) -> Result<(Live, WireDescriptor), Fault> {
        let state = State::new(Arc::clone(&self.name), Arc::clone(library), &self.limits);
        let mut store = Store::new(self.pre.engine(), state);
        store.limiter(|state| &mut state.store_limits);
        set_budget(&mut store, self.limits.setup_budget())?;
        let router =
            self.pre.instantiate(&mut store).map_err(|error| trap("instantiate", &error))?;
        let wire_parameters = to_wire_parameters(parameters);
        let descriptor = router
            .polyskill_router_planner()
            .call_init(&mut store, &wire_parameters)
            .map_err(|error| trap("init", &error))?
            .map_err(Fault::Failed)?;
        store.data_mut().end_call();
        Ok((Live { store, router }, descriptor))
    }
}

fn trap(function: &str, error: &wasmtime::Error) -> Fault {
    // The root cause names the trap; the chain before it is the guest's backtrace.
    let cause = error.root_cause().to_string();
    Fault::Trap(format!("`{function}`: {cause}"))
}

fn set_budget(store: &mut Store<State>, budget: Budget) -> Result<(), Fault> {
    store.set_fuel(budget.fuel).map_err(|error| trap("set_fuel", &error))?;
    let epochs = budget.time.as_millis().div_ceil(EPOCH.as_millis()).max(1);
    store.set_epoch_deadline(u64::try_from(epochs).unwrap_or(u64::MAX / 2) + 1);
    Ok(())
}

struct Live {
    store: Store<State>,
    router: Router,
}

/// A plugin's instance; made anew after a trap.
struct WasmRouter {
    plugin: Plugin,
    parameters: Parameters,
    descriptor: Descriptor,
    live: Option<Live>,
}

impl WasmRouter {
    /// Runs a call on the live instance; a trap discards it.
    fn call<T>(
        &mut self,
        library: &Arc<dyn LibraryView>,
        budget: Budget,
        call: impl FnOnce(&mut Live) -> Result<T, Fault>,
    ) -> Result<(T, Vec<Definition>), Fault> {
        let mut live = match self.live.take() {
            Some(live) => live,
            None => self.plugin.instantiate(library, &self.parameters)?.0,
        };
        live.store.data_mut().library = Arc::clone(library);
        live.store.data_mut().begin_call(&self.plugin.limits);
        set_budget(&mut live.store, budget)?;
        match call(&mut live) {
            Err(Fault::Trap(reason)) => Err(Fault::Trap(reason)),
            result => {
                let definitions = std::mem::take(&mut live.store.data_mut().definitions);
                live.store.data_mut().end_call();
                self.live = Some(live);
                Ok((result?, definitions))
            }
        }
    }
}

impl LoadedRouter for WasmRouter {
    fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    fn library_changed(
        &mut self,
        library: &Arc<dyn LibraryView>,
        change: &LibraryChange,
    ) -> Result<Vec<Definition>, Fault> {
        let budget = self.plugin.limits.setup_budget();
        let ((), definitions) = self.call(library, budget, |live| {
            live.router
                .polyskill_router_planner()
                .call_library_changed(&mut live.store, &change.added, &change.removed)
                .map_err(|error| trap("library-changed", &error))?
                .map_err(Fault::Failed)
        })?;
        Ok(definitions)
    }

    fn plan(
        &mut self,
        library: &Arc<dyn LibraryView>,
        request: &Request,
    ) -> Result<(Plan, Vec<Definition>), Fault> {
        let budget = self.plugin.limits.plan_budget();
        let max_items = self.plugin.limits.plan_items;
        self.call(library, budget, |live| {
            let plan = live
                .router
                .polyskill_router_planner()
                .call_plan(&mut live.store, &to_wire_request(request))
                .map_err(|error| trap("plan", &error))?
                .map_err(from_wire_error)?;
            from_wire_plan(plan, max_items)
        })
    }
}
