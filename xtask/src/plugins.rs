//! Builds the plugins in `plugins/` and bundles each with its manifest and fixtures.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::foreign;
use crate::step::{Context as _, Failure, Outcome, run, step};
use crate::toolchain::{Toolchain, WASM};
use crate::workspace::{PluginCrate, Workspace};

/// The plugin interface's version, as bundles state it.
pub(crate) const ABI: &str = "0.1";

/// Builds and bundles every plugin, those in Rust first; returns the folder of the bundles.
pub(crate) fn build(workspace: &Workspace) -> Outcome<PathBuf> {
    if workspace.plugins.is_empty() {
        return Err(Failure::new("there is no crate in plugins/"));
    }
    let toolchain = Toolchain::find(workspace)?;
    // Its own target directory, because the compiler may differ from the host's.
    let target = workspace.target.join("wasm");
    toolchain.claim(&target)?;
    for plugin in &workspace.plugins {
        step(&format!("plugin {}", plugin.name), || {
            bundle(workspace, &toolchain, &target, plugin)
        })?;
    }
    for source in &workspace.foreign {
        foreign::build(workspace, source)?;
    }
    Ok(workspace.bundles())
}

/// Builds one crate to WebAssembly and writes its bundle, the manifest last.
fn bundle(
    workspace: &Workspace,
    toolchain: &Toolchain,
    target: &Path,
    plugin: &PluginCrate,
) -> Outcome<()> {
    let mut cargo = workspace.cargo();
    toolchain.apply(&mut cargo);
    cargo.args(["build", "--release", "--target", WASM, "-p", &plugin.package]);
    // Line tables would make up most of the file.
    cargo.args(["--config", "profile.release.strip=true"]);
    run(cargo.arg("--target-dir").arg(target))?;
    let library = target
        .join(WASM)
        .join("release")
        .join(plugin.package.replace('-', "_"))
        .with_extension("wasm");
    let code = fs::read(&library).context(|| {
        let library = library.display();
        format!("{} built no {library} (is its crate-type `cdylib`?)", plugin.package)
    })?;
    let folder = workspace.bundles().join(&plugin.name);
    fs::create_dir_all(&folder).context(|| format!("cannot create {}", folder.display()))?;
    replace(&folder, &format!("{}.wasm", plugin.name), &code)?;
    fixtures(&workspace.root.join("plugins").join(&plugin.name), &folder)?;
    replace(&folder, "plugin.toml", manifest(plugin).as_bytes())?;
    println!("    {} ({} KiB)", folder.display(), code.len() / 1024);
    Ok(())
}

/// The manifest of a crate's bundle, from its Cargo.toml.
fn manifest(plugin: &PluginCrate) -> String {
    let PluginCrate { name, version, description, kinds, .. } = plugin;
    let kinds = kinds.as_ref().map_or(String::new(), |kinds| format!("kinds = \"{kinds}\"\n"));
    let description = description.replace('\\', "\\\\").replace('"', "\\\"");
    format!(
        "name = \"{name}\"\nversion = \"{version}\"\nabi = \"{ABI}\"\nfile = \"{name}.wasm\"\n\
         description = \"{description}\"\n{kinds}"
    )
}

/// Makes a bundle's fixtures those of its source: a host runs all that it finds, so stale ones are
/// removed.
pub(crate) fn fixtures(source: &Path, bundle: &Path) -> Outcome<()> {
    let (from, to) = (source.join("fixtures"), bundle.join("fixtures"));
    let names = |folder: &Path| -> Vec<OsString> {
        let entries = fs::read_dir(folder).into_iter().flatten();
        entries.filter_map(Result::ok).map(|entry| entry.file_name()).collect()
    };
    let wanted = names(&from);
    for stale in names(&to).iter().filter(|name| !wanted.contains(name)) {
        let path = to.join(stale);
        fs::remove_file(&path).context(|| format!("cannot remove {}", path.display()))?;
    }
    for name in wanted {
        fs::create_dir_all(&to).context(|| format!("cannot create {}", to.display()))?;
        let path = from.join(&name);
        let content = fs::read(&path).context(|| format!("cannot read {}", path.display()))?;
        replace(&to, &name.to_string_lossy(), &content)?;
    }
    Ok(())
}

/// Replaces a file in one go, and only if it changes: a running server may be watching it.
pub(crate) fn replace(folder: &Path, name: &str, content: &[u8]) -> Outcome<()> {
    let path = folder.join(name);
    if fs::read(&path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let fresh = folder.join(format!(".{name}.new"));
    fs::write(&fresh, content)
        .and_then(|()| fs::rename(&fresh, &path))
        .context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{PluginCrate, manifest};

    #[test]
    fn manifest_has_the_bundle_format() {
        let plugin = PluginCrate {
            name: "arrow".to_owned(),
            package: "polyskill-router-arrow".to_owned(),
            version: "0.1.0".to_owned(),
            description: "says \"p\"".to_owned(),
            kinds: Some("any".to_owned()),
        };
        let expected = "name = \"arrow\"\nversion = \"0.1.0\"\nabi = \"0.1\"\nfile = \"arrow.wasm\"\n\
                        description = \"says \\\"p\\\"\"\nkinds = \"any\"\n";
        assert_eq!(manifest(&plugin), expected);
    }
}
