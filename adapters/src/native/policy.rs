//! Expert policies: which experts of a sparse base are run, and merged experts in the place of
//! some.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use polyskill_model::ModelConfig;
use polyskill_sdk::experts::{ExpertLayer, LayerPolicy, check};
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::FORMAT_VERSION;
use crate::error::Error;
use crate::files::{Files, Problems};
use crate::load::Base;
use crate::lora::Elements;
use crate::peft::MAX_CONFIG_BYTES;
use crate::peft::bundle::shaped;
use crate::weights::{Expert, ExpertPolicy, Part, Weights};

/// Most experts that a policy brings per layer. It bounds the names that are looked up for a count
/// from outside.
const MAX_EXTRA: u32 = 1024;

/// The settings of `EXPERT_POLICY`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// Version of the format.
    pub(super) format_version: u32,
    /// The way in which it was made, for people.
    #[serde(default)]
    method: String,
    /// The digest of the base that the policy's own experts belong to; any base where there is
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base_digest: Option<String>,
    /// Layers that it decides, ascending; others choose as the base does.
    layers: Vec<LayerSettings>,
}

/// The policy of one layer.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct LayerSettings {
    /// Layer number, from 0; the base must have experts there.
    layer: u32,
    /// Experts that are kept, ascending; all where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keep: Option<Vec<u32>>,
    /// β of expert skipping: the smaller of two experts is dropped where it is under β times the
    /// larger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    beta: Option<f32>,
    /// For each expert, the one that is run in its place; numbers from the layer's experts on are
    /// the policy's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alias: Option<Vec<u32>>,
    /// Experts that the policy brings, `model.layers.N.experts.E` in the tensors.
    #[serde(default, skip_serializing_if = "is_zero")]
    experts: u32,
}

/// True for the count that is left out of the file.
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// A sparse layer of a base as policies and routers see it; `None` for a dense layer.
pub fn expert_layer(config: &ModelConfig, layer: usize) -> Option<ExpertLayer> {
    let mixture = config.experts_at(layer)?;
    Some(ExpertLayer {
        layer: layer as u32,
        num_experts: mixture.num_experts as u32,
        top_k: mixture.top_k as u32,
        renormalise: mixture.renormalise,
    })
}

/// The experts that a policy keeps. Layers that are not listed keep all of theirs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptByPolicy {
    /// By layer, for layers that it prunes.
    pub layers: BTreeMap<usize, Vec<u32>>,
    /// The digest of the base that it was made for, where it says so.
    pub base_digest: Option<String>,
}

/// The experts that a policy keeps, read before there is a base, so that the others are never
/// loaded. To compare the digest with the base's is the caller's part.
///
/// # Errors
/// If the directory holds no expert policy, or one that does more than keep experts.
pub fn kept_experts(directory: &Path) -> Result<KeptByPolicy, Error> {
    let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let files = Files { name: &name, directory, root: directory };
    let refused = |problem: String| Error::refused(&name, vec![problem]);
    let config = files.read(super::CONFIG_FILE, MAX_CONFIG_BYTES)?;
    let config: super::Config = serde_json::from_slice(&config)
        .map_err(|error| refused(format!("{}: {error}", super::CONFIG_FILE)))?;
    let super::Config::ExpertPolicy(settings) = config else {
        return Err(refused("is no expert policy".to_owned()));
    };
    let more = settings.layers.iter().find(|at| at.alias.is_some() || at.beta.is_some());
    if let Some(more) = more {
        let layer = more.layer;
        return Err(refused(format!(
            "layer {layer} skips or merges experts: only policies that keep some can be applied when the base is loaded"
        )));
    }
    let kept = settings.layers.into_iter().filter_map(|at| Some((at.layer as usize, at.keep?)));
    Ok(KeptByPolicy { layers: kept.collect(), base_digest: settings.base_digest })
}

/// Reads the policy of every layer and checks it as the program that it stands for. A tensor of no
/// layer is a problem.
pub(super) fn load(
    settings: &Settings,
    tensors: &SafeTensors<'_>,
    base: Base<'_>,
) -> Result<Weights, Vec<String>> {
    let mut problems = Problems::default();
    let mut weights = Weights::new(base.config.num_sites());
    super::check_base(settings.base_digest.as_deref(), base, &mut problems);
    let mut used = BTreeSet::new();
    let mut own = ExpertPolicy::default();
    for layer in &settings.layers {
        let number = layer.layer as usize;
        let Some(expert_layer) = expert_layer(base.config, number) else {
            problems.add(format!("layer {number}: the base has no experts there"));
            continue;
        };
        if own.layers.last().is_some_and(|last| last.layer >= layer.layer) {
            problems.add(format!("layer {number}: layers must ascend"));
        }
        let policy = LayerPolicy {
            layer: layer.layer,
            keep: layer.keep.clone(),
            beta: layer.beta,
            alias: layer.alias.clone(),
            num_extra: layer.experts,
        };
        if policy.num_extra > MAX_EXTRA {
            problems.add(format!("layer {number}: {} experts, at most {MAX_EXTRA}", layer.experts));
            continue;
        }
        if policy.beta.is_some() && expert_layer.top_k != 2 {
            let top_k = expert_layer.top_k;
            problems.add(format!(
                "layer {number}: β is defined for two experts per token, the base has {top_k}"
            ));
        } else if let Err(error) = check(&policy.ops(expert_layer), expert_layer, policy.num_extra)
        {
            problems.add(format!("layer {number}: {error}"));
        }
        let mut experts = Vec::new();
        for expert in 0..layer.experts {
            match read_expert(tensors, number, expert, base, &mut used) {
                Ok(expert) => experts.push(expert),
                Err(problem) => problems.add(problem),
            }
        }
        if !experts.is_empty() {
            own.experts.insert(number, experts);
        }
        own.layers.push(policy);
    }
    if settings.layers.is_empty() {
        problems.add("it has no layers".to_owned());
    }
    for name in tensors.names().into_iter().filter(|name| !used.contains(*name)) {
        problems.add(format!("tensor `{name}` is used by no layer"));
    }
    weights.add(Part::Policy(own));
    problems.into_result(weights)
}

/// The name of a tensor of one of the policy's own experts.
fn tensor_name(layer: usize, expert: u32, part: &str) -> String {
    format!("model.layers.{layer}.experts.{expert}.{part}.weight")
}

/// One of the policy's own experts, of the same width as the layer's. Names that are read go to
/// `used`.
fn read_expert(
    tensors: &SafeTensors<'_>,
    layer: usize,
    expert: u32,
    base: Base<'_>,
    used: &mut BTreeSet<String>,
) -> Result<Expert, String> {
    let hidden = base.config.hidden_size;
    let width = base.config.experts_at(layer).map_or(0, |mixture| mixture.expert_size);
    let mut part = |part: &str, shape: [usize; 2]| {
        let name = tensor_name(layer, expert, part);
        let view = tensors.tensor(&name).map_err(|_| format!("tensor `{name}` is missing"))?;
        let elements = shaped(&format!("`{name}`"), &view, &shape)?;
        used.insert(name);
        Ok::<Elements, String>(elements)
    };
    Ok(Expert {
        width,
        gate: part("gate_proj", [width, hidden])?,
        up: part("up_proj", [width, hidden])?,
        down: part("down_proj", [hidden, width])?,
    })
}

/// A policy that is to be written.
#[derive(Clone, Copy, Debug)]
pub struct PolicyDraft<'a> {
    /// The policies of layers, ascending by layer.
    pub layers: &'a [LayerPolicy],
    /// Experts of its own by layer, as many as its layers say.
    pub experts: &'a BTreeMap<usize, Vec<Expert>>,
    /// The way in which it was made, for people.
    pub method: &'a str,
    /// The digest of the base that it was made for.
    pub base_digest: [u8; 32],
}

/// Writes a policy for a base of this shape as a module's directory, which must not exist. Experts
/// of its own are written in bfloat16.
///
/// # Errors
/// If the directory exists or cannot be written.
pub fn write_policy(
    draft: PolicyDraft<'_>,
    config: &ModelConfig,
    card: &str,
    directory: &Path,
) -> Result<(), Error> {
    let layer = |policy: &LayerPolicy| LayerSettings {
        layer: policy.layer,
        keep: policy.keep.clone(),
        beta: policy.beta,
        alias: policy.alias.clone(),
        experts: policy.num_extra,
    };
    let settings = Settings {
        format_version: FORMAT_VERSION,
        method: draft.method.to_owned(),
        base_digest: Some(crate::generation::Generation(draft.base_digest).to_string()),
        layers: draft.layers.iter().map(layer).collect(),
    };
    let hidden = config.hidden_size;
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (&layer, experts) in draft.experts {
        for (number, expert) in (0..).zip(experts) {
            let width = expert.width;
            for (part, elements, shape) in [
                ("gate_proj", &expert.gate, [width, hidden]),
                ("up_proj", &expert.up, [width, hidden]),
                ("down_proj", &expert.down, [hidden, width]),
            ] {
                let values = elements.as_slice().to_f32();
                let bytes = values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes());
                tensors.push((tensor_name(layer, number, part), shape.to_vec(), bytes.collect()));
            }
        }
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        Ok((name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), bytes)?))
    });
    let views: Vec<_> = views.collect::<Result<_, SafeTensorError>>().map_err(|error| {
        let name = directory.file_name().unwrap_or_default().to_string_lossy();
        Error::refused(&name, vec![error.to_string()])
    })?;
    super::write(&settings, "EXPERT_POLICY", views, card, directory)
}
