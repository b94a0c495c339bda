//! The record of a step: picks, experts and agreement of rows that are traced, and rows that fell
//! back.

use crate::hooks::shadow::Agreement;
use crate::hooks::{Cell, RowSpan};
use crate::step::trace::{LayerExperts, SitePicks};

/// The picks of a row at a site.
#[derive(Debug)]
pub(crate) struct RecordedPicks {
    /// Number of the row in the step.
    pub(crate) row: usize,
    /// The site, and the picks there.
    pub(crate) picks: SitePicks,
}

/// Everything that is recorded in a step, or by one task of it. Rows are those of the step.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// Picks of traced rows, in no order of sites.
    pub(crate) picks: Vec<RecordedPicks>,
    /// Rows with the choice of experts at a sparse layer.
    pub(crate) experts: Vec<(usize, LayerExperts)>,
    /// Rows with the agreement of a shadow.
    pub(crate) agreed: Vec<(usize, Agreement)>,
    /// Rows, once per site, where the router's answer was not usable.
    pub(crate) fallback_rows: Vec<usize>,
}

impl Record {
    /// Adds the record of a task.
    pub(crate) fn extend(&mut self, task: Self) {
        self.picks.extend(task.picks);
        self.experts.extend(task.experts);
        self.agreed.extend(task.agreed);
        self.fallback_rows.extend(task.fallback_rows);
    }

    /// Records the picks of a row at a site, if the row is traced; `scores` are the best
    /// candidates' where a full trace wants them.
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
