//! Keys and values that modules put before a sequence.

use polyskill_model::{KvCache, KvSlot};

use crate::compose::composition::Composition;

/// Stores the modules' keys and values in the blocks of a new sequence, in the order of the
/// modules. Positions below `from` are in cached blocks and are left alone, as others may read
/// them.
pub(crate) fn store_prefix(
    composition: &Composition,
    from: usize,
    blocks: &[u32],
    kv: &mut KvCache,
) {
    let mut first = 0;
    for module in &composition.parts.prefixes {
        let Some(prefix) = composition.weights(*module).and_then(|weights| weights.prefix()) else {
            continue;
        };
        let wanted = from.saturating_sub(first).min(prefix.num_tokens)..prefix.num_tokens;
        for (layer, (keys, values)) in prefix.keys.iter().zip(&prefix.values).enumerate() {
            let width = keys.as_slice().len() / prefix.num_tokens;
            for token in wanted.clone() {
                let position = first + token;
                let place = KvSlot::of(blocks, position);
                let row = |elements: &polyskill_adapters::lora::Elements| {
                    elements.as_slice().slice(token * width, width).to_f32()
                };
                kv.store(place, layer, &row(keys), &row(values));
            }
        }
        first += prefix.num_tokens;
    }
}
