//! What goes into the engine and what comes out.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::compose::composition::Composition;
use crate::hooks::shadow::{Agreement, Shadow};
use crate::step::trace::{LayerExperts, SitePicks, TraceLevel};

/// Number of a request, unique in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A generation request over token ids.
pub struct Request {
    /// The prompt; not empty.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Which modules act and who decides; holding it is the lease.
    pub composition: Arc<Composition>,
    /// What is recorded of the routing.
    pub trace: TraceLevel,
    /// What is looked at beside it and never executed.
    pub shadow: Option<Arc<Shadow>>,
    /// Keeps cached beginnings of one tenant apart from those of others; empty shares them.
    pub cache_salt: String,
    /// Receives the events, and says after each whether the request goes on.
    pub sink: EventSink,
}

/// Receives a request's events on the engine thread; must not block.
pub type EventSink = Box<dyn FnMut(Event) -> Reaction + Send>;

/// The answer of a sink to an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// The request goes on.
    Continue,
    /// The text is complete: the request ends here with [`FinishReason::Stop`], and no further token is made.
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

/// How tokens are chosen and when a request ends.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Tokens to generate at most; 0 only scores the prompt.
    pub max_tokens: usize,
    /// 0 is greedy.
    pub temperature: f32,
    /// Mass of the most likely tokens that are kept.
    pub top_p: f32,
    /// Number of most likely tokens that are kept; 0 keeps all.
    pub top_k: usize,
    /// Least probability relative to the most likely token.
    pub min_p: f32,
    /// Divides the logits of tokens seen in prompt or output (multiplies negative ones).
    pub repetition_penalty: f32,
    /// Subtracted from logits of tokens seen in the output.
    pub presence_penalty: f32,
    /// Subtracted per occurrence in the output.
    pub frequency_penalty: f32,
    /// Added to the logits of tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Tokens that may be chosen; empty allows all.
    pub allowed_tokens: Vec<u32>,
    /// Token sequences that the output never holds: the last token of one is not chosen after the others.
    pub bad_words: Vec<Vec<u32>>,
    /// Tokens that end the request.
    pub stop_tokens: Vec<u32>,
    /// Stop tokens count only after this many tokens.
    pub min_tokens: usize,
    /// Start of the random stream.
    pub seed: u64,
    /// Alternatives reported per generated token; `None` reports no log-probabilities.
    pub logprobs: Option<usize>,
    /// Alternatives reported per prompt token.
    pub prompt_logprobs: Option<usize>,
    /// How many of the prompt's tokens are asked, where the rest is an answer to be scored: edits that begin at the
    /// last token of the prompt begin at the last of these.
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

/// What happens to a request. Every request ends in exactly one [`Event::Finished`].
#[derive(Clone, Debug)]
pub enum Event {
    /// Log-probabilities of the prompt's tokens, before the first token.
    Prompt(Vec<PromptLogprob>),
    /// A generated token.
    Token(TokenEvent),
    /// The end.
    Finished(Finished),
}

/// A generated token.
#[derive(Clone, Debug)]
pub struct TokenEvent {
    /// Its id.
    pub token: u32,
    /// Its log-probability and alternatives, where asked for.
    pub logprob: Option<Logprob>,
    /// The picks of the row that produced it, with [`TraceLevel::Full`].
    pub routing: Vec<SitePicks>,
    /// What sparse layers of the base did with that row, with [`TraceLevel::Full`].
    pub experts: Vec<LayerExperts>,
}

/// A log-probability under the model, before penalties and temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprob {
    /// Of the token itself.
    pub value: f32,
    /// The token's place among all, from 1; tokens that are as likely count as before it.
    pub rank: usize,
    /// The most likely tokens, best first.
    pub top: Vec<(u32, f32)>,
}

/// A prompt token's log-probability given the tokens before it.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptLogprob {
    /// The token.
    pub token: u32,
    /// `None` for the first token.
    pub logprob: Option<Logprob>,
}

/// The end of a request.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Why it ended.
    pub reason: FinishReason,
    /// Tokens of the prompt; positions that modules put before it do not count.
    pub prompt_tokens: usize,
    /// Tokens of the prompt whose keys and values were known already.
    pub cached_tokens: usize,
    /// Generated tokens.
    pub completion_tokens: usize,
    /// Share of each module over generated tokens and sites, by index into the composition's modules.
    pub module_share: Vec<(u32, f64)>,
    /// How far the request's shadow decided alike over generated tokens and sites.
    pub agreement: Option<Agreement>,
    /// Rows and sites where the router's answer was not usable and the base ran alone.
    pub fallback_rows: u64,
    /// From submission to the first token.
    pub time_to_first_token: Option<Duration>,
    /// From submission to admission.
    pub queue_time: Duration,
}

/// Why a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token, or the sink's [`Reaction::Stop`].
    Stop,
    /// The token limit or the context's end.
    Length,
    /// Cancelled, or nobody listens.
    Cancelled,
    /// The engine failed; the detail is in the log.
    Error(String),
}
