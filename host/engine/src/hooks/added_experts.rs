//! Feed-forwards that modules bring, run beside a layer's own for the rows that picked them.
//!
//! Rows of one module are computed together, whatever requests they belong to. A row's deltas are added in the order of its
//! modules' generations, each computed from what the layer's own wrote, so its bits do not depend on the rows beside it.

use polyskill_adapters::Generation;
use polyskill_adapters::weights::{Expert, FeedForward};
use polyskill_model::compute::Compute;
use polyskill_model::config::Activation;
use polyskill_model::decoder::activate;
use polyskill_model::kernels::matmul_dense;

use crate::hooks::RowSpan;

/// Runs an expert on some rows of a step, in buffers that stay.
#[derive(Debug, Default)]
pub(crate) struct ExpertRun {
    input: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    output: Vec<f32>,
}

impl ExpertRun {
    /// What the expert makes of each of the rows, in their order; `input` is `[rows of the step, hidden]`.
    pub(crate) fn run(
        &mut self,
        (compute, activation): (&Compute, Activation),
        expert: &Expert,
        rows: impl Iterator<Item = usize>,
        (input, hidden): (&[f32], usize),
    ) -> impl Iterator<Item = &[f32]> {
        self.input.clear();
        for row in rows {
            self.input.extend_from_slice(&input[row * hidden..(row + 1) * hidden]);
        }
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
    generation: Generation,
    row: usize,
    /// Where the weights are: span and module of its composition.
    place: (usize, u32),
    weight: f32,
}

/// Rows that picked modules with feed-forwards at one layer.
#[derive(Debug, Default)]
pub(crate) struct Picked {
    rows: Vec<PickedRow>,
    written: Vec<f32>,
    run: ExpertRun,
}

impl Picked {
    /// Adds the picks of a row that have a feed-forward at the layer.
    pub(crate) fn pick(
        &mut self,
        (index, span, layer): (usize, &RowSpan, usize),
        row: usize,
        picks: &[(u32, f32)],
    ) {
        for &(module, weight) in picks {
            let own = span.composition.weights(module).is_some_and(|weights| has(weights, layer));
            if own {
                let generation = span.composition.modules()[module as usize].module.generation();
                self.rows.push(PickedRow { generation, row, place: (index, module), weight });
            }
        }
    }

    /// Adds the deltas to what the layer's own feed-forward wrote.
    pub(crate) fn add(
        &mut self,
        (compute, activation): (&Compute, Activation),
        (spans, layer): (&[RowSpan], usize),
        (input, output): (&[f32], &mut [f32]),
    ) {
        let Some(num_rows) = spans.last().map(|span| span.rows.end) else { return };
        if self.rows.is_empty() {
            return;
        }
        let hidden = input.len() / num_rows;
        let Self { rows, written, run } = self;
        rows.sort_by_key(|at| (at.generation, at.row));
        written.clear();
        written.extend_from_slice(output);
        for group in rows.chunk_by(|a, b| a.generation == b.generation) {
            let (span, module) = group[0].place;
            let weights = spans[span].composition.weights(module);
            let Some(own) = weights.and_then(|weights| weights.feed_forwards.get(&layer)) else {
                continue;
            };
            let numbers = group.iter().map(|at| at.row);
            let made = run.run((compute, activation), &own.expert, numbers, (input, hidden));
            for (at, made) in group.iter().zip(made) {
                let place = at.row * hidden..(at.row + 1) * hidden;
                add_row(own, at.weight, made, (&written[place.clone()], &mut output[place]));
            }
        }
        rows.clear();
    }
}

fn has(weights: &polyskill_adapters::Weights, layer: usize) -> bool {
    weights.feed_forwards.contains_key(&layer)
}

/// w·E(x), less w·y₀ where the expert takes the place of the layer's own.
fn add_row(own: &FeedForward, weight: f32, made: &[f32], (written, output): (&[f32], &mut [f32])) {
    let values = output.iter_mut().zip(made).zip(written);
    match own.replaces {
        true => values.for_each(|((output, made), written)| *output += weight * (made - written)),
        false => values.for_each(|((output, made), _)| *output += weight * made),
    }
}
