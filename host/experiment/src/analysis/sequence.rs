//! Intervals that hold at every look: asymptotic confidence sequences and the p-values of the same martingale.
//!
//! Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic confidence
//! sequences" (2021, Annals of Statistics 2024), theorem 2.2, with Robbins' normal mixture. After n units whose influences
//! have variance σ², the estimate is within
//!
//! ```text
//! σ √( (2 (n ρ² + 1)) / (n² ρ²) · ln( √(n ρ² + 1) / α ) )
//! ```
//!
//! of the truth, at all n at once, with a probability that tends to 1 − α as the first look is taken later. That is why
//! nothing is concluded below a minimum of units.
//!
//! **What n is.** For a difference of two arms, n counts the distinct units under either of the two, N = n₀ + n₁ where
//! no unit is under both. A unit of arm a has the influence ±(N / n_a)(y − mean_a) on the difference, so σ² / N is
//! s₀²/n₀ + s₁²/n₁, the variance of the difference: arms of unequal sizes need no formula of their own. In standard errors
//! the boundary is √((N ρ² + 1)/(N ρ²) · (ln(N ρ² + 1) + 2 ln(1/α))).
//!
//! **Bandits.** Where the shares of the arms depend on what was seen, influences under both arms do not form one such
//! sequence. Each arm's own units still do, counted on their own, as units arrive alike whatever was chosen before.
//! [`Sequence::separate`] therefore adds the radii of the two arms at half the level each.

use super::{Difference, Side};

/// Rounds of the fixed point and of the halving below; both gain at least a binary digit a round.
const ROUNDS: usize = 100;

/// A boundary with its level and ρ². A sequence costs the same at every look, whatever came before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sequence {
    /// α, the error rate over all looks.
    level: f64,
    /// ρ² of the normal mixture: large values make the boundary tight early, small ones late.
    rho_squared: f64,
}

impl Sequence {
    /// The boundary of this level that is tightest at `planned_units`. The tightest x = N ρ² solves
    /// x = ln(1 + x) + 2 ln(1/α), which is the paper's −W₋₁(−α²/e) − 1.
    pub fn tuned(level: f64, planned_units: f64) -> Self {
        Self { level, rho_squared: tightest(level) / planned_units.max(1.0) }
    }

    /// The same ρ at another level.
    pub fn at_level(self, level: f64) -> Self {
        Self { level, ..self }
    }

    /// The boundary after so many units, in standard errors. Infinite at 0 units.
    pub fn boundary(&self, units: f64) -> f64 {
        let x = units * self.rho_squared;
        ((x + 1.0) / x * (x.ln_1p() - 2.0 * self.level.ln())).sqrt()
    }

    /// The interval of the difference that holds at every look, once both arms have the minimum of
    /// units.
    pub fn interval(&self, difference: &Difference) -> [f64; 2] {
        difference.within(difference.error() * self.boundary(difference.units as f64))
    }

    /// The p-value that may be read at every look: 1 / M with the mixture martingale
    /// M = (N ρ² + 1)^(−1/2) exp(z² N ρ² / (2 (N ρ² + 1))), z the difference in standard errors. At most the level exactly
    /// where the interval does not hold zero.
    pub fn p_value(&self, difference: &Difference) -> f64 {
        let x = difference.units as f64 * self.rho_squared;
        let score = difference.score();
        let evidence = score * score * x / (2.0 * (x + 1.0)) - 0.5 * x.ln_1p();
        (-evidence).exp().min(1.0)
    }

    /// The interval of a difference of arms whose shares depend on what was seen. For bandits,
    /// where the sum of radii replaces the variance of the difference.
    pub fn separate(&self, difference: &Difference) -> [f64; 2] {
        difference.within(self.separate_radius(difference))
    }

    /// The p-value that belongs to [`Self::separate`], found by halving its logarithm. The least
    /// level at which the interval does not hold zero; never below e⁻⁷⁰⁰.
    pub fn separate_p_value(&self, difference: &Difference) -> f64 {
        let away = difference.difference.abs();
        let excludes = |log: f64| self.at_level(log.exp()).separate_radius(difference) <= away;
        let (mut low, mut high) = (-700.0, 0.0);
        if away == 0.0 || !excludes(high) {
            return 1.0;
        }
        for _ in 0..ROUNDS {
            let middle = f64::midpoint(low, high);
            if excludes(middle) {
                high = middle;
            } else {
                low = middle;
            }
        }
        high.exp()
    }

    /// The radii of the two arms' own sequences at half the level each, added.
    fn separate_radius(&self, difference: &Difference) -> f64 {
        let half = self.at_level(self.level / 2.0);
        let radius = |side: Side| side.variance.sqrt() * half.boundary(side.units as f64);
        radius(difference.control) + radius(difference.arm)
    }
}

/// The x = N ρ² at which the boundary is tightest. There the boundary is √(x + 1) standard errors.
/// A fixed point of x ↦ ln(1 + x) + 2 ln(1/α), which contracts, as its slope is 1 / (1 + x).
pub(super) fn tightest(level: f64) -> f64 {
    let constant = -2.0 * level.ln();
    (0..ROUNDS).fold(constant, |x, _| constant + x.ln_1p())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(difference: f64, units: u64) -> Difference {
        let side = |share: f64| Side {
            units: (units as f64 * share) as u64,
            variance: 1.0 / (units as f64 * share),
        };
        let (control, arm) = (side(0.25), side(0.75));
        let variance = control.variance + arm.variance;
        Difference { difference, variance, units, degrees: 100.0, control, arm }
    }

    #[test]
    fn the_boundary_is_tightest_where_planned() {
        let radius =
            |rho_units: f64| Sequence::tuned(0.05, rho_units).interval(&difference(0.0, 1_000))[1];
        let best = radius(1_000.0);
        assert!(best < radius(900.0) && best < radius(1_110.0));
        let x = tightest(0.05);
        let boundary = Sequence::tuned(0.05, 1_000.0).boundary(1_000.0);
        assert!((boundary - (x + 1.0).sqrt()).abs() < 1e-12);
        assert!((boundary - 3.0351).abs() < 0.001, "{boundary}");
        // The paper's closed approximation of ρ.
        let approximation = -2.0 * 0.05_f64.ln() + (-2.0 * 0.05_f64.ln() + 1.0).ln();
        assert!((x / approximation - 1.0).abs() < 0.05, "{x}, {approximation}");
    }

    #[test]
    fn the_radius_is_the_papers() {
        let (n, rho_squared, sigma) = (400.0_f64, 0.01, 2.0_f64);
        let expected = sigma
            * (2.0 * (n * rho_squared + 1.0) / (n * n * rho_squared)
                * ((n * rho_squared + 1.0).sqrt() / 0.05).ln())
            .sqrt();
        let found = Sequence { level: 0.05, rho_squared }.boundary(n) * sigma / n.sqrt();
        assert!((found - expected).abs() < 1e-12);
    }

    #[test]
    fn p_values_and_intervals_agree() {
        let sequence = Sequence::tuned(0.05, 500.0);
        for step in 1..400 {
            let found = difference(f64::from(step) * 0.001, 700);
            let excludes = |interval: [f64; 2]| interval[0] > 0.0 || interval[1] < 0.0;
            assert_eq!(sequence.p_value(&found) <= 0.05, excludes(sequence.interval(&found)));
            let separate = excludes(sequence.separate(&found));
            assert_eq!(sequence.separate_p_value(&found) <= 0.05, separate);
        }
        assert_eq!(sequence.p_value(&difference(0.0, 700)), 1.0);
        assert_eq!(sequence.separate_p_value(&difference(0.0, 700)), 1.0);
    }

    #[test]
    fn separate_intervals_are_wider() {
        let sequence = Sequence::tuned(0.05, 500.0);
        let found = difference(0.1, 700);
        assert!(sequence.separate(&found)[1] > sequence.interval(&found)[1]);
    }
}
