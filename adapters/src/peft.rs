//! PEFT's directories: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Same logits as PEFT, or refuse to load: every tensor must belong to a targeted place with the
//! right shape, every targeted place must have its tensors, every setting that changes arithmetic
//! is honoured or refused by name, and all problems are reported at once.

pub mod bundle;
mod config;
mod experts;
mod ia3;
mod lora;
mod pattern;
mod prompt;
pub mod raw;
mod targets;
mod tokens;

use std::fmt;
use std::path::Path;

use polyskill_model::{ModelConfig, Projection, Site};
use safetensors::tensor::SafeTensors;
use serde_json::{Map, Value as Json};

use crate::error::Error;
use crate::files::Files;
use crate::generation::Generation;
use crate::library::Kind;
use crate::load::{Base, Content};
use crate::weights::Weights;
pub use bundle::{CARD_FILE, MAX_CONFIG_BYTES, MAX_WEIGHT, elements};

use bundle::Bundle;
use config::LoraSettings;
pub(crate) use config::{object as config_object, strings};

/// The configuration of a module in PEFT's format.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Its weights.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// Kinds that are read, as `peft_type` names them.
const SUPPORTED: &str = "LORA, IA3, PROMPT_TUNING, P_TUNING, PREFIX_TUNING, TRAINABLE_TOKENS";

/// True for a directory with PEFT's configuration. Its weights and what it says are not looked at.
pub fn is_module_directory(path: &Path) -> bool {
    path.join(CONFIG_FILE).is_file()
}

/// Reads configuration and weights. `peft_type` decides the reader; every reader lists all of its
/// problems.
pub(crate) fn read(files: Files<'_>, base: Base<'_>) -> Result<Content, Error> {
    let bundle = Bundle::read(files, CONFIG_FILE, WEIGHTS_FILE)?;
    let refused = |problems| Error::refused(files.name, problems);
    let object = config::object(&bundle.config).map_err(refused)?;
    let tensors = bundle.tensors().map_err(refused)?;
    let peft_type = object.get("peft_type").and_then(Json::as_str);
    let (kind, weights) = match peft_type {
        Some("LORA") => {
            let (kind, weights) = lora(&bundle.config, &tensors, base).map_err(refused)?;
            (kind, Ok(weights))
        }
        Some("IA3") => (Kind::Ia3, ia3::load(&object, &tensors, base)),
        Some("PROMPT_TUNING" | "P_TUNING") => {
            (Kind::SoftPrompt, prompt::load_embeddings(&object, &tensors, base))
        }
        Some("PREFIX_TUNING") => (Kind::KvPrefix, prompt::load_prefix(&object, &tensors, base)),
        Some("TRAINABLE_TOKENS") => (Kind::TokenEmbeddings, tokens::load(&object, &tensors, base)),
        found => {
            let found = found.map_or("missing".to_owned(), |found| format!("`{found}`"));
            let problem = format!("peft_type is {found}, supported are {SUPPORTED}");
            return Err(refused(vec![problem]));
        }
    };
    let weights = weights.map_err(refused)?;
    let generation = generation(&bundle, peft_type.unwrap_or_default());
    Ok(Content { generation, kind, weights })
}

/// Reads a LoRA or DoRA that another tool wrote, once it is written in PEFT's terms: `config` is an
/// `adapter_config.json`.
pub(crate) fn lora(
    config: &[u8],
    tensors: &SafeTensors<'_>,
    base: Base<'_>,
) -> Result<(Kind, Weights), Vec<String>> {
    let settings = LoraSettings::parse(config)?;
    let kind = if settings.use_dora { Kind::Dora } else { Kind::Lora };
    Ok((kind, lora::assemble(settings, tensors, base)?))
}

/// The generation of a directory, whatever its tensors are. Nothing but the configuration's
/// `peft_type` is looked at.
pub(crate) fn generation_of(files: Files<'_>) -> Result<Generation, Error> {
    let bundle = Bundle::read(files, CONFIG_FILE, WEIGHTS_FILE)?;
    let object = config::object(&bundle.config);
    let object = object.map_err(|problems| Error::refused(files.name, problems))?;
    let peft_type = object.get("peft_type").and_then(Json::as_str).unwrap_or_default();
    Ok(generation(&bundle, peft_type))
}

/// True for the configuration of a LoRA that is nothing but a low-rank product. A configuration
/// that cannot be read counts as one: the LoRA's reader refuses it. Rank, scale and targets do not
/// matter for it.
pub fn is_plain_lora(settings: &Map<String, Json>) -> bool {
    let is_lora = settings.get("peft_type").and_then(Json::as_str) == Some("LORA");
    let text = Json::Object(settings.clone()).to_string();
    let parsed = LoraSettings::parse(text.as_bytes());
    is_lora && parsed.map_or(true, |settings| settings.beyond_low_rank().is_empty())
}

/// Identity of a PEFT directory's content. The kind's name in lower case is hashed too.
fn generation(bundle: &Bundle, peft_type: &str) -> Generation {
    bundle.generation(&peft_type.to_ascii_lowercase())
}

/// The place in the base that a tensor of a module belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// A projection of a layer.
    Site(Site),
    /// The head, `lm_head`.
    Head,
    /// The embedding table, `embed_tokens`.
    Embedding,
}

impl Place {
    /// The path of the linear in Hugging Face checkpoints of models for text, such as
    /// `model.layers.0.self_attn.q_proj`.
    fn path(self) -> String {
        match self {
            Self::Site(site) => format!("model.{site}"),
            Self::Head => "lm_head".to_owned(),
            Self::Embedding => "model.embed_tokens".to_owned(),
        }
    }

    /// `(output, input)` features; `None` for the embedding table, which is no linear.
    pub(crate) fn shape(self, base: &ModelConfig) -> Option<(usize, usize)> {
        match self {
            Self::Site(site) => Some(base.projection_shape(site.projection)),
            Self::Head => Some((base.vocab_size, base.hidden_size)),
            Self::Embedding => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Site(site) => site.fmt(f),
            Self::Head => f.write_str("lm_head"),
            Self::Embedding => f.write_str("embed_tokens"),
        }
    }
}

/// A path in Hugging Face's names → a place, by exact names: no prefix is passed over, and no layer
/// may be out of range.
pub(crate) fn place_of(path: &str, base: &ModelConfig) -> Option<Place> {
    match path {
        "lm_head" => Some(Place::Head),
        "model.embed_tokens" => Some(Place::Embedding),
        _ => site_of(path, base).map(Place::Site),
    }
}

/// `model.layers.N.<projection>` → site, by exact names. N has no leading zeros, and the base must
/// have the projection.
pub fn site_of(path: &str, base: &ModelConfig) -> Option<Site> {
    let (layer, path) = path.strip_prefix("model.layers.")?.split_once('.')?;
    let number: usize = layer.parse().ok()?;
    let projection = Projection::ALL.into_iter().find(|projection| projection.path() == path)?;
    let site = Site { layer: number, projection };
    (number.to_string() == layer && base.has_site(site)).then_some(site)
}
