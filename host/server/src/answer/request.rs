//! A request as meant: every field is checked before anything starts.

use polyskill_engine::{SamplingParams, Selection, TraceLevel};
use polyskill_front::Tenant;
use polyskill_route::RouteSpec;
use polyskill_tokenizer::{Special, Stops};

use super::route::Route;
use crate::experiments::{Choice, UnitIds};
use crate::traces::Trace;

/// A request for one or several choices of answers, without its prompts. It is the same for all
/// prompts of the request.
#[derive(Clone, Debug)]
pub(crate) struct AnswerRequest {
    /// The reply's id, under which feedback and traces know the request.
    pub(crate) id: String,
    /// The model name, which the reply repeats.
    pub(crate) model: String,
    /// The route by the request's names.
    pub(crate) route: Route,
    /// The request's say in which experiment takes it.
    pub(crate) experiment: Choice,
    /// A hash of the request's unit, for routers that split traffic.
    pub(crate) bucket: u64,
    /// The sender, whose share of the engine this takes.
    pub(crate) tenant: Tenant,
    /// The names by which experiments know the sender.
    pub(crate) units: UnitIds,
    /// A text whose log-probability as an answer experiments may measure.
    pub(crate) reference: Option<String>,
    /// Arrival, in microseconds since 1970.
    pub(crate) at_us: u64,
    /// The caller's W3C `traceparent`, as sent.
    pub(crate) traceparent: Option<String>,
    /// The choices and how they are drawn.
    pub(crate) output: OutputParams,
}

/// The choices for each prompt.
#[derive(Clone, Debug)]
pub(crate) struct OutputParams {
    /// Choices per prompt, 1 or more.
    pub(crate) choices: usize,
    /// The parameters of the first choice; each further one has the next seed.
    pub(crate) sampling: SamplingParams,
    /// Stop tokens that the request itself names; they come first in `sampling.stop_tokens`.
    pub(crate) num_own_stops: usize,
    /// Stop strings, with the number of tokens before which they do not count.
    pub(crate) stops: Stops,
    /// Shows or hides special tokens in the text.
    pub(crate) special: Special,
    /// A salt that keeps this caller's cached beginnings apart from others'; empty shares them with
    /// all callers without one.
    pub(crate) cache_salt: String,
    /// Alternatives per token of the prompt that the reply reports by themselves.
    pub(crate) prompt_logprobs: Option<usize>,
    /// The part of the routing that the reply reports.
    pub(crate) trace: TraceLevel,
}

/// A prompt: its tokens, and the text that routers may read.
#[derive(Clone, Debug)]
pub(crate) struct PromptInput {
    /// The prompt's tokens, cut as the request asks for it.
    pub(crate) tokens: Vec<u32>,
    /// The text that routers may read: a chat's last user message, or a prompt that was sent as
    /// text and not cut.
    pub(crate) text: Option<String>,
}

impl AnswerRequest {
    /// A route as the engine takes it, with the prompt and the bucket that its router is told of.
    pub(crate) fn selection(&self, route: &RouteSpec, prompt: &PromptInput) -> Selection {
        Selection::from(route).told(prompt.tokens.len(), prompt.text.clone(), self.bucket)
    }

    /// A trace of the request, before anything has come of it: all other fields are empty.
    pub(crate) fn trace(&self) -> Trace {
        Trace {
            id: self.id.clone(),
            at_us: self.at_us,
            traceparent: self.traceparent.clone(),
            model: self.model.clone(),
            ..Trace::default()
        }
    }
}

impl OutputParams {
    /// The sampling parameters of a choice, counted from 0. The seed wraps around.
    pub(crate) fn sampling_of(&self, choice: usize) -> SamplingParams {
        let seed = self.sampling.seed.wrapping_add(choice as u64);
        SamplingParams { seed, ..self.sampling.clone() }
    }
}
