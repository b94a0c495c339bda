//! A module's weights, and the facts about them that stay known while they are not in memory.

use polyskill_model::{Projection, Site};
use polyskill_sdk::experts::LayerPolicy;

use crate::edits::ActivationEdit;
use crate::lora::{Elements, LoraSite};
pub use crate::parts::{
    EmbeddingLora, Expert, ExpertPolicy, ExpertSite, FeedForward, Graft, KvPrefix, LinearPart,
    Part, SoftPrompt, TokenRows,
};

/// A module's weights, ready to be applied: its parts at linears, and those elsewhere. A module without
/// parts changes nothing.
#[derive(Clone, Debug, Default)]
pub struct Weights {
    /// Parts at linears, by [`Site::index`].
    linears: Vec<Option<LinearPart>>,
    /// Parts elsewhere. Of most kinds a module has one.
    parts: Vec<Part>,
}

/// The first part of a variant.
macro_rules! first {
    ($weights:expr, $variant:ident) => {
        $weights.parts.iter().find_map(|part| match part {
            Part::$variant(part) => Some(part),
            _ => None,
        })
    };
}

impl Weights {
    /// An empty module for a model with `num_sites` sites.
    pub fn new(num_sites: usize) -> Self {
        Self { linears: vec![None; num_sites], parts: Vec::new() }
    }

    /// Adds a part that acts elsewhere than at linears.
    pub fn add(&mut self, part: Part) {
        self.parts.push(part);
    }

    /// The parts that act elsewhere than at linears, in their order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
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

    /// The change of the head, as at a linear.
    pub fn head(&self) -> Option<&LinearPart> {
        first!(self, Head)
    }

    /// The head that takes the place of the base's, `[vocab_size, hidden_size]`.
    pub fn own_head(&self) -> Option<&Elements> {
        first!(self, OwnHead)
    }

    /// The new rows of the head for some tokens.
    pub fn head_tokens(&self) -> Option<&TokenRows> {
        first!(self, HeadTokens)
    }

    /// The low-rank change of the embedding table.
    pub fn embedding(&self) -> Option<&EmbeddingLora> {
        first!(self, Embedding)
    }

    /// The new embeddings of some tokens.
    pub fn tokens(&self) -> Option<&TokenRows> {
        first!(self, Tokens)
    }

    /// The embeddings before the sequence.
    pub fn prompt(&self) -> Option<&SoftPrompt> {
        first!(self, Prompt)
    }

    /// The keys and values before the sequence.
    pub fn prefix(&self) -> Option<&KvPrefix> {
        first!(self, Prefix)
    }

    /// The edits of hidden states, in the order in which they apply.
    pub fn edits(&self) -> impl Iterator<Item = &ActivationEdit> {
        self.parts.iter().filter_map(|part| match part {
            Part::Edit(edit) => Some(edit),
            _ => None,
        })
    }

    /// True where it acts inside experts of a sparse base.
    pub fn has_expert_loras(&self) -> bool {
        first!(self, ExpertLoras).is_some()
    }

    /// The low-rank product at a linear of an expert of the base.
    pub fn expert_lora(&self, site: ExpertSite) -> Option<&LoraSite> {
        first!(self, ExpertLoras)?.get(&site)
    }

    /// An expert that came with the policy, by its number among the policy's own at the layer.
    pub fn policy_expert(&self, layer: usize, expert: usize) -> Option<&Expert> {
        first!(self, Policy)?.experts.get(&layer)?.get(expert)
    }

    /// True where it has feed-forwards of its own.
    pub fn has_feed_forwards(&self) -> bool {
        first!(self, FeedForwards).is_some()
    }

    /// The feed-forward of its own at a layer.
    pub fn feed_forward(&self, layer: usize) -> Option<&FeedForward> {
        first!(self, FeedForwards)?.get(&layer)
    }

    /// True for a module that does nothing at all.
    pub fn is_empty(&self) -> bool {
        self.sites().next().is_none() && self.parts.is_empty()
    }

    /// Bytes of weights, as budgets count them.
    pub fn num_bytes(&self) -> usize {
        let linears = self.linears.iter().flatten().map(LinearPart::num_bytes);
        linears.sum::<usize>() + self.parts.iter().map(Part::num_bytes).sum::<usize>()
    }

    /// Facts about the module that stay known without its weights.
    pub fn shape(&self) -> Shape {
        let site = |(site, part): (Site, &LinearPart)| SiteShape {
            site,
            rank: part.lora.as_ref().map_or(0, |lora| lora.rank),
            scale: part.lora.as_ref().map_or(0.0, |lora| lora.scale),
            half: part.lora.as_ref().is_some_and(|lora| !matches!(lora.a, Elements::F32(_))),
        };
        let is_plain = |(_, part): (Site, &LinearPart)| {
            let lora = part.lora.as_ref().filter(|lora| lora.magnitude.is_none());
            lora.is_some() && part.is_lora_alone()
        };
        let mut shape = Shape {
            sites: self.sites().map(site).collect(),
            plain: self.sites().all(is_plain),
            num_bytes: self.num_bytes(),
            ..Shape::default()
        };
        self.parts.iter().for_each(|part| part.describe(&mut shape));
        shape
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
