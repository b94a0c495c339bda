//! Tests of the sample ratio: were units dealt to arms in the declared shares? A mismatch means that
//! units were lost or doubled on the way, and then no comparison of the arms can be believed.
//!
//! [`sequential`] may be read after every unit, [`chi_square`] once (Fabijan et al., "Diagnosing Sample Ratio Mismatch in
//! Online Controlled Experiments", 2019).

use statrs::function::gamma::ln_gamma;

use crate::distributions::chi_square_survival;

/// The level at which a mismatch blocks all verdicts. Low, as there is no reason to doubt a verdict without it.
pub const LEVEL: f64 = 0.001;

/// The concentration of the alternatives of the sequential test around the declared shares: they
/// spread like the shares of so many units. 1,000 puts most weight on skews of a few percent and
/// loses little on smaller ones: of two equal arms, 51 to 49 is a mismatch from 46,000 units on and
/// 50.5 to 49.5 from 192,000 on.
const CONCENTRATION: f64 = 1_000.0;

/// The p-value of Pearson's chi-square test, for one look. `expected` are weights of any sum; arms
/// of weight zero must be empty. `observed` and `expected` go by arms. 1 without units, 0 where an
/// arm without a weight has some.
pub fn chi_square(observed: &[u64], expected: &[f64]) -> f64 {
    let Some((cells, total)) = cells(observed, expected) else { return 0.0 };
    let part = |(count, share): &(f64, f64)| (count - total * share).powi(2) / (total * share);
    let statistic: f64 = cells.iter().map(part).sum();
    if total == 0.0 || cells.len() < 2 {
        return 1.0;
    }
    chi_square_survival(statistic, cells.len() as f64 - 1.0)
}

/// The p-value that may be read after every unit: 1 / M with the martingale of Lindon and Malek, "Anytime-Valid Inference
/// for Multinomial Count Data" (2020, NeurIPS 2022). M is the probability of the counts under a Dirichlet mixture of shares
/// around the declared ones, over that under the declared shares:
///
/// ```text
/// M = B(a + n) / B(a) · Π θᵢ^(−nᵢ),  a = 1000 θ,  B the multivariate beta function
/// ```
///
/// `observed` and `expected` go by arms; the same bounds hold as for [`chi_square`]. It depends on
/// the counts alone, not on their order.
pub fn sequential(observed: &[u64], expected: &[f64]) -> f64 {
    let Some((cells, total)) = cells(observed, expected) else { return 0.0 };
    let part = |(count, share): &(f64, f64)| {
        let prior = CONCENTRATION * share;
        ln_gamma(prior + count) - ln_gamma(prior) - count * share.ln()
    };
    let evidence = cells.iter().map(part).sum::<f64>() + ln_gamma(CONCENTRATION)
        - ln_gamma(CONCENTRATION + total);
    (-evidence).exp().min(1.0)
}

/// The count and the declared share of every arm with a weight, and the sum of the counts; `None` where an arm without a
/// weight has units.
fn cells(observed: &[u64], expected: &[f64]) -> Option<(Vec<(f64, f64)>, f64)> {
    let weights: f64 = expected.iter().sum();
    let pairs = || observed.iter().zip(expected);
    if pairs().any(|(count, weight)| *count > 0 && *weight <= 0.0) {
        return None;
    }
    let cell = |(count, weight): (&u64, &f64)| (*count as f64, weight / weights);
    let cells = pairs().filter(|(_, weight)| **weight > 0.0).map(cell).collect();
    Some((cells, observed.iter().sum::<u64>() as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chi_square_agrees_with_a_hand_computed_case() {
        // (60 − 50)²/50 · 2 = 4, one degree of freedom.
        assert!((chi_square(&[60, 40], &[1.0, 1.0]) - 0.045_500_26).abs() < 1e-6);
        assert_eq!(chi_square(&[0, 0], &[1.0, 1.0]), 1.0);
        assert_eq!(chi_square(&[3, 1], &[1.0, 0.0]), 0.0);
        assert_eq!(chi_square(&[3, 0], &[1.0, 0.0]), 1.0);
    }

    #[test]
    fn the_martingale_is_the_product_of_predictions() {
        // Counts of (2, 1): predictions are (a + n) over the sum, one unit after another.
        let shares = [0.3, 0.7];
        let mut counts = [0.0, 0.0];
        let mut martingale = 1.0;
        for arm in [0, 1, 0, 0, 0, 0] {
            let seen = CONCENTRATION + counts[0] + counts[1];
            martingale *= (CONCENTRATION * shares[arm] + counts[arm]) / seen / shares[arm];
            counts[arm] += 1.0;
        }
        let found = sequential(&[5, 1], &[3.0, 7.0]);
        assert!((found - (1.0 / martingale).min(1.0)).abs() < 1e-9, "{found}, {martingale}");
        assert_eq!(sequential(&[0, 0], &[3.0, 7.0]), 1.0);
        assert_eq!(sequential(&[5, 1], &[3.0, 0.0]), 0.0);
    }

    /// The least number of units, in steps of 1,000, at which a share of the first of two equal arms is a mismatch.
    fn units_to_catch(share: f64) -> u64 {
        let is_mismatch = |units: &u64| {
            let first = (*units as f64 * share).round() as u64;
            sequential(&[first, units - first], &[1.0, 1.0]) < LEVEL
        };
        (1..1_000).map(|thousands| thousands * 1_000).find(is_mismatch).unwrap()
    }

    #[test]
    fn one_percent_of_skew_is_caught() {
        assert_eq!((units_to_catch(0.51), units_to_catch(0.505)), (46_000, 192_000));
    }
}
