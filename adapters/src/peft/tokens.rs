//! Trainable tokens: rows of their own for some tokens (`TRAINABLE_TOKENS`, or beside a LoRA).
//!
//! On a tied base the head reads the new rows too, unless the configuration names tokens for each
//! end.

use polyskill_model::Matrix;
use safetensors::tensor::{SafeTensors, TensorView};
use serde_json::{Map, Value as Json};

use super::bundle::floats;
use super::config::{self, TokenIndices};
use super::{Base, Place};
use crate::files::Problems;
use crate::weights::{Part, TokenRows, Weights};

/// Settings that are read below, or do not matter at inference.
const READ: [&str; 3] = ["target_modules", "token_indices", "init_weights"];
/// The tensor of new rows, `[tokens, hidden_size]`; PEFT calls it a delta, but it holds whole rows.
const EMBEDDING: &str = "base_model.model.model.embed_tokens.trainable_tokens_delta";
/// On a tied base PEFT stores the same rows a second time.
const HEAD: &str = "base_model.model.lm_head.trainable_tokens_delta";

/// Reads a module of `TRAINABLE_TOKENS`: new rows of the embedding table, which a tied head reads
/// too.
pub(super) fn load(
    object: &Map<String, Json>,
    tensors: &SafeTensors<'_>,
    base: Base<'_>,
) -> Result<Weights, Vec<String>> {
    let mut problems = Problems::default();
    let refused = config::refused_settings(object, |key, _| READ.contains(&key));
    refused.into_iter().for_each(|problem| problems.add(problem));
    let targets = object.get("target_modules").filter(|value| !value.is_null());
    // A text is an expression for the whole path.
    let strings = match targets {
        Some(Json::String(text)) if text == "embed_tokens" => Vec::new(),
        targets => config::strings(targets),
    };
    if object.get("token_indices").is_some_and(Json::is_object) {
        problems.add("`token_indices` is an object, expected a list of token ids".to_owned());
    }
    let is_embedding = |name: &String| name == "embed_tokens" || name == "model.embed_tokens";
    if targets.is_some() && !(strings.len() == 1 && strings.iter().all(is_embedding)) {
        problems.add("`target_modules` names something else than embed_tokens".to_owned());
    }
    let in_memory = [EMBEDDING, ".default"].concat();
    let embedding = if tensors.tensor(EMBEDDING).is_err() { in_memory.as_str() } else { EMBEDDING };
    let known = |name: &str| name == embedding || name == HEAD && base.config.tied_embeddings;
    for name in tensors.names().into_iter().filter(|name| !known(name)) {
        problems.add(format!("tensor `{name}` is not expected beside `{EMBEDDING}`"));
    }
    let mut weights = Weights::new(base.config.num_sites());
    match (config::tokens(object.get("token_indices"), "token_indices"), tensors.tensor(embedding))
    {
        (Ok(Some(indices)), Ok(view)) => {
            set(&mut weights, &indices, Place::Embedding, &view, base)
                .unwrap_or_else(|problem| problems.add(problem));
            if let Ok(head) = tensors.tensor(HEAD)
                && head.data() != view.data()
            {
                problems
                    .add(format!("`{HEAD}` differs from `{EMBEDDING}`, and the base ties them"));
            }
        }
        (Err(problem), _) => problems.add(problem),
        (Ok(None), _) => problems.add("`token_indices` names no token".to_owned()),
        (_, Err(_)) => problems.add(format!("tensor `{EMBEDDING}` is missing")),
    }
    problems.into_result(weights)
}

/// Keeps rows at the embedding or the head, and at the head too where it follows: on a tied base
/// without ids of its own.
pub(super) fn set(
    weights: &mut Weights,
    indices: &TokenIndices,
    place: Place,
    view: &TensorView<'_>,
    base: Base<'_>,
) -> Result<(), String> {
    let model = base.model.ok_or("trainable tokens need the base's rows, which are not at hand")?;
    if place == Place::Head {
        let ids = indices.head.as_deref().unwrap_or_default();
        weights.add(Part::HeadTokens(rows(ids, view, base, model.head())?));
        return Ok(());
    }
    let rows = rows(&indices.embedding, view, base, model.embeddings())?;
    if base.config.tied_embeddings && indices.head.is_none() {
        weights.add(Part::HeadTokens(rows.clone()));
    }
    weights.add(Part::Tokens(rows));
    Ok(())
}

/// The difference of PEFT's rows, `[tokens, hidden_size]`, to the base's. `ids` are in the order of
/// the tensor's rows; the result's ascend.
fn rows(
    ids: &[u32],
    view: &TensorView<'_>,
    base: Base<'_>,
    matrix: &Matrix,
) -> Result<TokenRows, String> {
    let (vocab_size, width) = (base.config.vocab_size, base.config.hidden_size);
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocab_size) {
        return Err(format!("token {id} is not in the base's vocabulary of {vocab_size}"));
    }
    let values = floats("`trainable_tokens_delta`", view, &[ids.len(), width])?;
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|&at| ids[at]);
    if let Some(pair) = order.windows(2).find(|pair| ids[pair[0]] == ids[pair[1]]) {
        return Err(format!("token {} has two rows", ids[pair[0]]));
    }
    let mut deltas = Vec::with_capacity(values.len());
    let mut row = vec![0.0; width];
    for &at in &order {
        matrix.read_row(ids[at] as usize, &mut row);
        let new = &values[at * width..(at + 1) * width];
        deltas.extend(new.iter().zip(&row).map(|(new, old)| new - old));
    }
    Ok(TokenRows { ids: order.into_iter().map(|at| ids[at]).collect(), deltas })
}
