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
    /// The crates in `plugins/`, sorted by name.
    pub(crate) plugins: Vec<PluginCrate>,
    /// The folders in `plugins/` that hold a manifest instead of a crate, sorted by name.
    pub(crate) foreign: Vec<PathBuf>,
}

/// A plugin written in Rust.
#[derive(Debug)]
pub(crate) struct PluginCrate {
    /// The folder's name, which is the plugin's.
    pub(crate) name: String,
    /// The crate's name, for cargo.
    pub(crate) package: String,
    /// The crate's version, which is the bundle's.
    pub(crate) version: String,
    /// The crate's description; empty without one.
    pub(crate) description: String,
    /// The manifest's `kinds`, which are the kinds of modules that the router takes, where
    /// `[package.metadata.polyskill]` has them.
    pub(crate) kinds: Option<String>,
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
        let mut plugins: Vec<_> = metadata
            .list("packages")
            .iter()
            .filter_map(|package| plugin_crate(package, &root.join("plugins")))
            .collect();
        plugins.sort_by(|left, right| left.name.cmp(&right.name));
        let foreign = foreign(&root.join("plugins"))?;
        Ok(Self { target: PathBuf::from(target), root, plugins, foreign })
    }

    /// Cargo in the workspace's root, with the target directory found before.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(cargo_program());
        command.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        command
    }

    /// The folder that the plugin bundles go to.
    pub(crate) fn bundles(&self) -> PathBuf {
        self.target.join("plugins")
    }
}

/// A crate of `cargo metadata` as a plugin; `None` where it does not lie directly in `folder`.
fn plugin_crate(package: &Value, folder: &Path) -> Option<PluginCrate> {
    let crate_root = Path::new(package.text("manifest_path")?).parent()?;
    (crate_root.parent()? == folder).then_some(())?;
    Some(PluginCrate {
        name: crate_root.file_name()?.to_str()?.to_owned(),
        package: package.text("name")?.to_owned(),
        version: package.text("version")?.to_owned(),
        description: package.text("description").unwrap_or_default().to_owned(),
        kinds: package
            .get("metadata")
            .and_then(|metadata| metadata.get("polyskill"))
            .and_then(|own| own.text("kinds"))
            .map(str::to_owned),
    })
}

/// Folders with a manifest of a bundle and no crate, sorted.
fn foreign(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).context(|| format!("cannot read {}", folder.display()))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.join("plugin.toml").is_file() && !path.join("Cargo.toml").exists())
        .collect();
    found.sort();
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
