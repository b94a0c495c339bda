//! The lists of request fields: every field of OpenAI's and vLLM's types, and of others' that change results, has a
//! treatment; and a server does with each what the list says.
//!
//! `tests/goldens/api_fields.py` reads the names off their sources.

use std::collections::BTreeSet;

use polyskill_server::api::fields::{
    CHAT, COMMON, COMPLETIONS, DETOKENIZE, Field, OTHERS, TOKENIZE, Treatment,
};
use serde_json::{Value as Json, json};

use crate::common::{fixtures, list, read_json};
use crate::openai_api::Server;

fn names(lists: &[&[Field]]) -> BTreeSet<String> {
    lists.iter().flat_map(|list| *list).map(|(name, _)| (*name).to_owned()).collect()
}

#[test]
fn every_field_of_the_peers_has_a_treatment() {
    let fields = read_json(&fixtures().join("api/fields.json"));
    for (route, lists) in [
        ("chat", &[COMMON, CHAT][..]),
        ("completions", &[COMMON, COMPLETIONS]),
        ("tokenize", &[TOKENIZE]),
        ("detokenize", &[DETOKENIZE]),
        ("others", &[COMMON, CHAT, OTHERS]),
    ] {
        let treated = names(lists);
        let named = fields[route].as_object().unwrap().values().flat_map(list);
        let missing: Vec<&str> =
            named.filter_map(Json::as_str).filter(|name| !treated.contains(*name)).collect();
        assert!(missing.is_empty(), "{route}: {missing:?} have no treatment");
    }
}

/// A field that is served is read: a value of a wrong type is refused by the field's name.
#[test]
fn served_fields_are_read() {
    let server = Server::shared();
    let send = |path: &str, body: &Json| server.send("POST", path, None, body.to_string());
    let chat = json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1});
    let completion = json!({"prompt": "hello", "max_tokens": 1});
    let wrong = [json!({"a": {"b": 1}}), json!([[0.5]]), json!(-1.5), json!("\u{0}")];
    let mut checked = 0;
    for (path, body, own) in
        [("/v1/chat/completions", &chat, CHAT), ("/v1/completions", &completion, COMPLETIONS)]
    {
        for (name, _) in
            [COMMON, own].into_iter().flatten().filter(|(_, t)| *t == Treatment::Served)
        {
            let names_it = |value: &Json| {
                let mut body = body.clone();
                body[*name] = value.clone();
                let reply = send(path, &body);
                let error = reply.json()["error"].clone();
                let named = |key: &str| error[key].as_str().is_some_and(|text| text.contains(name));
                [400, 404].contains(&reply.status) && (named("param") || named("message"))
            };
            assert!(wrong.iter().any(names_it), "{path}: `{name}` takes anything");
            checked += 1;
        }
    }
    assert!(checked > 60, "{checked}");
}

/// A value that asks for something, whatever the field.
const ASKS: &str = "ask for something";

#[test]
fn refused_fields_are_refused_by_name_and_neutral_values_are_not() {
    let server = Server::shared();
    let send = |path: &str, body: &Json| server.send("POST", path, None, body.to_string());
    let chat = json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1});
    let completion = json!({"prompt": "hello", "max_tokens": 1});
    let mut checked = 0;
    for (path, body, own) in
        [("/v1/chat/completions", &chat, CHAT), ("/v1/completions", &completion, COMPLETIONS)]
    {
        for (name, treatment) in [COMMON, own, OTHERS].into_iter().flatten() {
            let with = |value: Json| {
                let mut body = body.clone();
                body[*name] = value;
                send(path, &body)
            };
            match treatment {
                Treatment::Served => continue,
                Treatment::NoEffect(reason) => {
                    assert!(!reason.is_empty());
                    assert_eq!(with(Json::Null).status, 200, "{name}");
                }
                Treatment::Refused(neutral) => {
                    let reply = with(json!(ASKS));
                    assert_eq!(reply.status, 400, "{path}: {name}: {reply:?}");
                    assert_eq!(reply.json()["error"]["param"], *name, "{path}: {name}");
                    for value in neutral.iter().map(|value| serde_json::from_str(value).unwrap()) {
                        let reply = with(value);
                        assert_eq!(reply.status, 200, "{path}: {name}: {reply:?}");
                    }
                    assert_eq!(with(Json::Null).status, 200, "{path}: {name}");
                }
            }
            checked += 1;
        }
    }
    assert!(checked > 150, "{checked}");
    // Names that nobody knows are accepted.
    let mut unknown = completion;
    unknown["x_of_mine"] = json!({"a": 1});
    assert_eq!(send("/v1/completions", &unknown).status, 200);
}
