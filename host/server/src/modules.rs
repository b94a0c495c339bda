//! Modules of a running server: loading from their sources, the durable set, aliases, watched
//! directories.
//!
//! A load fetches, reads, compares generation and signature, stores and only then publishes;
//! whatever fails before changes nothing. Loads run on threads of their own, never on the engine's,
//! and a few at a time.

mod change;
mod load;
mod publish;
mod state;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use polyskill_adapters::library::Expected;
use polyskill_adapters::{Library, Module, is_module};
use polyskill_model::Decoder;

use crate::audit::Audit;
use crate::config::Config;
use crate::startup::{Report, StartupEvent};
use polyskill_sources::{self as sources, FetchLimits, ModuleTrust, Pin, Policy, Signer, Source};
use state::{Folder, Saved, StateDirectory};

pub use watch::{Seen, watch};

/// Failures that are remembered, one per name; beyond, the first by name makes room.
const MAX_FAILURES: usize = 1_000;
/// Loads that run at a time; one more is refused with 429.
const MAX_LOADS: usize = 4;

/// A reason for which a change was not made. Whatever served before goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModuleError {
    /// The module's files or its name.
    #[error(transparent)]
    Module(#[from] polyskill_adapters::Error),
    /// The source: not allowed, not reached, or not a module.
    #[error(transparent)]
    Source(#[from] sources::SourceError),
    /// The signature, or a pinned generation that is another.
    #[error(transparent)]
    Trust(#[from] sources::TrustError),
    /// The fetched files, which could not be moved to the store or read there.
    #[error("{0}")]
    Fetched(sources::Reason),
    /// Too many loads run.
    #[error("{MAX_LOADS} adapters are being loaded already, which is the limit")]
    Busy,
    /// The durable set could not be written, or there is no directory for it.
    #[error("{0}")]
    State(String),
}

/// A module that is to be loaded, as an operator asks for it.
#[derive(Clone, Debug)]
pub struct LoadRequest {
    /// The name to serve it under.
    pub name: String,
    /// The place that it comes from; the policy decides on it.
    pub source: Source,
    /// The state of the name that is required before, as in compare-and-swap.
    pub expected: Expected,
    /// The generation that it must have; `None` takes any.
    pub pin: Option<Pin>,
    /// Keeps it in memory, or no longer; `None` leaves the name's pin as it is.
    pub pinned: Option<bool>,
}

/// A module that serves, and its load.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The module.
    pub module: Arc<Module>,
    /// The module's signer, as far as the trust settings tell one.
    pub signer: Signer,
    /// The time from the request to load it until it served.
    pub took: Duration,
}

/// The origin of a serving module.
#[derive(Clone, Debug)]
pub struct Provenance {
    /// The source as people may see it.
    pub source: String,
    /// The module's signer.
    pub signer: Signer,
    /// The time from the request to load it until it served.
    pub took: Duration,
    /// True where somebody loaded it, rather than a configuration or a directory.
    at_run_time: bool,
    /// Its folder in the store, where it was loaded at run time with a state directory.
    folder: Option<Arc<Folder>>,
}

/// The place of a module when the server starts.
enum AtStart<'a> {
    /// At a path in a configured directory, which is the second.
    Directory(PathBuf, &'a Path),
    /// At a source that the configuration names.
    Declared(&'a crate::config::ModuleConfig),
    /// In the store, since it was loaded at run time.
    Saved(&'a state::SavedModule),
}

/// Loads modules into a library, and keeps the durable set in step with it.
#[derive(Debug)]
pub struct Modules {
    /// The base, which every module is checked against.
    model: Arc<Decoder>,
    /// The library that serves.
    library: Arc<Library>,
    /// The configured directories of modules, in order: of two modules of one name the first
    /// counts.
    directories: Vec<PathBuf>,
    /// `[[module]]` of the configuration.
    declared: Vec<crate::config::ModuleConfig>,
    /// Names of the base and of skill sets, which no module may take.
    reserved: Vec<String>,
    /// The places that modules may come from, the configured directories included.
    policy: Policy,
    /// Bounds of one fetch.
    limits: FetchLimits,
    /// The signers that count, by name.
    trust: ModuleTrust,
    /// The directory of the durable set; `None` forgets changes at a restart.
    state: Option<StateDirectory>,
    /// The changes at run time. Held while a change is made, so that the durable set and the
    /// library change alike.
    saved: Mutex<Saved>,
    /// The origin of each serving module, by name.
    provenance: Mutex<BTreeMap<String, Provenance>>,
    /// The last failure of each name that does not serve as it should.
    failures: Mutex<BTreeMap<String, String>>,
    /// Loads that run now, at most [`MAX_LOADS`]. Loads of the start and of the watcher are not
    /// counted.
    loads: AtomicUsize,
    /// The audit log, which changes at run time are written to.
    audit: Arc<Audit>,
    /// Told after each load and unload at run time or by the watcher.
    listener: OnceLock<Listener>,
}

/// A listener to changes of the library.
struct Listener(Box<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Listener")
    }
}

/// Locks, also where another thread panicked while it held the lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Modules {
    /// Reads the durable set and sets the library's budget; nothing is loaded yet. `reserved` are
    /// names that no module may have.
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
        library.set_budget(config.residency);
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
            listener: OnceLock::new(),
        })
    }

    /// Lets `listener` hear of each load and unload from now on; the first one that is set stays.
    /// It runs on the thread of the change, before the change is acknowledged.
    pub fn on_change(&self, listener: impl Fn() + Send + Sync + 'static) {
        let _ = self.listener.set(Listener(Box::new(listener)));
    }

    /// Tells the listener: routers see the library now, rather than on their next request.
    fn changed(&self) {
        if let Some(Listener(listener)) = self.listener.get() {
            listener();
        }
    }

    /// Loads the modules that the configuration declares and those that were loaded at run time
    /// before. A module that cannot be loaded is reported and left out, and an alias likewise.
    ///
    /// Of one name, a module loaded at run time comes before a declared one. A declared one
    /// replaces one that lies in a directory. Pinned modules are loaded first, as not all may fit.
    ///
    /// # Errors
    /// If a directory cannot be read.
    pub fn load_all(&self, report: &mut Report<'_>) -> Result<(), String> {
        let saved = lock(&self.saved).clone();
        let replaced =
            |name: &str| saved.removed.contains(name) || saved.modules.contains_key(name);
        let mut wanted: Vec<(String, AtStart<'_>)> = Vec::new();
        for directory in &self.directories {
            for (name, path) in modules_in(directory)? {
                let twin = wanted.iter().find_map(|(known, place)| match place {
                    AtStart::Directory(first, _) if *known == name => Some(first.display()),
                    _ => None,
                });
                match twin {
                    Some(first) => report(StartupEvent::LeftOut(format!(
                        "{}: `{name}` is the name of {first} already",
                        path.display()
                    ))),
                    None => wanted.push((name, AtStart::Directory(path, directory))),
                }
            }
        }
        let declared = self.declared.iter().map(|one| (one.name.clone(), AtStart::Declared(one)));
        wanted.extend(declared);
        wanted.retain(|(name, _)| !replaced(name));
        let kept = saved.modules.iter();
        wanted.extend(kept.map(|(name, module)| (name.clone(), AtStart::Saved(module))));
        // Where not all fit, those that stay in memory come first.
        wanted.sort_by_key(|(name, _)| !self.is_pinned(name, &saved));
        for (name, place) in wanted {
            let loaded = match place {
                AtStart::Directory(path, root) => self.load_directory(&name, &path, root),
                AtStart::Declared(module) => self.load_declared(module),
                AtStart::Saved(module) => self.load_saved(&name, module),
            };
            self.say(&name, loaded, report);
        }
        let declared = self.declared.iter();
        let aliases = declared.flat_map(|module| module.aliases.iter().map(|a| (a, &module.name)));
        let aliases = aliases.filter(|(alias, _)| !saved.removed_aliases.contains(*alias));
        for (alias, name) in aliases.chain(&saved.aliases) {
            let set = self.check_free(alias).and_then(|()| self.check_alias(alias, name));
            let set = set.and_then(|()| Ok(self.library.alias(alias, name)?));
            if let Err(error) = set {
                report(StartupEvent::LeftOut(format!("alias `{alias}`: {error}")));
            }
        }
        Ok(())
    }

    /// Reports the outcome of a load at the start, with the artefacts of the module that are left
    /// out.
    fn say(&self, name: &str, loaded: Result<Loaded, ModuleError>, report: &mut Report<'_>) {
        match loaded {
            Ok(loaded) => {
                let stage = format!("module {name} ({} KiB)", loaded.module.num_bytes() >> 10);
                report(StartupEvent::Stage(stage));
                for reason in loaded.module.left_out() {
                    report(StartupEvent::LeftOut(format!("adapter `{name}`: {reason}")));
                }
            }
            Err(error) => {
                self.failed(name, &error);
                let text = error.to_string();
                let is_named = text.contains(&format!("`{name}`"));
                let reason = if is_named { text } else { format!("adapter `{name}`: {text}") };
                report(StartupEvent::LeftOut(reason));
            }
        }
    }

    /// The origin of a serving module, by its own name; `None` for aliases and unknown names.
    pub fn provenance(&self, name: &str) -> Option<Provenance> {
        lock(&self.provenance).get(name).cloned()
    }

    /// The last failure per name that does not serve as it should, at most 1,000.
    pub fn failures(&self) -> BTreeMap<String, String> {
        lock(&self.failures).clone()
    }

    /// Declared modules that are not served, by name.
    pub fn missing(&self) -> impl Iterator<Item = &str> {
        let snapshot = self.library.snapshot();
        let names = self.declared.iter().map(|module| module.name.as_str());
        names.filter(move |name| snapshot.get(name).is_none())
    }

    /// True where a restart serves what is loaded at run time.
    pub fn is_durable(&self) -> bool {
        self.state.is_some()
    }
}

/// The modules that lie in a directory, under the names of their folders or files, in that order. A
/// folder and a file can have one name. Names with a leading dot are left out; nothing is read of
/// the modules.
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
