//! The rows of the next step.
//!
//! Every running request that decodes gets its row; what is left of the budget is shared by the
//! prompts, in chunks. KV blocks for a request's whole length are reserved at admission, so a
//! running request never waits for memory and nothing is preempted.

use std::ops::Range;

/// The progress of a running sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// Positions whose keys and values are stored.
    pub(crate) computed: usize,
    /// Tokens known so far: the prompt and what was generated.
    pub(crate) known: usize,
    /// True once the whole prompt is computed; then one position is left to compute.
    pub(crate) decoding: bool,
}

/// The most rows of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// Rows of any kind.
    pub(crate) rows: usize,
    /// Rows of prompts while others decode, so that their next token is not held up.
    pub(crate) prompt_rows_while_decoding: usize,
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
    for index in prompts {
        let left = running[index].known - running[index].computed;
        rows[index] = left.min(prompt_rows.div_ceil(waiting));
        prompt_rows -= rows[index];
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
        ) {
            let running: Vec<Progress> = running
                .into_iter()
                .map(|(computed, left, decoding)| Progress {
                    computed,
                    known: computed + if decoding { 1 } else { left },
                    decoding,
                })
                .collect();
            let budget = Budget { rows, prompt_rows_while_decoding: rows / 2 };
            let plan = plan(&running, budget);
            prop_assert!(plan.iter().map(|range| range.len()).sum::<usize>() <= rows);
            for (progress, range) in running.iter().zip(&plan) {
                prop_assert_eq!(range.start, progress.computed);
                prop_assert!(range.end <= progress.known);
                prop_assert!(!progress.decoding || range.len() == 1);
            }
            let decoders = running.iter().filter(|progress| progress.decoding).count();
            let prompts = running.len() - decoders;
            let budget = (rows - decoders).min(if decoders > 0 { rows / 2 } else { rows });
            if prompts <= budget {
                prop_assert!(plan.iter().all(|range| !range.is_empty()), "every request advances");
            }
        }
    }
}
