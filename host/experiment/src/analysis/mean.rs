//! The mean over units of each unit's own mean: every unit weighs alike, however many requests it has.

use super::Estimate;
use crate::totals::Total;

/// The mean over units, with ψ = unit's mean − mean. Units without observations are passed over;
/// `None` without any unit. Units may come in any order. `before` of each total is carried along
/// for CUPED.
pub fn estimate<'a>(units: impl IntoIterator<Item = (&'a str, Total)>) -> Option<Estimate<'a>> {
    let units: Vec<_> = units.into_iter().filter(|(_, total)| total.count > 0).collect();
    let of = |total: &Total| total.sum / total.count as f64;
    let sum: f64 = units.iter().map(|(_, total)| of(total)).sum();
    let mean = sum / units.len() as f64;
    (!units.is_empty()).then(|| Estimate::new(mean, &units, |total| of(total) - mean))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_weigh_alike() {
        let total = |sum, count| Total { count, sum, before: None };
        let units = [("a", total(8.0, 8)), ("b", total(0.0, 1)), ("c", total(0.0, 0))];
        let found = estimate(units).unwrap();
        assert_eq!((found.value, found.units()), (0.5, 2));
        assert_eq!(found.variance(), Some(0.25));
        assert!(estimate([]).is_none());
        assert_eq!(estimate([("a", total(1.0, 1))]).unwrap().variance(), None);
    }
}
