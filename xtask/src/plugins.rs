//! Has the program build everything in `plugins/`: `polyskill plugin build` is the one builder of
//! bundles.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::step::{Context as _, Outcome, output, run, step};
use crate::toolchain;
use crate::workspace::Workspace;

/// Folder of plugins in C as dynamic libraries: not among the bundles that a server loads by itself.
const NATIVE: &str = "native-plugins";
/// Folder of plugins in Python: each brings an interpreter that takes a server half a minute to
/// compile.
const PYTHON: &str = "python-plugins";

/// Builds the program, then every plugin; returns the folder of the bundles. The program is built
/// with `features`, as cargo writes them; other ones than before mean another build.
///
/// Plugins in C become a core module among the bundles and a dynamic library elsewhere. What is not
/// written in Rust is left out where its compiler is missing.
pub(crate) fn build(workspace: &Workspace, features: &str) -> Outcome<PathBuf> {
    let builder = Builder::new(workspace, features)?;
    for project in &workspace.plugins {
        let name = project.file_name().unwrap_or_default().to_string_lossy().into_owned();
        step(&format!("plugin {name}"), || match language(project) {
            Language::Python => builder.build(project, None, PYTHON),
            Language::C => {
                builder.build(project, Some("dylib"), NATIVE)?;
                builder.build(project, None, "plugins")
            }
            Language::Rust | Language::Gate => builder.build(project, None, "plugins"),
        })?;
    }
    Ok(workspace.bundles())
}

/// Builds core modules and dynamic libraries of every router in Rust into `target/flavours`, for the
/// conformance suite and the benchmarks.
pub(crate) fn build_flavours(workspace: &Workspace, features: &str) -> Outcome<()> {
    let builder = Builder::new(workspace, features)?;
    let is_rust = |project: &&PathBuf| language(project) == Language::Rust;
    for form in ["core", "dylib"] {
        step(&format!("routers in the form {form}"), || {
            let mut projects = workspace.plugins.iter().filter(is_rust);
            projects.try_for_each(|project| {
                builder.build(project, Some(form), &format!("flavours/{form}"))
            })
        })?;
    }
    Ok(())
}

/// The program that builds bundles.
struct Builder<'a> {
    workspace: &'a Workspace,
    program: PathBuf,
}

impl<'a> Builder<'a> {
    /// Builds the program, and sees to the compiler for WebAssembly, which the program finds but does
    /// not get.
    fn new(workspace: &'a Workspace, features: &str) -> Outcome<Self> {
        step("polyskill", || {
            let build = ["build", "--release", "--bin", "polyskill", "--features", features];
            run(workspace.cargo().args(build))
        })?;
        toolchain::provide(workspace)?;
        let program = format!("polyskill{}", std::env::consts::EXE_SUFFIX);
        let program = workspace.target.join("release").join(program);
        Ok(Self { workspace, program })
    }

    /// Builds one project into a folder below the target directory, in a form if one is given.
    fn build(&self, project: &Path, form: Option<&str>, output: &str) -> Outcome<()> {
        let target = &self.workspace.target;
        let mut command = Command::new(&self.program);
        command.current_dir(&self.workspace.root).args(["plugin", "build"]).arg(project);
        command.arg("--output").arg(target.join(output)).arg("--target-dir").arg(target);
        command.arg("--skip-without-compiler");
        run(command.args(form.map(|form| ["--as", form]).into_iter().flatten()))
    }
}

/// The language of a plugin, by its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Language {
    Rust,
    C,
    Python,
    Gate,
}

/// The language of a plugin's folder.
fn language(project: &Path) -> Language {
    let entries = fs::read_dir(project).into_iter().flatten().filter_map(Result::ok);
    let names: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    let has = |end: &str| names.iter().any(|path| path.to_string_lossy().ends_with(end));
    match () {
        () if has("Cargo.toml") => Language::Rust,
        () if has(".c") => Language::C,
        () if has(".py") => Language::Python,
        () => Language::Gate,
    }
}

/// Compilers of languages other than Rust, as Python packages with their versions.
const PACKAGES: [&str; 2] = ["ziglang==0.17.1", "componentize-py==0.25.1"];

/// The task `compilers`: gets what builds the plugins in C and Python, into a private environment of
/// Python where the program finds it.
///
/// A stamp for each package and version says that it is there, so a second run downloads nothing.
pub(crate) fn install_compilers() -> Outcome<()> {
    let folder = toolchain::cache()?.join("plugin-compilers");
    let stamp = |package: &str| folder.join(format!("{package}.stamp"));
    if PACKAGES.iter().all(|package| stamp(package).is_file()) {
        println!("{} has {}", folder.display(), PACKAGES.join(", "));
        return Ok(());
    }
    step("compilers for C and Python (about 150 MB to download)", || {
        output(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        let pip = folder.join("bin/python");
        output(Command::new(pip).args(["-m", "pip", "install", "--quiet"]).args(PACKAGES))?;
        PACKAGES.iter().try_for_each(|package| {
            let stamp = stamp(package);
            fs::write(&stamp, "").context(|| format!("cannot write {}", stamp.display()))
        })
    })
}
