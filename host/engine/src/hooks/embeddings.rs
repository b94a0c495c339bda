//! Embeddings of modules: soft prompts before the sequence, and tokens that modules have learned
//! anew.
//!
//! They belong to whole sequences, so only modules on every row have them. Steps without such
//! modules pass through.

use polyskill_adapters::weights::EmbeddingLora;
use polyskill_model::kernels::add_scaled_rows;

use crate::compose::composition::Composition;
use crate::hooks::RowSpan;

/// Changes embeddings, `[rows, hidden_size]`: of the positions before the sequence, and of tokens
/// that modules have learned anew.
///
/// Deltas on rows of the table are multiplied with `scale`, as the rows are; soft prompts are used
/// as they are.
pub(crate) fn embed(spans: &[RowSpan], tokens: &[u32], hidden: &mut [f32], scale: f32) {
    let Some(last) = spans.last() else { return };
    let width = hidden.len() / last.rows.end;
    for span in spans {
        let parts = &span.composition.parts;
        if parts.num_prompt == 0 && !parts.embeds {
            continue;
        }
        for row in span.rows.clone() {
            let position = span.position + row - span.rows.start;
            let hidden = &mut hidden[row * width..(row + 1) * width];
            match position.checked_sub(parts.start_len()) {
                None => virtual_token(&span.composition, position - parts.num_prefix, hidden),
                Some(_) if parts.embeds => token(&span.composition, tokens[row], hidden, scale),
                Some(_) => {}
            }
        }
    }
}

/// Writes the embedding at an index over all soft prompts of a composition.
fn virtual_token(composition: &Composition, mut index: usize, hidden: &mut [f32]) {
    for module in &composition.parts.prompts {
        let prompt = composition.weights(*module).and_then(|weights| weights.prompt());
        let Some(prompt) = prompt else { continue };
        if index < prompt.num_tokens {
            let row = prompt.embeddings.as_slice().slice(index * hidden.len(), hidden.len());
            hidden.copy_from_slice(&row.to_f32());
            return;
        }
        index -= prompt.num_tokens;
    }
}

/// Adds the modules' deltas for a token to its embedding: new rows of the table, and low-rank
/// products on it.
fn token(composition: &Composition, token: u32, hidden: &mut [f32], table_scale: f32) {
    for (weights, weight) in composition.mixture() {
        let weight = weight * table_scale;
        if let Some(delta) = weights.tokens().and_then(|tokens| tokens.delta(token)) {
            hidden.iter_mut().zip(delta).for_each(|(hidden, delta)| *hidden += weight * delta);
        }
        if let Some(EmbeddingLora { rank, scale, a_transposed, b_transposed }) = weights.embedding()
        {
            let row = a_transposed.as_slice().slice(token as usize * rank, *rank);
            let inner: Vec<f32> = row.to_f32().iter().map(|a| a * weight * scale).collect();
            add_scaled_rows(hidden, &inner, b_transposed.as_slice());
        }
    }
}
