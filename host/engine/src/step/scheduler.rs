//! The rows of the next step.
//!
//! Every running request that decodes gets its row; what is left of the budget is shared by the
//! prompts, in chunks. KV blocks are taken as sequences grow; a sequence that had to give its blocks
//! up is computed again like a prompt.

use std::ops::Range;

use super::pace::RowCost;

/// The progress of a running sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// Positions whose keys and values are stored.
    pub(crate) computed: usize,
    /// Tokens known so far: the prompt and what was generated.
    pub(crate) known: usize,
    /// True where the whole prompt and all generated tokens but the last are computed; then one
    /// position is left to compute.
    pub(crate) decoding: bool,
}

/// The most rows of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// Rows of any kind.
    pub(crate) rows: usize,
    /// Rows of prompts while others decode, so that their next token is not held up.
    pub(crate) prompt_rows_while_decoding: usize,
    /// The cost of prompts; `None` sets no bound.
    pub(crate) prompt_cost: Option<f64>,
    /// The cost of rows by their positions.
    pub(crate) row_cost: RowCost,
}

/// The positions of each running sequence that the next step computes, in the order of `running`. A
/// prompt's range may be empty where the budget is spent; more decoding sequences than `rows` would
/// break it.
pub(crate) fn plan(running: &[Progress], budget: Budget) -> Vec<Range<usize>> {
    let decoding = running.iter().filter(|progress| progress.decoding).count();
    let mut prompt_rows = budget.rows.saturating_sub(decoding);
    if decoding > 0 {
        prompt_rows = prompt_rows.min(budget.prompt_rows_while_decoding);
    }
    // Short prompts first, each with at most an equal share of what is left: a long prompt does not
    // hold up a short one that arrives after it, and every prompt advances in every step.
    let mut prompts: Vec<usize> = (0..running.len()).filter(|&i| !running[i].decoding).collect();
    prompts.sort_by_key(|&index| running[index].known - running[index].computed);
    let mut rows = vec![0; running.len()];
    let mut waiting = prompts.len();
    let mut cost = budget.prompt_cost;
    for index in prompts {
        let Progress { computed, known, .. } = running[index];
        let mut share = (known - computed).min(prompt_rows.div_ceil(waiting));
        if let Some(cost) = &mut cost {
            // One row at least, so that every prompt goes on.
            let within = budget.row_cost.rows_within(computed, cost.max(0.0) / waiting as f64);
            share = share.min(within.max(1));
            *cost -= budget.row_cost.of_rows(computed, share);
        }
        rows[index] = share;
        prompt_rows -= share;
        waiting -= 1;
    }
    running
        .iter()
        .zip(rows)
        .map(|(progress, rows)| match progress.decoding {
            // Admission keeps the number of decoders within the budget.
            true => progress.computed..progress.known,
            false => progress.computed..progress.computed + rows,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn budgets_hold_and_nobody_starves(
            running in proptest::collection::vec((0..50_usize, 1..300_usize, any::<bool>()), 1..20),
            rows in 20..200_usize,
            cost in proptest::option::of(1.0..100.0_f64),
        ) {
            let running: Vec<Progress> = running
                .into_iter()
                .map(|(computed, left, decoding)| Progress {
                    computed,
                    known: computed + if decoding { 1 } else { left },
                    decoding,
                })
                .collect();
            let row_cost = RowCost { scale: 100.0 };
            let budget = Budget {
                rows,
                prompt_rows_while_decoding: rows / 2,
                prompt_cost: cost,
                row_cost,
            };
            let plan = plan(&running, budget);
            prop_assert!(plan.iter().map(|range| range.len()).sum::<usize>() <= rows);
            for (progress, range) in running.iter().zip(&plan) {
                prop_assert_eq!(range.start, progress.computed);
                prop_assert!(range.end <= progress.known);
                prop_assert!(!progress.decoding || range.len() == 1);
            }
            let decoders = running.iter().filter(|progress| progress.decoding).count();
            if let Some(cost) = cost {
                // Beyond the bound, each prompt gets one row.
                let spent = running.iter().zip(&plan).filter(|(progress, range)| {
                    !progress.decoding && range.len() > 1
                });
                let spent = spent.map(|(_, range)| row_cost.of_rows(range.start, range.len()));
                prop_assert!(spent.sum::<f64>() <= cost + 1e-6);
            }
            let prompts = running.len() - decoders;
            let budget = (rows - decoders).min(if decoders > 0 { rows / 2 } else { rows });
            if prompts <= budget {
                prop_assert!(plan.iter().all(|range| !range.is_empty()), "every request advances");
            }
        }
    }
}
