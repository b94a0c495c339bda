//! Repeated looks at arms that are alike, and the share of runs in which a difference is found that
//! is not there.

use polyskill_experiment::analysis::fixed;
use polyskill_experiment::analysis::sequence::Sequence;
use polyskill_experiment::bandit::{Rewards, Rule};
use polyskill_experiment::declaration::{Policy, Wanted};
use polyskill_experiment::totals::Total;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::common::{Average, coin, names, normal, once};

const RUNS: u32 = 1_000;
const UNITS: usize = 2_000;
const BETWEEN_LOOKS: usize = 10;
const LEVEL: f64 = 0.05;
const MINIMUM: usize = 100;

/// The shares of runs in which some look finds a difference that is not there.
#[derive(Clone, Copy, Debug)]
struct FalsePositives {
    /// By the sequence.
    always: f64,
    /// By the interval for a single look.
    naive: f64,
}

/// Both shares over [`RUNS`] runs whose units are drawn alike for both arms.
fn false_positives(
    average: Average,
    share: f64,
    seed: u64,
    mut draw: impl FnMut(&mut ChaCha8Rng) -> Total,
) -> FalsePositives {
    let names = names(2 * UNITS);
    let sequence = Sequence::tuned(LEVEL, UNITS as f64);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (mut always, mut naive) = (0, 0);
    for _ in 0..RUNS {
        let mut arms = [Vec::new(), Vec::new()];
        let (mut found, mut naively) = (false, false);
        for unit in 1..=UNITS {
            let arm = usize::from(random.random_bool(share));
            arms[arm].push(draw(&mut random));
            let is_look = unit % BETWEEN_LOOKS == 0 && arms.iter().all(|arm| arm.len() >= MINIMUM);
            if is_look && !(found && naively) {
                let difference = average.difference(&names, &arms);
                found |= difference.is_some_and(|seen| sequence.p_value(&seen) <= LEVEL);
                naively |= difference.is_some_and(|seen| fixed::p_value(&seen) <= LEVEL);
            }
        }
        always += u32::from(found);
        naive += u32::from(naively);
    }
    FalsePositives {
        always: f64::from(always) / f64::from(RUNS),
        naive: f64::from(naive) / f64::from(RUNS),
    }
}

fn check(name: &str, found: FalsePositives) {
    let FalsePositives { always, naive } = found;
    eprintln!("{name}: {always} always valid, {naive} for a single look");
    assert!(always <= LEVEL, "{name}: {always}");
    assert!(naive > 3.0 * LEVEL, "{name}: {naive}");
}

#[test]
fn a_coin_shows_no_difference() {
    let draw = |random: &mut ChaCha8Rng| once(coin(random, 0.3));
    check("coin, equal arms", false_positives(Average::Mean, 0.5, 1, draw));
}

#[test]
fn a_coin_in_unequal_arms_shows_no_difference() {
    let draw = |random: &mut ChaCha8Rng| once(coin(random, 0.3));
    check("coin, one in five treated", false_positives(Average::Mean, 0.2, 2, draw));
}

#[test]
fn a_skewed_metric_shows_no_difference() {
    let draw = |random: &mut ChaCha8Rng| once(normal(random).exp());
    check("log-normal, equal arms", false_positives(Average::Mean, 0.5, 3, draw));
}

/// Units with 1 to 20 requests, whose own rate of success falls with their number.
#[test]
fn a_ratio_over_clustered_requests_shows_no_difference() {
    let draw = |random: &mut ChaCha8Rng| {
        let count = (1.0 - 4.0 * (1.0 - random.random::<f64>()).ln()).min(20.0) as u64;
        let rate = (0.8 - 0.02 * count as f64 + 0.15 * normal(random)).clamp(0.0, 1.0);
        let sum = (0..count).map(|_| coin(random, rate)).sum();
        Total { count, sum, before: None }
    };
    check("ratio, equal arms", false_positives(Average::Ratio, 0.5, 4, draw));
}

/// Every request is of a new unit or of a known one, so units are read before they are complete.
#[test]
fn units_that_come_back_show_no_difference() {
    let names = names(2 * UNITS);
    let sequence = Sequence::tuned(LEVEL, UNITS as f64 / 2.0);
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let mut wrong = 0;
    for _ in 0..RUNS {
        let mut arms: [Vec<Total>; 2] = [Vec::new(), Vec::new()];
        let mut rates: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
        let mut found = false;
        for request in 1..=3_000 {
            let arm = usize::from(random.random_bool(0.5));
            if arms[arm].is_empty() || random.random_bool(0.25) {
                arms[arm].push(Total::default());
                rates[arm].push(random.random());
            }
            let unit = random.random_range(0..arms[arm].len());
            arms[arm][unit].count += 1;
            arms[arm][unit].sum += coin(&mut random, rates[arm][unit]);
            let is_look = request % 20 == 0 && arms.iter().all(|arm| arm.len() >= MINIMUM);
            if is_look && !found {
                let difference = Average::Ratio.difference(&names, &arms).unwrap();
                found = sequence.p_value(&difference) <= LEVEL;
            }
        }
        wrong += u32::from(found);
    }
    let share = f64::from(wrong) / f64::from(RUNS);
    eprintln!("units that come back: {share}");
    assert!(share <= LEVEL, "{share}");
}

/// A bandit fills the arm that looks better, so the arms' sizes depend on what was seen.
#[test]
fn a_bandit_over_equal_arms_shows_no_difference() {
    let names = names(2 * UNITS);
    let sequence = Sequence::tuned(LEVEL, UNITS as f64 / 2.0);
    let policy = Policy::EpsilonGreedy { epsilon: 0.1 };
    let rule = Rule { policy, floor: 0.1, wanted: Wanted::Increase, bounded: Some([0.0, 1.0]) };
    let mut random = ChaCha8Rng::seed_from_u64(6);
    let mut wrong = 0;
    for run in 0..RUNS {
        let mut arms: [Vec<Total>; 2] = [Vec::new(), Vec::new()];
        let mut rewards = [Rewards::default(); 2];
        let mut found = false;
        for unit in 1..=UNITS {
            let seed = u64::from(run) * UNITS as u64 + unit as u64;
            let arm = rule.choose(&rewards, seed).arm;
            let value = coin(&mut random, 0.3);
            rule.earn(&mut rewards[arm], value, 0.5);
            arms[arm].push(once(value));
            let is_look = unit % BETWEEN_LOOKS == 0 && arms.iter().all(|arm| arm.len() >= MINIMUM);
            if is_look && !found {
                let difference = Average::Mean.difference(&names, &arms).unwrap();
                let [low, high] = sequence.separate(&difference);
                found = low > 0.0 || high < 0.0;
            }
        }
        wrong += u32::from(found);
    }
    let share = f64::from(wrong) / f64::from(RUNS);
    eprintln!("bandit over equal arms: {share}");
    assert!(share <= LEVEL, "{share}");
}
