//! The rows of a step, laid out flat.

use std::ops::Range;

use super::sequence::Sequence;
use crate::hooks::RowSpan;

/// The flat rows of a step, those of each sequence behind one another, in the order of `running`.
pub(super) struct Layout {
    /// Token of each row.
    pub(super) tokens: Vec<u32>,
    /// Position of each row in its sequence, placeholders included.
    pub(super) positions: Vec<u32>,
    /// The sequence of each row, by its place in `running`.
    pub(super) sequences: Vec<u32>,
    /// Rows whose logits are computed, ascending.
    pub(super) logit_rows: Vec<u32>,
    /// The same by sequence, as positions: each sequence reads its logits there. Empty ranges where
    /// none are computed.
    pub(super) logit_positions: Vec<Range<usize>>,
    /// Sequences that have rows, for the hooks; those without are left out.
    pub(super) spans: Vec<RowSpan>,
}

impl Layout {
    /// Rows for the positions that were planned of each sequence; `planned` has a range for every
    /// one.
    pub(super) fn new(sequences: &[Sequence], planned: &[Range<usize>]) -> Self {
        let mut layout = Self {
            tokens: Vec::new(),
            positions: Vec::new(),
            sequences: Vec::new(),
            logit_rows: Vec::new(),
            logit_positions: Vec::new(),
            spans: Vec::new(),
        };
        for (index, (sequence, range)) in sequences.iter().zip(planned).enumerate() {
            let first = layout.tokens.len();
            layout.tokens.extend_from_slice(&sequence.tokens[range.clone()]);
            layout.positions.extend(range.clone().map(|position| position as u32));
            layout.sequences.resize(layout.tokens.len(), index as u32);
            let rows = first..layout.tokens.len();
            let wanted = sequence.logit_positions(range);
            let row = |position| (first + position - range.start) as u32;
            layout.logit_rows.extend(wanted.clone().map(row));
            layout.logit_positions.push(wanted);
            if !rows.is_empty() {
                layout.spans.push(sequence.span(rows, range));
            }
        }
        layout
    }
}
