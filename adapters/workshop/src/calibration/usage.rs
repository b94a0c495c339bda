//! Usage of a layer's experts: how often, how alike, and how sure the router is.

use polyskill_sdk::experts::{ExpertLayer, ExpertOp, interpret};

/// Statistics of the router's logits at one layer.
///
/// Counts and products take n + n² numbers for n experts, however long the text is; ratios take one
/// number per token.
#[derive(Clone, Debug, PartialEq)]
pub struct Usage {
    /// The layer that the logits are of.
    layer: ExpertLayer,
    /// Tokens that chose each expert, `[experts]`.
    counts: Vec<u64>,
    /// Sums over tokens of the products of two experts' logits, `[experts, experts]`.
    products: Vec<f64>,
    /// The smaller weight over the larger, for every token with exactly two experts.
    ratios: Vec<f32>,
}

impl Usage {
    /// Statistics of a layer of which nothing has been seen yet.
    pub fn new(layer: ExpertLayer) -> Self {
        let n = layer.num_experts as usize;
        Self { layer, counts: vec![0; n], products: vec![0.0; n * n], ratios: Vec::new() }
    }

    /// Adds the logits of some tokens, `[tokens, experts]`. The program chooses the experts that
    /// are counted; products are of the logits before that choice.
    pub fn add(&mut self, logits: &[f32], ops: &[ExpertOp]) {
        let n = self.layer.num_experts as usize;
        let mut picks = Vec::new();
        for logits in logits.chunks_exact(n) {
            interpret(ops, logits, &mut picks);
            picks.iter().for_each(|(expert, _)| self.counts[*expert as usize] += 1);
            if let [(_, a), (_, b)] = picks[..] {
                self.ratios.push(a.min(b) / a.max(b));
            }
            for (row, a) in self.products.chunks_exact_mut(n).zip(logits) {
                row.iter_mut()
                    .zip(logits)
                    .for_each(|(sum, b)| *sum += f64::from(*a) * f64::from(*b));
            }
        }
    }

    /// Tokens that chose each expert, `[experts]`.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Counts, `[experts]`, and sums of products of the logits' columns, `[experts, experts]`: all
    /// that a run needs to go on later. Ratios are not among it, so there is no β afterwards.
    pub fn sums(&self) -> (&[u64], &[f64]) {
        (&self.counts, &self.products)
    }

    /// Goes on where another run stopped, from that run's [`Self::sums`]. Ratios are cleared.
    ///
    /// False, with nothing changed, if it had another number of experts.
    pub fn restore(&mut self, counts: &[u64], products: &[f64]) -> bool {
        let fits = counts.len() == self.counts.len() && products.len() == self.products.len();
        if fits {
            self.counts.copy_from_slice(counts);
            self.products.copy_from_slice(products);
            self.ratios.clear();
        }
        fits
    }

    /// NAEE's β: the median of the smaller weight over the larger of a token's two experts, the
    /// mean of the middle two where there are two. `None` where tokens do not have two experts.
    ///
    /// An expert policy that skips the second expert under this β skips it for about half of the
    /// tokens.
    pub fn beta(&self) -> Option<f32> {
        let mut ratios = self.ratios.clone();
        ratios.sort_by(f32::total_cmp);
        let middle = ratios.len() / 2;
        match ratios.len() {
            0 => None,
            odd if odd % 2 == 1 => Some(ratios[middle]),
            _ => Some(((f64::from(ratios[middle - 1]) + f64::from(ratios[middle])) / 2.0) as f32),
        }
    }

    /// (1 + cos)/2 between two experts' columns of logits over all tokens, as in MC-SMoE and
    /// UNCURL: 1 for columns that point the same way, 0 for opposite ones. An expert whose logits
    /// are all zero has ½ with every expert.
    pub fn similarity(&self, a: usize, b: usize) -> f64 {
        let n = self.layer.num_experts as usize;
        let norm = (self.products[a * n + a] * self.products[b * n + b]).sqrt();
        let cosine = if norm > 0.0 { self.products[a * n + b] / norm } else { 0.0 };
        f64::midpoint(1.0, cosine)
    }
}

#[cfg(test)]
mod tests {
    use polyskill_sdk::experts::native;

    use super::*;

    #[test]
    fn counts_similarity_and_median() {
        let layer = ExpertLayer { layer: 0, num_experts: 3, top_k: 2, renormalise: true };
        let mut usage = Usage::new(layer);
        let ln = |values: [f32; 3]| values.map(f32::ln);
        let tokens = [ln([4.0, 2.0, 1.0]), ln([4.0, 1.0, 1.0]), ln([1.0, 4.0, 4.0])].concat();
        usage.add(&tokens, &native(layer));
        assert_eq!(usage.counts(), [2, 3, 1]);
        assert!((usage.beta().unwrap() - 0.5).abs() < 1e-6);
        assert!((usage.similarity(1, 1) - 1.0).abs() < 1e-12);
        assert!(usage.similarity(1, 2) > usage.similarity(0, 2));
        let mut later = Usage::new(layer);
        let (counts, products) = usage.sums();
        assert!(later.restore(counts, products) && later.sums() == usage.sums());
        assert_eq!(later.beta(), None);
        let fewer = Usage::new(ExpertLayer { num_experts: 2, ..layer });
        let (counts, products) = fewer.sums();
        assert!(!later.restore(counts, products) && later.sums() == usage.sums());
    }
}
