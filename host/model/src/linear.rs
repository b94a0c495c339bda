//! Weight matrices in the forms that the base keeps in memory, and the products with them.

use std::sync::{Arc, LazyLock};

use memmap2::Mmap;

use crate::compute::Compute;
use crate::kernels::{
    PackedMatrix, Product, QuantisedRows, WeightSlice, matmul_dense, matmul_dense_rows,
    matmul_packed,
};

/// Dense elements, owned or borrowed from a mapped file.
///
/// Elements are never widened in memory: kernels load 16-bit ones as f32 lanes.
#[derive(Debug)]
pub enum DenseWeights {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// bfloat16 bit patterns.
    Bf16(Vec<u16>),
    /// IEEE half bit patterns.
    F16(Vec<u16>),
    /// Elements inside a mapped file, which the system may page out and in again.
    Mapped(MappedWeights),
}

impl DenseWeights {
    /// The elements.
    pub fn as_slice(&self) -> WeightSlice<'_> {
        match self {
            Self::F32(values) => WeightSlice::F32(values),
            Self::Bf16(values) => WeightSlice::Bf16(values),
            Self::F16(values) => WeightSlice::F16(values),
            Self::Mapped(mapped) => mapped.as_slice(),
        }
    }
}

/// Storage type of elements in a mapped file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenseType {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
}

impl DenseType {
    /// Bytes per element.
    pub fn num_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// A range of a mapped file that holds aligned little-endian floats.
#[derive(Debug)]
pub struct MappedWeights {
    /// The file, shared by all tensors of it.
    map: Arc<Mmap>,
    /// The first byte in the file, aligned to the type.
    start: usize,
    /// Number of elements.
    len: usize,
    /// Storage type of the elements.
    dtype: DenseType,
}

impl MappedWeights {
    /// Borrows `len` elements at byte `start`; `None` if the range lies outside the file, is not
    /// aligned for its type, or the machine is big-endian.
    pub fn new(map: Arc<Mmap>, start: usize, len: usize, dtype: DenseType) -> Option<Self> {
        let bytes = len.checked_mul(dtype.num_bytes())?;
        let range = map.get(start..start.checked_add(bytes)?)?;
        let aligned = range.as_ptr().addr().is_multiple_of(dtype.num_bytes());
        (aligned && cfg!(target_endian = "little")).then_some(Self { map, start, len, dtype })
    }

    #[expect(unsafe_code, reason = "views aligned, in-bounds bytes of the map as plain numbers")]
    fn as_slice(&self) -> WeightSlice<'_> {
        let pointer = self.map[self.start..].as_ptr();
        // SAFETY: `new` checked bounds and alignment, every bit pattern is valid for these types, and
        // the map is read-only and lives as long as `self`.
        unsafe {
            match self.dtype {
                DenseType::F32 => {
                    WeightSlice::F32(std::slice::from_raw_parts(pointer.cast(), self.len))
                }
                DenseType::Bf16 => {
                    WeightSlice::Bf16(std::slice::from_raw_parts(pointer.cast(), self.len))
                }
                DenseType::F16 => {
                    WeightSlice::F16(std::slice::from_raw_parts(pointer.cast(), self.len))
                }
            }
        }
    }
}

/// A weight matrix `[outs, inner]`, row-major: one row per output feature, as `torch.nn.Linear` has
/// it.
#[derive(Debug)]
pub enum Matrix {
    /// Dense rows.
    Dense {
        /// The elements, row-major.
        weights: DenseWeights,
        /// Input features.
        inner: usize,
    },
    /// 4- or 8-bit blocks in the kernels' own layout; `inner` is a multiple of 32.
    Packed(PackedMatrix),
}

impl Matrix {
    /// Output features.
    pub fn outs(&self) -> usize {
        match self {
            Self::Dense { weights, inner } => weights.as_slice().len() / inner,
            Self::Packed(packed) => packed.outs(),
        }
    }

    /// Input features.
    pub fn inner(&self) -> usize {
        match self {
            Self::Dense { inner, .. } => *inner,
            Self::Packed(packed) => packed.inner(),
        }
    }

    /// Bytes of weights, mapped ones included.
    pub fn num_bytes(&self) -> usize {
        match self {
            Self::Dense { weights, .. } => match weights.as_slice() {
                WeightSlice::F32(values) => 4 * values.len(),
                WeightSlice::Bf16(values) | WeightSlice::F16(values) => 2 * values.len(),
            },
            Self::Packed(packed) => packed.num_bytes(),
        }
    }

    /// One row as f32 (an embedding look-up).
    ///
    /// # Panics
    /// If `row` is outside or `values` has another length than a row.
    pub fn read_row(&self, row: usize, values: &mut [f32]) {
        match self {
            Self::Dense { weights, inner } => {
                let source = weights.as_slice().slice(row * inner, *inner);
                for (at, value) in values.iter_mut().enumerate() {
                    *value = source.get(at);
                }
            }
            Self::Packed(packed) => packed.read_row(row, values),
        }
    }
}

/// A projection: weights and, in some families, a bias.
#[derive(Debug)]
pub struct Linear {
    /// `[outs, inner]`
    pub matrix: Matrix,
    /// `[outs]`, added after the product; `None` in most families.
    pub bias: Option<Vec<f32>>,
}

impl Linear {
    /// The product of one row with the weights, without the bias, on the calling thread:
    /// `y = W · x`.
    ///
    /// Gives the bits that the same row gets in a step. `quantised` is a buffer that packed weights
    /// overwrite.
    ///
    /// # Panics
    /// If `x` or `y` has another length than the weights' rows and columns.
    pub fn multiply(&self, x: &[f32], quantised: &mut QuantisedRows, y: &mut [f32]) {
        static ONE_THREAD: LazyLock<Compute> = LazyLock::new(|| Compute::new(1));
        match &self.matrix {
            Matrix::Dense { weights, inner } => {
                matmul_dense(&ONE_THREAD, x, weights.as_slice(), *inner, y);
            }
            Matrix::Packed(matrix) => {
                quantised.quantise(&ONE_THREAD, x, matrix.inner());
                matmul_packed(
                    &ONE_THREAD,
                    quantised,
                    &mut [Product { weights: matrix, rows: 0..1, y }],
                );
            }
        }
    }
}

/// Products of several projections with some rows each of one input, `[rows, inner]`:
/// `yᵢ = x[rowsᵢ] · Wᵢᵀ + bᵢ`.
///
/// Quantised projections share one quantisation of the input, and projections of one form one
/// parallel region: entering a region costs as much as a small product. `quantised` is overwritten
/// if any of the weights are packed.
pub(crate) fn project(
    compute: &Compute,
    x: &[f32],
    inner: usize,
    quantised: &mut QuantisedRows,
    products: &mut [Product<'_, &Linear>],
) {
    let mut packed: Vec<Product<'_, &PackedMatrix>> = Vec::with_capacity(products.len());
    let mut dense: Vec<Product<'_, WeightSlice<'_>>> = Vec::with_capacity(products.len());
    for Product { weights: linear, rows, y } in products.iter_mut() {
        let rows = rows.clone();
        match &linear.matrix {
            Matrix::Dense { weights, .. } => {
                dense.push(Product { weights: weights.as_slice(), rows, y });
            }
            Matrix::Packed(matrix) => packed.push(Product { weights: matrix, rows, y }),
        }
    }
    if !dense.is_empty() {
        matmul_dense_rows(compute, x, inner, &mut dense);
    }
    if !packed.is_empty() {
        quantised.quantise(compute, x, inner);
        matmul_packed(compute, quantised, &mut packed);
    }
    for Product { weights: linear, y, .. } in products {
        if let Some(bias) = &linear.bias {
            for row in y.chunks_exact_mut(bias.len()) {
                row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
            }
        }
    }
}
