//! `POST /v1/chat/completions`.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json as JsonReply;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{Stream, StreamExt, select_all, unfold};
use polyskill_engine::{Finished, Logprob, TraceLevel};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::body::Body;
use super::error::ApiError;
use super::experiment::{Asking, Served};
use super::generation::{Delta, Generation, Wanted, start_choices};
use super::params::{CommonParams, routing_report};
use crate::service::Service;
use crate::traces::TracedToken;

#[derive(Debug, Deserialize)]
struct ChatRequest {
    messages: Vec<Json>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    add_generation_prompt: Option<bool>,
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

pub(super) fn usage(finished: &[Finished]) -> Json {
    let prompt = finished.first().map_or(0, |finished| finished.prompt_tokens);
    let completion: usize = finished.iter().map(|finished| finished.completion_tokens).sum();
    let cached = finished.first().map_or(0, |finished| finished.cached_tokens);
    json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
           "prompt_tokens_details": {"cached_tokens": cached}})
}

pub(super) async fn chat(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let mut request: ChatRequest = body.fields()?;
    request.common = body.fields()?;
    let name = request.common.model_name(&service).to_owned();
    if service.selection(&name).is_none() {
        return Err(ApiError::unknown_model(&name));
    }
    let asking = Asking::new(new_id("chatcmpl"), &headers, &request.common);
    let (id, generations) = start(&service, &request, asking).await?;
    let reply = Reply {
        id,
        created: now(),
        model: name,
        trace: request.common.trace_level()?,
        logprobs: request.logprobs.unwrap_or(false),
    };
    if request.common.streams() {
        let usage = request.common.includes_usage();
        return Ok(Sse::new(stream(service, reply, generations, usage)).into_response());
    }
    whole(&service, &reply, generations).await
}

/// Messages as the template wants them: content parts joined to text, `developer` as `system`.
pub(super) fn normalise(messages: &[Json]) -> Result<Json, ApiError> {
    let fail = |at: usize, reason: &str| {
        ApiError::bad_request(format!("message {at}: {reason}"), Some("messages"))
    };
    let one = |(at, message): (usize, &Json)| {
        let role = match message.get("role").and_then(Json::as_str) {
            Some("developer") => "system",
            Some(role @ ("system" | "user" | "assistant" | "tool")) => role,
            _ => return Err(fail(at, "`role` must be system, developer, user, assistant or tool")),
        };
        let content = match message.get("content") {
            None | Some(Json::Null) => String::new(),
            Some(Json::String(text)) => text.clone(),
            Some(Json::Array(parts)) => {
                let texts = parts.iter().map(|part| part.get("text").and_then(Json::as_str));
                let texts: Option<Vec<&str>> = texts.collect();
                texts.ok_or_else(|| fail(at, "only text parts are supported"))?.concat()
            }
            Some(_) => return Err(fail(at, "`content` must be text or a list of text parts")),
        };
        Ok(json!({"role": role, "content": content}))
    };
    if messages.is_empty() {
        return Err(ApiError::bad_request("`messages` is empty", Some("messages")));
    }
    messages.iter().enumerate().map(one).collect::<Result<Vec<_>, _>>().map(Json::from)
}

async fn start(
    service: &Arc<Service>,
    request: &ChatRequest,
    mut asking: Asking,
) -> Result<(String, Vec<Generation>), ApiError> {
    let messages = normalise(&request.messages)?;
    let add = request.add_generation_prompt.unwrap_or(true);
    let prompt = service
        .text
        .encode_chat(&messages, add)
        .map_err(|error| ApiError::bad_request(error.to_string(), Some("messages")))?;
    let all = messages.as_array().map_or(&[][..], Vec::as_slice);
    let last = all.iter().rfind(|message| message["role"] == "user");
    let last = last.and_then(|message| message.get("content")?.as_str());
    let room = service.engine.handle().max_tokens().saturating_sub(prompt.len());
    let asked = request.max_completion_tokens.or(request.max_tokens);
    let wanted = Wanted {
        max_tokens: asked.unwrap_or_else(|| room.clamp(1, 1_024)),
        logprobs: request.alternatives()?,
        prompt_logprobs: None,
    };
    if wanted.max_tokens == 0 {
        return Err(ApiError::bad_request(
            "`max_tokens` is 0, expected at least 1",
            Some("max_tokens"),
        ));
    }
    asking.begins(&messages);
    let prompt = (prompt.as_slice(), last.map(str::to_owned));
    let started = start_choices(service, (&request.common, &asking), prompt, wanted).await?;
    Ok((asking.id, started))
}

/// What all parts of a reply share.
struct Reply {
    id: String,
    created: u64,
    model: String,
    trace: TraceLevel,
    logprobs: bool,
}

async fn whole(
    service: &Service,
    reply: &Reply,
    generations: Vec<Generation>,
) -> Result<Response, ApiError> {
    let (mut choices, mut finished, mut report) = (Vec::new(), Vec::new(), Json::Null);
    for (index, generation) in generations.into_iter().enumerate() {
        let served = generation.served().clone();
        let collected = generation.collect().await?;
        let logprobs = reply.logprobs.then(|| logprobs(service, &collected.tokens));
        choices.push(json!({
            "index": index,
            "message": {"role": "assistant", "content": collected.text, "refusal": null},
            "logprobs": logprobs,
            "finish_reason": collected.reason,
        }));
        if index == 0 {
            report =
                routing_report(&served, Some(&collected.finished), reply.trace, &collected.trace);
        }
        finished.push(collected.finished);
    }
    let body = json!({
        "id": reply.id, "object": "chat.completion", "created": reply.created, "model": reply.model,
        "choices": choices, "usage": usage(&finished), "system_fingerprint": null, "polyskill": report,
    });
    Ok(JsonReply(body).into_response())
}

fn logprobs(service: &Service, tokens: &[(u32, Option<Logprob>)]) -> Json {
    let entry = |token: u32, value: f32| {
        let text = service.text.token_text(token);
        json!({"token": text, "logprob": value.max(-9999.0), "bytes": text.as_bytes()})
    };
    let content: Vec<Json> = tokens
        .iter()
        .filter_map(|(token, logprob)| {
            let logprob = logprob.as_ref()?;
            let mut one = entry(*token, logprob.value);
            one["top_logprobs"] =
                logprob.top.iter().map(|&(token, value)| entry(token, value)).collect();
            Some(one)
        })
        .collect();
    json!({"content": content})
}

/// A generation as numbered deltas.
pub(super) fn deltas(
    generations: Vec<Generation>,
) -> impl Stream<Item = (usize, Delta, Vec<TracedToken>, Served)> {
    select_all(generations.into_iter().enumerate().map(|(index, generation)| {
        Box::pin(unfold(generation, move |mut generation| async move {
            let delta = generation.next().await?;
            let trace = if delta.finished.is_some() { generation.take_trace() } else { Vec::new() };
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
    include_usage: bool,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let count = generations.len();
    let reply = Arc::new(reply);
    let chunk = move |reply: &Reply, choices: Json| {
        let mut body = json!({"id": reply.id, "object": "chat.completion.chunk", "created": reply.created,
                              "model": reply.model, "choices": choices});
        if include_usage {
            body["usage"] = Json::Null;
        }
        body
    };
    let roles: Vec<_> = (0..count)
        .map(|index| {
            let delta = json!({"role": "assistant", "content": ""});
            let choice =
                json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null});
            event(&chunk(&reply, json!([choice])))
        })
        .collect();
    let mut finished = Vec::new();
    let body = deltas(generations).flat_map(move |(index, delta, trace, served)| {
        let mut events = Vec::new();
        if !delta.text.is_empty() || (reply.logprobs && !delta.tokens.is_empty()) {
            let logprobs = reply.logprobs.then(|| logprobs(&service, &delta.tokens));
            let choice = json!({"index": index, "delta": {"content": delta.text}, "logprobs": logprobs,
                                "finish_reason": null});
            events.push(event(&chunk(&reply, json!([choice]))));
        }
        if let Some((reason, done)) = delta.finished {
            let choice = json!({"index": index, "delta": {}, "logprobs": null, "finish_reason": reason});
            let mut body = chunk(&reply, json!([choice]));
            body["polyskill"] = routing_report(&served, Some(&done), reply.trace, &trace);
            events.push(event(&body));
            finished.push(done);
            if finished.len() == count && include_usage {
                let mut body = chunk(&reply, json!([]));
                body["usage"] = usage(&finished);
                events.push(event(&body));
            }
        }
        futures::stream::iter(events)
    });
    let end = futures::stream::iter([Ok(Event::default().data("[DONE]"))]);
    futures::stream::iter(roles).chain(body).chain(end)
}
