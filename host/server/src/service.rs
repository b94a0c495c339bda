//! The served whole: model, text, library, routers and engine.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use polyskill_adapters::native::kept_experts;
use polyskill_adapters::{Generation, Library};
use polyskill_engine::{Composer, Engine, RouterRequest, Selection};
use polyskill_model::{Compute, Decoder, load};
use polyskill_tokenizer::Tokenizer;

use crate::audit::Audit;
use crate::config::{Config, SkillSet, parameters};
use crate::experiments::Experiments;
use crate::metrics::Metrics;
use crate::modules::Modules;
use crate::routers::Routers;
use crate::startup::{Report, StartupEvent};
use crate::traces::Traces;
use polyskill_sources::base_models;

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(String);

fn start_error(what: impl std::fmt::Display) -> StartError {
    StartError(what.to_string())
}

/// Everything that requests need.
#[derive(Debug)]
pub struct Service {
    /// Name of the base model.
    pub base_name: String,
    /// Tokenizer and chat templates.
    pub tokenizer: Arc<Tokenizer>,
    /// Makes compositions.
    pub composer: Composer,
    /// Loads modules into its library.
    pub modules: Modules,
    /// Loads routers into it.
    pub routers: Routers,
    /// Which arms answer which requests.
    pub experiments: Arc<Experiments>,
    /// Samples of requests.
    pub traces: Traces,
    /// Runs them.
    pub engine: Engine,
    /// The base model.
    pub model: Arc<Decoder>,
    /// Named compositions.
    pub skill_sets: Vec<SkillSet>,
    /// Prometheus metrics.
    pub metrics: Metrics,
    /// Whether holders of the API key may load and unload modules.
    pub allow_runtime_lora_updating: bool,
    /// Bearer key of requests.
    pub api_key: Option<String>,
    /// Bearer key of the admin routes.
    pub admin_key: Option<String>,
    /// Plans that are kept to be recorded.
    pub keep_plans: usize,
    /// Rows that are kept per router.
    pub keep_rows: usize,
    /// Seconds since the epoch, for `created`.
    pub started: u64,
}

impl Service {
    /// Loads everything that the configuration names. `report` hears of each stage.
    ///
    /// # Errors
    /// If the configuration does not pass its check, the model cannot be served, or a configured skill set names what is not there. A module or
    /// plugin that cannot be loaded is reported and left out.
    pub fn start(config: &Config, report: &mut Report<'_>) -> Result<Self, StartError> {
        config.check().map_err(start_error)?;
        let name = config.model.clone().unwrap_or_else(|| base_models::SMOLLM2.name.to_owned());
        let path =
            base_models::resolve(&name, &mut |stage| report(StartupEvent::Stage(stage.to_owned())));
        let path = path.map_err(start_error)?;
        let compute = Arc::new(match config.engine.threads {
            0 => Compute::for_this_machine(),
            threads => Compute::new(threads),
        });
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
        let composer = Composer::new(&model, library);
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
            Engine::start(Arc::clone(&model), config.engine.to_engine()).map_err(start_error)?;
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
            keep_plans: config.keep_plans,
            keep_rows: config.keep_rows,
            started: since_epoch.map_or(0, |since| since.as_secs()),
        })
    }

    /// What a model name stands for; `None` if nothing has this name.
    pub fn selection(&self, model: &str) -> Option<Selection> {
        if model == self.base_name {
            return Some(Selection::Base);
        }
        if let Some(set) = self.skill_sets.iter().find(|set| set.id == model) {
            return Some(Selection::Routed(RouterRequest {
                router: set.router.clone(),
                parameters: parameters(&set.params).unwrap_or_default(),
                modules: set.modules.clone(),
                always_on: set
                    .adapters
                    .iter()
                    .map(|(name, weight)| (name.clone(), *weight))
                    .collect(),
                ..RouterRequest::default()
            }));
        }
        let module = match model.split_once(':') {
            Some((base, module)) if base == self.base_name => module,
            Some(_) => return None,
            None => model,
        };
        let snapshot = self.composer.library().snapshot();
        snapshot.get(module).map(|_| Selection::Weighted(vec![(module.to_owned(), 1.0)]))
    }
}

impl Service {
    /// Tokens that end an answer: those of the model's configuration and those of its tokenizer.
    pub fn end_tokens(&self) -> Vec<u32> {
        let mut ends = self.model.config().eos_tokens.clone();
        ends.extend(self.tokenizer.end_tokens());
        ends.sort_unstable();
        ends.dedup();
        ends
    }

    /// True where two names stand for one module, be it through an alias.
    pub(crate) fn is_one_module(&self, a: &str, b: &str) -> bool {
        let snapshot = self.composer.library().snapshot();
        let name = |name: &str| snapshot.resolve(name).map(|(name, _)| name.to_owned());
        a == b || name(a).is_some_and(|a| name(b) == Some(a))
    }
}

/// The model's name, or what its path is called.
fn base_name(name: &str, path: &Path) -> String {
    if !Path::new(name).exists() {
        return name.to_owned();
    }
    let stem = if path.is_dir() { path.file_name() } else { path.file_stem() };
    stem.map_or_else(|| "base".to_owned(), |stem| stem.to_string_lossy().into_owned())
}

/// The skill set that there is without any in the configuration.
const DEFAULT_SET: &str = "skills";

/// Names that no module may take.
fn reserved_names(config: &Config, base_name: &str) -> Vec<String> {
    let sets = config.skill_set.iter().map(|set| set.id.clone());
    let default = config.skill_set.is_empty().then(|| DEFAULT_SET.to_owned());
    sets.chain(default).chain([base_name.to_owned()]).collect()
}

/// The configured skill sets; without any, `skills` over all modules where Arrow is loaded.
fn skill_sets(config: &Config, composer: &Composer) -> Result<Vec<SkillSet>, StartError> {
    let routers = composer.routers();
    for set in &config.skill_set {
        composer
            .check_chain(&set.router)
            .map_err(|error| start_error(format!("skill set `{}`: {error}", set.id)))?;
        parameters(&set.params).map_err(start_error)?;
    }
    if !config.skill_set.is_empty() {
        return Ok(config.skill_set.clone());
    }
    let default = routers.iter().find(|router| router.name == "arrow").or(routers.first());
    Ok(default
        .map(|router| SkillSet {
            id: DEFAULT_SET.to_owned(),
            router: router.name.clone(),
            modules: vec!["*".to_owned()],
            adapters: BTreeMap::new(),
            params: toml::Table::new(),
        })
        .into_iter()
        .collect())
}
