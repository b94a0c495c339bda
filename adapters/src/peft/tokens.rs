//! Trainable tokens: new embeddings for some tokens (`TRAINABLE_TOKENS`, or beside a LoRA).

use safetensors::tensor::{SafeTensors, TensorView};
use serde_json::{Map, Value as Json};

use super::bundle::floats;
use super::{Base, config};
use crate::weights::{TokenRows, Weights};

const READ: [&str; 3] = ["target_modules", "token_indices", "init_weights"];
const KEY: &str = "base_model.model.model.embed_tokens.trainable_tokens_delta";

pub(super) fn load(
    object: &Map<String, Json>,
    tensors: &SafeTensors<'_>,
    base: Base<'_>,
) -> Result<Weights, Vec<String>> {
    let mut problems = config::refused_settings(object, |key, _| READ.contains(&key));
    let targets = object.get("target_modules").filter(|value| !value.is_null());
    if targets.is_some() && config::strings(targets) != ["embed_tokens"] {
        problems.push("`target_modules` names something else than embed_tokens".to_owned());
    }
    let ids =
        config::tokens(object.get("token_indices"), "token_indices").unwrap_or_else(|problem| {
            problems.push(problem);
            None
        });
    for name in tensors.names().into_iter().filter(|name| *name != KEY) {
        problems.push(format!("tensor `{name}` is not expected beside `{KEY}`"));
    }
    let rows = match (tensors.tensor(KEY), ids) {
        (Ok(view), Some(ids)) => rows(&ids, &view, base),
        (Err(_), _) => Err(format!("tensor `{KEY}` is missing")),
        (_, None) => Err("`token_indices` names no token".to_owned()),
    };
    match rows {
        Ok(rows) if problems.is_empty() => {
            let mut weights = Weights::new(base.config.num_sites());
            weights.tokens = Some(rows);
            Ok(weights)
        }
        rows => {
            problems.extend(rows.err());
            Err(problems)
        }
    }
}

/// The difference of PEFT's rows, `[tokens, hidden_size]`, to the base's embeddings.
pub(super) fn rows(
    ids: &[u32],
    view: &TensorView<'_>,
    base: Base<'_>,
) -> Result<TokenRows, String> {
    let (vocab_size, width) = (base.config.vocab_size, base.config.hidden_size);
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocab_size) {
        return Err(format!("token {id} is not in the base's vocabulary of {vocab_size}"));
    }
    let values = floats("`trainable_tokens_delta`", view, &[ids.len(), width])?;
    let model =
        base.model.ok_or("trainable tokens need the base's embeddings, which are not at hand")?;
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|&at| ids[at]);
    if let Some(pair) = order.windows(2).find(|pair| ids[pair[0]] == ids[pair[1]]) {
        return Err(format!("token {} has two embeddings", ids[pair[0]]));
    }
    let mut deltas = Vec::with_capacity(values.len());
    let mut row = vec![0.0; width];
    for &at in &order {
        model.embeddings().read_row(ids[at] as usize, &mut row);
        deltas.extend(
            values[at * width..(at + 1) * width].iter().zip(&row).map(|(new, old)| new - old),
        );
    }
    let ids = order.into_iter().map(|at| ids[at]).collect();
    Ok(TokenRows { ids, deltas, in_head: base.config.tied_embeddings })
}
