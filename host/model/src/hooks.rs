//! The one seam through which modules and routers affect a forward pass.
//!
//! Called by the decoder; implemented by the engine. Every default is the identity, so the base model
//! is "no hooks", bit for bit. Rows are the step's flat rows in order; hidden states are row-major f32
//! in host memory (a device backend would hand out its own tensors behind the same calls).

use crate::linear::Linear;
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
