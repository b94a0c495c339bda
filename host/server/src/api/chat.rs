//! `POST /v1/chat/completions`.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json as JsonReply;
use axum::extract::State;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{Stream, StreamExt};
use polyskill_route::RouteSpec;
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::body::Body;
use super::error::ApiError;
use super::front::Sender;
use super::logprobs;
use super::messages::{ChatFields, ChatInput, Rendered};
use super::params::CommonParams;
use super::reply::{ReplyHead, StreamedEnds, deltas, done, event, new_id};
use super::text_work::{check_length, text_work};
use super::{fields, usage};
use crate::answer::Answer;
use crate::answer::completion::{Completion, TextToken};
use crate::answer::report::routing_report;
use crate::answer::request::{AnswerRequest, PromptInput};
use crate::experiments::beginning;
use crate::service::Service;

/// Tokens of an answer whose request gives no bound, where the context has room for them.
const DEFAULT_MAX_TOKENS: usize = 1_024;

/// The fields of a chat that [`CommonParams`] and [`ChatFields`] lack.
#[derive(Debug, Deserialize)]
struct ChatRequest {
    /// The messages, which are read as [`ChatFields::read`] has it.
    #[expect(dead_code, reason = "required here, and read with the other fields of a chat")]
    messages: Vec<Json>,
    /// The older name of `max_completion_tokens`, which goes before it.
    max_tokens: Option<usize>,
    /// Most generated tokens, 1 or more.
    max_completion_tokens: Option<usize>,
    /// Reports the log-probability of each generated token.
    logprobs: Option<bool>,
    /// Alternatives per token, 0 to 20; needs `logprobs`.
    top_logprobs: Option<usize>,
    /// Reports the rendered chat in `prompt_text`.
    return_prompt_text: Option<bool>,
}

impl ChatRequest {
    /// Alternatives per token; `None` where no log-probabilities are wanted.
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

    /// The bound on generated tokens that the request gives, if any.
    fn most_tokens(&self) -> Option<usize> {
        self.max_completion_tokens.or(self.max_tokens)
    }

    /// The request as meant; without a bound of its own, one of the whole context until the prompt
    /// is known.
    fn meant(
        &self,
        service: &Service,
        common: &CommonParams,
        sender: &Sender,
        asked: RouteSpec,
    ) -> Result<AnswerRequest, ApiError> {
        if self.most_tokens() == Some(0) {
            let message = "`max_tokens` is 0, expected at least 1";
            return Err(ApiError::bad_request(message, Some("max_tokens")));
        }
        let most = self.most_tokens().unwrap_or_else(|| service.engine.handle().max_tokens());
        let mut request = common.meant(service, sender, asked, new_id("chatcmpl"), most)?;
        request.output.sampling.logprobs = self.alternatives()?;
        request.output.sampling.prompt_logprobs = request.output.prompt_logprobs;
        Ok(request)
    }

    /// The rendered chat as a prompt, cut where the request asks for it. An answer without a bound
    /// of its own gets one that fits behind it, at most [`DEFAULT_MAX_TOKENS`].
    fn prompt(
        &self,
        service: &Service,
        common: &CommonParams,
        chat: &ChatInput,
        rendered: &Rendered,
        request: &mut AnswerRequest,
    ) -> Result<PromptInput, ApiError> {
        let limit = service.engine.handle().max_tokens();
        let mut tokens = rendered.tokens.clone();
        common.truncate(&mut tokens, limit.saturating_sub(self.most_tokens().unwrap_or(1)))?;
        if self.most_tokens().is_none() {
            let room = limit.saturating_sub(tokens.len()).clamp(1, DEFAULT_MAX_TOKENS);
            common.check_min_tokens(room)?;
            request.output.sampling.max_tokens = room;
        }
        Ok(PromptInput { tokens, text: chat.last_user_text() })
    }
}

/// `POST /v1/chat/completions`: parsed, rendered, and answered at once or piece by piece.
pub(super) async fn chat(
    State(service): State<Arc<Service>>,
    sender: Sender,
    body: Body,
) -> Result<Response, ApiError> {
    fields::check(&body, &[fields::COMMON, fields::CHAT, fields::OTHERS])?;
    let sent: ChatRequest = body.fields()?;
    let common: CommonParams = body.fields()?;
    let fields: ChatFields = body.fields()?;
    let mut request = sent.meant(&service, &common, &sender, body.fields()?)?;
    let head = ReplyHead::new(&common, &request)?;
    // A template may take its time.
    let (bytes, cuts) = (body.len(), common.truncates());
    let (chat, rendered) = text_work(&service, bytes, true, move |service| {
        let chat = fields.read(&service.tokenizer)?;
        let text = chat.text(&service.tokenizer)?;
        if !cuts {
            check_length(service, &text, "messages")?;
        }
        let rendered = chat.tokenize(text, &service.tokenizer)?;
        Ok((chat, rendered))
    })
    .await?;
    request.units.beginning = beginning(&chat.messages);
    let prompt = sent.prompt(&service, &common, &chat, &rendered, &mut request)?;
    let completions = Answer::start(&service, &request, &prompt).await?;
    let reply = ChatReply {
        head,
        logprobs: sent.logprobs.unwrap_or(false),
        prompt_text: sent.return_prompt_text.unwrap_or(false).then_some(rendered.text),
        prompt: prompt.tokens,
    };
    if common.streams() {
        return Ok(Sse::new(stream(service, reply, completions)).into_response());
    }
    whole(&service, &reply, completions).await
}

/// The head of the reply, and the parts that a chat adds to it.
struct ChatReply {
    /// The fields of all parts of the reply.
    head: ReplyHead,
    /// Reports the log-probabilities of generated tokens.
    logprobs: bool,
    /// The rendered chat, uncut, where the reply has it.
    prompt_text: Option<String>,
    /// The prompt's tokens as they were submitted.
    prompt: Vec<u32>,
}

impl ChatReply {
    /// The `logprobs` of a choice or a chunk; `None` where none are wanted, which is null.
    fn logprobs(&self, service: &Service, tokens: &[TextToken]) -> Option<Json> {
        self.logprobs.then(|| logprobs::of_chat(self.head.names(service), tokens))
    }

    /// Adds the prompt's ids and its text, as far as the request wants them.
    fn add_prompt(&self, body: &mut Json) {
        if self.head.with_ids {
            body["prompt_token_ids"] = json!(self.prompt);
        }
        if let Some(text) = &self.prompt_text {
            body["prompt_text"] = json!(text);
        }
    }

    /// A chunk of the stream, with the usage up to here.
    fn chunk(&self, choices: &Json, completion: usize) -> Json {
        let mut body = self.head.body("chat.completion.chunk", choices);
        self.head.add_usage(&mut body, self.prompt.len(), completion);
        body
    }

    /// The first chunk of a choice: the role, an empty content, and the prompt. It is sent before
    /// any token is there.
    fn first_chunk(&self, index: usize) -> Json {
        let delta = json!({"role": "assistant", "content": ""});
        let choice =
            json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null});
        let mut body = self.chunk(&json!([choice]), 0);
        self.add_prompt(&mut body);
        body
    }
}

/// A reply in one piece. Choices run side by side, and are waited for in order.
///
/// The report of the first choice stands at the top; with several choices each has its own too.
/// Only the first choice reports the prompt's log-probabilities.
async fn whole(
    service: &Service,
    reply: &ChatReply,
    completions: Vec<Completion>,
) -> Result<Response, ApiError> {
    let (mut choices, mut finished, mut report) = (Vec::new(), Vec::new(), Json::Null);
    let mut prompt_logprobs = None;
    let head = &reply.head;
    let count = completions.len();
    for (index, completion) in completions.into_iter().enumerate() {
        let answer = completion.answer().clone();
        let collected = completion.collect().await?;
        let ended = collected.ended;
        let mut choice = json!({
            "index": index,
            "message": {"role": "assistant", "content": collected.text, "refusal": null},
            "logprobs": reply.logprobs(service, &collected.tokens),
            "finish_reason": ended.reason,
            "stop_reason": ended.stop_reason,
        });
        if head.with_ids {
            choice["token_ids"] = collected.tokens.iter().map(|token| token.token).collect();
        }
        let own = routing_report(&answer, &ended.finished, head.trace, &collected.trace);
        if count > 1 {
            choice["polyskill"] = own.clone();
        }
        if index == 0 {
            report = own;
            prompt_logprobs = head
                .prompt_logprobs
                .map(|top| logprobs::of_prompt(&service.tokenizer, &collected.prompt, top));
        }
        choices.push(choice);
        finished.push(ended.finished);
    }
    let mut body = head.body("chat.completion", &json!(choices));
    body["usage"] = usage::of(finished.iter().enumerate(), head.per_prompt);
    body["polyskill"] = report;
    if let Some(prompt) = prompt_logprobs {
        body["prompt_logprobs"] = prompt;
    }
    reply.add_prompt(&mut body);
    Ok(JsonReply(body).into_response())
}

/// A reply in chunks: the roles of all choices, then their pieces as they come, then the usage
/// where it is wanted, then `[DONE]`.
///
/// Dropping the stream, as when the client goes away, cancels the requests. A failure of the engine
/// ends a choice with the `finish_reason` `error`.
fn stream(
    service: Arc<Service>,
    reply: ChatReply,
    completions: Vec<Completion>,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let count = completions.len();
    let roles: Vec<_> = (0..count).map(|index| event(&reply.first_chunk(index))).collect();
    let (mut ends, mut generated) = (StreamedEnds::of(count), vec![0; count]);
    let body = deltas(completions, reply.head.trace).flat_map(move |numbered| {
        let (index, delta) = (numbered.index, numbered.delta);
        let mut events = Vec::new();
        generated[index] += delta.tokens.len();
        let with_ids = reply.head.with_ids;
        let shows_tokens = (reply.logprobs || with_ids) && !delta.tokens.is_empty();
        if !delta.text.is_empty() || shows_tokens {
            let logprobs = reply.logprobs(&service, &delta.tokens);
            let mut choice = json!({"index": index, "delta": {"content": delta.text}, "logprobs": logprobs,
                                    "finish_reason": null});
            if with_ids {
                choice["token_ids"] = delta.tokens.iter().map(|token| token.token).collect();
            }
            events.push(event(&reply.chunk(&json!([choice]), generated[index])));
        }
        if let Some(ended) = delta.ended {
            let choice = json!({"index": index, "delta": {}, "logprobs": null,
                                "finish_reason": ended.reason, "stop_reason": ended.stop_reason});
            let mut body = reply.chunk(&json!([choice]), generated[index]);
            body["polyskill"] = numbered.report.unwrap_or_default();
            events.push(event(&body));
            if let Some(usage) = ends.add(&reply.head, index, ended.finished) {
                let mut body = reply.chunk(&json!([]), 0);
                body["usage"] = usage;
                events.push(event(&body));
            }
        }
        futures::stream::iter(events)
    });
    futures::stream::iter(roles).chain(body).chain(done())
}
