//! LoRA and DoRA as MLX's `mlx_lm.lora` writes them: `adapter_config.json` and
//! `adapters.safetensors`.
//!
//! They are PEFT's modules under other names, with matrices the other way round: y + s·(x·a)·b, a
//! `[inputs, rank]`, b `[rank, outputs]`. So they are written anew in PEFT's layout, in memory, and
//! read as such.

use std::collections::BTreeSet;

use safetensors::tensor::{SafeTensors, TensorView};
use serde_json::{Map, Value as Json, json};

use crate::error::Error;
use crate::files::Files;
use crate::generation::Generation;
use crate::load::{Base, Content};
use crate::peft::bundle::Bundle;
use crate::peft::{self, CONFIG_FILE};
use crate::tensor_file::{Tensor, weights_file};

/// The weights of a module in MLX's format.
pub const WEIGHTS_FILE: &str = "adapters.safetensors";
/// The tag that keeps its generations apart from those of other formats.
pub const TAG: &str = "mlx";
/// Settings of `lora_parameters` that are read, or that do not matter at inference.
const PARAMETERS: [&str; 4] = ["rank", "scale", "dropout", "keys"];

/// True for MLX's files. PEFT's have a configuration of the same name beside other weights, and go
/// first.
pub fn is_mlx(files: Files<'_>) -> bool {
    files.has(WEIGHTS_FILE) && !files.has(peft::WEIGHTS_FILE)
}

/// The generation of a directory, whatever its tensors are.
pub(crate) fn generation_of(files: Files<'_>) -> Result<Generation, Error> {
    Bundle::read(files, CONFIG_FILE, WEIGHTS_FILE).map(|bundle| bundle.generation(TAG))
}

/// Reads configuration and weights. For a while the file, its transposed tensors and the file in
/// PEFT's layout are in memory together.
pub(crate) fn read(files: Files<'_>, base: Base<'_>) -> Result<Content, Error> {
    let bundle = Bundle::read(files, CONFIG_FILE, WEIGHTS_FILE)?;
    let refused = |problems| Error::refused(files.name, problems);
    let settings = Settings::parse(&bundle.config).map_err(refused)?;
    let tensors = bundle.tensors().map_err(refused)?;
    let tensors = renamed(&tensors).map_err(refused)?;
    let config = settings.in_pefts_terms(&tensors, base.config.num_layers).map_err(refused)?;
    let views = tensors.into_iter().map(|renamed| (renamed.name, renamed.tensor));
    let weights =
        weights_file(views).map_err(|error| refused(vec![format!("{WEIGHTS_FILE}: {error}")]))?;
    let tensors = SafeTensors::deserialize(&weights)
        .map_err(|error| refused(vec![format!("{WEIGHTS_FILE}: {error}")]))?;
    let (kind, weights) =
        peft::lora(config.to_string().as_bytes(), &tensors, base).map_err(refused)?;
    Ok(Content { generation: bundle.generation(TAG), kind, weights })
}

/// The configuration, as far as it is about arithmetic.
struct Settings {
    /// r, the same at all linears.
    rank: u64,
    /// Factor on the product; MLX does not divide it by the rank.
    scale: f64,
    /// True where `fine_tune_type` or `use_dora` says so.
    is_dora: bool,
    /// Paths within a layer that have a module; every path where there is no list.
    keys: Option<Vec<String>>,
    /// The number of layers that have one, counted from the last layer back; all where there is
    /// none.
    layers: Option<usize>,
}

impl Settings {
    /// Parses the settings, with all problems at once.
    fn parse(bytes: &[u8]) -> Result<Self, Vec<String>> {
        let object = peft::config_object(bytes)?;
        let mut problems = Vec::new();
        let tunes = object.get("fine_tune_type").and_then(Json::as_str).unwrap_or("lora");
        if !["lora", "dora"].contains(&tunes) {
            problems.push(format!(
                "`fine_tune_type` is {tunes}: MLX's weights of a whole model are no module, expected lora or dora"
            ));
        }
        let Some(parameters) = object.get("lora_parameters").and_then(Json::as_object) else {
            problems.push(format!(
                "{WEIGHTS_FILE} is MLX's, but {CONFIG_FILE} has no `lora_parameters`"
            ));
            return Err(problems);
        };
        for name in parameters.keys().filter(|name| !PARAMETERS.contains(&name.as_str())) {
            // Releases before 0.21 scaled by α/r too, and later ones do not look at it.
            problems.push(format!("setting `lora_parameters.{name}` is not supported"));
        }
        let rank = parameters.get("rank").and_then(Json::as_u64).filter(|rank| *rank > 0);
        let scale = parameters.get("scale").and_then(Json::as_f64);
        if rank.is_none() {
            problems.push("`lora_parameters.rank` is missing or no positive number".to_owned());
        }
        if scale.is_none() {
            problems.push("`lora_parameters.scale` is missing or no number".to_owned());
        }
        match (rank, scale) {
            (Some(rank), Some(scale)) if problems.is_empty() => Ok(Self {
                rank,
                scale,
                is_dora: tunes == "dora" || object.get("use_dora") == Some(&Json::Bool(true)),
                keys: parameters
                    .get("keys")
                    .filter(|keys| !keys.is_null())
                    .map(|keys| peft::strings(Some(keys))),
                layers: object
                    .get("num_layers")
                    .and_then(Json::as_u64)
                    .filter(|layers| *layers > 0)
                    .map(|layers| usize::try_from(layers).unwrap_or(usize::MAX)),
            }),
            _ => Err(problems),
        }
    }

    /// The reason for which MLX would leave out what the file has at a path, if it would. A tensor
    /// that MLX itself would not load must not change the result here.
    fn unasked(&self, path: &str, num_layers: usize) -> Option<String> {
        let inside = path.split_once(".layers.").and_then(|(_, rest)| rest.split_once('.'));
        let within = inside.map_or(path, |(_, within)| within);
        let is_key = |keys: &Vec<String>| keys.iter().any(|key| key == within || key == path);
        if !self.keys.as_ref().is_none_or(is_key) {
            return Some(format!(
                "{path} has tensors, but `lora_parameters.keys` does not name it"
            ));
        }
        let layer: usize = inside?.0.parse().ok()?;
        let first = num_layers.saturating_sub(self.layers?);
        (layer < first)
            .then(|| format!("{path} has tensors, but `num_layers` begins at layer {first}"))
    }

    /// The same as a configuration of PEFT's, which targets exactly the linears that have tensors.
    /// α is scale · r, since PEFT divides by r.
    fn in_pefts_terms(&self, tensors: &[Renamed], num_layers: usize) -> Result<Json, Vec<String>> {
        let mut paths: Vec<&str> = tensors.iter().map(|tensor| tensor.path.as_str()).collect();
        paths.sort_unstable();
        paths.dedup();
        let problems: Vec<String> =
            paths.iter().filter_map(|path| self.unasked(path, num_layers)).collect();
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut config = Map::new();
        for (name, value) in [
            ("peft_type", json!("LORA")),
            ("r", json!(self.rank)),
            ("lora_alpha", json!(self.scale * self.rank as f64)),
            ("target_modules", json!(paths)),
            ("use_dora", json!(self.is_dora)),
            // A tied table is the head too, in MLX: what is added to one is added to the other.
            ("ensure_weight_tying", json!(true)),
        ] {
            config.insert(name.to_owned(), value);
        }
        Ok(Json::Object(config))
    }
}

/// A tensor under PEFT's name, in PEFT's layout.
struct Renamed {
    /// The name in PEFT's files.
    name: String,
    /// The path of the linear that it belongs to.
    path: String,
    /// Its elements, matrices transposed.
    tensor: Tensor,
}

/// All tensors under PEFT's names, or all that have none.
fn renamed(tensors: &SafeTensors<'_>) -> Result<Vec<Renamed>, Vec<String>> {
    let mut problems = Vec::new();
    let (mut all, mut names) = (Vec::new(), BTreeSet::new());
    for (name, view) in tensors.iter() {
        match rename(name, &view) {
            Ok(tensor) if !names.insert(tensor.name.clone()) => {
                problems.push(format!("tensor `{name}` is there under another name too"));
            }
            Ok(tensor) => all.push(tensor),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(all) } else { Err(problems) }
}

/// One tensor under PEFT's name. A matrix is transposed; DoRA's vector is copied.
fn rename(name: &str, view: &TensorView<'_>) -> Result<Renamed, String> {
    let (path, part) = name.rsplit_once('.').unwrap_or((name, ""));
    // Models for pictures and text have the text's part in one of their own.
    let path = path.strip_prefix("language_model.").unwrap_or(path);
    if path.contains(".switch_mlp.") {
        return Err(format!("tensor `{name}`: MLX's LoRA at experts is not supported"));
    }
    let is_table = path.rsplit('.').next() == Some("embed_tokens");
    let suffix = match (part, is_table) {
        ("lora_a", false) => "lora_A.weight",
        ("lora_b", false) => "lora_B.weight",
        ("m", false) => "lora_magnitude_vector",
        ("lora_a", true) => "lora_embedding_A",
        ("lora_b", true) => "lora_embedding_B",
        _ => {
            let expected = "expected the names `lora_a`, `lora_b` and `m` of a linear";
            return Err(format!("tensor `{name}` is none of MLX's LoRA, {expected}"));
        }
    };
    let name = format!("base_model.model.{path}.{suffix}");
    let (dtype, path) = (view.dtype(), path.to_owned());
    let (shape, bytes) = match *view.shape() {
        [rows, columns] => {
            let size = view.data().len() / (rows * columns).max(1);
            (vec![columns, rows], transposed(view.data(), [rows, columns], size))
        }
        ref shape => (shape.to_vec(), view.data().to_vec()),
    };
    Ok(Renamed { name, path, tensor: Tensor { dtype, shape, bytes } })
}

/// A matrix of elements of `size` bytes, `[rows, columns]`, as `[columns, rows]`.
fn transposed(data: &[u8], [rows, columns]: [usize; 2], size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    for column in 0..columns {
        for row in 0..rows {
            let at = (row * columns + column) * size;
            out.extend_from_slice(&data[at..at + size]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_could_mean_two_things_are_refused() {
        let parse = |text: &str| Settings::parse(text.as_bytes());
        let good = r#"{"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 20.0, "dropout": 0.1}}"#;
        let settings = parse(good).ok().unwrap();
        assert_eq!((settings.rank, settings.scale, settings.is_dora), (4, 20.0, false));
        for (change, part) in [
            (("\"scale\"", "\"alpha\": 16, \"scale\""), "alpha"),
            (("\"scale\": 20.0, ", ""), "scale"),
            (("4", "0"), "rank"),
            (("\"lora\"", "\"full\""), "whole model"),
            (("lora_parameters", "lora"), "lora_parameters"),
        ] {
            let problems = parse(&good.replace(change.0, change.1)).err().unwrap();
            assert!(problems.iter().any(|problem| problem.contains(part)), "{part}: {problems:?}");
        }
    }

    #[test]
    fn a_tensor_under_two_names_is_refused() {
        let path = "model.layers.0.self_attn.q_proj.lora_a";
        let file = |names: &[String]| {
            let tensor = || Tensor::f32(vec![2, 1], [1.0, 2.0].into_iter());
            weights_file(names.iter().map(|name| (name.clone(), tensor()))).unwrap()
        };
        let names = [path.to_owned(), format!("language_model.{path}")];
        let problems = |names: &[String]| {
            let bytes = file(names);
            renamed(&SafeTensors::deserialize(&bytes).unwrap()).err().unwrap_or_default()
        };
        assert!(problems(&names[..1]).is_empty() && problems(&names[1..]).is_empty());
        assert!(problems(&names)[0].contains("under another name too"));
    }

    #[test]
    fn matrices_turn_round() {
        assert_eq!(transposed(&[1, 2, 3, 4, 5, 6], [3, 2], 1), [1, 3, 5, 2, 4, 6]);
        assert_eq!(transposed(&[1, 2, 3, 4], [2, 1], 2), [1, 2, 3, 4]);
    }
}
