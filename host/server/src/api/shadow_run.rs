//! What experiments run beside requests: the same under a challenger, and a reference's log-probability. Off the request's way: never before its reply has ended, and dropped first under load.

use std::sync::Arc;
use std::time::Instant;

use polyskill_engine::{Composition, Event, Request, SamplingParams, Selection, TraceLevel};
use tokio::sync::mpsc::unbounded_channel;

use super::experiment::{Enrolled, compose};
use crate::experiments::Measured;
use crate::service::Service;

/// What is needed to run a request again.
pub(super) struct Again {
    pub(super) prompt: Vec<u32>,
    pub(super) sampling: SamplingParams,
    pub(super) cache_salt: String,
}

/// Runs it in the background, if there is room.
pub(super) fn run_again(
    service: &Arc<Service>,
    enrolled: &Arc<Enrolled>,
    challenger: (String, Selection),
    again: Again,
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
        let (name, selection) = challenger;
        if let Some(measured) = run(&service, selection, again).await {
            enrolled.shadow_ended(&service, &name, &measured);
        }
    });
}

async fn run(service: &Arc<Service>, selection: Selection, again: Again) -> Option<Measured> {
    let Ok(composed) = compose(service, selection).await else { return None };
    let Ok(composition) = composed else { return Some(Measured::fault()) };
    let (sender, mut events) = unbounded_channel();
    let Again { prompt, sampling, cache_salt } = again;
    let started = Instant::now();
    let request = Request {
        prompt,
        sampling,
        composition: Arc::clone(&composition),
        trace: TraceLevel::Summary,
        shadow: None,
        cache_salt,
        sink: Box::new(move |event| sender.send(event).is_ok().into()),
    };
    // A queue that is full has no room for shadows.
    if service.engine.handle().submit(request).is_err() {
        service.experiments.shadow_dropped();
        return None;
    }
    while let Some(event) = events.recv().await {
        if let Event::Finished(finished) = event {
            let seconds = started.elapsed().as_secs_f64();
            return Some(Measured::of(&composition, &finished, seconds));
        }
    }
    None
}

/// Measures a reference's mean log-probability per token under what has answered, in the background.
pub(super) fn score_reference(
    service: &Arc<Service>,
    (enrolled, composition): (&Arc<Enrolled>, &Arc<Composition>),
    (mut prompt, reference): (Vec<u32>, String),
) {
    let Ok(tokens) = service.tokenizer.encode_more(&reference) else { return };
    let asked = prompt.len();
    prompt.extend(tokens);
    let (sender, mut events) = unbounded_channel();
    let request = Request {
        prompt,
        sampling: SamplingParams {
            max_tokens: 0,
            prompt_logprobs: Some(0),
            answer_from: Some(asked),
            ..SamplingParams::default()
        },
        composition: Arc::clone(composition),
        trace: TraceLevel::None,
        shadow: None,
        cache_salt: String::new(),
        sink: Box::new(move |event| sender.send(event).is_ok().into()),
    };
    if service.engine.handle().submit(request).is_err() {
        return;
    }
    let (service, enrolled) = (Arc::clone(service), Arc::clone(enrolled));
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            if let Event::Prompt(tokens) = event {
                let values: Vec<f64> = tokens
                    .iter()
                    .skip(asked)
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
