//! Heads of modules: deltas on logits.

use polyskill_adapters::Weights;
use polyskill_adapters::apply::{Combine, Scratch, add_delta};
use polyskill_adapters::weights::LinearPart;
use polyskill_model::Compute;
use polyskill_model::kernels::matmul_dense;

use crate::hooks::RowSpan;

/// Changes logits, `[logit rows, vocab_size]`, of requests whose modules have parts at the head.
/// `rows` are the numbers in the step of the logit rows, `normed` is the head's input, `[logit
/// rows, hidden_size]`. Every delta is computed from the base's logits.
pub(crate) fn score(
    compute: &Compute,
    spans: &[RowSpan],
    rows: &[u32],
    normed: &[f32],
    logits: &mut [f32],
) {
    if rows.is_empty() || !spans.iter().any(|span| span.composition.parts.scores) {
        return;
    }
    let (hidden_size, vocab_size) = (normed.len() / rows.len(), logits.len() / rows.len());
    let mut scratch = Scratch::default();
    for (at, row) in rows.iter().enumerate() {
        let span = spans.iter().find(|span| span.rows.contains(&(*row as usize)));
        let Some(span) = span.filter(|span| span.composition.parts.scores) else { continue };
        let x = &normed[at * hidden_size..(at + 1) * hidden_size];
        let y = &mut logits[at * vocab_size..(at + 1) * vocab_size];
        let base = y.to_vec();
        for (weights, weight) in span.composition.mixture() {
            own_head(compute, weights, weight, x, &base, y);
        }
        let parts: Vec<(&LinearPart, f32)> = span
            .composition
            .mixture()
            .filter_map(|(weights, weight)| Some((weights.head()?, weight)))
            .collect();
        if !parts.is_empty() {
            // Deltas are computed from what the base wrote.
            let mut sum = base.clone();
            add_delta(Combine::OutputSum, &parts, &[], None, x, &mut sum, &mut scratch);
            for ((y, sum), base) in y.iter_mut().zip(sum).zip(base) {
                *y += sum - base;
            }
        }
    }
}

/// Adds w·(H·x − base) for a head H of the module's own, and w·(δ·x) for each new embedding δ where
/// embeddings are the head too. `base` has the base's logits.
fn own_head(
    compute: &Compute,
    weights: &Weights,
    weight: f32,
    x: &[f32],
    base: &[f32],
    y: &mut [f32],
) {
    if let Some(head) = weights.own_head() {
        let mut product = vec![0.0; y.len()];
        matmul_dense(compute, x, head.as_slice(), x.len(), &mut product);
        for ((y, product), base) in y.iter_mut().zip(product).zip(base) {
            *y += weight * (product - base);
        }
    }
    if let Some(tokens) = weights.head_tokens() {
        for (id, delta) in tokens.ids.iter().zip(tokens.deltas.chunks_exact(x.len())) {
            let dot: f32 = x.iter().zip(delta).map(|(x, delta)| x * delta).sum();
            y[*id as usize] += weight * dot;
        }
    }
}
