//! PEFT's LoRA directories: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Same logits as PEFT, or refuse to load: every tensor must belong to a targeted site with the right
//! shape, every targeted site must have its tensors, every setting that changes arithmetic is honoured or
//! refused by name, and all problems are reported at once.

mod config;
pub(crate) mod raw;

use std::collections::BTreeMap;
use std::path::Path;

use polyskill_model::{Decoder, ModelConfig, Projection, Site};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::artefact;
use crate::error::Error;
use crate::files::{Files, Problems};
use crate::library::Module;
use crate::lora::{Elements, Lora, LoraSite};
use config::LoraSettings;
use raw::Content;

pub(crate) const CONFIG_FILE: &str = "adapter_config.json";
pub(crate) const WEIGHTS_FILE: &str = "adapter_model.safetensors";
pub(crate) const CARD_FILE: &str = "README.md";
pub(crate) const MAX_CONFIG_BYTES: u64 = 1 << 20;
const MAX_WEIGHT_BYTES: u64 = 4 << 30;

/// The base model that modules are read for.
#[derive(Clone, Copy, Debug)]
pub struct Base<'a> {
    /// Its shape.
    pub config: &'a ModelConfig,
    /// Its digest, where it is known; artefacts may be bound to it.
    pub digest: Option<[u8; 32]>,
}

impl<'a> From<&'a ModelConfig> for Base<'a> {
    fn from(config: &'a ModelConfig) -> Self {
        Self { config, digest: None }
    }
}

impl<'a> From<&'a Decoder> for Base<'a> {
    fn from(model: &'a Decoder) -> Self {
        Self { config: model.config(), digest: Some(model.digest()) }
    }
}

/// Whether a directory looks like a PEFT module.
pub fn is_module_directory(path: &Path) -> bool {
    path.join(CONFIG_FILE).is_file()
}

/// Reads a module for a base model. `root` is the directory that no file of the module may lie outside.
///
/// # Errors
/// If a file cannot be read, or with every reason why PEFT's result could not be reproduced.
pub fn load<'a>(
    name: &str,
    directory: &Path,
    root: &Path,
    base: impl Into<Base<'a>>,
) -> Result<Module, Error> {
    let base = base.into();
    let files = Files { name, directory, root };
    let content = Content::read(files)?;
    let refused = |problems| Error::refused(name, problems);
    let tensors = content.tensors().map_err(refused)?;
    let lora = assemble(&content.settings, &tensors, base.config).map_err(refused)?;
    let artefacts = artefact::load(files, content.generation, base)?;
    Ok(Module::new(content.generation, lora, content.card, artefacts))
}

/// Maps every tensor to a site and every targeted site to its tensors.
fn assemble(
    settings: &LoraSettings,
    tensors: &SafeTensors<'_>,
    base: &ModelConfig,
) -> Result<Lora, Vec<String>> {
    let mut problems = Problems::default();
    let mut pairs: BTreeMap<Site, (Option<TensorView<'_>>, Option<TensorView<'_>>)> =
        BTreeMap::new();
    let targets = settings.targets(base, |problem| problems.add(problem));
    for name in tensors.names() {
        let Ok(view) = tensors.tensor(name) else { continue };
        let known = parse_key(name).and_then(|(path, is_b)| Some((site_of(path, base)?, is_b)));
        match known {
            Some((site, _)) if !targets.contains(&site) => {
                problems.add(format!("tensor `{name}`: {site} is not among the target modules"));
            }
            Some((site, false)) => pairs.entry(site).or_default().0 = Some(view),
            Some((site, true)) => pairs.entry(site).or_default().1 = Some(view),
            None => {
                problems.add(format!("tensor `{name}` belongs to no projection of the base model"))
            }
        }
    }
    let mut lora = Lora::new(base.num_sites());
    for &site in &targets {
        let built = match pairs.remove(&site).unwrap_or_default() {
            (Some(a), Some(b)) => build_site(settings, site, &a, &b, base),
            (None, None) => Err(vec![format!("{site} is a target module but has no tensors")]),
            (Some(_), None) => Err(vec![format!("{site} has no `lora_B`")]),
            (None, Some(_)) => Err(vec![format!("{site} has no `lora_A`")]),
        };
        match built {
            Ok(weights) => lora.set(site, weights),
            Err(found) => found.into_iter().for_each(|problem| problems.add(problem)),
        }
    }
    if targets.is_empty() {
        problems.add("no projection of the base model is a target module".to_owned());
    }
    problems.into_result(lora)
}

/// `base_model.model.<path>.lora_A.weight` → `(path, false)`, `lora_B` → `(path, true)`.
fn parse_key(name: &str) -> Option<(&str, bool)> {
    let rest = name.strip_prefix("base_model.model.")?.strip_suffix(".weight")?;
    match rest.strip_suffix(".lora_A") {
        Some(path) => Some((path, false)),
        None => Some((rest.strip_suffix(".lora_B")?, true)),
    }
}

/// `model.layers.N.<projection>` → site, by exact names.
pub(crate) fn site_of(path: &str, base: &ModelConfig) -> Option<Site> {
    let (layer, path) = path.strip_prefix("model.layers.")?.split_once('.')?;
    let number: usize = layer.parse().ok()?;
    let projection = Projection::ALL.into_iter().find(|projection| projection.path() == path)?;
    let canonical = number.to_string() == layer && number < base.num_layers;
    canonical.then_some(Site { layer: number, projection })
}

fn build_site(
    settings: &LoraSettings,
    site: Site,
    a: &TensorView<'_>,
    b: &TensorView<'_>,
    base: &ModelConfig,
) -> Result<LoraSite, Vec<String>> {
    let (outputs, inputs) = base.projection_shape(site.projection);
    let (rank, scale) = settings.rank_and_scale(&format!("model.{site}"));
    let mut problems = Vec::new();
    for (name, view, expected) in [("lora_A", a, [rank, inputs]), ("lora_B", b, [outputs, rank])] {
        if view.shape() != expected {
            problems.push(format!(
                "`{name}` of {site} has shape {:?}, expected {expected:?}",
                view.shape()
            ));
        }
    }
    let mut read = |name: &str, view: &TensorView<'_>| match elements(view) {
        Ok(elements) => Some(elements),
        Err(problem) => {
            problems.push(format!("`{name}` of {site} {problem}"));
            None
        }
    };
    let (a, b) = (read("lora_A", a), read("lora_B", b));
    match (a, b, problems.is_empty()) {
        (Some(a), Some(b), true) => {
            Ok(LoraSite { rank, scale, a, b_transposed: b.transposed(outputs, rank) })
        }
        _ => Err(problems),
    }
}

/// The elements of a tensor, if its dtype is known and all are finite.
pub(crate) fn elements(view: &TensorView<'_>) -> Result<Elements, String> {
    let halves = || view.data().chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let elements = match view.dtype() {
        Dtype::F32 => Elements::F32(
            view.data()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
        ),
        Dtype::BF16 => Elements::Bf16(halves().collect()),
        Dtype::F16 => Elements::F16(halves().collect()),
        other => return Err(format!("has dtype {other:?}, expected F32, F16 or BF16")),
    };
    let finite = match &elements {
        Elements::F32(values) => values.iter().all(|value| value.is_finite()),
        Elements::Bf16(bits) => bits.iter().all(|bits| bits & 0x7f80 != 0x7f80),
        Elements::F16(bits) => bits.iter().all(|bits| bits & 0x7c00 != 0x7c00),
    };
    finite.then_some(elements).ok_or_else(|| "holds a value that is not finite".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_exact() {
        let path = "model.layers.1.self_attn.q_proj";
        let key = |suffix: &str| format!("base_model.model.{path}.{suffix}");
        assert_eq!(parse_key(&key("lora_A.weight")), Some((path, false)));
        assert_eq!(parse_key(&key("lora_B.weight")), Some((path, true)));
        assert_eq!(parse_key(&key("lora_B.bias")), None);
        assert_eq!(parse_key(&key("lora_A.default.weight")), None);
    }
}
