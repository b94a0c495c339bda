//! Modules of a running server: loading from their sources, the durable set, aliases, watched directories.
//!
//! A load fetches, reads, compares generation and signature, stores and only then publishes; whatever fails
//! before changes nothing. Loads run on threads of their own, never on the engine's, and a few at a time.

mod change;
mod load;
mod publish;
mod state;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

/// Where a module lies when the server starts.
enum AtStart<'a> {
    /// In a configured directory.
    Directory(PathBuf, &'a Path),
    /// At a source that the configuration names.
    Declared(&'a crate::config::ModuleConfig),
    /// In the store, since it was loaded at run time.
    Saved(&'a state::SavedModule),
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
                AtStart::Directory(path, root) => self.declare(&name, &path, root),
                AtStart::Declared(module) => self.load_declared(module),
                AtStart::Saved(module) => self.load_saved(&name, module),
            };
            self.say(&name, loaded, report);
        }
        let declared = self.declared.iter();
        let aliases = declared.flat_map(|module| module.aliases.iter().map(|a| (a, &module.name)));
        let aliases = aliases.filter(|(alias, _)| !saved.removed_aliases.contains(*alias));
        for (alias, name) in aliases.chain(&saved.aliases) {
            let set = self.check_alias(alias, name);
            let set = set.and_then(|()| Ok(self.library.alias(alias, name)?));
            if let Err(error) = set {
                report(StartupEvent::LeftOut(format!("alias `{alias}`: {error}")));
            }
        }
        Ok(())
    }

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
