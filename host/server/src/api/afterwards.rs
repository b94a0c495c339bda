//! What happens when a request has ended: experiments count it, shadows run it again, a trace is written.

use std::sync::Arc;

use polyskill_engine::{Finished, SamplingParams, Selection};

use super::experiment::{Asking, Served};
use super::params::CommonParams;
use super::shadow_run::{Again, run_again, score_reference};
use crate::experiments::{Durable, Measured, written};
use crate::service::Service;
use crate::traces::{Repeat, Trace, TracedToken};

/// Of the first choice of a request, which speaks for it.
#[derive(Default)]
pub(super) struct Afterwards {
    speaks: bool,
    /// Where the request's id is being made known to experiments.
    registered: Option<Durable<()>>,
    /// What a challenger runs again.
    again: Option<((String, Selection), Again)>,
    /// A prompt, and the text after it whose log-probability is measured.
    reference: Option<(Vec<u32>, String)>,
    /// The trace that this becomes.
    record: Option<Trace>,
}

impl Afterwards {
    pub(super) fn of(
        service: &Service,
        (common, asking): (&CommonParams, &Asking),
        served: &Served,
        (prompt, sampling, cache_salt): (&[u32], SamplingParams, &str),
    ) -> Self {
        let record = service.traces.takes(&asking.id).then(|| Trace {
            repeat: service.traces.keeps_prompts().then(|| Repeat {
                prompt: prompt.to_vec(),
                sampling: sampling.clone(),
                selection: (&*served.selection).into(),
            }),
            ..asking.trace(common.model_name(service))
        });
        let mut after = Self { speaks: true, record, ..Self::default() };
        let Some(enrolled) = &served.enrolled else { return after };
        after.registered = Some(enrolled.register(service, &asking.id));
        let reference = common.reference.as_ref().filter(|_| enrolled.wants_reference(service));
        after.reference = reference.map(|reference| (prompt.to_vec(), reference.clone()));
        after.again = enrolled.shadow_run(&asking.id).map(|challenger| {
            let (prompt, cache_salt) = (prompt.to_vec(), cache_salt.to_owned());
            (challenger.clone(), Again { prompt, sampling, cache_salt })
        });
        after
    }

    /// Before a reply ends, feedback on it can be joined.
    pub(super) async fn known(&mut self) {
        if let Some(registered) = self.registered.take()
            && let Err(error) = written(registered).await
        {
            tracing::error!(%error, "feedback on a request will not be joined");
        }
    }

    /// The engine has ended the request after `seconds`.
    pub(super) fn ended(
        &mut self,
        service: &Arc<Service>,
        served: &Served,
        (finished, reason, seconds): (&Finished, &str, f64),
        tokens: Vec<TracedToken>,
    ) {
        if let Some(record) = self.record.take() {
            service.traces.record(served.traced(record, (finished, reason, seconds), tokens));
        }
        let Some(enrolled) = served.enrolled.as_ref().filter(|_| self.speaks) else { return };
        let composition = &served.composition;
        enrolled.ended(service, &Measured::of(composition, finished, seconds));
        if let Some(reference) = self.reference.take() {
            score_reference(service, (enrolled, composition), reference);
        }
        if let Some((challenger, again)) = self.again.take() {
            run_again(service, enrolled, challenger, again);
        }
    }

    /// The client has gone after some of the answer: the arm acted, and nothing was measured.
    pub(super) fn cut(&self, service: &Arc<Service>, served: &Served) {
        if let Some(enrolled) = served.enrolled.as_ref().filter(|_| self.speaks) {
            enrolled.ended(service, &Measured::default());
        }
    }
}
