//! Metrics per module, brought up to date at each scrape: one series per module that is known now,
//! and none of modules that are gone.

use std::fmt::Write as _;
use std::time::Duration;

use polyskill_adapters::Library;
use polyskill_adapters::residency::{PoolStats, Residency};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Float;

/// The state of the library's modules at a scrape.
#[derive(Clone, Debug, Default)]
pub struct ModuleReport {
    /// The modules, by name, without aliases.
    modules: Vec<Entry>,
    /// Counters of the memory.
    pool: PoolStats,
    /// Bytes of modules and artefacts in memory.
    resident_bytes: usize,
    /// The bound on them; `None` keeps all.
    max_bytes: Option<usize>,
}

/// One module at a scrape.
#[derive(Clone, Debug)]
struct Entry {
    /// Its name, a label.
    name: String,
    /// Bytes of its weights, in memory or not.
    num_bytes: usize,
    /// Its place in memory and its counters.
    residency: Residency,
    /// The time from the request to load it until it served.
    load_time: Option<Duration>,
}

impl ModuleReport {
    /// Reads the state off the library. `load_time` gives the time of a module's load by its name,
    /// where it is known.
    pub fn of(library: &Library, load_time: impl Fn(&str) -> Option<Duration>) -> Self {
        let entry = |(name, module): (&str, &std::sync::Arc<polyskill_adapters::Module>)| Entry {
            name: name.to_owned(),
            num_bytes: module.num_bytes(),
            residency: module.residency(),
            load_time: load_time(name),
        };
        Self {
            modules: library.snapshot().iter().map(entry).collect(),
            pool: library.pool_stats(),
            resident_bytes: library.resident_bytes(),
            max_bytes: library.budget().max_bytes,
        }
    }

    /// The number of modules of mean size that fit into memory, at least 1; all that are known
    /// where there is no bound.
    fn capacity(&self) -> usize {
        let known = self.modules.len().max(1);
        let all: usize = self.modules.iter().map(|module| module.num_bytes).sum();
        match self.max_bytes {
            Some(most) if all > most => (most * known / all.max(1)).max(1),
            _ => known,
        }
    }

    /// Appends vLLM's series for gateways, with the time in seconds since 1970 as its value.
    ///
    /// Readers take the largest value of several series, so there is one, made anew at each scrape,
    /// and names stand without blanks. A module runs when its weights are in memory, as the written
    /// protocol has it, and waits when a request waits for them.
    pub(super) fn lora_requests_info(&self, text: &mut String, now: f64) {
        let names = |wanted: &dyn Fn(&Residency) -> bool| {
            let found = self.modules.iter().filter(|module| wanted(&module.residency));
            found.map(|module| module.name.as_str()).collect::<Vec<_>>().join(",")
        };
        let (running, waiting) =
            (names(&|one| one.resident), names(&|one| one.wanted > 0 && !one.resident));
        let _ = writeln!(
            text,
            "# TYPE vllm:lora_requests_info gauge\nvllm:lora_requests_info{{max_lora=\"{}\",running_lora_adapters=\"{running}\",waiting_lora_adapters=\"{waiting}\"}} {now}",
            self.capacity(),
        );
    }
}

/// The label of a module.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Name {
    /// The module's name.
    adapter_name: String,
}

/// vLLM's labels of a loaded adapter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Loaded {
    /// The module's name.
    adapter_name: String,
    /// The place of the weights: `cpu`.
    level: &'static str,
    /// `true` or `false`.
    pinned: &'static str,
}

/// Series per module and of the memory. Those per module are made anew at each scrape; the counters
/// of the memory only grow.
#[derive(Debug, Default)]
pub(super) struct ModuleMetrics {
    /// Modules in the library.
    known: Gauge,
    /// Bytes of modules and artefacts in memory.
    bytes: Gauge,
    /// Bytes that requests hold, each module once.
    leased_bytes: Gauge,
    /// Requests that wait for room.
    waiting: Gauge,
    /// Times that weights were read again.
    reads: Counter,
    /// Leases that found weights in memory.
    hits: Counter,
    /// Times that weights made room.
    evictions: Counter,
    /// Adapters on a GPU: always 0.
    on_gpu: Gauge,
    /// Modules in memory.
    on_cpu: Gauge,
    /// 1 for each module in memory, under vLLM's labels.
    loaded: Family<Loaded, Gauge>,
    /// 1 where the weights are in memory, else 0.
    resident: Family<Name, Gauge>,
    /// Bytes of weights, in memory or not.
    weight_bytes: Family<Name, Gauge>,
    /// Leases that have not ended.
    leases: Family<Name, Gauge>,
    /// Leases that found the module in memory.
    module_hits: Family<Name, Counter>,
    /// Times that it was read again.
    module_reads: Family<Name, Counter>,
    /// Times that it made room.
    module_evictions: Family<Name, Counter>,
    /// Seconds that the last reading took; 0 before the first.
    read_seconds: Family<Name, Float>,
    /// Seconds from the request to load it until it served.
    load_seconds: Family<Name, Float>,
}

impl ModuleMetrics {
    /// Registers all of these families.
    pub(super) fn register(&self, registry: &mut Registry) {
        for (name, help, gauge) in [
            ("polyskill:modules_loaded", "Modules in the library", &self.known),
            ("polyskill:module_bytes", "Bytes of modules and artefacts in memory", &self.bytes),
            ("polyskill:module_leased_bytes", "Bytes that requests hold", &self.leased_bytes),
            ("polyskill:module_waiting", "Requests that wait for room", &self.waiting),
            ("vllm:num_gpu_loaded_lora_adapters", "Adapters on a GPU", &self.on_gpu),
            ("vllm:num_cpu_loaded_lora_adapters", "Adapters in memory", &self.on_cpu),
        ] {
            registry.register(name, help, gauge.clone());
        }
        for (name, help, counter) in [
            ("polyskill:module_reads", "Times that weights were read again", &self.reads),
            ("polyskill:module_hits", "Requests that found weights in memory", &self.hits),
            ("polyskill:module_evictions", "Times that weights made room", &self.evictions),
        ] {
            registry.register(name, help, counter.clone());
        }
        for (name, help, family) in [
            ("polyskill:adapter_resident", "Whether weights are in memory", &self.resident),
            ("polyskill:adapter_bytes", "Bytes of weights, in memory or not", &self.weight_bytes),
            ("polyskill:adapter_leases", "Requests that hold the weights", &self.leases),
        ] {
            registry.register(name, help, family.clone());
        }
        for (name, help, family) in [
            ("polyskill:adapter_hits", "Requests that found weights in memory", &self.module_hits),
            ("polyskill:adapter_reads", "Times that weights were read again", &self.module_reads),
            ("polyskill:adapter_evictions", "Times that it made room", &self.module_evictions),
        ] {
            registry.register(name, help, family.clone());
        }
        for (name, help, family) in [
            ("polyskill:adapter_load_seconds", "Time until it served first", &self.load_seconds),
            ("polyskill:adapter_read_seconds", "Time of the last reading", &self.read_seconds),
        ] {
            registry.register(name, help, family.clone());
        }
        let name = "vllm:lora_adapter_loaded";
        registry.register(name, "Adapters in memory", self.loaded.clone());
    }

    /// Brings the series to a report's state. Series of modules that are gone end.
    pub(super) fn set(&self, report: &ModuleReport) {
        let pool = report.pool;
        for (gauge, value) in [
            (&self.known, report.modules.len()),
            (&self.bytes, report.resident_bytes),
            (&self.leased_bytes, pool.leased_bytes),
            (&self.waiting, pool.waiting),
            (&self.on_gpu, 0),
            (&self.on_cpu, pool.num_resident),
        ] {
            gauge.set(value as i64);
        }
        for (counter, total) in
            [(&self.reads, pool.loads), (&self.hits, pool.hits), (&self.evictions, pool.evictions)]
        {
            counter.inc_by(total.saturating_sub(counter.get()));
        }
        self.loaded.clear();
        self.read_seconds.clear();
        self.load_seconds.clear();
        let families = [&self.resident, &self.weight_bytes, &self.leases];
        families.into_iter().for_each(Family::clear);
        let counters = [&self.module_hits, &self.module_reads, &self.module_evictions];
        counters.into_iter().for_each(Family::clear);
        for Entry { name, num_bytes, residency, load_time } in &report.modules {
            let label = Name { adapter_name: name.clone() };
            let values = [usize::from(residency.resident), *num_bytes, residency.leases];
            for (family, value) in families.into_iter().zip(values) {
                family.get_or_create(&label).set(value as i64);
            }
            let totals = [residency.hits, residency.loads, residency.evictions];
            for (family, total) in counters.into_iter().zip(totals) {
                family.get_or_create(&label).inc_by(total);
            }
            let seconds = residency.load_time.as_secs_f64();
            self.read_seconds.get_or_create(&label).set(seconds);
            if let Some(time) = load_time {
                self.load_seconds.get_or_create(&label).set(time.as_secs_f64());
            }
            if residency.resident {
                let pinned = if residency.pinned { "true" } else { "false" };
                let loaded = Loaded { adapter_name: name.clone(), level: "cpu", pinned };
                self.loaded.get_or_create(&loaded).set(1);
            }
        }
    }
}
