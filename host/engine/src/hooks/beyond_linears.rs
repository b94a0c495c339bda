//! What modules do beyond linears: embeddings before the sequence and of tokens, edits of hidden states, heads.
//!
//! All of it belongs to whole sequences, so only fixed mixtures do it. Steps without such modules pass through.

use polyskill_adapters::apply::{Combine, Scratch, add_delta};
use polyskill_adapters::edits::Point;
use polyskill_adapters::weights::{EmbeddingLora, LinearPart};
use polyskill_adapters::{Lease, Weights};
use polyskill_model::kernels::{add_scaled_rows, matmul_dense};
use polyskill_model::{BLOCK_POSITIONS, Compute, KvCache};

use crate::compose::composition::Composition;
use crate::hooks::RowSpan;

/// What acts on every row, as weights and factors.
fn mixture(composition: &Composition) -> impl Iterator<Item = (&Lease, f32)> {
    let lease =
        |(module, weight): &(u32, f32)| Some((composition.leases.get(*module as usize)?, *weight));
    composition.on_every_row().filter_map(lease)
}

/// Puts the modules' keys and values at the positions from `from` on into the blocks of a new sequence.
pub(crate) fn store_prefix(
    composition: &Composition,
    from: usize,
    blocks: &[u32],
    kv: &mut KvCache,
) {
    let mut first = 0;
    for module in &composition.beyond.prefixes {
        let Some(prefix) = composition.weights(*module).and_then(|weights| weights.prefix.as_ref())
        else {
            continue;
        };
        let wanted = from.saturating_sub(first).min(prefix.num_tokens)..prefix.num_tokens;
        for (layer, (keys, values)) in prefix.keys.iter().zip(&prefix.values).enumerate() {
            let width = keys.as_slice().len() / prefix.num_tokens;
            for token in wanted.clone() {
                let position = first + token;
                let place = (blocks[position / BLOCK_POSITIONS], position % BLOCK_POSITIONS);
                let row = |elements: &polyskill_adapters::lora::Elements| {
                    elements.as_slice().slice(token * width, width).to_f32()
                };
                kv.store(place, layer, &row(keys), &row(values));
            }
        }
        first += prefix.num_tokens;
    }
}

/// Changes embeddings: of the positions before the sequence, and of tokens that modules have learned anew.
///
/// What modules learned of the table is multiplied with `scale` as its rows are; soft prompts are what the base
/// made of them.
pub(crate) fn embed(spans: &[RowSpan], tokens: &[u32], hidden: &mut [f32], scale: f32) {
    let Some(last) = spans.last() else { return };
    let width = hidden.len() / last.rows.end;
    for span in spans {
        let beyond = &span.composition.beyond;
        if beyond.num_prompt == 0 && !beyond.embeds {
            continue;
        }
        for row in span.rows.clone() {
            let position = span.position + row - span.rows.start;
            let hidden = &mut hidden[row * width..(row + 1) * width];
            match position.checked_sub(beyond.start_len()) {
                None => virtual_token(&span.composition, position - beyond.num_prefix, hidden),
                Some(_) if beyond.embeds => token(&span.composition, tokens[row], hidden, scale),
                Some(_) => {}
            }
        }
    }
}

/// The embedding at an index over all soft prompts of a composition.
fn virtual_token(composition: &Composition, mut index: usize, hidden: &mut [f32]) {
    for module in &composition.beyond.prompts {
        let prompt = composition.weights(*module).and_then(|weights| weights.prompt.as_ref());
        let Some(prompt) = prompt else { continue };
        if index < prompt.num_tokens {
            let row = prompt.embeddings.as_slice().slice(index * hidden.len(), hidden.len());
            hidden.copy_from_slice(&row.to_f32());
            return;
        }
        index -= prompt.num_tokens;
    }
}

fn token(composition: &Composition, token: u32, hidden: &mut [f32], table_scale: f32) {
    for (weights, weight) in mixture(composition) {
        let weight = weight * table_scale;
        if let Some(delta) = weights.tokens.as_ref().and_then(|tokens| tokens.delta(token)) {
            hidden.iter_mut().zip(delta).for_each(|(hidden, delta)| *hidden += weight * delta);
        }
        if let Some(EmbeddingLora { rank, scale, a_transposed, b_transposed }) = &weights.embedding
        {
            let row = a_transposed.as_slice().slice(token as usize * rank, *rank);
            let inner: Vec<f32> = row.to_f32().iter().map(|a| a * weight * scale).collect();
            add_scaled_rows(hidden, &inner, b_transposed.as_slice());
        }
    }
}

/// Edits hidden states at one point of one layer, `[rows, width]`.
pub(crate) fn edit(spans: &[RowSpan], place: (Point, usize), hidden: &mut [f32]) {
    let Some(last) = spans.last() else { return };
    let width = hidden.len() / last.rows.end;
    for span in spans {
        let beyond = &span.composition.beyond;
        let Some(edits) = beyond.edits.get(&place) else { continue };
        let start_len = beyond.start_len();
        for row in span.rows.clone() {
            let position = span.position + row - span.rows.start;
            let Some(index) = position.checked_sub(start_len) else { continue };
            let hidden = &mut hidden[row * width..(row + 1) * width];
            for &(module, weight, at) in edits {
                let edit =
                    span.composition.weights(module).and_then(|weights| weights.edits.get(at));
                let edit =
                    edit.filter(|edit| edit.positions.covers(index, span.prompt_len - start_len));
                if let Some(edit) = edit {
                    edit.apply(weight, hidden);
                }
            }
        }
    }
}

/// Changes logits, `[logit rows, vocab_size]`; `normed` is what the head read.
pub(crate) fn score(
    compute: &Compute,
    spans: &[RowSpan],
    rows: &[u32],
    (normed, logits): (&[f32], &mut [f32]),
) {
    if rows.is_empty() || !spans.iter().any(|span| span.composition.beyond.scores) {
        return;
    }
    let (hidden_size, vocab_size) = (normed.len() / rows.len(), logits.len() / rows.len());
    let mut scratch = Scratch::default();
    for (at, row) in rows.iter().enumerate() {
        let span = spans.iter().find(|span| span.rows.contains(&(*row as usize)));
        let Some(span) = span.filter(|span| span.composition.beyond.scores) else { continue };
        let x = &normed[at * hidden_size..(at + 1) * hidden_size];
        let y = &mut logits[at * vocab_size..(at + 1) * vocab_size];
        let base = y.to_vec();
        for (weights, weight) in mixture(&span.composition) {
            own_head(compute, weights, weight, x, (&base, y));
        }
        let parts: Vec<(&LinearPart, f32)> = mixture(&span.composition)
            .filter_map(|(weights, weight)| Some((weights.head.as_ref()?, weight)))
            .collect();
        if !parts.is_empty() {
            // Deltas are computed from what the base wrote.
            let mut sum = base.clone();
            add_delta(Combine::OutputSum, (&parts, &[]), None, (x, &mut sum), &mut scratch);
            for ((y, sum), base) in y.iter_mut().zip(sum).zip(base) {
                *y += sum - base;
            }
        }
    }
}

/// A head of the module's own, and the new embeddings where they are the head too.
fn own_head(
    compute: &Compute,
    weights: &Weights,
    weight: f32,
    x: &[f32],
    (base, y): (&[f32], &mut [f32]),
) {
    if let Some(head) = &weights.own_head {
        let mut product = vec![0.0; y.len()];
        matmul_dense(compute, x, head.as_slice(), x.len(), &mut product);
        for ((y, product), base) in y.iter_mut().zip(product).zip(base) {
            *y += weight * (product - base);
        }
    }
    if let Some(tokens) = &weights.head_tokens {
        for (id, delta) in tokens.ids.iter().zip(tokens.deltas.chunks_exact(x.len())) {
            let dot: f32 = x.iter().zip(delta).map(|(x, delta)| x * delta).sum();
            y[*id as usize] += weight * dot;
        }
    }
}
