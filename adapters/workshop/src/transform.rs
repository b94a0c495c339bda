//! Making new modules out of modules: merging, and transforms of one.
//!
//! A transform writes new directories and never touches what it reads, so the original keeps its
//! generation and the result gets its own. The same inputs give the same bytes. Router artefacts
//! are not taken along, since they belong to the original's weights.

pub(crate) mod eigen;
pub(crate) mod factors;
mod general;
pub(crate) mod matrix;
mod merge;
mod project;
pub(crate) mod prompt;
mod provenance;
mod recipe;
mod refine;
mod rescale;
pub(crate) mod source;
mod sparse;
mod svd;
#[cfg(test)]
pub(crate) mod testing;
mod upcycle;
pub(crate) mod write;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use polyskill_adapters::Generation;

pub use general::gen_know_sub;
pub use merge::{MergeOptions, Weighted, merge};
pub use project::project_out;
pub use prompt::{PromptSum, prompt_sum, prompt_vector};
pub use recipe::Method;
pub use refine::{Refinement, refine};
pub use rescale::{Scaling, rescale};
pub use sparse::Sign;
pub use svd::Rank;
pub use upcycle::{ATTENTION, Upcycled, upcycle};
pub use write::Dtype;

/// Called as work proceeds with `(sites done, sites in all)`. Upcycling counts modules in place of
/// sites.
pub type Progress<'a> = &'a mut dyn FnMut(usize, usize);

/// A module that was made.
#[derive(Clone, Debug, PartialEq)]
pub struct Made {
    /// The directory that it lies in.
    pub path: PathBuf,
    /// Its identity, as it was read back after it was written.
    pub generation: Generation,
    /// A report on each site, by ascending path. Empty where no sites are reported, as of prompts
    /// and upcycled modules.
    pub sites: Vec<SiteReport>,
}

impl Made {
    /// The worst and the mean of the sites' distances from the deltas that the method means.
    pub fn errors(&self) -> Errors {
        Errors::of(&self.sites)
    }
}

/// The result at one site.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteReport {
    /// The path of the linear.
    pub site: String,
    /// The new rank.
    pub rank: usize,
    /// Relative Frobenius distance of the stored delta from the one that the method means: what was
    /// cut off with the rank, and rounding.
    pub error: f64,
    /// Relative Frobenius distance of the stored delta from the exact weighted sum of the sources'
    /// deltas; of one source, from its delta.
    pub from_sum: f64,
}

/// Errors of sites in two numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Errors {
    /// The largest error of a site; 0 without sites.
    pub worst: f64,
    /// The mean over sites, each with the same weight; 0 without sites.
    pub mean: f64,
}

impl Errors {
    /// Errors of reports in two numbers. Distances from the sum of sources are not among them.
    fn of(reports: &[SiteReport]) -> Self {
        let worst = reports.iter().fold(0.0, |worst: f64, report| worst.max(report.error));
        let sum: f64 = reports.iter().map(|report| report.error).sum();
        Self { worst, mean: sum / reports.len().max(1) as f64 }
    }
}

/// Does `work` for each number below `count` on so many threads, at least one; results in order.
///
/// A thread takes the next number when it is done with one, so uneven work is shared evenly.
/// `progress` is called on the caller's thread, with every result, in the order in which they come.
/// Results do not depend on the number of threads if `work` does not.
pub(crate) fn in_parallel<T: Send>(
    count: usize,
    threads: usize,
    progress: Progress<'_>,
    work: impl Fn(usize) -> T + Sync,
) -> Vec<T> {
    let mut results: Vec<Option<T>> = (0..count).map(|_| None).collect();
    let next = AtomicUsize::new(0);
    let (sender, receiver) = channel();
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, count.max(1)) {
            let (sender, next, work) = (sender.clone(), &next, &work);
            scope.spawn(move || {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= count || sender.send((at, work(at))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for (done, (at, result)) in receiver.iter().enumerate() {
            results[at] = Some(result);
            progress(done + 1, count);
        }
    });
    results.into_iter().flatten().collect()
}
