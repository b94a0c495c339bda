//! Corrections for several comparisons at once.
//!
//! The verdict uses Holm's, which keeps the rate of any wrong verdict, whatever the dependence of the comparisons. Holm's
//! step-down has no plain intervals, so the always-valid intervals are drawn at the level divided by the number of
//! comparisons (Bonferroni): only then do all of them hold together, and whoever reads the one that looks best still reads
//! an interval that keeps its promise. An interval without zero implies that Holm's p-value is below the level; Holm may
//! decide a little before the interval leaves zero.

/// Holm's adjusted p-values ("A simple sequentially rejective multiple test procedure", 1979), in
/// the order given. The p-value of rank i of m, from 0, is multiplied by m − i; none is below that
/// of a lower rank.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let order = ascending(p_values);
    let mut adjusted = vec![0.0; p_values.len()];
    let mut greatest: f64 = 0.0;
    for (rank, &at) in order.iter().enumerate() {
        greatest = greatest.max(p_values[at] * (order.len() - rank) as f64);
        adjusted[at] = greatest.min(1.0);
    }
    adjusted
}

/// Benjamini and Hochberg's adjusted p-values ("Controlling the False Discovery Rate", 1995), in
/// the order given: the share of wrong ones among all that are called different. For looking
/// around, not for verdicts. The p-value of rank i of m, from 1, is multiplied by m / i; none is
/// above that of a higher rank.
pub fn benjamini_hochberg(p_values: &[f64]) -> Vec<f64> {
    let order = ascending(p_values);
    let mut adjusted = vec![0.0; p_values.len()];
    let mut least: f64 = 1.0;
    for (rank, &at) in order.iter().enumerate().rev() {
        least = least.min(p_values[at] * order.len() as f64 / (rank + 1) as f64);
        adjusted[at] = least;
    }
    adjusted
}

/// Indices of the p-values from the least to the greatest; equal ones keep their order.
fn ascending(p_values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|a, b| p_values[*a].total_cmp(&p_values[*b]));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(found: &[f64], expected: &[f64]) {
        let is_near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-12;
        assert!(found.iter().zip(expected).all(is_near), "{found:?}, {expected:?}");
        assert_eq!(found.len(), expected.len());
    }

    #[test]
    fn adjusted_values_agree_with_hand_computed_ones() {
        let p_values = [0.01, 0.04, 0.03, 0.005];
        check(&holm(&p_values), &[0.03, 0.06, 0.06, 0.02]);
        check(&benjamini_hochberg(&p_values), &[0.02, 0.04, 0.04, 0.02]);
        check(&holm(&[0.6, 0.9]), &[1.0, 1.0]);
        check(&benjamini_hochberg(&[0.6, 0.9]), &[0.9, 0.9]);
        assert!(holm(&[]).is_empty() && benjamini_hochberg(&[]).is_empty());
    }
}
