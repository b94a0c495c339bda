//! `polyskill plugin build`: from a project to a bundle.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write};
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use clap::{Args, ValueEnum};
use polyskill_plugin::{Kind, Limits, MANIFEST_FILE, Manifest, SIGNATURE_FILE};

use super::{Language, bundle_folder, read_manifest, say, short_name, toolchain};

/// The project, and the form that its code becomes.
#[derive(Args, Clone, Debug)]
pub struct BuildArgs {
    /// The project's folder.
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    /// Form of the code; by default a component for Rust and Python, a core module for C.
    #[arg(long = "as", value_enum)]
    pub flavour: Option<Flavour>,
    /// Have cargo use what is on this machine already.
    #[arg(long)]
    pub offline: bool,
}

/// The form that code becomes. A gate file stays as it is, whatever the form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Flavour {
    /// A component of the WIT world.
    Component,
    /// A core module of the flat ABI.
    Core,
    /// A dynamic library of the flat ABI: no sandbox.
    Dylib,
}

/// Files and folders that are listed of a bundle at most. No bundle has so many: a folder that does
/// is another one, and nothing in it is to be removed.
const MAX_LISTED: usize = 4_096;
/// Folders below a bundle's own that are listed at most, one in the other.
const MAX_DEPTH: usize = 8;

/// Cargo's feature for the flat ABI. Without it, the SDK exports a component's functions.
const FLAT: &str = "polyskill-sdk/flat";

/// Builds and says where the bundle is, how large its code is and how long it took.
pub(super) fn run(args: &BuildArgs, out: &mut dyn Write) -> Result<(), String> {
    let start = Instant::now();
    let built = build(args, out)?;
    let seconds = start.elapsed().as_secs_f64();
    let kib = built.code_bytes.div_ceil(1024);
    say(
        out,
        format_args!(
            "built {} ({}, {kib} KiB) in {seconds:.1} s",
            built.folder.display(),
            built.kind
        ),
    )
}

/// The result of a build.
pub(super) struct Built {
    /// The bundle's folder.
    pub(super) folder: PathBuf,
    /// The kind of plugin that the bundle was found to be.
    pub(super) kind: Kind,
    /// Bytes of the code, without manifest and fixtures.
    pub(super) code_bytes: usize,
}

/// Compiles a project and writes its bundle.
///
/// The bundle goes to `target/bundle/NAME` in the project; one whose form was asked for goes to
/// `target/bundle/FORM/NAME`, so that forms can be compared. A dynamic library's manifest names
/// another file than the project's does. The bundle is inspected at the end and not loaded.
pub(super) fn build(args: &BuildArgs, out: &mut dyn Write) -> Result<Built, String> {
    let mut manifest = read_manifest(&args.dir)?;
    let language = language(&args.dir, &manifest)?;
    let flavour = args.flavour.unwrap_or(match language {
        Language::C => Flavour::Core,
        _ => Flavour::Component,
    });
    let mut manifest_text = fs::read_to_string(args.dir.join(MANIFEST_FILE))
        .map_err(|error| format!("{}: {error}", args.dir.display()))?;
    if flavour == Flavour::Dylib && language != Language::Gate {
        let file = format!("{}{}", short_name(&manifest.name), std::env::consts::DLL_SUFFIX);
        let mut table: toml::Table =
            toml::from_str(&manifest_text).map_err(|error| error.to_string())?;
        table.insert("file".to_owned(), toml::Value::String(file.clone()));
        manifest_text = table.to_string();
        manifest.file = file;
    }
    let code = match (language, flavour) {
        (Language::Gate, _) => read(&args.dir.join(&manifest.file))?,
        (Language::Rust, _) => rust(args, flavour, out)?,
        (Language::C, Flavour::Core | Flavour::Dylib) => c(&args.dir, flavour, &manifest, out)?,
        (Language::Python, Flavour::Component) => python(&args.dir, &manifest, out)?,
        (Language::C, Flavour::Component) => {
            return Err("C becomes a core module or a dynamic library, not a component".to_owned());
        }
        (Language::Python, _) => return Err("Python becomes a component only".to_owned()),
    };
    let code_bytes = code.len();
    let mut files = fixtures(&args.dir)?;
    files.insert(MANIFEST_FILE.to_owned(), manifest_text.into_bytes());
    files.insert(manifest.file.clone(), code);
    let mut folder = bundle_folder(&args.dir, &manifest.name);
    // Other forms lie beside the ordinary one, to be compared with it.
    if let Some(flavour) = args.flavour {
        let form =
            flavour.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned());
        folder = args.dir.join("target/bundle").join(form).join(short_name(&manifest.name));
    }
    replace_folder(&folder, &files)?;
    let found = polyskill_plugin::inspect(&folder, &Limits::default());
    let kind = found.map_err(|error| error.to_string())?.kind;
    Ok(Built { folder, kind, code_bytes })
}

/// The language of a project, by its files: a Cargo.toml counts first, then a gate file in the
/// manifest, then C, then Python.
fn language(dir: &Path, manifest: &Manifest) -> Result<Language, String> {
    let has = |extension: &str| sources(dir, extension).next().is_some();
    if dir.join("Cargo.toml").is_file() {
        Ok(Language::Rust)
    } else if manifest.file.ends_with(".toml") {
        Ok(Language::Gate)
    } else if has("c") {
        Ok(Language::C)
    } else if has("py") {
        Ok(Language::Python)
    } else {
        Err(format!(
            "{} holds no Cargo.toml, no gate file that plugin.toml names, no .c and no .py: nothing to \
             build",
            dir.display()
        ))
    }
}

/// Files of a folder with an extension, in the order of their names; none where there is no folder.
fn sources(dir: &Path, extension: &str) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    found.sort();
    found.into_iter()
}

/// Runs a compiler. Its output is an error where it fails; where it warns, it is shown without
/// cargo's lines about progress.
fn compile(command: &mut Command, out: &mut dyn Write) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("cannot run `{program}`: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        let also = String::from_utf8_lossy(&output.stdout).into_owned();
        return Err(format!("`{program}` failed:\n{}{}", said.trim_end(), also.trim_end()));
    }
    if said.contains("warning") {
        let progress = |line: &&str| {
            ["Compiling ", "Finished ", "Blocking "]
                .iter()
                .any(|p| line.trim_start().starts_with(p))
        };
        said.lines().filter(|line| !progress(line)).try_for_each(|line| say(out, line))?;
    }
    Ok(())
}

/// Compiles a crate and returns its library. Code for WebAssembly is free of the flags that are
/// meant for this machine.
fn rust(args: &BuildArgs, flavour: Flavour, out: &mut dyn Write) -> Result<Vec<u8>, String> {
    let dir = &args.dir;
    let library = library_name(dir)?;
    // Each form has a directory of its own: the SDK is built with other features there.
    let (folder, triple, file) = match flavour {
        Flavour::Component => ("wasm", toolchain::WASM, format!("{library}.wasm")),
        Flavour::Core => ("wasm-flat", toolchain::WASM, format!("{library}.wasm")),
        Flavour::Dylib => {
            let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
            ("native-flat", "", format!("{prefix}{library}{suffix}"))
        }
    };
    let target = std::path::absolute(dir.join("target").join(folder))
        .map_err(|error| format!("{}: {error}", dir.display()))?;
    let mut cargo = toolchain::cargo();
    cargo.args(["build", "--release"]).current_dir(dir).arg("--target-dir").arg(&target);
    if flavour == Flavour::Dylib {
        toolchain::without_flags(&mut cargo);
    } else {
        let compiler = toolchain::rust(dir)?;
        claim(&target, &compiler.describe())?;
        compiler.apply(&mut cargo);
        cargo.args(["--target", toolchain::WASM]);
    }
    if flavour != Flavour::Component {
        cargo.args(["--features", FLAT]);
    }
    if args.offline {
        cargo.arg("--offline");
    }
    compile(&mut cargo, out)?;
    let code = target.join(triple).join("release").join(file);
    read(&code).map_err(|error| format!("{error} (is its crate-type `cdylib`?)"))
}

/// Empties a target directory that another compiler has built in: cargo tells compilers apart, but
/// not standard libraries built by the same one.
fn claim(target: &Path, compiler: &str) -> Result<(), String> {
    let stamp = target.join("compiler.stamp");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == compiler) {
        return Ok(());
    }
    let emptied = if target.exists() { fs::remove_dir_all(target) } else { Ok(()) };
    emptied
        .and_then(|()| fs::create_dir_all(target))
        .and_then(|()| fs::write(&stamp, compiler))
        .map_err(|error| format!("{}: {error}", target.display()))
}

/// The name that cargo gives the crate's library: that of `[lib]`, else the package's, with
/// underscores.
fn library_name(dir: &Path) -> Result<String, String> {
    let path = dir.join("Cargo.toml");
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let table: toml::Table =
        toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let name = |table_name: &str| table.get(table_name)?.get("name")?.as_str();
    let name = name("lib").or_else(|| name("package"));
    let name = name.ok_or_else(|| format!("{} names no package", path.display()))?;
    Ok(name.replace('-', "_"))
}

/// Compiles all .c files of a project into one library.
///
/// The clang or zig that is found makes a core module with SIMD and bulk memory, without a standard
/// library; the system's `cc` makes a dynamic library.
fn c(
    dir: &Path,
    flavour: Flavour,
    manifest: &Manifest,
    out: &mut dyn Write,
) -> Result<Vec<u8>, String> {
    let target = dir.join("target");
    fs::create_dir_all(&target).map_err(|error| format!("{}: {error}", target.display()))?;
    let object = target.join(&manifest.file);
    let words: Vec<String> = if flavour == Flavour::Dylib {
        ["cc", "-shared", "-fPIC", "-fvisibility=hidden"].map(str::to_owned).to_vec()
    } else {
        let mut words = toolchain::c().ok_or_else(|| {
            format!("there is no C compiler for WebAssembly; get one with\n{}", toolchain::GET_C)
        })?;
        words.extend(
            ["-nostdlib", "-mbulk-memory", "-msimd128", "-Wl,--no-entry"].map(str::to_owned),
        );
        words
    };
    let mut compiler = Command::new(&words[0]);
    compiler.args(&words[1..]).args(["-O3", "-Wall", "-Wextra"]).args(sources(dir, "c"));
    compile(compiler.arg("-o").arg(&object), out)?;
    read(&object)
}

/// Makes a component of `router.py` with the world `plan-only`, which has no decisions on rows.
fn python(dir: &Path, manifest: &Manifest, out: &mut dyn Write) -> Result<Vec<u8>, String> {
    if toolchain::componentize_py().is_none() {
        return Err(format!("there is no componentize-py; get it with\n{}", toolchain::GET_PYTHON));
    }
    let target = dir.join("target");
    fs::create_dir_all(&target).map_err(|error| format!("{}: {error}", target.display()))?;
    let mut tool = Command::new("componentize-py");
    tool.args(["-d", "wit", "-w", "plan-only", "componentize", "--stub-wasi", "router"]);
    tool.arg("-o").arg(Path::new("target").join(&manifest.file)).current_dir(dir);
    compile(&mut tool, out)?;
    read(&target.join(&manifest.file))
}

/// A file's bytes.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// The fixtures of a project, its `fixtures/*.json`, by their paths in the bundle.
fn fixtures(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    sources(&dir.join("fixtures"), "json")
        .map(|path| Ok((format!("fixtures/{}", name(&path)), read(&path)?)))
        .collect()
}

/// Makes a folder hold these files and no others, by their paths with `/`.
///
/// Each file changes in one go, and only where it differs: a server may be watching. The folder as
/// a whole does not, so that server may see some files new and others old. A signature stays unless
/// a file was written or removed; hidden files stay.
pub(super) fn replace_folder(
    folder: &Path,
    files: &BTreeMap<String, Vec<u8>>,
) -> Result<(), String> {
    let fail = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    let before = if folder.is_dir() { list(folder)? } else { BTreeMap::new() };
    let is_stale = |name: &String| !files.contains_key(name) && name != SIGNATURE_FILE;
    let mut changed = before.keys().any(is_stale);
    for (name, content) in files {
        let path = folder.join(name);
        if fs::read(&path).is_ok_and(|old| old == *content) {
            continue;
        }
        changed = true;
        let parent = path.parent().unwrap_or(folder);
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let fresh = parent.join(format!(".{file}.new"));
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&fresh, content))
            .and_then(|()| fs::rename(&fresh, &path))
            .map_err(|error| fail(&path, error))?;
    }
    // A signature stays for as long as it fits.
    let kept = |name: &String| files.contains_key(name) || (name == SIGNATURE_FILE && !changed);
    for name in before.into_keys().filter(|name| !kept(name)) {
        let path = folder.join(name);
        fs::remove_file(&path).map_err(|error| fail(&path, error))?;
    }
    Ok(())
}

/// Copies a bundle's folder.
pub(super) fn copy_folder(from: &Path, to: &Path) -> Result<(), String> {
    let read = |(name, path): (String, PathBuf)| Ok((name, read(&path)?));
    let files = list(from)?.into_iter().map(read).collect::<Result<_, String>>()?;
    replace_folder(to, &files)
}

/// Copies a bundle in a form that can be signed, and returns the copy's path: a folder or a tar's
/// files become the folder `to`, and a bare file goes into it as it is.
pub(super) fn copy_to_sign(from: &Path, to: &Path) -> Result<PathBuf, String> {
    if from.is_dir() {
        copy_folder(from, to)?;
    } else if from.extension().is_some_and(|extension| extension == "tar") {
        replace_folder(to, &unpack(from)?)?;
    } else {
        let file = from.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let copy = to.join(&file);
        replace_folder(to, &BTreeMap::from([(file, read(from)?)]))?;
        return Ok(copy);
    }
    Ok(to.to_owned())
}

/// The files of a bundle's tar, by their paths with `/`.
///
/// # Errors
/// If it cannot be read, or holds what is no plain file or lies outside of the bundle.
fn unpack(path: &Path) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let fail = |error: std::io::Error| format!("{}: {error}", path.display());
    let bytes = read(path)?;
    let mut archive = tar::Archive::new(bytes.as_slice());
    let mut files = BTreeMap::new();
    for entry in archive.entries().map_err(fail)? {
        let mut entry = entry.map_err(fail)?;
        let name = entry.path().map_err(fail)?.into_owned();
        let is_inside = name.components().all(|part| matches!(part, Component::Normal(_)));
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            continue;
        }
        if !kind.is_file() || !is_inside {
            let (path, name) = (path.display(), name.display());
            return Err(format!("{path}: `{name}`, expected a plain file inside of the bundle"));
        }
        let mut content = Vec::new();
        // The archive is in memory, so that a plain file cannot be larger than it.
        entry.read_to_end(&mut content).map_err(fail)?;
        files.insert(name.to_string_lossy().into_owned(), content);
    }
    Ok(files)
}

/// The files of a bundle's folder, by their paths with `/`; hidden ones are left out, and so is
/// what hidden folders hold. Names that are not UTF-8 are of no bundle.
///
/// # Errors
/// If it cannot be read, or holds more than a bundle does.
fn list(root: &Path) -> Result<BTreeMap<String, PathBuf>, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![(root.to_owned(), String::new(), 0)];
    let mut seen = 0;
    while let Some((folder, prefix, depth)) = folders.pop() {
        let entries = fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        for entry in entries.flatten() {
            let Ok(file) = entry.file_name().into_string() else { continue };
            let name = format!("{prefix}{file}");
            if file.starts_with('.') {
                continue;
            }
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            seen += 1;
            if seen > MAX_LISTED || (is_folder && depth == MAX_DEPTH) {
                let root = root.display();
                return Err(format!(
                    "{root}: `{name}` is too deep or one too many, expected a bundle's folder with \
                     at most {MAX_LISTED} files, {MAX_DEPTH} folders deep"
                ));
            }
            if is_folder {
                folders.push((entry.path(), format!("{name}/"), depth + 1));
            } else {
                found.insert(name, entry.path());
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> BTreeMap<String, Vec<u8>> {
        names.iter().map(|name| ((*name).to_owned(), name.as_bytes().to_vec())).collect()
    }

    #[test]
    fn a_signature_stays_for_as_long_as_it_fits() {
        let folder = tempfile::tempdir().unwrap();
        let signature = folder.path().join(SIGNATURE_FILE);
        let (all, fewer) = (files(&["a", "fixtures/b.json"]), files(&["a"]));
        replace_folder(folder.path(), &all).unwrap();
        fs::write(&signature, "of both").unwrap();
        replace_folder(folder.path(), &all).unwrap();
        assert!(signature.exists());
        replace_folder(folder.path(), &fewer).unwrap();
        assert!(!signature.exists(), "it was of a file that is gone");
        assert_eq!(list(folder.path()).unwrap().into_keys().collect::<Vec<_>>(), ["a"]);
        fs::write(&signature, "of one").unwrap();
        replace_folder(folder.path(), &all).unwrap();
        assert!(!signature.exists(), "it was of fewer files");
        // One that is copied with its files is theirs.
        let signed = files(&["a", SIGNATURE_FILE]);
        replace_folder(folder.path(), &signed).unwrap();
        assert!(signature.exists());
    }

    #[test]
    fn a_folder_that_is_no_bundle_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/".repeat(MAX_DEPTH + 1));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("kept"), "").unwrap();
        let refused = replace_folder(folder.path(), &files(&["new"])).unwrap_err();
        assert!(refused.contains("expected a bundle's folder"), "{refused}");
        assert!(deep.join("kept").exists() && !folder.path().join("new").exists());
        let many = tempfile::tempdir().unwrap();
        for number in 0..=MAX_LISTED {
            fs::write(many.path().join(number.to_string()), "").unwrap();
        }
        assert!(list(many.path()).unwrap_err().contains("4096 files"));
    }
}
