//! Traces of requests: a sample is kept in a ring, appended to a file as JSON lines, and sent to an OpenTelemetry collector.
//!
//! A trace says what answered, how long it took, and for every generated token what each site's router picked, with scores
//! and margins. Where prompts are kept too, a trace can be run again: the same decisions must come out.

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

pub use record::{Repeat, Selected, Trace, TracedExperts, TracedSite, TracedToken};

/// `[traces]` of the configuration.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TraceSettings {
    /// The share of requests that are traced.
    pub sample: f64,
    /// Traces that are kept in memory.
    pub keep: usize,
    /// A file that traces are appended to, one per line.
    pub file: Option<PathBuf>,
    /// Most bytes of that file; then it is moved to `FILE.1`, over the one before.
    pub file_mib: u64,
    /// Address of an OpenTelemetry collector that takes OTLP over HTTP as JSON, such as `http://localhost:4318/v1/traces`.
    pub otlp: Option<String>,
    /// Whether prompts are kept, without which a trace cannot be run again. They are what users wrote.
    pub prompts: bool,
}

impl Default for TraceSettings {
    fn default() -> Self {
        Self { sample: 0.0, keep: 256, file: None, file_mib: 64, otlp: None, prompts: false }
    }
}

impl TraceSettings {
    /// What no server can run with.
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
    settings: TraceSettings,
    ring: Mutex<VecDeque<Arc<Trace>>>,
    file: Option<file::Writer>,
    exporter: Option<otlp::Exporter>,
    recorded: AtomicU64,
    lost: AtomicU64,
}

impl Traces {
    /// Opens the file.
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

    /// Whether a request is traced: the same for the same id.
    pub(crate) fn takes(&self, id: &str) -> bool {
        self.settings.sample > 0.0 && position("trace", id) < self.settings.sample
    }

    /// Whether prompts are kept.
    pub(crate) fn keeps_prompts(&self) -> bool {
        self.settings.prompts
    }

    /// Takes a trace.
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

    /// Waits until all traces so far are in the file.
    pub fn flush(&self) {
        if let Some(file) = &self.file {
            file.flush();
        }
    }

    /// The latest traces, oldest first, as JSON lines.
    pub(crate) fn lines(&self, most: usize) -> String {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let first = ring.len().saturating_sub(most);
        let line = |trace: &Arc<Trace>| serde_json::to_string(&**trace).unwrap_or_default() + "\n";
        ring.iter().skip(first).map(line).collect()
    }

    /// The latest traces as an OTLP message.
    pub(crate) fn spans(&self, most: usize) -> Json {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let first = ring.len().saturating_sub(most);
        let traces: Vec<&Trace> = ring.iter().skip(first).map(AsRef::as_ref).collect();
        otlp::message(&traces)
    }

    /// Traces taken, and those that did not reach file or collector, in Prometheus' text.
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
