//! Ids of tokens that have rows of their own.

use serde_json::Value as Json;

/// Tokens with rows of their own in the embedding table and the head.
#[derive(Debug)]
pub(crate) struct TokenIndices {
    /// Ids of rows of the embedding table, in the order of the tensor's rows.
    pub(crate) embedding: Vec<u32>,
    /// Ids of rows of the head; `None` where the head follows the embedding table if they are tied.
    pub(crate) head: Option<Vec<u32>>,
}

/// Token ids with rows of their own: a list, or PEFT's map from `embed_tokens` and `lm_head` to
/// lists. `None` where no token is named.
pub(crate) fn tokens(value: Option<&Json>, name: &str) -> Result<Option<TokenIndices>, String> {
    let list = |value: &Json| {
        let id = |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = value.as_array().and_then(|ids| ids.iter().map(id).collect());
        ids.ok_or_else(|| format!("`{name}` is not a list of token ids"))
    };
    let indices = match value {
        None | Some(Json::Null) => return Ok(None),
        Some(Json::Object(map)) => {
            let known = ["embed_tokens", "lm_head"];
            if let Some(other) = map.keys().find(|key| !known.contains(&key.as_str())) {
                let expected = "only `embed_tokens` and `lm_head` are supported";
                return Err(format!("`{name}` names `{other}`, {expected}"));
            }
            let embedding = map.get("embed_tokens").map(list).transpose()?.unwrap_or_default();
            TokenIndices { embedding, head: map.get("lm_head").map(list).transpose()? }
        }
        Some(ids) => TokenIndices { embedding: list(ids)?, head: None },
    };
    let none = indices.embedding.is_empty() && indices.head.as_ref().is_none_or(Vec::is_empty);
    Ok((!none).then_some(indices))
}
