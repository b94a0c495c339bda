//! The way to the engine thread: its bounds, its queue, and reasons for which a request is not
//! taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, channel};
use std::time::Instant;

use super::fair_queue::Queued;
use crate::request::{
    Event, EventSink, FinishReason, Finished, PromptLogprob, Reaction, Request, RequestId,
    TokenEvent,
};
use crate::stats::Stats;

/// Tenants that may fill their queues at the same time: so many times `max_waiting` requests wait at
/// most, over all tenants.
pub(super) const TENANTS_WAITING: usize = 4;

/// Bounds of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Requests of one tenant that may wait, 1 to 65,536; one more is refused with
    /// [`SubmitError::QueueFull`]. Over all tenants four times as many may.
    pub max_waiting: usize,
    /// Requests in execution at once, 1 to 65,536.
    pub max_running: usize,
    /// Rows per step, of prompts and generated tokens, 1 to 65,536; it bounds the running requests
    /// too.
    pub max_rows: usize,
    /// Rows of prompts per step while other requests decode, 1 to 65,536: smaller steps bring their
    /// next tokens sooner, and prompts take longer.
    pub max_prompt_rows_while_decoding: usize,
    /// Time that a prompt should take in a step, in milliseconds, on top of that of the requests that
    /// decode, whose next token waits for it; several prompts may take up to four times as long, and
    /// one alone with nothing else six times. A few rows are read in any case. 0 sets no bound.
    pub prompt_step_milliseconds: u64,
    /// Tokens whose keys and values the cache holds, over all requests, from 16 on. One request
    /// cannot be longer than this.
    pub max_cached_tokens: usize,
    /// True where requests with the same beginning and composition share its keys and values.
    pub prefix_cache: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_waiting: 256,
            max_running: 32,
            max_rows: 256,
            max_prompt_rows_while_decoding: 64,
            prompt_step_milliseconds: 25,
            max_cached_tokens: 32_768,
            prefix_cache: true,
        }
    }
}

/// A reason for which a request is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The queue is full.
    #[error("{waiting} requests are waiting already, which is the limit")]
    QueueFull {
        /// The limit.
        waiting: usize,
    },
    /// The prompt and the tokens to generate do not fit the context, or the cache.
    #[error(
        "the prompt has {prompt} tokens and up to {max_tokens} are to be generated, but the context holds {limit}"
    )]
    TooLong {
        /// Tokens of the prompt, and positions that modules put before it.
        prompt: usize,
        /// Tokens to generate.
        max_tokens: usize,
        /// Tokens that fit.
        limit: usize,
    },
    /// The prompt is empty.
    #[error("the prompt has no tokens")]
    EmptyPrompt,
    /// A token is not in the vocabulary.
    #[error("token {token} is not in the vocabulary of {vocab_size}")]
    BadToken {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// The engine is shutting down.
    #[error("the server is shutting down")]
    ShuttingDown,
}

/// A message to the engine thread.
pub(super) enum Command {
    /// A request for the end of the queue.
    Submit(Box<Waiting>),
    /// The end of a request, wherever it is.
    Cancel(RequestId),
    /// The end of the thread, once nothing runs or waits.
    Drain,
}

/// A request that waits to be admitted.
pub(super) struct Waiting {
    pub(super) id: RequestId,
    pub(super) request: Request,
    /// Hears of tokens and the end.
    pub(super) sink: EventSink,
    /// The moment of submission, from which times are reported.
    pub(super) submitted: Instant,
}

impl Queued for Waiting {
    fn id(&self) -> RequestId {
        self.id
    }

    fn tenant(&self) -> &Arc<str> {
        &self.request.tenant
    }

    fn weight(&self) -> f64 {
        self.request.weight
    }
}

impl Waiting {
    /// Ends a request that never ran.
    pub(super) fn end(mut self, reason: FinishReason) {
        let finished = Finished {
            reason,
            prompt_tokens: self.request.prompt.len(),
            cached_tokens: 0,
            completion_tokens: 0,
            module_share: Vec::new(),
            agreement: None,
            fallback_rows: 0,
            time_to_first_token: None,
            queue_time: self.submitted.elapsed(),
        };
        (self.sink)(Event::Finished(finished));
    }
}

/// The way to the engine; cheap to clone, and usable from any thread.
#[derive(Clone, Debug)]
pub struct Handle {
    /// The queue of commands, bounded: it takes more of them than requests may wait, so there is
    /// room for cancellations.
    pub(super) commands: SyncSender<Command>,
    /// The engine's counters.
    pub(super) stats: Arc<Stats>,
    /// The next request's number, over all clones.
    pub(super) next_id: Arc<AtomicU64>,
    /// The bounds that submission checks.
    pub(super) config: EngineConfig,
    /// The smaller of the base's context and the cache.
    pub(super) max_tokens: usize,
    /// Prompt tokens are below this.
    pub(super) vocab_size: usize,
}

impl Handle {
    /// Queues a request; never waits. `listen` hears of its events on the engine thread, between two
    /// steps of all requests, and says after each whether the request goes on; it must not block.
    ///
    /// # Errors
    /// If it cannot be served; nothing is heard of it then.
    pub fn listen(
        &self,
        request: Request,
        listen: impl FnMut(Event) -> Reaction + Send + 'static,
    ) -> Result<RequestId, SubmitError> {
        let (prompt, max_tokens) = (request.prompt.len(), request.sampling.max_tokens);
        if prompt == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        if let Some(&token) =
            request.prompt.iter().find(|&&token| token as usize >= self.vocab_size)
        {
            return Err(SubmitError::BadToken { token, vocab_size: self.vocab_size });
        }
        let prompt = prompt + request.composition.num_virtual_tokens();
        if prompt.saturating_add(max_tokens) > self.max_tokens {
            return Err(SubmitError::TooLong { prompt, max_tokens, limit: self.max_tokens });
        }
        let full = SubmitError::QueueFull { waiting: self.config.max_waiting };
        let most = self.config.max_waiting.saturating_mul(TENANTS_WAITING);
        let admit = |waiting| (waiting < most).then_some(waiting + 1);
        self.stats.waiting.fetch_update(Relaxed, Relaxed, admit).map_err(|_| full.clone())?;
        if !self.stats.enters_queue(&request.tenant, self.config.max_waiting) {
            self.stats.waiting.fetch_sub(1, Relaxed);
            return Err(full);
        }
        let tenant = Arc::clone(&request.tenant);
        let id = RequestId(self.next_id.fetch_add(1, Relaxed));
        let (sink, submitted): (EventSink, _) = (Box::new(listen), Instant::now());
        let waiting = Waiting { id, request, sink, submitted };
        self.commands.try_send(Command::Submit(Box::new(waiting))).map_err(|error| {
            self.stats.waiting.fetch_sub(1, Relaxed);
            self.stats.left_queue(&tenant);
            match error {
                std::sync::mpsc::TrySendError::Full(_) => full,
                std::sync::mpsc::TrySendError::Disconnected(_) => SubmitError::ShuttingDown,
            }
        })?;
        Ok(id)
    }

    /// Refuses a request of a tenant before anything is done for it, where the queue is full. A
    /// request that passes may still be refused by [`Handle::listen`].
    ///
    /// # Errors
    /// [`SubmitError::QueueFull`].
    pub fn check_room(&self, tenant: &str) -> Result<(), SubmitError> {
        let waiting = self.stats.waiting_of(tenant);
        let all = self.stats.waiting.load(Relaxed);
        let is_full = waiting >= self.config.max_waiting
            || all >= self.config.max_waiting.saturating_mul(TENANTS_WAITING);
        let full = SubmitError::QueueFull { waiting: self.config.max_waiting };
        if is_full { Err(full) } else { Ok(()) }
    }

    /// Runs a request whose events the caller reads.
    ///
    /// # Errors
    /// If it cannot be served.
    pub fn run(&self, request: Request) -> Result<Events, SubmitError> {
        let (sender, events) = channel();
        self.listen(request, move |event| sender.send((Instant::now(), event)).is_ok().into())?;
        Ok(Events { events })
    }

    /// Ends a request with [`FinishReason::Cancelled`], at the next
    /// turn; a request that has ended is left alone. Where the engine's queue is full, this does
    /// nothing.
    pub fn cancel(&self, id: RequestId) {
        // A full queue means that the engine is busy; the sink's answer cancels as well.
        let _ = self.commands.try_send(Command::Cancel(id));
    }

    /// Live counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Tokens that a prompt, the positions that modules put before it, and its continuation may
    /// have together.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }
}

/// The events of a request, in their order, until its end. Dropping them cancels the request.
#[derive(Debug)]
pub struct Events {
    events: Receiver<(Instant, Event)>,
}

impl Iterator for Events {
    type Item = Event;

    /// Waits for the next event; `None` behind [`Event::Finished`], and where the engine has ended.
    fn next(&mut self) -> Option<Event> {
        self.events.recv().ok().map(|(_, event)| event)
    }
}

/// All that came of a request.
#[derive(Clone, Debug)]
pub struct Completed {
    /// Log-probabilities of the prompt's tokens, where they were asked for.
    pub prompt: Vec<PromptLogprob>,
    /// The generated tokens.
    pub tokens: Vec<TokenEvent>,
    /// The end.
    pub finished: Finished,
}

impl Events {
    /// The events with the times at which the engine gave them, however late they are read.
    pub fn timed(self) -> impl Iterator<Item = (Instant, Event)> {
        self.events.into_iter()
    }

    /// Waits for the end; `None` where the engine ended before the request did.
    pub fn wait(self) -> Option<Completed> {
        let (mut prompt, mut tokens) = (Vec::new(), Vec::new());
        for event in self {
            match event {
                Event::Prompt(scored) => prompt = scored,
                Event::Token(token) => tokens.push(token),
                Event::Finished(finished) => return Some(Completed { prompt, tokens, finished }),
            }
        }
        None
    }
}
