//! The served whole: model, text, library, routers and engine.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use polyskill_adapters::native::kept_experts;
use polyskill_adapters::{Generation, Library};
use polyskill_engine::{Composer, Engine};
use polyskill_front::Front;
use polyskill_model::{Compute, Decoder, load};
use polyskill_route::{RouteSpec, RouterSpec};
use polyskill_tokenizer::Tokenizer;

use crate::api::MAX_BODY_BYTES;
use crate::audit::Audit;
use crate::config::{Config, SkillSet};
use crate::experiments::Experiments;
use crate::metrics::Metrics;
use crate::modules::Modules;
use crate::routers::Routers;
use crate::startup::{Report, StartupEvent};
use crate::traces::Traces;
use polyskill_sources::base_models;

/// A reason for which the server does not start.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(String);

/// A start error with the text of another one.
fn start_error(what: impl std::fmt::Display) -> StartError {
    StartError(what.to_string())
}

/// Everything that requests need. It is shared by all handlers, and every part of it can be used
/// from several threads.
#[derive(Debug)]
pub struct Service {
    /// The base model's name in requests and metrics.
    pub base_name: String,
    /// The base's tokenizer and chat templates.
    pub tokenizer: Arc<Tokenizer>,
    /// Makes compositions, and holds the library of modules and the serving routers.
    pub composer: Arc<Composer>,
    /// Loads modules into the composer's library.
    pub modules: Modules,
    /// Loads routers into the composer.
    pub routers: Routers,
    /// Deals arms of experiments to requests, and counts outcomes.
    pub experiments: Arc<Experiments>,
    /// Keeps and sends the traces of sampled requests.
    pub traces: Traces,
    /// Runs requests, on a thread of its own.
    pub engine: Engine,
    /// The base model, frozen.
    pub model: Arc<Decoder>,
    /// Named compositions, in the order of the configuration.
    pub skill_sets: Vec<SkillSet>,
    /// Prometheus metrics, rendered at `/metrics`.
    pub metrics: Metrics,
    /// True where holders of the API key may load and unload modules.
    pub allow_runtime_lora_updating: bool,
    /// Bearer key of requests; `None` asks for none.
    pub api_key: Option<String>,
    /// Bearer key of the admin routes; `None` turns them off.
    pub admin_key: Option<String>,
    /// The part that stands before the answers.
    pub front: Front,
    /// Plans that are kept to be recorded; 0 where none are.
    pub keep_plans: usize,
    /// Rows that are kept per router; 0 where none are.
    pub keep_rows: usize,
    /// The time of the start in seconds since 1970, for `created` of models.
    pub started: u64,
}

impl Service {
    /// Loads everything that the configuration names, and starts the engine. `report` hears of each
    /// stage.
    ///
    /// The order matters: modules come before the composer, which lists them to routers, and
    /// routers before skill sets and experiments, which name them.
    ///
    /// # Errors
    /// If the configuration does not pass its check, the model cannot be served, or a configured
    /// skill set or experiment names what is not there. A module or plugin that cannot be loaded is
    /// reported and left out.
    pub fn start(config: &Config, report: &mut Report<'_>) -> Result<Self, StartError> {
        config.check().map_err(start_error)?;
        let name = config.model.clone().unwrap_or_else(|| base_models::SMOLLM2.name.to_owned());
        let path =
            base_models::resolve(&name, &mut |stage| report(StartupEvent::Stage(stage.to_owned())));
        let path = path.map_err(start_error)?;
        let compute = Arc::new(
            match config.engine.threads {
                0 => Compute::for_this_machine(),
                threads => Compute::new(threads),
            }
            .with_activation_bits(config.engine.activation_bits()),
        );
        let kept = config.keep_experts.as_deref().map(kept_experts).transpose();
        let kept = kept.map_err(start_error)?.unwrap_or_default();
        let model = load::load_keeping(&path, compute, &kept.layers, &mut |done, total| {
            let percent = 100 * done / total.max(1);
            report(StartupEvent::Stage(format!("loading {} {percent} %", path.display())));
        });
        let model = Arc::new(model.map_err(start_error)?);
        let digest = Generation(model.weights_digest()).to_string();
        if let Some(other) = kept.base_digest.filter(|other| *other != digest) {
            let reason =
                format!("`keep_experts` was made for the base {other}, this one is {digest}");
            return Err(start_error(reason));
        }
        let tokenizer = Arc::new(Tokenizer::load(&path).map_err(start_error)?);
        let library = Arc::new(Library::default());
        let audit = Arc::new(Audit::open(config.audit_log.as_deref()).map_err(start_error)?);
        let base_name = config.served_model_name.clone().unwrap_or_else(|| base_name(&name, &path));
        let reserved = reserved_names(config, &base_name);
        let modules = Modules::new(config, &model, &library, &audit, reserved);
        let modules = modules.map_err(start_error)?;
        modules.load_all(report).map_err(start_error)?;
        let composer = Arc::new(Composer::new(&model, library));
        let told = Arc::clone(&composer);
        modules.on_change(move || told.refresh_routers());
        composer.keep_plans(config.keep_plans);
        let routers = Routers::new(config, &audit).map_err(start_error)?;
        routers.load_all(&composer, report).map_err(start_error)?;
        let skill_sets = skill_sets(config, &composer)?;
        let experiments = Experiments::open(config.experiments.clone(), Arc::clone(&audit));
        let experiments = Arc::new(experiments.map_err(start_error)?);
        let traces = Traces::open(config.traces.clone()).map_err(start_error)?;
        for declaration in &config.experiment {
            let declared = experiments.declare(declaration.clone(), &composer, "configuration");
            declared.map_err(start_error)?;
        }
        let engine =
            Engine::start(Arc::clone(&model), config.engine.bounds()).map_err(start_error)?;
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Ok(Self {
            metrics: Metrics::new(&base_name),
            base_name,
            tokenizer,
            composer,
            modules,
            routers,
            experiments,
            traces,
            engine,
            model,
            skill_sets,
            allow_runtime_lora_updating: config.allow_runtime_lora_updating,
            api_key: config.api_key.clone(),
            admin_key: config.admin_key.clone(),
            front: front(config),
            keep_plans: config.keep_plans,
            keep_rows: config.keep_rows,
            started: since_epoch.map_or(0, |since| since.as_secs()),
        })
    }
}

impl Service {
    /// Tokens that end an answer: those of the model's configuration and those of its tokenizer,
    /// ascending and each once.
    pub fn end_tokens(&self) -> Vec<u32> {
        let mut ends = self.model.config().eos_tokens.clone();
        ends.extend(self.tokenizer.end_tokens());
        ends.sort_unstable();
        ends.dedup();
        ends
    }
}

/// The front of a server, as configured.
fn front(config: &Config) -> Front {
    let stuck = Some(config.engine.stuck_seconds).filter(|seconds| *seconds > 0);
    Front::new(
        &config.connections,
        &config.tenant,
        config.listen(),
        config.max_body_bytes.unwrap_or(MAX_BODY_BYTES),
        stuck.map(Duration::from_secs),
    )
}

/// The model's name; of a path that exists the folder's name, or the file's without its ending.
fn base_name(name: &str, path: &Path) -> String {
    if !Path::new(name).exists() {
        return name.to_owned();
    }
    let stem = if path.is_dir() { path.file_name() } else { path.file_stem() };
    stem.map_or_else(|| "base".to_owned(), |stem| stem.to_string_lossy().into_owned())
}

/// The name of the skill set that there is without any in the configuration.
const DEFAULT_SET: &str = "skills";

/// Names that no module may take: those of the skill sets and of the base. The default set's name
/// is reserved even where no router is loaded.
fn reserved_names(config: &Config, base_name: &str) -> Vec<String> {
    let sets = config.skill_set.iter().map(|set| set.id.clone());
    let default = config.skill_set.is_empty().then(|| DEFAULT_SET.to_owned());
    sets.chain(default).chain([base_name.to_owned()]).collect()
}

/// The configured skill sets, with their routers and parameters checked.
///
/// Without any, there is one over all modules, whose router is Arrow where it is loaded, else the
/// first router. Without a router there is none.
///
/// # Errors
/// If a set names a router that is not loaded.
fn skill_sets(config: &Config, composer: &Composer) -> Result<Vec<SkillSet>, StartError> {
    let routers = composer.routers();
    for set in &config.skill_set {
        composer
            .check_chain(set.router())
            .map_err(|error| start_error(format!("skill set `{}`: {error}", set.id)))?;
    }
    if !config.skill_set.is_empty() {
        return Ok(config.skill_set.clone());
    }
    let default = routers.iter().find(|router| router.name == "arrow").or(routers.first());
    Ok(default
        .map(|router| SkillSet {
            id: DEFAULT_SET.to_owned(),
            route: RouteSpec {
                router: Some(RouterSpec {
                    modules: vec!["*".to_owned()],
                    ..RouterSpec::named(&router.name)
                }),
                adapters: None,
            },
        })
        .into_iter()
        .collect())
}
