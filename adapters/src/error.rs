//! Why a module is refused.

use std::path::{Path, PathBuf};

/// A module that cannot be loaded; the library is unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("adapter `{name}`: cannot read {path}: {source}", path = path.display())]
    Io {
        /// The module.
        name: String,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Files or settings that cannot be served, all of them at once.
    #[error("adapter `{name}`: {}", problems.join("; "))]
    Refused {
        /// The module.
        name: String,
        /// One sentence per problem: the thing, what was found, what was expected.
        problems: Vec<String>,
    },
    /// Modules that cannot be made into new ones; nothing was written.
    #[error("no module is written: {}", problems.join("; "))]
    Transform {
        /// One sentence per problem: the thing, what was found, what was expected.
        problems: Vec<String>,
    },
    /// Modules that cannot be compared.
    #[error("{}", problems.join("; "))]
    Incomparable {
        /// One sentence per problem.
        problems: Vec<String>,
    },
    /// A name that the library does not accept.
    #[error("adapter name `{name}`: {reason}")]
    BadName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The weights were to be read again and are gone or changed.
    #[error("the weights of a module could not be read again")]
    Gone,
    /// More modules than memory is set aside for.
    #[error(
        "these modules and what is pinned need {needed} bytes together, and the budget is {most}"
    )]
    TooLarge {
        /// Bytes of the modules and of what is pinned.
        needed: usize,
        /// The budget.
        most: usize,
    },
    /// No room was found in time.
    #[error("no room for the modules was found within {} s", waited.as_secs_f32())]
    NoRoom {
        /// How long the request waited.
        waited: std::time::Duration,
    },
    /// The line for memory is full.
    #[error("{waiting} requests wait for room for their modules already, which is the limit")]
    TooManyWaiting {
        /// The limit.
        waiting: usize,
    },
    /// The name is taken and replacing was not asked for.
    #[error("adapter `{name}` is already loaded")]
    AlreadyLoaded {
        /// The name.
        name: String,
    },
    /// Nothing is loaded under the name.
    #[error("adapter `{name}` is not loaded")]
    NotFound {
        /// The name.
        name: String,
    },
    /// The name points to another generation than the caller expected.
    #[error("adapter `{name}` is at generation {found}, expected {expected}")]
    GenerationMismatch {
        /// The name.
        name: String,
        /// The current generation.
        found: String,
        /// The generation that the caller expected.
        expected: String,
    },
}

impl Error {
    /// A file of a module could not be read.
    pub fn io(name: &str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { name: name.to_owned(), path: path.to_owned(), source }
    }

    /// A module is refused for these problems.
    pub fn refused(name: &str, problems: Vec<String>) -> Self {
        Self::Refused { name: name.to_owned(), problems }
    }
}
