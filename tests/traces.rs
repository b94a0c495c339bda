//! Traces of a running server: what they say, where they go, and that they come out the same when they are run again.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

use polyskill_cli::commands::replay::{ReplayArgs, run as replay};
use serde_json::{Value as Json, json};

use crate::common::{list, text};
use crate::openai_api::{ADMIN_KEY, Server};

fn server(file: &Path, change: impl FnOnce(&mut polyskill_server::config::Config)) -> Server {
    Server::start(|config| {
        config.traces.sample = 1.0;
        config.traces.prompts = true;
        config.traces.file = Some(file.to_owned());
        change(config);
    })
}

fn ask(server: &Server, more: &Json) -> Json {
    let mut body = json!({"model": "llama-tied", "max_tokens": 4, "seed": 3,
                          "messages": [{"role": "user", "content": "hello"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    server.send("POST", "/v1/chat/completions", None, body.to_string()).ok()
}

fn lines(server: &Server, query: &str) -> Vec<Json> {
    let reply = server.send("GET", &format!("/admin/traces{query}"), Some(ADMIN_KEY), "");
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn arrow() -> Json {
    json!({"router": {"name": "arrow", "modules": ["task-*"], "params": {"top_k": 2}}})
}

#[test]
fn a_trace_has_picks_scores_and_margins() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(&folder.path().join("traces.jsonl"), |config| config.traces.keep = 2);
    for _ in 0..3 {
        ask(&server, &arrow());
    }
    let traces = lines(&server, "");
    assert_eq!((traces.len(), lines(&server, "?limit=1").len()), (2, 1));
    let trace = &traces[1];
    assert_eq!(
        (&trace["router"], &trace["reason"], &trace["completion_tokens"]),
        (&json!("arrow"), &json!("length"), &json!(4))
    );
    let sites = list(&trace["tokens"][0]["sites"]);
    assert!(sites.len() >= 7, "{trace}");
    for site in sites {
        let scores: Vec<f64> =
            list(&site["scores"]).iter().map(|score| score[1].as_f64().unwrap()).collect();
        assert!(scores.len() >= 2 && scores.is_sorted_by(|a, b| a >= b), "{site}");
        let margin = site["margin"].as_f64().unwrap();
        assert!((margin - (scores[0] - scores[1])).abs() < 1e-6, "{site}");
        let best = &site["scores"][0][0];
        let mut picks = list(&site["picks"]).to_vec();
        picks.sort_by(|a, b| b[1].as_f64().unwrap().total_cmp(&a[1].as_f64().unwrap()));
        assert_eq!((&picks[0][0], picks.len()), (best, 2), "{site}");
    }
    // Who did not ask for a trace gets none.
    let reply = ask(&server, &arrow());
    assert_eq!(reply["polyskill"]["routing"], Json::Null);
    assert_eq!(server.send("GET", "/admin/traces", None, "").status, 401);
    assert!(
        server.send("GET", "/metrics", None, "").body.contains("polyskill:traces_recorded_total 4")
    );
}

/// Runs a file of traces again on a server; what was said, and whether it came out the same.
fn again(server: &Server, file: &Path) -> (String, Result<(), String>) {
    let mut said = Vec::new();
    let args = ReplayArgs { traces: file.to_owned(), limit: None };
    let outcome = replay(&server.service, &args, &mut said);
    (String::from_utf8(said).unwrap(), outcome)
}

#[test]
fn a_recorded_trace_gives_the_same_decisions() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("traces.jsonl");
    let first = server(&file, |_| {});
    ask(&first, &arrow());
    ask(
        &first,
        &json!({"router": {"name": "retrieval+arrow", "modules": ["task-*"]}, "temperature": 0.9}),
    );
    ask(&first, &json!({"adapters": [{"name": "task-a", "weight": 0.7}], "temperature": 1.3}));
    ask(&first, &json!({}));
    first.service.traces.flush();
    let other = folder.path().join("other.jsonl");
    let second = server(&other, |config| config.traces.sample = 0.0);
    let (said, outcome) = again(&second, &file);
    assert!(outcome.is_ok() && said.starts_with("4 traces came out the same"), "{said}");
    // Recorded decisions that are not what comes out are named.
    let text_of = std::fs::read_to_string(&file).unwrap();
    let mut trace: Json = serde_json::from_str(text_of.lines().next().unwrap()).unwrap();
    trace["tokens"][2]["sites"][3]["picks"][0][1] = json!(0.125);
    std::fs::write(&other, trace.to_string()).unwrap();
    let (said, outcome) = again(&second, &other);
    assert!(outcome.is_err() && said.contains("other decisions at token 2"), "{said}");
    trace["composition"] = json!("00");
    trace["repeat"]["route"]["router"]["name"] = json!("nobody");
    std::fs::write(&other, trace.to_string()).unwrap();
    let (said, outcome) = again(&second, &other);
    assert!(
        outcome.is_ok() && said.contains("nobody") && said.contains("1 meet another composition"),
        "{said}"
    );
    std::fs::write(&other, "{\"id\": 3}").unwrap();
    let (_, outcome) = again(&second, &other);
    assert!(outcome.unwrap_err().contains("line 1"));
}

#[test]
fn a_full_file_makes_room() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("traces.jsonl");
    let server = server(&file, |config| config.traces.file_mib = 0);
    ask(&server, &json!({}));
    ask(&server, &json!({}));
    server.service.traces.flush();
    let count = |path: &Path| std::fs::read_to_string(path).unwrap().lines().count();
    assert_eq!((count(&file), count(&folder.path().join("traces.jsonl.1"))), (1, 1));
}

/// A collector that takes what it is sent.
fn collector() -> (String, Receiver<Json>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let (sender, messages) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let mut length = 0;
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
            reader.get_mut().write_all(reply).unwrap();
            if sender.send(serde_json::from_slice(&body).unwrap()).is_err() {
                return;
            }
        }
    });
    (address, messages)
}

#[test]
fn a_collector_gets_spans() {
    let folder = tempfile::tempdir().unwrap();
    let (address, messages) = collector();
    let server = server(&folder.path().join("t"), |config| config.traces.otlp = Some(address));
    let reply = ask(&server, &arrow());
    let message = messages.recv().unwrap();
    let spans = list(&message["resourceSpans"][0]["scopeSpans"][0]["spans"]);
    let names: Vec<&str> = spans.iter().map(|span| text(span, "name")).collect();
    assert_eq!(names, ["chat", "queue", "prefill", "decode"]);
    let attribute = |key: &str| {
        let attributes = list(&spans[0]["attributes"]).iter();
        attributes.clone().find(|found| found["key"] == key).unwrap()["value"].clone()
    };
    assert_eq!(attribute("gen_ai.response.id"), json!({"stringValue": reply["id"]}));
    assert_eq!(attribute("gen_ai.usage.output_tokens"), json!({"intValue": "4"}));
    assert_eq!(attribute("polyskill.router"), json!({"stringValue": "arrow"}));
    let by_hand = server.send("GET", "/admin/traces?format=otlp", Some(ADMIN_KEY), "").ok();
    assert_eq!(by_hand, message);
}

#[test]
fn settings_are_checked() {
    let settings = |sample: f64, otlp: Option<&str>| {
        let otlp = otlp.map(str::to_owned);
        polyskill_server::traces::TraceSettings { sample, otlp, ..Default::default() }.problems()
    };
    assert!(settings(0.5, Some("http://localhost:4318/v1/traces")).is_empty());
    assert!(settings(1.5, None)[0].contains("expected 0 to 1"));
    assert!(settings(0.5, Some("nowhere"))[0].contains("`otlp` is `nowhere`"));
}
