//! Ratios of sums, Σ numerator / Σ denominator over units: every request weighs alike, and the unit is still the cluster.
//!
//! The variance is the delta method's of Deng, Knoblich and Lu, "Applying the Delta Method in Metric Analytics" (2018).
//! With R the ratio, their n⁻¹ N̄⁻² (σ²_S − 2 R σ_SN + R² σ²_N) is the variance of the mean of ψ = (S − R N) / N̄.

use super::Estimate;
use crate::totals::Total;

/// The ratio over units. Units without a denominator are passed over; `None` without any unit.
/// Units may come in any order. ψ = (S − R N) / N̄, with S and N the unit's sums and N̄ the mean of
/// N over units.
pub fn estimate<'a>(units: impl IntoIterator<Item = (&'a str, Total)>) -> Option<Estimate<'a>> {
    let units: Vec<_> = units.into_iter().filter(|(_, total)| total.count > 0).collect();
    let sum: f64 = units.iter().map(|(_, total)| total.sum).sum();
    let count: f64 = units.iter().map(|(_, total)| total.count as f64).sum();
    let (ratio, denominator) = (sum / count, count / units.len() as f64);
    let influence = |total: &Total| (total.sum - ratio * total.count as f64) / denominator;
    (!units.is_empty()).then(|| Estimate::new(ratio, &units, influence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variance_is_the_delta_methods() {
        let rows = [(8.0, 8), (0.0, 1), (2.0, 3), (5.0, 9), (1.0, 1)];
        let units = ["a", "b", "c", "d", "e"].into_iter().zip(rows);
        let total = |(unit, (sum, count))| (unit, Total { count, sum, before: None });
        let found = estimate(units.map(total)).unwrap();
        let n = rows.len() as f64;
        let s_mean = rows.iter().map(|row| row.0).sum::<f64>() / n;
        let n_mean = rows.iter().map(|row| row.1 as f64).sum::<f64>() / n;
        let covariance = |f: fn(f64, f64) -> f64| {
            let each = rows.iter().map(|row| f(row.0 - s_mean, row.1 as f64 - n_mean));
            each.sum::<f64>() / (n - 1.0)
        };
        let ratio = s_mean / n_mean;
        let inner = covariance(|s, _| s * s) - 2.0 * ratio * covariance(|s, m| s * m)
            + ratio * ratio * covariance(|_, m| m * m);
        let expected = inner / (n * n_mean * n_mean);
        assert!((found.value - ratio).abs() < 1e-12);
        assert!((found.variance().unwrap() - expected).abs() < 1e-12);
        assert!(estimate([("a", Total::default())]).is_none());
    }
}
