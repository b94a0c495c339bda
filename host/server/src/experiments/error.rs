//! Errors of experiments.

/// A reason for which something cannot be done with an experiment.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExperimentError {
    /// There is no experiment of this name.
    #[error("there is no experiment `{0}`")]
    Unknown(String),
    /// The declaration is not usable.
    #[error("experiment `{name}`: {}", problems.join("; "))]
    Invalid {
        /// The experiment.
        name: String,
        /// Every reason.
        problems: Vec<String>,
    },
    /// A request or a stop names an arm that does not exist, or a stop names the control.
    #[error("experiment `{experiment}` has no arm `{arm}`")]
    NoArm {
        /// The experiment.
        experiment: String,
        /// The arm's name in the request.
        arm: String,
    },
    /// Feedback on a request that is not known, or no longer.
    #[error(
        "there is no request `{0}` of an experiment; feedback is joined with the latest requests only"
    )]
    UnknownRequest(String),
    /// Feedback on a metric that the experiment does not have, or that the server measures.
    #[error("experiment `{experiment}` takes no feedback on `{name}`, but on {measured}")]
    NoMetric {
        /// The experiment.
        experiment: String,
        /// The name in the feedback.
        name: String,
        /// The metrics that feedback is taken on, as a list for people.
        measured: String,
    },
    /// A value that the metric cannot have.
    #[error("`{name}` is {value}, expected {expected}")]
    Value {
        /// The metric.
        name: String,
        /// The value in the feedback.
        value: f64,
        /// The metric's bounds.
        expected: String,
    },
    /// Feedback that says something else than was said before.
    #[error("`{name}` of request `{request}` was {known} before, and stays so; found {value}")]
    Contradiction {
        /// The request.
        request: String,
        /// The metric.
        name: String,
        /// The value that stays.
        known: f64,
        /// The value in the feedback, which is dropped.
        value: f64,
    },
    /// The store failed; the text may name files.
    #[error("{0}")]
    Store(String),
}
