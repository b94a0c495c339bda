//! Plugins that are not written in Rust: C on the flat ABI, gate files, Python.
//!
//! Each is a folder with the manifest of its bundle. What the manifest calls `file` is there already, or is
//! made from a source of the same stem. A compiler that is not there is no failure: the plugin is skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::plugins::{fixtures, replace};
use crate::step::{Context as _, Failure, Outcome, output, step};
use crate::workspace::Workspace;

/// Where C plugins go as dynamic libraries: not among the bundles that a server loads by itself.
const NATIVE: &str = "native-plugins";
/// Where Python plugins go: each brings an interpreter that takes a server half a minute to compile.
const PYTHON: &str = "python-plugins";
/// A sum must have the same bits wherever it is compiled.
const C_FLAGS: [&str; 6] = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"];
/// C compilers for WebAssembly, and how each is told to build for it.
const WASM_COMPILERS: [(&[&str], &[&str]); 4] = [
    (&["clang"], &["--target=wasm32", "-mbulk-memory"]),
    (&["zig", "cc"], &ZIG_TARGET),
    (&["python3", "-m", "ziglang", "cc"], &ZIG_TARGET),
    (&["python", "-m", "ziglang", "cc"], &ZIG_TARGET),
];
const ZIG_TARGET: [&str; 3] = ["-target", "wasm32-freestanding", "-mcpu=generic+bulk_memory"];
const WASM_FLAGS: [&str; 3] = ["-nostdlib", "-Wl,--no-entry", "-Wl,--strip-all"];

/// Builds and bundles one folder.
pub(crate) fn build(workspace: &Workspace, source: &Path) -> Outcome<()> {
    let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let manifest = read_text(&source.join("plugin.toml"))?;
    let file = file_of(&manifest)
        .ok_or_else(|| Failure::new(format!("{name}/plugin.toml: no line `file = \"...\"`")))?;
    let with = |extension| Some(source.join(file).with_extension(extension));
    let python_code = with("py").filter(|path| path.is_file());
    let bundle = match python_code {
        Some(_) => workspace.target.join(PYTHON).join(&name),
        None => workspace.bundles().join(&name),
    };
    step(&format!("plugin {name}"), || {
        let made = if let Some(code) = with("c").filter(|path| path.is_file()) {
            c_library(workspace, source, &code)?;
            c_wasm(workspace, &code)?
        } else if let Some(code) = &python_code {
            python(workspace, code)?
        } else {
            Some(source.join(file))
        };
        match made {
            Some(made) => write(source, &bundle, (&manifest, file), &made),
            // An older one would be taken for this source's.
            None if bundle.exists() => fs::remove_dir_all(&bundle)
                .context(|| format!("cannot remove {}", bundle.display())),
            None => Ok(()),
        }
    })
}

fn write(source: &Path, bundle: &Path, (manifest, file): (&str, &str), made: &Path) -> Outcome<()> {
    let code = fs::read(made).context(|| format!("cannot read {}", made.display()))?;
    fs::create_dir_all(bundle).context(|| format!("cannot create {}", bundle.display()))?;
    replace(bundle, file, &code)?;
    fixtures(source, bundle)?;
    replace(bundle, "plugin.toml", manifest.as_bytes())?;
    println!("    {} ({} KiB)", bundle.display(), code.len().div_ceil(1024));
    Ok(())
}

fn read_text(path: &Path) -> Outcome<String> {
    fs::read_to_string(path).context(|| format!("cannot read {}", path.display()))
}

/// The value of `file` in a manifest, which is one plain line.
fn file_of(manifest: &str) -> Option<&str> {
    manifest.lines().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == "file").then(|| value.trim().trim_matches('"'))
    })
}

/// Where compilers write.
fn scratch(workspace: &Workspace) -> Outcome<PathBuf> {
    let folder = workspace.target.join("foreign");
    fs::create_dir_all(&folder).context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

fn skipped(why: &str) {
    println!("    SKIPPED: {why}");
}

fn is_ok(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

fn command(program: &[&str]) -> Command {
    let mut command = Command::new(program.first().copied().unwrap_or_default());
    command.args(program.iter().skip(1));
    command
}

fn c_wasm(workspace: &Workspace, source: &Path) -> Outcome<Option<PathBuf>> {
    let folder = scratch(workspace)?;
    let (probe, made) = (folder.join("probe.c"), folder.join("plugin.wasm"));
    fs::write(&probe, "int probe(void) { return 0; }\n")
        .context(|| format!("cannot write {}", probe.display()))?;
    let compile = |(program, target): (&[&str], &[&str]), source: &Path| {
        let mut command = command(program);
        command.args(target).args(C_FLAGS).args(WASM_FLAGS).arg("-I");
        command.arg(workspace.root.join("sdk/include")).arg(source).arg("-o").arg(&made);
        command
    };
    let Some(compiler) =
        WASM_COMPILERS.into_iter().find(|&compiler| is_ok(&mut compile(compiler, &probe)))
    else {
        skipped(
            "no C compiler for WebAssembly; install clang with lld, or zig, or the Python package \
             `ziglang`",
        );
        return Ok(None);
    };
    output(&mut compile(compiler, source))?;
    Ok(Some(made))
}

/// The dynamic library of a C plugin, in a bundle of its own.
fn c_library(workspace: &Workspace, folder: &Path, source: &Path) -> Outcome<()> {
    if cfg!(windows) || !is_ok(Command::new("cc").arg("--version")) {
        skipped("no `cc`, so there is no dynamic library");
        return Ok(());
    }
    let made = scratch(workspace)?.join("plugin.so");
    let mut cc = Command::new("cc");
    cc.args(C_FLAGS).args(["-shared", "-fPIC", "-fvisibility=hidden", "-I"]);
    output(cc.arg(workspace.root.join("sdk/include")).arg(source).arg("-o").arg(&made))?;
    let manifest = read_text(&folder.join("plugin.toml"))?;
    let file = file_of(&manifest).unwrap_or_default();
    let library = Path::new(file).with_extension("so").to_string_lossy().into_owned();
    let manifest = manifest.replace(&format!("\"{file}\""), &format!("\"{library}\""));
    let bundle = workspace.target.join(NATIVE).join(folder.file_name().unwrap_or_default());
    write(folder, &bundle, (&manifest, &library), &made)
}

/// Makes a component; again only if the source, the interface or the tool has changed.
fn python(workspace: &Workspace, source: &Path) -> Outcome<Option<PathBuf>> {
    let Ok(version) = output(Command::new("componentize-py").arg("--version")) else {
        skipped("no `componentize-py` on the PATH; install the Python package of this name");
        return Ok(None);
    };
    let interface = workspace.root.join("sdk/wit/router-0.1");
    let module = source.file_stem().unwrap_or_default();
    let made = scratch(workspace)?.join(module).with_extension("wasm");
    let stamp = made.with_extension("stamp");
    let inputs = version + &read_text(&interface.join("router.wit"))? + &read_text(source)?;
    if made.is_file() && fs::read_to_string(&stamp).is_ok_and(|found| found == inputs) {
        return Ok(Some(made));
    }
    let mut tool = Command::new("componentize-py");
    tool.arg("-d").arg(interface).args(["-w", "plan-only", "componentize", "--stub-wasi", "-p"]);
    tool.arg(source.parent().unwrap_or(Path::new("."))).arg(module).arg("-o").arg(&made);
    output(&mut tool)?;
    fs::write(&stamp, inputs).context(|| format!("cannot write {}", stamp.display()))?;
    Ok(Some(made))
}

#[cfg(test)]
mod tests {
    use super::file_of;

    #[test]
    fn the_file_of_a_manifest() {
        assert_eq!(file_of("name = \"a\"\nfile = \"a.wasm\"\n"), Some("a.wasm"));
        assert_eq!(file_of("profile = \"a\"\n"), None);
    }
}
