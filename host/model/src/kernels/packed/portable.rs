//! Products of a tile in plain Rust, for every other CPU.

use half::f16;

use super::{BLOCK, LINE_BYTES, Rows, TILE, TILE_BYTES_4BIT, TILE_BYTES_8BIT, Tile};

/// Products of `count` rows with a tile, element by element, with the same order of float sums as
/// every instruction set's.
pub(super) fn product(
    four_bit: bool,
    w: Tile<'_>,
    x: Rows<'_>,
    count: usize,
    y: &mut [[f32; TILE]; 8],
) {
    for (row, y) in y[..count].iter_mut().enumerate() {
        let mut sums = [0.0_f32; TILE];
        for block in 0..w.blocks {
            let at = row * x.blocks + block;
            let values = &x.values[at * BLOCK..(at + 1) * BLOCK];
            for (lane, sum) in sums.iter_mut().enumerate() {
                let dot: i32 = (0..BLOCK)
                    .map(|k| {
                        let byte = lane * 4 + k % 4;
                        let quant = if four_bit {
                            let place = block * TILE_BYTES_4BIT + (k / 4 % 4) * LINE_BYTES + byte;
                            i32::from((w.quants[place] >> (4 * (k / 16))) & 0xf)
                        } else {
                            let place = block * TILE_BYTES_8BIT + (k / 4) * LINE_BYTES + byte;
                            i32::from(w.quants[place]) - 128
                        };
                        quant * i32::from(values[k])
                    })
                    .sum();
                let scale = f16::from_bits(w.scales[block * TILE + lane]).to_f32();
                *sum = (dot as f32).mul_add(scale * x.scales[at], *sum);
                if four_bit {
                    let min = f16::from_bits(w.mins[block * TILE + lane]).to_f32();
                    *sum = min.mul_add(x.scales[at] * x.sums[at] as f32, *sum);
                }
            }
        }
        *y = sums;
    }
}
