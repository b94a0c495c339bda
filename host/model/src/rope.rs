//! Rotary position embedding in the half-split layout of Hugging Face checkpoints.
//!
//! Su et al., "RoFormer" (2021); the llama3 ramp follows Meta's Llama 3.1 reference.

use crate::config::{Rope, RopeScaling};

/// Inverse frequencies, `[head_dim / 2]`.
#[derive(Debug)]
pub(crate) struct RopeTable {
    inverse_frequencies: Vec<f32>,
}

impl RopeTable {
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

    /// Fills `[head_dim / 2]` cosines and sines of one position.
    pub(crate) fn angles(&self, position: u32, cos: &mut [f32], sin: &mut [f32]) {
        for ((frequency, cos), sin) in self.inverse_frequencies.iter().zip(cos).zip(sin) {
            (*sin, *cos) = (position as f32 * frequency).sin_cos();
        }
    }
}

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

/// Rotates one head: feature `i` pairs with `i + head_dim / 2`.
pub(crate) fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = head.split_at_mut(cos.len());
    for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
    }
}
