//! The shipped library on the real base: routed per token, it answers what the base alone does not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use polyskill_adapters::Kind;
use polyskill_cli::commands::eval::{EvalArgs, Outcome, run};
use polyskill_engine::{RouterRequest, SamplingParams, Selection};
use polyskill_sdk::{Parameters, Value};
use polyskill_server::config::Config;
use polyskill_server::service::Service;
use polyskill_server::startup::StartupEvent;
use polyskill_sources::base_models;
use polyskill_tokenizer::{Chat, Special};
use serde_json::{Value as Json, json};

use crate::common::{plugins, root, submit, text};

/// The first example of each module, in the order of the folders.
fn examples(library: &Path) -> Vec<(String, String)> {
    let entries = std::fs::read_dir(library).unwrap();
    let mut files: Vec<_> =
        entries.map(|entry| entry.unwrap().path().join("examples.jsonl")).collect();
    files.retain(|file| file.is_file());
    files.sort();
    let first = |file| {
        let lines = std::fs::read_to_string(file).unwrap();
        let example: Json = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
        (text(&example, "prompt").to_owned(), text(&example, "answer").to_owned())
    };
    files.into_iter().map(first).collect()
}

fn answer(service: &Service, selection: &Selection, question: &str) -> String {
    let messages = [json!({"role": "user", "content": question})];
    let prompt = service.tokenizer.encode_chat(&Chat::to_answer(&messages)).unwrap();
    let sampling = SamplingParams {
        max_tokens: 48,
        temperature: 0.0,
        stop_tokens: service.model.config().eos_tokens.clone(),
        ..SamplingParams::default()
    };
    // A server hands the question to routers that read it.
    let selection = match selection.clone() {
        Selection::Routed(request) => {
            Selection::Routed(RouterRequest { text: Some(question.to_owned()), ..request })
        }
        other => other,
    };
    let composition = service.composer.compose(&selection).unwrap();
    assert_eq!(composition.fallback(), None);
    let output = submit(&service.engine, &Arc::clone(&composition), &prompt, sampling).wait();
    service.tokenizer.decode(&output.ids(), Special::Hidden).trim().to_owned()
}

/// The shipped library, served as the demo serves it; `None` where the base is not in the cache.
#[expect(clippy::print_stderr, reason = "says why the test checks nothing")]
fn shipped() -> Option<Service> {
    let Some(model) = base_models::cached(&base_models::SMOLLM2).unwrap() else {
        eprintln!(
            "note: {} is not in the cache; the library was not tried",
            base_models::SMOLLM2.name
        );
        return None;
    };
    let config = Config {
        model: Some(model.display().to_string()),
        adapters: vec![root().join("adapters/library")],
        plugins: vec![plugins()],
        trust: polyskill_plugin::Trust::unsigned(),
        ..Config::read(&root().join("examples/library.toml")).unwrap()
    };
    let service = Service::start(&config, &mut |report| {
        assert!(!matches!(report, StartupEvent::LeftOut(_)), "{report}");
    });
    Some(service.unwrap())
}

/// A real base of another family, from quantised blocks of other kinds, goes on with texts as one would expect.
#[test]
#[expect(clippy::print_stderr, reason = "says why the test checks nothing")]
fn a_second_base_makes_sense() {
    let Some(model) = base_models::cached(&base_models::GEMMA3).unwrap() else {
        eprintln!("note: {} is not in the cache; it was not tried", base_models::GEMMA3.name);
        return;
    };
    let config = Config { model: Some(model.display().to_string()), ..Config::default() };
    let service = Service::start(&config, &mut |_| {}).unwrap();
    assert_eq!(service.model.config().family, "gemma3");
    let base = service.composer.compose(&Selection::Base).unwrap();
    for (prompt, expected) in [
        ("Water boils at", "100 degrees Celsius"),
        ("The three primary colours are red,", "yellow and blue"),
        ("One, two, three, four,", "five, six"),
    ] {
        let ids = service.tokenizer.encode(prompt).unwrap();
        let sampling =
            SamplingParams { max_tokens: 12, temperature: 0.0, ..SamplingParams::default() };
        let output = submit(&service.engine, &base, &ids, sampling).wait();
        let found = service.tokenizer.decode(&output.ids(), Special::Hidden);
        assert!(found.contains(expected), "{prompt}{found}");
    }
}

/// How far a mean log-probability may be from the one that was written down, as a part of it: other kernels sum in
/// another order.
const LOGPROB_TOLERANCE: f64 = 0.03;

#[test]
fn a_slice_of_the_evaluation_comes_out_as_written_down() {
    let Some(service) = shipped() else { return };
    let home = root().join("adapters/evaluation");
    let lines = std::fs::read_to_string(home.join("slice.jsonl")).unwrap();
    let expected: Vec<Json> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let is_in_slice = |name: &str| expected.iter().any(|line| text(line, "column") == name);
    let all: toml::Table =
        toml::from_str(&std::fs::read_to_string(home.join("columns.toml")).unwrap()).unwrap();
    let columns = all["column"].as_array().unwrap().iter();
    let columns: Vec<_> =
        columns.filter(|column| is_in_slice(column["name"].as_str().unwrap())).cloned().collect();
    assert!(columns.len() >= 4 && expected.len() >= 100, "{} lines", expected.len());
    let folder = tempfile::tempdir().unwrap();
    let columns_file = folder.path().join("columns.toml");
    let file = toml::Table::from_iter([("column".to_owned(), toml::Value::Array(columns))]);
    std::fs::write(&columns_file, file.to_string()).unwrap();
    let most = expected.iter().map(|line| line["index"].as_u64().unwrap()).max().unwrap();
    let arguments = EvalArgs {
        tasks: vec![home.join("test")],
        columns: Some(columns_file),
        out: folder.path().join("out"),
        limit: Some(most as usize + 1),
        parallel: 16,
        resamples: 10,
    };
    run(&service, &arguments).unwrap();
    let lines = std::fs::read_to_string(folder.path().join("out/results.jsonl")).unwrap();
    let outcomes = lines.lines().map(|line| serde_json::from_str::<Outcome>(line).unwrap());
    let place =
        |outcome: Outcome| ((outcome.column.clone(), outcome.task.clone(), outcome.index), outcome);
    let found: BTreeMap<_, Outcome> = outcomes.map(place).collect();
    assert_eq!(found.len(), expected.len());
    let mut other_scores = Vec::new();
    for line in &expected {
        let index = line["index"].as_u64().unwrap() as usize;
        let place = (text(line, "column").to_owned(), text(line, "task").to_owned(), index);
        let outcome = &found[&place];
        let distance = (outcome.logprob - line["logprob"].as_f64().unwrap()).abs();
        assert!(
            distance < LOGPROB_TOLERANCE * outcome.logprob.abs().max(1.0),
            "{line}: {outcome:?}"
        );
        if (outcome.score - line["score"].as_f64().unwrap()).abs() > 1e-9 {
            other_scores.push(place);
        }
    }
    // A greedy answer may turn where two tokens are as likely as each other.
    assert!(other_scores.len() * 50 <= expected.len(), "{other_scores:?}");
}

/// Questions that name several modules, one of which acts as a whole: their router has no mistake to make.
#[test]
fn questions_that_name_several_modules_are_answered() {
    let Some(service) = shipped() else { return };
    let skills = Selection::from(&service.route("skills").unwrap());
    let retrieval = Selection::Routed(RouterRequest {
        router: "retrieval".to_owned(),
        parameters: Parameters(vec![
            ("mode".to_owned(), Value::Text("mixture".to_owned())),
            ("k".to_owned(), Value::Number(4.0)),
        ]),
        ..RouterRequest::default()
    });
    for question in [
        "What is the plural of this German word?",
        "Which continent has the plural of a Spanish number?",
        "Tell me the sentiment of this ISO date.",
        "On which continent is German the plural of sentiment?",
    ] {
        for selection in [&skills, &retrieval] {
            // No fallback is among what this asserts.
            answer(&service, selection, question);
        }
    }
}

#[test]
fn the_library_answers_what_the_base_does_not() {
    let Some(service) = shipped() else { return };
    let library = root().join("adapters/library");
    for (name, module) in service.composer.library().snapshot().iter() {
        if module.kind() == Kind::Lora {
            let gates = module.artefacts().iter().find(|artefact| artefact.name() == "phatgoose");
            let num_sites = service.model.config().num_sites();
            assert_eq!(gates.unwrap().sites().count(), num_sites, "{name}");
        }
        assert!(module.description().is_some(), "{name}");
    }
    let skills = Selection::from(&service.route("skills").unwrap());
    let snapshot = service.composer.library().snapshot();
    let names: Vec<String> = snapshot.iter().map(|(name, _)| name.to_owned()).collect();
    let examples = examples(&library);
    assert!(examples.len() >= 12, "{examples:?}");
    let kinds: BTreeSet<String> =
        snapshot.iter().map(|(_, module)| format!("{:?}", module.kind())).collect();
    assert!(kinds.len() >= 5, "{kinds:?}");
    let right = |selection: &Selection| {
        let mut report = Vec::new();
        for (question, expected) in &examples {
            let found = answer(&service, selection, question);
            report.push((found == *expected, found, expected));
        }
        report
    };
    let (routed, base) = (right(&skills), right(&Selection::Base));
    let count = |report: &[(bool, String, &String)]| report.iter().filter(|(ok, ..)| *ok).count();
    let own: usize = names
        .iter()
        .zip(&examples)
        .filter(|(name, (question, expected))| {
            let alone = Selection::Weighted(vec![((*name).clone(), 1.0)]);
            answer(&service, &alone, question) == *expected
        })
        .count();
    // Nobody names the module, and it is found: most of what the modules know is there.
    assert!(own == examples.len() && 10 * count(&routed) >= 7 * own, "{own} {routed:#?}");
    assert!(count(&base) < count(&routed), "{base:#?}");
}
