//! Errors: reasons for which a module is refused, or the library stays as it is.

use std::path::{Path, PathBuf};

/// A module that cannot be loaded; the library is unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read. Also where a link's target is missing.
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
    /// Modules that cannot be made into new ones, as in a merge; nothing was written.
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
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// The weights were to be read again and are gone or changed.
    #[error("the weights of a module could not be read again")]
    Gone,
    /// Modules that, beside what is pinned, never fit the budget; waiting would not help.
    #[error(
        "these modules and what is pinned need {needed} bytes together, and the budget is {most}"
    )]
    TooLarge {
        /// Bytes of the modules and of what is pinned.
        needed: usize,
        /// The budget.
        most: usize,
    },
    /// The modules fit the budget, but requests held the room for longer than
    /// [`Budget::max_wait`](crate::Budget::max_wait).
    #[error("no room for the modules was found within {} s", waited.as_secs_f32())]
    NoRoom {
        /// The time that the request waited.
        waited: std::time::Duration,
    },
    /// The line for memory is full; the request never stood in it.
    #[error("{waiting} requests wait for room for their modules already, which is the limit")]
    TooManyWaiting {
        /// The limit.
        waiting: usize,
    },
    /// The name is taken, by a module or for an alias, and replacing was not asked for.
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
