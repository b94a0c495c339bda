//! From a validated request to its answer.
//!
//! [`request`] is a request as meant, parsed once before anything starts. [`route`] turns names
//! into the route that answers, and this file makes the composition of it: the arm's, if an
//! experiment takes the request. [`completion`] runs it, [`on_finish`] counts it, and [`report`]
//! says what answered.

pub(crate) mod background;
pub(crate) mod completion;
pub(crate) mod on_finish;
pub(crate) mod report;
pub(crate) mod request;
pub(crate) mod route;

use std::sync::Arc;

use polyskill_engine::{ComposeError, Composition, Selection, Shadow, SubmitError};
use polyskill_experiment::declaration::Mode;
use polyskill_route::RouteSpec;

use crate::experiments::{Assignment, Durable, ExperimentError, Measured, REFERENCE};
use crate::service::Service;
use request::{AnswerRequest, PromptInput};

/// A reason for which a request has no answer. Errors in the middle of a run are not among them:
/// they are in `finish_reason`, or in [`AnswerError::Internal`] of a whole reply.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnswerError {
    /// The request names what cannot be composed, or a router's policy fails the request.
    #[error(transparent)]
    Compose(#[from] ComposeError),
    /// The request asks for an experiment or an arm that does not exist.
    #[error(transparent)]
    Experiment(#[from] ExperimentError),
    /// The engine does not take it: the queue is full, or prompt and answer do not fit.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// As many requests wait for the router as may.
    #[error("the router `{0}` has as many requests waiting as it may")]
    RouterBusy(String),
    /// A failure of this server, which is none of the request's.
    #[error("{0}")]
    Internal(String),
}

/// The composition that answers a prompt, and the experiment that it counts for. It is made once
/// per prompt and shared by its choices.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The composition, which holds the weights of its modules in memory.
    pub(crate) composition: Arc<Composition>,
    /// The route that was composed in the end: the arm's, or the request's own.
    pub(crate) route: Arc<RouteSpec>,
    /// The experiment's side; `None` outside of experiments.
    pub(crate) enrolled: Option<Arc<Enrolled>>,
    /// A challenger whose decisions are compared as tokens are generated; only with
    /// [`Mode::DecisionShadow`].
    pub(crate) shadow: Option<Arc<Shadow>>,
}

/// A request in an experiment: its arm, and the arms that it is run or compared with.
#[derive(Debug)]
pub(crate) struct Enrolled {
    /// The experiment, the unit and the arm.
    assignment: Assignment,
    /// The reason for which the arm could not be composed. Then the model name's own selection
    /// answers, and nothing further is counted.
    failure: Option<String>,
    /// In the shadow modes the arm that is compared with the control; `None` in the others.
    challenger: Option<Challenger>,
}

/// An arm that is compared with the control, which serves.
#[derive(Clone, Debug)]
pub(crate) struct Challenger {
    /// The arm's name.
    pub(crate) arm: String,
    /// The arm's selection on top of the model name's, with the prompt that routers are told of.
    pub(crate) selection: Selection,
}

impl Answer {
    /// Makes the composition for a prompt: the arm's, if an experiment takes the request.
    ///
    /// A unit that is new has its arm on the disk when this returns. In a decision shadow the
    /// challenger is composed too, one after the other.
    ///
    /// # Errors
    /// If the request cannot be composed. An arm that cannot be is counted as its fault, and the
    /// model name's own selection answers.
    pub(crate) async fn compose(
        service: &Arc<Service>,
        request: &AnswerRequest,
        prompt: &PromptInput,
    ) -> Result<Self, AnswerError> {
        let own = request.route.own();
        let selected = |route: &RouteSpec| request.selection(route, prompt);
        let Some(assignment) = enrol(service, request).await? else {
            let composition = compose(service, selected(own)).await??;
            let route = Arc::new(own.clone());
            return Ok(Self { composition, route, enrolled: None, shadow: None });
        };
        let arm = assignment.route.as_ref().map(|arm| request.route.under(arm));
        let (composition, route, failure) = match arm {
            None => (compose(service, selected(own)).await??, own.clone(), None),
            Some(arm) => match compose(service, selected(&arm)).await? {
                Ok(composition) => (composition, arm, None),
                // The arm's fault is none of the client's.
                Err(error) => {
                    let reason = error.to_string();
                    service.experiments.failed(&assignment, &assignment.arm, &reason);
                    (compose(service, selected(own)).await??, own.clone(), Some(reason))
                }
            },
        };
        let challenger = assignment.challenger(&request.id).map(|(arm, route)| Challenger {
            arm: arm.to_owned(),
            selection: selected(&request.route.under(route)),
        });
        let shadow = match &challenger {
            Some(challenger) if assignment.mode == Mode::DecisionShadow => {
                shadow(service, &assignment, challenger, &composition).await?
            }
            _ => None,
        };
        let enrolled = Some(Arc::new(Enrolled { assignment, failure, challenger }));
        Ok(Self { composition, route: Arc::new(route), enrolled, shadow })
    }
}

/// The experiment that takes a request, if one does. A store that fails is logged, and the request
/// is served outside of experiments.
async fn enrol(
    service: &Service,
    request: &AnswerRequest,
) -> Result<Option<Assignment>, AnswerError> {
    let experiments = &service.experiments;
    if experiments.is_idle() {
        return Ok(None);
    }
    match experiments.enrol(&request.experiment, &request.model, &request.units).await {
        Ok(assignment) => Ok(assignment),
        // A store that fails costs experiments, not answers.
        Err(error @ ExperimentError::Store(_)) => {
            tracing::error!(%error, "a request is served outside of experiments");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// A challenger whose decisions are compared with those of `serving`. Where it cannot be composed,
/// that is counted as its fault and the request goes on without it.
async fn shadow(
    service: &Arc<Service>,
    assignment: &Assignment,
    challenger: &Challenger,
    serving: &Composition,
) -> Result<Option<Arc<Shadow>>, AnswerError> {
    match compose(service, challenger.selection.clone()).await? {
        Ok(composition) => Ok(Some(Arc::new(Shadow::beside(serving, composition)))),
        Err(error) => {
            service.experiments.failed(assignment, &challenger.arm, &error.to_string());
            Ok(None)
        }
    }
}

/// Composes on a thread that may block: routers plan here, each on a few requests at a time, and
/// weights are waited for, which may take long.
///
/// The outer error is a panic of that thread; the inner one is the selection's.
pub(crate) async fn compose(
    service: &Arc<Service>,
    selection: Selection,
) -> Result<Result<Arc<Composition>, ComposeError>, AnswerError> {
    let _turn = match &selection {
        Selection::Routed(request) => {
            let turn = service.front.planning.enter(&request.router).await;
            Some(turn.ok_or_else(|| AnswerError::RouterBusy(request.router.clone()))?)
        }
        Selection::Base | Selection::Weighted(_) => None,
    };
    let composing = Arc::clone(service);
    tokio::task::spawn_blocking(move || composing.composer.compose(&selection))
        .await
        .map_err(|error| AnswerError::Internal(error.to_string()))
}

impl Enrolled {
    /// Makes the request's id known, for feedback. The result comes once it is on the disk.
    pub(crate) fn register(&self, service: &Service, id: &str) -> Durable<()> {
        service.experiments.served(id, &self.assignment)
    }

    /// Counts the outcome of the served run; where the arm failed, that was counted already.
    ///
    /// A comparison of decisions gives both arms an observation: the control full agreement with
    /// itself, and the challenger the measured one.
    pub(crate) fn ended(&self, service: &Service, measured: &Measured) {
        let experiments = &service.experiments;
        if self.failure.is_some() {
            return;
        }
        let Some(challenger) = self.challenger.as_ref().filter(|_| measured.is_compared()) else {
            return experiments.ended(&self.assignment, measured);
        };
        // The control decides as itself, so that differences are those from full agreement.
        experiments.ended(&self.assignment, &measured.of_control());
        experiments.ended_under(&self.assignment, &challenger.arm, &measured.of_challenger());
    }

    /// True where the experiment measures the log-probability of references, and the arm did not
    /// fail.
    pub(crate) fn wants_reference(&self, service: &Service) -> bool {
        self.failure.is_none() && service.experiments.measures(&self.assignment, REFERENCE)
    }

    /// Counts a reference's mean log-probability per token, in nats.
    pub(crate) fn reference_scored(&self, service: &Service, logprob: f64) {
        service.experiments.measured_later(&self.assignment, REFERENCE, logprob);
    }

    /// The challenger that runs this request again, if the request is in the sampled share. The
    /// same id always gives the same result.
    pub(crate) fn full_shadow(&self, id: &str) -> Option<&Challenger> {
        let assignment = &self.assignment;
        let is_due = assignment.mode == Mode::FullShadow && assignment.is_sampled(id);
        self.challenger.as_ref().filter(|_| is_due && self.failure.is_none())
    }

    /// Counts the run under a challenger, which no client sees.
    pub(crate) fn shadow_ended(&self, service: &Service, arm: &str, measured: &Measured) {
        service.experiments.ended_under(&self.assignment, arm, measured);
    }
}
