//! `POST /tokenize` and `POST /detokenize`, in vLLM's shapes.

use std::sync::Arc;

use axum::Json as JsonReply;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::body::Body;
use super::chat::normalise;
use super::error::ApiError;
use crate::service::Service;

#[derive(Debug, Deserialize)]
struct TokenizeRequest {
    prompt: Option<String>,
    messages: Option<Vec<Json>>,
    add_generation_prompt: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct DetokenizeRequest {
    tokens: Vec<u32>,
}

pub(super) async fn tokenize(
    State(service): State<Arc<Service>>,
    body: Body,
) -> Result<JsonReply<Json>, ApiError> {
    let request: TokenizeRequest = body.fields()?;
    let tokens = match (&request.prompt, &request.messages) {
        (Some(prompt), None) => service.text.encode(prompt),
        (None, Some(messages)) => {
            let add = request.add_generation_prompt.unwrap_or(true);
            service.text.encode_chat(&normalise(messages)?, add)
        }
        _ => {
            let message = "expected either `prompt` or `messages`";
            return Err(ApiError::bad_request(message, Some("prompt")));
        }
    };
    let tokens =
        tokens.map_err(|error| ApiError::bad_request(error.to_string(), Some("prompt")))?;
    let max_model_len = service.engine.handle().max_tokens();
    Ok(JsonReply(json!({"count": tokens.len(), "max_model_len": max_model_len, "tokens": tokens})))
}

pub(super) async fn detokenize(
    State(service): State<Arc<Service>>,
    body: Body,
) -> Result<JsonReply<Json>, ApiError> {
    let request: DetokenizeRequest = body.fields()?;
    let text: String = service.text.decode_all(&request.tokens);
    Ok(JsonReply(json!({"prompt": text})))
}
