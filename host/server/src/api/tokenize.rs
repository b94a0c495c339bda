//! `POST /tokenize` and `POST /detokenize`, in vLLM's shapes.

use std::sync::Arc;

use axum::Json as JsonReply;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::body::Body;
use super::error::ApiError;
use super::fields;
use super::messages::ChatFields;
use super::text_work::{check_length, text_work};
use crate::service::Service;

/// The body of `/tokenize`: exactly one of `prompt` and `messages`.
#[derive(Debug, Deserialize)]
struct TokenizeRequest {
    /// A text.
    prompt: Option<String>,
    /// A chat, which is rendered as for an answer.
    messages: Option<Vec<Json>>,
    /// Puts special tokens around a text; true by default.
    add_special_tokens: Option<bool>,
    /// Reports the vocabulary's spelling of each token too.
    return_token_strs: Option<bool>,
}

/// The body of `/detokenize`.
#[derive(Debug, Deserialize)]
struct DetokenizeRequest {
    /// Token ids, below the number of ids that the model or its tokenizer has, whichever is larger.
    tokens: Vec<u32>,
}

/// `POST /tokenize`: the tokens of a text or a chat, with their number and the longest context. A
/// text longer than any prompt is refused.
pub(super) async fn tokenize(
    State(service): State<Arc<Service>>,
    body: Body,
) -> Result<JsonReply<Json>, ApiError> {
    fields::check(&body, &[fields::TOKENIZE])?;
    let request: TokenizeRequest = body.fields()?;
    let chat: Option<ChatFields> = match (&request.prompt, &request.messages) {
        (Some(_), None) => None,
        (None, Some(_)) => Some(body.fields()?),
        _ => {
            let message = "expected either `prompt` or `messages`";
            return Err(ApiError::bad_request(message, Some("prompt")));
        }
    };
    let work = move |service: &Service| request.answer(service, chat).map(JsonReply);
    text_work(&service, body.len(), true, work).await
}

impl TokenizeRequest {
    /// The reply; `chat` has the fields of a chat, where it is one.
    fn answer(self, service: &Service, chat: Option<ChatFields>) -> Result<Json, ApiError> {
        let tokenizer = &service.tokenizer;
        let tokens = match chat {
            Some(chat) => {
                let chat = chat.read(tokenizer)?;
                let text = chat.text(tokenizer)?;
                check_length(service, &text, "messages")?;
                chat.tokenize(text, tokenizer)?.tokens
            }
            None => {
                let prompt = self.prompt.unwrap_or_default();
                check_length(service, &prompt, "prompt")?;
                tokenizer
                    .encode_with(&prompt, self.add_special_tokens.unwrap_or(true))
                    .map_err(|error| ApiError::bad_request(error.to_string(), Some("prompt")))?
            }
        };
        let pieces = || tokens.iter().map(|&token| tokenizer.token_piece(token));
        let pieces = self.return_token_strs.unwrap_or(false).then(|| pieces().collect::<Vec<_>>());
        let max_model_len = service.engine.handle().max_tokens();
        Ok(json!({"count": tokens.len(), "max_model_len": max_model_len, "tokens": tokens,
                  "token_strs": pieces}))
    }
}

/// `POST /detokenize`: the text of tokens, special ones too, without stripping a blank.
pub(super) async fn detokenize(
    State(service): State<Arc<Service>>,
    body: Body,
) -> Result<JsonReply<Json>, ApiError> {
    fields::check(&body, &[fields::DETOKENIZE])?;
    let request: DetokenizeRequest = body.fields()?;
    // A model may have more ids than its tokenizer, and may answer with them.
    let count = service.model.config().vocab_size.max(service.tokenizer.num_ids() as usize);
    if let Some(id) = request.tokens.iter().find(|&&id| id as usize >= count) {
        let message = format!("`tokens` holds {id}, expected ids below {count}");
        return Err(ApiError::bad_request(message, Some("tokens")));
    }
    let work = move |service: &Service| {
        Ok(JsonReply(json!({"prompt": service.tokenizer.decode_part(&request.tokens)})))
    };
    text_work(&service, body.len(), false, work).await
}
