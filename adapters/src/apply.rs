//! Adding modules' deltas to one row of a projection's output.
//!
//! A row's delta is computed from its own picks in their order, so it does not depend on the batch.
//! [`reference()`] is the specification; [`add_delta`] is the fast path.

use polyskill_model::kernels::{add_scaled_rows, dots};

use crate::lora::LoraSite;

/// How the picks of a row combine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combine {
    /// Σ w·s·B·(A·x).
    OutputSum,
    /// (Σ w·B)·(Σ w·A)·x with the scale of the first pick.
    AbMerge,
}

/// Adds the delta of a row's picks: `x` is what the projection reads, `y` what it wrote.
///
/// # Panics
/// If the sizes do not agree with the modules'.
pub fn add_delta(
    combine: Combine,
    picks: &[(&LoraSite, f32)],
    x: &[f32],
    y: &mut [f32],
    scratch: &mut Scratch,
) {
    match combine {
        Combine::OutputSum => output_sum(picks, x, y, scratch),
        Combine::AbMerge => ab_merge(picks, x, y, scratch),
    }
}

/// Buffers reused from row to row.
#[derive(Debug, Default)]
pub struct Scratch {
    /// A·x of one pick, `[rank]`.
    inner: Vec<f32>,
    sum: Vec<f32>,
}

fn output_sum(picks: &[(&LoraSite, f32)], x: &[f32], y: &mut [f32], scratch: &mut Scratch) {
    for (lora, weight) in picks {
        let inner = &mut scratch.inner;
        inner.resize(lora.rank, 0.0);
        dots(x, lora.a.as_slice(), inner);
        let factor = weight * lora.scale;
        inner.iter_mut().for_each(|value| *value *= factor);
        add_scaled_rows(y, inner, lora.b_transposed.as_slice());
    }
}

/// Expanded over pairs: Σₑ Σ_f wₑ·w_f·B_f·(Aₑ·x), for picks of one rank.
fn ab_merge(picks: &[(&LoraSite, f32)], x: &[f32], y: &mut [f32], scratch: &mut Scratch) {
    let Some((first, _)) = picks.first() else { return };
    let Scratch { inner, sum } = scratch;
    let rank = picks.iter().map(|(lora, _)| lora.rank).max().unwrap_or(0);
    sum.clear();
    sum.resize(rank, 0.0);
    for (lora, weight) in picks {
        inner.resize(lora.rank, 0.0);
        dots(x, lora.a.as_slice(), inner);
        sum.iter_mut().zip(&*inner).for_each(|(sum, value)| *sum += weight * value);
    }
    for (lora, weight) in picks {
        inner.clear();
        inner.extend(sum[..lora.rank].iter().map(|value| value * weight * first.scale));
        add_scaled_rows(y, inner, lora.b_transposed.as_slice());
    }
}

/// The specification of the output sum, one scalar at a time in f64.
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
    use super::*;
    use crate::lora::Elements;

    fn site(rank: usize, seed: usize, scale: f32) -> LoraSite {
        let values = |len: usize, salt: usize| {
            let value = |at: usize| ((at * 7_919 + salt * 104_729) % 211) as f32 / 105.0 - 1.0;
            Elements::F32((0..len).map(value).collect())
        };
        LoraSite {
            rank,
            scale,
            a: values(rank * 20, seed),
            b_transposed: values(rank * 12, seed + 1),
        }
    }

    #[test]
    fn the_fast_path_agrees_with_the_specification() {
        let (first, second) = (site(3, 1, 2.0), site(5, 9, 0.5));
        let x: Vec<f32> = (0..20).map(|at| (at as f32 * 0.7).sin()).collect();
        let mut fast = vec![0.25; 12];
        let mut exact = vec![0.25; 12];
        let picks = [(&first, 0.7), (&second, -1.5)];
        add_delta(Combine::OutputSum, &picks, &x, &mut fast, &mut Scratch::default());
        for (lora, weight) in picks {
            reference(lora, weight, &x, &mut exact);
        }
        for (fast, exact) in fast.iter().zip(&exact) {
            assert!((f64::from(*fast) - exact).abs() < 1e-4, "{fast} {exact}");
        }
    }

    #[test]
    fn merging_before_and_after_agree_for_one_module() {
        let lora = site(4, 3, 1.5);
        let x: Vec<f32> = (0..20).map(|at| (at as f32).cos()).collect();
        let (mut sum, mut merged) = (vec![0.0; 12], vec![0.0; 12]);
        add_delta(Combine::OutputSum, &[(&lora, 1.0)], &x, &mut sum, &mut Scratch::default());
        add_delta(Combine::AbMerge, &[(&lora, 1.0)], &x, &mut merged, &mut Scratch::default());
        for (sum, merged) in sum.iter().zip(&merged) {
            assert!((sum - merged).abs() < 1e-5);
        }
    }
}
