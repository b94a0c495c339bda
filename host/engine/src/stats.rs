//! Counters and gauges of the engine, written by its thread and read by anyone.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

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
    pub(crate) prefix_queries: AtomicU64,
    pub(crate) prefix_hits: AtomicU64,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatsSnapshot {
    /// Requests in the queue, not admitted yet.
    pub waiting: usize,
    /// Requests in execution.
    pub running: usize,
    /// KV blocks that requests hold, for the whole length that they may reach.
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
    /// Prompt tokens of admitted requests that may share cached beginnings.
    pub prefix_queries: u64,
    /// Prompt tokens, of these, whose keys and values were in the cache.
    pub prefix_hits: u64,
}

impl Stats {
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
            prefix_queries: self.prefix_queries.load(Relaxed),
            prefix_hits: self.prefix_hits.load(Relaxed),
        }
    }
}
