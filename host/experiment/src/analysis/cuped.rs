//! Narrower intervals from what was known before: CUPED (Deng, Xu, Kohavi and Walker, "Improving the Sensitivity of Online
//! Controlled Experiments by Utilizing Pre-Experiment Data", 2013).
//!
//! With y a unit's value and x its value before the experiment, y − θ (x − x̄) has the same expected difference between
//! arms and 1 − ρ² of the variance, ρ the correlation of x and y. θ = cov(y, x) / var(x) is pooled over both arms, within
//! arms, so that it does not depend on the arms' difference. Ratios are adjusted through their influences.

use super::Estimate;
use super::estimate::Influence;

/// Units with a known value before the experiment that each arm needs.
const MINIMUM_KNOWN: usize = 2;

/// Both estimates adjusted; `None` where an arm has too few known values or all are alike. A unit without one gets the
/// mean of the known values of both arms, so it takes no part in the adjustment.
pub fn adjust<'a>(
    control: &Estimate<'a>,
    arm: &Estimate<'a>,
) -> Option<(Estimate<'a>, Estimate<'a>)> {
    let known = |estimate: &Estimate<'a>| -> Vec<f64> {
        estimate.influences.iter().filter_map(|influence| influence.before).collect()
    };
    let (left, right) = (known(control), known(arm));
    if left.len().min(right.len()) < MINIMUM_KNOWN {
        return None;
    }
    let sum: f64 = left.iter().chain(&right).sum();
    let pooled = sum / (left.len() + right.len()) as f64;
    let (one, two) = (Centred::new(control, pooled), Centred::new(arm, pooled));
    let squares = one.squares + two.squares;
    let theta = (one.products + two.products) / squares;
    let scale = pooled.abs().max(f64::MIN_POSITIVE);
    let varies = squares > (1e-12 * scale).powi(2) * (left.len() + right.len()) as f64;
    varies.then(|| (one.adjusted(control, theta), two.adjusted(arm, theta)))
}

/// The covariate of one arm.
struct Centred {
    /// The arm's mean minus the mean of both arms.
    shift: f64,
    /// Each unit's value minus the arm's mean.
    values: Vec<f64>,
    /// Σ of the squared values.
    squares: f64,
    /// Σ of value times influence.
    products: f64,
}

impl Centred {
    /// Takes a unit without a value before the experiment for `pooled`, the mean of both arms.
    fn new(estimate: &Estimate<'_>, pooled: f64) -> Self {
        let of = |influence: &Influence<'_>| influence.before.map_or(0.0, |before| before - pooled);
        let mut values: Vec<f64> = estimate.influences.iter().map(of).collect();
        let shift = values.iter().sum::<f64>() / values.len() as f64;
        values.iter_mut().for_each(|value| *value -= shift);
        let squares = values.iter().map(|value| value * value).sum();
        let pairs = values.iter().zip(&estimate.influences);
        let products = pairs.map(|(value, influence)| value * influence.value).sum();
        Self { shift, values, squares, products }
    }

    /// The estimate less θ times the covariate, in its value and in each influence.
    fn adjusted<'a>(&self, estimate: &Estimate<'a>, theta: f64) -> Estimate<'a> {
        let one = |(influence, value): (&Influence<'a>, &f64)| Influence {
            value: influence.value - theta * value,
            ..*influence
        };
        let influences = estimate.influences.iter().zip(&self.values).map(one).collect();
        Estimate { value: estimate.value - theta * self.shift, influences }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Difference, mean};
    use super::*;
    use crate::totals::Total;

    fn arm(rows: &[(&'static str, f64, Option<f64>)]) -> Estimate<'static> {
        let total = |row: &(&'static str, f64, Option<f64>)| {
            (row.0, Total { count: 1, sum: row.1, before: row.2 })
        };
        mean::estimate(rows.iter().map(total)).unwrap()
    }

    #[test]
    fn what_the_past_explains_is_taken_out() {
        // y = 2 x, and 1 more in the second arm.
        let control = arm(&[("a", 2.0, Some(1.0)), ("b", 4.0, Some(2.0)), ("c", 6.0, Some(3.0))]);
        let treated = arm(&[("d", 9.0, Some(4.0)), ("e", 3.0, Some(1.0))]);
        let (one, two) = adjust(&control, &treated).unwrap();
        let found = Difference::between(&one, &two).unwrap();
        assert!((found.difference - 1.0).abs() < 1e-12, "{found:?}");
        assert!(found.variance < 1e-20, "{found:?}");
    }

    #[test]
    fn units_without_a_past_keep_their_influence() {
        let control = arm(&[("a", 2.0, Some(1.0)), ("b", 4.0, Some(2.0)), ("c", 3.0, None)]);
        let treated = arm(&[("d", 9.0, Some(1.0)), ("e", 3.0, Some(2.0)), ("f", 1.0, None)]);
        let (one, _) = adjust(&control, &treated).unwrap();
        assert!((one.value - control.value).abs() < 1e-12);
        assert!((one.influences[2].value - control.influences[2].value).abs() < 1e-12);
    }

    #[test]
    fn a_past_that_is_unknown_or_alike_adjusts_nothing() {
        let full = arm(&[("a", 2.0, Some(1.0)), ("b", 4.0, Some(2.0))]);
        let unknown = arm(&[("c", 2.0, None), ("d", 4.0, Some(2.0))]);
        assert!(adjust(&full, &unknown).is_none());
        let alike = arm(&[("a", 2.0, Some(0.1)), ("b", 4.0, Some(0.1))]);
        let also = arm(&[("c", 2.0, Some(0.1)), ("d", 4.0, Some(0.1)), ("e", 4.0, Some(0.1))]);
        assert!(adjust(&alike, &also).is_none());
    }
}
