//! The declaration of an experiment, made before its first request: arms, metrics, guards, and the
//! accepted error rate.
//!
//! Read from TOML by the server, so every type is plain and refuses keys that it does not know. [`Declaration::validate`]
//! reports all problems at once; [`validate_together`] those that only show among experiments.

mod validation;

use polyskill_route::RouteSpec;
use serde::{Deserialize, Serialize};

pub use self::validation::validate_together;
use crate::assignment::{Layer, Share};

/// The largest observation: sums and squares of any number of them are far from what a double holds.
pub const MAX_VALUE: f64 = 1e15;

/// An experiment as a person declares it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Declaration {
    /// The experiment's name: letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// The way in which requests are given to arms.
    #[serde(default)]
    pub mode: Mode,
    /// Names under which clients ask for what is split; where there are none, all requests that leave the choice open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// The unit of assignment and of analysis.
    #[serde(default)]
    pub unit: Unit,
    /// The name of the arm that all others are compared with.
    pub control: String,
    /// The layer whose experiments exclude each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
    /// The experiment's part `[start, end)` of its layer; all of it where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<[f64; 2]>,
    /// The share of units kept out of all experiments.
    #[serde(default)]
    pub holdout: f64,
    /// The seed of the assignment; the name where none is given. A new seed deals all arms anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<String>,
    /// When the experiment starts, in unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<u64>,
    /// When it stops, in unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<u64>,
    /// The share of requests that a full shadow runs again; all where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<f64>,
    /// The accepted rate of wrong verdicts, over all looks and all comparisons that carry the verdict.
    #[serde(default = "default_level")]
    pub level: f64,
    /// Units that each arm of a comparison needs before anything is concluded: the burn-in of the confidence sequences.
    #[serde(default = "default_minimum_units")]
    pub minimum_units: u64,
    /// Units of the whole experiment at which the always-valid intervals are to be tightest.
    #[serde(default = "default_planned_units")]
    pub planned_units: u64,
    /// The arms, the control among them.
    pub arms: Vec<Arm>,
    /// The metrics that are measured.
    #[serde(default)]
    pub metrics: Vec<Metric>,
    /// The settings of a bandit; in mode `bandit` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandit: Option<Bandit>,
}

/// The way in which requests are given to arms.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Each unit is served by one arm.
    #[default]
    Split,
    /// The control serves; the other arms' decisions are computed beside it and compared.
    DecisionShadow,
    /// The control serves; a sample of requests is generated again under the other arms.
    FullShadow,
    /// Each unit is served by one arm, chosen by what the arms earned.
    Bandit,
}

impl Mode {
    /// True in the modes in which the control serves every unit, so that the same units are seen
    /// under all arms.
    pub fn is_shadow(self) -> bool {
        matches!(self, Self::DecisionShadow | Self::FullShadow)
    }
}

/// The unit of assignment and of analysis.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// The requests of one conversation.
    #[default]
    Conversation,
    /// All requests of one user.
    User,
    /// All requests of one tenant.
    Tenant,
}

/// One of the compared ways to serve.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// The arm's name.
    pub name: String,
    /// Its weight among the arms; shares are weights over their sum.
    pub weight: f64,
    /// The arm's router and adapters, on top of what the requested model stands for.
    #[serde(flatten)]
    pub route: RouteSpec,
}

/// A measurement of each unit.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// The metric's name.
    pub name: String,
    /// The average over units.
    pub kind: Kind,
    /// The better direction.
    pub wanted: Wanted,
    /// Makes the metric a guard: it stops an arm that does harm and has no say in what is better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<Guard>,
    /// The least and the greatest value of an observation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounded: Option<[f64; 2]>,
    /// Narrows the intervals by the units' values from before the experiment (CUPED).
    #[serde(default)]
    pub covariate: bool,
}

/// The average over a metric's units.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The mean over units of each unit's own mean: every unit weighs alike.
    Mean,
    /// The sum over all units divided by the count over all units: every request weighs alike.
    Ratio,
}

/// The better direction of a metric.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// More is better.
    Increase,
    /// Less is better.
    Decrease,
}

impl Wanted {
    /// 1 where more is better, else -1.
    pub fn sign(self) -> f64 {
        match self {
            Self::Increase => 1.0,
            Self::Decrease => -1.0,
        }
    }
}

/// The harm that an arm may do.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Guard {
    /// The greatest harm that is accepted, in the metric's own units.
    pub harm: f64,
}

/// The settings of a bandit.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Bandit {
    /// The rule: `"thompson"` or `{ epsilon_greedy = { epsilon = 0.1 } }`.
    pub policy: Policy,
    /// The least probability of every arm, without which nothing could be learnt about arms that fell behind.
    pub floor: f64,
    /// The metric that is earned; its `wanted` says which way.
    pub reward: String,
}

/// A bandit's rule.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Policy {
    /// Any arm with probability epsilon, else the best so far.
    EpsilonGreedy {
        /// The share of units that explore.
        epsilon: f64,
    },
    /// Each arm with the probability that it is the best.
    Thompson,
}

impl Declaration {
    /// Checks all that one experiment can be checked for.
    ///
    /// # Errors
    /// Every problem as a sentence: the field, what was found, and what is expected.
    pub fn validate(&self) -> Result<(), Vec<String>> {
        validation::validate(self)
    }

    /// The seed of the assignment. The experiment's name where none is declared.
    pub fn seed(&self) -> &str {
        self.seed.as_deref().unwrap_or(&self.name)
    }

    /// The arms' weights, as declared.
    pub fn weights(&self) -> Vec<f64> {
        self.arms.iter().map(|arm| arm.weight).collect()
    }

    /// The arms' weights over their sum. In the order of the arms. NaN where all weights are zero,
    /// which validation refuses.
    pub fn shares(&self) -> Vec<f64> {
        let total: f64 = self.arms.iter().map(|arm| arm.weight).sum();
        self.arms.iter().map(|arm| arm.weight / total).collect()
    }

    /// The layer and the experiment's share of it. All of the layer where no share is declared;
    /// `None` without a layer.
    pub fn layer_share(&self) -> Option<(Layer<'_>, Share)> {
        let [start, end] = self.share.unwrap_or([0.0, 1.0]);
        self.layer.as_deref().map(|name| (Layer { name }, Share { start, end }))
    }

    /// The share of requests that a full shadow runs again. 1 where none is declared.
    pub fn sample(&self) -> f64 {
        self.sample.unwrap_or(1.0)
    }

    /// The metric of this name.
    pub fn metric(&self, name: &str) -> Option<&Metric> {
        self.metrics.iter().find(|metric| metric.name == name)
    }
}

impl Metric {
    /// True for an observation that is a number of at most [`MAX_VALUE`] in size and within the
    /// declared bounds. NaN is refused.
    pub fn accepts(&self, value: f64) -> bool {
        let within = |[low, high]: [f64; 2]| (low..=high).contains(&value);
        value.abs() <= MAX_VALUE && self.bounded.is_none_or(within)
    }
}

/// 5 %, the usual level of a test.
fn default_level() -> f64 {
    0.05
}

/// Units per arm before anything is concluded: the always-valid intervals hold asymptotically.
fn default_minimum_units() -> u64 {
    100
}

/// Units of the whole experiment at which the intervals are tightest.
fn default_planned_units() -> u64 {
    2_000
}
