//! Off-policy evaluation: the reward that another policy would have earned, estimated from the log
//! of the policy that ran.
//!
//! Three estimates, each with its interval for one look: inverse propensity scores (Horvitz and Thompson, 1952), the same
//! self-normalised (Swaminathan and Joachims, 2015), which trades a small bias for far less variance, and doubly robust
//! (Dudík, Langford and Li, 2011), which needs predicted rewards and is right where either these or the propensities are.
//!
//! With w = π(a) / p the target's probability of the logged arm over the logged propensity, rows are taken to be
//! independent: log one row for each unit. Under a bandit that learns, rows depend on earlier ones; the estimates stay
//! unbiased, except the self-normalised one, and the intervals are approximate.

use serde::Serialize;

use crate::distributions::normal_quantile;

/// One logged choice.
#[derive(Clone, Debug, PartialEq)]
pub struct Logged {
    /// The index of the chosen arm.
    pub arm: usize,
    /// The probability with which it was chosen.
    pub propensity: f64,
    /// The reward.
    pub reward: f64,
    /// The reward of every arm as predicted without this row; empty where nothing predicts.
    pub predicted: Vec<f64>,
}

/// The policy that is asked about.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// Always this arm.
    Arm(usize),
    /// Each arm with its probability.
    Distribution(Vec<f64>),
}

/// The estimated reward of the target per row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Earning {
    /// The estimated mean reward.
    pub value: f64,
    /// The lower end of its interval.
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// The number of the target's own rows that the log is worth, (Σ w)² / Σ w² (Kish, 1965). Far
    /// below the number of rows, the estimate leans on few of them. 0 where all weights are.
    pub effective_rows: f64,
}

/// A reason for which nothing can be estimated.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// Fewer than two rows have no variance.
    #[error("{0} rows are logged; expected at least 2")]
    TooFew(usize),
    /// A propensity that is no probability, or zero.
    #[error("the propensity of row {row} is {propensity}; expected above 0 and at most 1")]
    Propensity {
        /// The row.
        row: usize,
        /// The logged propensity.
        propensity: f64,
    },
    /// The target is no distribution.
    #[error("the target's probabilities sum to {0}; expected 1 and none below 0")]
    Target(f64),
    /// The doubly robust estimate lacks predictions.
    #[error("row {row} predicts {found} arms; expected every arm of the target and of the log")]
    Predictions {
        /// The row.
        row: usize,
        /// The number of arms that it predicts.
        found: usize,
    },
    /// The target never chooses what was logged.
    #[error("no logged row has an arm of the target")]
    Apart,
}

impl Target {
    /// π(arm): the target's probability of an arm; 0 beyond the end of a distribution.
    fn probability(&self, arm: usize) -> f64 {
        match self {
            Self::Arm(target) => f64::from(u8::from(*target == arm)),
            Self::Distribution(shares) => shares.get(arm).copied().unwrap_or_default(),
        }
    }

    /// The number of arms that a prediction has to cover.
    fn arms(&self) -> usize {
        match self {
            Self::Arm(target) => target + 1,
            Self::Distribution(shares) => shares.len(),
        }
    }
}

/// The mean of w r. Unbiased where propensities are right.
///
/// # Errors
/// If rows or target are not usable.
pub fn inverse_propensity(rows: &[Logged], target: &Target, level: f64) -> Result<Earning, Error> {
    let weights = weights(rows, target)?;
    let values: Vec<f64> =
        weights.iter().zip(rows).map(|(weight, row)| weight * row.reward).collect();
    Ok(earning(&values, &weights, level))
}

/// Σ w r / Σ w, with the delta method's variance. Within the range of the rewards; biased by a term of order 1/n.
///
/// # Errors
/// If rows or target are not usable, or no row has an arm of the target.
pub fn self_normalised(rows: &[Logged], target: &Target, level: f64) -> Result<Earning, Error> {
    let weights = weights(rows, target)?;
    let sum: f64 = weights.iter().sum();
    if sum <= 0.0 {
        return Err(Error::Apart);
    }
    let pairs = || weights.iter().zip(rows);
    let value = pairs().map(|(weight, row)| weight * row.reward).sum::<f64>() / sum;
    let mean = sum / rows.len() as f64;
    let influence = |(weight, row): (&f64, &Logged)| value + weight * (row.reward - value) / mean;
    Ok(earning(&pairs().map(influence).collect::<Vec<_>>(), &weights, level))
}

/// The mean of Σₐ π(a) q(a) + w (r − q(arm)), q the predicted rewards.
///
/// # Errors
/// If rows or target are not usable, or a row lacks predictions.
pub fn doubly_robust(rows: &[Logged], target: &Target, level: f64) -> Result<Earning, Error> {
    let weights = weights(rows, target)?;
    let mut values = Vec::with_capacity(rows.len());
    for (at, (weight, row)) in weights.iter().zip(rows).enumerate() {
        let found = row.predicted.len();
        if found <= row.arm || found < target.arms() {
            return Err(Error::Predictions { row: at, found });
        }
        let terms = row.predicted.iter().enumerate();
        let direct: f64 = terms.map(|(arm, predicted)| target.probability(arm) * predicted).sum();
        values.push(direct + weight * (row.reward - row.predicted[row.arm]));
    }
    Ok(earning(&values, &weights, level))
}

/// The w of every row. π(arm) / propensity, in the order of the rows. Checks rows and target on the
/// way.
fn weights(rows: &[Logged], target: &Target) -> Result<Vec<f64>, Error> {
    if rows.len() < 2 {
        return Err(Error::TooFew(rows.len()));
    }
    if let Target::Distribution(shares) = target {
        let sum: f64 = shares.iter().sum();
        if (sum - 1.0).abs() > 1e-6 || shares.iter().any(|share| *share < 0.0) {
            return Err(Error::Target(sum));
        }
    }
    let weight = |(row, logged): (usize, &Logged)| {
        let propensity = logged.propensity;
        let is_probability = propensity > 0.0 && propensity <= 1.0;
        let weight = target.probability(logged.arm) / propensity;
        if is_probability { Ok(weight) } else { Err(Error::Propensity { row, propensity }) }
    };
    rows.iter().enumerate().map(weight).collect()
}

/// The mean of the values with its normal interval. Half the width is z_(1 − level/2) · √(Σ (v −
/// v̄)² / (n (n − 1))).
fn earning(values: &[f64], weights: &[f64], level: f64) -> Earning {
    let n = values.len() as f64;
    let value = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|one| (one - value).powi(2)).sum();
    let radius = normal_quantile(1.0 - level / 2.0) * (squares / (n * (n - 1.0))).sqrt();
    let sum: f64 = weights.iter().sum();
    let of_squares: f64 = weights.iter().map(|weight| weight * weight).sum();
    let effective_rows = if of_squares > 0.0 { sum * sum / of_squares } else { 0.0 };
    Earning { value, low: value - radius, high: value + radius, effective_rows }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(arm: usize, propensity: f64, reward: f64, predicted: &[f64]) -> Logged {
        Logged { arm, propensity, reward, predicted: predicted.to_vec() }
    }

    #[test]
    fn estimates_agree_with_hand_computed_ones() {
        let rows = [
            row(0, 0.5, 1.0, &[0.5, 0.0]),
            row(1, 0.25, 2.0, &[0.5, 1.5]),
            row(1, 0.5, 0.0, &[0.5, 1.5]),
        ];
        let target = Target::Arm(1);
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found}");
        // Weights are 0, 4 and 2.
        near(inverse_propensity(&rows, &target, 0.05).unwrap().value, 8.0 / 3.0);
        near(self_normalised(&rows, &target, 0.05).unwrap().value, 8.0 / 6.0);
        // 0; 1.5 + 4 · 0.5; 1.5 − 2 · 1.5.
        near(doubly_robust(&rows, &target, 0.05).unwrap().value, 2.0 / 3.0);
        let found = inverse_propensity(&rows, &target, 0.05).unwrap();
        near(found.effective_rows, 36.0 / 20.0);
        near(found.high - found.value, found.value - found.low);
        let mixed = Target::Distribution(vec![0.5, 0.5]);
        near(inverse_propensity(&rows, &mixed, 0.05).unwrap().value, (1.0 + 4.0) / 3.0);
    }

    #[test]
    fn what_cannot_be_estimated_says_why() {
        let good = row(0, 0.5, 1.0, &[]);
        let check = |rows: &[Logged], target: Target, words: &str| {
            let error = doubly_robust(rows, &target, 0.05).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        check(std::slice::from_ref(&good), Target::Arm(0), "1 rows");
        check(&[good.clone(), row(0, 0.0, 1.0, &[])], Target::Arm(0), "propensity of row 1 is 0");
        check(&[good.clone(), good.clone()], Target::Distribution(vec![0.5, 0.6]), "sum to 1.1");
        check(&[good.clone(), good.clone()], Target::Arm(0), "row 0 predicts 0 arms");
        let apart = self_normalised(&[good.clone(), good], &Target::Arm(1), 0.05);
        assert_eq!(apart, Err(Error::Apart));
    }
}
