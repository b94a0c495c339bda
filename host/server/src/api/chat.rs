//! `POST /v1/chat/completions`.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json as JsonReply;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{Stream, StreamExt, select_all, unfold};
use polyskill_engine::TraceLevel;
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::body::Body;
use super::error::ApiError;
use super::experiment::{Asking, Served};
use super::fields;
use super::generation::{Delta, Generation, PromptInput, TextToken, Wanted, start_choices};
use super::logprobs::{self, TokenNames};
use super::messages::{ChatFields, ChatInput, Rendered};
use super::modules::blocking;
use super::params::{CommonParams, StreamUsage, routing_report};
use super::usage;
use crate::service::Service;
use crate::traces::TracedToken;

#[derive(Debug, Deserialize)]
struct ChatRequest {
    #[expect(dead_code, reason = "required here, and read with the other fields of a chat")]
    messages: Vec<Json>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    return_prompt_text: Option<bool>,
    #[serde(skip)]
    common: CommonParams,
}

impl ChatRequest {
    /// Alternatives per token; `None` where no log-probabilities are asked for.
    fn alternatives(&self) -> Result<Option<usize>, ApiError> {
        let top = self.top_logprobs.unwrap_or(0);
        let message = match self.logprobs {
            _ if top > 20 => format!("`top_logprobs` is {top}, at most 20"),
            Some(true) => return Ok(Some(top)),
            _ if top > 0 => format!("`top_logprobs` is {top}, which needs `logprobs`: true"),
            _ => return Ok(None),
        };
        Err(ApiError::bad_request(message, Some("top_logprobs")))
    }

    /// The head that all parts of the reply share.
    fn reply(&self, service: &Service, id: String, rendered: Rendered) -> Result<Reply, ApiError> {
        let common = &self.common;
        Ok(Reply {
            id,
            created: now(),
            model: common.model_name(service).to_owned(),
            trace: common.trace_level()?,
            logprobs: self.logprobs.unwrap_or(false),
            names_as_ids: common.return_tokens_as_token_ids.unwrap_or(false),
            prompt_logprobs: common.prompt_logprobs()?,
            usage: common.stream_usage()?,
            prompt_text: self.return_prompt_text.unwrap_or(false).then_some(rendered.text),
            with_ids: common.return_token_ids.unwrap_or(false),
            prompt: rendered.tokens,
        })
    }
}

pub(super) fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

pub(super) fn new_id(prefix: &str) -> String {
    use std::hash::BuildHasher;
    let random = std::hash::RandomState::new();
    format!("{prefix}-{:016x}{:016x}", random.hash_one(1), random.hash_one(2))
}

pub(super) async fn chat(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    fields::check(&body, &[fields::COMMON, fields::CHAT, fields::OTHERS])?;
    let mut request: ChatRequest = body.fields()?;
    request.common = body.fields()?;
    let name = request.common.model_name(&service);
    if service.selection(name).is_none() {
        return Err(ApiError::unknown_model(name));
    }
    let fields: ChatFields = body.fields()?;
    let mut asking = Asking::new(new_id("chatcmpl"), &headers, &request.common);
    // A template may take its time.
    let (chat, rendered) = blocking(Arc::clone(&service), move |service| {
        let chat = fields.read(&service.tokenizer)?;
        let rendered = chat.render(&service.tokenizer)?;
        Ok((chat, rendered))
    })
    .await?;
    asking.begins(&chat.messages);
    let mut reply = request.reply(&service, asking.id.clone(), rendered)?;
    let generations = start(&service, &request, &chat, &asking, &mut reply).await?;
    if request.common.streams() {
        return Ok(Sse::new(stream(service, reply, generations)).into_response());
    }
    whole(&service, &reply, generations).await
}

async fn start(
    service: &Arc<Service>,
    request: &ChatRequest,
    chat: &ChatInput,
    asking: &Asking,
    reply: &mut Reply,
) -> Result<Vec<Generation>, ApiError> {
    let limit = service.engine.handle().max_tokens();
    let asked = request.max_completion_tokens.or(request.max_tokens);
    request.common.truncate(&mut reply.prompt, limit.saturating_sub(asked.unwrap_or(1)))?;
    let room = limit.saturating_sub(reply.prompt.len());
    let wanted = Wanted {
        max_tokens: asked.unwrap_or_else(|| room.clamp(1, 1_024)),
        logprobs: request.alternatives()?,
        prompt_logprobs: reply.prompt_logprobs,
    };
    if wanted.max_tokens == 0 {
        return Err(ApiError::bad_request(
            "`max_tokens` is 0, expected at least 1",
            Some("max_tokens"),
        ));
    }
    let prompt = PromptInput { tokens: reply.prompt.clone(), text: chat.last_user_text() };
    start_choices(service, &request.common, asking, &prompt, wanted).await
}

/// What all parts of a reply share.
struct Reply {
    id: String,
    created: u64,
    model: String,
    trace: TraceLevel,
    logprobs: bool,
    names_as_ids: bool,
    /// Alternatives per token of the prompt.
    prompt_logprobs: Option<usize>,
    usage: StreamUsage,
    /// The rendered chat, where the reply has it.
    prompt_text: Option<String>,
    /// `return_token_ids`: the reply has the ids of its tokens.
    with_ids: bool,
    prompt: Vec<u32>,
}

impl Reply {
    fn logprobs(&self, service: &Service, tokens: &[TextToken]) -> Option<Json> {
        let names = TokenNames { tokenizer: &service.tokenizer, as_ids: self.names_as_ids };
        self.logprobs.then(|| logprobs::of_chat(names, tokens))
    }

    /// Adds what belongs to the prompt.
    fn add_prompt(&self, body: &mut Json) {
        if self.with_ids {
            body["prompt_token_ids"] = json!(self.prompt);
        }
        if let Some(text) = &self.prompt_text {
            body["prompt_text"] = json!(text);
        }
    }
}

async fn whole(
    service: &Service,
    reply: &Reply,
    generations: Vec<Generation>,
) -> Result<Response, ApiError> {
    let (mut choices, mut finished, mut report) = (Vec::new(), Vec::new(), Json::Null);
    let mut prompt_logprobs = None;
    let count = generations.len();
    for (index, generation) in generations.into_iter().enumerate() {
        let served = generation.served().clone();
        let collected = generation.collect().await?;
        let ended = collected.ended;
        let mut choice = json!({
            "index": index,
            "message": {"role": "assistant", "content": collected.text, "refusal": null},
            "logprobs": reply.logprobs(service, &collected.tokens),
            "finish_reason": ended.reason,
            "stop_reason": ended.stop_reason,
        });
        if reply.with_ids {
            choice["token_ids"] = collected.tokens.iter().map(|token| token.token).collect();
        }
        let own = routing_report(&served, Some(&ended.finished), reply.trace, &collected.trace);
        if count > 1 {
            choice["polyskill"] = own.clone();
        }
        if index == 0 {
            report = own;
            prompt_logprobs = reply
                .prompt_logprobs
                .map(|top| logprobs::of_prompt(&service.tokenizer, &collected.prompt, top));
        }
        choices.push(choice);
        finished.push(ended.finished);
    }
    let mut body = json!({
        "id": reply.id, "object": "chat.completion", "created": reply.created, "model": reply.model,
        "choices": choices, "usage": usage::of(finished.iter().enumerate(), count), "polyskill": report,
    });
    if let Some(prompt) = prompt_logprobs {
        body["prompt_logprobs"] = prompt;
    }
    reply.add_prompt(&mut body);
    Ok(JsonReply(body).into_response())
}

/// A generation as numbered deltas.
pub(super) fn deltas(
    generations: Vec<Generation>,
) -> impl Stream<Item = (usize, Delta, Vec<TracedToken>, Served)> {
    select_all(generations.into_iter().enumerate().map(|(index, generation)| {
        Box::pin(unfold(generation, move |mut generation| async move {
            let delta = generation.next().await?;
            let trace = if delta.ended.is_some() { generation.take_trace() } else { Vec::new() };
            let served = generation.served().clone();
            Some(((index, delta, trace, served), generation))
        }))
    }))
}

pub(super) fn event(body: &Json) -> Result<Event, Infallible> {
    Ok(Event::default().data(body.to_string()))
}

fn stream(
    service: Arc<Service>,
    reply: Reply,
    generations: Vec<Generation>,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let count = generations.len();
    let reply = Arc::new(reply);
    let chunk = move |reply: &Reply, choices: Json, completion: usize| {
        let mut body = json!({"id": reply.id, "object": "chat.completion.chunk", "created": reply.created,
                              "model": reply.model, "choices": choices});
        match reply.usage {
            StreamUsage::None => {}
            StreamUsage::AtEnd => body["usage"] = Json::Null,
            StreamUsage::Continuous => {
                body["usage"] = usage::so_far(reply.prompt.len(), completion);
            }
        }
        body
    };
    let roles: Vec<_> = (0..count)
        .map(|index| {
            let delta = json!({"role": "assistant", "content": ""});
            let choice =
                json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null});
            let mut body = chunk(&reply, json!([choice]), 0);
            reply.add_prompt(&mut body);
            event(&body)
        })
        .collect();
    let (mut finished, mut completions) = (Vec::new(), vec![0; count]);
    let body = deltas(generations).flat_map(move |(index, delta, trace, served)| {
        let mut events = Vec::new();
        completions[index] += delta.tokens.len();
        let shows_tokens = (reply.logprobs || reply.with_ids) && !delta.tokens.is_empty();
        if !delta.text.is_empty() || shows_tokens {
            let logprobs = reply.logprobs(&service, &delta.tokens);
            let mut choice = json!({"index": index, "delta": {"content": delta.text}, "logprobs": logprobs,
                                    "finish_reason": null});
            if reply.with_ids {
                choice["token_ids"] = delta.tokens.iter().map(|token| token.token).collect();
            }
            events.push(event(&chunk(&reply, json!([choice]), completions[index])));
        }
        if let Some(ended) = delta.ended {
            let choice = json!({"index": index, "delta": {}, "logprobs": null,
                                "finish_reason": ended.reason, "stop_reason": ended.stop_reason});
            let mut body = chunk(&reply, json!([choice]), completions[index]);
            body["polyskill"] = routing_report(&served, Some(&ended.finished), reply.trace, &trace);
            events.push(event(&body));
            finished.push((index, ended.finished));
            if finished.len() == count && reply.usage != StreamUsage::None {
                let mut body = chunk(&reply, json!([]), 0);
                let finished = finished.iter().map(|(index, finished)| (*index, finished));
                body["usage"] = usage::of(finished, count);
                events.push(event(&body));
            }
        }
        futures::stream::iter(events)
    });
    let end = futures::stream::iter([Ok(Event::default().data("[DONE]"))]);
    futures::stream::iter(roles).chain(body).chain(end)
}
