//! `POST /v1/completions`.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json as JsonReply;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{Stream, StreamExt};
use polyskill_engine::{Logprob, PromptLogprob};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value as Json, json};

use super::body::{Body, one_of, texts};
use super::chat::{deltas, event, new_id, now, usage};
use super::error::ApiError;
use super::experiment::Asking;
use super::generation::{Generation, Wanted, start_choices};
use super::params::{CommonParams, routing_report};
use crate::service::Service;

/// Prompts in one request.
const MAX_PROMPTS: usize = 64;

#[derive(Debug, Deserialize)]
struct CompletionRequest {
    prompt: Prompt,
    max_tokens: Option<usize>,
    logprobs: Option<usize>,
    echo: Option<bool>,
    suffix: Option<String>,
    best_of: Option<usize>,
    #[serde(skip)]
    common: CommonParams,
}

#[derive(Debug)]
enum Prompt {
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "text, a list of texts, a list of token ids, or a list of such lists";
        one_of(deserializer, expected, |value| {
            if let Json::String(text) = value {
                return Some(Self::Texts(vec![text.clone()]));
            }
            let items = value.as_array()?;
            if items.first().is_some_and(Json::is_string) {
                return texts(value).map(Self::Texts);
            }
            if items.first().is_some_and(Json::is_array) {
                return items.iter().map(token_ids).collect::<Option<_>>().map(Self::TokenLists);
            }
            Some(Self::TokenLists(vec![token_ids(value)?]))
        })
    }
}

fn token_ids(value: &Json) -> Option<Vec<u32>> {
    let id = |item: &Json| item.as_u64().and_then(|id| u32::try_from(id).ok());
    value.as_array()?.iter().map(id).collect()
}

/// Token ids, and the text that they came from.
type EncodedPrompt = (Vec<u32>, Option<String>);

impl Prompt {
    fn encode(self, service: &Service) -> Result<Vec<EncodedPrompt>, ApiError> {
        let text = |text: String| {
            let tokens = service.text.encode(&text);
            let tokens =
                tokens.map_err(|error| ApiError::bad_request(error.to_string(), Some("prompt")))?;
            Ok((tokens, Some(text)))
        };
        match self {
            Self::Texts(prompts) => prompts.into_iter().map(text).collect(),
            Self::TokenLists(lists) => Ok(lists.into_iter().map(|tokens| (tokens, None)).collect()),
        }
    }
}

pub(super) async fn completions(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let mut request: CompletionRequest = body.fields()?;
    request.common = body.fields()?;
    let name = request.common.model_name(&service).to_owned();
    if service.selection(&name).is_none() {
        return Err(ApiError::unknown_model(&name));
    }
    if request.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::bad_request("`suffix` is not supported", Some("suffix")));
    }
    if request.best_of.is_some_and(|best_of| Some(best_of) != request.common.n.or(Some(1))) {
        return Err(ApiError::bad_request(
            "`best_of` other than `n` is not supported",
            Some("best_of"),
        ));
    }
    let prompt = std::mem::replace(&mut request.prompt, Prompt::Texts(Vec::new()));
    let prompts = prompt.encode(&service)?;
    let streams = request.common.streams();
    if streams && request.echo.unwrap_or(false) {
        return Err(ApiError::bad_request("`echo` with `stream` is not supported", Some("echo")));
    }
    if prompts.is_empty() || prompts.len() > MAX_PROMPTS {
        let message = format!("{} prompts, expected 1 to {MAX_PROMPTS}", prompts.len());
        return Err(ApiError::bad_request(message, Some("prompt")));
    }
    let asking = Asking::new(new_id("cmpl"), &headers, &request.common);
    let generations = start(&service, &request, &asking, &prompts).await?;
    let (id, created) = (asking.id, now());
    if streams {
        let head =
            json!({"id": id, "object": "text_completion", "created": created, "model": name});
        return Ok(Sse::new(stream(service, head, generations, &request)?).into_response());
    }
    let (mut choices, mut finished, mut report) = (Vec::new(), Vec::new(), Json::Null);
    let per_prompt = request.common.choices()?;
    for (index, generation) in generations.into_iter().enumerate() {
        let served = generation.served().clone();
        let collected = generation.collect().await?;
        let (prompt, _) = &prompts[index / per_prompt];
        let echo = request.echo.unwrap_or(false);
        let echoed = if echo { service.text.decode(prompt) } else { String::new() };
        let logprobs = request.logprobs.map(|top| {
            let prompt = if echo { &collected.prompt[..] } else { &[] };
            logprobs(&service, prompt, &collected.tokens, top)
        });
        choices
            .push(json!({"index": index, "text": echoed + &collected.text, "logprobs": logprobs,
                            "finish_reason": collected.reason}));
        if index == 0 {
            let trace = request.common.trace_level()?;
            report = routing_report(&served, Some(&collected.finished), trace, &collected.trace);
        }
        finished.push(collected.finished);
    }
    let body = json!({"id": id, "object": "text_completion", "created": created, "model": name,
                      "choices": choices, "usage": usage(&finished), "polyskill": report});
    Ok(JsonReply(body).into_response())
}

async fn start(
    service: &Arc<Service>,
    request: &CompletionRequest,
    asking: &Asking,
    prompts: &[EncodedPrompt],
) -> Result<Vec<Generation>, ApiError> {
    let echo = request.echo.unwrap_or(false);
    let max_tokens = request.max_tokens.unwrap_or(16);
    if max_tokens == 0 && !echo {
        return Err(ApiError::bad_request(
            "`max_tokens` is 0, which needs `echo`",
            Some("max_tokens"),
        ));
    }
    if let Some(top) = request.logprobs.filter(|&top| top > 20) {
        return Err(ApiError::bad_request(
            format!("`logprobs` is {top}, at most 20"),
            Some("logprobs"),
        ));
    }
    let (logprobs, prompt_logprobs) = (request.logprobs, request.logprobs.filter(|_| echo));
    let wanted = Wanted { max_tokens, logprobs, prompt_logprobs };
    let mut generations = Vec::new();
    for (prompt, text) in prompts {
        let by = (&request.common, asking);
        let choices = start_choices(service, by, (prompt, text.clone()), wanted).await?;
        generations.extend(choices);
    }
    Ok(generations)
}

/// The older `logprobs` object: parallel lists.
fn logprobs(
    service: &Service,
    prompt: &[PromptLogprob],
    tokens: &[(u32, Option<Logprob>)],
    top: usize,
) -> Json {
    let prompt = prompt.iter().map(|entry| (entry.token, &entry.logprob));
    let all = prompt.chain(tokens.iter().map(|(token, logprob)| (*token, logprob)));
    let (mut texts, mut values, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
    let mut offset = 0;
    for (token, logprob) in all {
        let text = service.text.token_text(token);
        offsets.push(json!(offset));
        offset += text.chars().count();
        values.push(json!(logprob.as_ref().map(|logprob| logprob.value.max(-9999.0))));
        let best = logprob.as_ref().filter(|_| top > 0).map(|logprob| {
            let entries =
                logprob.top.iter().map(|&(t, value)| (service.text.token_text(t), json!(value)));
            entries.collect::<Map<String, Json>>()
        });
        tops.push(json!(best));
        texts.push(json!(text));
    }
    json!({"tokens": texts, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets})
}

fn stream(
    service: Arc<Service>,
    head: Json,
    generations: Vec<Generation>,
    request: &CompletionRequest,
) -> Result<impl Stream<Item = Result<Event, Infallible>> + use<>, ApiError> {
    let (count, trace) = (generations.len(), request.common.trace_level()?);
    let (include_usage, top) = (request.common.includes_usage(), request.logprobs);
    let mut finished = Vec::new();
    let body = deltas(generations).flat_map(move |(index, delta, tokens, served)| {
        let mut events = Vec::new();
        let with = |choices: Json| {
            let mut body = head.clone();
            body["choices"] = choices;
            body
        };
        if !delta.text.is_empty() || (top.is_some() && !delta.tokens.is_empty()) {
            let logprobs = top.map(|top| logprobs(&service, &[], &delta.tokens, top));
            let choice = json!({"index": index, "text": delta.text, "logprobs": logprobs, "finish_reason": null});
            events.push(event(&with(json!([choice]))));
        }
        if let Some((reason, done)) = delta.finished {
            let choice = json!({"index": index, "text": "", "logprobs": null, "finish_reason": reason});
            let mut body = with(json!([choice]));
            body["polyskill"] = routing_report(&served, Some(&done), trace, &tokens);
            events.push(event(&body));
            finished.push(done);
            if finished.len() == count && include_usage {
                let mut body = with(json!([]));
                body["usage"] = usage(&finished);
                events.push(event(&body));
            }
        }
        futures::stream::iter(events)
    });
    Ok(body.chain(futures::stream::iter([Ok(Event::default().data("[DONE]"))])))
}
