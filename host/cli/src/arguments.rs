//! Arguments that several commands share.

use std::path::PathBuf;

use clap::Args;
use polyskill_route::{RouterSpec, params};
use polyskill_server::config::Config;

use crate::embedded;

/// Flags and variables of every command that loads a base.
///
/// A flag wins over its variable, and both win over the configuration file.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Configuration file (TOML).
    #[arg(long, env = "POLYSKILL_CONFIG")]
    config: Option<PathBuf>,
    /// Base model: a known name, a hub repository, a directory or a GGUF file.
    #[arg(long, env = "POLYSKILL_MODEL")]
    model: Option<String>,
    /// Name under which the base is served.
    #[arg(long, env = "POLYSKILL_SERVED_MODEL_NAME")]
    served_model_name: Option<String>,
    /// An expert policy: of a sparse base, hold only the experts in memory that it keeps, for all
    /// requests.
    #[arg(long, env = "POLYSKILL_KEEP_EXPERTS")]
    keep_experts: Option<PathBuf>,
    /// Directory whose folders are modules (PEFT).
    #[arg(long, env = "POLYSKILL_ADAPTERS")]
    adapters: Vec<PathBuf>,
    /// Directory whose folders are router plugins.
    #[arg(long, env = "POLYSKILL_PLUGINS")]
    plugins: Vec<PathBuf>,
    /// Address to listen on.
    #[arg(long, env = "POLYSKILL_LISTEN")]
    listen: Option<String>,
    /// Bearer key that requests must carry.
    #[arg(long, env = "POLYSKILL_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Bearer key that turns the admin routes on.
    #[arg(long, env = "POLYSKILL_ADMIN_KEY", hide_env_values = true)]
    admin_key: Option<String>,
    /// Development: load plugins without a trusted signature. They stay in their sandbox.
    #[arg(long, env = "POLYSKILL_ALLOW_UNSIGNED")]
    allow_unsigned: bool,
    /// Watch the directories of modules and load what changes.
    #[arg(long, env = "POLYSKILL_WATCH_ADAPTERS")]
    watch_adapters: bool,
    /// Directory that keeps what is loaded at run time, so that a restart serves the same.
    #[arg(long, env = "POLYSKILL_STATE")]
    state: Option<PathBuf>,
    /// MiB of modules' weights in memory; without it all stay.
    #[arg(long, env = "POLYSKILL_MAX_MODULE_MIB")]
    max_module_mib: Option<usize>,
    /// Let holders of the API key load and unload modules over vLLM's routes.
    #[arg(long, env = "VLLM_ALLOW_RUNTIME_LORA_UPDATING", value_parser = clap::builder::FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    allow_runtime_lora_updating: bool,
    /// Watch the directories of plugins and load what changes.
    #[arg(long, env = "POLYSKILL_WATCH_PLUGINS")]
    watch_plugins: bool,
}

impl ServeArgs {
    /// The configuration: the file first, then flags and variables over it, then folders of the
    /// working directory.
    ///
    /// Lists of directories replace those of the file. Switches only turn things on. Without any
    /// base and modules, `adapters/library` is taken; without any plugins, the routers that came with
    /// the program, which are then trusted without signatures. The result is not checked yet.
    ///
    /// # Errors
    /// If the file cannot be read or is no configuration, or the routers inside of the program cannot
    /// be unpacked.
    pub fn config(&self) -> Result<Config, String> {
        let mut config = match &self.config {
            Some(path) => Config::read(path).map_err(|error| error.to_string())?,
            None => Config::default(),
        };
        let flags = self.clone();
        config.model = flags.model.or(config.model);
        config.served_model_name = flags.served_model_name.or(config.served_model_name);
        config.keep_experts = flags.keep_experts.or(config.keep_experts);
        config.listen = flags.listen.or(config.listen);
        config.api_key = flags.api_key.or(config.api_key);
        config.admin_key = flags.admin_key.or(config.admin_key);
        if !flags.adapters.is_empty() {
            config.adapters = flags.adapters;
        }
        if !flags.plugins.is_empty() {
            config.plugins = flags.plugins;
        }
        config.trust.allow_unsigned |= flags.allow_unsigned;
        config.watch_plugins |= flags.watch_plugins;
        config.state = flags.state.or(config.state);
        let module_bytes = flags.max_module_mib.map(|mib| mib.saturating_mul(1 << 20));
        config.residency.max_bytes = module_bytes.or(config.residency.max_bytes);
        config.watch_adapters |= flags.watch_adapters;
        config.allow_runtime_lora_updating |= flags.allow_runtime_lora_updating;
        if config.adapters.is_empty() && config.model.is_none() {
            config.adapters.extend(shipped("adapters/library", "library"));
        }
        if config.plugins.is_empty() {
            add_shipped_routers(&mut config)?;
        }
        Ok(config)
    }
}

/// Adds the routers that came with the program: those inside of it, else those in a folder that was
/// built here or installed with it.
fn add_shipped_routers(config: &mut Config) -> Result<(), String> {
    if let Some((folder, digests)) = embedded::unpacked()? {
        config.plugins.push(folder);
        config.trust.digests.extend(digests);
    } else if let Some(folder) = shipped("target/plugins", "plugins") {
        config.plugins.push(folder.clone());
        config.trust.unsigned.push(folder);
    }
    Ok(())
}

/// A folder that came with the program: in a source tree that is the working directory, else
/// `share/polyskill` of the installation that the program lies in.
fn shipped(in_tree: &str, installed: &str) -> Option<PathBuf> {
    let program = std::env::current_exe().and_then(|path| path.canonicalize()).ok();
    let prefix = program.as_deref().and_then(|path| path.parent()?.parent());
    let installed = prefix.map(|prefix| prefix.join("share/polyskill").join(installed));
    let mut places = [Some(PathBuf::from(in_tree)), installed].into_iter().flatten();
    places.find(|path| path.is_dir())
}

/// A router by name, with parameters written `name=value`. All modules are its candidates.
pub(crate) fn router(name: String, flags: &[String]) -> Result<RouterSpec, String> {
    Ok(RouterSpec { params: params::of_flags(flags)?, ..RouterSpec::named(name) })
}

/// A module written `name` or `name=weight`, and its weight, 1 without one.
///
/// The name ends at the first `=`. The weight may be any number that Rust parses, so also `inf`;
/// the engine judges it.
pub(crate) fn weighted(text: &str) -> Result<(String, f32), String> {
    match text.split_once('=') {
        None => Ok((text.to_owned(), 1.0)),
        Some((name, weight)) => {
            let weight = weight
                .parse()
                .map_err(|_| format!("--adapter `{text}`: `{weight}` is no number"))?;
            Ok((name.to_owned(), weight))
        }
    }
}
