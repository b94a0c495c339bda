//! The workspace: the places of its sources and of its build output, and the plugins that it has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::json::Value;
use crate::step::{Context as _, Failure, Outcome, output};

/// The workspace this program belongs to.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The folder of the workspace's `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Cargo's target directory (`CARGO_TARGET_DIR` included), absolute.
    pub(crate) target: PathBuf,
    /// The folders in `plugins/` that hold a manifest of a bundle, sorted by name.
    pub(crate) plugins: Vec<PathBuf>,
}

impl Workspace {
    /// Finds the workspace from the folder of this program's sources or the working directory, and
    /// asks cargo for its crates.
    pub(crate) fn find() -> Outcome<Self> {
        let root = find_root()?;
        // In the person's folder, so that a relative CARGO_TARGET_DIR means what it says.
        let text = output(
            Command::new(cargo_program())
                .args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"])
                .arg(root.join("Cargo.toml")),
        )?;
        let metadata = Value::parse(&text).context(|| "`cargo metadata`".to_owned())?;
        let target = metadata
            .text("target_directory")
            .ok_or_else(|| Failure::new("`cargo metadata` names no target directory"))?;
        let plugins = plugins(&root.join("plugins"))?;
        Ok(Self { target: PathBuf::from(target), root, plugins })
    }

    /// Cargo in the workspace's root, with the target directory found before.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(cargo_program());
        command.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        // Cargo tells this program about its own crate. Build scripts that look at these variables would
        // run again, and all above them be built again, whenever a person runs cargo directly.
        let is_of_crate = |name: &str| {
            let names =
                ["CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
            names.iter().any(|start| name.starts_with(start))
        };
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(is_of_crate) {
                command.env_remove(name);
            }
        }
        command
    }

    /// The folder that the plugin bundles go to.
    pub(crate) fn bundles(&self) -> PathBuf {
        self.target.join("plugins")
    }
}

/// Folders with a manifest of a bundle, sorted.
fn plugins(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).context(|| format!("cannot read {}", folder.display()))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.join("plugin.toml").is_file())
        .collect();
    found.sort();
    if found.is_empty() {
        return Err(Failure::new(format!("there is no plugin in {}", folder.display())));
    }
    Ok(found)
}

/// The cargo that runs this program, else the one on the path: cargo sets `CARGO` for what it runs.
pub(crate) fn cargo_program() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// The nearest folder that has this crate below it, from the crate's own folder or the working
/// directory upwards.
pub(crate) fn find_root() -> Outcome<PathBuf> {
    let start = match std::env::var_os("CARGO_MANIFEST_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => std::env::current_dir().context(|| "current folder".to_owned())?,
    };
    start
        .ancestors()
        .find(|folder| folder.join("xtask/Cargo.toml").is_file())
        .map(Path::to_path_buf)
        .ok_or_else(|| Failure::new("not inside the workspace; run it as `cargo xtask <task>`"))
}
