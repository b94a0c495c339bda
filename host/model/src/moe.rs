//! Mixtures of experts: the choice of experts for each row, and their feed-forwards over rows
//! grouped by expert.
//!
//! Only chosen experts are computed, each once per step for all rows that chose it. A row's experts
//! are summed in ascending order, so its bits do not depend on the rows beside it.

use crate::compute::Compute;
use crate::config::{Activation, Mixture, ModelConfig};
use crate::decoder::{activate, for_row_chunks};
use crate::hooks::{ExpertOutput, ExpertSlots, Hooks};
use crate::kernels::{Product, QuantisedRows, softmax};
use crate::linear::{Linear, project};
use crate::site::{InputGroup, Projection};

/// The feed-forward of a sparse layer.
///
/// Experts that were dropped at load keep their numbers.
#[derive(Debug)]
pub struct Experts {
    /// `[num_experts, hidden_size]`
    pub(crate) router: Linear,
    /// Gate, up and down of each expert, by number; `None` for one that was dropped when the base
    /// was loaded.
    pub(crate) routed: Vec<Option<[Linear; 3]>>,
    /// The expert of every row, in families that have one.
    pub(crate) shared: Option<SharedExpert>,
}

/// An expert that every row gets.
#[derive(Debug)]
pub(crate) struct SharedExpert {
    /// Gate, up and down.
    pub(crate) linears: [Linear; 3],
    /// `[hidden_size]`: the expert counts with the sigmoid of its product with the input.
    pub(crate) gate: Vec<f32>,
}

impl Experts {
    /// Experts without a shared one: a router, `[num_experts, hidden_size]`, and gate, up and down
    /// of each expert.
    pub fn new(router: Linear, routed: Vec<[Linear; 3]>) -> Self {
        Self { router, routed: routed.into_iter().map(Some).collect(), shared: None }
    }

    /// The router's logits of some rows, `[rows, num_experts]`, for `input`, `[rows, hidden_size]`.
    ///
    /// Experts that were dropped get −∞. A step does not call this: it computes its own.
    pub fn logits(&self, compute: &Compute, input: &[f32], logits: &mut Vec<f32>) {
        let inner = self.router.matrix.inner();
        let rows = 0..input.len() / inner;
        logits.resize(rows.len() * self.routed.len(), 0.0);
        let product = Product { weights: &self.router, rows, y: logits };
        project(compute, input, inner, &mut QuantisedRows::default(), &mut [product]);
        self.mask(logits);
    }

    /// Sets the logits of dropped experts to −∞, which takes them out of every softmax and every
    /// choice.
    fn mask(&self, logits: &mut [f32]) {
        if self.routed.iter().all(Option::is_some) {
            return;
        }
        for row in logits.chunks_exact_mut(self.routed.len()) {
            let dropped = row.iter_mut().zip(&self.routed).filter(|(_, expert)| expert.is_none());
            dropped.for_each(|(logit, _)| *logit = f32::NEG_INFINITY);
        }
    }

    /// The output of every routed expert for every row, chosen or not:
    /// `[num_experts, rows, hidden_size]`.
    ///
    /// Not weighted; zero for experts that were dropped. Every expert runs on every row, which is
    /// for calibration and not for serving.
    pub fn outputs(
        &self,
        compute: &Compute,
        activation: Activation,
        input: &[f32],
        outputs: &mut Vec<f32>,
    ) {
        let hidden_size = self.router.matrix.inner();
        let rows = input.len() / hidden_size;
        outputs.resize(self.routed.len() * input.len(), 0.0);
        let mut quantised = QuantisedRows::default();
        let (mut gate_values, mut up_values) = (Vec::new(), Vec::new());
        for (expert, y) in self.routed.iter().zip(outputs.chunks_exact_mut(input.len().max(1))) {
            let Some([gate, up, down]) = expert else {
                y.fill(0.0);
                continue;
            };
            let width = gate.matrix.outs();
            gate_values.resize(rows * width, 0.0);
            up_values.resize(rows * width, 0.0);
            let mut products = [
                Product { weights: gate, rows: 0..rows, y: &mut gate_values[..] },
                Product { weights: up, rows: 0..rows, y: &mut up_values[..] },
            ];
            project(compute, input, hidden_size, &mut quantised, &mut products);
            activate(activation, &mut gate_values, &up_values);
            project(
                compute,
                &gate_values,
                width,
                &mut quantised,
                &mut [Product { weights: down, rows: 0..rows, y }],
            );
        }
    }

    /// A projection of an expert; the shared one is numbered after the routed ones.
    ///
    /// `None` if the expert was dropped or does not exist, and for projections of the attention.
    pub fn linear(&self, expert: usize, projection: Projection) -> Option<&Linear> {
        let linears = match self.routed.get(expert) {
            Some(linears) => linears.as_ref()?,
            None if expert == self.routed.len() => &self.shared.as_ref()?.linears,
            None => return None,
        };
        Some(&linears[inside(projection)?])
    }

    /// All matrices in memory: the router, the experts that were kept, and the shared one.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &Linear> {
        let shared = self.shared.iter().flat_map(|shared| &shared.linears);
        [&self.router].into_iter().chain(self.routed.iter().flatten().flatten()).chain(shared)
    }
}

/// Number of a projection inside a feed-forward: gate 0, up 1, down 2. `None` for those of the
/// attention.
pub(crate) fn inside(projection: Projection) -> Option<usize> {
    match projection {
        Projection::Gate => Some(0),
        Projection::Up => Some(1),
        Projection::Down => Some(2),
        _ => None,
    }
}

/// The routed experts of each row of a step at one layer, with their weights.
///
/// The shared expert is not part of it: every row gets it.
#[derive(Debug, Default)]
pub struct ExpertChoice {
    /// Experts of the layer, the distance between rows in `picks`.
    num_experts: usize,
    /// `[rows, num_experts]`, of which a row uses the first `counts[row]`, by ascending expert.
    picks: Vec<(u32, f32)>,
    /// Experts that each row uses, from none to all.
    counts: Vec<u32>,
}

impl ExpertChoice {
    /// Makes room for a step's rows, none of which has an expert yet.
    pub fn reset(&mut self, num_rows: usize, num_experts: usize) {
        self.num_experts = num_experts;
        // What lies behind a row's count is never read.
        self.picks.resize(num_rows * num_experts, (0, 0.0));
        self.counts.clear();
        self.counts.resize(num_rows, 0);
    }

    /// Rows of the step.
    pub fn num_rows(&self) -> usize {
        self.counts.len()
    }

    /// A row's experts with their weights, by ascending expert.
    ///
    /// Weights are used as they stand: nothing makes them sum to one.
    pub fn row(&self, row: usize) -> &[(u32, f32)] {
        let start = row * self.num_experts;
        &self.picks[start..start + self.counts[row] as usize]
    }

    /// Replaces a row's experts, in any order. Weights of an expert that is named twice add up.
    ///
    /// # Panics
    /// If there is no such row or expert.
    pub fn set(&mut self, row: usize, picks: impl IntoIterator<Item = (u32, f32)>) {
        let start = row * self.num_experts;
        let slots = &mut self.picks[start..start + self.num_experts];
        let mut count = 0;
        for (expert, weight) in picks {
            assert!((expert as usize) < self.num_experts, "no expert {expert}");
            match slots[..count].binary_search_by_key(&expert, |pick| pick.0) {
                Ok(at) => slots[at].1 += weight,
                Err(at) => {
                    slots.copy_within(at..count, at + 1);
                    slots[at] = (expert, weight);
                    count += 1;
                }
            }
        }
        self.counts[row] = count as u32;
    }

    /// The model's own choice for logits of `[rows, num_experts]`.
    ///
    /// Softmax over all experts, of which the `top_k` largest are kept, the lower index first on
    /// ties, and divided by their sum where the family does so.
    fn choose(&mut self, logits: &[f32], mixture: &Mixture) {
        let num_experts = mixture.num_experts;
        self.reset(logits.len() / num_experts, num_experts);
        let mut probabilities = vec![0.0; num_experts];
        let mut picks = Vec::with_capacity(mixture.top_k);
        for (row, logits) in logits.chunks_exact(num_experts).enumerate() {
            probabilities.copy_from_slice(logits);
            softmax(&mut probabilities);
            largest(&probabilities, mixture.top_k, &mut picks);
            if mixture.renormalise {
                let sum: f32 = picks.iter().map(|pick| pick.1).sum();
                picks.iter_mut().for_each(|pick| pick.1 /= sum);
            }
            self.set(row, picks.iter().copied());
        }
    }
}

/// Fills `picks` with the `count` largest values and their indices, largest first, the lower index
/// first on ties.
fn largest(values: &[f32], count: usize, picks: &mut Vec<(u32, f32)>) {
    picks.clear();
    for (index, &value) in (0..).zip(values) {
        let at = picks.partition_point(|pick: &(u32, f32)| pick.1 >= value);
        if at < count {
            picks.truncate(count - 1);
            picks.insert(at, (index, value));
        }
    }
}

/// Buffers of sparse layers, reused from step to step.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// The router's logits, `[rows, num_experts]`.
    logits: Vec<f32>,
    /// The model's choice, after hooks have changed it.
    choice: ExpertChoice,
    /// The slots that run: those of the routed experts, then those of the shared one.
    grouped: Grouped,
    /// The input of the slots, `[slots, hidden_size]`: rows gathered by expert.
    input: Vec<f32>,
    /// Gate values, `[slots, width of the experts]`, then their activation times `up`.
    gate: Vec<f32>,
    /// Up values, `[slots, width of the experts]`.
    up: Vec<f32>,
    /// The experts' outputs, `[slots, hidden_size]`, not weighted yet.
    output: Vec<f32>,
}

/// A step's choices in the order in which experts are run.
#[derive(Debug, Default)]
struct Grouped {
    /// Row and expert of each slot, by expert, then by row.
    slots: Vec<(u32, u32)>,
    /// Weight of each slot.
    weights: Vec<f32>,
    /// Experts that have rows, with the slot after their last.
    ends: Vec<(u32, usize)>,
}

impl Grouped {
    /// Groups a choice by expert, in time linear in rows, picks and experts. Experts that
    /// `is_there` denies are passed over.
    fn fill(&mut self, choice: &ExpertChoice, is_there: impl Fn(usize) -> bool) {
        let picks = |row: usize| choice.row(row).iter().filter(|pick| is_there(pick.0 as usize));
        let rows = || 0..choice.num_rows();
        let total = rows().map(|row| picks(row).count()).sum();
        let mut starts = vec![0; choice.num_experts + 1];
        for &(expert, _) in rows().flat_map(picks) {
            starts[expert as usize + 1] += 1;
        }
        self.ends.clear();
        for expert in 0..choice.num_experts {
            let count = starts[expert + 1];
            starts[expert + 1] += starts[expert];
            if count > 0 {
                self.ends.push((expert as u32, starts[expert + 1]));
            }
        }
        self.slots.resize(total, (0, 0));
        self.weights.resize(total, 0.0);
        for row in rows() {
            for &(expert, weight) in picks(row) {
                let slot = &mut starts[expert as usize];
                self.slots[*slot] = (row as u32, expert);
                self.weights[*slot] = weight;
                *slot += 1;
            }
        }
    }

    /// Gives every row the one expert, with a weight for each.
    fn fill_with(&mut self, expert: usize, weights: impl Iterator<Item = f32>) {
        self.weights.clear();
        self.weights.extend(weights);
        let num_rows = self.weights.len();
        self.slots.clear();
        self.slots.extend((0..num_rows as u32).map(|row| (row, expert as u32)));
        self.ends.clear();
        if num_rows > 0 {
            self.ends.push((expert as u32, num_rows));
        }
    }
}

/// The parts of a sparse layer that stay the same while it runs.
pub(crate) struct SparseLayer<'a> {
    /// Threads that products run on.
    pub(crate) compute: &'a Compute,
    /// The base's shape.
    pub(crate) config: &'a ModelConfig,
    /// The layer's part of the configuration.
    pub(crate) mixture: &'a Mixture,
    /// The layer's number, for hooks.
    pub(crate) layer: usize,
    /// The layer's weights.
    pub(crate) experts: &'a Experts,
}

impl SparseLayer<'_> {
    /// Runs the layer's experts on `input`, `[rows, hidden_size]`, and overwrites `output` with
    /// their weighted sum.
    ///
    /// The router, the hook `routed`, the routed experts and then the shared one.
    pub(crate) fn run(
        &self,
        input: &[f32],
        output: &mut [f32],
        quantised: &mut QuantisedRows,
        hooks: &mut dyn Hooks,
        buffers: &mut Buffers,
    ) {
        let hidden_size = self.config.hidden_size;
        let num_rows = input.len() / hidden_size;
        buffers.logits.resize(num_rows * self.mixture.num_experts, 0.0);
        let router =
            Product { weights: &self.experts.router, rows: 0..num_rows, y: &mut buffers.logits };
        project(self.compute, input, hidden_size, quantised, &mut [router]);
        self.experts.mask(&mut buffers.logits);
        buffers.choice.choose(&buffers.logits, self.mixture);
        hooks.routed(self.layer, &buffers.logits, &mut buffers.choice);
        output.fill(0.0);
        buffers.grouped.fill(&buffers.choice, |expert| self.experts.routed[expert].is_some());
        self.add_experts(input, output, quantised, hooks, buffers);
        if let Some(shared) = &self.experts.shared {
            let weight = |row: &[f32]| {
                let product: f32 = row.iter().zip(&shared.gate).map(|(x, w)| x * w).sum();
                1.0 / (1.0 + (-product).exp())
            };
            let weights = input.chunks_exact(hidden_size).map(weight);
            buffers.grouped.fill_with(self.mixture.num_experts, weights);
            self.add_experts(input, output, quantised, hooks, buffers);
        }
    }

    /// Adds the outputs of the experts of `buffers.grouped` for their rows, times their weights.
    ///
    /// All experts in it must be equally wide: the routed ones are, and the shared one comes alone.
    /// Products of all experts share one parallel region per projection.
    fn add_experts(
        &self,
        input: &[f32],
        output: &mut [f32],
        quantised: &mut QuantisedRows,
        hooks: &mut dyn Hooks,
        buffers: &mut Buffers,
    ) {
        let hidden_size = self.config.hidden_size;
        let Buffers { grouped, input: gathered, gate, up, output: made, .. } = buffers;
        let Some(&(expert, _)) = grouped.ends.first() else { return };
        let (width, _) = self.mixture.expert_shape(hidden_size, expert as usize, Projection::Gate);
        gathered.clear();
        for &(row, _) in &grouped.slots {
            let row = row as usize * hidden_size;
            gathered.extend_from_slice(&input[row..row + hidden_size]);
        }
        let num_slots = grouped.slots.len();
        gate.resize(num_slots * width, 0.0);
        up.resize(num_slots * width, 0.0);
        made.resize(num_slots * hidden_size, 0.0);
        let outputs = [(Projection::Gate, &mut gate[..]), (Projection::Up, &mut up[..])];
        self.project(gathered, outputs, grouped, quantised, hooks);
        for_row_chunks(self.compute, gate, width, |start, gate| {
            activate(self.config.activation, gate, &up[start..start + gate.len()]);
        });
        let outputs = [(Projection::Down, &mut made[..])];
        self.project(gate, outputs, grouped, quantised, hooks);
        let parts = made.chunks_exact(hidden_size).zip(&grouped.weights).zip(&grouped.slots);
        for ((part, weight), &(row, _)) in parts {
            let row = row as usize * hidden_size;
            let sum = &mut output[row..row + hidden_size];
            sum.iter_mut().zip(part).for_each(|(sum, value)| *sum += weight * value);
        }
    }

    /// Projections of all experts in one parallel region, then the hooks on their outputs.
    ///
    /// `input` is `[slots, inputs]` and each of the outputs `[slots, width]`. The outputs must be
    /// projections of one input group.
    fn project<const N: usize>(
        &self,
        input: &[f32],
        mut outputs: [(Projection, &mut [f32]); N],
        grouped: &Grouped,
        quantised: &mut QuantisedRows,
        hooks: &mut dyn Hooks,
    ) {
        let inner = input.len() / grouped.slots.len();
        let kind = outputs[0].0.group();
        let mut products = Vec::with_capacity(N * grouped.ends.len());
        for (projection, values) in &mut outputs {
            let width = values.len() / grouped.slots.len();
            let (mut rest, mut start) = (&mut **values, 0);
            for &(expert, end) in &grouped.ends {
                let (y, after) = std::mem::take(&mut rest).split_at_mut((end - start) * width);
                if let Some(weights) = self.experts.linear(expert as usize, *projection) {
                    products.push(Product { weights, rows: start..end, y });
                }
                (rest, start) = (after, end);
            }
        }
        project(self.compute, input, inner, quantised, &mut products);
        let mut sites = outputs.map(|(projection, values)| {
            let width = values.len() / grouped.slots.len();
            ExpertOutput { projection, values, width }
        });
        let slots = ExpertSlots { slots: &grouped.slots, experts: self.experts };
        hooks.expert_projected(InputGroup { layer: self.layer, kind }, &slots, input, &mut sites);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mixture(renormalise: bool) -> Mixture {
        Mixture {
            num_experts: 4,
            top_k: 2,
            expert_size: 8,
            renormalise,
            shared_expert: None,
            sparse: vec![true],
        }
    }

    #[test]
    fn the_largest_are_kept_and_the_lower_index_wins_ties() {
        let mut picks = Vec::new();
        largest(&[0.2, 0.5, 0.2, 0.5], 3, &mut picks);
        assert_eq!(picks, [(1, 0.5), (3, 0.5), (0, 0.2)]);
    }

    #[test]
    fn weights_are_of_the_softmax_over_all_or_sum_to_one() {
        let logits = [0.0, 2.0_f32.ln(), 4.0_f32.ln(), 0.0];
        let mut choice = ExpertChoice::default();
        choice.choose(&logits, &mixture(false));
        let near = |found: &[(u32, f32)], expected: &[(u32, f32)]| {
            found.len() == expected.len()
                && found.iter().zip(expected).all(|(f, e)| f.0 == e.0 && (f.1 - e.1).abs() < 1e-6)
        };
        assert!(near(choice.row(0), &[(1, 0.25), (2, 0.5)]), "{:?}", choice.row(0));
        choice.choose(&logits, &mixture(true));
        assert!(near(choice.row(0), &[(1, 1.0 / 3.0), (2, 2.0 / 3.0)]), "{:?}", choice.row(0));
    }

    #[test]
    fn weights_of_an_expert_that_is_named_twice_add_up() {
        let mut choice = ExpertChoice::default();
        choice.reset(2, 4);
        choice.set(1, [(3, 0.25), (0, 0.5), (3, 0.25)]);
        assert_eq!((choice.row(0), choice.row(1)), (&[][..], &[(0, 0.5), (3, 0.5)][..]));
    }

    #[test]
    fn slots_lie_by_expert_then_by_row() {
        let mut choice = ExpertChoice::default();
        choice.reset(3, 4);
        choice.set(0, [(1, 0.5), (3, 0.5)]);
        choice.set(2, [(1, 1.0)]);
        let mut grouped = Grouped::default();
        grouped.fill(&choice, |_| true);
        assert_eq!(grouped.slots, [(0, 1), (2, 1), (0, 3)]);
        assert_eq!(grouped.weights, [0.5, 1.0, 0.5]);
        assert_eq!(grouped.ends, [(1, 2), (3, 3)]);
        grouped.fill(&choice, |expert| expert != 1);
        assert_eq!((&grouped.slots[..], &grouped.ends[..]), (&[(0, 3)][..], &[(3, 1)][..]));
    }

    #[test]
    fn an_expert_of_no_rows_is_not_run() {
        let mut grouped = Grouped::default();
        grouped.fill_with(4, [0.5, 0.25].into_iter());
        assert_eq!((&grouped.slots[..], &grouped.ends[..]), (&[(0, 4), (1, 4)][..], &[(4, 2)][..]));
        grouped.fill_with(4, std::iter::empty());
        assert!(grouped.slots.is_empty() && grouped.ends.is_empty(), "{grouped:?}");
    }
}
