//! Router plugins of a running server: loading, replacing while requests stream, watching directories.
//!
//! A load reads, trusts, compiles, self-tests and shows the router the library; only then one pointer is
//! swapped. Whatever fails before changes nothing, and its reason stays to be read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use polyskill_engine::{Composer, Offered, RouterSettings};
use polyskill_plugin::{Capability, Limits, Loader, ModuleKinds, Plugin};
use polyskill_sources::cache::cache_directory;
use serde_json::json;

use crate::audit::Audit;
use crate::config::{Config, FaultSettings, RouterConfig, parameters};
use crate::startup::{Report, StartupEvent};

/// How often watched directories are looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(300);
/// Who loads what lies there when the server starts; the command line reports these itself.
const AT_START: &str = "start";
/// Files that are looked at per bundle.
const MAX_WATCHED_FILES: usize = 1_000;

/// A load that changed nothing, and why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LoadError(String);

/// What a load did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The router's name.
    pub name: String,
    /// The digest that serves now.
    pub digest: String,
    /// Whether it served before already.
    pub unchanged: bool,
}

/// The last attempt to load from a path.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The bundle.
    pub path: PathBuf,
    /// What serves from it, or why the attempt failed.
    pub outcome: Result<Published, String>,
}

/// Loads routers into a composer.
#[derive(Debug)]
pub struct Routers {
    loader: Loader,
    configured: Vec<RouterConfig>,
    faults: FaultSettings,
    keep_rows: usize,
    limits: Limits,
    roots: Vec<PathBuf>,
    attempts: Mutex<BTreeMap<PathBuf, Attempt>>,
    audit: Arc<Audit>,
}

impl Routers {
    /// Prepares the sandbox; nothing is loaded yet.
    ///
    /// # Errors
    /// If the sandbox cannot run here.
    pub fn new(config: &Config, audit: &Arc<Audit>) -> Result<Self, LoadError> {
        let cache = cache_directory().join("plugins");
        let own_limits = config
            .router
            .iter()
            .filter(|router| !router.limits.is_empty())
            .map(|router| Ok((router.name.clone(), router.limits(&config.limits)?)))
            .collect::<Result<_, String>>()
            .map_err(LoadError)?;
        let (limits, trust) = (config.limits.clone(), config.trust.clone());
        let loader = Loader::with_own_limits(limits, own_limits, trust, Some(cache))
            .map_err(|error| LoadError(error.to_string()))?;
        Ok(Self {
            loader,
            configured: config.router.clone(),
            keep_rows: config.keep_rows,
            faults: config.faults.clone(),
            limits: config.limits.clone(),
            roots: config.plugins.clone(),
            attempts: Mutex::default(),
            audit: Arc::clone(audit),
        })
    }

    /// Loads every bundle of the configured directories; a bundle that fails is reported and left out.
    ///
    /// # Errors
    /// If a directory cannot be read.
    pub fn load_all(&self, composer: &Composer, report: &mut Report<'_>) -> Result<(), LoadError> {
        for root in &self.roots {
            let found = Loader::find(root).map_err(|error| LoadError(error.to_string()))?;
            for path in found {
                report(StartupEvent::Stage(format!("loading router {}", path.display())));
                match self.load(composer, &path, AT_START) {
                    Ok(published) => {
                        report(StartupEvent::Stage(format!("router {}", published.name)))
                    }
                    Err(error) => report(StartupEvent::LeftOut(error.to_string())),
                }
            }
        }
        Ok(())
    }

    /// Loads a bundle and publishes it in place of what has its name. `by` goes to the audit log.
    ///
    /// # Errors
    /// Why it does not serve; whatever served before goes on.
    pub fn load(&self, composer: &Composer, path: &Path, by: &str) -> Result<Published, LoadError> {
        let outcome = self.publish(composer, path);
        if let Ok(Published { name, digest, unchanged: false }) = &outcome
            && by != AT_START
        {
            tracing::info!(router = name, digest, by, "the router serves");
        }
        // What it says of itself, also where it is refused.
        let found = polyskill_plugin::inspect(path, &self.limits).ok();
        let found = found.as_ref();
        let attempt = Attempt { path: path.to_owned(), outcome: outcome.clone() };
        self.attempts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(path.to_owned(), attempt);
        self.record(json!({
            "action": "load", "by": by, "path": path.display().to_string(),
            "name": found.map(|found| &found.manifest.name),
            "digest": found.map(|found| &found.digest),
            "signer": found.and_then(|found| found.signer.as_ref().ok()),
            "served": outcome.is_ok(),
            "error": outcome.as_ref().err(),
        }));
        outcome.map_err(LoadError)
    }

    fn publish(&self, composer: &Composer, path: &Path) -> Result<Published, String> {
        let plugin = self.loader.load(path).map_err(|error| error.to_string())?;
        let (name, digest) = (plugin.name().to_owned(), plugin.digest().to_owned());
        let serving = composer.routers().into_iter().find(|router| router.name == name);
        if serving.is_some_and(|router| router.digest == digest) {
            return Ok(Published { name, digest, unchanged: true });
        }
        let settings = self.settings(&plugin)?;
        plugin
            .start(&composer.view(), settings.parameters.clone())
            .and_then(|router| composer.add_router(&name, digest.clone(), router, settings))
            .map_err(|fault| format!("plugin `{name}`: {fault}"))?;
        Ok(Published { name, digest, unchanged: false })
    }

    /// What the operator says about a plugin: parameters, grants, and what happens on faults.
    fn settings(&self, plugin: &Plugin) -> Result<RouterSettings, String> {
        let configured = self.configured.iter().find(|router| router.name == plugin.name());
        let granted = configured.map_or(&[][..], |router| &router.grant);
        let capabilities = plugin.capabilities(granted);
        if let Some(refused) =
            plugin.manifest().capabilities.iter().find(|wanted| !capabilities.contains(wanted))
        {
            let name = plugin.name();
            return Err(format!(
                "plugin `{name}` asks for the capability `{refused}`; grant it in the configuration: \
                 [[router]] name = \"{name}\", grant = [\"{refused}\"]"
            ));
        }
        let on_fault = configured.and_then(|router| router.on_fault);
        Ok(RouterSettings {
            parameters: match configured {
                Some(router) => parameters(&router.params)?,
                None => polyskill_sdk::Parameters::default(),
            },
            hidden: capabilities.contains(&Capability::Hidden),
            step_time: Some(Duration::from_millis(plugin.limits().step_milliseconds)),
            defined_bytes: Some(plugin.limits().definition_mib << 20),
            keep_rows: self.keep_rows,
            faults: self.faults.policy(on_fault),
            offered: offered(plugin.manifest().kinds),
        })
    }

    /// Whether a path lies in a configured directory of plugins.
    pub fn allows(&self, path: &Path) -> bool {
        let Ok(path) = path.canonicalize() else { return false };
        let mut roots = self.roots.iter().filter_map(|root| root.canonicalize().ok());
        roots.any(|root| {
            path.starts_with(&root) && (path != root || root.join("plugin.toml").is_file())
        })
    }

    /// The last attempt per bundle.
    pub fn attempts(&self) -> Vec<Attempt> {
        let attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        attempts.values().cloned().collect()
    }

    /// Writes a line to the audit log, if there is one, with the time in seconds since the epoch.
    pub fn record(&self, event: serde_json::Value) {
        self.audit.record(event);
    }

    /// Looks at the directories once; loads what has changed since the last look and is not changing
    /// any more.
    pub fn look(&self, composer: &Composer, seen: &mut Seen) {
        for path in self.roots.iter().filter_map(|root| Loader::find(root).ok()).flatten() {
            let now = fingerprint(&path);
            let seen = &mut seen.0;
            let before = seen.insert(path.clone(), (now.clone(), false));
            match before {
                // Written to a moment ago: the next look tells whether it is complete.
                Some((before, _)) if before != now => _ = seen.insert(path, (now, true)),
                None => _ = seen.insert(path, (now, true)),
                Some((_, true)) => match self.load(composer, &path, "watch") {
                    Ok(_) => {}
                    Err(error) => tracing::error!(path = %path.display(), %error, "not loaded"),
                },
                Some(_) => {}
            }
        }
    }
}

/// Watches the directories of plugins until the server is gone.
///
/// # Errors
/// If the system has no thread left.
pub fn watch<S: Send + Sync + 'static>(
    service: &Arc<S>,
    parts: impl Fn(&S) -> (&Routers, &Composer) + Send + 'static,
) -> std::io::Result<()> {
    let service: Weak<S> = Arc::downgrade(service);
    let run = move || {
        let mut seen = Seen::default();
        if let Some(service) = service.upgrade() {
            for attempt in parts(&service).0.attempts() {
                let print = fingerprint(&attempt.path);
                seen.0.insert(attempt.path, (print, false));
            }
        }
        while let Some(service) = service.upgrade() {
            let (routers, composer) = parts(&service);
            routers.look(composer, &mut seen);
            drop(service);
            std::thread::sleep(WATCH_INTERVAL);
        }
    };
    std::thread::Builder::new().name("plugin-watch".to_owned()).spawn(run).map(drop)
}

/// What a watcher has seen of the directories so far, and whether it was changing.
#[derive(Debug, Default)]
pub struct Seen(BTreeMap<PathBuf, (Fingerprint, bool)>);

/// Names, sizes and times of a bundle's files.
type Fingerprint = Vec<(PathBuf, u64, Option<SystemTime>)>;

fn fingerprint(path: &Path) -> Fingerprint {
    let mut files = Vec::new();
    let mut folders = vec![path.to_owned()];
    while let Some(path) = folders.pop() {
        let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            let entries = std::fs::read_dir(&path).into_iter().flatten();
            folders.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
        } else {
            files.push((path, metadata.len(), metadata.modified().ok()));
        }
        if files.len() + folders.len() > MAX_WATCHED_FILES {
            break;
        }
    }
    files.sort();
    files
}
/// What the manifest asks for, as the engine says it.
fn offered(kinds: ModuleKinds) -> Offered {
    match kinds {
        ModuleKinds::LowRank => Offered::LowRank,
        ModuleKinds::Experts => Offered::Experts,
        ModuleKinds::Any => Offered::Any,
    }
}
