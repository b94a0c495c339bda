//! Sites: the places of the network at which a module can act and a router can decide.
//!
//! A site is `(layer, projection)`. Names are resolved to these typed keys once, at load; nothing
//! matches substrings afterwards.

use std::fmt;

/// One of the seven linear projections of a decoder layer.
///
/// The numbers are part of [`Site::index`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Projection {
    /// Query projection of the attention.
    Q,
    /// Key projection of the attention.
    K,
    /// Value projection of the attention.
    V,
    /// Output projection of the attention.
    O,
    /// Gate projection of the feed-forward.
    Gate,
    /// Up projection of the feed-forward.
    Up,
    /// Down projection of the feed-forward.
    Down,
}

impl Projection {
    /// All projections, in the order in which a layer runs them.
    pub const ALL: [Self; 7] =
        [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The module path below `model.layers.N.` in Hugging Face checkpoints and PEFT adapters.
    pub fn path(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// The last component of [`Projection::path`], as in PEFT's `target_modules`.
    pub fn name(self) -> &'static str {
        match self.path().rsplit_once('.') {
            Some((_, name)) => name,
            None => self.path(),
        }
    }

    /// The input group whose hidden state this projection reads.
    pub fn group(self) -> GroupKind {
        match self {
            Self::Q | Self::K | Self::V => GroupKind::AttentionInput,
            Self::O => GroupKind::AttentionOutput,
            Self::Gate | Self::Up => GroupKind::FeedForwardInput,
            Self::Down => GroupKind::FeedForwardInner,
        }
    }
}

/// A hidden state inside a layer, told by the projections that read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum GroupKind {
    /// The normed residual before the attention: q, k, v.
    AttentionInput,
    /// The heads' output: o.
    AttentionOutput,
    /// The normed residual before the feed-forward: gate, up.
    FeedForwardInput,
    /// The gated product inside the feed-forward: down.
    FeedForwardInner,
}

impl GroupKind {
    /// The projections that read this hidden state.
    pub fn projections(self) -> &'static [Projection] {
        match self {
            Self::AttentionInput => &[Projection::Q, Projection::K, Projection::V],
            Self::AttentionOutput => &[Projection::O],
            Self::FeedForwardInput => &[Projection::Gate, Projection::Up],
            Self::FeedForwardInner => &[Projection::Down],
        }
    }
}

/// An input group of one layer: the projections that read one hidden state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InputGroup {
    /// Layer number, from 0.
    pub layer: usize,
    /// The hidden state of that layer.
    pub kind: GroupKind,
}

/// One adaptable linear: a projection of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    /// Layer number, from 0.
    pub layer: usize,
    /// The projection of that layer.
    pub projection: Projection,
}

impl Site {
    /// Dense index over all sites of a model: `7 · layer + projection`.
    pub fn index(self) -> usize {
        self.layer * Projection::ALL.len() + self.projection as usize
    }

    /// The inverse of [`Site::index`].
    ///
    /// Not bounded by a model: an index beyond its sites gives a layer that it lacks.
    pub fn from_index(index: usize) -> Self {
        let per_layer = Projection::ALL.len();
        Self { layer: index / per_layer, projection: Projection::ALL[index % per_layer] }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layers.{}.{}", self.layer, self.projection.path())
    }
}
