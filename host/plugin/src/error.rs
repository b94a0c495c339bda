//! Reasons for which a plugin is not loaded.

use std::path::PathBuf;

/// A plugin that cannot be loaded; whatever was served before goes on.
///
/// Faults of a plugin that is loaded are a [`Fault`](crate::Fault). Each message names the plugin
/// and is fit for an operator's eyes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("plugin {path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The manifest is not usable.
    #[error("plugin manifest {path}: {reason}", path = path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// The value that was found and the one that was expected.
        reason: String,
    },
    /// The bytes are no plugin.
    #[error("plugin `{name}`: {reason}")]
    NotAPlugin {
        /// The plugin.
        name: String,
        /// The value that was found and the one that was expected.
        reason: String,
    },
    /// The plugin speaks another version of the interface.
    #[error(
        "plugin `{name}` exports {found}, this host accepts polyskill:router/planner@0.1.x; rebuild it with polyskill-sdk 0.1"
    )]
    Version {
        /// The plugin.
        name: String,
        /// The names that it exports, or its `abi`.
        found: String,
    },
    /// wasmtime refused the plugin.
    #[error("plugin `{name}`: {reason}")]
    Compile {
        /// The plugin.
        name: String,
        /// wasmtime's reason, with its causes.
        reason: String,
    },
    /// The plugin speaks another version of the flat ABI.
    #[error(
        "plugin `{name}` exports {found}; this host accepts flat ABI 1: `polyskill_v1_init` and `polyskill_v1_plan`, see polyskill.h"
    )]
    FlatVersion {
        /// The plugin.
        name: String,
        /// The functions that it exports under other versions, or the one that is missing.
        found: String,
    },
    /// The operator does not trust the plugin.
    #[error("plugin `{name}` is refused: {reason}")]
    Untrusted {
        /// The plugin.
        name: String,
        /// The reason, and a remedy.
        reason: String,
    },
}
