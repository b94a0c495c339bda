//! Experiments over HTTP: feedback, and the admin routes.

use std::sync::Arc;

use axum::Json as JsonReply;
use axum::body::Bytes;
use axum::extract::{Path, State};
use polyskill_experiment::Declaration;
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::body::Body;
use super::error::ApiError;
use crate::experiments::ExperimentError;
use crate::service::Service;

/// The status by the error. A failure of the store is 500 without its text, which names files.
impl From<ExperimentError> for ApiError {
    fn from(error: ExperimentError) -> Self {
        let message = error.to_string();
        match error {
            ExperimentError::Unknown(_) | ExperimentError::UnknownRequest(_) => {
                Self::not_found(message, None)
            }
            ExperimentError::NoArm { .. } => Self::bad_request(message, Some("experiment")),
            ExperimentError::NoMetric { .. } => Self::bad_request(message, Some("name")),
            ExperimentError::Value { .. } => Self::bad_request(message, Some("value")),
            ExperimentError::Invalid { .. } => Self::bad_request(message, None),
            ExperimentError::Contradiction { .. } => Self::conflict(message),
            ExperimentError::Store(_) => {
                tracing::error!(message, "experiments cannot be written");
                Self::internal("experiments cannot be written; the log says why")
            }
        }
    }
}

/// Feedback on a reply, from the client or its user.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Feedback {
    /// The reply's `id`.
    id: String,
    /// A metric that the experiment declares.
    name: String,
    /// The metric's value, within its bounds.
    value: f64,
}

/// Runs work that waits for the disk on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ExperimentError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| ApiError::internal(error.to_string()))??)
}

/// `POST /v1/feedback`: takes a value of a metric for a reply, once. The same value again is
/// `known`; another one is 409. It is on the disk when the reply comes.
pub(super) async fn feedback(
    State(service): State<Arc<Service>>,
    body: Body,
) -> Result<JsonReply<Json>, ApiError> {
    let Feedback { id, name, value } = body.fields()?;
    let asked = (id.clone(), name.clone());
    let is_new = blocking(move || service.experiments.feedback(&asked.0, &asked.1, value)).await?;
    let status = if is_new { "recorded" } else { "known" };
    Ok(JsonReply(json!({"id": id, "name": name, "value": value, "status": status})))
}

/// `GET /admin/experiments`: reports of all experiments, those that have stopped too. The cost
/// grows with the number of their units. `unreadable` has those whose records cannot be read, and
/// `set_aside` the name of a damaged store that was moved at the start.
pub(super) async fn list(State(service): State<Arc<Service>>) -> Result<JsonReply<Json>, ApiError> {
    let reader = Arc::clone(&service);
    let reports = blocking(move || Ok(reader.experiments.reports())).await?;
    let moved = service.experiments.set_aside().and_then(std::path::Path::file_name);
    Ok(JsonReply(json!({
        "experiments": reports,
        "unreadable": service.experiments.unreadable(),
        "set_aside": moved.map(|name| name.to_string_lossy()),
    })))
}

/// `GET /admin/experiments/{name}`: the report of one experiment.
pub(super) async fn one(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
) -> Result<JsonReply<Json>, ApiError> {
    blocking(move || service.experiments.report(&name)).await.map(JsonReply)
}

/// `POST /admin/experiments`: declares an experiment or changes its weights, and answers with its
/// report.
pub(super) async fn declare(
    State(service): State<Arc<Service>>,
    body: Body,
) -> Result<JsonReply<Json>, ApiError> {
    let declaration: Declaration = body.fields()?;
    let report = blocking(move || {
        let name = declaration.name.clone();
        service.experiments.declare(declaration, &service.composer, "admin")?;
        service.experiments.report(&name)
    });
    report.await.map(JsonReply)
}

/// `DELETE /admin/experiments/{name}`: removes an experiment with all of its results.
pub(super) async fn remove(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
) -> Result<JsonReply<Json>, ApiError> {
    let removed = name.clone();
    blocking(move || service.experiments.remove(&removed, "admin")).await?;
    Ok(JsonReply(json!({"name": name, "removed": true})))
}

/// The body of a stop, which may be empty.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Stop {
    /// One arm; without it the experiment. The control cannot be stopped by itself.
    arm: Option<String>,
    /// The reason that reports and the audit log have.
    reason: Option<String>,
}

/// `POST /admin/experiments/{name}/stop`: stops an experiment or an arm; results stay and are
/// answered.
pub(super) async fn stop(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<JsonReply<Json>, ApiError> {
    let Stop { arm, reason } = match body.is_empty() {
        true => Stop::default(),
        false => Body::parse(&body)?.fields()?,
    };
    let reason = reason.unwrap_or_else(|| "stopped by an operator".to_owned());
    let report = blocking(move || {
        service.experiments.stop(&name, arm.as_deref(), &reason, "admin")?;
        service.experiments.report(&name)
    });
    report.await.map(JsonReply)
}
