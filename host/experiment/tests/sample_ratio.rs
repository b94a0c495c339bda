//! Shares of units that are looked at all the time: a mismatch of one percent is caught, and none is seen where none is.

use polyskill_experiment::analysis::sample_ratio::{LEVEL, chi_square, sequential};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

const BETWEEN_LOOKS: u64 = 100;

/// Calls `look` with the counts of two arms at every look, until it says to stop.
fn deal(random: &mut ChaCha8Rng, share: f64, units: u64, mut look: impl FnMut(&[u64; 2]) -> bool) {
    let mut counts = [0, 0];
    for unit in 1..=units {
        counts[usize::from(random.random_bool(share))] += 1;
        if unit % BETWEEN_LOOKS == 0 && look(&counts) {
            return;
        }
    }
}

#[test]
fn equal_dealing_shows_no_mismatch_at_any_look() {
    let mut random = ChaCha8Rng::seed_from_u64(21);
    let (mut wrong, mut at_five_percent, mut naive) = (0, 0, 0);
    for _ in 0..1_000 {
        let (mut least, mut least_naive) = (1.0_f64, 1.0_f64);
        deal(&mut random, 0.5, 20_000, |counts| {
            least = least.min(sequential(counts, &[0.5, 0.5]));
            least_naive = least_naive.min(chi_square(counts, &[0.5, 0.5]));
            false
        });
        wrong += u32::from(least < LEVEL);
        at_five_percent += u32::from(least < 0.05);
        naive += u32::from(least_naive < 0.05);
    }
    eprintln!(
        "mismatches in 1,000 equal dealings: {wrong} at 0.001, {at_five_percent} at 0.05, {naive} at 0.05 by chi-square"
    );
    assert!(wrong <= 3, "{wrong}");
    assert!(at_five_percent <= 50, "{at_five_percent}");
    assert!(naive > 150, "{naive}");
}

/// The median number of units to a mismatch, and the share of runs in which there was one.
fn caught(share: f64, units: u64, seed: u64) -> (u64, f64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut stops: Vec<u64> = (0..200)
        .filter_map(|_| {
            let mut stop = None;
            deal(&mut random, share, units, |counts| {
                let is_mismatch = sequential(counts, &[0.5, 0.5]) < LEVEL;
                stop = is_mismatch.then(|| counts.iter().sum());
                is_mismatch
            });
            stop
        })
        .collect();
    stops.sort_unstable();
    let found = stops.len() as f64 / 200.0;
    eprintln!("share {share} within {units} units: {found} caught, median {:?}", stops.get(100));
    (stops.get(100).copied().unwrap_or(u64::MAX), found)
}

#[test]
fn one_percent_of_skew_is_caught() {
    let (median, found) = caught(0.51, 120_000, 22);
    assert!(found > 0.95 && median < 50_000, "{found}, {median}");
    let (median, found) = caught(0.505, 450_000, 23);
    assert!(found > 0.95 && median < 200_000, "{found}, {median}");
}
