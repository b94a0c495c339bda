//! The head that all parts of a reply share, and streams of completions.

use std::convert::Infallible;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::response::sse::Event;
use futures::stream::{Stream, select_all, unfold};
use polyskill_engine::{Finished, TraceLevel};
use serde_json::{Value as Json, json};

use super::error::ApiError;
use super::logprobs::TokenNames;
use super::params::{CommonParams, StreamUsage};
use super::usage;
use crate::answer::completion::{Completion, Delta, Ended};
use crate::answer::report::routing_report;
use crate::answer::request::AnswerRequest;
use crate::service::Service;
use crate::traces::TracedToken;

/// Time since 1970, by this machine's clock; zero where that is set before.
pub(super) fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A new id of a reply: the prefix, and 128 random bits in hexadecimal. It decides whether traces
/// and shadows take the request.
pub(super) fn new_id(prefix: &str) -> String {
    use std::hash::BuildHasher;
    let random = std::hash::RandomState::new();
    format!("{prefix}-{:016x}{:016x}", random.hash_one(1), random.hash_one(2))
}

/// The fields of a request that shape its reply, the same in all of its chunks.
#[derive(Debug)]
pub(super) struct ReplyHead {
    /// The reply's id.
    pub(super) id: String,
    /// Seconds since 1970.
    created: u64,
    /// The model name, as the request had it.
    model: String,
    /// The routing that is reported.
    pub(super) trace: TraceLevel,
    /// The usage that a stream reports.
    pub(super) usage: StreamUsage,
    /// Choices per prompt.
    pub(super) per_prompt: usize,
    /// Alternatives per token of the prompt; `None` reports no `prompt_logprobs`.
    pub(super) prompt_logprobs: Option<usize>,
    /// `return_tokens_as_token_ids`: tokens are named by their ids.
    names_as_ids: bool,
    /// `return_token_ids`: the reply has the ids of its tokens.
    pub(super) with_ids: bool,
}

impl ReplyHead {
    /// The head of the reply to a request. Options of a stream are checked here, before anything is
    /// submitted.
    pub(super) fn new(common: &CommonParams, request: &AnswerRequest) -> Result<Self, ApiError> {
        Ok(Self {
            id: request.id.clone(),
            created: since_epoch().as_secs(),
            model: request.model.clone(),
            trace: request.output.trace,
            usage: common.stream_usage()?,
            per_prompt: request.output.choices,
            prompt_logprobs: request.output.prompt_logprobs,
            names_as_ids: common.return_tokens_as_token_ids.unwrap_or(false),
            with_ids: common.return_token_ids.unwrap_or(false),
        })
    }

    /// A part of the reply with these choices.
    pub(super) fn body(&self, object: &str, choices: &Json) -> Json {
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model,
               "choices": choices})
    }

    /// Adds the usage of a chunk whose prompt has `prompt` tokens and whose choice has `completion`
    /// so far.
    pub(super) fn add_usage(&self, chunk: &mut Json, prompt: usize, completion: usize) {
        match self.usage {
            StreamUsage::None => {}
            StreamUsage::AtEnd => chunk["usage"] = Json::Null,
            StreamUsage::Continuous => chunk["usage"] = usage::so_far(prompt, completion),
        }
    }

    /// The names of tokens in lists of log-probabilities.
    pub(super) fn names<'a>(&self, service: &'a Service) -> TokenNames<'a> {
        TokenNames { tokenizer: &service.tokenizer, as_ids: self.names_as_ids }
    }
}

/// A piece of one of several completions.
pub(super) struct Numbered {
    /// The choice that the piece belongs to.
    pub(super) index: usize,
    /// The piece itself.
    pub(super) delta: Delta,
    /// Set with the end: the report of what answered.
    pub(super) report: Option<Json>,
}

/// Completions as numbered deltas, in the order in which they come. Pieces of one choice keep their
/// order; dropping the stream cancels all.
pub(super) fn deltas(
    completions: Vec<Completion>,
    trace: TraceLevel,
) -> impl Stream<Item = Numbered> {
    select_all(completions.into_iter().enumerate().map(move |(index, completion)| {
        Box::pin(unfold(completion, move |mut completion| async move {
            let delta = completion.next().await?;
            let report = match &delta.ended {
                Some(Ended { finished, .. }) => {
                    let tokens: Vec<TracedToken> = completion.take_trace();
                    Some(routing_report(completion.answer(), finished, trace, &tokens))
                }
                None => None,
            };
            Some((Numbered { index, delta, report }, completion))
        }))
    }))
}

/// A server-sent event with one JSON body.
pub(super) fn event(body: &Json) -> Result<Event, Infallible> {
    Ok(Event::default().data(body.to_string()))
}

/// The last event of every stream, `[DONE]`.
pub(super) fn done() -> impl Stream<Item = Result<Event, Infallible>> {
    futures::stream::iter([Ok(Event::default().data("[DONE]"))])
}

/// Completions that have ended in a stream, until all have.
#[derive(Debug)]
pub(super) struct StreamedEnds {
    /// Choices in the stream.
    count: usize,
    /// Ends so far, each with its choice, in the order in which they came.
    finished: Vec<(usize, Finished)>,
}

impl StreamedEnds {
    /// None of `count` has ended.
    pub(super) fn of(count: usize) -> Self {
        Self { count, finished: Vec::new() }
    }

    /// The usage of the whole reply, with the end of the last completion where the stream reports
    /// it; `None` before.
    pub(super) fn add(
        &mut self,
        head: &ReplyHead,
        index: usize,
        finished: Finished,
    ) -> Option<Json> {
        self.finished.push((index, finished));
        let is_last = self.finished.len() == self.count;
        (is_last && head.usage != StreamUsage::None).then(|| {
            let finished = self.finished.iter().map(|(index, finished)| (*index, finished));
            usage::of(finished, head.per_prompt)
        })
    }
}
