//! The engine thread: it alone owns model, KV cache and scheduler, and is reached by commands.
//!
//! One turn of its loop: take commands, admit, plan a step, run it, sample and emit.

mod blocks;
mod sampling;
mod scheduler;
pub(crate) mod trace;

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use polyskill_model::{BLOCK_POSITIONS, Decoder, KvCache, Scratch, Step};

use crate::compose::composition::Composition;
use crate::hooks::beyond_linears::store_prefix;
use crate::hooks::shadow::{Agreement, Shadow};
use crate::hooks::{Routing, RowSpan};
use crate::request::{
    Event, EventSink, FinishReason, Finished, PromptLogprob, Reaction, Request, RequestId,
    TokenEvent,
};
use crate::stats::Stats;
use crate::step::blocks::{BlockKeys, Blocks};
use crate::step::sampling::{Logprobs, Sampler};
use crate::step::scheduler::{Budget, Progress, plan};
use crate::step::trace::{RowTrace, Tally, TraceLevel};

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

enum Command {
    Submit(Box<Waiting>),
    Cancel(RequestId),
    Drain,
}

struct Waiting {
    id: RequestId,
    request: Request,
    submitted: Instant,
}

/// The way to the engine; cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: SyncSender<Command>,
    stats: Arc<Stats>,
    next_id: Arc<AtomicU64>,
    config: EngineConfig,
    max_tokens: usize,
    vocab_size: usize,
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

/// The running engine; dropping it finishes what runs and waits.
#[derive(Debug)]
pub struct Engine {
    handle: Handle,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// Starts the engine thread.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn start(model: Arc<Decoder>, config: EngineConfig) -> std::io::Result<Self> {
        let (commands, receiver) = sync_channel(2 * config.max_waiting + 64);
        let num_blocks = KvCache::blocks_for(config.max_cached_tokens);
        let stats = Arc::new(Stats::default());
        stats.kv_blocks.store(num_blocks, Relaxed);
        let handle = Handle {
            commands,
            stats: Arc::clone(&stats),
            next_id: Arc::default(),
            config,
            max_tokens: model.config().max_positions.min(config.max_cached_tokens),
            vocab_size: model.config().vocab_size,
        };
        let run = move || {
            let kv = KvCache::new(model.config(), num_blocks);
            let blocks = Blocks::new(num_blocks);
            let state = State {
                model,
                config,
                stats,
                kv,
                blocks,
                waiting: VecDeque::new(),
                running: Vec::new(),
                scratch: Scratch::default(),
                draining: false,
            };
            state.run(&receiver);
        };
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(run)?;
        Ok(Self { handle, thread: Mutex::new(Some(thread)) })
    }

    /// The way to the engine.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Finishes what was submitted, then stops the thread.
    pub fn drain(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = self.handle.commands.send(Command::Drain);
            // A panic on the engine thread has been logged where it was caught.
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.drain();
    }
}

/// A request in execution.
struct Running {
    id: RequestId,
    /// What is looked at beside it, and how far it decided alike.
    shadow: Option<Arc<Shadow>>,
    agreement: Agreement,
    composition: Arc<Composition>,
    trace: TraceLevel,
    sink: EventSink,
    sampler: Sampler,
    stop_tokens: Vec<u32>,
    min_tokens: usize,
    max_tokens: usize,
    prompt_logprobs: Option<usize>,
    scored: Vec<PromptLogprob>,
    /// What stands at each position: placeholders for what modules put before the sequence, the prompt, and
    /// the generated tokens.
    tokens: Vec<u32>,
    /// Placeholders.
    start_len: usize,
    /// Placeholders and prompt.
    prompt_len: usize,
    /// Placeholders and what of the prompt is asked.
    asked_len: usize,
    /// Positions whose keys and values are stored.
    computed: usize,
    /// Tokens of the prompt that were stored already at admission.
    cached_tokens: usize,
    blocks: Vec<u32>,
    /// Names of the full blocks; `None` where they must not be shared.
    keys: Option<BlockKeys>,
    /// Full blocks that are known by their names.
    num_known: usize,
    tally: Tally,
    fallback_rows: u64,
    submitted: Instant,
    admitted: Instant,
    first_token: Option<Instant>,
    ended: Option<FinishReason>,
}

/// What a request begins with.
struct Start {
    tokens: Vec<u32>,
    blocks: Vec<u32>,
    keys: Option<BlockKeys>,
    num_known: usize,
    computed: usize,
    cached_tokens: usize,
}

struct State {
    model: Arc<Decoder>,
    config: EngineConfig,
    stats: Arc<Stats>,
    kv: KvCache,
    blocks: Blocks,
    waiting: VecDeque<Waiting>,
    running: Vec<Running>,
    scratch: Scratch,
    draining: bool,
}

impl State {
    fn run(mut self, commands: &Receiver<Command>) {
        loop {
            self.take_commands(commands);
            self.admit();
            if self.running.is_empty() {
                if self.draining && self.waiting.is_empty() {
                    return;
                }
                continue;
            }
            let step = std::panic::catch_unwind(AssertUnwindSafe(|| self.step()));
            if step.is_err() {
                tracing::error!("a step panicked; its requests fail and the engine goes on");
                let failed = FinishReason::Error("the engine failed in a step".to_owned());
                self.running.iter_mut().for_each(|running| running.ended = Some(failed.clone()));
            }
            self.retire();
        }
    }

    /// Takes what is there; waits where there is nothing else to do.
    fn take_commands(&mut self, commands: &Receiver<Command>) {
        let idle = self.running.is_empty() && self.waiting.is_empty() && !self.draining;
        let first = if idle {
            commands.recv().map_err(|_| TryRecvError::Disconnected)
        } else {
            commands.try_recv()
        };
        let mut next = first;
        loop {
            match next {
                Ok(Command::Submit(waiting)) => self.waiting.push_back(*waiting),
                Ok(Command::Cancel(id)) => self.cancel(id),
                Ok(Command::Drain) | Err(TryRecvError::Disconnected) => {
                    self.draining = true;
                    return;
                }
                Err(TryRecvError::Empty) => return,
            }
            next = commands.try_recv();
        }
    }

    fn cancel(&mut self, id: RequestId) {
        if let Some(running) = self.running.iter_mut().find(|running| running.id == id) {
            running.ended = Some(FinishReason::Cancelled);
        }
        let position = self.waiting.iter().position(|waiting| waiting.id == id);
        if let Some(mut waiting) = position.and_then(|position| self.waiting.remove(position)) {
            self.stats.waiting.fetch_sub(1, Relaxed);
            (waiting.request.sink)(Event::Finished(Finished {
                reason: FinishReason::Cancelled,
                prompt_tokens: waiting.request.prompt.len(),
                cached_tokens: 0,
                completion_tokens: 0,
                module_share: Vec::new(),
                agreement: None,
                fallback_rows: 0,
                time_to_first_token: None,
                queue_time: waiting.submitted.elapsed(),
            }));
        }
        self.retire();
    }

    /// Starts waiting requests in order, while there is room.
    fn admit(&mut self) {
        while self.running.len() < self.config.max_running.min(self.config.max_rows) {
            let Some(mut waiting) = self.waiting.pop_front() else { break };
            let Some(start) = self.start_of(&mut waiting) else {
                self.waiting.push_front(waiting);
                break;
            };
            self.stats.waiting.fetch_sub(1, Relaxed);
            self.running.push(Running::new(waiting, start));
        }
        self.stats.running.store(self.running.len(), Relaxed);
        self.stats.kv_blocks_used.store(self.blocks.used(), Relaxed);
        self.stats.kv_blocks.store(self.blocks.total(), Relaxed);
    }

    /// Reserves a request's blocks, shares what is known of its beginning, and stores what modules put before
    /// it; nothing where there is no room.
    fn start_of(&mut self, waiting: &mut Waiting) -> Option<Start> {
        let request = &waiting.request;
        let composition = &request.composition;
        let mut tokens = vec![0; composition.num_virtual_tokens()];
        tokens.extend_from_slice(&request.prompt);
        let is_cached = self.config.prefix_cache && request.sampling.answer_from.is_none();
        let identity = composition.cache_identity.filter(|_| is_cached);
        let mut keys = identity.map(|identity| BlockKeys::new(identity, &request.cache_salt));
        // The last token's row makes the first logits, and scored prompts need them all.
        let reusable = match request.sampling.prompt_logprobs {
            Some(_) => 0,
            None => tokens.len() - 1,
        };
        let found = match &mut keys {
            Some(keys) => self.blocks.find(keys.upto(reusable, &tokens)),
            None => Vec::new(),
        };
        let blocks = self.blocks.reserve(tokens.len() + request.sampling.max_tokens, &found)?;
        let cached = found.len() * BLOCK_POSITIONS;
        store_prefix(composition, cached, &blocks, &mut self.kv);
        let cached_tokens = cached.saturating_sub(composition.num_virtual_tokens());
        if keys.is_some() {
            self.stats.prefix_queries.fetch_add(request.prompt.len() as u64, Relaxed);
            self.stats.prefix_hits.fetch_add(cached_tokens as u64, Relaxed);
        }
        let computed = cached.max(composition.beyond.num_prefix);
        let num_known = found.len();
        Some(Start { tokens, blocks, keys, num_known, computed, cached_tokens })
    }

    /// Makes full blocks known, as far as they hold nothing but what their names say.
    fn make_blocks_known(&mut self) {
        for running in &mut self.running {
            let upto = running.sharable();
            let Some(keys) = &mut running.keys else { continue };
            let known = keys.upto(upto, &running.tokens);
            for (block, key) in running.blocks.iter().zip(known).skip(running.num_known) {
                self.blocks.make_known(*block, *key);
            }
            running.num_known = running.num_known.max(known.len());
        }
    }

    /// Reports and removes requests that have ended.
    fn retire(&mut self) {
        let mut index = 0;
        while index < self.running.len() {
            if self.running[index].ended.is_none() {
                index += 1;
                continue;
            }
            let mut ended = self.running.remove(index);
            self.blocks.release(std::mem::take(&mut ended.blocks));
            self.stats.running.store(self.running.len(), Relaxed);
            self.stats.kv_blocks_used.store(self.blocks.used(), Relaxed);
            let finished = ended.finished();
            // The leases end before anyone can hear of the end.
            let Running { composition, mut sink, .. } = ended;
            drop(composition);
            sink(Event::Finished(finished));
        }
    }

    /// One step: rows of all running requests through the model, then a token for each that got one.
    fn step(&mut self) {
        let started = Instant::now();
        let progress: Vec<Progress> = self.running.iter().map(Running::progress).collect();
        let budget = Budget {
            rows: self.config.max_rows,
            prompt_rows_while_decoding: self.config.max_prompt_rows_while_decoding,
        };
        let ranges = plan(&progress, budget);
        let layout = Layout::new(&self.running, &ranges);
        let tables: Vec<&[u32]> =
            self.running.iter().map(|running| running.blocks.as_slice()).collect();
        let step = Step {
            tokens: &layout.tokens,
            positions: &layout.positions,
            sequences: &layout.sequences,
            block_tables: &tables,
            logit_rows: &layout.logit_rows,
        };
        let compute = Arc::clone(self.model.compute());
        let activation = self.model.config().activation;
        let mut routing = Routing::new((&compute, activation), &layout.tokens, &layout.spans);
        let logits = self.model.forward(&step, &mut self.kv, &mut routing, &mut self.scratch);
        let Routing { recorded, recorded_experts, agreed, fallback_rows, .. } = routing;
        let mut routed: Vec<RowTrace> = vec![RowTrace::default(); self.running.len()];
        for record in recorded {
            routed[layout.sequences[record.row] as usize].picks.push(record.picks);
        }
        for (row, experts) in recorded_experts {
            routed[layout.sequences[row] as usize].experts.push(experts);
        }
        for (row, agreement) in agreed {
            self.running[layout.sequences[row] as usize].agreement.add(agreement);
        }
        for &row in &fallback_rows {
            self.running[layout.sequences[row] as usize].fall_back();
        }
        let vocab_size = self.model.config().vocab_size;
        let mut rows = logits.chunks_exact_mut(vocab_size);
        for ((running, range), mut trace) in self.running.iter_mut().zip(ranges).zip(routed) {
            trace.picks.sort_by_key(|picks| picks.site);
            running.advance(range, &mut rows, trace);
        }
        self.make_blocks_known();
        self.stats.fallback_rows.fetch_add(fallback_rows.len() as u64, Relaxed);
        self.stats.steps.fetch_add(1, Relaxed);
        self.stats.rows.fetch_add(layout.tokens.len() as u64, Relaxed);
        self.stats.step_microseconds.fetch_add(started.elapsed().as_micros() as u64, Relaxed);
    }
}

/// The flat rows of a step.
struct Layout {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    sequences: Vec<u32>,
    logit_rows: Vec<u32>,
    spans: Vec<RowSpan>,
}

impl Layout {
    fn new(running: &[Running], ranges: &[std::ops::Range<usize>]) -> Self {
        let mut layout = Self {
            tokens: Vec::new(),
            positions: Vec::new(),
            sequences: Vec::new(),
            logit_rows: Vec::new(),
            spans: Vec::new(),
        };
        for (index, (running, range)) in running.iter().zip(ranges).enumerate() {
            let first = layout.tokens.len();
            layout.tokens.extend_from_slice(&running.tokens[range.clone()]);
            layout.positions.extend(range.clone().map(|position| position as u32));
            layout.sequences.resize(layout.tokens.len(), index as u32);
            let rows = first..layout.tokens.len();
            let completes = range.end == running.tokens.len();
            let wanted = match (running.prompt_logprobs, completes) {
                (Some(_), _) if range.start < running.prompt_len => {
                    let before = running.start_len.saturating_sub(range.start);
                    (rows.start + before).min(rows.end)..rows.end
                }
                (_, true) if running.max_tokens > 0 => rows.end - 1..rows.end,
                _ => 0..0,
            };
            layout.logit_rows.extend(wanted.map(|row| row as u32));
            if !rows.is_empty() {
                let looks = running.trace != TraceLevel::None || running.shadow.is_some();
                let traced = looks && completes;
                layout.spans.push(RowSpan {
                    trace_from: traced.then(|| rows.end - 1),
                    trace_full: running.trace == TraceLevel::Full,
                    shadow: running.shadow.clone(),
                    rows,
                    position: range.start,
                    prompt_len: running.asked_len,
                    composition: Arc::clone(&running.composition),
                });
            }
        }
        layout
    }
}

impl Running {
    fn new(waiting: Waiting, start: Start) -> Self {
        let Waiting { id, request, submitted } = waiting;
        let Request { prompt, sampling, composition, trace, shadow, sink, .. } = request;
        let Start { tokens, blocks, keys, num_known, computed, cached_tokens } = start;
        let asked_from = sampling.answer_from;
        Self {
            id,
            trace,
            shadow,
            agreement: Agreement::default(),
            sink,
            stop_tokens: sampling.stop_tokens.clone(),
            min_tokens: sampling.min_tokens,
            max_tokens: sampling.max_tokens,
            prompt_logprobs: sampling.prompt_logprobs,
            scored: Vec::new(),
            sampler: Sampler::new(sampling, &prompt),
            start_len: composition.num_virtual_tokens(),
            asked_len: asked_from.map_or(tokens.len(), |asked| {
                composition.num_virtual_tokens() + asked.min(prompt.len())
            }),
            prompt_len: tokens.len(),
            tokens,
            computed,
            cached_tokens,
            blocks,
            keys,
            composition,
            num_known,
            tally: Tally::default(),
            fallback_rows: 0,
            submitted,
            admitted: Instant::now(),
            first_token: None,
            ended: None,
        }
    }

    fn progress(&self) -> Progress {
        let known = self.tokens.len();
        Progress { computed: self.computed, known, decoding: self.computed >= self.prompt_len }
    }

    /// Positions whose keys and values are what the tokens and the composition say, whoever computes them.
    fn sharable(&self) -> usize {
        // A row that fell back ran on another composition, and so did all that follows from it.
        if self.fallback_rows > 0 {
            return 0;
        }
        match self.composition.beyond.at_prompt_end {
            // The last token of the prompt is treated as no other token at its place would be.
            true => self.computed.min(self.prompt_len - 1),
            false => self.computed,
        }
    }

    /// A row ran on the base instead. Where the policy is to fail, no token of this step is given out.
    fn fall_back(&mut self) {
        self.fallback_rows += 1;
        if self.composition.fails_on_fault() {
            let router = self.composition.router().map_or("", |router| router.name.as_str());
            let why = self.composition.row_failure().unwrap_or_default();
            let reason = format!(
                "the router `{router}` left a row undecided, and its policy is to fail the request: {why}"
            );
            self.ended = Some(FinishReason::Error(reason));
        }
    }

    /// Takes over the results of a step for the positions in `range`.
    fn advance<'l>(
        &mut self,
        range: std::ops::Range<usize>,
        logits: &mut impl Iterator<Item = &'l mut [f32]>,
        trace: RowTrace,
    ) {
        if range.is_empty() {
            return;
        }
        self.computed = range.end;
        let completes = range.end == self.tokens.len();
        let mut last = None;
        match self.prompt_logprobs {
            Some(top) if range.start < self.prompt_len => {
                for position in range.start.max(self.start_len)..range.end {
                    let Some(row) = logits.next() else { break };
                    if let Some(&next) = self.tokens.get(position + 1) {
                        let logprob = Some(Logprobs::new(row, top).of(next));
                        self.scored.push(PromptLogprob { token: next, logprob });
                    }
                    last = Some(row);
                }
            }
            _ if completes && self.max_tokens > 0 => last = logits.next(),
            _ => {}
        }
        if !completes || self.ended.is_some() {
            return;
        }
        self.report_prompt();
        match last {
            Some(row) if self.max_tokens > 0 => self.emit(row, trace),
            _ => self.ended = Some(FinishReason::Length),
        }
    }

    fn report_prompt(&mut self) {
        if self.prompt_logprobs.is_some() && self.tokens.len() == self.prompt_len {
            let first = PromptLogprob { token: self.tokens[self.start_len], logprob: None };
            let scored = std::iter::once(first).chain(std::mem::take(&mut self.scored)).collect();
            self.send(Event::Prompt(scored));
        }
    }

    fn emit(&mut self, logits: &mut [f32], trace: RowTrace) {
        let (token, logprob) = self.sampler.sample(logits);
        self.first_token.get_or_insert_with(Instant::now);
        self.tally.add(&trace.picks);
        self.tokens.push(token);
        let generated = self.tokens.len() - self.prompt_len;
        let full = self.trace == TraceLevel::Full;
        let RowTrace { picks: routing, experts } = if full { trace } else { RowTrace::default() };
        self.send(Event::Token(TokenEvent { token, logprob, routing, experts }));
        if self.ended.is_some() {
            return;
        }
        if self.stop_tokens.contains(&token) && generated > self.min_tokens {
            self.ended = Some(FinishReason::Stop);
        } else if generated >= self.max_tokens {
            self.ended = Some(FinishReason::Length);
        }
    }

    fn send(&mut self, event: Event) {
        match (self.sink)(event) {
            Reaction::Continue => {}
            Reaction::Stop => self.ended = Some(FinishReason::Stop),
            Reaction::Cancel => self.ended = Some(FinishReason::Cancelled),
        }
    }

    fn finished(&mut self) -> Finished {
        Finished {
            reason: self.ended.take().unwrap_or(FinishReason::Length),
            prompt_tokens: self.prompt_len - self.start_len,
            cached_tokens: self.cached_tokens,
            completion_tokens: self.tokens.len() - self.prompt_len,
            module_share: self.tally.shares(),
            agreement: self.shadow.is_some().then_some(self.agreement),
            fallback_rows: self.fallback_rows,
            time_to_first_token: self.first_token.map(|first| first - self.submitted),
            queue_time: self.admitted - self.submitted,
        }
    }
}
