//! Draws and samples that the simulations share.

use polyskill_experiment::analysis::{Difference, Estimate, mean, ratio};
use polyskill_experiment::totals::Total;
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;

/// A standard normal draw.
pub(crate) fn normal(random: &mut ChaCha8Rng) -> f64 {
    let (radius, angle): (f64, f64) = (random.random(), random.random());
    (-2.0 * (1.0 - radius).ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

/// A coin that shows 1 with this probability.
pub(crate) fn coin(random: &mut ChaCha8Rng, probability: f64) -> f64 {
    f64::from(u8::from(random.random_bool(probability)))
}

/// A unit with one observation.
pub(crate) fn once(value: f64) -> Total {
    Total { count: 1, sum: value, before: None }
}

/// Names of units, in order: those of the control are even, those of the other arm odd.
pub(crate) fn names(units: usize) -> Vec<String> {
    (0..units).map(|unit| format!("{unit:06}")).collect()
}

/// The average over an arm's units.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Average {
    Mean,
    Ratio,
}

impl Average {
    fn of<'a>(self, units: impl Iterator<Item = (&'a str, Total)>) -> Option<Estimate<'a>> {
        match self {
            Self::Mean => mean::estimate(units),
            Self::Ratio => ratio::estimate(units),
        }
    }

    /// The difference of two arms.
    pub(crate) fn difference(self, names: &[String], arms: &[Vec<Total>; 2]) -> Option<Difference> {
        let named = |arm: usize| {
            let own = names.iter().skip(arm).step_by(2).map(String::as_str);
            self.of(own.zip(arms[arm].iter().copied()))
        };
        Difference::between(&named(0)?, &named(1)?)
    }
}
