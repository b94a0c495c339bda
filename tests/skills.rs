//! The shipped library on the real base: routed per token, it answers what the base alone does not.

use std::path::Path;
use std::sync::Arc;

use polyskill::config::Config;
use polyskill::pull;
use polyskill::service::Service;
use polyskill_engine::{SamplingParams, Selection};
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
    let messages = json!([{"role": "user", "content": question}]);
    let prompt = service.text.encode_chat(&messages, true).unwrap();
    let sampling = SamplingParams {
        max_tokens: 48,
        temperature: 0.0,
        stop_tokens: service.model.config().eos_tokens.clone(),
        ..SamplingParams::default()
    };
    let composition = service.composer.compose(selection).unwrap();
    assert_eq!(composition.fallback(), None);
    let output = submit(&service.engine, &Arc::clone(&composition), &prompt, sampling).wait();
    service.text.decode(&output.ids()).trim().to_owned()
}

#[test]
#[expect(clippy::print_stderr, reason = "says why the test checks nothing")]
fn the_library_answers_what_the_base_does_not() {
    let Some(model) = pull::cached(&pull::SMOLLM2).unwrap() else {
        eprintln!("note: {} is not in the cache; the library was not tried", pull::SMOLLM2.name);
        return;
    };
    let library = root().join("adapters/library");
    let config = Config {
        model: Some(model.display().to_string()),
        adapters: vec![library.clone()],
        plugins: vec![plugins()],
        trust: polyskill_plugin::Trust::unsigned(),
        ..Config::default()
    };
    let service = Service::start(&config, &mut |report| {
        assert!(!report.starts_with("left out"), "{report}");
    });
    let service = service.unwrap();
    for (name, module) in service.composer.library().snapshot().iter() {
        let gates = module.artefacts().iter().find(|artefact| artefact.name() == "phatgoose");
        assert_eq!(gates.unwrap().sites().count(), service.model.config().num_sites(), "{name}");
        assert!(module.description().is_some(), "{name}");
    }
    let skills = service.selection("skills").unwrap();
    let snapshot = service.composer.library().snapshot();
    let names: Vec<String> = snapshot.iter().map(|(name, _)| name.to_owned()).collect();
    let examples = examples(&library);
    assert!(examples.len() >= 4, "{examples:?}");
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
