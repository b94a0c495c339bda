//! The engine thread: it alone owns model, KV cache and scheduler, and is reached by commands.
//!
//! One turn of its loop: take commands, admit, plan a step, run it, sample and emit.

mod admission;
mod blocks;
mod fair_queue;
mod handle;
mod layout;
mod pace;
mod sampling;
mod scheduler;
mod sequence;
pub(crate) mod trace;

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use polyskill_model::{Decoder, KvCache, Scratch, Step};

use self::blocks::Blocks;
use self::fair_queue::FairQueue;
use self::handle::{Command, TENANTS_WAITING, Waiting};
pub use self::handle::{Completed, EngineConfig, Events, Handle, SubmitError};
use self::layout::Layout;
use self::pace::{Load, Pace, RowCost};
use self::scheduler::{Budget, Progress, plan};
use self::sequence::Sequence;
use self::trace::RowTrace;
use crate::hooks::StepHooks;
use crate::hooks::record::Record;
use crate::request::{Event, FinishReason, RequestId};
use crate::stats::Stats;

/// The running engine; dropping it finishes the requests that run and wait, and blocks until then.
#[derive(Debug)]
pub struct Engine {
    /// The way to the thread, cloned for callers.
    handle: Handle,
    /// The thread; `None` once it was drained.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// Starts the engine thread, which allocates the KV cache.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn start(model: Arc<Decoder>, config: EngineConfig) -> std::io::Result<Self> {
        let (commands, receiver) = sync_channel((TENANTS_WAITING + 1) * config.max_waiting + 64);
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
        let row_cost = RowCost::of(model.config());
        let target = Duration::from_millis(config.prompt_step_milliseconds);
        let run = move || {
            // Told however the thread ends.
            let _ended = Ended(Arc::clone(&stats));
            let kv = KvCache::new(model.config(), num_blocks);
            let blocks = Blocks::new(num_blocks);
            let state = State {
                model,
                config,
                stats,
                kv,
                blocks,
                waiting: FairQueue::default(),
                pace: Pace::new(target, config.max_prompt_rows_while_decoding, config.max_rows),
                row_cost,
                running: Vec::new(),
                preempted: VecDeque::new(),
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

    /// Finishes the requests that were submitted, then stops the thread. Blocks until it has ended;
    /// a second call returns at once.
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

/// Tells of the end of the engine's thread when it is dropped.
struct Ended(Arc<Stats>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.ends();
    }
}

/// The engine thread's own state. Nothing else touches it, so it needs no locks.
struct State {
    model: Arc<Decoder>,
    config: EngineConfig,
    /// Counters that others read.
    stats: Arc<Stats>,
    /// Keys and values of all blocks.
    kv: KvCache,
    /// The use and the content of these blocks.
    blocks: Blocks,
    /// Requests that were not admitted yet.
    waiting: FairQueue<Waiting>,
    /// The bound on prompts beside streams.
    pace: Pace,
    /// The cost of rows by their positions.
    row_cost: RowCost,
    /// Requests in execution, in the order of admission; each holds its blocks.
    running: Vec<Sequence>,
    /// Requests that had to give their blocks up, in the order of admission. They go on before any
    /// request is admitted.
    preempted: VecDeque<Sequence>,
    /// The model's buffers, reused from step to step.
    scratch: Scratch,
    /// True once the thread is to end when nothing runs or waits.
    draining: bool,
}

impl State {
    /// The loop, until it drains. A panic in a step fails the requests that run and no others:
    /// their blocks are released, and blocks that were made known before stay.
    fn run(mut self, commands: &Receiver<Command>) {
        loop {
            self.take_commands(commands);
            self.admit();
            if self.running.is_empty() {
                if self.draining && self.waiting.is_empty() && self.preempted.is_empty() {
                    return Self::refuse_late(commands);
                }
                continue;
            }
            self.stats.step_begins();
            let step = std::panic::catch_unwind(AssertUnwindSafe(|| self.step()));
            self.stats.step_ends();
            if step.is_err() {
                tracing::error!("a step panicked; its requests fail and the engine goes on");
                let failed = FinishReason::Error("the engine failed in a step".to_owned());
                self.running.iter_mut().for_each(|running| running.ended = Some(failed.clone()));
            }
            self.retire();
        }
    }

    /// Ends the requests that came behind the order to stop: nothing that was taken stays unheard.
    fn refuse_late(commands: &Receiver<Command>) {
        while let Ok(command) = commands.try_recv() {
            if let Command::Submit(waiting) = command {
                waiting.end(FinishReason::Cancelled);
            }
        }
    }

    /// Takes the commands that have come. Waits for one where there is nothing else to do, so that
    /// an idle engine takes no time.
    fn take_commands(&mut self, commands: &Receiver<Command>) {
        let idle = self.running.is_empty()
            && self.waiting.is_empty()
            && self.preempted.is_empty()
            && !self.draining;
        let first = if idle {
            commands.recv().map_err(|_| TryRecvError::Disconnected)
        } else {
            commands.try_recv()
        };
        let mut next = first;
        loop {
            match next {
                Ok(Command::Submit(waiting)) => self.waiting.push(*waiting),
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

    /// Ends a request that runs or waits. An unknown one has ended already and is left alone.
    fn cancel(&mut self, id: RequestId) {
        if let Some(running) = self.running.iter_mut().find(|running| running.id == id) {
            running.ended = Some(FinishReason::Cancelled);
        }
        let position = self.preempted.iter().position(|preempted| preempted.id == id);
        if let Some(mut preempted) = position.and_then(|position| self.preempted.remove(position)) {
            preempted.ended = Some(FinishReason::Cancelled);
            self.running.push(preempted);
        }
        if let Some(waiting) = self.waiting.remove(id) {
            self.left_queue(&waiting);
            waiting.end(FinishReason::Cancelled);
        }
        self.retire();
    }

    /// Makes full blocks known under their keys, as far as [`Sequence::sharable`] allows it. Later
    /// requests with the same beginning find them.
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

    /// Reports and removes requests that have ended. Blocks and composition are let go before the
    /// sink hears of the end.
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
            self.waiting.ends(&ended.tenant);
            let finished = ended.finished();
            // The modules are free before anyone can hear of the end.
            let Sequence { composition, mut sink, .. } = ended;
            drop(composition);
            sink(Event::Finished(finished));
        }
    }

    /// One step: rows of all running requests through the model, then a token for each that got
    /// logits. Rows that fell back are noted first: where the policy is to fail, they end their
    /// request before its token is given out.
    fn step(&mut self) {
        let started = Instant::now();
        self.grow();
        let progress: Vec<Progress> = self.running.iter().map(Sequence::progress).collect();
        let budget = Budget {
            rows: self.config.max_rows,
            prompt_rows_while_decoding: self.config.max_prompt_rows_while_decoding,
            prompt_cost: self.pace.limit(load(&progress)),
            row_cost: self.row_cost,
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
        let mut hooks = StepHooks::new(&compute, activation, &layout.tokens, &layout.spans);
        let logits = self.model.forward(&step, &mut self.kv, &mut hooks, &mut self.scratch);
        let Record { picks: recorded, experts: recorded_experts, agreed, fallback_rows } =
            hooks.record;
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
        let forward = started.elapsed();
        let mut rows = logits.chunks_exact_mut(vocab_size);
        let computed: Vec<Range<usize>> = ranges.clone();
        let planned = ranges.into_iter().zip(layout.logit_positions).zip(routed);
        for (sequence, ((range, logits), mut trace)) in self.running.iter_mut().zip(planned) {
            trace.picks.sort_by_key(|picks| picks.site);
            sequence.advance(range, logits, &mut rows, trace);
        }
        self.observe(&progress, &computed, forward);
        self.make_blocks_known();
        self.stats.fallback_rows.fetch_add(fallback_rows.len() as u64, Relaxed);
        self.stats.steps.fetch_add(1, Relaxed);
        self.stats.rows.fetch_add(layout.tokens.len() as u64, Relaxed);
        self.stats.step_microseconds.fetch_add(started.elapsed().as_micros() as u64, Relaxed);
    }

    /// Charges tenants for what was computed, and tells the pace how long it took. A generated token
    /// counts twice: its row has the step's weights to itself, or nearly so.
    fn observe(&mut self, progress: &[Progress], computed: &[Range<usize>], time: Duration) {
        let mut prompt_cost = 0.0;
        for ((sequence, progress), range) in self.running.iter().zip(progress).zip(computed) {
            match progress.decoding {
                true => self.waiting.charge(&sequence.tenant, 2),
                false => self.waiting.charge(&sequence.tenant, range.len()),
            }
            if !progress.decoding {
                prompt_cost += self.row_cost.of_rows(range.start, range.len());
            }
        }
        self.pace.observe(load(progress), prompt_cost, time);
    }
}

/// The sequences of a step.
fn load(progress: &[Progress]) -> Load {
    let streams = progress.iter().filter(|progress| progress.decoding).count();
    Load { streams, prompts: progress.len() - streams }
}
