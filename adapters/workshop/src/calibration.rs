//! Calibration of expert policies: what a sparse layer loses without some of its experts, and how its experts are used.
//!
//! Everything is collected batch by batch from what passes through a layer, so memory does not grow with the text.

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

/// Some tokens at one sparse layer.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    /// The router's logits, `[tokens, experts]`.
    pub logits: &'a [f32],
    /// What every expert makes of every token, `[experts, tokens, hidden_size]`.
    pub outputs: &'a [f32],
    /// What the feed-forward adds beside its routed experts, `[tokens, hidden_size]`.
    pub rest: &'a [f32],
    /// What the whole feed-forward should give, `[tokens, hidden_size]`.
    pub expected: &'a [f32],
}

impl Tokens<'_> {
    /// ‖expected − found‖², where a program chooses the experts.
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
