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
use super::{LoadRequest, Loaded, MAX_LOADS, ModuleError, Modules, Provenance, lock};
use polyskill_sources::{self as sources, Fetched, Format, Pin, Policy, Signer, Source};

/// A module on its way to a name: opened, with its pin and signature checked.
struct Candidate {
    /// The name that it is to be served under.
    name: String,
    /// The module, which nobody can see yet.
    module: Module,
    /// The source as people may see it.
    source: String,
    /// The signer, which was found to be enough for the name.
    signer: Signer,
    /// The beginning of the load.
    started: Instant,
    /// True where somebody loads it, rather than a configuration or a directory.
    at_run_time: bool,
    /// Its folder in the store, where there is one; it is doomed until the candidate is published.
    folder: Option<Arc<Folder>>,
}

/// A change of the durable set that belongs to a candidate.
#[derive(Default)]
struct SetChange {
    /// The module's entry, where a restart is to serve it too.
    entry: Option<SavedModule>,
    /// Keeps the module in memory, or no longer; `None` changes nothing.
    pinned: Option<bool>,
}

/// The files of a module before they are opened.
struct Files<'a> {
    /// The module's folder, or its GGUF file.
    path: &'a Path,
    /// The folder that no file of the module may lie outside, links included.
    root: &'a Path,
    /// The bytes of the signature file, where there is one.
    signature: Option<&'a [u8]>,
    /// The generation that is required, if one is.
    pin: Option<&'a Pin>,
}

impl Modules {
    /// Loads a module from a configured directory, where it is used as it lies. `root` is that
    /// directory. The durable set does not change.
    pub(super) fn load_directory(
        &self,
        name: &str,
        path: &Path,
        root: &Path,
    ) -> Result<Loaded, ModuleError> {
        let started = Instant::now();
        let signature = local_signature(path);
        let files = Files { path, root, signature: signature.as_deref(), pin: None };
        let (module, signer) = self.open(name, &files, ())?;
        let (name, source) = (name.to_owned(), path.display().to_string());
        let (at_run_time, folder) = (false, None);
        let candidate = Candidate { name, module, source, signer, started, at_run_time, folder };
        self.publish(candidate, Expected::Any, SetChange::default())
    }

    /// Loads a module that the configuration names by its source. It is fetched again at each
    /// start, and not kept in the store.
    pub(super) fn load_declared(
        &self,
        declared: &crate::config::ModuleConfig,
    ) -> Result<Loaded, ModuleError> {
        let request = LoadRequest {
            name: declared.name.clone(),
            source: declared.source.parse()?,
            expected: Expected::Any,
            pin: declared.generation.as_deref().map(str::parse).transpose()?,
            pinned: None,
        };
        let mut candidate = self.fetched(&request, Instant::now())?;
        candidate.at_run_time = false;
        self.publish(candidate, Expected::Any, SetChange::default())
    }

    /// Loads a module from the store, where it was put at run time before the server was started
    /// again. Its content must have the generation that was acknowledged then.
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
        let pin: Pin = saved.generation.parse()?;
        let signature = local_signature(&root);
        let signature = signature.as_deref();
        let files = Files { path: &path, root: &root, signature, pin: Some(&pin) };
        let (module, signer) = self.open(name, &files, Arc::clone(&folder))?;
        let (name, source) = (name.to_owned(), saved.source.clone());
        let (at_run_time, folder) = (true, Some(folder));
        let candidate = Candidate { name, module, source, signer, started, at_run_time, folder };
        self.publish(candidate, Expected::Any, SetChange::default())
    }

    /// Loads a module and publishes it, and tells the routers; with a state directory a restart
    /// serves it too. Blocks: not for a thread that serves requests. `by` goes to the audit log.
    ///
    /// # Errors
    /// The reason for which it does not serve; whatever served before goes on.
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
                self.changed();
            }
            Err(error) => self.failed(&request.name, error),
        }
        loaded
    }

    /// The load, without a word to audit log, log and routers. The name is checked before anything
    /// is fetched, and again when it is published.
    fn load_quietly(&self, request: &LoadRequest) -> Result<Loaded, ModuleError> {
        let _slot = LoadSlot::take(&self.loads)?;
        let started = Instant::now();
        self.library.check(&request.name, request.expected)?;
        let (candidate, entry) = match &self.state {
            None => (self.fetched(request, started)?, None),
            Some(state) => {
                let (candidate, entry) = self.stored(request, state, started)?;
                (candidate, Some(entry))
            }
        };
        self.publish(candidate, request.expected, SetChange { entry, pinned: request.pinned })
    }

    /// Fetches a module into the cache directory. The files stay for as long as the module is
    /// known, as weights that were evicted are read from them again.
    fn fetched(&self, request: &LoadRequest, started: Instant) -> Result<Candidate, ModuleError> {
        let staging = sources::cache::cache_directory().join("modules");
        let fetched = self.fetch(&request.source, &self.policy, &staging)?;
        let (path, root) = (fetched.path(), fetched.root.clone());
        let signature = fetched.signature().map_err(ModuleError::Fetched)?;
        let (signature, pin) = (signature.as_deref(), request.pin.as_ref());
        let files = Files { path: &path, root: &root, signature, pin };
        let (module, signer) = self.open(&request.name, &files, fetched)?;
        let (name, source) = (request.name.clone(), request.source.to_string());
        let (at_run_time, folder) = (true, None);
        Ok(Candidate { name, module, source, signer, started, at_run_time, folder })
    }

    /// Fetches a module into the store, under a random folder name, and waits until its files are
    /// on the disk. They go again unless the durable set gets the entry.
    fn stored(
        &self,
        request: &LoadRequest,
        state: &StateDirectory,
        started: Instant,
    ) -> Result<(Candidate, SavedModule), ModuleError> {
        let policy = Policy { copy_local: true, ..self.policy.clone() };
        let fetched = self.fetch(&request.source, &policy, &state.store())?;
        let file = match &fetched.format {
            Format::Gguf(file) => Some(file.clone()),
            _ => None,
        };
        let folder_name = format!("m-{:016x}", rand_number());
        let target = state.store().join(&folder_name);
        let kept = fetched.persist(&target).map_err(ModuleError::Fetched)?;
        let folder = Arc::new(Folder::new(kept.directory.clone()));
        // Until the durable set says otherwise, nothing needs it.
        folder.doom();
        let signature = kept.signature().map_err(ModuleError::Fetched)?;
        let path = kept.path();
        let (signature, pin) = (signature.as_deref(), request.pin.as_ref());
        let files = Files { path: &path, root: &kept.root, signature, pin };
        let (module, signer) = self.open(&request.name, &files, Arc::clone(&folder))?;
        state.sync_folder(&kept.directory).map_err(ModuleError::State)?;
        let (name, source) = (request.name.clone(), request.source.to_string());
        let generation = module.generation().to_string();
        let entry = SavedModule { generation, folder: folder_name, file, source: source.clone() };
        let (at_run_time, folder) = (true, Some(folder));
        Ok((Candidate { name, module, source, signer, started, at_run_time, folder }, entry))
    }

    /// Opens a module and checks its pin and its signature. `keep` is held for as long as the
    /// module is known.
    fn open(
        &self,
        name: &str,
        files: &Files<'_>,
        keep: impl Send + Sync + 'static,
    ) -> Result<(Module, Signer), ModuleError> {
        let module = open_module(name, files.path, files.root, &self.model, keep)?;
        let generation = module.generation().to_string();
        if let Some(pin) = files.pin {
            pin.check(name, &generation)?;
        }
        let signer = sources::verify(name, &generation, files.signature, &self.trust)?;
        Ok((module, signer))
    }

    /// Publishes a candidate: the name and the durable set first, so that a restart serves what was
    /// acknowledged, then the library.
    ///
    /// Holds the lock of the durable set throughout, so that no other change comes between the
    /// checks and the publication.
    fn publish(
        &self,
        candidate: Candidate,
        expected: Expected,
        change: SetChange,
    ) -> Result<Loaded, ModuleError> {
        let Candidate { name, module, source, signer, started, at_run_time, folder } = candidate;
        let mut saved = lock(&self.saved);
        self.library.check(&name, expected)?;
        let mut next = saved.clone();
        let is_durable = change.entry.is_some();
        if let Some(entry) = change.entry {
            next.modules.insert(name.clone(), entry);
            next.removed.remove(&name);
        }
        next.pinned.extend(change.pinned.map(|pinned| (name.clone(), pinned)));
        self.admit(&name, &module, self.is_pinned(&name, &next), &signer)?;
        if let Some(state) = self.state.as_ref().filter(|_| is_durable) {
            state.write(&next).map_err(ModuleError::State)?;
        }
        *saved = next;
        if let Some(folder) = &folder {
            folder.spare();
        }
        let module = self.put(&name, module, expected, &saved)?;
        let took = started.elapsed();
        let by = signer.clone();
        self.remember(&name, Provenance { source, signer, took, at_run_time, folder });
        lock(&self.failures).remove(&name);
        Ok(Loaded { module, signer: by, took })
    }

    /// Fetches from a source and waits for it. On a thread of an async runtime it uses that one,
    /// which must be a thread that may block; else it makes a runtime for the fetch.
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

/// A place among the loads that may run; dropping it gives the place back.
struct LoadSlot<'a>(&'a AtomicUsize);

impl<'a> LoadSlot<'a> {
    /// Takes a place, or [`ModuleError::Busy`] where all are taken. It never waits.
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

/// The signature file of a module that is used where it lies: in its folder, or for a file next to
/// it with `.sig` added. A link, or a file of more than 1,024 bytes, counts as none.
fn local_signature(path: &Path) -> Option<Vec<u8>> {
    /// Largest signature file, which is many times a signature's length.
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

/// A number that no other folder of the store is expected to have.
fn rand_number() -> u64 {
    // The hasher's keys are random per process and differ per instance.
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id())
}
