//! The clock that deadlines are counted by. It ticks while plugins run, and for a moment after: a
//! thread that wakes a thousand times a second would cost every step of the model some per cent.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use wasmtime::Engine;

/// The unit of wall-clock deadlines.
///
/// A call ends at the first tick behind its deadline at which its code looks at the epoch.
pub(crate) const EPOCH: Duration = Duration::from_millis(1);
/// Most units that the clock makes up for at once: a machine that stood still ends no call.
const MOST_TICKS: u128 = 3;
/// Ticks without a running call after which the clock stands still.
const IDLE_TICKS: u32 = 50;

/// Counts running calls and drives an engine's epochs while there are any.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    /// Calls during which the clock must tick.
    running: AtomicUsize,
    /// True while the thread waits to be woken.
    parked: AtomicBool,
    /// True once the thread is to end.
    stopped: AtomicBool,
    /// The clock's thread, for waking.
    thread: OnceLock<Thread>,
}

/// A call during which the clock ticks.
///
/// The clock ticks for a moment after the last one is dropped, as calls come in bursts.
pub(crate) struct Running<'a>(&'a Clock);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
    }
}

impl Clock {
    /// Starts the clock's thread for an engine.
    ///
    /// The thread holds the engine weakly, so that it ends with it even if nobody stops it.
    pub(crate) fn start(engine: &Engine) -> std::io::Result<Arc<Self>> {
        let clock = Arc::new(Self::default());
        let (ticking, engine) = (Arc::clone(&clock), engine.weak());
        let tick = move || {
            let mut last = Instant::now();
            let mut idle = 0;
            while !ticking.stopped.load(SeqCst) {
                let Some(engine) = engine.upgrade() else { return };
                // Sleep takes longer than it is asked to; without this, deadlines would too.
                let due = last.elapsed().as_millis() / EPOCH.as_millis();
                last = Instant::now();
                (0..due.clamp(1, MOST_TICKS)).for_each(|_| engine.increment_epoch());
                drop(engine);
                idle = if ticking.running.load(SeqCst) == 0 { idle + 1 } else { 0 };
                if idle < IDLE_TICKS {
                    std::thread::sleep(EPOCH);
                    continue;
                }
                ticking.parked.store(true, SeqCst);
                // A call that began before this saw no parked thread; one that begins after it wakes us.
                if ticking.running.load(SeqCst) == 0 && !ticking.stopped.load(SeqCst) {
                    std::thread::park();
                }
                ticking.parked.store(false, SeqCst);
                (last, idle) = (Instant::now(), 0);
            }
        };
        let thread = std::thread::Builder::new().name("plugin-clock".to_owned()).spawn(tick)?;
        let _ = clock.thread.set(thread.thread().clone());
        Ok(clock)
    }

    /// Keeps the clock ticking until the result is dropped.
    ///
    /// Costs a system call only where the thread is parked.
    pub(crate) fn run(&self) -> Running<'_> {
        self.running.fetch_add(1, SeqCst);
        if self.parked.load(SeqCst) {
            self.wake();
        }
        Running(self)
    }

    /// Ends the thread, without waiting for it.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, SeqCst);
        self.wake();
    }

    /// Wakes the thread if it is parked, else lets its next park return at once.
    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}
