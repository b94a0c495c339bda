//! Gate programs, made ready for a composition and run on rows.
//!
//! Compiling resolves every name: each deciding site gets its candidates and their rows packed into
//! one matrix, so that scoring is one product. [`polyskill_sdk::gate::interpret`] is the
//! specification; the fast path here replaces its scalar loops over features by kernels.

use std::collections::BTreeMap;

use polyskill_adapters::apply::Combine;
use polyskill_adapters::lora::Elements;
use polyskill_model::kernels::{WeightSlice, dots};
use polyskill_model::{ModelConfig, Projection, Site};
use polyskill_sdk::gate::{self, Op, Program, Share, SiteSelector};

use crate::compose::MAX_WEIGHT;
use crate::compose::composition::NamedModule;
use crate::routers::library_view::Definitions;

/// Scores of a decision that a full trace records.
const MAX_RANKED: usize = 4;

/// A plan's programs, by site.
#[derive(Debug)]
pub(crate) struct Gates {
    /// For every site of the base the gate that decides it, if any.
    by_site: Vec<Option<SiteGate>>,
    /// The gates, in the order of the programs and their sites.
    gates: Vec<Gate>,
    /// The position of each module among the candidates that the router was offered: those that do
    /// not act row by row are left out here.
    positions: Vec<u32>,
}

/// The gate of one site, and the rule for its picks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SiteGate {
    /// Index of the gate.
    pub(crate) gate: usize,
    /// The way in which the picks are combined.
    pub(crate) combine: Combine,
}

/// One decision point: a program with its candidates at the site that decides.
#[derive(Debug)]
pub struct Gate {
    /// The site whose input is scored.
    pub(crate) site: usize,
    /// True where other sites use the decision too.
    shared: bool,
    /// The program, checked against the rows.
    ops: Vec<Op>,
    /// Modules that act at the deciding site, as ascending indices into the composition's modules.
    candidates: Vec<u32>,
    /// `[candidates, inputs]` per name, in half precision where all candidates' weights are.
    matrices: BTreeMap<String, Elements>,
}

/// The rule of a plan, for the kernels.
pub(crate) fn combine_rule(combine: gate::Combine) -> Combine {
    match combine {
        gate::Combine::OutputSum => Combine::OutputSum,
        gate::Combine::AbMerge => Combine::AbMerge,
    }
}

impl Gates {
    /// Names the modules by their positions among the candidates that the router was offered.
    pub(crate) fn with_positions(self, positions: Vec<u32>) -> Self {
        Self { positions, ..self }
    }

    /// The candidates of a gate as its router knows them, per column of the scores.
    pub(crate) fn offered_positions(&self, gate: &Gate) -> Vec<u32> {
        gate.candidates.iter().map(|&module| self.positions[module as usize]).collect()
    }

    /// Makes programs ready for `modules`, the candidates of a composition. A site belongs to the
    /// first program that selects it; sites where no candidate acts belong to none. Cost and memory
    /// grow with deciding sites times candidates times inputs.
    ///
    /// The reason is given for a program that breaks a rule, multiplies with rows that are not
    /// defined for every candidate, or hands over hidden states where `hidden` does not allow it.
    pub(crate) fn compile(
        programs: &[Program],
        modules: &[NamedModule],
        definitions: &Definitions,
        config: &ModelConfig,
        hidden: bool,
    ) -> Result<Self, String> {
        if !hidden && programs.iter().any(|program| asks_hidden(&program.ops)) {
            return Err(
                "a program hands hidden states to `route`, which needs the capability `hidden` in \
                        the plugin's manifest and the operator's grant"
                    .to_owned(),
            );
        }
        let by_site = vec![None; config.num_sites()];
        let mut compiled = Self { by_site, gates: Vec::new(), positions: Vec::new() };
        for (index, program) in programs.iter().enumerate() {
            let scope = |site: usize| scope(program.share, site);
            let mut deciding: BTreeMap<usize, Option<usize>> = BTreeMap::new();
            for site in selected(program, config)? {
                if compiled.by_site[site].is_some() || !acts_at(modules, site) {
                    continue;
                }
                let gate = match deciding.get(&scope(site)) {
                    Some(gate) => *gate,
                    None => {
                        let gate = Gate::compile(program, site, modules, definitions)
                            .map_err(|reason| format!("program {index}: {reason}"))?;
                        compiled.gates.push(gate);
                        let gate = Some(compiled.gates.len() - 1);
                        deciding.insert(scope(site), gate);
                        gate
                    }
                };
                if let Some(gate) = gate {
                    compiled.gates[gate].shared |= compiled.gates[gate].site != site;
                    let combine = combine_rule(program.combine);
                    compiled.by_site[site] = Some(SiteGate { gate, combine });
                }
            }
        }
        Ok(compiled)
    }

    /// The gate that decides a site; `None` where the base answers.
    pub(crate) fn at(&self, site: usize) -> Option<SiteGate> {
        self.by_site[site]
    }

    /// A gate, by the index that [`Gates::at`] gives.
    pub(crate) fn gate(&self, index: usize) -> &Gate {
        &self.gates[index]
    }

    /// The gate that scores this site's input and is decided before the site's rows are computed:
    /// because later sites use the decision too, or because the router itself decides all rows at
    /// once.
    pub(crate) fn ahead_at(&self, site: usize) -> Option<usize> {
        let gate = self.by_site[site]?.gate;
        (self.gates[gate].is_ahead() && self.gates[gate].site == site).then_some(gate)
    }

    /// True where a program leaves rows to the router.
    pub(crate) fn any_routed(&self) -> bool {
        self.gates.iter().any(|gate| gate.routed().is_some())
    }
}

/// True for a program that hands hidden states to the router.
fn asks_hidden(ops: &[Op]) -> bool {
    ops.iter().any(|op| matches!(op, Op::Route { hidden: true, .. }))
}

/// Sites with the same scope share a decision.
fn scope(share: Share, site: usize) -> usize {
    let parts = Site::from_index(site);
    match share {
        Share::Site => site,
        Share::Layer => parts.layer,
        Share::Group => parts.layer * Projection::ALL.len() + parts.projection.group() as usize,
    }
}

/// True where a pick of any module acts at a site.
fn acts_at(modules: &[NamedModule], site: usize) -> bool {
    modules.iter().any(|lease| lease.module.shape().acts_at(Site::from_index(site)))
}

/// The sites of a program, ascending and each once; the reason where one is beyond the last.
fn selected(program: &Program, config: &ModelConfig) -> Result<Vec<usize>, String> {
    let num_sites = config.num_sites();
    match &program.sites {
        SiteSelector::All => Ok((0..num_sites).collect()),
        SiteSelector::Listed(sites) => {
            let mut listed: Vec<usize> = sites.iter().map(|&site| site as usize).collect();
            listed.sort_unstable();
            listed.dedup();
            match listed.last() {
                Some(&last) if last >= num_sites => Err(format!("site {last} of {num_sites}")),
                _ => Ok(listed),
            }
        }
    }
}

/// True where a module's weights at a site came in 16 bits: then its rows need no more either, and
/// scoring reads half the bytes. (PEFT casts Arrow's prototypes to the dtype of A, too.)
fn is_half(lease: &NamedModule, site: usize) -> bool {
    lease.module.shape().at(Site::from_index(site)).is_some_and(|shape| shape.half)
}

impl Gate {
    /// The gate of a program at its deciding site. Rows are packed in 16 bits only where all
    /// candidates' weights came so and no value overflows.
    fn compile(
        program: &Program,
        site: usize,
        modules: &[NamedModule],
        definitions: &Definitions,
    ) -> Result<Self, String> {
        let acts = |lease: &&NamedModule| lease.module.shape().acts_at(Site::from_index(site));
        let candidates: Vec<u32> =
            (0..).zip(modules).filter(|(_, lease)| acts(lease)).map(|(index, _)| index).collect();
        let row = |name: &str, index: u32| {
            definitions.row(modules[index as usize].module.edition(), name, site)
        };
        gate::check(program, |name| candidates.iter().all(|&index| row(name, index).is_some()))
            .map_err(|error| error.to_string())?;
        let names = program.ops.iter().filter_map(|op| match op {
            Op::Linear { name } => Some(name.clone()),
            _ => None,
        });
        let matrices = names
            .map(|name| {
                let rows = candidates.iter().filter_map(|&index| row(&name, index));
                let matrix: Vec<f32> = rows.flat_map(|row| row.to_vec()).collect();
                let half = candidates.iter().all(|&index| is_half(&modules[index as usize], site))
                    && matrix.iter().all(|value| value.abs() <= half::f16::MAX.to_f32());
                (name, if half { Elements::f16(&matrix) } else { Elements::F32(matrix) })
            })
            .collect();
        Ok(Self { site, shared: false, ops: program.ops.clone(), candidates, matrices })
    }

    /// True where it is decided for all rows before any of them gets its deltas.
    pub(crate) fn is_ahead(&self) -> bool {
        self.shared || self.routed().is_some()
    }

    /// Of a gate that the router decides: true if it gets the vector, and the plan's arguments.
    /// `None` where the program decides.
    pub(crate) fn routed(&self) -> Option<(bool, &[f32])> {
        match self.ops.last() {
            Some(Op::Route { hidden, arguments }) => Some((*hidden, arguments)),
            _ => None,
        }
    }

    /// True where the program makes scores; one that ends with `route` may hand over a vector
    /// alone.
    pub(crate) fn scores(&self) -> bool {
        self.ops.iter().any(|op| matches!(op, Op::Linear { .. }))
    }

    /// Modules that may be picked, one per column of the scores, ascending.
    pub(crate) fn candidates(&self) -> &[u32] {
        &self.candidates
    }

    /// Writes the input of `route` for one row: a score per column, −∞ where an op took it out, and
    /// the vector, after its norm if the program has one. `hidden` is empty where no vector is
    /// handed over.
    ///
    /// `false` if a score is not a number.
    pub(crate) fn hand_over(
        &self,
        input: &[f32],
        buffers: &mut GateBuffers,
        scores: &mut [f32],
        hidden: &mut [f32],
    ) -> bool {
        let mut left = std::mem::take(&mut buffers.scores);
        self.score(input, buffers, &mut left);
        scores.fill(f32::NEG_INFINITY);
        for &(column, score) in &left {
            scores[column as usize] = score;
        }
        if !hidden.is_empty() {
            let normed = self.ops.iter().any(|op| matches!(op, Op::LayerNorm { .. }));
            hidden.copy_from_slice(if normed { &buffers.vector } else { input });
        }
        let usable = left.iter().all(|(_, score)| !score.is_nan());
        buffers.scores = left;
        usable
    }

    /// A gate over given rows, `[candidates, inputs]` for the one name that its program multiplies
    /// with; for measuring it without a library.
    pub fn over(ops: Vec<Op>, rows: &[f32], num_candidates: usize) -> Self {
        let names = ops.iter().filter_map(|op| match op {
            Op::Linear { name } => Some(name.clone()),
            _ => None,
        });
        let matrices = names.map(|name| (name, Elements::F32(rows.to_vec()))).collect();
        Self {
            site: 0,
            shared: false,
            ops,
            candidates: (0..num_candidates as u32).collect(),
            matrices,
        }
    }

    /// Picks for one row as `(module, weight)`; `false` if a weight is beyond bounds, so that the row
    /// must fall back. `input` is what the deciding site reads.
    pub fn run(
        &self,
        input: &[f32],
        buffers: &mut GateBuffers,
        picks: &mut Vec<(u32, f32)>,
    ) -> bool {
        self.score(input, buffers, picks);
        self.in_composition(picks)
    }

    /// As [`Gate::run`]; also gives the best candidates by their scores before anything chose among
    /// them, best first, at most [`MAX_RANKED`].
    pub(crate) fn run_ranked(
        &self,
        input: &[f32],
        buffers: &mut GateBuffers,
        picks: &mut Vec<(u32, f32)>,
    ) -> (bool, Vec<(u32, f32)>) {
        let end = self.ops.iter().position(Op::chooses).unwrap_or(self.ops.len());
        self.run_ops(&self.ops[..end], input, buffers, picks);
        let mut best: Vec<(u32, f32)> = Vec::with_capacity(MAX_RANKED + 1);
        for &(column, score) in &*picks {
            let at = best.partition_point(|kept| kept.1 >= score);
            if at < MAX_RANKED {
                best.truncate(MAX_RANKED - 1);
                best.insert(at, (self.candidates[column as usize], score));
            }
        }
        self.ops[end..].iter().for_each(|op| gate::apply_to_scores(op, picks));
        (self.in_composition(picks), best)
    }

    /// Turns columns into modules; `false` if a weight is beyond ±[`MAX_WEIGHT`] or not a number.
    fn in_composition(&self, picks: &mut [(u32, f32)]) -> bool {
        let usable = picks.iter().all(|(_, weight)| weight.abs() <= MAX_WEIGHT);
        picks
            .iter_mut()
            .for_each(|(candidate, _)| *candidate = self.candidates[*candidate as usize]);
        usable
    }

    /// Runs all ops; leaves `(column, score)` in `picks`, by ascending column.
    fn score(&self, input: &[f32], buffers: &mut GateBuffers, picks: &mut Vec<(u32, f32)>) {
        self.run_ops(&self.ops, input, buffers, picks);
    }

    /// Runs some of the ops, from the first on. `picks` gets a score per candidate at `linear`,
    /// which the ops after it change or drop; the vector, once normed, is in the buffers.
    fn run_ops(
        &self,
        ops: &[Op],
        input: &[f32],
        buffers: &mut GateBuffers,
        picks: &mut Vec<(u32, f32)>,
    ) {
        picks.clear();
        let mut normed = false;
        for op in ops {
            match op {
                Op::LayerNorm { epsilon } => {
                    if !normed {
                        buffers.vector.clear();
                        buffers.vector.extend_from_slice(input);
                        normed = true;
                    }
                    gate::layer_norm(&mut buffers.vector, *epsilon);
                }
                Op::Linear { name } => {
                    let vector = if normed { &buffers.vector } else { input };
                    let matrix =
                        self.matrices.get(name).map_or(WeightSlice::F32(&[]), Elements::as_slice);
                    buffers.dots.resize(self.candidates.len(), 0.0);
                    dots(vector, matrix, &mut buffers.dots);
                    picks.extend((0..).zip(buffers.dots.iter().copied()));
                }
                op => gate::apply_to_scores(op, picks),
            }
        }
    }
}

/// Buffers reused from row to row; one per thread.
#[derive(Debug, Default)]
pub struct GateBuffers {
    /// The input after its norm; that of an earlier row where a program has none.
    vector: Vec<f32>,
    /// A score per candidate, as the kernel writes them.
    dots: Vec<f32>,
    /// The scores that are handed over to a router.
    scores: Vec<(u32, f32)>,
}
