//! Plugin bundles: a directory or a tar with `plugin.toml`, the plugin's file and what it needs, or
//! a bare file.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::limits::Limits;
use crate::sandbox::hex;

/// The manifest's file.
pub const MANIFEST_FILE: &str = "plugin.toml";
/// The detached signature's file.
pub const SIGNATURE_FILE: &str = "plugin.sig";
/// The minor of the interface that this host speaks, of the WIT worlds and of the flat ABI alike.
pub const ABI: &str = "0.1";
/// Files in a bundle, at most, the manifest included.
const MAX_FILES: usize = 256;
/// Folders below a bundle's own: room for `fixtures/` and one more.
const MAX_DEPTH: usize = 2;
/// Bytes of a signature beside a bare file, at most.
const MAX_SIGNATURE_BYTES: u64 = 4 << 10;
/// Characters of a reason for a refusal, at most.
const MAX_REASON: usize = 1_000;
/// Longest name of a plugin, as it stands in logs and messages.
const MAX_NAME_BYTES: usize = 64;

/// `plugin.toml`.
///
/// Unknown keys are refused: a misspelt one would be without an effect.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The plugin's name: lower-case letters, digits, `-`, `_`, `.`, and `/` after a publisher's
    /// prefix.
    ///
    /// Keys of publishers may be limited to a prefix of it.
    pub name: String,
    /// The plugin's own version, free in form.
    pub version: String,
    /// Minor of the interface that it was built against; must be [`ABI`].
    pub abi: String,
    /// The plugin's file, beside the manifest: WebAssembly, a dynamic library or a gate file.
    pub file: String,
    /// One or two sentences for people who look for a router.
    #[serde(default)]
    pub description: String,
    /// Capabilities beyond the ordinary that it asks for: `hidden`. The operator grants them or
    /// not.
    #[serde(default)]
    pub capabilities: Vec<Capability>,
    /// The kinds of modules that it is offered as candidates.
    #[serde(default)]
    pub kinds: ModuleKinds,
}

/// The kinds of modules that a router is offered as candidates.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum ModuleKinds {
    /// Plain low-rank products at linears: those that programs can pick per row and that have A and
    /// B.
    #[default]
    LowRank,
    /// Modules with feed-forwards of their own.
    Experts,
    /// All kinds, soft prompts and edits among them: for routers that choose by card or name.
    Any,
}

/// A capability beyond the ordinary, for which a plugin must ask.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "kebab-case")]
pub enum Capability {
    /// Hidden states in `route`: they tell much about what users write.
    Hidden,
}

impl std::fmt::Display for Capability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Hidden => "hidden",
        })
    }
}

/// A bundle in memory.
#[derive(Clone)]
pub(crate) struct Bundle {
    /// The manifest, or one that was made up for a bare file.
    pub(crate) manifest: Manifest,
    /// All files but the signature, by path within the bundle.
    ///
    /// The manifest is one of them. Paths have `/` on every system.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// The detached signature's text, where there is one.
    pub(crate) signature: Option<String>,
    /// SHA-256 over the sorted file list, hexadecimal: the digest that signatures are of.
    pub(crate) digest: String,
}

impl Bundle {
    /// Reads a directory, a tar or a bare file into memory; nothing is compiled and no signature is
    /// checked.
    ///
    /// # Errors
    /// If a file cannot be read or is too large, or the manifest is missing, malformed or of
    /// another minor.
    pub(crate) fn read(path: &Path, limits: &Limits) -> Result<Self, Error> {
        let budget = limits.file_mib << 20;
        let mut files = if path.is_dir() {
            read_directory(path, budget)?
        } else if is_tar(path) {
            read_tar(path, budget)?
        } else {
            return Self::bare(path, budget);
        };
        let signature = files.remove(SIGNATURE_FILE);
        let signature = signature.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let at = path.join(MANIFEST_FILE);
        let text = files.get(MANIFEST_FILE).ok_or_else(|| manifest_error(&at, "is missing"))?;
        let text = str::from_utf8(text).map_err(|_| manifest_error(&at, "not UTF-8"))?;
        let manifest = Manifest::parse(text).map_err(|reason| manifest_error(&at, &reason))?;
        if manifest.abi != ABI {
            let found = format!("abi {}", manifest.abi);
            return Err(Error::Version { name: manifest.name, found });
        }
        if !files.contains_key(&manifest.file) {
            let reason = format!(
                "file `{}`, expected the name of a file beside the manifest",
                manifest.file
            );
            return Err(manifest_error(&at, &reason));
        }
        Ok(Self { digest: bundle_digest(&files), manifest, files, signature })
    }

    /// A file without a manifest: its stem is its name, and its signature lies beside it with
    /// `.sig` at the end of the name.
    fn bare(path: &Path, budget: u64) -> Result<Self, Error> {
        let text = |part: Option<&std::ffi::OsStr>| {
            part.unwrap_or_default().to_string_lossy().into_owned()
        };
        let (name, file) = (text(path.file_stem()), text(path.file_name()));
        // Names of files have capital letters, too.
        check_name(&name.to_ascii_lowercase()).map_err(|reason| manifest_error(path, &reason))?;
        let files = BTreeMap::from([(file.clone(), read_limited(path, budget)?)]);
        let sidecar = path.with_file_name(format!("{file}.sig"));
        let manifest = Manifest {
            name,
            version: "0".to_owned(),
            abi: ABI.to_owned(),
            file,
            description: String::new(),
            capabilities: Vec::new(),
            kinds: ModuleKinds::default(),
        };
        let signature = read_limited(&sidecar, MAX_SIGNATURE_BYTES).ok();
        let signature = signature.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok(Self { digest: bundle_digest(&files), manifest, files, signature })
    }

    /// The bytes of the plugin's file.
    pub(crate) fn code(&self) -> &[u8] {
        self.files.get(&self.manifest.file).map_or(&[], Vec::as_slice)
    }

    /// The bundles in a directory: folders with a manifest, tars, `.wasm` and dynamic libraries; or
    /// the directory itself, if it is a bundle.
    ///
    /// Sorted by path. A gate file needs a manifest to be found. Names that begin with a dot are
    /// left out.
    pub(crate) fn find(directory: &Path) -> Result<Vec<PathBuf>, Error> {
        if directory.join(MANIFEST_FILE).is_file() {
            return Ok(vec![directory.to_owned()]);
        }
        let io = |source| Error::Io { path: directory.to_owned(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(directory).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let extension = path.extension().and_then(std::ffi::OsStr::to_str);
            let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
            let is_bundle = path.join(MANIFEST_FILE).is_file()
                || matches!(extension, Some("wasm" | "tar" | "so" | "dylib" | "dll"));
            if is_bundle && !hidden {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }
}

/// True for a path that is read as an archive. Such a bundle carries its signature inside.
pub(crate) fn is_tar(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "tar") && !path.is_dir()
}

/// SHA-256 over the sorted list of names and contents.
///
/// Lengths of names go in as well, so that no two lists give the same bytes. The order of files in
/// a tar has no influence. A signature is no part of it.
pub fn bundle_digest(files: &BTreeMap<String, Vec<u8>>) -> String {
    let mut hasher = Sha256::new();
    for (name, content) in files {
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(Sha256::digest(content));
    }
    hex(&hasher.finalize())
}

impl Manifest {
    /// Reads a manifest, and checks its name. That `file` exists is seen with the bundle.
    ///
    /// # Errors
    /// One sentence: what is no manifest, or a name that no plugin may have.
    pub fn parse(text: &str) -> Result<Self, String> {
        let manifest: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        check_name(&manifest.name)?;
        Ok(manifest)
    }
}

/// Checks a plugin's name: parts with `/` between them, each of lower-case letters, digits, `-`,
/// `_` and `.`, with a letter or a digit first. So a name is also a path that stays in its folder.
///
/// # Errors
/// One sentence with the name and what is expected.
pub fn check_name(name: &str) -> Result<(), String> {
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_plain = |byte: u8| is_letter(byte) || b"-_.".contains(&byte);
    let is_part =
        |part: &str| part.bytes().next().is_some_and(is_letter) && part.bytes().all(is_plain);
    // Requests say `none` for no router.
    if name.len() <= MAX_NAME_BYTES && name != "none" && name.split('/').all(is_part) {
        return Ok(());
    }
    let shown: String = name.chars().take(MAX_NAME_BYTES).collect();
    Err(format!(
        "name `{shown}`, expected at most {MAX_NAME_BYTES} of a-z, 0-9, `-`, `_`, `.` and `/`, with a \
         letter or digit first and after each `/`"
    ))
}

/// A refusal of a manifest or of a bundle's layout.
fn manifest_error(path: &Path, reason: &str) -> Error {
    // A reason may quote the file.
    let reason = reason.chars().take(MAX_REASON).collect();
    Error::Manifest { path: path.to_owned(), reason }
}

/// A refusal of a file that is larger than its limit.
fn too_large(path: &Path, what: &str) -> Error {
    let source = std::io::Error::new(std::io::ErrorKind::FileTooLarge, what.to_owned());
    Error::Io { path: path.to_owned(), source }
}

/// Reads a file of at most `budget` bytes, whatever its size was a moment ago.
fn read_limited(path: &Path, budget: u64) -> Result<Vec<u8>, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    // Opening a pipe would wait for whoever writes to it.
    if !fs::metadata(path).map_err(io)?.is_file() {
        let kind = std::io::ErrorKind::InvalidInput;
        return Err(io(std::io::Error::new(kind, "found a special file, expected a plain one")));
    }
    let file = fs::File::open(path).map_err(io)?;
    let mut bytes = Vec::new();
    file.take(budget + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > budget {
        return Err(too_large(path, &format!("more than {budget} bytes, which `file_mib` allows")));
    }
    Ok(bytes)
}

/// Reads all files of a directory within one budget. Names with a dot in front are left out.
///
/// # Errors
/// If it holds links or special files, too many files or too deep folders.
fn read_directory(root: &Path, budget: u64) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    let mut files = BTreeMap::new();
    let mut left = budget;
    let mut folders = vec![(root.to_owned(), String::new(), 0)];
    while let Some((folder, prefix, depth)) = folders.pop() {
        let io = |source| Error::Io { path: folder.clone(), source };
        for entry in fs::read_dir(&folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with('.') {
                continue;
            }
            let (path, name) = (entry.path(), format!("{prefix}{name}"));
            // What an entry is, without following links: a bundle holds its own files only.
            let kind = entry.file_type().map_err(io)?;
            if kind.is_dir() && depth < MAX_DEPTH {
                folders.push((path, format!("{name}/"), depth + 1));
            } else if kind.is_file() && files.len() < MAX_FILES {
                let bytes = read_limited(&path, left)?;
                left -= bytes.len() as u64;
                files.insert(name, bytes);
            } else {
                let reason = format!(
                    "`{name}`: a bundle holds plain files, at most {MAX_FILES} and {MAX_DEPTH} folders deep"
                );
                return Err(manifest_error(root, &reason));
            }
        }
    }
    Ok(files)
}

/// Reads all files of an archive, which is itself within the budget. Names with a dot in front are
/// left out, as in a directory: packing that by hand gives the same bundle.
///
/// # Errors
/// If an entry is no plain file, lies outside of the bundle, or is one too many.
fn read_tar(path: &Path, budget: u64) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let bytes = read_limited(path, budget)?;
    let mut archive = tar::Archive::new(bytes.as_slice());
    let mut files = BTreeMap::new();
    for entry in archive.entries().map_err(io)? {
        let mut entry = entry.map_err(io)?;
        let found = entry.path().map_err(io)?.into_owned();
        let name = name_inside(&found);
        let kind = entry.header().entry_type();
        if kind.is_dir() || name.as_deref().is_some_and(is_hidden) {
            continue;
        }
        let Some(name) = name.filter(|_| kind.is_file() && files.len() < MAX_FILES) else {
            let reason = format!(
                "`{}`: a bundle holds plain files inside of it, at most {MAX_FILES}",
                found.display()
            );
            return Err(manifest_error(path, &reason));
        };
        let mut content = Vec::new();
        // The archive is in memory, so that an entry cannot be larger than it.
        entry.read_to_end(&mut content).map_err(io)?;
        files.insert(name, content);
    }
    Ok(files)
}

/// An entry's path within the bundle, with `/` between its parts and without the `./` that `tar .`
/// puts in front; `None` for the bundle itself and for what lies outside of it.
fn name_inside(path: &Path) -> Option<String> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => parts.push(part.to_string_lossy()),
            Component::CurDir => {}
            _ => return None,
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// True if a part of a path within a bundle has a dot in front.
fn is_hidden(name: &str) -> bool {
    name.split('/').any(|part| part.starts_with('.'))
}

/// Writes a bundle's directory as a tar, in one order and without dates: equal bundles give equal
/// bytes.
///
/// The detached signature goes in where there is one.
///
/// # Errors
/// If the directory is no bundle or the file cannot be written.
pub fn pack(directory: &Path, target: &Path, limits: &Limits) -> Result<(), Error> {
    let bundle = Bundle::read(directory, limits)?;
    let io = |source| Error::Io { path: target.to_owned(), source };
    let mut builder = tar::Builder::new(fs::File::create(target).map_err(io)?);
    let signature = bundle.signature.map(|text| (SIGNATURE_FILE.to_owned(), text.into_bytes()));
    for (name, content) in bundle.files.into_iter().chain(signature) {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, &name, content.as_slice()).map_err(io)?;
    }
    builder.into_inner().map(drop).map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes an archive with these names as they are, all of them plain files but those that end
    /// in `/`.
    fn archive(target: &Path, entries: &[(&str, &str)]) {
        let mut builder = tar::Builder::new(fs::File::create(target).unwrap());
        for (name, content) in entries {
            let mut header = tar::Header::new_ustar();
            header.as_ustar_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            if name.ends_with('/') {
                header.set_entry_type(tar::EntryType::Directory);
            }
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap();
    }

    #[test]
    fn names_are_paths_that_stay_in_their_folder() {
        for name in ["a", "arrow-2", "acme/best.one", "0_x", &"a".repeat(64)] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in [
            "",
            "a/",
            "/a",
            "a//b",
            "..",
            "a/..",
            ".a",
            "-a",
            "A",
            "none",
            "a b",
            "ä",
            &"a".repeat(65),
        ] {
            let refused = check_name(name).unwrap_err();
            assert!(refused.contains("expected at most 64"), "{refused}");
        }
    }

    const MANIFEST: &str = "name = \"r\"\nversion = \"1\"\nabi = \"0.1\"\nfile = \"r.toml\"\n";

    #[test]
    fn an_archive_of_the_folder_itself_is_the_same_bundle() {
        let directory = tempfile::tempdir().unwrap();
        let (folder, tar) = (directory.path().join("r"), directory.path().join("r.tar"));
        fs::create_dir_all(folder.join("fixtures")).unwrap();
        for (name, content) in
            [("plugin.toml", MANIFEST), ("r.toml", "a"), ("fixtures/f.json", "b"), (".x", "c")]
        {
            fs::write(folder.join(name), content).unwrap();
        }
        let limits = Limits::default();
        let expected = Bundle::read(&folder, &limits).unwrap();
        let dotted = [
            ("./", ""),
            ("./r.toml", "a"),
            ("./.x", "c"),
            ("./.git/", ""),
            ("./.git/HEAD", "d"),
            ("./plugin.toml", MANIFEST),
            ("./fixtures/", ""),
            ("./fixtures/f.json", "b"),
        ];
        archive(&tar, &dotted);
        let found = Bundle::read(&tar, &limits).unwrap();
        assert_eq!((found.digest, found.files), (expected.digest, expected.files));
        for outside in ["../r.toml", "./../r.toml", "fixtures/../../r.toml", "/r.toml", "."] {
            archive(&tar, &[("plugin.toml", MANIFEST), ("r.toml", "a"), (outside, "e")]);
            let refused = Bundle::read(&tar, &limits).err().map(|error| error.to_string());
            let refused = refused.unwrap_or_default();
            assert!(refused.contains("inside of it"), "{outside}: {refused}");
        }
    }
}
