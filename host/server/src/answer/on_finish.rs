//! The end of a request: experiments count it, shadows run it again, a trace is written.

use std::sync::Arc;

use polyskill_engine::SamplingParams;

use super::background::{Repetition, run_again, score_reference};
use super::report::{Outcome, traced};
use super::request::{AnswerRequest, PromptInput};
use super::{Answer, Challenger};
use crate::experiments::{Durable, Measured, written};
use crate::service::Service;
use crate::traces::{Repeat, Trace, TracedToken};

/// Work at the end of a request's first choice, which counts for the request. The default does
/// nothing, as for the other choices.
#[derive(Default)]
pub(super) struct OnFinish {
    /// True in the first choice.
    counts: bool,
    /// The request's id on its way to the disk, for feedback.
    registered: Option<Durable<()>>,
    /// A challenger, and the request that it runs again, in a full shadow.
    again: Option<(Challenger, Repetition)>,
    /// The prompt's tokens, and the text after them whose log-probability is measured.
    reference: Option<(Vec<u32>, String)>,
    /// The trace that this becomes; `None` where the request is not in the sample.
    record: Option<Trace>,
}

impl OnFinish {
    /// The work at the end of a request that was submitted. It queues the request's id to be
    /// written, and copies the prompt for each of trace, reference and shadow that is due.
    pub(super) fn of(
        service: &Service,
        request: &AnswerRequest,
        answer: &Answer,
        prompt: &PromptInput,
        sampling: &SamplingParams,
    ) -> Self {
        let record = service.traces.takes(&request.id).then(|| Trace {
            repeat: service.traces.keeps_prompts().then(|| Repeat {
                prompt: prompt.tokens.clone(),
                sampling: sampling.clone(),
                route: (*answer.route).clone(),
                text: prompt.text.clone(),
                bucket: request.bucket,
            }),
            ..request.trace()
        });
        let mut work = Self { counts: true, record, ..Self::default() };
        let Some(enrolled) = &answer.enrolled else { return work };
        work.registered = Some(enrolled.register(service, &request.id));
        let reference = request.reference.as_ref().filter(|_| enrolled.wants_reference(service));
        work.reference = reference.map(|reference| (prompt.tokens.clone(), reference.clone()));
        work.again = enrolled.full_shadow(&request.id).map(|challenger| {
            let repetition = Repetition {
                prompt: prompt.tokens.clone(),
                sampling: sampling.clone(),
                cache_salt: request.output.cache_salt.clone(),
            };
            (challenger.clone(), repetition)
        });
        work
    }

    /// Waits until feedback on the reply can be joined; before the reply ends. A failure is logged,
    /// and the reply ends all the same.
    pub(super) async fn known(&mut self) {
        if let Some(registered) = self.registered.take()
            && let Err(error) = written(registered).await
        {
            tracing::error!(%error, "feedback on a request will not be joined");
        }
    }

    /// Writes the trace, counts the outcome, and starts the runs in the background. `tokens` is the
    /// routing of each token, for the trace.
    pub(super) fn ended(
        &mut self,
        service: &Arc<Service>,
        answer: &Answer,
        outcome: &Outcome<'_>,
        tokens: Vec<TracedToken>,
    ) {
        if let Some(record) = self.record.take() {
            service.traces.record(traced(answer, record, outcome, tokens));
        }
        let Some(enrolled) = answer.enrolled.as_ref().filter(|_| self.counts) else { return };
        let composition = &answer.composition;
        let measured = Measured::of(composition, outcome.finished, outcome.seconds);
        enrolled.ended(service, &measured);
        if let Some((prompt, reference)) = self.reference.take() {
            score_reference(service, enrolled, composition, prompt, &reference);
        }
        if let Some((challenger, repetition)) = self.again.take() {
            run_again(service, enrolled, challenger, repetition);
        }
    }

    /// Counts a client that has gone after some of the answer: the arm acted, and nothing was
    /// measured.
    pub(super) fn cut(&self, service: &Service, answer: &Answer) {
        if let Some(enrolled) = answer.enrolled.as_ref().filter(|_| self.counts) {
            enrolled.ended(service, &Measured::default());
        }
    }
}
