//! Requests in experiments: the arm that answers, and its outcomes.

use polyskill_experiment::Declaration;
use polyskill_experiment::assignment::position;
use polyskill_experiment::declaration::{Arm, MAX_VALUE, Mode};
use polyskill_route::RouteSpec;

use super::live::{Assigned, Dealt, Live};
use super::measure::{Measured, is_measured};
use super::records::{Durable, Feedback, Noted, Served, UnitTotals};
use super::store;
use super::unit::UnitIds;
use super::{ExperimentError, Experiments, hear, json_text, lock, wait};

/// A request that an experiment answers. It is a copy: what happens to the experiment later does
/// not change it.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// The experiment's name.
    pub experiment: String,
    /// The arm's name; empty before the experiment's start.
    pub arm: String,
    /// The unit's hash; empty in a request for an arm by name.
    unit: String,
    /// True where it counts; requests for an arm by name do not, and units whose arm was stopped do
    /// not.
    counted: bool,
    /// The route of the arm; `None` before the start, when the model name's own answers.
    pub route: Option<RouteSpec>,
    /// Arms that are compared with the control, which serves; empty in other modes than the
    /// shadows.
    pub shadows: Vec<(String, RouteSpec)>,
    /// The way in which arms meet requests.
    pub mode: Mode,
    /// The share of requests that a full shadow runs again, 0 to 1.
    pub sample: f64,
}

impl Assignment {
    /// The challenger that a request's decisions are compared with, or that runs it again: of
    /// several, one by the id.
    pub fn challenger(&self, id: &str) -> Option<(&str, &RouteSpec)> {
        let at = (position("challenger", id) * self.shadows.len() as f64) as usize;
        self.shadows.get(at).map(|(name, route)| (name.as_str(), route))
    }

    /// True for a request in the share that a full shadow runs again.
    pub fn is_sampled(&self, id: &str) -> bool {
        self.counted && position("shadow", id) < self.sample
    }
}

/// A request's say in which experiment takes it.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Choice {
    /// The experiment that the unit's hash gives.
    #[default]
    Open,
    /// No experiment takes it.
    None,
    /// This arm of this experiment, for testing: experiment, then arm.
    Arm(String, String),
}

impl Experiments {
    /// The experiment of a request, if one takes it; its unit's arm is on the disk. Of several
    /// experiments the first by name that takes the unit does.
    ///
    /// # Errors
    /// If the request asks for an experiment or an arm that does not exist, or a new unit's arm
    /// cannot be written.
    pub async fn enrol(
        &self,
        choice: &Choice,
        model: &str,
        names: &UnitIds,
    ) -> Result<Option<Assignment>, ExperimentError> {
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
                    Dealt::Before if live.has_room_before(&unit, self.settings.max_units) => {
                        (before(&live, unit), None)
                    }
                    Dealt::Before => continue,
                    Dealt::Arm { assigned, is_new, counted } => {
                        let assignment = assignment(&live, &assigned.arm, &unit, counted);
                        let written = is_new.then(|| {
                            live.assign(&unit, assigned.clone());
                            self.write_unit(&live.declaration.name, &unit, assigned)
                        });
                        (assignment, written)
                    }
                }
            };
            let (assignment, written) = dealt;
            if let Some(written) = written {
                let heard = hear(written.await);
                lock(&live).written(&assignment.unit, heard.is_ok());
                heard?;
            }
            return Ok(Some(assignment));
        }
        Ok(None)
    }

    /// Queues a unit's arm to be written.
    fn write_unit(&self, experiment: &str, unit: &str, assigned: Assigned) -> Durable<()> {
        let (experiment, unit) = (experiment.to_owned(), unit.to_owned());
        let Assigned { arm, epoch, propensities, .. } = assigned;
        let propensities = propensities.as_ref().map(json_text);
        self.store.change(store::put_unit(experiment, unit, arm, epoch, propensities))
    }

    /// The assignment under an arm by its name, for testing: it serves, and counts nowhere.
    fn overridden(&self, experiment: &str, arm: &str) -> Result<Assignment, ExperimentError> {
        let live = self.one(experiment)?;
        let live = lock(&live);
        if !live.declaration.arms.iter().any(|known| known.name == arm) {
            let (experiment, arm) = (experiment.to_owned(), arm.to_owned());
            return Err(ExperimentError::NoArm { experiment, arm });
        }
        let mut assignment = assignment(&live, arm, "", false);
        assignment.shadows.clear();
        Ok(assignment)
    }

    /// Makes a request's id known, so that feedback finds it. The oldest beyond `max_requests` are
    /// forgotten.
    pub fn served(&self, id: &str, assignment: &Assignment) -> Durable<()> {
        let served = Served {
            experiment: assignment.experiment.clone(),
            arm: assignment.arm.clone(),
            unit: assignment.unit.clone(),
            counted: assignment.counted,
        };
        self.store.change(store::put_request(id.to_owned(), served, self.settings.max_requests))
    }

    /// Counts a request that has ended: the arm acted, so its unit is exposed.
    pub fn ended(&self, assignment: &Assignment, measured: &Measured) {
        self.ended_under(assignment, &assignment.arm, measured);
    }

    /// Counts a request whose arm could not be composed, and keeps the reason. The log gets a
    /// reason when it changes.
    pub fn failed(&self, assignment: &Assignment, arm: &str, reason: &str) {
        if let Ok(live) = self.one(&assignment.experiment) {
            let mut live = lock(&live);
            let experiment = &assignment.experiment;
            if live.failures.get(arm).is_none_or(|known| known != reason) {
                tracing::warn!(experiment, arm, reason, "an arm cannot be composed");
            }
            live.failures.insert(arm.to_owned(), reason.to_owned());
        }
        self.ended_under(assignment, arm, &Measured::fault());
    }

    /// True where an experiment has a metric of this name, and the request counts.
    pub fn measures(&self, assignment: &Assignment, metric: &str) -> bool {
        let live = self.one(&assignment.experiment);
        assignment.counted
            && live.is_ok_and(|live| lock(&live).declaration.metric(metric).is_some())
    }

    /// Adds a measurement of a request after it was counted. A value that the metric cannot have is
    /// dropped.
    pub fn measured_later(&self, assignment: &Assignment, metric: &str, value: f64) {
        let Ok(live) = self.one(&assignment.experiment) else { return };
        let mut live = lock(&live);
        if !live.declaration.metric(metric).is_some_and(|metric| metric.accepts(value)) {
            return;
        }
        let (arm, unit) = (assignment.arm.as_str(), assignment.unit.as_str());
        let observations = [(metric.to_owned(), value)];
        if arm.is_empty() {
            live.count_before(unit, &observations);
        } else if live.totals.observe(arm, unit, metric, value).is_ok() {
            self.earn(&mut live, arm, unit, metric, value);
        }
        let place = UnitTotals::of(&assignment.experiment, arm, unit);
        drop(
            self.store
                .change(move |connection| store::add_totals(connection, &place, &observations)),
        );
    }

    /// Counts a request that ended under an arm, be it in a shadow. Memory has it at once, and the
    /// disk a moment later: nobody waits for it.
    pub fn ended_under(&self, assignment: &Assignment, arm: &str, measured: &Measured) {
        let Ok(live) = self.one(&assignment.experiment) else { return };
        let mut live = lock(&live);
        if !assignment.counted {
            return;
        }
        let observations = measured.observations(&live.declaration);
        let (experiment, unit) = (assignment.experiment.clone(), assignment.unit.clone());
        let place = UnitTotals::of(&experiment, arm, &unit);
        if arm.is_empty() {
            live.count_before(&unit, &observations);
        } else {
            live.count(arm, &unit, measured.outcome, &observations);
            let (name, outcome) = (experiment.clone(), measured.outcome);
            drop(self.store.change(store::count_request(name, arm.to_owned(), outcome)));
            let exposed = [(String::new(), 0.0)];
            let at = place.clone();
            drop(self.store.change(move |connection| store::add_totals(connection, &at, &exposed)));
        }
        for (metric, value) in &observations {
            self.earn(&mut live, arm, &unit, metric, *value);
        }
        // Nobody waits for what was measured: it is on the disk a moment later.
        drop(
            self.store
                .change(move |connection| store::add_totals(connection, &place, &observations)),
        );
    }

    /// Adds a reward where the experiment is a bandit and the metric its reward.
    fn earn(&self, live: &mut Live, arm: &str, unit: &str, metric: &str, value: f64) {
        if let Some(rewards) = live.earn(arm, unit, metric, value) {
            let (name, arm) = (live.declaration.name.clone(), arm.to_owned());
            drop(self.store.change(store::put_rewards(name, arm, json_text(&rewards))));
        }
    }

    /// Takes feedback on a request, once: `true` where it is new. It is on the disk when this
    /// returns, for which it blocks.
    ///
    /// # Errors
    /// If the request is not known, or the value cannot be taken.
    pub fn feedback(&self, id: &str, name: &str, value: f64) -> Result<bool, ExperimentError> {
        let served = self.store.served(id).map_err(|e| ExperimentError::Store(e.to_string()))?;
        let served = served.ok_or_else(|| ExperimentError::UnknownRequest(id.to_owned()))?;
        let live = self.one(&served.experiment)?;
        check_value(&lock(&live).declaration, name, value)?;
        let feedback = Feedback { request: id.to_owned(), name: name.to_owned(), value };
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
                    self.earn(&mut live, &served.arm, &served.unit, name, value);
                }
                Ok(true)
            }
        }
    }
}

/// The assignment of a unit before the experiment's start: nothing of the experiment answers, and
/// values are kept.
fn before(live: &Live, unit: String) -> Assignment {
    Assignment {
        experiment: live.declaration.name.clone(),
        arm: String::new(),
        unit,
        counted: true,
        route: None,
        shadows: Vec::new(),
        mode: live.declaration.mode,
        sample: 0.0,
    }
}

/// The assignment of a unit under an arm, with the other arms as challengers in the shadow modes.
/// Stopped arms challenge no more.
fn assignment(live: &Live, arm: &str, unit: &str, counted: bool) -> Assignment {
    let declaration = &live.declaration;
    let declared = declaration.arms.iter();
    let route = declared.clone().find(|known| known.name == arm).map(|arm| arm.route.clone());
    let is_shadow = |known: &&Arm| {
        declaration.mode.is_shadow()
            && known.name != arm
            && !live.course.stopped_arms.contains_key(&known.name)
    };
    let shadows = declared.filter(is_shadow).map(|arm| (arm.name.clone(), arm.route.clone()));
    Assignment {
        experiment: declaration.name.clone(),
        arm: arm.to_owned(),
        unit: unit.to_owned(),
        counted,
        route,
        shadows: shadows.collect(),
        mode: declaration.mode,
        sample: declaration.sample(),
    }
}

/// Checks that feedback is on a metric that the experiment declares and the server does not
/// measure, with a value that the metric accepts.
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
    let expected = expected.unwrap_or_else(|| format!("a number of at most {MAX_VALUE:e}"));
    Err(ExperimentError::Value { name: name.to_owned(), value, expected })
}
