//! Small dense matrices of 64-bit floats.
//!
//! Plain loops in a fixed order: the same inputs give the same bits on every machine, which
//! libraries that choose their kernels at run time do not promise.

/// A matrix, row by row: element (i, j) is `values[i * columns + j]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mat {
    /// Number of rows.
    pub(crate) rows: usize,
    /// Number of columns.
    pub(crate) columns: usize,
    /// The elements, `[rows, columns]`.
    pub(crate) values: Vec<f64>,
}

impl Mat {
    /// A matrix of zeros.
    pub(crate) fn zeros(rows: usize, columns: usize) -> Self {
        Self { rows, columns, values: vec![0.0; rows * columns] }
    }

    /// A matrix of 32-bit floats that stand row by row, `[rows, columns]`.
    pub(crate) fn from_f32(rows: usize, columns: usize, values: &[f32]) -> Self {
        debug_assert_eq!(values.len(), rows * columns);
        Self { rows, columns, values: values.iter().map(|&value| f64::from(value)).collect() }
    }

    /// One row, `[columns]`.
    pub(crate) fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.columns..(row + 1) * self.columns]
    }

    /// One row, `[columns]`, to be written.
    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [f64] {
        &mut self.values[row * self.columns..(row + 1) * self.columns]
    }

    /// The transpose, as a matrix of its own.
    pub(crate) fn transposed(&self) -> Self {
        let mut transposed = Self::zeros(self.columns, self.rows);
        for row in 0..self.rows {
            for (column, value) in self.row(row).iter().enumerate() {
                transposed.values[column * self.rows + row] = *value;
            }
        }
        transposed
    }

    /// `self · other`, `[self.rows, other.columns]`.
    pub(crate) fn times(&self, other: &Self) -> Self {
        debug_assert_eq!(self.columns, other.rows);
        let mut product = Self::zeros(self.rows, other.columns);
        for row in 0..self.rows {
            let target = &mut product.values[row * other.columns..(row + 1) * other.columns];
            for (k, &factor) in self.row(row).iter().enumerate() {
                add_scaled(target, factor, other.row(k));
            }
        }
        product
    }

    /// `self · otherᵀ`, `[self.rows, other.rows]`: inner products of rows with rows.
    pub(crate) fn times_transposed(&self, other: &Self) -> Self {
        debug_assert_eq!(self.columns, other.columns);
        let mut product = Self::zeros(self.rows, other.rows);
        for row in 0..self.rows {
            for column in 0..other.rows {
                product.values[row * other.rows + column] = dot(self.row(row), other.row(column));
            }
        }
        product
    }

    /// Every element times a factor.
    pub(crate) fn scaled(mut self, factor: f64) -> Self {
        self.values.iter_mut().for_each(|value| *value *= factor);
        self
    }

    /// Leaves the first rows; all of them if there are no more.
    pub(crate) fn keep_rows(&mut self, rows: usize) {
        self.rows = self.rows.min(rows);
        self.values.truncate(self.rows * self.columns);
    }

    /// Puts the rows of `other`, which has as many columns, below.
    pub(crate) fn stack(&mut self, other: &Self) {
        debug_assert_eq!(self.columns, other.columns);
        self.values.extend_from_slice(&other.values);
        self.rows += other.rows;
    }

    /// Mᵀ·M, `[columns, columns]`.
    ///
    /// Four rows go in at a time, and only the upper triangle is computed; the lower one is copied,
    /// so the result is exactly symmetric.
    pub(crate) fn gram(&self) -> Self {
        let n = self.columns;
        let mut gram = Self::zeros(n, n);
        let mut rows = self.values.chunks_exact(4 * n.max(1));
        for four in rows.by_ref() {
            let (r0, rest) = four.split_at(n);
            let (r1, rest) = rest.split_at(n);
            let (r2, r3) = rest.split_at(n);
            for i in 0..n {
                let (a, b, c, d) = (r0[i], r1[i], r2[i], r3[i]);
                let target = &mut gram.values[i * n + i..(i + 1) * n];
                let pairs = r0[i..].iter().zip(&r1[i..]).zip(r2[i..].iter().zip(&r3[i..]));
                for (g, ((x0, x1), (x2, x3))) in target.iter_mut().zip(pairs) {
                    *g += (a * x0 + b * x1) + (c * x2 + d * x3);
                }
            }
        }
        for row in rows.remainder().chunks_exact(n.max(1)) {
            for i in 0..n {
                add_scaled(&mut gram.values[i * n + i..(i + 1) * n], row[i], &row[i..]);
            }
        }
        for i in 0..n {
            for j in 0..i {
                gram.values[i * n + j] = gram.values[j * n + i];
            }
        }
        gram
    }

    /// The squared Frobenius norm.
    pub(crate) fn norm2(&self) -> f64 {
        dot(&self.values, &self.values)
    }
}

/// `target += factor · source`, over the shorter of the two.
pub(crate) fn add_scaled(target: &mut [f64], factor: f64, source: &[f64]) {
    target.iter_mut().zip(source).for_each(|(target, source)| *target += factor * source);
}

/// Σ aᵢ·bᵢ in eight running sums, which compilers turn into vectors of any width without changing
/// the result. The slices have the same length.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0_f64; 8];
    let (mut left, mut right) = (a.chunks_exact(8), b.chunks_exact(8));
    for (a, b) in left.by_ref().zip(right.by_ref()) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f64 = left.remainder().iter().zip(right.remainder()).map(|(a, b)| a * b).sum();
    let pairs = [sums[0] + sums[4], sums[1] + sums[5], sums[2] + sums[6], sums[3] + sums[7]];
    (pairs[0] + pairs[2]) + (pairs[1] + pairs[3]) + rest
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A matrix of numbers in [-1, 1] that look random.
    pub(crate) fn noise(rows: usize, columns: usize, seed: u64) -> Mat {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
        };
        let values = (0..rows * columns).map(|_| next()).collect();
        Mat { rows, columns, values }
    }

    pub(crate) fn worst(a: &Mat, b: &Mat) -> f64 {
        assert_eq!((a.rows, a.columns), (b.rows, b.columns));
        let differences = a.values.iter().zip(&b.values).map(|(a, b)| (a - b).abs());
        // `max` would drop a difference that is not a number.
        differences.fold(0.0, |worst, d| if d > worst || d.is_nan() { d } else { worst })
    }

    #[test]
    fn products_agree() {
        for (rows, inner, columns) in [(1, 1, 1), (3, 9, 5), (8, 17, 4), (13, 0, 2)] {
            let (a, b) = (noise(rows, inner, 1), noise(inner, columns, 2));
            assert!(worst(&a.times(&b), &a.times_transposed(&b.transposed())) < 1e-13);
            assert!(worst(&a.gram(), &a.transposed().times(&a)) < 1e-13);
        }
    }
}
