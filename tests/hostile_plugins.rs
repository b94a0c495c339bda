//! Plugins that are no plugins, trap, spin, grow or lie: the base answers and the host stays whole.

use std::path::{Path, PathBuf};

use polyskill_engine::{RouterSettings, Selection};
use polyskill_plugin::{Limits, Loader, Trust};
use polyskill_sdk::Parameters;
use polyskill_sdk::runtime::Fault;
use proptest::prelude::{ProptestConfig, Strategy, prop_oneof};
use proptest::test_runner::TestRunner;
use wit_component::{StringEncoding, embed_component_metadata};

use crate::common::{Bench, TASKS, greedy, plugins, root, routed, weighted};

const DESCRIPTOR: &str = r#"(data (i32.const 1024) "\00\00\00\00\d0\07\00\00\04\00\00\00\d0\07\00\00\04\00\00\00\01")
    (data (i32.const 2000) "evil")"#;
const GOOD_INIT: &str = "i32.const 1024";
const GOOD_CHANGE: &str = "i32.const 1200";

/// A core module of the router world with these bodies, its results laid out by hand at fixed addresses.
fn plugin(pages: &str, data: &str, [init, change, plan]: [&str; 3]) -> Vec<u8> {
    let text = format!(
        r#"(module
            (memory (export "memory") {pages})
            (global $top (mut i32) (i32.const 8192))
            (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
                (global.set $top (i32.and (i32.add (global.get $top) (i32.const 15)) (i32.const -16)))
                global.get $top
                (global.set $top (i32.add (global.get $top) (local.get 3))))
            (func (export "polyskill:router/planner@0.1.0#init") (param i32 i32) (result i32)
                (local $n i32) {init})
            (func (export "polyskill:router/planner@0.1.0#library-changed")
                (param i32 i32 i32 i32) (result i32) (local $n i32) {change})
            (func (export "polyskill:router/planner@0.1.0#plan")
                (param i32 i32 i32 i32 i32 i32 i32 i32 i64) (result i32)
                (local $n i32) {plan})
            {data})"#
    );
    let mut module = wat::parse_str(text).unwrap();
    let mut resolve = wit_parser::Resolve::default();
    let (package, _) = resolve.push_path(root().join("sdk/wit/router-0.1")).unwrap();
    let world = resolve.select_world(&[package], Some("plan-only")).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    module
}

/// A plugin that behaves until it plans.
pub(crate) fn planner(data: &str, plan: &str) -> Vec<u8> {
    plugin("2", &format!("{DESCRIPTOR} {data}"), [GOOD_INIT, GOOD_CHANGE, plan])
}

/// Bytes as a bare `.wasm` in a directory that lives as long as the first part.
fn written(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("evil.wasm");
    std::fs::write(&path, bytes).unwrap();
    (directory, path)
}

fn limits() -> Limits {
    Limits { plan_fuel: 20_000_000, setup_fuel: 20_000_000, ..Limits::default() }
}

/// Loads a plugin and puts it into the composer.
fn serve(bench: &Bench, bytes: &[u8], limits: Limits) -> Result<(), Fault> {
    let (_directory, path) = written(bytes);
    let plugin = Loader::new(limits, Trust::unsigned(), None).unwrap().load(&path).unwrap();
    let none = Parameters::default();
    let router = plugin.start(&bench.composer.view(), none)?;
    bench.composer.add_router("evil", "digest".to_owned(), router, RouterSettings::default())
}

fn refusal(path: &Path) -> String {
    Loader::new(limits(), Trust::unsigned(), None).unwrap().load(path).unwrap_err().to_string()
}

#[test]
fn what_is_no_plugin_is_refused_by_name() {
    let core = wat::parse_str("(module (func (export \"run\")))").unwrap();
    let component =
        wat::parse_str(r#"(component (core module $m) (export "run" (core module $m)))"#);
    let behaving = planner("", "unreachable");
    let truncated = &behaving[..behaving.len() / 2];
    for (what, bytes, part) in [
        ("garbage", &b"garbage that is long enough"[..], "not WebAssembly"),
        ("a library", b"\x7fELF garbage", "dynamic library"),
        ("nothing", b"", "not WebAssembly"),
        ("empty component", b"\0asm\x0d\0\x01\0", "exports nothing"),
        ("empty core module", b"\0asm\x01\0\0\0", "no component type"),
        ("core module of another kind", &core, "no component type"),
        ("component of another world", &component.unwrap(), "exports run"),
        ("truncated", truncated, "evil"),
    ] {
        let (_directory, path) = written(bytes);
        let message = refusal(&path);
        assert!(message.contains("evil") && message.contains(part), "{what}: {message}");
    }
    assert!(refusal(Path::new("/nonexistent/evil.wasm")).contains("/nonexistent/evil.wasm"));
}

#[test]
fn manifests_are_checked() {
    let good = "name = \"evil\"\nversion = \"1\"\nabi = \"0.1\"\nfile = \"evil.wasm\"\n";
    for (manifest, part) in [
        (good.replace("0.1", "0.2"), "abi 0.2"),
        (good.replace("evil.wasm", "../evil.wasm"), "beside the manifest"),
        (good.replace("evil.wasm", "/etc/passwd"), "beside the manifest"),
        (good.replace("abi = \"0.1\"\n", ""), "abi"),
        (format!("{good}run = \"rm\"\n"), "run"),
        ("\0".to_owned(), "plugin.toml"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("plugin.toml"), &manifest).unwrap();
        std::fs::write(directory.path().join("evil.wasm"), planner("", "unreachable")).unwrap();
        let message = refusal(directory.path());
        assert!(message.contains(part), "{manifest}: {message}");
    }
}

#[test]
fn a_plugin_that_does_not_start_is_not_published() {
    let spin = "(loop $l (br $l)) unreachable";
    let grow = "(loop $l (local.set $n (memory.grow (i32.const 16)))
        (br_if $l (i32.ne (local.get $n) (i32.const -1)))) unreachable";
    let lies = "(data (i32.const 2000) \"\\ff\\fe\\ff\\ff\")";
    let ok = format!("{DESCRIPTOR} {lies}");
    let bench = Bench::new("models/llama-tied", &TASKS);
    for (what, bytes, part) in [
        ("init traps", plugin("2", DESCRIPTOR, ["unreachable", GOOD_CHANGE, GOOD_INIT]), "`init`"),
        ("init spins", plugin("2", DESCRIPTOR, [spin, GOOD_CHANGE, GOOD_INIT]), "fuel"),
        ("init grows", plugin("2", DESCRIPTOR, [grow, GOOD_CHANGE, GOOD_INIT]), "`init`"),
        (
            "init points nowhere",
            plugin("2", "", ["i32.const -8", GOOD_CHANGE, GOOD_INIT]),
            "`init`",
        ),
        ("init lies about text", plugin("2", &ok, [GOOD_INIT, GOOD_CHANGE, GOOD_INIT]), "`init`"),
        (
            "library-changed traps",
            plugin("2", DESCRIPTOR, [GOOD_INIT, "unreachable", GOOD_INIT]),
            "`library-changed`",
        ),
        ("library-changed spins", plugin("2", DESCRIPTOR, [GOOD_INIT, spin, GOOD_INIT]), "fuel"),
    ] {
        let Err(Fault::Trap(reason)) = serve(&bench, &bytes, limits()) else {
            panic!("{what}: no trap");
        };
        assert!(reason.contains(part), "{what}: {reason}");
        assert!(bench.composer.routers().is_empty(), "{what}");
    }
}

#[test]
fn too_much_memory_is_refused_before_any_code_runs() {
    let bytes = plugin("1024", DESCRIPTOR, [GOOD_INIT, GOOD_CHANGE, GOOD_INIT]);
    let (_directory, path) = written(&bytes);
    let bench = Bench::new("models/llama-tied", &TASKS);
    let loaded = Loader::new(limits(), Trust::unsigned(), None).unwrap().load(&path);
    let message = match loaded {
        Err(error) => error.to_string(),
        Ok(plugin) => {
            let started = plugin.start(&bench.composer.view(), Parameters::default());
            started.err().expect("64 MiB were granted").to_string()
        }
    };
    assert!(message.contains("memory"), "{message}");
}

/// A plan of one pick: result ok, `fixed`, a list of one at 3000.
const ONE_PICK: &str =
    r#"(data (i32.const 1300) "\00\00\00\00\00\00\00\00\b8\0b\00\00\01\00\00\00")"#;

#[test]
fn a_plugin_written_by_hand_works() {
    let bench = Bench::new("models/llama-tied", &TASKS);
    let half = format!("{ONE_PICK} (data (i32.const 3000) \"\\01\\00\\00\\00\\00\\00\\00\\3f\")");
    serve(&bench, &planner(&half, "i32.const 1300"), limits()).unwrap();
    let selection = routed("evil", Parameters::default());
    let composition = bench.compose(&selection);
    assert_eq!(composition.fallback(), None);
    let prompt: Vec<u32> = (10..40).collect();
    let found = bench.run(&selection, &prompt, greedy(6));
    let expected = bench.run(&weighted(&[("task-b", 0.5)]), &prompt, greedy(6));
    assert!(found.bits() == expected.bits());
}

#[test]
fn the_base_answers_for_a_plugin_that_fails_while_planning() {
    let prompt: Vec<u32> = (10..40).collect();
    let spin = "(loop $l (br $l)) unreachable";
    let grow = "(loop $l (local.set $n (memory.grow (i32.const 16)))
        (br_if $l (i32.ne (local.get $n) (i32.const -1)))) unreachable";
    let pick = |bytes: &str| format!("{ONE_PICK} (data (i32.const 3000) \"{bytes}\")");
    let huge = r#"(data (i32.const 1300) "\00\00\00\00\00\00\00\00\b8\0b\00\00\ff\ff\ff\0f")"#;
    let many = r#"(data (i32.const 1300) "\00\00\00\00\00\00\00\00\b8\0b\00\00\00\18\00\00")"#;
    let tag = r#"(data (i32.const 1300) "\00\00\00\00\09\00\00\00\b8\0b\00\00\01\00\00\00")"#;
    let recurse = "(call 3 (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
        (i32.const 0) (i32.const 0) (i32.const 0) (i64.const 0))";
    let answer = "i32.const 1300";
    for (what, bytes, part) in [
        ("trap", planner("", "unreachable"), "unreachable"),
        ("spin", planner("", spin), "fuel"),
        ("grow", planner("", grow), "`plan`"),
        ("recurse", planner("", recurse), "stack"),
        ("pointer out of memory", planner("", "i32.const -16"), "`plan`"),
        ("list out of memory", planner(huge, answer), "`plan`"),
        ("unknown variant", planner(tag, answer), "`plan`"),
        ("too many picks", planner(many, answer), "6144"),
        ("NaN", planner(&pick(r"\01\00\00\00\00\00\c0\7f"), answer), "NaN"),
        ("infinity", planner(&pick(r"\01\00\00\00\00\00\80\7f"), answer), "inf"),
        ("no module", planner(&pick(r"\ff\ff\ff\ff\00\00\80\3f"), answer), "no candidate"),
    ] {
        let bench = Bench::new("models/llama-tied", &TASKS);
        serve(&bench, &bytes, limits()).unwrap();
        let selection = routed("evil", Parameters::default());
        for round in 1..=2 {
            let composition = bench.compose(&selection);
            let reason = composition.fallback().unwrap_or_else(|| panic!("{what}: accepted"));
            assert!(reason.contains(part), "{what}: {reason}");
            assert_eq!(bench.composer.routers()[0].faults, round, "{what}");
        }
        let output = bench.run(&selection, &prompt, greedy(4));
        let base = bench.run(&Selection::Base, &prompt, greedy(4));
        assert!(output.bits() == base.bits(), "{what}");
    }
}

/// Fuel does not count time spent waiting; the deadline does.
#[test]
fn a_deadline_ends_what_fuel_does_not() {
    let bench = Bench::new("models/llama-tied", &TASKS);
    let endless = Limits { plan_fuel: u64::MAX, plan_milliseconds: 30, ..Limits::default() };
    // The loader's clock must outlive the plugin, as in the server.
    let (_directory, path) = written(&planner("", "(loop $l (br $l)) unreachable"));
    let loader = Loader::new(endless, Trust::unsigned(), None).unwrap();
    let plugin = loader.load(&path).unwrap();
    let none = Parameters::default();
    let router = plugin.start(&bench.composer.view(), none).unwrap();
    bench
        .composer
        .add_router("evil", "digest".to_owned(), router, RouterSettings::default())
        .unwrap();
    let composition = bench.compose(&routed("evil", Parameters::default()));
    let reason = composition.fallback().expect("the plan was accepted");
    assert!(reason.contains("interrupt"), "{reason}");
}

/// Bytes with some changed and the end cut off.
fn mutated(bytes: &[u8], edits: &[(usize, u8)], keep: f64) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for &(at, byte) in edits {
        let at = at % bytes.len();
        bytes[at] = byte;
    }
    bytes.truncate((bytes.len() as f64 * keep) as usize);
    bytes
}

/// Loads what lies at a path and, where that works, has it plan a request, which must be answered.
fn load_and_plan(loader: &Loader, bench: &Bench, path: &Path) {
    let plugin = match loader.load(path) {
        Ok(plugin) => plugin,
        Err(error) => return assert!(error.to_string().len() > 20, "{error}"),
    };
    let none = Parameters::default();
    let Ok(router) = plugin.start(&bench.composer.view(), none) else { return };
    if bench
        .composer
        .add_router("evil", "digest".to_owned(), router, RouterSettings::default())
        .is_ok()
    {
        let _ = bench.composer.compose(&routed("evil", Parameters::default()));
    }
}

/// Positions: most in the first sections, where the structure is, some anywhere.
fn edits(structure: usize) -> impl Strategy<Value = Vec<(usize, u8)>> {
    let at = prop_oneof![3 => 0..structure, 1 => 0..usize::MAX];
    proptest::collection::vec((at, 0..=255_u8), 0..5)
}

fn keeps() -> impl Strategy<Value = f64> {
    proptest::sample::select(vec![1.0, 1.0, 1.0, 0.99, 0.5, 0.01])
}

/// One engine for all cases, as one is compiled with in a server.
fn tested<S: Strategy>(cases: u32, strategy: &S, test: impl Fn(S::Value)) {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let run = TestRunner::new(config).run(strategy, |value| {
        test(value);
        Ok(())
    });
    run.unwrap();
}

#[test]
fn mutated_plugins_load_or_are_refused() {
    let bench = Bench::new("models/llama-tied", &TASKS);
    let loader =
        Loader::new(Limits { plan_items: 64, ..limits() }, Trust::unsigned(), None).unwrap();
    let half = format!("{ONE_PICK} (data (i32.const 3000) \"\\01\\00\\00\\00\\00\\00\\00\\3f\")");
    let spin = "(loop $l (br $l)) unreachable";
    for small in [planner(&half, "i32.const 1300"), planner("", spin)] {
        tested(96, &(edits(400), keeps()), |(edits, keep)| {
            let (_directory, path) = written(&mutated(&small, &edits, keep));
            load_and_plan(&loader, &bench, &path);
        });
    }
}

#[test]
fn mutated_bundles_load_or_are_refused() {
    let bench = Bench::new("models/llama-tied", &TASKS);
    let loader = Loader::new(limits(), Trust::unsigned(), None).unwrap();
    let arrow = plugins().join("arrow");
    let manifest = std::fs::read(arrow.join("plugin.toml")).unwrap();
    let module = std::fs::read(arrow.join("arrow.wasm")).unwrap();
    let load = |manifest: &[u8], module: &[u8]| {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("plugin.toml"), manifest).unwrap();
        std::fs::write(directory.path().join("arrow.wasm"), module).unwrap();
        load_and_plan(&loader, &bench, directory.path());
    };
    tested(16, &(edits(2_000), keeps()), |(edits, keep)| {
        load(&manifest, &mutated(&module, &edits, keep));
    });
    // An empty component is refused quickly, but after the manifest.
    tested(256, &(edits(200), keeps()), |(edits, keep)| {
        load(&mutated(&manifest, &edits, keep), b"\0asm\x0d\0\x01\0");
    });
    load(&manifest, &module);
    assert_eq!(bench.composer.routers().len(), 1);
}

/// A bundle without code: its manifest, gate file, fixtures and signature are all read from outside, from a
/// folder and from a tar.
#[test]
fn mutated_gate_files_load_or_are_refused() {
    let bench = Bench::new("models/llama-tied", &TASKS);
    let keys = tempfile::tempdir().unwrap();
    let source = root().join("plugins/gate-arrow");
    let fixture = std::fs::read_dir(source.join("fixtures")).unwrap().next().unwrap().unwrap();
    let files = ["plugin.toml", "arrow.toml"].map(|name| std::fs::read(source.join(name)).unwrap());
    let [manifest, gates] = files;
    let fixture = std::fs::read(fixture.path()).unwrap();
    let write = |directory: &Path, contents: [&[u8]; 3]| {
        std::fs::create_dir_all(directory.join("fixtures")).unwrap();
        for (name, content) in
            ["plugin.toml", "arrow.toml", "fixtures/one.json"].into_iter().zip(contents)
        {
            std::fs::write(directory.join(name), content).unwrap();
        }
    };
    let whole = tempfile::tempdir().unwrap();
    write(whole.path(), [&manifest, &gates, &fixture]);
    let key = polyskill_plugin::new_key(&keys.path().join("key")).unwrap();
    polyskill_plugin::sign(whole.path(), &keys.path().join("key"), &limits()).unwrap();
    let signature = std::fs::read(whole.path().join("plugin.sig")).unwrap();
    let tar = keys.path().join("bundle.tar");
    polyskill_plugin::pack(whole.path(), &tar, &limits()).unwrap();
    let tar = std::fs::read(tar).unwrap();
    let trusted = polyskill_plugin::TrustedKey { key, prefix: String::new(), dylibs: false };
    let signed = Trust { keys: vec![trusted], ..Trust::default() };
    let strict = Loader::new(limits(), signed, None).unwrap();
    assert!(strict.load(whole.path()).is_ok());
    let open = Loader::new(limits(), Trust::unsigned(), None).unwrap();
    tested(96, &(0..5_usize, edits(1_000), keeps()), |(which, edits, keep)| {
        let directory = tempfile::tempdir().unwrap();
        let change = |at: usize, bytes: &[u8]| match which == at {
            true => mutated(bytes, &edits, keep),
            false => bytes.to_vec(),
        };
        let contents = [change(0, &manifest), change(1, &gates), change(2, &fixture)];
        write(directory.path(), [&contents[0], &contents[1], &contents[2]]);
        load_and_plan(&open, &bench, directory.path());
        let changed = contents != [manifest.clone(), gates.clone(), fixture.clone()];
        let signature_now = change(3, &signature);
        std::fs::write(directory.path().join("plugin.sig"), &signature_now).unwrap();
        // White space around its words is no part of a signature, and hexadecimal has two cases.
        let words = |bytes: &[u8]| -> Vec<String> {
            let text = String::from_utf8_lossy(bytes).to_lowercase();
            text.split_whitespace().take(3).map(str::to_owned).collect()
        };
        if changed || words(&signature_now) != words(&signature) {
            assert!(strict.load(directory.path()).is_err(), "a changed bundle passed as signed");
        }
        let path = directory.path().join("bundle.tar");
        std::fs::write(&path, change(4, &tar)).unwrap();
        load_and_plan(&open, &bench, &path);
    });
}
