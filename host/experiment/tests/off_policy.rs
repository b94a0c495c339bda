//! Estimates of a policy that did not run: right on average, with intervals that hold, and tighter with predictions.

use polyskill_experiment::off_policy::{
    Earning, Logged, Target, doubly_robust, inverse_propensity, self_normalised,
};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::common::normal;

const RUNS: u32 = 2_000;
const ROWS: usize = 1_000;

/// The mean reward of an arm in a context.
fn reward(arm: usize, context: f64) -> f64 {
    if arm == 1 { 1.0 + context } else { 1.5 - 0.5 * context }
}

/// Rows whose propensities depend on the context, as the rewards do; predictions are off by a constant.
fn rows(random: &mut ChaCha8Rng) -> Vec<Logged> {
    (0..ROWS)
        .map(|_| {
            let context: f64 = random.random();
            let treated = 0.15 + 0.6 * context;
            let arm = usize::from(random.random_bool(treated));
            Logged {
                arm,
                propensity: if arm == 1 { treated } else { 1.0 - treated },
                reward: reward(arm, context) + 0.3 * normal(random),
                predicted: [0, 1].map(|arm| reward(arm, context) + 0.1).to_vec(),
            }
        })
        .collect()
}

/// Over the runs: the mean error, the mean width, and the share of intervals that hold the truth.
fn summary(earnings: &[Earning], truth: f64) -> (f64, f64, f64) {
    let mean =
        |of: &dyn Fn(&Earning) -> f64| earnings.iter().map(of).sum::<f64>() / f64::from(RUNS);
    let holds = |e: &Earning| f64::from(u8::from(e.low <= truth && truth <= e.high));
    (mean(&|e| e.value - truth), mean(&|e| e.high - e.low), mean(&holds))
}

#[test]
fn estimates_are_unbiased_and_predictions_tighten_them() {
    // The mean of 1 + x is 1.5, that of 1.5 − x/2 is 1.25.
    for (target, truth) in
        [(Target::Arm(1), 1.5), (Target::Distribution(vec![0.4, 0.6]), 0.4 * 1.25 + 0.6 * 1.5)]
    {
        let mut random = ChaCha8Rng::seed_from_u64(42);
        let mut found: [Vec<Earning>; 3] = Default::default();
        for _ in 0..RUNS {
            let rows = rows(&mut random);
            found[0].push(inverse_propensity(&rows, &target, 0.05).unwrap());
            found[1].push(self_normalised(&rows, &target, 0.05).unwrap());
            found[2].push(doubly_robust(&rows, &target, 0.05).unwrap());
        }
        let summaries = found.each_ref().map(|earnings| summary(earnings, truth));
        eprintln!("{target:?}: error, width, held of the three: {summaries:.4?}");
        for (error, width, held) in summaries {
            // Three standard errors of the mean over runs; the width is 3.92 of one run's.
            let tolerance = 3.0 * width / 3.92 / f64::from(RUNS).sqrt();
            assert!(error.abs() < tolerance, "{error}, {tolerance}");
            assert!(held > 0.92, "{held}");
        }
        let [(_, plain, _), _, (_, robust, _)] = summaries;
        assert!(robust < 0.6 * plain, "{robust}, {plain}");
    }
}
