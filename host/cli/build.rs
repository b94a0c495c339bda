//! With the feature `embed-routers`, puts the bundles of the folder POLYSKILL_ROUTERS into the
//! program.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-env-changed=POLYSKILL_ROUTERS");
    let mut bundles = String::new();
    if env::var_os("CARGO_FEATURE_EMBED_ROUTERS").is_some() {
        let folder = env::var_os("POLYSKILL_ROUTERS").map(PathBuf::from).ok_or_else(|| {
            let message =
                "the feature `embed-routers` needs POLYSKILL_ROUTERS, a folder of bundles";
            std::io::Error::other(message)
        })?;
        for bundle in sorted(&folder)? {
            bundles.push_str(&entry(&bundle)?);
        }
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("routers.rs");
    fs::write(out, format!("&[{bundles}]"))
}

/// A bundle as Rust: its name, and its files with their contents.
fn entry(bundle: &Path) -> std::io::Result<String> {
    let mut files = String::new();
    let mut folders = vec![bundle.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in sorted(&folder)? {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            println!("cargo::rerun-if-changed={}", path.display());
            let name = path.strip_prefix(bundle).map_err(std::io::Error::other)?;
            let name = name.to_string_lossy().replace('\\', "/");
            let _ = write!(files, "({name:?}, include_bytes!({path:?})), ");
        }
    }
    let name = bundle.file_name().unwrap_or_default().to_string_lossy();
    Ok(format!("({name:?}, &[{files}]), "))
}

/// The entries of a folder, sorted; hidden ones are left out.
fn sorted(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            paths.push(entry.path().canonicalize()?);
        }
    }
    paths.sort();
    Ok(paths)
}
