//! The record of a step: picks, experts and agreement of rows that are traced, and rows that fell back.

use crate::hooks::shadow::Agreement;
use crate::hooks::{Cell, RowSpan};
use crate::step::trace::{LayerExperts, SitePicks};

/// The picks of a row at a site.
#[derive(Debug)]
pub(crate) struct RecordedPicks {
    pub(crate) row: usize,
    pub(crate) picks: SitePicks,
}

/// Everything that is recorded in a step, or by one task of it. Rows are those of the step.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) picks: Vec<RecordedPicks>,
    /// Rows with what a sparse layer did with them.
    pub(crate) experts: Vec<(usize, LayerExperts)>,
    /// Rows with how far a shadow decided alike.
    pub(crate) agreed: Vec<(usize, Agreement)>,
    /// Rows, once per site, where the router's answer was not usable.
    pub(crate) fallback_rows: Vec<usize>,
}

impl Record {
    /// Adds what a task has recorded.
    pub(crate) fn extend(&mut self, task: Self) {
        self.picks.extend(task.picks);
        self.experts.extend(task.experts);
        self.agreed.extend(task.agreed);
        self.fallback_rows.extend(task.fallback_rows);
    }

    /// The picks of a row at a site, where its span is traced; `scores` are the best candidates' where a
    /// full trace asked for them.
    pub(crate) fn pick(
        &mut self,
        span: &RowSpan,
        cell: Cell,
        picks: &[(u32, f32)],
        scores: Vec<(u32, f32)>,
    ) {
        if span.is_traced(cell.row) {
            let picks = SitePicks { site: cell.site as u32, picks: picks.to_vec(), scores };
            self.picks.push(RecordedPicks { row: cell.row, picks });
        }
    }
}
