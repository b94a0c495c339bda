//! The requests of lm-eval's `local-completions` and `local-chat-completions`, recorded, and read as lm-eval reads them.
//!
//! `tests/lm_eval/record.py` made `fixtures/api/lm_eval.json`; the numbers in it are transformers' and PEFT's.

use polyskill_engine::Selection;
use serde_json::{Value as Json, json};

use crate::common::{Bench, fixtures, floats, greedy, ids, list, read_json, text, worst};
use crate::openai_api::Server;

/// The parts of a choice that lm-eval takes: the log-probabilities behind the context, without the token that it had to ask for,
/// and whether each token is the one with the most.
fn scored(choice: &Json, context: usize) -> (Vec<f32>, bool) {
    let part = |name: &str| {
        let all = list(&choice["logprobs"][name]);
        all[context..all.len() - 1].to_vec()
    };
    let is_best = |(token, top): (&Json, &Json)| {
        let top = top.as_object().unwrap();
        let best =
            top.iter().max_by(|a, b| a.1.as_f64().unwrap().total_cmp(&b.1.as_f64().unwrap()));
        best.unwrap().0 == token.as_str().unwrap()
    };
    let tokens = part("tokens");
    let is_greedy = tokens.iter().zip(&part("top_logprobs")).all(is_best);
    (floats(&Json::Array(part("token_logprobs"))), is_greedy)
}

#[test]
fn recorded_requests_get_the_numbers_of_transformers() {
    let server = Server::start(|config| config.served_model_name = Some("llama-tied".to_owned()));
    let recorded = read_json(&fixtures().join("api/lm_eval.json"));
    let (mut prompts, mut answers) = (0, 0);
    for request in list(&recorded["requests"]) {
        let body = request["body"].to_string();
        let reply = server.send("POST", text(request, "path"), None, body).ok();
        let choices = list(&reply["choices"]);
        if let Some(expected) = request["prompts"].as_array() {
            assert_eq!(choices.len(), expected.len());
            for (choice, prompt) in choices.iter().zip(expected) {
                let context = prompt["context"].as_u64().unwrap() as usize;
                let (found, is_greedy) = scored(choice, context);
                let distance = worst(&found, &floats(&prompt["logprobs"]));
                assert!(distance < 1e-4, "{}: off by {distance}", text(request, "name"));
                assert_eq!(is_greedy, prompt["is_greedy"].as_bool().unwrap());
                prompts += 1;
            }
        } else {
            let content = text(&choices[0]["message"], "content");
            assert_eq!(content, text(&request["answer"], "text"));
            let usage = &reply["usage"];
            assert_eq!(usage["prompt_tokens"], list(&request["answer"]["prompt_ids"]).len());
            answers += 1;
        }
    }
    assert!(prompts >= 12 && answers >= 2, "{prompts} prompts, {answers} answers");
}

/// On a quantised file the HTTP surface adds nothing to the engine's own numbers.
#[test]
fn scores_over_http_are_the_engines() {
    let base = "gguf/tiny-q4_1.gguf";
    let server = Server::start(|config| {
        config.model = Some(fixtures().join(base).display().to_string());
        config.served_model_name = Some("tiny".to_owned());
        config.adapters = Vec::new();
    });
    let bench = Bench::new(base, &[]);
    let prompt = [84, 120, 270, 119, 108, 265, 61, 35, 90, 107, 108, 102, 107, 289];
    let body = json!({"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": 1,
                      "logprobs": 1, "seed": 1234, "echo": true});
    let reply = server.send("POST", "/v1/completions", None, body.to_string()).ok();
    let (found, _) = scored(&reply["choices"][0], 1);
    let output = bench.run(&Selection::Base, &ids(&json!(prompt)), greedy(1));
    let expected: Vec<f32> =
        output.prompt[1..].iter().map(|scored| scored.logprob.as_ref().unwrap().value).collect();
    assert_eq!(found.len(), expected.len());
    assert!(worst(&found, &expected) < 1e-5);
}
