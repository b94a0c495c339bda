//! The user's cache: its folder, and downloads that are put in place only when they are complete.

use std::fs::File;
use std::path::{Path, PathBuf};

/// The directory in which models are kept: `POLYSKILL_CACHE`, or `polyskill` in the user's cache
/// directory, which is `XDG_CACHE_HOME` or `~/.cache`; without a home, `.polyskill` in the working
/// directory. It may not exist yet.
pub fn cache_directory() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    variable("POLYSKILL_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("polyskill")))
        .or_else(|| Some(variable("HOME")?.join(".cache/polyskill")))
        .unwrap_or_else(|| PathBuf::from(".polyskill"))
}

/// The file system failed at a path.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}", path = path.display())]
pub struct CacheError {
    /// The path that was read or written.
    pub path: PathBuf,
    /// The system's reason.
    pub source: std::io::Error,
}

/// A failure of the file system at a path, for `map_err`.
pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> CacheError + '_ {
    move |source| CacheError { path: path.to_owned(), source }
}

/// A folder for a download, in the directory where it belongs, so that a rename puts it in place.
/// It goes when this is dropped.
#[derive(Debug)]
pub struct Staging {
    /// The folder, with a name of its own.
    folder: tempfile::TempDir,
    /// Shared lock on the directory's `.lock`, held as long as the folder is in use, whichever way
    /// the process ends.
    _lock: File,
}

/// The beginning of the names of such folders; what a killed process left is known by it.
const STAGING_PREFIX: &str = ".partial-";

impl Staging {
    /// Makes a folder in `directory`, and removes those that killed downloads have left.
    ///
    /// Leftovers are removed only if no other process has a folder there, as the lock tells.
    ///
    /// # Errors
    /// If the file system fails.
    pub fn new(directory: &Path) -> Result<Self, CacheError> {
        std::fs::create_dir_all(directory).map_err(io(directory))?;
        let path = directory.join(".lock");
        let lock = File::create(&path).map_err(io(&path))?;
        // Alone here: no folder belongs to a download that still runs.
        if lock.try_lock().is_ok() {
            remove_leftovers(directory);
            lock.unlock().map_err(io(&path))?;
        }
        // Some file systems have no locks; nothing is removed there.
        let _ = lock.lock_shared();
        let folder = tempfile::Builder::new()
            .prefix(STAGING_PREFIX)
            .tempdir_in(directory)
            .map_err(io(directory))?;
        Ok(Self { folder, _lock: lock })
    }

    /// The folder, which goes with this guard.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

#[cfg(test)]
impl Staging {
    /// Leaves the folder, as a process does that is killed.
    pub(crate) fn leave_as_if_killed(self) {
        let Self { folder, _lock: lock } = self;
        std::mem::forget(folder);
        drop(lock);
    }
}

/// Removes folders of downloads. The caller must hold the lock alone.
fn remove_leftovers(directory: &Path) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries {
        if entry.file_name().to_string_lossy().starts_with(STAGING_PREFIX) {
            // What cannot be removed takes space and is never used.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
