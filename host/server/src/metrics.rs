//! Prometheus metrics, under vLLM's names where it has them, so that its dashboards and gateways
//! work.

mod modules;

use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;

use polyskill_engine::{Finished, RouterInfo, Standing, StatsSnapshot};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use modules::ModuleMetrics;

use crate::experiments::Experiments;
use crate::traces::Traces;
pub use modules::ModuleReport;

/// A gauge of doubles.
type Float = Gauge<f64, AtomicU64>;

/// The label of finished requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    /// `stop`, `length`, `cancelled` or `error`.
    finished_reason: String,
}

/// The label of a module, under vLLM's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModuleLabel {
    /// The module's name.
    adapter_name: String,
}

/// The label of a router.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouterLabel {
    /// The router's name.
    router: String,
}

/// Gauges per router, made anew at each scrape, so that a router that is gone has none. Counts are
/// gauges as they begin anew with each version of a router.
#[derive(Debug, Default)]
struct RouterMetrics {
    /// 0 serving, 1 quarantined, 2 out.
    standing: Family<RouterLabel, Gauge>,
    /// Plans that were requested of it.
    plans: Family<RouterLabel, Gauge>,
    /// Calls that trapped or gave an unusable answer.
    faults: Family<RouterLabel, Gauge>,
    /// Rows whose picks were not usable.
    invalid_rows: Family<RouterLabel, Gauge>,
    /// Times that it left the decision to others.
    abstentions: Family<RouterLabel, Gauge>,
    /// Time in calls of `route`.
    route_seconds: Family<RouterLabel, Float>,
}

impl RouterMetrics {
    /// Registers the families of routers.
    fn register(&self, registry: &mut Registry) {
        for (name, help, family) in [
            ("polyskill:router_standing", "0 serving, 1 quarantined, 2 out", &self.standing),
            ("polyskill:router_plans", "Plans asked for", &self.plans),
            ("polyskill:router_faults", "Traps and answers that were not usable", &self.faults),
            ("polyskill:router_invalid_rows", "Rows with unusable picks", &self.invalid_rows),
            ("polyskill:router_abstentions", "Decisions left to others", &self.abstentions),
        ] {
            registry.register(name, help, family.clone());
        }
        let name = "polyskill:router_route_seconds";
        registry.register(name, "Time in calls of route", self.route_seconds.clone());
    }

    /// Sets the gauges to the routers that there are now.
    fn set(&self, routers: &[RouterInfo]) {
        for family in
            [&self.standing, &self.plans, &self.faults, &self.invalid_rows, &self.abstentions]
        {
            family.clear();
        }
        self.route_seconds.clear();
        for info in routers {
            let label = RouterLabel { router: info.name.clone() };
            let standing = match info.standing {
                Standing::Serving => 0,
                Standing::Quarantined(_) => 1,
                Standing::Out => 2,
            };
            for (family, value) in [
                (&self.standing, standing),
                (&self.plans, info.plans),
                (&self.faults, info.faults),
                (&self.invalid_rows, info.invalid_rows),
                (&self.abstentions, info.abstentions),
            ] {
                family.get_or_create(&label).set(value as i64);
            }
            let seconds = info.route_nanoseconds as f64 / 1e9;
            self.route_seconds.get_or_create(&label).set(seconds);
        }
    }
}

/// The metrics of a server. Counters are updated when a request ends, gauges when they are scraped.
#[derive(Debug)]
pub struct Metrics {
    /// The families, with the labels that all have. The lock is held while a scrape is written.
    registry: Mutex<Registry>,
    /// Requests in the queue.
    waiting: Gauge,
    /// Requests in execution.
    running: Gauge,
    /// The share of KV blocks that requests hold, 0 to 1.
    kv_usage: Float,
    /// Tokens of prompts, cached ones included.
    prompt_tokens: Counter,
    /// Generated tokens.
    generation_tokens: Counter,
    /// Finished requests, by reason. A choice counts as one.
    finished: Family<Reason, Counter>,
    /// Seconds from submission to the first token.
    first_token: Histogram,
    /// Seconds between tokens, one mean per request.
    inter_token: Histogram,
    /// Seconds from submission to the end.
    whole_request: Histogram,
    /// Seconds from submission to admission.
    queue_time: Histogram,
    /// Generated tokens weighted by each module's share.
    module_tokens: Family<ModuleLabel, Counter<f64, AtomicU64>>,
    /// Rows and sites where the router's answer was not usable.
    fallback_rows: Counter,
    /// Gauges of routers.
    routers: RouterMetrics,
    /// Series of modules.
    modules: ModuleMetrics,
    /// Requests that gave their KV blocks up for earlier ones.
    preemptions: Counter,
    /// Prompt tokens that were looked up in the prefix cache.
    prefix_queries: Counter,
    /// Of these, those that were found.
    prefix_hits: Counter,
    /// Steps of the engine.
    steps: Counter,
    /// Rows of these steps.
    rows: Counter,
}

/// Upper bounds of the latency histograms, in seconds.
const SECONDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0,
];

impl Metrics {
    /// Registers all metrics for a base model. Each series has the labels `model_name` and
    /// `engine`, as with vLLM.
    pub fn new(base_name: &str) -> Self {
        let histogram = || Histogram::new(SECONDS);
        let metrics = Self {
            registry: Mutex::default(),
            waiting: Gauge::default(),
            running: Gauge::default(),
            kv_usage: Float::default(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            finished: Family::default(),
            first_token: histogram(),
            inter_token: histogram(),
            whole_request: histogram(),
            queue_time: histogram(),
            module_tokens: Family::default(),
            fallback_rows: Counter::default(),
            routers: RouterMetrics::default(),
            modules: ModuleMetrics::default(),
            preemptions: Counter::default(),
            prefix_queries: Counter::default(),
            prefix_hits: Counter::default(),
            steps: Counter::default(),
            rows: Counter::default(),
        };
        let label = |name: &'static str, value: &str| (name.into(), value.to_owned().into());
        let labels = [label("model_name", base_name), label("engine", "0")];
        let mut registry = Registry::with_labels(labels.into_iter());
        metrics.register(&mut registry);
        *metrics.registry.lock().unwrap_or_else(PoisonError::into_inner) = registry;
        metrics
    }

    /// Registers all families.
    fn register(&self, registry: &mut Registry) {
        self.register_vllm(registry);
        self.register_own(registry);
    }

    /// Registers the families that vLLM has, under its names. The registry adds `_total` to
    /// counters.
    fn register_vllm(&self, registry: &mut Registry) {
        registry.register(
            "vllm:num_requests_waiting",
            "Requests in the queue",
            self.waiting.clone(),
        );
        registry.register(
            "vllm:num_requests_running",
            "Requests in execution",
            self.running.clone(),
        );
        registry.register(
            "vllm:kv_cache_usage_perc",
            "Used share of the KV cache, 0 to 1",
            self.kv_usage.clone(),
        );
        registry.register("vllm:prompt_tokens", "Tokens of prompts", self.prompt_tokens.clone());
        registry.register(
            "vllm:generation_tokens",
            "Generated tokens",
            self.generation_tokens.clone(),
        );
        registry.register("vllm:request_success", "Finished requests", self.finished.clone());
        registry.register(
            "vllm:prefix_cache_queries",
            "Prompt tokens looked up in the prefix cache",
            self.prefix_queries.clone(),
        );
        registry.register(
            "vllm:prefix_cache_hits",
            "Prompt tokens found in the prefix cache",
            self.prefix_hits.clone(),
        );
        registry.register(
            "vllm:time_to_first_token_seconds",
            "Time to first token",
            self.first_token.clone(),
        );
        registry.register(
            "vllm:inter_token_latency_seconds",
            "Time between tokens",
            self.inter_token.clone(),
        );
        registry.register(
            "vllm:e2e_request_latency_seconds",
            "Whole request",
            self.whole_request.clone(),
        );
        registry.register(
            "vllm:num_preemptions",
            "Requests that gave their KV blocks up",
            self.preemptions.clone(),
        );
        registry.register(
            "vllm:request_queue_time_seconds",
            "Time in the queue",
            self.queue_time.clone(),
        );
    }

    /// Registers the families that vLLM does not have.
    fn register_own(&self, registry: &mut Registry) {
        let name = "polyskill:module_weighted_tokens";
        registry.register(
            name,
            "Generated tokens, weighted by each module's share",
            self.module_tokens.clone(),
        );
        let name = "polyskill:router_fallback_rows";
        registry.register(
            name,
            "Rows and sites where the base ran alone",
            self.fallback_rows.clone(),
        );
        self.routers.register(registry);
        self.modules.register(registry);
        registry.register("polyskill:engine_steps", "Steps run", self.steps.clone());
        registry.register("polyskill:engine_rows", "Rows computed", self.rows.clone());
    }

    /// Counts a finished request. `modules` names the composition's modules, by the indices of the
    /// shares; `seconds` is the time since submission.
    pub fn finished(&self, finished: &Finished, reason: &str, modules: &[String], seconds: f64) {
        self.finished.get_or_create(&Reason { finished_reason: reason.to_owned() }).inc();
        self.prompt_tokens.inc_by(finished.prompt_tokens as u64);
        self.generation_tokens.inc_by(finished.completion_tokens as u64);
        self.whole_request.observe(seconds);
        self.queue_time.observe(finished.queue_time.as_secs_f64());
        self.fallback_rows.inc_by(finished.fallback_rows);
        if let Some(first) = finished.time_to_first_token {
            self.first_token.observe(first.as_secs_f64());
            let rest = finished.completion_tokens.saturating_sub(1);
            if rest > 0 {
                self.inter_token.observe((seconds - first.as_secs_f64()).max(0.0) / rest as f64);
            }
        }
        for &(module, share) in &finished.module_share {
            if let Some(adapter_name) = modules.get(module as usize).cloned() {
                let tokens = self.module_tokens.get_or_create_owned(&ModuleLabel { adapter_name });
                tokens.inc_by((share * finished.completion_tokens as f64).max(0.0));
            }
        }
    }

    /// The exposition in OpenMetrics' text, with the gauges brought up to date. The series of
    /// experiments and traces, and two with labels of vLLM's own, are written by hand before the
    /// end mark.
    pub fn render(
        &self,
        engine: StatsSnapshot,
        modules: &ModuleReport,
        routers: &[RouterInfo],
        experiments: &Experiments,
        traces: &Traces,
    ) -> String {
        self.waiting.set(engine.waiting as i64);
        self.running.set(engine.running as i64);
        self.kv_usage.set(engine.kv_blocks_used as f64 / engine.kv_blocks.max(1) as f64);
        self.routers.set(routers);
        self.modules.set(modules);
        // Counters that the engine keeps: each scrape adds what is new.
        for (counter, total) in [
            (&self.preemptions, engine.preemptions),
            (&self.prefix_queries, engine.prefix_queries),
            (&self.prefix_hits, engine.prefix_hits),
            (&self.steps, engine.steps),
            (&self.rows, engine.rows),
        ] {
            counter.inc_by(total.saturating_sub(counter.get()));
        }
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let encoded = encode(&mut text, &registry);
        debug_assert!(encoded.is_ok(), "writing to a string cannot fail");
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = since_epoch.map_or(0.0, |since| since.as_secs_f64());
        let end = text.len() - if text.ends_with("# EOF\n") { 6 } else { 0 };
        text.truncate(end);
        modules.lora_requests_info(&mut text, now);
        experiments.write_metrics(&mut text);
        traces.write_metrics(&mut text);
        let _ = writeln!(
            text,
            "# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{{block_size=\"16\",num_gpu_blocks=\"{}\"}} 1\n# EOF",
            engine.kv_blocks,
        );
        text
    }
}
