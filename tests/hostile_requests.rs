//! Request bodies of any form: the server answers in the shape of its errors and goes on serving.

use proptest::collection::{btree_map, vec};
use proptest::prelude::{BoxedStrategy, Just, ProptestConfig, Strategy, any, prop_oneof};
use proptest::sample::select;
use serde_json::{Value as Json, json};

use crate::common::{fixtures, text};
use crate::openai_api::{ADMIN_KEY, Reply, Server};

/// Fields that some route reads.
const FIELDS: [&str; 42] = [
    "messages",
    "prompt",
    "model",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "n",
    "seed",
    "stop",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "logit_bias",
    "stream",
    "stream_options",
    "user",
    "stop_token_ids",
    "min_tokens",
    "ignore_eos",
    "include_stop_str_in_output",
    "router",
    "adapters",
    "unit",
    "trace",
    "tools",
    "response_format",
    "logprobs",
    "top_logprobs",
    "add_generation_prompt",
    "echo",
    "suffix",
    "best_of",
    "tokens",
    "lora_name",
    "lora_path",
    "load_inplace",
    "role",
    "content",
    "name",
];

/// Requests that succeed; what they ask for is small, so that a mutated one is fast as well.
fn templates() -> Vec<(&'static str, Json)> {
    let late = fixtures().join("adapters/lora-all");
    vec![
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "system", "content": "be kind"}, {"role": "user",
                   "content": [{"type": "text", "text": "hello"}]}], "max_tokens": 2, "n": 2,
                   "logprobs": true, "top_logprobs": 2, "stop": ["x"], "trace": "full",
                   "router": {"name": "arrow", "params": {"top_k": 2}, "modules": ["task-*"]}}),
        ),
        (
            "/v1/chat/completions",
            json!({"model": "skills", "messages": [{"role": "user", "content": "hello"}],
                   "max_tokens": 2, "stream": true, "stream_options": {"include_usage": true},
                   "temperature": 0.5, "top_p": 0.9, "seed": 1, "logit_bias": {"7": 1.5}}),
        ),
        (
            "/v1/completions",
            json!({"prompt": ["hello", "world"], "max_tokens": 2, "logprobs": 1, "echo": true,
                   "adapters": [{"name": "task-a", "weight": 0.5}], "stop_token_ids": [3]}),
        ),
        ("/v1/completions", json!({"prompt": [[1, 2], [3]], "max_tokens": 2, "stream": true})),
        ("/tokenize", json!({"prompt": "hello world"})),
        ("/tokenize", json!({"messages": [{"role": "user", "content": "hello"}]})),
        ("/detokenize", json!({"tokens": [1, 2, 3]})),
        (
            "/v1/load_lora_adapter",
            json!({"lora_name": "late", "lora_path": late, "load_inplace": true}),
        ),
        ("/v1/unload_lora_adapter", json!({"lora_name": "nobody"})),
        ("/admin/routers", json!({"name": "arrow", "release": true})),
    ]
}

fn values() -> BoxedStrategy<Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        select(vec![0, 1, -1, 3, 320, i64::MIN, i64::MAX]).prop_map(Json::from),
        Just(json!(u64::MAX)),
        select(vec![0.5, -0.0, 1e-40, 1e39, -1e300]).prop_map(Json::from),
        select(vec!["", "user", "arrow", "skills", "task-a", "full", "*", "..", "\u{fffd}", "\0"])
            .prop_map(Json::from),
        "\\PC{0,6}".prop_map(Json::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        let keys = prop_oneof![select(FIELDS.to_vec()).prop_map(str::to_owned), "[a-z]{0,3}"];
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Json::from),
            btree_map(keys, inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
    .boxed()
}

/// What is done to a good body.
#[derive(Clone, Debug)]
enum Mutation {
    /// Fields are set.
    Fields(Vec<(&'static str, Json)>),
    /// The node at this place, counted depth first, is replaced.
    Node(usize, Json),
    /// Bytes are changed and the end is cut off.
    Bytes(Vec<(usize, u8)>, usize),
    /// A field is nested as deeply as this.
    Deep(&'static str, &'static str, usize),
}

fn mutations() -> impl Strategy<Value = Mutation> {
    let fields = vec((select(FIELDS.to_vec()), values()), 1..4);
    let edits = vec((0..400_usize, any::<u8>()), 0..4);
    prop_oneof![
        3 => fields.prop_map(Mutation::Fields),
        4 => (0..40_usize, values()).prop_map(|(at, value)| Mutation::Node(at, value)),
        2 => (edits, 1..800_usize).prop_map(|(edits, keep)| Mutation::Bytes(edits, keep)),
        1 => (select(FIELDS.to_vec()), select(vec!["[", "{\"a\":"]), 1..3_000_usize)
            .prop_map(|(field, open, depth)| Mutation::Deep(field, open, depth)),
    ]
}

/// The node at a place, counted depth first from the root, or how many places are left.
fn node(value: &mut Json, at: usize) -> Result<&mut Json, usize> {
    if at == 0 {
        return Ok(value);
    }
    let children: Vec<&mut Json> = match value {
        Json::Array(items) => items.iter_mut().collect(),
        Json::Object(fields) => fields.values_mut().collect(),
        _ => Vec::new(),
    };
    let mut left = at - 1;
    for child in children {
        match node(child, left) {
            Ok(found) => return Ok(found),
            Err(rest) => left = rest,
        }
    }
    Err(left)
}

fn mutated(mut body: Json, mutation: Mutation) -> Vec<u8> {
    match mutation {
        Mutation::Fields(fields) => {
            fields.into_iter().for_each(|(name, value)| body[name] = value);
        }
        Mutation::Node(at, value) => {
            if let Ok(found) = node(&mut body, at + 1) {
                *found = value;
            }
        }
        Mutation::Bytes(edits, keep) => {
            let mut bytes = body.to_string().into_bytes();
            for (at, byte) in edits {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            bytes.truncate(keep);
            return bytes;
        }
        Mutation::Deep(field, open, depth) => {
            body[field] = json!("HERE");
            let close = if open == "[" { "]" } else { "}" };
            let deep = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            return body.to_string().replace("\"HERE\"", &deep).into_bytes();
        }
    }
    body.to_string().into_bytes()
}

/// A success, or an error that has our shape and speaks of the request rather than of the program.
fn check(route: &str, reply: &Reply) {
    assert!(reply.status < 500, "{route}: {reply:?}");
    if reply.status != 200 {
        let body = reply.json();
        let error = &body["error"];
        let message = text(error, "message");
        let kind = text(error, "type");
        let known = kind.ends_with("Error") || kind == "InvalidUserInput";
        assert!(!message.is_empty() && known, "{body}");
        // Of modules there are names.
        let named = route.starts_with("/admin/modules") || route.contains("lora_adapter");
        let is_name = named && error["code"].is_string();
        assert!(is_name || error["code"] == reply.status, "{body}");
        assert!(error["param"].is_null() || error["param"].is_string(), "{body}");
        for internal in ["untagged", "variant", "f32", "usize", "u32", "i64"] {
            assert!(!message.contains(&format!("expected {internal}")), "{message}");
        }
    } else if reply.head.to_lowercase().contains("text/event-stream") {
        for event in reply.events() {
            assert!(event["choices"].is_array(), "{event}");
        }
    } else if route.ends_with("lora_adapter") {
        assert!(reply.body.starts_with("Success: "), "{reply:?}");
    } else {
        assert!(reply.json().is_object());
    }
}

#[test]
fn bodies_of_any_form_are_answered() {
    let server = Server::start(|_| {});
    let good = json!({"prompt": "hello", "max_tokens": 1, "temperature": 0});
    let answer = |server: &Server| {
        let reply = server.send("POST", "/v1/completions", None, good.to_string()).ok();
        text(&reply["choices"][0], "text").to_owned()
    };
    let expected = answer(&server);
    for (route, body) in templates() {
        let reply = server.send("POST", route, Some(ADMIN_KEY), body.to_string());
        let unknown = route == "/v1/unload_lora_adapter";
        assert_eq!(reply.status, if unknown { 404 } else { 200 }, "{route}: {reply:?}");
        check(route, &reply);
    }
    let case = (select(templates()), mutations());
    let config =
        ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
    let tested =
        proptest::test_runner::TestRunner::new(config).run(&case, |((route, body), mutation)| {
            let body = mutated(body, mutation);
            check(route, &server.send("POST", route, Some(ADMIN_KEY), body));
            assert_eq!(answer(&server), expected);
            Ok(())
        });
    tested.unwrap();
    assert_eq!(server.send("GET", "/admin/status", Some(ADMIN_KEY), "").ok()["running"], 0);
}
