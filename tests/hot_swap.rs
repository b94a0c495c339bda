//! Routers that are replaced, watched and recorded in a running server.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use polyskill_adapters::Library;
use polyskill_adapters::library::{Expected, Snapshot};
use polyskill_engine::{RouterRequest, RouterSettings, Selection};
use polyskill_plugin::Trust;
use polyskill_server::audit::Audit;
use polyskill_server::config::Config;
use polyskill_server::fixtures::{fixture, rows_fixture};
use polyskill_server::routers::{Routers, Seen};

use crate::common::{Bench, TASKS, greedy, plugins, routed};
use polyskill_sdk::runtime::Native;
use polyskill_sdk::{Descriptor, Host, Parameters, Pick, Plan, Request, RouteError, Router, Value};
use serde_json::json;

const GATES: &str = r#"
[[define]]
name = "p"
from = "singular-vector"
[[program]]
ops = ["load-input", { linear = "p" }, "abs", { top-k = 2 }, "softmax", "emit"]
"#;

fn write_bundle(directory: &Path, version: &str, gates: &str) {
    let bundle = directory.join("nearest");
    std::fs::create_dir_all(&bundle).unwrap();
    let manifest =
        format!("name = \"nearest\"\nversion = \"{version}\"\nabi = \"0.1\"\nfile = \"g.toml\"\n");
    std::fs::write(bundle.join("g.toml"), gates).unwrap();
    std::fs::write(bundle.join("plugin.toml"), manifest).unwrap();
}

fn routers(directory: &Path) -> Routers {
    routers_with(directory, 0)
}

fn routers_with(directory: &Path, keep_rows: usize) -> Routers {
    let config = Config {
        keep_rows,
        plugins: vec![directory.to_owned()],
        trust: Trust::unsigned(),
        audit_log: Some(directory.join(".audit.jsonl")),
        ..Config::default()
    };
    let audit = Audit::open(config.audit_log.as_deref()).unwrap();
    Routers::new(&config, &Arc::new(audit)).unwrap()
}

/// A change is loaded once it is complete; what is broken changes nothing and says why.
#[test]
fn a_watched_directory_is_served_as_it_changes() {
    let bench = Bench::new("models/llama-tied", &TASKS);
    let directory = tempfile::tempdir().unwrap();
    let (routers, mut seen) = (routers(directory.path()), Seen::default());
    let mut look = || {
        // Once to see a change, once to see that it is complete.
        routers.look(&bench.composer, &mut seen);
        routers.look(&bench.composer, &mut seen);
        bench
            .composer
            .routers()
            .first()
            .map(|router| (router.digest.clone(), router.previous.len()))
    };
    assert_eq!(look(), None);
    write_bundle(directory.path(), "1", GATES);
    let (first, previous) = look().unwrap();
    assert_eq!((previous, look()), (0, Some((first.clone(), 0))), "no change, no new version");

    let pinned = bench.compose(&routed("nearest", Parameters::default()));
    write_bundle(directory.path(), "22", GATES);
    let (second, previous) = look().unwrap();
    assert!(second != first && previous == 1);
    assert_eq!(pinned.router().unwrap().digest, first);
    let fresh = bench.compose(&routed("nearest", Parameters::default()));
    assert_eq!(fresh.router().unwrap().digest, second);

    write_bundle(directory.path(), "333", "[[program]]\nops = [\"lod-input\"]\n");
    assert_eq!(look(), Some((second.clone(), 1)));
    let attempts = routers.attempts();
    let error = attempts[0].outcome.as_ref().unwrap_err();
    assert!(error.contains("nearest") && error.contains("lod-input"), "{error}");

    bench.composer.roll_back("nearest", &first).unwrap();
    assert_eq!(bench.composer.routers()[0].digest, first);
    let audit = std::fs::read_to_string(directory.path().join(".audit.jsonl")).unwrap();
    let events: Vec<serde_json::Value> =
        audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let served = |event: &&serde_json::Value| event["served"] == true;
    let digests: Vec<&str> =
        events.iter().filter(served).filter_map(|event| event["digest"].as_str()).collect();
    assert_eq!(digests, [first.as_str(), second.as_str()]);
    assert!(events.last().unwrap()["error"].as_str().unwrap().contains("lod-input"));
    assert!(events.iter().all(|event| event["by"] == "watch" && event["time"].is_u64()));
}

/// What a router planned for live requests becomes fixtures, which its bundle is then held to.
#[test]
fn recorded_plans_are_fixtures() {
    let bench = Bench::new("models/llama-tied", &TASKS);
    let directory = tempfile::tempdir().unwrap();
    let bundle = directory.path().join("retrieval");
    std::fs::create_dir_all(bundle.join("fixtures")).unwrap();
    for file in ["plugin.toml", "retrieval.wasm"] {
        std::fs::copy(plugins().join("retrieval").join(file), bundle.join(file)).unwrap();
    }
    let routers = routers(directory.path());
    routers.load(&bench.composer, &bundle, "test").unwrap();
    let ask = |said: &str| {
        let mut selection = routed("retrieval", Parameters::default());
        if let Selection::Routed(RouterRequest { text, .. }) = &mut selection {
            *text = Some(said.to_owned());
        }
        bench.compose(&selection)
    };
    ask("task a");
    assert!(bench.composer.recorded_plans().is_empty(), "nothing is kept unasked");
    bench.composer.keep_plans(2);
    for said in ["task a", "task b", "nothing of the kind"] {
        ask(said);
    }
    let kept = bench.composer.recorded_plans();
    assert_eq!(kept.len(), 2);
    assert_eq!(kept[0].request.text.as_deref(), Some("task b"));
    for (number, planned) in kept.iter().enumerate() {
        let path = bundle.join(format!("fixtures/recorded-{number}.json"));
        std::fs::write(path, fixture(planned).to_string()).unwrap();
    }
    let loaded = routers.load(&bench.composer, &bundle, "test").unwrap();
    assert!(!loaded.unchanged, "fixtures are part of what is loaded");

    let path = bundle.join("fixtures/recorded-0.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"expect\":{", "\"expect\":{\"fixed\":[]}, \"was\":{"))
        .unwrap();
    let error = routers.load(&bench.composer, &bundle, "test").unwrap_err().to_string();
    assert!(error.contains("recorded-0.json"), "{error}");
    assert_eq!(bench.composer.routers()[0].digest, loaded.digest);
}

/// Takes the module before all others away while it plans, and picks the last candidate.
struct Swaps;

/// The library that [`Swaps`] changes.
static SWAPPED: OnceLock<Arc<Library>> = OnceLock::new();

impl Router for Swaps {
    fn init(_: &mut dyn Host, _: &Parameters) -> Result<Self, String> {
        Ok(Self)
    }

    fn descriptor(&self) -> Descriptor {
        Descriptor { name: "swaps".into(), version: "1".into(), causal: true }
    }

    fn plan(&mut self, _: &mut dyn Host, request: &Request) -> Result<Plan, RouteError> {
        SWAPPED.get().unwrap().remove("task-a", Expected::Any).unwrap();
        let module = *request.candidates.last().unwrap();
        Ok(Plan::output_sum([Pick { module, weight: 1.0 }]))
    }
}

/// Candidates are numbers in the library as the request found it.
#[test]
fn recorded_plans_name_the_modules_of_their_request() {
    let bench = Bench::new("models/llama-tied", &TASKS);
    let names = |snapshot: &Snapshot| -> Vec<String> {
        snapshot.iter().map(|(name, _)| name.to_owned()).collect()
    };
    let before = names(&bench.composer.library().snapshot());
    SWAPPED.set(Arc::clone(bench.composer.library())).unwrap();
    let router = Native::<Swaps>::new(&bench.composer.view(), &Parameters::default()).unwrap();
    let settings = RouterSettings::default();
    bench.composer.add_router("swaps", "native".to_owned(), Box::new(router), settings).unwrap();
    bench.composer.keep_plans(1);
    let composition = bench.compose(&routed("swaps", Parameters::default()));
    assert_eq!(composition.modules()[0].name, *before.last().unwrap());
    assert_ne!(names(&bench.composer.library().snapshot()), before);
    let [planned] = bench.composer.recorded_plans().try_into().unwrap();
    let recorded: Vec<String> = planned.candidates.iter().map(|m| m.name.clone()).collect();
    assert_eq!(recorded, before);
}

/// Rows of `route` that were recorded in live traffic are decided alike whenever the bundle is loaded.
#[test]
fn recorded_rows_are_fixtures() {
    let bench = Bench::new("models/llama-tied", &TASKS);
    let directory = tempfile::tempdir().unwrap();
    let bundle = directory.path().join("margin");
    std::fs::create_dir_all(bundle.join("fixtures")).unwrap();
    for file in ["plugin.toml", "margin.wasm"] {
        std::fs::copy(plugins().join("margin").join(file), bundle.join(file)).unwrap();
    }
    let run = || {
        let margin = Parameters(vec![("margin".to_owned(), Value::Number(0.05))]);
        bench.run(&routed("margin", margin), &(10..60).collect::<Vec<u32>>(), greedy(40));
    };
    routers(directory.path()).load(&bench.composer, &bundle, "test").unwrap();
    run();
    let [kept] = bench.composer.recorded_rows().try_into().unwrap();
    assert!(kept.rows.is_empty(), "nothing is kept unasked");

    std::fs::write(bundle.join("fixtures/another-digest.json"), "{\"routed\": []}").unwrap();
    let routers = routers_with(directory.path(), 3);
    routers.load(&bench.composer, &bundle, "test").unwrap();
    run();
    let [kept] = bench.composer.recorded_rows().try_into().unwrap();
    assert_eq!((kept.router.as_str(), kept.rows.len()), ("margin", 3), "{kept:?}");
    let sites: Vec<u32> = kept.rows.iter().map(|row| row.site).collect();
    assert!(sites.windows(2).any(|pair| pair[0] != pair[1]), "one site says little: {sites:?}");
    assert!(kept.rows.iter().all(|row| row.arguments == [0.05, 3.0] && !row.picks.is_empty()));

    let path = bundle.join("fixtures/recorded-rows.json");
    let mut fixture = rows_fixture(&kept);
    std::fs::write(&path, fixture.to_string()).unwrap();
    assert!(!routers.load(&bench.composer, &bundle, "test").unwrap().unchanged);

    for (part, value, reason) in [
        ("picks", json!([[[0, 0.123]]]), "routed 1: decided"),
        ("scores", json!([[0.5]]), "1 scores for 5 candidates"),
        ("picks", json!([]), "scores, expected 0"),
        ("candidates", json!("all"), "candidates"),
    ] {
        let before = fixture["routed"][1][part].clone();
        fixture["routed"][1][part] = value;
        std::fs::write(&path, fixture.to_string()).unwrap();
        let error = routers.load(&bench.composer, &bundle, "test").unwrap_err().to_string();
        assert!(error.contains("recorded-rows.json"), "{error}");
        assert!(error.contains(reason) || part == "candidates", "{error}");
        fixture["routed"][1][part] = before;
    }
    std::fs::write(&path, "{\"modules\": []}").unwrap();
    let error = routers.load(&bench.composer, &bundle, "test").unwrap_err().to_string();
    assert!(error.contains("or `routed` without these"), "{error}");
}
