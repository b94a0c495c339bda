//! Model families as variation points: the only place that names a family.
//!
//! Reads both layouts of `config.json` (the older with `rope_theta` and `rope_scaling`, the newer
//! with `rope_parameters`) and GGUF metadata. What is not implemented is refused by name.

mod gguf;
mod keys;

use serde_json::Value as Json;

use crate::config::{
    Activation, Biases, FeedForward, Mixture, ModelConfig, QueryKeyNorm, RopeScaling,
};
use crate::error::Error;
use keys::Keys;

pub(crate) use gguf::from_gguf;

/// The values of `model_type` that are read, for the message about others.
const SUPPORTED: &str =
    "llama, mistral, qwen2, qwen3, gemma3_text, mixtral, qwen2_moe, qwen3_moe, olmoe";
/// Largest size of anything. Larger ones are a lie or a machine that does not exist yet; the bound
/// also keeps products in range.
const MAX_SIZE: u64 = 1 << 24;
/// Settings that change what some model computes and that nothing here computes.
///
/// A setting counts as absent if it is null or false.
const NOT_IMPLEMENTED: [&str; 16] = [
    "quantization_config",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "use_bidirectional_attention",
    "dual_chunk_attention_config",
    "attention_sinks",
    "attention_chunk_size",
    "attention_multiplier",
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "logit_scale",
    "rope_interleaved",
    "use_mrope",
    "per_layer_config",
    "text_config",
];

/// Reads a Hugging Face `config.json`, with `generation_config.json` for the end tokens where it
/// exists.
///
/// Settings that a configuration leaves out are what transformers takes for the family, so that a
/// file that loads there computes the same here.
///
/// # Errors
/// If the family or a setting of it is not implemented, or a value is of the wrong type or out of
/// range.
pub(crate) fn from_hugging_face(
    config: &Json,
    generation: Option<&Json>,
) -> Result<ModelConfig, Error> {
    let keys = Keys(config);
    let family = config.get("model_type").and_then(Json::as_str).unwrap_or("missing");
    let config = match family {
        "llama" => llama(&keys),
        "mistral" => mistral(&keys),
        "qwen2" => qwen2(&keys),
        "qwen3" => qwen3(&keys),
        "gemma3_text" => gemma3(&keys),
        "mixtral" => mixtral(&keys),
        "qwen2_moe" => qwen2_moe(&keys),
        "qwen3_moe" => qwen3_moe(&keys),
        "olmoe" => olmoe(&keys),
        other => Err(Error::unsupported("model_type", other, SUPPORTED)),
    }?;
    keys.absent(&NOT_IMPLEMENTED)?;
    if keys.0.get("is_causal") == Some(&Json::Bool(false)) {
        return Err(Error::unsupported("is_causal", "false", "true"));
    }
    let generation = generation.map(|generation| Keys(generation).tokens("eos_token_id"));
    check(ModelConfig {
        eos_tokens: generation
            .filter(|tokens| !tokens.is_empty())
            .unwrap_or_else(|| keys.tokens("eos_token_id")),
        ..config
    })
}

/// Llama 1 to 3, and models that call themselves so.
fn llama(keys: &Keys<'_>) -> Result<ModelConfig, Error> {
    let config = plain(keys, "llama", &LLAMA)?;
    let attention = keys.flag("attention_bias");
    Ok(ModelConfig {
        biases: Biases {
            query_key_value: attention,
            attention_output: attention,
            feed_forward: keys.flag("mlp_bias"),
        },
        ..config
    })
}

/// Mistral: a llama whose layers have a window unless `sliding_window` is null.
fn mistral(keys: &Keys<'_>) -> Result<ModelConfig, Error> {
    let defaults = Defaults { max_positions: 131_072, num_kv_heads: Some(8), ..LLAMA };
    let config = plain(keys, "mistral", &defaults)?;
    let window = keys.window(Some(4096))?;
    Ok(ModelConfig { windows: keys.windows(config.num_layers, window, &|_| true)?, ..config })
}

/// Qwen 2 and 2.5: biases of q, k and v.
fn qwen2(keys: &Keys<'_>) -> Result<ModelConfig, Error> {
    let config = plain(keys, "qwen2", &QWEN)?;
    Ok(ModelConfig {
        biases: Biases { query_key_value: true, ..Biases::default() },
        windows: qwen_windows(keys, config.num_layers)?,
        ..config
    })
}

/// Qwen 3: norms of queries and keys per head.
fn qwen3(keys: &Keys<'_>) -> Result<ModelConfig, Error> {
    let config = qwen3_like(keys, "qwen3", &Defaults { head_dim: Some(128), ..QWEN })?;
    Ok(ModelConfig { windows: qwen_windows(keys, config.num_layers)?, ..config })
}

/// The settings that the dense and the sparse Qwen 3 have in common.
fn qwen3_like(
    keys: &Keys<'_>,
    family: &'static str,
    defaults: &Defaults,
) -> Result<ModelConfig, Error> {
    let config = plain(keys, family, defaults)?;
    let attention = keys.flag("attention_bias");
    Ok(ModelConfig {
        biases: Biases {
            query_key_value: attention,
            attention_output: attention,
            ..Biases::default()
        },
        query_key_norm: QueryKeyNorm::PerHead,
        ..config
    })
}

/// Defaults of the Qwen families.
const QWEN: Defaults = Defaults { max_positions: 32_768, num_kv_heads: Some(32), ..LLAMA };

/// Layers from `max_window_layers` on have a window, if any has.
fn qwen_windows(keys: &Keys<'_>, num_layers: usize) -> Result<Vec<Option<usize>>, Error> {
    let window = qwen_window(keys)?;
    let first = keys.count("max_window_layers", 28)?;
    keys.windows(num_layers, window, &|layer| layer >= first)
}

/// The window of the layers that have one; none at all without `use_sliding_window`.
fn qwen_window(keys: &Keys<'_>) -> Result<Option<usize>, Error> {
    match keys.flag("use_sliding_window") {
        true => keys.window(Some(4096)),
        false => Ok(None),
    }
}

/// Gemma 3, text only: norms at both ends of a block, and five layers with a window for each
/// without, which have a rotary embedding of their own.
fn gemma3(keys: &Keys<'_>) -> Result<ModelConfig, Error> {
    let defaults = Defaults {
        activation: ("hidden_activation", "gelu_pytorch_tanh"),
        head_dim: Some(256),
        num_kv_heads: Some(4),
        max_positions: 131_072,
        norm_epsilon: 1e-6,
        theta: 1e6,
        tied: true,
        ropes_by_layer: true,
    };
    let config = plain(keys, "gemma3", &defaults)?;
    let attention = keys.flag("attention_bias");
    let pattern = keys.size("sliding_window_pattern", Some(6))?;
    let window = keys.window(Some(4096))?;
    let scalar = keys.number("query_pre_attn_scalar").unwrap_or(256.0) as f32;
    Ok(ModelConfig {
        embedding_scale: (config.hidden_size as f32).sqrt(),
        biases: Biases {
            query_key_value: attention,
            attention_output: attention,
            ..Biases::default()
        },
        rope: keys.rope_of("full_attention", "rope_theta", 1e6)?,
        local_rope: Some(keys.rope_of("sliding_attention", "rope_local_base_freq", 1e4)?),
        query_key_norm: QueryKeyNorm::PerHead,
        attention_scale: 1.0 / scalar.sqrt(),
        windows: keys.windows(config.num_layers, window, &|layer| (layer + 1) % pattern != 0)?,
        output_norms: true,
        activation: Activation::GeluTanh,
        ..config
    })
}

/// Mixtral: a mistral with experts in all layers.
fn mixtral(keys: &Keys<'_>) -> Result<ModelConfig, Error> {
    let config = plain(
        keys,
        "mixtral",
        &Defaults {
            max_positions: 131_072,
            num_kv_heads: Some(8),
            norm_epsilon: 1e-5,
            theta: 1e6,
            ..LLAMA
        },
    )?;
    let window = keys.window(None)?;
    let experts = Experts {
        number: keys.size_of(&["num_experts", "num_local_experts"], 8)?,
        top_k: 2,
        expert_size: config.intermediate_size,
        renormalise: true,
        shared_expert: None,
    };
    let sparse = vec![true; config.num_layers];
    Ok(ModelConfig {
        windows: vec![window; config.num_layers],
        feed_forward: mixture(keys, experts, sparse)?,
        ..config
    })
}

/// Qwen 1.5 and 2 with experts, and a shared one beside them.
fn qwen2_moe(keys: &Keys<'_>) -> Result<ModelConfig, Error> {
    let config = plain(keys, "qwen2_moe", &Defaults { num_kv_heads: Some(16), ..QWEN })?;
    let experts = Experts {
        number: keys.size("num_experts", Some(60))?,
        top_k: 4,
        expert_size: keys.size("moe_intermediate_size", Some(1408))?,
        renormalise: keys.flag("norm_topk_prob"),
        shared_expert: Some(keys.size("shared_expert_intermediate_size", Some(5632))?),
    };
    let sparse = keys.sparse_layers(config.num_layers)?;
    let window = qwen_window(keys)?;
    let last = keys.count("max_window_layers", 28)?;
    // Not as in qwen2: every other one of the layers before `max_window_layers`.
    let has_window = |layer: usize| layer.is_multiple_of(2) && layer < last;
    Ok(ModelConfig {
        biases: Biases { query_key_value: keys.flag_or("qkv_bias", true), ..Biases::default() },
        windows: keys.windows(config.num_layers, window, &has_window)?,
        feed_forward: mixture(keys, experts, sparse)?,
        ..config
    })
}

/// Qwen 3 with experts. All layers have the window, if there is one.
fn qwen3_moe(keys: &Keys<'_>) -> Result<ModelConfig, Error> {
    let defaults = Defaults { num_kv_heads: Some(4), ..QWEN };
    let config = qwen3_like(keys, "qwen3_moe", &defaults)?;
    let experts = Experts {
        number: keys.size_of(&["num_local_experts", "num_experts"], 128)?,
        top_k: 8,
        expert_size: keys.size("moe_intermediate_size", Some(768))?,
        renormalise: keys.flag("norm_topk_prob"),
        shared_expert: None,
    };
    let sparse = keys.sparse_layers(config.num_layers)?;
    Ok(ModelConfig {
        windows: vec![qwen_window(keys)?; config.num_layers],
        feed_forward: mixture(keys, experts, sparse)?,
        ..config
    })
}

/// OLMoE: norms of queries and keys over the full width, and clipped queries, keys and values.
fn olmoe(keys: &Keys<'_>) -> Result<ModelConfig, Error> {
    let config =
        plain(keys, "olmoe", &Defaults { max_positions: 4096, norm_epsilon: 1e-5, ..LLAMA })?;
    let attention = keys.flag("attention_bias");
    let experts = Experts {
        number: keys.size_of(&["num_local_experts", "num_experts"], 64)?,
        top_k: 8,
        expert_size: config.intermediate_size,
        renormalise: keys.flag("norm_topk_prob"),
        shared_expert: None,
    };
    let sparse = vec![true; config.num_layers];
    Ok(ModelConfig {
        biases: Biases {
            query_key_value: attention,
            attention_output: attention,
            ..Biases::default()
        },
        query_key_norm: QueryKeyNorm::FullWidth,
        clip_query_key_value: keys.number("clip_qkv").map(|limit| limit as f32),
        feed_forward: mixture(keys, experts, sparse)?,
        ..config
    })
}

/// A family's settings of its experts.
#[derive(Clone, Copy)]
struct Experts {
    /// Experts per sparse layer.
    number: usize,
    /// Experts per token where the configuration does not say.
    top_k: usize,
    /// Width inside an expert.
    expert_size: usize,
    /// True if the weights of the chosen experts are made to sum to one.
    renormalise: bool,
    /// Width inside the shared expert, in families with one.
    shared_expert: Option<usize>,
}

/// The mixture of a family; the configuration may say how many experts a token gets.
fn mixture(keys: &Keys<'_>, experts: Experts, sparse: Vec<bool>) -> Result<FeedForward, Error> {
    Ok(FeedForward::Mixture(Mixture {
        num_experts: experts.number,
        top_k: keys.size("num_experts_per_tok", Some(experts.top_k))?,
        expert_size: experts.expert_size,
        renormalise: experts.renormalise,
        shared_expert: experts.shared_expert,
        sparse,
    }))
}

/// Values of a family for settings that a configuration leaves out.
struct Defaults {
    /// The name of the activation's setting, and the only value that the family has.
    activation: (&'static str, &'static str),
    /// Features per head. Without a number, the width divided by the heads.
    head_dim: Option<usize>,
    /// Without a number, as many as there are heads of queries.
    num_kv_heads: Option<usize>,
    /// Longest sequence.
    max_positions: usize,
    /// ε of the norms.
    norm_epsilon: f64,
    /// Base of the rotary frequencies.
    theta: f64,
    /// True if the head reuses the embedding table.
    tied: bool,
    /// True where kinds of layers have ropes of their own.
    ropes_by_layer: bool,
}

/// Defaults of llama, from which other families start.
const LLAMA: Defaults = Defaults {
    activation: ("hidden_act", "silu"),
    head_dim: None,
    num_kv_heads: None,
    max_positions: 2048,
    norm_epsilon: 1e-6,
    theta: 1e4,
    tied: false,
    ropes_by_layer: false,
};

/// A decoder without anything special: no biases, windows, experts or norms beyond the usual ones.
/// Families replace the fields that differ.
///
/// `eos_tokens` are filled in later.
fn plain(keys: &Keys<'_>, family: &'static str, defaults: &Defaults) -> Result<ModelConfig, Error> {
    keys.check_types()?;
    let (setting, activation) = defaults.activation;
    // Two names of one function.
    let accepted = if activation == "silu" { &["silu", "swish"][..] } else { &[activation] };
    keys.require(setting, accepted, activation)?;
    if !defaults.ropes_by_layer {
        keys.one_rope()?;
    }
    let hidden_size = keys.size("hidden_size", None)?;
    let num_heads = keys.size("num_attention_heads", None)?;
    let num_layers = keys.size("num_hidden_layers", None)?;
    let head_dim = keys.size("head_dim", defaults.head_dim.or(Some(hidden_size / num_heads)))?;
    Ok(ModelConfig {
        family,
        vocab_size: keys.size("vocab_size", None)?,
        hidden_size,
        intermediate_size: keys.size("intermediate_size", None)?,
        num_layers,
        num_heads,
        num_kv_heads: keys
            .size("num_key_value_heads", Some(defaults.num_kv_heads.unwrap_or(num_heads)))?,
        head_dim,
        max_positions: keys.size("max_position_embeddings", Some(defaults.max_positions))?,
        norm_epsilon: keys.number("rms_norm_eps").unwrap_or(defaults.norm_epsilon) as f32,
        embedding_scale: 1.0,
        rope: keys.rope(defaults.theta)?,
        local_rope: None,
        biases: Biases::default(),
        query_key_norm: QueryKeyNorm::None,
        clip_query_key_value: None,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        windows: vec![None; num_layers],
        output_norms: false,
        activation: Activation::Silu,
        feed_forward: FeedForward::Dense,
        tied_embeddings: keys.flag_or("tie_word_embeddings", defaults.tied),
        bos_token: keys.tokens("bos_token_id").first().copied(),
        eos_tokens: Vec::new(),
    })
}

/// Number that is added to the weights of norms in a Hugging Face checkpoint: gemma keeps them
/// around zero. GGUF files hold the sum.
pub(crate) fn hugging_face_norm_offset(config: &ModelConfig) -> f32 {
    if config.family == "gemma3" { 1.0 } else { 0.0 }
}

/// The architecture's name in GGUF files: the older families are kinds of llama there.
pub fn gguf_architecture(config: &ModelConfig) -> &'static str {
    match config.family {
        "mistral" | "mixtral" => "llama",
        "qwen2_moe" => "qwen2moe",
        "qwen3_moe" => "qwen3moe",
        family => family,
    }
}

/// True if GGUF files of this architecture hold q and k permuted for interleaved rotary embedding.
pub(crate) fn gguf_permutes_queries_and_keys(config: &ModelConfig) -> bool {
    gguf_architecture(config) == "llama"
}

/// Checks the relations that every family obeys, for both formats.
fn check(config: ModelConfig) -> Result<ModelConfig, Error> {
    let (heads, kv_heads, dim) = (config.num_heads, config.num_kv_heads, config.head_dim);
    if kv_heads > heads || !heads.is_multiple_of(kv_heads) {
        let found = format!("{kv_heads} for {heads} heads");
        return Err(Error::unsupported("num_key_value_heads", found, "a divisor of the heads"));
    }
    if !dim.is_multiple_of(2) {
        return Err(Error::unsupported("head_dim", dim.to_string(), "even numbers"));
    }
    for rope in [&config.rope].into_iter().chain(&config.local_rope) {
        if !divides(rope.theta) {
            let found = rope.theta.to_string();
            return Err(Error::unsupported("rope_theta", found, "positive numbers"));
        }
        check_scaling(&rope.scaling)?;
    }
    if let FeedForward::Mixture(mixture) = &config.feed_forward {
        check_mixture(mixture)?;
    }
    if config.clip_query_key_value.is_some_and(|limit| !(limit.is_finite() && limit > 0.0)) {
        let found = format!("{:?}", config.clip_query_key_value);
        return Err(Error::unsupported("clip_qkv", found, "a positive number"));
    }
    if !(config.attention_scale.is_finite() && config.attention_scale > 0.0) {
        let found = config.attention_scale.to_string();
        return Err(Error::unsupported("scale of attention", found, "positive numbers"));
    }
    Ok(config)
}

/// Refuses scaling by which a frequency is not finite.
fn check_scaling(scaling: &RopeScaling) -> Result<(), Error> {
    let divisors: &[f64] = match scaling {
        RopeScaling::None => &[],
        RopeScaling::Linear { factor } | RopeScaling::Llama3 { factor, .. } => {
            std::slice::from_ref(factor)
        }
        RopeScaling::Factors(factors) => factors.as_slice(),
    };
    match divisors.iter().find(|divisor| !divides(**divisor)) {
        None => Ok(()),
        Some(found) => Err(Error::unsupported("rope factor", found.to_string(), "a number over 0")),
    }
}

/// True for a number that is positive and finite in the 32 bits in which frequencies are computed.
fn divides(number: f64) -> bool {
    let number = number as f32;
    number.is_finite() && number > 0.0
}

/// Bounds the number of experts, and the choice of each token by it.
fn check_mixture(mixture: &Mixture) -> Result<(), Error> {
    /// Experts are numbered in 16 bits, and choices take a slot per row and expert.
    const MAX_EXPERTS: usize = 1024;
    let (experts, top_k) = (mixture.num_experts, mixture.top_k);
    if experts > MAX_EXPERTS {
        let expected = format!("at most {MAX_EXPERTS}");
        return Err(Error::unsupported("number of experts", experts.to_string(), expected));
    }
    if top_k > experts {
        let found = format!("{top_k} of {experts} experts");
        return Err(Error::unsupported("experts per token", found, "no more than there are"));
    }
    Ok(())
}

/// A size from 1 to [`MAX_SIZE`]; `key` names it in a refusal.
fn checked_size(key: &str, found: Option<u64>) -> Result<usize, Error> {
    match found {
        Some(value @ 1..=MAX_SIZE) => Ok(value as usize),
        Some(value) => Err(Error::unsupported(key, value.to_string(), format!("1 to {MAX_SIZE}"))),
        None => Err(Error::unsupported(key, "missing", "a positive integer")),
    }
}

#[cfg(test)]
mod tests;
