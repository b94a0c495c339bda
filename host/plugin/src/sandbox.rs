//! wasmtime, set up for strangers' code: fuel, deadlines, memory, and a cache of compiled plugins.

use std::fmt;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use polyskill_sdk::runtime::Fault;
use sha2::{Digest, Sha256};
use wasmtime::component::Component;
use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, Module, PoolingAllocationConfig, Precompiled, Store,
};

use crate::clock::{Clock, EPOCH};
use crate::error::Error;
use crate::limits::{Budget, Limits};
use crate::state::State;

/// Compiles plugins and keeps the clock that stops them.
pub(crate) struct Sandbox {
    /// Compiles code and counts its epochs.
    pub(crate) engine: Engine,
    /// The directory of compiled plugins; without one, each start compiles anew.
    cache: Option<PathBuf>,
    /// The clock of deadlines; stopped with the sandbox.
    pub(crate) clock: Arc<Clock>,
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.clock.stop();
    }
}

impl Sandbox {
    /// Sets wasmtime up for instances of at most these limits, and starts the clock.
    pub(crate) fn new(limits: &Limits, cache: Option<PathBuf>) -> Result<Self, Error> {
        let fail = |error: wasmtime::Error| compile_error("wasmtime", &error);
        let engine = Engine::new(&config(limits)).map_err(fail)?;
        let clock = Clock::start(&engine)
            .map_err(|source| Error::Io { path: PathBuf::from("plugin-clock"), source })?;
        Ok(Self { engine, cache, clock })
    }

    /// Compiles a component, or takes it from the cache. `make` gives the component where the bytes
    /// are another form of it, and is not called for a cached one.
    pub(crate) fn component(
        &self,
        name: &str,
        bytes: &[u8],
        make: impl FnOnce() -> Result<Option<Vec<u8>>, Error>,
    ) -> Result<Component, Error> {
        if let Some(compiled) = self.cached(bytes, Precompiled::Component) {
            // SAFETY: see `cached`.
            #[expect(unsafe_code, reason = "the cache is written by this program alone")]
            let component = unsafe { Component::deserialize(&self.engine, compiled) };
            if let Ok(component) = component {
                return Ok(component);
            }
        }
        let component = match make()? {
            None => Component::new(&self.engine, bytes),
            Some(made) => Component::new(&self.engine, made),
        };
        let component = component.map_err(|error| compile_error(name, &error))?;
        self.store(bytes, || component.serialize());
        Ok(component)
    }

    /// Compiles a core module, or takes it from the cache.
    pub(crate) fn module(&self, name: &str, bytes: &[u8]) -> Result<Module, Error> {
        if let Some(compiled) = self.cached(bytes, Precompiled::Module) {
            // SAFETY: see `cached`.
            #[expect(unsafe_code, reason = "the cache is written by this program alone")]
            let module = unsafe { Module::deserialize(&self.engine, compiled) };
            if let Ok(module) = module {
                return Ok(module);
            }
        }
        let module = Module::new(&self.engine, bytes);
        let module = module.map_err(|error| compile_error(name, &error))?;
        self.store(bytes, || module.serialize());
        Ok(module)
    }

    /// The path of the compiled form of these bytes: named by their digest, wasmtime's version and
    /// settings, and the CPU's features. `None` without a cache.
    fn path(&self, bytes: &[u8]) -> Option<PathBuf> {
        let mut compatibility = DefaultHasher::new();
        self.engine.precompile_compatibility_hash().hash(&mut compatibility);
        let digest = hex(&Sha256::digest(bytes));
        let name = format!("{digest}-{:016x}.cwasm", compatibility.finish());
        Some(self.cache.as_ref()?.join(name))
    }

    /// A compiled form that is as it was written, read once.
    ///
    /// Loading a damaged or foreign one would be unsound, so its digest stands beside it, in a
    /// directory of this user that nobody else may enter: it is not read where that does not hold.
    fn cached(&self, bytes: &[u8], kind: Precompiled) -> Option<Vec<u8>> {
        let path = self.path(bytes)?;
        let directory = path.parent()?;
        if !is_private(directory) {
            if directory.exists() {
                let directory = directory.display();
                tracing::warn!(%directory, "compiled plugins are not read: others may write there");
            }
            return None;
        }
        let content = fs::read(&path).ok()?;
        let expected = fs::read_to_string(path.with_extension("sha256")).ok()?;
        let intact = hex(&Sha256::digest(&content)) == expected
            && Engine::detect_precompiled(&content) == Some(kind);
        intact.then_some(content)
    }

    /// Writes a compiled form; the cache is a convenience, so a failure is logged and no more.
    ///
    /// Each file is renamed into place, so that another process never reads half of one.
    fn store(&self, bytes: &[u8], serialize: impl FnOnce() -> wasmtime::Result<Vec<u8>>) {
        let Some(path) = self.path(bytes) else { return };
        let write = || -> Result<(), String> {
            let content = serialize().map_err(|error| error.to_string())?;
            let directory = path.parent().unwrap_or(Path::new("."));
            private_directory(directory).map_err(|error| error.to_string())?;
            let digest = hex(&Sha256::digest(&content));
            for (target, content) in [
                (path.clone(), content.as_slice()),
                (path.with_extension("sha256"), digest.as_bytes()),
            ] {
                let fresh = target.with_extension(format!("{}.new", std::process::id()));
                fs::write(&fresh, content)
                    .and_then(|()| fs::rename(&fresh, &target))
                    .map_err(|error| error.to_string())?;
            }
            Ok(())
        };
        if let Err(reason) = write() {
            tracing::warn!(path = %path.display(), reason, "a compiled plugin is not cached");
        }
    }
}

/// True for a directory that belongs to this user and that nobody else may enter.
#[cfg(unix)]
fn is_private(directory: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    // A file of this process belongs to its user.
    let user = fs::metadata("/proc/self").map(|process| process.uid());
    let is_own = |owner: u32| user.as_ref().map_or(true, |user| *user == owner);
    fs::symlink_metadata(directory)
        .is_ok_and(|found| found.is_dir() && is_own(found.uid()) && found.mode() & 0o077 == 0)
}

/// True for a directory: the system's rights are not looked at here.
#[cfg(not(unix))]
fn is_private(directory: &Path) -> bool {
    directory.is_dir()
}

/// Makes a directory that only this user may enter; one that exists is made so.
pub(crate) fn private_directory(directory: &Path) -> std::io::Result<()> {
    fs::create_dir_all(directory)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Makes a new directory that only this user may enter, below one that everybody may write to.
///
/// Its name cannot be foreseen, and one that exists is not taken.
pub(crate) fn new_private_directory(parent: &Path) -> std::io::Result<PathBuf> {
    let mut random = [0; 16];
    getrandom::fill(&mut random)
        .map_err(|error| std::io::Error::other(format!("no randomness: {error}")))?;
    let directory = parent.join(format!("polyskill-{}", hex(&random)));
    let mut builder = fs::DirBuilder::new();
    builder.recursive(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt as _;
        builder.mode(0o700);
    }
    builder.create(&directory)?;
    Ok(directory)
}

/// wasmtime's configuration: fuel and epochs are on, and memories come from a pool that is reserved
/// once, for as many instances as there may be.
fn config(limits: &Limits) -> Config {
    let instances = limits.max_instances;
    let mut pool = PoolingAllocationConfig::default();
    pool.max_memory_size(limits.memory_mib << 20)
        .total_component_instances(instances)
        .total_core_instances(8 * instances)
        .max_core_instances_per_component(64)
        .max_memories_per_component(8)
        .max_tables_per_component(64)
        .total_memories(2 * instances)
        .total_tables(8 * instances)
        .table_elements(limits.table_elements)
        .linear_memory_keep_resident(0);
    let mut config = Config::new();
    config
        .consume_fuel(true)
        .epoch_interruption(true)
        .wasm_component_model(true)
        // Its results may differ between machines.
        .wasm_relaxed_simd(false)
        .memory_reservation((limits.memory_mib as u64) << 20)
        .max_wasm_stack(limits.stack_kib << 10)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}

/// Two lower-case digits per byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A refusal by wasmtime, with all of its causes.
pub(crate) fn compile_error(name: &str, error: &wasmtime::Error) -> Error {
    Error::Compile { name: name.to_owned(), reason: format!("{error:#}") }
}

/// A trap of a plugin's function, without the guest's backtrace.
pub(crate) fn trap(function: &str, error: &wasmtime::Error) -> Fault {
    // The root cause names the trap; the chain before it is the guest's backtrace.
    let cause = error.root_cause().to_string();
    Fault::Trap(format!("`{function}`: {cause}"))
}

/// Sets fuel and deadline of the next call. One tick is added, as the current one may be almost
/// over.
pub(crate) fn set_budget(store: &mut Store<State>, budget: Budget) -> Result<(), Fault> {
    store.set_fuel(budget.fuel).map_err(|error| trap("set_fuel", &error))?;
    let epochs = budget.time.as_millis().div_ceil(EPOCH.as_millis()).max(1);
    store.set_epoch_deadline(u64::try_from(epochs).unwrap_or(u64::MAX / 2) + 1);
    Ok(())
}
