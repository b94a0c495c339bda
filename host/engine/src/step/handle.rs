//! The way to the engine thread: its bounds, its queue, and reasons for which a request is not taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use crate::request::{Request, RequestId};
use crate::stats::Stats;

/// Bounds of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Requests that may wait.
    pub max_waiting: usize,
    /// Requests in execution.
    pub max_running: usize,
    /// Rows per step.
    pub max_rows: usize,
    /// Rows of prompts per step while other requests decode.
    pub max_prompt_rows_while_decoding: usize,
    /// Tokens whose keys and values the cache holds, over all requests.
    pub max_cached_tokens: usize,
    /// Whether sequences with the same beginning and composition share its keys and values.
    pub prefix_cache: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_waiting: 256,
            max_running: 32,
            max_rows: 256,
            max_prompt_rows_while_decoding: 64,
            max_cached_tokens: 32_768,
            prefix_cache: true,
        }
    }
}

/// A request that is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The queue is full.
    #[error("{waiting} requests are waiting already, which is the limit")]
    QueueFull {
        /// The limit.
        waiting: usize,
    },
    /// The prompt and the tokens to generate do not fit the context.
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
    Submit(Box<Waiting>),
    Cancel(RequestId),
    Drain,
}

/// A request that waits to be admitted.
pub(super) struct Waiting {
    pub(super) id: RequestId,
    pub(super) request: Request,
    pub(super) submitted: Instant,
}

/// The way to the engine; cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) commands: SyncSender<Command>,
    pub(super) stats: Arc<Stats>,
    pub(super) next_id: Arc<AtomicU64>,
    pub(super) config: EngineConfig,
    pub(super) max_tokens: usize,
    pub(super) vocab_size: usize,
}

impl Handle {
    /// Queues a request.
    ///
    /// # Errors
    /// If it cannot be served; its sink then hears nothing.
    pub fn submit(&self, request: Request) -> Result<RequestId, SubmitError> {
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
        let admit = |waiting| (waiting < self.config.max_waiting).then_some(waiting + 1);
        self.stats.waiting.fetch_update(Relaxed, Relaxed, admit).map_err(|_| full.clone())?;
        let id = RequestId(self.next_id.fetch_add(1, Relaxed));
        let waiting = Waiting { id, request, submitted: Instant::now() };
        self.commands.try_send(Command::Submit(Box::new(waiting))).map_err(|error| {
            self.stats.waiting.fetch_sub(1, Relaxed);
            match error {
                std::sync::mpsc::TrySendError::Full(_) => full,
                std::sync::mpsc::TrySendError::Disconnected(_) => SubmitError::ShuttingDown,
            }
        })?;
        Ok(id)
    }

    /// Ends a request with [`FinishReason::Cancelled`]; a request that has ended is left alone.
    pub fn cancel(&self, id: RequestId) {
        // A full queue means that the engine is busy; the sink's answer cancels as well.
        let _ = self.commands.try_send(Command::Cancel(id));
    }

    /// Live counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Tokens that a prompt and its continuation may have together.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }
}
