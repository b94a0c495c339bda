//! Why something cannot be done with an experiment.

/// Why something cannot be done with an experiment.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExperimentError {
    /// There is none of this name.
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
    /// A request asks for an arm that there is not.
    #[error("experiment `{experiment}` has no arm `{arm}`")]
    NoArm {
        /// The experiment.
        experiment: String,
        /// What was asked for.
        arm: String,
    },
    /// Feedback on a request that is not known, or no longer.
    #[error(
        "there is no request `{0}` of an experiment; feedback is joined with the latest requests only"
    )]
    UnknownRequest(String),
    /// Feedback that the experiment does not wait for.
    #[error("experiment `{experiment}` takes no feedback on `{name}`, but on {measured}")]
    NoMetric {
        /// The experiment.
        experiment: String,
        /// The name in the feedback.
        name: String,
        /// What there is.
        measured: String,
    },
    /// A value that the metric cannot have.
    #[error("`{name}` is {value}, expected {expected}")]
    Value {
        /// The metric.
        name: String,
        /// What was found.
        value: f64,
        /// Its bounds.
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
        /// What was found.
        value: f64,
    },
    /// The store failed.
    #[error("{0}")]
    Store(String),
}
