//! Finds what routers are compiled with: the SDK, a Rust compiler for WebAssembly, C compilers,
//! componentize-py.
//!
//! For Rust it looks where `cargo xtask` does: the installed target, then the private compiler in
//! the cache.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use polyskill_sources::cache::cache_directory;

/// The target of plugins in Rust.
pub(super) const WASM: &str = "wasm32-unknown-unknown";
/// The beginning of the name of a private toolchain's folder, as `cargo xtask` names it.
const PREFIX: &str = "wasm-toolchain-";
/// The variable in which cargo looks for flags of the compiler that are meant for plugins. If it is
/// set, it is left as it is.
const WASM_FLAGS: &str = "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS";
/// Vector instructions, which every host of plugins has: loops over scores are two to three times
/// as fast.
const SIMD: &str = "-C target-feature=+simd128";
/// The way to get a Rust compiler for WebAssembly.
pub(super) const GET_RUST: &str = "rustup target add wasm32-unknown-unknown\n\
    or, without rustup on Debian, in a checkout of polyskill: cargo xtask toolchain";
/// The way to get a C compiler for WebAssembly.
pub(super) const GET_C: &str = "apt-get install clang lld\nor: pip install ziglang";
/// The program that makes components of Python.
pub(super) const COMPONENTIZE_PY: &str = "componentize-py";
/// The way to get componentize-py.
pub(super) const GET_PYTHON: &str = "pip install componentize-py";

/// A Rust compiler that can build for WebAssembly.
#[derive(Clone, Debug)]
pub(super) enum RustCompiler {
    /// The compiler on the path has the target.
    Installed { sysroot: PathBuf },
    /// A private compiler, with the linker of the one on the path.
    Private { rustc: PathBuf, linker: PathBuf },
}

impl RustCompiler {
    /// Makes a cargo command build with this compiler.
    pub(super) fn apply(&self, cargo: &mut Command) {
        without_flags(cargo);
        if std::env::var_os(WASM_FLAGS).is_none() {
            cargo.env(WASM_FLAGS, SIMD);
        }
        if let Self::Private { rustc, linker } = self {
            cargo.env("RUSTC", rustc).env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
        }
    }

    /// A text that differs between any two compilers, and between two builds of the standard library
    /// by one: its file, whose name has a hash, and its time.
    pub(super) fn identity(&self) -> String {
        let library = match self {
            Self::Installed { sysroot } => std_file(sysroot),
            Self::Private { rustc, .. } => {
                rustc.parent().and_then(|folder| std_file(&folder.join("usr")))
            }
        };
        let built = library.as_ref().and_then(|file| file.metadata().ok()?.modified().ok());
        format!("{}\n{library:?}\n{built:?}\n", self.describe())
    }

    /// The compiler's place.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Installed { sysroot } => format!("{} with {WASM}", sysroot.display()),
            Self::Private { rustc, .. } => rustc.display().to_string(),
        }
    }
}

/// Takes the flags from a cargo command that are meant for this machine: they would break or slow
/// down a plugin.
pub(super) fn without_flags(cargo: &mut Command) {
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS"] {
        cargo.env_remove(name);
    }
}

/// Cargo, as whoever runs this program means it.
pub(super) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// A program among the private compilers of `cargo xtask compilers`, or on the path; private ones
/// come first.
pub(super) fn tool(program: &str) -> Command {
    let mut command = Command::new(program);
    let old = std::env::var_os("PATH").unwrap_or_default();
    let private = cache_directory().join("plugin-compilers/bin");
    let folders = std::iter::once(private).chain(std::env::split_paths(&old));
    if let Ok(path) = std::env::join_paths(folders) {
        command.env("PATH", path);
    }
    command
}

/// True if a program says its version.
pub(super) fn has(program: &str) -> bool {
    output(tool(program).arg("--version")).is_some()
}

/// A command's output, if it ran and succeeded. Its standard error is dropped.
pub(super) fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The file of a sysroot's standard library for WebAssembly; `None` where it has none.
fn std_file(sysroot: &Path) -> Option<PathBuf> {
    let library = sysroot.join("lib/rustlib").join(WASM).join("lib");
    let is_std = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libstd-") && name.ends_with(".rlib")
    };
    let entries = std::fs::read_dir(library).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).find(is_std)
}

/// True if a sysroot has the standard library for WebAssembly.
fn has_std(sysroot: &Path) -> bool {
    std_file(sysroot).is_some()
}

/// The compiler for a project: the one on the path if it has the target, else a private one from
/// the cache.
///
/// The folder matters to rustup, which may choose another compiler there. Nothing is downloaded.
///
/// # Errors
/// If there is none, with the commands that get one.
pub(super) fn rust(project: &Path) -> Result<RustCompiler, String> {
    let missing = |what: &str| format!("{what}; get it with\n{GET_RUST}");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let ask =
        |arguments: &[&str]| output(Command::new(&rustc).args(arguments).current_dir(project));
    let sysroot = ask(&["--print", "sysroot"]).ok_or_else(|| missing("there is no `rustc`"))?;
    let sysroot = PathBuf::from(sysroot.trim_end());
    if has_std(&sysroot) {
        return Ok(RustCompiler::Installed { sysroot });
    }
    let no_target = || missing(&format!("`rustc` has no target {WASM}"));
    let rustc = private(&cache_directory()).ok_or_else(no_target)?;
    let version = ask(&["-vV"]).unwrap_or_default();
    let triple = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
    let linker = sysroot.join("lib/rustlib").join(triple).join("bin/rust-lld");
    linker.is_file().then_some(RustCompiler::Private { rustc, linker }).ok_or_else(no_target)
}

/// The newest compiler in the cache that has its standard library and runs.
fn private(cache: &Path) -> Option<PathBuf> {
    let cache = std::path::absolute(cache).ok()?;
    let mut found: Vec<(SystemTime, PathBuf)> = std::fs::read_dir(cache)
        .ok()?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    found.sort();
    let complete = |folder: &PathBuf| {
        has_std(&folder.join("usr"))
            && output(Command::new(folder.join("rustc")).arg("--version")).is_some()
    };
    let newest = found.into_iter().rev().map(|(_, folder)| folder).find(complete);
    newest.map(|folder| folder.join("rustc"))
}

/// A C compiler for WebAssembly, as its program and first arguments: clang if it has the target and
/// a linker, else zig, else zig as a package of Python.
pub(super) fn c() -> Option<Vec<String>> {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<String>>();
    let answers = |program: &str, arguments: &[&str]| output(tool(program).args(arguments));
    let targets = answers("clang", &["--print-targets"]).unwrap_or_default();
    if targets.contains("wasm32") && answers("wasm-ld", &["--version"]).is_some() {
        return Some(words("clang --target=wasm32"));
    }
    if answers("zig", &["version"]).is_some() {
        return Some(words("zig cc --target=wasm32-freestanding"));
    }
    answers("python3", &["-m", "ziglang", "version"])?;
    Some(words("python3 -m ziglang cc --target=wasm32-freestanding"))
}

/// The version of componentize-py, if it is on the path.
pub(super) fn componentize_py() -> Option<String> {
    output(tool(COMPONENTIZE_PY).arg("--version")).map(|text| text.trim().to_owned())
}

/// The SDK's folder, absolute: the given one, or that of a checkout around the working directory or
/// this program; `None` if there is none.
///
/// # Errors
/// If the given folder is not the SDK's.
pub(super) fn sdk(given: Option<&Path>) -> Result<Option<PathBuf>, String> {
    let absolute =
        |path: &Path| path.canonicalize().map_err(|e| format!("{}: {e}", path.display()));
    let is_sdk = |folder: &Path| {
        let text = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
        text.contains("name = \"polyskill-sdk\"")
    };
    if let Some(given) = given {
        let folder = absolute(given)?;
        let wrong = || format!("{} is not the folder of polyskill-sdk", folder.display());
        return is_sdk(&folder).then_some(Some(folder.clone())).ok_or_else(wrong);
    }
    let starts = [std::env::current_dir(), std::env::current_exe()];
    let starts: Vec<PathBuf> = starts.into_iter().flatten().collect();
    let mut folders = starts.iter().flat_map(|start| start.ancestors()).map(|at| at.join("sdk"));
    folders.find(|folder| is_sdk(folder)).map(|folder| absolute(&folder)).transpose()
}
