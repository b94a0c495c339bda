//! Traces of requests: a sample is kept in a ring, appended to a file as JSON lines, and sent to an
//! OpenTelemetry collector.
//!
//! A trace says what answered, how long it took, and for every generated token what each site's
//! router picked, with scores and margins. Where prompts are kept too, a trace can be run again:
//! the same decisions must come out.

mod file;
mod otlp;
mod record;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use polyskill_experiment::assignment::position;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

pub use record::{Repeat, Trace, TracedExperts, TracedSite, TracedToken};

/// `[traces]` of the configuration.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TraceSettings {
    /// The share of requests that are traced, 0 to 1; 0 by default. A traced request records the
    /// picks of every token, which takes time and memory.
    pub sample: f64,
    /// Traces that are kept in memory, 256 by default; the oldest make room. 0 counts as 1.
    pub keep: usize,
    /// Tokens whose routing one request may have recorded in full, over all its choices, 512 by default:
    /// those behind them have no picks, in a reply with `trace: "full"` and in traces.
    pub full_tokens: usize,
    /// A file that traces are appended to, one JSON object per line.
    pub file: Option<PathBuf>,
    /// Most MiB of that file, 64 by default; then it is moved to `FILE.1`, over the one before.
    pub file_mib: u64,
    /// Address of an OpenTelemetry collector that takes OTLP over HTTP as JSON, such as
    /// `http://localhost:4318/v1/traces`. `None` sends nothing.
    pub otlp: Option<String>,
    /// Keeps prompts, without which a trace cannot be run again. They are what users wrote.
    pub prompts: bool,
}

impl Default for TraceSettings {
    fn default() -> Self {
        Self {
            sample: 0.0,
            keep: 256,
            full_tokens: 512,
            file: None,
            file_mib: 64,
            otlp: None,
            prompts: false,
        }
    }
}

impl TraceSettings {
    /// The values that no server can run with, each as one sentence.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !(0.0..=1.0).contains(&self.sample) {
            problems.push(format!("`sample` is {}, expected 0 to 1", self.sample));
        }
        if let Some(otlp) = self.otlp.as_ref().filter(|otlp| reqwest::Url::parse(otlp).is_err()) {
            problems.push(format!("`otlp` is `{otlp}`, expected an address"));
        }
        problems
    }
}

/// The traces of a server.
#[derive(Debug)]
pub struct Traces {
    /// `[traces]` of the configuration.
    settings: TraceSettings,
    /// The latest traces, oldest first.
    ring: Mutex<VecDeque<Arc<Trace>>>,
    /// The thread that writes the file, if there is one.
    file: Option<file::Writer>,
    /// The thread that sends to a collector, if there is one.
    exporter: Option<otlp::Exporter>,
    /// Traces since the start.
    recorded: AtomicU64,
    /// Traces that file or collector had no room for; one that both lost counts twice.
    lost: AtomicU64,
}

impl Traces {
    /// Opens the file and starts the threads that write and send. Nothing is sent to the collector
    /// before there is a trace.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(settings: TraceSettings) -> Result<Self, String> {
        let most = settings.file_mib << 20;
        let file = settings.file.as_ref().map(|path| file::Writer::open(path, most));
        Ok(Self {
            file: file.transpose()?,
            exporter: settings.otlp.clone().map(otlp::Exporter::new),
            ring: Mutex::default(),
            recorded: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            settings,
        })
    }

    /// True for a request that is traced: always the same for the same id.
    pub(crate) fn takes(&self, id: &str) -> bool {
        self.settings.sample > 0.0 && position("trace", id) < self.settings.sample
    }

    /// Tokens of one request that may be traced in full.
    pub(crate) fn full_tokens(&self) -> usize {
        self.settings.full_tokens
    }

    /// True where a trace keeps prompt and sampling parameters.
    pub(crate) fn keeps_prompts(&self) -> bool {
        self.settings.prompts
    }

    /// Takes a trace. It never waits for file or collector: where one has no room, the trace is
    /// lost there.
    pub(crate) fn record(&self, trace: Trace) {
        self.recorded.fetch_add(1, Relaxed);
        let trace = Arc::new(trace);
        if let Some(file) = &self.file
            && !file.send(Arc::clone(&trace))
        {
            self.lost.fetch_add(1, Relaxed);
        }
        if let Some(exporter) = &self.exporter
            && !exporter.send(Arc::clone(&trace))
        {
            self.lost.fetch_add(1, Relaxed);
        }
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        while ring.len() >= self.settings.keep.max(1) {
            ring.pop_front();
        }
        ring.push_back(trace);
    }

    /// Waits until all traces so far have been handed to the file; not for the collector.
    pub fn flush(&self) {
        if let Some(file) = &self.file {
            file.flush();
        }
    }

    /// The latest `most` traces, oldest first, as JSON lines.
    pub(crate) fn lines(&self, most: usize) -> String {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let first = ring.len().saturating_sub(most);
        let line = |trace: &Arc<Trace>| serde_json::to_string(&**trace).unwrap_or_default() + "\n";
        ring.iter().skip(first).map(line).collect()
    }

    /// The latest `most` traces as an OTLP message.
    pub(crate) fn spans(&self, most: usize) -> Json {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let first = ring.len().saturating_sub(most);
        let traces: Vec<&Trace> = ring.iter().skip(first).map(AsRef::as_ref).collect();
        otlp::message(&traces)
    }

    /// Appends the counters of traces, in Prometheus' text.
    pub(crate) fn write_metrics(&self, text: &mut String) {
        use std::fmt::Write as _;
        for (name, help, counter) in [
            ("recorded", "Requests that were traced.", &self.recorded),
            ("lost", "Traces that did not reach the file or the collector.", &self.lost),
        ] {
            let family = format!("polyskill:traces_{name}");
            let value = counter.load(Relaxed);
            let _ = writeln!(
                text,
                "# HELP {family} {help}\n# TYPE {family} counter\n{family}_total {value}"
            );
        }
    }
}
