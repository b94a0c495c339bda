//! The configuration: one TOML file, overridden by flags and `POLYSKILL_*` variables.

mod check;
mod parameters;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use polyskill_adapters::Budget;
use polyskill_engine::FaultPolicy;
use polyskill_model::ActivationBits;
use polyskill_plugin::{Capability, Limits, Trust};
use polyskill_sources::{FetchLimits, ModuleTrust, Policy};
use serde::{Deserialize, Serialize};

pub use check::ConfigError;
pub use parameters::{parameters, parse_parameters};

use crate::experiments::ExperimentSettings;
use crate::traces::TraceSettings;

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
    /// picks. Weights lie within ±[`polyskill_engine::MAX_WEIGHT`].
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
    /// Bits of activations in products with quantised weights, 8 or 16. 16 doubles the time of these
    /// products; log-probabilities are then those of the dequantised weights, which evaluations may want.
    pub activation_bits: u32,
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
            activation_bits: 8,
        }
    }
}

impl EngineSettings {
    /// The model's form of `activation_bits`.
    pub fn activation_bits(&self) -> ActivationBits {
        match self.activation_bits {
            16 => ActivationBits::Sixteen,
            _ => ActivationBits::Eight,
        }
    }

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

/// Default address of the listener: this machine alone.
const LISTEN: &str = "127.0.0.1:8080";
impl Config {
    /// The address to listen on, `127.0.0.1:8080` unless configured.
    pub fn listen(&self) -> &str {
        self.listen.as_deref().unwrap_or(LISTEN)
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
            ("[experiments]\nmax_shadows = 70000", ["`experiments.max_shadows` is 70000", "65536"]),
            ("[traces]\nfile_mib = 90000000000", ["`traces.file_mib`", "0 to"]),
            ("[engine]\nactivation_bits = 12", ["`engine.activation_bits` is 12", "8 or 16"]),
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
