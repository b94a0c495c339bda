//! Welch's interval and p-value (1947), for one look at a planned end. Looked at again and again, they err far more often
//! than their level says; verdicts come from [`super::sequence`].

use super::Difference;
use crate::distributions::{student_critical, student_two_sided};

/// The two-sided interval of the difference at one look. The difference ± its standard error times
/// Student's critical value at Welch's degrees of freedom.
pub fn interval(difference: &Difference, level: f64) -> [f64; 2] {
    difference.within(difference.error() * student_critical(level, difference.degrees))
}

/// The two-sided p-value at one look. 1 where the arms have the same value.
pub fn p_value(difference: &Difference) -> f64 {
    student_two_sided(difference.score(), difference.degrees)
}

#[cfg(test)]
mod tests {
    use super::super::{Estimate, mean};
    use super::*;
    use crate::totals::Total;

    fn sample<'a>(units: &'a [String], values: &[f64]) -> Estimate<'a> {
        let total = |(unit, value): (&'a String, &f64)| {
            (unit.as_str(), Total { count: 1, sum: *value, before: None })
        };
        mean::estimate(units.iter().zip(values).map(total)).unwrap()
    }

    /// Expected values were computed apart from this crate, the tail by Simpson's rule on Student's density.
    #[test]
    fn a_small_sample_agrees_with_values_computed_elsewhere() {
        let a = [
            27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7,
            21.4,
        ];
        let b = [
            27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 30.5,
            24.4,
        ];
        let units: Vec<String> = (0..30).map(|unit| format!("{unit:02}")).collect();
        let (control, arm) = (sample(&units[..15], &a), sample(&units[15..], &b));
        let found = Difference::between(&control, &arm).unwrap();
        assert!((found.score() - 2.852_954_87).abs() < 1e-7, "{}", found.score());
        assert!((found.degrees - 27.887_303_99).abs() < 1e-6, "{}", found.degrees);
        let p_value = p_value(&found);
        assert!((p_value - 0.008_071_938_17).abs() < 1e-9, "{p_value}");
        let [low, high] = interval(&found, p_value);
        // At its own p-value as level the interval touches zero.
        assert!(low.abs() < 1e-6 && high > 0.0, "{low}, {high}");
    }
}
