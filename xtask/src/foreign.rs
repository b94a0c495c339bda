//! Plugins that are not written in Rust: C on the flat ABI, gate files, Python.
//!
//! Each is a folder with the manifest of its bundle. What the manifest calls `file` is there
//! already, or is made from a source of the same stem. A compiler that is not there is no failure:
//! the plugin is skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::plugins::{fixtures, replace};
use crate::step::{Context as _, Failure, Outcome, output, step};
use crate::toolchain;
use crate::workspace::Workspace;

/// Folder of C plugins as dynamic libraries: not among the bundles that a server loads by itself.
const NATIVE: &str = "native-plugins";
/// Folder of Python plugins: each brings an interpreter that takes a server half a minute to
/// compile.
const PYTHON: &str = "python-plugins";
/// Flags of every C compiler. Multiplications and additions are not contracted, so that a sum has
/// the same bits wherever it is compiled.
const C_FLAGS: [&str; 6] = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"];
/// C compilers for WebAssembly, and the arguments by which each builds for it; the first that works
/// is taken.
const WASM_COMPILERS: [(&[&str], &[&str]); 4] = [
    (&["clang"], &["--target=wasm32", "-mbulk-memory"]),
    (&["zig", "cc"], &ZIG_TARGET),
    (&["python3", "-m", "ziglang", "cc"], &ZIG_TARGET),
    (&["python", "-m", "ziglang", "cc"], &ZIG_TARGET),
];
/// Zig's arguments for WebAssembly with the instructions that clang is allowed.
const ZIG_TARGET: [&str; 3] = ["-target", "wasm32-freestanding", "-mcpu=generic+bulk_memory"];
/// Linking without a standard library, an entry point and names for debuggers.
const WASM_FLAGS: [&str; 3] = ["-nostdlib", "-Wl,--no-entry", "-Wl,--strip-all"];

/// Builds and bundles one folder.
///
/// C plugins become a core module among the bundles and a dynamic library elsewhere. Where a
/// compiler is missing, an older bundle of the plugin is removed.
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
            Some(made) => write(source, &bundle, &manifest, file, &made),
            // An older one would be taken for this source's.
            None if bundle.exists() => fs::remove_dir_all(&bundle)
                .context(|| format!("cannot remove {}", bundle.display())),
            None => Ok(()),
        }
    })
}

/// Writes a bundle: the code `made` under the name `file`, the fixtures of `source`, and the
/// manifest last, so that a watching server finds the rest in place.
fn write(source: &Path, bundle: &Path, manifest: &str, file: &str, made: &Path) -> Outcome<()> {
    let code = fs::read(made).context(|| format!("cannot read {}", made.display()))?;
    fs::create_dir_all(bundle).context(|| format!("cannot create {}", bundle.display()))?;
    replace(bundle, file, &code)?;
    fixtures(source, bundle)?;
    replace(bundle, "plugin.toml", manifest.as_bytes())?;
    println!("    {} ({} KiB)", bundle.display(), code.len().div_ceil(1024));
    Ok(())
}

/// A file's text.
fn read_text(path: &Path) -> Outcome<String> {
    fs::read_to_string(path).context(|| format!("cannot read {}", path.display()))
}

/// The value of `file` in a manifest, which is one plain line; no TOML is parsed.
fn file_of(manifest: &str) -> Option<&str> {
    manifest.lines().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == "file").then(|| value.trim().trim_matches('"'))
    })
}

/// The folder that compilers write to, which is made if need be.
fn scratch(workspace: &Workspace) -> Outcome<PathBuf> {
    let folder = workspace.target.join("foreign");
    fs::create_dir_all(&folder).context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

/// Says that a plugin is left out, and why.
fn skipped(why: &str) {
    println!("    SKIPPED: {why}");
}

/// Compilers of languages other than Rust, as Python packages with their versions.
const PACKAGES: [&str; 2] = ["ziglang==0.17.1", "componentize-py==0.25.1"];

/// The private environment of Python in which `cargo xtask compilers` puts them; it need not exist.
/// `None` without a cache folder.
fn compilers() -> Option<PathBuf> {
    toolchain::cache().ok().map(|cache| cache.join("plugin-compilers"))
}

/// The task `compilers`: gets what builds the plugins in C and Python, privately.
///
/// A stamp for each package and version says that it is there, so a second run downloads nothing.
pub(crate) fn install() -> Outcome<()> {
    let folder = toolchain::cache()?.join("plugin-compilers");
    if PACKAGES.iter().all(|package| is_installed(&folder, package)) {
        println!("{} has {}", folder.display(), PACKAGES.join(", "));
        return Ok(());
    }
    step("compilers for C and Python (about 150 MB to download)", || {
        output(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        let pip = folder.join("bin/python");
        output(Command::new(pip).args(["-m", "pip", "install", "--quiet"]).args(PACKAGES))?;
        for package in PACKAGES {
            let stamp = folder.join(format!("{package}.stamp"));
            fs::write(&stamp, "").context(|| format!("cannot write {}", stamp.display()))?;
        }
        Ok(())
    })
}

/// True if this version of a package was installed to the end.
fn is_installed(folder: &Path, package: &str) -> bool {
    folder.join(format!("{package}.stamp")).is_file()
}

/// A program among the private compilers, or on the PATH; private ones come first.
fn found(program: &str) -> Command {
    let mut command = Command::new(program);
    let old = std::env::var_os("PATH").unwrap_or_default();
    let private = compilers().map(|folder| folder.join("bin"));
    let folders = private.into_iter().chain(std::env::split_paths(&old));
    if let Ok(path) = std::env::join_paths(folders) {
        command.env("PATH", path);
    }
    command
}

/// True if a command can be started and succeeds; its output is dropped.
fn is_ok(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// A command of a program and its first arguments.
fn command(program: &[&str]) -> Command {
    let mut command = found(program.first().copied().unwrap_or_default());
    command.args(program.iter().skip(1));
    command
}

/// The core module of a C plugin; `None` where no compiler can build for WebAssembly.
///
/// A compiler that exists may still lack the target or the linker, so each is tried on an empty
/// program.
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
            "no C compiler for WebAssembly; run `cargo xtask compilers`, or install clang with lld",
        );
        return Ok(None);
    };
    output(&mut compile(compiler, source))?;
    Ok(Some(made))
}

/// The dynamic library of a C plugin, in a bundle of its own whose manifest names it. Nothing is
/// built on Windows or without `cc`.
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
    write(folder, &bundle, &manifest, &library, &made)
}

/// Makes a component; again only if the source, the interface or the tool has changed. `None` where
/// the tool is missing.
fn python(workspace: &Workspace, source: &Path) -> Outcome<Option<PathBuf>> {
    let Ok(version) = output(found("componentize-py").arg("--version")) else {
        skipped("no `componentize-py`; run `cargo xtask compilers`");
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
    let mut tool = found("componentize-py");
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
