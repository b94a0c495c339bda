//! The regret of bandits against always choosing the best arm, beside arms dealt alike.

use polyskill_experiment::bandit::{Rewards, Rule};
use polyskill_experiment::declaration::{Policy, Wanted};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::common::normal;

const RUNS: u64 = 10;
const UNITS: u64 = 1_000;
const MEANS: [f64; 3] = [0.3, 0.6, 0.5];

/// The mean regret over runs: the best arm's mean less the chosen arm's, summed over units.
fn regret(policy: Policy, bounded: bool) -> f64 {
    let bounded = bounded.then_some([0.0, 1.0]);
    let rule = Rule { policy, floor: 0.02, wanted: Wanted::Increase, bounded };
    let mut random = ChaCha8Rng::seed_from_u64(31);
    let mut sum = 0.0;
    for run in 0..RUNS {
        let mut rewards = [Rewards::default(); 3];
        for unit in 0..UNITS {
            let choice = rule.choose(&rewards, run * UNITS + unit);
            let mean = MEANS[choice.arm];
            let reward = match bounded {
                Some(_) => f64::from(u8::from(random.random_bool(mean))),
                None => mean + 0.5 * normal(&mut random),
            };
            rule.earn(&mut rewards[choice.arm], reward, random.random());
            sum += 0.6 - mean;
        }
    }
    sum / RUNS as f64
}

#[test]
fn bandits_lose_less_than_equal_dealing() {
    // 0.6 less the mean of the means, for each unit.
    let uniform = UNITS as f64 * (0.6 - MEANS.iter().sum::<f64>() / 3.0);
    let greedy = Policy::EpsilonGreedy { epsilon: 0.1 };
    for (policy, bounded) in
        [(greedy, true), (greedy, false), (Policy::Thompson, true), (Policy::Thompson, false)]
    {
        let regret = regret(policy, bounded);
        eprintln!("{policy:?}, bounded {bounded}: regret {regret:.1}, uniform {uniform:.1}");
        assert!(regret < 0.6 * uniform, "{policy:?}: {regret}, {uniform}");
    }
}
