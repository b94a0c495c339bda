//! Runs that experiments add to requests: the same prompt under a challenger, and the
//! log-probability of a reference. They begin after the reply has ended and are the first to be
//! dropped under load.

use std::sync::Arc;
use std::time::Instant;

use polyskill_engine::{Composition, Event, Request, SamplingParams, TraceLevel};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::{Challenger, Enrolled, compose};
use crate::experiments::Measured;
use crate::service::Service;

/// A request that is run again, as its first choice was submitted.
pub(super) struct Repetition {
    /// The prompt's tokens.
    pub(super) prompt: Vec<u32>,
    /// The sampling parameters, seed included, so that differences come from the arm.
    pub(super) sampling: SamplingParams,
    /// The caller's salt: a repetition shares cached beginnings with that caller alone.
    pub(super) cache_salt: String,
}

/// Runs a request again under a challenger, in a task of its own.
///
/// It is dropped, and counted as dropped, where requests wait in the engine's queue or as many
/// shadows run as may. It never waits for room.
pub(super) fn run_again(
    service: &Arc<Service>,
    enrolled: &Arc<Enrolled>,
    challenger: Challenger,
    repetition: Repetition,
) {
    let is_busy = service.engine.handle().stats().snapshot().waiting > 0;
    let permit = Arc::clone(service.experiments.shadows()).try_acquire_owned();
    let Ok(permit) = permit else { return service.experiments.shadow_dropped() };
    if is_busy {
        return service.experiments.shadow_dropped();
    }
    let (service, enrolled) = (Arc::clone(service), Arc::clone(enrolled));
    tokio::spawn(async move {
        let _permit = permit;
        let arm = challenger.arm.clone();
        if let Some(measured) = repeat(&service, challenger, repetition).await {
            enrolled.shadow_ended(&service, &arm, &measured);
        }
    });
}

/// The measurements of a request under a challenger. A challenger that cannot be composed is
/// measured as a fault; nothing comes where the engine has no room for the request.
async fn repeat(
    service: &Arc<Service>,
    challenger: Challenger,
    repetition: Repetition,
) -> Option<Measured> {
    let Ok(composed) = compose(service, challenger.selection).await else { return None };
    let Ok(composition) = composed else { return Some(Measured::fault()) };
    let Repetition { prompt, sampling, cache_salt } = repetition;
    let started = Instant::now();
    let request = Request {
        trace: TraceLevel::Summary,
        cache_salt,
        ..Request::new(prompt, sampling, Arc::clone(&composition))
    };
    // A queue that is full has no room for shadows.
    let Some(mut events) = submit(service, request) else {
        service.experiments.shadow_dropped();
        return None;
    };
    while let Some(event) = events.recv().await {
        if let Event::Finished(finished) = event {
            let seconds = started.elapsed().as_secs_f64();
            return Some(Measured::of(&composition, &finished, seconds));
        }
    }
    None
}

/// Submits a request and gives its events; nothing where the engine does not take it. Dropping the
/// receiver cancels the request at its next event.
fn submit(service: &Service, request: Request) -> Option<UnboundedReceiver<Event>> {
    let (sender, events) = unbounded_channel();
    let tell = move |event| sender.send(event).is_ok().into();
    service.engine.handle().listen(request, tell).ok()?;
    Some(events)
}

/// Measures a reference's mean log-probability per token under the composition that has answered,
/// in a task of its own. The reference is scored as an answer to the prompt, without generating a
/// token.
///
/// A reference that cannot be encoded, is empty, or does not fit the context is passed over in
/// silence.
pub(super) fn score_reference(
    service: &Arc<Service>,
    enrolled: &Arc<Enrolled>,
    composition: &Arc<Composition>,
    mut prompt: Vec<u32>,
    reference: &str,
) {
    let Ok(tokens) = service.tokenizer.encode_more(reference) else { return };
    let answer_from = prompt.len();
    prompt.extend(tokens);
    let sampling = SamplingParams {
        max_tokens: 0,
        prompt_logprobs: Some(0),
        answer_from: Some(answer_from),
        ..SamplingParams::default()
    };
    let request = Request::new(prompt, sampling, Arc::clone(composition));
    let Some(mut events) = submit(service, request) else { return };
    let (service, enrolled) = (Arc::clone(service), Arc::clone(enrolled));
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            if let Event::Prompt(tokens) = event {
                let values: Vec<f64> = tokens
                    .iter()
                    .skip(answer_from)
                    .filter_map(|token| Some(f64::from(token.logprob.as_ref()?.value)))
                    .collect();
                if !values.is_empty() {
                    let mean = values.iter().sum::<f64>() / values.len() as f64;
                    enrolled.reference_scored(&service, mean);
                }
            }
        }
    });
}
