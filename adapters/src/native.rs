//! Kinds that PEFT has no format for: `polyskill_config.json` and `polyskill_module.safetensors`.
//!
//! Activation edits, sparse grafts, documents that the base has read once, expert policies and
//! experts.

mod document;
mod edit;
mod feed_forward;
mod graft;
mod policy;

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{View, serialize};
use serde::{Deserialize, Serialize};

pub use document::{Document, write_document};
pub use feed_forward::draft as expert_draft;
pub use policy::{KeptByPolicy, PolicyDraft, expert_layer, kept_experts, write_policy};

use crate::error::Error;
use crate::files::{Files, Problems};
use crate::generation::Generation;
use crate::library::Kind;
use crate::load::{Base, Content};
use crate::peft::bundle::Bundle;

/// The configuration of a module in the native format.
pub const CONFIG_FILE: &str = "polyskill_config.json";
/// Its weights.
pub const WEIGHTS_FILE: &str = "polyskill_module.safetensors";
/// The `format_version` that is written and the only one that is read.
const FORMAT_VERSION: u32 = 1;

/// `polyskill_config.json`: `polyskill_type` names the variant, as in `ACTIVATION_EDIT`. Settings
/// that a kind does not know are refused.
#[derive(Debug, Deserialize)]
#[serde(tag = "polyskill_type", rename_all = "SCREAMING_SNAKE_CASE")]
enum Config {
    /// `ACTIVATION_EDIT`: vectors for hidden states.
    ActivationEdit(edit::Settings),
    /// `SPARSE_GRAFT`: single changed weights.
    SparseGraft(graft::Settings),
    /// `DOCUMENT_PREFIX`: keys and values of a document.
    DocumentPrefix(document::Settings),
    /// `EXPERT_POLICY`: a choice among a sparse base's experts.
    ExpertPolicy(policy::Settings),
    /// `FEED_FORWARD_EXPERT`: feed-forwards beside the base's own.
    FeedForwardExpert(feed_forward::Settings),
}

impl Config {
    /// The version that the file says it has.
    fn format_version(&self) -> u32 {
        match self {
            Self::ActivationEdit(settings) => settings.format_version,
            Self::SparseGraft(settings) => settings.format_version,
            Self::DocumentPrefix(settings) => settings.format_version,
            Self::ExpertPolicy(settings) => settings.format_version,
            Self::FeedForwardExpert(settings) => settings.format_version,
        }
    }
}

/// Writes a module's directory, which must not exist: configuration, weights and card. A write that
/// fails half way leaves the directory behind.
fn write(
    settings: &impl Serialize,
    polyskill_type: &str,
    tensors: impl IntoIterator<Item = (impl AsRef<str> + Ord + std::fmt::Display, impl View)>,
    card: &str,
    directory: &Path,
) -> Result<(), Error> {
    let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let refused = |problem: String| Error::refused(&name, vec![problem]);
    let config = config(settings, polyskill_type).map_err(refused)?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let weights = serialize(tensors, Some(metadata)).map_err(|error| refused(error.to_string()))?;
    let io = |source| Error::io(&name, directory, source);
    std::fs::create_dir(directory).map_err(io)?;
    for (file, bytes) in
        [(CONFIG_FILE, &*config), (WEIGHTS_FILE, &weights), ("README.md", card.as_bytes())]
    {
        std::fs::write(directory.join(file), bytes).map_err(io)?;
    }
    Ok(())
}

/// The text of a configuration: the settings as an object, with `polyskill_type` beside them.
fn config(settings: &impl Serialize, polyskill_type: &str) -> Result<Vec<u8>, String> {
    let mut config = serde_json::to_value(settings).map_err(|error| error.to_string())?;
    config["polyskill_type"] = polyskill_type.into();
    Ok(format!("{config:#}\n").into_bytes())
}

/// Adds a problem where `found`, the digest that a module names, is not the base's. Nothing is
/// checked where either is unknown.
fn check_base(found: Option<&str>, base: Base<'_>, problems: &mut Problems) {
    if let (Some(found), Some(digest)) = (found, base.digest) {
        let expected = Generation(digest).to_string();
        if found != expected {
            problems
                .add(format!("`base_digest` is {found}, the base that is served is {expected}"));
        }
    }
}

/// Identity of a directory's content. The tag keeps it apart from PEFT's formats.
fn generation(bundle: &Bundle) -> Generation {
    bundle.generation("polyskill")
}

/// The generation of a directory, whatever its tensors are.
///
/// # Errors
/// If a file is missing or too large.
pub fn generation_of(files: Files<'_>) -> Result<Generation, Error> {
    Bundle::read(files, CONFIG_FILE, WEIGHTS_FILE).map(|bundle| generation(&bundle))
}

/// Reads configuration and weights. The kind and the version are checked before the tensors.
pub(crate) fn read(files: Files<'_>, base: Base<'_>) -> Result<Content, Error> {
    let bundle = Bundle::read(files, CONFIG_FILE, WEIGHTS_FILE)?;
    let refused = |problems| Error::refused(files.name, problems);
    let config: serde_json::Value = serde_json::from_slice(&bundle.config)
        .map_err(|error| refused(vec![format!("{CONFIG_FILE}: {error}")]))?;
    if !config["polyskill_type"].is_string() {
        let found = &config["polyskill_type"];
        let problem =
            format!("{CONFIG_FILE}: `polyskill_type` is {found}, expected a kind of module");
        return Err(refused(vec![problem]));
    }
    let config: Config = serde_json::from_value(config)
        .map_err(|error| refused(vec![format!("{CONFIG_FILE}: {error}")]))?;
    if config.format_version() != FORMAT_VERSION {
        let problem = format!(
            "{CONFIG_FILE}: `format_version` is {}, expected {FORMAT_VERSION}",
            config.format_version()
        );
        return Err(refused(vec![problem]));
    }
    let tensors = bundle.tensors().map_err(refused)?;
    let (kind, weights) = match config {
        Config::ActivationEdit(settings) => {
            (Kind::ActivationEdit, edit::load(&settings, &tensors, base))
        }
        Config::SparseGraft(_) => (Kind::SparseGraft, graft::load(&tensors, base)),
        Config::DocumentPrefix(settings) => {
            (Kind::KvPrefix, document::load(&settings, &tensors, base))
        }
        Config::ExpertPolicy(settings) => {
            (Kind::ExpertPolicy, policy::load(&settings, &tensors, base))
        }
        Config::FeedForwardExpert(settings) => {
            (Kind::Expert, feed_forward::load(&settings, &tensors, base))
        }
    };
    let generation = generation(&bundle);
    Ok(Content { generation, kind, weights: weights.map_err(refused)? })
}
