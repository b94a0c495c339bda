//! The module library of a running server: sources, replacing, aliases, pins, drain, restarts, watching.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use polyskill_adapters::library::Expected;
use polyskill_adapters::native::write_document;
use polyskill_adapters::{Budget, Kind, load_module, open_module};
use polyskill_engine::{SamplingParams, Selection};
use polyskill_server::config::{Config, ModuleConfig};
use polyskill_server::modules::LoadRequest;
use polyskill_sources::Policy;
use polyskill_workshop::document::read_document;
use serde_json::{Value as Json, json};

use crate::common::{Bench, fixtures, greedy, list, model, submit, text, weighted};
use crate::openai_api::{ADMIN_KEY, Server};

/// Copies a module of the fixtures.
pub(crate) fn copy(content: &str, target: &Path) -> PathBuf {
    std::fs::create_dir_all(target).unwrap();
    for entry in std::fs::read_dir(fixtures().join("adapters").join(content)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, target.join(path.file_name().unwrap())).unwrap();
        }
    }
    target.to_owned()
}

fn server(root: &Path, change: impl FnOnce(&mut Config)) -> Server {
    Server::start(|config| {
        config.adapters = vec![root.to_owned()];
        change(config);
    })
}

fn modules(server: &Server) -> Json {
    server.send("GET", "/admin/modules", Some(ADMIN_KEY), "").ok()
}

/// What is said of one module.
fn one(server: &Server, name: &str) -> Json {
    let all = modules(server);
    let found = list(&all["modules"]).iter().find(|module| module["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {all}")).clone()
}

fn names(server: &Server) -> Vec<String> {
    list(&modules(server)["modules"]).iter().map(|one| text(one, "name").to_owned()).collect()
}

fn change(server: &Server, body: &Json) -> crate::openai_api::Reply {
    server.send("POST", "/admin/modules", Some(ADMIN_KEY), body.to_string())
}

/// A completion's text and the generation that gave it.
fn ask(server: &Server, model: &str) -> (String, String) {
    let body = json!({"model": model, "prompt": "hello world", "max_tokens": 6, "temperature": 0});
    let reply = server.send("POST", "/v1/completions", None, body.to_string()).ok();
    let generation = text(&reply["polyskill"]["modules"][0], "generation").to_owned();
    (text(&reply["choices"][0], "text").to_owned(), generation)
}

#[test]
fn replacing_is_compare_and_swap_and_aliases_follow() {
    let root = tempfile::tempdir().unwrap();
    let (first, second) =
        (copy("task-a", &root.path().join("first")), copy("dora-all", &root.path().join("second")));
    let server = server(root.path(), |_| {});
    let load = |source: &Path, extra: Json| {
        let mut body = json!({"name": "m", "source": source.display().to_string()});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        change(&server, &body)
    };
    let loaded = load(&first, json!({"pinned": true})).ok();
    assert_eq!((text(&loaded, "kind"), &loaded["signer"]), ("lora", &Json::Null));
    assert_eq!(change(&server, &json!({"name": "latest", "alias_of": "m"})).status, 200);
    let before = ask(&server, "latest");
    assert_eq!(before.1, text(&loaded, "generation"));
    let code = |reply: &crate::openai_api::Reply| reply.json()["error"]["code"].clone();
    let taken = load(&second, json!({}));
    assert_eq!(taken.status, 400, "{taken:?}");
    assert_eq!(code(&taken), "lora_adapter_already_loaded");
    let stale = load(&second, json!({"expected_generation": "0".repeat(64)}));
    assert_eq!(stale.status, 409, "{stale:?}");
    assert_eq!(code(&stale), "lora_generation_mismatch");
    let over_vllm = json!({"lora_name": "m", "expected_generation": "0".repeat(64)}).to_string();
    let over_vllm = server.send("POST", "/v1/unload_lora_adapter", Some(ADMIN_KEY), over_vllm);
    assert_eq!((over_vllm.status, code(&over_vllm)), (409, json!("lora_generation_mismatch")));
    let other = load(&second, json!({"replace": true, "generation": "1".repeat(64)}));
    assert_eq!(other.status, 400, "{other:?}");
    assert_eq!(ask(&server, "latest"), before, "a failed load changes nothing");
    let swapped = load(&second, json!({"expected_generation": before.1})).ok();
    assert_eq!(text(&swapped, "kind"), "dora");
    assert_eq!(ask(&server, "latest").1, text(&swapped, "generation"));
    assert_eq!(one(&server, "m")["aliases"], json!(["latest"]));
    let failures = modules(&server)["not_loaded"].clone();
    assert_eq!(failures, json!({}), "what was loaded since is no failure");
    let removed =
        server.send("DELETE", "/admin/modules/m?drain_seconds=5", Some(ADMIN_KEY), "").ok();
    assert_eq!((&removed["drained"], &removed["leases"]), (&json!(true), &json!(0)));
    assert_eq!(removed["aliases_removed"], json!(["latest"]));
    for model in ["m", "latest"] {
        let body = json!({"model": model, "prompt": "x"}).to_string();
        assert_eq!(server.send("POST", "/v1/completions", None, body).status, 404);
    }
}

#[test]
fn archives_and_files_are_sources_and_escapes_are_not() {
    let root = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let server = server(root.path(), |_| {});
    let module = copy("ia3-default", &root.path().join("ia3"));
    let archive = root.path().join("packed.tar");
    let mut builder = tar::Builder::new(std::fs::File::create(&archive).unwrap());
    builder.append_dir_all("ia3", &module).unwrap();
    builder.finish().unwrap();
    let gguf = root.path().join("task.gguf");
    std::fs::copy(fixtures().join("gguf/control-vector.gguf"), &gguf).unwrap();
    for (source, kind) in [(&archive, "ia3"), (&gguf, "activation-edit"), (&module, "ia3")] {
        let body = json!({"name": "m", "source": source.display().to_string(), "replace": true});
        assert_eq!(text(&change(&server, &body).ok(), "kind"), kind);
    }
    let stranger = copy("task-a", &outside.path().join("task-a"));
    for source in [
        stranger.display().to_string(),
        format!("{}/../{}", root.path().display(), stranger.display()),
        "https://example.org/module.tar".to_owned(),
        "s3://bucket/module".to_owned(),
        "hf://owner/name".to_owned(),
    ] {
        let refused = change(&server, &json!({"name": "x", "source": source}));
        assert_eq!(refused.status, 400, "{source}: {refused:?}");
        assert!(refused.body.len() > 80, "{refused:?}");
    }
    assert!(!names(&server).contains(&"x".to_owned()));
}

/// What was loaded, replaced, unloaded, pinned and named at run time is the same after a restart, also where
/// the source is gone by then.
#[test]
fn a_restart_serves_the_same_set() {
    let (root, state, source) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for name in ["kept", "replaced", "unloaded"] {
        copy("task-b", &root.path().join(name));
    }
    let late = copy("prompt-5", &source.path().join("late"));
    let other = copy("graft", &source.path().join("other"));
    let start = || {
        server(root.path(), |config| {
            config.state = Some(state.path().to_owned());
            config.sources.roots = vec![source.path().to_owned()];
            config.module = vec![ModuleConfig {
                name: "declared".to_owned(),
                source: root.path().join("kept").display().to_string(),
                generation: None,
                pinned: true,
                aliases: vec!["known-as".to_owned(), "gone-by".to_owned()],
            }];
        })
    };
    let first = start();
    let load = |name: &str, path: &Path| {
        let body = json!({"name": name, "source": path.display().to_string(), "replace": true});
        change(&first, &body).ok();
    };
    load("late", &late);
    load("replaced", &other);
    load("short-lived", &other);
    for name in ["unloaded", "short-lived"] {
        first.send("DELETE", &format!("/admin/modules/{name}"), Some(ADMIN_KEY), "").ok();
    }
    change(&first, &json!({"name": "alias", "alias_of": "late"})).ok();
    // A pin by another name is the name's own, what was taken away stays away, and what replaces a module that
    // the configuration pins is pinned.
    change(&first, &json!({"name": "alias", "pinned": true})).ok();
    load("declared", &other);
    first.send("DELETE", "/admin/modules/gone-by", Some(ADMIN_KEY), "").ok();
    let models = ["kept", "replaced", "late", "alias", "declared", "known-as"];
    let answers = |server: &Server| models.map(|model| ask(server, model));
    let (before, served) = (answers(&first), names(&first));
    assert_eq!(served, ["declared", "kept", "late", "replaced"]);
    drop(first);
    std::fs::remove_dir_all(source.path().join("late")).unwrap();
    let second = start();
    assert_eq!(second.reports.iter().filter(|report| report.contains("left out")).count(), 0);
    assert_eq!((names(&second), answers(&second)), (served, before));
    assert_eq!(
        (&one(&second, "late")["pinned"], &one(&second, "declared")["pinned"]),
        (&json!(true), &json!(true))
    );
    let body = json!({"model": "gone-by", "prompt": "x"}).to_string();
    assert_eq!(second.send("POST", "/v1/completions", None, body).status, 404);
    assert_eq!(modules(&second)["durable"], true);
    let store = std::fs::read_dir(state.path().join("store")).unwrap();
    let folders = store.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let folders: Vec<String> = folders.filter(|name| !name.starts_with('.')).collect();
    assert_eq!(folders.len(), 3, "{folders:?}");
}

/// What could never serve is refused when it is loaded or pinned, and no router hears of it.
#[test]
fn modules_without_room_are_refused() {
    let root = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        copy(&format!("task-{name}"), &root.path().join(name));
    }
    let more = tempfile::tempdir().unwrap();
    let large = copy("lora-all", &more.path().join("large"));
    let small = copy("task-c", &more.path().join("small"));
    let config = Config {
        model: Some(fixtures().join("models/llama-tied").display().to_string()),
        adapters: vec![root.path().to_owned()],
        plugins: vec![crate::common::plugins()],
        trust: polyskill_plugin::Trust::unsigned(),
        sources: Policy { roots: vec![more.path().to_owned()], ..Policy::default() },
        ..Config::default()
    };
    let service = polyskill_server::service::Service::start(&config, &mut |_| {}).unwrap();
    let library = service.composer.library();
    let bytes = library.snapshot().get("a").unwrap().num_bytes();
    let hold = |halves: usize| {
        library.set_budget(Budget { max_bytes: Some(bytes * halves / 2), ..Budget::default() });
    };
    let load = |name: &str, path: &Path, pinned: Option<bool>| {
        let request = LoadRequest {
            name: name.to_owned(),
            source: path.display().to_string().parse().unwrap(),
            expected: Expected::Absent,
            pin: None,
            pinned,
        };
        service.modules.load(&request, "test").map(drop).map_err(|error| error.to_string())
    };
    let pin =
        |name: &str| service.modules.pin(name, true, "test").map_err(|error| error.to_string());
    #[track_caller]
    fn refused(outcome: Result<(), String>) {
        let message = outcome.unwrap_err();
        assert!(message.contains("and the budget is"), "{message}");
    }
    hold(3);
    refused(load("large", &large, None));
    hold(5);
    pin("a").unwrap();
    load("small", &small, None).unwrap();
    // With both pinned, the third could never serve.
    refused(pin("b"));
    refused(load("other", &small, Some(true)));
    service.modules.unload("small", Expected::Any, "test").unwrap();
    pin("b").unwrap();
    refused(load("small", &small, None));
    let composition =
        service.composer.compose(&Selection::from(&service.route("skills").unwrap())).unwrap();
    assert_eq!(composition.fallback(), None);
    assert!(service.composer.routers().iter().all(|router| router.faults == 0));
}

/// Names of the base and of skill sets are no names of modules, and a name is one module's.
#[test]
fn names_are_taken_once() {
    let root = tempfile::tempdir().unwrap();
    for name in ["skills", "base", "mine"] {
        copy("task-a", &root.path().join(name));
    }
    std::fs::copy(fixtures().join("gguf/lora-task-a-f16.gguf"), root.path().join("mine.gguf"))
        .unwrap();
    let server = server(root.path(), |config| config.served_model_name = Some("base".to_owned()));
    assert_eq!(names(&server), ["mine"]);
    for part in ["`skills`: is taken", "`base`: is taken", "mine.gguf: `mine` is the name of"] {
        let said = server.reports.iter().any(|report| report.contains(part));
        assert!(said, "{part}: {:?}", server.reports);
    }
}

/// Weights leave memory and come back, and the answers stay the same.
#[test]
fn weights_that_left_memory_come_back() {
    let root = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c", "d"] {
        copy(&format!("task-{name}"), &root.path().join(name));
    }
    let ample = server(root.path(), |_| {});
    let models = ["a", "b", "c", "d", "a", "c"];
    let expected = models.map(|model| ask(&ample, model));
    let bytes = one(&ample, "a")["bytes"].as_u64().unwrap();
    assert_eq!(modules(&ample)["pool"]["loads"], 0);
    let tight = server(root.path(), |config| config.residency.max_bytes = Some(1 << 20));
    let pool = |server: &Server| modules(server)["pool"].clone();
    assert!(4 * bytes < 1 << 20, "the fixtures have grown");
    assert_eq!(models.map(|model| ask(&tight, model)), expected);
    assert_eq!(pool(&tight)["evictions"], 0);
    // Broken behind the server's back: what is in memory serves on.
    std::fs::write(root.path().join("a/adapter_model.safetensors"), b"broken").unwrap();
    assert_eq!(ask(&tight, "a"), expected[0]);
}

#[test]
fn a_watched_directory_of_modules_is_served_as_it_changes() {
    let root = tempfile::tempdir().unwrap();
    copy("task-a", &root.path().join("m"));
    let config = Config {
        model: Some(fixtures().join("models/llama-tied").display().to_string()),
        adapters: vec![root.path().to_owned()],
        plugins: Vec::new(),
        ..Config::default()
    };
    let service = polyskill_server::service::Service::start(&config, &mut |_| {}).unwrap();
    let mut seen = service.modules.seen();
    let generation = || {
        let snapshot = service.composer.library().snapshot();
        snapshot.get("m").map(|module| module.generation().to_string())
    };
    let first = generation().unwrap();
    assert!(!service.modules.look(&mut seen), "nothing has changed");
    copy("ia3-default", &root.path().join("new"));
    std::fs::remove_dir_all(root.path().join("m")).unwrap();
    copy("steering", &root.path().join("m"));
    assert!(!service.modules.look(&mut seen), "it may be incomplete");
    assert!(service.modules.look(&mut seen));
    assert_ne!(generation().unwrap(), first);
    assert!(service.composer.library().snapshot().get("new").is_some());
    let second = generation().unwrap();
    std::fs::write(root.path().join("m/polyskill_config.json"), "{").unwrap();
    service.modules.look(&mut seen);
    assert!(!service.modules.look(&mut seen));
    assert_eq!(generation().unwrap(), second, "what is broken changes nothing");
    assert!(service.modules.failures()["m"].contains("polyskill_config.json"));
    std::fs::remove_dir_all(root.path().join("new")).unwrap();
    assert!(service.modules.look(&mut seen));
    assert!(service.composer.library().snapshot().get("new").is_none());
}

/// A document that the base has read gives the bits of the same request with the document before its prompt.
#[test]
fn a_document_is_worth_its_text() {
    let bench = Bench::new("models/llama-tied", &["lora-basic"]);
    let document: Vec<u32> = (0..45).map(|at| 3 + (at * 37 % 300)).collect();
    let prompt = [9, 8, 7];
    let read = read_document(&bench.model, &document, &mut |_| {}).unwrap();
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("document");
    write_document(&read, bench.model.digest(), "", &path).unwrap();
    assert!(write_document(&read, bench.model.digest(), "", &path).is_err(), "it exists");
    let module = load_module("document", &path, root.path(), bench.model.as_ref()).unwrap();
    assert_eq!((module.kind(), module.shape().num_prefix), (Kind::KvPrefix, 45));
    bench.library.publish("document", module, Expected::Absent).unwrap();
    let whole: Vec<u32> = document.iter().copied().chain(prompt).collect();
    let greedy = SamplingParams { prompt_logprobs: None, ..greedy(8) };
    let expected = bench.run(&Selection::Base, &whole, greedy.clone());
    for _ in 0..2 {
        let found = bench.run(&weighted(&[("document", 1.0)]), &prompt, greedy.clone());
        assert!(found.bits() == expected.bits());
        assert_eq!((found.finished.prompt_tokens, found.finished.cached_tokens), (3, 0));
    }
    // What follows the document is cached with it.
    let longer: Vec<u32> = (0..40).map(|at| 5 + at).collect();
    for cached in [0, 35] {
        let found = bench.run(&weighted(&[("document", 1.0)]), &longer, greedy.clone());
        assert_eq!(found.finished.cached_tokens, cached);
    }
    // With a LoRA the base's reading stays the base's: only what follows is the LoRA's.
    let mixed = bench.run(&weighted(&[("document", 1.0), ("lora-basic", 1.0)]), &prompt, greedy);
    assert_ne!(mixed.bits(), expected.bits());
    let half = bench.composer.compose(&weighted(&[("document", 0.5)])).unwrap_err();
    assert!(half.to_string().contains("expected 1"), "{half}");
    let other = load_module("document", &path, root.path(), model("models/llama-f16").as_ref());
    assert!(other.unwrap_err().to_string().contains("another base"));
}

/// Requests stream while modules are replaced, loaded and unloaded: each gives the bits of one generation per
/// name, none fails, and the bytes come back.
#[test]
fn swaps_under_load_are_seen_whole_or_not_at_all() {
    let contents = ["task-a", "dora-all", "ia3-default", "prompt-5", "prefix-7", "steering"];
    let bench = Bench::new("models/llama-tied", &[]);
    let root = fixtures().join("adapters");
    let open = |name: &str, content: &str| {
        let module = open_module(name, &root.join(content), &root, &bench.model, ()).unwrap();
        bench.library.publish(name, module, Expected::Any).unwrap()
    };
    let prompt: Vec<u32> = (3..30).collect();
    let sampling = || SamplingParams { prompt_logprobs: None, ..greedy(12) };
    let mut expected = BTreeMap::new();
    for content in contents {
        let generation = open("m", content).generation();
        expected
            .insert(generation, bench.run(&weighted(&[("m", 1.0)]), &prompt, sampling()).bits());
    }
    let before = bench.library.resident_bytes();
    let stop = AtomicBool::new(false);
    let served = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    let composition = bench.compose(&weighted(&[("m", 1.0)]));
                    let generation = composition.modules()[0].module.generation();
                    let output = submit(&bench.engine, &composition, &prompt, sampling()).wait();
                    assert!(output.bits() == expected[&generation], "a mixed or failed request");
                    served.fetch_add(1, Relaxed);
                }
            });
        }
        for swap in 0..120 {
            open("m", contents[swap % contents.len()]);
            open("passing", contents[(swap + 1) % contents.len()]);
            bench.library.remove("passing", Expected::Any).unwrap();
        }
        stop.store(true, Relaxed);
    });
    assert!(served.into_inner() >= 8);
    open("m", contents[contents.len() - 1]);
    assert_eq!(bench.library.resident_bytes(), before);
}

/// Prompt tokens whose keys and values were known are reported, in usage and metrics; a salt keeps them apart.
#[test]
fn cached_beginnings_are_reported() {
    let root = tempfile::tempdir().unwrap();
    copy("prompt-5", &root.path().join("soft"));
    let server = server(root.path(), |_| {});
    let ask = |extra: Json| {
        let mut body =
            json!({"model": "soft", "prompt": "hello world ".repeat(12), "max_tokens": 2});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let reply = server.send("POST", "/v1/completions", None, body.to_string()).ok();
        reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(ask(json!({})), 0);
    let cached = ask(json!({}));
    assert!(cached > 0);
    assert_eq!(ask(json!({"cache_salt": "tenant"})), 0);
    assert_eq!(ask(json!({"cache_salt": "tenant"})), cached);
    let metrics = server.send("GET", "/metrics", None, "").body;
    let value = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert_eq!(value("vllm:prefix_cache_hits_total"), 2.0 * cached as f64);
    assert!(value("vllm:prefix_cache_queries_total") > value("vllm:prefix_cache_hits_total"));
    assert!(metrics.contains("vllm:lora_adapter_loaded{"), "{metrics}");
    assert!(
        metrics.contains("running_lora_adapters=\"soft\",waiting_lora_adapters=\"\""),
        "{metrics}"
    );
}

/// Where not all fit at a start, what is pinned comes first; equal content is pinned where any name of it is.
#[test]
fn pins_come_first_when_a_server_starts() {
    let (root, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (name, content) in [("a", "task-a"), ("b", "task-b"), ("twin", "task-b")] {
        copy(content, &root.path().join(name));
    }
    let config = Config {
        model: Some(fixtures().join("models/llama-tied").display().to_string()),
        adapters: vec![root.path().to_owned()],
        state: Some(state.path().to_owned()),
        ..Config::default()
    };
    let start = || polyskill_server::service::Service::start(&config, &mut |_| {}).unwrap();
    let first = start();
    let pin = |name: &str, pinned| first.modules.pin(name, pinned, "test").unwrap();
    pin("b", true);
    pin("twin", false);
    let pinned = |service: &polyskill_server::service::Service, name: &str| {
        service.composer.library().snapshot().get(name).unwrap().residency().pinned
    };
    assert!(pinned(&first, "b") && pinned(&first, "twin"));
    drop(first);
    let second = start();
    assert!(pinned(&second, "b") && pinned(&second, "twin") && !pinned(&second, "a"));
}
