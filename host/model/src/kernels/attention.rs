//! Scores and weighted sums over one block of the KV cache.

#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Isa, Portable, Simd, isa};
use crate::kv::BLOCK_POSITIONS;

/// Scores of `ROWS` queries with the 16 keys of a block, `LANES` positions at a time.
///
/// Even features go into one sum and odd ones into another, per position: a fixed order for every
/// row. Two sums hide the latency of fused multiply-adds. `out` is overwritten.
#[inline(always)]
unsafe fn scores<S: Simd, const ROWS: usize>(
    queries: [&[f32]; ROWS],
    keys: &[f32],
    out: &mut [&mut [f32]; ROWS],
) {
    let mut offset = 0;
    while offset < BLOCK_POSITIONS {
        // SAFETY: `keys` holds `2 · pairs` features of 16 positions and every `out` 16 scores, both
        // checked by the caller; `LANES` divides 16.
        unsafe {
            let mut even = [S::zero(); ROWS];
            let mut odd = [S::zero(); ROWS];
            for pair in 0..keys.len() / (2 * BLOCK_POSITIONS) {
                let first = keys.as_ptr().add(2 * pair * BLOCK_POSITIONS + offset);
                let (a, b) = (S::load(first), S::load(first.add(BLOCK_POSITIONS)));
                for row in 0..ROWS {
                    let query = queries[row].as_ptr().add(2 * pair);
                    even[row] = S::mul_add(S::splat(*query), a, even[row]);
                    odd[row] = S::mul_add(S::splat(*query.add(1)), b, odd[row]);
                }
            }
            for row in 0..ROWS {
                let sum = S::mul_add(S::splat(1.0), odd[row], even[row]);
                S::store(out[row].as_mut_ptr().add(offset), sum);
            }
        }
        offset += S::LANES;
    }
}

/// Adds weighted rows to the output, `LANES` features at a time, each feature in the order of the
/// positions.
#[inline(always)]
unsafe fn values<S: Simd>(weights: &[f32], values: &[f32], output: &mut [f32]) {
    let dim = output.len();
    let whole = dim - dim % S::LANES;
    let mut at = 0;
    while at < whole {
        // SAFETY: `values` holds a row of `dim` per weight, checked by the caller.
        unsafe {
            let mut sum = S::load(output.as_ptr().add(at));
            for (position, &weight) in weights.iter().enumerate() {
                let value = S::load(values.as_ptr().add(position * dim + at));
                sum = S::mul_add(S::splat(weight), value, sum);
            }
            S::store(output.as_mut_ptr().add(at), sum);
        }
        at += S::LANES;
    }
    for (feature, output) in output.iter_mut().enumerate().skip(whole) {
        for (position, &weight) in weights.iter().enumerate() {
            *output = weight.mul_add(values[position * dim + feature], *output);
        }
    }
}

/// [`scores`] compiled for AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn scores_avx512<const N: usize>(q: [&[f32]; N], keys: &[f32], out: &mut [&mut [f32]; N]) {
    // SAFETY: forwarded contract.
    unsafe { scores::<Avx512, N>(q, keys, out) }
}

/// [`scores`] compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scores_avx2<const N: usize>(q: [&[f32]; N], keys: &[f32], out: &mut [&mut [f32]; N]) {
    // SAFETY: forwarded contract.
    unsafe { scores::<Avx2, N>(q, keys, out) }
}

/// [`values`] compiled for AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn values_avx512(weights: &[f32], rows: &[f32], output: &mut [f32]) {
    // SAFETY: forwarded contract.
    unsafe { values::<Avx512>(weights, rows, output) }
}

/// [`values`] compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn values_avx2(weights: &[f32], rows: &[f32], output: &mut [f32]) {
    // SAFETY: forwarded contract.
    unsafe { values::<Avx2>(weights, rows, output) }
}

/// Dot products of queries, `[head_dim]` each, with the 16 keys of a block, `[head_dim, 16]`.
///
/// Not scaled and not masked: slots behind the end of a sequence get scores of whatever they hold.
///
/// # Panics
/// If the lengths do not agree or `head_dim` is odd.
pub(crate) fn block_scores<const N: usize>(
    queries: [&[f32]; N],
    keys: &[f32],
    out: &mut [&mut [f32]; N],
) {
    let dim = keys.len() / BLOCK_POSITIONS;
    assert!(dim.is_multiple_of(2) && queries.iter().all(|query| query.len() == dim));
    assert!(out.iter().all(|out| out.len() == BLOCK_POSITIONS));
    // SAFETY: lengths are checked above; each arm runs only where the CPU has the instruction set.
    unsafe {
        match isa() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => scores_avx512(queries, keys, out),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => scores_avx2(queries, keys, out),
            _ => scores::<Portable, N>(queries, keys, out),
        }
    }
}

/// `output += Σ weights[j] · rows[j]`, `rows` `[positions, head_dim]`, in order of `j`.
///
/// Rows behind the last weight are not read.
///
/// # Panics
/// If there are fewer rows than weights.
pub(crate) fn add_weighted_values(weights: &[f32], rows: &[f32], output: &mut [f32]) {
    assert!(rows.len() >= weights.len() * output.len());
    // SAFETY: as above.
    unsafe {
        match isa() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => values_avx512(weights, rows, output),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => values_avx2(weights, rows, output),
            _ => values::<Portable>(weights, rows, output),
        }
    }
}
