//! The one seam through which modules and routers affect a forward pass.
//!
//! Called by the decoder; implemented by the engine. Every default is the identity, so the base
//! model is "no hooks", bit for bit. Rows are the step's flat rows in order; hidden states are
//! row-major f32 in host memory.

use crate::linear::Linear;
use crate::moe::{ExpertChoice, Experts};
use crate::site::{InputGroup, Projection};

/// The output of one projection for all rows of a step.
///
/// Hooks run on it after the base's bias was added, and before norms of queries and keys or the
/// rotary embedding.
#[derive(Debug)]
pub struct SiteOutput<'a> {
    /// The projection that wrote it.
    pub projection: Projection,
    /// Its values, `[rows, width]`; a hook adds its delta here.
    pub values: &'a mut [f32],
    /// Output features per row.
    pub width: usize,
    /// The base's weights, for modules that act on what the projection reads.
    pub linear: &'a Linear,
}

/// The slots of a sparse layer: one for each row and expert that the row gets.
#[derive(Clone, Copy, Debug)]
pub struct ExpertSlots<'a> {
    /// Row of the step and number of the expert, by ascending expert, then by row. The shared
    /// expert is numbered after the routed ones and comes in a call of its own.
    pub slots: &'a [(u32, u32)],
    /// The base's experts of the layer.
    pub experts: &'a Experts,
}

/// The output of one projection of experts for all slots.
#[derive(Debug)]
pub struct ExpertOutput<'a> {
    /// The projection that wrote it.
    pub projection: Projection,
    /// Its values, `[slots, width]`; a hook adds its delta here.
    pub values: &'a mut [f32],
    /// Output features per slot.
    pub width: usize,
}

/// The effects of modules and routers on a forward pass.
///
/// Within a layer the calls come in this order: `projected` for q, k and v; `attended`; `projected`
/// for o; then, if the layer is dense, `projected` for gate and up and for down, else `routed` and
/// `expert_projected` for each of these groups; `fed_forward`; `residual`.
pub trait Hooks {
    /// Called once per step, after token embedding; `hidden` is `[rows, hidden_size]`, rows of the
    /// table times `scale`.
    fn embedded(&mut self, hidden: &mut [f32], scale: f32) {
        let _ = (hidden, scale);
    }

    /// Called after the base projections of one input group: every low-rank delta enters here.
    ///
    /// `input` is what those projections read, `[rows, input width]`.
    ///
    /// `outputs` holds the group's projections in the order of
    /// [`Projection::ALL`](crate::Projection::ALL). A hook may change any value; rows that it
    /// leaves alone keep the base's bits.
    fn projected(&mut self, group: InputGroup, input: &[f32], outputs: &mut [SiteOutput<'_>]) {
        let _ = (group, input, outputs);
    }

    /// Called after each layer's attention with the heads' outputs, `[rows, num_heads · head_dim]`,
    /// before the output projection reads them.
    fn attended(&mut self, layer: usize, heads: &mut [f32]) {
        let _ = (layer, heads);
    }

    /// Called in each sparse layer before experts run.
    ///
    /// `logits` are the router's, `[rows, num_experts]`, −∞ for experts that were dropped at load.
    /// `choice` is the model's own choice, which a hook may replace row by row. Experts in it that
    /// were dropped are passed over.
    fn routed(&mut self, layer: usize, logits: &[f32], choice: &mut ExpertChoice) {
        let _ = (layer, logits, choice);
    }

    /// Called after the projections of chosen experts; `input` is what those read,
    /// `[slots, input width]`.
    ///
    /// Called for gate and up, then for down, of the routed experts, and again for the shared
    /// expert if there is one.
    fn expert_projected(
        &mut self,
        group: InputGroup,
        slots: &ExpertSlots<'_>,
        input: &[f32],
        outputs: &mut [ExpertOutput<'_>],
    ) {
        let _ = (group, slots, input, outputs);
    }

    /// Called after each layer's feed-forward, dense or sparse, with what it read and what it adds
    /// to the residual stream, both `[rows, hidden_size]`: modules that stand beside it add theirs.
    fn fed_forward(&mut self, layer: usize, input: &[f32], output: &mut [f32]) {
        let _ = (layer, input, output);
    }

    /// Called after each layer with the residual stream, `[rows, hidden_size]`.
    fn residual(&mut self, layer: usize, hidden: &mut [f32]) {
        let _ = (layer, hidden);
    }

    /// Called after the head, if any logits were wanted.
    ///
    /// `rows` are the step's rows whose logits were wanted, `normed` is the head's input,
    /// `[logit rows, hidden_size]`, and `logits` is `[logit rows, vocab_size]`.
    fn scored(&mut self, rows: &[u32], normed: &[f32], logits: &mut [f32]) {
        let _ = (rows, normed, logits);
    }
}

/// The base model by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHooks;

impl Hooks for NoHooks {}
