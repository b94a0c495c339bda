//! Model families as variation points: the only file that names a family.
//!
//! Reads both layouts of `config.json` (the older with `rope_theta` and `rope_scaling`, the newer with
//! `rope_parameters`) and GGUF metadata. What is not implemented is refused by name.

use serde_json::Value as Json;

use crate::config::{Biases, FeedForward, ModelConfig, QueryKeyNorm, Rope, RopeScaling};
use crate::error::Error;
use crate::gguf;

const SUPPORTED: &str = "llama";
/// Larger sizes are a lie or a machine that does not exist yet; they also keep products in range.
const MAX_SIZE: u64 = 1 << 24;

/// Reads a Hugging Face `config.json`, with `generation_config.json` for the end tokens where it exists.
pub(crate) fn from_hugging_face(
    config: &Json,
    generation: Option<&Json>,
) -> Result<ModelConfig, Error> {
    let keys = Keys(config);
    let family = config.get("model_type").and_then(Json::as_str).unwrap_or("missing");
    match family {
        "llama" => llama(&keys, generation),
        other => Err(Error::unsupported("model_type", other, SUPPORTED)),
    }
}

fn llama(keys: &Keys<'_>, generation: Option<&Json>) -> Result<ModelConfig, Error> {
    keys.require("hidden_act", &["silu"], "silu")?;
    if let Some(method) = keys.0.get("quantization_config").filter(|value| !value.is_null()) {
        return Err(Error::unsupported("quantization_config", method.to_string(), "none, or GGUF"));
    }
    let hidden_size = keys.size("hidden_size", None)?;
    let num_heads = keys.size("num_attention_heads", None)?;
    let num_layers = keys.size("num_hidden_layers", None)?;
    let attention_bias = keys.flag("attention_bias");
    let config = ModelConfig {
        family: "llama",
        vocab_size: keys.size("vocab_size", None)?,
        hidden_size,
        intermediate_size: keys.size("intermediate_size", None)?,
        num_layers,
        num_heads,
        num_kv_heads: keys.size("num_key_value_heads", Some(num_heads))?,
        head_dim: keys.size("head_dim", Some(hidden_size / num_heads))?,
        max_positions: keys.size("max_position_embeddings", Some(2048))?,
        norm_epsilon: keys.number("rms_norm_eps").unwrap_or(1e-6) as f32,
        rope: keys.rope()?,
        biases: Biases {
            query_key_value: attention_bias,
            attention_output: attention_bias,
            feed_forward: keys.flag("mlp_bias"),
        },
        query_key_norm: QueryKeyNorm::None,
        windows: vec![None; num_layers],
        feed_forward: FeedForward::Dense,
        tied_embeddings: keys.flag("tie_word_embeddings"),
        bos_token: keys.tokens("bos_token_id").first().copied(),
        eos_tokens: generation
            .map(|generation| Keys(generation).tokens("eos_token_id"))
            .filter(|tokens| !tokens.is_empty())
            .unwrap_or_else(|| keys.tokens("eos_token_id")),
    };
    check(config)
}

/// Reads GGUF metadata. `factors` are the divisors of the tensor `rope_freqs.weight`, if there is one.
pub(crate) fn from_gguf(
    header: &gguf::Header,
    factors: Option<Vec<f64>>,
) -> Result<ModelConfig, Error> {
    let text = |key: &str| header.metadata.get(key).and_then(gguf::Value::as_str);
    let architecture = text("general.architecture").unwrap_or("missing");
    if architecture != "llama" {
        return Err(Error::unsupported("general.architecture", architecture, SUPPORTED));
    }
    let number =
        |key: &str| header.metadata.get(&format!("llama.{key}")).and_then(gguf::Value::as_f64);
    let size = |key: &str, default: Option<usize>| {
        let found = number(key).map(|value| value as u64).or(default.map(|value| value as u64));
        checked_size(&format!("llama.{key}"), found)
    };
    if number("expert_count").is_some_and(|experts| experts > 0.0) {
        return Err(Error::unsupported("llama.expert_count", "experts", "dense feed-forward"));
    }
    let scaling = match (factors, text("llama.rope.scaling.type")) {
        (Some(factors), _) => RopeScaling::Factors(factors),
        (None, None | Some("none")) => RopeScaling::None,
        (None, Some("linear")) => {
            RopeScaling::Linear { factor: number("rope.scaling.factor").unwrap_or(1.0) }
        }
        (None, Some(other)) => {
            return Err(Error::unsupported("llama.rope.scaling.type", other, "none, linear"));
        }
    };
    let hidden_size = size("embedding_length", None)?;
    let num_heads = size("attention.head_count", None)?;
    let num_layers = size("block_count", None)?;
    let head_dim = size("attention.key_length", Some(hidden_size / num_heads))?;
    let rotated = size("rope.dimension_count", Some(head_dim))?;
    if rotated != head_dim {
        return Err(Error::unsupported(
            "llama.rope.dimension_count",
            rotated.to_string(),
            head_dim.to_string(),
        ));
    }
    let vocab_size = match header.tensors.get("token_embd.weight") {
        Some(tensor) => tensor.shape[0],
        None => return Err(Error::MissingTensor { name: "token_embd.weight".to_owned() }),
    };
    let token = |key: &str| {
        let value = header.metadata.get(&format!("tokenizer.ggml.{key}"))?.as_u64()?;
        u32::try_from(value).ok()
    };
    let has = |name: &str| header.tensors.contains_key(name);
    check(ModelConfig {
        family: "llama",
        vocab_size,
        hidden_size,
        intermediate_size: size("feed_forward_length", None)?,
        num_layers,
        num_heads,
        num_kv_heads: size("attention.head_count_kv", Some(num_heads))?,
        head_dim,
        max_positions: size("context_length", Some(2048))?,
        norm_epsilon: number("attention.layer_norm_rms_epsilon").unwrap_or(1e-5) as f32,
        rope: Rope { theta: number("rope.freq_base").unwrap_or(10_000.0), scaling },
        biases: Biases {
            query_key_value: has("blk.0.attn_q.bias"),
            attention_output: has("blk.0.attn_output.bias"),
            feed_forward: has("blk.0.ffn_gate.bias"),
        },
        query_key_norm: QueryKeyNorm::None,
        windows: vec![None; num_layers],
        feed_forward: FeedForward::Dense,
        tied_embeddings: !has("output.weight"),
        bos_token: token("bos_token_id"),
        eos_tokens: token("eos_token_id").into_iter().chain(token("eot_token_id")).collect(),
    })
}

/// Whether GGUF files of this architecture hold q and k permuted for interleaved rotary embedding.
pub(crate) fn gguf_permutes_queries_and_keys(config: &ModelConfig) -> bool {
    config.family == "llama"
}

/// Relations that every family obeys.
fn check(config: ModelConfig) -> Result<ModelConfig, Error> {
    let (heads, kv_heads, dim) = (config.num_heads, config.num_kv_heads, config.head_dim);
    if kv_heads > heads || !heads.is_multiple_of(kv_heads) {
        let found = format!("{kv_heads} for {heads} heads");
        return Err(Error::unsupported("num_key_value_heads", found, "a divisor of the heads"));
    }
    if !dim.is_multiple_of(2) {
        return Err(Error::unsupported("head_dim", dim.to_string(), "even numbers"));
    }
    if !(config.rope.theta.is_finite() && config.rope.theta > 0.0) {
        return Err(Error::unsupported(
            "rope_theta",
            config.rope.theta.to_string(),
            "positive numbers",
        ));
    }
    Ok(config)
}

fn checked_size(key: &str, found: Option<u64>) -> Result<usize, Error> {
    match found {
        Some(value @ 1..=MAX_SIZE) => Ok(value as usize),
        Some(value) => Err(Error::unsupported(key, value.to_string(), format!("1 to {MAX_SIZE}"))),
        None => Err(Error::unsupported(key, "missing", "a positive integer")),
    }
}

/// Typed look-ups in a JSON object.
struct Keys<'a>(&'a Json);

impl Keys<'_> {
    fn size(&self, key: &str, default: Option<usize>) -> Result<usize, Error> {
        let value = self.0.get(key).filter(|value| !value.is_null());
        match value {
            Some(value) if value.as_u64().is_none() => {
                Err(Error::unsupported(key, value.to_string(), "a positive integer"))
            }
            value => {
                checked_size(key, value.and_then(Json::as_u64).or(default.map(|size| size as u64)))
            }
        }
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.0.get(key).and_then(Json::as_f64)
    }

    fn flag(&self, key: &str) -> bool {
        self.0.get(key).and_then(Json::as_bool).unwrap_or(false)
    }

    fn tokens(&self, key: &str) -> Vec<u32> {
        let token = |value: &Json| value.as_u64().and_then(|token| u32::try_from(token).ok());
        match self.0.get(key) {
            Some(Json::Array(values)) => values.iter().filter_map(token).collect(),
            Some(value) => token(value).into_iter().collect(),
            None => Vec::new(),
        }
    }

    fn require(&self, key: &str, accepted: &[&str], default: &str) -> Result<(), Error> {
        let found = self.0.get(key).and_then(Json::as_str).unwrap_or(default);
        if accepted.contains(&found) {
            return Ok(());
        }
        Err(Error::unsupported(key, found, accepted.join(", ")))
    }

    /// `rope_parameters` (newer) or `rope_theta` with `rope_scaling` (older).
    fn rope(&self) -> Result<Rope, Error> {
        let object = |key: &str| self.0.get(key).filter(|value| value.is_object());
        let parameters = object("rope_parameters").or_else(|| object("rope_scaling"));
        let number = |key: &str| parameters.and_then(|parameters| parameters.get(key)?.as_f64());
        let theta = number("rope_theta").or_else(|| self.number("rope_theta")).unwrap_or(10_000.0);
        let kind = parameters.and_then(|parameters| {
            parameters.get("rope_type").or_else(|| parameters.get("type")).and_then(Json::as_str)
        });
        let partial =
            number("partial_rotary_factor").or_else(|| self.number("partial_rotary_factor"));
        if let Some(partial) = partial.filter(|&partial| partial != 1.0) {
            return Err(Error::unsupported("partial_rotary_factor", partial.to_string(), "1"));
        }
        let need = |key: &str| {
            number(key)
                .ok_or_else(|| Error::unsupported(format!("rope {key}"), "missing", "a number"))
        };
        let scaling = match kind.unwrap_or("default") {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: need("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_max_positions: need("original_max_position_embeddings")?,
            },
            other => {
                return Err(Error::unsupported("rope_type", other, "default, linear, llama3"));
            }
        };
        Ok(Rope { theta, scaling })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn base() -> Json {
        json!({"model_type": "llama", "vocab_size": 32, "hidden_size": 64, "intermediate_size": 96,
               "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
               "eos_token_id": [1, 2]})
    }

    fn with(key: &str, value: Json) -> Result<ModelConfig, Error> {
        let mut config = base();
        config[key] = value;
        from_hugging_face(&config, None)
    }

    #[test]
    fn both_layouts_of_the_rope_settings_agree() {
        let scaling = json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 32, "rope_type": "llama3"});
        let mut older = base();
        older["rope_theta"] = json!(5e5);
        older["rope_scaling"] = scaling.clone();
        let mut newer = base();
        newer["rope_parameters"] = scaling;
        newer["rope_parameters"]["rope_theta"] = json!(5e5);
        let older = from_hugging_face(&older, None).unwrap();
        assert_eq!(older, from_hugging_face(&newer, None).unwrap());
        assert_eq!(older.eos_tokens, [1, 2]);
        assert_eq!(older.head_dim, 16);
    }

    #[test]
    fn what_is_not_implemented_is_refused_by_name() {
        for (key, value, named) in [
            ("model_type", json!("qwen2"), "qwen2"),
            ("hidden_act", json!("gelu"), "gelu"),
            ("rope_scaling", json!({"type": "yarn"}), "yarn"),
            ("num_key_value_heads", json!(3), "num_key_value_heads"),
            ("hidden_size", json!("wide"), "hidden_size"),
            ("num_hidden_layers", json!(1_u64 << 60), "num_hidden_layers"),
            ("quantization_config", json!({"quant_method": "awq"}), "awq"),
        ] {
            let message = with(key, value).unwrap_err().to_string();
            assert!(message.contains(named), "{message}");
        }
    }
}
