//! The folders of bundles: written, copied and unpacked whole.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use polyskill_plugin::SIGNATURE_FILE;

/// Files and folders that are listed of a bundle at most. No bundle has so many: a folder that does
/// is another one, and nothing in it is to be removed.
const MAX_LISTED: usize = 4_096;
/// Folders below a bundle's own that are listed at most, one in the other.
const MAX_DEPTH: usize = 8;

/// Makes a folder hold these files and no others, by their paths with `/`.
///
/// Each file changes in one go, and only where it differs: a server may be watching. The folder as
/// a whole does not, so that server may see some files new and others old. A signature stays unless
/// a file was written or removed; hidden files stay.
pub(super) fn replace_folder(
    folder: &Path,
    files: &BTreeMap<String, Vec<u8>>,
) -> Result<(), String> {
    let fail = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let before = if folder.is_dir() { list(folder)? } else { BTreeMap::new() };
    let is_stale = |name: &String| !files.contains_key(name) && name != SIGNATURE_FILE;
    let mut changed = before.keys().any(is_stale);
    for (name, content) in files {
        let path = folder.join(name);
        if fs::read(&path).is_ok_and(|old| old == *content) {
            continue;
        }
        changed = true;
        let parent = path.parent().unwrap_or(folder);
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let fresh = parent.join(format!(".{file}.new"));
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&fresh, content))
            .and_then(|()| fs::rename(&fresh, &path))
            .map_err(|error| fail(&path, error))?;
    }
    // A signature stays for as long as it fits.
    let kept = |name: &String| files.contains_key(name) || (name == SIGNATURE_FILE && !changed);
    for name in before.into_keys().filter(|name| !kept(name)) {
        let path = folder.join(name);
        fs::remove_file(&path).map_err(|error| fail(&path, error))?;
    }
    Ok(())
}

/// Copies a bundle's folder.
pub(super) fn copy_folder(from: &Path, to: &Path) -> Result<(), String> {
    let read = |(name, path): (String, PathBuf)| Ok((name, read(&path)?));
    let files = list(from)?.into_iter().map(read).collect::<Result<_, String>>()?;
    replace_folder(to, &files)
}

/// Copies a bundle in a form that can be signed, and returns the copy's path: a folder or a tar's
/// files become the folder `to`, and a bare file goes into it as it is.
pub(super) fn copy_to_sign(from: &Path, to: &Path) -> Result<PathBuf, String> {
    if from.is_dir() {
        copy_folder(from, to)?;
    } else if from.extension().is_some_and(|extension| extension == "tar") {
        replace_folder(to, &unpack(from)?)?;
    } else {
        let file = from.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let copy = to.join(&file);
        replace_folder(to, &BTreeMap::from([(file, read(from)?)]))?;
        return Ok(copy);
    }
    Ok(to.to_owned())
}

/// The files of a bundle's tar, by their paths with `/`.
///
/// # Errors
/// If it cannot be read, or holds what is no plain file or lies outside of the bundle.
fn unpack(path: &Path) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let fail = |error: std::io::Error| format!("{}: {error}", path.display());
    let bytes = read(path)?;
    let mut archive = tar::Archive::new(bytes.as_slice());
    let mut files = BTreeMap::new();
    for entry in archive.entries().map_err(fail)? {
        let mut entry = entry.map_err(fail)?;
        let name = entry.path().map_err(fail)?.into_owned();
        let is_inside = name.components().all(|part| matches!(part, Component::Normal(_)));
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            continue;
        }
        if !kind.is_file() || !is_inside {
            let (path, name) = (path.display(), name.display());
            return Err(format!("{path}: `{name}`, expected a plain file inside of the bundle"));
        }
        let mut content = Vec::new();
        // The archive is in memory, so that a plain file cannot be larger than it.
        entry.read_to_end(&mut content).map_err(fail)?;
        files.insert(name.to_string_lossy().into_owned(), content);
    }
    Ok(files)
}

/// The files of a bundle's folder, by their paths with `/`; hidden ones are left out, and so is
/// what hidden folders hold. Names that are not UTF-8 are of no bundle.
///
/// # Errors
/// If it cannot be read, or holds more than a bundle does.
fn list(root: &Path) -> Result<BTreeMap<String, PathBuf>, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![(root.to_owned(), String::new(), 0)];
    let mut seen = 0;
    while let Some((folder, prefix, depth)) = folders.pop() {
        let entries = fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        for entry in entries.flatten() {
            let Ok(file) = entry.file_name().into_string() else { continue };
            let name = format!("{prefix}{file}");
            if file.starts_with('.') {
                continue;
            }
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            seen += 1;
            if seen > MAX_LISTED || (is_folder && depth == MAX_DEPTH) {
                let root = root.display();
                return Err(format!(
                    "{root}: `{name}` is too deep or one too many, expected a bundle's folder with \
                     at most {MAX_LISTED} files, {MAX_DEPTH} folders deep"
                ));
            }
            if is_folder {
                folders.push((entry.path(), format!("{name}/"), depth + 1));
            } else {
                found.insert(name, entry.path());
            }
        }
    }
    Ok(found)
}

/// A file's bytes.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> BTreeMap<String, Vec<u8>> {
        names.iter().map(|name| ((*name).to_owned(), name.as_bytes().to_vec())).collect()
    }

    #[test]
    fn a_signature_stays_for_as_long_as_it_fits() {
        let folder = tempfile::tempdir().unwrap();
        let signature = folder.path().join(SIGNATURE_FILE);
        let (all, fewer) = (files(&["a", "fixtures/b.json"]), files(&["a"]));
        replace_folder(folder.path(), &all).unwrap();
        fs::write(&signature, "of both").unwrap();
        replace_folder(folder.path(), &all).unwrap();
        assert!(signature.exists());
        replace_folder(folder.path(), &fewer).unwrap();
        assert!(!signature.exists(), "it was of a file that is gone");
        assert_eq!(list(folder.path()).unwrap().into_keys().collect::<Vec<_>>(), ["a"]);
        fs::write(&signature, "of one").unwrap();
        replace_folder(folder.path(), &all).unwrap();
        assert!(!signature.exists(), "it was of fewer files");
        // One that is copied with its files is theirs.
        let signed = files(&["a", SIGNATURE_FILE]);
        replace_folder(folder.path(), &signed).unwrap();
        assert!(signature.exists());
    }

    #[test]
    fn a_folder_that_is_no_bundle_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/".repeat(MAX_DEPTH + 1));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("kept"), "").unwrap();
        let refused = replace_folder(folder.path(), &files(&["new"])).unwrap_err();
        assert!(refused.contains("expected a bundle's folder"), "{refused}");
        assert!(deep.join("kept").exists() && !folder.path().join("new").exists());
        let many = tempfile::tempdir().unwrap();
        for number in 0..=MAX_LISTED {
            fs::write(many.path().join(number.to_string()), "").unwrap();
        }
        assert!(list(many.path()).unwrap_err().contains("4096 files"));
    }
}
