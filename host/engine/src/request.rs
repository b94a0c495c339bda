//! Requests to the engine, and the events that come back.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::compose::composition::Composition;
use crate::hooks::shadow::{Agreement, Shadow};
use crate::step::trace::{LayerExperts, SitePicks, TraceLevel};

/// Number of a request, unique in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A generation request over token ids.
pub struct Request {
    /// The prompt; not empty, and every token is in the vocabulary.
    pub prompt: Vec<u32>,
    /// The choice of tokens, and the request's end.
    pub sampling: SamplingParams,
    /// The modules that act and the router that decides; they stay in memory while it is held.
    pub composition: Arc<Composition>,
    /// The part of the routing that is recorded.
    pub trace: TraceLevel,
    /// A second composition whose decisions are compared with those of `composition` and never
    /// applied.
    pub shadow: Option<Arc<Shadow>>,
    /// Keeps cached beginnings of one tenant apart from those of others; empty shares them.
    pub cache_salt: String,
    /// The sender, among whom the engine's time is shared; empty is a tenant too.
    pub tenant: Arc<str>,
    /// The tenant's share against others that wait, above 0.
    pub weight: f64,
}

impl Request {
    /// A request that is not traced and shares cached beginnings with everybody.
    pub fn new(prompt: Vec<u32>, sampling: SamplingParams, composition: Arc<Composition>) -> Self {
        Self {
            prompt,
            sampling,
            composition,
            trace: TraceLevel::None,
            shadow: None,
            cache_salt: String::new(),
            tenant: Arc::from(""),
            weight: 1.0,
        }
    }
}

/// Receives a request's events on the engine thread, between two steps of all requests; must not
/// block.
pub(crate) type EventSink = Box<dyn FnMut(Event) -> Reaction + Send>;

/// The answer of a sink to an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// The request goes on.
    Continue,
    /// The text is complete: the request ends here with [`FinishReason::Stop`], and no further
    /// token is made.
    Stop,
    /// Nobody listens any more: the request ends with [`FinishReason::Cancelled`].
    Cancel,
}

impl From<bool> for Reaction {
    /// The reaction of a sink that only passes events on, by whether that succeeded.
    fn from(delivered: bool) -> Self {
        if delivered { Self::Continue } else { Self::Cancel }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("prompt_tokens", &self.prompt.len())
            .field("sampling", &self.sampling)
            .finish_non_exhaustive()
    }
}

/// The choice of tokens, and the end of a request.
///
/// The order is: allowed tokens, bias, repetition penalty, presence and frequency penalties, bad
/// words, stop tokens that come too early; then temperature, top-k, min-p and top-p. The default
/// draws from the model's distribution as it is.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct SamplingParams {
    /// Tokens to generate at most; 0 only scores the prompt.
    pub max_tokens: usize,
    /// Divides the logits; 0 or less takes the most likely token.
    pub temperature: f32,
    /// Mass of the most likely tokens that may be drawn, of what top-k and min-p leave; 1 cuts
    /// nothing.
    pub top_p: f32,
    /// Number of most likely tokens that may be drawn; 0 cuts nothing.
    pub top_k: usize,
    /// Least probability relative to the most likely token, 0 to 1; 0 cuts nothing.
    pub min_p: f32,
    /// Divides the logits of tokens seen in prompt or output (multiplies negative ones), once per
    /// token; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Subtracted from logits of tokens seen in the output.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit once per occurrence in the output.
    pub frequency_penalty: f32,
    /// Added to the logits of tokens; a token beyond the vocabulary is passed over.
    pub logit_bias: Vec<(u32, f32)>,
    /// Tokens that may be chosen; empty allows all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_tokens: Vec<u32>,
    /// Token sequences that the output never holds: the last token of one is not chosen after the
    /// others. The prompt does not count as a beginning.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bad_words: Vec<Vec<u32>>,
    /// Tokens that end the request. The one that does so is still reported.
    pub stop_tokens: Vec<u32>,
    /// Tokens that must come before a stop token: until then its logit is −∞.
    pub min_tokens: usize,
    /// Start of the random stream: equal seeds and equal logits give equal tokens.
    pub seed: u64,
    /// Alternatives reported per generated token; `Some(0)` reports the token alone, `None` no
    /// log-probabilities.
    pub logprobs: Option<usize>,
    /// Alternatives reported per prompt token; `None` does not score the prompt. A prompt that is
    /// scored is computed as a whole, without cached beginnings.
    pub prompt_logprobs: Option<usize>,
    /// Tokens of the prompt that are the request's, where the rest is an answer to be scored: edits
    /// that begin at the last token of the prompt begin at the last of these. `None` for all.
    pub answer_from: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            max_tokens: 16,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            allowed_tokens: Vec::new(),
            bad_words: Vec::new(),
            stop_tokens: Vec::new(),
            min_tokens: 0,
            seed: 0,
            logprobs: None,
            prompt_logprobs: None,
            answer_from: None,
        }
    }
}

/// An event of a request. Every request ends in exactly one [`Event::Finished`].
#[derive(Clone, Debug)]
pub enum Event {
    /// Log-probabilities of the prompt's tokens, before the first token. Only where they were
    /// requested.
    Prompt(Vec<PromptLogprob>),
    /// A generated token, in order.
    Token(TokenEvent),
    /// The end. The request's composition has been let go before.
    Finished(Finished),
}

/// A generated token.
#[derive(Clone, Debug)]
pub struct TokenEvent {
    /// Its id.
    pub token: u32,
    /// Its log-probability and alternatives, where they were requested.
    pub logprob: Option<Logprob>,
    /// The picks of the row that produced it, with [`TraceLevel::Full`].
    pub routing: Vec<SitePicks>,
    /// The experts that sparse layers of the base ran for that row, with [`TraceLevel::Full`].
    pub experts: Vec<LayerExperts>,
}

/// A log-probability under the model, before penalties and temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprob {
    /// Of the token itself.
    pub value: f32,
    /// The token's place among all, from 1; tokens that are as likely count as before it.
    pub rank: usize,
    /// The most likely tokens with their log-probabilities, best first.
    pub top: Vec<(u32, f32)>,
}

/// A prompt token's log-probability given the tokens before it.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptLogprob {
    /// The token.
    pub token: u32,
    /// Its log-probability; `None` for the first token, which nothing comes before.
    pub logprob: Option<Logprob>,
}

/// The end of a request.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The reason for the end.
    pub reason: FinishReason,
    /// Tokens of the prompt; positions that modules put before it do not count.
    pub prompt_tokens: usize,
    /// Tokens of the prompt whose keys and values were known already.
    pub cached_tokens: usize,
    /// Generated tokens, a stop token included.
    pub completion_tokens: usize,
    /// Mean weight of each module over generated tokens and sites, by index into the composition's
    /// modules. Empty without a trace or shadow.
    pub module_share: Vec<(u32, f64)>,
    /// Agreement of the request's shadow over generated tokens and sites; `None` without one.
    pub agreement: Option<Agreement>,
    /// Rows and sites where the router's answer was not usable and the base ran alone.
    pub fallback_rows: u64,
    /// From submission to the first token; `None` where none was generated.
    pub time_to_first_token: Option<Duration>,
    /// From submission to admission.
    pub queue_time: Duration,
}

/// A reason for which a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token, or the sink's [`Reaction::Stop`].
    Stop,
    /// The token limit or the context's end.
    Length,
    /// Cancelled, or nobody listens.
    Cancelled,
    /// The engine failed in a step, or the router did and its policy is to fail the request.
    Error(String),
}
