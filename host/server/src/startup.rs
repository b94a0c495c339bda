//! Reports of a start.

use std::fmt;

/// A report of a start while it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartupEvent {
    /// The stage that begins or has just ended.
    Stage(String),
    /// A module, alias or router that cannot be served, with the reason. The start goes on without
    /// it.
    LeftOut(String),
}

impl fmt::Display for StartupEvent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stage(stage) => formatter.write_str(stage),
            Self::LeftOut(reason) => write!(formatter, "left out: {reason}"),
        }
    }
}

/// A listener to a start. It is called on the thread that starts the server.
pub type Report<'a> = dyn FnMut(StartupEvent) + 'a;
