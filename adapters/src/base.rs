//! The base that modules are read for, and the content that a format's reader gives.

use polyskill_model::{Decoder, ModelConfig};

use crate::generation::Generation;
use crate::kind::Kind;
use crate::weights::Weights;

/// The base model that modules are read for. Without weights it is enough for modules that are kept
/// as they are, such as LoRA at linears.
#[derive(Clone, Copy, Debug)]
pub struct Base<'a> {
    /// Its shape: sizes, layers and projections.
    pub config: &'a ModelConfig,
    /// Digest of its weights, where it is known; artefacts and documents are bound to it. Nothing
    /// is compared with it where it is `None`.
    pub digest: Option<[u8; 32]>,
    /// Its weights, where they are at hand. DoRA, trained biases and trainable tokens are kept as a
    /// difference to them, and are refused without.
    pub model: Option<&'a Decoder>,
}

impl<'a> From<&'a ModelConfig> for Base<'a> {
    fn from(config: &'a ModelConfig) -> Self {
        Self { config, digest: None, model: None }
    }
}

impl<'a> From<&'a Decoder> for Base<'a> {
    fn from(model: &'a Decoder) -> Self {
        Self { config: model.config(), digest: Some(model.weights_digest()), model: Some(model) }
    }
}

/// A module as its format's reader gives it: weights, kind and identity.
pub(crate) struct Content {
    /// The hash of configuration and weights.
    pub(crate) generation: Generation,
    /// The kind, as its configuration or its file names it.
    pub(crate) kind: Kind,
    /// The parts, checked against the base's shape.
    pub(crate) weights: Weights,
}
