//! Clients that send too much, too slowly, or from where they may not: the others go on, and they
//! hear why.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};

use crate::common::list;
use crate::openai_api::{ADMIN_KEY, Reply, Server, exchange};

/// The reply to a request with these headers; an empty text where the connection ends without one.
fn raw(address: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).unwrap();
    let mut reply = String::new();
    let _ = stream.read_to_string(&mut reply);
    reply
}

fn status(reply: &str) -> u16 {
    reply.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

fn health(server: &Server) -> Reply {
    server.send("GET", "/health", None, "")
}

#[test]
fn idle_connections_make_room() {
    let server = Server::start(|config| config.connections.max = 4);
    let idle: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    for _ in 0..4 {
        health(&server).ok();
    }
    // Headers that never end are idle too.
    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream
            .write_all(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-A: 1\r\n")
            .unwrap();
        slow.push(stream);
    }
    health(&server).ok();
    let mut closed = 0;
    for mut stream in idle {
        stream.set_nonblocking(true).unwrap();
        closed += usize::from(matches!(stream.read(&mut [0]), Ok(0)));
    }
    assert!(closed >= 30, "{closed} were closed");
}

/// The beginning of a request with a large body.
const LARGE: &[u8] =
    b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n{\"prompt\": \"";

#[test]
fn bodies_have_room() {
    let server = Server::start(|config| {
        config.connections.body_mib = 1;
        config.max_body_bytes = Some(1 << 20);
    });
    let mut first = TcpStream::connect(server.address).unwrap();
    first.write_all(LARGE).unwrap();
    // Until the first is in, there is room.
    let full = loop {
        let reply =
            raw(server.address, "POST", "/tokenize", "Host: localhost\r\n", &" ".repeat(500_000));
        if status(&reply) != 400 {
            break reply;
        }
    };
    assert_eq!(status(&full), 503, "{full}");
    assert!(full.to_lowercase().contains("retry-after: 1"), "{full}");
    server.send("POST", "/tokenize", None, json!({"prompt": "hello"}).to_string()).ok();
    drop(first);
    let whole = json!({"prompt": "a".repeat(200_000)}).to_string();
    while server.send("POST", "/tokenize", None, &whole).status != 400 {
        std::thread::yield_now();
    }
}

#[test]
fn bodies_have_a_time() {
    let server = Server::start(|config| config.connections.body_seconds = 1);
    let mut slow = TcpStream::connect(server.address).unwrap();
    slow.write_all(LARGE).unwrap();
    let mut reply = String::new();
    let _ = slow.read_to_string(&mut reply);
    assert!(status(&reply) == 408 && reply.contains("longer than 1 seconds"), "{reply}");
}

#[test]
fn texts_that_no_context_holds_are_not_tokenized() {
    let server = Server::shared();
    let digits = "0123456789".repeat(300_000);
    for (path, body) in [
        ("/tokenize", json!({"prompt": digits})),
        ("/tokenize", json!({"messages": [{"role": "user", "content": digits}]})),
        ("/v1/completions", json!({"prompt": digits, "max_tokens": 1})),
        ("/v1/completions", json!({"prompt": ["a", digits], "max_tokens": 1})),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": digits}], "max_tokens": 1}),
        ),
    ] {
        let refused = server.send("POST", path, None, body.to_string()).refused();
        assert!(refused.contains("256 tokens of the context"), "{path}: {refused}");
    }
    // What is to be cut may be of any length.
    let cut = json!({"prompt": digits, "max_tokens": 1, "truncate_prompt_tokens": 8});
    let reply = server.send("POST", "/v1/completions", None, cut.to_string()).ok();
    assert_eq!(reply["usage"]["prompt_tokens"], 8);
}

#[test]
fn pages_of_others_send_nothing() {
    let server = Server::start(|config| {
        config.connections.origins = vec!["https://app.test".to_owned()];
        config.connections.hosts = vec!["lm.test".to_owned()];
    });
    let unload = |headers: &str| {
        let headers = format!("{headers}Authorization: Bearer {ADMIN_KEY}\r\n");
        let body = json!({"lora_name": "task-a"}).to_string();
        raw(server.address, "POST", "/v1/unload_lora_adapter", &headers, &body)
    };
    let own = format!("Host: {0}\r\nOrigin: http://{0}\r\n", server.address);
    for headers in [
        "Host: evil.test\r\n",
        "Host: localhost\r\nOrigin: http://evil.test\r\n",
        "Host: localhost\r\nOrigin: null\r\n",
        "Host: evil.test\r\nOrigin: http://evil.test\r\n",
    ] {
        let reply = unload(headers);
        assert_eq!(status(&reply), 403, "{headers}: {reply}");
    }
    assert!(server.service.composer.library().snapshot().get("task-a").is_some());
    let reply = raw(
        server.address,
        "GET",
        "/v1/models",
        "Host: lm.test:80\r\nOrigin: https://app.test\r\n",
        "",
    );
    assert_eq!(status(&reply), 200, "{reply}");
    assert!(
        reply.to_lowercase().contains("access-control-allow-origin: https://app.test"),
        "{reply}"
    );
    let asks =
        "Host: localhost\r\nOrigin: https://app.test\r\nAccess-Control-Request-Method: POST\r\n";
    let reply = raw(server.address, "OPTIONS", "/v1/chat/completions", asks, "");
    assert!(status(&reply) == 204 && reply.contains("POST"), "{reply}");
    let foreign = asks.replace("app.test", "evil.test");
    assert_eq!(status(&raw(server.address, "OPTIONS", "/v1/chat/completions", &foreign, "")), 403);
    assert_eq!(status(&unload(&own)), 200);
}

#[test]
fn tenants_have_keys_and_caches_of_their_own() {
    let hash = |key: &str| -> String {
        Sha256::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let server = Server::start(|config| {
        config.tenant = [("acme", vec!["old", "new"]), ("other", vec!["third"])]
            .map(|(name, keys)| polyskill_front::TenantConfig {
                name: name.to_owned(),
                weight: 1.0,
                keys_sha256: keys.into_iter().map(hash).collect(),
            })
            .to_vec();
    });
    let ask = |key: Option<&str>| {
        let prompt: Vec<u32> = (3..83).collect();
        let body = json!({"prompt": prompt, "max_tokens": 1, "temperature": 0}).to_string();
        exchange(server.address, "POST", "/v1/completions", key, body)
    };
    assert_eq!((ask(None).status, ask(Some("wrong")).status), (401, 401));
    let cached =
        |key: &str| ask(Some(key)).ok()["usage"]["prompt_tokens_details"]["cached_tokens"].clone();
    assert_eq!(cached("old"), 0);
    assert!(cached("new").as_u64() > Some(0), "both keys are of one tenant");
    assert_eq!(cached("third"), 0);
    assert!(cached("third").as_u64() > Some(0));
}

#[test]
fn full_traces_have_a_bound() {
    let server = Server::start(|config| config.traces.full_tokens = 6);
    let body = json!({"model": "skills", "prompt": "hello", "max_tokens": 20, "ignore_eos": true,
                      "temperature": 0, "trace": "full"});
    let reply = server.send("POST", "/v1/completions", None, body.to_string()).ok();
    assert_eq!(reply["usage"]["completion_tokens"], 20);
    assert_eq!(list(&reply["polyskill"]["routing"]["tokens"]).len(), 6);
}

#[test]
fn readiness_says_what_is_missing() {
    let server = Server::start(|config| {
        config.module =
            vec![toml::from_str("name = \"declared\"\nsource = \"/nowhere/at/all\"").unwrap()];
    });
    let ready = || server.send("GET", "/ready", None, "");
    let reply = ready();
    assert_eq!(reply.status, 503);
    let reasons = reply.json()["reasons"].clone();
    assert_eq!(reasons, json!(["the module `declared` is not served"]));
    health(&server).ok();
    let shared = Server::start(|_| {});
    assert_eq!(shared.send("GET", "/ready", None, "").ok()["status"], "ready");
    let drained: Json = shared.send("POST", "/admin/drain", Some(ADMIN_KEY), "").ok();
    assert_eq!(drained["status"], "draining");
    let reply = shared.send("GET", "/ready", None, "");
    assert!(reply.status == 503 && reply.body.contains("stopping"), "{reply:?}");
}
