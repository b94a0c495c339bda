//! The durable set: the modules that were loaded and unloaded at run time, so that a restart serves
//! the same.
//!
//! A directory with `modules.json` and `store/`, which has a folder with the files of each module
//! that was loaded at run time. The file is written under another name, flushed and renamed before
//! anybody is told of a change.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

/// The file of the durable set.
const FILE: &str = "modules.json";
/// The folder with the files of modules.
const STORE: &str = "store";
/// The version that is written, and the only one that is read.
const FORMAT_VERSION: u32 = 1;
/// Largest file of state; a larger one is refused unread.
const MAX_BYTES: u64 = 64 << 20;

/// `modules.json`. Maps and sets are ordered, so that equal states are equal files.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(super) struct Saved {
    /// [`FORMAT_VERSION`].
    format_version: u32,
    /// Modules that were loaded at run time, by name.
    pub(super) modules: BTreeMap<String, SavedModule>,
    /// Names that the configuration declares and somebody unloaded.
    pub(super) removed: BTreeSet<String>,
    /// Aliases that the configuration declares and that were taken away, alone or with their
    /// module.
    #[serde(default)]
    pub(super) removed_aliases: BTreeSet<String>,
    /// Aliases that were set at run time, with the module names that they stand for.
    pub(super) aliases: BTreeMap<String, String>,
    /// Pins that were set or lifted at run time, by the module's name.
    pub(super) pinned: BTreeMap<String, bool>,
}

/// A module that was loaded at run time.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedModule {
    /// The generation that was acknowledged, 64 hexadecimal digits.
    pub(super) generation: String,
    /// The name of its folder in the store, without a path.
    pub(super) folder: String,
    /// The name of the file in the folder, where the module is one (GGUF).
    pub(super) file: Option<String>,
    /// The source that it came from, for people; nothing is fetched from it again.
    pub(super) source: String,
}

impl Default for Saved {
    fn default() -> Self {
        Self {
            format_version: FORMAT_VERSION,
            modules: BTreeMap::new(),
            removed: BTreeSet::new(),
            removed_aliases: BTreeSet::new(),
            aliases: BTreeMap::new(),
            pinned: BTreeMap::new(),
        }
    }
}

/// The directory of the durable set, in use by this server alone.
#[derive(Debug)]
pub(super) struct StateDirectory {
    /// The configured path.
    root: PathBuf,
    /// Held open and locked: two servers must not write one state.
    _lock: File,
}

impl StateDirectory {
    /// Opens or makes the directory and reads its set. Folders of the store that nothing refers to
    /// are deleted.
    ///
    /// A set that cannot be read is an error, and the store stays as it is.
    pub(super) fn open(root: &Path) -> Result<(Self, Saved), String> {
        let fail = |what: &str, error: &dyn std::fmt::Display| {
            format!("state {}: {what}: {error}", root.display())
        };
        std::fs::create_dir_all(root.join(STORE))
            .map_err(|error| fail("cannot be made", &error))?;
        let lock = File::options().create(true).append(true).open(root.join("lock"));
        let lock = lock.map_err(|error| fail("cannot be locked", &error))?;
        lock.try_lock().map_err(|error| fail("another server uses it", &error))?;
        let path = root.join(FILE);
        let saved = match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Saved::default(),
            Err(error) => return Err(fail(FILE, &error)),
            Ok(metadata) if metadata.len() > MAX_BYTES => {
                return Err(fail(FILE, &format!("{} bytes, at most {MAX_BYTES}", metadata.len())));
            }
            Ok(_) => {
                let text = std::fs::read(&path).map_err(|error| fail(FILE, &error))?;
                serde_json::from_slice(&text).map_err(|error| fail(FILE, &error))?
            }
        };
        if saved.format_version != FORMAT_VERSION {
            let found = saved.format_version;
            return Err(fail(FILE, &format!("format {found}, expected {FORMAT_VERSION}")));
        }
        for module in saved.modules.values() {
            let parts = [Some(&module.folder), module.file.as_ref()];
            if let Some(bad) = parts.into_iter().flatten().find(|part| !is_plain(part)) {
                return Err(fail(FILE, &format!("`{bad}` is no plain name")));
            }
        }
        let directory = Self { root: root.to_owned(), _lock: lock };
        directory.collect_garbage(&saved);
        Ok((directory, saved))
    }

    /// The folder that the folders of modules lie in.
    pub(super) fn store(&self) -> PathBuf {
        self.root.join(STORE)
    }

    /// Makes a change durable: when this returns, a restart finds it. Where it fails, the set
    /// before stays.
    pub(super) fn write(&self, saved: &Saved) -> Result<(), String> {
        let written = || {
            let text = serde_json::to_vec_pretty(saved)?;
            let partial = self.root.join(format!(".{FILE}.partial"));
            let mut file = File::create(&partial)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&partial, self.root.join(FILE))?;
            sync_directory(&self.root)
        };
        written().map_err(|error: std::io::Error| {
            format!("state {}: cannot be written: {error}", self.root.display())
        })
    }

    /// Makes the files of a folder durable, with the entries of the folder and of the store.
    pub(super) fn sync_folder(&self, folder: &Path) -> Result<(), String> {
        let mut pending = vec![folder.to_owned()];
        let mut sync = || {
            while let Some(path) = pending.pop() {
                for entry in std::fs::read_dir(&path)? {
                    let entry = entry?;
                    match entry.file_type()?.is_dir() {
                        true => pending.push(entry.path()),
                        false => File::open(entry.path())?.sync_all()?,
                    }
                }
                sync_directory(&path)?;
            }
            sync_directory(&self.store())
        };
        sync().map_err(|error: std::io::Error| {
            format!("state {}: cannot be written: {error}", folder.display())
        })
    }

    /// Deletes the folders of the store that the set does not name, such as those of a load that a
    /// crash cut off. Files right in the store stay.
    fn collect_garbage(&self, saved: &Saved) {
        let used: BTreeSet<&str> = saved.modules.values().map(|one| one.folder.as_str()).collect();
        for entry in std::fs::read_dir(self.store()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let is_used = name.to_str().is_some_and(|name| used.contains(name));
            if is_used || entry.file_type().is_ok_and(|kind| kind.is_file()) {
                continue;
            }
            if let Err(error) = std::fs::remove_dir_all(entry.path()) {
                tracing::warn!(path = %entry.path().display(), %error, "left in the store");
            }
        }
    }
}

/// True for one component of a path, which leads nowhere else.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(_)), None))
}

/// Makes the entries of a directory durable; on other systems than Unix that is not needed, or not
/// possible.
fn sync_directory(path: &Path) -> std::io::Result<()> {
    match cfg!(unix) {
        true => File::open(path)?.sync_all(),
        false => Ok(()),
    }
}

/// A folder of the store. Its module and its provenance hold it; when it is doomed, it is deleted
/// with the last holder.
#[derive(Debug)]
pub(super) struct Folder {
    /// The folder.
    path: PathBuf,
    /// True where it is deleted with the last holder.
    doomed: AtomicBool,
}

impl Folder {
    /// A folder that stays.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, doomed: AtomicBool::new(false) }
    }

    /// Takes back [`Folder::doom`].
    pub(super) fn spare(&self) {
        self.doomed.store(false, Ordering::Relaxed);
    }

    /// Lets it be deleted when nothing holds it any more.
    pub(super) fn doom(&self) {
        self.doomed.store(true, Ordering::Relaxed);
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.doomed.load(Ordering::Relaxed)
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "left in the store");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(folder: &str) -> Saved {
        let module = SavedModule {
            generation: "ab".to_owned(),
            folder: folder.to_owned(),
            file: None,
            source: "here".to_owned(),
        };
        Saved { modules: BTreeMap::from([("a".to_owned(), module)]), ..Saved::default() }
    }

    #[test]
    fn what_was_written_is_found_and_the_rest_of_the_store_goes() {
        let root = tempfile::tempdir().unwrap();
        let (directory, none) = StateDirectory::open(root.path()).unwrap();
        assert_eq!(none, Saved::default());
        for folder in ["kept", "lost"] {
            std::fs::create_dir(directory.store().join(folder)).unwrap();
        }
        directory.write(&saved("kept")).unwrap();
        let busy = StateDirectory::open(root.path()).unwrap_err();
        assert!(busy.contains("another server"), "{busy}");
        drop(directory);
        let (directory, found) = StateDirectory::open(root.path()).unwrap();
        assert_eq!(found, saved("kept"));
        assert!(directory.store().join("kept").is_dir());
        assert!(!directory.store().join("lost").exists());
    }

    #[test]
    fn broken_state_is_refused_and_left_alone() {
        let root = tempfile::tempdir().unwrap();
        drop(StateDirectory::open(root.path()).unwrap());
        std::fs::create_dir(root.path().join("store/precious")).unwrap();
        let escape = serde_json::to_string(&saved("../up")).unwrap();
        let version = serde_json::to_string(&Saved { format_version: 9, ..Saved::default() });
        for text in ["", "{}", "[", &escape, &version.unwrap()] {
            std::fs::write(root.path().join(FILE), text).unwrap();
            let error = StateDirectory::open(root.path()).unwrap_err();
            assert!(error.contains(FILE), "{text}: {error}");
            assert!(root.path().join("store/precious").exists());
        }
    }

    #[test]
    fn a_doomed_folder_goes_with_its_last_holder() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("folder");
        std::fs::create_dir(&path).unwrap();
        drop(Folder::new(path.clone()));
        assert!(path.exists());
        let folder = std::sync::Arc::new(Folder::new(path.clone()));
        let holder = std::sync::Arc::clone(&folder);
        folder.doom();
        drop(folder);
        assert!(path.exists());
        drop(holder);
        assert!(!path.exists());
    }
}
