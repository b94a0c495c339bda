//! The shipped routers as bundles: each passes its self-test, plans on a tiny model, and those that say the
//! same decide alike.

use std::path::Path;

use polyskill_adapters::library::Expected;
use polyskill_adapters::load_module;
use polyskill_engine::{RouterRequest, RouterSettings, Selection};
use polyskill_plugin::{Kind, Limits, Loader, Plugin, Trust, TrustedKey, new_key, sign};
use polyskill_sdk::{Parameters, Value};

use crate::common::{
    Bench, Output, TASKS, beside, cases, fixtures, greedy, peft_arrow, plugins, weighted, worst,
};

fn loader() -> Loader {
    Loader::new(Limits::default(), Trust::unsigned(), None).unwrap()
}

/// Adds a router to a bench, after its self-test; says which fixtures passed.
fn add(bench: &Bench, plugin: &Plugin) -> usize {
    let fixtures = plugin.self_test().unwrap_or_else(|fault| panic!("{}: {fault}", plugin.name()));
    let router = plugin.start(&bench.composer.view(), Parameters::default()).unwrap();
    let (name, digest) = (plugin.name(), plugin.digest().to_owned());
    bench.composer.add_router(name, digest, router, RouterSettings::default()).unwrap();
    fixtures.len()
}

/// A router that is always built.
fn add_bundle(bench: &Bench, name: &str) {
    let plugin = loader().load(&plugins().join(name)).unwrap_or_else(|error| panic!("{error}"));
    assert!(add(bench, &plugin) > 0, "{name} has no fixtures");
}

/// The bundle of a router whose compiler may be missing.
fn optional(folder: &Path) -> bool {
    // Where it is not built, `cargo xtask plugins` says why.
    folder.join("plugin.toml").is_file()
}

fn bench(routers: &[&str]) -> Bench {
    let bench = Bench::new("models/llama-tied", &TASKS);
    routers.iter().for_each(|router| add_bundle(&bench, router));
    bench
}

fn selection(router: &str, said: Option<&str>, given: &[(&str, Value)]) -> Selection {
    let own = |(name, value): &(&str, Value)| ((*name).to_owned(), value.clone());
    let (router, parameters) = (router.to_owned(), Parameters(given.iter().map(own).collect()));
    let text = said.map(str::to_owned);
    Selection::Routed(RouterRequest { router, parameters, text, ..RouterRequest::default() })
}

fn says(value: &str) -> Value {
    Value::Text(value.to_owned())
}

fn run(bench: &Bench, selection: &Selection) -> Output {
    let case = cases("arrow").remove(0);
    assert_eq!(bench.compose(selection).fallback(), None);
    bench.run(selection, &case.prompt, greedy(8))
}

#[test]
fn every_router_starts_and_answers() {
    let names = ["retrieval", "task-table", "mixture", "polytropon", "margin", "gate-arrow"];
    let bench = bench(&names);
    let tasks = says("this: task-b=1, task-d=-1");
    for (router, said, given) in [
        ("retrieval", Some("task b"), vec![("mode", says("mixture"))]),
        ("mixture", None, vec![]),
        ("mixture", None, vec![("weights", says("task-a=0.5,task-e=-0.25"))]),
        ("polytropon", None, vec![("task", says("this")), ("tasks", tasks)]),
        ("margin", None, vec![("margin", Value::Number(0.1))]),
        ("gate-arrow", None, vec![("top_k", Value::Number(2.0))]),
    ] {
        let output = run(&bench, &selection(router, said, &given));
        assert_eq!(output.ids().len(), 8, "{router}");
    }
    for (router, part) in
        [("retrieval", "abstained"), ("task-table", "abstained"), ("polytropon", "abstained")]
    {
        let composition = bench.compose(&selection(router, None, &[]));
        assert!(composition.fallback().is_some_and(|reason| reason.contains(part)), "{router}");
    }
    assert!(bench.composer.routers().iter().all(|router| router.faults == 0));
}

fn names(weights: &[(&str, f32)]) -> Vec<(String, f32)> {
    weights.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect()
}

/// Modules of every kind act on all rows, and what the router picks comes on top.
#[test]
fn modules_act_beside_a_router() {
    let mut tasks = TASKS.to_vec();
    let others = ["dora-all", "ia3-default", "prompt-5", "steering", "graft", "lora-head-tied"];
    tasks.extend(others);
    let bench = Bench::new("models/llama-tied", &tasks);
    bench.add_arrow();
    add_bundle(&bench, "mixture");
    let weights = [("dora-all", 0.5), ("ia3-default", 1.0), ("prompt-5", 1.0), ("steering", 0.7)];
    let rest = [("graft", 1.0), ("lora-head-tied", 0.25)];
    let others: Vec<(&str, f32)> = weights.into_iter().chain(rest).collect();
    let mixture = selection("mixture", None, &[("weights", says("task-a=0.5,task-e=-0.25"))]);
    // With one candidate, Arrow gives it all the weight.
    let mut arrow = peft_arrow(1.0, 1.0, 42.0);
    if let Selection::Routed(RouterRequest { modules, .. }) = &mut arrow {
        *modules = vec!["task-b".to_owned()];
    }
    for (router, picked) in
        [(mixture, vec![("task-a", 0.5), ("task-e", -0.25)]), (arrow, vec![("task-b", 1.0)])]
    {
        let alone = run(&bench, &router);
        let found = run(&bench, &beside(router.clone(), names(&others)));
        let wanted = run(&bench, &weighted(&[others.clone(), picked].concat()));
        assert_eq!(found.ids(), wanted.ids(), "{router:?}");
        let logprobs = |output: &Output| -> Vec<f32> {
            output
                .tokens
                .iter()
                .flat_map(|token| token.logprob.as_ref().map(|found| found.value))
                .collect()
        };
        let difference = worst(&logprobs(&found), &logprobs(&wanted));
        assert!(difference < 2e-5, "{difference} {router:?}");
        assert_ne!(found.bits(), alone.bits(), "{router:?}");
    }
}

/// Who acts on every row is no candidate, and stays when the router fails.
#[test]
fn modules_beside_a_router_are_the_requests_own() {
    let bench = bench(&["task-table"]);
    bench.add_arrow();
    let arrow = beside(peft_arrow(2.0, 1.0, 42.0), names(&[("task-a", 1.0)]));
    let output = run(&bench, &arrow);
    let composition = bench.compose(&arrow);
    let at = composition.modules().iter().position(|lease| lease.name == "task-a").unwrap();
    let picks = output.tokens.iter().flat_map(|token| &token.routing).flat_map(|site| &site.picks);
    assert!(picks.clone().count() > 0 && picks.clone().all(|(module, _)| *module as usize != at));
    let said: Vec<_> =
        composition.always_on().map(|(lease, weight)| (&*lease.name, weight)).collect();
    assert_eq!(said, [("task-a", 1.0)]);

    let declines = beside(selection("task-table", None, &[]), names(&[("task-a", 1.0)]));
    assert!(bench.compose(&declines).fallback().is_some());
    let prompt = cases("arrow").remove(0).prompt;
    let (found, wanted) = (
        bench.run(&declines, &prompt, greedy(8)),
        bench.run(&weighted(&[("task-a", 1.0)]), &prompt, greedy(8)),
    );
    assert_eq!(found.bits(), wanted.bits());

    let unknown = beside(peft_arrow(2.0, 1.0, 42.0), names(&[("nobody", 1.0)]));
    assert_eq!(
        bench.composer.compose(&unknown).unwrap_err().to_string(),
        "the adapter `nobody` does not exist"
    );
}

#[test]
fn phatgoose_names_what_is_missing() {
    let composition = bench(&["phatgoose"]).compose(&selection("phatgoose", None, &[]));
    let reason = composition.fallback().unwrap_or_default();
    assert!(reason.contains("`task-a` has no artefact `phatgoose`"), "{reason}");
}

/// Modules that bring gates: two of them for every token and site, with weights in sum 1 but for ε.
#[test]
fn phatgoose_routes_by_the_gates_of_modules() {
    let (bench, roots) = (bench(&[]), fixtures().join("adapters"));
    let directory = tempfile::tempdir().unwrap();
    for (number, name) in TASKS.iter().enumerate() {
        let copy = directory.path().join(name);
        copy_bundle(&roots.join(name), &copy);
        let module = load_module(name, &copy, directory.path(), bench.model.config()).unwrap();
        std::fs::create_dir(copy.join("artefacts")).unwrap();
        let generation = module.generation().to_string();
        let gates = gates(&bench, &generation, number);
        std::fs::write(copy.join("artefacts/phatgoose.safetensors"), gates).unwrap();
        let module = load_module(name, &copy, directory.path(), bench.model.config()).unwrap();
        drop(bench.library.remove(name, Expected::Any).unwrap());
        bench.library.publish(name, module, Expected::Absent).unwrap();
    }
    add_bundle(&bench, "phatgoose");
    let output = run(&bench, &selection("phatgoose", None, &[]));
    let picks = output.tokens.iter().flat_map(|token| &token.routing).map(|site| &site.picks);
    let mut modules = std::collections::BTreeSet::new();
    for picks in picks {
        let sum: f32 = picks.iter().map(|(_, weight)| weight).sum();
        assert!(picks.len() == 2 && (sum - 1.0).abs() < 1e-4, "{picks:?}");
        modules.extend(picks.iter().map(|(module, _)| *module));
    }
    assert!(modules.len() > 2, "the gates make a difference: {modules:?}");
}

/// An artefact with made-up gates for every site.
fn gates(bench: &Bench, generation: &str, number: usize) -> Vec<u8> {
    let manifest = serde_json::json!({
        "artefact": "phatgoose", "method": "phatgoose", "variant": "test",
        "module_generation": generation, "dtype": "F32",
    });
    let mut header = serde_json::json!({ "__metadata__": manifest });
    let mut data: Vec<u8> = Vec::new();
    for site in &bench.composer.view().model().sites {
        let folder = match site.projection.as_str() {
            "gate_proj" | "up_proj" | "down_proj" => "mlp",
            _ => "self_attn",
        };
        let start = data.len();
        let value = |at: u32| ((at * 37 + site.index * 11 + number as u32 * 53) % 19) as f32 - 9.0;
        data.extend((0..site.inputs).flat_map(|at| value(at).to_le_bytes()));
        let name = format!("model.layers.{}.{folder}.{}", site.layer, site.projection);
        header[name] = serde_json::json!({
            "dtype": "F32", "shape": [site.inputs], "data_offsets": [start, data.len()],
        });
    }
    let header = header.to_string().into_bytes();
    [&(header.len() as u64).to_le_bytes(), header.as_slice(), &data].concat()
}

#[test]
fn a_gate_file_gives_the_bits_of_the_native_arrow() {
    let (native, file) = (Bench::arrow(), bench(&["gate-arrow"]));
    let native = run(&native, &selection("arrow", None, &[]));
    assert_eq!(run(&file, &selection("gate-arrow", None, &[])).bits(), native.bits());
}

/// A margin above 1 is Arrow. The sandboxed exponential function may differ in the last bit.
#[test]
fn rows_decided_by_a_plugin_are_those_of_the_program() {
    let native = run(&Bench::arrow(), &selection("arrow", None, &[]));
    let bench = bench(&["margin"]);
    require_close(
        &run(&bench, &selection("margin", None, &[("margin", Value::Number(2.0))])),
        &native,
    );
    let routers = bench.composer.routers();
    assert!(routers[0].route_calls > 0 && routers[0].invalid_rows == 0);
}

/// The same modules for every token and site, weights within 1e-6.
fn require_close(found: &Output, expected: &Output) {
    assert_eq!(found.ids(), expected.ids());
    for (found, expected) in found.tokens.iter().zip(&expected.tokens) {
        for (found, expected) in found.routing.iter().zip(&expected.routing) {
            let split =
                |picks: &[(u32, f32)]| -> (Vec<u32>, Vec<f32>) { picks.iter().copied().unzip() };
            let (found, expected) = (split(&found.picks), split(&expected.picks));
            assert_eq!(found.0, expected.0);
            assert!(worst(&found.1, &expected.1) <= 1e-6);
        }
    }
}

#[test]
fn c_decides_as_rust_does_in_and_out_of_the_sandbox() {
    let (wasm, native) = (plugins().join("c-top-k"), plugins().join("../native-plugins/c-top-k"));
    let arrow = run(&Bench::arrow(), &selection("arrow", None, &[]));
    let mut outputs = Vec::new();
    if optional(&wasm) {
        outputs.push(c_output(&loader().load(&wasm).unwrap(), Kind::Core));
    }
    if optional(&native) {
        // A dynamic library has to be signed, and its path to be allowed.
        let directory = tempfile::tempdir().unwrap();
        let (copy, key) = (directory.path().join("c-top-k"), directory.path().join("key"));
        copy_bundle(&native, &copy);
        let public = new_key(&key).unwrap();
        sign(&copy, &key, &Limits::default()).unwrap();
        let trusted = TrustedKey { key: public, prefix: "c-top-k".to_owned(), dylibs: true };
        let trust = Trust { keys: vec![trusted], dylibs: vec![copy.clone()], ..Trust::default() };
        let cache = directory.path().join("cache");
        let loader = Loader::new(Limits::default(), trust, Some(cache)).unwrap();
        outputs.push(c_output(&loader.load(&copy).unwrap(), Kind::Dylib));
    }
    outputs.iter().for_each(|output| require_close(output, &arrow));
    if let [wasm, native] = outputs.as_slice() {
        assert_eq!(wasm.bits(), native.bits());
    }
}

fn c_output(plugin: &Plugin, kind: Kind) -> Output {
    assert_eq!(plugin.kind(), kind);
    let bench = bench(&[]);
    assert!(add(&bench, plugin) > 0);
    run(&bench, &selection("c-top-k", None, &[]))
}

fn copy_bundle(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, target) = entry.map(|e| (e.path(), to.join(e.file_name()))).unwrap();
        if path.is_dir() {
            copy_bundle(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// A task with one skill is that module, merged or not.
#[test]
fn polytropon_merges() {
    let bench = bench(&["polytropon"]);
    let alone = run(&bench, &weighted(&[("task-c", 1.0)]));
    let task = |combine: &str, tasks: &str| {
        let given = [("task", says("t")), ("tasks", says(tasks)), ("combine", says(combine))];
        run(&bench, &selection("polytropon", None, &given))
    };
    assert_eq!(task("output-sum", "t: task-c=-1").bits(), alone.bits());
    assert_eq!(task("ab-merge", "t: task-c=-1").ids(), alone.ids());
    let both = "t: task-c=1, task-d=1";
    assert_ne!(task("ab-merge", both).bits(), task("output-sum", both).bits());
}

#[test]
fn a_chain_names_each_router_once() {
    let bench = bench(&["retrieval", "mixture"]);
    for chain in ["retrieval+retrieval", "retrieval+mixture + retrieval"] {
        let selection = selection(chain, None, &[]);
        let error = bench.composer.compose(&selection).unwrap_err().to_string();
        let expected = format!(
            "the chain `{chain}` names the router `retrieval` twice, expected each name once"
        );
        assert_eq!(error, expected);
        assert!(bench.composer.check_chain(chain).is_err());
    }
    assert!(bench.composer.check_chain("retrieval+mixture").is_ok());
}

/// Of many modules, the second router of a chain sees those that the first has found.
#[test]
fn retrieval_narrows_a_large_library_for_arrow() {
    const MODULES: u32 = 1_000;
    let bench = Bench::new("models/llama-tied", &[]);
    let roots = fixtures().join("adapters");
    for number in 0..MODULES {
        // A word that all have would tell none apart.
        let kind = if number % 2 == 1 { "skill" } else { "craft" };
        let (name, path) = (format!("{kind}-{number}"), roots.join(TASKS[number as usize % 5]));
        let module = load_module(&name, &path, &roots, bench.model.config()).unwrap();
        bench.library.publish(&name, module, Expected::Absent).unwrap();
    }
    add_bundle(&bench, "retrieval");
    add_bundle(&bench, "arrow");
    for (said, given, k) in [
        ("use skill 777", vec![], 16),
        (
            "use skill 777",
            vec![("retrieval.k", Value::Number(3.0)), ("top_k", Value::Number(2.0))],
            3,
        ),
        ("777, 31", vec![], 2),
    ] {
        let composition = bench.compose(&selection("retrieval+arrow", Some(said), &given));
        assert_eq!(composition.fallback(), None);
        let names: Vec<&str> = composition.modules().iter().map(|m| m.name.as_str()).collect();
        assert!(names.len() == k && names.contains(&"skill-777"), "{names:?}");
    }
    let output = run(&bench, &selection("retrieval+arrow", Some("skill 777"), &[]));
    assert!(!output.tokens[0].routing.is_empty());
    assert!(bench.composer.routers().iter().all(|router| router.faults == 0));
}

/// A component that another language's tool has made, under the same limits as any other.
#[test]
fn python_plans() {
    let folder = plugins().join("../python-plugins");
    if !optional(&folder.join("python-planner")) {
        return;
    }
    // An interpreter takes long to compile.
    let cache = Some(plugins().join("../foreign/cache"));
    let loader = Loader::new(Limits::default(), Trust::unsigned(), cache).unwrap();
    let bench = bench(&[]);
    assert!(add(&bench, &loader.load(&folder.join("python-planner")).unwrap()) > 0);
    let given = [("max_modules", Value::Number(1.0))];
    let planned = run(&bench, &selection("python-planner", Some("Task B!"), &given));
    assert_eq!(planned.bits(), run(&bench, &weighted(&[("task-b", 1.0)])).bits());
    let wrong = [("max_modules", Value::Number(0.5))];
    assert!(bench.composer.compose(&selection("python-planner", None, &wrong)).is_err());
    let silent = bench.compose(&selection("python-planner", None, &[]));
    assert!(silent.fallback().is_some_and(|reason| reason.contains("abstained")));
}
