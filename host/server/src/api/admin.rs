//! Admin routes of routers, traces, plans, and the engine's state.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json as JsonReply;
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use polyskill_engine::{PlannedRequest, RoutedRows, RouterError, RouterInfo, Standing};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::body::Body;
use super::error::ApiError;
use crate::fixtures::{fixture, rows_fixture};
use crate::service::Service;

/// The value of a field, or 400 with the field's name.
fn required<T>(value: Option<T>, name: &str) -> Result<T, ApiError> {
    value.ok_or_else(|| ApiError::bad_request(format!("`{name}` is required"), Some(name)))
}

/// `GET /admin/routers`: the serving routers, and the bundles whose last load failed, with the
/// reasons.
pub(super) async fn routers(State(service): State<Arc<Service>>) -> JsonReply<Json> {
    let routers: Vec<Json> = service.composer.routers().iter().map(router_json).collect();
    let failed: Vec<Json> = service
        .routers
        .attempts()
        .into_iter()
        .filter_map(|attempt| {
            let error = attempt.outcome.err()?;
            Some(json!({"path": attempt.path.display().to_string(), "error": error}))
        })
        .collect();
    JsonReply(json!({"routers": routers, "not_loaded": failed}))
}

/// A router with its standing and counters, as the routes list it. `quarantine_seconds_left` is
/// null unless it is in quarantine.
fn router_json(router: &RouterInfo) -> Json {
    let (standing, seconds) = match router.standing {
        Standing::Serving => ("serving", None),
        Standing::Quarantined(left) => ("quarantined", Some(left.as_secs_f64())),
        Standing::Out => ("out", None),
    };
    json!({
        "name": router.name, "digest": router.digest, "version": router.descriptor,
        "standing": standing, "quarantine_seconds_left": seconds, "quarantines": router.quarantines,
        "plans": router.plans, "faults": router.faults, "last_fault": router.last_fault,
        "invalid_rows": router.invalid_rows, "last_invalid_row": router.last_invalid,
        "abstentions": router.abstentions,
        "route": {"calls": router.route_calls, "rows": router.route_rows,
                  "seconds": router.route_nanoseconds as f64 / 1e9},
        "previous": router.previous,
    })
}

/// A change of a router: a load, a roll-back or a release. `path` goes first, and the other two
/// exclude each other.
#[derive(Debug, Deserialize)]
struct RouterChange {
    /// Loads the bundle at this path.
    path: Option<PathBuf>,
    /// The router to roll back or release.
    name: Option<String>,
    /// Lets the earlier version whose digest begins so serve again.
    roll_back: Option<String>,
    /// Ends the quarantine, or the standing of a router that stays out.
    #[serde(default)]
    release: bool,
}

/// `POST /admin/routers`: loads, rolls back or releases a router, and answers with its new state.
/// Running requests finish with the version that planned them.
pub(super) async fn change_router(
    State(service): State<Arc<Service>>,
    body: Body,
) -> Result<JsonReply<Json>, ApiError> {
    let change: RouterChange = body.fields()?;
    if let Some(path) = change.path {
        return load_router(service, path).await;
    }
    let name = required(change.name, "name")?;
    let (action, changed) = match (change.roll_back, change.release) {
        (Some(digest), false) => ("roll_back", service.composer.roll_back(&name, &digest)),
        (None, true) => ("release", service.composer.release_router(&name)),
        _ => {
            let message = "expected `path`, or `name` with `roll_back` or `release`";
            return Err(ApiError::bad_request(message, Some("roll_back")));
        }
    };
    changed.map_err(|error| router_error(&error))?;
    let router = service.composer.routers().into_iter().find(|router| router.name == name);
    let router = router.as_ref().map(router_json).unwrap_or_default();
    service.routers.record(json!({"action": action, "by": "admin", "router": router}));
    Ok(JsonReply(router))
}

/// Loads a bundle on a thread that may block. A path outside of the configured directories is
/// refused, as code would be run from it.
async fn load_router(service: Arc<Service>, path: PathBuf) -> Result<JsonReply<Json>, ApiError> {
    let load = move || {
        if !service.routers.allows(&path) {
            let message = "`path` is not inside a configured `plugins` directory";
            return Err(ApiError::bad_request(message, Some("path")));
        }
        let published = service.routers.load(&service.composer, &path, "admin");
        published.map_err(|error| ApiError::bad_request(error.to_string(), Some("path")))
    };
    let loaded = tokio::task::spawn_blocking(load).await;
    let loaded = loaded.map_err(|error| ApiError::internal(error.to_string()))??;
    Ok(JsonReply(
        json!({"name": loaded.name, "digest": loaded.digest, "unchanged": loaded.unchanged}),
    ))
}

/// The query of `/admin/traces`.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Wanted {
    /// The number of traces, the latest ones; all that are kept by default.
    limit: usize,
    /// `lines`, JSON lines, or `otlp`.
    format: Format,
}

/// The form of traces.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    /// One JSON object per line, as in the file of traces.
    #[default]
    Lines,
    /// One OTLP message in its JSON encoding.
    Otlp,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { limit: usize::MAX, format: Format::Lines }
    }
}

/// `GET /admin/traces`: the traces that are kept in memory, oldest first.
pub(super) async fn traces(
    State(service): State<Arc<Service>>,
    Query(wanted): Query<Wanted>,
) -> Response {
    match wanted.format {
        Format::Otlp => JsonReply(service.traces.spans(wanted.limit)).into_response(),
        Format::Lines => {
            let kind = [(CONTENT_TYPE, "application/jsonl; charset=utf-8")];
            (kind, service.traces.lines(wanted.limit)).into_response()
        }
    }
}

/// `GET /admin/plans`: the plans and rows that are kept, as fixtures of the versions that serve
/// now.
pub(super) async fn plans(State(service): State<Arc<Service>>) -> JsonReply<Json> {
    let plan = |planned: &PlannedRequest| json!({"router": planned.router, "digest": planned.digest, "fixture": fixture(planned)});
    // An earlier version's plans are no fixtures of the one that serves.
    let serving = service.composer.routers();
    let serves = |name: &str, digest: &str| {
        serving.iter().any(|router| router.name == name && router.digest == digest)
    };
    let kept = service.composer.recorded_plans();
    let plans = kept.iter().filter(|kept| serves(&kept.router, &kept.digest)).map(plan);
    let plans: Vec<Json> = plans.collect();
    let rows = |kept: &RoutedRows| json!({"router": kept.router, "digest": kept.digest, "fixture": rows_fixture(kept)});
    let kept = service.composer.recorded_rows();
    let rows: Vec<Json> = kept
        .iter()
        .filter(|kept| !kept.rows.is_empty() && serves(&kept.router, &kept.digest))
        .map(rows)
        .collect();
    JsonReply(json!({"keep_plans": service.keep_plans, "plans": plans,
                     "keep_rows": service.keep_rows, "rows": rows}))
}

/// `DELETE /admin/routers/{name}`: takes a router out. Its bundle stays on the disk, and a restart
/// loads it again.
pub(super) async fn remove_router(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
) -> Result<JsonReply<Json>, ApiError> {
    service.composer.remove_router(&name).map_err(|error| router_error(&error))?;
    service.routers.record(json!({"action": "remove", "by": "admin", "name": name}));
    Ok(JsonReply(json!({"name": name, "removed": true})))
}

/// 404 with the field that names what is not there.
fn router_error(error: &RouterError) -> ApiError {
    let param = match error {
        RouterError::UnknownVersion { .. } => "roll_back",
        _ => "name",
    };
    ApiError::not_found(error.to_string(), Some(param))
}

/// `GET /admin/status`: the base, and the engine's queue, cache and counters. `lacks_experts` is
/// true where an expert policy left some of the base's experts out.
pub(super) async fn status(State(service): State<Arc<Service>>) -> JsonReply<Json> {
    let stats = service.engine.handle().stats().snapshot();
    let model = &service.model;
    let lacks_experts = model.digest() != model.weights_digest();
    JsonReply(
        json!({"base": service.base_name, "lacks_experts": lacks_experts, "running": stats.running, "waiting": stats.waiting,
                     "kv_blocks_used": stats.kv_blocks_used, "kv_blocks": stats.kv_blocks,
                     "steps": stats.steps, "rows": stats.rows}),
    )
}

/// `POST /admin/drain`: the server takes no new connections, `/ready` answers 503, and the process
/// ends when the requests in execution have, as after SIGTERM.
pub(super) async fn drain(State(service): State<Arc<Service>>) -> JsonReply<Json> {
    service.front.drain();
    let stats = service.engine.handle().stats().snapshot();
    JsonReply(json!({"status": "draining", "running": stats.running, "waiting": stats.waiting}))
}
