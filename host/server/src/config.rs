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
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A model name that `pull` knows, a hub repository, or a path.
    pub model: Option<String>,
    /// The name under which the base is served.
    pub served_model_name: Option<String>,
    /// An expert policy: of a sparse base, only the experts that it keeps are held in memory, for all requests.
    pub keep_experts: Option<PathBuf>,
    /// Address of the public listener.
    pub listen: Option<String>,
    /// Directories whose folders are modules.
    pub adapters: Vec<PathBuf>,
    /// Directories whose folders are routers.
    pub plugins: Vec<PathBuf>,
    /// Bearer key that requests must carry.
    pub api_key: Option<String>,
    /// Bearer key of the admin routes; without it they do not exist.
    pub admin_key: Option<String>,
    /// Largest request body.
    pub max_body_bytes: Option<usize>,
    /// Parameters per router.
    pub router: Vec<RouterConfig>,
    /// Named compositions that clients choose as `model`.
    pub skill_set: Vec<SkillSet>,
    /// What is tried on live traffic.
    pub experiment: Vec<polyskill_experiment::Declaration>,
    /// What is kept of experiments, and how long.
    pub experiments: ExperimentSettings,
    /// Which requests are traced, and where traces go.
    pub traces: TraceSettings,
    /// Bounds of the engine.
    pub engine: EngineSettings,
    /// Bounds of plugins.
    pub limits: Limits,
    /// Whose plugins are loaded.
    pub trust: Trust,
    /// What happens when a router fails.
    pub faults: FaultSettings,
    /// Modules beside those in `adapters`, each with its source.
    pub module: Vec<ModuleConfig>,
    /// Memory for modules.
    pub residency: ResidencySettings,
    /// From where modules may come, beside `adapters`.
    pub sources: Policy,
    /// Bounds of one fetch.
    pub fetch: FetchLimits,
    /// Whose modules are loaded.
    pub module_trust: ModuleTrust,
    /// A directory that keeps what is loaded and unloaded at run time, so that a restart serves the same.
    pub state: Option<PathBuf>,
    /// Whether the directories of modules are watched and changes loaded.
    pub watch_adapters: bool,
    /// Whether holders of `api_key` may load and unload modules over vLLM's routes, as with
    /// `VLLM_ALLOW_RUNTIME_LORA_UPDATING`.
    pub allow_runtime_lora_updating: bool,
    /// Whether the directories of plugins are watched and changes loaded.
    pub watch_plugins: bool,
    /// A file that gets a line of JSON for every change of the routers.
    pub audit_log: Option<PathBuf>,
    /// Plans that are kept to be recorded as fixtures, with what users wrote; 0 keeps none.
    pub keep_plans: usize,
    /// Rows that are kept per router of what its `route` decided, to be recorded as fixtures; 0 keeps none.
    pub keep_rows: usize,
}

/// What happens when a router fails; see `FaultPolicy`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct FaultSettings {
    /// What its requests get.
    pub on_fault: OnFault,
    /// Faults within the window that quarantine a router.
    pub max_faults: usize,
    /// The window.
    pub window_seconds: u64,
    /// The first quarantine; each next one is twice as long.
    pub backoff_seconds: u64,
    /// Returns from quarantine before the router stays out.
    pub max_returns: u32,
    /// Time without a fault after which earlier quarantines are forgotten.
    pub forgiven_after_seconds: u64,
}

/// What a request gets when its router fails.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum OnFault {
    /// The base model alone.
    #[default]
    BaseOnly,
    /// The version that served before, or the base model.
    Previous,
    /// An error.
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
    /// The engine's form, for a router that may have an answer of its own.
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

/// Parameters of one router.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RouterConfig {
    /// The plugin's name.
    pub name: String,
    /// Its parameters.
    #[serde(default)]
    pub params: toml::Table,
    /// Capabilities that it gets, of those that its manifest asks for.
    #[serde(default)]
    pub grant: Vec<Capability>,
    /// Limits other than those of `[limits]`.
    #[serde(default)]
    pub limits: toml::Table,
    /// What its requests get when it fails, other than `faults.on_fault`.
    #[serde(default)]
    pub on_fault: Option<OnFault>,
}

impl RouterConfig {
    /// Its limits: its own over the general ones.
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

/// A module that the configuration declares.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleConfig {
    /// The name that it is served under.
    pub name: String,
    /// Where it comes from: a path, a web address, an object store, `hf://owner/name`, or `oci:DIR`.
    pub source: String,
    /// The generation that it must have.
    #[serde(default)]
    pub generation: Option<String>,
    /// Whether its weights stay in memory.
    #[serde(default)]
    pub pinned: bool,
    /// Other names for it.
    #[serde(default)]
    pub aliases: Vec<String>,
}

/// Memory for modules' weights; see `Budget`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResidencySettings {
    /// MiB of weights in memory; without it all stay.
    pub max_mib: Option<usize>,
    /// How long requests whose modules are in memory may overtake one that waits.
    pub patience_milliseconds: u64,
    /// Longest wait for room; after it a request is refused.
    pub max_wait_seconds: u64,
    /// Requests that may wait for room.
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
    /// The library's form.
    pub fn budget(&self) -> Budget {
        Budget {
            max_bytes: self.max_mib.map(|mib| mib << 20),
            patience: Duration::from_millis(self.patience_milliseconds),
            max_wait: Duration::from_secs(self.max_wait_seconds),
            max_waiting: self.max_waiting,
        }
    }
}

/// A named composition.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SkillSet {
    /// What clients send as `model`.
    pub id: String,
    /// The router, or a chain of several: `retrieval+arrow`.
    pub router: String,
    /// Names, globs or `tag:...` of the modules; empty means all.
    #[serde(default)]
    pub modules: Vec<String>,
    /// Modules by name and weight that act on every row, whatever the router picks.
    #[serde(default)]
    pub adapters: BTreeMap<String, f32>,
    /// Parameters over the router's own.
    #[serde(default)]
    pub params: toml::Table,
}

/// Bounds of the engine; see `EngineConfig`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSettings {
    /// Requests that may wait.
    pub max_waiting: usize,
    /// Requests in execution.
    pub max_running: usize,
    /// Rows per step.
    pub max_rows: usize,
    /// Rows of prompts per step while others decode.
    pub max_prompt_rows_while_decoding: usize,
    /// Tokens in the KV cache.
    pub max_cached_tokens: usize,
    /// Whether requests with the same beginning and composition share its keys and values.
    pub prefix_cache: bool,
    /// Compute threads; 0 for all cores.
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
    /// The engine's form.
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
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not what was expected.
    #[error("configuration {path}: {reason}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// A value that no server can run with.
    #[error("configuration: `{name}` is {found}, expected {expected}")]
    Value {
        /// The key, with its table.
        name: String,
        /// What was found.
        found: String,
        /// What was expected.
        expected: String,
    },
}

fn bad_value(
    name: impl Into<String>,
    found: impl Into<String>,
    expected: impl Into<String>,
) -> ConfigError {
    ConfigError::Value { name: name.into(), found: found.into(), expected: expected.into() }
}

/// Where the server listens unless told otherwise.
const LISTEN: &str = "127.0.0.1:8080";
/// Queues, steps and threads beyond these sizes are mistakes, and the engine allocates some of them.
const MOST_REQUESTS: u64 = 1 << 16;
const MOST_ROWS: u64 = 1 << 16;
const MOST_CACHED_TOKENS: u64 = 1 << 28;
const MOST_THREADS: u64 = 1 << 10;
/// A WebAssembly memory has at most 4 GiB.
const MOST_PLUGIN_MIB: u64 = 1 << 12;
const MOST_DEFINITION_MIB: u64 = 1 << 20;
const MOST_MODULE_MIB: u64 = 1 << 24;
const MOST_PICKS: u64 = 1 << 24;
/// Calls run on threads of this program, whose stacks are 2 MiB.
const MOST_STACK_KIB: u64 = 1 << 10;
const MOST_INSTANCES: u64 = 1 << 12;
const MOST_SECONDS: u64 = 1 << 24;
const MOST_BODY_BYTES: u64 = 1 << 32;

impl Config {
    /// The address to listen on.
    pub fn listen(&self) -> &str {
        self.listen.as_deref().unwrap_or(LISTEN)
    }

    /// Refuses what no server can run with.
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

    /// Modules, their sources and signatures.
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
            in_range(name, value, (least, most))?;
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

    /// Names stand for one thing each, and parameters are scalars.
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

    /// What acts beside a skill set's router has a weight that requests may give, too.
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

    /// Reads a file.
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

fn in_range(name: &str, value: u64, (least, most): (u64, u64)) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    let expected = match most {
        u64::MAX => format!("at least {least}"),
        most => format!("{least} to {most}"),
    };
    Err(bad_value(name, value.to_string(), expected))
}

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
        in_range(name, value, (least, most))?;
    }
    Ok(())
}

/// Whether a text has the form `host:port`; whether the host exists is seen when the server binds.
fn is_address(text: &str) -> bool {
    if text.parse::<std::net::SocketAddr>().is_ok() {
        return true;
    }
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    !host.is_empty() && host.chars().all(plain) && port.parse::<u16>().is_ok()
}

/// Scalars of a TOML table as router parameters; anything else is named in the error.
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

/// Parameters from the command line, `name=value` each.
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
