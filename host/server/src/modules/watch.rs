//! Watches the directories of modules: what appears or changes is loaded, what goes is unloaded.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use polyskill_adapters::library::Expected;
use serde_json::json;

use super::state::Saved;
use super::{Modules, lock, modules_in};

/// The time between two looks at the directories.
const INTERVAL: Duration = Duration::from_millis(300);
/// Files and folders that are looked at per module; changes of others are not seen.
const MAX_FILES: usize = 64;

/// A watcher's last sight of each module in the directories, by name.
#[derive(Debug, Default)]
pub struct Seen(BTreeMap<String, Sight>);

/// A module's files at the last look.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Sight {
    /// The fingerprint then.
    print: Fingerprint,
    /// True where it was changing at the last look: the next one tells whether it is complete.
    is_changing: bool,
}

/// Paths, sizes and times of change of a module's files, sorted by path.
type Fingerprint = Vec<(PathBuf, u64, Option<SystemTime>)>;

impl Modules {
    /// A sight of the directories now, in which nothing is changing: no module of it is loaded
    /// until it changes.
    pub fn seen(&self) -> Seen {
        let found = self.directories.iter().filter_map(|directory| modules_in(directory).ok());
        let mut seen = BTreeMap::new();
        for (name, path) in found.flatten() {
            let sight = || Sight { print: fingerprint(&path), is_changing: false };
            seen.entry(name).or_insert_with(sight);
        }
        Seen(seen)
    }

    /// Looks once, and tells the routers where the library changed; true where it did.
    pub fn look(&self, seen: &mut Seen) -> bool {
        let changed = self.take_changes(seen);
        if changed {
            self.changed();
        }
        changed
    }

    /// Loads and unloads modules as the directories say; true where the library changed.
    ///
    /// A module is loaded at the second look that finds it unchanged, so that none is read while it
    /// is being copied. While any directory cannot be read, nothing is done.
    fn take_changes(&self, seen: &mut Seen) -> bool {
        let mut changed = false;
        let mut present = BTreeMap::new();
        for directory in &self.directories {
            // A directory that cannot be read for a moment has lost nothing.
            let Ok(found) = modules_in(directory) else { return changed };
            for (name, path) in found {
                present.entry(name).or_insert((path, directory));
            }
        }
        for (name, (path, directory)) in &present {
            let print = fingerprint(path);
            let before = seen.0.get(name);
            let is_new = before.is_none_or(|before| before.print != print);
            let is_complete = !is_new && before.is_some_and(|before| before.is_changing);
            seen.0.insert(name.clone(), Sight { print, is_changing: is_new });
            if is_complete && !self.is_replaced(name, &lock(&self.saved)) {
                changed |= self.watched(name, path, directory);
            }
        }
        let gone: Vec<String> =
            seen.0.keys().filter(|name| !present.contains_key(*name)).cloned().collect();
        for name in gone {
            seen.0.remove(&name);
            // Nobody publishes under the name between the look and the removal.
            let saved = lock(&self.saved);
            if !self.is_replaced(&name, &saved) {
                changed |= self.library.remove(&name, Expected::Any).is_ok();
                lock(&self.provenance).remove(&name);
                lock(&self.failures).remove(&name);
                self.audit.record(json!({"action": "unload_module", "by": "watch", "name": name}));
            }
        }
        changed
    }

    /// True where somebody loaded or unloaded the name at run time: that outlives what lies in a
    /// directory.
    fn is_replaced(&self, name: &str, saved: &Saved) -> bool {
        let at_run_time = self.provenance(name).is_some_and(|one| one.at_run_time);
        at_run_time || saved.removed.contains(name)
    }

    /// Loads a module that has changed, and writes the outcome to the audit log; true where it
    /// serves.
    fn watched(&self, name: &str, path: &Path, root: &Path) -> bool {
        let loaded = self.load_directory(name, path, root);
        self.audit.record(json!({
            "action": "load_module", "by": "watch", "name": name,
            "generation": loaded.as_ref().ok().map(|one| one.module.generation().to_string()),
            "served": loaded.is_ok(),
            "error": loaded.as_ref().err().map(ToString::to_string),
        }));
        match loaded {
            Ok(_) => true,
            Err(error) => {
                tracing::error!(adapter = name, %error, "not loaded");
                self.failed(name, &error);
                false
            }
        }
    }
}

/// Watches the directories of modules on a thread of its own, until the server is gone. Only a weak
/// reference is held between looks.
///
/// # Errors
/// If the system has no thread left.
pub fn watch<S: Send + Sync + 'static>(
    service: &Arc<S>,
    modules: impl Fn(&S) -> &Modules + Send + 'static,
) -> std::io::Result<()> {
    let service: Weak<S> = Arc::downgrade(service);
    let run = move || {
        let mut seen = service.upgrade().map_or_else(Seen::default, |s| modules(&s).seen());
        while let Some(service) = service.upgrade() {
            modules(&service).look(&mut seen);
            drop(service);
            std::thread::sleep(INTERVAL);
        }
    };
    std::thread::Builder::new().name("module-watch".to_owned()).spawn(run).map(drop)
}

/// The fingerprint of a module, with the files in its folders. Links are not followed. Contents are
/// not read: a change that keeps size and time is not seen.
fn fingerprint(path: &Path) -> Fingerprint {
    let mut files = Vec::new();
    let mut pending = vec![path.to_owned()];
    while let Some(path) = pending.pop() {
        let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            let entries = std::fs::read_dir(&path).into_iter().flatten();
            pending.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
        } else {
            files.push((path, metadata.len(), metadata.modified().ok()));
        }
        if files.len() + pending.len() > MAX_FILES {
            break;
        }
    }
    files.sort();
    files
}
