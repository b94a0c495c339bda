//! Experts: feed-forwards beside a layer's own, as in branch-train-mix (Sukhbaatar et al.,
//! "Branch-Train-MiX", 2024).

use std::collections::{BTreeMap, BTreeSet};

use safetensors::tensor::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use super::FORMAT_VERSION;
use crate::files::Problems;
use crate::load::Base;
use crate::lora::Elements;
use crate::peft::bundle::{floats, shaped};
use crate::tensor_file::Tensor;
use crate::weights::{Expert, FeedForward, Part, Weights};

/// Widest feed-forward that is taken, in the base's hidden size.
const MAX_WIDTH: usize = 32;

/// The settings of `FEED_FORWARD_EXPERT`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// Version of the format.
    pub(super) format_version: u32,
    /// The operation, the same for all layers.
    operation: Operation,
    /// Layers that have one, ascending.
    layers: Vec<usize>,
    /// The digest of the base whose weights they were made from; any base where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base_digest: Option<String>,
}

/// The fate of the layer's own feed-forward, y₀, at weight w.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Operation {
    /// y₀ + w·E(x)
    Add,
    /// y₀ + w·(E(x) − y₀)
    Mix,
}

/// Reads the feed-forward of every layer that the settings name. A tensor of another layer is a
/// problem.
pub(super) fn load(
    settings: &Settings,
    tensors: &SafeTensors<'_>,
    base: Base<'_>,
) -> Result<Weights, Vec<String>> {
    let mut problems = Problems::default();
    let mut weights = Weights::new(base.config.num_sites());
    super::check_base(settings.base_digest.as_deref(), base, &mut problems);
    let mut used = BTreeSet::new();
    let mut own: BTreeMap<usize, FeedForward> = BTreeMap::new();
    for &layer in &settings.layers {
        if layer >= base.config.num_layers {
            let has = base.config.num_layers;
            problems.add(format!("layer {layer}: the base has {has} layers"));
            continue;
        }
        if own.last_key_value().is_some_and(|(&last, _)| last >= layer) {
            problems.add(format!("layer {layer}: layers must ascend"));
        }
        match read(settings.operation, tensors, &mut used, layer, base.config.hidden_size) {
            Ok(read) => drop(own.insert(layer, read)),
            Err(problem) => problems.add(problem),
        }
    }
    if settings.layers.is_empty() {
        problems.add("it has no layers".to_owned());
    }
    for name in tensors.names().into_iter().filter(|name| !used.contains(*name)) {
        problems.add(format!("tensor `{name}` is used by no layer"));
    }
    weights.add(Part::FeedForwards(own));
    problems.into_result(weights)
}

/// Reads one layer's feed-forward: gate and up `[width, hidden_size]`, down `[hidden_size, width]`,
/// and the router's row where there is one. The width is the gate's number of rows; names that are
/// read go to `used`.
fn read(
    operation: Operation,
    tensors: &SafeTensors<'_>,
    used: &mut BTreeSet<String>,
    layer: usize,
    hidden: usize,
) -> Result<FeedForward, String> {
    let mut find = |part: &str| {
        let name = tensor_name(layer, part);
        let view = tensors.tensor(&name).map_err(|_| format!("tensor `{name}` is missing"))?;
        used.insert(name.clone());
        Ok::<_, String>((format!("`{name}`"), view))
    };
    let (name, gate) = find("gate_proj")?;
    let width = gate.shape().first().copied().unwrap_or_default();
    if !(1..=hidden * MAX_WIDTH).contains(&width) {
        let most = hidden * MAX_WIDTH;
        return Err(format!("{name} has shape {:?}, expected 1 to {most} rows", gate.shape()));
    }
    let gate = shaped(&name, &gate, &[width, hidden])?;
    let (name, up) = find("up_proj")?;
    let up = shaped(&name, &up, &[width, hidden])?;
    let (name, down) = find("down_proj")?;
    let down = shaped(&name, &down, &[hidden, width])?;
    let router = match find("router") {
        Ok((name, router)) => Some(floats(&name, &router, &[hidden])?),
        Err(_) => None,
    };
    let replaces = operation == Operation::Mix;
    Ok(FeedForward { expert: Expert { width, gate, up, down }, replaces, router })
}

/// The name of a tensor of a layer.
fn tensor_name(layer: usize, part: &str) -> String {
    format!("model.layers.{layer}.mlp.{part}.weight")
}

/// Configuration and weights of an expert that takes the place of feed-forwards of a base, as the
/// bytes of the two files. Precision is kept.
///
/// # Errors
/// If they cannot be written as a file.
pub fn draft(
    feed_forwards: &BTreeMap<usize, FeedForward>,
    hidden: usize,
    base_digest: [u8; 32],
) -> Result<(Vec<u8>, Vec<u8>), String> {
    let settings = Settings {
        format_version: FORMAT_VERSION,
        operation: Operation::Mix,
        layers: feed_forwards.keys().copied().collect(),
        base_digest: Some(crate::generation::Generation(base_digest).to_string()),
    };
    let mut tensors = Vec::new();
    for (&layer, own) in feed_forwards {
        let Expert { width, gate, up, down } = &own.expert;
        let router = own.router.clone().map(Elements::F32);
        for (part, elements, shape) in [
            ("gate_proj", Some(gate), vec![*width, hidden]),
            ("up_proj", Some(up), vec![*width, hidden]),
            ("down_proj", Some(down), vec![hidden, *width]),
            ("router", router.as_ref(), vec![hidden]),
        ] {
            if let Some(elements) = elements {
                tensors.push((tensor_name(layer, part), stored(elements, shape)));
            }
        }
    }
    let config = super::config(&settings, "FEED_FORWARD_EXPERT")?;
    Ok((config, crate::tensor_file::weights_file(tensors)?))
}

/// Elements as a tensor to be written, in their own precision.
fn stored(elements: &Elements, shape: Vec<usize>) -> Tensor {
    let halves = |bits: &[u16]| bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
    let (dtype, bytes) = match elements {
        Elements::F32(values) => {
            (Dtype::F32, values.iter().flat_map(|value| value.to_le_bytes()).collect())
        }
        Elements::Bf16(bits) => (Dtype::BF16, halves(bits)),
        Elements::F16(bits) => (Dtype::F16, halves(bits)),
    };
    Tensor { dtype, shape, bytes }
}
