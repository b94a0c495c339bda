//! Low-rank adapters: y += w·s·B·(A·x) (Hu et al., "LoRA", 2021).

use std::ops::Range;

use polyskill_model::kernels::WeightSlice;

/// Elements of a weight, kept in the precision that they came in; the kernels read each of the
/// three as it is.
#[derive(Clone, Debug)]
pub enum Elements {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// bfloat16 bit patterns.
    Bf16(Vec<u16>),
    /// IEEE half bit patterns.
    F16(Vec<u16>),
}

impl Elements {
    /// Values rounded to half precision, to the nearest.
    pub fn f16(values: &[f32]) -> Self {
        Self::F16(values.iter().map(|&value| half::f16::from_f32(value).to_bits()).collect())
    }

    /// The elements for the kernels.
    pub fn as_slice(&self) -> WeightSlice<'_> {
        match self {
            Self::F32(values) => WeightSlice::F32(values),
            Self::Bf16(values) => WeightSlice::Bf16(values),
            Self::F16(values) => WeightSlice::F16(values),
        }
    }

    /// The elements of some ranges, one after the other.
    ///
    /// # Panics
    /// If a range lies outside.
    pub fn gather(&self, ranges: impl Iterator<Item = Range<usize>>) -> Self {
        /// One precision's elements of the ranges.
        fn copy<T: Copy>(values: &[T], ranges: impl Iterator<Item = Range<usize>>) -> Vec<T> {
            ranges.flat_map(|range| values[range].iter().copied()).collect()
        }
        match self {
            Self::F32(values) => Self::F32(copy(values, ranges)),
            Self::Bf16(values) => Self::Bf16(copy(values, ranges)),
            Self::F16(values) => Self::F16(copy(values, ranges)),
        }
    }

    /// Bytes held.
    pub fn num_bytes(&self) -> usize {
        match self {
            Self::F32(values) => 4 * values.len(),
            Self::Bf16(values) | Self::F16(values) => 2 * values.len(),
        }
    }

    /// Swaps rows and columns of a `[rows, columns]` matrix. The result is `[columns, rows]`.
    pub fn transposed(&self, rows: usize, columns: usize) -> Self {
        /// One precision's elements, column by column.
        fn swap<T: Copy>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
            let mut swapped = Vec::with_capacity(rows * columns);
            for column in 0..columns {
                swapped.extend((0..rows).map(|row| values[row * columns + column]));
            }
            swapped
        }
        match self {
            Self::F32(values) => Self::F32(swap(values, rows, columns)),
            Self::Bf16(values) => Self::Bf16(swap(values, rows, columns)),
            Self::F16(values) => Self::F16(swap(values, rows, columns)),
        }
    }
}

/// A LoRA at one linear.
#[derive(Clone, Debug)]
pub struct LoraSite {
    /// r, at least 1.
    pub rank: usize,
    /// Factor on B·A: α/r, or α/√r with rsLoRA.
    pub scale: f32,
    /// A, `[rank, inputs]`.
    pub a: Elements,
    /// Bᵀ, `[rank, outputs]`: each row is one column of B, contiguous for the kernels.
    pub b_transposed: Elements,
    /// The magnitudes of a DoRA; `None` for a plain LoRA.
    pub magnitude: Option<Magnitude>,
}

/// DoRA's magnitudes (Liu et al., "DoRA", 2024): y = m/‖W + s·B·A‖ ⊙ (W·x + s·B·A·x) + b, row by
/// row of W.
#[derive(Clone, Debug)]
pub struct Magnitude {
    /// m/‖W + s·B·A‖, `[outputs]`, computed once when the module is read.
    pub factors: Vec<f32>,
    /// b, the bias of the base, `[outputs]`, which DoRA leaves as it is; `None` where the linear
    /// has none.
    pub base_bias: Option<Vec<f32>>,
}

impl LoraSite {
    /// Output features, from the length of B.
    pub fn num_outputs(&self) -> usize {
        self.b_transposed.as_slice().len() / self.rank.max(1)
    }

    /// Bytes of A, B and the magnitudes; the copy of the base's bias is not counted.
    pub fn num_bytes(&self) -> usize {
        let magnitude = self.magnitude.iter();
        let magnitudes = magnitude.map(|magnitude| 4 * magnitude.factors.len()).sum::<usize>();
        self.a.num_bytes() + self.b_transposed.num_bytes() + magnitudes
    }
}
