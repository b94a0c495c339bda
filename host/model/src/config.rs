//! The variation points of decoder-only transformers, named after what varies rather than after families.

/// Everything the decoder needs to know about a base model's shape.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family's name, for reports only.
    pub family: &'static str,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Features per head.
    pub head_dim: usize,
    /// Longest sequence that the model was made for.
    pub max_positions: usize,
    /// ε of the RMS norms.
    pub norm_epsilon: f32,
    /// What token embeddings are multiplied with.
    pub embedding_scale: f32,
    /// Rotary embedding.
    pub rope: Rope,
    /// Rotary embedding of layers with a window, where it is another.
    pub local_rope: Option<Rope>,
    /// Which projections carry a bias.
    pub biases: Biases,
    /// Norm of queries and keys before the rotary embedding.
    pub query_key_norm: QueryKeyNorm,
    /// Largest magnitude of queries, keys and values after their norms, where they are clipped.
    pub clip_query_key_value: Option<f32>,
    /// What scores of attention are multiplied with.
    pub attention_scale: f32,
    /// Attention window per layer; `None` sees the whole past.
    pub windows: Vec<Option<usize>>,
    /// Whether what attention and feed-forward add to the residual stream is normed first.
    pub output_norms: bool,
    /// What the gate of a feed-forward goes through.
    pub activation: Activation,
    /// What follows the attention.
    pub feed_forward: FeedForward,
    /// Whether the head reuses the embedding table.
    pub tied_embeddings: bool,
    /// Beginning-of-sequence token, if the model has one.
    pub bos_token: Option<u32>,
    /// Tokens that end a generation.
    pub eos_tokens: Vec<u32>,
}

impl ModelConfig {
    /// Number of sites: seven projections per layer, whether or not the layer has them.
    pub fn num_sites(&self) -> usize {
        self.num_layers * crate::Projection::ALL.len()
    }

    /// The sites that the base has, in order.
    pub fn sites(&self) -> impl Iterator<Item = crate::Site> + '_ {
        (0..self.num_sites()).map(crate::Site::from_index).filter(|site| self.has_site(*site))
    }

    /// Whether the base has this projection: a sparse layer has experts in the place of gate, up and down.
    pub fn has_site(&self, site: crate::Site) -> bool {
        use crate::Projection::{Down, Gate, Up};
        let inside = matches!(site.projection, Gate | Up | Down);
        site.layer < self.num_layers && !(inside && self.experts_at(site.layer).is_some())
    }

    /// The mixture of experts of a layer, if it is sparse.
    pub fn experts_at(&self, layer: usize) -> Option<&Mixture> {
        match &self.feed_forward {
            FeedForward::Mixture(mixture) if mixture.sparse.get(layer) == Some(&true) => {
                Some(mixture)
            }
            _ => None,
        }
    }

    /// `(output, input)` features of a projection.
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

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How frequencies are changed for longer contexts.
    pub scaling: RopeScaling,
}

/// Context extension of the rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as trained.
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
        /// Where "low" ends, as a fraction of the original context.
        low_freq_factor: f64,
        /// Where "high" begins.
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

/// Which projections carry a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// q, k and v.
    pub query_key_value: bool,
    /// o.
    pub attention_output: bool,
    /// gate, up and down.
    pub feed_forward: bool,
}

/// Norm of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryKeyNorm {
    /// None, as in llama.
    None,
    /// Over each head.
    PerHead,
    /// Over all heads at once.
    FullWidth,
}

/// Nonlinearity of the feed-forward's gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// GELU in its approximation by tanh.
    GeluTanh,
}

/// The feed-forward of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedForward {
    /// Gated: down(activation(gate) · up).
    Dense,
    /// A mixture of experts in some layers.
    Mixture(Mixture),
}

/// Experts in the place of a feed-forward: the router's softmax over all, of which each row gets the `top_k` largest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mixture {
    /// Experts per sparse layer.
    pub num_experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Width inside an expert.
    pub expert_size: usize,
    /// Whether the chosen experts' weights are made to sum to one.
    pub renormalise: bool,
    /// Width inside an expert that every token gets, times the sigmoid of a gate of its own, if there is one.
    pub shared_expert: Option<usize>,
    /// Which layers are sparse; the others have a dense feed-forward.
    pub sparse: Vec<bool>,
}

impl Mixture {
    /// `(output, input)` features of a projection of an expert; the shared one is numbered `num_experts`.
    pub fn expert_shape(
        &self,
        hidden_size: usize,
        (expert, projection): (usize, crate::Projection),
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
