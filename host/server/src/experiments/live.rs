//! One experiment while it is known: the arms of units, their outcomes, and its state.

mod reports;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use polyskill_experiment::analysis::history::Histories;
use polyskill_experiment::assignment::{Place, arm, place, position};
use polyskill_experiment::bandit::{Rewards, Rule};
use polyskill_experiment::declaration::Mode;
use polyskill_experiment::totals::{Outcome, Total};
use polyskill_experiment::{Declaration, Totals};
use serde::{Deserialize, Serialize};

use super::records::Kept;

/// The course of an experiment so far. It is kept with the declaration and written whenever it
/// changes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub(super) struct Course {
    /// The time at which units began to be assigned, in seconds since 1970.
    pub(super) started: Option<u64>,
    /// The time of the stop, in seconds since 1970; `None` while it is on.
    pub(super) stopped: Option<u64>,
    /// The reason of the stop, of a guard, an operator or the declaration.
    pub(super) stop_reason: Option<String>,
    /// Arms that take no units any more, with the reasons.
    pub(super) stopped_arms: BTreeMap<String, String>,
    /// The arms' weights, from the first to those that hold now, each list in the order of the
    /// declaration. A unit has the number of the weights under which it was assigned.
    pub(super) epochs: Vec<Vec<f64>>,
    /// Confidence intervals at earlier looks.
    pub(super) histories: Histories,
}

/// The arm that a unit was dealt. It stays the unit's, whatever weights become.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Assigned {
    /// The arm's name.
    pub(super) arm: String,
    /// The index in [`Course::epochs`] of the weights that held then.
    pub(super) epoch: u32,
    /// Of a bandit: the probability of each arm when it was chosen, in the order of the
    /// declaration.
    pub(super) propensities: Option<Vec<f64>>,
}

/// The part of a unit in an experiment.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Dealt {
    /// Nothing of this experiment.
    Not,
    /// The experiment has not started; the request's measurements are values from before it.
    Before,
    /// An arm. Where it is new, it must be written before anything is served.
    Arm { assigned: Assigned, is_new: bool, counted: bool },
}

/// One experiment in memory. The disk has the same, a moment later.
#[derive(Debug)]
pub(super) struct Live {
    /// The declaration, with the weights that were declared last.
    pub(super) declaration: Declaration,
    /// Start, stop and weights so far.
    pub(super) course: Course,
    /// The arm of each unit, by the unit's hash.
    units: HashMap<String, Assigned>,
    /// Sums of metrics by arm and unit, and counters by arm.
    pub(super) totals: Totals,
    /// The rule of a bandit; `None` in other modes.
    rule: Option<Rule>,
    /// The rewards of each arm of a bandit, in the order of the declaration.
    rewards: Vec<Rewards>,
    /// Units whose arm is not on the disk yet.
    pending: BTreeSet<String>,
    /// The last reason for which each arm could not be composed. It is not kept on the disk.
    pub(super) failures: BTreeMap<String, String>,
    /// Values from before the start, by unit and metric: count and sum.
    before: HashMap<String, BTreeMap<String, (u64, f64)>>,
}

impl Live {
    /// An experiment that has not started.
    pub(super) fn new(declaration: Declaration) -> Self {
        let epochs = vec![declaration.weights()];
        let course = Course { epochs, ..Course::default() };
        let rule = Rule::new(&declaration);
        let rewards = vec![Rewards::default(); declaration.arms.len()];
        let (units, totals, pending) = Default::default();
        let (failures, before) = Default::default();
        Self { declaration, course, units, totals, rule, rewards, pending, failures, before }
    }

    /// An experiment as it was kept. Rewards of an arm that is not declared are dropped.
    ///
    /// The error is that of the record that cannot be read.
    pub(super) fn restored(kept: Kept) -> Result<Self, String> {
        let say = |error: serde_json::Error| error.to_string();
        let declaration: Declaration = serde_json::from_str(&kept.declaration).map_err(say)?;
        let mut live = Self::new(declaration);
        live.course = serde_json::from_str(&kept.course).map_err(say)?;
        for (unit, arm, epoch, propensities) in kept.units {
            let propensities = propensities.map(|text| serde_json::from_str(&text).map_err(say));
            let propensities = propensities.transpose()?;
            live.units.insert(unit, Assigned { arm, epoch, propensities });
        }
        for (arm, unit, metric, count, sum) in kept.totals {
            match (arm.is_empty(), metric.is_empty()) {
                (true, _) => {
                    live.before.entry(unit).or_default().insert(metric, (count, sum));
                }
                (false, true) => {
                    live.totals.arms.entry(arm).or_default().units.entry(unit).or_default();
                }
                (false, false) => {
                    let units = &mut live.totals.arms.entry(arm).or_default().units;
                    let total = Total { count, sum, before: None };
                    units.entry(unit).or_default().insert(metric, total);
                }
            }
        }
        for (arm, requests, fallbacks, faults) in kept.arms {
            let totals = live.totals.arms.entry(arm).or_default();
            (totals.requests, totals.fallbacks, totals.faults) = (requests, fallbacks, faults);
        }
        for (arm, rewards) in kept.rewards {
            if let Some(at) = live.arm_number(&arm) {
                live.rewards[at] = rewards;
            }
        }
        live.bring_before();
        Ok(live)
    }

    /// The place of an arm in the declaration.
    fn arm_number(&self, name: &str) -> Option<usize> {
        self.declaration.arms.iter().position(|arm| arm.name == name)
    }

    /// Units that have an arm.
    pub(super) fn num_units(&self) -> usize {
        self.units.len()
    }

    /// True between start and stop: units are assigned.
    pub(super) fn is_running(&self) -> bool {
        self.course.started.is_some() && self.course.stopped.is_none()
    }

    /// True where requests under this model name are the experiment's: it has not stopped, and its
    /// declaration lists the name or none.
    pub(super) fn takes(&self, model: &str) -> bool {
        let models = &self.declaration.models;
        self.course.stopped.is_none()
            && (models.is_empty() || models.iter().any(|known| known == model))
    }

    /// The part of a unit: the arm that it had, else one by hash or, of a bandit, by what arms have
    /// earned. Nothing is remembered: [`Live::assign`] does that.
    ///
    /// `most` units are kept; beyond them, new units are none of the experiment's.
    pub(super) fn deal(&self, unit: &str, most: usize) -> Dealt {
        if self.course.stopped.is_some() {
            return Dealt::Not;
        }
        let here = place(&self.declaration, unit);
        if !self.is_running() {
            return if matches!(here, Place::Arm(_)) { Dealt::Before } else { Dealt::Not };
        }
        if let Some(assigned) = self.units.get(unit) {
            // A unit whose arm was stopped is served by the control, and says nothing of either.
            let stopped = self.course.stopped_arms.contains_key(&assigned.arm);
            let arm = if stopped { self.declaration.control.clone() } else { assigned.arm.clone() };
            let assigned = Assigned { arm, ..assigned.clone() };
            let is_new = self.pending.contains(unit);
            return Dealt::Arm { assigned, is_new, counted: !stopped };
        }
        if !matches!(here, Place::Arm(_)) || self.units.len() >= most {
            return Dealt::Not;
        }
        let (arm, propensities) = self.choose(unit);
        let assigned = Assigned { arm, epoch: self.epoch(), propensities };
        Dealt::Arm { assigned, is_new: true, counted: true }
    }

    /// The index of the weights that hold now.
    fn epoch(&self) -> u32 {
        self.course.epochs.len().saturating_sub(1) as u32
    }

    /// Weights that hold now, in the order of the declaration: zero for arms that were stopped.
    pub(super) fn weights(&self) -> Vec<f64> {
        let weights = self.course.epochs.last().cloned();
        let mut weights = weights.unwrap_or_else(|| self.declaration.weights());
        for (arm, weight) in self.declaration.arms.iter().zip(&mut weights) {
            if self.course.stopped_arms.contains_key(&arm.name) {
                *weight = 0.0;
            }
        }
        weights
    }

    /// The arm of a new unit, with the propensities of a bandit. In the shadow modes it is the
    /// control. The same state and unit always give the same arm.
    fn choose(&self, unit: &str) -> (String, Option<Vec<f64>>) {
        let name = |at: usize| self.declaration.arms[at].name.clone();
        match (self.declaration.mode, &self.rule) {
            (Mode::DecisionShadow | Mode::FullShadow, _) => {
                (self.declaration.control.clone(), None)
            }
            (Mode::Bandit, Some(rule)) => {
                // The seed is the unit's, so that a choice can be made again from the log.
                let seed = position(&format!("bandit:{}", self.declaration.seed()), unit);
                let choice = rule.choose(&self.rewards, seed.to_bits());
                let arm = name(choice.arm);
                match self.course.stopped_arms.contains_key(&arm) {
                    true => (self.declaration.control.clone(), None),
                    false => (arm, Some(choice.propensities)),
                }
            }
            _ => (name(arm(&self.weights(), position(self.declaration.seed(), unit))), None),
        }
    }

    /// Remembers a new unit as not on the disk yet, and gives its values from before the start to
    /// its arm. A unit that is known keeps its arm.
    pub(super) fn assign(&mut self, unit: &str, assigned: Assigned) {
        let arm = assigned.arm.clone();
        if self.units.contains_key(unit) {
            return;
        }
        self.units.insert(unit.to_owned(), assigned);
        self.pending.insert(unit.to_owned());
        for (metric, (count, sum)) in self.before.remove(unit).into_iter().flatten() {
            // Finite as every observation, and its count is at least one.
            let _ = self.totals.before(&arm, unit, &metric, sum / count.max(1) as f64);
        }
    }

    /// Takes the outcome of writing a unit's arm; a unit that could not be written is forgotten, so
    /// that its next request is dealt again.
    pub(super) fn written(&mut self, unit: &str, is_written: bool) {
        if self.pending.remove(unit) && !is_written {
            self.units.remove(unit);
        }
    }

    /// True where values from before the start can be kept for a unit: it has some, or fewer than
    /// `most` units have.
    pub(super) fn has_room_before(&self, unit: &str, most: usize) -> bool {
        self.before.len() < most || self.before.contains_key(unit)
    }

    /// Gives the values from before the start to the arms of the units that were restored, which
    /// are on the disk.
    fn bring_before(&mut self) {
        let known = std::mem::take(&mut self.units);
        known.into_iter().for_each(|(unit, assigned)| self.assign(&unit, assigned));
        self.pending.clear();
    }

    /// Counts a request of an arm with its measurements, in memory alone.
    pub(super) fn count(
        &mut self,
        arm: &str,
        unit: &str,
        outcome: Outcome,
        observations: &[(String, f64)],
    ) {
        self.totals.request(arm, unit, outcome);
        for (metric, value) in observations {
            let _ = self.totals.observe(arm, unit, metric, *value);
        }
    }

    /// Adds values from before the start, in memory alone.
    pub(super) fn count_before(&mut self, unit: &str, observations: &[(String, f64)]) {
        let before = self.before.entry(unit.to_owned()).or_default();
        for (metric, value) in observations {
            let (count, sum) = before.entry(metric.clone()).or_default();
            *count += 1;
            *sum += value;
        }
    }

    /// Adds a reward to a bandit's arm; the arm's rewards, to be kept, where the metric is the
    /// reward. Bounded rewards are turned into trials by a position that depends on the unit and
    /// the count.
    pub(super) fn earn(
        &mut self,
        arm: &str,
        unit: &str,
        metric: &str,
        value: f64,
    ) -> Option<Rewards> {
        let is_reward =
            self.declaration.bandit.as_ref().is_some_and(|bandit| bandit.reward == metric);
        let (rule, at) = (self.rule.filter(|_| is_reward)?, self.arm_number(arm)?);
        let count = self.rewards[at].count;
        rule.earn(&mut self.rewards[at], value, position(&format!("earn:{count}"), unit));
        Some(self.rewards[at])
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    fn live(more: &Json) -> Live {
        let mut declared = json!({
            "name": "trial", "unit": "user", "control": "a", "minimum_units": 2,
            "arms": [{"name": "a", "weight": 1.0}, {"name": "b", "weight": 1.0}],
            "metrics": [{"name": "correct", "kind": "mean", "wanted": "increase", "covariate": true}],
        });
        declared.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Live::new(serde_json::from_value(declared).unwrap())
    }

    fn started(more: &Json) -> Live {
        let mut live = live(more);
        live.course.started = Some(1);
        live
    }

    /// The arm of a unit, remembered.
    fn deal(live: &mut Live, unit: &str) -> Option<(String, bool)> {
        match live.deal(unit, 1_000) {
            Dealt::Arm { assigned, is_new, counted } => {
                let arm = assigned.arm.clone();
                if is_new {
                    live.assign(unit, assigned);
                }
                Some((arm, counted))
            }
            Dealt::Not | Dealt::Before => None,
        }
    }

    fn arms(live: &mut Live, units: std::ops::Range<usize>) -> Vec<(String, bool)> {
        units.map(|unit| deal(live, &format!("u{unit}")).unwrap()).collect()
    }

    #[test]
    fn values_from_before_the_start_narrow_intervals() {
        let mut live = live(&json!({"start": 9_000_000_000_u64}));
        assert_eq!(live.deal("u0", 10), Dealt::Before);
        for unit in 0..60 {
            live.count_before(&format!("u{unit}"), &[("correct".to_owned(), f64::from(unit))]);
        }
        live.course.started = Some(1);
        for unit in 0..60 {
            let name = format!("u{unit}");
            let (arm, _) = deal(&mut live, &name).unwrap();
            let value = f64::from(unit) + f64::from(unit % 3);
            live.count(&arm, &name, Outcome::default(), &[("correct".to_owned(), value)]);
        }
        let report = live.report(2);
        let comparison = &report.metrics[0].comparisons[0];
        assert!(comparison.cuped);
        let [low, high] = comparison.fixed_horizon;
        // Between units values differ by 17, about what they were before by less than one.
        assert!(high - low < 1.5, "{low} {high}");
    }

    #[test]
    fn stopped_arms_give_their_units_to_the_control_and_count_no_more() {
        let mut live = started(&json!({}));
        let before = arms(&mut live, 0..40);
        live.course.stopped_arms.insert("b".to_owned(), "harm".to_owned());
        live.course.epochs.push(live.weights());
        let after = arms(&mut live, 0..40);
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(after, &("a".to_owned(), before.0 == "a"));
        }
        assert!(arms(&mut live, 40..80).iter().all(|dealt| *dealt == ("a".to_owned(), true)));
        assert_eq!(live.weights(), [1.0, 0.0]);
        live.course.stopped = Some(2);
        assert_eq!(live.deal("u0", 1_000), Dealt::Not);
    }

    #[test]
    fn an_arm_that_is_not_on_the_disk_is_waited_for_or_forgotten() {
        let mut live = started(&json!({}));
        let new = |live: &Live| match live.deal("u", 10) {
            Dealt::Arm { is_new, .. } => is_new,
            other => panic!("{other:?}"),
        };
        assert!(new(&live));
        deal(&mut live, "u");
        assert!(new(&live), "a second request waits, too");
        live.written("u", false);
        assert_eq!(live.num_units(), 0);
        deal(&mut live, "u");
        live.written("u", true);
        live.written("u", false);
        assert!(!new(&live) && live.num_units() == 1);
    }

    #[test]
    fn other_weights_leave_a_stopped_arm_without_any() {
        let mut live = started(&json!({}));
        live.course.stopped_arms.insert("b".to_owned(), "harm".to_owned());
        live.course.epochs.push(vec![3.0, 5.0]);
        assert_eq!(live.weights(), [3.0, 0.0]);
    }

    #[test]
    fn more_units_than_are_kept_take_no_part() {
        let mut live = started(&json!({}));
        arms(&mut live, 0..5);
        assert_eq!(live.deal("u5", 5), Dealt::Not);
        assert!(matches!(live.deal("u4", 5), Dealt::Arm { .. }));
        let held = started(&json!({"holdout": 1.0}));
        assert_eq!(held.deal("u0", 5), Dealt::Not);
    }

    #[test]
    fn counts_are_compared_with_the_shares_of_their_day() {
        let mut live = started(&json!({}));
        for unit in 0..20_000 {
            if unit == 10_000 {
                live.course.epochs.push(vec![9.0, 1.0]);
            }
            let name = format!("u{unit}");
            let (arm, _) = deal_any(&mut live, &name);
            live.count(&arm, &name, Outcome::default(), &[]);
        }
        let report = live.report(2);
        assert!((report.arms[0].weight - 0.7).abs() < 0.01, "{:?}", report.arms);
        assert!(!report.sample_ratio.mismatch, "{:?}", report.sample_ratio);
    }

    fn deal_any(live: &mut Live, unit: &str) -> (String, bool) {
        let Dealt::Arm { assigned, counted, .. } = live.deal(unit, usize::MAX) else {
            panic!("{unit} has no arm");
        };
        let arm = assigned.arm.clone();
        live.assign(unit, assigned);
        (arm, counted)
    }
}
