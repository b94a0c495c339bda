//! From a source to a module that serves, at start and at run time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use polyskill_adapters::library::Expected;
use polyskill_adapters::{Module, open_module};
use serde_json::json;

use super::state::{Folder, SavedModule, StateDirectory};
use super::{LoadRequest, Loaded, MAX_LOADS, ModuleError, Modules, lock};
use polyskill_sources::{self as sources, Fetched, Format, Pin, Policy, Signer, Source};

impl Modules {
    /// A module in a configured directory, used where it lies.
    pub(super) fn declare(
        &self,
        name: &str,
        path: &Path,
        root: &Path,
    ) -> Result<Loaded, ModuleError> {
        let started = Instant::now();
        let module = open_module(name, path, root, &self.model, ())?;
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

    pub(super) fn load_declared(
        &self,
        declared: &crate::config::ModuleConfig,
    ) -> Result<Loaded, ModuleError> {
        let request = LoadRequest {
            name: declared.name.clone(),
            source: declared.source.parse()?,
            expected: Expected::Any,
            pin: declared.generation.as_deref().map(str::parse).transpose()?,
            pinned: declared.pinned.then_some(true),
        };
        let started = Instant::now();
        let staging = sources::cache::cache_directory().join("modules");
        let fetched = self.fetch(&request.source, &self.policy, &staging)?;
        let (path, root) = (fetched.path(), fetched.root.clone());
        let signature = fetched.signature().map_err(ModuleError::Fetched)?;
        let module = open_module(&request.name, &path, &root, &self.model, fetched)?;
        let signer = self.check(&request, &module, signature.as_deref())?;
        let source = request.source.to_string();
        let saved = lock(&self.saved);
        self.admit(&request.name, &module, (self.is_pinned(&request.name, &saved), &signer))?;
        let module = self.put(&request.name, module, Expected::Any, &saved)?;
        let took = started.elapsed();
        self.remember(&request.name, (source, signer.clone(), took), (false, None));
        Ok(Loaded { module, signer, took })
    }

    /// A module that was loaded at run time before the server was started again.
    pub(super) fn load_saved(
        &self,
        name: &str,
        saved: &SavedModule,
    ) -> Result<Loaded, ModuleError> {
        let started = Instant::now();
        let Some(state) = &self.state else {
            return Err(ModuleError::State("there is no state directory".to_owned()));
        };
        let root = state.store().join(&saved.folder);
        let folder = Arc::new(Folder::new(root.clone()));
        let path = saved.file.as_ref().map_or(root.clone(), |file| root.join(file));
        let module = open_module(name, &path, &root, &self.model, Arc::clone(&folder))?;
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
                let staging = sources::cache::cache_directory().join("modules");
                let fetched = self.fetch(&request.source, &self.policy, &staging)?;
                let (path, root) = (fetched.path(), fetched.root.clone());
                let signature = fetched.signature().map_err(ModuleError::Fetched)?;
                let module = open_module(&request.name, &path, &root, &self.model, fetched)?;
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
        let (path, kept_by) = (kept.path(), Arc::clone(&folder));
        let module = open_module(&request.name, &path, &kept.root, &self.model, kept_by)?;
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
