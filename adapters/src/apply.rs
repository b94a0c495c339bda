//! Adding modules' deltas to one row of a projection's output.
//!
//! A row's delta is computed from its own picks in their order, so it does not depend on the batch.
//! [`reference()`] is the specification; [`add_delta`] is the fast path.

use polyskill_model::Linear;
use polyskill_model::kernels::{QuantisedRows, add_scaled_rows, dots};

use crate::lora::LoraSite;
use crate::weights::{Graft, LinearPart};

/// The rule that combines the picks of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combine {
    /// Σ w·s·B·(A·x). Each pick is scaled by its own s.
    OutputSum,
    /// (Σ w·B)·(Σ w·A)·x with the scale of the first pick. Parts of another kind are summed. DoRAs
    /// are summed too, since their magnitudes act on outputs.
    AbMerge,
}

/// A module's part at a site, and its weight. The weight w may be negative; 1 is the module as it
/// was trained.
pub type WeightedPart<'a> = (&'a LinearPart, f32);

/// Adds the deltas of a row to `y`, `[outputs]`, which the base's projection wrote for the input
/// `x`, `[inputs]`. `picks` are those of the row's router and combine by `combine`; `beside` are
/// summed whatever it is.
///
/// Every delta is computed from what the base wrote, so the order of kinds does not matter.
/// `linear` is the base's projection, for parts that act on its input; at the head there is none,
/// and such parts are left out. The cost grows with the picks and their ranks, not with the modules
/// that are loaded.
///
/// # Panics
/// If the sizes do not agree with the modules'.
pub fn add_delta(
    combine: Combine,
    beside: &[WeightedPart<'_>],
    picks: &[WeightedPart<'_>],
    linear: Option<&Linear>,
    x: &[f32],
    y: &mut [f32],
    scratch: &mut Scratch,
) {
    if beside.iter().chain(picks).any(|(part, _)| part.reads_output()) {
        scratch.written.clear();
        scratch.written.extend_from_slice(y);
    }
    if combine == Combine::AbMerge {
        ab_merge(picks, x, y, scratch);
    }
    let picks = picks.iter().map(|pick| (pick, combine == Combine::OutputSum));
    for ((part, weight), summed) in beside.iter().map(|pick| (pick, true)).chain(picks) {
        if let Some(lora) = part.lora.as_ref().filter(|lora| summed || lora.magnitude.is_some()) {
            low_rank(lora, *weight, x, y, scratch);
        }
        if !part.is_lora_alone() {
            other_parts(part, *weight, linear, x, y, scratch);
        }
    }
}

/// Buffers reused from row to row. One per thread is enough, for rows and sites of any size.
#[derive(Debug, Default)]
pub struct Scratch {
    /// A·x of one pick, `[rank]`.
    inner: Vec<f32>,
    /// Σ w·A·x over the picks of a merge, `[largest rank]`.
    sum: Vec<f32>,
    /// y₀, the base's output, copied where a delta depends on it; `[outputs]`.
    written: Vec<f32>,
    /// The input times an (IA)³ vector and the weight, `[inputs]`.
    scaled: Vec<f32>,
    /// A product before it is scaled and added, `[outputs]`.
    product: Vec<f32>,
    /// The 8-bit input that the kernels of a quantised base read.
    quantised: QuantisedRows,
}

/// Adds w·s·B·(A·x), or DoRA's w·((f − 1) ⊙ (y₀ − b) + f ⊙ s·B·A·x), for which `scratch` holds y₀.
/// [`add_delta`] puts y₀ there, so a DoRA is not to be applied by this function alone.
///
/// # Panics
/// If the sizes do not agree with the module's.
pub fn low_rank(lora: &LoraSite, weight: f32, x: &[f32], y: &mut [f32], scratch: &mut Scratch) {
    let Scratch { inner, product, written, .. } = scratch;
    inner.resize(lora.rank, 0.0);
    dots(x, lora.a.as_slice(), inner);
    let factor = weight * lora.scale;
    inner.iter_mut().for_each(|value| *value *= factor);
    let Some(magnitude) = &lora.magnitude else {
        return add_scaled_rows(y, inner, lora.b_transposed.as_slice());
    };
    product.clear();
    product.resize(y.len(), 0.0);
    add_scaled_rows(product, inner, lora.b_transposed.as_slice());
    for (at, (y, factor)) in y.iter_mut().zip(&magnitude.factors).enumerate() {
        let bias = magnitude.base_bias.as_ref().map_or(0.0, |bias| bias[at]);
        *y += weight * (factor - 1.0) * (written[at] - bias) + factor * product[at];
    }
}

/// Adds all of a part but its low-rank product: (IA)³ on outputs and on inputs, the graft and the
/// bias. (IA)³ on outputs takes y₀ from `scratch`; (IA)³ on inputs costs one more product with the
/// base's weights.
fn other_parts(
    part: &LinearPart,
    weight: f32,
    linear: Option<&Linear>,
    x: &[f32],
    y: &mut [f32],
    scratch: &mut Scratch,
) {
    if let Some(scale) = &part.output_scale {
        let values = y.iter_mut().zip(&scratch.written).zip(scale);
        values.for_each(|((y, written), scale)| *y += weight * scale * written);
    }
    if let Some((scale, linear)) = part.input_scale.as_ref().zip(linear) {
        let Scratch { scaled, product, quantised, .. } = scratch;
        scaled.clear();
        scaled.extend(x.iter().zip(scale).map(|(x, scale)| weight * scale * x));
        product.clear();
        product.resize(y.len(), 0.0);
        linear.multiply(scaled, quantised, product);
        y.iter_mut().zip(product).for_each(|(y, product)| *y += *product);
    }
    if let Some(graft) = &part.graft {
        add_graft(graft, weight, x, y);
    }
    if let Some(bias) = &part.bias {
        y.iter_mut().zip(bias).for_each(|(y, bias)| *y += weight * bias);
    }
}

/// Adds w·value·x\[column\] to y\[row\] for each changed weight: the cost grows with these alone.
fn add_graft(graft: &Graft, weight: f32, x: &[f32], y: &mut [f32]) {
    let places = graft.rows.iter().zip(&graft.columns);
    for ((&row, &column), value) in places.zip(&graft.values) {
        y[row as usize] += weight * value * x[column as usize];
    }
}

/// Expanded over pairs: Σₑ Σ_f wₑ·w_f·B_f·(Aₑ·x), for picks of one rank. The first pick's scale
/// stands before every pair. DoRAs are passed over, and parts of other kinds too.
fn ab_merge(picks: &[(&LinearPart, f32)], x: &[f32], y: &mut [f32], scratch: &mut Scratch) {
    let plain = || {
        picks.iter().filter_map(|(part, weight)| {
            let lora = part.lora.as_ref().filter(|lora| lora.magnitude.is_none());
            Some((lora?, *weight))
        })
    };
    let Some((first, _)) = plain().next() else { return };
    let Scratch { inner, sum, .. } = scratch;
    let rank = plain().map(|(lora, _)| lora.rank).max().unwrap_or(0);
    sum.clear();
    sum.resize(rank, 0.0);
    for (lora, weight) in plain() {
        inner.resize(lora.rank, 0.0);
        dots(x, lora.a.as_slice(), inner);
        sum.iter_mut().zip(&*inner).for_each(|(sum, value)| *sum += weight * value);
    }
    for (lora, weight) in plain() {
        inner.clear();
        inner.extend(sum[..lora.rank].iter().map(|value| value * weight * first.scale));
        add_scaled_rows(y, inner, lora.b_transposed.as_slice());
    }
}

/// The specification of the output sum, one scalar at a time in f64. Magnitudes are not in it. `y`
/// is `[outputs]`, and the delta is added to it.
pub fn reference(lora: &LoraSite, weight: f32, x: &[f32], y: &mut [f64]) {
    let (a, b) = (lora.a.as_slice(), lora.b_transposed.as_slice());
    for rank in 0..lora.rank {
        let dot: f64 =
            (0..x.len()).map(|at| f64::from(a.get(rank * x.len() + at)) * f64::from(x[at])).sum();
        for (out, y) in y.iter_mut().enumerate() {
            let width = b.len() / lora.rank;
            *y += f64::from(weight)
                * f64::from(lora.scale)
                * dot
                * f64::from(b.get(rank * width + out));
        }
    }
}

#[cfg(test)]
mod tests {
    use polyskill_model::Matrix;
    use polyskill_model::linear::DenseWeights;

    use super::*;
    use crate::lora::{Elements, Magnitude};

    const INPUTS: usize = 20;
    const OUTPUTS: usize = 12;

    fn values(len: usize, salt: usize) -> Vec<f32> {
        let value = |at: usize| ((at * 7_919 + salt * 104_729) % 211) as f32 / 105.0 - 1.0;
        (0..len).map(value).collect()
    }

    fn site(rank: usize, seed: usize, scale: f32) -> LoraSite {
        LoraSite {
            rank,
            scale,
            a: Elements::F32(values(rank * INPUTS, seed)),
            b_transposed: Elements::F32(values(rank * OUTPUTS, seed + 1)),
            magnitude: None,
        }
    }

    fn base() -> Linear {
        let weights = DenseWeights::F32(values(INPUTS * OUTPUTS, 77));
        Linear { matrix: Matrix::Dense { weights, inner: INPUTS }, bias: Some(values(OUTPUTS, 5)) }
    }

    /// What the base writes for `x`, with other weights.
    fn product(weights: &[f32], bias: &[f32], x: &[f32]) -> Vec<f32> {
        let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| w * x).sum::<f32>();
        weights.chunks_exact(INPUTS).zip(bias).map(|(row, bias)| dot(row) + bias).collect()
    }

    /// The base's output with the deltas of the picks added.
    fn applied(combine: Combine, picks: &[(&LinearPart, f32)], x: &[f32]) -> Vec<f32> {
        let base = base();
        let mut y = product(&values(INPUTS * OUTPUTS, 77), &values(OUTPUTS, 5), x);
        add_delta(combine, &[], picks, Some(&base), x, &mut y, &mut Scratch::default());
        y
    }

    fn require_close(found: &[f32], expected: &[f32]) {
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 2e-4, "{found} {expected}");
        }
    }

    fn input() -> Vec<f32> {
        (0..INPUTS).map(|at| (at as f32 * 0.7).sin()).collect()
    }

    #[test]
    fn the_fast_path_agrees_with_the_specification() {
        let (first, second) =
            (LinearPart::lora(site(3, 1, 2.0)), LinearPart::lora(site(5, 9, 0.5)));
        let x = input();
        let picks = [(&first, 0.7), (&second, -1.5)];
        let fast = applied(Combine::OutputSum, &picks, &x);
        let mut exact: Vec<f64> =
            applied(Combine::OutputSum, &[], &x).into_iter().map(f64::from).collect();
        for (part, weight) in picks {
            reference(part.lora.as_ref().unwrap(), weight, &x, &mut exact);
        }
        for (fast, exact) in fast.iter().zip(&exact) {
            assert!((f64::from(*fast) - exact).abs() < 1e-4, "{fast} {exact}");
        }
    }

    #[test]
    fn merging_before_and_after_agree_for_one_module() {
        let lora = LinearPart::lora(site(4, 3, 1.5));
        let x = input();
        let sum = applied(Combine::OutputSum, &[(&lora, 1.0)], &x);
        let merged = applied(Combine::AbMerge, &[(&lora, 1.0)], &x);
        require_close(&sum, &merged);
    }

    /// Every kind at weight 1 is the base with that kind's weights in place of its own.
    #[test]
    fn each_kind_at_weight_one_is_itself() {
        let (x, weights, bias) = (input(), values(INPUTS * OUTPUTS, 77), values(OUTPUTS, 5));
        let scale = |len, salt| values(len, salt).iter().map(|v| v * 0.3).collect::<Vec<f32>>();

        let outputs = LinearPart { output_scale: Some(scale(OUTPUTS, 3)), ..Default::default() };
        let expected: Vec<f32> = product(&weights, &bias, &x)
            .iter()
            .zip(scale(OUTPUTS, 3))
            .map(|(y, scale)| y * (1.0 + scale))
            .collect();
        require_close(&applied(Combine::OutputSum, &[(&outputs, 1.0)], &x), &expected);

        let inputs = LinearPart { input_scale: Some(scale(INPUTS, 4)), ..Default::default() };
        let scaled: Vec<f32> =
            x.iter().zip(scale(INPUTS, 4)).map(|(x, scale)| x * (1.0 + scale)).collect();
        let expected = product(&weights, &bias, &scaled);
        require_close(&applied(Combine::OutputSum, &[(&inputs, 1.0)], &x), &expected);

        let graft = Graft { rows: vec![0, 7], columns: vec![3, 19], values: vec![0.5, -2.0] };
        let mut changed = weights.clone();
        changed[3] += 0.5;
        changed[7 * INPUTS + 19] -= 2.0;
        let part = LinearPart { graft: Some(graft), ..Default::default() };
        let expected = product(&changed, &bias, &x);
        require_close(&applied(Combine::OutputSum, &[(&part, 1.0)], &x), &expected);
    }

    #[test]
    fn dora_scales_the_rows_of_the_changed_weights() {
        let (x, weights, bias) = (input(), values(INPUTS * OUTPUTS, 77), values(OUTPUTS, 5));
        let mut lora = site(3, 1, 0.5);
        let factors: Vec<f32> = values(OUTPUTS, 8).iter().map(|v| 1.0 + 0.2 * v).collect();
        let (a, b) = (values(3 * INPUTS, 1), values(3 * OUTPUTS, 2));
        let changed: Vec<f32> = (0..OUTPUTS * INPUTS)
            .map(|at| {
                let (row, column) = (at / INPUTS, at % INPUTS);
                let low_rank: f32 =
                    (0..3).map(|r| b[r * OUTPUTS + row] * a[r * INPUTS + column]).sum();
                factors[row] * (weights[at] + 0.5 * low_rank)
            })
            .collect();
        lora.magnitude = Some(Magnitude { factors, base_bias: Some(bias.clone()) });
        let part = LinearPart::lora(lora);
        let expected = product(&changed, &bias, &x);
        require_close(&applied(Combine::OutputSum, &[(&part, 1.0)], &x), &expected);
        // A weight is linear in the delta, also beside a part that reads the output.
        let base = product(&weights, &bias, &x);
        let scaled = LinearPart { output_scale: Some(vec![0.5; OUTPUTS]), ..Default::default() };
        let both = applied(Combine::OutputSum, &[(&part, 0.25), (&scaled, -1.0)], &x);
        let sum: Vec<f32> =
            base.iter().zip(&expected).map(|(y, one)| y + 0.25 * (one - y) - 0.5 * y).collect();
        require_close(&both, &sum);
    }
}
