//! Rules on the source that no compiler checks: layers, headers, signatures, and the places of some words.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;
use serde_json::Value as Json;

use crate::common::{list, root, text};

/// Which crate may use which: normal dependencies inside the workspace, exactly.
const LAYERS: [(&str, &[&str]); 14] = [
    ("polyskill", &["polyskill-cli", "polyskill-sources"]),
    (
        "polyskill-cli",
        &[
            "polyskill-adapters",
            "polyskill-engine",
            "polyskill-experiment",
            "polyskill-model",
            "polyskill-plugin",
            "polyskill-route",
            "polyskill-sdk",
            "polyskill-server",
            "polyskill-sources",
            "polyskill-tokenizer",
            "polyskill-workshop",
        ],
    ),
    (
        "polyskill-server",
        &[
            "polyskill-adapters",
            "polyskill-engine",
            "polyskill-experiment",
            "polyskill-front",
            "polyskill-model",
            "polyskill-plugin",
            "polyskill-route",
            "polyskill-sdk",
            "polyskill-sources",
            "polyskill-tokenizer",
        ],
    ),
    ("polyskill-sources", &["polyskill-plugin"]),
    ("polyskill-workshop", &["polyskill-adapters", "polyskill-model", "polyskill-sdk"]),
    (
        "polyskill-engine",
        &["polyskill-adapters", "polyskill-model", "polyskill-route", "polyskill-sdk"],
    ),
    ("polyskill-adapters", &["polyskill-model", "polyskill-sdk"]),
    ("polyskill-plugin", &["polyskill-sdk"]),
    ("polyskill-sdk", &[]),
    ("polyskill-tokenizer", &["polyskill-model"]),
    ("polyskill-experiment", &["polyskill-route"]),
    ("polyskill-route", &["polyskill-sdk"]),
    ("polyskill-front", &[]),
    ("polyskill-model", &[]),
];

fn metadata() -> Json {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn crates_depend_on_the_layers_below_and_nothing_else() {
    let metadata = metadata();
    let packages = list(&metadata["packages"]);
    let names: BTreeSet<&str> = packages.iter().map(|package| text(package, "name")).collect();
    let mut layers: BTreeMap<&str, BTreeSet<&str>> =
        LAYERS.iter().map(|(name, allowed)| (*name, allowed.iter().copied().collect())).collect();
    for package in packages {
        let name = text(package, "name");
        let used: BTreeSet<&str> = list(&package["dependencies"])
            .iter()
            .filter(|dependency| dependency["kind"].is_null())
            .map(|dependency| text(dependency, "name"))
            .filter(|dependency| names.contains(dependency))
            .collect();
        let is_plugin =
            Path::new(text(package, "manifest_path")).starts_with(root().join("plugins"));
        let allowed = match layers.remove(name) {
            Some(allowed) => allowed,
            None if is_plugin => BTreeSet::from(["polyskill-sdk"]),
            None if name == "xtask" => BTreeSet::new(),
            None => panic!("`{name}` has no place in the layers; add it to the test"),
        };
        assert_eq!(used, allowed, "`{name}`");
    }
    assert!(layers.is_empty(), "crates that are gone: {layers:?}");
}

/// All Rust files below a folder of the repository.
fn sources(folder: &str) -> Vec<PathBuf> {
    let mut folders = vec![root().join(folder)];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    assert!(!files.is_empty(), "{folder} holds no Rust");
    files.sort();
    files
}

#[test]
fn every_file_says_what_it_is_for() {
    // Generated from the WIT by wit-bindgen.
    let generated = root().join("sdk/src/bindings.rs");
    for folder in ["host", "sdk", "adapters", "plugins", "xtask", "tests"] {
        for file in sources(folder).into_iter().filter(|file| *file != generated) {
            let source = std::fs::read_to_string(&file).unwrap();
            let first = source.lines().next().unwrap_or_default();
            let says = first.strip_prefix("//! ").is_some_and(|says| says.len() > 10);
            assert!(says, "{} begins with `{first}`", file.display());
        }
    }
}

/// Families are data: their names belong to what turns configurations into variation points.
#[test]
fn model_families_are_named_in_one_place() {
    const FAMILIES: [&str; 6] = ["llama", "qwen", "mistral", "mixtral", "olmo", "gemma"];
    // Names that are no families.
    const ALLOWED: [(&str, &str, &str); 3] = [
        (
            "config.rs",
            "Llama3 {",
            "a kind of rope scaling, `llama3` in configurations of any family",
        ),
        ("rope.rs", "RopeScaling::Llama3 {", "the same"),
        ("gguf_file.rs", "fn names_follow_llama_cpp", "the project that defines the format"),
    ];
    let homes = [root().join("host/model/src/family.rs"), root().join("host/model/src/family")];
    let is_at_home = |file: &PathBuf| homes.iter().any(|home| file.starts_with(home));
    for file in sources("host/model/src").into_iter().filter(|file| !is_at_home(file)) {
        let source = std::fs::read_to_string(&file).unwrap();
        for (number, line) in source.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let lower = code.to_lowercase();
            let Some(family) = FAMILIES.into_iter().find(|family| lower.contains(family)) else {
                continue;
            };
            let allowed =
                ALLOWED.iter().any(|(name, part, _)| file.ends_with(name) && code.contains(part));
            assert!(allowed, "{}:{}: names `{family}`", file.display(), number + 1);
        }
    }
}

/// The tests that a checkout runs are all its tests.
#[test]
fn no_test_sleeps_or_is_ignored() {
    // In two parts, so that this file does not find itself.
    let forbidden =
        [["#[", "ignore"], ["should", "_panic"], ["thread::", "sleep"]].map(|p| p.concat());
    for file in sources("tests") {
        let source = std::fs::read_to_string(&file).unwrap();
        for word in &forbidden {
            assert!(!source.contains(word.as_str()), "{} has `{word}`", file.display());
        }
    }
}

/// Pages are copied from terminals; what belongs to the terminal's machine stays behind.
#[test]
fn pages_name_no_machine() {
    let mut folders = vec![root().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && name != "target" && name != "node_modules"
            {
                folders.push(path);
            } else if name.ends_with(".md") {
                let page = std::fs::read_to_string(&path).unwrap();
                for folder in ["root", "home", "work", "tmp"] {
                    let start = format!("/{folder}/");
                    assert!(!page.contains(&start), "{} names {start}", path.display());
                }
            }
        }
    }
}

/// Product code of a file: without its tests at the end.
fn product(file: &Path) -> String {
    let source = std::fs::read_to_string(file).unwrap();
    source.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default().to_owned()
}

/// A tuple of values in a signature is a struct without a name, and gets around the bound on arguments.
#[test]
fn signatures_take_no_tuple_patterns() {
    let signature =
        Regex::new(r"(?s)\bfn\s+(\w+)(?:<[^{;]*?>)?\s*\(([^{;]*?)\)\s*(?:->|\{|where)").unwrap();
    let pattern = Regex::new(r"(?:^|,)\s*\([^:]*,[^:]*\)\s*:\s*\(").unwrap();
    assert!(pattern.is_match("&self, (a, b): (u32, u32)") && !pattern.is_match("a: (u32, u32)"));
    assert!(pattern.is_match("(a, (b, c)): (u32, (u32, u32))"));
    let generated = root().join("sdk/src/bindings.rs");
    for folder in ["host", "sdk", "adapters", "plugins", "xtask"] {
        for file in sources(folder).into_iter().filter(|file| *file != generated) {
            let source = product(&file);
            for found in signature.captures_iter(&source) {
                let (name, parameters) = (&found[1], &found[2]);
                assert!(!pattern.is_match(parameters), "{}: `fn {name}`", file.display());
            }
        }
    }
}

/// A shipped router is a project like any author's, whose manifest says what its crate does.
#[test]
fn shipped_routers_have_manifests() {
    let field = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("{key} = "))).unwrap();
        line.split('"').nth(1).unwrap().to_owned()
    };
    for entry in std::fs::read_dir(root().join("plugins")).unwrap() {
        let folder = entry.unwrap().path();
        let Ok(crate_text) = std::fs::read_to_string(folder.join("Cargo.toml")) else { continue };
        let manifest = std::fs::read_to_string(folder.join("plugin.toml")).unwrap();
        assert_eq!(field(&manifest, "name"), folder.file_name().unwrap().to_string_lossy());
        assert_eq!(field(&manifest, "description"), field(&crate_text, "description"));
        assert_eq!(field(&manifest, "version"), env!("CARGO_PKG_VERSION"));
    }
}

/// Every crate is minutes of somebody's first build.
#[test]
fn a_default_build_has_few_crates() {
    const MOST: usize = 360;
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--package", "polyskill", "--edges", "normal,build"])
        .args(["--prefix", "none", "--format", "{p}"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let crates: BTreeSet<&str> = text
        .lines()
        .map(|line| line.trim_end_matches(" (*)"))
        .filter(|line| !line.is_empty())
        .collect();
    assert!(crates.len() <= MOST, "{} crates in a default build, at most {MOST}", crates.len());
}

/// Clients of HTTP need the cryptography of TLS to be chosen before they are built.
#[test]
fn clients_of_http_are_built_in_one_place() {
    let home = root().join("host/sources/src/client.rs");
    for file in sources("host").into_iter().filter(|file| *file != home) {
        let source = std::fs::read_to_string(&file).unwrap();
        for word in ["Client::new()", "Client::builder()", "ClientBuilder::new()"] {
            assert!(!source.contains(word), "{} has `{word}`", file.display());
        }
    }
}
