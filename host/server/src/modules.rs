//! Modules of a running server: loading from their sources, the durable set, aliases, watched directories.
//!
//! A load fetches, reads, compares generation and signature, stores and only then publishes; whatever fails
//! before changes nothing. Loads run on threads of their own, never on the engine's, and a few at a time.

mod state;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use polyskill_adapters::library::Expected;
use polyskill_adapters::{Library, Module, is_module, open_module};
use polyskill_model::Decoder;
use serde_json::json;

use crate::audit::Audit;
use crate::config::Config;
use crate::sources::{FetchLimits, Fetched, Format, ModuleTrust, Pin, Policy, Signer, Source};
use crate::{pull, sources};
use state::{Folder, Saved, SavedModule, StateDirectory};

pub use watch::{Seen, watch};

/// Loads that run at a time; one more is refused.
const MAX_LOADS: usize = 4;

/// A change that was not made, and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModuleError {
    /// The module or its name.
    #[error(transparent)]
    Module(#[from] polyskill_adapters::Error),
    /// The source.
    #[error(transparent)]
    Source(#[from] sources::SourceError),
    /// The signature or the pinned generation.
    #[error(transparent)]
    Trust(#[from] sources::TrustError),
    /// Something beside the module.
    #[error("{0}")]
    Fetched(sources::Reason),
    /// Too many loads run.
    #[error("{MAX_LOADS} adapters are being loaded already, which is the limit")]
    Busy,
    /// The durable set could not be written.
    #[error("{0}")]
    State(String),
}

/// What is to be loaded.
#[derive(Clone, Debug)]
pub struct LoadRequest {
    /// The name to serve it under.
    pub name: String,
    /// Where it comes from.
    pub source: Source,
    /// What may stand under the name before.
    pub expected: Expected,
    /// The generation that it must have.
    pub pin: Option<Pin>,
    /// Whether it stays in memory.
    pub pinned: Option<bool>,
}

/// A module that serves.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The module.
    pub module: Arc<Module>,
    /// Who signed it.
    pub signer: Signer,
    /// How long the load took.
    pub took: Duration,
}

/// Where a serving module came from.
#[derive(Clone, Debug)]
pub struct Provenance {
    /// The source as people may see it.
    pub source: String,
    /// Who signed it.
    pub signer: Signer,
    /// How long the load took.
    pub took: Duration,
    /// Its folder in the store, where it was loaded at run time.
    folder: Option<Arc<Folder>>,
}

/// Loads modules into a library.
#[derive(Debug)]
pub struct Modules {
    model: Arc<Decoder>,
    library: Arc<Library>,
    directories: Vec<PathBuf>,
    declared: Vec<crate::config::ModuleConfig>,
    policy: Policy,
    limits: FetchLimits,
    trust: ModuleTrust,
    state: Option<StateDirectory>,
    /// Held while a change is made, so that the durable set and the library change alike.
    saved: Mutex<Saved>,
    provenance: Mutex<BTreeMap<String, Provenance>>,
    failures: Mutex<BTreeMap<String, String>>,
    loads: AtomicUsize,
    audit: Arc<Audit>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Modules {
    /// Reads the durable set; nothing is loaded yet.
    ///
    /// # Errors
    /// If the state directory cannot be used.
    pub fn new(
        config: &Config,
        model: &Arc<Decoder>,
        library: &Arc<Library>,
        audit: &Arc<Audit>,
    ) -> Result<Self, String> {
        library.set_budget(config.residency.budget());
        let opened = config.state.as_deref().map(StateDirectory::open).transpose()?;
        let (state, saved) = match opened {
            Some((state, saved)) => (Some(state), saved),
            None => (None, Saved::default()),
        };
        let mut policy = config.sources.clone();
        policy.roots.extend(config.adapters.iter().cloned());
        Ok(Self {
            model: Arc::clone(model),
            library: Arc::clone(library),
            directories: config.adapters.clone(),
            declared: config.module.clone(),
            policy,
            limits: config.fetch.clone(),
            trust: config.module_trust.clone(),
            state,
            saved: Mutex::new(saved),
            provenance: Mutex::default(),
            failures: Mutex::default(),
            loads: AtomicUsize::new(0),
            audit: Arc::clone(audit),
        })
    }

    /// Loads what the configuration declares and what was loaded at run time before. A module that cannot be
    /// loaded is reported and left out.
    ///
    /// # Errors
    /// If a directory cannot be read.
    pub fn load_all(&self, report: &mut dyn FnMut(&str)) -> Result<(), String> {
        let saved = lock(&self.saved).clone();
        let replaced =
            |name: &str| saved.removed.contains(name) || saved.modules.contains_key(name);
        for directory in &self.directories {
            for (name, path) in modules_in(directory)? {
                if !replaced(&name) {
                    let loaded = self.declare(&name, &path, directory);
                    self.say(&name, loaded, report);
                }
            }
        }
        for module in self.declared.iter().filter(|module| !replaced(&module.name)) {
            let loaded = self.load_declared(module);
            self.say(&module.name, loaded, report);
        }
        for (name, module) in &saved.modules {
            let loaded = self.load_saved(name, module);
            self.say(name, loaded, report);
        }
        let declared = self.declared.iter();
        let aliases = declared.flat_map(|module| module.aliases.iter().map(|a| (a, &module.name)));
        for (alias, name) in aliases.chain(&saved.aliases) {
            if let Err(error) = self.library.alias(alias, name) {
                report(&format!("left out: alias `{alias}`: {error}"));
            }
        }
        for (name, pinned) in &saved.pinned {
            if let Some(module) = self.library.snapshot().get(name) {
                self.library.pin(module, *pinned);
            }
        }
        Ok(())
    }

    fn say(&self, name: &str, loaded: Result<Loaded, ModuleError>, report: &mut dyn FnMut(&str)) {
        match loaded {
            Ok(loaded) => {
                report(&format!("module {name} ({} KiB)", loaded.module.num_bytes() >> 10));
                for reason in loaded.module.left_out() {
                    report(&format!("left out: adapter `{name}`: {reason}"));
                }
            }
            Err(error) => {
                lock(&self.failures).insert(name.to_owned(), error.to_string());
                report(&format!("left out: {error}"));
            }
        }
    }

    /// A module in a configured directory, used where it lies.
    fn declare(&self, name: &str, path: &Path, root: &Path) -> Result<Loaded, ModuleError> {
        let started = Instant::now();
        let module = open_module((name, path, root), &self.model, ())?;
        let signature = local_signature(path);
        let generation = module.generation().to_string();
        let signer = sources::verify(name, &generation, signature.as_deref(), &self.trust)?;
        let module = self.library.publish(name, module, Expected::Any)?;
        self.keep_pinned(name, &module, &lock(&self.saved));
        let (source, took) = (path.display().to_string(), started.elapsed());
        let provenance = Provenance { source, signer: signer.clone(), took, folder: None };
        lock(&self.provenance).insert(name.to_owned(), provenance);
        lock(&self.failures).remove(name);
        Ok(Loaded { module, signer, took })
    }

    fn load_declared(&self, declared: &crate::config::ModuleConfig) -> Result<Loaded, ModuleError> {
        let request = LoadRequest {
            name: declared.name.clone(),
            source: declared.source.parse()?,
            expected: Expected::Any,
            pin: declared.generation.as_deref().map(str::parse).transpose()?,
            pinned: declared.pinned.then_some(true),
        };
        let started = Instant::now();
        let staging = pull::cache_directory().join("modules");
        let fetched = self.fetch(&request.source, &self.policy, &staging)?;
        let (path, root) = (fetched.path(), fetched.root.clone());
        let signature = fetched.signature().map_err(ModuleError::Fetched)?;
        let module = open_module((&request.name, &path, &root), &self.model, fetched)?;
        let signer = self.check(&request, &module, signature.as_deref())?;
        let source = request.source.to_string();
        let module = self.library.publish(&request.name, module, Expected::Any)?;
        self.library.pin(&module, declared.pinned);
        let took = started.elapsed();
        let provenance = Provenance { source, signer: signer.clone(), took, folder: None };
        lock(&self.provenance).insert(request.name, provenance);
        Ok(Loaded { module, signer, took })
    }

    /// A module that was loaded at run time before the server was started again.
    fn load_saved(&self, name: &str, saved: &SavedModule) -> Result<Loaded, ModuleError> {
        let started = Instant::now();
        let Some(state) = &self.state else {
            return Err(ModuleError::State("there is no state directory".to_owned()));
        };
        let root = state.store().join(&saved.folder);
        let folder = Arc::new(Folder::new(root.clone()));
        let path = saved.file.as_ref().map_or(root.clone(), |file| root.join(file));
        let module = open_module((name, &path, &root), &self.model, Arc::clone(&folder))?;
        let pin: Pin = saved.generation.parse()?;
        let generation = module.generation().to_string();
        pin.check(name, &generation)?;
        let signature = local_signature(&root);
        let signer = sources::verify(name, &generation, signature.as_deref(), &self.trust)?;
        let module = self.library.publish(name, module, Expected::Any)?;
        let (source, took) = (saved.source.clone(), started.elapsed());
        let provenance = Provenance { source, signer: signer.clone(), took, folder: Some(folder) };
        lock(&self.provenance).insert(name.to_owned(), provenance);
        Ok(Loaded { module, signer, took })
    }

    /// Loads a module and publishes it; with a state directory a restart serves it too. Blocks: not for a
    /// thread that serves requests. `by` goes to the audit log.
    ///
    /// # Errors
    /// Why it does not serve; whatever served before goes on.
    pub fn load(&self, request: &LoadRequest, by: &str) -> Result<Loaded, ModuleError> {
        let loaded = self.load_quietly(request);
        self.audit.record(json!({
            "action": "load_module", "by": by, "name": request.name,
            "source": request.source.to_string(),
            "generation": loaded.as_ref().ok().map(|one| one.module.generation().to_string()),
            "signer": loaded.as_ref().ok().map(|one| format!("{:?}", one.signer)),
            "served": loaded.is_ok(),
            "error": loaded.as_ref().err().map(ToString::to_string),
        }));
        match &loaded {
            Ok(loaded) => {
                let generation = loaded.module.generation().to_string();
                tracing::info!(adapter = request.name, generation, by, "the adapter serves");
                for reason in loaded.module.left_out() {
                    tracing::warn!(adapter = request.name, reason, "an artefact is left out");
                }
                lock(&self.failures).remove(&request.name);
            }
            Err(error) => {
                lock(&self.failures).insert(request.name.clone(), error.to_string());
            }
        }
        loaded
    }

    fn load_quietly(&self, request: &LoadRequest) -> Result<Loaded, ModuleError> {
        let _slot = LoadSlot::take(&self.loads)?;
        let started = Instant::now();
        self.library.check(&request.name, request.expected)?;
        match &self.state {
            Some(state) => self.load_durably(request, state, started),
            None => {
                let staging = pull::cache_directory().join("modules");
                let fetched = self.fetch(&request.source, &self.policy, &staging)?;
                let (path, root) = (fetched.path(), fetched.root.clone());
                let signature = fetched.signature().map_err(ModuleError::Fetched)?;
                let module = open_module((&request.name, &path, &root), &self.model, fetched)?;
                let signer = self.check(request, &module, signature.as_deref())?;
                let mut saved = lock(&self.saved);
                let module = self.library.publish(&request.name, module, request.expected)?;
                if let Some(pinned) = request.pinned {
                    saved.pinned.insert(request.name.clone(), pinned);
                }
                self.keep_pinned(&request.name, &module, &saved);
                Ok(self.served(request, module, signer, started, None))
            }
        }
    }

    /// Keeps the files in the store and the name in the durable set before anybody sees the module.
    fn load_durably(
        &self,
        request: &LoadRequest,
        state: &StateDirectory,
        started: Instant,
    ) -> Result<Loaded, ModuleError> {
        let policy = Policy { copy_local: true, ..self.policy.clone() };
        let fetched = self.fetch(&request.source, &policy, &state.store())?;
        let file = match &fetched.format {
            Format::Gguf(file) => Some(file.clone()),
            _ => None,
        };
        let name = format!("m-{:016x}", rand_number());
        let kept = fetched.persist(&state.store().join(&name)).map_err(ModuleError::Fetched)?;
        let folder = Arc::new(Folder::new(kept.directory.clone()));
        // Until the durable set says otherwise, nothing needs it.
        folder.doom();
        let signature = kept.signature().map_err(ModuleError::Fetched)?;
        let place = (request.name.as_str(), kept.path(), kept.root.clone());
        let module = open_module((place.0, &place.1, &place.2), &self.model, Arc::clone(&folder))?;
        let signer = self.check(request, &module, signature.as_deref())?;
        state.sync_folder(&kept.directory).map_err(ModuleError::State)?;
        let mut saved = lock(&self.saved);
        self.library.check(&request.name, request.expected)?;
        let mut next = saved.clone();
        let (generation, source) = (module.generation().to_string(), request.source.to_string());
        let entry = SavedModule { generation, folder: name, file, source };
        next.modules.insert(request.name.clone(), entry);
        next.removed.remove(&request.name);
        if let Some(pinned) = request.pinned {
            next.pinned.insert(request.name.clone(), pinned);
        }
        state.write(&next).map_err(ModuleError::State)?;
        *saved = next;
        folder.spare();
        let module = self.library.publish(&request.name, module, request.expected)?;
        self.keep_pinned(&request.name, &module, &saved);
        Ok(self.served(request, module, signer, started, Some(folder)))
    }

    fn served(
        &self,
        request: &LoadRequest,
        module: Arc<Module>,
        signer: Signer,
        started: Instant,
        folder: Option<Arc<Folder>>,
    ) -> Loaded {
        let (source, took) = (request.source.to_string(), started.elapsed());
        let provenance = Provenance { source, signer: signer.clone(), took, folder };
        let before = lock(&self.provenance).insert(request.name.clone(), provenance);
        if let Some(folder) = before.and_then(|before| before.folder) {
            folder.doom();
        }
        Loaded { module, signer, took }
    }

    fn check(
        &self,
        request: &LoadRequest,
        module: &Module,
        signature: Option<&[u8]>,
    ) -> Result<Signer, ModuleError> {
        let generation = module.generation().to_string();
        if let Some(pin) = &request.pin {
            pin.check(&request.name, &generation)?;
        }
        Ok(sources::verify(&request.name, &generation, signature, &self.trust)?)
    }

    fn fetch(
        &self,
        source: &Source,
        policy: &Policy,
        staging: &Path,
    ) -> Result<Fetched, ModuleError> {
        let fetch = sources::fetch(source, policy, &self.limits, staging);
        let fetched = match tokio::runtime::Handle::try_current() {
            Ok(runtime) => runtime.block_on(fetch),
            Err(_) => tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .map_err(|error| ModuleError::State(error.to_string()))?
                .block_on(fetch),
        };
        Ok(fetched?)
    }

    /// Takes a name out; requests that hold the module finish with it.
    ///
    /// # Errors
    /// If nothing stands under the name, or not what was expected.
    pub fn unload(
        &self,
        name: &str,
        expected: Expected,
        by: &str,
    ) -> Result<Arc<Module>, ModuleError> {
        let removed = self.unload_quietly(name, expected);
        self.audit.record(json!({
            "action": "unload_module", "by": by, "name": name, "done": removed.is_ok(),
            "error": removed.as_ref().err().map(ToString::to_string),
        }));
        removed
    }

    fn unload_quietly(&self, name: &str, expected: Expected) -> Result<Arc<Module>, ModuleError> {
        let mut saved = lock(&self.saved);
        let snapshot = self.library.snapshot();
        let not_found = || polyskill_adapters::Error::NotFound { name: name.to_owned() };
        let own = snapshot.iter().find(|(own, _)| *own == name).ok_or_else(not_found)?;
        if let (Expected::Generation(expected), found) = (expected, own.1.generation())
            && expected != found
        {
            self.library.check(name, Expected::Generation(expected))?;
        }
        let mut next = saved.clone();
        next.modules.remove(name);
        next.pinned.remove(name);
        next.aliases.retain(|_, target| target != name);
        if self.is_declared(name) {
            next.removed.insert(name.to_owned());
        }
        if let Some(state) = &self.state {
            state.write(&next).map_err(ModuleError::State)?;
        }
        *saved = next;
        let module = self.library.remove(name, Expected::Any)?;
        // Equal content is held once: it stays where another name of it is pinned.
        let snapshot = self.library.snapshot();
        let mut twins =
            snapshot.iter().filter(|(_, twin)| twin.generation() == module.generation());
        let is_pinned = twins.any(|(twin, _)| self.is_pinned(twin, &saved));
        self.library.pin(&module, is_pinned);
        let provenance = lock(&self.provenance).remove(name);
        if let Some(folder) = provenance.and_then(|provenance| provenance.folder) {
            folder.doom();
        }
        Ok(module)
    }

    /// A pin belongs to a name: what replaces a module is pinned as it was.
    fn keep_pinned(&self, name: &str, module: &Module, saved: &Saved) {
        if self.is_pinned(name, saved) {
            self.library.pin(module, true);
        }
    }

    /// What was said at run time, else in the configuration.
    fn is_pinned(&self, name: &str, saved: &Saved) -> bool {
        let declared = || self.declared.iter().any(|module| module.name == name && module.pinned);
        saved.pinned.get(name).copied().unwrap_or_else(declared)
    }

    fn is_declared(&self, name: &str) -> bool {
        let listed = self.declared.iter().any(|module| module.name == name);
        let lies = |directory: &PathBuf| {
            modules_in(directory).unwrap_or_default().iter().any(|(found, _)| found == name)
        };
        listed || self.directories.iter().any(lies)
    }

    /// Lets another name stand for a module, or with `None` no longer.
    ///
    /// # Errors
    /// If the alias or the module's name cannot be used, or the durable set cannot be written.
    pub fn alias(&self, alias: &str, name: Option<&str>, by: &str) -> Result<(), ModuleError> {
        let mut saved = lock(&self.saved);
        let mut next = saved.clone();
        match name {
            Some(name) => {
                self.library.alias(alias, name)?;
                next.aliases.insert(alias.to_owned(), name.to_owned());
            }
            None => {
                self.library.remove_alias(alias)?;
                next.aliases.remove(alias);
            }
        }
        if let Some(state) = &self.state {
            state.write(&next).map_err(ModuleError::State)?;
        }
        *saved = next;
        self.audit.record(json!({"action": "alias", "by": by, "alias": alias, "name": name}));
        Ok(())
    }

    /// Keeps a module in memory, or no longer.
    ///
    /// # Errors
    /// If there is none of this name, or the durable set cannot be written.
    pub fn pin(&self, name: &str, pinned: bool, by: &str) -> Result<(), ModuleError> {
        let mut saved = lock(&self.saved);
        let snapshot = self.library.snapshot();
        let not_found = || polyskill_adapters::Error::NotFound { name: name.to_owned() };
        let module = snapshot.get(name).ok_or_else(not_found)?;
        if pinned {
            self.library.check_pin(module)?;
        }
        let mut next = saved.clone();
        next.pinned.insert(name.to_owned(), pinned);
        if let Some(state) = &self.state {
            state.write(&next).map_err(ModuleError::State)?;
        }
        *saved = next;
        self.library.pin(module, pinned);
        self.audit.record(json!({"action": "pin", "by": by, "name": name, "pinned": pinned}));
        Ok(())
    }

    /// Where a serving module came from.
    pub fn provenance(&self, name: &str) -> Option<Provenance> {
        lock(&self.provenance).get(name).cloned()
    }

    /// The last failure per name that does not serve what was asked for.
    pub fn failures(&self) -> BTreeMap<String, String> {
        lock(&self.failures).clone()
    }

    /// Whether a restart serves what is loaded at run time.
    pub fn is_durable(&self) -> bool {
        self.state.is_some()
    }
}

/// Counts a load while it runs.
struct LoadSlot<'a>(&'a AtomicUsize);

impl<'a> LoadSlot<'a> {
    fn take(loads: &'a AtomicUsize) -> Result<Self, ModuleError> {
        let one_more = |running| (running < MAX_LOADS).then_some(running + 1);
        loads.fetch_update(Relaxed, Relaxed, one_more).map_err(|_| ModuleError::Busy)?;
        Ok(Self(loads))
    }
}

impl Drop for LoadSlot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The modules that lie in a directory, under the names of their folders or files.
pub(crate) fn modules_in(directory: &Path) -> Result<BTreeMap<String, PathBuf>, String> {
    let fail = |error| format!("--adapters {}: {error}", directory.display());
    let entries = std::fs::read_dir(directory).map_err(fail)?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let named = |path: PathBuf| {
        let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
        Some((name?.to_string_lossy().into_owned(), path.clone()))
    };
    let visible = |path: &PathBuf| {
        let name = path.file_name().map(std::ffi::OsStr::as_encoded_bytes);
        is_module(path) && name.is_some_and(|name| !name.starts_with(b"."))
    };
    Ok(paths.filter(visible).filter_map(named).collect())
}

/// The signature file beside a module that is used where it lies.
fn local_signature(path: &Path) -> Option<Vec<u8>> {
    const MAX_BYTES: u64 = 1_024;
    let file = match path.is_dir() {
        true => path.join(sources::SIGNATURE_FILE),
        false => {
            let mut name = path.as_os_str().to_owned();
            name.push(".sig");
            PathBuf::from(name)
        }
    };
    let metadata = std::fs::symlink_metadata(&file).ok()?;
    (metadata.is_file() && metadata.len() <= MAX_BYTES).then(|| std::fs::read(&file).ok())?
}

fn rand_number() -> u64 {
    // The hasher's keys are random per process and differ per instance.
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id())
}
