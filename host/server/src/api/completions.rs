//! `POST /v1/completions`.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json as JsonReply;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{Stream, StreamExt};
use polyskill_engine::TraceLevel;
use polyskill_tokenizer::Special;
use serde::{Deserialize, Deserializer};
use serde_json::{Value as Json, json};

use super::body::{Body, one_of, texts};
use super::chat::{deltas, event, new_id, now};
use super::error::ApiError;
use super::experiment::Asking;
use super::fields;
use super::generation::{Collected, Generation, PromptInput, TextToken, Wanted, start_choices};
use super::logprobs::{self, Listed, TokenNames};
use super::params::{CommonParams, StreamUsage, routing_report};
use super::usage;
use crate::service::Service;

/// Prompts in one request.
const MAX_PROMPTS: usize = 64;

#[derive(Debug, Deserialize)]
struct CompletionRequest {
    prompt: Prompt,
    max_tokens: Option<usize>,
    logprobs: Option<usize>,
    echo: Option<bool>,
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

impl Prompt {
    /// The prompts as tokens, cut where the request asks for it; `most` tokens are to be generated.
    fn encode(
        self,
        service: &Service,
        common: &CommonParams,
        most: usize,
    ) -> Result<Vec<PromptInput>, ApiError> {
        let add_special = common.add_special_tokens.unwrap_or(true);
        let text = |text: String| {
            let tokens = service.tokenizer.encode_with(&text, add_special);
            let tokens =
                tokens.map_err(|error| ApiError::bad_request(error.to_string(), Some("prompt")))?;
            Ok(PromptInput { tokens, text: Some(text) })
        };
        let mut prompts: Vec<PromptInput> = match self {
            Self::Texts(prompts) => {
                prompts.into_iter().map(text).collect::<Result<_, ApiError>>()?
            }
            Self::TokenLists(lists) => {
                lists.into_iter().map(|tokens| PromptInput { tokens, text: None }).collect()
            }
        };
        let room = service.engine.handle().max_tokens().saturating_sub(most);
        for prompt in &mut prompts {
            let whole = prompt.tokens.len();
            common.truncate(&mut prompt.tokens, room)?;
            // What was cut off is not echoed either.
            prompt.text = prompt.text.take().filter(|_| prompt.tokens.len() == whole);
        }
        Ok(prompts)
    }
}

impl CompletionRequest {
    fn echoes(&self) -> bool {
        self.echo.unwrap_or(false)
    }

    fn most_tokens(&self) -> usize {
        self.max_tokens.unwrap_or(16)
    }

    /// The report that each choice is to make.
    fn wanted(&self) -> Result<Wanted, ApiError> {
        if self.most_tokens() == 0 && !self.echoes() {
            return Err(ApiError::bad_request(
                "`max_tokens` is 0, which needs `echo`",
                Some("max_tokens"),
            ));
        }
        if let Some(top) = self.logprobs.filter(|&top| top > 20) {
            return Err(ApiError::bad_request(
                format!("`logprobs` is {top}, at most 20"),
                Some("logprobs"),
            ));
        }
        // Echoed log-probabilities and those that are asked for by themselves come of one pass.
        let echoed = self.logprobs.filter(|_| self.echoes());
        Ok(Wanted {
            max_tokens: self.most_tokens(),
            logprobs: self.logprobs,
            prompt_logprobs: echoed.max(self.common.prompt_logprobs()?),
        })
    }

    fn reply(
        &self,
        service: &Service,
        id: String,
        prompts: &[PromptInput],
    ) -> Result<Reply, ApiError> {
        let common = &self.common;
        Ok(Reply {
            id,
            created: now(),
            model: common.model_name(service).to_owned(),
            trace: common.trace_level()?,
            usage: common.stream_usage()?,
            per_prompt: common.choices()?,
            logprobs: self.logprobs,
            prompt_logprobs: common.prompt_logprobs()?,
            names_as_ids: common.return_tokens_as_token_ids.unwrap_or(false),
            with_ids: common.return_token_ids.unwrap_or(false),
            echoes: self.echoes(),
            prompts: prompts.to_vec(),
        })
    }
}

pub(super) async fn completions(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    fields::check(&body, &[fields::COMMON, fields::COMPLETIONS, fields::OTHERS])?;
    let mut request: CompletionRequest = body.fields()?;
    request.common = body.fields()?;
    let name = request.common.model_name(&service);
    if service.selection(name).is_none() {
        return Err(ApiError::unknown_model(name));
    }
    let streams = request.common.streams();
    if streams && request.echoes() {
        return Err(ApiError::bad_request("`echo` with `stream` is not supported", Some("echo")));
    }
    let wanted = request.wanted()?;
    let prompt = std::mem::replace(&mut request.prompt, Prompt::Texts(Vec::new()));
    let prompts = prompt.encode(&service, &request.common, wanted.max_tokens)?;
    if prompts.is_empty() || prompts.len() > MAX_PROMPTS {
        let message = format!("{} prompts, expected 1 to {MAX_PROMPTS}", prompts.len());
        return Err(ApiError::bad_request(message, Some("prompt")));
    }
    let asking = Asking::new(new_id("cmpl"), &headers, &request.common);
    let reply = request.reply(&service, asking.id.clone(), &prompts)?;
    let mut generations = Vec::new();
    for prompt in &prompts {
        let choices = start_choices(&service, &request.common, &asking, prompt, wanted).await?;
        generations.extend(choices);
    }
    if streams {
        return Ok(Sse::new(stream(service, reply, generations)).into_response());
    }
    whole(&service, &reply, generations).await
}

/// The head that all parts of a reply share.
struct Reply {
    id: String,
    created: u64,
    model: String,
    trace: TraceLevel,
    usage: StreamUsage,
    /// Choices per prompt.
    per_prompt: usize,
    /// Alternatives per token; `None` reports no log-probabilities.
    logprobs: Option<usize>,
    /// Alternatives per token of the prompt.
    prompt_logprobs: Option<usize>,
    names_as_ids: bool,
    /// `return_token_ids`: the reply has the ids of its tokens.
    with_ids: bool,
    /// `echo`: prompts stand before their answers.
    echoes: bool,
    prompts: Vec<PromptInput>,
}

impl Reply {
    fn prompt(&self, choice: usize) -> &PromptInput {
        &self.prompts[choice / self.per_prompt]
    }

    fn names<'a>(&self, service: &'a Service) -> TokenNames<'a> {
        TokenNames { tokenizer: &service.tokenizer, as_ids: self.names_as_ids }
    }

    fn head(&self, choices: &Json) -> Json {
        json!({"id": self.id, "object": "text_completion", "created": self.created,
               "model": self.model, "choices": choices})
    }

    /// A prompt as it was sent; of one that was sent in tokens all of them are shown.
    fn echoed(&self, service: &Service, choice: usize) -> String {
        let prompt = self.prompt(choice);
        let decoded = || service.tokenizer.decode(&prompt.tokens, Special::Shown);
        prompt.text.clone().unwrap_or_else(decoded)
    }

    /// One choice of a whole reply.
    fn choice(&self, service: &Service, index: usize, collected: &Collected) -> Json {
        let echoed = if self.echoes { self.echoed(service, index) } else { String::new() };
        let logprobs = self.logprobs.map(|top| {
            let offsets = match self.echoes {
                true => service.tokenizer.offsets(&echoed, &self.prompt(index).tokens),
                false => Vec::new(),
            };
            let prompt = Listed::prompt(&collected.prompt, &offsets);
            let answer = Listed::answer(&collected.tokens, echoed.chars().count());
            logprobs::of_completion(self.names(service), prompt.chain(answer), top)
        });
        let ended = &collected.ended;
        let mut choice = json!({"index": index, "text": echoed + &collected.text, "logprobs": logprobs,
                                "finish_reason": ended.reason, "stop_reason": ended.stop_reason});
        if let Some(top) = self.prompt_logprobs {
            choice["prompt_logprobs"] =
                logprobs::of_prompt(&service.tokenizer, &collected.prompt, top);
        }
        if self.with_ids {
            choice["prompt_token_ids"] = json!(self.prompt(index).tokens);
            choice["token_ids"] = ids(&collected.tokens);
        }
        choice
    }
}

fn ids(tokens: &[TextToken]) -> Json {
    tokens.iter().map(|token| token.token).collect()
}

async fn whole(
    service: &Service,
    reply: &Reply,
    generations: Vec<Generation>,
) -> Result<Response, ApiError> {
    let (mut choices, mut finished, mut report) = (Vec::new(), Vec::new(), Json::Null);
    let count = generations.len();
    for (index, generation) in generations.into_iter().enumerate() {
        let served = generation.served().clone();
        let collected = generation.collect().await?;
        let mut choice = reply.choice(service, index, &collected);
        let ended = collected.ended.finished;
        let own = routing_report(&served, Some(&ended), reply.trace, &collected.trace);
        // Each prompt is routed by itself.
        if count > 1 {
            choice["polyskill"] = own.clone();
        }
        if index == 0 {
            report = own;
        }
        choices.push(choice);
        finished.push(ended);
    }
    let mut body = reply.head(&json!(choices));
    body["usage"] = usage::of(finished.iter().enumerate(), reply.per_prompt);
    body["polyskill"] = report;
    Ok(JsonReply(body).into_response())
}

fn stream(
    service: Arc<Service>,
    reply: Reply,
    generations: Vec<Generation>,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let count = generations.len();
    let (mut finished, mut completions) = (Vec::new(), vec![0; count]);
    let chunk = |reply: &Reply, choice: Json, index: usize, completion: usize| {
        let mut body = reply.head(&json!([choice]));
        match reply.usage {
            StreamUsage::None => {}
            StreamUsage::AtEnd => body["usage"] = Json::Null,
            StreamUsage::Continuous => {
                body["usage"] = usage::so_far(reply.prompt(index).tokens.len(), completion);
            }
        }
        body
    };
    let body = deltas(generations).flat_map(move |(index, delta, tokens, served)| {
        let mut events = Vec::new();
        let is_first = completions[index] == 0;
        completions[index] += delta.tokens.len();
        let shows_tokens = (reply.logprobs.is_some() || reply.with_ids) && !delta.tokens.is_empty();
        if !delta.text.is_empty() || shows_tokens {
            let logprobs = reply.logprobs.map(|top| {
                let answer = Listed::answer(&delta.tokens, 0);
                logprobs::of_completion(reply.names(&service), answer, top)
            });
            let mut choice = json!({"index": index, "text": delta.text, "logprobs": logprobs,
                                    "finish_reason": null});
            if reply.with_ids {
                choice["token_ids"] = ids(&delta.tokens);
                if is_first {
                    choice["prompt_token_ids"] = json!(reply.prompt(index).tokens);
                }
            }
            events.push(event(&chunk(&reply, choice, index, completions[index])));
        }
        if let Some(ended) = delta.ended {
            let choice = json!({"index": index, "text": "", "logprobs": null,
                                "finish_reason": ended.reason, "stop_reason": ended.stop_reason});
            let mut body = chunk(&reply, choice, index, completions[index]);
            body["polyskill"] =
                routing_report(&served, Some(&ended.finished), reply.trace, &tokens);
            events.push(event(&body));
            finished.push((index, ended.finished));
            if finished.len() == count && reply.usage != StreamUsage::None {
                let mut body = reply.head(&json!([]));
                let finished = finished.iter().map(|(index, finished)| (*index, finished));
                body["usage"] = usage::of(finished, reply.per_prompt);
                events.push(event(&body));
            }
        }
        futures::stream::iter(events)
    });
    body.chain(futures::stream::iter([Ok(Event::default().data("[DONE]"))]))
}
