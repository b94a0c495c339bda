//! Provisions a private compiler for WASM from Debian's packages: compiler, std source, std built
//! once.
//!
//! Everything is unpacked in the cache without root and without touching the user's rustup. Work is
//! done in a folder that is never looked at otherwise, and renamed at the end; a lock keeps two
//! runs apart.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::step::{Context as _, Failure, Outcome, output, run, step};
use crate::toolchain::{
    MINIMUM, PREFIX, WASM, existing, has_std, new_enough, wasm_library, without_flags,
};
use crate::workspace::cargo_program;

/// Debian's packages of the compiler, its source, and the standard library of the host. The version
/// of the first is in the name of the folder.
const PACKAGES: [&str; 3] = ["rustc-web", "rust-web-src", "libstd-rust-web-dev"];

/// Package names with the versions to download.
type Packages = BTreeMap<String, String>;

/// True on a Debian with the tools that are needed.
pub(crate) fn possible() -> bool {
    let runs = |program: &str| {
        let mut command = Command::new(program);
        command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    Path::new("/etc/debian_version").exists() && runs("apt-get") && runs("dpkg")
}

/// Provisions the toolchain under `cache` and returns its folder.
///
/// It takes minutes and some 150 MB of downloads, once. A run that is killed leaves a folder that
/// the next run removes.
pub(crate) fn provision(cache: &Path) -> Outcome<PathBuf> {
    println!("no compiler for WASM yet; provisioning one once (about 150 MB to download)");
    fs::create_dir_all(cache).context(|| format!("cannot create {}", cache.display()))?;
    let lock = cache.join("wasm-toolchain.lock");
    let lock = File::create(&lock).context(|| format!("cannot create {}", lock.display()))?;
    lock.lock().context(|| "cannot lock the cache".to_owned())?;
    if let Some(folder) = existing(cache) {
        return Ok(folder); // another run was faster
    }
    let work = cache.join(".wasm-toolchain-unfinished");
    remove(&work)?;
    let debs = work.join("debs");
    fs::create_dir_all(&debs).context(|| format!("cannot create {}", debs.display()))?;
    let packages = step("wasm toolchain: download", || download(&debs))?;
    step("wasm toolchain: unpack", || unpack(&debs, &work))?;
    step("wasm toolchain: build std", || build_std(&work))?;
    for leftover in ["debs", "std", "usr/src", "usr/lib/rustlib/src", "usr/share"] {
        remove(&work.join(leftover))?;
    }
    let version = packages.get(PACKAGES[0]).map_or("unknown", String::as_str).replace(':', "_");
    let folder = cache.join(format!("{PREFIX}{version}"));
    remove(&folder)?; // only ever one that no longer works
    fs::rename(&work, &folder).context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

/// Downloads what apt chooses; where that fails, once more with fresh package lists.
fn download(debs: &Path) -> Outcome<Packages> {
    let attempt = || -> Outcome<Packages> {
        let packages = choose()?;
        let mut apt = apt("download");
        apt.args(["-qq", "-o", "APT::Sandbox::User=root"]).current_dir(debs);
        apt.args(packages.iter().map(|(name, version)| format!("{name}={version}")));
        run(&mut apt)?;
        Ok(packages)
    };
    attempt().or_else(|failure| {
        println!("{}", failure.message);
        update()?;
        attempt()
    })
}

/// Fetches fresh package lists, which only root may.
fn update() -> Outcome<()> {
    if output(Command::new("id").arg("-u"))?.trim() != "0" {
        return Err(Failure::new(
            "apt's package lists are missing or out of date; run `apt-get update` as root",
        ));
    }
    run(apt("update").arg("-qq"))
}

/// Packages to unpack: the compiler and its libraries in any case, other libraries where they are
/// missing.
///
/// Nothing is installed: apt simulates it, once for this system and once for an empty one.
fn choose() -> Outcome<Packages> {
    let simulate = |options: &[&str]| {
        let mut apt = apt("install");
        apt.args(["-s", "--no-install-recommends"]).args(options).args(PACKAGES);
        output(&mut apt).map(|text| installed_by(&text))
    };
    let missing = simulate(&[])?;
    let mut packages = missing.clone();
    // As if nothing were installed: what the system has of the compiler must not be mixed in.
    packages.extend(simulate(&["-o", "Dir::State::status=/dev/null"]).unwrap_or_default());
    let own = |name: &str| {
        PACKAGES.contains(&name)
            || ["libstd-rust-web-", "libllvm"].iter().any(|p| name.starts_with(p))
    };
    packages.retain(|name, _| own(name) || (name.starts_with("lib") && missing.contains_key(name)));
    if let Some(absent) = PACKAGES.iter().find(|name| !packages.contains_key(**name)) {
        return Err(Failure::new(format!("apt offers no package {absent}")));
    }
    // Old package lists offer the compiler that the system was released with.
    match packages.get(PACKAGES[0]) {
        Some(version) if !new_enough(version) => Err(Failure::new(format!(
            "apt offers {} {version}, at least {MINIMUM} is needed",
            PACKAGES[0]
        ))),
        _ => Ok(packages),
    }
}

/// Packages newly installed by a simulated run: `Inst name (version origin [arch])`.
fn installed_by(simulation: &str) -> Packages {
    let package = |line: &str| {
        let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
        let version = rest.strip_prefix('(')?.split(' ').next()?;
        Some((name.to_owned(), version.to_owned()))
    };
    simulation.lines().filter_map(package).collect()
}

/// An apt command whose output is in English, since it is parsed.
fn apt(task: &str) -> Command {
    let mut command = Command::new("apt-get");
    command.env("LC_ALL", "C").arg(task);
    command
}

/// Unpacks the packages and writes the wrapper that starts the compiler with its own libraries,
/// wherever the folder is moved.
fn unpack(debs: &Path, work: &Path) -> Outcome<()> {
    for deb in files(debs, "deb")? {
        run(Command::new("dpkg").arg("-x").arg(deb).arg(work))?;
    }
    let driver = files(&work.join("usr/lib"), "so")?
        .into_iter()
        .find(|path| path.to_string_lossy().contains("librustc_driver"))
        .ok_or_else(|| Failure::new("the packages hold no compiler"))?;
    let libraries = driver
        .parent()
        .and_then(|folder| folder.strip_prefix(work).ok())
        .ok_or_else(|| Failure::new("the compiler's library is not where it should be"))?;
    let wrapper = work.join("rustc");
    let script = format!(
        "#!/bin/sh\nroot=${{0%/*}}\n\
         LD_LIBRARY_PATH=\"$root/{}\" exec \"$root/usr/bin/rustc\" \"$@\"\n",
        libraries.display()
    );
    fs::write(&wrapper, script).context(|| "cannot write the compiler's wrapper".to_owned())?;
    run(Command::new("chmod").arg("+x").arg(&wrapper))?;
    println!("{}", output(Command::new(&wrapper).arg("--version"))?.trim_end());
    Ok(())
}

/// Builds the standard library from the compiler's own source and puts it into its sysroot.
///
/// Cargo builds it for a crate, so an empty one is made; all libraries but that crate's are copied.
fn build_std(work: &Path) -> Outcome<()> {
    let folder = work.join("std");
    let manifest =
        "[package]\nname = \"empty\"\nversion = \"0.0.0\"\nedition = \"2021\"\n[workspace]\n";
    let write = |name: &str, text: &str| {
        fs::write(folder.join(name), text).context(|| format!("cannot write {name}"))
    };
    fs::create_dir_all(folder.join("src")).context(|| "cannot create a folder".to_owned())?;
    write("Cargo.toml", manifest)?;
    write("src/lib.rs", "#![no_std]\n")?;
    let target = folder.join("target");
    let mut cargo = Command::new(cargo_program());
    without_flags(&mut cargo);
    cargo.args(["build", "--release", "--target", WASM, "-Zbuild-std=std,panic_abort"]);
    cargo.arg("--target-dir").arg(&target).current_dir(&folder);
    // Without bitcode, plugins could not be built with link-time optimisation.
    cargo.env("RUSTFLAGS", "-C embed-bitcode=yes");
    cargo.env("RUSTC_BOOTSTRAP", "1").env("RUSTC", work.join("rustc"));
    run(&mut cargo)?;
    let library = wasm_library(&work.join("usr"));
    fs::create_dir_all(&library).context(|| format!("cannot create {}", library.display()))?;
    for built in files(&target.join(WASM).join("release"), "rlib")? {
        match built.file_name() {
            Some(name) if !name.to_string_lossy().starts_with("libempty") => {
                fs::copy(&built, library.join(name)).context(|| "cannot copy std".to_owned())?;
            }
            _ => {}
        }
    }
    if has_std(&library) { Ok(()) } else { Err(Failure::new("the build of std left no library")) }
}

/// All files below `folder` with an extension, sorted; links to folders are not followed.
fn files(folder: &Path, extension: &str) -> Outcome<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries.filter_map(Result::ok) {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            } else if entry.path().extension() == Some(OsStr::new(extension)) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Removes a file, a folder or a link, if there is one.
fn remove(path: &Path) -> Outcome<()> {
    match fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(entry) if entry.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    }
    .context(|| format!("cannot remove {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::installed_by;

    #[test]
    fn upgrades_are_not_new_packages() {
        let found = installed_by(
            "Reading package lists...\n\
             Inst rustc-web (1.96.0+dfsg1-1 Debian:12 [amd64])\n\
             Inst libc6 [2.36-9] (2.36-10 Debian:12 [amd64])\n\
             Conf rustc-web (1.96.0+dfsg1-1 Debian:12 [amd64])\n",
        );
        let found: Vec<_> = found.into_iter().collect();
        assert_eq!(found, [("rustc-web".to_owned(), "1.96.0+dfsg1-1".to_owned())]);
    }
}
