//! Sources to code, by language.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::build::{Flavour, Project};
use super::folder::read;
use super::{Language, say, short_name, toolchain};

/// The header of the flat ABI, for projects that bring none.
const HEADER: &str = include_str!("../../../../../sdk/include/polyskill.h");
/// The WIT world, for projects that bring none.
const WORLD: &str = include_str!("../../../../../sdk/wit/router-0.1/router.wit");
/// Cargo's feature for the flat ABI. Without it, the SDK exports a component's functions.
const FLAT: &str = "polyskill-sdk/flat";

/// C compilers take these flags in any form. Multiplications and additions are not contracted, so
/// that a sum has the same bits wherever it is compiled.
const C_FLAGS: [&str; 4] = ["-O3", "-Wall", "-Wextra", "-ffp-contract=off"];
/// Flags of a core module: SIMD and bulk memory, without a standard library, an entry point and
/// names for debuggers.
const C_WASM_FLAGS: [&str; 5] =
    ["-nostdlib", "-mbulk-memory", "-msimd128", "-Wl,--no-entry", "-Wl,--strip-all"];

/// The compiled code of a project.
///
/// # Errors
/// A form that the language has not, a compiler that is missing, or one that fails.
pub(super) fn compile(project: &Project<'_>, out: &mut dyn Write) -> Result<Vec<u8>, String> {
    match (project.language, project.flavour) {
        (Language::C, Flavour::Component) => {
            return Err("C becomes a core module or a dynamic library, not a component".to_owned());
        }
        (Language::Python, Flavour::Core | Flavour::Dylib) => {
            return Err("Python becomes a component only".to_owned());
        }
        _ => {}
    }
    let compiler = compiler_of(project)?;
    let target = project.target_dir();
    let target = std::path::absolute(&target).map_err(|e| format!("{}: {e}", target.display()))?;
    match compiler {
        Compiler::None => Err("there is nothing to compile".to_owned()),
        Compiler::Rust(compiler) => rust(project, compiler.as_ref(), &target, out),
        Compiler::C(words) => c(project, &words, &target, out),
        Compiler::Python(version) => python(project, &version, &target, out),
    }
}

/// A compiler that was found.
#[derive(Debug)]
pub(super) enum Compiler {
    /// Gate files need none.
    None,
    /// Rust for WebAssembly; `None` is the one on the path, for dynamic libraries.
    Rust(Option<toolchain::RustCompiler>),
    /// A C compiler, with the arguments that are the same for all files.
    C(Vec<String>),
    /// componentize-py, by its version.
    Python(String),
}

/// The compiler for a project.
///
/// # Errors
/// A line that says what is missing, and the commands that get it.
pub(super) fn compiler_of(project: &Project<'_>) -> Result<Compiler, String> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    match (project.language, project.flavour) {
        (Language::Gate, _) => Ok(Compiler::None),
        (Language::Rust, Flavour::Dylib) => Ok(Compiler::Rust(None)),
        (Language::Rust, _) => toolchain::rust(&project.args.dir).map(Some).map(Compiler::Rust),
        (Language::C, Flavour::Dylib) => match toolchain::has("cc") {
            true => Ok(Compiler::C(words(&["cc", "-shared", "-fPIC", "-fvisibility=hidden"]))),
            false => Err("there is no `cc`".to_owned()),
        },
        (Language::C, _) => match toolchain::c() {
            Some(mut found) => {
                found.extend(C_WASM_FLAGS.map(str::to_owned));
                Ok(Compiler::C(found))
            }
            None => Err(format!(
                "there is no C compiler for WebAssembly; get one with\n{}",
                toolchain::GET_C
            )),
        },
        (Language::Python, _) => {
            toolchain::componentize_py().map(Compiler::Python).ok_or_else(|| {
                format!("there is no componentize-py; get it with\n{}", toolchain::GET_PYTHON)
            })
        }
    }
}

/// Compiles a crate and returns its library. Code for WebAssembly is free of the flags that are
/// meant for this machine.
fn rust(
    project: &Project<'_>,
    compiler: Option<&toolchain::RustCompiler>,
    target: &Path,
    out: &mut dyn Write,
) -> Result<Vec<u8>, String> {
    let dir = &project.args.dir;
    let library = library_name(dir)?;
    // Each form has a directory of its own: the SDK is built with other features there.
    let (folder, triple, file) = match project.flavour {
        Flavour::Component => ("wasm", toolchain::WASM, format!("{library}.wasm")),
        Flavour::Core => ("wasm-flat", toolchain::WASM, format!("{library}.wasm")),
        Flavour::Dylib => {
            let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
            ("native-flat", "", format!("{prefix}{library}{suffix}"))
        }
    };
    let target = target.join(folder);
    let mut cargo = toolchain::cargo();
    cargo.args(["build", "--release"]).current_dir(dir).arg("--target-dir").arg(&target);
    if let Some(compiler) = compiler {
        claim(&target, &compiler.identity())?;
        compiler.apply(&mut cargo);
        // Line tables would make up most of the file.
        cargo.args(["--target", toolchain::WASM, "--config", "profile.release.strip=true"]);
    } else {
        toolchain::without_flags(&mut cargo);
    }
    if project.flavour != Flavour::Component {
        cargo.args(["--features", FLAT]);
    }
    if project.args.offline {
        cargo.arg("--offline");
    }
    run(&mut cargo, out)?;
    let code = target.join(triple).join("release").join(file);
    let code = read(&code).map_err(|error| format!("{error} (is its crate-type `cdylib`?)"))?;
    match project.flavour {
        Flavour::Component => polyskill_plugin::component_of(&code),
        Flavour::Core | Flavour::Dylib => Ok(code),
    }
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

/// Compiles all .c files of a project into one library. They find `polyskill.h` in the project,
/// else the one that this program brings.
fn c(
    project: &Project<'_>,
    compiler: &[String],
    target: &Path,
    out: &mut dyn Write,
) -> Result<Vec<u8>, String> {
    let scratch = scratch(project, target)?;
    let header = scratch.join("include/polyskill.h");
    write(&header, HEADER)?;
    let object = scratch.join(&project.manifest.file);
    let mut command = toolchain::tool(&compiler[0]);
    command.args(&compiler[1..]).args(C_FLAGS).args(sources(&project.args.dir, "c"));
    command.arg("-I").arg(scratch.join("include"));
    run(command.arg("-o").arg(&object), out)?;
    read(&object)
}

/// Makes a component of a Python file with the world `plan-only`, which has no decisions on rows:
/// of the file that is named like the bundle's, else of `router.py`.
///
/// An interpreter goes in, which takes its time, so it is made again only where the sources, the
/// world or the tool have changed.
fn python(
    project: &Project<'_>,
    version: &str,
    target: &Path,
    out: &mut dyn Write,
) -> Result<Vec<u8>, String> {
    let dir = &project.args.dir;
    let scratch = scratch(project, target)?;
    let made = scratch.join(&project.manifest.file);
    let stem = made.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let module = if dir.join(format!("{stem}.py")).is_file() { &stem } else { "router" };
    let mut world = dir.join("wit");
    if !world.is_dir() {
        world = scratch.join("wit");
        write(&world.join("router.wit"), WORLD)?;
    }
    let mut inputs = version.as_bytes().to_vec();
    for source in sources(&world, "wit").chain(sources(dir, "py")) {
        inputs.extend(read(&source)?);
    }
    let stamp = scratch.join("inputs.stamp");
    if made.is_file() && fs::read(&stamp).is_ok_and(|found| found == inputs) {
        return read(&made);
    }
    let mut tool = toolchain::tool(toolchain::COMPONENTIZE_PY);
    tool.arg("-d").arg(world).args(["-w", "plan-only", "componentize", "--stub-wasi", "-p"]);
    run(tool.arg(dir).arg(module).arg("-o").arg(&made), out)?;
    write(&stamp, &inputs)?;
    read(&made)
}

/// The folder for what is made of one project's sources, by its name; it is made if need be.
fn scratch(project: &Project<'_>, target: &Path) -> Result<PathBuf, String> {
    let folder = target.join("foreign").join(short_name(&project.manifest.name));
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(folder)
}

/// Writes a file, and makes its folder if need be.
fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<(), String> {
    let made = path.parent().map_or(Ok(()), fs::create_dir_all);
    made.and_then(|()| fs::write(path, content))
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// Runs a compiler. Its output is an error where it fails; where it warns, it is shown without
/// cargo's lines about progress.
fn run(command: &mut Command, out: &mut dyn Write) -> Result<(), String> {
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

/// Files of a folder with an extension, in the order of their names; none where there is no folder.
pub(super) fn sources(dir: &Path, extension: &str) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    found.sort();
    found.into_iter()
}
