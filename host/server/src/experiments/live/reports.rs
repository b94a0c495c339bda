//! Reports of an experiment: comparisons of its arms, and what each arm of a bandit would earn.

use polyskill_experiment::analysis::report::Situation;
use polyskill_experiment::declaration::Arm;
use polyskill_experiment::off_policy::{self, Logged, Target};
use polyskill_experiment::totals::Total;
use polyskill_experiment::{Report, report};
use serde_json::{Value as Json, json};

use super::Live;

impl Live {
    /// The report as of `now`, in seconds since 1970.
    pub(in super::super) fn report(&self, now: u64) -> Report {
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

    /// The arms' shares of units that weights gave on average, each epoch by its number of units.
    /// Without units it is the shares of now. They sum to 1.
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

    /// Of a bandit: the earnings of always taking each arm, estimated in three ways from units as
    /// they were dealt. `None` in other modes.
    pub(in super::super) fn off_policy(&self) -> Option<Json> {
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

    /// A row for each unit that a bandit dealt and that earned something: its mean reward, the
    /// probability of its arm, and a prediction for each arm. The cost is units × arms.
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
