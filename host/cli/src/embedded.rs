//! Routers inside of the program, in builds with the feature `embed-routers`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use polyskill_plugin::bundle_digest;
use polyskill_sources::cache::cache_directory;

/// A bundle: its name, and its files by their paths in it.
type Embedded = (&'static str, &'static [(&'static str, &'static [u8])]);

/// The bundles; none without the feature.
const ROUTERS: &[Embedded] = include!(concat!(env!("OUT_DIR"), "/routers.rs"));

/// The embedded bundles as a folder, and the digests that a server may load without a signature:
/// those of what is in this program, so that a file that somebody changed is refused.
///
/// The folder lies in the cache and is named by the digests. `None` where nothing is embedded.
///
/// # Errors
/// If the folder cannot be written.
pub(crate) fn unpacked() -> Result<Option<(PathBuf, Vec<String>)>, String> {
    if ROUTERS.is_empty() {
        return Ok(None);
    }
    let digests: Vec<String> = ROUTERS.iter().map(|(_, files)| digest(files)).collect();
    let all = BTreeMap::from([("digests".to_owned(), digests.concat().into_bytes())]);
    let folder = cache_directory().join("routers").join(&bundle_digest(&all)[..16]);
    for (name, files) in ROUTERS {
        for (path, content) in *files {
            write(&folder.join(name).join(path), content)?;
        }
    }
    Ok(Some((folder, digests)))
}

/// The digest of a bundle, as the loader takes it.
fn digest(files: &[(&str, &[u8])]) -> String {
    let files = files.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec()));
    bundle_digest(&files.collect())
}

/// Writes a file in one go, unless it is there: other programs may read it.
fn write(path: &Path, content: &[u8]) -> Result<(), String> {
    let fail = |error: std::io::Error| format!("{}: {error}", path.display());
    if std::fs::read(path).is_ok_and(|found| found == content) {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    std::fs::create_dir_all(folder).map_err(fail)?;
    let mut fresh = tempfile::NamedTempFile::new_in(folder).map_err(fail)?;
    std::io::Write::write_all(&mut fresh, content).map_err(fail)?;
    fresh.persist(path).map(drop).map_err(|error| fail(error.error))
}
