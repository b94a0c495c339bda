//! Builds routers as every kind of plugin, for the conformance suite and the benchmarks: the task
//! `plugins` makes components; here are the core module and the dynamic library of the flat ABI.

use std::fs;
use std::path::Path;

use crate::plugins::ABI;
use crate::step::{Context as _, Outcome, run, step};
use crate::toolchain::{Toolchain, WASM, without_flags};
use crate::workspace::{PluginCrate, Workspace};

/// The feature of the SDK that turns `export!` to the flat ABI.
const FEATURE: &str = "polyskill-sdk/flat";

/// Builds core modules and dynamic libraries of every router in Rust into `target/flavours`.
///
/// A folder for each form and plugin holds a bundle without fixtures. Both builds have target
/// directories of their own, so that they stay built.
pub(crate) fn build(workspace: &Workspace) -> Outcome<()> {
    let toolchain = Toolchain::find(workspace)?;
    let wasm = workspace.target.join("wasm-flat");
    toolchain.claim(&wasm)?;
    let packages: Vec<&str> =
        workspace.plugins.iter().flat_map(|plugin| ["-p", &plugin.package]).collect();
    step("routers as core modules", || {
        let mut cargo = workspace.cargo();
        toolchain.apply(&mut cargo);
        cargo.args(["build", "--release", "--target", WASM, "--features", FEATURE]);
        cargo.args(["--config", "profile.release.strip=true"]).args(&packages);
        run(cargo.arg("--target-dir").arg(&wasm))?;
        workspace.plugins.iter().try_for_each(|plugin| {
            let code = wasm.join(WASM).join("release").join(format!("{}.wasm", library(plugin)));
            bundle(workspace, plugin, "core", "wasm", &code)
        })
    })?;
    step("routers as dynamic libraries", || {
        // A directory of its own: the SDK is built with another feature here.
        let native = workspace.target.join("native-flat");
        let mut cargo = workspace.cargo();
        without_flags(&mut cargo);
        cargo.args(["build", "--release", "--features", FEATURE]).args(&packages);
        run(cargo.arg("--target-dir").arg(&native))?;
        let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
        workspace.plugins.iter().try_for_each(|plugin| {
            let code = native.join("release").join(format!("{prefix}{}{suffix}", library(plugin)));
            bundle(workspace, plugin, "dylib", suffix.trim_start_matches('.'), &code)
        })
    })
}

/// The name that cargo gives a crate's library.
fn library(plugin: &PluginCrate) -> String {
    plugin.package.replace('-', "_")
}

/// Writes the bundle of one plugin in one form: `code`, as NAME.EXTENSION, and a manifest, below
/// `target/flavours/FLAVOUR`.
fn bundle(
    workspace: &Workspace,
    plugin: &PluginCrate,
    flavour: &str,
    extension: &str,
    code: &Path,
) -> Outcome<()> {
    let PluginCrate { name, version, .. } = plugin;
    let folder = workspace.target.join("flavours").join(flavour).join(name);
    let file = format!("{name}.{extension}");
    let manifest =
        format!("name = \"{name}\"\nversion = \"{version}\"\nabi = \"{ABI}\"\nfile = \"{file}\"\n");
    fs::create_dir_all(&folder)
        .and_then(|()| fs::copy(code, folder.join(&file)))
        .and_then(|_| fs::write(folder.join("plugin.toml"), manifest))
        .context(|| format!("cannot write {} from {}", folder.display(), code.display()))
}
