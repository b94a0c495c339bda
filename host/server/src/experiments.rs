//! Experiments on live traffic: which arm answers a request, what came of it, and when an experiment or an arm stops.
//!
//! What experiments mean is in the crate `polyskill-experiment`; this is where they meet requests and the disk. A unit's arm
//! is on the disk before the unit is served by it, and a request's id before its reply ends.

mod arm;
mod live;
mod measure;
mod store;
mod unit;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use polyskill_engine::{Composer, Selection};
use polyskill_experiment::assignment::position;
use polyskill_experiment::declaration::{Mode, validate_together};
use polyskill_experiment::totals::Outcome;
use polyskill_experiment::{Declaration, Report, guard_breaches};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use tokio::sync::Semaphore;

use self::live::{Assigned, Dealt, Live};
use self::measure::is_measured;
pub(crate) use self::measure::{Measured, REFERENCE};
pub(crate) use self::store::Durable;
use self::store::{Noted, Served, Store};
pub(crate) use self::unit::{CONVERSATION_HEADER, Names, TENANT_HEADER, beginning};
use crate::audit::Audit;

/// `[experiments]` of the configuration.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExperimentSettings {
    /// The file that assignments and outcomes are kept in; without it they last as long as the server.
    pub store: Option<PathBuf>,
    /// Most units per experiment; new ones beyond take no part.
    pub max_units: usize,
    /// Most requests that late feedback can be joined with.
    pub max_requests: u64,
    /// Seconds between looks at guards, starts and stops.
    pub check_seconds: u64,
    /// Requests that shadows run at the same time.
    pub max_shadows: usize,
}

impl Default for ExperimentSettings {
    fn default() -> Self {
        let (max_units, max_requests) = (100_000, 100_000);
        Self { store: None, max_units, max_requests, check_seconds: 10, max_shadows: 1 }
    }
}

/// Most experiments that are known at a time; metrics have a series for each arm of each.
const MAX_EXPERIMENTS: usize = 32;

/// Why something cannot be done with an experiment.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExperimentError {
    /// There is none of this name.
    #[error("there is no experiment `{0}`")]
    Unknown(String),
    /// The declaration is not usable.
    #[error("experiment `{name}`: {}", problems.join("; "))]
    Invalid {
        /// The experiment.
        name: String,
        /// Every reason.
        problems: Vec<String>,
    },
    /// A request asks for an arm that there is not.
    #[error("experiment `{experiment}` has no arm `{arm}`")]
    NoArm {
        /// The experiment.
        experiment: String,
        /// What was asked for.
        arm: String,
    },
    /// Feedback on a request that is not known, or no longer.
    #[error(
        "there is no request `{0}` of an experiment; feedback is joined with the latest requests only"
    )]
    UnknownRequest(String),
    /// Feedback that the experiment does not wait for.
    #[error("experiment `{experiment}` takes no feedback on `{name}`, but on {measured}")]
    NoMetric {
        /// The experiment.
        experiment: String,
        /// The name in the feedback.
        name: String,
        /// What there is.
        measured: String,
    },
    /// A value that the metric cannot have.
    #[error("`{name}` is {value}, expected {expected}")]
    Value {
        /// The metric.
        name: String,
        /// What was found.
        value: f64,
        /// Its bounds.
        expected: String,
    },
    /// Feedback that says something else than was said before.
    #[error("`{name}` of request `{request}` was {known} before, and stays so; found {value}")]
    Contradiction {
        /// The request.
        request: String,
        /// The metric.
        name: String,
        /// The value that stays.
        known: f64,
        /// What was found.
        value: f64,
    },
    /// The store failed.
    #[error("{0}")]
    Store(String),
}

/// A request that an experiment answers.
#[derive(Clone, Debug)]
pub(crate) struct Enrolment {
    pub(crate) experiment: String,
    /// Empty before the experiment's start.
    pub(crate) arm: String,
    unit: String,
    /// Whether it counts; overrides do not, and units whose arm was stopped.
    counted: bool,
    /// What answers; `None` before the start.
    pub(crate) selection: Option<Selection>,
    /// Arms that are to be looked at beside the control, which serves.
    pub(crate) shadows: Vec<(String, Selection)>,
    pub(crate) mode: Mode,
    /// The share of requests that a full shadow runs again.
    pub(crate) sample: f64,
}

impl Enrolment {
    /// The challenger that a request's decisions are compared with, or that runs it again: of several, one by the id.
    pub(crate) fn challenger(&self, id: &str) -> Option<(&str, &Selection)> {
        let at = (position("challenger", id) * self.shadows.len() as f64) as usize;
        self.shadows.get(at).map(|(name, selection)| (name.as_str(), selection))
    }

    /// Whether a request is in the share that a full shadow runs again.
    pub(crate) fn is_sampled(&self, id: &str) -> bool {
        self.counted && position("shadow", id) < self.sample
    }
}

/// What a request asks of experiments.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Choice {
    /// Whatever the hash says.
    #[default]
    Open,
    /// No experiment.
    None,
    /// This arm, for testing.
    Arm(String, String),
}

/// All experiments of a server.
#[derive(Debug)]
pub struct Experiments {
    settings: ExperimentSettings,
    store: Store,
    live: RwLock<BTreeMap<String, Arc<Mutex<Live>>>>,
    audit: Arc<Audit>,
    /// Room for shadows' requests.
    shadows: Arc<Semaphore>,
    /// Shadows that found none.
    dropped: AtomicU64,
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn lock(live: &Mutex<Live>) -> MutexGuard<'_, Live> {
    live.lock().unwrap_or_else(PoisonError::into_inner)
}

fn json_text(value: &impl Serialize) -> String {
    // Plain data with keys that are text.
    serde_json::to_string(value).unwrap_or_default()
}

impl Experiments {
    /// Opens the store and brings back what it has.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn open(settings: ExperimentSettings, audit: Arc<Audit>) -> Result<Self, ExperimentError> {
        let fail = |error: &dyn std::fmt::Display| {
            let path = settings.store.as_ref().map(|path| path.display().to_string());
            ExperimentError::Store(format!("{}: {error}", path.as_deref().unwrap_or("memory")))
        };
        let store = Store::open(settings.store.as_deref()).map_err(|error| fail(&error))?;
        let mut live = BTreeMap::new();
        for kept in store.load().map_err(|error| fail(&error))? {
            let restored = Live::restored(kept).map_err(|error| fail(&error))?;
            let name = restored.declaration.name.clone();
            live.insert(name, Arc::new(Mutex::new(restored)));
        }
        let shadows = Arc::new(Semaphore::new(settings.max_shadows));
        let dropped = AtomicU64::new(0);
        Ok(Self { settings, store, live: RwLock::new(live), audit, shadows, dropped })
    }

    fn all(&self) -> Vec<Arc<Mutex<Live>>> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        live.values().cloned().collect()
    }

    fn one(&self, name: &str) -> Result<Arc<Mutex<Live>>, ExperimentError> {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        live.get(name).cloned().ok_or_else(|| ExperimentError::Unknown(name.to_owned()))
    }

    /// Whether there is anything to do for requests.
    pub(crate) fn is_idle(&self) -> bool {
        self.live.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Room for requests that shadows run.
    pub(crate) fn shadows(&self) -> &Arc<Semaphore> {
        &self.shadows
    }

    /// Counts a shadow for which there was no room.
    pub(crate) fn shadow_dropped(&self) {
        self.dropped.fetch_add(1, Relaxed);
    }

    /// Shadows for which there was no room.
    pub(crate) fn shadows_dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// Declares an experiment, or changes the weights of one that is known. It starts at once, unless it says when.
    ///
    /// # Errors
    /// With every reason why it cannot run.
    pub fn declare(
        &self,
        declaration: Declaration,
        composer: &Composer,
        by: &str,
    ) -> Result<(), ExperimentError> {
        let name = declaration.name.clone();
        let invalid = |problems| ExperimentError::Invalid { name: name.clone(), problems };
        declaration.validate().map_err(invalid)?;
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
                if live.declaration.start.is_none_or(|start| start <= now()) {
                    live.course.started = Some(now());
                }
                self.keep(&live)?;
                let mut all = self.live.write().unwrap_or_else(PoisonError::into_inner);
                all.insert(name.clone(), Arc::new(Mutex::new(live)));
            }
            (Some(known), _) => {
                let mut live = lock(&known);
                live.course.epochs.push(declaration.weights());
                live.declaration = declaration;
                self.keep(&live)?;
            }
            (None, None) => {}
        }
        self.audit.record(json!({"action": "declare experiment", "by": by, "experiment": name}));
        Ok(())
    }

    /// What can only be checked against the server and the other experiments.
    fn check(&self, declaration: &Declaration, composer: &Composer) -> Result<(), ExperimentError> {
        let name = &declaration.name;
        let mut problems = Vec::new();
        for arm in &declaration.arms {
            if let Some(Err(error)) = arm.router.as_ref().map(|router| composer.check_chain(router))
            {
                problems.push(format!("arm `{}`: {error}", arm.name));
            }
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

    /// Writes declaration and course, and waits.
    fn keep(&self, live: &Live) -> Result<(), ExperimentError> {
        let name = live.declaration.name.clone();
        let (declaration, course) = (json_text(&live.declaration), json_text(&live.course));
        wait(self.store.change(store::put_experiment((name, declaration, course))))
    }

    /// Stops an experiment, or one arm of it; its results stay.
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
        stop(&mut live, arm, reason)?;
        self.keep(&live)?;
        let event = json!({"action": "stop experiment", "by": by, "experiment": name, "arm": arm,
                           "reason": reason});
        self.audit.record(event);
        Ok(())
    }

    /// Removes an experiment with its results.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn remove(&self, name: &str, by: &str) -> Result<(), ExperimentError> {
        self.one(name)?;
        wait(self.store.change(store::remove_experiment(name.to_owned())))?;
        self.live.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        self.audit.record(json!({"action": "remove experiment", "by": by, "experiment": name}));
        Ok(())
    }

    /// How an experiment stands.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn report(&self, name: &str) -> Result<Json, ExperimentError> {
        let live = self.one(name)?;
        let live = lock(&live);
        Ok(report_json(&live, &live.report(now())))
    }

    /// How all stand.
    pub fn reports(&self) -> Vec<Json> {
        let one = |live: &Arc<Mutex<Live>>| {
            let live = lock(live);
            report_json(&live, &live.report(now()))
        };
        self.all().iter().map(one).collect()
    }

    /// Counters of every arm: experiment, arm, units, requests, fallbacks, faults.
    pub(crate) fn counters(&self) -> Vec<ArmCounters> {
        let mut counters = Vec::new();
        for live in self.all() {
            let live = lock(&live);
            for arm in &live.declaration.arms {
                let totals = live.totals.arms.get(&arm.name);
                counters.push(ArmCounters {
                    experiment: live.declaration.name.clone(),
                    arm: arm.name.clone(),
                    units: totals.map_or(0, |totals| totals.units.len() as u64),
                    requests: totals.map_or(0, |totals| totals.requests),
                    fallbacks: totals.map_or(0, |totals| totals.fallbacks),
                    faults: totals.map_or(0, |totals| totals.faults),
                });
            }
        }
        counters
    }

    /// Series for each arm, in Prometheus' text: experiments and arms are bounded, and units are no labels.
    pub(crate) fn write_metrics(&self, text: &mut String) {
        use std::fmt::Write as _;
        let counters = self.counters();
        type Of = fn(&ArmCounters) -> u64;
        let families: [(&str, &str, &str, Of); 4] = [
            ("units", "gauge", "Units of an arm.", |arm| arm.units),
            ("requests", "counter", "Requests that an arm has answered.", |arm| arm.requests),
            ("fallbacks", "counter", "Requests whose router gave up.", |arm| arm.fallbacks),
            ("faults", "counter", "Requests that failed under an arm.", |arm| arm.faults),
        ];
        for (name, kind, help, of) in families {
            let family = format!("polyskill:experiment_{name}");
            let suffix = if kind == "counter" { "_total" } else { "" };
            let _ = writeln!(text, "# HELP {family} {help}\n# TYPE {family} {kind}");
            for arm in &counters {
                // Names hold letters, digits, `-`, `_` and `.`.
                let labels = format!("experiment=\"{}\",arm=\"{}\"", arm.experiment, arm.arm);
                let _ = writeln!(text, "{family}{suffix}{{{labels}}} {}", of(arm));
            }
        }
        let dropped = "polyskill:experiment_shadows_dropped";
        let _ = writeln!(
            text,
            "# HELP {dropped} Requests that no shadow ran again for want of room.\n\
             # TYPE {dropped} counter\n{dropped}_total {}",
            self.shadows_dropped()
        );
    }

    /// The experiment of a request, if one takes it; its unit's arm is on the disk.
    ///
    /// # Errors
    /// If the request asks for an arm that there is not.
    pub(crate) async fn enrol(
        &self,
        choice: &Choice,
        model: &str,
        names: &Names,
    ) -> Result<Option<Enrolment>, ExperimentError> {
        match choice {
            Choice::None => return Ok(None),
            Choice::Arm(experiment, arm) => return self.overridden(experiment, arm).map(Some),
            Choice::Open => {}
        }
        for live in self.all() {
            let dealt = {
                let mut live = lock(&live);
                if !live.takes(model) {
                    continue;
                }
                let Some(unit) = names.unit(live.declaration.unit) else { continue };
                match live.deal(&unit, self.settings.max_units) {
                    Dealt::Not => continue,
                    Dealt::Before => (before(&live, unit), None),
                    Dealt::Arm { assigned, is_new, counted } => {
                        let enrolment = enrolment(&live, &assigned.arm, &unit, counted);
                        let written = is_new.then(|| {
                            live.assign(&unit, assigned.clone());
                            self.write_unit(&live.declaration.name, &unit, assigned)
                        });
                        (enrolment, written)
                    }
                }
            };
            let (enrolment, written) = dealt;
            if let Some(written) = written {
                hear(written.await)?;
            }
            return Ok(Some(enrolment));
        }
        Ok(None)
    }

    fn write_unit(&self, experiment: &str, unit: &str, assigned: Assigned) -> Durable<()> {
        let place = (experiment.to_owned(), unit.to_owned(), assigned.arm);
        let propensities = assigned.propensities.as_ref().map(json_text);
        self.store.change(store::put_unit(place, assigned.epoch, propensities))
    }

    /// An arm by its name, for testing: it serves, and counts nowhere.
    fn overridden(&self, experiment: &str, arm: &str) -> Result<Enrolment, ExperimentError> {
        let live = self.one(experiment)?;
        let live = lock(&live);
        if !live.declaration.arms.iter().any(|known| known.name == arm) {
            let (experiment, arm) = (experiment.to_owned(), arm.to_owned());
            return Err(ExperimentError::NoArm { experiment, arm });
        }
        let mut enrolment = enrolment(&live, arm, "", false);
        enrolment.shadows.clear();
        Ok(enrolment)
    }

    /// Makes a request's id known, so that feedback finds it.
    pub(crate) fn served(&self, id: &str, enrolment: &Enrolment) -> Durable<()> {
        let served = Served {
            experiment: enrolment.experiment.clone(),
            arm: enrolment.arm.clone(),
            unit: enrolment.unit.clone(),
            counted: enrolment.counted,
        };
        self.store.change(store::put_request(id.to_owned(), served, self.settings.max_requests))
    }

    /// Counts a request that has ended: the arm acted, so its unit is exposed.
    pub(crate) fn ended(&self, enrolment: &Enrolment, measured: &Measured) {
        self.ended_under(enrolment, &enrolment.arm, measured);
    }

    /// Whether an experiment measures something of this name.
    pub(crate) fn measures(&self, enrolment: &Enrolment, metric: &str) -> bool {
        let live = self.one(&enrolment.experiment);
        enrolment.counted && live.is_ok_and(|live| lock(&live).declaration.metric(metric).is_some())
    }

    /// Adds what was measured of a request after it was counted.
    pub(crate) fn measured_later(&self, enrolment: &Enrolment, metric: &str, value: f64) {
        let Ok(live) = self.one(&enrolment.experiment) else { return };
        let mut live = lock(&live);
        if !live.declaration.metric(metric).is_some_and(|metric| metric.accepts(value)) {
            return;
        }
        let (arm, unit) = (enrolment.arm.as_str(), enrolment.unit.as_str());
        let observations = [(metric.to_owned(), value)];
        if arm.is_empty() {
            live.count_before(unit, &observations);
        } else if live.totals.observe(arm, unit, metric, value).is_ok() {
            self.earn(&mut live, (arm, unit), metric, value);
        }
        let place = (enrolment.experiment.clone(), arm.to_owned(), unit.to_owned());
        drop(self.store.change(move |connection| {
            store::add_totals(connection, (&place.0, &place.1, &place.2), &observations)
        }));
    }

    /// The same for an arm that ran in a shadow.
    pub(crate) fn ended_under(&self, enrolment: &Enrolment, arm: &str, measured: &Measured) {
        let Ok(live) = self.one(&enrolment.experiment) else { return };
        let mut live = lock(&live);
        if !enrolment.counted {
            return;
        }
        let observations = measured.observations(&live.declaration);
        let (experiment, unit) = (enrolment.experiment.clone(), enrolment.unit.clone());
        let place = (experiment.clone(), arm.to_owned(), unit.clone());
        if arm.is_empty() {
            live.count_before(&unit, &observations);
        } else {
            let Outcome { fallback, fault } = measured.outcome;
            live.count((arm, &unit), measured.outcome, &observations);
            let counted = (experiment.clone(), arm.to_owned());
            drop(self.store.change(store::count_request(counted, (fallback, fault))));
            let exposed = [(String::new(), 0.0)];
            let at = place.clone();
            drop(self.store.change(move |connection| {
                store::add_totals(connection, (&at.0, &at.1, &at.2), &exposed)
            }));
        }
        for (metric, value) in &observations {
            self.earn(&mut live, (arm, &unit), metric, *value);
        }
        // Nobody waits for what was measured: it is on the disk a moment later.
        drop(self.store.change(move |connection| {
            store::add_totals(connection, (&place.0, &place.1, &place.2), &observations)
        }));
    }

    fn earn(&self, live: &mut Live, (arm, unit): (&str, &str), metric: &str, value: f64) {
        if let Some(rewards) = live.earn((arm, unit), metric, value) {
            let place = (live.declaration.name.clone(), arm.to_owned());
            drop(self.store.change(store::put_rewards(place, json_text(&rewards))));
        }
    }

    /// Takes feedback on a request, once: `true` where it is new. It is on the disk.
    ///
    /// # Errors
    /// If the request is not known, or the value cannot be taken.
    pub fn feedback(&self, id: &str, name: &str, value: f64) -> Result<bool, ExperimentError> {
        let served = self.store.served(id).map_err(|e| ExperimentError::Store(e.to_string()))?;
        let served = served.ok_or_else(|| ExperimentError::UnknownRequest(id.to_owned()))?;
        let live = self.one(&served.experiment)?;
        check_value(&lock(&live).declaration, name, value)?;
        let feedback = (id.to_owned(), name.to_owned(), value);
        match wait(self.store.change(store::put_feedback(feedback, served.clone())))? {
            Noted::Known => Ok(false),
            Noted::Other(known) => {
                let (request, name) = (id.to_owned(), name.to_owned());
                Err(ExperimentError::Contradiction { request, name, known, value })
            }
            Noted::New => {
                let mut live = lock(&live);
                let observations = [(name.to_owned(), value)];
                if served.counted && served.arm.is_empty() {
                    live.count_before(&served.unit, &observations);
                } else if served.counted {
                    // Finite, as it was checked.
                    let _ = live.totals.observe(&served.arm, &served.unit, name, value);
                    self.earn(&mut live, (&served.arm, &served.unit), name, value);
                }
                Ok(true)
            }
        }
    }

    /// Starts what is due, stops what is due or does harm, and notes how intervals stand.
    pub fn look(&self) {
        for live in self.all() {
            let mut live = lock(&live);
            if self.look_at(&mut live) {
                // An error was logged by the store; the next look tries again.
                let _ = self.keep(&live);
            }
        }
    }

    fn look_at(&self, live: &mut Live) -> bool {
        let (now, name) = (now(), live.declaration.name.clone());
        if live.course.stopped.is_some() {
            return false;
        }
        if live.course.started.is_none() {
            let due = live.declaration.start.is_some_and(|start| start <= now);
            live.course.started = due.then_some(now);
            return due;
        }
        let report = live.report(now);
        live.course.histories = report.histories();
        for breach in guard_breaches(&report) {
            if live.course.stopped_arms.contains_key(&breach.arm) {
                continue;
            }
            tracing::warn!(
                experiment = name,
                arm = breach.arm,
                reason = breach.reason,
                "a guard stops an arm"
            );
            let event = json!({"action": "stop experiment", "by": "guard", "experiment": name,
                               "arm": breach.arm, "reason": breach.reason});
            self.audit.record(event);
            // The arm is one of the report.
            let _ = stop(live, Some(&breach.arm), &breach.reason);
        }
        if live.declaration.stop.is_some_and(|stop| stop <= now) {
            let _ = stop(live, None, "its time was over");
        }
        true
    }

    /// Looks again and again, until the server is gone.
    pub fn watch(self: &Arc<Self>) {
        let (this, pause) =
            (Arc::downgrade(self), Duration::from_secs(self.settings.check_seconds.max(1)));
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(pause);
            loop {
                ticks.tick().await;
                let Some(this) = this.upgrade() else { return };
                // Reports read all units.
                let _ = tokio::task::spawn_blocking(move || this.look()).await;
            }
        });
    }
}

/// What an arm has served so far.
#[derive(Clone, Debug)]
pub(crate) struct ArmCounters {
    pub(crate) experiment: String,
    pub(crate) arm: String,
    pub(crate) units: u64,
    pub(crate) requests: u64,
    pub(crate) fallbacks: u64,
    pub(crate) faults: u64,
}

fn hear<T>(
    heard: Result<Result<T, store::StoreError>, tokio::sync::oneshot::error::RecvError>,
) -> Result<T, ExperimentError> {
    let gone = |_| ExperimentError::Store("its thread has ended".to_owned());
    heard.map_err(gone)?.map_err(|error| ExperimentError::Store(error.to_string()))
}

/// Waits for a change, on a thread that may block.
fn wait<T>(durable: Durable<T>) -> Result<T, ExperimentError> {
    hear(durable.blocking_recv())
}

/// Waits for a change.
pub(crate) async fn written<T>(durable: Durable<T>) -> Result<T, ExperimentError> {
    hear(durable.await)
}

fn before(live: &Live, unit: String) -> Enrolment {
    Enrolment {
        experiment: live.declaration.name.clone(),
        arm: String::new(),
        unit,
        counted: true,
        selection: None,
        shadows: Vec::new(),
        mode: live.declaration.mode,
        sample: 0.0,
    }
}

fn enrolment(live: &Live, arm: &str, unit: &str, counted: bool) -> Enrolment {
    let declaration = &live.declaration;
    let declared = declaration.arms.iter();
    let selection = declared.clone().find(|known| known.name == arm).map(arm::selection);
    let is_shadow = |known: &&polyskill_experiment::declaration::Arm| {
        declaration.mode.is_shadow()
            && known.name != arm
            && !live.course.stopped_arms.contains_key(&known.name)
    };
    let shadows = declared.filter(is_shadow).map(|arm| (arm.name.clone(), arm::selection(arm)));
    Enrolment {
        experiment: declaration.name.clone(),
        arm: arm.to_owned(),
        unit: unit.to_owned(),
        counted,
        selection,
        shadows: shadows.collect(),
        mode: declaration.mode,
        sample: declaration.sample(),
    }
}

fn stop(live: &mut Live, arm: Option<&str>, reason: &str) -> Result<(), ExperimentError> {
    let declaration = &live.declaration;
    let Some(arm) = arm else {
        live.course.stopped.get_or_insert_with(now);
        live.course.stop_reason.get_or_insert_with(|| reason.to_owned());
        return Ok(());
    };
    if arm == declaration.control || !declaration.arms.iter().any(|known| known.name == arm) {
        let (experiment, arm) = (declaration.name.clone(), arm.to_owned());
        return Err(ExperimentError::NoArm { experiment, arm });
    }
    live.course.stopped_arms.entry(arm.to_owned()).or_insert_with(|| reason.to_owned());
    if live.course.stopped_arms.len() + 1 == live.declaration.arms.len() {
        let reason = format!("the control alone is left: {reason}");
        return stop(live, None, &reason);
    }
    // The shares change with it.
    let weights = live.weights();
    live.course.epochs.push(weights);
    Ok(())
}

fn check_value(declaration: &Declaration, name: &str, value: f64) -> Result<(), ExperimentError> {
    let reported = || declaration.metrics.iter().filter(|metric| !is_measured(&metric.name));
    let Some(metric) = reported().find(|metric| metric.name == name) else {
        let names: Vec<&str> = reported().map(|metric| &*metric.name).collect();
        return Err(ExperimentError::NoMetric {
            experiment: declaration.name.clone(),
            name: name.to_owned(),
            measured: if names.is_empty() { "nothing".to_owned() } else { names.join(", ") },
        });
    };
    if metric.accepts(value) {
        return Ok(());
    }
    let expected = metric.bounded.map(|[low, high]| format!("{low} to {high}"));
    let expected = expected.unwrap_or_else(|| "a finite number".to_owned());
    Err(ExperimentError::Value { name: name.to_owned(), value, expected })
}

/// A report with what the server adds to it.
fn report_json(live: &Live, report: &Report) -> Json {
    let mut json = serde_json::to_value(report).unwrap_or_default();
    json["declaration"] = serde_json::to_value(&live.declaration).unwrap_or_default();
    json["known_units"] = live.num_units().into();
    for metric in json["metrics"].as_array_mut().into_iter().flatten() {
        let own = metric["name"].as_str().is_some_and(is_measured);
        metric["measured_by"] = if own { "server" } else { "feedback" }.into();
    }
    json["stopped_arms"] = json!(live.course.stopped_arms);
    if let Some(estimates) = live.off_policy() {
        json["off_policy"] = estimates;
    }
    json
}
