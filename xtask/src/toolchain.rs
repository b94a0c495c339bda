//! Chooses the compiler for WASM: the installed one, else a private one, else one provisioned now.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use crate::provision;
use crate::step::{Context as _, Failure, Outcome, output};
use crate::workspace::Workspace;

/// The target plugins are compiled for.
pub(crate) const WASM: &str = "wasm32-unknown-unknown";
/// The beginning of the name of a private toolchain's folder; the package's version follows.
pub(crate) const PREFIX: &str = "wasm-toolchain-";
/// The oldest compiler that the workspace is built with.
pub(crate) const MINIMUM: &str = env!("CARGO_PKG_RUST_VERSION");
/// Advice where there is no compiler.
const MEND: &str = "run `rustup target add wasm32-unknown-unknown`";

/// A compiler that can build for WASM.
#[derive(Debug)]
pub(crate) enum Toolchain {
    /// The host's own compiler has the target.
    Installed { library: PathBuf },
    /// A private compiler in the cache, with the host's linker.
    Private { rustc: PathBuf, linker: PathBuf },
}

impl Toolchain {
    /// Finds a toolchain, or provisions one where that is possible. Provisioning takes minutes and
    /// downloads.
    pub(crate) fn find(workspace: &Workspace) -> Outcome<Self> {
        let (sysroot, triple) = host(workspace)?;
        let library = wasm_library(&sysroot);
        if has_std(&library) {
            return Ok(Self::Installed { library });
        }
        if !provision::possible() {
            return Err(Failure::new(format!("no compiler for WASM; {MEND}")));
        }
        let linker = sysroot.join("lib/rustlib").join(triple).join("bin/rust-lld");
        if !linker.is_file() {
            return Err(Failure::new(format!("no rust-lld in the host's toolchain; {MEND}")));
        }
        let cache = cache()?;
        let folder = match existing(&cache) {
            Some(folder) => folder,
            None => provision::provision(&cache).map_err(|failure| {
                Failure::new(format!(
                    "cannot provision a compiler for WASM: {}\ninstead, {MEND}",
                    failure.message
                ))
            })?,
        };
        Ok(Self::Private { rustc: folder.join("rustc"), linker })
    }

    /// The toolchain's files, for the terminal.
    fn describe(&self) -> String {
        match self {
            Self::Installed { library } => format!("installed target: {}", library.display()),
            Self::Private { rustc, linker } => {
                format!("private compiler: {}\nlinker: {}", rustc.display(), linker.display())
            }
        }
    }
}

/// Sees to a toolchain where `polyskill plugin build` finds it.
pub(crate) fn provide(workspace: &Workspace) -> Outcome<()> {
    Toolchain::find(workspace).map(|_| ())
}

/// The task `toolchain`: says which one is used, and provisions it if need be.
pub(crate) fn show(workspace: &Workspace) -> Outcome<()> {
    println!("{}", Toolchain::find(workspace)?.describe());
    Ok(())
}

/// Takes the flags from a cargo command that are meant for the host (a CPU, a linker): they would
/// break or slow down a build for WASM.
pub(crate) fn without_flags(cargo: &mut Command) {
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS"] {
        cargo.env_remove(name);
    }
}

/// True for a version such as `1.96.0+dfsg1-1` that is not older than [`MINIMUM`]. The first two
/// numbers count.
pub(crate) fn new_enough(version: &str) -> bool {
    let number = |text: &str| {
        let mut parts = text.split(|c: char| !c.is_ascii_digit());
        let mut next = || parts.next().and_then(|part| part.parse::<u32>().ok());
        next().zip(next())
    };
    number(version) >= number(MINIMUM)
}

/// The newest complete private toolchain that still runs and is new enough.
pub(crate) fn existing(cache: &Path) -> Option<PathBuf> {
    let mut found: Vec<(SystemTime, PathBuf)> = fs::read_dir(cache)
        .ok()?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, folder)| folder).find(|folder| {
        let version = || output(Command::new(folder.join("rustc")).arg("--version")).ok();
        let version = || version()?.split(' ').nth(1).map(new_enough);
        has_std(&wasm_library(&folder.join("usr"))) && version() == Some(true)
    })
}

/// The folder in which a sysroot keeps the standard library for WASM.
pub(crate) fn wasm_library(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib").join(WASM).join("lib")
}

/// True for a library folder that holds a standard library.
pub(crate) fn has_std(library: &Path) -> bool {
    std_file(library).is_some()
}

/// The file of the standard library, if there is one.
fn std_file(library: &Path) -> Option<PathBuf> {
    fs::read_dir(library).ok()?.filter_map(Result::ok).map(|entry| entry.path()).find(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libstd-"))
            && path.extension() == Some(OsStr::new("rlib"))
    })
}

/// The host compiler's sysroot and triple. The compiler is asked in the workspace's root, where
/// rustup may choose another one.
fn host(workspace: &Workspace) -> Outcome<(PathBuf, String)> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let ask = |argument: &[&str]| {
        output(Command::new(&rustc).args(argument).current_dir(&workspace.root))
    };
    let sysroot = ask(&["--print", "sysroot"])?;
    let version = ask(&["-vV"])?;
    let triple = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .ok_or_else(|| Failure::new("`rustc -vV` names no host"))?;
    Ok((PathBuf::from(sysroot.trim_end()), triple.to_owned()))
}

/// The project's cache folder, absolute: `POLYSKILL_CACHE`, else `polyskill` in `XDG_CACHE_HOME` or
/// in `.cache` of the home. It need not exist.
pub(crate) fn cache() -> Outcome<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let folder = variable("POLYSKILL_CACHE")
        .map(PathBuf::from)
        .or_else(|| variable("XDG_CACHE_HOME").map(|base| Path::new(&base).join("polyskill")))
        .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".cache/polyskill")))
        .ok_or_else(|| Failure::new("no cache folder; set POLYSKILL_CACHE or HOME"))?;
    std::path::absolute(&folder).context(|| format!("cache folder {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::{MINIMUM, new_enough};

    #[test]
    fn versions_are_compared_as_numbers() {
        for (version, expected) in [
            ("1.96.0+dfsg1-1~deb12u2", true),
            ("1.85.0+dfsg3-1~deb12u3", false),
            (MINIMUM, true),
            ("1.100.0-nightly", true),
            ("2.0", true),
            ("", false),
        ] {
            assert_eq!(new_enough(version), expected, "{version}");
        }
    }
}
