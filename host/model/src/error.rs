//! Errors of reading a base model.

use std::path::{Path, PathBuf};

/// A base model that cannot be loaded, and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory could not be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file's bytes are not what its format says.
    #[error("{path}: {reason}", path = path.display())]
    Malformed {
        /// The offending file.
        path: PathBuf,
        /// The value that was found and the one that was expected.
        reason: String,
    },
    /// The model uses something that this build does not implement.
    #[error("{what} `{found}` is not supported (supported: {supported})")]
    Unsupported {
        /// The setting's name, as the configuration or the metadata spells it.
        what: String,
        /// Its value in the model.
        found: String,
        /// The values that would be accepted.
        supported: String,
    },
    /// A tensor that the architecture needs is not in the files.
    #[error("tensor `{name}` is missing")]
    MissingTensor {
        /// The tensor's canonical name.
        name: String,
    },
    /// A tensor has another shape than the configuration implies.
    #[error("tensor `{name}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The tensor's name in the file.
        name: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape that the configuration implies.
        expected: Vec<usize>,
    },
    /// Experts that are to be kept are not those of the base: a layer is not sparse, a number is
    /// too large, the list is empty or does not ascend.
    #[error("experts that are kept: {0}")]
    KeptExperts(String),
    /// A tensor holds a value that is not finite.
    #[error("tensor `{name}` holds a value that is not finite")]
    NotFinite {
        /// The tensor's name.
        name: String,
    },
}

impl Error {
    /// A file that the system does not give.
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    /// A file whose bytes do not fit its format; the reason follows the path in the message.
    pub(crate) fn malformed(path: &Path, reason: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), reason: reason.into() }
    }

    /// A setting with a value that nothing here computes. `supported` lists what would be accepted,
    /// for a reader who edits the configuration.
    pub(crate) fn unsupported(
        what: impl Into<String>,
        found: impl Into<String>,
        supported: impl Into<String>,
    ) -> Self {
        Self::Unsupported { what: what.into(), found: found.into(), supported: supported.into() }
    }
}
