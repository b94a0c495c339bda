//! Decisions: the picks of a row at a site, by a fixed mixture, a gate program, or a call of the
//! router.

#![expect(unsafe_code, reason = "tasks write disjoint slots")]

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use polyskill_adapters::apply::Combine;
use polyskill_model::compute::{Compute, SharedMut};
use polyskill_sdk::{Batch, Decision};

use crate::compose::MAX_WEIGHT;
use crate::compose::composition::Plan;
use crate::hooks::gates::{Gate, GateBuffers};
use crate::hooks::{Cell, RowSpan, Rows};
use crate::routers::version::RouterVersion;

thread_local! {
    static BUFFERS: RefCell<GateBuffers> = RefCell::default();
}

/// The decisions of one step.
pub(crate) struct Decisions<'a> {
    /// The threads of the step.
    compute: &'a Compute,
    /// The step's rows by sequence.
    spans: &'a [RowSpan],
    /// Decisions that were made ahead, which sites of the layer read; emptied at each layer's
    /// start.
    shared: Vec<SharedDecision>,
    /// Time that each router has spent in this step.
    spent: Vec<(Arc<RouterVersion>, Duration)>,
    /// The buffer for answers of routers, reused from call to call.
    decision: Decision,
}

/// The picks of a gate for all rows of a span.
struct SharedDecision {
    /// Index of the span.
    span: usize,
    /// Index of the gate among those of the span's plan.
    gate: usize,
    /// Per row of the span the picks, as indices of modules with weights; `None` for rows that fall
    /// back.
    picks: Vec<Option<Vec<(u32, f32)>>>,
}

/// The outcome of deciding a row at a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decided {
    /// Nothing decides here: the base answers.
    Nothing,
    /// There are picks, which combine so.
    Picks(Combine),
    /// The router's answer was not usable: the base answers in its place.
    Fallback,
}

impl Decided {
    /// The outcome of a program: picks, or a fallback where they are not usable.
    fn usable(usable: bool, combine: Combine) -> Self {
        if usable { Self::Picks(combine) } else { Self::Fallback }
    }
}

impl<'a> Decisions<'a> {
    /// Nothing is decided yet.
    pub(super) fn new(compute: &'a Compute, spans: &'a [RowSpan]) -> Self {
        let (shared, spent) = (Vec::new(), Vec::new());
        Self { compute, spans, shared, spent, decision: Decision::default() }
    }

    /// Forgets the decisions that the sites of one layer share.
    pub(super) fn start_layer(&mut self) {
        self.shared.clear();
    }

    /// Decides the gates of these sites that must be known before the sites' rows are computed:
    /// those that several sites share, and those of the router. `rows` is the input of the sites.
    pub(super) fn decide_ahead(&mut self, sites: &[usize], rows: Rows<'_>) {
        for (index, span) in self.spans.iter().enumerate() {
            let Plan::Gated(gates) = &span.composition.plan else { continue };
            for gate in sites.iter().filter_map(|&site| gates.ahead_at(site)) {
                if gates.gate(gate).routed().is_some() {
                    self.ask_router(index, gate, rows);
                    continue;
                }
                let own = span.rows.clone();
                let mut picks = vec![None; own.len()];
                let slots = SharedMut::new(&mut picks);
                self.compute.run(own.len(), &|offset| {
                    let x = rows.row(own.start + offset);
                    BUFFERS.with_borrow_mut(|buffers| {
                        let mut row_picks = Vec::new();
                        let usable = gates.gate(gate).run(x, buffers, &mut row_picks);
                        // SAFETY: each row has its slot.
                        let slot = &mut unsafe { slots.slice(offset, 1) }[0];
                        *slot = usable.then_some(row_picks);
                    });
                });
                self.shared.push(SharedDecision { span: index, gate, picks });
            }
        }
    }

    /// Lets the router decide a gate for all rows of a composition, in one call: spans of other
    /// requests with the same composition are decided with the first. Rows without a usable answer
    /// fall back.
    fn ask_router(&mut self, first: usize, gate_index: usize, rows: Rows<'_>) {
        let composition = &self.spans[first].composition;
        let (Plan::Gated(gates), Some(version)) = (&composition.plan, &composition.version) else {
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
        let routed_rows: Vec<usize> =
            spans.iter().flat_map(|&span| self.spans[span].rows.clone()).collect();
        let columns = gate.candidates().len();
        let width = if hidden { rows.width } else { 0 };
        let mut inputs = RouteBatch::new(routed_rows.len(), columns, width);
        inputs.fill(self.compute, gate, &routed_rows, rows);
        let candidates = gates.offered_positions(gate);
        let batch = Batch {
            site: gate.site as u32,
            num_rows: routed_rows.len(),
            candidates: &candidates,
            scores: if gate.scores() { &inputs.scores } else { &[] },
            hidden: &inputs.hidden,
            arguments,
        };
        let mut decision = std::mem::take(&mut self.decision);
        let answered = self.has_time(version) && {
            let started = Instant::now();
            let routed = version.route(&batch, &mut decision);
            self.spend(version, started.elapsed());
            routed.is_ok()
        };
        let answer = answered.then_some(&decision);
        let picks = checked(version, answer, gate.candidates(), &inputs.usable);
        self.decision = decision;
        let mut picks = picks.into_iter();
        for span in spans {
            let picks = picks.by_ref().take(self.spans[span].rows.len()).collect();
            self.shared.push(SharedDecision { span, gate: gate_index, picks });
        }
    }

    /// True while a router may be called once more in this step: its time so far is within its
    /// bound, or there is none.
    fn has_time(&self, version: &Arc<RouterVersion>) -> bool {
        let spent = self.spent.iter().find(|(known, _)| Arc::ptr_eq(known, version));
        let num_rows = self.spans.last().map_or(0, |span| span.rows.end);
        spent.zip(version.step_time(num_rows)).is_none_or(|((_, spent), most)| *spent <= most)
    }

    /// Adds to a router's time; time beyond its share of the step is a fault, once per step.
    fn spend(&mut self, version: &Arc<RouterVersion>, time: Duration) {
        match self.spent.iter_mut().find(|(known, _)| Arc::ptr_eq(known, version)) {
            Some((_, spent)) => *spent += time,
            None => self.spent.push((Arc::clone(version), time)),
        }
        if !self.has_time(version) {
            version.count_fault("`route` took longer in one step than `step_milliseconds` allows");
        }
    }

    /// Decides a row at a site; `x` is the row's input there. `picks` is of meaning only with
    /// [`Decided::Picks`]: indices of modules with weights, ascending where a program or the router
    /// decided.
    pub(super) fn decide(
        &self,
        cell: Cell,
        x: &[f32],
        buffers: &mut GateBuffers,
        picks: &mut Vec<(u32, f32)>,
    ) -> Decided {
        let span = &self.spans[cell.span];
        match &span.composition.plan {
            Plan::Base => Decided::Nothing,
            Plan::Fixed { picks: fixed, combine } => {
                picks.clear();
                picks.extend_from_slice(fixed);
                Decided::Picks(*combine)
            }
            Plan::Gated(gates) => {
                let Some(at) = gates.at(cell.site) else { return Decided::Nothing };
                let gate = gates.gate(at.gate);
                if !gate.is_ahead() {
                    return Decided::usable(gate.run(x, buffers, picks), at.combine);
                }
                let is_here =
                    |shared: &&SharedDecision| shared.span == cell.span && shared.gate == at.gate;
                let Some(shared) = self.shared.iter().find(is_here) else {
                    return Decided::Nothing;
                };
                let decided = &shared.picks[cell.row - span.rows.start];
                picks.clear();
                picks.extend(decided.iter().flatten());
                Decided::usable(decided.is_some(), at.combine)
            }
        }
    }

    /// As [`Decisions::decide`], with the best candidates' scores where the site's own program
    /// decides; they are empty elsewhere.
    pub(super) fn decide_ranked(
        &self,
        cell: Cell,
        x: &[f32],
        buffers: &mut GateBuffers,
        picks: &mut Vec<(u32, f32)>,
    ) -> (Decided, Vec<(u32, f32)>) {
        if let Plan::Gated(gates) = &self.spans[cell.span].composition.plan
            && let Some(at) = gates.at(cell.site)
            && !gates.gate(at.gate).is_ahead()
        {
            let (usable, scores) = gates.gate(at.gate).run_ranked(x, buffers, picks);
            return (Decided::usable(usable, at.combine), scores);
        }
        (self.decide(cell, x, buffers, picks), Vec::new())
    }

    /// True where a gate's decision for a span is there already.
    pub(super) fn is_decided(&self, span: usize, gate: usize) -> bool {
        self.shared.iter().any(|shared| shared.span == span && shared.gate == gate)
    }
}

/// The rows that a router decides in one call.
struct RouteBatch {
    /// `[rows, columns]`
    scores: Vec<f32>,
    /// `[rows, width]`, or empty
    hidden: Vec<f32>,
    /// Rows whose scores are numbers.
    usable: Vec<bool>,
    /// Candidates of the gate.
    columns: usize,
    /// Width of the vector that is handed over; 0 where none is.
    width: usize,
}

impl RouteBatch {
    /// Room for `rows` rows; none is usable yet.
    fn new(rows: usize, columns: usize, width: usize) -> Self {
        Self {
            scores: vec![0.0; rows * columns],
            hidden: vec![0.0; rows * width],
            usable: vec![false; rows],
            columns,
            width,
        }
    }

    /// Runs the gate's program on all rows, in parallel. `rows` are the numbers in the step of the
    /// batch's rows, `input` is `[rows of the step, inputs]`.
    fn fill(&mut self, compute: &Compute, gate: &Gate, rows: &[usize], input: Rows<'_>) {
        let (columns, width) = (self.columns, self.width);
        let scores = SharedMut::new(&mut self.scores);
        let hidden = SharedMut::new(&mut self.hidden);
        let usable = SharedMut::new(&mut self.usable);
        compute.run(rows.len(), &|at| {
            let x = input.row(rows[at]);
            // SAFETY: each row has its slots.
            let (scores, hidden, usable) = unsafe {
                (
                    scores.slice(at * columns, columns),
                    hidden.slice(at * width, width),
                    usable.slice(at, 1),
                )
            };
            BUFFERS.with_borrow_mut(|buffers| {
                usable[0] = gate.hand_over(x, buffers, scores, hidden);
            });
        });
    }
}

/// Checks a router's answer row by row and turns columns into modules; `None` for rows that fall
/// back. An answer with a wrong number of rows is void as a whole.
fn checked(
    version: &RouterVersion,
    answer: Option<&Decision>,
    candidates: &[u32],
    usable: &[bool],
) -> Vec<Option<Vec<(u32, f32)>>> {
    let Some(decision) = answer else { return vec![None; usable.len()] };
    if let Err(reason) = decision.check_rows(usable.len()) {
        version.health.invalid(usable.len() as u64, &reason);
        return vec![None; usable.len()];
    }
    let row = |(row, &usable): (usize, &bool)| {
        let mut picks = Vec::new();
        if let Err(reason) = decision.row(row, candidates.len(), &mut picks) {
            version.health.invalid(1, &format!("row {row}: {reason}"));
            return None;
        }
        if let Some((_, weight)) = picks.iter().find(|(_, weight)| weight.abs() > MAX_WEIGHT) {
            let reason =
                format!("row {row}: weight {weight}, expected -{MAX_WEIGHT} to {MAX_WEIGHT}");
            version.health.invalid(1, &reason);
            return None;
        }
        // In ascending order, as a program's picks are: the sum's order is part of the result.
        picks.sort_unstable_by_key(|(column, _)| *column);
        picks.iter_mut().for_each(|(column, _)| *column = candidates[*column as usize]);
        usable.then_some(picks)
    };
    usable.iter().enumerate().map(row).collect()
}
