//! Eigenvalues of symmetric matrices, and the eigenvectors of the largest.
//!
//! Householder's reduction to a tridiagonal matrix, implicit QL for all its values, and inverse
//! iteration for the vectors that are wanted (Golub and Van Loan, "Matrix Computations", chapter
//! 8).

use super::matrix::{Mat, add_scaled, dot};

/// All eigenvalues of a symmetric matrix, descending, and the unit vectors (rows, `[count, n]`) of
/// the first `wanted(values)`.
///
/// O(n³) for the reduction, whatever is wanted, and O(n²) for each vector. A matrix that is zero or
/// has an element that is not finite has eigenvalues of zero and the first unit vectors.
pub(crate) fn largest(mut symmetric: Mat, wanted: impl FnOnce(&[f64]) -> usize) -> (Vec<f64>, Mat) {
    let n = symmetric.rows;
    let largest = symmetric.values.iter().fold(0.0_f64, |largest, v| largest.max(v.abs()));
    // The largest passes over what is no number.
    let is_finite = symmetric.values.iter().all(|value| value.is_finite());
    if largest == 0.0 || !is_finite {
        let values = vec![0.0; n];
        let count = wanted(&values).min(n);
        let mut vectors = Mat::zeros(count, n);
        (0..count).for_each(|i| vectors.values[i * n + i] = 1.0);
        return (values, vectors);
    }
    // Squares neither overflow nor vanish.
    symmetric.values.iter_mut().for_each(|value| *value /= largest);
    let reduced = Tridiagonal::reduce(&mut symmetric);
    let values = reduced.eigenvalues();
    let scaled: Vec<f64> = values.iter().map(|value| value * largest).collect();
    let count = wanted(&scaled).min(n);
    let mut vectors = reduced.eigenvectors(&values[..count]);
    for row in 0..count {
        reflect_back(&symmetric, &reduced.factors, vectors.row_mut(row));
    }
    (scaled, vectors)
}

/// A symmetric tridiagonal matrix, and the reflectors that led to it.
struct Tridiagonal {
    /// The diagonal, `[n]`.
    diagonal: Vec<f64>,
    /// The elements beside it, `[n − 1]`: `off[i]` couples `i` and `i + 1`.
    off: Vec<f64>,
    /// 2/vᵀv of each reflector, 0 for one that does nothing; the reflectors stand in the rows of
    /// the reduced matrix.
    factors: Vec<f64>,
}

impl Tridiagonal {
    /// Householder's reduction. Row `k` of `m` holds the `k`-th reflector afterwards, right of the
    /// diagonal.
    fn reduce(m: &mut Mat) -> Self {
        let n = m.rows;
        let mut off = vec![0.0; n.saturating_sub(1)];
        let mut factors = vec![0.0; n];
        let mut w = vec![0.0; n];
        for k in 0..n.saturating_sub(1) {
            let (head, tail) = m.values.split_at_mut((k + 1) * n);
            let v = &mut head[k * n + k + 1..];
            (off[k], factors[k]) = reflector(v);
            if factors[k] == 0.0 {
                continue;
            }
            let w = &mut w[k + 1..];
            for (row, w) in tail.chunks_exact(n).zip(w.iter_mut()) {
                *w = factors[k] * dot(&row[k + 1..], v);
            }
            let half = 0.5 * factors[k] * dot(w, v);
            add_scaled(w, -half, v);
            for (i, row) in tail.chunks_exact_mut(n).enumerate() {
                let (vi, wi) = (v[i], w[i]);
                let pairs = v.iter().zip(&*w);
                let targets = row[k + 1..].iter_mut().zip(pairs);
                targets.for_each(|(target, (v, w))| *target -= vi * w + wi * v);
            }
        }
        Self { diagonal: (0..n).map(|i| m.values[i * n + i]).collect(), off, factors }
    }

    /// Eigenvalues, descending, by implicit QL without vectors.
    ///
    /// An element beside the diagonal counts as zero when it is rounding to its neighbours or to
    /// the whole matrix. A value that does not settle in 64 sweeps is taken as it is.
    fn eigenvalues(&self) -> Vec<f64> {
        const MAX_SWEEPS: usize = 64;
        let (mut d, mut e) = (self.diagonal.clone(), self.off.clone());
        let n = d.len();
        e.push(0.0);
        let floor = 1e-3 * f64::EPSILON * self.size();
        for low in 0..n {
            for _ in 0..MAX_SWEEPS {
                let split = |at: usize| {
                    e[at].abs() <= f64::EPSILON * (d[at].abs() + d[at + 1].abs()) + floor
                };
                let high = (low..n - 1).find(|&at| split(at)).unwrap_or(n - 1);
                if high == low {
                    break;
                }
                ql_sweep(&mut d, &mut e, low, high);
            }
        }
        d.sort_by(|a, b| b.total_cmp(a));
        d
    }

    /// The largest magnitude in the matrix.
    fn size(&self) -> f64 {
        let all = self.diagonal.iter().chain(&self.off);
        all.fold(0.0_f64, |size, value| size.max(value.abs()))
    }

    /// Unit eigenvectors of the given values, which descend, in rows: inverse iteration from fixed
    /// starts, each vector kept orthogonal to those before it.
    ///
    /// A vector that falls together with earlier ones starts again from other numbers.
    fn eigenvectors(&self, values: &[f64]) -> Mat {
        const ROUNDS: usize = 3;
        let n = self.diagonal.len();
        let apart = 4.0 * f64::EPSILON * self.size();
        let mut vectors = Mat::zeros(0, n);
        let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
        let mut above = f64::INFINITY;
        for &value in values {
            // Equal values get shifts that differ, so that their vectors do.
            let shift = value.min(above - apart);
            above = shift;
            let solver = Shifted::factor(self, shift, apart);
            let mut vector: Vec<f64> = (0..n).map(|_| noise.next()).collect();
            for _ in 0..ROUNDS {
                solver.solve(&mut vector);
                normalise(&mut vector);
                if !orthogonalise(&mut vector, &vectors) {
                    vector.iter_mut().for_each(|value| *value = noise.next());
                    orthogonalise(&mut vector, &vectors);
                }
            }
            vectors.values.extend(vector);
            vectors.rows += 1;
        }
        vectors
    }
}

/// Turns x into the v of the reflection I − f·vvᵀ that maps x to (α, 0, …); returns (α, f). f is 0
/// and x stays if x has that shape already.
///
/// α has the sign opposite to that of x₀, so that nothing cancels.
pub(crate) fn reflector(x: &mut [f64]) -> (f64, f64) {
    let Some((&first, rest)) = x.split_first() else { return (0.0, 0.0) };
    let largest = rest.iter().fold(first.abs(), |largest, value| largest.max(value.abs()));
    if rest.iter().all(|&value| value == 0.0) {
        return (first, 0.0);
    }
    // The length of v is free; of tiny numbers the squares would vanish.
    x.iter_mut().for_each(|value| *value /= largest);
    let rest = dot(&x[1..], &x[1..]);
    let length = (x[0] * x[0] + rest).sqrt();
    let alpha = if x[0] > 0.0 { -length } else { length };
    x[0] -= alpha;
    (alpha * largest, 2.0 / (x[0] * x[0] + rest))
}

/// y ← (I − f·vvᵀ)·y, for `v` and `y` of the same length.
pub(crate) fn reflect(v: &[f64], factor: f64, y: &mut [f64]) {
    if factor != 0.0 {
        let along = factor * dot(v, y);
        add_scaled(y, -along, v);
    }
}

/// Takes a vector from the tridiagonal matrix's coordinates to those of the matrix that was
/// reduced, by its reflectors in reverse.
fn reflect_back(reduced: &Mat, factors: &[f64], vector: &mut [f64]) {
    for k in (0..reduced.rows.saturating_sub(1)).rev() {
        reflect(&reduced.row(k)[k + 1..], factors[k], &mut vector[k + 1..]);
    }
}

/// One implicit QL step on rows `low..=high` of the tridiagonal matrix with the diagonal `d` and
/// `e` beside it. `e[low]` must not be zero.
fn ql_sweep(d: &mut [f64], e: &mut [f64], low: usize, high: usize) {
    let ratio = (d[low + 1] - d[low]) / (2.0 * e[low]);
    let root = (ratio * ratio + 1.0).sqrt();
    let mut g = d[high] - d[low] + e[low] / (ratio + root.copysign(ratio));
    let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
    for i in (low..high).rev() {
        let (f, b) = (s * e[i], c * e[i]);
        let r = (f * f + g * g).sqrt();
        e[i + 1] = r;
        if r == 0.0 {
            d[i + 1] -= p;
            e[high] = 0.0;
            return;
        }
        (s, c) = (f / r, g / r);
        g = d[i + 1] - p;
        let turned = (d[i] - g) * s + 2.0 * c * b;
        p = s * turned;
        d[i + 1] = g + p;
        g = c * turned - b;
    }
    d[low] -= p;
    e[low] = g;
    e[high] = 0.0;
}

/// LU with row exchanges of a tridiagonal matrix minus a shift: U has two diagonals above its own.
struct Shifted {
    /// Rows of U, each from its diagonal on; beyond the last column they are zero.
    upper: Vec<[f64; 3]>,
    /// Multiplier of row `i` in row `i + 1`, and true if the two were exchanged before.
    lower: Vec<(f64, bool)>,
}

impl Shifted {
    /// Factors T − shift·I. Pivots below `smallest` are raised to it, so that a shift which is an
    /// eigenvalue can be solved with.
    fn factor(t: &Tridiagonal, shift: f64, smallest: f64) -> Self {
        let n = t.diagonal.len();
        let off = |at: usize| t.off.get(at).copied().unwrap_or(0.0);
        let mut upper = Vec::with_capacity(n);
        let mut lower = Vec::with_capacity(n);
        let mut row = [t.diagonal[0] - shift, off(0), 0.0];
        for i in 0..n - 1 {
            let next = [t.off[i], t.diagonal[i + 1] - shift, off(i + 1)];
            let swapped = next[0].abs() > row[0].abs();
            let (pivot, other) = if swapped { (next, row) } else { (row, next) };
            let factor = if pivot[0] == 0.0 { 0.0 } else { other[0] / pivot[0] };
            row = [other[1] - factor * pivot[1], other[2] - factor * pivot[2], 0.0];
            upper.push(pivot);
            lower.push((factor, swapped));
        }
        upper.push(row);
        for pivot in &mut upper {
            if pivot[0].abs() < smallest {
                pivot[0] = smallest.copysign(pivot[0]);
            }
        }
        Self { upper, lower }
    }

    /// Solves in place: x ← (T − shift·I)⁻¹·x.
    fn solve(&self, x: &mut [f64]) {
        for (i, &(factor, swapped)) in self.lower.iter().enumerate() {
            if swapped {
                x.swap(i, i + 1);
            }
            x[i + 1] -= factor * x[i];
        }
        let n = x.len();
        for i in (0..n).rev() {
            let above = |by: usize| if i + by < n { self.upper[i][by] * x[i + by] } else { 0.0 };
            x[i] = (x[i] - above(1) - above(2)) / self.upper[i][0];
        }
    }
}

/// Brings a vector to unit length; zeros stay zeros.
fn normalise(x: &mut [f64]) {
    // Solutions near an eigenvalue are huge; their squares may not be finite.
    let largest = x.iter().fold(0.0_f64, |largest, value| largest.max(value.abs()));
    if largest > 0.0 {
        x.iter_mut().for_each(|value| *value /= largest);
        let length = dot(x, x).sqrt();
        x.iter_mut().for_each(|value| *value /= length);
    }
}

/// Takes the parts along `others`, rows of unit length, out of a unit vector and brings it back to
/// unit length. True if enough was left to trust its direction.
fn orthogonalise(x: &mut [f64], others: &Mat) -> bool {
    let mut left = 1.0;
    for _ in 0..2 {
        for row in 0..others.rows {
            let along = dot(x, others.row(row));
            add_scaled(x, -along, others.row(row));
        }
        left *= dot(x, x).sqrt();
        normalise(x);
    }
    left > 1e-6
}

/// A fixed stream of numbers in [-1, 1] (xorshift64), the same on every machine; the state must not
/// be zero.
struct Noise(u64);

impl Noise {
    /// The next number.
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::matrix::tests::{noise, worst};

    fn check(symmetric: &Mat) {
        let n = symmetric.rows;
        let (values, vectors) = largest(symmetric.clone(), |_| n);
        let size = values.iter().fold(1e-300_f64, |size, value| size.max(value.abs()));
        let mut identity = Mat::zeros(n, n);
        (0..n).for_each(|i| identity.values[i * n + i] = 1.0);
        assert!(worst(&vectors.times_transposed(&vectors), &identity) < 1e-12);
        let mut scaled = vectors.clone();
        (0..n).for_each(|i| scaled.row_mut(i).iter_mut().for_each(|v| *v *= values[i]));
        let wrong = worst(&vectors.transposed().times(&scaled), symmetric) / size;
        assert!(wrong < 1e-12, "{n}: {wrong}");
        assert!(values.is_sorted_by(|a, b| a >= b));
    }

    #[test]
    fn vectors_and_values_give_the_matrix_back() {
        for (rows, n) in [(1, 1), (2, 2), (5, 3), (40, 40), (3, 20), (90, 65)] {
            check(&noise(rows, n, 7).gram());
            check(&noise(rows, n, 8).gram().scaled(1e-200));
            check(&noise(rows, n, 9).gram().scaled(1e200));
        }
    }

    #[test]
    fn what_is_not_finite_has_values_of_zero() {
        for strange in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut symmetric = noise(5, 4, 7).gram();
            (symmetric.values[1], symmetric.values[4]) = (strange, strange);
            let (values, vectors) = largest(symmetric, |_| 2);
            assert_eq!(values, [0.0; 4]);
            assert_eq!(vectors.values, [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
        }
    }

    #[test]
    fn repeated_values_and_zeros_are_no_trouble() {
        let n = 24;
        let mut identity = Mat::zeros(n, n);
        (0..n).for_each(|i| identity.values[i * n + i] = 2.0);
        check(&identity);
        check(&Mat::zeros(n, n));
        // Two equal blocks: every value twice.
        let block = noise(12, 12, 3).gram();
        let mut twice = Mat::zeros(n, n);
        for i in 0..12 {
            twice.row_mut(i)[..12].copy_from_slice(block.row(i));
            twice.row_mut(i + 12)[12..].copy_from_slice(block.row(i));
        }
        check(&twice);
        check(&Mat { rows: n, columns: n, values: vec![1.0; n * n] });
        // Of low rank, with rows of zeros: what is left after some steps is rounding of rounding.
        let mut thin = noise(8, 96, 4);
        thin.values.iter_mut().enumerate().filter(|(at, _)| at % 3 > 0).for_each(|(_, v)| *v = 0.0);
        check(&thin.gram());
    }
}
