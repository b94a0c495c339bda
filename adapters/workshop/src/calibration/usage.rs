//! How a layer's experts are used: how often, how alike, and how sure the router is.

use polyskill_sdk::experts::{ExpertLayer, ExpertOp, interpret};

/// Statistics of the router's logits at one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Usage {
    layer: ExpertLayer,
    counts: Vec<u64>,
    /// Products of the logits' columns, `[experts, experts]`.
    products: Vec<f64>,
    /// Second weight over the first, of every token that has both.
    ratios: Vec<f32>,
}

impl Usage {
    /// Nothing seen yet.
    pub fn new(layer: ExpertLayer) -> Self {
        let n = layer.num_experts as usize;
        Self { layer, counts: vec![0; n], products: vec![0.0; n * n], ratios: Vec::new() }
    }

    /// Adds tokens, `[tokens, experts]`, whose experts the program chooses.
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

    /// How often each expert was chosen.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// What a run that goes on later needs: counts, `[experts]`, and sums of products of the logits' columns,
    /// `[experts, experts]`. Ratios are not among it, so there is no β afterwards.
    pub fn sums(&self) -> (&[u64], &[f64]) {
        (&self.counts, &self.products)
    }

    /// Goes on where another run stopped, if it has so many experts.
    pub fn restore(&mut self, (counts, products): (&[u64], &[f64])) -> bool {
        let fits = counts.len() == self.counts.len() && products.len() == self.products.len();
        if fits {
            self.counts.copy_from_slice(counts);
            self.products.copy_from_slice(products);
            self.ratios.clear();
        }
        fits
    }

    /// NAEE's β: the median of second over first weight, the mean of the middle two where there are two. `None` where
    /// tokens do not have two experts.
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

    /// (1 + cos)/2 between two experts' columns of logits over all tokens, as in MC-SMoE and UNCURL.
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
        assert!(later.restore(usage.sums()) && later.sums() == usage.sums());
        assert_eq!(later.beta(), None);
        let fewer = Usage::new(ExpertLayer { num_experts: 2, ..layer });
        assert!(!later.restore(fewer.sums()) && later.sums() == usage.sums());
    }
}
