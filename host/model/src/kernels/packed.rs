//! Products of 8-bit activations with 4- and 8-bit weights.
//!
//! A weight is `scale · q + min` with unsigned `q`, one scale (and for 4 bits one min) per 32
//! weights of a row, which holds GGUF's Q4_0, Q4_1 and Q8_0 exactly. Activations are quantised per
//! row and block of 32 to 8 bits with an f32 scale, as llama.cpp does. Integer sums are exact and
//! the float sums run in block order, so a result depends on neither the batch nor the instruction
//! set.
//!
//! Layout: tiles of 16 outputs × 32 inner elements. A 64-byte line of a tile holds four consecutive
//! inner elements of each of the 16 outputs, the operand of one VNNI instruction; 4-bit tiles keep
//! line `j` in the low and line `j + 4` in the high nibbles. No horizontal sums are needed.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::ops::Range;

use super::Product;
use super::simd::{Isa, isa};
use crate::compute::{ActivationBits, Compute, SharedMut};
use half::f16;

/// Weights per scale, along a row.
pub(super) const BLOCK: usize = 32;
/// Outputs per tile: one 512-bit line holds four inner elements of each.
const TILE: usize = 16;
/// Bytes of a line: four inner elements of each output of a tile.
const LINE_BYTES: usize = 4 * TILE;
/// Bytes of one block of a tile at 4 bits: four lines, each with two inner elements per byte.
const TILE_BYTES_4BIT: usize = 4 * LINE_BYTES;
/// Bytes of one block of a tile at 8 bits: eight lines.
const TILE_BYTES_8BIT: usize = 8 * LINE_BYTES;

/// A quantised weight matrix `[outs, inner]`, packed for the kernels.
///
/// Rows behind the last output, which fill up the last tile, hold zeros.
#[derive(Debug)]
pub struct PackedMatrix {
    /// Output features.
    outs: usize,
    /// Input features, a multiple of [`BLOCK`].
    inner: usize,
    /// True for 4 bits and a min per block, false for 8 bits around 128.
    four_bit: bool,
    /// `[tiles, blocks, tile bytes]`: [`TILE_BYTES_4BIT`] per block of a tile for 4 bits,
    /// [`TILE_BYTES_8BIT`] for 8.
    quants: Vec<u8>,
    /// f16 bits, `[tiles, blocks, TILE]`
    scales: Vec<u16>,
    /// f16 bits, `[tiles, blocks, TILE]`; empty for 8 bits, whose min is −128 · scale.
    mins: Vec<u16>,
}

impl PackedMatrix {
    /// An all-zero matrix to be filled block by block; `inner` must be a multiple of 32.
    ///
    /// # Panics
    /// If it is not.
    pub fn zeros(outs: usize, inner: usize, four_bit: bool) -> Self {
        assert!(
            inner > 0 && inner.is_multiple_of(BLOCK),
            "inner size {inner} in blocks of {BLOCK}"
        );
        let blocks = outs.div_ceil(TILE) * (inner / BLOCK);
        let (bytes, fill, mins) =
            if four_bit { (TILE_BYTES_4BIT, 0, blocks * TILE) } else { (TILE_BYTES_8BIT, 128, 0) };
        Self {
            outs,
            inner,
            four_bit,
            quants: vec![fill; blocks * bytes],
            scales: vec![0; blocks * TILE],
            mins: vec![0; mins],
        }
    }

    /// Quantises dense rows to 8 bits, each block's largest magnitude mapped to 127.
    ///
    /// Values are rounded to the nearest of 255 levels; the scale itself is rounded to f16 first. A
    /// remainder of fewer than `inner` weights is left out.
    pub fn from_dense(weights: &[f32], inner: usize) -> Self {
        let mut packed = Self::zeros(weights.len() / inner, inner, false);
        for (out, row) in weights.chunks_exact(inner).enumerate() {
            for (block, values) in row.chunks_exact(BLOCK).enumerate() {
                let largest = values.iter().fold(0.0_f32, |max, value| max.max(value.abs()));
                let scale = f16::from_f32(largest / 127.0);
                let inverse = if scale.to_f32() > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
                let quants = std::array::from_fn(|k| {
                    ((values[k] * inverse).round().clamp(-127.0, 127.0) as i32 + 128) as u8
                });
                packed.set_block(out, block, scale.to_bits(), 0, &quants);
            }
        }
        packed
    }

    /// Sets one block of one output row: f16 bits of scale and min, and 32 unsigned quants.
    ///
    /// Quants are in the order of the inner elements, one per byte, below 16 for 4 bits. `min` is
    /// not kept for 8 bits, where 128 stands for zero.
    ///
    /// # Panics
    /// If `out` or `block` lies outside the matrix.
    pub fn set_block(
        &mut self,
        out: usize,
        block: usize,
        scale: u16,
        min: u16,
        quants: &[u8; BLOCK],
    ) {
        assert!(out < self.outs && block < self.inner / BLOCK, "block outside the matrix");
        let (at, lane) = self.tile_block(out, block);
        self.scales[at * TILE + lane] = scale;
        if self.four_bit {
            self.mins[at * TILE + lane] = min;
        }
        for (k, &quant) in quants.iter().enumerate() {
            let (line, byte) = (k / 4, lane * 4 + k % 4);
            if self.four_bit {
                let place = at * TILE_BYTES_4BIT + (line % 4) * LINE_BYTES + byte;
                let target = &mut self.quants[place];
                let shift = 4 * (line / 4);
                *target = (*target & !(0xf << shift)) | ((quant & 0xf) << shift);
            } else {
                self.quants[at * TILE_BYTES_8BIT + line * LINE_BYTES + byte] = quant;
            }
        }
    }

    /// Output features.
    pub fn outs(&self) -> usize {
        self.outs
    }

    /// Input features.
    pub fn inner(&self) -> usize {
        self.inner
    }

    /// Bytes held, the filling of the last tile included.
    pub fn num_bytes(&self) -> usize {
        self.quants.len() + 2 * (self.scales.len() + self.mins.len())
    }

    /// Dequantises one output row (an embedding look-up).
    ///
    /// # Panics
    /// If `out` lies outside, or `row` is not `inner` long.
    pub fn read_row(&self, out: usize, row: &mut [f32]) {
        assert!(out < self.outs && row.len() == self.inner, "row outside the matrix");
        for (block, values) in row.chunks_exact_mut(BLOCK).enumerate() {
            let (at, lane) = self.tile_block(out, block);
            let scale = f16::from_bits(self.scales[at * TILE + lane]).to_f32();
            for (k, value) in values.iter_mut().enumerate() {
                *value = if self.four_bit {
                    let place = at * TILE_BYTES_4BIT + (k / 4 % 4) * LINE_BYTES + lane * 4 + k % 4;
                    let quant = (self.quants[place] >> (4 * (k / 16))) & 0xf;
                    scale * f32::from(quant) + f16::from_bits(self.mins[at * TILE + lane]).to_f32()
                } else {
                    let place = at * TILE_BYTES_8BIT + (k / 4) * LINE_BYTES + lane * 4 + k % 4;
                    scale * (f32::from(self.quants[place]) - 128.0)
                };
            }
        }
    }

    /// Number of the tile's block in `quants` and `scales`, and the output's lane in the tile.
    fn tile_block(&self, out: usize, block: usize) -> (usize, usize) {
        ((out / TILE) * (self.inner / BLOCK) + block, out % TILE)
    }
}

/// Rows of activations in 8 bits.
///
/// A buffer that a step fills once per input and that all packed products of it read.
#[derive(Debug, Default)]
pub struct QuantisedRows {
    /// Features per row, a multiple of [`BLOCK`].
    inner: usize,
    /// `[rows, inner]`
    values: Vec<i8>,
    /// `[rows, blocks]`: value = scale · quant.
    scales: Vec<f32>,
    /// `[rows, blocks]`: the sum of a block's quants.
    sums: Vec<i32>,
    /// The difference between the activations and these, quantised again, where they are to have 16 bits.
    remainder: Option<Box<Self>>,
}

impl QuantisedRows {
    /// Quantises `[rows, inner]` activations, reusing the buffers.
    ///
    /// A block's largest magnitude is mapped to 127. Each row is quantised by itself, so that its
    /// bits do not depend on the rows beside it.
    ///
    /// # Panics
    /// If `inner` is not a multiple of 32 or does not divide the length.
    pub fn quantise(&mut self, compute: &Compute, x: &[f32], inner: usize) {
        self.quantise_once(compute, x, inner);
        if compute.activation_bits() == ActivationBits::Eight {
            self.remainder = None;
            return;
        }
        let mut remainders = x.to_vec();
        let blocks = remainders.chunks_exact_mut(BLOCK).zip(self.values.chunks_exact(BLOCK));
        for ((x, quants), scale) in blocks.zip(&self.scales) {
            x.iter_mut().zip(quants).for_each(|(x, quant)| *x -= scale * f32::from(*quant));
        }
        let mut remainder = self.remainder.take().unwrap_or_default();
        remainder.quantise_once(compute, &remainders, inner);
        self.remainder = Some(remainder);
    }

    /// Quantises to 8 bits.
    fn quantise_once(&mut self, compute: &Compute, x: &[f32], inner: usize) {
        const ROWS_PER_TASK: usize = 16;
        assert!(inner > 0 && inner.is_multiple_of(BLOCK) && x.len().is_multiple_of(inner));
        let (num_rows, blocks) = (x.len() / inner, inner / BLOCK);
        self.inner = inner;
        self.values.resize(num_rows * inner, 0);
        self.scales.resize(num_rows * blocks, 0.0);
        self.sums.resize(num_rows * blocks, 0);
        let values = SharedMut::new(&mut self.values);
        let scales = SharedMut::new(&mut self.scales);
        let sums = SharedMut::new(&mut self.sums);
        compute.run(num_rows.div_ceil(ROWS_PER_TASK), &|task| {
            let first = task * ROWS_PER_TASK;
            let rows = ROWS_PER_TASK.min(num_rows - first);
            // SAFETY: tasks own disjoint rows.
            let (values, scales, sums) = unsafe {
                (
                    values.slice(first * inner, rows * inner),
                    scales.slice(first * blocks, rows * blocks),
                    sums.slice(first * blocks, rows * blocks),
                )
            };
            let x = &x[first * inner..(first + rows) * inner];
            for (block, (x, q)) in
                x.chunks_exact(BLOCK).zip(values.chunks_exact_mut(BLOCK)).enumerate()
            {
                (scales[block], sums[block]) = quantise_block(x, q);
            }
        });
    }

    /// Rows of the last input; divides by zero before the first one.
    fn num_rows(&self) -> usize {
        self.values.len() / self.inner
    }
}

/// Quantises 32 values; returns the scale and the sum of the quants.
///
/// The sum spares kernels a pass over the inputs for mins and for the offset of 8-bit weights.
#[inline(always)]
fn quantise_block(x: &[f32], quants: &mut [i8]) -> (f32, i32) {
    let mut lanes = [0.0_f32; 8];
    for chunk in x.chunks_exact(8) {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = lane.max(value.abs());
        }
    }
    let largest = lanes.iter().fold(0.0_f32, |max, &lane| max.max(lane));
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    // Adding 1.5 · 2²³ rounds to the nearest even integer in the low mantissa bits, which vectorises.
    const MAGIC: f32 = 12_582_912.0;
    let mut sum = 0;
    for (quant, &value) in quants.iter_mut().zip(x) {
        let rounded = ((value * inverse + MAGIC).to_bits() as i32) - (MAGIC.to_bits() as i32);
        *quant = rounded as i8;
        sum += i32::from(*quant);
    }
    (largest / 127.0, sum)
}

/// The part of a matrix that one kernel call reads: one tile with all its blocks.
#[derive(Clone, Copy)]
struct Tile<'a> {
    /// `[blocks, tile bytes]`
    quants: &'a [u8],
    /// f16 bits, `[blocks, TILE]`
    scales: &'a [u16],
    /// f16 bits, `[blocks, TILE]`; empty for 8 bits.
    mins: &'a [u16],
    /// Blocks along the inner axis.
    blocks: usize,
}

/// Several rows of quantised activations, at most eight.
#[derive(Clone, Copy)]
struct Rows<'a> {
    /// `[rows, blocks · BLOCK]`
    values: &'a [i8],
    /// `[rows, blocks]`
    scales: &'a [f32],
    /// `[rows, blocks]`: sums of the blocks' quants.
    sums: &'a [i32],
    /// Blocks along the inner axis.
    blocks: usize,
}

/// `yᵢ = x[rowsᵢ] · wᵢᵀ` for several matrices in one parallel region; each `yᵢ` is
/// `[rows of it, outs of wᵢ]`.
///
/// Tasks are runs of tiles, about four per thread, which may span matrices. A tile's
/// weights are unpacked once for several rows.
///
/// # Panics
/// If the sizes do not agree.
pub fn matmul_packed(
    compute: &Compute,
    x: &QuantisedRows,
    products: &mut [Product<'_, &PackedMatrix>],
) {
    matmul_8_bits(compute, x, products);
    let Some(remainder) = &x.remainder else { return };
    let mut more: Vec<Vec<f32>> =
        products.iter().map(|product| vec![0.0; product.y.len()]).collect();
    let mut again: Vec<_> = products
        .iter()
        .zip(&mut more)
        .map(|(product, y)| Product { weights: product.weights, rows: product.rows.clone(), y })
        .collect();
    matmul_8_bits(compute, remainder, &mut again);
    for (product, more) in products.iter_mut().zip(more) {
        product.y.iter_mut().zip(more).for_each(|(y, more)| *y += more);
    }
}

/// The products with one plane of 8 bits.
fn matmul_8_bits(
    compute: &Compute,
    x: &QuantisedRows,
    products: &mut [Product<'_, &PackedMatrix>],
) {
    let mut total_tiles = 0;
    let targets: Vec<_> = products
        .iter_mut()
        .map(|Product { weights: matrix, rows, y }| {
            assert_eq!(matrix.inner, x.inner, "inner sizes");
            assert!(rows.end <= x.num_rows(), "rows outside the input");
            assert_eq!(y.len(), rows.len() * matrix.outs, "output length");
            let first_tile = total_tiles;
            total_tiles += matrix.outs.div_ceil(TILE);
            (first_tile, *matrix, rows.clone(), SharedMut::new(y))
        })
        .collect();
    let tiles_per_task = total_tiles.div_ceil(compute.num_threads() * 4).max(1);
    let isa = isa();
    compute.run(total_tiles.div_ceil(tiles_per_task), &|task| {
        let first = task * tiles_per_task;
        let mut target = targets.partition_point(|(tile, ..)| *tile <= first) - 1;
        for tile in first..(first + tiles_per_task).min(total_tiles) {
            if targets.get(target + 1).is_some_and(|(next, ..)| *next <= tile) {
                target += 1;
            }
            let (first_tile, matrix, rows, y) = &targets[target];
            multiply_tile(isa, matrix, tile - first_tile, x, rows, *y);
        }
    });
}

/// The outputs of one tile for the rows `range` of the input, in groups of eight, four, two and
/// one.
///
/// The size of a group does not change a row's result. `y` is the product's `[rows, outs]`, whose
/// first row belongs to the range's first.
fn multiply_tile(
    isa: Isa,
    matrix: &PackedMatrix,
    tile: usize,
    x: &QuantisedRows,
    range: &Range<usize>,
    y: SharedMut<f32>,
) {
    let blocks = matrix.inner / BLOCK;
    let bytes = blocks * if matrix.four_bit { TILE_BYTES_4BIT } else { TILE_BYTES_8BIT };
    let scales = tile * blocks * TILE..(tile + 1) * blocks * TILE;
    let weights = Tile {
        quants: &matrix.quants[tile * bytes..(tile + 1) * bytes],
        mins: if matrix.four_bit { &matrix.mins[scales.clone()] } else { &[] },
        scales: &matrix.scales[scales],
        blocks,
    };
    let outs = TILE.min(matrix.outs - tile * TILE);
    let mut row = range.start;
    while row < range.end {
        let count = match range.end - row {
            8.. => 8,
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let rows = Rows {
            values: &x.values[row * x.inner..(row + count) * x.inner],
            scales: &x.scales[row * blocks..(row + count) * blocks],
            sums: &x.sums[row * blocks..(row + count) * blocks],
            blocks,
        };
        let mut sums = [[0.0_f32; TILE]; 8];
        tile_product(isa, matrix.four_bit, weights, rows, count, &mut sums);
        for (offset, sums) in sums[..count].iter().enumerate() {
            let place = (row - range.start + offset) * matrix.outs + tile * TILE;
            // SAFETY: a tile's outputs of a row belong to one task.
            let y = unsafe { y.slice(place, outs) };
            y.copy_from_slice(&sums[..outs]);
        }
        row += count;
    }
}

/// Products of `count` rows with one tile, into the first rows of `y`. `count` is eight, four, two
/// or one.
fn tile_product(
    isa: Isa,
    four_bit: bool,
    w: Tile<'_>,
    x: Rows<'_>,
    count: usize,
    y: &mut [[f32; TILE]; 8],
) {
    debug_assert!(x.values.len() == count * x.blocks * BLOCK && w.blocks == x.blocks);
    // SAFETY: each arm is reached only when the CPU has the instruction set; slices hold `count` rows and
    // `blocks` blocks, as sliced above.
    unsafe {
        match (isa, four_bit, count) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, true, 8) => avx512::product::<8, true>(w, x, y),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, true, 4) => avx512::product::<4, true>(w, x, y),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, true, 2) => avx512::product::<2, true>(w, x, y),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, true, _) => avx512::product::<1, true>(w, x, y),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, false, 8) => avx512::product::<8, false>(w, x, y),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, false, 4) => avx512::product::<4, false>(w, x, y),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, false, 2) => avx512::product::<2, false>(w, x, y),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, false, _) => avx512::product::<1, false>(w, x, y),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, true, _) => avx2::product::<true>(w, x, count, y),
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, false, _) => avx2::product::<false>(w, x, count, y),
            (_, four_bit, _) => portable::product(four_bit, w, x, count, y),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole<'a>(
        weights: &'a PackedMatrix,
        x: &QuantisedRows,
        y: &'a mut [f32],
    ) -> Product<'a, &'a PackedMatrix> {
        Product { weights, rows: 0..x.num_rows(), y }
    }

    fn noise(state: &mut u32) -> f32 {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (*state >> 8) as f32 / 8_388_608.0 - 1.0
    }

    fn matrix(outs: usize, inner: usize, four_bit: bool) -> PackedMatrix {
        let mut state = 7;
        let mut packed = PackedMatrix::zeros(outs, inner, four_bit);
        for out in 0..outs {
            for block in 0..inner / BLOCK {
                let scale = f16::from_f32(0.02 + 0.01 * noise(&mut state)).to_bits();
                let min = f16::from_f32(0.1 * noise(&mut state)).to_bits();
                let top = if four_bit { 15.0 } else { 255.0 };
                // The extremes 0 and 255 must be exact too: they are −128 and 127 as signed weights.
                let quants = std::array::from_fn(|k| match k {
                    0 => 0,
                    1 => top as u8,
                    _ => ((noise(&mut state) + 1.0) / 2.0 * top) as u8,
                });
                packed.set_block(out, block, scale, min, &quants);
            }
        }
        packed
    }

    #[test]
    fn packed_products_are_close_to_dequantised_ones_and_equal_on_every_instruction_set() {
        let compute = Compute::new(2);
        for four_bit in [true, false] {
            for (rows, outs, inner) in [(1, 16, 32), (3, 21, 96), (13, 40, 64), (8, 7, 160)] {
                let packed = matrix(outs, inner, four_bit);
                let mut state = 3;
                let x: Vec<f32> = (0..rows * inner).map(|_| noise(&mut state)).collect();
                let mut quantised = QuantisedRows::default();
                quantised.quantise(&compute, &x, inner);
                let mut y = vec![0.0; rows * outs];
                matmul_packed(&compute, &quantised, &mut [whole(&packed, &quantised, &mut y)]);
                for (row, y) in y.chunks_exact(outs).enumerate() {
                    let mut weights = vec![0.0; inner];
                    for (out, &found) in y.iter().enumerate() {
                        packed.read_row(out, &mut weights);
                        let terms = weights.iter().zip(&x[row * inner..]);
                        let (expected, size) = terms.fold((0.0, 0.0), |(sum, size), (w, x)| {
                            (sum + w * x, size + (w * x).abs())
                        });
                        assert!(
                            (found - expected).abs() < 0.01 * size + 1e-3,
                            "{found} {expected}"
                        );
                    }
                }
                for isa in [Isa::Portable, Isa::Avx2] {
                    if isa == Isa::Avx2 && super::isa() == Isa::Portable {
                        continue;
                    }
                    let mut other = vec![0.0; rows * outs];
                    let target = SharedMut::new(&mut other);
                    for tile in 0..outs.div_ceil(TILE) {
                        multiply_tile(isa, &packed, tile, &quantised, &(0..rows), target);
                    }
                    assert_eq!(y, other, "{isa:?}");
                }
            }
        }
    }

    #[test]
    fn activations_of_16_bits_leave_the_product_of_the_weights() {
        let (rows, outs, inner) = (3, 21, 96);
        let packed = matrix(outs, inner, true);
        let mut state = 3;
        let x: Vec<f32> = (0..rows * inner).map(|_| noise(&mut state)).collect();
        let worst = |bits| {
            let compute = Compute::new(2).with_activation_bits(bits);
            let mut quantised = QuantisedRows::default();
            quantised.quantise(&compute, &x, inner);
            let mut y = vec![0.0; rows * outs];
            matmul_packed(&compute, &quantised, &mut [whole(&packed, &quantised, &mut y)]);
            let mut weights = vec![0.0; inner];
            let mut worst = 0.0_f32;
            for (at, found) in y.into_iter().enumerate() {
                packed.read_row(at % outs, &mut weights);
                let x = &x[at / outs * inner..];
                let expected: f32 = weights.iter().zip(x).map(|(w, x)| w * x).sum();
                worst = worst.max((found - expected).abs());
            }
            worst
        };
        let (eight, sixteen) = (worst(ActivationBits::Eight), worst(ActivationBits::Sixteen));
        assert!(sixteen < 1e-4 && eight > 20.0 * sixteen, "{eight} {sixteen}");
    }

    #[test]
    fn a_row_alone_equals_the_row_in_a_batch() {
        let compute = Compute::new(2);
        let packed = matrix(33, 64, true);
        let mut state = 11;
        let x: Vec<f32> = (0..15 * 64).map(|_| noise(&mut state)).collect();
        let mut quantised = QuantisedRows::default();
        quantised.quantise(&compute, &x, 64);
        let mut together = vec![0.0; 15 * 33];
        matmul_packed(&compute, &quantised, &mut [whole(&packed, &quantised, &mut together)]);
        for row in 0..15 {
            quantised.quantise(&compute, &x[row * 64..(row + 1) * 64], 64);
            let mut alone = vec![0.0; 33];
            matmul_packed(&compute, &quantised, &mut [whole(&packed, &quantised, &mut alone)]);
            assert_eq!(alone, together[row * 33..(row + 1) * 33]);
        }
    }

    #[test]
    fn eight_bit_quantisation_of_dense_rows_is_nearly_lossless() {
        let mut state = 5;
        let dense: Vec<f32> = (0..6 * 64).map(|_| noise(&mut state)).collect();
        let packed = PackedMatrix::from_dense(&dense, 64);
        let mut row = vec![0.0; 64];
        for out in 0..6 {
            packed.read_row(out, &mut row);
            for (found, expected) in row.iter().zip(&dense[out * 64..]) {
                assert!((found - expected).abs() < 1.0 / 127.0);
            }
        }
    }
}
