//! Reasons for which a module does not come from its source.

use std::path::{Path, PathBuf};

use super::source::redact;

/// A module that was not fetched. Secrets in URLs are not shown.
#[derive(Debug, thiserror::Error)]
#[error("module source `{origin}`: {reason}")]
pub struct SourceError {
    /// The source, as it is displayed: without secrets.
    pub origin: String,
    /// The reason for which nothing came.
    pub reason: Reason,
}

/// The reason for which a source gave no module. Nothing of it stays in the staging directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// The text names no source.
    #[error("{0}")]
    Malformed(String),
    /// The policy does not allow it.
    #[error("not allowed: {0}")]
    NotAllowed(String),
    /// The place can be asked and has nothing of the name.
    #[error("not found: {0}")]
    NotFound(String),
    /// There is something, and it is no module or is made to do harm. All that was found wrong,
    /// each as one sentence.
    #[error("{}", .0.join("; "))]
    Unusable(Vec<String>),
    /// It is larger than the limits allow. Often found before any of it is read, by a declared
    /// length.
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
        /// The thing that was hashed.
        what: String,
        /// Its digest, `sha256:HEX`.
        found: String,
        /// The digest expected, `sha256:HEX`.
        expected: String,
    },
    /// A server, a store or the way to it failed.
    #[error("{0}")]
    Unreachable(String),
    /// It took longer than the limits allow.
    #[error("not fetched within {seconds} s, which `timeout_seconds` allows")]
    TimedOut {
        /// The limit for the whole fetch.
        seconds: u64,
    },
    /// The caller dropped the future, so nobody waits for it any more.
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
    /// A module that is unusable for one reason.
    pub(super) fn unusable(problem: impl Into<String>) -> Self {
        Self::Unusable(vec![problem.into()])
    }

    /// A failure of somebody else's code, with its causes in one line. Such errors may quote URLs,
    /// so secrets are taken out.
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

    /// A failure of the file system at a path, for `map_err`.
    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    /// The error with the source that it is about.
    pub(super) fn at(self, origin: impl std::fmt::Display) -> SourceError {
        SourceError { origin: origin.to_string(), reason: self }
    }
}
