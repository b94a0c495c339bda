//! Products of a tile on AVX-512 with VNNI.

use std::arch::x86_64::*;

use super::{BLOCK, LINE_BYTES, Rows, TILE, TILE_BYTES_4BIT, TILE_BYTES_8BIT, Tile};

/// Products of `ROWS` rows with a tile; lane `o` of a row's vector is output `o`.
///
/// Weights are unsigned to `vpdpbusd`, and activations signed. For 8 bits the sum starts at
/// −128 times the sum of the inputs, as 128 stands for zero; for 4 bits the min is added per
/// block.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn product<const ROWS: usize, const FOUR: bool>(
    w: Tile<'_>,
    x: Rows<'_>,
    y: &mut [[f32; TILE]; 8],
) {
    let inner = x.blocks * BLOCK;
    let tile_bytes = if FOUR { TILE_BYTES_4BIT } else { TILE_BYTES_8BIT };
    let low_nibbles = _mm512_set1_epi8(0xf);
    let mut sums = [_mm512_setzero_ps(); ROWS];
    for block in 0..w.blocks {
        // SAFETY: the caller's slices hold `blocks` blocks of weights, scales and mins.
        let (lines, scale, min) = unsafe {
            let quants = w.quants.as_ptr().add(block * tile_bytes);
            let lines: [__m512i; 8] = std::array::from_fn(|line| {
                if !FOUR {
                    return _mm512_loadu_si512(quants.add(line * LINE_BYTES).cast());
                }
                let both = _mm512_loadu_si512(quants.add(line % 4 * LINE_BYTES).cast());
                let nibbles = if line < 4 { both } else { _mm512_srli_epi16::<4>(both) };
                _mm512_and_si512(nibbles, low_nibbles)
            });
            let scale = w.scales.as_ptr().add(block * TILE).cast();
            let min = if FOUR { w.mins.as_ptr().add(block * TILE).cast() } else { scale };
            (
                lines,
                _mm512_cvtph_ps(_mm256_loadu_si256(scale)),
                _mm512_cvtph_ps(_mm256_loadu_si256(min)),
            )
        };
        for (row, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's slices hold `ROWS` rows of `blocks` blocks.
            let (quads, x_scale, x_sum) = unsafe {
                (
                    x.values.as_ptr().add(row * inner + block * BLOCK).cast::<i32>(),
                    *x.scales.get_unchecked(row * x.blocks + block),
                    *x.sums.get_unchecked(row * x.blocks + block),
                )
            };
            let mut dot =
                if FOUR { _mm512_setzero_si512() } else { _mm512_set1_epi32(-128 * x_sum) };
            for (line, weights) in lines.iter().enumerate() {
                // SAFETY: a block is eight quads long.
                let quad = unsafe { quads.add(line).read_unaligned() };
                dot = _mm512_dpbusd_epi32(dot, *weights, _mm512_set1_epi32(quad));
            }
            let factor = _mm512_mul_ps(scale, _mm512_set1_ps(x_scale));
            *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), factor, *sum);
            if FOUR {
                *sum = _mm512_fmadd_ps(min, _mm512_set1_ps(x_scale * x_sum as f32), *sum);
            }
        }
    }
    for (row, sum) in sums.iter().enumerate() {
        // SAFETY: a row of `y` is one vector long.
        unsafe { _mm512_storeu_ps(y[row].as_mut_ptr(), *sum) };
    }
}
