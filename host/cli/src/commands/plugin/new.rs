//! `polyskill plugin new`: a project to start from.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use polyskill_plugin::check_name;

use super::{say, short_name, toolchain};

/// The language of a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Language {
    /// A crate with the SDK's trait; becomes a component.
    Rust,
    /// One source file with `polyskill.h`; becomes a core module.
    C,
    /// Gate programs as data, without code.
    Gate,
    /// A class; becomes a component with CPython inside.
    Python,
}

/// The name of the new project, its language, and the folder that it goes to.
#[derive(Args, Clone, Debug)]
pub struct NewArgs {
    /// Language of the router.
    #[arg(long, value_enum, default_value = "rust")]
    pub lang: Language,
    /// The SDK's folder, for Rust; by default that of the checkout around here or around this
    /// program.
    #[arg(long)]
    pub sdk: Option<PathBuf>,
    /// The plugin's name: lower-case letters, digits, `-`; `publisher/name` for signed ones.
    pub name: String,
    /// The project's folder, which must not exist; by default the name.
    pub dir: Option<PathBuf>,
}

/// Files by path, with their templates: text between `@` signs is filled in.
type Files = &'static [(&'static str, &'static str)];

/// A fixture in which the message names modules.
const BY_NAME: (&str, &str) =
    ("fixtures/by-name.json", include_str!("../../../templates/by_name.json"));
/// A fixture in which the message names none.
const NOTHING_NAMED: (&str, &str) =
    ("fixtures/nothing-named.json", include_str!("../../../templates/nothing_named.json"));

/// A project in Rust.
const RUST: Files = &[
    ("Cargo.toml", include_str!("../../../templates/rust/Cargo.toml.in")),
    ("src/lib.rs", include_str!("../../../templates/rust/lib.rs")),
    ("README.md", include_str!("../../../templates/rust/README.md")),
    BY_NAME,
    NOTHING_NAMED,
];
/// A project in C, with the header of the flat ABI.
const C: Files = &[
    ("router.c", include_str!("../../../templates/c/router.c")),
    ("polyskill.h", include_str!("../../../../../sdk/include/polyskill.h")),
    ("README.md", include_str!("../../../templates/c/README.md")),
    ("fixtures/best.json", include_str!("../../../templates/c/best.json")),
];
/// A project of gate programs.
const GATE: Files = &[
    ("gates.toml", include_str!("../../../templates/gate/gates.toml")),
    ("README.md", include_str!("../../../templates/gate/README.md")),
    ("fixtures/two-of-three.json", include_str!("../../../templates/gate/two_of_three.json")),
];
/// A project in Python, with the WIT world.
const PYTHON: Files = &[
    ("router.py", include_str!("../../../templates/python/router.py")),
    ("wit/router.wit", include_str!("../../../../../sdk/wit/router-0.1/router.wit")),
    ("README.md", include_str!("../../../templates/python/README.md")),
    BY_NAME,
    NOTHING_NAMED,
];
/// The manifest of all projects.
const MANIFEST: &str = include_str!("../../../templates/plugin.toml");
/// The `.gitignore` of all projects.
const IGNORED: &str = include_str!("../../../templates/gitignore");

/// Writes a project into a folder that does not exist yet, and says how to build it.
///
/// A project in Rust depends on the SDK by its path on this machine.
pub(super) fn run(args: &NewArgs, out: &mut dyn Write) -> Result<(), String> {
    let name = &args.name;
    let crate_name = short_name(name);
    check(name, &crate_name)?;
    let folder = args.dir.clone().unwrap_or_else(|| PathBuf::from(&crate_name));
    if folder.exists() {
        return Err(format!("{} exists; name a folder that does not", folder.display()));
    }
    let sdk = match args.lang {
        Language::Rust => Some(toolchain::sdk(args.sdk.as_deref())?.ok_or(
            "the SDK was not found: run this in a checkout of polyskill, or name its folder with --sdk",
        )?),
        _ => None,
    };
    let (files, file, description) = match args.lang {
        Language::Rust => (RUST, format!("{crate_name}.wasm"), "Modules that the message names."),
        Language::C => (C, format!("{crate_name}.wasm"), "The best module for every token."),
        Language::Gate => (GATE, "gates.toml".to_owned(), "The nearest modules for every token."),
        Language::Python => {
            (PYTHON, format!("{crate_name}.wasm"), "Modules that the message names.")
        }
    };
    let dependency = sdk
        .as_ref()
        .map_or_else(String::new, |sdk| format!("{{ path = {:?} }}", sdk.display().to_string()));
    let fill = |text: &str| {
        text.replace("@NAME@", name)
            .replace("@CRATE@", &crate_name)
            .replace("@FILE@", &file)
            .replace("@DESCRIPTION@", description)
            .replace("@SDK@", &dependency)
    };
    let common = [("plugin.toml", MANIFEST), (".gitignore", IGNORED)];
    for (path, text) in common.iter().chain(files) {
        write(&folder.join(path), fill(text).as_bytes())?;
        say(out, format_args!("wrote {}", folder.join(path).display()))?;
    }
    // The versions that the SDK is tested with; cargo leaves out what this project does not use.
    if let Some(lock) = sdk.and_then(|sdk| fs::read(sdk.join("../Cargo.lock")).ok()) {
        write(&folder.join("Cargo.lock"), &lock)?;
    }
    let folder = folder.display();
    say(
        out,
        format_args!("next: polyskill plugin build {folder} && polyskill plugin test {folder}"),
    )
}

/// Refuses names that cannot be a crate's, or that servers do not take.
fn check(name: &str, crate_name: &str) -> Result<(), String> {
    check_name(name).map_err(|error| format!("the {error}"))?;
    if crate_name.starts_with(|first: char| first.is_ascii_lowercase()) {
        return Ok(());
    }
    Err(format!(
        "the name `{name}`, expected at most 64 of a-z, 0-9, `-`, `_`, `.` and `/`, with a letter first \
         in its last part, which names a crate"
    ))
}

/// Writes a file, and makes its folder if need be.
fn write(path: &Path, content: &[u8]) -> Result<(), String> {
    let made = path.parent().map_or(Ok(()), fs::create_dir_all);
    made.and_then(|()| fs::write(path, content))
        .map_err(|error| format!("{}: {error}", path.display()))
}
