//! The parts of modules: their effect on a forward pass, whatever format it came in.
//!
//! A part at a linear is a delta on the linear's output, computed from what the base's linear read and
//! wrote: y = y₀ + Σ w·Δ(x, y₀). So a weighted mix of any kinds is a plain sum, and one module at
//! weight 1 is exactly itself. A part elsewhere is a [`Part`]; a new kind is a variant of it.

use std::collections::BTreeMap;

use polyskill_model::Projection;
use polyskill_sdk::experts::LayerPolicy;

use crate::edits::{ActivationEdit, Positions};
use crate::lora::{Elements, LoraSite};
use crate::weights::{FeedForwardShape, Shape};

/// A part of a module that acts elsewhere than at linears.
#[derive(Clone, Debug)]
pub enum Part {
    /// A low-rank change of the embedding table.
    Embedding(EmbeddingLora),
    /// New embeddings of some tokens.
    Tokens(TokenRows),
    /// A change of the head, as at a linear.
    Head(LinearPart),
    /// A head of its own, `[vocab_size, hidden_size]`, which takes the place of the base's.
    OwnHead(Elements),
    /// New rows of the head for some tokens.
    HeadTokens(TokenRows),
    /// Embeddings before the sequence.
    Prompt(SoftPrompt),
    /// Keys and values before the sequence.
    Prefix(KvPrefix),
    /// An edit of hidden states. Several apply in the order of the parts.
    Edit(ActivationEdit),
    /// Low-rank products at linears of a sparse base's experts, where they act on rows that the base
    /// sends to the expert.
    ExpertLoras(BTreeMap<ExpertSite, LoraSite>),
    /// Choices among the experts of a sparse base.
    Policy(ExpertPolicy),
    /// Feed-forwards of its own beside those of the base, by layer.
    FeedForwards(BTreeMap<usize, FeedForward>),
}

impl Part {
    /// Bytes of weights, as budgets count them. Token ids, policies and router rows are left out, being
    /// small.
    pub fn num_bytes(&self) -> usize {
        match self {
            Self::Embedding(lora) => lora.a_transposed.num_bytes() + lora.b_transposed.num_bytes(),
            Self::Tokens(rows) | Self::HeadTokens(rows) => 4 * rows.deltas.len(),
            Self::Head(part) => part.num_bytes(),
            Self::OwnHead(head) => head.num_bytes(),
            Self::Prompt(prompt) => prompt.embeddings.num_bytes(),
            Self::Prefix(prefix) => {
                prefix.keys.iter().chain(&prefix.values).map(Elements::num_bytes).sum()
            }
            Self::Edit(edit) => edit.num_bytes(),
            Self::ExpertLoras(loras) => loras.values().map(LoraSite::num_bytes).sum(),
            Self::Policy(policy) => policy.experts.values().flatten().map(Expert::num_bytes).sum(),
            Self::FeedForwards(own) => own.values().map(|own| own.expert.num_bytes()).sum(),
        }
    }

    /// Adds the facts that stay known without the weights.
    pub(crate) fn describe(&self, shape: &mut Shape) {
        match self {
            Self::Prompt(prompt) => shape.num_prompt += prompt.num_tokens,
            Self::Prefix(prefix) => shape.num_prefix += prefix.num_tokens,
            Self::FeedForwards(own) => {
                shape.feed_forwards.extend(own.iter().map(|(&layer, own)| own.shape(layer)));
            }
            Self::Policy(policy) => {
                shape.policy.extend(policy.layers.iter().cloned());
                shape.beyond_linears = true;
            }
            Self::Edit(edit) => {
                shape.edits_at_prompt_end |= edit.positions != Positions::All;
                shape.beyond_linears = true;
            }
            Self::Embedding(_)
            | Self::Tokens(_)
            | Self::Head(_)
            | Self::OwnHead(_)
            | Self::HeadTokens(_)
            | Self::ExpertLoras(_) => shape.beyond_linears = true,
        }
    }
}

/// Choices among the experts of a sparse base, and experts that came with them.
#[derive(Clone, Debug, Default)]
pub struct ExpertPolicy {
    /// The choices, one per layer, ascending.
    pub layers: Vec<LayerPolicy>,
    /// Own experts by layer; the policy numbers them after the base's.
    pub experts: BTreeMap<usize, Vec<Expert>>,
}

/// A module's part at one linear; its delta is the sum of the fields'.
#[derive(Clone, Debug, Default)]
pub struct LinearPart {
    /// A low-rank product, `s·B·A·x`, or DoRA.
    pub lora: Option<LoraSite>,
    /// (IA)³ on outputs (Liu et al., 2022): `l − 1`, `[outputs]`; Δ = (l − 1) ⊙ y₀.
    pub output_scale: Option<Vec<f32>>,
    /// (IA)³ on inputs: `l − 1`, `[inputs]`; Δ = W·((l − 1) ⊙ x).
    pub input_scale: Option<Vec<f32>>,
    /// A few changed weights.
    pub graft: Option<Graft>,
    /// A change of the bias, `[outputs]`, already scaled where it is LoRA's own; Δ = bias, for
    /// every row.
    pub bias: Option<Vec<f32>>,
}

impl LinearPart {
    /// A low-rank product and nothing else.
    pub fn lora(lora: LoraSite) -> Self {
        Self { lora: Some(lora), ..Self::default() }
    }

    /// True where the delta depends on what the base wrote: (IA)³ on outputs, and DoRA.
    pub fn reads_output(&self) -> bool {
        self.output_scale.is_some()
            || self.lora.as_ref().is_some_and(|lora| lora.magnitude.is_some())
    }

    /// True where no field but `lora` is set; a DoRA counts, and so does an empty part.
    pub fn is_lora_alone(&self) -> bool {
        let vectors = [&self.output_scale, &self.input_scale, &self.bias];
        vectors.into_iter().all(Option::is_none) && self.graft.is_none()
    }

    /// Bytes of weights. Those that a module holds of the base, as DoRA's bias, are not counted.
    pub fn num_bytes(&self) -> usize {
        let vectors = [&self.output_scale, &self.input_scale, &self.bias];
        let floats = vectors.into_iter().flatten().map(Vec::len).sum::<usize>();
        let lora = self.lora.as_ref().map_or(0, LoraSite::num_bytes);
        lora + 4 * floats + self.graft.as_ref().map_or(0, Graft::num_bytes)
    }
}

/// Changes of single weights, ordered by row and then by column: W′\[r, c\] = W\[r, c\] + value.
/// The three lists have one length, and no place is named twice.
#[derive(Clone, Debug, Default)]
pub struct Graft {
    /// Output feature of each change.
    pub rows: Vec<u32>,
    /// Input feature of each change.
    pub columns: Vec<u32>,
    /// The addend of each weight.
    pub values: Vec<f32>,
}

impl Graft {
    /// Twelve bytes per change: two indices and the addend.
    fn num_bytes(&self) -> usize {
        12 * self.values.len()
    }
}

/// Rows of the embedding table or the head that a module has learned anew (PEFT's trainable
/// tokens). The same rows may stand at both ends of a tied base.
#[derive(Clone, Debug)]
pub struct TokenRows {
    /// Token ids, ascending.
    pub ids: Vec<u32>,
    /// New row less the base's, `[ids, hidden_size]`.
    pub deltas: Vec<f32>,
}

impl TokenRows {
    /// The change of a token's row, `[hidden_size]`, if it has one; found by bisection.
    pub fn delta(&self, token: u32) -> Option<&[f32]> {
        let at = self.ids.binary_search(&token).ok()?;
        let width = self.deltas.len() / self.ids.len();
        Some(&self.deltas[at * width..(at + 1) * width])
    }
}

/// Embeddings that come before the sequence (prompt tuning, Lester et al., 2021; folded P-tuning).
/// Each takes a position, as a token does.
#[derive(Clone, Debug)]
pub struct SoftPrompt {
    /// PEFT's `num_virtual_tokens`.
    pub num_tokens: usize,
    /// `[num_tokens, hidden_size]`, in the place of rows of the embedding table.
    pub embeddings: Elements,
}

/// Keys and values that come before the sequence (prefix tuning, Li and Liang, 2021; an encoded
/// document). It has one entry per layer of the base in each list.
#[derive(Clone, Debug)]
pub struct KvPrefix {
    /// `num_virtual_tokens`, or tokens of the document.
    pub num_tokens: usize,
    /// Per layer, keys as attention sees them, so that no rotary embedding is applied any more:
    /// `[num_tokens, kv heads · head_dim]`.
    pub keys: Vec<Elements>,
    /// Per layer, values of the same shape.
    pub values: Vec<Elements>,
}

/// A low-rank change of the embedding table: Δ(token) = s·B·A[:, token]. Both matrices are
/// transposed, so that a token's product reads rows alone.
#[derive(Clone, Debug)]
pub struct EmbeddingLora {
    /// r, at least 1.
    pub rank: usize,
    /// Factor on B·A.
    pub scale: f32,
    /// Aᵀ, `[vocab_size, rank]`.
    pub a_transposed: Elements,
    /// Bᵀ, `[rank, hidden_size]`.
    pub b_transposed: Elements,
}

/// A linear of an expert of the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExpertSite {
    /// Layer number, from 0.
    pub layer: usize,
    /// Expert; the shared one is numbered after the routed ones.
    pub expert: usize,
    /// Gate, up or down.
    pub projection: Projection,
}

/// A gated feed-forward of a module's own. It computes E(x) = down·(act(gate·x) ⊙ up·x) with the
/// base's activation.
#[derive(Clone, Debug)]
pub struct Expert {
    /// Features inside.
    pub width: usize,
    /// `[width, hidden_size]`
    pub gate: Elements,
    /// `[width, hidden_size]`
    pub up: Elements,
    /// `[hidden_size, width]`
    pub down: Elements,
}

impl Expert {
    /// Bytes of weights.
    pub fn num_bytes(&self) -> usize {
        [&self.gate, &self.up, &self.down].into_iter().map(Elements::num_bytes).sum()
    }
}

/// A feed-forward that stands beside a layer's own; a row's delta is computed from what the layer's
/// own wrote, as at linears.
#[derive(Clone, Debug)]
pub struct FeedForward {
    /// Its weights, of any width.
    pub expert: Expert,
    /// True where it takes the place of the layer's own: Δ = E(x) − y₀; else it is added: Δ = E(x).
    pub replaces: bool,
    /// The expert's row of a trained router, `[hidden_size]`, with which routers may score it.
    pub router: Option<Vec<f32>>,
}

impl FeedForward {
    /// Its layer, width and router row, which stay known without the weights.
    fn shape(&self, layer: usize) -> FeedForwardShape {
        FeedForwardShape { layer, width: self.expert.width, router: self.router.clone() }
    }
}
