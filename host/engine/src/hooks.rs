//! Modules and routers on the model's hooks: decide, add deltas and record, per input group.
//!
//! One parallel region per input group does all three, over tasks of (rows × site). Nothing here
//! locks or waits; each task records into a place of its own.

#![expect(unsafe_code, reason = "tasks write disjoint rows and slots")]

pub(crate) mod added_experts;
pub(crate) mod decisions;
mod deltas;
mod edits;
mod embeddings;
pub(crate) mod expert_programs;
pub mod gates;
mod head;
pub(crate) mod prefix;
pub(crate) mod record;
pub(crate) mod shadow;

use std::ops::Range;
use std::sync::Arc;

use polyskill_adapters::edits::Point;
use polyskill_model::compute::{Compute, SharedMut};
use polyskill_model::config::Activation;
use polyskill_model::site::GroupKind;
use polyskill_model::{
    ExpertChoice, ExpertOutput, ExpertSlots, Hooks, InputGroup, Projection, Site, SiteOutput,
};

use crate::compose::composition::{Composition, Plan};
use crate::hooks::added_experts::{AddedExperts, FeedForwardMath};
use crate::hooks::decisions::{Decided, Decisions};
use crate::hooks::deltas::{Product, act};
use crate::hooks::expert_programs::PolicyExperts;
use crate::hooks::gates::GateBuffers;
use crate::hooks::record::Record;
use crate::hooks::shadow::Shadow;
use crate::step::trace::LayerExperts;

/// Most rows per task: enough to amortise a task.
const MAX_ROWS_PER_TASK: usize = 8;

/// Consecutive rows of a step that belong to one sequence.
#[derive(Debug)]
pub(crate) struct RowSpan {
    /// The rows' numbers in the step. Spans are ascending, without gaps.
    pub(crate) rows: Range<usize>,
    /// Position of the first row in its sequence.
    pub(crate) position: usize,
    /// Positions of the sequence that the prompt takes, those before it included.
    pub(crate) prompt_len: usize,
    /// The composition that the rows run on; spans of several requests may share one.
    pub(crate) composition: Arc<Composition>,
    /// The first row whose picks are recorded; none are without it.
    pub(crate) trace_from: Option<usize>,
    /// Records scores and the base's experts with them.
    pub(crate) trace_full: bool,
    /// A composition whose decisions are compared with those of recorded rows.
    pub(crate) shadow: Option<Arc<Shadow>>,
}

impl RowSpan {
    /// True for a row whose picks are recorded.
    pub(crate) fn is_traced(&self, row: usize) -> bool {
        self.trace_from.is_some_and(|from| row >= from)
    }
}

/// A row of the step at a site, and the span that it belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell {
    /// Index of the span.
    pub(crate) span: usize,
    /// Number of the site.
    pub(crate) site: usize,
    /// Number of the row in the step, not in the span.
    pub(crate) row: usize,
}

/// Values of a step, `[rows, width]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) width: usize,
}

impl<'a> Rows<'a> {
    /// Values of `num_rows` rows.
    pub(crate) fn of(values: &'a [f32], num_rows: usize) -> Self {
        Self { values, width: values.len() / num_rows.max(1) }
    }

    /// The values of one row.
    pub(crate) fn row(self, row: usize) -> &'a [f32] {
        &self.values[row * self.width..(row + 1) * self.width]
    }
}

/// The hooks of one step. All work on rows without modules is skipped, so these keep the base's
/// bits.
pub(crate) struct StepHooks<'a> {
    /// Threads, and the base's activation.
    math: FeedForwardMath<'a>,
    /// Token of each row.
    tokens: &'a [u32],
    /// The step's rows by sequence.
    spans: &'a [RowSpan],
    /// The rows on which modules can act at linears, cut for tasks.
    chunks: Vec<Chunk>,
    /// Decisions that were made ahead of the rows they are for.
    decisions: Decisions<'a>,
    /// Rows for the experts that policies bring to a sparse layer.
    policy_experts: PolicyExperts,
    /// Rows for the feed-forwards of modules.
    added_experts: AddedExperts,
    /// The layer whose gate projection ran last; a sparse layer has none.
    last_dense: Option<usize>,
    /// The record of the step so far.
    pub(crate) record: Record,
}

/// Some rows of one span, the rows of a task.
struct Chunk {
    span: usize,
    rows: Range<usize>,
}

impl<'a> StepHooks<'a> {
    /// The hooks of a step whose rows are laid out in `spans`.
    pub(crate) fn new(
        compute: &'a Compute,
        activation: Activation,
        tokens: &'a [u32],
        spans: &'a [RowSpan],
    ) -> Self {
        Self {
            math: FeedForwardMath { compute, activation },
            tokens,
            spans,
            chunks: chunks(spans, compute.num_threads()),
            decisions: Decisions::new(compute, spans),
            policy_experts: PolicyExperts::default(),
            added_experts: AddedExperts::default(),
            last_dense: None,
            record: Record::default(),
        }
    }

    /// Rows of the step, with and without modules.
    fn num_rows(&self) -> usize {
        self.spans.last().map_or(0, |span| span.rows.end)
    }

    /// Collects the rows that get feed-forwards of modules: of modules that act on every row, and
    /// of the picks at the layer's gate projection, whose input the feed-forward reads. `input` is
    /// `[rows, hidden_size]`.
    fn pick_feed_forwards(&mut self, layer: usize, input: Rows<'_>) {
        let site = Site { layer, projection: Projection::Gate }.index();
        // At a dense layer the gate projection was decided, and recorded, when its input was read.
        let is_first = self.last_dense != Some(layer);
        let (mut buffers, mut picks) = (GateBuffers::default(), Vec::new());
        for (index, span) in self.spans.iter().enumerate() {
            let composition = &span.composition;
            if !composition.has_feed_forwards {
                continue;
            }
            for row in span.rows.clone() {
                let cell = Cell { span: index, site, row };
                self.added_experts.pick(span, cell, &composition.always_on);
                self.added_experts.pick(span, cell, composition.plan.fixed_picks());
            }
            let Plan::Gated(gates) = &composition.plan else { continue };
            let undecided = |gate| !self.decisions.is_decided(index, gate);
            if is_first && gates.ahead_at(site).is_some_and(undecided) {
                self.decisions.decide_ahead(&[site], input);
            }
            for row in span.rows.clone() {
                let cell = Cell { span: index, site, row };
                match self.decisions.decide(cell, input.row(row), &mut buffers, &mut picks) {
                    Decided::Picks(_) => {
                        self.added_experts.pick(span, cell, &picks);
                        if is_first {
                            self.record.pick(span, cell, &picks, Vec::new());
                        }
                    }
                    Decided::Fallback if is_first => self.record.fallback_rows.push(row),
                    Decided::Fallback | Decided::Nothing => {}
                }
            }
        }
    }
}

/// The tasks' rows; none for spans on which no module can act. Small steps are cut finer, so that a
/// group with one site still feeds every thread.
fn chunks(spans: &[RowSpan], num_threads: usize) -> Vec<Chunk> {
    let num_rows = spans.last().map_or(0, |span| span.rows.end);
    let rows_per_task = (num_rows / (2 * num_threads)).clamp(1, MAX_ROWS_PER_TASK);
    let mut chunks = Vec::new();
    for (span, RowSpan { rows, composition, .. }) in spans.iter().enumerate() {
        if matches!(composition.plan, Plan::Base) && composition.always_on.is_empty() {
            continue;
        }
        for start in rows.clone().step_by(rows_per_task) {
            chunks.push(Chunk { span, rows: start..rows.end.min(start + rows_per_task) });
        }
    }
    chunks
}

impl Hooks for StepHooks<'_> {
    /// Adds the deltas of the group's sites. Decisions that later sites share, and calls of the
    /// router, come first.
    fn projected(&mut self, group: InputGroup, input: &[f32], outputs: &mut [SiteOutput<'_>]) {
        if self.chunks.is_empty() {
            return;
        }
        match group.kind {
            GroupKind::AttentionInput => self.decisions.start_layer(),
            GroupKind::FeedForwardInput => self.last_dense = Some(group.layer),
            _ => {}
        }
        let input = Rows::of(input, self.num_rows());
        let site_of = |projection| Site { layer: group.layer, projection }.index();
        let sites: Vec<usize> = outputs.iter().map(|output| site_of(output.projection)).collect();
        self.decisions.decide_ahead(&sites, input);
        let targets: Vec<_> = outputs
            .iter_mut()
            .map(|output| (output.width, SharedMut::new(output.values), output.linear))
            .collect();
        let num_tasks = self.chunks.len() * sites.len();
        let mut records: Vec<Record> = Vec::new();
        records.resize_with(num_tasks, Record::default);
        let slots = SharedMut::new(&mut records);
        let (chunks, spans, decisions) = (&self.chunks, self.spans, &self.decisions);
        self.math.compute.run(num_tasks, &|task| {
            let (chunk, target) = (&chunks[task / sites.len()], task % sites.len());
            let (width, values, linear) = targets[target];
            // SAFETY: each task has its slot.
            let record = &mut unsafe { slots.slice(task, 1) }[0];
            for row in chunk.rows.clone() {
                // SAFETY: a (row, site) belongs to one task.
                let y = unsafe { values.slice(row * width, width) };
                let cell = Cell { span: chunk.span, site: sites[target], row };
                let product = Product { linear, x: input.row(row), y };
                act(decisions, &spans[chunk.span], cell, product, record);
            }
        });
        records.into_iter().for_each(|record| self.record.extend(record));
    }

    /// Lets policies and routers' programs choose among experts, then records the choice that is
    /// run.
    fn routed(&mut self, layer: usize, logits: &[f32], choice: &mut ExpertChoice) {
        self.policy_experts.choose(self.spans, layer, logits, choice);
        let num_experts = logits.len() / choice.num_rows().max(1);
        for span in self.spans.iter().filter(|span| span.trace_full) {
            for row in span.trace_from.map_or(0..0, |from| from..span.rows.end) {
                let logits = logits[row * num_experts..(row + 1) * num_experts].to_vec();
                let experts = choice.row(row).to_vec();
                let at = LayerExperts { layer: layer as u32, logits, experts };
                self.record.experts.push((row, at));
            }
        }
    }

    fn expert_projected(
        &mut self,
        group: InputGroup,
        slots: &ExpertSlots<'_>,
        input: &[f32],
        outputs: &mut [ExpertOutput<'_>],
    ) {
        let compute = self.math.compute;
        expert_programs::add_loras(compute, self.spans, group.layer, slots, input, outputs);
    }

    fn fed_forward(&mut self, layer: usize, input: &[f32], output: &mut [f32]) {
        let input = Rows::of(input, self.num_rows());
        self.policy_experts.add(self.math, self.spans, layer, input, output);
        if self.spans.iter().any(|span| span.composition.has_feed_forwards) {
            self.pick_feed_forwards(layer, input);
            self.added_experts.add(self.math, self.spans, layer, input, output);
        }
    }

    fn embedded(&mut self, hidden: &mut [f32], scale: f32) {
        embeddings::embed(self.spans, self.tokens, hidden, scale);
    }

    fn attended(&mut self, layer: usize, heads: &mut [f32]) {
        edits::edit(self.spans, Point::Heads, layer, heads);
    }

    fn residual(&mut self, layer: usize, hidden: &mut [f32]) {
        edits::edit(self.spans, Point::Residual, layer, hidden);
    }

    fn scored(&mut self, rows: &[u32], normed: &[f32], logits: &mut [f32]) {
        head::score(self.math.compute, self.spans, rows, normed, logits);
    }
}
