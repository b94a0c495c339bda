//! The HTTP surface: OpenAI's routes, vLLM's module routes, health and metrics.

mod admin;
mod body;
mod chat;
mod completions;
mod error;
mod experiments;
pub mod fields;
mod front;
mod health;
mod logprobs;
mod messages;
mod models;
mod modules;
mod params;
mod reply;
mod sampling;
mod text_work;
mod tokenize;
mod ui;
mod usage;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use futures::FutureExt as _;
use polyskill_front::tenants::bearer;
use subtle::ConstantTimeEq as _;

use crate::metrics::ModuleReport;
use crate::service::Service;
pub use error::ApiError;
pub(crate) use health::engine_failure;

/// Largest request body in bytes, unless configured: 4 MiB.
pub(crate) const MAX_BODY_BYTES: usize = 4 << 20;

/// All routes, over one server.
///
/// Four groups, by the key that they take: none for `/health`, `/version` and the page at `/ui`;
/// the API key for OpenAI's and vLLM's routes and `/metrics`; the admin key, or where that is
/// allowed the API key, for vLLM's two module routes; the admin key for `/admin`. A handler that
/// panics answers 500, and a path or method without a route has an error in the same shape as all
/// others.
///
/// `max_body_bytes` bounds every body; `None` stands for 4 MiB.
pub fn router(service: Arc<Service>, max_body_bytes: Option<usize>) -> Router {
    let open = Router::new()
        .merge(ui::routes())
        .route("/health", get(health::live))
        .route("/ready", get(health::ready))
        .route(
            "/version",
            get(|| async { axum::Json(serde_json::json!({"version": env!("CARGO_PKG_VERSION")})) }),
        );
    let keyed = Router::new()
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/feedback", post(experiments::feedback))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/metrics", get(metrics))
        .route_layer(from_fn_with_state(Arc::clone(&service), require_api_key));
    let runtime = Router::new()
        .route("/v1/load_lora_adapter", post(modules::load))
        .route("/v1/unload_lora_adapter", post(modules::unload))
        .route_layer(from_fn_with_state(Arc::clone(&service), require_runtime_key));
    let admin = Router::new()
        .route("/admin/modules", get(modules::list).post(modules::change))
        .route("/admin/modules/{*name}", delete(modules::remove))
        .route("/admin/routers", get(admin::routers).post(admin::change_router))
        .route("/admin/routers/{*name}", delete(admin::remove_router))
        .route("/admin/experiments", get(experiments::list).post(experiments::declare))
        .route("/admin/experiments/{name}", get(experiments::one).delete(experiments::remove))
        .route("/admin/experiments/{name}/stop", post(experiments::stop))
        .route("/admin/traces", get(admin::traces))
        .route("/admin/plans", get(admin::plans))
        .route("/admin/status", get(admin::status))
        .route("/admin/drain", post(admin::drain))
        .route_layer(from_fn_with_state(Arc::clone(&service), require_admin_key));
    open.merge(keyed)
        .merge(runtime)
        .merge(admin)
        .fallback(|| async { ApiError::not_found("this route does not exist", None) })
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .layer(from_fn(answer_panics))
        .layer(from_fn(echo_request_id))
        .layer(from_fn_with_state(Arc::clone(&service), front::guard))
        .layer(DefaultBodyLimit::max(max_body_bytes.unwrap_or(MAX_BODY_BYTES)))
        .with_state(service)
}

/// True where a request carries this key. The time that the comparison takes says nothing about the key
/// but its length.
fn carries(headers: &HeaderMap, key: &str) -> bool {
    bearer(headers).is_some_and(|found| found.as_bytes().ct_eq(key.as_bytes()).into())
}

/// Refuses a request without the API key or a tenant's with 401. Without any configured key everybody
/// passes.
async fn require_api_key(
    State(service): State<Arc<Service>>,
    request: Request,
    next: Next,
) -> Response {
    let is_allowed = {
        let tenants = &service.front.tenants;
        let key = service.api_key.as_deref();
        let is_open = key.is_none() && !tenants.have_keys();
        is_open
            || key.is_some_and(|key| carries(request.headers(), key))
            || tenants.by_key(request.headers()).is_some()
    };
    match is_allowed {
        true => next.run(request).await,
        false => ApiError::unauthorized().into_response(),
    }
}

/// Guards vLLM's module routes: for the admin key, and where the operator says so for the API key
/// too. Other requests get the answer of [`require_admin_key`].
async fn require_runtime_key(
    State(service): State<Arc<Service>>,
    request: Request,
    next: Next,
) -> Response {
    let is_allowed = {
        let headers = request.headers();
        let is = |key: &Option<String>| key.as_deref().is_some_and(|key| carries(headers, key));
        let open = service.allow_runtime_lora_updating;
        is(&service.admin_key) || open && (service.api_key.is_none() || is(&service.api_key))
    };
    if is_allowed {
        return next.run(request).await;
    }
    require_admin_key(State(service), request, next).await
}

/// Guards the admin routes. Without a configured key they do not exist and answer 404: they are
/// never open by default.
async fn require_admin_key(
    State(service): State<Arc<Service>>,
    request: Request,
    next: Next,
) -> Response {
    match &service.admin_key {
        None => {
            ApiError::not_found("the admin routes are off; set `admin_key` to turn them on", None)
                .into_response()
        }
        Some(key) if !carries(request.headers(), key) => ApiError::unauthorized().into_response(),
        Some(_) => next.run(request).await,
    }
}

/// Answers 500 for a handler that panics, without the message. The body of a stream is not covered:
/// it is made after the handler has returned.
async fn answer_panics(request: Request, next: Next) -> Response {
    let reply = std::panic::AssertUnwindSafe(next.run(request)).catch_unwind().await;
    reply
        .unwrap_or_else(|_| ApiError::internal("the server failed on this request").into_response())
}

/// Repeats a caller's `X-Request-Id` in the reply, whatever it is. The server itself does not read
/// it.
async fn echo_request_id(request: Request, next: Next) -> Response {
    let id = request.headers().get("x-request-id").cloned();
    let mut response = next.run(request).await;
    if let Some(id) = id {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

/// `GET /metrics`: the series of all parts in OpenMetrics' text.
async fn metrics(State(service): State<Arc<Service>>) -> Response {
    let load_time = |name: &str| service.modules.provenance(name).map(|provenance| provenance.took);
    let modules = ModuleReport::of(service.composer.library(), load_time);
    let routers = service.composer.routers();
    let stats = service.engine.handle().stats().snapshot();
    let text =
        service.metrics.render(stats, &modules, &routers, &service.experiments, &service.traces);
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
        .into_response()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn keys_are_compared_whole_and_the_scheme_in_any_case() {
        let carries_key = |value: &str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
            carries(&headers, "secret")
        };
        for value in ["Bearer secret", "bearer secret", "BEARER  secret"] {
            assert!(carries_key(value), "{value}");
        }
        for value in ["secret", "Bearer secre", "Bearer secrets", "Basic secret", "Bearer", ""] {
            assert!(!carries_key(value), "{value}");
        }
        assert!(!carries(&HeaderMap::new(), "secret"));
    }

    async fn broken() -> &'static str {
        panic!("a mistake of ours")
    }

    #[tokio::test]
    async fn a_handler_that_panics_is_answered() {
        let app = Router::new().route("/", get(broken)).layer(from_fn(answer_panics));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        assert!(reply.starts_with("HTTP/1.1 500"), "{reply}");
        assert!(reply.contains("InternalServerError") && !reply.contains("mistake"), "{reply}");
    }
}
