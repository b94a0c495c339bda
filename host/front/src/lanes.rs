//! Lanes of work: routers that plan, each on a few requests at a time with a bounded number
//! waiting, so that a slow one is in the way of its own requests alone; and texts, short and long
//! ones apart.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// Bytes of a short text, at most.
const SHORT: usize = 64 << 10;
/// Short texts that are worked on at once.
const SHORT_LANES: usize = 4;

/// The lanes of work on texts.
#[derive(Debug)]
pub struct TextLanes {
    short: Semaphore,
    long: Semaphore,
}

impl Default for TextLanes {
    fn default() -> Self {
        Self { short: Semaphore::new(SHORT_LANES), long: Semaphore::new(1) }
    }
}

impl TextLanes {
    /// Waits for the turn of a text of so many bytes, which lasts until the permit is dropped.
    pub async fn enter(&self, bytes: usize) -> Option<SemaphorePermit<'_>> {
        let lane = if bytes <= SHORT { &self.short } else { &self.long };
        // Nobody closes a lane.
        lane.acquire().await.ok()
    }
}

/// Requests that one router, or chain, plans at a time.
const PLANNED_AT_ONCE: usize = 8;
/// Requests that wait for one router, at most.
const MAX_WAITING: usize = 128;
/// Lanes that are remembered; more are made anew each time they are empty.
const MAX_LANES: usize = 256;

/// The lanes, by the name of the router or chain.
#[derive(Debug, Default)]
pub struct PlanningLanes {
    lanes: Mutex<HashMap<String, Arc<Lane>>>,
}

/// The lane of one router.
#[derive(Debug)]
struct Lane {
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Default for Lane {
    fn default() -> Self {
        Self { permits: Arc::new(Semaphore::new(PLANNED_AT_ONCE)), waiting: AtomicUsize::new(0) }
    }
}

impl PlanningLanes {
    /// Waits for a router's turn, which lasts until the permit is dropped; `None` where as many
    /// requests wait for it as may.
    pub async fn enter(&self, router: &str) -> Option<OwnedSemaphorePermit> {
        let lane = self.lane(router);
        if let Ok(permit) = Arc::clone(&lane.permits).try_acquire_owned() {
            return Some(permit);
        }
        let waits = |waiting| (waiting < MAX_WAITING).then_some(waiting + 1);
        lane.waiting.fetch_update(Relaxed, Relaxed, waits).ok()?;
        // Counts down also where the request is given up.
        let waiting = Waiting(&lane);
        let permit = Arc::clone(&lane.permits).acquire_owned().await.ok();
        drop(waiting);
        permit
    }

    /// The lane of a router.
    fn lane(&self, router: &str) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if lanes.len() >= MAX_LANES {
            lanes.retain(|_, lane| Arc::strong_count(lane) > 1);
        }
        Arc::clone(lanes.entry(router.to_owned()).or_default())
    }
}

/// A request that waits for its turn.
struct Waiting<'a>(&'a Lane);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_slow_router_is_in_the_way_of_its_own_requests_alone() {
        let lanes = PlanningLanes::default();
        let mut turns = Vec::new();
        for _ in 0..PLANNED_AT_ONCE {
            turns.push(lanes.enter("slow").await.unwrap());
        }
        let mut waiting: Vec<_> = (0..MAX_WAITING).map(|_| Box::pin(lanes.enter("slow"))).collect();
        assert!(waiting.iter_mut().all(|turn| turn.now_or_never().is_none()));
        assert!(lanes.enter("slow").await.is_none(), "one too many");
        assert!(lanes.enter("other").await.is_some());
        drop(waiting);
        turns.pop();
        assert!(lanes.enter("slow").await.is_some());
    }
}
