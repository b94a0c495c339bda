//! Records of experiments as the store keeps them.

use polyskill_experiment::bandit::Rewards;
use tokio::sync::oneshot;

/// A failure of the store, in its words.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the store of experiments: {0}")]
pub struct StoreError(String);

/// A store error with the text of another one.
pub(super) fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError(error.to_string())
}

/// The outcome of a change, once it is on the disk. Dropping it does not take the change back.
pub type Durable<T> = oneshot::Receiver<Result<T, StoreError>>;

/// An experiment as it is kept, with texts unread.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// JSON of the declaration.
    pub(super) declaration: String,
    /// JSON of the course.
    pub(super) course: String,
    /// Unit, arm, epoch of the weights, JSON of a bandit's propensities.
    pub(super) units: Vec<(String, String, u32, Option<String>)>,
    /// Arm, requests, fallbacks, faults.
    pub(super) arms: Vec<(String, u64, u64, u64)>,
    /// Arm (empty before the start), unit, metric (empty for an exposure), count, sum.
    pub(super) totals: Vec<(String, String, String, u64, f64)>,
    /// Arm, and its rewards as a bandit's.
    pub(super) rewards: Vec<(String, Rewards)>,
}

/// A request that feedback may come for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Served {
    /// The experiment's name.
    pub(super) experiment: String,
    /// Empty before the experiment's start.
    pub(super) arm: String,
    /// The unit's hash.
    pub(super) unit: String,
    /// True where it counts in the analysis.
    pub(super) counted: bool,
}

/// The key of the totals of a unit under an arm of an experiment.
#[derive(Clone, Debug)]
pub(super) struct UnitTotals {
    /// The experiment's name.
    pub(super) experiment: String,
    /// The arm's name; empty before the start.
    pub(super) arm: String,
    /// The unit's hash.
    pub(super) unit: String,
}

impl UnitTotals {
    /// The key with these names.
    pub(super) fn of(experiment: &str, arm: &str, unit: &str) -> Self {
        let (experiment, arm) = (experiment.to_owned(), arm.to_owned());
        Self { experiment, arm, unit: unit.to_owned() }
    }
}

/// The outcome of feedback.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Noted {
    /// It is new, and was counted.
    New,
    /// The same value was there.
    Known,
    /// Another value was there, and stays.
    Other(f64),
}

/// A value of a metric for a request that was served.
#[derive(Clone, Debug)]
pub(super) struct Feedback {
    /// The reply's id.
    pub(super) request: String,
    /// The metric.
    pub(super) name: String,
    /// The metric's value, which was checked to be finite.
    pub(super) value: f64,
}
