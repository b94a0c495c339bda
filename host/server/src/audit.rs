//! The audit log: the author and the outcome of every load, replacement and removal, one line of
//! JSON each.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde_json::{Value as Json, json};

/// A log that is appended to; without a file every event is dropped.
#[derive(Debug, Default)]
pub struct Audit(Option<Mutex<File>>);

impl Audit {
    /// Opens the log for appending, and makes the file where there is none. `None` is no log.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn open(path: Option<&Path>) -> Result<Self, String> {
        let Some(path) = path else { return Ok(Self(None)) };
        let file = File::options().create(true).append(true).open(path);
        let file = file.map_err(|error| format!("audit_log {}: {error}", path.display()))?;
        Ok(Self(Some(Mutex::new(file))))
    }

    /// Writes one event, with the time in seconds since 1970 under `time`. `event` is a JSON
    /// object.
    ///
    /// The line is handed to the system, and not waited for to reach the disk. A failure is logged,
    /// and the change that it tells of stands.
    pub fn record(&self, mut event: Json) {
        let Some(file) = &self.0 else { return };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        event["time"] = json!(now.map_or(0, |since| since.as_secs()));
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = writeln!(file, "{event}").and_then(|()| file.flush()) {
            tracing::error!(%error, "the audit log cannot be written");
        }
    }
}
