//! `polyskill plugin`: everything that the author of a router does, from an empty folder to a
//! signed bundle.

mod bench;
mod build;
mod compile;
mod dev;
mod doctor;
mod folder;
mod inspect;
mod new;
mod publish;
mod test;
mod toolchain;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use polyskill_plugin::{Limits, Loader, MANIFEST_FILE, Manifest, Trust, TrustedKey};
use polyskill_route::params;
use polyskill_sdk::Parameters;

use polyskill_server::config::{Config, RouterConfig};

pub use build::{BuildArgs, Flavour};
pub use dev::DevArgs;
pub use new::{Language, NewArgs};

/// The commands for the author of a plugin.
#[derive(Clone, Debug, Subcommand)]
pub enum PluginCommand {
    /// Write a small project that builds, passes its tests and serves.
    New(NewArgs),
    /// Compile a project into a bundle: `target/bundle/NAME` in its folder.
    Build(BuildArgs),
    /// Run a bundle's fixtures and the conformance suite in the sandbox.
    Test {
        /// A bundle, or a project that was built.
        #[arg(default_value = ".")]
        bundle: PathBuf,
        /// Limits and parameters of the run.
        #[command(flatten)]
        sandbox: SandboxArgs,
    },
    /// Measure loading, planning and deciding rows; several bundles side by side.
    Bench {
        /// Bundles, or projects that were built.
        #[arg(default_value = ".")]
        bundles: Vec<PathBuf>,
        /// Limits and parameters of the run.
        #[command(flatten)]
        sandbox: SandboxArgs,
    },
    /// Write a bundle as one file: a tar, the same bytes for the same bundle.
    Pack {
        /// A bundle, or a project that was built.
        #[arg(default_value = ".")]
        bundle: PathBuf,
        /// The tar; by default NAME-VERSION.tar here.
        #[arg(long, short)]
        output: Option<PathBuf>,
    },
    /// Sign a bundle, so that servers that trust the key load it.
    Sign {
        /// A bundle's folder, or a project that was built.
        #[arg(default_value = ".")]
        bundle: PathBuf,
        /// File of the secret key.
        #[arg(long)]
        key: PathBuf,
        /// Make the key first; the file must not exist.
        #[arg(long)]
        new_key: bool,
    },
    /// Check a bundle's signature against a public key.
    Verify {
        /// A bundle, or a project that was built.
        #[arg(default_value = ".")]
        bundle: PathBuf,
        /// The public key, hexadecimal.
        #[arg(long)]
        key: String,
    },
    /// Say what a bundle is, without running it.
    Inspect {
        /// A bundle, or a project that was built.
        #[arg(default_value = ".")]
        bundle: PathBuf,
    },
    /// Say which compilers are here, and how to get those that are not.
    Doctor,
    /// Build, test and serve on every change, until Ctrl-C.
    Dev(DevArgs),
}

/// Limits and parameters that bundles are run with.
#[derive(Args, Clone, Debug, Default)]
pub struct SandboxArgs {
    /// A server's configuration: its `[limits]` and the router's parameters apply.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Parameter of the router, `name=value`; repeatable.
    #[arg(long = "param")]
    pub params: Vec<String>,
    /// Run dynamic libraries too: they have no sandbox and may do what you may.
    #[arg(long)]
    pub native: bool,
}

/// Runs a command; what it has to say goes to `out`.
///
/// # Errors
/// A message for the terminal.
pub fn run(command: &PluginCommand, out: &mut dyn Write) -> Result<(), String> {
    match command {
        PluginCommand::New(args) => new::run(args, out),
        PluginCommand::Build(args) => build::run(args, out),
        PluginCommand::Test { bundle, sandbox } => test::run(&bundle_of(bundle)?, sandbox, out),
        PluginCommand::Bench { bundles, sandbox } => {
            let bundles =
                bundles.iter().map(|path| bundle_of(path)).collect::<Result<Vec<_>, _>>()?;
            bench::run(&bundles, sandbox, out)
        }
        PluginCommand::Pack { bundle, output } => {
            publish::pack(&bundle_of(bundle)?, output.as_deref(), out)
        }
        PluginCommand::Sign { bundle, key, new_key } => {
            publish::sign(&bundle_of(bundle)?, key, *new_key, out)
        }
        PluginCommand::Verify { bundle, key } => publish::verify(&bundle_of(bundle)?, key, out),
        PluginCommand::Inspect { bundle } => inspect::run(&bundle_of(bundle)?, out),
        PluginCommand::Doctor => doctor::run(out),
        PluginCommand::Dev(args) => dev::run(args, out),
    }
}

/// Writes a line; a terminal that is gone ends the command.
fn say(out: &mut dyn Write, line: impl std::fmt::Display) -> Result<(), String> {
    writeln!(out, "{line}").map_err(|error| format!("cannot write: {error}"))
}

/// The manifest of a project or a bundle's folder. Its fields are not checked here.
fn read_manifest(folder: &Path) -> Result<Manifest, String> {
    let path = folder.join(MANIFEST_FILE);
    let text = std::fs::read_to_string(&path).map_err(|error| {
        format!("{}: {error}; `polyskill plugin new` writes a project", path.display())
    })?;
    Manifest::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
}

/// The part of a plugin's name that names folders and files: what follows a publisher's prefix,
/// with dashes for dots.
fn short_name(name: &str) -> String {
    name.rsplit('/').next().unwrap_or(name).replace('.', "-")
}

/// The folder that a project's bundle is built to, `target/bundle/NAME`; a project `.` gives a path
/// without a dot before it.
fn bundle_folder(project: &Path, name: &str) -> PathBuf {
    let project = if project == Path::new(".") { Path::new("") } else { project };
    project.join("target/bundle").join(short_name(name))
}

/// The bundle that a path means: a project stands for what was built of it.
///
/// A path without a manifest, such as a tar or a bare file, is passed on as it is, and whoever
/// opens it says what is wrong.
fn bundle_of(path: &Path) -> Result<PathBuf, String> {
    let Ok(manifest) = read_manifest(path) else { return Ok(path.to_owned()) };
    let built = bundle_folder(path, &manifest.name);
    if built.join(MANIFEST_FILE).is_file() {
        return Ok(built);
    }
    let path_shown = path.display();
    match path.join(&manifest.file).is_file() {
        true => Ok(path.to_owned()),
        false => Err(format!(
            "{path_shown} holds no `{}`; if it is a project, run `polyskill plugin build {path_shown}`",
            manifest.file
        )),
    }
}

/// Parameters and limits, as a server with this configuration would use them.
struct Settings {
    /// Limits of routers that have their own in the configuration, by name.
    own_limits: BTreeMap<String, Limits>,
    /// The configuration, checked; the defaults without a file.
    config: Config,
    /// Parameters from the command line.
    flags: Parameters,
}

impl Settings {
    /// Reads the configuration. Its keys for signatures are not used by these commands.
    fn new(args: &SandboxArgs) -> Result<Self, String> {
        let config = match &args.config {
            Some(path) => Config::read(path).map_err(|error| error.to_string())?,
            None => Config::default(),
        };
        config.check().map_err(|error| error.to_string())?;
        let own = |router: &RouterConfig| Ok((router.name.clone(), router.limits(&config.limits)?));
        let own_limits = config.router.iter().map(own).collect::<Result<_, String>>()?;
        Ok(Self { own_limits, flags: params::of_flags(&args.params)?, config })
    }

    /// Parameters of a router: the configured ones, each replaced by that of the command line with
    /// the same name.
    fn parameters(&self, name: &str) -> Parameters {
        let configured = self.config.router.iter().find(|router| router.name == name);
        configured.map_or(self.flags.clone(), |router| params::over(&router.params, &self.flags))
    }
}

/// A bundle ready to be loaded, and the loader for it.
struct Prepared {
    /// The loader, with the limits of the settings.
    loader: Loader,
    /// The bundle, or the signed copy of a dynamic library's.
    path: PathBuf,
    /// Holds a copy of a dynamic library for as long as it is needed.
    _copy: Option<tempfile::TempDir>,
}

/// Makes a loader for one's own bundles: unsigned ones are fine in the sandbox.
///
/// A dynamic library is loaded with a signature only, so its copy gets one of this moment, with a
/// key that is made for it and goes away with it, if `native` says that the person agrees. `cache`
/// is the folder of compiled code; without it each load compiles.
fn prepare(
    path: &Path,
    settings: &Settings,
    cache: Option<PathBuf>,
    native: bool,
) -> Result<Prepared, String> {
    let limits = &settings.config.limits;
    let fail = |error: polyskill_plugin::Error| error.to_string();
    let found = polyskill_plugin::inspect(path, limits).map_err(fail)?;
    let (mut trust, mut path, mut copy) = (Trust::unsigned(), path.to_owned(), None);
    if found.kind == polyskill_plugin::Kind::Dylib {
        if !native {
            return Err(format!(
                "{} is a dynamic library: it has no sandbox and may do what you may; say --native \
                 to run it, or build it for WebAssembly",
                path.display()
            ));
        }
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let bundle = folder::copy_to_sign(&path, &folder.path().join("bundle"))?;
        let key = folder.path().join("key");
        let public = polyskill_plugin::new_key(&key).map_err(fail)?;
        polyskill_plugin::sign(&bundle, &key, limits).map_err(fail)?;
        let key = TrustedKey { key: public, prefix: String::new(), dylibs: true };
        trust = Trust { keys: vec![key], dylibs: vec![bundle.clone()], ..trust };
        (path, copy) = (bundle, Some(folder));
    }
    let own = settings.own_limits.clone();
    let loader = Loader::with_own_limits(limits.clone(), own, trust, cache).map_err(fail)?;
    Ok(Prepared { loader, path, _copy: copy })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A library is no code here: nothing is loaded.
    #[test]
    fn a_dynamic_library_in_any_form_is_copied_and_signed() {
        let folder = tempfile::tempdir().unwrap();
        let (bundle, limits) = (folder.path().join("best"), Limits::default());
        std::fs::create_dir(&bundle).unwrap();
        let manifest = "name = \"acme/best\"\nversion = \"1\"\nabi = \"0.1\"\nfile = \"b.so\"\n";
        std::fs::write(bundle.join(MANIFEST_FILE), manifest).unwrap();
        std::fs::write(bundle.join("b.so"), b"\x7fELF and more").unwrap();
        let (tar, bare) = (folder.path().join("best.tar"), folder.path().join("libBest.so"));
        polyskill_plugin::pack(&bundle, &tar, &limits).unwrap();
        std::fs::copy(bundle.join("b.so"), &bare).unwrap();
        let settings = Settings::new(&SandboxArgs::default()).unwrap();
        for path in [&bundle, &tar, &bare] {
            let before = polyskill_plugin::inspect(path, &limits).unwrap();
            assert!(prepare(path, &settings, None, false).is_err(), "it has no sandbox");
            let prepared = prepare(path, &settings, None, true).unwrap();
            let copy = polyskill_plugin::inspect(&prepared.path, &limits).unwrap();
            assert_eq!((copy.kind, &copy.digest), (before.kind, &before.digest), "{path:?}");
            assert!(matches!(copy.signer, Ok(Some(_))), "{:?}", copy.signer);
        }
    }
}
