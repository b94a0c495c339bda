//! Counters and gauges of the engine, written by its thread and read by anyone.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use dashmap::DashMap;

/// Live counters, see [`StatsSnapshot`]. Each is exact by itself; two may be read between two
/// changes that belong together.
#[derive(Debug, Default)]
pub struct Stats {
    /// Gauge; raised by the submitting thread, lowered by the engine's.
    pub(crate) waiting: AtomicUsize,
    /// Gauge of admitted requests.
    pub(crate) running: AtomicUsize,
    /// Gauge of blocks that requests hold; blocks with content that nobody uses do not count.
    pub(crate) kv_blocks_used: AtomicUsize,
    pub(crate) kv_blocks: AtomicUsize,
    pub(crate) steps: AtomicU64,
    pub(crate) rows: AtomicU64,
    pub(crate) step_microseconds: AtomicU64,
    pub(crate) fallback_rows: AtomicU64,
    pub(crate) preemptions: AtomicU64,
    pub(crate) prefix_queries: AtomicU64,
    pub(crate) prefix_hits: AtomicU64,
    /// Requests in the queue by tenant; tenants without any are left out.
    waiting_by_tenant: DashMap<Arc<str>, usize>,
    /// The beginning of the step that runs, in microseconds after [`BEGIN`], and 1; 0 between steps.
    step_began: AtomicU64,
    /// True once the engine's thread has ended.
    ended: AtomicBool,
}

/// A moment before all steps.
static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The counters at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatsSnapshot {
    /// Requests in the queue, not admitted yet.
    pub waiting: usize,
    /// Requests in execution.
    pub running: usize,
    /// KV blocks that requests hold, for their tokens so far.
    pub kv_blocks_used: usize,
    /// KV blocks in all.
    pub kv_blocks: usize,
    /// Steps run since the start.
    pub steps: u64,
    /// Rows computed since the start, of prompts and of generated tokens.
    pub rows: u64,
    /// Time spent in steps, in microseconds, sampling and sinks included.
    pub step_microseconds: u64,
    /// Rows where a router's answer was not usable, counted once per site.
    pub fallback_rows: u64,
    /// Requests that gave their blocks up for earlier ones, and are computed again.
    pub preemptions: u64,
    /// Prompt tokens of admitted requests that may share cached beginnings.
    pub prefix_queries: u64,
    /// Prompt tokens, of these, whose keys and values were in the cache.
    pub prefix_hits: u64,
}

impl Stats {
    /// The time for which the step that runs has been running; `None` between steps.
    pub fn time_in_step(&self) -> Option<Duration> {
        let began = self.step_began.load(Relaxed).checked_sub(1)?;
        Some(BEGIN.elapsed().saturating_sub(Duration::from_micros(began)))
    }

    /// True once the engine's thread has ended: no request will be answered.
    pub fn has_ended(&self) -> bool {
        self.ended.load(Relaxed)
    }

    /// Requests of a tenant in the queue.
    pub(crate) fn waiting_of(&self, tenant: &str) -> usize {
        self.waiting_by_tenant.get(tenant).map_or(0, |waiting| *waiting)
    }

    /// Counts a request of a tenant that comes into the queue; false where `most` wait already.
    pub(crate) fn enters_queue(&self, tenant: &Arc<str>, most: usize) -> bool {
        let mut waiting = self.waiting_by_tenant.entry(Arc::clone(tenant)).or_default();
        let enters = *waiting < most;
        *waiting += usize::from(enters);
        enters
    }

    /// Counts a request of a tenant that has left the queue.
    pub(crate) fn left_queue(&self, tenant: &str) {
        self.waiting_by_tenant.remove_if_mut(tenant, |_, waiting| {
            *waiting = waiting.saturating_sub(1);
            *waiting == 0
        });
    }

    /// Notes the beginning of a step.
    pub(crate) fn step_begins(&self) {
        self.step_began.store(BEGIN.elapsed().as_micros() as u64 + 1, Relaxed);
    }

    /// Notes the end of a step.
    pub(crate) fn step_ends(&self) {
        self.step_began.store(0, Relaxed);
    }

    /// Notes the end of the engine's thread.
    pub(crate) fn ends(&self) {
        self.ended.store(true, Relaxed);
    }

    /// Reads all counters.
    pub fn snapshot(&self) -> StatsSnapshot {
        StatsSnapshot {
            waiting: self.waiting.load(Relaxed),
            running: self.running.load(Relaxed),
            kv_blocks_used: self.kv_blocks_used.load(Relaxed),
            kv_blocks: self.kv_blocks.load(Relaxed),
            steps: self.steps.load(Relaxed),
            rows: self.rows.load(Relaxed),
            step_microseconds: self.step_microseconds.load(Relaxed),
            fallback_rows: self.fallback_rows.load(Relaxed),
            preemptions: self.preemptions.load(Relaxed),
            prefix_queries: self.prefix_queries.load(Relaxed),
            prefix_hits: self.prefix_hits.load(Relaxed),
        }
    }
}
