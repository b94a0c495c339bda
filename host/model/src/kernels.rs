//! The arithmetic of a step on the CPU, over plain slices.
//!
//! Kernels for AVX-512 (with VNNI) and AVX2 are chosen at run time; a portable version serves every
//! other CPU. Each computes one output element in one fixed order of operations, whatever other
//! rows or outputs share the call, so results do not depend on the batch.

#![expect(unsafe_code, reason = "SIMD intrinsics and disjoint writes from parallel tasks")]

use std::ops::Range;

mod attention;
mod dense;
mod elementwise;
mod packed;
mod simd;

pub(crate) use attention::{add_weighted_values, block_scores};
pub use dense::{WeightSlice, add_scaled_rows, dots, matmul_dense, matmul_dense_rows, prefetch};
pub use elementwise::{exp, gelu_tanh_mul, rms_norm, rms_norm_in_place, silu_mul, softmax};
pub use packed::{PackedMatrix, QuantisedRows, matmul_packed};
pub use simd::{Isa, isa};

/// One of several products that share a parallel region: some rows of an input with one matrix.
#[derive(Debug)]
pub struct Product<'a, W> {
    /// The matrix, `[outs, inner]`.
    pub weights: W,
    /// The rows of the input that it is multiplied with.
    pub rows: Range<usize>,
    /// The result, `[rows, outs]`, row-major; overwritten.
    pub y: &'a mut [f32],
}
