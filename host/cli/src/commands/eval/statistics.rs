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
/// Empty strata are passed over; `None` without any value.
///
/// Resampling draws as many pairs as a stratum has, with replacement. The seed is fixed, so the
/// same values give the same interval. The cost is `resamples` times the number of values.
pub fn bootstrap(strata: &[Vec<Pair>], resamples: usize) -> Option<Estimate> {
    let strata: Vec<&Vec<Pair>> = strata.iter().filter(|stratum| !stratum.is_empty()).collect();
    if strata.is_empty() {
        return None;
    }
    let mean = |ratios: f64| ratios / strata.len() as f64;
    let all = mean(strata.iter().map(|pairs| ratio(pairs.iter())).sum());
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut resampled: Vec<f64> = (0..resamples)
        .map(|_| {
            let one = |pairs: &&Vec<Pair>| {
                ratio((0..pairs.len()).map(|_| &pairs[random.random_range(0..pairs.len())]))
            };
            mean(strata.iter().map(one).sum())
        })
        .collect();
    resampled.sort_unstable_by(f64::total_cmp);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    let at = |share: f64| {
        let index = (share * (resampled.len().saturating_sub(1)) as f64).round() as usize;
        resampled.get(index).copied().unwrap_or(all)
    };
    let count = strata.iter().map(|stratum| stratum.len()).sum();
    Some(Estimate { mean: all, low: at(tail), high: at(1.0 - tail), count })
}

/// Σ value / Σ reference: the mean, where all references are 1.
fn ratio<'a>(pairs: impl Iterator<Item = &'a Pair>) -> f64 {
    let (values, references) =
        pairs.fold((0.0, 0.0), |sums, pair| (sums.0 + pair.0, sums.1 + pair.1));
    values / references
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
            let estimate = bootstrap(&[flips], 400).unwrap();
            held += u32::from(estimate.low <= 0.6 && 0.6 <= estimate.high);
        }
        assert!((270..=297).contains(&held), "{held} of 300");
    }

    #[test]
    fn strata_count_alike_and_nothing_is_nothing() {
        let estimate =
            bootstrap(&[vec![(1.0, 1.0); 3], vec![(0.0, 1.0); 30], Vec::new()], 100).unwrap();
        assert_eq!(
            (estimate.mean, estimate.low, estimate.high, estimate.count),
            (0.5, 0.5, 0.5, 33)
        );
        assert_eq!(bootstrap(&[Vec::new()], 100), None);
        let half = bootstrap(&[vec![(1.0, 2.0), (3.0, 6.0)]], 100).unwrap();
        assert_eq!((half.mean, half.low, half.high), (0.5, 0.5, 0.5));
    }
}
