//! Plugin bundles: a directory with `plugin.toml` and the plugin's file, or a bare `.wasm`.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::error::Error;

const MANIFEST_FILE: &str = "plugin.toml";
const MAX_PLUGIN_BYTES: u64 = 64 << 20;

/// `plugin.toml`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The plugin's name.
    pub name: String,
    /// The plugin's own version.
    pub version: String,
    /// Minor of the interface that it was built against.
    pub abi: String,
    /// The plugin's file, beside the manifest.
    pub file: String,
}

/// A bundle's bytes.
pub(crate) struct Bundle {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    /// SHA-256 over manifest and plugin, hexadecimal.
    pub(crate) digest: String,
}

impl Bundle {
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let (name, manifest, file) = if path.is_dir() {
            let manifest_path = path.join(MANIFEST_FILE);
            let text = String::from_utf8(read_limited(&manifest_path)?)
                .map_err(|_| manifest_error(&manifest_path, "not UTF-8"))?;
            let manifest: Manifest = toml::from_str(&text)
                .map_err(|error| manifest_error(&manifest_path, &error.to_string()))?;
            let plain = Path::new(&manifest.file)
                .file_name()
                .is_some_and(|plain| plain == manifest.file.as_str());
            if !plain {
                let reason =
                    format!("file `{}`, expected a plain name beside the manifest", manifest.file);
                return Err(manifest_error(&manifest_path, &reason));
            }
            if manifest.abi != "0.1" {
                return Err(Error::Version {
                    name: manifest.name,
                    found: format!("abi {}", manifest.abi),
                });
            }
            (manifest.name, text, path.join(manifest.file))
        } else {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            (stem.into_owned(), String::new(), path.to_owned())
        };
        let bytes = read_limited(&file)?;
        let mut hasher = Sha256::new();
        hasher.update((manifest.len() as u64).to_le_bytes());
        hasher.update(manifest.as_bytes());
        hasher.update(&bytes);
        let digest = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { name, bytes, digest })
    }

    /// The bundles in a directory: folders with a manifest, and `.wasm` files.
    pub(crate) fn find(directory: &Path) -> Result<Vec<PathBuf>, Error> {
        let io = |source| Error::Io { path: directory.to_owned(), source };
        let mut found = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if path.join(MANIFEST_FILE).is_file() || path.extension().is_some_and(|e| e == "wasm") {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }
}

fn manifest_error(path: &Path, reason: &str) -> Error {
    Error::Manifest { path: path.to_owned(), reason: reason.to_owned() }
}

fn read_limited(path: &Path) -> Result<Vec<u8>, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let len = std::fs::metadata(path).map_err(io)?.len();
    if len > MAX_PLUGIN_BYTES {
        let message = format!("{len} bytes, at most {MAX_PLUGIN_BYTES} are read");
        return Err(io(std::io::Error::new(std::io::ErrorKind::FileTooLarge, message)));
    }
    std::fs::read(path).map_err(io)
}
