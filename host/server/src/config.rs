//! The configuration: one TOML file, overridden by flags and `POLYSKILL_*` variables.

use std::path::{Path, PathBuf};

use polyskill_plugin::Limits;
use polyskill_sdk::{Parameters, Value};
use serde::{Deserialize, Serialize};

/// The effective configuration of a server.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A model name that `pull` knows, a hub repository, or a path.
    pub model: Option<String>,
    /// The name under which the base is served.
    pub served_model_name: Option<String>,
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
    /// Bounds of the engine.
    pub engine: EngineSettings,
    /// Bounds of plugins.
    #[serde(skip_serializing)]
    pub limits: Limits,
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
}

/// A named composition.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SkillSet {
    /// What clients send as `model`.
    pub id: String,
    /// The router.
    pub router: String,
    /// Names, globs or `tag:...` of the modules; empty means all.
    #[serde(default)]
    pub modules: Vec<String>,
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
            threads: 0,
        }
    }
}

impl EngineSettings {
    /// The engine's form.
    pub fn to_engine(&self) -> polyskill_engine::EngineConfig {
        polyskill_engine::EngineConfig {
            max_waiting: self.max_waiting.max(1),
            max_running: self.max_running.max(1),
            max_rows: self.max_rows.max(1),
            max_prompt_rows_while_decoding: self.max_prompt_rows_while_decoding.max(1),
            max_cached_tokens: self.max_cached_tokens.max(16),
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
}

impl Config {
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
                    "parameter `{name}` is a {}, expected a scalar",
                    other.type_str()
                ));
            }
        };
        Ok((name.clone(), value))
    };
    table.iter().map(scalar).collect::<Result<_, _>>().map(Parameters)
}

#[cfg(test)]
mod tests {
    use super::*;

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
