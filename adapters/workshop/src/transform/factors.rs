//! Deltas as products of thin factors.

use super::matrix::{Mat, add_scaled, dot};
use polyskill_adapters::peft::raw::RawSite;

/// A delta Δ = B·A with the scale multiplied in, `[outputs, inputs]` if it were formed.
///
/// B is kept transposed, so that both factors have a row for each of the rank's components.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Factors {
    /// A, `[rank, inputs]`.
    pub(crate) a: Mat,
    /// Bᵀ, `[rank, outputs]`.
    pub(crate) bt: Mat,
}

impl Factors {
    /// s·B·A of a module's site; the scale goes to A.
    pub(crate) fn of(site: &RawSite) -> Self {
        let [a, b] = &site.matrices;
        let a = Mat::from_f32(a.shape[0], a.shape[1], &a.values).scaled(f64::from(site.scale));
        let b = Mat::from_f32(b.shape[0], b.shape[1], &b.values);
        Self { a, bt: b.transposed() }
    }

    /// A delta that is zero, of rank 1.
    pub(crate) fn zero(outputs: usize, inputs: usize) -> Self {
        Self { a: Mat::zeros(1, inputs), bt: Mat::zeros(1, outputs) }
    }

    /// The number of components, which may be above the rank of Δ as a matrix.
    pub(crate) fn rank(&self) -> usize {
        self.a.rows
    }

    /// Columns of Δ.
    pub(crate) fn inputs(&self) -> usize {
        self.a.columns
    }

    /// Rows of Δ.
    pub(crate) fn outputs(&self) -> usize {
        self.bt.columns
    }

    /// The delta times a factor, which goes to A.
    pub(crate) fn scaled(mut self, factor: f64) -> Self {
        self.a = self.a.scaled(factor);
        self
    }

    /// Adds another delta of the same shape exactly: factors stand side by side, and ranks add up.
    pub(crate) fn add(&mut self, other: &Self) {
        self.a.stack(&other.a);
        self.bt.stack(&other.bt);
    }

    /// Σᵢⱼ Δᵢⱼ·Δ'ᵢⱼ, through the products of A with A' and of B with B', `[rank, other rank]` each;
    /// Δ is never formed.
    pub(crate) fn inner(&self, other: &Self) -> f64 {
        let (a, b) = (self.a.times_transposed(&other.a), self.bt.times_transposed(&other.bt));
        dot(&a.values, &b.values)
    }

    /// ‖Δ‖, the Frobenius norm.
    pub(crate) fn norm(&self) -> f64 {
        self.inner(self).max(0.0).sqrt()
    }

    /// ‖Δ − Δ'‖, to 1e-8 of the larger norm: differences below are rounding of the three products.
    pub(crate) fn distance(&self, other: &Self) -> f64 {
        let squares = self.inner(self) + other.inner(other) - 2.0 * self.inner(other);
        squares.max(0.0).sqrt()
    }

    /// ‖Δ − Δ'‖ / ‖Δ'‖; ‖Δ‖ if Δ' is zero.
    pub(crate) fn relative_distance(&self, from: &Self) -> f64 {
        relative(self.distance(from), from.norm())
    }

    /// One row of Δ, into `target` of length `inputs`; its former content is lost.
    pub(crate) fn dense_row(&self, row: usize, target: &mut [f64]) {
        target.fill(0.0);
        for k in 0..self.rank() {
            add_scaled(target, self.bt.row(k)[row], self.a.row(k));
        }
    }

    /// Δ in 32-bit floats, `[outputs, inputs]`.
    pub(crate) fn dense_f32(&self) -> Vec<f32> {
        let mut row = vec![0.0; self.inputs()];
        let mut dense = Vec::with_capacity(self.outputs() * self.inputs());
        for at in 0..self.outputs() {
            self.dense_row(at, &mut row);
            dense.extend(row.iter().map(|&value| value as f32));
        }
        dense
    }

    /// ‖Δ − M‖ for a dense M, `[outputs, inputs]`. Δ is formed one row at a time.
    pub(crate) fn distance_from_dense(&self, m: &Mat) -> f64 {
        let mut row = vec![0.0; self.inputs()];
        let mut squares = 0.0;
        for at in 0..self.outputs() {
            self.dense_row(at, &mut row);
            row.iter_mut().zip(m.row(at)).for_each(|(value, m)| *value -= m);
            squares += dot(&row, &row);
        }
        squares.sqrt()
    }

    /// Itself, or a delta of zeros of rank 1 where no component is left, since a module must have a
    /// rank.
    pub(crate) fn or_zero(self) -> Self {
        if self.rank() > 0 { self } else { Self::zero(self.outputs(), self.inputs()) }
    }

    /// Δ, `[outputs, inputs]`.
    #[cfg(test)]
    pub(crate) fn dense(&self) -> Mat {
        self.bt.transposed().times(&self.a)
    }
}

/// A distance in parts of a norm; as it is if the norm is zero.
pub(crate) fn relative(distance: f64, norm: f64) -> f64 {
    if norm > 0.0 { distance / norm } else { distance }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::matrix::tests::noise;

    #[test]
    fn products_of_deltas_need_no_delta() {
        let one = Factors { a: noise(3, 11, 1), bt: noise(3, 7, 2) };
        let two = Factors { a: noise(5, 11, 3), bt: noise(5, 7, 4) };
        let expected = dot(&one.dense().values, &two.dense().values);
        assert!((one.inner(&two) - expected).abs() < 1e-12);
        assert_eq!(one.distance(&one), 0.0);
        let mut sum = one.clone();
        sum.add(&two.clone().scaled(-1.0));
        assert!((sum.norm() - one.distance(&two)).abs() < 1e-12);
    }
}
