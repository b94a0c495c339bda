//! The one seam through which modules and routers affect a forward pass.
//!
//! Called by the decoder; implemented by the engine. Every default is the identity, so the base model
//! is "no hooks", bit for bit. Rows are the step's flat rows in order; hidden states are row-major f32
//! in host memory (a device backend would hand out its own tensors behind the same calls).

use crate::linear::Linear;
use crate::moe::{ExpertChoice, Experts};
use crate::site::{InputGroup, Projection};

/// The output of one projection for all rows of a step.
#[derive(Debug)]
pub struct SiteOutput<'a> {
    /// Which projection wrote it.
    pub projection: Projection,
    /// Its values, `[rows, width]`; a hook adds its delta here.
    pub values: &'a mut [f32],
    /// Output features per row.
    pub width: usize,
    /// The base's weights, for modules that act on what the projection reads.
    pub linear: &'a Linear,
}

/// Which row and expert each slot of a sparse layer's projection belongs to.
#[derive(Clone, Copy, Debug)]
pub struct ExpertSlots<'a> {
    /// Row of the step and expert, by ascending expert; the shared expert is numbered after the routed ones.
    pub slots: &'a [(u32, u32)],
    /// The base's weights.
    pub experts: &'a Experts,
}

/// The output of one projection of experts for all slots.
#[derive(Debug)]
pub struct ExpertOutput<'a> {
    /// Which projection wrote it.
    pub projection: Projection,
    /// Its values, `[slots, width]`; a hook adds its delta here.
    pub values: &'a mut [f32],
    /// Output features per slot.
    pub width: usize,
}

/// What a composition does to a forward pass.
pub trait Hooks {
    /// Called once per step, after token embedding; `hidden` is `[rows, hidden_size]`, rows of the table times
    /// `scale`.
    fn embedded(&mut self, hidden: &mut [f32], scale: f32) {
        let _ = (hidden, scale);
    }

    /// Called after the base projections of one input group: every low-rank delta enters here.
    ///
    /// `input` is what those projections read, `[rows, input width]`.
    fn projected(&mut self, group: InputGroup, input: &[f32], outputs: &mut [SiteOutput<'_>]) {
        let _ = (group, input, outputs);
    }

    /// Called after each layer's attention with the heads' outputs, `[rows, num_heads · head_dim]`, before the
    /// output projection reads them.
    fn attended(&mut self, layer: usize, heads: &mut [f32]) {
        let _ = (layer, heads);
    }

    /// Called in each sparse layer before experts run: `logits` are the router's, `[rows, num_experts]`, and `choice` is what
    /// the model itself makes of them, which a hook may replace row by row.
    fn routed(&mut self, layer: usize, logits: &[f32], choice: &mut ExpertChoice) {
        let _ = (layer, logits, choice);
    }

    /// Called after the projections of chosen experts; `input` is what those read, `[slots, input width]`.
    fn expert_projected(
        &mut self,
        group: InputGroup,
        slots: &ExpertSlots<'_>,
        input: &[f32],
        outputs: &mut [ExpertOutput<'_>],
    ) {
        let _ = (group, slots, input, outputs);
    }

    /// Called after each layer's feed-forward, dense or sparse, with what it read and what it adds to the residual
    /// stream, both `[rows, hidden_size]`: modules that stand beside it add theirs.
    fn fed_forward(&mut self, layer: usize, input: &[f32], output: &mut [f32]) {
        let _ = (layer, input, output);
    }

    /// Called after each layer with the residual stream, `[rows, hidden_size]`.
    fn residual(&mut self, layer: usize, hidden: &mut [f32]) {
        let _ = (layer, hidden);
    }

    /// Called after the head: `rows` are the step's rows whose logits were wanted, `normed` is what the head
    /// read, `[logit rows, hidden_size]`, and `logits` is `[logit rows, vocab_size]`.
    fn scored(&mut self, rows: &[u32], normed: &[f32], logits: &mut [f32]) {
        let _ = (rows, normed, logits);
    }
}

/// The base model.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHooks;

impl Hooks for NoHooks {}
