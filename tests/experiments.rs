//! Experiments on a running server: who gets which arm, what is counted, what stops by itself, and what a killed server
//! still knows.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use serde_json::{Value as Json, json};

use crate::common::{fixtures, list, plugins, text};
use crate::openai_api::{ADMIN_KEY, Reply, Server, exchange};

/// Two modules, or none.
fn declaration(more: &Json) -> Json {
    let mut declared = json!({
        "name": "trial", "unit": "user", "control": "plain", "minimum_units": 2, "models": ["llama-tied"],
        "arms": [
            {"name": "plain", "weight": 1.0},
            {"name": "routed", "weight": 1.0, "router": "arrow", "modules": ["task-*"], "parameters": {"top_k": 2}},
        ],
        "metrics": [
            {"name": "correct", "kind": "mean", "wanted": "increase", "bounded": [0.0, 1.0]},
            {"name": "completion_tokens", "kind": "mean", "wanted": "decrease"},
        ],
    });
    let more = more.as_object().unwrap().clone();
    declared.as_object_mut().unwrap().extend(more);
    declared
}

fn declare(server: &Server, declared: &Json) -> Reply {
    server.send("POST", "/admin/experiments", Some(ADMIN_KEY), declared.to_string())
}

fn report(server: &Server) -> Json {
    server.send("GET", "/admin/experiments/trial", Some(ADMIN_KEY), "").ok()
}

fn ask_with(address: SocketAddr, user: &str, more: &Json) -> Reply {
    let mut body = json!({"model": "llama-tied", "temperature": 0, "max_tokens": 3, "user": user,
                          "messages": [{"role": "user", "content": "hello"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    exchange(address, "POST", "/v1/chat/completions", None, body.to_string())
}

/// A reply's arm and id.
fn ask(server: &Server, user: &str) -> (String, String) {
    let reply = ask_with(server.address, user, &json!({})).ok();
    assert_eq!(reply["polyskill"]["experiment"], "trial", "{reply}");
    (text(&reply["polyskill"], "arm").to_owned(), text(&reply, "id").to_owned())
}

fn feedback(address: SocketAddr, id: &str, name: &str, value: f64) -> Reply {
    let body = json!({"id": id, "name": name, "value": value});
    exchange(address, "POST", "/v1/feedback", None, body.to_string())
}

fn arm<'a>(report: &'a Json, name: &str) -> &'a Json {
    list(&report["arms"]).iter().find(|arm| arm["name"] == name).unwrap()
}

fn metric<'a>(report: &'a Json, name: &str) -> &'a Json {
    list(&report["metrics"]).iter().find(|metric| metric["name"] == name).unwrap()
}

/// An arm's value of a metric.
fn value(report: &Json, name: &str, arm: &str) -> Option<f64> {
    let arms = list(&metric(report, name)["arms"]);
    arms.iter().find(|found| found["arm"] == arm).unwrap()["value"].as_f64()
}

#[test]
fn units_keep_their_arms_and_requests_are_counted_once() {
    let server = Server::start(|_| {});
    declare(&server, &declaration(&json!({}))).ok();
    let mut arms: BTreeMap<String, u64> = BTreeMap::new();
    for user in 0..24 {
        let user = format!("user-{user}");
        let (first, again) = (ask(&server, &user).0, ask(&server, &user).0);
        assert_eq!(first, again);
        *arms.entry(first).or_default() += 1;
    }
    assert!(arms["plain"] >= 4 && arms["routed"] >= 4, "{arms:?}");
    let report = report(&server);
    assert_eq!(report["state"], "running");
    for (name, count) in &arms {
        let found = arm(&report, name);
        assert_eq!((&found["units"], &found["requests"]), (&json!(count), &json!(2 * count)));
    }
    assert_eq!(value(&report, "completion_tokens", "plain"), Some(3.0));
    assert_eq!(report["verdict"]["state"], "undecided");
    let metrics = server.send("GET", "/metrics", None, "").body;
    let line = format!(
        "polyskill:experiment_requests_total{{experiment=\"trial\",arm=\"routed\"}} {}",
        2 * arms["routed"]
    );
    assert!(metrics.contains(&line) && metrics.ends_with("# EOF\n"), "{metrics}");
}

#[test]
fn who_says_what_answers_is_in_no_experiment() {
    let server = Server::start(|_| {});
    declare(&server, &declaration(&json!({}))).ok();
    for more in [
        json!({"router": "none"}),
        json!({"adapters": [{"name": "task-a"}]}),
        json!({"experiment": "none"}),
        json!({"model": "skills"}),
        json!({"user": null}),
    ] {
        let reply = ask_with(server.address, "ann", &more).ok();
        assert_eq!(reply["polyskill"]["experiment"], Json::Null, "{reply}");
    }
    let forced = |arm: &str| json!({"experiment": {"name": "trial", "arm": arm}});
    let reply = ask_with(server.address, "ann", &forced("routed")).ok();
    assert_eq!(
        (&reply["polyskill"]["arm"], &reply["polyskill"]["router"]["name"]),
        (&json!("routed"), &json!("arrow"))
    );
    assert_eq!(
        feedback(server.address, text(&reply, "id"), "correct", 1.0).ok()["status"],
        "recorded"
    );
    let unknown = ask_with(server.address, "ann", &forced("other"));
    assert!(unknown.status == 400 && unknown.body.contains("no arm `other`"), "{unknown:?}");
    let report = report(&server);
    assert!(list(&report["arms"]).iter().all(|arm| arm["units"] == 0 && arm["requests"] == 0));
    assert_eq!(value(&report, "correct", "routed"), None);
}

#[test]
fn feedback_is_joined_once_and_late() {
    let server = Server::start(|_| {});
    declare(&server, &declaration(&json!({}))).ok();
    let (arm, id) = ask(&server, "ann");
    let say = |name: &str, value: f64| feedback(server.address, &id, name, value);
    assert_eq!(say("correct", 1.0).ok()["status"], "recorded");
    assert_eq!(say("correct", 1.0).ok()["status"], "known");
    let other = say("correct", 0.0);
    assert!(other.status == 409 && other.body.contains("was 1 before"), "{other:?}");
    assert!(say("correct", 1.5).body.contains("expected 0 to 1"));
    let own = say("completion_tokens", 1.0);
    assert!(own.status == 400 && own.body.contains("but on correct"), "{own:?}");
    let nobody = feedback(server.address, "chatcmpl-0", "correct", 1.0);
    assert_eq!(nobody.status, 404);
    assert_eq!(value(&report(&server), "correct", &arm), Some(1.0));
    // A stopped experiment still hears of what it has served.
    let (_, late) = ask(&server, "ann");
    server.send("POST", "/admin/experiments/trial/stop", Some(ADMIN_KEY), "").ok();
    assert_eq!(feedback(server.address, &late, "correct", 0.0).ok()["status"], "recorded");
    assert_eq!(value(&report(&server), "correct", &arm), Some(0.5));
    let reply = ask_with(server.address, "ann", &json!({})).ok();
    assert_eq!(reply["polyskill"]["experiment"], Json::Null);
}

#[test]
fn a_guard_stops_an_arm_and_says_so() {
    let audit = tempfile::tempdir().unwrap();
    let log = audit.path().join("audit.jsonl");
    let server = Server::start(|config| config.audit_log = Some(log.clone()));
    let guarded = json!([{"name": "correct", "kind": "mean", "wanted": "increase", "bounded": [0.0, 1.0],
                          "guard": {"harm": 0.1}}]);
    let declared =
        declaration(&json!({"metrics": guarded, "minimum_units": 10, "planned_units": 60}));
    declare(&server, &declared).ok();
    let mut routed = Vec::new();
    for user in 0..70 {
        let user = format!("user-{user}");
        let (arm, id) = ask(&server, &user);
        let good = if arm == "routed" { 0.0 } else { 1.0 };
        feedback(server.address, &id, "correct", good).ok();
        if arm == "routed" {
            routed.push(user);
        }
    }
    server.service.experiments.look();
    let report = report(&server);
    assert_eq!(report["state"], "stopped", "{report}");
    let reason = text(&report["stopped_arms"], "routed").to_owned();
    assert!(reason.contains("lowers `correct` by 1"), "{reason}");
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("\"by\":\"guard\"") && log.contains("\"arm\":\"routed\""), "{log}");
    let reply = ask_with(server.address, &routed[0], &json!({})).ok();
    assert_eq!(reply["polyskill"]["router"], Json::Null);
}

#[test]
fn an_arm_that_fails_costs_no_answer() {
    let root = tempfile::tempdir().unwrap();
    crate::library::copy("task-a", &root.path().join("passing"));
    let server = Server::start(|config| config.adapters.push(root.path().to_owned()));
    declare(
        &server,
        &declaration(&json!({"arms": [
            {"name": "plain", "weight": 1e-9},
            {"name": "routed", "weight": 1.0, "router": "arrow", "modules": ["passing"]},
        ]})),
    )
    .ok();
    server.send("DELETE", "/admin/modules/passing", Some(ADMIN_KEY), "").ok();
    let reply = ask_with(server.address, "ann", &json!({})).ok();
    let said = &reply["polyskill"];
    assert_eq!(
        (&said["arm"], &said["served"], &said["router"]),
        (&json!("routed"), &json!("fallback"), &Json::Null)
    );
    assert!(text(said, "fallback_reason").contains("passing"), "{said}");
    let report = report(&server);
    let routed = arm(&report, "routed");
    assert_eq!((&routed["faults"], &routed["fallbacks"]), (&json!(1), &json!(1)));
    assert!(text(&report["failures"], "routed").contains("passing"), "{report}");
}

/// Values that a sum or a variance cannot hold are not taken, and a store that is not readable takes no other along.
#[test]
fn large_values_and_broken_records_harm_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("experiments.sqlite");
    let start = || Server::start(|config| config.experiments.store = Some(store.clone()));
    {
        let server = start();
        let metrics = json!([{"name": "size", "kind": "mean", "wanted": "increase"}]);
        declare(&server, &declaration(&json!({"metrics": metrics}))).ok();
        for (user, value) in [("a", 1e308), ("b", 1e160), ("c", 1e15), ("d", -1e15), ("e", 3.0)] {
            for part in 0..6 {
                let (_, id) = ask(&server, &format!("{user}{part}"));
                let status = feedback(server.address, &id, "size", value).status;
                assert_eq!(status, if value.abs() > 1e15 { 400 } else { 200 }, "{value}");
            }
        }
        server.service.experiments.look();
        assert_eq!(report(&server)["state"], "running");
        declare(&server, &declaration(&json!({"name": "other", "models": ["skills"]}))).ok();
    }
    let connection = rusqlite::Connection::open(&store).unwrap();
    let change = "UPDATE experiment SET course = '{\"started\": \"soon\"}' WHERE name = 'other'";
    assert_eq!(connection.execute(change, []).unwrap(), 1);
    drop(connection);
    let server = start();
    assert_eq!(report(&server)["state"], "running");
    let again = declaration(&json!({"name": "other", "models": ["skills"]}));
    let refused = declare(&server, &again);
    assert!(refused.status == 400 && refused.body.contains("remove it first"), "{refused:?}");
    server.send("DELETE", "/admin/experiments/other", Some(ADMIN_KEY), "").ok();
    declare(&server, &again).ok();
}

/// Of declarations that come at once and exclude each other, one is taken.
#[test]
fn declarations_wait_for_each_other() {
    let server = Server::start(|_| {});
    let names: Vec<String> = (0..8).map(|at| format!("trial-{at}")).collect();
    let taken: usize = std::thread::scope(|scope| {
        let server = &server;
        let workers: Vec<_> = names
            .iter()
            .map(|name| {
                scope.spawn(move || declare(server, &declaration(&json!({"name": name}))).status)
            })
            .collect();
        workers.into_iter().map(|w| usize::from(w.join().unwrap() == 200)).sum()
    });
    assert_eq!(taken, 1);
}

#[test]
fn declarations_are_checked_against_the_server_and_each_other() {
    let server = Server::start(|_| {});
    let refused = |declared: &Json| {
        let reply = declare(&server, declared);
        assert_eq!(reply.status, 400, "{reply:?}");
        reply.body
    };
    let body = refused(&declaration(&json!({"control": "other", "level": 2.0})));
    assert!(body.contains("control") && body.contains("level"), "{body}");
    let unknown = json!({"arms": [{"name": "plain", "weight": 1.0},
                                  {"name": "x", "weight": 1.0, "router": "nobody"}]});
    assert!(refused(&declaration(&unknown)).contains("nobody"));
    assert!(refused(&declaration(&json!({"colour": "red"}))).contains("colour"));
    for (arm, part) in [
        (json!({"router": "arrow", "modules": ["nobody-*"]}), "nobody-*"),
        (json!({"router": "arrow", "parameters": {"top_k": -4}}), "top_k"),
        (json!({"adapters": [{"name": "nobody", "weight": 1.0}]}), "nobody"),
        (json!({"parameters": {"top_k": 2}}), "`params` and `modules` are for"),
    ] {
        let mut other = json!({"name": "x", "weight": 1.0});
        other.as_object_mut().unwrap().extend(arm.as_object().unwrap().clone());
        let arms = json!({"arms": [{"name": "plain", "weight": 1.0}, other]});
        let body = refused(&declaration(&arms));
        let is_named = body.contains("arm `x`") || body.contains("`arms[1].router`");
        assert!(is_named && body.contains(part), "{body}");
    }
    assert!(refused(&declaration(&json!({"stop": 5}))).contains("past"));
    assert!(refused(&declaration(&json!({"name": ".."}))).contains("not a `.` first"));
    declare(&server, &declaration(&json!({}))).ok();
    // Again is the same; other weights are a change, all else is not.
    declare(&server, &declaration(&json!({}))).ok();
    assert!(refused(&declaration(&json!({"level": 0.1}))).contains("only weights may change"));
    let second = refused(&declaration(&json!({"name": "second"})));
    assert!(second.contains("one `layer`"), "{second}");
    declare(&server, &declaration(&json!({"name": "elsewhere", "models": ["skills"]}))).ok();
    server.send("DELETE", "/admin/experiments/trial", Some(ADMIN_KEY), "").ok();
    assert_eq!(server.send("GET", "/admin/experiments/trial", Some(ADMIN_KEY), "").status, 404);
    let layered = |name: &str, share: [f64; 2]| {
        declaration(&json!({"name": name, "layer": "routing", "share": share}))
    };
    declare(&server, &layered("low", [0.0, 0.5])).ok();
    assert!(refused(&layered("both", [0.4, 0.6])).contains("low"));
    declare(&server, &layered("high", [0.5, 1.0])).ok();
    let taken: Vec<String> = (0..12)
        .map(|user| {
            let reply = ask_with(server.address, &format!("u{user}"), &json!({})).ok();
            text(&reply["polyskill"], "experiment").to_owned()
        })
        .collect();
    assert!(taken.contains(&"low".to_owned()) && taken.contains(&"high".to_owned()), "{taken:?}");
    assert_eq!(server.send("GET", "/admin/experiments", None, "").status, 401);
}

/// A restart and a change of weights leave every unit its arm, and values from before an experiment are kept for it.
#[test]
fn arms_outlast_restarts_and_changes_of_weights() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("experiments.sqlite");
    let start = || Server::start(|config| config.experiments.store = Some(store.clone()));
    let users: Vec<String> = (0..12).map(|user| format!("user-{user}")).collect();
    let arms =
        |server: &Server| -> Vec<String> { users.iter().map(|user| ask(server, user).0).collect() };
    let before = {
        let server = start();
        declare(&server, &declaration(&json!({}))).ok();
        arms(&server)
    };
    let server = start();
    assert_eq!(arms(&server), before);
    let mut moved = declaration(&json!({}));
    moved["arms"][0]["weight"] = json!(9.0);
    declare(&server, &moved).ok();
    assert_eq!(arms(&server), before);
    drop(server);
    let server = start();
    assert_eq!(arms(&server), before);
    let report = report(&server);
    let requests: u64 =
        list(&report["arms"]).iter().map(|arm| arm["requests"].as_u64().unwrap()).sum();
    assert_eq!((requests, &report["known_units"]), (48, &json!(12)));
    assert_eq!(report["sample_ratio"]["mismatch"], false);
}

#[test]
fn a_decision_shadow_is_compared_and_never_executed() {
    let server = Server::start(|_| {});
    let base = ask_with(
        server.address,
        "ann",
        &json!({"router": {"name": "arrow", "modules": ["task-*"], "params": {"top_k": 2}}, "max_tokens": 12}),
    )
    .ok();
    let arrow = |name: &str, top_k: u64| json!({"name": name, "weight": 1.0, "router": "arrow", "modules": ["task-*"], "parameters": {"top_k": top_k}});
    let metric = |name: &str| json!({"name": name, "kind": "mean", "wanted": "increase"});
    declare(&server, &declaration(&json!({
        "mode": "decision_shadow", "control": "two", "arms": [arrow("two", 2), arrow("one", 1), arrow("same", 2)],
        "metrics": [metric("agreement"), metric("overlap")],
    }))).ok();
    for user in 0..12 {
        let reply =
            ask_with(server.address, &format!("user-{user}"), &json!({"max_tokens": 12})).ok();
        assert_eq!(reply["polyskill"]["arm"], "two");
        assert_eq!(reply["choices"], base["choices"]);
    }
    let report = report(&server);
    assert_eq!(value(&report, "agreement", "two"), Some(1.0));
    assert_eq!(
        (value(&report, "agreement", "same"), value(&report, "overlap", "same")),
        (Some(1.0), Some(1.0))
    );
    // The best of two is the one of one, with more weight.
    assert_eq!(value(&report, "agreement", "one"), Some(1.0));
    let overlap = value(&report, "overlap", "one").unwrap();
    assert!((0.5..0.99).contains(&overlap), "{overlap}");
    let requests = |name: &str| arm(&report, name)["requests"].as_u64().unwrap();
    assert_eq!((requests("two"), requests("one") + requests("same")), (12, 12));
    assert!(text(&report["verdict"], "reason").contains("how alike"), "{report}");
}

/// Waits until something holds, for as long as the engine may take.
fn until(mut holds: impl FnMut() -> bool) {
    for _ in 0..20_000 {
        if holds() {
            return;
        }
        std::thread::yield_now();
    }
    panic!("it never came to hold");
}

#[test]
fn a_full_shadow_runs_requests_again() {
    let server = Server::start(|_| {});
    declare(&server, &declaration(&json!({"mode": "full_shadow"}))).ok();
    for user in 0..3 {
        let requests = || arm(&report(&server), "routed")["requests"].as_u64().unwrap();
        let before = requests();
        assert_eq!(ask(&server, &format!("user-{user}")).0, "plain");
        until(|| requests() > before);
    }
    let report = report(&server);
    assert_eq!(value(&report, "completion_tokens", "routed"), Some(3.0));
    assert_eq!(metric(&report, "completion_tokens")["comparisons"][0]["arm"], "routed");
}

#[test]
fn a_bandit_learns_and_logs_its_chances() {
    let server = Server::start(|_| {});
    declare(
        &server,
        &declaration(&json!({
            "mode": "bandit",
            "bandit": {"policy": "thompson", "floor": 0.1, "reward": "correct"},
        })),
    )
    .ok();
    let mut routed = [0, 0];
    for user in 0..60 {
        let (arm, id) = ask(&server, &format!("user-{user}"));
        let good = if arm == "routed" { 1.0 } else { 0.0 };
        feedback(server.address, &id, "correct", good).ok();
        routed[user / 30] += u32::from(arm == "routed");
    }
    assert!(routed[1] > 20 && routed[1] > routed[0], "{routed:?}");
    let report = report(&server);
    let estimates = list(&report["off_policy"]);
    let of = |arm: usize, kind: &str| estimates[arm][kind]["value"].as_f64().unwrap();
    for kind in ["self_normalised", "doubly_robust"] {
        assert!(of(1, kind) > 0.9 && of(0, kind) < 0.1, "{report}");
    }
}

/// The log-probability of a reference is measured under what answered.
#[test]
fn references_are_measured() {
    let server = Server::start(|_| {});
    let measured = json!([{"name": "reference_logprob", "kind": "mean", "wanted": "increase"}]);
    declare(&server, &declaration(&json!({"metrics": measured}))).ok();
    let reply = ask_with(server.address, "ann", &json!({"reference": "good morning"})).ok();
    let arm = text(&reply["polyskill"], "arm").to_owned();
    until(|| value(&report(&server), "reference_logprob", &arm).is_some());
    let found = value(&report(&server), "reference_logprob", &arm).unwrap();
    assert!((-20.0..0.0).contains(&found), "{found}");
}

/// The program as an operator runs it.
struct Program {
    child: Child,
    address: SocketAddr,
}

impl Program {
    fn start(config: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_polyskill"))
            .args([
                "serve",
                "--until-input-ends",
                "--allow-unsigned",
                "--listen",
                "127.0.0.1:0",
                "--config",
            ])
            .arg(config)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut all = String::new();
        let address = loop {
            let before = all.len();
            assert!(said.read_line(&mut all).unwrap() > 0, "it ended before it served: {all}");
            if let Some((_, address)) = all[before..].trim_end().split_once(" on http://") {
                break address.parse().unwrap();
            }
        };
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Self { child, address }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // As hard as it comes.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request that may meet a dying server: `None` unless the whole reply came.
fn try_post(address: SocketAddr, path: &str, body: &Json) -> Option<Json> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {ADMIN_KEY}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).ok()?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).ok()?;
    let (head, body) = reply.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200").then(|| serde_json::from_str(body).ok())?
}

/// What a killed server had acknowledged.
#[derive(Default)]
struct Acknowledged {
    arms: Mutex<BTreeMap<String, String>>,
    feedback: Mutex<Vec<String>>,
    /// The control's weight, which grows with every change.
    weight: Mutex<u64>,
}

impl Acknowledged {
    /// Asks and says how it was, until the server is gone.
    fn ask_on(&self, address: SocketAddr, users: impl Fn(usize) -> String) {
        for number in 0.. {
            let user = users(number);
            let body = json!({"model": "llama-tied", "max_tokens": 1, "user": user,
                              "messages": [{"role": "user", "content": "hi"}]});
            let Some(reply) = try_post(address, "/v1/chat/completions", &body) else { return };
            let arm = text(&reply["polyskill"], "arm").to_owned();
            let known = self.arms.lock().unwrap().entry(user).or_insert(arm.clone()).clone();
            assert_eq!(known, arm, "a unit changed its arm");
            let id = text(&reply, "id").to_owned();
            let body = json!({"id": id, "name": "correct", "value": 1.0});
            if try_post(address, "/v1/feedback", &body).is_none() {
                return;
            }
            self.feedback.lock().unwrap().push(id);
        }
    }

    /// Changes weights until the server is gone.
    fn change_on(&self, address: SocketAddr) {
        let next = *self.weight.lock().unwrap() + 1;
        for weight in next.. {
            let mut declared = declaration(&json!({}));
            declared["arms"][0]["weight"] = json!(weight);
            if try_post(address, "/admin/experiments", &declared).is_none() {
                return;
            }
            *self.weight.lock().unwrap() = weight;
        }
    }
}

/// Killed in the middle of assignments, feedback and changes of weights, again and again: whatever was acknowledged is
/// there, and no unit changes its arm.
#[test]
fn a_killed_server_loses_nothing_that_it_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("polyskill.toml");
    let quoted = |path: &Path| json!(path.display().to_string());
    let text_of = format!(
        "model = {}\nadapters = [{}]\nplugins = [{}]\nadmin_key = \"{ADMIN_KEY}\"\n[engine]\nthreads = 1\n\
         max_cached_tokens = 8192\n[experiments]\nstore = {}\n",
        quoted(&fixtures().join("models/llama-tied")),
        quoted(&fixtures().join("adapters")),
        quoted(&plugins()),
        quoted(&folder.path().join("experiments.sqlite")),
    );
    std::fs::write(&config, text_of).unwrap();
    let known = Acknowledged::default();
    for round in 0..4 {
        let mut program = Program::start(&config);
        let address = program.address;
        if round == 0 {
            try_post(address, "/admin/experiments", &declaration(&json!({}))).unwrap();
        }
        std::thread::scope(|scope| {
            let known = &known;
            for worker in 0..3 {
                let user = move |number| format!("user-{worker}-{}", number % 7 + round * 2);
                scope.spawn(move || known.ask_on(address, user));
            }
            scope.spawn(move || known.change_on(address));
            let wanted = 12 * (round + 1);
            while known.feedback.lock().unwrap().len() < wanted {
                std::thread::yield_now();
            }
            program.child.kill().unwrap();
        });
    }
    let program = Program::start(&config);
    for id in &*known.feedback.lock().unwrap() {
        let reply = feedback(program.address, id, "correct", 1.0).ok();
        assert_eq!(reply["status"], "known", "{id} was forgotten");
    }
    for (user, arm) in &*known.arms.lock().unwrap() {
        let reply = ask_with(program.address, user, &json!({})).ok();
        assert_eq!(text(&reply["polyskill"], "arm"), arm, "{user}");
    }
    let path = "/admin/experiments/trial";
    let report = exchange(program.address, "GET", path, Some(ADMIN_KEY), "").ok();
    let weight = report["declaration"]["arms"][0]["weight"].as_f64().unwrap();
    let least = *known.weight.lock().unwrap();
    // One more may be on the disk without its answer having come.
    assert!(
        least > 0 && (weight as u64 == least || weight as u64 == least + 1),
        "{weight} {least}"
    );
}

/// Every series that dashboard and alerts ask for is one that a server has.
#[test]
fn the_dashboard_and_the_alerts_ask_for_what_there_is() {
    let server = Server::start(|_| {});
    declare(&server, &declaration(&json!({}))).ok();
    ask(&server, "ann");
    let routed = json!({"experiment": {"name": "trial", "arm": "routed"}});
    ask_with(server.address, "ann", &routed).ok();
    let metrics = server.send("GET", "/metrics", None, "").body;
    let mut asked = 0;
    for file in ["grafana.json", "alerts.yaml"] {
        let path = crate::common::root().join("examples/monitoring").join(file);
        let text = std::fs::read_to_string(path).unwrap();
        for start in ["vllm:", "polyskill:"] {
            for (at, _) in text.match_indices(start) {
                let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
                let name: String = text[at..].chars().take_while(|c| is_name(*c)).collect();
                assert!(metrics.contains(&format!("\n{name}")), "{file} asks for {name}");
                asked += 1;
            }
        }
    }
    assert!(asked > 25, "{asked}");
}

/// Requests that a server recorded meet every arm, and differences are those of pairs.
#[test]
fn recorded_traffic_meets_every_arm() {
    let folder = tempfile::tempdir().unwrap();
    let traces = folder.path().join("traces.jsonl");
    let recording = Server::start(|config| {
        config.traces.sample = 1.0;
        config.traces.prompts = true;
        config.traces.file = Some(traces.clone());
    });
    for user in 0..5 {
        ask_with(recording.address, &format!("user-{user}"), &json!({})).ok();
    }
    recording.service.traces.flush();
    let experiment = folder.path().join("trial.toml");
    std::fs::write(&experiment, toml::to_string(&declaration(&json!({"models": []}))).unwrap())
        .unwrap();
    let server = Server::start(|_| {});
    let out = folder.path().join("report");
    let args = polyskill_cli::commands::experiment::TrafficArgs {
        experiment,
        traffic: vec![traces.clone()],
        out: out.clone(),
        limit: None,
        parallel: 2,
        seed: 1,
    };
    let mut said = Vec::new();
    polyskill_cli::commands::experiment::run(&server.service, &args, true, &mut said).unwrap();
    let said = String::from_utf8(said).unwrap();
    assert!(
        said.contains("completion_tokens: plain 3.000 of 5 units, routed 3.000 of 5 units"),
        "{said}"
    );
    let report = crate::common::read_json(&out.join("report.json"));
    assert_eq!(arm(&report, "routed")["requests"], 5);
    assert_eq!(metric(&report, "completion_tokens")["comparisons"][0]["difference"], 0.0);
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("<h1>Experiment trial</h1>"), "{page}");
    std::fs::write(&traces, "{\"composition\": \"x\"}").unwrap();
    let refused =
        polyskill_cli::commands::experiment::run(&server.service, &args, true, &mut Vec::new());
    assert!(refused.is_err());
}

#[test]
fn planning_and_assigning_need_no_server() {
    use polyskill_cli::commands::experiment::{AssignArgs, PlanArgs, assign, plan};
    let args = PlanArgs {
        variance: 0.25,
        effect: Some(0.1),
        units: None,
        level: 0.05,
        power: 0.8,
        allocation: 1.0,
        correlation: 0.0,
    };
    let mut said = Vec::new();
    plan(&args, &mut said).unwrap();
    plan(&PlanArgs { effect: None, units: Some(785.0), ..args }, &mut said).unwrap();
    let said = String::from_utf8(said).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!((lines.len(), lines[0]), (4, "one look at the end: 785 units find 0.1"), "{said}");
    assert!(lines[2].starts_with("one look at the end: 785 units find 0.1"), "{said}");
    let folder = tempfile::tempdir().unwrap();
    let experiment = folder.path().join("trial.toml");
    std::fs::write(&experiment, toml::to_string(&declaration(&json!({}))).unwrap()).unwrap();
    let mut said = Vec::new();
    let units = vec!["a".to_owned(), "b".to_owned()];
    assign(&AssignArgs { experiment, units }, &mut said).unwrap();
    assert_eq!(String::from_utf8(said).unwrap().lines().count(), 2);
}
