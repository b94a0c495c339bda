//! A bounded sample of the rows that a router decided in `route`, recorded to make fixtures of.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use polyskill_sdk::{Batch, Decision, Parameters};

/// A row is taken of every so many calls. Prime, so that it falls on other sites in every step,
/// whose calls are a multiple of the layers.
const CALLS_PER_ROW: u64 = 97;
/// Most bytes of one router's recorded rows.
const MOST_BYTES: usize = 16 << 20;

/// One row as `route` got it, and what it decided.
#[derive(Clone, Debug, PartialEq)]
pub struct RoutedRow {
    /// Site number.
    pub site: u32,
    /// Per score, the module's position in the request's candidates.
    pub candidates: Vec<u32>,
    /// Numbers, or −∞ where the program had dropped the candidate before.
    pub scores: Vec<f32>,
    /// The arguments of the plan's `route`.
    pub arguments: Vec<f32>,
    /// Columns and weights, in ascending order of the columns.
    pub picks: Vec<(u32, f32)>,
}

impl RoutedRow {
    /// Bytes in memory, about.
    fn bytes(&self) -> usize {
        let words = self.candidates.len() + self.scores.len() + self.arguments.len();
        size_of::<Self>() + 4 * words + 8 * self.picks.len()
    }
}

/// The recorded rows of one version of a router.
#[derive(Clone, Debug)]
pub struct RoutedRows {
    /// The router's name.
    pub router: String,
    /// Digest of its code.
    pub digest: String,
    /// Its configured parameters, which the instance that decides rows was made with.
    pub parameters: Parameters,
    /// The rows, oldest first.
    pub rows: Vec<RoutedRow>,
}

/// The last rows of a sample, as many as the operator wants. The sample is by calls, so its cost
/// per call is a counter.
#[derive(Debug)]
pub(crate) struct RowSample {
    /// Most rows; 0 records none.
    most: usize,
    /// Calls without hidden states so far.
    calls: AtomicU64,
    /// The recorded rows.
    kept: Mutex<Kept>,
}

/// Recorded rows, and their size.
#[derive(Debug, Default)]
struct Kept {
    rows: VecDeque<RoutedRow>,
    bytes: usize,
}

impl RowSample {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, calls: AtomicU64::new(0), kept: Mutex::default() }
    }

    /// Records a row of some calls; never waits, as this runs between two tokens of everybody.
    /// Calls with hidden states are not recorded, and neither are rows that nobody could use.
    pub(crate) fn offer(&self, batch: &Batch<'_>, decision: &Decision) {
        if self.most == 0 || batch.num_rows == 0 || !batch.hidden.is_empty() {
            return;
        }
        let call = self.calls.fetch_add(1, Relaxed);
        if !call.is_multiple_of(CALLS_PER_ROW) {
            return;
        }
        let at = ((call / CALLS_PER_ROW) % batch.num_rows as u64) as usize;
        let Some(row) = row(batch, decision, at) else { return };
        let Ok(mut kept) = self.kept.try_lock() else { return };
        kept.bytes += row.bytes();
        kept.rows.push_back(row);
        while kept.rows.len() > self.most || kept.bytes > MOST_BYTES {
            let Some(oldest) = kept.rows.pop_front() else { break };
            kept.bytes -= oldest.bytes();
        }
    }

    /// The recorded rows, oldest first.
    pub(crate) fn rows(&self) -> Vec<RoutedRow> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.rows.iter().cloned().collect()
    }
}

/// The row at an index with its checked picks; `None` where the answer is not usable or a score is
/// not a number.
fn row(batch: &Batch<'_>, decision: &Decision, at: usize) -> Option<RoutedRow> {
    let scores = batch.scores_of(at);
    let usable = |score: &f32| score.is_finite() || *score == f32::NEG_INFINITY;
    decision.check_rows(batch.num_rows).ok()?;
    let mut picks = Vec::new();
    decision.row(at, batch.candidates.len(), &mut picks).ok()?;
    picks.sort_unstable_by_key(|(column, _)| *column);
    scores.iter().all(usable).then(|| RoutedRow {
        site: batch.site,
        candidates: batch.candidates.to_vec(),
        scores: scores.to_vec(),
        arguments: batch.arguments.to_vec(),
        picks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(sample: &RowSample, calls: u64, num_rows: usize, columns: usize, score: f32) {
        let candidates: Vec<u32> = (0..columns as u32).collect();
        let scores = vec![score; num_rows * columns];
        let mut decision = Decision::default();
        for row in 0..num_rows {
            decision.pick(columns - 1, row as f32);
            decision.end_row();
        }
        for _ in 0..calls {
            let batch =
                Batch { num_rows, candidates: &candidates, scores: &scores, ..Batch::default() };
            sample.offer(&batch, &decision);
        }
    }

    #[test]
    fn the_last_rows_of_some_calls_are_kept() {
        let sample = RowSample::new(3);
        offer(&sample, 5 * CALLS_PER_ROW, 2, 4, 0.5);
        let rows = sample.rows();
        let weights: Vec<f32> = rows.iter().map(|row| row.picks[0].1).collect();
        assert_eq!(weights, [0.0, 1.0, 0.0], "calls 2, 3 and 4 of those that are looked at");
        assert_eq!((rows[0].picks[0].0, rows[0].scores.len()), (3, 4));
    }

    #[test]
    fn memory_has_a_bound_whatever_the_rows() {
        let sample = RowSample::new(1 << 16);
        offer(&sample, 3 * CALLS_PER_ROW, 1, 1 << 20, 0.5);
        assert_eq!(sample.rows().len(), 1, "a row of 2^20 columns takes 8 MiB");
        offer(&sample, CALLS_PER_ROW, 1, 1 << 22, 0.5);
        assert_eq!(sample.rows().len(), 0, "a row of 2^22 columns is too much");
    }

    #[test]
    fn nothing_is_kept_unasked_or_of_rows_that_are_no_use() {
        let none = RowSample::new(0);
        offer(&none, CALLS_PER_ROW, 1, 2, 0.5);
        assert!(none.rows().is_empty());
        let sample = RowSample::new(8);
        offer(&sample, CALLS_PER_ROW, 1, 2, f32::NAN);
        offer(&sample, CALLS_PER_ROW, 0, 2, 0.5);
        assert!(sample.rows().is_empty());
        offer(&sample, CALLS_PER_ROW, 1, 2, f32::NEG_INFINITY);
        assert_eq!(sample.rows().len(), 1);
    }
}
