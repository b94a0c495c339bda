//! A small pool of compute threads for the kernels of one step.
//!
//! A decode step runs some 150 parallel regions of a few microseconds each, so entering one must
//! cost well under a microsecond: workers spin briefly between regions and sleep when the engine is
//! idle. The thread that runs a task has no influence on its result.

#![expect(unsafe_code, reason = "hands a borrowed closure to worker threads and waits for them")]

use std::cell::UnsafeCell;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};

/// Spins before a worker goes to sleep: about 50 µs, longer than any gap inside a step.
const SPINS_BEFORE_SLEEP: u32 = 2_000;
/// Bit of the state that says that workers may enter the job.
const OPEN: u64 = 1;
/// Unit of the state's count of workers inside the job.
const ACTIVE: u64 = 2;
/// Unit of the state's number of the job; it wraps after 2³² jobs.
const GENERATION: u64 = 1 << 32;

/// A region's task with its lifetime erased.
type Task = dyn Fn(usize) + Sync + 'static;

/// A pool of compute threads; the calling thread is one of them.
///
/// Tasks are handed out one by one from a shared counter, so that uneven ones balance. Threads that
/// the system refuses are done without.
pub struct Compute {
    /// State that callers and workers share.
    shared: Arc<Shared>,
    /// The threads besides the caller, for joining.
    workers: Vec<JoinHandle<()>>,
    /// The same threads, for waking.
    threads: Vec<Thread>,
    /// Serialises callers; the engine has one, so it is never contended there.
    caller: Mutex<()>,
    /// Bits of activations in products with quantised weights.
    activation_bits: ActivationBits,
}

/// State of the pool: the current job, and counters that order access to it.
struct Shared {
    /// `generation << 32 | active workers << 1 | open`. Workers may enter a job only while it is
    /// open.
    state: AtomicU64,
    /// The current task and the number of its calls; `None` before the first job.
    job: UnsafeCell<Option<(*const Task, usize)>>,
    /// The next call that nobody has taken.
    next: AtomicUsize,
    /// Workers that are parked or about to park; zero spares the caller the system calls of waking.
    sleeping: AtomicUsize,
    /// True if a task of the current job panicked on a worker.
    panicked: AtomicBool,
    /// True once the pool is dropped.
    stop: AtomicBool,
}

// SAFETY: `job` is written only by the caller while no worker is active and the job is closed, and read
// by workers only between a successful entry and the matching exit; `state` orders both.
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointer is used only while the caller waits inside `run`.
unsafe impl Send for Shared {}

impl fmt::Debug for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compute").field("threads", &self.num_threads()).finish()
    }
}

/// Bits of activations in products with quantised weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ActivationBits {
    /// One plane of 8 bits, as llama.cpp has it.
    #[default]
    Eight,
    /// A second plane for what the first leaves: twice the products, and a rounding that log-probabilities
    /// do not show.
    Sixteen,
}

impl Compute {
    /// The same pool, with other bits for activations in products with quantised weights.
    pub fn with_activation_bits(mut self, activation_bits: ActivationBits) -> Self {
        self.activation_bits = activation_bits;
        self
    }

    /// Bits of activations in products with quantised weights.
    pub fn activation_bits(&self) -> ActivationBits {
        self.activation_bits
    }

    /// Starts a pool of `num_threads` threads, the caller included; at least one.
    pub fn new(num_threads: usize) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            sleeping: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let workers: Vec<_> = (1..num_threads.max(1))
            .filter_map(|index| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("compute-{index}"))
                    .spawn(move || shared.work())
                    .ok()
            })
            .collect();
        let threads = workers.iter().map(|worker| worker.thread().clone()).collect();
        let activation_bits = ActivationBits::default();
        Self { shared, workers, threads, caller: Mutex::new(()), activation_bits }
    }

    /// A pool as wide as the machine.
    pub fn for_this_machine() -> Self {
        Self::new(std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// Threads that a region runs on, the caller included.
    pub fn num_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0) .. task(num_tasks - 1)`, each once, and returns when all are done.
    ///
    /// Each call is a region of its own; a second caller waits. A task must not call `run` of the
    /// same pool: it would wait for itself.
    ///
    /// # Panics
    /// If a task panicked on a worker.
    pub fn run(&self, num_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if num_tasks <= 1 || self.workers.is_empty() {
            (0..num_tasks).for_each(task);
            return;
        }
        let _caller = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        let generation = (shared.state.load(Ordering::Relaxed) >> 32).wrapping_add(1) & 0xffff_ffff;
        // SAFETY: the job is closed and nobody is active (ensured by `CloseOnDrop` below and at the end
        // of the last run), so no worker reads it. The lifetime is erased only until this call returns.
        unsafe {
            let task: *const Task =
                std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static Task>(task);
            *shared.job.get() = Some((task, num_tasks));
        }
        shared.next.store(0, Ordering::Relaxed);
        // Where the caller's own task panicked too, nobody has looked at the last job's.
        shared.panicked.store(false, Ordering::Relaxed);
        shared.state.store((generation * GENERATION) | OPEN, Ordering::SeqCst);
        if shared.sleeping.load(Ordering::SeqCst) > 0 {
            self.threads.iter().for_each(Thread::unpark);
        }
        let closing = CloseOnDrop(shared);
        shared.take_tasks(task, num_tasks);
        drop(closing);
        assert!(
            !shared.panicked.load(Ordering::SeqCst),
            "a compute task panicked on a worker thread"
        );
    }
}

impl Drop for Compute {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.threads.iter().for_each(Thread::unpark);
        for worker in self.workers.drain(..) {
            // A worker cannot panic outside a task, and those are caught.
            let _ = worker.join();
        }
    }
}

/// Closes the job and waits for the workers inside it, also when the caller's own task panics.
struct CloseOnDrop<'a>(&'a Shared);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.fetch_and(!OPEN, Ordering::SeqCst) & !OPEN;
        while state & 0xffff_ffff != 0 {
            std::hint::spin_loop();
            state = self.0.state.load(Ordering::Acquire);
        }
    }
}

impl Shared {
    /// Runs calls until none is left. Callers and workers do this side by side.
    fn take_tasks(&self, task: &(dyn Fn(usize) + Sync), num_tasks: usize) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= num_tasks {
                return;
            }
            task(index);
        }
    }

    /// A worker's life: enters each open job once, and waits for the next.
    fn work(&self) {
        let mut last_generation = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let state = self.state.load(Ordering::Acquire);
            if state & OPEN == 0 || state >> 32 == last_generation {
                self.wait(last_generation);
                continue;
            }
            let entered = self.state.compare_exchange_weak(
                state,
                state + ACTIVE,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
            if entered.is_ok() {
                last_generation = state >> 32;
                self.run_entered_job();
            }
        }
    }

    /// Takes calls of the job that this worker has entered, then leaves it. A panic is caught and
    /// noted, as the caller waits for the worker.
    fn run_entered_job(&self) {
        // SAFETY: this worker is counted as active, so the caller is still inside `run` and keeps the
        // closure alive and `job` unchanged until the count drops below.
        let job = unsafe { *self.job.get() };
        if let Some((task, num_tasks)) = job {
            // SAFETY: as above.
            let task = unsafe { &*task };
            let run = std::panic::AssertUnwindSafe(|| self.take_tasks(task, num_tasks));
            if std::panic::catch_unwind(run).is_err() {
                self.panicked.store(true, Ordering::SeqCst);
            }
        }
        self.state.fetch_sub(ACTIVE, Ordering::Release);
    }

    /// True if there is a job that the worker has not entered yet, or the pool stops.
    fn has_news(&self, last_generation: u64) -> bool {
        let state = self.state.load(Ordering::SeqCst);
        (state & OPEN != 0 && state >> 32 != last_generation) || self.stop.load(Ordering::SeqCst)
    }

    /// Spins, then parks until there is news. The count of sleepers is raised before the last look,
    /// so that a caller that opens a job either sees the sleeper or is seen by it.
    fn wait(&self, last_generation: u64) {
        for _ in 0..SPINS_BEFORE_SLEEP {
            if self.has_news(last_generation) {
                return;
            }
            std::hint::spin_loop();
        }
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        if !self.has_news(last_generation) {
            std::thread::park();
        }
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A mutable buffer that tasks of one region write at disjoint places.
///
/// A raw pointer with a length and without a lifetime: the callers keep the buffer alive for the
/// region.
#[derive(Clone, Copy)]
pub struct SharedMut<T> {
    /// The first element.
    pointer: *mut T,
    /// Number of elements, against which every slice is checked.
    len: usize,
}

// SAFETY: access goes through `slice`, whose contract demands disjoint ranges.
unsafe impl<T: Send> Sync for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for SharedMut<T> {}

impl<T> fmt::Debug for SharedMut<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMut").field("len", &self.len).finish()
    }
}

impl<T> SharedMut<T> {
    /// Wraps a buffer for one parallel region.
    pub fn new(buffer: &mut [T]) -> Self {
        Self { pointer: buffer.as_mut_ptr(), len: buffer.len() }
    }

    /// The elements `start .. start + len`.
    ///
    /// # Safety
    /// The buffer must outlive the region, and no two live slices may overlap.
    ///
    /// # Panics
    /// If the range lies outside the buffer.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise")]
    pub unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "range outside the shared buffer");
        // SAFETY: in bounds by the assertion; exclusive by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_exactly_once() {
        for threads in [1, 2, 4] {
            let compute = Compute::new(threads);
            for num_tasks in [0, 1, 2, 7, 100] {
                for _ in 0..200 {
                    let counts: Vec<AtomicUsize> =
                        (0..num_tasks).map(|_| AtomicUsize::new(0)).collect();
                    compute.run(num_tasks, &|index| {
                        counts[index].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn a_panicking_task_reaches_the_caller_and_the_pool_survives() {
        let compute = Compute::new(3);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            compute.run(64, &|index| assert!(index != 40, "boom"));
        }));
        assert!(result.is_err());
        let sum = AtomicUsize::new(0);
        compute.run(10, &|index| {
            sum.fetch_add(index, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }

    #[test]
    fn panics_of_caller_and_worker_end_with_their_region() {
        let compute = Compute::new(2);
        assert_eq!(compute.num_threads(), 2);
        // Neither panics before the other has a task as well.
        let both = std::sync::Barrier::new(2);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            compute.run(2, &|_| {
                both.wait();
                panic!("boom");
            });
        }));
        assert!(result.is_err());
        let sum = AtomicUsize::new(0);
        compute.run(10, &|index| {
            sum.fetch_add(index, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }
}
