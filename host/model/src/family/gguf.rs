//! Families as GGUF metadata names them.

use super::{check, checked_size};
use crate::config::{
    Activation, Biases, FeedForward, Mixture, ModelConfig, QueryKeyNorm, Rope, RopeScaling,
};
use crate::error::Error;
use crate::gguf::{Header, Value};

/// The architectures that are read.
const SUPPORTED: [&str; 7] = ["llama", "qwen2", "qwen3", "gemma3", "qwen2moe", "qwen3moe", "olmoe"];

/// Reads GGUF metadata. `factors` are the divisors of the tensor `rope_freqs.weight`, if there is
/// one.
///
/// # Errors
/// If the architecture or a setting of it is not implemented, or a size is missing or out of range.
pub(crate) fn from_gguf(header: &Header, factors: Option<Vec<f64>>) -> Result<ModelConfig, Error> {
    let architecture = header.metadata.get("general.architecture").and_then(Value::as_str);
    let architecture = architecture.unwrap_or("missing");
    let unsupported =
        || Error::unsupported("general.architecture", architecture, SUPPORTED.join(", "));
    if !SUPPORTED.contains(&architecture) {
        return Err(unsupported());
    }
    let keys = Keys { header, architecture };
    let config = plain(&keys, factors)?;
    check(match architecture {
        "llama" => llama(&keys, config)?,
        "qwen2" => ModelConfig { family: "qwen2", ..config },
        "qwen3" => ModelConfig { family: "qwen3", query_key_norm: QueryKeyNorm::PerHead, ..config },
        "gemma3" => gemma3(&keys, config)?,
        "qwen2moe" => ModelConfig {
            family: "qwen2_moe",
            feed_forward: keys.mixture(&config, false)?,
            ..config
        },
        "qwen3moe" => ModelConfig {
            family: "qwen3_moe",
            query_key_norm: QueryKeyNorm::PerHead,
            feed_forward: keys.mixture(&config, true)?,
            ..config
        },
        "olmoe" => ModelConfig {
            family: "olmoe",
            query_key_norm: QueryKeyNorm::FullWidth,
            clip_query_key_value: keys.number("attention.clamp_kqv").map(|limit| limit as f32),
            feed_forward: keys.mixture(&config, false)?,
            ..config
        },
        _ => return Err(unsupported()),
    })
}

/// A llama, or a mixtral, which is a llama with experts here.
fn llama(keys: &Keys<'_>, config: ModelConfig) -> Result<ModelConfig, Error> {
    if !keys.has_experts() {
        return Ok(ModelConfig { family: "llama", ..config });
    }
    Ok(ModelConfig { family: "mixtral", feed_forward: keys.mixture(&config, true)?, ..config })
}

/// Gemma 3: every sixth layer sees the whole past. Norms are stored with their offset of 1 added.
fn gemma3(keys: &Keys<'_>, config: ModelConfig) -> Result<ModelConfig, Error> {
    // The largest one scales by the width of a head as if the heads filled the residual stream.
    let width = match config.num_layers {
        62 => config.hidden_size / config.num_heads,
        _ => config.head_dim,
    };
    let window = keys.size("attention.sliding_window", None)?;
    let is_local = |layer: usize| !(layer + 1).is_multiple_of(6);
    Ok(ModelConfig {
        family: "gemma3",
        embedding_scale: (config.hidden_size as f32).sqrt(),
        local_rope: Some(Rope {
            theta: keys.number("rope.freq_base_swa").unwrap_or(10_000.0),
            scaling: RopeScaling::None,
        }),
        query_key_norm: QueryKeyNorm::PerHead,
        attention_scale: 1.0 / (width as f32).sqrt(),
        windows: (0..config.num_layers).map(|layer| is_local(layer).then_some(window)).collect(),
        output_norms: true,
        activation: Activation::GeluTanh,
        ..config
    })
}

/// The settings that all architectures spell in the same way. Biases and a head of its own are told
/// by the tensors that are there.
fn plain(keys: &Keys<'_>, factors: Option<Vec<f64>>) -> Result<ModelConfig, Error> {
    for key in ["attn_logit_softcapping", "final_logit_softcapping", "logit_scale"] {
        if let Some(found) = keys.number(key) {
            return Err(Error::unsupported(keys.name(key), found.to_string(), "none"));
        }
    }
    let hidden_size = keys.size("embedding_length", None)?;
    let num_heads = keys.size("attention.head_count", None)?;
    let num_layers = keys.size("block_count", None)?;
    let head_dim = keys.size("attention.key_length", Some(hidden_size / num_heads))?;
    for key in ["attention.value_length", "rope.dimension_count"] {
        let found = keys.size(key, Some(head_dim))?;
        if found != head_dim {
            let (found, expected) = (found.to_string(), head_dim.to_string());
            return Err(Error::unsupported(keys.name(key), found, expected));
        }
    }
    let vocab_size = match keys.header.tensors.get("token_embd.weight") {
        Some(tensor) => tensor.shape[0],
        None => return Err(Error::MissingTensor { name: "token_embd.weight".to_owned() }),
    };
    let has = |name: &str| keys.header.tensors.contains_key(name);
    Ok(ModelConfig {
        family: "",
        vocab_size,
        hidden_size,
        intermediate_size: keys.size("feed_forward_length", None)?,
        num_layers,
        num_heads,
        num_kv_heads: keys.size("attention.head_count_kv", Some(num_heads))?,
        head_dim,
        max_positions: keys.size("context_length", Some(2048))?,
        norm_epsilon: keys.number("attention.layer_norm_rms_epsilon").unwrap_or(1e-5) as f32,
        embedding_scale: 1.0,
        rope: Rope {
            theta: keys.number("rope.freq_base").unwrap_or(10_000.0),
            scaling: keys.scaling(factors)?,
        },
        local_rope: None,
        biases: Biases {
            query_key_value: has("blk.0.attn_q.bias"),
            attention_output: has("blk.0.attn_output.bias"),
            feed_forward: has("blk.0.ffn_gate.bias"),
        },
        query_key_norm: QueryKeyNorm::None,
        clip_query_key_value: None,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        windows: vec![None; num_layers],
        output_norms: false,
        activation: Activation::Silu,
        feed_forward: FeedForward::Dense,
        tied_embeddings: !has("output.weight"),
        bos_token: keys.token("bos_token_id"),
        eos_tokens: keys
            .token("eos_token_id")
            .into_iter()
            .chain(keys.token("eot_token_id"))
            .collect(),
    })
}

/// Typed look-ups in the metadata of an architecture.
struct Keys<'a> {
    /// Metadata and tensors of the file.
    header: &'a Header,
    /// The prefix of the architecture's keys.
    architecture: &'a str,
}

impl Keys<'_> {
    /// A key with the architecture's prefix.
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// A number of any type; `None` if the key is missing or something else.
    fn number(&self, key: &str) -> Option<f64> {
        self.header.metadata.get(&self.name(key)).and_then(Value::as_f64)
    }

    /// A size, or its default; see [`checked_size`].
    fn size(&self, key: &str, default: Option<usize>) -> Result<usize, Error> {
        let found = self.number(key).map(|value| value as u64);
        checked_size(&self.name(key), found.or(default.map(|value| value as u64)))
    }

    /// True if the file has a positive number of experts.
    fn has_experts(&self) -> bool {
        self.number("expert_count").is_some_and(|experts| experts > 0.0)
    }

    /// Experts in the layers that have tensors of them; `renormalise` is the family's, unless the
    /// file says otherwise.
    fn mixture(&self, config: &ModelConfig, renormalise: bool) -> Result<FeedForward, Error> {
        let tensor = |layer: usize, name: &str| {
            self.header.tensors.get(&format!("blk.{layer}.{name}.weight"))
        };
        let said = self.header.metadata.get(&self.name("expert_weights_norm"));
        let shared = (0..config.num_layers).find_map(|layer| tensor(layer, "ffn_gate_shexp"));
        let width = (0..config.num_layers)
            .find_map(|layer| tensor(layer, "ffn_gate_exps"))
            .and_then(|tensor| tensor.shape.get(1).copied());
        Ok(FeedForward::Mixture(Mixture {
            num_experts: self.size("expert_count", None)?,
            top_k: self.size("expert_used_count", None)?,
            expert_size: self.size("expert_feed_forward_length", width)?,
            renormalise: said.and_then(Value::as_bool).unwrap_or(renormalise),
            shared_expert: shared.and_then(|tensor| tensor.shape.first().copied()),
            sparse: (0..config.num_layers)
                .map(|layer| tensor(layer, "ffn_gate_inp").is_some())
                .collect(),
        }))
    }

    /// A special token of the tokenizer, if the file names one.
    fn token(&self, key: &str) -> Option<u32> {
        let value = self.header.metadata.get(&format!("tokenizer.ggml.{key}"))?.as_u64()?;
        u32::try_from(value).ok()
    }

    /// Scaling of the rotary frequencies, as in llama.cpp: a factor without a type is linear, and
    /// divides together with the divisors that come as a tensor.
    fn scaling(&self, factors: Option<Vec<f64>>) -> Result<RopeScaling, Error> {
        let name = self.name("rope.scaling.type");
        let kind = self.header.metadata.get(&name).and_then(Value::as_str);
        let factor = match kind {
            Some("none") => None,
            // The second one is its older name.
            None | Some("linear") => {
                self.number("rope.scaling.factor").or_else(|| self.number("rope.scale_linear"))
            }
            Some(other) => return Err(Error::unsupported(name, other, "none, linear")),
        };
        Ok(match (factors, factor) {
            (None, None) => RopeScaling::None,
            (None, Some(factor)) => RopeScaling::Linear { factor },
            (Some(factors), None) => RopeScaling::Factors(factors),
            (Some(factors), Some(factor)) => {
                RopeScaling::Factors(factors.iter().map(|divisor| divisor * factor).collect())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::gguf::{TensorInfo, TensorType};

    /// Scaling of a small llama with these settings under `rope.`.
    fn scaling(settings: &[(&str, Value)], factors: Option<&[f64]>) -> Result<RopeScaling, String> {
        let sizes = ["embedding_length", "feed_forward_length"].map(|key| (key, 8));
        let counts = ["attention.head_count", "block_count"].map(|key| (key, 2));
        let sizes = sizes.into_iter().chain(counts);
        let sizes = sizes.map(|(key, size)| (format!("llama.{key}"), Value::Unsigned(size)));
        let settings = settings.iter();
        let settings = settings.map(|(key, value)| (format!("llama.rope.{key}"), value.clone()));
        let mut metadata: BTreeMap<String, Value> = sizes.chain(settings).collect();
        metadata.insert("general.architecture".to_owned(), Value::Text("llama".to_owned()));
        let (shape, dtype) = (vec![32, 8], TensorType::F32);
        let embeddings = TensorInfo { shape, dtype, start: 0, num_bytes: 1024 };
        let tensors = BTreeMap::from([("token_embd.weight".to_owned(), embeddings)]);
        let config = from_gguf(&Header { metadata, tensors }, factors.map(<[f64]>::to_vec));
        config.map(|config| config.rope.scaling).map_err(|error| error.to_string())
    }

    fn kind(kind: &str) -> (&'static str, Value) {
        ("scaling.type", Value::Text(kind.to_owned()))
    }

    fn factor(factor: f64) -> (&'static str, Value) {
        ("scaling.factor", Value::Float(factor))
    }

    #[test]
    fn frequencies_are_divided_as_by_llama_cpp() {
        let linear = Ok(RopeScaling::Linear { factor: 8.0 });
        assert_eq!(scaling(&[], None), Ok(RopeScaling::None));
        assert_eq!(scaling(&[kind("none"), factor(8.0)], None), Ok(RopeScaling::None));
        assert_eq!(scaling(&[kind("linear"), factor(8.0)], None), linear);
        assert_eq!(scaling(&[kind("linear")], None), Ok(RopeScaling::None));
        assert_eq!(scaling(&[factor(8.0)], None), linear);
        assert_eq!(scaling(&[("scale_linear", Value::Float(8.0))], None), linear);
        let factors = |factors: [f64; 2]| Ok(RopeScaling::Factors(factors.to_vec()));
        assert_eq!(scaling(&[], Some(&[1.0, 3.0])), factors([1.0, 3.0]));
        assert_eq!(scaling(&[kind("none"), factor(8.0)], Some(&[1.0, 3.0])), factors([1.0, 3.0]));
        assert_eq!(scaling(&[factor(8.0)], Some(&[1.0, 3.0])), factors([8.0, 24.0]));
    }

    #[test]
    fn scaling_that_cannot_be_served_is_refused() {
        for factors in [None, Some(&[1.0, 3.0][..])] {
            let refused = scaling(&[kind("yarn"), factor(8.0)], factors).unwrap_err();
            assert!(refused.contains("llama.rope.scaling.type `yarn`"), "{refused}");
            // The last two are none of the 32-bit floats in which frequencies are.
            for bad in [0.0, -8.0, f64::NAN, f64::INFINITY, 1e-50, 1e50] {
                let refused = scaling(&[factor(bad)], factors).unwrap_err();
                assert!(refused.contains("rope factor"), "{bad}: {refused}");
            }
        }
    }
}
