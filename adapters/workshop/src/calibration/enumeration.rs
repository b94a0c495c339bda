//! NAEE's search for the experts that a layer can do without (Lu et al., "Not All Experts are
//! Equal", 2024), and a greedy one for layers with too many experts to try all sets.

use polyskill_sdk::experts::{ExpertLayer, ExpertOp, LayerPolicy};

use super::Tokens;

/// Most sets that are tried. Each set costs a pass over the outputs of its experts for every token.
const MAX_SETS: usize = 20_000;

/// The losses of candidate sets of kept experts at one layer: Σ over batches of ‖Z − Z′‖, in 64
/// bits, where Z is the output of the whole feed-forward and Z′ that with the kept experts alone.
///
/// Tokens go in by [`Self::add`], and a batch counts only once [`Self::end_batch`] has ended it.
#[derive(Clone, Debug, PartialEq)]
pub struct Enumeration {
    /// The layer, and the base's own choice of experts in it.
    layer: ExpertLayer,
    /// Kept experts of each candidate, ascending.
    sets: Vec<Vec<u32>>,
    /// The program that chooses among the kept experts, for each candidate.
    programs: Vec<Vec<ExpertOp>>,
    /// Sums of norms over ended batches, for each candidate.
    losses: Vec<f64>,
    /// Squared error of each candidate in the batch that has not ended.
    squares: Vec<f64>,
}

impl Enumeration {
    /// All sets of `keep` experts, in the lexicographic order of those that are dropped.
    ///
    /// There are n! / (keep!·(n − keep)!) of them, so this is for layers with few experts;
    /// [`Self::without_one`] is for the others.
    ///
    /// # Errors
    /// If there are too many, or not so many experts.
    pub fn all(layer: ExpertLayer, keep: usize) -> Result<Self, String> {
        let num_experts = layer.num_experts as usize;
        if !(1..=num_experts).contains(&keep) {
            return Err(format!("{keep} experts of {num_experts} are to be kept"));
        }
        let drop = num_experts - keep;
        let count = (1..=drop).try_fold(1_usize, |count, at| {
            count.checked_mul(num_experts - drop + at).map(|product| product / at)
        });
        match count.filter(|count| *count <= MAX_SETS) {
            Some(_) => Ok(Self::of(layer, complements(num_experts, drop))),
            None => Err(format!(
                "{num_experts} experts of which {keep} are kept make more than {MAX_SETS} sets; \
                 the greedy search tries fewer"
            )),
        }
    }

    /// Candidates of one step of the greedy search: `kept` without one expert each, in the order of
    /// the dropped one. `kept` must be ascending.
    pub fn without_one(layer: ExpertLayer, kept: &[u32]) -> Self {
        let without =
            |dropped: &u32| kept.iter().copied().filter(|expert| expert != dropped).collect();
        Self::of(layer, kept.iter().map(without).collect())
    }

    /// Candidates with their programs, none of which has a loss yet. Sets must be ascending, as
    /// masks are.
    fn of(layer: ExpertLayer, sets: Vec<Vec<u32>>) -> Self {
        let program = |keep: &Vec<u32>| {
            LayerPolicy { layer: layer.layer, keep: Some(keep.clone()), ..Default::default() }
                .ops(layer)
        };
        let programs = sets.iter().map(program).collect();
        let zeros = vec![0.0; sets.len()];
        Self { layer, sets, programs, losses: zeros.clone(), squares: zeros }
    }

    /// Adds some tokens of a batch. The cost is one weighted sum of experts' outputs per candidate
    /// and token.
    pub fn add(&mut self, tokens: Tokens<'_>) {
        for (square, ops) in self.squares.iter_mut().zip(&self.programs) {
            *square += tokens.squared_error(self.layer, ops);
        }
    }

    /// Ends a batch: the root of its squared error is added to each loss. A batch is one sample of
    /// NAEE's sum, so its size matters to the result.
    pub fn end_batch(&mut self) {
        for (loss, square) in self.losses.iter_mut().zip(&mut self.squares) {
            *loss += std::mem::take(square).sqrt();
        }
    }

    /// Losses of ended batches, in the order of the sets.
    pub fn losses(&self) -> &[f64] {
        &self.losses
    }

    /// Goes on where another run stopped, from that run's [`Self::losses`]. False, with nothing
    /// changed, if it had another number of sets.
    pub fn restore(&mut self, losses: &[f64]) -> bool {
        let fits = losses.len() == self.losses.len();
        if fits {
            self.losses.copy_from_slice(losses);
        }
        fits
    }

    /// Kept experts of each candidate, with their losses over ended batches.
    pub fn sets(&self) -> impl Iterator<Item = (&[u32], f64)> {
        self.sets.iter().map(Vec::as_slice).zip(self.losses.iter().copied())
    }

    /// The set with the least loss, the first on ties; an empty set with an infinite loss if there
    /// are no candidates.
    pub fn best(&self) -> (&[u32], f64) {
        let least = self.sets().min_by(|a, b| a.1.total_cmp(&b.1));
        least.unwrap_or((&[], f64::INFINITY))
    }
}

/// The rest of `0..n` after each set of `drop` numbers is taken away, in the lexicographic order of
/// those sets.
///
/// With `drop` 0 that is one set, of all numbers. The caller bounds the number of sets.
fn complements(n: usize, drop: usize) -> Vec<Vec<u32>> {
    let mut dropped: Vec<usize> = (0..drop).collect();
    let mut sets = Vec::new();
    loop {
        sets.push((0..n).filter(|e| !dropped.contains(e)).map(|e| e as u32).collect());
        let Some(at) = (0..drop).rev().find(|&at| dropped[at] != n - drop + at) else {
            return sets;
        };
        dropped[at] += 1;
        for next in at + 1..drop {
            dropped[next] = dropped[next - 1] + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_come_in_the_order_of_what_is_dropped() {
        assert_eq!(complements(3, 1), [vec![1, 2], vec![0, 2], vec![0, 1]]);
        assert_eq!(complements(3, 0), [vec![0, 1, 2]]);
        let sets = complements(4, 2);
        assert_eq!((sets.len(), &sets[0], &sets[5]), (6, &vec![2, 3], &vec![0, 1]));
        assert_eq!(complements(8, 4).len(), 70);
    }

    #[test]
    fn too_many_sets_are_refused() {
        let layer = ExpertLayer { layer: 0, num_experts: 60, top_k: 4, renormalise: false };
        assert!(Enumeration::all(layer, 30).unwrap_err().contains("greedy"));
        assert!(Enumeration::all(layer, 0).is_err() && Enumeration::all(layer, 61).is_err());
    }
}
