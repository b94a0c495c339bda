//! One completion: submitted to the engine, and its tokens turned into text.
//!
//! Text is made where a token is made, on the engine's thread, so that a stop string ends a request
//! with the token that completes it: no later token is made, counted or paid for.

use std::sync::Arc;
use std::time::Instant;

use polyskill_engine::{
    Event, FinishReason, Finished, Logprob, PromptLogprob, Reaction, Request, RequestId,
    SamplingParams, SubmitError, TokenEvent, TraceLevel,
};
use polyskill_tokenizer::{TextStream, Tokenizer};
use serde_json::Value as Json;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::on_finish::OnFinish;
use super::report::Outcome;
use super::request::{AnswerRequest, PromptInput};
use super::{Answer, AnswerError};
use crate::service::Service;
use crate::traces::TracedToken;

/// A generated token with its place in the text.
#[derive(Clone, Debug)]
pub(crate) struct TextToken {
    /// The token's id.
    pub(crate) token: u32,
    /// Its log-probability; present where the request wants it.
    pub(crate) logprob: Option<Logprob>,
    /// Complete characters of the answer before it, in Unicode scalar values.
    pub(crate) offset: usize,
}

/// The end of a completion.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    /// `finish_reason` of the reply: `stop`, `length`, `cancelled` or `error`.
    pub(crate) reason: &'static str,
    /// The stop string or token that ended it, as vLLM's `stop_reason` has it; null for the model's
    /// own end tokens and all other ends.
    pub(crate) stop_reason: Json,
    /// The engine's counts and times.
    pub(crate) finished: Finished,
}

/// A piece of a completion. All `text` in a row is the answer.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    /// Text that is certain now: no stop string may begin in it any more, and its characters are
    /// complete.
    pub(crate) text: String,
    /// Tokens since the last piece. Their text may come in a later piece.
    pub(crate) tokens: Vec<TextToken>,
    /// The prompt's log-probabilities, in the first delta.
    pub(crate) prompt: Option<Vec<PromptLogprob>>,
    /// Set in the last delta.
    pub(crate) ended: Option<Ended>,
}

/// An engine's event with the text that comes of it, as it goes from the engine's thread to the
/// request's.
enum Heard {
    /// Log-probabilities of the prompt, before any token.
    Prompt(Vec<PromptLogprob>),
    /// A token with the text that it makes certain and the characters before it.
    Token { event: TokenEvent, text: String, offset: usize },
    /// The end, with the text that was held back for a stop string that never came.
    Finished { finished: Finished, text: String, stop_reason: Json },
}

/// Turns a request's events into text, on the engine's thread. It must be quick: all requests wait
/// for it.
struct Listener {
    /// The base's tokenizer.
    tokenizer: Arc<Tokenizer>,
    /// The answer's text so far, with what is held back.
    text: TextStream,
    /// The request's stop strings, in the order of the stream's.
    stops: Vec<String>,
    /// Tokens that end the request, those of the request first.
    stop_tokens: Vec<u32>,
    /// The number of them that are the request's own; only these are told in `stop_reason`.
    num_own_stops: usize,
    /// `include_stop_str_in_output`: the text of a stop token belongs to the answer.
    include_stop: bool,
    /// `stop_reason` of the end, null until something stops the answer.
    stop_reason: Json,
    /// The way to the completion; it fails where the completion was dropped.
    sender: UnboundedSender<Heard>,
}

impl Listener {
    /// Takes one event. The reaction stops the request at a stop string, and cancels it where
    /// nobody listens any more.
    fn hear(&mut self, event: Event) -> Reaction {
        let mut reaction = Reaction::Continue;
        let heard = match event {
            Event::Prompt(prompt) => Heard::Prompt(prompt),
            Event::Token(event) => {
                let (text, offset, stops) = self.token(event.token);
                if stops {
                    reaction = Reaction::Stop;
                }
                Heard::Token { event, text, offset }
            }
            Event::Finished(finished) => Heard::Finished {
                finished,
                text: self.text.finish(),
                stop_reason: std::mem::take(&mut self.stop_reason),
            },
        };
        match self.sender.send(heard) {
            Ok(()) => reaction,
            Err(_) => Reaction::Cancel,
        }
    }

    /// The text that a token adds, the characters before it, and true where a stop string is
    /// complete.
    ///
    /// A stop token ends the request in the engine, so it stops nothing here; its text is left out
    /// unless `include_stop` is set.
    fn token(&mut self, token: u32) -> (String, usize, bool) {
        let stop = self.stop_tokens.iter().position(|stop| *stop == token);
        if let Some(at) = stop {
            if at < self.num_own_stops {
                self.stop_reason = token.into();
            }
            if !self.include_stop {
                return (String::new(), self.text.num_chars(), false);
            }
        }
        let piece = self.text.push(&self.tokenizer, token);
        if let Some(which) = piece.stopped {
            self.stop_reason = self.stops[which].clone().into();
        }
        (piece.text, piece.offset, piece.stopped.is_some())
    }
}

/// A running completion of one choice. Dropping it cancels the request.
pub(crate) struct Completion {
    /// The server, for metrics, traces and cancelling.
    service: Arc<Service>,
    /// The composition that runs, shared with the other choices of the prompt.
    answer: Answer,
    /// Work at the end; it does something in the first choice alone.
    on_finish: OnFinish,
    /// True once any token came: from then on the arm has acted on its unit.
    acted: bool,
    /// The engine's id, by which the request is cancelled.
    id: RequestId,
    /// Bounded by the request's own tokens: the engine sends at most `max_tokens` + 2 events.
    events: UnboundedReceiver<Heard>,
    /// The routing of each token so far; empty where none is recorded.
    trace: Vec<TracedToken>,
    /// Tokens whose routing was kept, taken ones included.
    num_traced: usize,
    /// Tokens whose routing is kept, at most.
    most_traced: usize,
    /// True where the reply has the trace too, so that a trace on the disk must be a copy.
    replies_trace: bool,
    /// The time right after submission.
    started: Instant,
    /// True after the last event.
    done: bool,
}

impl Answer {
    /// Composes once for a prompt and starts a completion for each choice. Choice `i` is drawn with
    /// the request's seed + `i`.
    ///
    /// # Errors
    /// If the request cannot be composed, or the engine does not take it. Choices that were
    /// submitted before are cancelled.
    pub(crate) async fn start(
        service: &Arc<Service>,
        request: &AnswerRequest,
        prompt: &PromptInput,
    ) -> Result<Vec<Completion>, AnswerError> {
        // Before a router is asked for a request that would be refused.
        service.engine.handle().check_room(&request.tenant.name)?;
        let answer = Self::compose(service, request, prompt).await?;
        let output = &request.output;
        let start = |choice| {
            let sampling = output.sampling_of(choice);
            Completion::start(service, request, &answer, prompt, sampling)
        };
        let mut started = (0..output.choices).map(start).collect::<Result<Vec<_>, _>>()?;
        if let Some(first) = started.first_mut() {
            let sampling = output.sampling_of(0);
            first.on_finish = OnFinish::of(service, request, &answer, prompt, &sampling);
        }
        Ok(started)
    }
}

impl Completion {
    /// Submits one choice. `sampling` has the choice's own seed.
    fn start(
        service: &Arc<Service>,
        request: &AnswerRequest,
        answer: &Answer,
        prompt: &PromptInput,
        sampling: SamplingParams,
    ) -> Result<Self, SubmitError> {
        let output = &request.output;
        let (sender, events) = unbounded_channel();
        let mut listener = Listener {
            stops: output.stops.strings.clone(),
            include_stop: output.stops.include,
            text: TextStream::after(
                &service.tokenizer,
                &prompt.tokens,
                output.special,
                output.stops.clone(),
            ),
            tokenizer: Arc::clone(&service.tokenizer),
            stop_tokens: sampling.stop_tokens.clone(),
            num_own_stops: output.num_own_stops,
            stop_reason: Json::Null,
            sender,
        };
        let composition = Arc::clone(&answer.composition);
        let submitted = Request {
            trace: recorded_level(service, request, answer),
            shadow: answer.shadow.clone(),
            cache_salt: output.cache_salt.clone(),
            tenant: Arc::clone(&request.tenant.name),
            weight: request.tenant.weight,
            ..Request::new(prompt.tokens.clone(), sampling, composition)
        };
        let id = service.engine.handle().listen(submitted, move |event| listener.hear(event))?;
        Ok(Self {
            service: Arc::clone(service),
            answer: answer.clone(),
            on_finish: OnFinish::default(),
            acted: false,
            id,
            events,
            trace: Vec::new(),
            num_traced: 0,
            most_traced: service.traces.full_tokens() / output.choices,
            replies_trace: output.trace == TraceLevel::Full,
            started: Instant::now(),
            done: false,
        })
    }

    /// The composition that answers, and its experiment.
    pub(crate) fn answer(&self) -> &Answer {
        &self.answer
    }

    /// The routing of each token since the last call, for full traces.
    pub(crate) fn take_trace(&mut self) -> Vec<TracedToken> {
        std::mem::take(&mut self.trace)
    }

    /// The next piece; `None` after the last. Pieces without text, tokens or an end are skipped.
    ///
    /// Before the last piece it waits until the request's id is on the disk, so that feedback on
    /// the reply finds it.
    pub(crate) async fn next(&mut self) -> Option<Delta> {
        while !self.done {
            let heard = self.events.recv().await;
            let delta = self.take(heard);
            if self.done {
                self.on_finish.known().await;
            }
            if !delta.text.is_empty()
                || !delta.tokens.is_empty()
                || delta.prompt.is_some()
                || delta.ended.is_some()
            {
                return Some(delta);
            }
        }
        None
    }

    /// The piece of an event. `None` is an engine that is gone, which ends the completion without
    /// an end.
    fn take(&mut self, heard: Option<Heard>) -> Delta {
        match heard {
            Some(Heard::Prompt(prompt)) => Delta { prompt: Some(prompt), ..Delta::default() },
            Some(Heard::Token { mut event, text, offset }) => {
                self.acted = true;
                let (token, logprob) = (event.token, event.logprob.take());
                if self.num_traced < self.most_traced {
                    let traced = TracedToken::of(event, &self.service.tokenizer);
                    self.num_traced += usize::from(traced.is_some());
                    self.trace.extend(traced);
                }
                let tokens = vec![TextToken { token, logprob, offset }];
                Delta { text, tokens, ..Delta::default() }
            }
            Some(Heard::Finished { finished, text, stop_reason }) => {
                let ended = Some(self.finish(finished, stop_reason));
                Delta { text, ended, ..Delta::default() }
            }
            None => {
                self.done = true;
                Delta::default()
            }
        }
    }

    /// Counts the end in metrics, experiments and traces. It runs once.
    fn finish(&mut self, finished: Finished, stop_reason: Json) -> Ended {
        self.done = true;
        let reason = match &finished.reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
            FinishReason::Error(_) => "error",
        };
        let composition = &self.answer.composition;
        let modules: Vec<String> =
            composition.modules().iter().map(|lease| lease.name.clone()).collect();
        let seconds = self.started.elapsed().as_secs_f64();
        self.service.metrics.finished(&finished, reason, &modules, seconds);
        let outcome = Outcome { finished: &finished, reason, seconds };
        let tokens = match self.replies_trace {
            true => self.trace.clone(),
            false => std::mem::take(&mut self.trace),
        };
        self.on_finish.ended(&self.service, &self.answer, &outcome, tokens);
        Ended { reason, stop_reason, finished }
    }
}

/// The level of routing that the engine records: all of it for a traced request, else what the
/// reply reports. Shares feed the module metrics too, so a request with modules is always tallied.
fn recorded_level(service: &Service, request: &AnswerRequest, answer: &Answer) -> TraceLevel {
    let asked = request.output.trace;
    match (service.traces.takes(&request.id), answer.composition.modules().is_empty()) {
        (true, _) => TraceLevel::Full,
        (false, true) => asked,
        (false, false) => asked.max(TraceLevel::Summary),
    }
}

/// A client that goes away ends the request; where tokens came, the experiment counts an exposure.
impl Drop for Completion {
    fn drop(&mut self) {
        if !self.done {
            self.service.engine.handle().cancel(self.id);
            if self.acted {
                self.on_finish.cut(&self.service, &self.answer);
            }
        }
    }
}

/// A whole completion, collected.
pub(crate) struct Collected {
    /// The whole answer.
    pub(crate) text: String,
    /// All generated tokens, in order.
    pub(crate) tokens: Vec<TextToken>,
    /// Log-probabilities of the prompt's tokens; empty where the request wants none.
    pub(crate) prompt: Vec<PromptLogprob>,
    /// The end, which is no error.
    pub(crate) ended: Ended,
    /// The routing of each token; empty unless the request wants a full trace.
    pub(crate) trace: Vec<TracedToken>,
}

impl Completion {
    /// Runs to the end.
    ///
    /// # Errors
    /// If the engine failed in a step, or ended without a result. The text so far is lost.
    pub(crate) async fn collect(mut self) -> Result<Collected, AnswerError> {
        let (mut text, mut tokens, mut prompt) = (String::new(), Vec::new(), Vec::new());
        while let Some(delta) = self.next().await {
            text.push_str(&delta.text);
            tokens.extend(delta.tokens);
            prompt.extend(delta.prompt.into_iter().flatten());
            if let Some(ended) = delta.ended {
                if let FinishReason::Error(message) = &ended.finished.reason {
                    return Err(AnswerError::Internal(message.clone()));
                }
                let trace = self.take_trace();
                return Ok(Collected { text, tokens, prompt, ended, trace });
            }
        }
        let message = "the engine ended the request without a result";
        Err(AnswerError::Internal(message.to_owned()))
    }
}
