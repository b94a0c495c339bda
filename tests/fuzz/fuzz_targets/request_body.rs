//! Request bodies, through the routes of a server with a tiny model. The first byte chooses the route.
#![no_main]

use std::sync::{Arc, OnceLock};

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use libfuzzer_sys::fuzz_target;
use polyskill_server::config::Config;
use polyskill_server::service::Service;
use polyskill_fuzz::fixtures;
use serde_json::Value as Json;
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

const ROUTES: [&str; 6] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/tokenize",
    "/detokenize",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
];
const KEY: &str = "the admin key";

fn start() -> (Runtime, axum::Router) {
    let mut config = Config {
        model: Some(fixtures().join("models/llama-tied").display().to_string()),
        adapters: vec![fixtures().join("adapters")],
        admin_key: Some(KEY.to_owned()),
        ..Config::default()
    };
    config.engine.threads = 1;
    config.engine.max_cached_tokens = 1_024;
    let service = Service::start(&config, &mut |_| {}).expect("the fixture is served");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    (runtime, polyskill_server::api::router(Arc::new(service), None))
}

fuzz_target!(|bytes: &[u8]| {
    static SERVER: OnceLock<(Runtime, axum::Router)> = OnceLock::new();
    let Some((route, body)) = bytes.split_first() else { return };
    let (runtime, app) = SERVER.get_or_init(start);
    let request = Request::post(ROUTES[usize::from(*route) % ROUTES.len()])
        .header(header::AUTHORIZATION, format!("Bearer {KEY}"))
        .body(Body::from(body.to_vec()))
        .expect("a request");
    let (status, reply) = runtime.block_on(async {
        let reply = app.clone().oneshot(request).await.expect("routes answer");
        let (head, body) = reply.into_parts();
        (head.status, to_bytes(body, usize::MAX).await.expect("bodies end"))
    });
    assert!(!status.is_server_error(), "{status}: {}", String::from_utf8_lossy(&reply));
    if status != StatusCode::OK {
        let reply: Json = serde_json::from_slice(&reply).expect("errors are JSON");
        // Of modules there are names.
        let code = &reply["error"]["code"];
        assert!(code.is_string() || *code == status.as_u16());
    }
});
