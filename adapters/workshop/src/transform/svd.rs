//! Truncated singular value decompositions, of dense matrices and of products of thin factors.

use super::eigen::{largest, reflect, reflector};
use super::factors::Factors;
use super::matrix::Mat;

/// Singular values below this part of the largest are rounding: the Gram matrix holds their
/// squares.
pub(crate) const SMALLEST: f64 = 1e-7;

/// The number of singular values that are kept at a site. Values that are rounding are cut off in
/// any case.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rank {
    /// At most so many; at least 1.
    Fixed(usize),
    /// As few as hold this part of Σσ², above 0 and at most 1.
    Energy(f64),
    /// At most as many as the highest rank among the sources at the site.
    Largest,
}

impl std::fmt::Display for Rank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(rank) => write!(f, "{rank}"),
            Self::Energy(part) => write!(f, "{part} of the energy"),
            Self::Largest => write!(f, "the largest of the sources"),
        }
    }
}

impl Rank {
    /// The count for singular values that descend; `largest` is the highest rank among the sources.
    /// It may be above the number of values.
    pub(crate) fn choose(self, sigma: &[f64], largest: usize) -> usize {
        match self {
            Self::Fixed(rank) => rank,
            Self::Largest => largest,
            Self::Energy(part) => {
                let total: f64 = sigma.iter().map(|sigma| sigma * sigma).sum();
                let mut sum = 0.0;
                let reached = sigma.iter().position(|sigma| {
                    sum += sigma * sigma;
                    sum >= part * total
                });
                reached.map_or(sigma.len(), |at| at + 1)
            }
        }
    }
}

/// A truncated decomposition: M ≈ B·A with B = U·Σ and A = Vᵀ, so rows of A are orthonormal and σ
/// stands in B.
pub(crate) struct Svd {
    /// All singular values, descending, those that were cut off among them.
    pub(crate) sigma: Vec<f64>,
    /// The components that were kept, by descending singular value.
    pub(crate) factors: Factors,
}

/// Of a dense matrix; `keep` chooses how many of the singular values, given all of them.
///
/// Values and vectors come from the Gram matrix of the smaller side, so singular values below
/// [`SMALLEST`] of the largest are not told from zero and never kept.
pub(crate) fn dense(m: &Mat, keep: impl FnOnce(&[f64]) -> usize) -> Svd {
    let wide = m.columns > m.rows;
    // At least as many rows as columns, and no element above 1: squares stay finite.
    let mut tall = if wide { m.transposed() } else { m.clone() };
    let size = tall.values.iter().fold(0.0_f64, |size, value| size.max(value.abs()));
    if size > 0.0 {
        tall.values.iter_mut().for_each(|value| *value /= size);
    }
    let mut sigma = Vec::new();
    let (_, right) = largest(tall.gram(), |squares| {
        sigma = squares.iter().map(|square| size * square.max(0.0).sqrt()).collect();
        let significant = sigma.iter().filter(|&&s| s > SMALLEST * sigma[0]).count();
        keep(&sigma).min(significant)
    });
    // The product with the orthonormal vectors carries σ: exact, however small σ is.
    let left = right.times_transposed(&tall).scaled(size);
    let factors = match wide {
        false => Factors { a: right, bt: left },
        true => {
            let (mut a, mut bt) = (left, right);
            for k in 0..a.rows {
                let length = super::matrix::dot(a.row(k), a.row(k)).sqrt();
                if length > 0.0 {
                    a.row_mut(k).iter_mut().for_each(|value| *value /= length);
                    bt.row_mut(k).iter_mut().for_each(|value| *value *= length);
                }
            }
            Factors { a, bt }
        }
    };
    Svd { sigma, factors }
}

/// Of B·A through the QR decompositions of both and the small core between them; B·A is never
/// formed.
///
/// The core has at most as many rows and columns as the factors have components, so the cost grows
/// with the rank's third power and only linearly with inputs and outputs.
pub(crate) fn product(factors: &Factors, keep: impl FnOnce(&[f64]) -> usize) -> Svd {
    let (qa, ra) = qr_of_rows(&factors.a);
    let (qb, rb) = qr_of_rows(&factors.bt);
    let core = dense(&rb.times_transposed(&ra), keep);
    let Factors { a, bt } = core.factors;
    Svd { sigma: core.sigma, factors: Factors { a: a.times(&qa), bt: bt.times(&qb) } }
}

/// M = Rᵀ·Q for rows m of M, by Householder reflections: Q `[p, columns]` has orthonormal rows, R
/// is `[p, rows]`, p the smaller side.
pub(crate) fn qr_of_rows(m: &Mat) -> (Mat, Mat) {
    let size = m.rows.min(m.columns);
    let mut reduced = m.clone();
    let mut factors = vec![0.0; size];
    let mut r = Mat::zeros(size, m.rows);
    for k in 0..size {
        let (head, tail) = reduced.values.split_at_mut((k + 1) * m.columns);
        let v = &mut head[k * m.columns + k..];
        (r.values[k * m.rows + k], factors[k]) = reflector(v);
        for (j, row) in tail.chunks_exact_mut(m.columns).enumerate() {
            reflect(v, factors[k], &mut row[k..]);
            r.values[k * m.rows + k + 1 + j] = row[k];
        }
    }
    let mut q = Mat::zeros(size, m.columns);
    for i in 0..size {
        q.row_mut(i)[i] = 1.0;
        for k in (0..=i).rev() {
            let v = &reduced.row(k)[k..];
            reflect(v, factors[k], &mut q.row_mut(i)[k..]);
        }
    }
    (q, r)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::matrix::tests::{noise, worst};

    #[test]
    fn qr_gives_the_rows_back() {
        for (rows, columns) in [(1, 1), (3, 8), (8, 3), (5, 5)] {
            let m = noise(rows, columns, 5);
            let (q, r) = qr_of_rows(&m);
            assert!(worst(&r.transposed().times(&q), &m) < 1e-13, "{rows} x {columns}");
            let mut identity = Mat::zeros(q.rows, q.rows);
            (0..q.rows).for_each(|i| identity.values[i * q.rows + i] = 1.0);
            assert!(worst(&q.times_transposed(&q), &identity) < 1e-13);
        }
    }

    #[test]
    fn what_is_cut_is_what_the_values_say() {
        for (outputs, inputs, rank) in [(20, 12, 4), (12, 20, 4), (9, 9, 9), (6, 30, 8)] {
            let factors = Factors { a: noise(rank, inputs, 1), bt: noise(rank, outputs, 2) };
            let full = factors.dense();
            for keep in 1..=rank.min(outputs) {
                let (thin, thick) = (product(&factors, |_| keep), dense(&full, |_| keep));
                let cut: f64 = thick.sigma[keep..].iter().map(|sigma| sigma * sigma).sum();
                for svd in [&thin, &thick] {
                    let mut left = svd.factors.dense();
                    left.values.iter_mut().zip(&full.values).for_each(|(l, f)| *l -= f);
                    assert!((left.norm2() - cut).abs() < 1e-10 * full.norm2());
                }
                let values = thin.sigma.iter().zip(&thick.sigma).take(rank);
                values.for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{a} {b}"));
            }
        }
    }

    #[test]
    fn energy_keeps_as_few_as_hold_it() {
        let sigma = [3.0, 2.0, 1.0, 0.0];
        let counts = [(0.0, 1), (0.6, 1), (0.7, 2), (0.93, 3), (1.0, 3)];
        for (part, count) in counts {
            assert_eq!(Rank::Energy(part).choose(&sigma, 9), count, "{part}");
        }
        assert_eq!(Rank::Fixed(2).choose(&sigma, 9), 2);
        assert_eq!(Rank::Largest.choose(&sigma, 9), 9);
    }
}
