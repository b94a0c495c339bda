//! Documents: a text that the base reads once, kept as keys and values.

use polyskill_adapters::native::Document;
use polyskill_model::{Decoder, KvCache, KvSlot, NoHooks, Scratch, Step};

/// Rows per step. A bound on the scratch memory of a step; the keys and values do not depend on it.
const ROWS: usize = 256;

/// Reads a document with the base alone: no module acts, and no logits are computed. `progress`
/// hears of tokens done.
///
/// Tokens stand at the positions 0, 1, …, so whoever uses the document must place it at the
/// beginning of a sequence. The result holds, for each layer, the keys and the values of all
/// tokens, one token after the other.
///
/// # Errors
/// If there are no tokens, more than the base's context holds, or one that it does not know.
pub fn read_document(
    model: &Decoder,
    tokens: &[u32],
    progress: &mut dyn FnMut(usize),
) -> Result<Document, String> {
    let config = model.config();
    let most = config.max_positions.saturating_sub(1);
    if !(1..=most).contains(&tokens.len()) {
        return Err(format!("the document has {} tokens, expected 1 to {most}", tokens.len()));
    }
    if let Some(token) = tokens.iter().find(|token| **token as usize >= config.vocab_size) {
        return Err(format!("token {token} is not in the vocabulary of {}", config.vocab_size));
    }
    let num_blocks = KvCache::blocks_for(tokens.len());
    let mut kv = KvCache::new(config, num_blocks);
    let blocks: Vec<u32> = (0..num_blocks as u32).collect();
    let mut scratch = Scratch::default();
    for start in (0..tokens.len()).step_by(ROWS) {
        let end = tokens.len().min(start + ROWS);
        let positions: Vec<u32> = (start as u32..end as u32).collect();
        let step = Step {
            tokens: &tokens[start..end],
            positions: &positions,
            sequences: &vec![0; end - start],
            block_tables: &[&blocks],
            logit_rows: &[],
        };
        model.forward(&step, &mut kv, &mut NoHooks, &mut scratch);
        progress(end);
    }
    let mut document = Document {
        num_tokens: tokens.len(),
        keys: vec![Vec::new(); config.num_layers],
        values: vec![Vec::new(); config.num_layers],
    };
    for (layer, (keys, values)) in document.keys.iter_mut().zip(&mut document.values).enumerate() {
        for position in 0..tokens.len() {
            kv.read(KvSlot::of(&blocks, position), layer, keys, values);
        }
    }
    Ok(document)
}
