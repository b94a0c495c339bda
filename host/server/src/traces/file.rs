//! The file of traces: written by a thread of its own, and moved aside when it is full.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::Trace;

/// Traces that wait for the disk; more are lost.
const MAX_WAITING: usize = 256;

/// Work of the writing thread.
#[derive(Debug)]
enum Work {
    /// A trace to append.
    Write(Arc<Trace>),
    /// An answer once everything before is written.
    Answer(SyncSender<()>),
}

/// Appends traces on a thread of its own, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Writer {
    /// The queue of that thread.
    sender: SyncSender<Work>,
}

impl Writer {
    /// Opens the file for appending and starts the thread. `most` is the size in bytes at which the
    /// file is moved aside.
    pub(super) fn open(path: &Path, most: u64) -> Result<Self, String> {
        let fail = |error: std::io::Error| format!("traces {}: {error}", path.display());
        let file = append(path).map_err(fail)?;
        let (sender, work) = sync_channel(MAX_WAITING);
        let name = path.to_owned();
        let write = move || write_all(&name, file, most, &work);
        let thread = std::thread::Builder::new().name("trace file".to_owned()).spawn(write);
        thread.map_err(fail)?;
        Ok(Self { sender })
    }

    /// Queues a trace; `false` where too many wait already.
    pub(super) fn send(&self, trace: Arc<Trace>) -> bool {
        self.sender.try_send(Work::Write(trace)).is_ok()
    }

    /// Waits until everything so far is written.
    pub(super) fn flush(&self) {
        let (sender, written) = sync_channel(1);
        if self.sender.send(Work::Answer(sender)).is_ok() {
            let _ = written.recv();
        }
    }
}

/// Opens a file for appending, and makes it where there is none.
fn append(path: &Path) -> std::io::Result<File> {
    File::options().create(true).append(true).open(path)
}

/// Writes until nobody can queue any more. A trace that cannot be written is logged and left out.
fn write_all(path: &Path, mut file: File, most: u64, work: &Receiver<Work>) {
    while let Ok(work) = work.recv() {
        match work {
            Work::Write(trace) => {
                if let Err(error) = write(path, &mut file, most, &trace) {
                    tracing::error!(%error, "a trace was not written");
                }
            }
            Work::Answer(sender) => drop(sender.send(())),
        }
    }
}

/// Appends a trace as one line. A file that would grow beyond `most` bytes is moved to `FILE.1`
/// first; a line that is longer has a file alone.
fn write(path: &Path, file: &mut File, most: u64, trace: &Trace) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(trace)?;
    line.push(b'\n');
    let length = file.metadata()?.len();
    if length > 0 && length + line.len() as u64 > most {
        let mut old = path.to_owned().into_os_string();
        old.push(".1");
        std::fs::rename(path, old)?;
        *file = append(path)?;
    }
    file.write_all(&line)
}
