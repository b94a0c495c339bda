//! Reports of what answered: in replies and in traces.

use std::collections::BTreeMap;

use polyskill_engine::{Finished, TraceLevel};
use serde_json::{Value as Json, json};

use super::{Answer, Enrolled};
use crate::traces::{Trace, TracedToken};

/// The end of a request, as metrics and traces take it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome<'a> {
    /// The engine's counts and times.
    pub(crate) finished: &'a Finished,
    /// `finish_reason` of the reply.
    pub(crate) reason: &'static str,
    /// Time since the request was submitted, in seconds.
    pub(crate) seconds: f64,
}

/// The part `polyskill` of a reply: what answered, and the routing as far as `trace` asks for it.
///
/// `served` is `assigned` or `fallback`. Shares are rounded to four decimals; `tokens` stands in
/// the report of a full trace alone.
pub(crate) fn routing_report(
    answer: &Answer,
    finished: &Finished,
    trace: TraceLevel,
    tokens: &[TracedToken],
) -> Json {
    let composition = &answer.composition;
    let modules: Vec<Json> = composition
        .modules()
        .iter()
        .map(|named| json!({"name": named.name, "generation": named.module.generation().to_string()}))
        .collect();
    let router =
        composition.router().map(|router| json!({"name": router.name, "digest": router.digest}));
    let mut report = json!({
        "composition": composition.digest().to_string(),
        "router": router,
        "modules": modules,
        "served": if composition.fallback().is_some() { "fallback" } else { "assigned" },
    });
    let always_on: Vec<Json> = composition
        .always_on()
        .map(|(named, weight)| json!({"name": named.name, "weight": short(weight)}))
        .collect();
    if !always_on.is_empty() {
        report["adapters"] = json!(always_on);
    }
    if let Some(reason) = composition.fallback() {
        report["fallback_reason"] = json!(reason);
    }
    add_experiment(answer, &mut report);
    if finished.fallback_rows > 0 {
        // The base answered rows that the router left undecided; where it answered all, nothing was routed.
        report["fallback_rows"] = json!(finished.fallback_rows);
        // An arm's failure came before, and is the reason for all of it.
        if report["fallback_reason"].is_null() {
            report["fallback_reason"] = json!(composition.row_failure());
        }
        if is_unrouted(finished) {
            report["served"] = json!("fallback");
        }
    }
    if trace == TraceLevel::None {
        return report;
    }
    let name =
        |index: u32| composition.modules().get(index as usize).map(|named| named.name.clone());
    let share: BTreeMap<String, f64> = finished
        .module_share
        .iter()
        .filter_map(|&(module, share)| Some((name(module)?, (share * 1e4).round() / 1e4)))
        .collect();
    report["routing"] = json!({"share": share, "fallback_rows": finished.fallback_rows});
    if trace == TraceLevel::Full {
        report["routing"]["tokens"] = json!(tokens);
    }
    report
}

/// The trace of a request that has ended: `record` with the composition, the outcome and the
/// routing filled in. Times are in microseconds.
pub(crate) fn traced(
    answer: &Answer,
    record: Trace,
    outcome: &Outcome<'_>,
    tokens: Vec<TracedToken>,
) -> Trace {
    let micros = |time: std::time::Duration| time.as_micros() as u64;
    let Outcome { finished, reason, seconds } = *outcome;
    let composition = &answer.composition;
    let mut report = json!({});
    add_experiment(answer, &mut report);
    let text = |key: &str| Some(report[key].as_str()?.to_owned());
    let modules = composition.modules();
    let name = |at: u32| Some(modules.get(at as usize)?.name.clone());
    let share = finished.module_share.iter();
    let fell_back = composition.fallback().map(str::to_owned).or(text("fallback_reason"));
    let unrouted = is_unrouted(finished).then(|| composition.row_failure()).flatten();
    let fell_back = fell_back.or(unrouted.map(str::to_owned));
    Trace {
        composition: composition.digest().to_string(),
        router: composition.router().map(|router| router.name.clone()),
        served: if fell_back.is_some() { "fallback" } else { "assigned" }.to_owned(),
        fallback_reason: fell_back,
        experiment: text("experiment"),
        arm: text("arm"),
        modules: modules.iter().map(|named| named.name.clone()).collect(),
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

/// A weight as it was written: the double of its shortest digits, as a single one has others when it is
/// widened.
fn short(weight: f32) -> f64 {
    weight.to_string().parse().unwrap_or(f64::from(weight))
}

/// True where the base answered every row, since the router left all of them undecided.
fn is_unrouted(finished: &Finished) -> bool {
    finished.fallback_rows > 0 && finished.module_share.is_empty()
}

/// Adds the experiment and the arm to a report; the arm is null before the experiment's start. An
/// arm that could not be composed makes the request a fallback.
fn add_experiment(answer: &Answer, report: &mut Json) {
    let Some(Enrolled { assignment, failure, .. }) = answer.enrolled.as_deref() else { return };
    report["experiment"] = json!(assignment.experiment);
    report["arm"] = if assignment.arm.is_empty() { Json::Null } else { json!(assignment.arm) };
    if let Some(failure) = failure {
        report["served"] = json!("fallback");
        report["fallback_reason"] = json!(failure);
    }
}
