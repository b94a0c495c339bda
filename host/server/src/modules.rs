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

/// Failures that are remembered.
const MAX_FAILURES: usize = 1_000;
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
    /// Whether somebody loaded it, rather than a configuration or a directory.
    at_run_time: bool,
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
    /// Names that stand for something else.
    reserved: Vec<String>,
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
    /// Reads the durable set; nothing is loaded yet. `reserved` are names that no module may have.
    ///
    /// # Errors
    /// If the state directory cannot be used.
    pub fn new(
        config: &Config,
        model: &Arc<Decoder>,
        library: &Arc<Library>,
        audit: &Arc<Audit>,
        reserved: Vec<String>,
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
            reserved,
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
        let mut places: BTreeMap<String, PathBuf> = BTreeMap::new();
        for directory in &self.directories {
            for (name, path) in modules_in(directory)? {
                if let Some(first) = places.get(&name) {
                    let (first, path) = (first.display(), path.display());
                    report(&format!("left out: {path}: `{name}` is the name of {first} already"));
                    continue;
                }
                if !replaced(&name) {
                    let loaded = self.declare(&name, &path, directory);
                    self.say(&name, loaded, report);
                }
                places.insert(name, path);
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
        let aliases = aliases.filter(|(alias, _)| !saved.removed_aliases.contains(*alias));
        for (alias, name) in aliases.chain(&saved.aliases) {
            let set = self.check_alias(alias, name);
            let set = set.and_then(|()| Ok(self.library.alias(alias, name)?));
            if let Err(error) = set {
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
                self.failed(name, &error);
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
        let saved = lock(&self.saved);
        let pinned = self.is_pinned(name, &saved);
        self.admit(name, &module, (pinned, &signer))?;
        let module = self.put(name, module, Expected::Any, &saved)?;
        let (source, took) = (path.display().to_string(), started.elapsed());
        self.remember(name, (source, signer.clone(), took), (false, None));
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
        let saved = lock(&self.saved);
        self.admit(&request.name, &module, (declared.pinned, &signer))?;
        let module = self.put(&request.name, module, Expected::Any, &saved)?;
        let took = started.elapsed();
        self.remember(&request.name, (source, signer.clone(), took), (false, None));
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
        let (source, all) = (saved.source.clone(), lock(&self.saved));
        self.admit(name, &module, (self.is_pinned(name, &all), &signer))?;
        let module = self.put(name, module, Expected::Any, &all)?;
        let took = started.elapsed();
        self.remember(name, (source, signer.clone(), took), (true, Some(folder)));
        Ok(Loaded { module, signer, took })
    }

    /// Whether a module may have a name: the name is free for modules, there will be room, and the signer is
    /// one for the name and for its aliases.
    fn admit(
        &self,
        name: &str,
        module: &Module,
        (pinned, signer): (bool, &Signer),
    ) -> Result<(), ModuleError> {
        if self.reserved.iter().any(|reserved| reserved == name) {
            let (name, reason) = (name.to_owned(), "is taken by the base model or a skill set");
            return Err(polyskill_adapters::Error::BadName { name, reason }.into());
        }
        let snapshot = self.library.snapshot();
        for (alias, _) in snapshot.aliases().filter(|(_, target)| *target == name) {
            self.trust.check_signer(alias, signer)?;
        }
        Ok(self.library.check_room(name, module, pinned)?)
    }

    /// Publishes a module and sets pins as they are for names: what replaces a module is pinned as it was, and
    /// what it replaces stays pinned where another name of it is.
    fn put(
        &self,
        name: &str,
        module: Module,
        expected: Expected,
        saved: &Saved,
    ) -> Result<Arc<Module>, ModuleError> {
        let before = self.library.snapshot().get(name).map(Arc::clone);
        let module = self.library.publish(name, module, expected)?;
        for changed in before.iter().chain([&module]) {
            self.settle_pin(changed, saved);
        }
        Ok(module)
    }

    /// Equal content is held once: it is pinned where any name of it is.
    fn settle_pin(&self, module: &Module, saved: &Saved) {
        let snapshot = self.library.snapshot();
        let mut names = snapshot.iter().filter(|(_, one)| one.generation() == module.generation());
        let pinned = names.any(|(name, _)| self.is_pinned(name, saved));
        self.library.pin(module, pinned);
    }

    /// Keeps where a module came from, and lets the folder of what it replaces go.
    fn remember(
        &self,
        name: &str,
        (source, signer, took): (String, Signer, Duration),
        (at_run_time, folder): (bool, Option<Arc<Folder>>),
    ) {
        let provenance = Provenance { source, signer, took, at_run_time, folder };
        let before = lock(&self.provenance).insert(name.to_owned(), provenance);
        if let Some(folder) = before.and_then(|before| before.folder) {
            folder.doom();
        }
    }

    /// Remembers why a name does not serve what was asked for. What a client got wrong is none of that.
    fn failed(&self, name: &str, error: &ModuleError) {
        use polyskill_adapters::Error;
        let clients = matches!(
            error,
            ModuleError::Busy
                | ModuleError::Module(
                    Error::AlreadyLoaded { .. }
                        | Error::GenerationMismatch { .. }
                        | Error::BadName { .. }
                )
        );
        let mut failures = lock(&self.failures);
        if !clients || !self.library.snapshot().iter().any(|(serving, _)| serving == name) {
            if failures.len() >= MAX_FAILURES {
                failures.pop_first();
            }
            failures.insert(name.to_owned(), error.to_string());
        }
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
            Err(error) => self.failed(&request.name, error),
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
                let mut next = saved.clone();
                next.pinned.extend(request.pinned.map(|pinned| (request.name.clone(), pinned)));
                let pinned = self.is_pinned(&request.name, &next);
                self.admit(&request.name, &module, (pinned, &signer))?;
                let module = self.put(&request.name, module, request.expected, &next)?;
                *saved = next;
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
        next.pinned.extend(request.pinned.map(|pinned| (request.name.clone(), pinned)));
        let pinned = self.is_pinned(&request.name, &next);
        self.admit(&request.name, &module, (pinned, &signer))?;
        state.write(&next).map_err(ModuleError::State)?;
        *saved = next;
        folder.spare();
        let module = self.put(&request.name, module, request.expected, &saved)?;
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
        self.remember(&request.name, (source, signer.clone(), took), (true, folder));
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
        let aliases = snapshot.aliases().filter(|(_, target)| *target == name);
        next.removed_aliases.extend(
            aliases
                .map(|(alias, _)| alias.to_owned())
                .filter(|alias| self.is_declared_alias(alias)),
        );
        if self.is_declared(name) {
            next.removed.insert(name.to_owned());
        }
        if let Some(state) = &self.state {
            state.write(&next).map_err(ModuleError::State)?;
        }
        *saved = next;
        let module = self.library.remove(name, Expected::Any)?;
        self.settle_pin(&module, &saved);
        let provenance = lock(&self.provenance).remove(name);
        if let Some(folder) = provenance.and_then(|provenance| provenance.folder) {
            folder.doom();
        }
        Ok(module)
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

    fn is_declared_alias(&self, alias: &str) -> bool {
        self.declared.iter().any(|module| module.aliases.iter().any(|one| one == alias))
    }

    /// Whether a name may stand for a module: one that needs a signature needs it under any of its names.
    fn check_alias(&self, alias: &str, name: &str) -> Result<(), ModuleError> {
        match self.provenance(name) {
            Some(provenance) => Ok(self.trust.check_signer(alias, &provenance.signer)?),
            None => Ok(()),
        }
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
                self.check_alias(alias, name)?;
                self.library.alias(alias, name)?;
                next.aliases.insert(alias.to_owned(), name.to_owned());
                next.removed_aliases.remove(alias);
            }
            None => {
                self.library.remove_alias(alias)?;
                next.aliases.remove(alias);
                if self.is_declared_alias(alias) {
                    next.removed_aliases.insert(alias.to_owned());
                }
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
        // An alias stands for a name, and the pin is the name's.
        let (name, module) = snapshot.resolve(name).ok_or_else(not_found)?;
        if pinned {
            self.library.check_room(name, module, true)?;
        }
        let mut next = saved.clone();
        next.pinned.insert(name.to_owned(), pinned);
        if let Some(state) = &self.state {
            state.write(&next).map_err(ModuleError::State)?;
        }
        *saved = next;
        self.settle_pin(module, &saved);
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

/// The modules that lie in a directory, under the names of their folders or files, in that order. A folder and a
/// file can have one name.
pub(crate) fn modules_in(directory: &Path) -> Result<Vec<(String, PathBuf)>, String> {
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
    let mut found: Vec<_> = paths.filter(visible).filter_map(named).collect();
    found.sort();
    Ok(found)
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
