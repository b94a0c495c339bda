//! One generation: submitted to the engine, and its tokens turned into text.
//!
//! Text is made where a token is made, on the engine's thread, so that a stop string ends a request with the token that
//! completes it: no later token is made, counted or paid for.

use std::sync::Arc;
use std::time::Instant;

use polyskill_engine::{
    Event, FinishReason, Finished, Logprob, PromptLogprob, Reaction, Request, RequestId,
    SamplingParams, TokenEvent, TraceLevel,
};
use polyskill_tokenizer::{Special, Stops, TextStream, Tokenizer};
use serde_json::Value as Json;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::afterwards::Afterwards;
use super::error::ApiError;
use super::experiment::{Asking, Served};
use super::params::CommonParams;
use crate::service::Service;
use crate::traces::TracedToken;

/// A generated token with its place in the text.
#[derive(Clone, Debug)]
pub(crate) struct TextToken {
    pub(crate) token: u32,
    /// Present where asked for.
    pub(crate) logprob: Option<Logprob>,
    /// Complete characters of the answer before it.
    pub(crate) offset: usize,
}

/// The end of a generation.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    /// `finish_reason` of the reply.
    pub(crate) reason: &'static str,
    /// The stop string or token that ended it, as vLLM's `stop_reason` has it.
    pub(crate) stop_reason: Json,
    pub(crate) finished: Finished,
}

/// A piece of a generation.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    /// Text that is certain now.
    pub(crate) text: String,
    /// The tokens behind it.
    pub(crate) tokens: Vec<TextToken>,
    /// The prompt's log-probabilities, in the first delta.
    pub(crate) prompt: Option<Vec<PromptLogprob>>,
    /// Set in the last delta.
    pub(crate) ended: Option<Ended>,
}

/// An engine's event with the text that comes of it.
enum Heard {
    Prompt(Vec<PromptLogprob>),
    Token { event: TokenEvent, text: String, offset: usize },
    Finished { finished: Finished, text: String, stop_reason: Json },
}

/// Turns a request's events into text, on the engine's thread.
struct Listener {
    tokenizer: Arc<Tokenizer>,
    text: TextStream,
    stops: Vec<String>,
    /// Tokens that end the request, those of the request first.
    stop_tokens: Vec<u32>,
    /// The number of them that are the request's own.
    num_own_stops: usize,
    /// `include_stop_str_in_output`: the text of a stop token belongs to the answer.
    include_stop: bool,
    stop_reason: Json,
    sender: UnboundedSender<Heard>,
}

impl Listener {
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

    /// The text that a token adds, the characters before it, and whether a stop string is complete.
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

/// A running generation. Dropping it cancels the request.
pub(crate) struct Generation {
    service: Arc<Service>,
    served: Served,
    after: Afterwards,
    /// Whether any token came.
    acted: bool,
    id: RequestId,
    /// Bounded by the request's own tokens: the engine sends at most `max_tokens` + 2 events.
    events: UnboundedReceiver<Heard>,
    trace: Vec<TracedToken>,
    /// Whether the reply has the trace too.
    replies_trace: bool,
    started: Instant,
    done: bool,
}

/// A prompt: its tokens, and the text that routers may read.
#[derive(Clone, Debug)]
pub(crate) struct PromptInput {
    pub(crate) tokens: Vec<u32>,
    pub(crate) text: Option<String>,
}

/// What a request wants of each of its choices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) max_tokens: usize,
    /// Alternatives per generated token; `None` reports no log-probabilities.
    pub(crate) logprobs: Option<usize>,
    /// Alternatives per token of the prompt.
    pub(crate) prompt_logprobs: Option<usize>,
}

/// What all choices of a request share.
#[derive(Clone, Debug)]
struct Options {
    trace: TraceLevel,
    /// True where everything is traced, whatever the reply says.
    is_traced: bool,
    special: Special,
    stops: Stops,
    /// Stop tokens that the request itself names.
    num_own_stops: usize,
    cache_salt: String,
}

/// Composes once for a prompt and starts one generation per choice.
pub(crate) async fn start_choices(
    service: &Arc<Service>,
    common: &CommonParams,
    asking: &Asking,
    prompt: &PromptInput,
    wanted: Wanted,
) -> Result<Vec<Generation>, ApiError> {
    let options = Options {
        trace: common.trace_level()?,
        is_traced: service.traces.takes(&asking.id),
        special: common.special(),
        stops: common.stops()?,
        num_own_stops: common.stop_token_ids.as_ref().map_or(0, Vec::len),
        cache_salt: common.cache_salt()?,
    };
    let sampling = |choice| {
        Ok(SamplingParams {
            logprobs: wanted.logprobs,
            prompt_logprobs: wanted.prompt_logprobs,
            ..common.sampling(service, wanted.max_tokens, choice)?
        })
    };
    let sampling: Vec<SamplingParams> =
        (0..common.choices()?).map(sampling).collect::<Result<_, ApiError>>()?;
    let read = (prompt.tokens.len(), prompt.text.clone());
    let served = asking.serve(service, common, read).await?;
    let start = |sampling| Generation::start(service, &prompt.tokens, sampling, &served, &options);
    let first = sampling.first().cloned();
    let mut started: Vec<Generation> =
        sampling.into_iter().map(start).collect::<Result<_, ApiError>>()?;
    if let (Some(generation), Some(sampling)) = (started.first_mut(), first) {
        let request = (prompt.tokens.as_slice(), sampling, options.cache_salt.as_str());
        generation.after = Afterwards::of(service, (common, asking), &served, request);
    }
    Ok(started)
}

impl Generation {
    fn start(
        service: &Arc<Service>,
        prompt: &[u32],
        sampling: SamplingParams,
        served: &Served,
        options: &Options,
    ) -> Result<Self, ApiError> {
        let composition = &served.composition;
        let (sender, events) = unbounded_channel();
        let tokenizer = Arc::clone(&service.tokenizer);
        let stops = options.stops.clone();
        let mut listener = Listener {
            stops: stops.strings.clone(),
            include_stop: stops.include,
            text: TextStream::after(&tokenizer, prompt, options.special, stops),
            tokenizer,
            stop_tokens: sampling.stop_tokens.clone(),
            num_own_stops: options.num_own_stops,
            stop_reason: Json::Null,
            sender,
        };
        // Shares feed the module metrics too, so a routed request is always tallied.
        let level = match (options.is_traced, composition.modules().is_empty()) {
            (true, _) => TraceLevel::Full,
            (false, true) => options.trace,
            (false, false) => options.trace.max(TraceLevel::Summary),
        };
        let request = Request {
            prompt: prompt.to_vec(),
            sampling,
            composition: Arc::clone(composition),
            trace: level,
            shadow: served.shadow.clone(),
            cache_salt: options.cache_salt.clone(),
            sink: Box::new(move |event| listener.hear(event)),
        };
        let id = service.engine.handle().submit(request)?;
        Ok(Self {
            service: Arc::clone(service),
            served: served.clone(),
            after: Afterwards::default(),
            acted: false,
            id,
            events,
            trace: Vec::new(),
            replies_trace: options.trace == TraceLevel::Full,
            started: Instant::now(),
            done: false,
        })
    }

    pub(crate) fn served(&self) -> &Served {
        &self.served
    }

    /// The routing of each token so far, for full traces.
    pub(crate) fn take_trace(&mut self) -> Vec<TracedToken> {
        std::mem::take(&mut self.trace)
    }

    /// The next piece; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<Delta> {
        while !self.done {
            let heard = self.events.recv().await;
            let delta = self.take(heard);
            if self.done {
                self.after.known().await;
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

    fn take(&mut self, heard: Option<Heard>) -> Delta {
        match heard {
            Some(Heard::Prompt(prompt)) => Delta { prompt: Some(prompt), ..Delta::default() },
            Some(Heard::Token { mut event, text, offset }) => {
                self.acted = true;
                let (token, logprob) = (event.token, event.logprob.take());
                self.trace.extend(TracedToken::of(event, &self.service.tokenizer));
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

    fn finish(&mut self, finished: Finished, stop_reason: Json) -> Ended {
        self.done = true;
        let reason = match &finished.reason {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
            FinishReason::Error(_) => "error",
        };
        let composition = &self.served.composition;
        let modules: Vec<String> =
            composition.modules().iter().map(|lease| lease.name.clone()).collect();
        let seconds = self.started.elapsed().as_secs_f64();
        self.service.metrics.finished(&finished, reason, &modules, seconds);
        let ended = (&finished, reason, seconds);
        let tokens = match self.replies_trace {
            true => self.trace.clone(),
            false => std::mem::take(&mut self.trace),
        };
        self.after.ended(&self.service, &self.served, ended, tokens);
        Ended { reason, stop_reason, finished }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !self.done {
            self.service.engine.handle().cancel(self.id);
            if self.acted {
                self.after.cut(&self.service, &self.served);
            }
        }
    }
}

/// A whole generation, collected.
pub(crate) struct Collected {
    pub(crate) text: String,
    pub(crate) tokens: Vec<TextToken>,
    pub(crate) prompt: Vec<PromptLogprob>,
    pub(crate) ended: Ended,
    pub(crate) trace: Vec<TracedToken>,
}

impl Generation {
    /// Runs to the end.
    pub(crate) async fn collect(mut self) -> Result<Collected, ApiError> {
        let (mut text, mut tokens, mut prompt) = (String::new(), Vec::new(), Vec::new());
        while let Some(delta) = self.next().await {
            text.push_str(&delta.text);
            tokens.extend(delta.tokens);
            prompt.extend(delta.prompt.into_iter().flatten());
            if let Some(ended) = delta.ended {
                if let FinishReason::Error(message) = &ended.finished.reason {
                    return Err(ApiError::internal(message.clone()));
                }
                let trace = self.take_trace();
                return Ok(Collected { text, tokens, prompt, ended, trace });
            }
        }
        Err(ApiError::internal("the engine ended the request without a result"))
    }
}
