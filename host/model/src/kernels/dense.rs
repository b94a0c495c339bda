//! Products with dense f32, bf16 and f16 weights.
//!
//! Every dot product keeps one vector accumulator per (row, output) and walks the inner axis in
//! order: tiles only change how many of them are in flight.

use super::Product;
#[cfg(target_arch = "x86_64")]
use super::simd::{Avx2, Avx512};
use super::simd::{Isa, Portable, Simd, isa};
use crate::compute::{Compute, SharedMut};

/// Dense weights, row-major, read-only.
///
/// Kernels widen elements to f32 in registers and sum in f32, whatever the storage type.
#[derive(Clone, Copy, Debug)]
pub enum WeightSlice<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// bfloat16 bit patterns.
    Bf16(&'a [u16]),
    /// IEEE half bit patterns.
    F16(&'a [u16]),
}

impl<'a> WeightSlice<'a> {
    /// Number of elements.
    pub fn len(self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) | Self::F16(values) => values.len(),
        }
    }

    /// True if there are no elements.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The elements `start .. start + len`.
    ///
    /// # Panics
    /// If the range lies outside.
    pub fn slice(self, start: usize, len: usize) -> Self {
        match self {
            Self::F32(values) => Self::F32(&values[start..start + len]),
            Self::Bf16(values) => Self::Bf16(&values[start..start + len]),
            Self::F16(values) => Self::F16(&values[start..start + len]),
        }
    }

    /// One element as f32.
    ///
    /// # Panics
    /// If `index` lies outside.
    pub fn get(self, index: usize) -> f32 {
        match self {
            Self::F32(values) => values[index],
            Self::Bf16(values) => f32::from_bits(u32::from(values[index]) << 16),
            Self::F16(values) => half::f16::from_bits(values[index]).to_f32(),
        }
    }

    /// All elements as f32.
    ///
    /// A copy, for small tensors such as norms and biases.
    pub fn to_f32(self) -> Vec<f32> {
        (0..self.len()).map(|index| self.get(index)).collect()
    }
}

/// A weight element type that loads as f32 lanes.
trait Element: Copy {
    /// `LANES` elements as f32.
    unsafe fn load<S: Simd>(source: *const Self) -> S::V;
    /// One element as f32, with the same value that a lane gets.
    fn one(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(source: *const Self) -> S::V {
        // SAFETY: the caller guarantees `LANES` readable elements.
        unsafe { S::load(source) }
    }
    #[inline(always)]
    fn one(self) -> f32 {
        self
    }
}

/// A bfloat16 bit pattern: the upper half of an f32.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Bf16(u16);

impl Element for Bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(source: *const Self) -> S::V {
        // SAFETY: the caller guarantees `LANES` readable elements.
        unsafe { S::load_bf16(source.cast()) }
    }
    #[inline(always)]
    fn one(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }
}

/// An IEEE half bit pattern.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct F16(u16);

impl Element for F16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(source: *const Self) -> S::V {
        // SAFETY: the caller guarantees `LANES` readable elements.
        unsafe { S::load_f16(source.cast()) }
    }
    #[inline(always)]
    fn one(self) -> f32 {
        half::f16::from_bits(self.0).to_f32()
    }
}

/// `ROWS × OUTS` dot products of length `inner`; `x` rows and `w` rows are `inner` apart.
///
/// Larger tiles read each weight and each input less often. The elements behind the last whole
/// vector are added one by one to the sum of the lanes.
#[inline(always)]
unsafe fn dot_tile<S: Simd, E: Element, const ROWS: usize, const OUTS: usize>(
    x: *const f32,
    w: *const E,
    inner: usize,
) -> [[f32; OUTS]; ROWS] {
    // SAFETY: the callers check that `x` holds `ROWS` and `w` holds `OUTS` rows of `inner` elements.
    unsafe {
        let mut sums = [[S::zero(); OUTS]; ROWS];
        let whole = inner - inner % S::LANES;
        let mut at = 0;
        while at < whole {
            let weights: [S::V; OUTS] =
                std::array::from_fn(|out| E::load::<S>(w.add(out * inner + at)));
            for (row, sums) in sums.iter_mut().enumerate() {
                let value = S::load(x.add(row * inner + at));
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = S::mul_add(value, weights, *sum);
                }
            }
            at += S::LANES;
        }
        let mut result = [[0.0; OUTS]; ROWS];
        for row in 0..ROWS {
            for out in 0..OUTS {
                let mut sum = S::sum(sums[row][out]);
                for tail in whole..inner {
                    sum = (*x.add(row * inner + tail))
                        .mul_add((*w.add(out * inner + tail)).one(), sum);
                }
                result[row][out] = sum;
            }
        }
        result
    }
}

/// The columns of a row-major output that one task writes.
#[derive(Clone, Copy)]
struct Columns {
    /// The first of them; there is one per row of the task's weights.
    first: usize,
    /// Columns of the whole output: the distance between its rows.
    width: usize,
}

/// `y[r, first + o] = x[r] · w[o]` for all rows and the outputs of one task.
///
/// `x` is `[rows, inner]`, `w` the task's `[outs, inner]`, and `y` `[rows, columns.width]`, of
/// which no other task writes these columns. Four outputs at a time read each input row once; the
/// results do not depend on the tiling.
#[inline(always)]
unsafe fn outputs<S: Simd, E: Element>(
    x: &[f32],
    w: &[E],
    inner: usize,
    y: SharedMut<f32>,
    columns: Columns,
) {
    let Columns { first, width } = columns;
    let num_rows = x.len() / inner;
    let num_outs = w.len() / inner;
    let store = |row: usize, out: usize, values: &[f32]| {
        // SAFETY: tasks own disjoint output ranges.
        unsafe { y.slice(row * width + first + out, values.len()) }.copy_from_slice(values);
    };
    let mut out = 0;
    while out + 4 <= num_outs {
        let weights = w[out * inner..].as_ptr();
        let mut row = 0;
        while row + 4 <= num_rows {
            // SAFETY: four rows of x and four of w are in bounds by the loop conditions.
            let tile = unsafe { dot_tile::<S, E, 4, 4>(x[row * inner..].as_ptr(), weights, inner) };
            tile.iter().enumerate().for_each(|(offset, values)| store(row + offset, out, values));
            row += 4;
        }
        while row < num_rows {
            // SAFETY: one row of x and four of w are in bounds.
            let tile = unsafe { dot_tile::<S, E, 1, 4>(x[row * inner..].as_ptr(), weights, inner) };
            store(row, out, &tile[0]);
            row += 1;
        }
        out += 4;
    }
    while out < num_outs {
        for row in 0..num_rows {
            // SAFETY: one row of each is in bounds.
            let tile = unsafe {
                dot_tile::<S, E, 1, 1>(x[row * inner..].as_ptr(), w[out * inner..].as_ptr(), inner)
            };
            store(row, out, &tile[0]);
        }
        out += 1;
    }
}

/// `y += Σ_j coefficients[j] · rows[j]`, four rows at a time, in order of `j`.
///
/// `y` is as long as a row; its whole vectors are loaded and stored once.
#[inline(always)]
unsafe fn axpy<S: Simd, E: Element>(y: &mut [f32], coefficients: &[f32], rows: &[E]) {
    let width = y.len();
    let whole = width - width % S::LANES;
    let mut at = 0;
    while at < whole {
        // SAFETY: `at + LANES <= width`, and `rows` holds `coefficients.len()` rows of `width`.
        unsafe {
            let mut sum = S::load(y.as_ptr().add(at));
            for (j, &coefficient) in coefficients.iter().enumerate() {
                let value = E::load::<S>(rows.as_ptr().add(j * width + at));
                sum = S::mul_add(S::splat(coefficient), value, sum);
            }
            S::store(y.as_mut_ptr().add(at), sum);
        }
        at += S::LANES;
    }
    for tail in whole..width {
        for (j, &coefficient) in coefficients.iter().enumerate() {
            y[tail] = coefficient.mul_add(rows[j * width + tail].one(), y[tail]);
        }
    }
}

/// [`outputs`] compiled for AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn outputs_avx512<E: Element>(
    x: &[f32],
    w: &[E],
    inner: usize,
    y: SharedMut<f32>,
    columns: Columns,
) {
    // SAFETY: forwarded contract.
    unsafe { outputs::<Avx512, E>(x, w, inner, y, columns) }
}

/// [`outputs`] compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn outputs_avx2<E: Element>(
    x: &[f32],
    w: &[E],
    inner: usize,
    y: SharedMut<f32>,
    columns: Columns,
) {
    // SAFETY: forwarded contract.
    unsafe { outputs::<Avx2, E>(x, w, inner, y, columns) }
}

/// [`axpy`] compiled for AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn axpy_avx512<E: Element>(y: &mut [f32], coefficients: &[f32], rows: &[E]) {
    // SAFETY: forwarded contract.
    unsafe { axpy::<Avx512, E>(y, coefficients, rows) }
}

/// [`axpy`] compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn axpy_avx2<E: Element>(y: &mut [f32], coefficients: &[f32], rows: &[E]) {
    // SAFETY: forwarded contract.
    unsafe { axpy::<Avx2, E>(y, coefficients, rows) }
}

/// [`outputs`] on an instruction set that the CPU has; tests name narrower ones.
fn outputs_on<E: Element>(
    isa: Isa,
    x: &[f32],
    w: &[E],
    inner: usize,
    y: SharedMut<f32>,
    columns: Columns,
) {
    // SAFETY: each arm is reached only when the CPU has the instruction set; ranges are disjoint by
    // the callers' partition of the outputs.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => outputs_avx512(x, w, inner, y, columns),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => outputs_avx2(x, w, inner, y, columns),
            _ => outputs::<Portable, E>(x, w, inner, y, columns),
        }
    }
}

/// [`axpy`] on an instruction set that the CPU has.
fn axpy_on<E: Element>(isa: Isa, y: &mut [f32], coefficients: &[f32], rows: &[E]) {
    assert!(rows.len() == coefficients.len() * y.len(), "rows and coefficients disagree");
    // SAFETY: each arm is reached only when the CPU has the instruction set; lengths are checked above.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => axpy_avx512(y, coefficients, rows),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => axpy_avx2(y, coefficients, rows),
            _ => axpy::<Portable, E>(y, coefficients, rows),
        }
    }
}

/// The same bits under the type that kernels load.
fn as_bf16(values: &[u16]) -> &[Bf16] {
    // SAFETY: `Bf16` is a transparent wrapper of `u16`.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
}

/// The same bits under the type that kernels load.
fn as_f16(values: &[u16]) -> &[F16] {
    // SAFETY: `F16` is a transparent wrapper of `u16`.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
}

/// [`outputs`] for the storage type at hand, on the widest instruction set.
fn outputs_dispatch(
    x: &[f32],
    w: WeightSlice<'_>,
    inner: usize,
    y: SharedMut<f32>,
    columns: Columns,
) {
    match w {
        WeightSlice::F32(w) => outputs_on(isa(), x, w, inner, y, columns),
        WeightSlice::Bf16(w) => outputs_on(isa(), x, as_bf16(w), inner, y, columns),
        WeightSlice::F16(w) => outputs_on(isa(), x, as_f16(w), inner, y, columns),
    }
}

/// `y = x · wᵀ` with `x` `[rows, inner]`, `w` `[outs, inner]`, `y` `[rows, outs]`, in parallel over
/// outputs.
///
/// # Panics
/// If the lengths do not agree.
pub fn matmul_dense(compute: &Compute, x: &[f32], w: WeightSlice<'_>, inner: usize, y: &mut [f32]) {
    assert!(inner > 0 && x.len().is_multiple_of(inner));
    let rows = 0..x.len() / inner;
    matmul_dense_rows(compute, x, inner, &mut [Product { weights: w, rows, y }]);
}

/// `yᵢ = x[rowsᵢ] · wᵢᵀ` for several matrices in one parallel region; each `yᵢ` is
/// `[rows of it, outs of wᵢ]`.
///
/// Tasks are runs of outputs, so that every weight is read by one thread. All matrices have `inner`
/// columns; `x` is `[rows, inner]` and may hold rows that no product wants.
///
/// # Panics
/// If the lengths do not agree.
pub fn matmul_dense_rows(
    compute: &Compute,
    x: &[f32],
    inner: usize,
    products: &mut [Product<'_, WeightSlice<'_>>],
) {
    /// Outputs per task: a multiple of the tile, small enough to balance two threads.
    const OUTS_PER_TASK: usize = 32;
    let mut num_tasks = 0;
    let targets: Vec<_> = products
        .iter_mut()
        .map(|Product { weights, rows, y }| {
            assert!(inner > 0 && weights.len().is_multiple_of(inner));
            let outs = weights.len() / inner;
            assert_eq!(y.len(), rows.len() * outs, "output length");
            let first_task = num_tasks;
            num_tasks += outs.div_ceil(OUTS_PER_TASK);
            let x = &x[rows.start * inner..rows.end * inner];
            (first_task, x, *weights, outs, SharedMut::new(y))
        })
        .collect();
    compute.run(num_tasks, &|task| {
        let target = targets.partition_point(|(first, ..)| *first <= task) - 1;
        let (first_task, x, weights, num_outs, y) = targets[target];
        let first = (task - first_task) * OUTS_PER_TASK;
        let outs = OUTS_PER_TASK.min(num_outs - first);
        let weights = weights.slice(first * inner, outs * inner);
        outputs_dispatch(x, weights, inner, y, Columns { first, width: num_outs });
    });
}

/// Dot products of one vector with each row of `w`, on the calling thread: `y[o] = x · w[o]`.
///
/// Nothing is entered but the kernel: for products that are too small for a parallel region.
///
/// # Panics
/// If the lengths do not agree.
pub fn dots(x: &[f32], w: WeightSlice<'_>, y: &mut [f32]) {
    assert_eq!(w.len(), x.len() * y.len(), "weights and output disagree");
    let num_outs = y.len();
    if num_outs > 0 && !x.is_empty() {
        outputs_dispatch(x, w, x.len(), SharedMut::new(y), Columns { first: 0, width: num_outs });
    }
}

/// Asks the CPU to bring weights into its second-level cache; a hint without effect on results.
///
/// One request per cache line; without an effect on other CPUs than x86-64.
pub fn prefetch(weights: WeightSlice<'_>) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        let (start, bytes) = match weights {
            WeightSlice::F32(values) => (values.as_ptr().cast::<i8>(), 4 * values.len()),
            WeightSlice::Bf16(values) | WeightSlice::F16(values) => {
                (values.as_ptr().cast::<i8>(), 2 * values.len())
            }
        };
        for offset in (0..bytes).step_by(64) {
            // SAFETY: in bounds; a prefetch reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(start.add(offset)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = weights;
}

/// `y += Σ_j coefficients[j] · rows[j]` on the calling thread, rows of `y.len()` elements.
///
/// A product with a transposed matrix, such as LoRA's `B` stored by rank: every row is read once.
///
/// # Panics
/// If the lengths do not agree.
pub fn add_scaled_rows(y: &mut [f32], coefficients: &[f32], rows: WeightSlice<'_>) {
    match rows {
        WeightSlice::F32(rows) => axpy_on(isa(), y, coefficients, rows),
        WeightSlice::Bf16(rows) => axpy_on(isa(), y, coefficients, as_bf16(rows)),
        WeightSlice::F16(rows) => axpy_on(isa(), y, coefficients, as_f16(rows)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / 8_388_608.0 - 1.0
            })
            .collect()
    }

    fn check(isa: Isa, rows: usize, outs: usize, inner: usize) {
        let (x, w) = (values(rows * inner, 1), values(outs * inner, 2));
        let mut y = vec![0.0; rows * outs];
        outputs_on(isa, &x, &w, inner, SharedMut::new(&mut y), Columns { first: 0, width: outs });
        for row in 0..rows {
            for out in 0..outs {
                let expected: f64 = (0..inner)
                    .map(|k| f64::from(x[row * inner + k]) * f64::from(w[out * inner + k]))
                    .sum();
                let found = f64::from(y[row * outs + out]);
                assert!((found - expected).abs() < 1e-4, "{isa:?} {found} {expected}");
                let mut alone = [0.0];
                outputs_on(
                    isa,
                    &x[row * inner..(row + 1) * inner],
                    &w[out * inner..(out + 1) * inner],
                    inner,
                    SharedMut::new(&mut alone),
                    Columns { first: 0, width: 1 },
                );
                assert_eq!(alone[0].to_bits(), y[row * outs + out].to_bits(), "batch invariance");
            }
        }
    }

    #[test]
    fn dense_products_agree_with_f64_and_do_not_depend_on_the_batch() {
        for isa in [isa(), Isa::Avx2, Isa::Portable] {
            if isa == Isa::Avx2 && super::isa() == Isa::Portable {
                continue;
            }
            for (rows, outs, inner) in [(1, 1, 1), (1, 9, 16), (5, 6, 33), (9, 13, 70), (4, 4, 64)]
            {
                check(isa, rows, outs, inner);
            }
        }
    }

    #[test]
    fn scaled_rows_are_added() {
        let rows = values(3 * 21, 3);
        let mut y = values(21, 4);
        let before = y.clone();
        add_scaled_rows(&mut y, &[0.5, -2.0, 1.0], WeightSlice::F32(&rows));
        for at in 0..21 {
            let expected = before[at] + 0.5 * rows[at] - 2.0 * rows[21 + at] + rows[42 + at];
            assert!((y[at] - expected).abs() < 1e-5);
        }
    }
}
