//! Modules that come before the sequence: prompt tuning and P-tuning (embeddings), prefix tuning
//! (keys and values).
//!
//! PEFT folds the networks that produced them when it saves, so all three are one tensor.

use safetensors::tensor::SafeTensors;
use serde_json::{Map, Value as Json};

use super::bundle::shaped;
use super::{Base, config};
use crate::lora::Elements;
use crate::weights::{KvPrefix, Part, SoftPrompt, Weights};

/// The one tensor of such a module.
const KEY: &str = "prompt_embeddings";
/// Most positions before a sequence.
const MAX_VIRTUAL_TOKENS: u64 = 1 << 16;
/// Settings of all three, most of them about training.
const KNOWN: [&str; 16] = [
    "encoder_dropout",
    "encoder_hidden_size",
    "encoder_num_layers",
    "encoder_reparameterization_type",
    "init_weights",
    "num_attention_heads",
    "num_layers",
    "num_transformer_submodules",
    "num_virtual_tokens",
    "prefix_projection",
    "prompt_tuning_init",
    "prompt_tuning_init_state_dict_path",
    "prompt_tuning_init_text",
    "token_dim",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
];

/// Prompt tuning and P-tuning: embeddings `[num_virtual_tokens, hidden_size]`.
pub(super) fn load_embeddings(
    object: &Map<String, Json>,
    tensors: &SafeTensors<'_>,
    base: Base<'_>,
) -> Result<Weights, Vec<String>> {
    let width = base.config.hidden_size;
    let token_dim = object.get("token_dim").filter(|value| !value.is_null());
    if let Some(found) = token_dim.filter(|found| found.as_u64() != Some(width as u64)) {
        return Err(vec![format!("`token_dim` is {found}, expected {width} for this base")]);
    }
    let (num_tokens, embeddings) = read(object, tensors, width)?;
    let mut weights = Weights::new(base.config.num_sites());
    weights.add(Part::Prompt(SoftPrompt { num_tokens, embeddings }));
    Ok(weights)
}

/// Prefix tuning. A position's row holds key and value of every layer in turn, `[layers, 2, kv
/// heads, head_dim]`. Keys are as attention caches them, so they are not turned by the rotary
/// embedding.
pub(super) fn load_prefix(
    object: &Map<String, Json>,
    tensors: &SafeTensors<'_>,
    base: Base<'_>,
) -> Result<Weights, Vec<String>> {
    let (layers, width) = (base.config.num_layers, base.config.num_kv_heads * base.config.head_dim);
    let shape = [
        ("num_layers", layers),
        ("num_attention_heads", base.config.num_kv_heads),
        ("token_dim", width),
    ];
    let other = |(name, expected): &(&str, usize)| {
        let found = object.get(*name).filter(|value| !value.is_null())?;
        (found.as_u64() != Some(*expected as u64))
            .then(|| format!("`{name}` is {found}, expected {expected} for this base"))
    };
    let mut problems: Vec<String> = shape.iter().filter_map(other).collect();
    let (num_tokens, rows) = match read(object, tensors, layers * 2 * width) {
        Ok(read) if problems.is_empty() => read,
        read => {
            problems.extend(read.err().into_iter().flatten());
            return Err(problems);
        }
    };
    let part = |at: usize| {
        let ranges = (0..num_tokens).map(|row| (row * 2 * layers + at) * width);
        rows.gather(ranges.map(|start| start..start + width))
    };
    let mut weights = Weights::new(base.config.num_sites());
    weights.add(Part::Prefix(KvPrefix {
        num_tokens,
        keys: (0..layers).map(|layer| part(2 * layer)).collect(),
        values: (0..layers).map(|layer| part(2 * layer + 1)).collect(),
    }));
    Ok(weights)
}

/// Settings with which PEFT leaves a prompt out, or does not load it.
fn unloadable(object: &Map<String, Json>) -> Vec<String> {
    let get = |name: &str| object.get(name).filter(|value| !value.is_null());
    let mut problems = Vec::new();
    if get("task_type").is_none() {
        let problem = "setting `task_type` is null: PEFT leaves such a prompt out of every request";
        problems.push(problem.to_owned());
    }
    let from_text = get("prompt_tuning_init").is_some_and(|how| how == "TEXT");
    for name in ["prompt_tuning_init_text", "tokenizer_name_or_path"] {
        if from_text && get(name).is_none() {
            problems.push(format!("setting `{name}` is null, and `prompt_tuning_init` is TEXT"));
        }
    }
    if !from_text && get("tokenizer_kwargs").is_some() {
        problems
            .push("setting `tokenizer_kwargs` needs `prompt_tuning_init` to be TEXT".to_owned());
    }
    problems
}

/// `num_virtual_tokens` and the one tensor, `[num_virtual_tokens, width]`. It checks all settings
/// and names of tensors.
fn read(
    object: &Map<String, Json>,
    tensors: &SafeTensors<'_>,
    width: usize,
) -> Result<(usize, Elements), Vec<String>> {
    let mut problems = config::refused_settings(object, |key, _| KNOWN.contains(&key));
    problems.extend(unloadable(object));
    match object.get("num_transformer_submodules") {
        None | Some(Json::Null) => {}
        Some(value) if value.as_u64() == Some(1) => {}
        Some(value) => {
            problems.push(format!("`num_transformer_submodules` is {value}, expected 1"))
        }
    }
    for name in tensors.names().into_iter().filter(|name| *name != KEY) {
        problems.push(format!("tensor `{name}` is not expected beside `{KEY}`"));
    }
    let count = object.get("num_virtual_tokens");
    let num_tokens = match count.and_then(Json::as_u64) {
        Some(count @ 1..=MAX_VIRTUAL_TOKENS) => count as usize,
        _ => {
            let found = count.map_or("missing".to_owned(), Json::to_string);
            problems.push(format!(
                "`num_virtual_tokens` is {found}, expected 1 to {MAX_VIRTUAL_TOKENS}"
            ));
            return Err(problems);
        }
    };
    let elements = match tensors.tensor(KEY) {
        Ok(view) => shaped("`prompt_embeddings`", &view, &[num_tokens, width]),
        Err(_) => Err(format!("tensor `{KEY}` is missing")),
    };
    match elements {
        Ok(elements) if problems.is_empty() => Ok((num_tokens, elements)),
        elements => {
            problems.extend(elements.err());
            Err(problems)
        }
    }
}
