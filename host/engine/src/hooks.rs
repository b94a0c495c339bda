//! Modules and routers on the model's hooks: score, pick and apply, per input group.
//!
//! One parallel region per input group does all three, over tasks of (rows × site). Nothing here locks or
//! waits; what tasks record goes to slots of their own.

#![expect(unsafe_code, reason = "tasks write disjoint rows and slots")]

pub(crate) mod added_experts;
pub(crate) mod beyond_linears;
pub(crate) mod expert_choice;
pub mod gates;
pub(crate) mod shadow;

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use polyskill_adapters::apply::{Combine, Scratch, add_delta};
use polyskill_adapters::edits::Point;
use polyskill_model::compute::{Compute, SharedMut};
use polyskill_model::config::Activation;
use polyskill_model::kernels::prefetch;
use polyskill_model::site::GroupKind;
use polyskill_model::{
    ExpertChoice, ExpertOutput, ExpertSlots, Hooks, InputGroup, Linear, Projection, Site,
    SiteOutput,
};
use polyskill_sdk::{Batch, Decision};

use crate::compose::composition::{Composition, Plan};
use crate::hooks::added_experts::Picked;
use crate::hooks::expert_choice::{self as experts, Brought};
use crate::hooks::gates::{Gate, GateBuffers};
use crate::hooks::shadow::{Agreement, Shadow};
use crate::routers::version::RouterSlot;
use crate::step::trace::{LayerExperts, SitePicks};

/// Most rows per task: enough to amortise a task.
const MAX_ROWS_PER_TASK: usize = 8;

/// Positions between those at which a shadow is compared: deciding twice costs what a router costs.
const SHADOW_EVERY: usize = 8;

/// Consecutive rows of a step that belong to one sequence.
#[derive(Debug)]
pub(crate) struct RowSpan {
    pub(crate) rows: Range<usize>,
    /// Position of the first row in its sequence.
    pub(crate) position: usize,
    /// Positions of the sequence that the prompt takes, those before it included.
    pub(crate) prompt_len: usize,
    pub(crate) composition: Arc<Composition>,
    /// Whether picks of these rows are recorded, and from which row on.
    pub(crate) trace_from: Option<usize>,
    /// Whether scores and the base's experts are recorded with them.
    pub(crate) trace_full: bool,
    /// What is looked at beside the rows that are recorded.
    pub(crate) shadow: Option<Arc<Shadow>>,
}

/// What a row's picks were, where they are recorded.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) row: usize,
    pub(crate) picks: SitePicks,
}

/// The hooks of one step.
pub(crate) struct Routing<'a> {
    compute: &'a Compute,
    /// Token of each row.
    tokens: &'a [u32],
    spans: &'a [RowSpan],
    chunks: Vec<Chunk>,
    /// Decisions that later sites of a layer reuse: (span, gate) → picks per row of the span.
    shared: Vec<SharedDecision>,
    /// Time that each router has spent in this step, by the address of its slot.
    spent: Vec<(usize, Duration)>,
    /// What routers answer; kept for its memory.
    decision: Decision,
    activation: Activation,
    brought: Brought,
    picked: Picked,
    /// The layer whose gate projection ran last; a sparse layer has none.
    last_dense: Option<usize>,
    pub(crate) recorded: Vec<Recorded>,
    /// Rows with what a sparse layer did with them.
    pub(crate) recorded_experts: Vec<(usize, LayerExperts)>,
    /// Rows with how far a shadow decided alike.
    pub(crate) agreed: Vec<(usize, Agreement)>,
    /// Rows, once per site, where the router's answer was not usable.
    pub(crate) fallback_rows: Vec<usize>,
}

/// Some rows of one span.
struct Chunk {
    span: usize,
    rows: Range<usize>,
}

struct SharedDecision {
    span: usize,
    gate: usize,
    /// `None` for rows that fall back.
    picks: Vec<Option<Vec<(u32, f32)>>>,
}

/// What one task leaves behind.
#[derive(Default)]
struct TaskOutcome {
    recorded: Vec<Recorded>,
    agreed: Vec<(usize, Agreement)>,
    fallback_rows: Vec<usize>,
}

#[derive(Default)]
struct Buffers {
    gate: GateBuffers,
    apply: Scratch,
    picks: Vec<(u32, f32)>,
    shadow_picks: Vec<(u32, f32)>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

impl<'a> Routing<'a> {
    pub(crate) fn new(
        (compute, activation): (&'a Compute, Activation),
        tokens: &'a [u32],
        spans: &'a [RowSpan],
    ) -> Self {
        let mut chunks = Vec::new();
        // Small steps are cut finer, so that a group with one site still feeds every thread.
        let num_rows = spans.last().map_or(0, |span| span.rows.end);
        let rows_per_task = (num_rows / (2 * compute.num_threads())).clamp(1, MAX_ROWS_PER_TASK);
        for (span, RowSpan { rows, composition, .. }) in spans.iter().enumerate() {
            if matches!(composition.plan, Plan::Base) && composition.beside.is_empty() {
                continue;
            }
            for start in rows.clone().step_by(rows_per_task) {
                chunks.push(Chunk { span, rows: start..rows.end.min(start + rows_per_task) });
            }
        }
        Self {
            compute,
            tokens,
            spans,
            chunks,
            shared: Vec::new(),
            spent: Vec::new(),
            decision: Decision::default(),
            activation,
            brought: Brought::default(),
            picked: Picked::default(),
            last_dense: None,
            recorded: Vec::new(),
            recorded_experts: Vec::new(),
            agreed: Vec::new(),
            fallback_rows: Vec::new(),
        }
    }

    /// Decides what must be known before the rows of this group are computed.
    fn decide_ahead(&mut self, layer_start: bool, sites: &[usize], input: &[f32], inputs: usize) {
        if layer_start {
            self.shared.clear();
        }
        for (index, span) in self.spans.iter().enumerate() {
            let Plan::Gated(gates) = &span.composition.plan else { continue };
            for gate in sites.iter().filter_map(|&site| gates.ahead_at(site)) {
                if gates.gate(gate).routed().is_some() {
                    self.ask_router(index, gate, input, inputs);
                    continue;
                }
                let rows = span.rows.clone();
                let mut picks = vec![None; rows.len()];
                let slots = SharedMut::new(&mut picks);
                self.compute.run(rows.len(), &|offset| {
                    let row = rows.start + offset;
                    let x = &input[row * inputs..(row + 1) * inputs];
                    BUFFERS.with_borrow_mut(|buffers| {
                        let mut row_picks = Vec::new();
                        let usable = gates.gate(gate).run(x, &mut buffers.gate, &mut row_picks);
                        // SAFETY: each row has its slot.
                        let slot = &mut unsafe { slots.slice(offset, 1) }[0];
                        *slot = usable.then_some(row_picks);
                    });
                });
                self.shared.push(SharedDecision { span: index, gate, picks });
            }
        }
    }

    /// Lets the router decide a gate for all rows of a composition, in one call.
    fn ask_router(&mut self, first: usize, gate_index: usize, input: &[f32], inputs: usize) {
        let composition = &self.spans[first].composition;
        let (Plan::Gated(gates), Some(slot)) = (&composition.plan, &composition.slot) else {
            return;
        };
        let gate = gates.gate(gate_index);
        let Some((hidden, arguments)) = gate.routed() else { return };
        if self.is_decided(first, gate_index) {
            return;
        }
        let spans: Vec<usize> = (first..self.spans.len())
            .filter(|&span| Arc::ptr_eq(&self.spans[span].composition, composition))
            .collect();
        let rows: Vec<usize> =
            spans.iter().flat_map(|&span| self.spans[span].rows.clone()).collect();
        let columns = gate.candidates().len();
        let width = if hidden { inputs } else { 0 };
        let mut asked = Asked::new(rows.len(), columns, width);
        asked.hand_over(self.compute, gate, (&rows, input, inputs));
        let batch = Batch {
            site: gate.site as u32,
            num_rows: rows.len(),
            candidates: gate.candidates(),
            scores: if gate.scores() { &asked.scores } else { &[] },
            hidden: &asked.hidden,
            arguments,
        };
        let mut decision = std::mem::take(&mut self.decision);
        let answered = self.has_time(slot) && {
            let started = Instant::now();
            let routed = slot.route(&batch, &mut decision);
            self.spend(slot, started.elapsed());
            routed.is_ok()
        };
        let picks = checked(slot, (answered, &decision), gate.candidates(), &asked.usable);
        self.decision = decision;
        let mut picks = picks.into_iter();
        for span in spans {
            let picks = picks.by_ref().take(self.spans[span].rows.len()).collect();
            self.shared.push(SharedDecision { span, gate: gate_index, picks });
        }
    }

    /// Whether a router may be asked once more in this step.
    fn has_time(&self, slot: &Arc<RouterSlot>) -> bool {
        let spent = self.spent.iter().find(|(known, _)| *known == Arc::as_ptr(slot).addr());
        let num_rows = self.spans.last().map_or(0, |span| span.rows.end);
        spent.zip(slot.step_time(num_rows)).is_none_or(|((_, spent), most)| *spent <= most)
    }

    /// Adds to a router's time; what goes beyond its share of the step is a fault, once.
    fn spend(&mut self, slot: &Arc<RouterSlot>, time: Duration) {
        let address = Arc::as_ptr(slot).addr();
        match self.spent.iter_mut().find(|(known, _)| *known == address) {
            Some((_, spent)) => *spent += time,
            None => self.spent.push((address, time)),
        }
        if !self.has_time(slot) {
            slot.count_fault("`route` took longer in one step than `step_milliseconds` allows");
        }
    }

    /// Picks of a row at a site into `picks`, with how they combine; `None` where nothing acts.
    fn decide(
        &self,
        (span, site, row): (usize, usize, usize),
        x: &[f32],
        buffers: &mut GateBuffers,
        picks: &mut Vec<(u32, f32)>,
    ) -> Option<(Combine, bool)> {
        match &self.spans[span].composition.plan {
            Plan::Base => None,
            Plan::Fixed { picks: fixed, combine } => {
                picks.clear();
                picks.extend_from_slice(fixed);
                Some((*combine, true))
            }
            Plan::Gated(gates) => {
                let site_gate = gates.at(site)?;
                let gate = gates.gate(site_gate.gate);
                if !gate.is_ahead() {
                    return Some((site_gate.combine, gate.run(x, buffers, picks)));
                }
                let shared = self
                    .shared
                    .iter()
                    .find(|shared| shared.span == span && shared.gate == site_gate.gate)?;
                let decided = &shared.picks[row - self.spans[span].rows.start];
                picks.clear();
                picks.extend(decided.iter().flatten());
                Some((site_gate.combine, decided.is_some()))
            }
        }
    }

    /// Which rows get which feed-forwards of modules: those that act on every row, and the picks at the layer's gate
    /// projection, whose input the feed-forward reads.
    fn pick_feed_forwards(&mut self, layer: usize, input: &[f32]) {
        let num_rows = self.spans.last().map_or(0, |span| span.rows.end);
        let inputs = input.len() / num_rows.max(1);
        let site = Site { layer, projection: Projection::Gate }.index();
        let mut picked = std::mem::take(&mut self.picked);
        let mut buffers = Buffers::default();
        for (index, span) in self.spans.iter().enumerate() {
            let RowSpan { rows, composition, .. } = span;
            if !composition.has_feed_forwards {
                continue;
            }
            let place = (index, span, layer);
            for row in rows.clone() {
                picked.pick(place, row, &composition.beside);
                picked.pick(place, row, composition.plan.fixed_picks());
            }
            let Plan::Gated(gates) = &composition.plan else { continue };
            // At a dense layer the gate projection was decided, and recorded, when its input was read.
            let first_time = self.last_dense != Some(layer);
            if first_time && gates.ahead_at(site).is_some_and(|gate| !self.is_decided(index, gate))
            {
                self.decide_ahead(false, &[site], input, inputs);
            }
            for row in rows.clone() {
                let x = &input[row * inputs..(row + 1) * inputs];
                let Buffers { gate, picks, .. } = &mut buffers;
                match self.decide((index, site, row), x, gate, picks) {
                    Some((_, true)) => {
                        picked.pick(place, row, picks);
                        if first_time {
                            self.record(index, (site, row), picks);
                        }
                    }
                    Some((_, false)) if first_time => self.fallback_rows.push(row),
                    _ => {}
                }
            }
        }
        self.picked = picked;
    }

    fn is_decided(&self, span: usize, gate: usize) -> bool {
        self.shared.iter().any(|shared| shared.span == span && shared.gate == gate)
    }

    fn record(&mut self, span: usize, (site, row): (usize, usize), picks: &[(u32, f32)]) {
        if self.spans[span].trace_from.is_some_and(|from| row >= from) {
            let scores = Vec::new();
            let picks = SitePicks { site: site as u32, picks: picks.to_vec(), scores };
            self.recorded.push(Recorded { row, picks });
        }
    }

    /// The gate that decides each row of a site by itself, so that its scores are at hand.
    fn ranked(&self, span: usize, site: usize) -> Option<(&Gate, Combine)> {
        let Plan::Gated(gates) = &self.spans[span].composition.plan else { return None };
        let at = gates.at(site)?;
        let gate = gates.gate(at.gate);
        (!gate.is_ahead()).then_some((gate, at.combine))
    }

    /// One row at one site: decide, apply, record.
    fn act(
        &self,
        (span, site, row): (usize, usize, usize),
        linear: &Linear,
        (x, y): (&[f32], &mut [f32]),
        buffers: &mut Buffers,
        outcome: &mut TaskOutcome,
    ) {
        let Buffers { gate, apply, picks, shadow_picks } = buffers;
        let RowSpan { composition, trace_from, trace_full, shadow, .. } = &self.spans[span];
        let is_recorded = trace_from.is_some_and(|from| row >= from);
        let ranked = (is_recorded && *trace_full).then(|| self.ranked(span, site)).flatten();
        let (decided, scores) = match ranked {
            Some((gate_here, combine)) => {
                let (usable, scores) = gate_here.run_ranked(x, gate, picks);
                (Some((combine, usable)), scores)
            }
            None => (self.decide((span, site, row), x, gate, picks), Vec::new()),
        };
        let picked = match decided {
            Some((_, true)) => picks.as_slice(),
            Some((_, false)) => {
                outcome.fallback_rows.push(row);
                &[]
            }
            None => &[],
        };
        let site_key = Site::from_index(site);
        let part = |&(module, weight): &(u32, f32)| {
            Some((composition.weights(module)?.at(site_key)?, weight))
        };
        let beside: Vec<_> = composition.beside.iter().filter_map(part).collect();
        let acting: Vec<_> = picked.iter().filter_map(part).collect();
        for lora in beside.iter().chain(&acting).filter_map(|(part, _)| part.lora.as_ref()) {
            prefetch(lora.a.as_slice());
            prefetch(lora.b_transposed.as_slice());
        }
        let combine = decided.map_or(Combine::OutputSum, |(combine, _)| combine);
        add_delta(combine, (&beside, &acting), Some(linear), (x, y), apply);
        let position = self.spans[span].position + row - self.spans[span].rows.start;
        let is_compared = is_recorded && position.is_multiple_of(SHADOW_EVERY);
        if let Some(shadow) = shadow.as_ref().filter(|_| is_compared) {
            let compared = shadow.compare(site, x, picked, (gate, shadow_picks));
            outcome.agreed.extend(compared.map(|agreement| (row, agreement)));
        }
        if matches!(decided, Some((_, true))) && is_recorded {
            let picks = SitePicks { site: site as u32, picks: picks.clone(), scores };
            outcome.recorded.push(Recorded { row, picks });
        }
    }
}

/// What a router is asked about.
struct Asked {
    /// `[rows, columns]`
    scores: Vec<f32>,
    /// `[rows, width]`, or empty
    hidden: Vec<f32>,
    /// Rows whose scores are numbers.
    usable: Vec<bool>,
    columns: usize,
    width: usize,
}

impl Asked {
    fn new(rows: usize, columns: usize, width: usize) -> Self {
        Self {
            scores: vec![0.0; rows * columns],
            hidden: vec![0.0; rows * width],
            usable: vec![false; rows],
            columns,
            width,
        }
    }

    /// Scores all rows.
    fn hand_over(
        &mut self,
        compute: &Compute,
        gate: &Gate,
        (rows, input, inputs): (&[usize], &[f32], usize),
    ) {
        let (columns, width) = (self.columns, self.width);
        let scores = SharedMut::new(&mut self.scores);
        let hidden = SharedMut::new(&mut self.hidden);
        let usable = SharedMut::new(&mut self.usable);
        compute.run(rows.len(), &|at| {
            let x = &input[rows[at] * inputs..(rows[at] + 1) * inputs];
            // SAFETY: each row has its slots.
            let (scores, hidden, usable) = unsafe {
                (
                    scores.slice(at * columns, columns),
                    hidden.slice(at * width, width),
                    usable.slice(at, 1),
                )
            };
            BUFFERS.with_borrow_mut(|buffers| {
                usable[0] = gate.hand_over(x, &mut buffers.gate, (scores, hidden));
            });
        });
    }
}

/// Checks a router's answer row by row; `None` for rows that fall back.
fn checked(
    slot: &RouterSlot,
    (answered, decision): (bool, &Decision),
    candidates: &[u32],
    usable: &[bool],
) -> Vec<Option<Vec<(u32, f32)>>> {
    if !answered {
        return vec![None; usable.len()];
    }
    if let Err(reason) = decision.check_rows(usable.len()) {
        slot.health.invalid(usable.len() as u64, &reason);
        return vec![None; usable.len()];
    }
    let row = |(row, &usable): (usize, &bool)| {
        let mut picks = Vec::new();
        if let Err(reason) = decision.row(row, candidates.len(), &mut picks) {
            slot.health.invalid(1, &format!("row {row}: {reason}"));
            return None;
        }
        // In ascending order, as a program's picks are: the sum's order is part of the result.
        picks.sort_unstable_by_key(|(column, _)| *column);
        picks.iter_mut().for_each(|(column, _)| *column = candidates[*column as usize]);
        usable.then_some(picks)
    };
    usable.iter().enumerate().map(row).collect()
}

impl Hooks for Routing<'_> {
    fn projected(&mut self, group: InputGroup, input: &[f32], outputs: &mut [SiteOutput<'_>]) {
        if self.chunks.is_empty() {
            return;
        }
        if group.kind == GroupKind::FeedForwardInput {
            self.last_dense = Some(group.layer);
        }
        let num_rows = outputs[0].values.len() / outputs[0].width;
        let inputs = input.len() / num_rows;
        let site_of = |projection| Site { layer: group.layer, projection }.index();
        let sites: Vec<usize> = outputs.iter().map(|output| site_of(output.projection)).collect();
        self.decide_ahead(sites[0].is_multiple_of(7), &sites, input, inputs);
        let targets: Vec<_> = outputs
            .iter_mut()
            .map(|output| (output.width, SharedMut::new(output.values), output.linear))
            .collect();
        let num_tasks = self.chunks.len() * sites.len();
        let mut outcomes: Vec<TaskOutcome> = Vec::new();
        outcomes.resize_with(num_tasks, TaskOutcome::default);
        let slots = SharedMut::new(&mut outcomes);
        let this = &*self;
        self.compute.run(num_tasks, &|task| {
            let (chunk, target) = (&this.chunks[task / sites.len()], task % sites.len());
            let (width, values, linear) = targets[target];
            // SAFETY: each task has its slot.
            let outcome = &mut unsafe { slots.slice(task, 1) }[0];
            BUFFERS.with_borrow_mut(|buffers| {
                for row in chunk.rows.clone() {
                    let x = &input[row * inputs..(row + 1) * inputs];
                    // SAFETY: a (row, site) belongs to one task.
                    let y = unsafe { values.slice(row * width, width) };
                    let place = (chunk.span, sites[target], row);
                    this.act(place, linear, (x, y), buffers, outcome);
                }
            });
        });
        for outcome in outcomes {
            self.fallback_rows.extend(outcome.fallback_rows);
            self.recorded.extend(outcome.recorded);
            self.agreed.extend(outcome.agreed);
        }
    }

    fn routed(&mut self, layer: usize, logits: &[f32], choice: &mut ExpertChoice) {
        self.brought.choose(self.spans, layer, logits, choice);
        let num_experts = logits.len() / choice.num_rows().max(1);
        for span in self.spans.iter().filter(|span| span.trace_full) {
            for row in span.trace_from.map_or(0..0, |from| from..span.rows.end) {
                let logits = logits[row * num_experts..(row + 1) * num_experts].to_vec();
                let experts = choice.row(row).to_vec();
                let at = LayerExperts { layer: layer as u32, logits, experts };
                self.recorded_experts.push((row, at));
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
        experts::add_loras(self.compute, self.spans, (group.layer, slots, input), outputs);
    }

    fn fed_forward(&mut self, layer: usize, input: &[f32], output: &mut [f32]) {
        self.brought.add((self.compute, self.activation), self.spans, layer, (input, output));
        if self.spans.iter().any(|span| span.composition.has_feed_forwards) {
            self.pick_feed_forwards(layer, input);
            let by = (self.compute, self.activation);
            self.picked.add(by, (self.spans, layer), (input, output));
        }
    }

    fn embedded(&mut self, hidden: &mut [f32], scale: f32) {
        beyond_linears::embed(self.spans, self.tokens, hidden, scale);
    }

    fn attended(&mut self, layer: usize, heads: &mut [f32]) {
        beyond_linears::edit(self.spans, (Point::Heads, layer), heads);
    }

    fn residual(&mut self, layer: usize, hidden: &mut [f32]) {
        beyond_linears::edit(self.spans, (Point::Residual, layer), hidden);
    }

    fn scored(&mut self, rows: &[u32], normed: &[f32], logits: &mut [f32]) {
        beyond_linears::score(self.compute, self.spans, rows, (normed, logits));
    }
}
