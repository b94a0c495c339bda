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
        let inverse_frequencies = (0..head_dim / 2)
            .map(|pair| {
                let plain = 1.0 / rope.theta.powf(2.0 * pair as f64 / head_dim as f64);
                scale(plain, pair, &rope.scaling) as f32
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

fn scale(frequency: f64, pair: usize, scaling: &RopeScaling) -> f64 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Factors(factors) => frequency / factors.get(pair).copied().unwrap_or(1.0),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_positions,
        } => {
            let wavelength = std::f64::consts::TAU / frequency;
            if wavelength < original_max_positions / high_freq_factor {
                frequency
            } else if wavelength > original_max_positions / low_freq_factor {
                frequency / factor
            } else {
                let smooth = (original_max_positions / wavelength - low_freq_factor)
                    / (high_freq_factor - low_freq_factor);
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
