//! Products of a tile on AVX2.

use std::arch::x86_64::*;

use super::{BLOCK, LINE_BYTES, Rows, TILE, TILE_BYTES_4BIT, TILE_BYTES_8BIT, Tile};

/// Products of `count` rows with a tile, half a tile at a time, in groups of four rows and one.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn product<const FOUR: bool>(
    w: Tile<'_>,
    x: Rows<'_>,
    count: usize,
    y: &mut [[f32; TILE]; 8],
) {
    for half in 0..2 {
        let mut row = 0;
        while row < count {
            let rows = if count - row >= 4 { 4 } else { 1 };
            // SAFETY: forwarded; the rows are in bounds.
            unsafe {
                if rows == 4 {
                    half_product::<4, FOUR>(w, x, half, row, y);
                } else {
                    half_product::<1, FOUR>(w, x, half, row, y);
                }
            }
            row += rows;
        }
    }
}

/// Eight outputs, those of `half` a tile (0 or 1), for `ROWS` rows from `first` on.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn half_product<const ROWS: usize, const FOUR: bool>(
    w: Tile<'_>,
    x: Rows<'_>,
    half: usize,
    first: usize,
    y: &mut [[f32; TILE]; 8],
) {
    let inner = x.blocks * BLOCK;
    let tile_bytes = if FOUR { TILE_BYTES_4BIT } else { TILE_BYTES_8BIT };
    let (ones, low_nibbles) = (_mm256_set1_epi16(1), _mm256_set1_epi8(0xf));
    let sign_bit = _mm256_set1_epi8(-128);
    let mut sums = [_mm256_setzero_ps(); ROWS];
    for block in 0..w.blocks {
        let mut dots = [_mm256_setzero_si256(); ROWS];
        for line in 0..8 {
            // SAFETY: the caller's slices hold `blocks` blocks of weights.
            let weights = unsafe {
                let quants = w.quants.as_ptr().add(block * tile_bytes);
                let line_in_memory = if FOUR { line % 4 } else { line };
                let raw = _mm256_loadu_si256(
                    quants.add(line_in_memory * LINE_BYTES + half * (LINE_BYTES / 2)).cast(),
                );
                if !FOUR {
                    _mm256_xor_si256(raw, sign_bit)
                } else if line < 4 {
                    _mm256_and_si256(raw, low_nibbles)
                } else {
                    _mm256_and_si256(_mm256_srli_epi16::<4>(raw), low_nibbles)
                }
            };
            let magnitude = if FOUR { weights } else { _mm256_abs_epi8(weights) };
            for (row, dot) in dots.iter_mut().enumerate() {
                // SAFETY: `ROWS` rows from `first` on are in bounds.
                let quad = unsafe {
                    let values = x.values.as_ptr().add((first + row) * inner + block * BLOCK);
                    values.cast::<i32>().add(line).read_unaligned()
                };
                let quad = _mm256_set1_epi32(quad);
                // |w| · sign(w) x: 128 · 127 · 2 still fits the 16-bit pair sums.
                let quad = if FOUR { quad } else { _mm256_sign_epi8(quad, weights) };
                let pairs = _mm256_maddubs_epi16(magnitude, quad);
                *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(pairs, ones));
            }
        }
        // SAFETY: the caller's slices hold `blocks` blocks of scales and mins.
        let (scale, min) = unsafe {
            let at = block * TILE + half * 8;
            let scale = _mm256_cvtph_ps(_mm_loadu_si128(w.scales.as_ptr().add(at).cast()));
            let mins = if FOUR { w.mins } else { w.scales };
            (scale, _mm256_cvtph_ps(_mm_loadu_si128(mins.as_ptr().add(at).cast())))
        };
        for (row, sum) in sums.iter_mut().enumerate() {
            let at = (first + row) * x.blocks + block;
            let (x_scale, x_sum) = (x.scales[at], x.sums[at]);
            let factor = _mm256_mul_ps(scale, _mm256_set1_ps(x_scale));
            *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[row]), factor, *sum);
            if FOUR {
                *sum = _mm256_fmadd_ps(min, _mm256_set1_ps(x_scale * x_sum as f32), *sum);
            }
        }
    }
    for (row, sum) in sums.iter().enumerate() {
        // SAFETY: half a row of `y` is one vector long.
        unsafe { _mm256_storeu_ps(y[first + row].as_mut_ptr().add(half * 8), *sum) };
    }
}
