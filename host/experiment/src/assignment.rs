//! The assignment of units to arms: a pure, versioned hash of a seed and a unit, so that all
//! processes agree without talking.
//!
//! Version 1 takes the SHA-256 of `polyskill assignment 1`, a zero byte, the seed, a zero byte and the unit, all in
//! UTF-8. The top 53 bits of its first eight bytes, read big endian, are a position in [0, 1). Seeds hold no zero byte
//! (the declaration's validation sees to it), so no two pairs of seed and unit hash the same bytes. What the hash gives is
//! pinned by `vectors/assignment-1.json`; a change of the hash is a new version beside this one.
//!
//! The hash is not sticky: when weights change, units near a moved boundary change their arm (see [`arm`]). A store
//! outside of this crate may remember the first arm of each unit.

use sha2::{Digest as _, Sha256};

use crate::declaration::Declaration;

/// The version of the hash, as part of what is hashed and to be logged with every assignment.
pub const VERSION: u32 = 1;

/// The seed of the share of units that no experiment may touch. The same for all experiments, so that a smaller holdout
/// lies within a larger one.
pub const HOLDOUT_SEED: &str = "holdout";

/// The prefix of the seeds of layers.
pub const LAYER_PREFIX: &str = "layer:";

/// The unit's position under a seed, uniform in [0, 1).
pub fn position(seed: &str, unit: &str) -> f64 {
    let mut hash = Sha256::new();
    hash.update(format!("polyskill assignment {VERSION}\0{seed}\0{unit}"));
    let digest = hash.finalize();
    let head = digest.iter().take(8).fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
    // 53 bits are what a double holds exactly, so that the division rounds nothing.
    (head >> 11) as f64 / (1_u64 << 53) as f64
}

/// The arm whose part of [0, 1) holds the position; parts lie in the order of the weights and are as wide as the weights'
/// shares. An arm of weight zero is never chosen. Weights that are all zero, which validation refuses, give arm 0.
///
/// A change of weights moves the units between the old and the new place of each boundary, and no others. With two arms
/// that is as few as the new shares allow. With more arms it may be more, as a boundary in the middle moves with every
/// weight before it.
pub fn arm(weights: &[f64], position: f64) -> usize {
    let total: f64 = weights.iter().sum();
    let mut cumulated = 0.0;
    let holds = |weight: &f64| {
        cumulated += weight;
        position < cumulated / total
    };
    weights.iter().position(holds).unwrap_or_default()
}

/// True where the unit belongs to the share that is kept out of all experiments.
pub fn is_held_out(holdout: f64, unit: &str) -> bool {
    position(HOLDOUT_SEED, unit) < holdout
}

/// A part of a layer's unit interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// The lower end, which belongs to the share.
    pub start: f64,
    /// The upper end, which does not.
    pub end: f64,
}

impl Share {
    /// True where the position lies in the share.
    pub fn holds(self, position: f64) -> bool {
        self.start <= position && position < self.end
    }

    /// True where some position lies in both shares.
    pub fn overlaps(self, other: Self) -> bool {
        self.start.max(other.start) < self.end.min(other.end)
    }
}

/// Experiments that exclude each other: each has a share of the layer, and a unit has one position in it. Layers are
/// independent of each other and of the arms, as their seeds differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Layer<'a> {
    /// The layer's name, which makes its seed.
    pub name: &'a str,
}

impl Layer<'_> {
    /// The unit's position in the layer.
    pub fn position(&self, unit: &str) -> f64 {
        position(&format!("{LAYER_PREFIX}{}", self.name), unit)
    }
}

/// The place of a unit in an experiment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Place {
    /// In the holdout: no experiment, and it is not counted.
    HeldOut,
    /// In a part of the layer that belongs to other experiments or to none.
    Elsewhere,
    /// In the experiment, with the arm of this index.
    Arm(usize),
}

/// The place of a unit: the holdout first, then the layer's share, then the arm by weights. In the
/// shadow modes every unit of the experiment is served by the control, so the arm says nothing
/// there; a bandit takes the arm from [`crate::bandit::Rule::choose`].
pub fn place(declaration: &Declaration, unit: &str) -> Place {
    if is_held_out(declaration.holdout, unit) {
        return Place::HeldOut;
    }
    if let Some((layer, share)) = declaration.layer_share()
        && !share.holds(layer.position(unit))
    {
        return Place::Elsewhere;
    }
    Place::Arm(arm(&declaration.weights(), position(declaration.seed(), unit)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;
    use crate::distributions::chi_square_survival;

    #[derive(Deserialize)]
    struct Vector {
        seed: String,
        unit: String,
        /// 17 digits as text, since not every reader of JSON keeps the last bit of a number.
        position: String,
        weights: Vec<f64>,
        arm: usize,
    }

    #[test]
    fn the_published_vectors_hold() {
        let vectors: Vec<Vector> =
            serde_json::from_str(include_str!("../vectors/assignment-1.json")).unwrap();
        assert!(vectors.len() >= 16);
        for vector in vectors {
            let at = position(&vector.seed, &vector.unit);
            assert_eq!(at, vector.position.parse::<f64>().unwrap(), "{}", vector.unit);
            assert_eq!(arm(&vector.weights, at), vector.arm, "{}", vector.unit);
        }
    }

    fn unlikely(observed: &[f64], expected: &[f64], degrees: f64) -> bool {
        let part = |(observed, expected): (&f64, &f64)| (observed - expected).powi(2) / expected;
        let statistic: f64 = observed.iter().zip(expected).map(part).sum();
        chi_square_survival(statistic, degrees) < 0.001
    }

    #[test]
    fn arms_get_their_shares() {
        let weights = [5.0, 0.0, 3.0, 2.0];
        let mut counts = [0.0; 4];
        for unit in 0..100_000 {
            counts[arm(&weights, position("proportions", &unit.to_string()))] += 1.0;
        }
        assert_eq!(counts[1], 0.0);
        let seen = [counts[0], counts[2], counts[3]];
        assert!(!unlikely(&seen, &[50_000.0, 30_000.0, 20_000.0], 2.0), "{counts:?}");
    }

    #[test]
    fn seeds_are_independent() {
        let mut cells = [0.0; 16];
        for unit in 0..64_000 {
            let unit = unit.to_string();
            let quarter = |seed: &str| (position(seed, &unit) * 4.0) as usize;
            cells[quarter("one") * 4 + quarter("layer:two")] += 1.0;
        }
        assert!(!unlikely(&cells, &[4_000.0; 16], 15.0), "{cells:?}");
    }

    #[test]
    fn a_change_of_weights_moves_what_lies_between_the_boundaries() {
        let units: Vec<f64> =
            (0..20_000).map(|unit| position("moves", &unit.to_string())).collect();
        let moved = |old: &[f64], new: &[f64]| -> Vec<f64> {
            units.iter().copied().filter(|at| arm(old, *at) != arm(new, *at)).collect()
        };
        let two = moved(&[0.5, 0.5], &[0.6, 0.4]);
        let between = units.iter().filter(|at| (0.5..0.6).contains(*at)).count();
        assert_eq!(two.len(), between);
        let three = moved(&[2.0, 4.0, 4.0], &[4.0, 3.0, 3.0]);
        let is_between = |at: &f64| (0.2..0.4).contains(at) || (0.6..0.7).contains(at);
        assert!(three.iter().all(is_between));
        assert_eq!(three.len(), units.iter().filter(|at| is_between(at)).count());
        assert!(moved(&[1.0, 3.0], &[10.0, 30.0]).is_empty());
    }

    #[test]
    fn shares_that_touch_do_not_overlap() {
        let share = |start, end| Share { start, end };
        assert!(!share(0.0, 0.5).overlaps(share(0.5, 1.0)));
        assert!(share(0.0, 0.6).overlaps(share(0.5, 1.0)));
        assert!(share(0.0, 0.5).holds(0.0) && !share(0.0, 0.5).holds(0.5));
    }

    #[test]
    fn a_smaller_holdout_lies_within_a_larger_one() {
        let held =
            |share| (0..10_000).filter(move |unit: &i32| is_held_out(share, &unit.to_string()));
        let small: Vec<i32> = held(0.05).collect();
        let large: Vec<i32> = held(0.1).collect();
        assert!((400..600).contains(&small.len()), "{}", small.len());
        assert!(small.iter().all(|unit| large.contains(unit)));
    }

    proptest! {
        #[test]
        fn positions_are_in_the_unit_interval_and_arms_have_weight(
            seed in "[a-z]{0,9}", unit in ".{0,40}",
            weights in prop::collection::vec(prop_oneof![Just(0.0), 1e-6..1e6_f64], 1..6),
        ) {
            let at = position(&seed, &unit);
            prop_assert!((0.0..1.0).contains(&at));
            if weights.iter().any(|weight| *weight > 0.0) {
                prop_assert!(weights[arm(&weights, at)] > 0.0);
            }
        }
    }
}
