//! Experiments over HTTP: the arm of a request, feedback, and the admin routes.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json as JsonReply;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use polyskill_engine::{ComposeError, Composition, Finished, Selection, Shadow};
use polyskill_experiment::Declaration;
use polyskill_experiment::declaration::Mode;
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::body::Body;
use super::error::ApiError;
use super::params::CommonParams;
use crate::experiments::{
    CONVERSATION_HEADER, Durable, Enrolment, ExperimentError, Measured, REFERENCE, TENANT_HEADER,
    UnitIds, beginning,
};
use crate::service::Service;
use crate::traces::{Trace, TracedToken};

/// Who asks, and under which id the reply will be known.
#[derive(Debug)]
pub(crate) struct Asking {
    pub(crate) id: String,
    names: UnitIds,
    /// Arrival, in microseconds since 1970.
    at_us: u64,
    traceparent: Option<String>,
}

/// What answers a request, and for which experiment.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    pub(crate) composition: Arc<Composition>,
    pub(crate) enrolled: Option<Arc<Enrolled>>,
    /// A challenger whose decisions are compared.
    pub(crate) shadow: Option<Arc<Shadow>>,
    /// What was asked for in the end.
    pub(crate) selection: Arc<Selection>,
}

/// A request in an experiment.
#[derive(Debug)]
pub(crate) struct Enrolled {
    enrolment: Enrolment,
    /// Why what the model name stands for answers in place of the arm.
    failure: Option<String>,
    /// In the shadow modes the arm that is looked at beside the control.
    challenger: Option<(String, Selection)>,
}

impl Asking {
    pub(crate) fn new(id: String, headers: &HeaderMap, common: &CommonParams) -> Self {
        let header = |name: &str| Some(headers.get(name)?.to_str().ok()?.to_owned());
        let names = UnitIds {
            unit: common.unit.clone(),
            user: common.user.clone(),
            conversation: header(CONVERSATION_HEADER),
            tenant: header(TENANT_HEADER),
            beginning: None,
        };
        let at_us = SystemTime::now().duration_since(UNIX_EPOCH);
        let at_us = at_us.map_or(0, |since| since.as_micros() as u64);
        Self { id, names, at_us, traceparent: header("traceparent") }
    }

    /// A trace of the request, before anything has come of it.
    pub(crate) fn trace(&self, model: &str) -> Trace {
        Trace {
            id: self.id.clone(),
            at_us: self.at_us,
            traceparent: self.traceparent.clone(),
            model: model.to_owned(),
            ..Trace::default()
        }
    }

    /// A chat's beginning stands for the conversation, where it has no name.
    pub(crate) fn begins(&mut self, messages: &[Json]) {
        self.names.beginning = beginning(messages);
    }

    /// Makes the composition: the arm's, if an experiment takes the request.
    pub(crate) async fn serve(
        &self,
        service: &Arc<Service>,
        common: &CommonParams,
        (prompt_tokens, text): (usize, Option<String>),
    ) -> Result<Served, ApiError> {
        let selection = common.selection(service, prompt_tokens, text.clone())?;
        let Some(enrolment) = self.enrol(service, common).await? else {
            let composition = compose(service, selection.clone()).await??;
            let selection = Arc::new(selection);
            return Ok(Served { composition, enrolled: None, shadow: None, selection });
        };
        let arm = enrolment.selection.clone();
        let arm = arm.map(|arm| common.arm(service, arm, prompt_tokens, text.clone()));
        let (composition, failure, selection) = match arm {
            None => (compose(service, selection.clone()).await??, None, selection),
            Some(arm) => match compose(service, arm.clone()).await? {
                Ok(composition) => (composition, None, arm),
                // The arm's fault is none of the client's.
                Err(error) => {
                    let reason = error.to_string();
                    service.experiments.failed(&enrolment, &enrolment.arm, &reason);
                    let composition = compose(service, selection.clone()).await??;
                    (composition, Some(reason), selection)
                }
            },
        };
        let mut challenger = None;
        if let Some((name, selection)) = enrolment.challenger(&self.id) {
            let selection = common.arm(service, selection.clone(), prompt_tokens, text);
            challenger = Some((name.to_owned(), selection));
        }
        let shadow = match (&challenger, enrolment.mode) {
            (Some((name, selection)), Mode::DecisionShadow) => {
                looked_at(service, &enrolment, (name, selection), &composition).await?
            }
            _ => None,
        };
        let enrolled = Some(Arc::new(Enrolled { enrolment, failure, challenger }));
        Ok(Served { composition, enrolled, shadow, selection: Arc::new(selection) })
    }

    async fn enrol(
        &self,
        service: &Service,
        common: &CommonParams,
    ) -> Result<Option<Enrolment>, ApiError> {
        if service.experiments.is_idle() {
            return Ok(None);
        }
        let model = common.model_name(service);
        match service.experiments.enrol(&common.experiment(), model, &self.names).await {
            Ok(enrolment) => Ok(enrolment),
            // A store that fails costs experiments, not answers.
            Err(error @ ExperimentError::Store(_)) => {
                tracing::error!(%error, "a request is served outside of experiments");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// A challenger beside what serves; where it fails, that is counted for it and nothing else happens.
async fn looked_at(
    service: &Arc<Service>,
    enrolment: &Enrolment,
    (name, selection): (&str, &Selection),
    serving: &Composition,
) -> Result<Option<Arc<Shadow>>, ApiError> {
    match compose(service, selection.clone()).await? {
        Ok(composition) => Ok(Some(Arc::new(Shadow::beside(serving, composition)))),
        Err(error) => {
            service.experiments.failed(enrolment, name, &error.to_string());
            Ok(None)
        }
    }
}

/// Routers plan here, which may take long.
pub(super) async fn compose(
    service: &Arc<Service>,
    selection: Selection,
) -> Result<Result<Arc<Composition>, ComposeError>, ApiError> {
    let composing = Arc::clone(service);
    tokio::task::spawn_blocking(move || composing.composer.compose(&selection))
        .await
        .map_err(|error| ApiError::internal(error.to_string()))
}

impl Served {
    /// A trace with what came of the request.
    pub(crate) fn traced(
        &self,
        record: Trace,
        (finished, reason, seconds): (&Finished, &str, f64),
        tokens: Vec<TracedToken>,
    ) -> Trace {
        let micros = |time: std::time::Duration| time.as_micros() as u64;
        let composition = &self.composition;
        let mut report = json!({});
        self.say(&mut report);
        let text = |key: &str| Some(report[key].as_str()?.to_owned());
        let modules = composition.modules();
        let name = |at: u32| Some(modules.get(at as usize)?.name.clone());
        let share = finished.module_share.iter();
        let fell_back = composition.fallback().map(str::to_owned).or(text("fallback_reason"));
        Trace {
            composition: composition.digest().to_string(),
            router: composition.router().map(|router| router.name.clone()),
            served: if fell_back.is_some() { "fallback" } else { "assigned" }.to_owned(),
            fallback_reason: fell_back,
            experiment: text("experiment"),
            arm: text("arm"),
            modules: modules.iter().map(|lease| lease.name.clone()).collect(),
            share: share.filter_map(|&(module, share)| Some((name(module)?, share))).collect(),
            reason: reason.to_owned(),
            prompt_tokens: finished.prompt_tokens,
            cached_tokens: finished.cached_tokens,
            completion_tokens: finished.completion_tokens,
            fallback_rows: finished.fallback_rows,
            queue_us: micros(finished.queue_time),
            first_token_us: finished.time_to_first_token.map(micros),
            total_us: (seconds * 1e6) as u64,
            tokens,
            ..record
        }
    }

    /// What a reply's report says of it.
    pub(crate) fn say(&self, report: &mut Json) {
        let Some(Enrolled { enrolment, failure, .. }) = self.enrolled.as_deref() else { return };
        report["experiment"] = json!(enrolment.experiment);
        report["arm"] = if enrolment.arm.is_empty() { Json::Null } else { json!(enrolment.arm) };
        if let Some(failure) = failure {
            report["served"] = json!("fallback");
            report["fallback_reason"] = json!(failure);
        }
    }
}

impl Enrolled {
    /// Makes the request's id known, for feedback.
    pub(crate) fn register(&self, service: &Service, id: &str) -> Durable<()> {
        service.experiments.served(id, &self.enrolment)
    }

    /// Counts what came of it; where the arm failed, that was counted already.
    pub(crate) fn ended(&self, service: &Arc<Service>, measured: &Measured) {
        if self.failure.is_some() {
            return;
        }
        let Some((name, _)) = self.challenger.as_ref().filter(|_| measured.is_compared()) else {
            return service.experiments.ended(&self.enrolment, measured);
        };
        // The control decides as itself, so that differences are those from full agreement.
        service.experiments.ended(&self.enrolment, &measured.of_control());
        service.experiments.ended_under(&self.enrolment, name, &measured.of_challenger());
    }

    /// Whether the experiment measures the log-probability of references.
    pub(crate) fn wants_reference(&self, service: &Service) -> bool {
        self.failure.is_none() && service.experiments.measures(&self.enrolment, REFERENCE)
    }

    /// Counts a reference's log-probability.
    pub(crate) fn reference_scored(&self, service: &Service, logprob: f64) {
        service.experiments.measured_later(&self.enrolment, REFERENCE, logprob);
    }

    /// What a full shadow is to run again, if it is this request's turn.
    pub(crate) fn shadow_run(&self, id: &str) -> Option<&(String, Selection)> {
        let enrolment = &self.enrolment;
        let is_due = enrolment.mode == Mode::FullShadow && enrolment.is_sampled(id);
        self.challenger.as_ref().filter(|_| is_due && self.failure.is_none())
    }

    /// Counts what came of the run under the challenger.
    pub(crate) fn shadow_ended(&self, service: &Service, name: &str, measured: &Measured) {
        service.experiments.ended_under(&self.enrolment, name, measured);
    }
}

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

/// Feedback on a reply.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Feedback {
    /// The reply's `id`.
    id: String,
    /// A metric that the experiment declares.
    name: String,
    value: f64,
}

/// Runs what waits for the disk on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ExperimentError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| ApiError::internal(error.to_string()))??)
}

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

pub(super) async fn list(State(service): State<Arc<Service>>) -> Result<JsonReply<Json>, ApiError> {
    let reports = blocking(move || Ok(service.experiments.reports())).await?;
    Ok(JsonReply(json!({"experiments": reports})))
}

pub(super) async fn one(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
) -> Result<JsonReply<Json>, ApiError> {
    blocking(move || service.experiments.report(&name)).await.map(JsonReply)
}

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

pub(super) async fn remove(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
) -> Result<JsonReply<Json>, ApiError> {
    let removed = name.clone();
    blocking(move || service.experiments.remove(&removed, "admin")).await?;
    Ok(JsonReply(json!({"name": name, "removed": true})))
}

/// What is to be stopped, and why.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Stop {
    /// One arm; without it the experiment.
    arm: Option<String>,
    reason: Option<String>,
}

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
