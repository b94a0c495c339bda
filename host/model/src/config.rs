//! The variation points of decoder-only transformers, named after the feature that varies rather
//! than after model families.

/// Everything the decoder needs to know about a base model's shape.
///
/// Made by [`load`](crate::load) from `config.json` or from GGUF metadata, where sizes and
/// relations between them are checked. A value that is made by hand is not checked again.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family's name, for reports only.
    pub family: &'static str,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the dense feed-forward. Sparse layers have the widths of [`Mixture`].
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`. Equally many query heads, side by side, share each
    /// of them: grouped-query attention.
    pub num_kv_heads: usize,
    /// Features per head; even, as the rotary embedding turns pairs.
    pub head_dim: usize,
    /// Longest sequence that the model was made for. The decoder itself sets no bound.
    pub max_positions: usize,
    /// ε of all RMS norms, added to the mean square before the root.
    pub norm_epsilon: f32,
    /// Factor of the token embeddings: √`hidden_size` for gemma, else 1.
    pub embedding_scale: f32,
    /// Rotary embedding.
    pub rope: Rope,
    /// Rotary embedding of the layers with a window. `None` if all layers share
    /// [`rope`](Self::rope).
    pub local_rope: Option<Rope>,
    /// The projections that carry a bias.
    pub biases: Biases,
    /// Norm of queries and keys before the rotary embedding.
    pub query_key_norm: QueryKeyNorm,
    /// Largest magnitude of queries, keys and values after their norms; `None` if they are not
    /// clipped. OLMoE's `clip_qkv`.
    pub clip_query_key_value: Option<f32>,
    /// Factor of the attention scores before the softmax, mostly 1 / √`head_dim`.
    pub attention_scale: f32,
    /// Sliding window of each layer in positions, the row's own included; `None` sees the whole
    /// past. One entry per layer.
    pub windows: Vec<Option<usize>>,
    /// True if the outputs of attention and feed-forward are normed before they are added to the
    /// residual stream, as in gemma 3.
    pub output_norms: bool,
    /// Nonlinearity of the feed-forward's gate.
    pub activation: Activation,
    /// Feed-forward of the layers, dense or with experts.
    pub feed_forward: FeedForward,
    /// True if the head reuses the embedding table.
    pub tied_embeddings: bool,
    /// Beginning-of-sequence token, if the model has one.
    pub bos_token: Option<u32>,
    /// Tokens that end a generation, any of them; those of `generation_config.json` take
    /// precedence.
    pub eos_tokens: Vec<u32>,
}

impl ModelConfig {
    /// Number of sites: seven projections per layer, also those that a sparse layer lacks.
    pub fn num_sites(&self) -> usize {
        self.num_layers * crate::Projection::ALL.len()
    }

    /// The sites that the base has, in the order of [`Site::index`](crate::Site::index).
    pub fn sites(&self) -> impl Iterator<Item = crate::Site> + '_ {
        (0..self.num_sites()).map(crate::Site::from_index).filter(|site| self.has_site(*site))
    }

    /// True if the base has this projection. A sparse layer has experts in the place of gate, up
    /// and down, which are addressed apart from sites.
    pub fn has_site(&self, site: crate::Site) -> bool {
        use crate::Projection::{Down, Gate, Up};
        let inside = matches!(site.projection, Gate | Up | Down);
        site.layer < self.num_layers && !(inside && self.experts_at(site.layer).is_some())
    }

    /// The mixture of experts of a layer; `None` if the layer is dense or does not exist.
    pub fn experts_at(&self, layer: usize) -> Option<&Mixture> {
        match &self.feed_forward {
            FeedForward::Mixture(mixture) if mixture.sparse.get(layer) == Some(&true) => {
                Some(mixture)
            }
            _ => None,
        }
    }

    /// `(output, input)` features of a projection.
    ///
    /// Gate, up and down are those of a dense layer; [`Mixture::expert_shape`] has those of
    /// experts.
    pub fn projection_shape(&self, projection: crate::Projection) -> (usize, usize) {
        use crate::Projection::{Down, Gate, K, O, Q, Up, V};
        let (queries, keys) = (self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim);
        match projection {
            Q => (queries, self.hidden_size),
            K | V => (keys, self.hidden_size),
            O => (self.hidden_size, queries),
            Gate | Up => (self.intermediate_size, self.hidden_size),
            Down => (self.hidden_size, self.intermediate_size),
        }
    }
}

/// Parameters of a rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies: pair `i` turns with θ^(−2i / `head_dim`) per position.
    pub theta: f64,
    /// Change of the frequencies for contexts longer than those of pre-training.
    pub scaling: RopeScaling,
}

/// Context extension of the rotary embedding.
///
/// YaRN, dynamic scaling and LongRoPE are refused while the configuration is read.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// No norm, as in llama.
    None,
    /// Positions divided by a factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by a factor, high ones kept, a ramp between.
    Llama3 {
        /// The divisor of the low frequencies.
        factor: f64,
        /// Ratio of the original context and the wavelength below which a frequency counts as low.
        low_freq_factor: f64,
        /// Ratio of the original context and the wavelength above which a frequency counts as high.
        high_freq_factor: f64,
        /// Context length of pre-training.
        original_max_positions: f64,
    },
    /// Divisors per frequency, `[head_dim / 2]`, as GGUF files of Llama 3 carry them.
    Factors(
        /// Each frequency is divided by its entry.
        Vec<f64>,
    ),
}

/// The projections that carry a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// q, k and v.
    pub query_key_value: bool,
    /// o.
    pub attention_output: bool,
    /// gate, up and down.
    pub feed_forward: bool,
}

/// RMS norm of queries and keys before the rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryKeyNorm {
    /// None, as in llama.
    None,
    /// Over each head, with weights `[head_dim]` that the heads share: qwen3, gemma3.
    PerHead,
    /// Over all heads at once, with weights as long as the projection is wide: olmoe.
    FullWidth,
}

/// Nonlinearity of the feed-forward's gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// GELU in its approximation by tanh: `gelu_pytorch_tanh`.
    GeluTanh,
}

/// The feed-forward of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedForward {
    /// Gated: down(activation(gate) · up).
    Dense,
    /// A mixture of experts in some layers, a dense feed-forward in the others.
    Mixture(Mixture),
}

/// Experts in the place of a feed-forward.
///
/// The router's softmax runs over all experts, and each row gets the `top_k` with the largest
/// probabilities. A router with a sigmoid or with groups of experts is another family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mixture {
    /// Experts per sparse layer.
    pub num_experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Width inside an expert.
    pub expert_size: usize,
    /// True if the weights of a row's chosen experts are divided by their sum: `norm_topk_prob`.
    pub renormalise: bool,
    /// Width inside an expert that every row gets, times the sigmoid of a gate of its own; `None`
    /// without such an expert. Qwen 2 MoE has one.
    pub shared_expert: Option<usize>,
    /// True for each sparse layer, one entry per layer; the others have a dense feed-forward.
    pub sparse: Vec<bool>,
}

impl Mixture {
    /// `(output, input)` features of a projection of an expert.
    ///
    /// The shared expert is numbered `num_experts`; without one its width is 0.
    pub fn expert_shape(
        &self,
        hidden_size: usize,
        expert: usize,
        projection: crate::Projection,
    ) -> (usize, usize) {
        let routed = expert < self.num_experts;
        let width = if routed { self.expert_size } else { self.shared_expert.unwrap_or(0) };
        match projection {
            crate::Projection::Down => (hidden_size, width),
            _ => (width, hidden_size),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A model of two layers with grouped-query attention.
    pub(crate) fn tiny() -> ModelConfig {
        ModelConfig {
            family: "test",
            vocab_size: 32,
            hidden_size: 16,
            intermediate_size: 24,
            num_layers: 2,
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 4,
            max_positions: 64,
            norm_epsilon: 1e-5,
            embedding_scale: 1.0,
            rope: Rope { theta: 1e4, scaling: RopeScaling::None },
            local_rope: None,
            biases: Biases::default(),
            query_key_norm: QueryKeyNorm::None,
            clip_query_key_value: None,
            attention_scale: 0.5,
            windows: vec![None; 2],
            output_norms: false,
            activation: Activation::Silu,
            feed_forward: FeedForward::Dense,
            tied_embeddings: true,
            bos_token: None,
            eos_tokens: Vec::new(),
        }
    }
}
