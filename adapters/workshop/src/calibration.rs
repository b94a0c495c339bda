//! Calibration of expert policies: what a sparse layer loses without some of its experts, and how
//! its experts are used.
//!
//! Everything is collected batch by batch from what passes through a layer, so memory does not grow
//! with the text.

mod alignment;
mod assignment;
mod clusters;
mod enumeration;
mod grouping;
mod usage;

use polyskill_sdk::experts::{ExpertLayer, ExpertOp, interpret};

pub use alignment::{Orders, align, check_width};
pub use clusters::group_by_spectrum;
pub use enumeration::Enumeration;
pub use grouping::{Groups, group_globally, merged};
pub use usage::Usage;

/// Some tokens at one sparse layer, as they passed through the base.
///
/// `tokens` in the shapes below is the same number everywhere: the length of `logits` over the
/// layer's experts.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    /// The router's logits, `[tokens, experts]`.
    pub logits: &'a [f32],
    /// Outputs of every expert for every token, not only of those that the router chose and without
    /// the router's weights, `[experts, tokens, hidden_size]`.
    pub outputs: &'a [f32],
    /// The part of the feed-forward that does not come from routed experts, such as a shared
    /// expert, `[tokens, hidden_size]`.
    pub rest: &'a [f32],
    /// The output that the whole feed-forward should give, `[tokens, hidden_size]`.
    pub expected: &'a [f32],
}

impl Tokens<'_> {
    /// ‖expected − found‖² over all tokens, where a program chooses the experts: `found` is `rest`
    /// plus the outputs of the chosen experts times their weights.
    ///
    /// Sums over experts are 32-bit floats, as in the model; the square is summed in 64 bits.
    fn squared_error(&self, layer: ExpertLayer, ops: &[ExpertOp]) -> f64 {
        let num_tokens = self.logits.len() / layer.num_experts as usize;
        let hidden = self.expected.len() / num_tokens.max(1);
        let mut picks = Vec::new();
        let mut found = vec![0.0; hidden];
        let mut sum = 0.0;
        for (token, logits) in self.logits.chunks_exact(layer.num_experts as usize).enumerate() {
            interpret(ops, logits, &mut picks);
            let row = token * hidden..(token + 1) * hidden;
            found.copy_from_slice(&self.rest[row.clone()]);
            for &(expert, weight) in &picks {
                let start = (expert as usize * num_tokens + token) * hidden;
                let made = &self.outputs[start..start + hidden];
                found.iter_mut().zip(made).for_each(|(sum, made)| *sum += weight * made);
            }
            let errors = self.expected[row].iter().zip(&found);
            sum += errors.map(|(e, f)| f64::from(e - f).powi(2)).sum::<f64>();
        }
        sum
    }
}
