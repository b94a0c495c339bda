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
use super::modules::blocking;
use crate::service::Service;

#[derive(Debug, Deserialize)]
struct TokenizeRequest {
    prompt: Option<String>,
    messages: Option<Vec<Json>>,
    add_special_tokens: Option<bool>,
    return_token_strs: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct DetokenizeRequest {
    tokens: Vec<u32>,
}

pub(super) async fn tokenize(
    State(service): State<Arc<Service>>,
    body: Body,
) -> Result<JsonReply<Json>, ApiError> {
    fields::check(&body, &[fields::TOKENIZE])?;
    let request: TokenizeRequest = body.fields()?;
    let tokenizer = &service.tokenizer;
    let tokens = match (&request.prompt, &request.messages) {
        (Some(prompt), None) => tokenizer
            .encode_with(prompt, request.add_special_tokens.unwrap_or(true))
            .map_err(|error| ApiError::bad_request(error.to_string(), Some("prompt")))?,
        (None, Some(_)) => {
            let fields: ChatFields = body.fields()?;
            let rendered = blocking(Arc::clone(&service), move |service| {
                fields.read(&service.tokenizer)?.render(&service.tokenizer)
            });
            rendered.await?.tokens
        }
        _ => {
            let message = "expected either `prompt` or `messages`";
            return Err(ApiError::bad_request(message, Some("prompt")));
        }
    };
    let pieces = request
        .return_token_strs
        .unwrap_or(false)
        .then(|| tokens.iter().map(|&token| tokenizer.token_piece(token)).collect::<Vec<String>>());
    let max_model_len = service.engine.handle().max_tokens();
    Ok(JsonReply(json!({"count": tokens.len(), "max_model_len": max_model_len, "tokens": tokens,
                        "token_strs": pieces})))
}

pub(super) async fn detokenize(
    State(service): State<Arc<Service>>,
    body: Body,
) -> Result<JsonReply<Json>, ApiError> {
    fields::check(&body, &[fields::DETOKENIZE])?;
    let request: DetokenizeRequest = body.fields()?;
    Ok(JsonReply(json!({"prompt": service.tokenizer.decode_part(&request.tokens)})))
}
