//! Traces as OpenTelemetry spans: OTLP over HTTP in its JSON encoding.
//!
//! A request is a span with three inside it: waiting, reading the prompt, generating. Attributes
//! follow OpenTelemetry's conventions for generative AI where these have a name, and begin with
//! `polyskill.` elsewhere.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::Trace;

/// Traces that wait for a collector; more are lost.
const MAX_WAITING: usize = 256;
/// Traces per message. A message is sent as soon as there is a trace, so batches form while one is
/// under way.
const MAX_BATCH: usize = 64;
/// Longest time of one message; after it its traces are given up.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Sends traces to a collector, on a thread of its own that no request waits for.
#[derive(Debug)]
pub(super) struct Exporter {
    /// The queue of that thread.
    sender: Sender<Arc<Trace>>,
}

impl Exporter {
    /// Starts the thread. Where that fails, it is logged, and traces are lost.
    pub(super) fn new(address: String) -> Self {
        let (sender, receiver) = channel(MAX_WAITING);
        let export = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(send_all(&address, receiver)),
                Err(error) => tracing::error!(%error, "traces are not sent"),
            }
        };
        if let Err(error) = std::thread::Builder::new().name("traces".to_owned()).spawn(export) {
            tracing::error!(%error, "traces are not sent");
        }
        Self { sender }
    }

    /// Queues a trace; `false` where too many wait already.
    pub(super) fn send(&self, trace: Arc<Trace>) -> bool {
        self.sender.try_send(trace).is_ok()
    }
}

/// Sends until nobody can queue any more. A message that the collector does not take is logged and
/// not sent again.
async fn send_all(address: &str, mut traces: Receiver<Arc<Trace>>) {
    let client = polyskill_sources::http_client().timeout(TIMEOUT).build().unwrap_or_default();
    let mut batch = Vec::new();
    while traces.recv_many(&mut batch, MAX_BATCH).await > 0 {
        let all: Vec<&Trace> = batch.iter().map(AsRef::as_ref).collect();
        let sent = client
            .post(address)
            .header("content-type", "application/json")
            .body(message(&all).to_string())
            .send()
            .await
            .and_then(reqwest::Response::error_for_status);
        if let Err(error) = sent {
            // The address may hold a password.
            tracing::warn!(error = %error.without_url(), traces = batch.len(), "traces were not taken");
        }
        batch.clear();
    }
}

/// An `ExportTraceServiceRequest` in OTLP's JSON encoding.
pub(super) fn message(traces: &[&Trace]) -> Json {
    let spans: Vec<Json> = traces.iter().flat_map(|trace| spans(trace)).collect();
    let version = env!("CARGO_PKG_VERSION");
    json!({"resourceSpans": [{
        "resource": {"attributes": [text("service.name", "polyskill"), text("service.version", version)]},
        "scopeSpans": [{"scope": {"name": "polyskill", "version": version}, "spans": spans}],
    }]})
}

/// An attribute with a text.
fn text(key: &str, value: &str) -> Json {
    json!({"key": key, "value": {"stringValue": value}})
}

/// An attribute with a whole number.
fn number(key: &str, value: u64) -> Json {
    // 64-bit integers are text in the JSON encoding.
    json!({"key": key, "value": {"intValue": value.to_string()}})
}

/// Bytes in lower-case hexadecimal, as OTLP has ids.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Trace id and span id of a W3C `traceparent`; `None` for a text of another form, and for ids of
/// zeros alone, which are invalid.
fn parent(traceparent: &str) -> Option<(String, String)> {
    let parts: Vec<&str> = traceparent.split('-').collect();
    let [_, trace, span, _] = parts.as_slice() else { return None };
    let is_hex = |part: &str, length: usize| {
        part.len() == length
            && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
            && part.bytes().any(|byte| byte != b'0')
    };
    let is_parent = is_hex(trace, 32) && is_hex(span, 16);
    is_parent.then(|| ((*trace).to_owned(), (*span).to_owned()))
}

/// The four spans of a trace: the request, and inside it queue, prefill and decode, which follow
/// each other.
///
/// Ids are parts of a SHA-256 of the reply's id, so that a trace that is sent again has the same
/// ones. With a caller's `traceparent` the request's span hangs below the caller's.
fn spans(trace: &Trace) -> Vec<Json> {
    let identity = Sha256::digest(&trace.id);
    let parent = trace.traceparent.as_deref().and_then(parent);
    let trace_id = parent.as_ref().map_or_else(|| hex(&identity[..16]), |(id, _)| id.clone());
    let root = hex(&identity[16..24]);
    let span = |name: &str, number: u8, (from, to): (u64, u64), attributes: Vec<Json>| {
        let id = match number {
            0 => root.clone(),
            number => hex(&Sha256::digest([&identity[..], &[number]].concat())[..8]),
        };
        let mut span = json!({
            "traceId": trace_id, "spanId": id, "name": name, "kind": if number == 0 { 2 } else { 1 },
            "startTimeUnixNano": ((trace.at_us + from) * 1_000).to_string(),
            "endTimeUnixNano": ((trace.at_us + to) * 1_000).to_string(),
            "attributes": attributes,
        });
        let above = match number {
            0 => parent.as_ref().map(|(_, span)| span.clone()),
            _ => Some(root.clone()),
        };
        if let Some(above) = above {
            span["parentSpanId"] = above.into();
        }
        span
    };
    let first = trace.first_token_us.unwrap_or(trace.total_us).max(trace.queue_us);
    let mut request = span("chat", 0, (0, trace.total_us), attributes(trace));
    if trace.reason == "error" {
        request["status"] = json!({"code": 2, "message": "the engine failed"});
    }
    vec![
        request,
        span("queue", 1, (0, trace.queue_us), Vec::new()),
        span("prefill", 2, (trace.queue_us, first), Vec::new()),
        span("decode", 3, (first, trace.total_us.max(first)), Vec::new()),
    ]
}

/// The attributes of the request's span. Modules without a share have none.
fn attributes(trace: &Trace) -> Vec<Json> {
    let mut attributes = vec![
        text("gen_ai.operation.name", "chat"),
        text("gen_ai.request.model", &trace.model),
        text("gen_ai.response.id", &trace.id),
        number("gen_ai.usage.input_tokens", trace.prompt_tokens as u64),
        number("gen_ai.usage.output_tokens", trace.completion_tokens as u64),
        text("polyskill.composition", &trace.composition),
        text("polyskill.served", &trace.served),
        text("polyskill.finish_reason", &trace.reason),
        number("polyskill.cached_tokens", trace.cached_tokens as u64),
        number("polyskill.fallback_rows", trace.fallback_rows),
    ];
    for (key, value) in [
        ("polyskill.router", &trace.router),
        ("polyskill.fallback_reason", &trace.fallback_reason),
        ("polyskill.experiment", &trace.experiment),
        ("polyskill.arm", &trace.arm),
    ] {
        attributes.extend(value.as_ref().map(|value| text(key, value)));
    }
    let share = |(module, share): (&String, &f64)| json!({"key": format!("polyskill.module_share.{module}"), "value": {"doubleValue": share}});
    attributes.extend(trace.share.iter().map(share));
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace() -> Trace {
        Trace {
            id: "chatcmpl-1".to_owned(),
            at_us: 1_000_000,
            queue_us: 10,
            first_token_us: Some(50),
            total_us: 90,
            ..Trace::default()
        }
    }

    #[test]
    fn a_request_is_a_span_with_its_parts_inside() {
        let message = message(&[&trace()]);
        let spans = message["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap();
        let times: Vec<(&str, &str, &str)> = spans
            .iter()
            .map(|span| {
                let of = |key: &str| span[key].as_str().unwrap();
                (of("name"), of("startTimeUnixNano"), of("endTimeUnixNano"))
            })
            .collect();
        assert_eq!(times[0], ("chat", "1000000000", "1000090000"));
        assert_eq!(times[2], ("prefill", "1000010000", "1000050000"));
        assert!(spans[1..].iter().all(|span| span["parentSpanId"] == spans[0]["spanId"]));
        assert!(spans.iter().all(|span| span["traceId"].as_str().unwrap().len() == 32));
        assert_eq!(spans[0].get("parentSpanId"), None);
    }

    #[test]
    fn a_callers_trace_is_gone_on_with_if_it_is_one() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let good = format!("00-{id}-00f067aa0ba902b7-01");
        let spans = spans(&Trace { traceparent: Some(good), ..trace() });
        assert_eq!(
            (&spans[0]["traceId"], &spans[0]["parentSpanId"]),
            (&json!(id), &json!("00f067aa0ba902b7"))
        );
        for bad in
            ["", "00-xyz", "00-0-0-0-0", &format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32))]
        {
            assert_eq!(parent(bad), None, "{bad}");
        }
    }
}
