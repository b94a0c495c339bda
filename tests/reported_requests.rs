//! Requests as users send them: tokens of one text, numbers in templates, roles, names that stand twice.

use serde_json::{Value as Json, json};

use crate::common::{fixtures, text};
use crate::openai_api::Server;
use crate::reported::{Automaton, complete, post, serve, streamed};

/// A base that says `▁b` or the byte of `b` after `▁a`, the word a little more likely.
fn two_tokens_of_one_text() -> (Server, tempfile::TempDir, u32) {
    let mut automaton = Automaton::new(&["\u{2581}a", "b"]);
    let byte = 3 + u32::from(b'b');
    let (a, b) = (automaton.id("\u{2581}a"), automaton.id("b"));
    automaton.table = vec![(a, b, 1.0), (a, byte, 0.9), (b, 2, 1.0), (byte, 2, 1.0)];
    let directory = tempfile::tempdir().unwrap();
    automaton.write(directory.path());
    (serve(directory.path(), |_| {}), directory, byte)
}

#[test]
fn a_drawn_token_has_its_own_log_probability_under_its_text() {
    let (server, _directory, byte) = two_tokens_of_one_text();
    let reply = complete(&server, json!({"prompt": "a", "max_tokens": 1, "logprobs": 2}));
    let logprobs = &reply["choices"][0]["logprobs"];
    let top = logprobs["top_logprobs"][0].as_object().unwrap();
    assert_eq!(top.len(), 2, "{top:?}");
    assert_eq!(top["b"], logprobs["token_logprobs"][0]);
    assert!(top["b"].as_f64() > top[&format!("token_id:{byte}")].as_f64());

    // The byte is drawn: the text is its own, and the likelier word has its id.
    let bias = json!({byte.to_string(): 100});
    let drawn = json!({"prompt": "a", "max_tokens": 1, "logprobs": 2, "logit_bias": bias});
    let logprobs = &complete(&server, drawn)["choices"][0]["logprobs"];
    let top = logprobs["top_logprobs"][0].as_object().unwrap();
    assert_eq!(
        (logprobs["tokens"][0].as_str().unwrap(), &top["b"]),
        ("b", &logprobs["token_logprobs"][0])
    );
    let others: Vec<&String> = top.keys().filter(|key| *key != "b").collect();
    assert!(others.iter().all(|key| key.starts_with("token_id:")), "{top:?}");
}

/// The tokens of a chat whose template shows what it is given.
fn rendered(server: &Server, body: &Json) -> String {
    let reply = post(server, "/v1/chat/completions", body);
    text(&reply, "prompt_text").to_owned()
}

#[test]
fn numbers_reach_templates_as_they_were_sent() {
    let source = fixtures().join("models/llama-tied");
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    let template = "{% for x in xs %}{{ x }} {% endfor %}{{ messages[0].content }}";
    std::fs::write(directory.path().join("chat_template.jinja"), template).unwrap();
    let server = serve(directory.path(), |_| {});
    let ask = |xs: &str| {
        format!(
            r#"{{"model": "base", "messages": [{{"role": "user", "content": "."}}], "max_tokens": 1,
                 "return_prompt_text": true, "chat_template_kwargs": {{"xs": {xs}}}}}"#
        )
    };
    let numbers =
        "[0.36995516654807925, -115.50470217871, 1629038717.0875819, 18446744073709551615]";
    let body: Json = serde_json::from_str(&ask(numbers)).unwrap();
    let expected = "0.36995516654807925 -115.50470217871 1629038717.0875819 18446744073709551615 .";
    assert_eq!(rendered(&server, &body), expected);
    // As a float it would be another number.
    let refused = server.send("POST", "/v1/chat/completions", None, ask("[18446744073709551616]"));
    let message = refused.refused();
    assert!(message.contains("18446744073709551616, an integer of more than 64 bits"), "{message}");
}

#[test]
fn any_role_that_a_template_prints_is_served() {
    let chat = |role: &str| {
        json!({"model": "base", "messages": [{"role": role, "content": "x"}], "max_tokens": 1,
               "return_prompt_text": true})
    };
    let printing = serve(&fixtures().join("models/llama-tied"), |_| {});
    assert!(rendered(&printing, &chat("ipython")).contains("<|im_start|>ipython"));
    // This template passes over roles: what an unknown one means is lost.
    let (silent, _directory, _) = two_tokens_of_one_text();
    let body = chat("ipython").to_string();
    let message = silent.send("POST", "/v1/chat/completions", None, body).refused();
    assert!(message.contains("`role` must be"), "{message}");
}

#[test]
fn stop_strings_that_are_special_tokens_are_included_where_asked() {
    let server = serve(&fixtures().join("models/llama-tied"), |_| {});
    // Token 1 is `<|im_start|>`.
    let ask = json!({"prompt": "x", "max_tokens": 4, "logit_bias": {"1": 100}, "temperature": 0,
                     "model": "base", "stop": ["<|im_start|>"], "include_stop_str_in_output": true});
    let reply = post(&server, "/v1/completions", &ask);
    let choice = &reply["choices"][0];
    assert_eq!(
        (text(choice, "text"), text(choice, "stop_reason")),
        ("<|im_start|>", "<|im_start|>")
    );
    let events = streamed(&server, "/v1/completions", &ask);
    let whole: String = events.iter().filter_map(|e| e["choices"][0]["text"].as_str()).collect();
    assert_eq!(whole, "<|im_start|>");
}

#[test]
fn no_router_is_written_in_both_forms() {
    let server = Server::shared();
    let ask = |router: Json| {
        let body = json!({"model": "task-a", "prompt": "x", "max_tokens": 1, "temperature": 0,
                          "logprobs": 0, "router": router});
        post(server, "/v1/completions", &body)["choices"][0]["logprobs"].clone()
    };
    assert_eq!(ask(json!({"name": "none"})), ask(json!("none")));
    let body = json!({"model": "task-a", "prompt": "x", "max_tokens": 1,
                      "router": {"name": "none", "modules": ["task-*"]}});
    let refused = server.send("POST", "/v1/completions", None, body.to_string());
    assert!(refused.refused().contains("no `modules`"));
}
