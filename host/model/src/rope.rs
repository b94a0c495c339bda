//! Rotary position embedding in the half-split layout of Hugging Face checkpoints.
//!
//! Su et al., "RoFormer" (2021); the llama3 ramp follows Meta's Llama 3.1 reference.

use crate::config::{Rope, RopeScaling};

/// The frequencies of one rotary embedding.
#[derive(Debug)]
pub(crate) struct RopeTable {
    /// Radians per position, `[head_dim / 2]`, after scaling.
    inverse_frequencies: Vec<f32>,
}

impl RopeTable {
    /// Computes the frequencies for heads of `head_dim` features, which must be even.
    pub(crate) fn new(rope: &Rope, head_dim: usize) -> Self {
        // In f32 and in this order, as transformers does: at late positions one rounding more or less
        // of a frequency already shows in the logits.
        let inverse_frequencies = (0..head_dim / 2)
            .map(|pair| {
                let exponent = (2 * pair) as f32 / head_dim as f32;
                scale(1.0 / (rope.theta as f32).powf(exponent), pair, &rope.scaling)
            })
            .collect();
        Self { inverse_frequencies }
    }

    /// Fills the `[head_dim / 2]` cosines and sines of one position.
    ///
    /// Computed anew in each step rather than kept per position: the cost is small beside a layer's
    /// and does not depend on the longest context.
    pub(crate) fn angles(&self, position: u32, cos: &mut [f32], sin: &mut [f32]) {
        for ((frequency, cos), sin) in self.inverse_frequencies.iter().zip(cos).zip(sin) {
            (*sin, *cos) = (position as f32 * frequency).sin_cos();
        }
    }
}

/// One frequency after scaling. Llama 3.1 keeps frequencies of wavelengths below
/// `original / high_freq_factor`, divides those above `original / low_freq_factor`, and mixes both
/// linearly in between. Pairs without an entry in a list of factors keep their frequency.
fn scale(frequency: f32, pair: usize, scaling: &RopeScaling) -> f32 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / *factor as f32,
        RopeScaling::Factors(factors) => {
            frequency / factors.get(pair).map_or(1.0, |&factor| factor as f32)
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_positions,
        } => {
            let (factor, low, high) =
                (*factor as f32, *low_freq_factor as f32, *high_freq_factor as f32);
            let original = *original_max_positions as f32;
            let wavelength = std::f32::consts::TAU / frequency;
            if wavelength < original / high {
                frequency
            } else if wavelength > original / low {
                frequency / factor
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}

/// Rotates one head in place: feature `i` pairs with `i + head_dim / 2`.
///
/// The layout of Hugging Face's `rotate_half`. Rows of q and k that are stored interleaved, as
/// llama's GGUF files have them, are put in this order at load.
pub(crate) fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = head.split_at_mut(cos.len());
    for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
    }
}
