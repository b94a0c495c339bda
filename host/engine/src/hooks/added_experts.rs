//! Feed-forwards that modules bring, run next to a layer's own for the rows that picked them.
//!
//! Rows of one module are computed together, whatever requests they belong to. A row's deltas are
//! added in the order of its modules' generations, each computed from the output of the layer's
//! own, so its bits do not depend on the other rows of the step.

use polyskill_adapters::Generation;
use polyskill_adapters::weights::{Expert, FeedForward};
use polyskill_model::Site;
use polyskill_model::compute::Compute;
use polyskill_model::config::Activation;
use polyskill_model::decoder::activate;
use polyskill_model::kernels::matmul_dense;

use crate::hooks::{Cell, RowSpan, Rows};

/// The threads and the activation of feed-forwards.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FeedForwardMath<'a> {
    pub(crate) compute: &'a Compute,
    pub(crate) activation: Activation,
}

/// Runs an expert on some rows of a step, in buffers that stay.
#[derive(Debug, Default)]
pub(crate) struct ExpertRun {
    /// The rows that the expert reads, gathered, `[count, hidden]`.
    input: Vec<f32>,
    /// The gate projection, then its activation times `up`, `[count, width]`.
    gate: Vec<f32>,
    /// The up projection, `[count, width]`.
    up: Vec<f32>,
    /// The down projection, `[count, hidden]`.
    output: Vec<f32>,
}

impl ExpertRun {
    /// The expert's output for each of the rows, in their order; `input` is `[rows of the step,
    /// hidden]`.
    pub(crate) fn run(
        &mut self,
        math: FeedForwardMath<'_>,
        expert: &Expert,
        rows: impl Iterator<Item = usize>,
        input: Rows<'_>,
    ) -> impl Iterator<Item = &[f32]> {
        self.input.clear();
        for row in rows {
            self.input.extend_from_slice(input.row(row));
        }
        let FeedForwardMath { compute, activation } = math;
        let hidden = input.width;
        let (count, width) = (self.input.len() / hidden, expert.width);
        self.gate.resize(count * width, 0.0);
        self.up.resize(count * width, 0.0);
        self.output.resize(count * hidden, 0.0);
        matmul_dense(compute, &self.input, expert.gate.as_slice(), hidden, &mut self.gate);
        matmul_dense(compute, &self.input, expert.up.as_slice(), hidden, &mut self.up);
        activate(activation, &mut self.gate, &self.up);
        matmul_dense(compute, &self.gate, expert.down.as_slice(), width, &mut self.output);
        self.output.chunks_exact(hidden)
    }
}

/// A row that a module's feed-forward is run for.
#[derive(Clone, Copy, Debug)]
struct PickedRow {
    /// The module, whatever composition it is in: rows are grouped by this.
    generation: Generation,
    /// Number of the row in the step.
    row: usize,
    /// The span whose composition has the weights.
    span: usize,
    /// The module's index in that composition.
    module: u32,
    /// The weight of the pick.
    weight: f32,
}

/// Rows that picked modules with feed-forwards at one layer.
#[derive(Debug, Default)]
pub(crate) struct AddedExperts {
    /// Rows of the layer, collected by [`AddedExperts::pick`]; empty after each layer.
    rows: Vec<PickedRow>,
    /// The output of the layer's own feed-forward, `[rows, hidden]`.
    written: Vec<f32>,
    /// Buffers of the runs.
    run: ExpertRun,
}

impl AddedExperts {
    /// Notes the picks of a row that have a feed-forward at the layer; those without are passed
    /// over.
    pub(crate) fn pick(&mut self, span: &RowSpan, cell: Cell, picks: &[(u32, f32)]) {
        let layer = Site::from_index(cell.site).layer;
        for &(module, weight) in picks {
            let own = span.composition.weights(module).is_some_and(|weights| has(weights, layer));
            if own {
                let generation = span.composition.modules()[module as usize].module.generation();
                let Cell { span, row, .. } = cell;
                self.rows.push(PickedRow { generation, row, span, module, weight });
            }
        }
    }

    /// Runs the feed-forwards of the rows that were noted and adds the deltas to `output`, `[rows,
    /// hidden]`, which holds the output of the layer's own. Forgets the rows.
    pub(crate) fn add(
        &mut self,
        math: FeedForwardMath<'_>,
        spans: &[RowSpan],
        layer: usize,
        input: Rows<'_>,
        output: &mut [f32],
    ) {
        if self.rows.is_empty() {
            return;
        }
        let hidden = input.width;
        let Self { rows, written, run } = self;
        rows.sort_by_key(|at| (at.generation, at.row));
        written.clear();
        written.extend_from_slice(output);
        for group in rows.chunk_by(|a, b| a.generation == b.generation) {
            let PickedRow { span, module, .. } = group[0];
            let weights = spans[span].composition.weights(module);
            let Some(own) = weights.and_then(|weights| weights.feed_forward(layer)) else {
                continue;
            };
            let numbers = group.iter().map(|at| at.row);
            let made = run.run(math, &own.expert, numbers, input);
            for (at, made) in group.iter().zip(made) {
                let place = at.row * hidden..(at.row + 1) * hidden;
                add_row(own, at.weight, made, &written[place.clone()], &mut output[place]);
            }
        }
        rows.clear();
    }
}

/// True where a module has a feed-forward at a layer.
fn has(weights: &polyskill_adapters::Weights, layer: usize) -> bool {
    weights.feed_forward(layer).is_some()
}

/// w·E(x), less w·y₀ where the expert takes the place of the layer's own.
fn add_row(own: &FeedForward, weight: f32, made: &[f32], written: &[f32], output: &mut [f32]) {
    let values = output.iter_mut().zip(made).zip(written);
    match own.replaces {
        true => values.for_each(|((output, made), written)| *output += weight * (made - written)),
        false => values.for_each(|((output, made), _)| *output += weight * made),
    }
}
