//! `polyskill plugin build`: from a project to a bundle.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::{Args, ValueEnum};
use polyskill_plugin::{Kind, Limits, MANIFEST_FILE, Manifest};

use super::compile::{compile, compiler_of, sources};
use super::folder::{read, replace_folder};
use super::{Language, bundle_folder, read_manifest, say, short_name};

/// The project, and the form that its code becomes.
#[derive(Args, Clone, Debug, Default)]
pub struct BuildArgs {
    /// The project's folder.
    #[arg(default_value = ".")]
    pub dir: PathBuf,
    /// Form of the code; by default a component for Rust and Python, a core module for C.
    #[arg(long = "as", value_enum)]
    pub flavour: Option<Flavour>,
    /// The folder that the bundle's folder is put in; by default `target/bundle` in the project,
    /// and `target/bundle/FORM` with --as.
    #[arg(long)]
    pub output: Option<PathBuf>,
    /// The folder that compilers write to, which several projects may share; by default `target` in
    /// the project.
    #[arg(long)]
    pub target_dir: Option<PathBuf>,
    /// Leave the project out, and remove its older bundle, where the compiler of its language is
    /// not there.
    #[arg(long)]
    pub skip_without_compiler: bool,
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

/// Builds and says where the bundle is, how large its code is and how long it took.
pub(super) fn run(args: &BuildArgs, out: &mut dyn Write) -> Result<(), String> {
    let start = Instant::now();
    let project = Project::read(args)?;
    if args.skip_without_compiler
        && let Err(missing) = compiler_of(&project)
    {
        let folder = project.bundle_folder();
        // An older one would be taken for what these sources make.
        replace_folder(&folder, &BTreeMap::new())?;
        if folder.is_dir() {
            fs::remove_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        }
        let why = missing.lines().next().unwrap_or_default();
        return say(out, format_args!("left out {}: {why}", folder.display()));
    }
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

/// A project, with the form that its code becomes.
#[derive(Debug)]
pub(super) struct Project<'a> {
    /// The arguments, with the folders.
    pub(super) args: &'a BuildArgs,
    /// The bundle's manifest.
    pub(super) manifest: Manifest,
    /// The language of its sources.
    pub(super) language: Language,
    /// The form of the code.
    pub(super) flavour: Flavour,
}

impl<'a> Project<'a> {
    /// Reads a project's manifest and looks at its sources.
    fn read(args: &'a BuildArgs) -> Result<Self, String> {
        let manifest = read_manifest(&args.dir)?;
        let language = language(&args.dir, &manifest)?;
        let flavour = args.flavour.unwrap_or(match language {
            Language::C => Flavour::Core,
            _ => Flavour::Component,
        });
        Ok(Self { args, manifest, language, flavour })
    }

    /// The folder of the bundle. Other forms lie beside the ordinary one, to be compared with it.
    fn bundle_folder(&self) -> PathBuf {
        let BuildArgs { dir, flavour, output, .. } = self.args;
        let name = short_name(&self.manifest.name);
        let form = flavour.and_then(|flavour| flavour.to_possible_value());
        match (output, form) {
            (Some(output), _) => output.join(name),
            (None, None) => bundle_folder(dir, &self.manifest.name),
            (None, Some(form)) => dir.join("target/bundle").join(form.get_name()).join(name),
        }
    }

    /// The folder that compilers write to.
    pub(super) fn target_dir(&self) -> PathBuf {
        self.args.target_dir.clone().unwrap_or_else(|| self.args.dir.join("target"))
    }

    /// The bundle's manifest: the project's own, but for the name of a dynamic library, which
    /// depends on the system.
    fn bundle_manifest(&mut self) -> Result<String, String> {
        let path = self.args.dir.join(MANIFEST_FILE);
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        if self.flavour != Flavour::Dylib || self.language == Language::Gate {
            return Ok(text);
        }
        let stem = short_name(&self.manifest.name);
        let file = format!("{stem}{}", std::env::consts::DLL_SUFFIX);
        let mut table: toml::Table = toml::from_str(&text).map_err(|error| error.to_string())?;
        table.insert("file".to_owned(), toml::Value::String(file.clone()));
        self.manifest.file = file;
        Ok(table.to_string())
    }
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

/// Compiles a project and writes its bundle, which is inspected at the end and not loaded.
pub(super) fn build(args: &BuildArgs, out: &mut dyn Write) -> Result<Built, String> {
    let mut project = Project::read(args)?;
    let code = match project.language {
        Language::Gate => read(&args.dir.join(&project.manifest.file))?,
        _ => compile(&project, out)?,
    };
    let code_bytes = code.len();
    let manifest_text = project.bundle_manifest()?;
    let mut files = fixtures(&args.dir)?;
    files.insert(MANIFEST_FILE.to_owned(), manifest_text.into_bytes());
    files.insert(project.manifest.file.clone(), code);
    let folder = project.bundle_folder();
    check_folder(&folder, &project.manifest.name)?;
    replace_folder(&folder, &files)?;
    let found = polyskill_plugin::inspect(&folder, &Limits::default());
    let kind = found.map_err(|error| error.to_string())?.kind;
    Ok(Built { folder, kind, code_bytes })
}

/// Refuses a folder that something else than an earlier bundle of this name is in: it would be removed.
fn check_folder(folder: &Path, name: &str) -> Result<(), String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_empty = entries.into_iter().all(|e| e.file_name().to_string_lossy().starts_with('.'));
    let before = read_manifest(folder).ok().map(|manifest| manifest.name);
    if is_empty || before.as_deref() == Some(name) {
        return Ok(());
    }
    let found = before.map_or("no bundle".to_owned(), |other| format!("the bundle `{other}`"));
    Err(format!(
        "{} holds {found}, expected an earlier bundle of `{name}`, or nothing",
        folder.display()
    ))
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

/// The fixtures of a project, its `fixtures/*.json`, by their paths in the bundle.
fn fixtures(dir: &Path) -> Result<BTreeMap<String, Vec<u8>>, String> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    sources(&dir.join("fixtures"), "json")
        .map(|path| Ok((format!("fixtures/{}", name(&path)), read(&path)?)))
        .collect()
}
