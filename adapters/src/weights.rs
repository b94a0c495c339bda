//! The parts of modules: their effect on a forward pass, whatever format it came in.
//!
//! A module is a set of parts, most have one. Parts at linears are deltas on the linear's output,
//! computed from what the base's linear read and wrote: y = y₀ + Σ w·Δ(x, y₀). So a weighted mix of
//! any kinds is a plain sum, and one module at weight 1 is exactly itself.

use std::collections::BTreeMap;

use polyskill_model::{Projection, Site};
use polyskill_sdk::experts::LayerPolicy;

use crate::edits::{ActivationEdit, Positions};
use crate::lora::{Elements, LoraSite};

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

/// A module's weights, ready to be applied. Fields that a module does not use are empty, and an
/// empty module changes nothing.
#[derive(Clone, Debug, Default)]
pub struct Weights {
    /// Parts at linears, by [`Site::index`].
    linears: Vec<Option<LinearPart>>,
    /// A part at the head, as at a linear.
    pub head: Option<LinearPart>,
    /// A head of its own, `[vocab_size, hidden_size]`, which takes the place of the base's.
    pub own_head: Option<Elements>,
    /// A low-rank change of the embedding table.
    pub embedding: Option<EmbeddingLora>,
    /// New embeddings of some tokens.
    pub tokens: Option<TokenRows>,
    /// New rows of the head for some tokens.
    pub head_tokens: Option<TokenRows>,
    /// Embeddings before the sequence.
    pub prompt: Option<SoftPrompt>,
    /// Keys and values before the sequence.
    pub prefix: Option<KvPrefix>,
    /// Edits of hidden states, in the order in which they apply.
    pub edits: Vec<ActivationEdit>,
    /// Low-rank products at linears of a sparse base's experts, where they act on rows that the
    /// base sends to the expert.
    pub expert_loras: BTreeMap<ExpertSite, LoraSite>,
    /// Choices among the experts of a sparse base, one per layer, ascending.
    pub policy: Vec<LayerPolicy>,
    /// Experts that came with the policy, by layer; the policy numbers them after the base's own.
    pub experts: BTreeMap<usize, Vec<Expert>>,
    /// Feed-forwards of its own beside those of the base, by layer.
    pub feed_forwards: BTreeMap<usize, FeedForward>,
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

impl Weights {
    /// An empty module for a model with `num_sites` sites.
    pub fn new(num_sites: usize) -> Self {
        Self { linears: vec![None; num_sites], ..Self::default() }
    }

    /// The module's part at a site, if it acts there.
    pub fn at(&self, site: Site) -> Option<&LinearPart> {
        self.linears.get(site.index())?.as_ref()
    }

    /// The low-rank product at a site.
    pub fn lora_at(&self, site: Site) -> Option<&LoraSite> {
        self.at(site)?.lora.as_ref()
    }

    /// The part at a site, made where there is none.
    ///
    /// # Panics
    /// If the model has no such site.
    pub fn at_mut(&mut self, site: Site) -> &mut LinearPart {
        self.linears[site.index()].get_or_insert_default()
    }

    /// The sites where the module acts, ascending.
    pub fn sites(&self) -> impl Iterator<Item = (Site, &LinearPart)> {
        let all = self.linears.iter().enumerate();
        all.filter_map(|(index, part)| Some((Site::from_index(index), part.as_ref()?)))
    }

    /// True for a module that does nothing at all.
    pub fn is_empty(&self) -> bool {
        let rest = [
            self.head.is_some(),
            self.own_head.is_some(),
            self.embedding.is_some(),
            self.tokens.is_some(),
            self.head_tokens.is_some(),
            self.prompt.is_some(),
            self.prefix.is_some(),
            !self.edits.is_empty(),
            !self.policy.is_empty(),
            !self.expert_loras.is_empty(),
            !self.feed_forwards.is_empty(),
        ];
        self.sites().next().is_none() && !rest.contains(&true)
    }

    /// Bytes of weights, as budgets count them. Token ids, policies and router rows are left out,
    /// being small.
    pub fn num_bytes(&self) -> usize {
        let linears = self.linears.iter().flatten().chain(&self.head);
        let prefix = self.prefix.iter().flat_map(|prefix| prefix.keys.iter().chain(&prefix.values));
        let elements = prefix
            .chain(self.own_head.as_ref())
            .chain(self.prompt.as_ref().map(|prompt| &prompt.embeddings))
            .chain(self.embedding.iter().flat_map(|lora| [&lora.a_transposed, &lora.b_transposed]));
        let tokens = self.tokens.iter().chain(&self.head_tokens);
        let floats: usize = tokens.map(|tokens| tokens.deltas.len()).sum();
        linears.map(LinearPart::num_bytes).sum::<usize>()
            + elements.map(Elements::num_bytes).sum::<usize>()
            + 4 * floats
            + self.edits.iter().map(ActivationEdit::num_bytes).sum::<usize>()
            + self.expert_loras.values().map(LoraSite::num_bytes).sum::<usize>()
            + self.experts.values().flatten().map(Expert::num_bytes).sum::<usize>()
            + self.feed_forwards.values().map(|own| own.expert.num_bytes()).sum::<usize>()
    }

    /// Facts about the module that stay known without its weights.
    pub fn shape(&self) -> Shape {
        let site = |(site, part): (Site, &LinearPart)| SiteShape {
            site,
            rank: part.lora.as_ref().map_or(0, |lora| lora.rank),
            scale: part.lora.as_ref().map_or(0.0, |lora| lora.scale),
            half: part.lora.as_ref().is_some_and(|lora| !matches!(lora.a, Elements::F32(_))),
        };
        let positions = self.edits.iter().map(|edit| edit.positions);
        Shape {
            sites: self.sites().map(site).collect(),
            num_prefix: self.prefix.as_ref().map_or(0, |prefix| prefix.num_tokens),
            num_prompt: self.prompt.as_ref().map_or(0, |prompt| prompt.num_tokens),
            edits_at_prompt_end: positions.clone().any(|at| at != Positions::All),
            beyond_linears: self.head.is_some()
                || self.own_head.is_some()
                || self.embedding.is_some()
                || self.tokens.is_some()
                || self.head_tokens.is_some()
                || !self.edits.is_empty()
                || !self.policy.is_empty()
                || !self.expert_loras.is_empty(),
            policy: self.policy.clone(),
            feed_forwards: self.feed_forwards.iter().map(|(&at, own)| own.shape(at)).collect(),
            plain: self.sites().all(|(_, part)| {
                let lora = part.lora.as_ref().filter(|lora| lora.magnitude.is_none());
                lora.is_some() && part.is_lora_alone()
            }),
            num_bytes: self.num_bytes(),
        }
    }
}

/// Facts about a module that stay known while its weights are not in memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shape {
    /// The linears where it acts, ascending.
    pub sites: Vec<SiteShape>,
    /// Positions of keys and values before the sequence; 0 where it has none.
    pub num_prefix: usize,
    /// Embeddings before the sequence, each a position too; 0 where it has none.
    pub num_prompt: usize,
    /// True where an edit depends on the end of the prompt.
    pub edits_at_prompt_end: bool,
    /// True where it acts at embeddings, the head, hidden states or the experts of a sparse base.
    pub beyond_linears: bool,
    /// Choices among the experts of a sparse base, one per layer, ascending.
    pub policy: Vec<LayerPolicy>,
    /// Layers where it has a feed-forward of its own, ascending.
    pub feed_forwards: Vec<FeedForwardShape>,
    /// True where every part at a linear is a low-rank product and nothing else, without
    /// magnitudes.
    pub plain: bool,
    /// Bytes of its weights in memory.
    pub num_bytes: usize,
}

impl Shape {
    /// The module's rank and scale at a site, if it acts there.
    pub fn at(&self, site: Site) -> Option<&SiteShape> {
        let at = self.sites.binary_search_by_key(&site.index(), |shape| shape.site.index());
        Some(&self.sites[at.ok()?])
    }

    /// The linears where it has a low-rank product: what routers can derive something from. They
    /// ascend, as all sites do.
    pub fn low_rank_sites(&self) -> impl Iterator<Item = &SiteShape> {
        self.sites.iter().filter(|site| site.rank > 0)
    }

    /// The feed-forward of its own that is decided at a site: that of the layer's gate projection,
    /// which reads what it reads. Other sites of the layer give `None`.
    pub fn feed_forward_at(&self, site: Site) -> Option<&FeedForwardShape> {
        let at = self.feed_forwards.binary_search_by_key(&site.layer, |own| own.layer);
        at.ok().filter(|_| site.projection == Projection::Gate).map(|at| &self.feed_forwards[at])
    }

    /// True where a pick at a site makes it act.
    pub fn acts_at(&self, site: Site) -> bool {
        self.at(site).is_some() || self.feed_forward_at(site).is_some()
    }

    /// True for a plain LoRA at linears and nothing else.
    pub fn is_low_rank(&self) -> bool {
        self.is_per_row() && self.plain && self.feed_forwards.is_empty()
    }

    /// True where it acts at linears or beside feed-forwards alone, so that it can be picked per
    /// row and site.
    pub fn is_per_row(&self) -> bool {
        let acts = !self.sites.is_empty() || !self.feed_forwards.is_empty();
        acts && !self.beyond_linears && self.num_prefix + self.num_prompt == 0
    }
}

/// A layer where a module has a feed-forward of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedForwardShape {
    /// Layer number, from 0.
    pub layer: usize,
    /// Features inside.
    pub width: usize,
    /// The expert's row of a trained router, `[hidden_size]`.
    pub router: Option<Vec<f32>>,
}

impl FeedForwardShape {
    /// The site where it is decided: the layer's gate projection, also where a sparse base has
    /// none.
    pub fn site(&self) -> Site {
        Site { layer: self.layer, projection: Projection::Gate }
    }
}

/// A linear where a module acts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SiteShape {
    /// The linear.
    pub site: Site,
    /// r; 0 where it has no low-rank product.
    pub rank: usize,
    /// Factor on B·A.
    pub scale: f32,
    /// True where A is kept in 16 bits.
    pub half: bool,
}
