//! Pruning tensors, and agreeing on signs: TIES (Yadav et al., 2023) and DARE (Yu et al., 2023).

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};

/// The elements that are set to zero before tensors are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prune {
    /// None.
    Nothing,
    /// All but the ⌊density·n⌋ largest magnitudes go; of equal ones the first stay. This is the
    /// trim of TIES.
    Magnitude,
    /// Each element goes with probability 1 − density; the rest is rescaled. This is DARE.
    Random(Rescale),
}

/// The rule that keeps the size of a randomly pruned tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rescale {
    /// Division by the density, as DARE does: the expectation stays.
    Density,
    /// The sum of magnitudes stays, as mergekit does.
    Magnitudes,
}

/// The election of a sign for each element: who votes how, and the divisor of the sum of those that
/// agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Consensus {
    /// The rule of the election.
    pub(crate) sign: Sign,
    /// The divisor of the sum.
    pub(crate) divisor: Divisor,
}

/// The rule by which tensors elect the sign of an element. Only tensors that have it there are
/// summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// That of Σ w·t: a module with a large weight has a large vote. The rule of mergekit.
    Weighted,
    /// That of Σ t, whatever the weights: the elected sign of the TIES paper.
    Total,
    /// That of Σ sgn t: every module has one vote.
    Frequency,
}

/// The number that the sum of the tensors that agree is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Divisor {
    /// The number of tensors that agree, which makes the sum a mean.
    Count,
    /// The sum of the weights of those that agree.
    Weights,
    /// Nothing.
    One,
}

/// Prunes a tensor in place. `stream` makes the random stream of the tensor, and is called only
/// where elements are drawn.
///
/// A density of 1 or more leaves the tensor as it is.
pub(crate) fn prune(tensor: &mut [f32], how: Prune, density: f64, stream: impl FnOnce() -> Stream) {
    if density >= 1.0 {
        return;
    }
    match how {
        Prune::Nothing => {}
        Prune::Magnitude => keep_largest(tensor, (density * tensor.len() as f64) as usize),
        Prune::Random(rescale) => drop_random(tensor, density, rescale, stream()),
    }
}

/// Sets all but the `count` largest magnitudes to zero; of those that equal the smallest kept one,
/// the first stay. O(n) on average. Values must be finite.
fn keep_largest(tensor: &mut [f32], count: usize) {
    // Magnitudes of finite floats are ordered as their bits are.
    let mut bits: Vec<u32> = tensor.iter().map(|value| value.abs().to_bits()).collect();
    if count >= bits.len() {
        return;
    }
    if count == 0 {
        tensor.fill(0.0);
        return;
    }
    let threshold = *bits.select_nth_unstable_by(count - 1, |a, b| b.cmp(a)).1;
    let above = bits[..count].iter().filter(|&&bits| bits > threshold).count();
    let mut equal = count - above;
    for value in tensor {
        let bits = value.abs().to_bits();
        let kept = bits > threshold || (bits == threshold && equal > 0);
        equal -= usize::from(kept && bits == threshold);
        if !kept {
            *value = 0.0;
        }
    }
}

/// Sets each element to zero with probability 1 − `density` and multiplies the rest so that the
/// size stays as `rescale` says.
fn drop_random(tensor: &mut [f32], density: f64, rescale: Rescale, mut stream: Stream) {
    let magnitudes = |tensor: &[f32]| tensor.iter().map(|&v| f64::from(v.abs())).sum::<f64>();
    let before = magnitudes(tensor);
    for value in tensor.iter_mut() {
        if !stream.keep(density) {
            *value = 0.0;
        }
    }
    let factor = match rescale {
        Rescale::Density => 1.0 / density,
        Rescale::Magnitudes => {
            // mergekit leaves tensors alone that are as good as zero.
            let after = magnitudes(tensor);
            if before < 1e-7 || after < 1e-7 { 1.0 } else { before / after }
        }
    };
    tensor.iter_mut().for_each(|value| *value = (f64::from(*value) * factor) as f32);
}

/// The random stream of one tensor, the same on every machine.
///
/// ChaCha20 with nonce and counter zero, whose key is the SHA-256 of `polyskill dare`, a zero byte,
/// the seed and the source's position (64 bits each, little endian), and the site's path. Each
/// element, row by row, takes one little-endian 32-bit word and stays if the word is below
/// density·2³².
pub(crate) struct Stream(ChaCha20Rng);

impl Stream {
    /// The stream of the tensor of the source at a position, counted from 0, at a site.
    pub(crate) fn new(seed: u64, site: &str, source: usize) -> Self {
        let mut key = Sha256::new();
        key.update(b"polyskill dare\0");
        key.update(seed.to_le_bytes());
        key.update((source as u64).to_le_bytes());
        key.update(site.as_bytes());
        Self(ChaCha20Rng::from_seed(key.finalize().into()))
    }

    /// Takes one word; true if the next element stays.
    fn keep(&mut self, density: f64) -> bool {
        f64::from(self.0.next_u32()) < density * 4_294_967_296.0
    }
}

/// Σ w·t by element in 64 bits, over the tensors that agree with the sign of each element if there
/// is a consensus.
///
/// All tensors have the same length, and weights belong to them in order. The result is empty
/// without tensors. The divisor is applied only with a consensus.
pub(crate) fn combine(
    tensors: &[Vec<f32>],
    weights: &[f64],
    consensus: Option<Consensus>,
) -> Vec<f64> {
    let len = tensors.first().map_or(0, Vec::len);
    let mut sum = vec![0.0; len];
    let Some(consensus) = consensus else {
        for (tensor, weight) in tensors.iter().zip(weights) {
            sum.iter_mut().zip(tensor).for_each(|(sum, &t)| *sum += weight * f64::from(t));
        }
        return sum;
    };
    for (at, sum) in sum.iter_mut().enumerate() {
        let values = || tensors.iter().zip(weights).map(|(t, &w)| (f64::from(t[at]), w));
        *sum = agreed(values, consensus);
    }
    sum
}

/// The merged value of one element, from pairs of values and weights; `values` is asked twice, for
/// the vote and the sum.
///
/// A vote of exactly zero counts as plus. A divisor of zero, as of an element on which nobody
/// agrees, divides by nothing.
fn agreed<I: Iterator<Item = (f64, f64)>>(values: impl Fn() -> I, consensus: Consensus) -> f64 {
    let ballot = |value: f64, weight: f64| match consensus.sign {
        Sign::Weighted => value * weight,
        Sign::Total | Sign::Frequency => value,
    };
    let vote: f64 = match consensus.sign {
        Sign::Frequency => values().map(|(value, _)| sign(value)).sum(),
        _ => values().map(|(value, weight)| ballot(value, weight)).sum(),
    };
    let majority = if vote >= 0.0 { 1.0 } else { -1.0 };
    let (mut sum, mut count, mut total) = (0.0, 0.0, 0.0);
    for (value, weight) in values() {
        if sign(ballot(value, weight)) == majority {
            sum += weight * value;
            count += 1.0;
            total += weight;
        }
    }
    let divisor: f64 = match consensus.divisor {
        Divisor::Count => count,
        Divisor::Weights => total,
        Divisor::One => 1.0,
    };
    if divisor == 0.0 { sum } else { sum / divisor }
}

/// The sign of a value: −1, 1, or 0 for zero, which has no sign and so never agrees.
fn sign(value: f64) -> f64 {
    if value == 0.0 { 0.0 } else { value.signum() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(site: &str, source: usize) -> Stream {
        Stream::new(7, site, source)
    }

    #[test]
    fn the_largest_stay_and_ties_go_to_the_first() {
        let mut tensor = [1.0, -3.0, 0.0, 2.0, -2.0, 2.0];
        prune(&mut tensor, Prune::Magnitude, 0.5, || stream("", 0));
        assert_eq!(tensor, [0.0, -3.0, 0.0, 2.0, -2.0, 0.0]);
        prune(&mut tensor, Prune::Magnitude, 0.1, || stream("", 0));
        assert_eq!(tensor, [0.0; 6]);
        let mut all = [1.0, 2.0];
        prune(&mut all, Prune::Magnitude, 1.0, || stream("", 0));
        assert_eq!(all, [1.0, 2.0]);
    }

    #[test]
    fn random_pruning_keeps_the_expectation_or_the_sum() {
        let full = vec![0.5_f32; 40_000];
        for rescale in [Rescale::Density, Rescale::Magnitudes] {
            let mut tensor = full.clone();
            prune(&mut tensor, Prune::Random(rescale), 0.3, || stream("q", 0));
            let kept = tensor.iter().filter(|value| **value != 0.0).count() as f64 / 40_000.0;
            assert!((kept - 0.3).abs() < 0.01, "{kept}");
            let sum: f64 = tensor.iter().map(|&value| f64::from(value)).sum();
            let off = (sum / 20_000.0 - 1.0).abs();
            assert!(off < if rescale == Rescale::Density { 0.03 } else { 1e-6 }, "{off}");
        }
    }

    /// The words of the stream's documentation, from another implementation of SHA-256 and
    /// ChaCha20.
    #[test]
    fn the_stream_is_what_its_documentation_says() {
        let words: Vec<u32> = {
            let mut stream = stream("model.layers.0.self_attn.q_proj", 1);
            (0..4).map(|_| stream.0.next_u32()).collect()
        };
        assert_eq!(words, WORDS);
        let mut other = stream("model.layers.0.self_attn.q_proj", 0);
        assert_ne!(other.0.next_u32(), words[0]);
    }

    const WORDS: [u32; 4] = [0x34e06aa8, 0xf2c3eda6, 0x46f4c7d6, 0x18f4ce39];

    #[test]
    fn elements_follow_the_majority() {
        let tensors = [vec![1.0, 1.0, 0.0], vec![-3.0, 0.5, 0.0], vec![1.0, -0.2, -1.0]];
        let weights = [1.0, 0.2, 1.0];
        let of = |sign, divisor| combine(&tensors, &weights, Some(Consensus { sign, divisor }));
        // -0.6 against 2: the weighted election is for plus.
        let expected = [(1.0 + 1.0) / 2.0, (1.0 + 0.1) / 2.0, -1.0];
        assert_eq!(of(Sign::Weighted, Divisor::Count), expected);
        assert_eq!(of(Sign::Weighted, Divisor::Weights)[1], 1.1 / 1.2);
        assert_eq!(of(Sign::Total, Divisor::Count)[0], 0.2 * f64::from(-3.0_f32));
        assert_eq!(of(Sign::Frequency, Divisor::One)[0], 2.0);
        assert_eq!(combine(&tensors, &weights, None)[2], -1.0);
    }
}
