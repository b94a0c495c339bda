//! Planning: the units that an experiment needs, and the effects that it can see with those it has.
//!
//! With V = σ² (1/q + 1/(1 − q)), q the treated share and σ² a unit's variance, N units of both arms give a difference of
//! variance V / N, and an effect δ is found with the wanted power where δ = (b + z_power) √(V / N). For one look at the end b
//! is z_(1 − level/2), the textbook formula. For the always-valid design b is the boundary of [`super::sequence`], tuned to
//! N, at N. Its power counts a look at N alone; looks before N find some effects earlier and a few that the last look
//! misses, so the power over all looks is a little higher.

use super::sequence::tightest;
use crate::distributions::{normal_cumulative, normal_quantile};

/// The demands on an experiment with two arms. Units are those of both arms together throughout.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// The two-sided level.
    pub level: f64,
    /// The wanted probability of finding the effect.
    pub power: f64,
    /// The variance of a unit's value: of its mean for a mean, of the influence ψ for a ratio.
    pub variance: f64,
    /// Treated units for each unit of the control.
    pub allocation: f64,
    /// The correlation of a unit's value with its value before the experiment, where CUPED is used; else 0.
    pub correlation: f64,
}

/// When the result is read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Design {
    /// Once, at the end.
    Fixed,
    /// At any time.
    AlwaysValid,
}

impl Plan {
    /// The units of both arms together that an effect needs, rounded up. Infinite for an effect of
    /// 0.
    pub fn needed_units(&self, design: Design, effect: f64) -> f64 {
        let standard = self.boundary(design) + normal_quantile(self.power);
        (standard.powi(2) * self.spread() / effect.powi(2)).ceil()
    }

    /// The least effect that so many units of both arms together find with the wanted power.
    pub fn minimum_effect(&self, design: Design, units: f64) -> f64 {
        (self.boundary(design) + normal_quantile(self.power)) * (self.spread() / units).sqrt()
    }

    /// The probability that so many units show the effect, on its own side, at a look at the end.
    /// The chance of an effect on the wrong side is left out.
    pub fn power_of(&self, design: Design, effect: f64, units: f64) -> f64 {
        normal_cumulative(effect.abs() / (self.spread() / units).sqrt() - self.boundary(design))
    }

    /// The factor by which the always-valid design needs more units than a single look.
    pub fn inflation(&self) -> f64 {
        let standard = |design| self.boundary(design) + normal_quantile(self.power);
        (standard(Design::AlwaysValid) / standard(Design::Fixed)).powi(2)
    }

    /// N times the variance of the difference after N units. σ² (1 − ρ²) (1/q + 1/(1 − q)), with q
    /// = allocation / (1 + allocation).
    fn spread(&self) -> f64 {
        let treated = self.allocation / (1.0 + self.allocation);
        let variance = self.variance * (1.0 - self.correlation.powi(2));
        variance * (1.0 / treated + 1.0 / (1.0 - treated))
    }

    /// The standard errors from zero at which a difference counts as found.
    fn boundary(&self, design: Design) -> f64 {
        match design {
            Design::Fixed => normal_quantile(1.0 - self.level / 2.0),
            // A boundary at the units that it is tuned to depends on the level alone.
            Design::AlwaysValid => (tightest(self.level) + 1.0).sqrt(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan =
        Plan { level: 0.05, power: 0.8, variance: 1.0, allocation: 1.0, correlation: 0.0 };

    #[test]
    fn a_single_look_needs_what_textbooks_say() {
        // 16 σ² / δ² for each arm, more exactly 15.7.
        assert_eq!(PLAN.needed_units(Design::Fixed, 0.1), 3_140.0);
        let least = PLAN.minimum_effect(Design::Fixed, 3_140.0);
        assert!((least - 0.1).abs() < 1e-4, "{least}");
        assert!((PLAN.power_of(Design::Fixed, 0.1, 3_140.0) - 0.8).abs() < 1e-3);
    }

    #[test]
    fn unequal_arms_need_more_and_the_past_needs_less() {
        let lopsided = Plan { allocation: 0.25, ..PLAN };
        let ratio =
            lopsided.needed_units(Design::Fixed, 0.01) / PLAN.needed_units(Design::Fixed, 0.01);
        assert!((ratio - 6.25 / 4.0).abs() < 1e-4, "{ratio}");
        let mirrored = Plan { allocation: 4.0, ..PLAN };
        let (one, two) = (lopsided.spread(), mirrored.spread());
        assert!((one - two).abs() < 1e-12);
        let with_past = Plan { correlation: 0.6, ..PLAN };
        let ratio =
            with_past.needed_units(Design::Fixed, 0.01) / PLAN.needed_units(Design::Fixed, 0.01);
        assert!((ratio - 0.64).abs() < 1e-4, "{ratio}");
    }

    #[test]
    fn looking_at_any_time_costs_units() {
        let inflation = PLAN.inflation();
        assert!((1.85..1.95).contains(&inflation), "{inflation}");
        let units = PLAN.needed_units(Design::AlwaysValid, 0.1);
        assert!((units / 3_140.0 - inflation).abs() < 0.01, "{units}");
        assert!((PLAN.minimum_effect(Design::AlwaysValid, units) - 0.1).abs() < 1e-4);
        assert!((PLAN.power_of(Design::AlwaysValid, 0.1, units) - 0.8).abs() < 1e-3);
    }
}
