//! `POST /v1/completions`.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json as JsonReply;
use axum::extract::State;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{Stream, StreamExt};
use polyskill_route::RouteSpec;
use polyskill_tokenizer::Special;
use serde::{Deserialize, Deserializer};
use serde_json::{Value as Json, json};

use super::body::{Body, one_of, texts};
use super::error::ApiError;
use super::front::Sender;
use super::logprobs::{self, Listed};
use super::params::CommonParams;
use super::reply::{ReplyHead, StreamedEnds, deltas, done, event, new_id};
use super::text_work::{check_length, text_work};
use super::{fields, usage};
use crate::answer::Answer;
use crate::answer::completion::{Collected, Completion, TextToken};
use crate::answer::report::routing_report;
use crate::answer::request::{AnswerRequest, PromptInput};
use crate::service::Service;

/// Prompts in one request, 1 to this number.
const MAX_PROMPTS: usize = 64;

/// The fields of a completion that [`CommonParams`] lacks.
#[derive(Debug, Deserialize)]
struct CompletionRequest {
    /// One prompt or several.
    prompt: Prompt,
    /// Most generated tokens per choice; 16 by default, as OpenAI has it. 0 needs `echo`.
    max_tokens: Option<usize>,
    /// Alternatives per token, 0 to 20; `None` reports no log-probabilities.
    logprobs: Option<usize>,
    /// Puts the prompt before the answer.
    echo: Option<bool>,
}

/// One prompt or several, all as texts or all as tokens.
#[derive(Debug)]
enum Prompt {
    /// Texts, encoded with special tokens around them unless the request says otherwise.
    Texts(Vec<String>),
    /// Token ids, taken as they are: no special tokens are added.
    TokenLists(Vec<Vec<u32>>),
}

impl<'de> Deserialize<'de> for Prompt {
    /// Reads the four forms that OpenAI has; the first item of a list decides among them. An empty
    /// list is one empty prompt of tokens.
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

/// The ids of a list that holds nothing but whole numbers of 32 bits.
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
            if !common.truncates() {
                check_length(service, &text, "prompt")?;
            }
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
    /// True where prompts stand before their answers.
    fn echoes(&self) -> bool {
        self.echo.unwrap_or(false)
    }

    /// The bound on generated tokens, per choice.
    fn most_tokens(&self) -> usize {
        self.max_tokens.unwrap_or(16)
    }

    /// The request as meant, with the checks that need no prompt. `echo` is refused in streams.
    fn meant(
        &self,
        service: &Service,
        common: &CommonParams,
        sender: &Sender,
        asked: RouteSpec,
    ) -> Result<AnswerRequest, ApiError> {
        if self.most_tokens() == 0 && !self.echoes() {
            let message = "`max_tokens` is 0, which needs `echo`";
            return Err(ApiError::bad_request(message, Some("max_tokens")));
        }
        if common.streams() && self.echoes() {
            let message = "`echo` with `stream` is not supported";
            return Err(ApiError::bad_request(message, Some("echo")));
        }
        if let Some(top) = self.logprobs.filter(|&top| top > 20) {
            let message = format!("`logprobs` is {top}, at most 20");
            return Err(ApiError::bad_request(message, Some("logprobs")));
        }
        let mut request =
            common.meant(service, sender, asked, new_id("cmpl"), self.most_tokens())?;
        // Echoed log-probabilities and those that are wanted by themselves come of one pass.
        let echoed = self.logprobs.filter(|_| self.echoes());
        request.output.sampling.logprobs = self.logprobs;
        request.output.sampling.prompt_logprobs = echoed.max(request.output.prompt_logprobs);
        Ok(request)
    }
}

/// `POST /v1/completions`: parsed, encoded, and answered at once or piece by piece.
pub(super) async fn completions(
    State(service): State<Arc<Service>>,
    sender: Sender,
    body: Body,
) -> Result<Response, ApiError> {
    fields::check(&body, &[fields::COMMON, fields::COMPLETIONS, fields::OTHERS])?;
    let sent: CompletionRequest = body.fields()?;
    let common: CommonParams = body.fields()?;
    let request = sent.meant(&service, &common, &sender, body.fields()?)?;
    let head = ReplyHead::new(&common, &request)?;
    let (logprobs, echoes, most) = (sent.logprobs, sent.echoes(), sent.most_tokens());
    let prompt = sent.prompt;
    let (prompts, common) = text_work(&service, body.len(), false, move |service| {
        Ok((prompt.encode(service, &common, most)?, common))
    })
    .await?;
    if prompts.is_empty() || prompts.len() > MAX_PROMPTS {
        let message = format!("{} prompts, expected 1 to {MAX_PROMPTS}", prompts.len());
        return Err(ApiError::bad_request(message, Some("prompt")));
    }
    let mut completions = Vec::new();
    for prompt in &prompts {
        completions.extend(Answer::start(&service, &request, prompt).await?);
    }
    let reply = TextReply { head, logprobs, echoes, prompts };
    if common.streams() {
        return Ok(Sse::new(stream(service, reply, completions)).into_response());
    }
    whole(&service, &reply, completions).await
}

/// The head of the reply, and the parts that completions of texts add to it.
struct TextReply {
    /// The fields of all parts of the reply.
    head: ReplyHead,
    /// Alternatives per token; `None` reports no log-probabilities.
    logprobs: Option<usize>,
    /// `echo`: prompts stand before their answers.
    echoes: bool,
    /// The prompts in order; prompt `p` has the choices from `p × per_prompt` on.
    prompts: Vec<PromptInput>,
}

impl TextReply {
    /// The prompt that a choice answers.
    fn prompt(&self, choice: usize) -> &PromptInput {
        &self.prompts[choice / self.head.per_prompt]
    }

    /// A part of the reply with these choices, whole or a chunk.
    fn body(&self, choices: &Json) -> Json {
        self.head.body("text_completion", choices)
    }

    /// A chunk of the stream, with the usage of its choice up to here.
    fn chunk(&self, choice: &Json, index: usize, completion: usize) -> Json {
        let mut body = self.body(&json!([choice]));
        self.head.add_usage(&mut body, self.prompt(index).tokens.len(), completion);
        body
    }

    /// A prompt as it was sent; of one that was sent in tokens all of them are shown.
    fn echoed(&self, service: &Service, choice: usize) -> String {
        let prompt = self.prompt(choice);
        let decoded = || service.tokenizer.decode(&prompt.tokens, Special::Shown);
        prompt.text.clone().unwrap_or_else(decoded)
    }

    /// One choice of a whole reply: the echoed prompt and the answer in one text, and the
    /// log-probabilities of both in the same lists.
    fn choice(&self, service: &Service, index: usize, collected: &Collected) -> Json {
        let echoed = if self.echoes { self.echoed(service, index) } else { String::new() };
        let logprobs = self.logprobs.map(|top| {
            let offsets = match self.echoes {
                true => service.tokenizer.offsets(&echoed, &self.prompt(index).tokens),
                false => Vec::new(),
            };
            let prompt = Listed::prompt(&collected.prompt, &offsets);
            let answer = Listed::answer(&collected.tokens, echoed.chars().count());
            logprobs::of_completion(self.head.names(service), prompt.chain(answer), top)
        });
        let ended = &collected.ended;
        let mut choice = json!({"index": index, "text": echoed + &collected.text, "logprobs": logprobs,
                                "finish_reason": ended.reason, "stop_reason": ended.stop_reason});
        if let Some(top) = self.head.prompt_logprobs {
            choice["prompt_logprobs"] =
                logprobs::of_prompt(&service.tokenizer, &collected.prompt, top);
        }
        if self.head.with_ids {
            choice["prompt_token_ids"] = json!(self.prompt(index).tokens);
            choice["token_ids"] = ids(&collected.tokens);
        }
        choice
    }
}

/// The ids of tokens, as a JSON list.
fn ids(tokens: &[TextToken]) -> Json {
    tokens.iter().map(|token| token.token).collect()
}

/// A reply in one piece. All choices of all prompts run side by side, and are waited for in order.
/// Usage is over all of them.
async fn whole(
    service: &Service,
    reply: &TextReply,
    completions: Vec<Completion>,
) -> Result<Response, ApiError> {
    let (mut choices, mut finished, mut report) = (Vec::new(), Vec::new(), Json::Null);
    let count = completions.len();
    for (index, completion) in completions.into_iter().enumerate() {
        let answer = completion.answer().clone();
        let collected = completion.collect().await?;
        let mut choice = reply.choice(service, index, &collected);
        let ended = collected.ended.finished;
        let own = routing_report(&answer, &ended, reply.head.trace, &collected.trace);
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
    let mut body = reply.body(&json!(choices));
    body["usage"] = usage::of(finished.iter().enumerate(), reply.head.per_prompt);
    body["polyskill"] = report;
    Ok(JsonReply(body).into_response())
}

/// A reply in chunks: pieces of all choices as they come, then the usage where it is wanted, then
/// `[DONE]`. Dropping the stream cancels the requests.
fn stream(
    service: Arc<Service>,
    reply: TextReply,
    completions: Vec<Completion>,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let count = completions.len();
    let (mut ends, mut generated) = (StreamedEnds::of(count), vec![0; count]);
    let body = deltas(completions, reply.head.trace).flat_map(move |numbered| {
        let (index, delta) = (numbered.index, numbered.delta);
        let mut events = Vec::new();
        let is_first = generated[index] == 0;
        generated[index] += delta.tokens.len();
        let with_ids = reply.head.with_ids;
        let shows_tokens = (reply.logprobs.is_some() || with_ids) && !delta.tokens.is_empty();
        if !delta.text.is_empty() || shows_tokens {
            let logprobs = reply.logprobs.map(|top| {
                let answer = Listed::answer(&delta.tokens, 0);
                logprobs::of_completion(reply.head.names(&service), answer, top)
            });
            let mut choice = json!({"index": index, "text": delta.text, "logprobs": logprobs,
                                    "finish_reason": null});
            if with_ids {
                choice["token_ids"] = ids(&delta.tokens);
                if is_first {
                    choice["prompt_token_ids"] = json!(reply.prompt(index).tokens);
                }
            }
            events.push(event(&reply.chunk(&choice, index, generated[index])));
        }
        if let Some(ended) = delta.ended {
            let choice = json!({"index": index, "text": "", "logprobs": null,
                                "finish_reason": ended.reason, "stop_reason": ended.stop_reason});
            let mut body = reply.chunk(&choice, index, generated[index]);
            body["polyskill"] = numbered.report.unwrap_or_default();
            events.push(event(&body));
            if let Some(usage) = ends.add(&reply.head, index, ended.finished) {
                let mut body = reply.body(&json!([]));
                body["usage"] = usage;
                events.push(event(&body));
            }
        }
        futures::stream::iter(events)
    });
    body.chain(done())
}
