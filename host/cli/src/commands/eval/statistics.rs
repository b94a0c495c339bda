//! Means with bootstrap intervals (Efron, 1979): resampled within strata, percentiles of the
//! resampled means.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// The share of resampled means that an interval holds.
const CONFIDENCE: f64 = 0.95;

/// A mean with its interval.
#[derive(Clone, Copy, Debug, Serialize, PartialEq)]
pub struct Estimate {
    /// The mean over strata.
    pub mean: f64,
    /// Lower end of the 95 % interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Values in all strata.
    pub count: usize,
}

/// A value and what it is measured against: 1, or the value of a reference for the same item.
pub type Pair = (f64, f64);

/// The mean over strata of Σ value / Σ reference, and its interval from resampling each stratum.
///
/// A stratum counts where the mean of its references is over `least`, which is 0 or more: below it
/// the quotient would be noise, or none. This is so for each resample too, so a stratum may be
/// passed over in some of them, and resamples without any that counts are left out of the interval.
/// `None` where no stratum counts, or in no resample.
///
/// Resampling draws as many pairs as a stratum has, with replacement. The seed is fixed, so the
/// same values give the same interval. The cost is `resamples` times the number of values.
pub fn bootstrap(strata: &[Vec<Pair>], least: f64, resamples: usize) -> Option<Estimate> {
    let all = mean(strata.iter().filter_map(|pairs| ratio(pairs.iter(), least)))?;
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut resampled: Vec<f64> = (0..resamples)
        .filter_map(|_| {
            let one = |pairs: &Vec<Pair>| {
                let draw = |_| &pairs[random.random_range(0..pairs.len())];
                ratio((0..pairs.len()).map(draw), least)
            };
            mean(strata.iter().filter_map(one))
        })
        .collect();
    resampled.sort_unstable_by(f64::total_cmp);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    let at = |share: f64| {
        let index = (share * (resampled.len().saturating_sub(1)) as f64).round() as usize;
        resampled.get(index).copied()
    };
    let count = strata.iter().map(Vec::len).sum();
    Some(Estimate { mean: all, low: at(tail)?, high: at(1.0 - tail)?, count })
}

/// The mean of quotients; `None` without any.
fn mean(quotients: impl Iterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0_usize);
    for quotient in quotients {
        sum += quotient;
        count += 1;
    }
    (count > 0).then(|| sum / count as f64)
}

/// Σ value / Σ reference: the mean, where all references are 1. `None` where the mean reference is
/// not over `least`, and without pairs.
fn ratio<'a>(pairs: impl Iterator<Item = &'a Pair>, least: f64) -> Option<f64> {
    let (mut value, mut reference, mut count) = (0.0, 0.0, 0_usize);
    for pair in pairs {
        value += pair.0;
        reference += pair.1;
        count += 1;
    }
    (reference > least * count as f64).then(|| value / reference)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Over many samples of a coin, the intervals hold its bias about as often as they say.
    #[test]
    fn intervals_hold_what_they_promise() {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut held = 0;
        for _ in 0..300 {
            let flip = |_| (f64::from(u8::from(random.random_bool(0.6))), 1.0);
            let flips: Vec<Pair> = (0..60).map(flip).collect();
            let estimate = bootstrap(&[flips], 0.0, 400).unwrap();
            held += u32::from(estimate.low <= 0.6 && 0.6 <= estimate.high);
        }
        assert!((270..=297).contains(&held), "{held} of 300");
    }

    #[test]
    fn strata_count_alike_and_nothing_is_nothing() {
        let estimate =
            bootstrap(&[vec![(1.0, 1.0); 3], vec![(0.0, 1.0); 30], Vec::new()], 0.0, 100).unwrap();
        assert_eq!(
            (estimate.mean, estimate.low, estimate.high, estimate.count),
            (0.5, 0.5, 0.5, 33)
        );
        assert_eq!(bootstrap(&[Vec::new()], 0.0, 100), None);
        let half = bootstrap(&[vec![(1.0, 2.0), (3.0, 6.0)]], 0.0, 100).unwrap();
        assert_eq!((half.mean, half.low, half.high), (0.5, 0.5, 0.5));
    }

    /// Three in ten resamples hold none of the only item with a gain.
    #[test]
    fn resamples_without_a_gain_are_left_out() {
        let ends = |strata: &[Vec<Pair>]| {
            let estimate = bootstrap(strata, 0.05, 400).unwrap();
            (estimate.mean, estimate.low, estimate.high)
        };
        let none = vec![(0.5, 1.0), (0.0, 0.0), (0.0, 0.0)];
        assert_eq!(ends(std::slice::from_ref(&none)), (0.5, 0.5, 0.5));
        let tiny = vec![(0.5, 1.0), (0.3, 1e-9), (-0.3, -1e-9)];
        let (mean, low, high) = ends(&[tiny]);
        assert!((mean - 0.5).abs() < 1e-6 && low > -1.0 && high < 2.0, "{low} to {high}");
        // The other stratum goes on to count.
        let (mean, low, high) = ends(&[none, vec![(1.0, 1.0); 3]]);
        assert_eq!((mean, low, high), (0.75, 0.75, 1.0));
        assert_eq!(bootstrap(&[vec![(1.0, 0.0), (1.0, 0.02)]], 0.05, 100), None);
    }
}
