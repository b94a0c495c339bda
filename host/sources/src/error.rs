//! Why a module does not come from its source.

use std::path::{Path, PathBuf};

use super::source::redact;

/// A module that was not fetched. Secrets in URLs are not shown.
#[derive(Debug, thiserror::Error)]
#[error("module source `{origin}`: {reason}")]
pub struct SourceError {
    /// The source, as it is displayed.
    pub origin: String,
    /// What was wrong with it.
    pub reason: Reason,
}

/// What was wrong with a source. Nothing of it stays in the staging directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The text names no source.
    #[error("{0}")]
    Malformed(String),
    /// The policy does not allow it.
    #[error("not allowed: {0}")]
    NotAllowed(String),
    /// There is nothing.
    #[error("not found: {0}")]
    NotFound(String),
    /// What is there is no module, or is made to do harm. All that was found wrong.
    #[error("{}", .0.join("; "))]
    Unusable(Vec<String>),
    /// It is larger than the limits allow.
    #[error("{what}: more than {most}, which `{limit}` allows")]
    TooLarge {
        /// A file, or what is counted.
        what: String,
        /// The bound, bytes unless `what` says what is counted.
        most: u64,
        /// The field of the limits.
        limit: &'static str,
    },
    /// The bytes are not those that were pinned, or that a manifest names.
    #[error("{what} has {found}, expected {expected}")]
    Digest {
        /// What was hashed.
        what: String,
        /// The digest found.
        found: String,
        /// The digest expected.
        expected: String,
    },
    /// A server, a store or the way to it failed.
    #[error("{0}")]
    Unreachable(String),
    /// It took longer than the limits allow.
    #[error("not fetched within {seconds} s, which `timeout_seconds` allows")]
    TimedOut {
        /// The limit.
        seconds: u64,
    },
    /// Nobody waits for it any more.
    #[error("cancelled")]
    Cancelled,
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl Reason {
    /// One thing that makes a module unusable.
    pub(super) fn unusable(problem: impl Into<String>) -> Self {
        Self::Unusable(vec![problem.into()])
    }

    /// A failure of somebody else's code, which may quote URLs.
    pub(super) fn unreachable(error: &dyn std::error::Error) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let more = error.to_string();
            if !text.contains(&more) {
                text = format!("{text}: {more}");
            }
            cause = error.source();
        }
        Self::Unreachable(redact(&text))
    }

    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    /// With the source that it is about.
    pub(super) fn at(self, origin: impl std::fmt::Display) -> SourceError {
        SourceError { origin: origin.to_string(), reason: self }
    }
}
