//! Arms chosen by what they earned: epsilon-greedy and Thompson sampling, with a floor under every arm.
//!
//! A choice comes with the probability of every arm. For Thompson sampling (Thompson, 1933) these are the shares of 1,000
//! draws in which each arm was best; the arm is then drawn from these very shares mixed with the floor, so what is logged as
//! a propensity is exactly what was sampled from, and [`crate::off_policy`] needs no approximation.
//!
//! Bounded rewards have Beta posteriors by the Bernoulli trial of Agrawal and Goyal, "Analysis of Thompson Sampling for the
//! Multi-armed Bandit Problem" (2012): a reward r in [0, 1] counts as a success with probability r. Other rewards have normal
//! posteriors around their means, with the variance pooled over the arms.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::assignment;
use crate::declaration::{Declaration, Policy, Wanted};

/// Draws for the propensities of Thompson sampling: shares are known to about a percent, which only shapes the policy.
const DRAWS: u32 = 1_000;

/// The rule by which a bandit chooses arms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// The bandit's policy.
    pub policy: Policy,
    /// The least probability of every arm; at most 1 over their number.
    pub floor: f64,
    /// The better direction of the reward.
    pub wanted: Wanted,
    /// The least and the greatest reward, where they are known.
    pub bounded: Option<[f64; 2]>,
}

/// The rewards of one arm so far, turned so that more is better and, where bounds are known, scaled
/// to [0, 1]. Constant in size: no single reward is kept.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rewards {
    /// The number of rewards.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// The sum of their squared distances from the mean (Welford, 1962).
    pub squares: f64,
    /// The number of successes among the Bernoulli trials of bounded rewards; 0 without bounds.
    pub successes: u64,
}

/// A chosen arm.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The index of the arm.
    pub arm: usize,
    /// The probability with which each arm would have been chosen; they sum to 1.
    pub propensities: Vec<f64>,
}

impl Rule {
    /// The rule of a declared bandit; `None` where there is none or its reward is not declared.
    pub fn new(declaration: &Declaration) -> Option<Self> {
        let bandit = declaration.bandit.as_ref()?;
        let metric = declaration.metric(&bandit.reward)?;
        let (wanted, bounded) = (metric.wanted, metric.bounded);
        Some(Self { policy: bandit.policy, floor: bandit.floor, wanted, bounded })
    }

    /// Adds a reward. `chance`, uniform in [0, 1), decides the Bernoulli trial of a bounded reward; a
    /// [`assignment::position`] of the unit makes it repeatable.
    pub fn earn(&self, rewards: &mut Rewards, reward: f64, chance: f64) {
        let turned = self.wanted.sign() * reward;
        let gain = match self.bounded {
            Some([low, high]) => {
                let share = ((reward - low) / (high - low)).clamp(0.0, 1.0);
                if self.wanted == Wanted::Decrease { 1.0 - share } else { share }
            }
            None => turned,
        };
        rewards.count += 1;
        let away = gain - rewards.mean;
        rewards.mean += away / rewards.count as f64;
        rewards.squares += away * (gain - rewards.mean);
        rewards.successes += u64::from(self.bounded.is_some() && chance < gain);
    }

    /// Chooses an arm; the same for the same rewards and seed, and the first without arms, which
    /// validation refuses. `propensities` of the choice are the floor for every arm plus the
    /// policy's shares of what is left of 1. Thompson sampling costs 1,000 draws per arm.
    pub fn choose(&self, rewards: &[Rewards], seed: u64) -> Choice {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let shares = match self.policy {
            Policy::EpsilonGreedy { epsilon } => greedy(rewards, epsilon),
            Policy::Thompson if self.bounded.is_some() => best_shares(rewards.len(), || {
                rewards.iter().map(|rewards| beta(&mut random, rewards)).collect()
            }),
            Policy::Thompson => {
                let variance = pooled_variance(rewards);
                best_shares(rewards.len(), || {
                    rewards.iter().map(|rewards| normal(&mut random, rewards, variance)).collect()
                })
            }
        };
        let left = 1.0 - self.floor * rewards.len() as f64;
        let propensities: Vec<f64> = shares.iter().map(|share| self.floor + left * share).collect();
        let arm = assignment::arm(&propensities, random.random());
        Choice { arm, propensities }
    }
}

/// Epsilon shared by all arms, the rest by the best; arms without rewards are taken for the best,
/// so that each is tried. With ε for all and K arms, each has ε / K, and the best share 1 − ε.
fn greedy(rewards: &[Rewards], epsilon: f64) -> Vec<f64> {
    let hopes = rewards.iter().map(|rewards| match rewards.count {
        0 => f64::INFINITY,
        _ => rewards.mean,
    });
    let best = are_best(&hopes.collect::<Vec<_>>());
    let among = best.iter().filter(|is_best| **is_best).count() as f64;
    let share = |is_best: &bool| {
        epsilon / rewards.len() as f64 + f64::from(u8::from(*is_best)) * (1.0 - epsilon) / among
    };
    best.iter().map(share).collect()
}

/// The share of draws in which each arm was best; arms that tie share a draw. `draw` gives one
/// value per arm.
fn best_shares(arms: usize, mut draw: impl FnMut() -> Vec<f64>) -> Vec<f64> {
    let mut shares = vec![0.0; arms];
    for _ in 0..DRAWS {
        let best = are_best(&draw());
        let among = best.iter().filter(|is_best| **is_best).count() as f64;
        for (share, is_best) in shares.iter_mut().zip(best) {
            *share += f64::from(u8::from(is_best)) / among;
        }
    }
    shares.iter().map(|share| share / f64::from(DRAWS)).collect()
}

/// For each value, true where it equals the greatest. Several may; NaN never does.
fn are_best(values: &[f64]) -> Vec<bool> {
    let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    values.iter().map(|value| *value == greatest).collect()
}

/// The variance of a reward around its arm's mean, over all arms. Σ squares / Σ (count − 1), which
/// is 0 while no arm has two rewards.
fn pooled_variance(rewards: &[Rewards]) -> f64 {
    let squares: f64 = rewards.iter().map(|rewards| rewards.squares).sum();
    let degrees: u64 = rewards.iter().map(|rewards| rewards.count.saturating_sub(1)).sum();
    squares / degrees.max(1) as f64
}

/// A draw from Beta(1 + successes, 1 + failures): the share of one of two gamma variables.
fn beta(random: &mut ChaCha8Rng, rewards: &Rewards) -> f64 {
    let failures = rewards.count.saturating_sub(rewards.successes);
    let one = gamma(random, 1.0 + rewards.successes as f64);
    one / (one + gamma(random, 1.0 + failures as f64))
}

/// A draw around the arm's mean; an arm without rewards may be anything, so it is tried.
fn normal(random: &mut ChaCha8Rng, rewards: &Rewards, variance: f64) -> f64 {
    match rewards.count {
        0 => f64::INFINITY,
        count => rewards.mean + (variance / count as f64).sqrt() * standard_normal(random),
    }
}

/// A draw from the standard normal distribution (Box and Muller, 1958). 1 − u keeps the logarithm
/// finite, as `random` draws from [0, 1).
fn standard_normal(random: &mut ChaCha8Rng) -> f64 {
    let (radius, angle): (f64, f64) = (random.random(), random.random());
    (-2.0 * (1.0 - radius).ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

/// A draw from the gamma distribution with a shape of at least 1 (Marsaglia and Tsang, 2000). A try succeeds with a
/// probability above 0.95, so the loop is short.
fn gamma(random: &mut ChaCha8Rng, shape: f64) -> f64 {
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = standard_normal(random);
        let v = (1.0 + c * x).powi(3);
        let uniform: f64 = random.random();
        if v > 0.0 && (1.0 - uniform).ln() < 0.5 * x * x + d * (1.0 - v + v.ln()) {
            return d * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(policy: Policy, bounded: bool) -> Rule {
        let bounded = bounded.then_some([0.0, 1.0]);
        Rule { policy, floor: 0.05, wanted: Wanted::Increase, bounded }
    }

    fn earned(count: u64, mean: f64) -> Rewards {
        let successes = (count as f64 * mean).round() as u64;
        Rewards { count, mean, squares: count as f64 * mean * (1.0 - mean), successes }
    }

    #[test]
    fn gamma_and_beta_draws_have_their_moments() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for shape in [1.0, 2.5, 40.0] {
            let draws: Vec<f64> = (0..40_000).map(|_| gamma(&mut random, shape)).collect();
            let mean = draws.iter().sum::<f64>() / 40_000.0;
            let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 40_000.0;
            assert!((mean / shape - 1.0).abs() < 0.03, "{mean}, {shape}");
            assert!((variance / shape - 1.0).abs() < 0.06, "{variance}, {shape}");
        }
        let rewards = earned(8, 0.25);
        let mean = (0..20_000).map(|_| beta(&mut random, &rewards)).sum::<f64>() / 20_000.0;
        assert!((mean - 0.3).abs() < 0.005, "{mean}");
    }

    #[test]
    fn propensities_sum_to_one_and_keep_the_floor() {
        let greedy = Policy::EpsilonGreedy { epsilon: 0.1 };
        let rewards = [earned(500, 0.2), earned(500, 0.8), earned(500, 0.3)];
        for rule in
            [rule(greedy, true), rule(Policy::Thompson, true), rule(Policy::Thompson, false)]
        {
            let choice = rule.choose(&rewards, 3);
            assert!((choice.propensities.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            assert!(choice.propensities.iter().all(|share| *share >= 0.05));
            assert!(choice.propensities[1] > 0.8, "{choice:?}");
            assert_eq!(rule.choose(&rewards, 3), choice);
        }
        let choice = rule(greedy, true).choose(&rewards, 3);
        assert!((choice.propensities[1] - (0.05 + 0.85 * (0.9 + 0.1 / 3.0))).abs() < 1e-12);
    }

    #[test]
    fn arms_are_chosen_as_often_as_their_propensities_say() {
        let rewards = [earned(10, 0.5), earned(10, 0.6)];
        let rule = rule(Policy::Thompson, true);
        let (mut chosen, mut expected) = (0.0, 0.0);
        for seed in 0..2_000 {
            let choice = rule.choose(&rewards, seed);
            chosen += choice.arm as f64;
            expected += choice.propensities[1];
        }
        assert!((chosen - expected).abs() < 70.0, "{chosen}, {expected}");
    }

    #[test]
    fn arms_without_rewards_are_tried() {
        let rewards = [earned(50, 0.9), Rewards::default(), Rewards::default()];
        for policy in [Policy::EpsilonGreedy { epsilon: 0.0 }, Policy::Thompson] {
            let choice = rule(policy, false).choose(&rewards, 1);
            assert_eq!(choice.propensities, [0.05, 0.475, 0.475]);
        }
    }

    #[test]
    fn rewards_are_turned_and_scaled() {
        let mut rewards = Rewards::default();
        let rule = Rule {
            wanted: Wanted::Decrease,
            bounded: Some([0.0, 10.0]),
            ..rule(Policy::Thompson, true)
        };
        rule.earn(&mut rewards, 2.0, 0.79);
        rule.earn(&mut rewards, 6.0, 0.41);
        assert!((rewards.mean - 0.6).abs() < 1e-12 && (rewards.squares - 0.08).abs() < 1e-12);
        assert_eq!((rewards.count, rewards.successes), (2, 1));
        let mut unbounded = Rewards::default();
        Rule { bounded: None, ..rule }.earn(&mut unbounded, 2.0, 0.0);
        assert_eq!((unbounded.mean, unbounded.successes), (-2.0, 0));
    }
}
