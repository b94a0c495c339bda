//! `polyskill plugin`: from an empty folder to a signed bundle; and what the compiler says to a router that
//! is none.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use polyskill_cli::commands::plugin::{
    BuildArgs, Flavour, Language, NewArgs, PluginCommand, SandboxArgs, run,
};

use crate::common::{fixtures, root};

/// What the command says on the terminal, then its outcome.
fn say(command: &PluginCommand) -> (String, Result<(), String>) {
    let mut out = Vec::new();
    let outcome = run(command, &mut out);
    (String::from_utf8(out).unwrap(), outcome)
}

#[track_caller]
fn works(command: &PluginCommand) -> String {
    let (text, outcome) = say(command);
    outcome.unwrap_or_else(|reason| panic!("{reason}\n{text}"));
    text
}

#[track_caller]
fn fails(command: &PluginCommand) -> String {
    let (text, outcome) = say(command);
    text + &outcome.unwrap_err()
}

fn new(lang: Language, name: &str, dir: &Path) -> PluginCommand {
    let (name, dir) = (name.to_owned(), Some(dir.to_owned()));
    PluginCommand::New(NewArgs { lang, sdk: Some(root().join("sdk")), name, dir })
}

fn build(dir: &Path, flavour: Option<Flavour>) -> PluginCommand {
    PluginCommand::Build(BuildArgs {
        dir: dir.to_owned(),
        flavour,
        offline: true,
        ..BuildArgs::default()
    })
}

fn test(bundle: &Path) -> PluginCommand {
    PluginCommand::Test { bundle: bundle.to_owned(), sandbox: SandboxArgs::default() }
}

fn inspect(bundle: &Path) -> PluginCommand {
    PluginCommand::Inspect { bundle: bundle.to_owned() }
}

fn replace(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{}: no `{from}`", path.display());
    std::fs::write(path, text.replace(from, to)).unwrap();
}

#[expect(clippy::print_stderr, reason = "says why the test checks nothing")]
fn not_tried(reason: &str) {
    eprintln!("note: not tried: {reason}");
}

/// A project in a folder that lives as long as the first part.
fn project(lang: Language, name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("project");
    works(&new(lang, name, &dir));
    (folder, dir)
}

/// Several projects share a folder of bundles; none touches what is beside its own.
#[test]
fn bundles_go_where_they_are_wanted_and_nowhere_else() {
    let (folder, dir) = project(Language::Gate, "acme/nearest");
    let output = folder.path().join("bundles");
    std::fs::create_dir_all(output.join("other")).unwrap();
    std::fs::write(output.join("other/plugin.toml"), "kept").unwrap();
    let into = |skip: bool| {
        PluginCommand::Build(BuildArgs {
            dir: dir.clone(),
            output: Some(output.clone()),
            skip_without_compiler: skip,
            ..BuildArgs::default()
        })
    };
    works(&into(true));
    assert!(output.join("nearest/plugin.toml").is_file() && !dir.join("target").exists());
    let manifest = dir.join("plugin.toml");
    for name in ["", "a/", "../other", "/other", "acme/..", "Nearest"] {
        let text = std::fs::read_to_string(&manifest).unwrap();
        let first = text.lines().next().unwrap().to_owned();
        replace(&manifest, &first, &format!("name = \"{name}\""));
        let refused = fails(&into(false));
        assert!(refused.contains("plugin.toml: name `"), "{name}: {refused}");
    }
    assert_eq!(std::fs::read_to_string(output.join("other/plugin.toml")).unwrap(), "kept");
}

#[test]
fn a_gate_file_goes_from_nothing_to_a_signed_tar() {
    let (folder, dir) = project(Language::Gate, "acme/nearest");
    assert!(fails(&new(Language::Gate, "acme/nearest", &dir)).contains("exists"));
    assert!(works(&build(&dir, None)).contains("gate file"));
    let tested = works(&test(&dir));
    for part in
        ["ok      load", "ok      fixtures/two-of-three.json", "ok      conformance", "all passed"]
    {
        assert!(tested.contains(part), "{part}: {tested}");
    }
    let sandbox = SandboxArgs { params: vec!["top_k=0".to_owned()], ..SandboxArgs::default() };
    let refused = fails(&PluginCommand::Test { bundle: dir.clone(), sandbox });
    assert!(refused.contains("conformance") && refused.contains("found 0"), "{refused}");
    let sandbox = SandboxArgs::default();
    let table = works(&PluginCommand::Bench { bundles: vec![dir.clone(), dir.clone()], sandbox });
    assert!(
        table.contains("plan, 256 modules") && table.contains("acme/nearest (gate file)"),
        "{table}"
    );

    let (key, tar) = (folder.path().join("key"), folder.path().join("nearest.tar"));
    let sign = |new_key| PluginCommand::Sign { bundle: dir.clone(), key: key.clone(), new_key };
    assert!(fails(&sign(false)).contains("key"));
    assert!(works(&inspect(&dir)).contains("nobody"));
    let signed = works(&sign(true));
    assert!(signed.contains("prefix = \"acme/\""), "{signed}");
    assert!(fails(&sign(true)).contains("key"), "a key is never overwritten");
    let public = signed.split("key = \"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    works(&PluginCommand::Pack { bundle: dir.clone(), output: Some(tar.clone()) });
    let verify = |bundle: &Path, key: &str| PluginCommand::Verify {
        bundle: bundle.to_owned(),
        key: key.to_owned(),
    };
    assert!(works(&inspect(&tar)).contains(&public));
    assert!(works(&verify(&tar, &public)).contains("ok: acme/nearest 0.1.0"));
    assert!(fails(&verify(&tar, &"0".repeat(64))).contains(&public));
    works(&build(&dir, None));
    works(&verify(&dir, &public));
    // A change takes the signature away rather than leave a false one.
    replace(&dir.join("gates.toml"), "sharpness = 1.0", "sharpness = 2.0");
    works(&build(&dir, None));
    assert!(fails(&verify(&dir, &public)).contains("not signed"));
    assert!(fails(&test(&dir)).contains("expected Picks([[(0, 0.51851), (1, 0.48149)]])"));
}

/// However `plugin dev` ends, the server that it has started ends too.
#[test]
fn a_killed_dev_leaves_no_server() {
    let (_folder, dir) = project(Language::Gate, "gates");
    let mut dev = Command::new(env!("CARGO_BIN_EXE_polyskill"))
        .args(["plugin", "dev", "--offline", "--to", "http://127.0.0.1:0"])
        .arg(&dir)
        .args(["--", "--model"])
        .arg(fixtures().join("models/llama-tied"))
        .arg("--adapters")
        .arg(dir.join("fixtures"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(dev.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("serving") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "it ended before it served");
    }
    dev.kill().unwrap();
    dev.wait().unwrap();
    // The server writes to the same pipe, so it ends when the server does.
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = said.read_to_string(&mut line);
        let _ = ended.send(());
    });
    end.recv_timeout(Duration::from_secs(60)).expect("the server still runs");
}

#[test]
fn mistakes_in_a_project_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["", "Router", "ümlaut", "9lives", "a b"] {
        let message = fails(&new(Language::C, name, &folder.path().join("x")));
        assert!(message.contains("expected at most 64"), "{message}");
    }
    assert!(fails(&build(folder.path(), None)).contains("plugin.toml"));
    assert!(fails(&test(folder.path())).contains("plugin.toml"));
    let (_folder, dir) = project(Language::C, "c-router");
    assert!(fails(&build(&dir, Some(Flavour::Component))).contains("core module"));
    assert!(fails(&test(&dir)).contains("polyskill plugin build"));
    std::fs::remove_file(dir.join("router.c")).unwrap();
    assert!(fails(&build(&dir, None)).contains("nothing to build"));
    let (_folder, dir) = project(Language::Gate, "gates");
    replace(&dir.join("gates.toml"), "softmax", "sofmax");
    works(&build(&dir, None));
    let message = fails(&test(&dir));
    assert!(message.contains("sofmax") || message.contains("unknown variant"), "{message}");
}

/// Needs a compiler for WebAssembly, as the plugins of the repository do.
#[test]
fn a_rust_project_builds_and_passes_its_tests() {
    let (_folder, dir) = project(Language::Rust, "by-name");
    let (text, built) = say(&build(&dir, None));
    match built {
        Err(reason) if reason.contains("get it with") => {
            not_tried(&reason);
            return;
        }
        built => built.unwrap_or_else(|reason| panic!("{reason}\n{text}")),
    }
    assert!(text.contains("component") && !text.contains("warning"), "{text}");
    let tested = works(&test(&dir));
    assert!(tested.contains("ok      fixtures/nothing-named.json"), "{tested}");
    let exports = works(&inspect(&dir));
    assert!(exports.contains("planner@0.1.0") && exports.contains("starts with"), "{exports}");
    replace(&dir.join("src/lib.rs"), "Err(RouteError::Abstain)", "Ok(Plan::output_sum([]))");
    works(&build(&dir, None));
    let message = fails(&test(&dir));
    assert!(
        message.contains("decided  Fixed([])") && message.contains("expected Error(\"abstain\")"),
        "{message}"
    );
}

/// Needs a C compiler; the one for WebAssembly is another than the one for libraries.
#[test]
fn a_c_project_builds_and_passes_its_tests() {
    let (_folder, dir) = project(Language::C, "best");
    for (flavour, native) in [(Flavour::Core, false), (Flavour::Dylib, true)] {
        let (text, built) = say(&build(&dir, Some(flavour)));
        match built {
            Err(reason) if reason.contains("get one with") || reason.contains("cannot run") => {
                not_tried(&reason);
                continue;
            }
            built => built.unwrap_or_else(|reason| panic!("{reason}\n{text}")),
        }
        let form = if native { "dylib" } else { "core" };
        let bundle = dir.join("target/bundle").join(form).join("best");
        assert!(works(&inspect(&bundle)).contains("polyskill_v1_route"));
        if native {
            let refused = fails(&test(&bundle));
            assert!(refused.contains("--native"), "{refused}");
        }
        let sandbox = SandboxArgs { native, ..SandboxArgs::default() };
        let tested = works(&PluginCommand::Test { bundle, sandbox });
        assert!(tested.contains("15 plans") && tested.contains("60 batches"), "{tested}");
    }
}

/// What rustc says to a crate that exports a router.
fn compile(folder: &Path, source: &str) -> String {
    let rustc = || {
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        rustc.args(["--edition", "2024", "--crate-type", "lib", "--emit", "metadata"]);
        rustc.arg("--out-dir").arg(folder).current_dir(root());
        rustc
    };
    let sdk = folder.join("libpolyskill_sdk.rmeta");
    if !sdk.exists() {
        let mut rustc = rustc();
        rustc.args(["--crate-name", "polyskill_sdk", "--cap-lints", "allow", "sdk/src/lib.rs"]);
        assert!(rustc.status().unwrap().success());
    }
    let file = folder.join("router.rs");
    std::fs::write(&file, source).unwrap();
    let extern_sdk = format!("polyskill_sdk={}", sdk.display());
    let output = rustc().arg("--extern").arg(extern_sdk).arg(&file).output().unwrap();
    assert_eq!(output.stderr.is_empty(), output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn what_is_no_router_is_told_so_by_the_compiler() {
    const METHODS: [&str; 3] = [
        "fn init(_: &mut dyn Host, _: &Parameters) -> Result<Self, String> { Ok(Self) }",
        "fn descriptor(&self) -> Descriptor { Descriptor { name: String::new(), version: String::new(), \
         causal: true } }",
        "fn plan(&mut self, _: &mut dyn Host, _: &Request) -> Result<Plan, RouteError> { \
         Err(RouteError::Abstain) }",
    ];
    let folder = tempfile::tempdir().unwrap();
    let source = |body: &str| {
        format!(
            "#![allow(unused)]\nuse polyskill_sdk::*;\npub struct Mine;\n{body}\n\
             polyskill_sdk::export!(Mine);\n"
        )
    };
    let router =
        |methods: &[&str]| source(&format!("impl Router for Mine {{ {} }}", methods.join("\n")));
    assert_eq!(compile(folder.path(), &router(&METHODS)), "");
    for (source, parts) in [
        (source(""), &["`Mine` is no router", "polyskill plugin new", "export!(Mine)"][..]),
        (router(&METHODS[..2]), &["missing: `plan`"]),
        (router(&[]), &["missing: `init`, `descriptor`, `plan`"]),
        (
            router(&[METHODS[0], METHODS[1], "fn plan(&self) {}"]),
            &["has 1 parameter but the declaration in trait", "Router::plan"],
        ),
        (
            router(&[
                METHODS[0],
                METHODS[1],
                &METHODS[2].replace("Result<Plan, RouteError>", "Plan"),
            ]),
            &["expected signature", "Result<polyskill_sdk::Plan"],
        ),
    ] {
        let said = compile(folder.path(), &source);
        let missing = parts.iter().find(|part| !said.contains(**part));
        assert_eq!(missing, None, "{source}\n{said}");
    }
}
