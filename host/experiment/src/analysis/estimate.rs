//! An arm's estimate with what each unit contributes to it, and the difference of two arms.
//!
//! A unit's influence ψ is what it adds to the estimate's error: estimate − truth ≈ Σ ψ / n. Influences make one variance
//! formula do for means, ratios and adjusted estimates, and for units that are seen under both arms.

use std::cmp::Ordering;

use crate::totals::Total;

/// A difference below this part of the larger value is rounding: sums of equal values in another order differ so much.
const ROUNDING: f64 = 1e-12;

/// The contribution of one unit to an estimate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Influence<'a> {
    /// The unit's name, by which units under both arms are paired.
    pub(super) unit: &'a str,
    /// The influence ψ.
    pub(super) value: f64,
    /// The unit's value before the experiment.
    pub(super) before: Option<f64>,
}

/// An arm's value of a metric with the influence of each of its units.
#[derive(Clone, Debug)]
pub struct Estimate<'a> {
    /// The estimated mean or ratio.
    pub value: f64,
    /// Ordered by unit; they sum to zero.
    pub(super) influences: Vec<Influence<'a>>,
}

impl<'a> Estimate<'a> {
    /// An estimate whose units' influences are given by a function of their totals.
    pub(super) fn new(
        value: f64,
        units: &[(&'a str, Total)],
        influence: impl Fn(&Total) -> f64,
    ) -> Self {
        let one = |(unit, total): &(&'a str, Total)| Influence {
            unit,
            value: influence(total),
            before: total.before,
        };
        let mut influences: Vec<Influence<'a>> = units.iter().map(one).collect();
        if !influences.is_sorted_by_key(|influence| influence.unit) {
            influences.sort_unstable_by_key(|influence| influence.unit);
        }
        Self { value, influences }
    }

    /// The number of units that the estimate is made of.
    pub fn units(&self) -> u64 {
        self.influences.len() as u64
    }

    /// The variance of the estimate, Σ ψ² / (n (n − 1)); `None` below two units.
    pub fn variance(&self) -> Option<f64> {
        let units = self.influences.len() as f64;
        let squares: f64 = self.influences.iter().map(|influence| influence.value.powi(2)).sum();
        (units >= 2.0).then(|| squares / (units * (units - 1.0)))
    }

    /// The number of units that both estimates hold, and the sum of the products of their
    /// influences. One pass over both lists, as these are ordered by unit.
    fn shared(&self, other: &Self) -> (u64, f64) {
        let (mut units, mut products) = (0, 0.0);
        let (mut left, mut right) = (self.influences.iter(), other.influences.iter());
        let (mut a, mut b) = (left.next(), right.next());
        while let (Some(one), Some(two)) = (a, b) {
            match one.unit.cmp(two.unit) {
                Ordering::Less => a = left.next(),
                Ordering::Greater => b = right.next(),
                Ordering::Equal => {
                    units += 1;
                    products += one.value * two.value;
                    (a, b) = (left.next(), right.next());
                }
            }
        }
        (units, products)
    }
}

/// One arm of a difference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Side {
    /// The arm's units.
    pub units: u64,
    /// The variance of the arm's estimate.
    pub variance: f64,
}

/// An arm's value minus the control's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// The arm's value minus the control's, in the metric's own units.
    pub difference: f64,
    /// The variance of the difference.
    pub variance: f64,
    /// Distinct units under either of the two arms.
    pub units: u64,
    /// Degrees of freedom of the variance: Welch's (1947), or one less than the units where some are under both arms.
    pub degrees: f64,
    /// The control.
    pub control: Side,
    /// The arm.
    pub arm: Side,
}

impl Difference {
    /// The arm minus the control; `None` unless both have two units. A unit under both arms, as in the shadow modes,
    /// contributes the difference of its influences, so its part of the variance is that of pairs.
    pub fn between(control: &Estimate<'_>, arm: &Estimate<'_>) -> Option<Self> {
        let side = |estimate: &Estimate<'_>| {
            Some(Side { units: estimate.units(), variance: estimate.variance()? })
        };
        let (left, right) = (side(control)?, side(arm)?);
        let (shared, products) = control.shared(arm);
        let pairs = |side: Side| side.units as f64 * (side.units as f64 - 1.0);
        let covariance = products / (pairs(left) * pairs(right)).sqrt();
        let variance = (left.variance + right.variance - 2.0 * covariance).max(0.0);
        let units = left.units + right.units - shared;
        let degrees = if shared > 0 { units as f64 - 1.0 } else { welch(left, right) };
        let difference = arm.value - control.value;
        let scale = arm.value.abs().max(control.value.abs());
        let difference = if difference.abs() <= ROUNDING * scale { 0.0 } else { difference };
        Some(Self { difference, variance, units, degrees, control: left, arm: right })
    }

    /// The standard error of the difference.
    pub fn error(&self) -> f64 {
        self.variance.sqrt()
    }

    /// The difference in standard errors; infinite where every unit of an arm is alike and the arms differ.
    pub fn score(&self) -> f64 {
        if self.difference == 0.0 { 0.0 } else { self.difference / self.error() }
    }

    /// The difference with `radius` on both sides.
    pub(super) fn within(&self, radius: f64) -> [f64; 2] {
        [self.difference - radius, self.difference + radius]
    }
}

/// The Welch–Satterthwaite degrees of freedom. (v₁ + v₂)² / (v₁² / (n₁ − 1) + v₂² / (n₂ − 1));
/// without any variance, the smaller n − 1.
fn welch(left: Side, right: Side) -> f64 {
    let part = |side: Side| side.variance.powi(2) / (side.units as f64 - 1.0);
    let below = part(left) + part(right);
    let least = left.units.min(right.units) as f64 - 1.0;
    if below > 0.0 { (left.variance + right.variance).powi(2) / below } else { least }
}

#[cfg(test)]
mod tests {
    use super::super::mean;
    use super::*;

    fn totals(values: &[f64]) -> impl Iterator<Item = Total> + '_ {
        values.iter().map(|value| Total { count: 1, sum: *value, before: None })
    }

    fn check(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found}, {expected}");
    }

    #[test]
    fn arms_apart_have_the_sum_of_their_variances() {
        let control = mean::estimate(["a", "b", "c"].into_iter().zip(totals(&[1.0, 2.0, 3.0])));
        let arm = mean::estimate(["d", "e"].into_iter().zip(totals(&[5.0, 9.0])));
        let found = Difference::between(&control.unwrap(), &arm.unwrap()).unwrap();
        check(found.difference, 5.0);
        check(found.variance, 1.0 / 3.0 + 4.0);
        check(found.degrees, (1.0 / 3.0 + 4.0_f64).powi(2) / (1.0 / 18.0 + 16.0));
        assert_eq!((found.units, found.control.units, found.arm.units), (5, 3, 2));
    }

    #[test]
    fn units_under_both_arms_are_pairs() {
        let control = mean::estimate(["c", "a", "b"].into_iter().zip(totals(&[3.0, 1.0, 2.0])));
        let arm = mean::estimate(["a", "b", "c"].into_iter().zip(totals(&[2.0, 3.5, 4.0])));
        let found = Difference::between(&control.unwrap(), &arm.unwrap()).unwrap();
        // The differences of the pairs are 1, 1.5 and 1.
        check(found.difference, 3.5 / 3.0);
        check(found.variance, (1.0 / 12.0) / 3.0);
        assert_eq!((found.units, found.degrees), (3, 2.0));
    }

    #[test]
    fn rounding_is_no_difference() {
        let units: Vec<String> = (0..300).map(|unit| format!("{unit:03}")).collect();
        let of = |units: &[String]| {
            let alike = Total { count: 3, sum: 0.1 + 0.1 + 0.1, before: None };
            mean::estimate(units.iter().map(|unit| (unit.as_str(), alike))).unwrap().value
        };
        let values = (of(&units[..100]), of(&units[100..]));
        assert!((values.0 - values.1).abs() < 1e-15);
        let control = mean::estimate(units[..100].iter().map(|u| (u.as_str(), tenth()))).unwrap();
        let arm = mean::estimate(units[100..].iter().map(|u| (u.as_str(), tenth()))).unwrap();
        let found = Difference::between(&control, &arm).unwrap();
        assert_eq!((found.difference, found.score()), (0.0, 0.0));
    }

    fn tenth() -> Total {
        Total { count: 1, sum: 0.1, before: None }
    }
}
