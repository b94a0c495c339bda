//! Adding modules' deltas to the output of a projection.
//!
//! A row's delta is computed from its own picks in their order, so it does not depend on the batch.
//! [`reference`] is the specification; [`apply`] is the fast path.

use polyskill_model::Site;
use polyskill_model::compute::{Compute, SharedMut};
use polyskill_model::kernels::{add_scaled_rows, dots};

use crate::lora::{Lora, LoraSite};

/// How the picks of a row combine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combine {
    /// Σ w·s·B·(A·x).
    OutputSum,
    /// (Σ w·B)·(Σ w·A)·x with the scale of the first pick.
    AbMerge,
}

/// The picks of a step's rows at one site.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    /// Row `r` owns the picks `offsets[r] .. offsets[r + 1]`.
    pub offsets: Vec<u32>,
    /// Index into the call's modules.
    pub modules: Vec<u32>,
    /// Weight of each pick.
    pub weights: Vec<f32>,
}

impl Decision {
    /// Empties the decision for reuse.
    pub fn clear(&mut self) {
        self.offsets.clear();
        self.offsets.push(0);
        self.modules.clear();
        self.weights.clear();
    }

    /// Ends the current row.
    pub fn end_row(&mut self) {
        self.offsets.push(self.modules.len() as u32);
    }

    /// The picks of a row.
    pub fn row(&self, row: usize) -> impl Iterator<Item = (u32, f32)> + '_ {
        let range = self.offsets[row] as usize..self.offsets[row + 1] as usize;
        self.modules[range.clone()].iter().copied().zip(self.weights[range].iter().copied())
    }
}

/// One projection of a step.
#[derive(Debug)]
pub struct Projection<'a> {
    /// Where.
    pub site: Site,
    /// What it reads, `[rows, inputs]`.
    pub input: &'a [f32],
    /// What it wrote, `[rows, outputs]`; deltas are added here.
    pub output: &'a mut [f32],
}

/// Adds the picked modules' deltas to all rows, in parallel over rows.
///
/// # Panics
/// If the sizes do not agree or a pick names no module.
#[expect(unsafe_code, reason = "tasks write disjoint rows")]
pub fn apply(
    compute: &Compute,
    modules: &[&Lora],
    decision: &Decision,
    combine: impl Fn(usize) -> Combine + Sync,
    projection: Projection<'_>,
) {
    const ROWS_PER_TASK: usize = 4;
    let num_rows = decision.offsets.len() - 1;
    if decision.modules.is_empty() {
        return;
    }
    let Projection { site, input, output } = projection;
    let (inputs, outputs) = (input.len() / num_rows, output.len() / num_rows);
    let shared = SharedMut::new(output);
    compute.run(num_rows.div_ceil(ROWS_PER_TASK), &|task| {
        let mut scratch = Scratch::default();
        for row in task * ROWS_PER_TASK..((task + 1) * ROWS_PER_TASK).min(num_rows) {
            let x = &input[row * inputs..(row + 1) * inputs];
            // SAFETY: each row is written by one task.
            let y = unsafe { shared.slice(row * outputs, outputs) };
            let picks = decision
                .row(row)
                .filter_map(|(module, weight)| Some((modules[module as usize].at(site)?, weight)));
            match combine(row) {
                Combine::OutputSum => output_sum(picks, x, y, &mut scratch),
                Combine::AbMerge => ab_merge(&picks.collect::<Vec<_>>(), x, y, &mut scratch),
            }
        }
    });
}

#[derive(Default)]
struct Scratch {
    /// A·x of one pick, `[rank]`.
    inner: Vec<f32>,
    sum: Vec<f32>,
}

fn output_sum<'a>(
    picks: impl Iterator<Item = (&'a LoraSite, f32)>,
    x: &[f32],
    y: &mut [f32],
    scratch: &mut Scratch,
) {
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
    let Some(((first, _), _)) = picks.split_first().map(|(first, rest)| (*first, rest)) else { return };
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
        let dot: f64 = (0..x.len())
            .map(|at| f64::from(a.get(rank * x.len() + at)) * f64::from(x[at]))
            .sum();
        for (out, y) in y.iter_mut().enumerate() {
            let width = b.len() / lora.rank;
            *y += f64::from(weight) * f64::from(lora.scale) * dot * f64::from(b.get(rank * width + out));
        }
    }
}
