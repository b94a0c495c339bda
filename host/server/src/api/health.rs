//! `GET /health` and `GET /ready`: whether the process lives, and whether it can answer.

use std::sync::Arc;

use axum::Json as JsonReply;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value as Json, json};

use crate::service::Service;

/// The reason for which the engine gives no answers; `None` where it does.
pub(crate) fn engine_failure(service: &Service) -> Option<String> {
    let stats = service.engine.handle().stats();
    if stats.has_ended() {
        return Some("the engine has ended".to_owned());
    }
    let busy = stats.time_in_step()?;
    let is_stuck = service.front.stuck_after.is_some_and(|limit| busy > limit);
    is_stuck.then(|| format!("the engine has been in one step for {} s", busy.as_secs()))
}

/// `GET /health`: liveness. 503 where the engine has ended or is stuck in a step, so that whoever
/// watches restarts the process.
pub(super) async fn live(State(service): State<Arc<Service>>) -> (StatusCode, JsonReply<Json>) {
    match engine_failure(&service) {
        None => (StatusCode::OK, JsonReply(json!({"status": "ok"}))),
        Some(reason) => {
            let body = json!({"status": "failed", "reason": reason});
            (StatusCode::SERVICE_UNAVAILABLE, JsonReply(body))
        }
    }
}

/// `GET /ready`: readiness. 503 where the engine gives no answers, the server is about to stop, or
/// modules that the configuration declares are not served; the reasons are listed.
pub(super) async fn ready(State(service): State<Arc<Service>>) -> (StatusCode, JsonReply<Json>) {
    let mut reasons: Vec<String> = engine_failure(&service).into_iter().collect();
    if service.front.is_draining() {
        reasons.push("the server is stopping".to_owned());
    }
    reasons
        .extend(service.modules.missing().map(|name| format!("the module `{name}` is not served")));
    let serves = |set: &crate::config::SkillSet| service.composer.check_chain(set.router()).is_ok();
    let broken = service.skill_sets.iter().filter(|set| !serves(set));
    reasons.extend(broken.map(|set| format!("the router of skill set `{}` is not loaded", set.id)));
    match reasons.is_empty() {
        true => (StatusCode::OK, JsonReply(json!({"status": "ready"}))),
        false => {
            let body = json!({"status": "not ready", "reasons": reasons});
            (StatusCode::SERVICE_UNAVAILABLE, JsonReply(body))
        }
    }
}
