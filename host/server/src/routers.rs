//! Router plugins of a running server: loading, replacing while requests stream, watching
//! directories.
//!
//! A load reads, trusts, compiles, self-tests and shows the router the library; only then one
//! pointer is swapped. Whatever fails before changes nothing, and its reason stays to be read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use polyskill_engine::{Composer, FaultPolicy, Offered, RouterSettings};
use polyskill_plugin::{Capability, Limits, Loader, ModuleKinds, Plugin};
use polyskill_sources::cache::cache_directory;
use serde_json::json;

use crate::audit::Audit;
use crate::config::{Config, RouterConfig};
use crate::startup::{Report, StartupEvent};

/// The time between two looks at watched directories.
const WATCH_INTERVAL: Duration = Duration::from_millis(300);
/// The author, in the audit log, of loads when the server starts. The command line reports these
/// itself, so that they are not logged again.
const AT_START: &str = "start";
/// The author of loads that a watch makes.
const BY_WATCH: &str = "watch";
/// Files and folders that are looked at per bundle; changes of others are not seen.
const MAX_WATCHED_FILES: usize = 1_000;

/// A load that changed nothing; the text is the reason.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct LoadError(String);

/// The outcome of a load that serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The router's name.
    pub name: String,
    /// The digest that serves now: SHA-256 over the bundle's files, hexadecimal.
    pub digest: String,
    /// True where the same digest served before already; then nothing was replaced.
    pub unchanged: bool,
}

/// The last attempt to load from a path.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The bundle's path, as found in a configured directory or sent by an operator.
    pub path: PathBuf,
    /// The router that serves from it, or the reason for which the attempt failed.
    pub outcome: Result<Published, String>,
}

/// A bundle that serves.
#[derive(Debug)]
struct Serving {
    /// Its place.
    path: PathBuf,
    /// Its version, as its manifest has it.
    version: String,
}

/// Loads routers into a composer. The composer is an argument of each call, so that this holds no
/// reference to it.
#[derive(Debug)]
pub struct Routers {
    /// Compiles and tests plugins, in the sandbox of `limits`.
    loader: Loader,
    /// `[[router]]` of the configuration, one per name.
    configured: Vec<RouterConfig>,
    /// The treatment of faults, for routers without one of their own.
    faults: FaultPolicy,
    /// Rows of `route` that each router keeps to be recorded.
    keep_rows: usize,
    /// The general limits, for the look at a bundle that was refused.
    limits: Limits,
    /// The configured directories of plugins, as they were written.
    roots: Vec<PathBuf>,
    /// The bundles that serve, by the routers' names.
    serving: Mutex<BTreeMap<String, Serving>>,
    /// The last attempt by path. Entries stay when a bundle is gone.
    attempts: Mutex<BTreeMap<PathBuf, Attempt>>,
    /// The audit log, which all loads are written to.
    audit: Arc<Audit>,
}

impl Routers {
    /// Prepares the sandbox and its cache of compiled code; nothing is loaded yet.
    ///
    /// # Errors
    /// If the sandbox cannot run here, or a router's own limits cannot be read.
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
            faults: config.faults,
            limits: config.limits.clone(),
            roots: config.plugins.clone(),
            serving: Mutex::default(),
            attempts: Mutex::default(),
            audit: Arc::clone(audit),
        })
    }

    /// Loads every bundle of the configured directories, in order. A bundle that fails is reported
    /// and left out.
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

    /// Loads a bundle and publishes it in place of the router of its name. `by` names the author in
    /// the audit log.
    ///
    /// It blocks for as long as compilation and self-tests take: not for a thread that serves
    /// requests. Running requests finish with the version that they began with.
    ///
    /// # Errors
    /// The reason for which it does not serve; the version that served before goes on.
    pub fn load(&self, composer: &Composer, path: &Path, by: &str) -> Result<Published, LoadError> {
        let outcome = self.publish(composer, path, by);
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

    /// Loads a bundle, starts its instances and swaps it in. A bundle with the digest that serves
    /// already is not started again.
    ///
    /// What is found by itself, at the start or by a watch, takes no other bundle's name and goes
    /// back to no earlier version of a signed one: that is for a person to say.
    fn publish(&self, composer: &Composer, path: &Path, by: &str) -> Result<Published, String> {
        let plugin = self.loader.load(path).map_err(|error| error.to_string())?;
        let (name, digest) = (plugin.name().to_owned(), plugin.digest().to_owned());
        let serving = composer.routers().into_iter().find(|router| router.name == name);
        if serving.is_some_and(|router| router.digest == digest) {
            return Ok(Published { name, digest, unchanged: true });
        }
        let settings = self.settings(&plugin)?;
        let version = plugin.manifest().version.clone();
        let is_signed = plugin.signer().is_some();
        if matches!(by, AT_START | BY_WATCH) {
            self.check_name(&name, path, &version, is_signed)?;
        }
        plugin
            .start(&composer.view(), settings.parameters.clone())
            .and_then(|router| composer.add_router(&name, digest.clone(), router, settings))
            .map_err(|fault| format!("plugin `{name}`: {fault}"))?;
        let serving = Serving { path: path.to_owned(), version };
        lock(&self.serving).insert(name.clone(), serving);
        Ok(Published { name, digest, unchanged: false })
    }

    /// Refuses the name of another bundle that is still there, and a signed version before the one
    /// that serves.
    fn check_name(
        &self,
        name: &str,
        path: &Path,
        version: &str,
        is_signed: bool,
    ) -> Result<(), String> {
        let serving = lock(&self.serving);
        let Some(before) = serving.get(name) else { return Ok(()) };
        if before.path != path && before.path.exists() {
            let other = before.path.display();
            return Err(format!(
                "plugin `{name}`: {other} has this name and serves; expected each name once"
            ));
        }
        if is_signed && is_before(version, &before.version) {
            return Err(format!(
                "plugin `{name}`: version {version} is older than {}, which serves; load it over \
                 /admin/routers if that is meant",
                before.version
            ));
        }
        Ok(())
    }

    /// The operator's settings of a plugin: parameters, grants, limits, and the treatment of
    /// faults. An error names a capability that the plugin asks for and does not get.
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
            parameters: configured.map(|router| router.params.clone()).unwrap_or_default(),
            hidden: capabilities.contains(&Capability::Hidden),
            step_time: Some(Duration::from_millis(plugin.limits().step_milliseconds)),
            defined_bytes: Some(plugin.limits().definition_mib << 20),
            keep_rows: self.keep_rows,
            faults: FaultPolicy {
                on_fault: on_fault.unwrap_or(self.faults.on_fault),
                ..self.faults
            },
            offered: offered(plugin.manifest().kinds),
        })
    }

    /// True for a path that lies in a configured directory of plugins, after links are resolved.
    /// The directory itself counts only where it is a bundle. A path that does not exist is never
    /// allowed.
    pub fn allows(&self, path: &Path) -> bool {
        let Ok(path) = path.canonicalize() else { return false };
        let mut roots = self.roots.iter().filter_map(|root| root.canonicalize().ok());
        roots.any(|root| {
            path.starts_with(&root) && (path != root || root.join("plugin.toml").is_file())
        })
    }

    /// The last attempt per bundle, by path.
    pub fn attempts(&self) -> Vec<Attempt> {
        let attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        attempts.values().cloned().collect()
    }

    /// Writes a line to the audit log, if there is one, with the time in seconds since 1970.
    pub fn record(&self, event: serde_json::Value) {
        self.audit.record(event);
    }

    /// Looks at the directories once; loads bundles that have changed since the last look and are
    /// not changing any more, so that one is not read while it is being copied. A load that fails
    /// is logged, and tried again after the next change.
    pub fn look(&self, composer: &Composer, seen: &mut Seen) {
        for path in self.roots.iter().filter_map(|root| Loader::find(root).ok()).flatten() {
            let now = fingerprint(&path);
            let seen = &mut seen.0;
            let before = seen.insert(path.clone(), (now.clone(), false));
            match before {
                // Written to a moment ago: the next look tells whether it is complete.
                Some((before, _)) if before != now => _ = seen.insert(path, (now, true)),
                None => _ = seen.insert(path, (now, true)),
                Some((_, true)) => match self.load(composer, &path, BY_WATCH) {
                    Ok(_) => {}
                    Err(error) => tracing::error!(path = %path.display(), %error, "not loaded"),
                },
                Some(_) => {}
            }
        }
    }
}

/// Watches the directories of plugins on a thread of its own, until the server is gone.
///
/// `parts` gives the routers and the composer of the server. Only a weak reference is held between
/// looks. Bundles that were tried at the start count as seen.
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

/// A watcher's last sight of each bundle: its fingerprint, and true where it was changing.
#[derive(Debug, Default)]
pub struct Seen(BTreeMap<PathBuf, (Fingerprint, bool)>);

/// Paths, sizes and times of change of a bundle's files, sorted by path.
type Fingerprint = Vec<(PathBuf, u64, Option<SystemTime>)>;

/// The fingerprint of a bundle, with the files in its folders. Links are not followed, and what
/// cannot be read is left out. Contents are not read: a change that keeps size and time is not
/// seen.
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

/// True for a version before another, both of numbers with dots between; false for others, which have
/// no order.
fn is_before(version: &str, other: &str) -> bool {
    let numbers = |text: &str| -> Option<Vec<u64>> {
        let core = text.split(['-', '+']).next().unwrap_or_default();
        core.split('.').map(|part| part.parse().ok()).collect()
    };
    match (numbers(version), numbers(other)) {
        (Some(version), Some(other)) => version < other,
        _ => false,
    }
}

/// What a mutex holds, also after a panic.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The kinds of modules that a manifest asks for, as the engine names them.
fn offered(kinds: ModuleKinds) -> Offered {
    match kinds {
        ModuleKinds::LowRank => Offered::LowRank,
        ModuleKinds::Experts => Offered::Experts,
        ModuleKinds::Any => Offered::Any,
    }
}
