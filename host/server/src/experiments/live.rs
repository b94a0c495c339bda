//! One experiment while it is known: who has which arm, what came of it, and how it stands.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use polyskill_experiment::analysis::history::Histories;
use polyskill_experiment::analysis::report::Situation;
use polyskill_experiment::assignment::{Place, arm, place, position};
use polyskill_experiment::bandit::{Rewards, Rule};
use polyskill_experiment::declaration::{Arm, Mode};
use polyskill_experiment::off_policy::{self, Logged, Target};
use polyskill_experiment::totals::{Outcome, Total};
use polyskill_experiment::{Declaration, Report, Totals, report};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::store::Kept;

/// How an experiment has gone so far; kept beside its declaration.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub(super) struct Course {
    /// When units began to be assigned, in unix seconds.
    pub(super) started: Option<u64>,
    pub(super) stopped: Option<u64>,
    pub(super) stop_reason: Option<String>,
    /// Arms that take no units any more, and why.
    pub(super) stopped_arms: BTreeMap<String, String>,
    /// The arms' weights, from the first to those that hold now.
    pub(super) epochs: Vec<Vec<f64>>,
    /// Earlier intervals.
    pub(super) histories: Histories,
}

/// The arm of a unit.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Assigned {
    pub(super) arm: String,
    pub(super) epoch: u32,
    /// Of a bandit: the probability of each arm when it was chosen.
    pub(super) propensities: Option<Vec<f64>>,
}

/// What a unit gets.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Dealt {
    /// Nothing of this experiment.
    Not,
    /// The experiment has not started; what the request gives is a value from before it.
    Before,
    /// An arm. Where it is new, it must be written before anything is served.
    Arm { assigned: Assigned, is_new: bool, counted: bool },
}

#[derive(Debug)]
pub(super) struct Live {
    pub(super) declaration: Declaration,
    pub(super) course: Course,
    units: HashMap<String, Assigned>,
    pub(super) totals: Totals,
    rule: Option<Rule>,
    rewards: Vec<Rewards>,
    /// Units whose arm is not on the disk yet.
    pending: BTreeSet<String>,
    /// Why arms could not be composed, the last reason of each.
    pub(super) failures: BTreeMap<String, String>,
    /// Values from before the start, by unit and metric.
    before: HashMap<String, BTreeMap<String, (u64, f64)>>,
}

impl Live {
    pub(super) fn new(declaration: Declaration) -> Self {
        let epochs = vec![declaration.weights()];
        let course = Course { epochs, ..Course::default() };
        let rule = Rule::new(&declaration);
        let rewards = vec![Rewards::default(); declaration.arms.len()];
        let (units, totals, pending) = Default::default();
        let (failures, before) = Default::default();
        Self { declaration, course, units, totals, rule, rewards, pending, failures, before }
    }

    /// As it was kept.
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

    fn arm_number(&self, name: &str) -> Option<usize> {
        self.declaration.arms.iter().position(|arm| arm.name == name)
    }

    pub(super) fn num_units(&self) -> usize {
        self.units.len()
    }

    /// Whether requests are assigned now.
    pub(super) fn is_running(&self) -> bool {
        self.course.started.is_some() && self.course.stopped.is_none()
    }

    /// Whether requests under this model name are its.
    pub(super) fn takes(&self, model: &str) -> bool {
        let models = &self.declaration.models;
        self.course.stopped.is_none()
            && (models.is_empty() || models.iter().any(|known| known == model))
    }

    /// The arm of a unit: the one that it had, else by hash or, of a bandit, by what arms have earned. `most` units are kept;
    /// beyond them, new units are none of the experiment's.
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

    fn epoch(&self) -> u32 {
        self.course.epochs.len().saturating_sub(1) as u32
    }

    /// Weights that hold now: none for arms that were stopped.
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

    /// Remembers a new unit.
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

    /// Hears whether a unit's arm is on the disk; one that could not be written is forgotten.
    pub(super) fn written(&mut self, unit: &str, is_written: bool) {
        if self.pending.remove(unit) && !is_written {
            self.units.remove(unit);
        }
    }

    /// Whether values from before the start can be kept for a unit.
    pub(super) fn has_room_before(&self, unit: &str, most: usize) -> bool {
        self.before.len() < most || self.before.contains_key(unit)
    }

    /// Values from before the start, given to the units' arms.
    fn bring_before(&mut self) {
        let known = std::mem::take(&mut self.units);
        known.into_iter().for_each(|(unit, assigned)| self.assign(&unit, assigned));
        self.pending.clear();
    }

    /// Counts a request of an arm with what was measured of it.
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

    /// Adds values from before the start.
    pub(super) fn count_before(&mut self, unit: &str, observations: &[(String, f64)]) {
        let before = self.before.entry(unit.to_owned()).or_default();
        for (metric, value) in observations {
            let (count, sum) = before.entry(metric.clone()).or_default();
            *count += 1;
            *sum += value;
        }
    }

    /// Adds what a bandit's arm earned; what is to be kept of it.
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

    /// How it stands.
    pub(super) fn report(&self, now: u64) -> Report {
        let situation = Situation {
            now,
            started: self.course.started,
            stopped: self.course.stopped,
            stop_reason: self.course.stop_reason.clone(),
        };
        let mut declared = self.declaration.clone();
        // Where weights were changed, units are compared with the mean of the shares under which they were assigned.
        let shares = self.mean_shares();
        declared.arms.iter_mut().zip(shares).for_each(|(arm, share)| arm.weight = share);
        report(&declared, &self.totals, &situation, &self.course.histories)
    }

    fn mean_shares(&self) -> Vec<f64> {
        let mut counts = vec![0_u64; self.course.epochs.len()];
        for assigned in self.units.values() {
            if let Some(count) = counts.get_mut(assigned.epoch as usize) {
                *count += 1;
            }
        }
        let shares = |weights: &Vec<f64>| {
            let sum: f64 = weights.iter().sum();
            weights.iter().map(|weight| weight / sum).collect::<Vec<f64>>()
        };
        let all: u64 = counts.iter().sum();
        if all == 0 {
            return shares(&self.course.epochs.last().cloned().unwrap_or_default());
        }
        let mut mean = vec![0.0; self.declaration.arms.len()];
        for (weights, count) in self.course.epochs.iter().zip(counts) {
            let part = count as f64 / all as f64;
            mean.iter_mut().zip(shares(weights)).for_each(|(mean, share)| *mean += part * share);
        }
        mean
    }

    /// Of a bandit: what always taking each arm would have earned, estimated from units as they were dealt.
    pub(super) fn off_policy(&self) -> Option<Json> {
        let reward = &self.declaration.bandit.as_ref()?.reward;
        let logged = self.logged(reward);
        let level = self.declaration.level;
        let of = |(number, arm): (usize, &Arm)| {
            let target = Target::Arm(number);
            let estimate = |made: Result<off_policy::Earning, off_policy::Error>| match made {
                Ok(earning) => json!({
                    "value": earning.value, "interval": [earning.low, earning.high],
                    "effective_units": earning.effective_rows,
                }),
                Err(error) => json!({"error": error.to_string()}),
            };
            json!({
                "arm": arm.name, "units": logged.iter().filter(|row| row.arm == number).count(),
                "inverse_propensity": estimate(off_policy::inverse_propensity(&logged, &target, level)),
                "self_normalised": estimate(off_policy::self_normalised(&logged, &target, level)),
                "doubly_robust": estimate(off_policy::doubly_robust(&logged, &target, level)),
            })
        };
        Some(self.declaration.arms.iter().enumerate().map(of).collect())
    }

    /// A row for each unit that a bandit dealt and that earned something.
    fn logged(&self, reward: &str) -> Vec<Logged> {
        let arms = &self.declaration.arms;
        let mean =
            |(unit, total): (&str, Total)| (unit.to_owned(), total.sum / total.count.max(1) as f64);
        let earned: Vec<Vec<(String, f64)>> = arms
            .iter()
            .map(|arm| self.totals.units(&arm.name, reward).map(mean).collect())
            .collect();
        let sums: Vec<f64> =
            earned.iter().map(|units| units.iter().map(|unit| unit.1).sum()).collect();
        let mut logged = Vec::new();
        for (arm, units) in earned.iter().enumerate() {
            for (unit, reward) in units {
                let chances = self.units.get(unit).and_then(|at| at.propensities.as_ref());
                let Some(chances) = chances else { continue };
                // The mean of each arm's other units predicts.
                let predicted = (0..arms.len()).map(|other| {
                    let own = other == arm;
                    let count = earned[other].len() - usize::from(own);
                    (sums[other] - if own { *reward } else { 0.0 }) / count.max(1) as f64
                });
                logged.push(Logged {
                    arm,
                    propensity: chances[arm],
                    reward: *reward,
                    predicted: predicted.collect(),
                });
            }
        }
        logged
    }
}

#[cfg(test)]
mod tests {
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
