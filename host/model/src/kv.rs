//! The paged cache of keys and values.
//!
//! Positions are stored in blocks of 16; a sequence holds a list of block numbers, so memory is
//! reserved and shared in whole blocks. Inside a block keys lie feature-major, so that one vector
//! holds the same feature of 16 positions and attention scores need no horizontal sums.

use crate::ModelConfig;

/// Positions per block.
///
/// Also a multiple of the vector lengths of all instruction sets, so that attention needs no tails.
pub const BLOCK_POSITIONS: usize = 16;

/// The place of one position's keys and values: an entry of vLLM's slot mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvSlot {
    /// Number of the block in the cache.
    pub block: u32,
    /// Index inside the block, below [`BLOCK_POSITIONS`].
    pub slot: usize,
}

impl KvSlot {
    /// The place of a sequence's position, given the blocks that the sequence holds, in order.
    ///
    /// # Panics
    /// If the sequence holds no block for the position.
    pub fn of(table: &[u32], position: usize) -> Self {
        Self { block: table[position / BLOCK_POSITIONS], slot: position % BLOCK_POSITIONS }
    }
}

/// Keys and values of all sequences.
///
/// Always f32. The cache knows no sequences: the engine hands out blocks, shares those of equal
/// prefixes and frees them.
#[derive(Debug)]
pub struct KvCache {
    /// Blocks that the arrays have room for.
    num_blocks: usize,
    /// Layers of the model; each block holds its positions for all of them.
    num_layers: usize,
    /// Key and value heads per layer.
    num_kv_heads: usize,
    /// Features per head.
    head_dim: usize,
    /// `[blocks, layers, kv heads, head_dim, 16]`: feature-major within a head, rotated already.
    keys: Vec<f32>,
    /// `[blocks, layers, kv heads, 16, head_dim]`: position-major within a head.
    values: Vec<f32>,
}

impl KvCache {
    /// A cache of `num_blocks` blocks for the model.
    ///
    /// The arrays are zeroed pages of the system, so that memory is touched only as blocks are
    /// used.
    pub fn new(config: &ModelConfig, num_blocks: usize) -> Self {
        let len = num_blocks * Self::floats_per_block(config);
        Self {
            num_blocks,
            num_layers: config.num_layers,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            keys: vec![0.0; len],
            values: vec![0.0; len],
        }
    }

    /// Bytes per block, keys and values together.
    pub fn block_bytes(config: &ModelConfig) -> usize {
        2 * size_of::<f32>() * Self::floats_per_block(config)
    }

    /// Number of blocks.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Blocks that a sequence of this many positions needs, the last one perhaps in part.
    pub fn blocks_for(positions: usize) -> usize {
        positions.div_ceil(BLOCK_POSITIONS)
    }

    /// Floats of the keys of one block over all layers; the values take as many.
    fn floats_per_block(config: &ModelConfig) -> usize {
        config.num_layers * config.num_kv_heads * config.head_dim * BLOCK_POSITIONS
    }

    /// Index of the first float of a block's head in `keys` and in `values`, whose heads are
    /// equally large.
    fn offset(&self, block: u32, layer: usize, head: usize) -> usize {
        ((block as usize * self.num_layers + layer) * self.num_kv_heads + head)
            * self.head_dim
            * BLOCK_POSITIONS
    }

    /// Keys of a block and head, `[head_dim, 16]`.
    pub(crate) fn keys(&self, block: u32, layer: usize, head: usize) -> &[f32] {
        let start = self.offset(block, layer, head);
        &self.keys[start..start + self.head_dim * BLOCK_POSITIONS]
    }

    /// Values of a block and head, `[16, head_dim]`.
    pub(crate) fn values(&self, block: u32, layer: usize, head: usize) -> &[f32] {
        let start = self.offset(block, layer, head);
        &self.values[start..start + self.head_dim * BLOCK_POSITIONS]
    }

    /// Stores one row's keys and values, `[kv heads, head_dim]` each, in a layer.
    ///
    /// Keys are kept as attention sees them, after the rotary embedding. Whatever the slot held is
    /// overwritten.
    ///
    /// # Panics
    /// If there is no such block, slot or layer, or a slice has another length.
    pub fn store(&mut self, place: KvSlot, layer: usize, keys: &[f32], values: &[f32]) {
        let KvSlot { block, slot } = place;
        let dim = self.head_dim;
        for head in 0..self.num_kv_heads {
            let start = self.offset(block, layer, head);
            for (feature, &key) in keys[head * dim..(head + 1) * dim].iter().enumerate() {
                self.keys[start + feature * BLOCK_POSITIONS + slot] = key;
            }
            let target = start + slot * dim;
            self.values[target..target + dim]
                .copy_from_slice(&values[head * dim..(head + 1) * dim]);
        }
    }

    /// Appends one row's keys and values of a layer, `[kv heads, head_dim]` each, as
    /// [`KvCache::store`] took them.
    ///
    /// # Panics
    /// If there is no such block, slot or layer.
    pub fn read(&self, place: KvSlot, layer: usize, keys: &mut Vec<f32>, values: &mut Vec<f32>) {
        let KvSlot { block, slot } = place;
        let dim = self.head_dim;
        for head in 0..self.num_kv_heads {
            let start = self.offset(block, layer, head);
            keys.extend((0..dim).map(|at| self.keys[start + at * BLOCK_POSITIONS + slot]));
            values.extend_from_slice(&self.values[start + slot * dim..][..dim]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;

    #[test]
    fn what_is_stored_is_read() {
        let config = tiny();
        let mut cache = KvCache::new(&config, 3);
        let width = config.num_kv_heads * config.head_dim;
        let row = |salt: usize| (0..width).map(|at| (at * 7 + salt) as f32).collect::<Vec<f32>>();
        let table = [0, 2];
        cache.store(KvSlot::of(&table, 21), 1, &row(1), &row(2));
        cache.store(KvSlot { block: 2, slot: 6 }, 1, &row(3), &row(4));
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        cache.read(KvSlot { block: 2, slot: 5 }, 1, &mut keys, &mut values);
        cache.read(KvSlot::of(&table, 22), 1, &mut keys, &mut values);
        assert_eq!((keys, values), ([row(1), row(3)].concat(), [row(2), row(4)].concat()));
    }
}
