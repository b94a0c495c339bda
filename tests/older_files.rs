//! What earlier programs wrote is still read: stores of experiments, traces and the state of
//! modules. The fixtures in `older` were written by a program before routes had one spelling; the
//! second trace has the names of a still older one.

use polyskill_cli::commands::replay::{ReplayArgs, run as replay};
use polyskill_engine::{RouterRequest, Selection};
use polyskill_sdk::{Parameters, Value};
use polyskill_server::traces::Trace;
use serde_json::{Value as Json, json};

use crate::common::{copy_all, fixtures, list};
use crate::openai_api::{ADMIN_KEY, Server};

/// A chat of a user.
fn ask(server: &Server, user: &str) -> Json {
    let body = json!({"model": "tiny", "user": user, "max_tokens": 2, "temperature": 0,
                      "messages": [{"role": "user", "content": "hello"}]});
    server.send("POST", "/v1/chat/completions", None, body.to_string()).ok()
}

#[test]
fn a_store_of_experiments_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("experiments.sqlite");
    let dump = std::fs::read_to_string(fixtures().join("older/experiments.sql")).unwrap();
    rusqlite::Connection::open(&store).unwrap().execute_batch(&dump).unwrap();
    let server = Server::start(|config| {
        config.served_model_name = Some("tiny".to_owned());
        config.experiments.store = Some(store);
    });
    let reports = || server.send("GET", "/admin/experiments", Some(ADMIN_KEY), "").ok();
    let report = reports()["experiments"][0].clone();
    assert_eq!((&report["name"], &report["state"]), (&json!("old"), &json!("running")));
    let units = |report: &Json| -> Vec<u64> {
        list(&report["arms"]).iter().map(|arm| arm["units"].as_u64().unwrap()).collect()
    };
    assert_eq!(units(&report), [1, 5]);
    assert_eq!(report["metrics"][0]["arms"][1]["value"], 1.0);
    // Users keep their arms, and an arm its parts.
    let (routed, base) = (ask(&server, "u1"), ask(&server, "u5"));
    assert_eq!(base["polyskill"]["arm"], "base");
    let said = &routed["polyskill"];
    assert_eq!((&said["arm"], &said["served"]), (&json!("routed"), &json!("assigned")));
    assert_eq!(said["router"]["name"], "arrow");
    assert_eq!(said["adapters"], json!([{"name": "task-e", "weight": 0.5}]));
    assert_eq!(units(&reports()["experiments"][0]), [1, 5]);
    // The same declaration in either spelling is the one that is there.
    let declaration = |arm: Json| {
        json!({"name": "old", "control": "base", "models": ["tiny"], "unit": "user",
               "minimum_units": 10, "planned_units": 60, "arms": [{"name": "base", "weight": 1.0}, arm],
               "metrics": [{"name": "correct", "kind": "ratio", "wanted": "increase"}]})
    };
    let params = json!({"share": "layer", "top_k": 2});
    for arm in [
        json!({"name": "routed", "weight": 1.0, "router": "arrow", "modules": ["task-*"],
               "parameters": params, "adapters": [{"name": "task-e", "weight": 0.5}]}),
        json!({"name": "routed", "weight": 1.0, "adapters": {"task-e": 0.5},
               "router": {"name": "arrow", "modules": ["task-*"], "params": params}}),
    ] {
        let body = declaration(arm).to_string();
        let again = server.send("POST", "/admin/experiments", Some(ADMIN_KEY), body);
        assert_eq!(again.status, 200, "{again:?}");
    }
}

#[test]
fn traces_are_read_and_run_again() {
    let path = fixtures().join("older/traces.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let traces: Vec<Trace> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let routed = |text: &str, bucket: u64| {
        Selection::Routed(RouterRequest {
            router: "arrow".to_owned(),
            parameters: Parameters(vec![
                ("share".to_owned(), Value::Text("layer".to_owned())),
                ("top_k".to_owned(), Value::Number(2.0)),
            ]),
            modules: vec!["task-*".to_owned()],
            always_on: vec![("task-e".to_owned(), 0.5)],
            prompt_tokens: 13,
            text: Some(text.to_owned()),
            bucket,
        })
    };
    let selections: Vec<Selection> =
        traces.iter().map(|trace| trace.repeat.as_ref().unwrap().selection()).collect();
    assert_eq!(
        selections,
        [
            routed("hello 1", 7_625_173_838_082_090_207),
            routed("hello 2", 9_926_348_433_846_569_172),
            Selection::Base,
            Selection::Weighted(vec![("task-a".to_owned(), 0.7)]),
        ]
    );
    let args = ReplayArgs { traces: path, limit: None };
    let mut said = Vec::new();
    replay(&Server::shared().service, &args, &mut said).unwrap();
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("0 differ, 0 were written without their prompts"), "{said}");
}

/// Requests write a route as everything else does, in older spellings too.
#[test]
fn requests_read_all_spellings() {
    let server = Server::shared();
    let digest = |route: Json| {
        let mut body = json!({"prompt": "hello", "max_tokens": 1, "temperature": 0});
        body.as_object_mut().unwrap().extend(route.as_object().unwrap().clone());
        let reply = server.send("POST", "/v1/completions", None, body.to_string()).ok();
        reply["polyskill"]["composition"].as_str().unwrap().to_owned()
    };
    let modules = json!(["task-a", "task-b"]);
    let now =
        digest(json!({"router": {"name": "arrow", "params": {"top_k": 1}, "modules": modules},
                            "adapters": [{"name": "task-e", "weight": 0.5}]}));
    for older in [
        json!({"router": "arrow", "params": {"top_k": 1}, "modules": modules, "adapters": {"task-e": 0.5}}),
        json!({"router": "arrow", "parameters": [["top_k", 1]], "modules": modules,
               "adapters": [["task-e", 0.5]]}),
        json!({"router": {"name": "arrow", "params": {"top_k": 3}}, "params": {"top_k": 1},
               "modules": modules, "adapters": {"task-e": 0.5}}),
    ] {
        assert_eq!(digest(older.clone()), now, "{older}");
    }
    assert_ne!(digest(json!({"router": "arrow"})), now);
    for (alone, field) in [
        (json!({"params": {"top_k": 1}}), "router"),
        (json!({"modules": modules}), "router"),
        (json!({"router": "none", "modules": modules}), "router"),
        (json!({"router": ""}), "router"),
    ] {
        let mut body = json!({"prompt": "hello", "max_tokens": 1});
        body.as_object_mut().unwrap().extend(alone.as_object().unwrap().clone());
        let reply = server.send("POST", "/v1/completions", None, body.to_string());
        assert_eq!(
            (reply.status, &reply.json()["error"]["param"]),
            (400, &json!(field)),
            "{alone}"
        );
    }
}

#[test]
fn a_state_of_modules_is_taken_up() {
    let folder = tempfile::tempdir().unwrap();
    copy_all(&fixtures().join("older/state"), folder.path());
    let server = Server::start(|config| config.state = Some(folder.path().to_owned()));
    let listed = server.send("GET", "/admin/modules", Some(ADMIN_KEY), "").ok();
    let kept = list(&listed["modules"]).iter().find(|module| module["name"] == "kept").unwrap();
    assert_eq!(kept["pinned"], true, "{kept}");
    let generation = "950e9e4f21660d20b5f30cfe6e5bcdeffaa89a447d66874a8bca8df75ebb92f0";
    assert_eq!(kept["generation"], generation);
    let body = json!({"model": "other", "max_tokens": 1, "prompt": "hello"});
    server.send("POST", "/v1/completions", None, body.to_string()).ok();
}
