//! Norms, activations and softmax over rows; written so that the compiler vectorises them.

/// eˣ for finite or −∞ input, relative error below 2·10⁻⁷; 0 below −87.
///
/// Cephes' polynomial after splitting off the power of two, without branches, so that loops around
/// it vectorise. Input above 88 gives e⁸⁸.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.0);
    let power = (clamped * LOG2_E).round_ties_even();
    let rest = power.mul_add(-LN2_LOW, power.mul_add(-LN2_HIGH, clamped));
    let mut poly = 1.987_569_1e-4_f32;
    poly = poly.mul_add(rest, 1.398_199_9e-3);
    poly = poly.mul_add(rest, 8.333_452e-3);
    poly = poly.mul_add(rest, 4.166_579_6e-2);
    poly = poly.mul_add(rest, 1.666_666_6e-1);
    poly = poly.mul_add(rest, 5e-1);
    let fraction = (poly * rest).mul_add(rest, rest + 1.0);
    let scale = f32::from_bits(((power as i32 + 127) as u32) << 23);
    let result = fraction * scale;
    if x < -87.0 { 0.0 } else { result }
}

/// Root-mean-square norm of each row of `x` (`[rows, weight.len()]`) times `weight`, into `y`.
///
/// Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019). Rows are summed in 16 lanes,
/// so that a row's bits do not depend on the rows beside it.
pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, y: &mut [f32]) {
    let width = weight.len();
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let mean = sum_of_squares(x) / width as f32;
        let scale = 1.0 / (mean + epsilon).sqrt();
        for ((y, &x), &weight) in y.iter_mut().zip(x).zip(weight) {
            *y = x * scale * weight;
        }
    }
}

/// The same in place, over each run of `weight.len()` values: a row, or each head of a row.
pub fn rms_norm_in_place(x: &mut [f32], weight: &[f32], epsilon: f32) {
    for x in x.chunks_exact_mut(weight.len()) {
        let mean = sum_of_squares(x) / weight.len() as f32;
        let scale = 1.0 / (mean + epsilon).sqrt();
        for (x, &weight) in x.iter_mut().zip(weight) {
            *x = *x * scale * weight;
        }
    }
}

/// Σ x², in 16 lanes and then over them; what is left of the last 16 comes at the end.
fn sum_of_squares(x: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let chunks = x.chunks_exact(16);
    let tail: f32 = chunks.remainder().iter().map(|value| value * value).sum();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = value.mul_add(value, *lane);
        }
    }
    lanes.iter().sum::<f32>() + tail
}

/// SwiGLU: `gate ← silu(gate) · up`, elementwise.
///
/// Shazeer, "GLU Variants Improve Transformer" (2020).
pub fn silu_mul(gate: &mut [f32], up: &[f32]) {
    for (gate, &up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

/// Gated GELU: `gate ← gelu(gate) · up`, elementwise, with the approximation by tanh
/// (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016).
pub fn gelu_tanh_mul(gate: &mut [f32], up: &[f32]) {
    /// √(8 / π): (1 + tanh u) / 2 is the logistic function of 2u.
    const FACTOR: f32 = 1.595_769;
    for (gate, &up) in gate.iter_mut().zip(up) {
        let x = *gate;
        let u = FACTOR * (0.044_715 * x * x).mul_add(x, x);
        *gate = x / (1.0 + exp(-u)) * up;
    }
}

/// Softmax in place.
///
/// All −∞, or no values, give zeros, so that a row whose choices are all masked chooses nothing.
pub fn softmax(values: &mut [f32]) {
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        values.fill(0.0);
        return;
    }
    let mut sum = 0.0;
    for value in values.iter_mut() {
        *value = exp(*value - max);
        sum += *value;
    }
    let scale = 1.0 / sum;
    values.iter_mut().for_each(|value| *value *= scale);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate() {
        for step in -8600..8800 {
            let x = step as f32 / 100.0;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 3e-7, "exp({x}): relative error {error}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn gelu_is_its_formula() {
        for step in -1200..1200 {
            let x = step as f32 / 100.0;
            let mut gate = [x];
            gelu_tanh_mul(&mut gate, &[2.0]);
            let x = f64::from(x);
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            let expected = x * (1.0 + inner.tanh());
            assert!((f64::from(gate[0]) - expected).abs() < 2e-6, "{x}: {gate:?} {expected}");
        }
    }

    #[test]
    fn softmax_sums_to_one_and_survives_masks() {
        let mut values = [1.0, f32::NEG_INFINITY, 3.0, -2.0];
        softmax(&mut values);
        assert!((values.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert_eq!(values[1], 0.0);
        let mut masked = [f32::NEG_INFINITY; 3];
        softmax(&mut masked);
        assert_eq!(masked, [0.0; 3]);
    }
}
