//! The configuration: one TOML file, overridden by flags and `POLYSKILL_*` variables.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use polyskill_adapters::Budget;
use polyskill_engine::{FaultPolicy, MAX_WEIGHT};
use polyskill_plugin::{Capability, Limits, Trust};
use polyskill_sdk::{Parameters, Value};
use serde::{Deserialize, Serialize};

use crate::experiments::ExperimentSettings;
use crate::traces::TraceSettings;
use polyskill_sources::{FetchLimits, ModuleTrust, Policy};

/// The effective configuration of a server.
///
/// A field that is `None` has no value in the file, and the default holds. Unknown keys of the file
/// are refused. The file is read once: none of this changes while the server runs.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The base model: a name that `pull` knows, a hub repository, or a path. `None` serves the
    /// default model of [`polyskill_sources::base_models`].
    pub model: Option<String>,
    /// The name under which the base is served; `None` takes the name in `model`, or the file name
    /// of its path. No module or skill set can have it.
    pub served_model_name: Option<String>,
    /// A directory with an expert policy: of a sparse base, only the experts that it keeps are held
    /// in memory, for all requests. The policy must be made for this base.
    pub keep_experts: Option<PathBuf>,
    /// Address of the listener, `host:port`; [`Config::listen`] has the default.
    pub listen: Option<String>,
    /// Directories whose folders and GGUF files are modules. All of them are loaded at the start,
    /// and requests may load others that lie in them.
    pub adapters: Vec<PathBuf>,
    /// Directories whose bundles are routers. All of them are loaded at the start, and the admin
    /// routes load from nowhere else.
    pub plugins: Vec<PathBuf>,
    /// Bearer key that requests must carry; `None` serves everybody who reaches the listener.
    pub api_key: Option<String>,
    /// Bearer key of the admin routes; without it they answer 404.
    pub admin_key: Option<String>,
    /// Largest request body, in bytes; a longer one is refused with 413. `None` stands for 4 MiB.
    pub max_body_bytes: Option<usize>,
    /// `[[router]]`: parameters, grants and limits per router. An entry loads nothing by itself:
    /// the plugin lies in one of `plugins`, and without an entry it has the defaults.
    pub router: Vec<RouterConfig>,
    /// `[[skill_set]]`: named compositions that clients choose as `model`. Without any there is
    /// one, `skills`, over all modules.
    pub skill_set: Vec<SkillSet>,
    /// `[[experiment]]`: experiments on live traffic. Each is declared at the start; the server
    /// does not start where one is not valid.
    pub experiment: Vec<polyskill_experiment::Declaration>,
    /// `[experiments]`: the file of assignments and outcomes, and bounds on what is kept.
    pub experiments: ExperimentSettings,
    /// `[traces]`: the share of requests that are traced, and the places that traces go to.
    pub traces: TraceSettings,
    /// `[engine]`: bounds of the queue, the steps and the KV cache.
    pub engine: EngineSettings,
    /// `[limits]`: memory, time and instructions of plugins, each for all routers that set none of
    /// their own.
    pub limits: Limits,
    /// `[trust]`: the signers whose plugins are loaded.
    pub trust: Trust,
    /// `[faults]`: the treatment of routers that fail, and of their requests.
    pub faults: FaultSettings,
    /// `[[module]]`: modules other than those in `adapters`, each with its source.
    pub module: Vec<ModuleConfig>,
    /// `[residency]`: memory for the weights of modules.
    pub residency: ResidencySettings,
    /// `[sources]`: the places that modules may come from, in addition to `adapters`. By default
    /// nothing is fetched from other machines.
    pub sources: Policy,
    /// `[fetch]`: bounds on bytes, files and time of one fetch.
    pub fetch: FetchLimits,
    /// `[module_trust]`: the signers whose modules are loaded.
    pub module_trust: ModuleTrust,
    /// A directory that keeps what is loaded and unloaded at run time, so that a restart serves the
    /// same. One server uses it at a time. `None` forgets such changes.
    pub state: Option<PathBuf>,
    /// Watches the directories of modules: what appears or changes is loaded, and what goes is
    /// unloaded.
    pub watch_adapters: bool,
    /// Lets holders of `api_key` load and unload modules over vLLM's routes, as with
    /// `VLLM_ALLOW_RUNTIME_LORA_UPDATING`. Without `api_key` it lets everybody.
    pub allow_runtime_lora_updating: bool,
    /// Watches the directories of plugins: what appears or changes is loaded. A bundle that goes
    /// leaves its router serving.
    pub watch_plugins: bool,
    /// A file that gets a line of JSON for every change of modules, routers and experiments, and
    /// for every attempt to load one. It is appended to, and never cut.
    pub audit_log: Option<PathBuf>,
    /// Plans that are kept to be recorded as fixtures, with what users wrote; 0 keeps none. At most
    /// 65,536; the oldest make room.
    pub keep_plans: usize,
    /// Rows that are kept per router of what its `route` decided, to be recorded as fixtures; 0
    /// keeps none. At most 65,536.
    pub keep_rows: usize,
}

/// `[faults]`: the treatment of a router that fails; see [`FaultPolicy`], which has the defaults.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct FaultSettings {
    /// The answer to requests whose router fails or is in quarantine.
    pub on_fault: OnFault,
    /// Faults within the window that quarantine a router, 1 or more.
    pub max_faults: usize,
    /// The window in which faults are counted, in seconds, 1 or more.
    pub window_seconds: u64,
    /// The first quarantine in seconds, 1 or more; each next one is twice as long.
    pub backoff_seconds: u64,
    /// Returns from quarantine before the router stays out, until it is released or replaced.
    pub max_returns: u32,
    /// Time without a fault, in seconds, after which earlier quarantines are forgotten; 1 or more.
    pub forgiven_after_seconds: u64,
}

/// The answer to a request whose router fails: `base-only`, `previous` or `fail-request`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum OnFault {
    /// The base model alone. The reply says so in `served` and `fallback_reason`.
    #[default]
    BaseOnly,
    /// The version that served before, or the base model where there is none.
    Previous,
    /// An error. A router that fails at a row ends the request, after the tokens so far.
    FailRequest,
}

impl Default for FaultSettings {
    fn default() -> Self {
        let policy = FaultPolicy::default();
        Self {
            on_fault: OnFault::default(),
            max_faults: policy.max_faults,
            window_seconds: policy.window.as_secs(),
            backoff_seconds: policy.backoff.as_secs(),
            max_returns: policy.max_returns,
            forgiven_after_seconds: policy.forgiven_after.as_secs(),
        }
    }
}

impl FaultSettings {
    /// The engine's policy for one router. `on_fault` is the router's own answer, which holds over
    /// the general one; all other fields are the same for all routers.
    pub fn policy(&self, on_fault: Option<OnFault>) -> FaultPolicy {
        FaultPolicy {
            on_fault: match on_fault.unwrap_or(self.on_fault) {
                OnFault::BaseOnly => polyskill_engine::OnFault::BaseOnly,
                OnFault::Previous => polyskill_engine::OnFault::Previous,
                OnFault::FailRequest => polyskill_engine::OnFault::FailRequest,
            },
            max_faults: self.max_faults,
            window: Duration::from_secs(self.window_seconds),
            backoff: Duration::from_secs(self.backoff_seconds),
            max_returns: self.max_returns,
            forgiven_after: Duration::from_secs(self.forgiven_after_seconds),
        }
    }
}

/// `[[router]]`: the settings of one router.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RouterConfig {
    /// The name in the plugin's manifest. Each router has at most one entry.
    pub name: String,
    /// Its parameters, scalars only. Parameters of a skill set and of a request hold over them.
    #[serde(default)]
    pub params: toml::Table,
    /// Capabilities that it gets, of those that its manifest asks for. A plugin that asks for one
    /// that it does not get is not loaded.
    #[serde(default)]
    pub grant: Vec<Capability>,
    /// Limits other than those of `[limits]`, under the same keys.
    #[serde(default)]
    pub limits: toml::Table,
    /// The answer to its requests when it fails, in place of `faults.on_fault`.
    #[serde(default)]
    pub on_fault: Option<OnFault>,
}

impl RouterConfig {
    /// The limits of this router: its own over the general ones. The values are checked by
    /// [`Config::check`], not here.
    ///
    /// # Errors
    /// The name of an unknown limit, or of one with another type.
    pub fn limits(&self, general: &Limits) -> Result<Limits, String> {
        let mut table = toml::Table::try_from(general).map_err(|error| error.to_string())?;
        table.extend(self.limits.clone());
        table.try_into().map_err(|error: toml::de::Error| {
            format!("`router.limits` of `{}`: {}", self.name, error.message())
        })
    }
}

/// `[[module]]`: a module that the configuration declares by its source.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleConfig {
    /// The name that it is served under. A module that was loaded or unloaded under this name at
    /// run time stands in place of the declared one.
    pub name: String,
    /// The place that it comes from: a path, a web address, an object store, `hf://owner/name`, or
    /// `oci:DIR`.
    pub source: String,
    /// The generation that it must have, 64 hexadecimal digits; another one is not loaded. `None`
    /// takes any.
    #[serde(default)]
    pub generation: Option<String>,
    /// Keeps its weights in memory. Pinned modules are loaded before the others.
    #[serde(default)]
    pub pinned: bool,
    /// Other names that it is served under.
    #[serde(default)]
    pub aliases: Vec<String>,
}

/// `[residency]`: memory for the weights of modules; see [`Budget`].
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResidencySettings {
    /// MiB of weights in memory, 1 or more; without it all stay. Weights over the bound are evicted
    /// and read again when a request needs them.
    pub max_mib: Option<usize>,
    /// The time for which requests whose modules are in memory may overtake one that waits, in
    /// milliseconds.
    pub patience_milliseconds: u64,
    /// Longest wait for room, in seconds; after it a request is refused.
    pub max_wait_seconds: u64,
    /// Requests that may wait for room; one more is refused at once with 429.
    pub max_waiting: usize,
}

impl Default for ResidencySettings {
    fn default() -> Self {
        let budget = Budget::default();
        Self {
            max_mib: None,
            patience_milliseconds: budget.patience.as_millis() as u64,
            max_wait_seconds: budget.max_wait.as_secs(),
            max_waiting: budget.max_waiting,
        }
    }
}

impl ResidencySettings {
    /// The library's form, in bytes and durations.
    pub fn budget(&self) -> Budget {
        Budget {
            max_bytes: self.max_mib.map(|mib| mib << 20),
            patience: Duration::from_millis(self.patience_milliseconds),
            max_wait: Duration::from_secs(self.max_wait_seconds),
            max_waiting: self.max_waiting,
        }
    }
}

/// `[[skill_set]]`: a named composition of a router and its candidate modules.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SkillSet {
    /// The name that clients send as `model`. It differs from the base's and from those of other
    /// sets.
    pub id: String,
    /// The router, or a chain of several: `retrieval+arrow`. It must be loaded when the server
    /// starts.
    pub router: String,
    /// Names, globs or `tag:...` of the modules that the router may pick; empty means all.
    #[serde(default)]
    pub modules: Vec<String>,
    /// Modules by name and weight that are always on: they act on every row, whatever the router
    /// picks. Weights lie within ±[`MAX_WEIGHT`].
    #[serde(default)]
    pub adapters: BTreeMap<String, f32>,
    /// Parameters over the router's own, scalars only; those of a request hold over them.
    #[serde(default)]
    pub params: toml::Table,
}

/// `[engine]`: bounds of the engine; see `EngineConfig`, which has the defaults.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSettings {
    /// Requests that may wait, 1 to 65,536; one more is refused with 429.
    pub max_waiting: usize,
    /// Requests in execution at once, 1 to 65,536.
    pub max_running: usize,
    /// Rows per step, of prompts and of generated tokens, 1 to 65,536. It bounds the running
    /// requests too.
    pub max_rows: usize,
    /// Rows of prompts per step while other requests decode, 1 to 65,536. Smaller steps bring their
    /// next tokens sooner, and prompts take longer.
    pub max_prompt_rows_while_decoding: usize,
    /// Tokens whose keys and values the KV cache holds, over all requests, from 16 on. One request
    /// cannot be longer than this.
    pub max_cached_tokens: usize,
    /// Lets requests with the same beginning and composition share its keys and values.
    pub prefix_cache: bool,
    /// Compute threads, up to 1,024; 0 for as many as the machine suggests.
    pub threads: usize,
}

impl Default for EngineSettings {
    fn default() -> Self {
        let engine = polyskill_engine::EngineConfig::default();
        Self {
            max_waiting: engine.max_waiting,
            max_running: engine.max_running,
            max_rows: engine.max_rows,
            max_prompt_rows_while_decoding: engine.max_prompt_rows_while_decoding,
            max_cached_tokens: engine.max_cached_tokens,
            prefix_cache: engine.prefix_cache,
            threads: 0,
        }
    }
}

impl EngineSettings {
    /// The engine's form. `threads` is not part of it: the model's compute pool has them.
    pub fn to_engine(&self) -> polyskill_engine::EngineConfig {
        polyskill_engine::EngineConfig {
            max_waiting: self.max_waiting,
            max_running: self.max_running,
            max_rows: self.max_rows,
            max_prompt_rows_while_decoding: self.max_prompt_rows_while_decoding,
            max_cached_tokens: self.max_cached_tokens,
            prefix_cache: self.prefix_cache,
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration {path}: {source}", path = path.display())]
    Io {
        /// The configuration file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is no TOML, or has an unknown key or a value of another type.
    #[error("configuration {path}: {reason}", path = path.display())]
    Malformed {
        /// The configuration file.
        path: PathBuf,
        /// The parser's message, with line and column.
        reason: String,
    },
    /// A value that no server can run with.
    #[error("configuration: `{name}` is {found}, expected {expected}")]
    Value {
        /// The key, with its table: `engine.max_rows`.
        name: String,
        /// The value in the configuration, as shown to people.
        found: String,
        /// The range or form of values that are taken.
        expected: String,
    },
}

/// A [`ConfigError::Value`] from its parts.
fn bad_value(
    name: impl Into<String>,
    found: impl Into<String>,
    expected: impl Into<String>,
) -> ConfigError {
    ConfigError::Value { name: name.into(), found: found.into(), expected: expected.into() }
}

/// Default address of the listener: this machine alone.
const LISTEN: &str = "127.0.0.1:8080";
/// Most requests in a queue, and most of everything that is kept per request. Queues, steps and
/// threads beyond these sizes are mistakes, and the engine allocates some of them.
const MOST_REQUESTS: u64 = 1 << 16;
/// Most rows in a step.
const MOST_ROWS: u64 = 1 << 16;
/// Most tokens in the KV cache.
const MOST_CACHED_TOKENS: u64 = 1 << 28;
/// Most compute threads.
const MOST_THREADS: u64 = 1 << 10;
/// Most MiB of a plugin's memory or file: a WebAssembly memory has at most 4 GiB.
const MOST_PLUGIN_MIB: u64 = 1 << 12;
/// Most MiB of rows that a plugin defines; they lie in the host's memory.
const MOST_DEFINITION_MIB: u64 = 1 << 20;
/// Most MiB of modules' weights.
const MOST_MODULE_MIB: u64 = 1 << 24;
/// Most picks of one `route`, and most entries of a plugin's table.
const MOST_PICKS: u64 = 1 << 24;
/// Most KiB of a plugin's stack: calls run on threads of this program, whose stacks are 2 MiB.
const MOST_STACK_KIB: u64 = 1 << 10;
/// Most instances of plugins.
const MOST_INSTANCES: u64 = 1 << 12;
/// Most seconds of any period, about half a year.
const MOST_SECONDS: u64 = 1 << 24;
/// Most bytes of a request body.
const MOST_BODY_BYTES: u64 = 1 << 32;

impl Config {
    /// The address to listen on, `127.0.0.1:8080` unless configured.
    pub fn listen(&self) -> &str {
        self.listen.as_deref().unwrap_or(LISTEN)
    }

    /// Refuses a configuration that no server can run with.
    ///
    /// It looks at values alone: files, directories and addresses are found to be missing when they
    /// are used.
    ///
    /// # Errors
    /// The first such value.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !is_address(self.listen()) {
            let expected = "host:port, such as 127.0.0.1:8080";
            return Err(bad_value("listen", format!("`{}`", self.listen()), expected));
        }
        for (name, value) in [
            ("model", &self.model),
            ("served_model_name", &self.served_model_name),
            ("api_key", &self.api_key),
            ("admin_key", &self.admin_key),
        ] {
            if value.as_ref().is_some_and(String::is_empty) {
                return Err(bad_value(name, "empty", "at least one character, or no such key"));
            }
        }
        self.check_numbers()?;
        self.check_modules()?;
        self.check_names()
    }

    /// Checks sources, pins, signatures and traces: each declared module has a name of its own, a
    /// source that parses, and a generation that parses.
    fn check_modules(&self) -> Result<(), ConfigError> {
        let traces = self.traces.problems().into_iter().map(|problem| ("traces", problem));
        let fetch = self.fetch.problems().into_iter().map(|problem| ("fetch", problem));
        let trust =
            self.module_trust.problems().into_iter().map(|problem| ("module_trust", problem));
        if let Some((table, problem)) = fetch.chain(trust).chain(traces).next() {
            return Err(bad_value(table, problem, "values that a module can be loaded with"));
        }
        let mut seen = BTreeSet::new();
        for module in &self.module {
            let place = format!("module `{}`", module.name);
            if !seen.insert(&module.name) {
                return Err(bad_value(
                    "module.name",
                    format!("`{}` twice", module.name),
                    "each name once",
                ));
            }
            if let Err(error) = module.source.parse::<polyskill_sources::Source>() {
                return Err(bad_value(place, error.to_string(), "a source"));
            }
            let pin = module.generation.as_deref().map(str::parse::<polyskill_sources::Pin>);
            if let Some(Err(error)) = pin {
                return Err(bad_value(place, error.to_string(), "a generation"));
            }
        }
        Ok(())
    }

    /// Checks the ranges of all numbers, and the limits of plugins as they hold for each router.
    fn check_numbers(&self) -> Result<(), ConfigError> {
        let engine = &self.engine;
        let body = self.max_body_bytes.map_or(1, |bytes| bytes as u64);
        let prompt_rows = engine.max_prompt_rows_while_decoding as u64;
        for (name, value, least, most) in [
            ("max_body_bytes", body, 1, MOST_BODY_BYTES),
            ("engine.max_waiting", engine.max_waiting as u64, 1, MOST_REQUESTS),
            ("engine.max_running", engine.max_running as u64, 1, MOST_REQUESTS),
            ("engine.max_rows", engine.max_rows as u64, 1, MOST_ROWS),
            ("engine.max_prompt_rows_while_decoding", prompt_rows, 1, MOST_ROWS),
            // One block of the cache.
            ("engine.max_cached_tokens", engine.max_cached_tokens as u64, 16, MOST_CACHED_TOKENS),
            ("engine.threads", engine.threads as u64, 0, MOST_THREADS),
            ("keep_plans", self.keep_plans as u64, 0, MOST_REQUESTS),
            ("residency.max_mib", self.residency.max_mib.unwrap_or(1) as u64, 1, MOST_MODULE_MIB),
            ("residency.max_wait_seconds", self.residency.max_wait_seconds, 0, MOST_SECONDS),
            ("residency.max_waiting", self.residency.max_waiting as u64, 0, MOST_REQUESTS),
            ("keep_rows", self.keep_rows as u64, 0, MOST_REQUESTS),
            ("faults.max_faults", self.faults.max_faults as u64, 1, MOST_REQUESTS),
            ("faults.window_seconds", self.faults.window_seconds, 1, MOST_SECONDS),
            ("faults.backoff_seconds", self.faults.backoff_seconds, 1, MOST_SECONDS),
            ("faults.forgiven_after_seconds", self.faults.forgiven_after_seconds, 1, MOST_SECONDS),
        ] {
            in_range(name, value, least, most)?;
        }
        check_limits(&self.limits)?;
        for router in &self.router {
            let limits = router.limits(&self.limits);
            let limits = limits.map_err(|reason| {
                bad_value(format!("router `{}`", router.name), reason, "limits as in [limits]")
            })?;
            check_limits(&limits)?;
        }
        Ok(())
    }

    /// Checks that each router and skill set has a name of its own, that parameters are scalars,
    /// and that no skill set takes the configured name of the base. A base that is named by its
    /// path is compared at the start, not here.
    fn check_names(&self) -> Result<(), ConfigError> {
        let sets = self.skill_set.iter().map(|set| ("skill_set", "id", &set.id, &set.params));
        let routers =
            self.router.iter().map(|router| ("router", "name", &router.name, &router.params));
        let mut seen = BTreeSet::new();
        for (table, key, name, params) in sets.chain(routers) {
            let found = format!("`{name}`");
            if name.is_empty() {
                return Err(bad_value(format!("{table}.{key}"), "empty", "a name"));
            }
            if !seen.insert((table, name)) {
                let found = format!("{found} twice");
                return Err(bad_value(format!("{table}.{key}"), found, "each name once"));
            }
            parameters(params).map_err(|reason| {
                bad_value(
                    format!("{table}.params"),
                    format!("that of {found}: {reason}"),
                    "scalars",
                )
            })?;
        }
        self.check_beside()?;
        let base = self.served_model_name.as_ref();
        match self.skill_set.iter().find(|set| Some(&set.id) == base) {
            Some(set) => {
                let found = format!("`{}`, the name of the base model", set.id);
                Err(bad_value("skill_set.id", found, "a name of its own"))
            }
            None => Ok(()),
        }
    }

    /// Checks the weights of modules that are always on in a skill set: the range is that of
    /// weights in requests.
    fn check_beside(&self) -> Result<(), ConfigError> {
        let mut all = self.skill_set.iter().flat_map(|set| &set.adapters);
        match all.find(|(_, weight)| !(-MAX_WEIGHT..=MAX_WEIGHT).contains(*weight)) {
            Some((name, weight)) => {
                let found = format!("{weight} for `{name}`");
                Err(bad_value("skill_set.adapters", found, "weights from -1000 to 1000"))
            }
            None => Ok(()),
        }
    }

    /// Reads a file. The values are not checked: [`Config::check`] does that, after flags and
    /// variables have been applied.
    ///
    /// # Errors
    /// If it cannot be read or holds what is not known.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Io { path: path.to_owned(), source })?;
        toml::from_str(&text).map_err(|error| ConfigError::Malformed {
            path: path.to_owned(),
            reason: error.to_string(),
        })
    }
}

/// Refuses a value outside of `least..=most`; `name` is the key in the error. A `most` of
/// `u64::MAX` stands for no upper bound.
fn in_range(name: &str, value: u64, least: u64, most: u64) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let expected = match most {
        u64::MAX => format!("at least {least}"),
        most => format!("{least} to {most}"),
    };
    Err(bad_value(name, value.to_string(), expected))
}

/// Checks the ranges of a plugin's limits. A plugin needs two instances, one that plans and one
/// that decides rows.
fn check_limits(limits: &Limits) -> Result<(), ConfigError> {
    for (name, value, least, most) in [
        ("limits.memory_mib", limits.memory_mib as u64, 1, MOST_PLUGIN_MIB),
        ("limits.plan_fuel", limits.plan_fuel, 1, u64::MAX),
        ("limits.plan_milliseconds", limits.plan_milliseconds, 1, u64::MAX),
        ("limits.route_fuel", limits.route_fuel, 1, u64::MAX),
        ("limits.route_milliseconds", limits.route_milliseconds, 1, u64::MAX),
        ("limits.step_milliseconds", limits.step_milliseconds, 1, u64::MAX),
        ("limits.route_picks", limits.route_picks as u64, 1, MOST_PICKS),
        ("limits.stack_kib", limits.stack_kib as u64, 64, MOST_STACK_KIB),
        ("limits.file_mib", limits.file_mib, 1, MOST_PLUGIN_MIB),
        ("limits.max_instances", limits.max_instances.into(), 2, MOST_INSTANCES),
        ("limits.table_elements", limits.table_elements as u64, 1, MOST_PICKS),
        ("limits.setup_fuel", limits.setup_fuel, 1, u64::MAX),
        ("limits.setup_milliseconds", limits.setup_milliseconds, 1, u64::MAX),
        ("limits.definition_mib", limits.definition_mib as u64, 0, MOST_DEFINITION_MIB),
        ("limits.plan_items", limits.plan_items as u64, 1, u64::MAX),
    ] {
        in_range(name, value, least, most)?;
    }
    Ok(())
}

/// True for a text of the form `host:port`; that the host exists is seen when the server binds.
fn is_address(text: &str) -> bool {
    if text.parse::<std::net::SocketAddr>().is_ok() {
        return true;
    }
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    !host.is_empty() && host.chars().all(plain) && port.parse::<u16>().is_ok()
}

/// Scalars of a TOML table as router parameters. Integers become doubles.
///
/// # Errors
/// The name of a value that is no scalar.
pub fn parameters(table: &toml::Table) -> Result<Parameters, String> {
    let scalar = |(name, value): (&String, &toml::Value)| {
        let value = match value {
            toml::Value::Boolean(value) => Value::Flag(*value),
            toml::Value::Integer(value) => Value::Number(*value as f64),
            toml::Value::Float(value) => Value::Number(*value),
            toml::Value::String(value) => Value::Text(value.clone()),
            other => {
                return Err(format!(
                    "parameter `{name}` has the type {}, expected a scalar",
                    other.type_str()
                ));
            }
        };
        Ok((name.clone(), value))
    };
    table.iter().map(scalar).collect::<Result<_, _>>().map(Parameters)
}

/// Parameters from the command line, `name=value` each. A value is a number where it parses as one,
/// else a flag where it is `true` or `false`, else text.
///
/// # Errors
/// The first that has no `=`.
pub fn parse_parameters(texts: &[String]) -> Result<Parameters, String> {
    let parse = |text: &String| {
        let (name, value) =
            text.split_once('=').ok_or_else(|| format!("--param `{text}`, expected name=value"))?;
        let value = match (value.parse::<f64>(), value.parse::<bool>()) {
            (Ok(number), _) => Value::Number(number),
            (_, Ok(flag)) => Value::Flag(flag),
            _ => Value::Text(value.to_owned()),
        };
        Ok((name.to_owned(), value))
    };
    texts.iter().map(parse).collect::<Result<_, _>>().map(Parameters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_no_server_can_run_with_are_refused_by_name() {
        for (text, parts) in [
            ("listen = \"nope\"", ["`listen` is `nope`", "host:port"]),
            ("listen = \"localhost:99999\"", ["localhost:99999", "host:port"]),
            ("listen = \":80\"", ["`listen` is `:80`", "host:port"]),
            ("api_key = \"\"", ["`api_key` is empty", "character"]),
            ("max_body_bytes = 0", ["`max_body_bytes` is 0", "1 to"]),
            ("[engine]\nmax_rows = 0", ["`engine.max_rows` is 0", "1 to 65536"]),
            ("[engine]\nmax_waiting = 9000000000000000000", ["`engine.max_waiting`", "65536"]),
            ("[engine]\nmax_cached_tokens = 15", ["`engine.max_cached_tokens` is 15", "16 to"]),
            ("[engine]\nthreads = 5000", ["`engine.threads` is 5000", "0 to 1024"]),
            ("[limits]\nmemory_mib = 8192", ["`limits.memory_mib` is 8192", "1 to 4096"]),
            ("[limits]\nplan_fuel = 0", ["`limits.plan_fuel` is 0", "at least 1"]),
            (
                "[[router]]\nname = \"a\"\n[[router]]\nname = \"a\"",
                ["`router.name` is `a` twice", "once"],
            ),
            (
                "[[router]]\nname = \"a\"\nparams = { k = [1] }",
                ["`router.params`", "`k` has the type array"],
            ),
            (
                "served_model_name = \"a\"\n[[skill_set]]\nid = \"a\"\nrouter = \"r\"",
                ["`skill_set.id` is `a`", "base model"],
            ),
            (
                "[[skill_set]]\nid = \"a\"\nrouter = \"r\"\nadapters = { b = inf }",
                ["`skill_set.adapters` is inf for `b`", "-1000 to 1000"],
            ),
        ] {
            let config: Config = toml::from_str(text).unwrap();
            let message = config.check().unwrap_err().to_string();
            assert!(parts.iter().all(|part| message.contains(part)), "{text}: {message}");
        }
        for listen in ["0.0.0.0:0", "[::1]:8080", "localhost:80"] {
            let config = Config { listen: Some(listen.to_owned()), ..Config::default() };
            config.check().unwrap();
        }
        Config::default().check().unwrap();
    }

    #[test]
    fn unknown_keys_are_refused_by_name() {
        let error = toml::from_str::<Config>("listne = \"x\"").unwrap_err().to_string();
        assert!(error.contains("listne") && error.contains("listen"), "{error}");
        let config: Config = toml::from_str(
            "[[skill_set]]\nid = \"skills\"\nrouter = \"arrow\"\nmodules = [\"*\"]\n[skill_set.params]\ntop_k = 2",
        )
        .unwrap();
        assert_eq!(config.skill_set[0].id, "skills");
        let parsed = parameters(&config.skill_set[0].params).unwrap();
        assert_eq!(parsed.integer("top_k", 3, 1), Ok(2));
    }
}
