//! `polyskill eval` from task files to the page, and what it keeps of a run that was stopped.

use std::path::Path;

use polyskill_cli::commands::eval::{EvalArgs, Outcome, run};
use polyskill_server::config::Config;
use polyskill_server::service::Service;
use serde_json::{Value as Json, json};

use crate::common::{fixtures, list, plugins};

const COLUMNS: &str = r#"
[[column]]
name = "base"
[[column]]
name = "own module"
own = true
[[column]]
name = "Arrow <2>"
router = "arrow"
params = { top_k = 2 }
modules = ["task-*"]
adapters = { prompt-5 = 1.0 }
[[column]]
name = "one per answer"
most_picked_of = "Arrow <2>"
"#;

fn service() -> Service {
    let config = Config {
        model: Some(fixtures().join("models/llama-tied").display().to_string()),
        adapters: vec![fixtures().join("adapters")],
        plugins: vec![plugins()],
        trust: polyskill_plugin::Trust::unsigned(),
        ..Config::default()
    };
    Service::start(&config, &mut |_| {}).unwrap()
}

fn tasks(folder: &Path) {
    let items = |task: &str, count: usize| -> String {
        let line = |number: usize| {
            let module = ["task-a", "task-b", "task-c"][number % 3];
            let item = json!({"prompt": format!("{task} {number}"), "references": ["the <b>answer</b>"],
                "module": module, "metric": "token-f1", "max_tokens": 6, "tags": [if number.is_multiple_of(2) { "even" } else { "odd" }]});
            format!("{item}\n")
        };
        (0..count).map(line).collect()
    };
    std::fs::write(folder.join("first.jsonl"), items("hello", 5)).unwrap();
    std::fs::write(folder.join("second.jsonl"), items("world", 3)).unwrap();
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "references": ["hello"], "metric": "log-prob"});
    std::fs::write(folder.join("chat.jsonl"), chat.to_string()).unwrap();
}

fn arguments(folder: &Path) -> EvalArgs {
    EvalArgs {
        tasks: vec![folder.to_owned()],
        columns: Some(folder.join("columns.toml")),
        out: folder.join("out"),
        limit: None,
        parallel: 3,
        resamples: 50,
    }
}

fn outcomes(folder: &Path) -> Vec<Outcome> {
    let lines = std::fs::read_to_string(folder.join("out/results.jsonl")).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_run_that_was_stopped_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    tasks(folder);
    std::fs::write(folder.join("columns.toml"), COLUMNS).unwrap();
    let service = service();
    let report = run(&service, &arguments(folder)).unwrap();
    let all = outcomes(folder);
    assert_eq!(all.len(), 4 * 9);
    for part in ["| first |", "| tag:even |", "Arrow <2>", "## Cost", "| mean |"] {
        assert!(report.contains(part), "{part}: {report}");
    }
    // What is kept is not computed again; what was lost is.
    let file = folder.join("out/results.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    let kept: String = text.lines().take(20).map(|line| format!("{line}\n")).collect();
    std::fs::write(&file, format!("{kept}{{\"key\": \"cut")).unwrap();
    assert_eq!(run(&service, &arguments(folder)).unwrap().lines().next(), report.lines().next());
    let again = outcomes(folder);
    let same = |outcome: &Outcome| Outcome { seconds: 0.0, ..outcome.clone() };
    assert_eq!(
        again.iter().map(same).collect::<Vec<_>>(),
        all.iter().map(same).collect::<Vec<_>>()
    );
    assert!(std::fs::read_to_string(&file).unwrap().starts_with(&kept));
}

#[test]
fn outcomes_say_what_was_picked() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    tasks(folder);
    std::fs::write(folder.join("columns.toml"), COLUMNS).unwrap();
    run(&service(), &arguments(folder)).unwrap();
    for outcome in outcomes(folder) {
        assert!(outcome.logprob < 0.0 && (0.0..=1.0).contains(&outcome.score), "{outcome:?}");
        assert_eq!(outcome.tokens == 0, outcome.task == "chat", "{outcome:?}");
        let routed = outcome.column.starts_with("Arrow");
        assert_eq!(outcome.routing.is_some(), routed, "{outcome:?}");
        let Some(routing) = outcome.routing.filter(|_| outcome.tokens > 0) else { continue };
        let sum: f64 = routing.share.values().sum();
        assert!((sum - 1.0).abs() < 1e-2 && routing.picks == 2.0, "{routing:?}");
        assert!(routing.share.keys().all(|name| name.starts_with("task-")), "{routing:?}");
        assert_eq!(routing.layers.len(), 3);
    }
    let read = |name: &str| std::fs::read_to_string(folder.join("out").join(name)).unwrap();
    let report: Json = serde_json::from_str(&read("report.json")).unwrap();
    assert_eq!(list(&report["columns"]).len(), 4);
    assert_eq!(list(&report["shares"]).len(), 1);
    let own = &list(&report["recovered"]).last().map(|row| row["cells"][1]["mean"].clone());
    assert!(own.as_ref().is_none_or(|mean| *mean == 1.0), "{report}");
    let page = read("report.html");
    assert!(page.contains("Arrow &lt;2&gt;") && !page.contains("<2>"), "names are escaped");
    assert!(!page.contains("http"), "the page loads nothing");
}

#[test]
fn columns_name_what_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    tasks(folder);
    let service = service();
    for (column, part) in [
        (
            "router = \"nobody\"",
            "column `x`, task `chat`, item 0: the router `nobody` does not exist",
        ),
        ("adapters = { nobody = 1.0 }", "the adapter `nobody` does not exist"),
        ("router = \"arrow\"\nparams = { top_k = 0 }", "top_k"),
    ] {
        std::fs::write(
            folder.join("columns.toml"),
            format!("[[column]]\nname = \"x\"\n{column}\n"),
        )
        .unwrap();
        let message = run(&service, &arguments(folder)).unwrap_err();
        assert!(message.contains(part), "{message}");
    }
}
