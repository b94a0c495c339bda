//! One generation: submit to the engine, turn its events into text.

use std::sync::Arc;
use std::time::Instant;

use polyskill_engine::{
    Event, FinishReason, Finished, Logprob, PromptLogprob, Request, RequestId, SamplingParams,
    TokenEvent, TraceLevel,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::afterwards::Afterwards;
use super::error::ApiError;
use super::experiment::{Asking, Served};
use super::params::CommonParams;
use crate::service::Service;
use crate::text::TextStream;
use crate::traces::TracedToken;

/// A piece of a generation.
#[derive(Debug, Default)]
pub(crate) struct Delta {
    /// Text that is certain now.
    pub(crate) text: String,
    /// The tokens behind it, with log-probabilities where asked for.
    pub(crate) tokens: Vec<(u32, Option<Logprob>)>,
    /// The prompt's log-probabilities, in the first delta.
    pub(crate) prompt: Option<Vec<PromptLogprob>>,
    /// Set in the last delta.
    pub(crate) finished: Option<(String, Finished)>,
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
    events: UnboundedReceiver<Event>,
    text: TextStream,
    stop_tokens: Vec<u32>,
    trace: Vec<TracedToken>,
    /// Whether the reply has the trace too.
    replies_trace: bool,
    started: Instant,
    done: bool,
    /// Set when a stop string ended the text before the engine did.
    stopped: bool,
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
    stops: Vec<String>,
    include_stop: bool,
    cache_salt: String,
}

/// Composes once for a prompt and starts one generation per choice. The text beside the prompt is what routers may read.
pub(crate) async fn start_choices(
    service: &Arc<Service>,
    (common, asking): (&CommonParams, &Asking),
    (prompt, text): (&[u32], Option<String>),
    wanted: Wanted,
) -> Result<Vec<Generation>, ApiError> {
    let options = Options {
        trace: common.trace_level()?,
        stops: common.stops()?,
        include_stop: common.include_stop_str_in_output.unwrap_or(false),
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
    let served = asking.serve(service, common, (prompt.len(), text)).await?;
    let traced = service.traces.takes(&asking.id);
    let start = |sampling| {
        let how = (options.clone(), traced);
        Generation::start(Arc::clone(service), prompt, sampling, served.clone(), how)
    };
    let first = sampling.first().cloned();
    let mut started: Vec<Generation> =
        sampling.into_iter().map(start).collect::<Result<_, ApiError>>()?;
    if let (Some(generation), Some(sampling)) = (started.first_mut(), first) {
        let request = (prompt, sampling, options.cache_salt.as_str());
        generation.after = Afterwards::of(service, (common, asking), &served, request);
    }
    Ok(started)
}

impl Generation {
    fn start(
        service: Arc<Service>,
        prompt: &[u32],
        sampling: SamplingParams,
        served: Served,
        (options, traced): (Options, bool),
    ) -> Result<Self, ApiError> {
        let composition = &served.composition;
        let Options { trace, stops, include_stop, cache_salt } = options;
        let (sender, events) = unbounded_channel();
        let sink = Box::new(move |event| sender.send(event).is_ok());
        let stop_tokens = sampling.stop_tokens.clone();
        // Shares feed the module metrics too, so a routed request is always tallied.
        let level = match (traced, composition.modules().is_empty()) {
            (true, _) => TraceLevel::Full,
            (false, true) => trace,
            (false, false) => trace.max(TraceLevel::Summary),
        };
        let request = Request {
            prompt: prompt.to_vec(),
            sampling,
            composition: Arc::clone(composition),
            trace: level,
            shadow: served.shadow.clone(),
            cache_salt,
            sink,
        };
        let id = service.engine.handle().submit(request)?;
        Ok(Self {
            service,
            served,
            after: Afterwards::default(),
            acted: false,
            id,
            events,
            text: TextStream::new(stops, include_stop),
            stop_tokens,
            trace: Vec::new(),
            replies_trace: trace == TraceLevel::Full,
            started: Instant::now(),
            done: false,
            stopped: false,
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
            let event = self.events.recv().await;
            let delta = self.take(event);
            if self.done {
                self.after.known().await;
            }
            if !delta.text.is_empty()
                || !delta.tokens.is_empty()
                || delta.prompt.is_some()
                || delta.finished.is_some()
            {
                return Some(delta);
            }
        }
        None
    }

    fn take(&mut self, event: Option<Event>) -> Delta {
        match event {
            Some(Event::Prompt(prompt)) => Delta { prompt: Some(prompt), ..Delta::default() },
            // After a stop string only the end of the request matters.
            Some(Event::Token(_)) if self.stopped => Delta::default(),
            Some(Event::Token(token)) => self.token(token),
            Some(Event::Finished(finished)) => self.finish(finished),
            None => {
                self.done = true;
                Delta::default()
            }
        }
    }

    fn token(&mut self, mut event: TokenEvent) -> Delta {
        self.acted = true;
        let (token, logprob) = (event.token, event.logprob.take());
        self.trace.extend(TracedToken::of(event, &self.service.text));
        if self.stop_tokens.contains(&token) {
            return Delta { tokens: vec![(token, logprob)], ..Delta::default() };
        }
        let (text, stopped) = self.text.push(&self.service.text, token);
        if stopped {
            self.stopped = true;
            self.service.engine.handle().cancel(self.id);
        }
        Delta { text, tokens: vec![(token, logprob)], ..Delta::default() }
    }

    fn finish(&mut self, finished: Finished) -> Delta {
        self.done = true;
        let text = if self.stopped { String::new() } else { self.text.finish(&self.service.text) };
        let reason = match (&finished.reason, self.stopped) {
            (_, true) | (FinishReason::Stop, _) => "stop",
            (FinishReason::Length, _) => "length",
            (FinishReason::Cancelled, _) => "cancelled",
            (FinishReason::Error(_), _) => "error",
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
        Delta { text, finished: Some((reason.to_owned(), finished)), ..Delta::default() }
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
    pub(crate) tokens: Vec<(u32, Option<Logprob>)>,
    pub(crate) prompt: Vec<PromptLogprob>,
    pub(crate) reason: String,
    pub(crate) finished: Finished,
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
            if let Some((reason, finished)) = delta.finished {
                if let FinishReason::Error(message) = &finished.reason {
                    return Err(ApiError::internal(message.clone()));
                }
                let trace = self.take_trace();
                return Ok(Collected { text, tokens, prompt, reason, finished, trace });
            }
        }
        Err(ApiError::internal("the engine ended the request without a result"))
    }
}
