//! Experiments on live traffic: the arm that answers a request, its outcomes, and the end of an
//! experiment or an arm.
//!
//! The statistics are in the crate `polyskill-experiment`; here they meet requests and the disk. A
//! unit's arm is on the disk before the unit is served by it, and a request's id before its reply
//! ends.

mod clock;
mod error;
mod live;
mod measure;
mod metrics;
mod records;
mod requests;
#[cfg_attr(not(feature = "sql"), path = "experiments/no_store.rs")]
mod store;
mod unit;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use polyskill_engine::{Composer, Selection};
use polyskill_experiment::declaration::validate_together;
use polyskill_experiment::{Declaration, Report};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use tokio::sync::Semaphore;

use self::clock::Clock;
pub use self::error::ExperimentError;
use self::live::Live;
use self::measure::is_measured;
pub use self::measure::{MEASURED, Measured, REFERENCE};
pub use self::records::Durable;
pub use self::requests::{Assignment, Choice};
use self::store::Store;
pub use self::unit::{CONVERSATION_HEADER, TENANT_HEADER, UnitIds, beginning};
use self::watch::stop;
use crate::audit::Audit;

/// `[experiments]` of the configuration.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExperimentSettings {
    /// The SQLite file that assignments and outcomes are kept in; without it they last as long as
    /// the server.
    pub store: Option<PathBuf>,
    /// Most units per experiment, 100,000 by default; new ones beyond take no part. Each takes
    /// memory.
    pub max_units: usize,
    /// Most requests that late feedback can be joined with, over all experiments; 100,000 by
    /// default.
    pub max_requests: u64,
    /// Seconds between looks at guards, starts and stops; 10 by default, at least 1.
    pub check_seconds: u64,
    /// Requests that shadows run at the same time; 1 by default, and 0 runs none.
    pub max_shadows: usize,
}

impl Default for ExperimentSettings {
    fn default() -> Self {
        let (max_units, max_requests) = (100_000, 100_000);
        Self { store: None, max_units, max_requests, check_seconds: 10, max_shadows: 1 }
    }
}

/// Most experiments that have not stopped; metrics have a series for each arm of each.
const MAX_EXPERIMENTS: usize = 32;

/// All experiments of a server. Each has a lock of its own. A request never holds it while it waits
/// for the disk; declarations, stops and looks do, and requests of that experiment wait for them.
#[derive(Debug)]
pub struct Experiments {
    /// `[experiments]` of the configuration.
    settings: ExperimentSettings,
    /// The disk.
    store: Store,
    /// The time by which they start and stop.
    clock: Clock,
    /// The experiments that are known, by name; those that have stopped too, until they are
    /// removed.
    live: RwLock<BTreeMap<String, Arc<Mutex<Live>>>>,
    /// The audit log, which gets declarations, stops and removals.
    audit: Arc<Audit>,
    /// Room for shadows' requests.
    shadows: Arc<Semaphore>,
    /// Shadows for which there was no room, since the start.
    dropped: AtomicU64,
    /// One declaration is checked against the others at a time.
    declaring: Mutex<()>,
    /// Experiments whose records cannot be read, with the reasons. They can only be removed.
    unreadable: Mutex<BTreeMap<String, String>>,
}

/// Locks, also where another thread panicked while it held the lock.
fn lock(live: &Mutex<Live>) -> MutexGuard<'_, Live> {
    live.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The JSON of plain data, for the store.
fn json_text(value: &impl Serialize) -> String {
    // Plain data with keys that are text.
    serde_json::to_string(value).unwrap_or_default()
}

impl Experiments {
    /// Opens the store and brings back its experiments. One whose records cannot be read is logged
    /// and left out; the others go on. A file that is damaged is moved aside and logged, and the
    /// server begins without experiments.
    ///
    /// # Errors
    /// If the store cannot be read or made.
    pub fn open(settings: ExperimentSettings, audit: Arc<Audit>) -> Result<Self, ExperimentError> {
        let fail = |error: &dyn std::fmt::Display| {
            let path = settings.store.as_ref().map(|path| path.display().to_string());
            ExperimentError::Store(format!("{}: {error}", path.as_deref().unwrap_or("memory")))
        };
        let store = Store::open(settings.store.as_deref()).map_err(|error| fail(&error))?;
        let (mut live, mut unreadable) = (BTreeMap::new(), BTreeMap::new());
        for (name, kept) in store.load().map_err(|error| fail(&error))? {
            match Live::restored(kept) {
                Ok(restored) => drop(live.insert(name, Arc::new(Mutex::new(restored)))),
                // The others go on.
                Err(reason) => {
                    tracing::error!(experiment = name, reason, "its records cannot be read");
                    unreadable.insert(name, reason);
                }
            }
        }
        let shadows = Arc::new(Semaphore::new(settings.max_shadows));
        let (dropped, declaring) = (AtomicU64::new(0), Mutex::default());
        let unreadable = Mutex::new(unreadable);
        Ok(Self {
            settings,
            store,
            clock: Clock::new(),
            live: RwLock::new(live),
            audit,
            shadows,
            dropped,
            declaring,
            unreadable,
        })
    }

    /// The place to which a damaged store was moved at the start, if it was.
    pub(crate) fn set_aside(&self) -> Option<&std::path::Path> {
        self.store.set_aside()
    }

    /// Experiments whose records cannot be read, with the reasons.
    pub(crate) fn unreadable(&self) -> BTreeMap<String, String> {
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All experiments, ordered by name. The list does not change with later declarations.
    fn all(&self) -> Vec<Arc<Mutex<Live>>> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        live.values().cloned().collect()
    }

    /// The experiment of a name, or [`ExperimentError::Unknown`].
    fn one(&self, name: &str) -> Result<Arc<Mutex<Live>>, ExperimentError> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        live.get(name).cloned().ok_or_else(|| ExperimentError::Unknown(name.to_owned()))
    }

    /// True where no experiment is known, so that requests have nothing to do for any.
    pub(crate) fn is_idle(&self) -> bool {
        self.live.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Permits for requests that shadows run.
    pub(crate) fn shadows(&self) -> &Arc<Semaphore> {
        &self.shadows
    }

    /// Counts a shadow for which there was no room.
    pub(crate) fn shadow_dropped(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }

    /// Shadows for which there was no room, since the start.
    pub(crate) fn shadows_dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Declares an experiment, or changes the weights of one that is known. It starts at once,
    /// unless it says when. The same declaration again changes nothing.
    ///
    /// It blocks: arms are composed, and the disk is waited for. `by` goes to the audit log.
    ///
    /// # Errors
    /// With every reason for which it cannot run, or if the store cannot be written.
    pub fn declare(
        &self,
        declaration: Declaration,
        composer: &Composer,
        by: &str,
    ) -> Result<(), ExperimentError> {
        let name = declaration.name.clone();
        let invalid = |problems| ExperimentError::Invalid { name: name.clone(), problems };
        declaration.validate().map_err(invalid)?;
        let _one_at_a_time = self.declaring.lock().unwrap_or_else(PoisonError::into_inner);
        let unreadable = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = unreadable.get(&name) {
            let problem = format!("its records cannot be read ({reason}); remove it first");
            return Err(invalid(vec![problem]));
        }
        drop(unreadable);
        let known = self.one(&name).ok();
        let changed = match &known {
            None => Some(Live::new(declaration.clone())),
            Some(known) => {
                let live = lock(known);
                if live.declaration == declaration {
                    return Ok(());
                }
                let mut old = live.declaration.clone();
                old.arms.iter_mut().zip(&declaration.arms).for_each(|(a, b)| a.weight = b.weight);
                if old != declaration {
                    let problem = "it is declared already, and only weights may change; remove it, or take another name";
                    return Err(invalid(vec![problem.to_owned()]));
                }
                None
            }
        };
        self.check(&declaration, composer)?;
        match (known, changed) {
            (None, Some(mut live)) => {
                if live.declaration.start.is_none_or(|start| start <= self.clock.now()) {
                    live.course.started = Some(self.clock.now());
                }
                self.keep(&live)?;
                let mut all = self.live.write().unwrap_or_else(PoisonError::into_inner);
                all.insert(name.clone(), Arc::new(Mutex::new(live)));
            }
            (Some(known), _) => {
                let mut live = lock(&known);
                live.course.epochs.push(declaration.weights());
                live.declaration = declaration;
                // An arm that was stopped stays so.
                let weights = live.weights();
                live.course.epochs.pop();
                live.course.epochs.push(weights);
                self.keep(&live)?;
            }
            (None, None) => {}
        }
        self.audit.record(json!({"action": "declare experiment", "by": by, "experiment": name}));
        Ok(())
    }

    /// Checks a declaration against the server and the other experiments: arms can be composed,
    /// `stop` lies ahead, and requests of one model meet two experiments only in different parts of
    /// a layer.
    fn check(&self, declaration: &Declaration, composer: &Composer) -> Result<(), ExperimentError> {
        let name = &declaration.name;
        let mut problems = Vec::new();
        for arm in &declaration.arms {
            if let Err(problem) = arm.route.check() {
                problems.push(format!("arm `{}`: {problem}", arm.name));
            }
            if let Err(error) = composer.compose(&Selection::from(&arm.route)) {
                problems.push(format!("arm `{}`: {error}", arm.name));
            }
        }
        if declaration.stop.is_some_and(|stop| stop <= self.clock.now()) {
            problems.push("`stop` is in the past".to_owned());
        }
        let mut others: Vec<Declaration> = Vec::new();
        for live in self.all() {
            let live = lock(&live);
            if live.course.stopped.is_none() && live.declaration.name != *name {
                others.push(live.declaration.clone());
            }
        }
        if others.len() >= MAX_EXPERIMENTS {
            problems.push(format!("{MAX_EXPERIMENTS} experiments are running, which is the most"));
        }
        let meets = |other: &&Declaration| {
            let both = [&declaration.models, &other.models];
            both.iter().any(|models| models.is_empty())
                || declaration.models.iter().any(|model| other.models.contains(model))
        };
        for other in others.iter().filter(meets) {
            if declaration.layer.is_none() || declaration.layer != other.layer {
                problems.push(format!(
                    "it takes requests of the same models as `{}`; put both into one `layer`, each with its `share`",
                    other.name
                ));
            }
        }
        others.push(declaration.clone());
        problems.extend(validate_together(&others).err().unwrap_or_default());
        match problems.is_empty() {
            true => Ok(()),
            false => Err(ExperimentError::Invalid { name: name.clone(), problems }),
        }
    }

    /// Writes declaration and course, and waits for the disk.
    fn keep(&self, live: &Live) -> Result<(), ExperimentError> {
        let name = live.declaration.name.clone();
        let (declaration, course) = (json_text(&live.declaration), json_text(&live.course));
        wait(self.store.change(store::put_experiment(name, declaration, course)))
    }

    /// Stops an experiment, or one arm of it; its results stay. Units of a stopped arm are served
    /// by the control, and count no more.
    ///
    /// # Errors
    /// If there is none of this name, or no such arm.
    pub fn stop(
        &self,
        name: &str,
        arm: Option<&str>,
        reason: &str,
        by: &str,
    ) -> Result<(), ExperimentError> {
        let live = self.one(name)?;
        let mut live = lock(&live);
        stop(&mut live, arm, reason, self.clock.now())?;
        self.keep(&live)?;
        let event = json!({"action": "stop experiment", "by": by, "experiment": name, "arm": arm,
                           "reason": reason});
        self.audit.record(event);
        Ok(())
    }

    /// Removes an experiment with its results, and what late feedback would need. One whose records
    /// cannot be read can be removed too.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn remove(&self, name: &str, by: &str) -> Result<(), ExperimentError> {
        let unreadable = || self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
        if !unreadable().contains_key(name) {
            self.one(name)?;
        }
        wait(self.store.change(store::remove_experiment(name.to_owned())))?;
        unreadable().remove(name);
        self.live.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        self.audit.record(json!({"action": "remove experiment", "by": by, "experiment": name}));
        Ok(())
    }

    /// The report of an experiment as it stands now, with its declaration. The cost grows with the
    /// number of its units.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn report(&self, name: &str) -> Result<Json, ExperimentError> {
        let live = self.one(name)?;
        let live = lock(&live);
        Ok(report_json(&live, &live.report(self.clock.now())))
    }

    /// The reports of all experiments, ordered by name.
    pub fn reports(&self) -> Vec<Json> {
        let one = |live: &Arc<Mutex<Live>>| {
            let live = lock(live);
            report_json(&live, &live.report(self.clock.now()))
        };
        self.all().iter().map(one).collect()
    }
}

/// The outcome of a change. A thread that has ended is a failure of the store.
fn hear<T>(
    heard: Result<Result<T, records::StoreError>, tokio::sync::oneshot::error::RecvError>,
) -> Result<T, ExperimentError> {
    let gone = |_| ExperimentError::Store("its thread has ended".to_owned());
    heard.map_err(gone)?.map_err(|error| ExperimentError::Store(error.to_string()))
}

/// Waits for a change, on a thread that may block.
fn wait<T>(durable: Durable<T>) -> Result<T, ExperimentError> {
    hear(durable.blocking_recv())
}

/// Waits for a change without blocking a thread.
///
/// # Errors
/// If the change could not be made or written.
pub async fn written<T>(durable: Durable<T>) -> Result<T, ExperimentError> {
    hear(durable.await)
}

/// A report with the server's own part: the declaration, units, the source of each metric, stopped
/// arms, the last failure of each, and for a bandit estimates of other policies.
fn report_json(live: &Live, report: &Report) -> Json {
    let mut json = serde_json::to_value(report).unwrap_or_default();
    json["declaration"] = serde_json::to_value(&live.declaration).unwrap_or_default();
    json["known_units"] = live.num_units().into();
    for metric in json["metrics"].as_array_mut().into_iter().flatten() {
        let own = metric["name"].as_str().is_some_and(is_measured);
        metric["measured_by"] = if own { "server" } else { "feedback" }.into();
    }
    json["stopped_arms"] = json!(live.course.stopped_arms);
    json["failures"] = json!(live.failures);
    if let Some(estimates) = live.off_policy() {
        json["off_policy"] = estimates;
    }
    json
}
