//! The configuration: one TOML file, overridden by flags and `POLYSKILL_*` variables.

mod check;

use std::path::{Path, PathBuf};

use polyskill_adapters::Budget;
use polyskill_engine::{EngineConfig, FaultPolicy, OnFault};
use polyskill_front::{ConnectionSettings, TenantConfig};
use polyskill_model::ActivationBits;
use polyskill_plugin::{Capability, Limits, Trust};
use polyskill_route::RouteSpec;
use polyskill_sdk::Parameters;
use polyskill_sources::{FetchLimits, ModuleTrust, Policy};
use serde::{Deserialize, Serialize};

pub use check::ConfigError;

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
    /// `[[tenant]]`: senders with keys of their own, and their shares. Where there are any, every
    /// request needs the API key or one of theirs.
    pub tenant: Vec<TenantConfig>,
    /// `[connections]`: bounds of connections and request bodies, and who may send requests from a
    /// browser.
    pub connections: ConnectionSettings,
    /// `[engine]`: bounds of the queue, the steps and the KV cache.
    pub engine: EngineSettings,
    /// `[limits]`: memory, time and instructions of plugins, each for all routers that set none of
    /// their own.
    pub limits: Limits,
    /// `[trust]`: the signers whose plugins are loaded.
    pub trust: Trust,
    /// `[faults]`: the treatment of routers that fail, and of their requests.
    pub faults: FaultPolicy,
    /// `[[module]]`: modules other than those in `adapters`, each with its source.
    pub module: Vec<ModuleConfig>,
    /// `[residency]`: memory for the weights of modules.
    pub residency: Budget,
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

/// `[[router]]`: the settings of one router.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RouterConfig {
    /// The name in the plugin's manifest. Each router has at most one entry.
    pub name: String,
    /// Its parameters, scalars only. Parameters of a skill set and of a request hold over them.
    #[serde(default, with = "polyskill_route::params")]
    pub params: Parameters,
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

/// `[[skill_set]]`: a route under a name, with a router and its candidate modules.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SkillSet {
    /// The name that clients send as `model`. It differs from the base's and from those of other
    /// sets.
    pub id: String,
    /// The router, which is needed and must be loaded when the server starts, and the modules that
    /// act whatever it picks, with weights within ±[`polyskill_engine::MAX_WEIGHT`]. The request's
    /// own parameters hold over those of the router here.
    #[serde(flatten)]
    pub route: RouteSpec,
}

impl SkillSet {
    /// The set's router, or the chain; empty before [`Config::check`] has refused it.
    pub fn router(&self) -> &str {
        self.route.deciding_router().map_or("", |router| &router.name)
    }
}

/// `[engine]`: bounds of the engine, and the arithmetic.
///
/// The bounds are not flattened in: an error would not name its key then.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSettings {
    /// See [`EngineConfig::max_waiting`], 1 to 65,536.
    pub max_waiting: usize,
    /// See [`EngineConfig::max_running`], 1 to 65,536.
    pub max_running: usize,
    /// See [`EngineConfig::max_rows`], 1 to 65,536.
    pub max_rows: usize,
    /// See [`EngineConfig::max_prompt_rows_while_decoding`], 1 to 65,536.
    pub max_prompt_rows_while_decoding: usize,
    /// See [`EngineConfig::prompt_step_milliseconds`].
    pub prompt_step_milliseconds: u64,
    /// See [`EngineConfig::max_cached_tokens`], from 16 on.
    pub max_cached_tokens: usize,
    /// See [`EngineConfig::prefix_cache`].
    pub prefix_cache: bool,
    /// Compute threads, up to 1,024; 0 for as many as the machine suggests.
    pub threads: usize,
    /// Time after which a step counts as stuck, in seconds, 300 by default; the process then ends with
    /// a reason in the log, so that whoever watches it starts another. 0 waits for ever.
    pub stuck_seconds: u64,
    /// Bits of activations in products with quantised weights, 8 or 16. 16 doubles the time of these
    /// products; log-probabilities are then those of the dequantised weights, which evaluations may want.
    pub activation_bits: u32,
}

impl Default for EngineSettings {
    fn default() -> Self {
        let engine = EngineConfig::default();
        Self {
            max_waiting: engine.max_waiting,
            max_running: engine.max_running,
            max_rows: engine.max_rows,
            max_prompt_rows_while_decoding: engine.max_prompt_rows_while_decoding,
            prompt_step_milliseconds: engine.prompt_step_milliseconds,
            max_cached_tokens: engine.max_cached_tokens,
            prefix_cache: engine.prefix_cache,
            threads: 0,
            stuck_seconds: 300,
            activation_bits: 8,
        }
    }
}

impl EngineSettings {
    /// The bounds as the engine takes them.
    pub fn bounds(&self) -> EngineConfig {
        EngineConfig {
            max_waiting: self.max_waiting,
            max_running: self.max_running,
            max_rows: self.max_rows,
            max_prompt_rows_while_decoding: self.max_prompt_rows_while_decoding,
            prompt_step_milliseconds: self.prompt_step_milliseconds,
            max_cached_tokens: self.max_cached_tokens,
            prefix_cache: self.prefix_cache,
        }
    }

    /// The model's form of `activation_bits`.
    pub fn activation_bits(&self) -> ActivationBits {
        match self.activation_bits {
            16 => ActivationBits::Sixteen,
            _ => ActivationBits::Eight,
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
                "served_model_name = \"a\"\n[[skill_set]]\nid = \"a\"\nrouter = \"r\"",
                ["`skill_set.id` is `a`", "base model"],
            ),
            (
                "[[skill_set]]\nid = \"a\"\nrouter = \"r\"\nadapters = { b = inf }",
                ["`skill_set.adapters` is inf for `b`", "-1000 to 1000"],
            ),
            ("[[skill_set]]\nid = \"a\"", ["`skill_set.router` is missing for `a`", "a router"]),
            (
                "[[skill_set]]\nid = \"a\"\nmodules = [\"*\"]",
                ["`skill_set` is `a`: `params` and `modules` need a `router`", "a route"],
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
        let params = &config.skill_set[0].route.router.as_ref().unwrap().params;
        assert_eq!(params.integer("top_k", 3, 1), Ok(2));
        for text in [
            "[[router]]\nname = \"a\"\nparams = { k = [1] }",
            "[[skill_set]]\nid = \"a\"\nrouter = { name = \"r\", params = { k = [1] } }",
        ] {
            let error = toml::from_str::<Config>(text).unwrap_err().to_string();
            assert!(error.contains("expected a flag, a number or a text"), "{error}");
        }
        let error = toml::from_str::<Config>("[[skill_set]]\nid = \"a\"\nrooter = \"r\"");
        assert!(error.unwrap_err().to_string().contains("unknown field `rooter`"));
    }
}
