//! LoRA on experts of a sparse base, in the layouts that PEFT has written: one by one, or all
//! experts of a layer in one tensor (`target_parameters`).

use std::collections::BTreeMap;

use polyskill_model::{ModelConfig, Projection};
use safetensors::tensor::TensorView;

use super::bundle::shaped;
use super::config::LoraSettings;
use super::lora::Tensors;
use crate::lora::{Elements, LoraSite};
use crate::weights::ExpertSite;

/// The place in a sparse base that tensors of experts belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ExpertPlace {
    /// One linear of one expert; the shared one is numbered after the routed ones.
    One(ExpertSite),
    /// A fused parameter of a layer; PEFT's names do not say which, their shapes do.
    Fused { layer: usize, inner: bool },
}

/// `model.layers.N.<block>.experts.E.<projection>` and its like → a place, by exact names.
pub(super) fn place_of(path: &str, base: &ModelConfig) -> Option<ExpertPlace> {
    let (number, path) = path.strip_prefix("model.layers.")?.split_once('.')?;
    let layer: usize = number.parse().ok().filter(|layer: &usize| layer.to_string() == number)?;
    let mixture = base.experts_at(layer)?;
    if let Some(name) = path.strip_prefix("mlp.shared_expert.") {
        mixture.shared_expert?;
        let (expert, projection) = (mixture.num_experts, projection(name)?);
        return Some(ExpertPlace::One(ExpertSite { layer, expert, projection }));
    }
    match path {
        "mlp.experts" => return Some(ExpertPlace::Fused { layer, inner: false }),
        "mlp.experts.base_layer" => return Some(ExpertPlace::Fused { layer, inner: true }),
        _ => {}
    }
    let path = path
        .strip_prefix("mlp.experts.")
        .or_else(|| path.strip_prefix("block_sparse_moe.experts."))?;
    let (number, name) = path.split_once('.')?;
    let expert: usize =
        number.parse().ok().filter(|expert: &usize| expert.to_string() == number)?;
    let projection = projection(name)?;
    let site = ExpertSite { layer, expert, projection };
    (expert < mixture.num_experts).then_some(ExpertPlace::One(site))
}

/// The projection by either of its names: `w1`, `w3` and `w2` are mixtral's.
fn projection(name: &str) -> Option<Projection> {
    match name {
        "gate_proj" | "w1" => Some(Projection::Gate),
        "up_proj" | "w3" => Some(Projection::Up),
        "down_proj" | "w2" => Some(Projection::Down),
        _ => None,
    }
}

/// Reads A and B of a place into `loras`. `path` is the place's path as in a model for text.
pub(super) fn read(
    settings: &LoraSettings,
    place: ExpertPlace,
    path: &str,
    mut tensors: Tensors<'_>,
    base: &ModelConfig,
    loras: &mut BTreeMap<ExpertSite, LoraSite>,
) -> Result<(), String> {
    let (a, b) = (tensors.remove(super::lora::A), tensors.remove(super::lora::B));
    let (Some(a), Some(b)) = (a, b) else {
        return Err(format!("{path} lacks `lora_A` or `lora_B`"));
    };
    if let Some(other) = tensors.keys().next() {
        return Err(format!(
            "tensor `{other}` of {path}: experts have `lora_A` and `lora_B` alone"
        ));
    }
    if settings.use_dora || settings.lora_bias {
        return Err(format!("{path}: only plain LoRA is supported at experts"));
    }
    let read = match place {
        ExpertPlace::One(site) => {
            if !settings.is_target(path) {
                return Err(format!("{path} has tensors but is no target module"));
            }
            vec![(site, one(settings, site, path, &a, &b, base)?)]
        }
        ExpertPlace::Fused { layer, .. } => fused(settings, layer, path, &a, &b, base)?,
    };
    for (site, lora) in read {
        if loras.insert(site, lora).is_some() {
            return Err(format!("the tensors of {path} are there under another name too"));
        }
    }
    Ok(())
}

/// `(output, input)` features of an expert's linear; zeros where the layer has no experts.
fn expert_shape(base: &ModelConfig, site: ExpertSite) -> (usize, usize) {
    base.experts_at(site.layer).map_or((0, 0), |mixture| {
        mixture.expert_shape(base.hidden_size, site.expert, site.projection)
    })
}

/// The LoRA of one linear of one expert: A `[rank, inputs]`, B `[outputs, rank]`.
fn one(
    settings: &LoraSettings,
    site: ExpertSite,
    path: &str,
    a: &TensorView<'_>,
    b: &TensorView<'_>,
    base: &ModelConfig,
) -> Result<LoraSite, String> {
    let (rank, scale) = settings.rank_and_scale(path);
    let (outputs, inputs) = expert_shape(base, site);
    let a = shaped(&format!("`lora_A` of {path}"), a, &[rank, inputs])?;
    let b = shaped(&format!("`lora_B` of {path}"), b, &[outputs, rank])?;
    Ok(LoraSite { rank, scale, a, b_transposed: b.transposed(outputs, rank), magnitude: None })
}

/// The LoRAs of a fused parameter, one per expert and projection. A is `[experts · r, inputs]`,
/// expert by expert; B is `[outputs, r · experts]`, rank by rank. The gate's outputs are above the
/// up projection's, which share A.
fn fused(
    settings: &LoraSettings,
    layer: usize,
    path: &str,
    a: &TensorView<'_>,
    b: &TensorView<'_>,
    base: &ModelConfig,
) -> Result<Vec<(ExpertSite, LoraSite)>, String> {
    let Some(mixture) = base.experts_at(layer) else { return Err(format!("{path}: no experts")) };
    let (hidden, width, num_experts) = (base.hidden_size, mixture.expert_size, mixture.num_experts);
    let is_down = b.shape().first() == Some(&hidden) && a.shape().get(1) == Some(&width);
    let (parameter, outputs, inputs) = match is_down {
        true => ("down_proj", hidden, width),
        false => ("gate_up_proj", 2 * width, hidden),
    };
    let parameter = format!("model.layers.{layer}.mlp.experts.{parameter}");
    if !settings.is_target_parameter(&parameter) {
        return Err(format!("{parameter} has tensors but `target_parameters` does not name it"));
    }
    let (rank, scale) = settings.rank_and_scale(&parameter);
    let all = rank * num_experts;
    let a = shaped(&format!("`lora_A` of {parameter}"), a, &[all, inputs])?;
    let b = shaped(&format!("`lora_B` of {parameter}"), b, &[outputs, all])?;
    let b_transposed = b.transposed(outputs, all);
    let projections: &[(Projection, usize)] = match is_down {
        true => &[(Projection::Down, 0)],
        false => &[(Projection::Gate, 0), (Projection::Up, width)],
    };
    let mut loras = Vec::with_capacity(num_experts * projections.len());
    for expert in 0..num_experts {
        let a_rows = rank * inputs;
        let a = a.gather(std::iter::once(expert * a_rows..(expert + 1) * a_rows));
        for &(projection, first) in projections {
            let count = if is_down { outputs } else { width };
            let columns = (0..rank).map(|r| {
                let start = (r * num_experts + expert) * outputs + first;
                start..start + count
            });
            let b_transposed: Elements = b_transposed.gather(columns);
            let lora = LoraSite { rank, scale, a: a.clone(), b_transposed, magnitude: None };
            loras.push((ExpertSite { layer, expert, projection }, lora));
        }
    }
    Ok(loras)
}
