//! A PEFT directory as it lies on disk, before it is known which base it is for.

use std::collections::BTreeMap;

use safetensors::tensor::SafeTensors;

use super::bundle::{Bundle, card, elements};
use super::config::LoraSettings;
use super::{CONFIG_FILE, WEIGHTS_FILE, generation};
use crate::card::Card;
use crate::error::Error;
use crate::files::{Files, Problems};
use crate::generation::Generation;

/// The files of a LoRA.
pub(crate) struct Content {
    /// `adapter_config.json`.
    pub(crate) config: Vec<u8>,
    pub(crate) generation: Generation,
    pub(crate) card: Card,
    pub(super) settings: LoraSettings,
    pub(crate) weights: Vec<u8>,
}

impl Content {
    pub(crate) fn read(files: Files<'_>) -> Result<Self, Error> {
        let refused = |problems| Error::refused(files.name, problems);
        let bundle = Bundle::read(files, CONFIG_FILE, WEIGHTS_FILE)?;
        let settings = LoraSettings::parse(&bundle.config).map_err(refused)?;
        let (generation, card) = (generation(&bundle, "lora"), card(files)?);
        let Bundle { config, weights, .. } = bundle;
        Ok(Self { config, generation, card, settings, weights })
    }

    pub(crate) fn tensors(&self) -> Result<SafeTensors<'_>, Vec<String>> {
        SafeTensors::deserialize(&self.weights).map_err(|error| {
            vec![format!("{WEIGHTS_FILE} is not a valid safetensors file: {error}")]
        })
    }

    /// A and B by the path of the linear (`model.layers.0.self_attn.q_proj`), as 32-bit floats.
    pub(crate) fn sites(&self) -> Result<BTreeMap<String, RawSite>, Vec<String>> {
        let mut problems = Problems::default();
        for setting in self.settings.beyond_low_rank() {
            problems.add(format!(
                "setting `{setting}`: only a plain low-rank product can be transformed"
            ));
        }
        let mut sites: BTreeMap<String, [Option<Matrix>; 2]> = BTreeMap::new();
        for (name, view) in self.tensors()?.iter() {
            let Some((path, is_b)) =
                parse_key(name).filter(|(path, _)| self.settings.is_target(path))
            else {
                problems.add(format!("tensor `{name}` belongs to no target module"));
                continue;
            };
            let (rank, _) = self.settings.rank_and_scale(path);
            match (elements(&view), view.shape()) {
                (Ok(elements), &[rows, columns]) if [rows, columns][usize::from(is_b)] == rank => {
                    let values = elements.as_slice().to_f32();
                    let matrix = Matrix { shape: [rows, columns], values };
                    sites.entry(path.to_owned()).or_default()[usize::from(is_b)] = Some(matrix);
                }
                (Err(problem), _) => problems.add(format!("tensor `{name}` {problem}")),
                (_, shape) => problems
                    .add(format!("tensor `{name}` has shape {shape:?}, expected rank {rank}")),
            }
        }
        let mut complete = BTreeMap::new();
        for (path, matrices) in sites {
            let (rank, scale) = self.settings.rank_and_scale(&path);
            match matrices {
                [Some(a), Some(b)] => {
                    let alpha = self.settings.alpha(&path);
                    complete.insert(path, RawSite { rank, scale, alpha, matrices: [a, b] });
                }
                [None, _] => problems.add(format!("{path} has no `lora_A`")),
                [_, None] => problems.add(format!("{path} has no `lora_B`")),
            }
        }
        problems.into_result(complete)
    }
}

/// A matrix, row by row.
pub(crate) struct Matrix {
    pub(crate) shape: [usize; 2],
    pub(crate) values: Vec<f32>,
}

/// A LoRA at one linear: A `[rank, inputs]`, then B `[outputs, rank]`.
pub(crate) struct RawSite {
    pub(crate) rank: usize,
    pub(crate) scale: f32,
    /// What the scale was made of.
    pub(crate) alpha: f64,
    pub(crate) matrices: [Matrix; 2],
}

impl RawSite {
    pub(crate) fn inputs(&self) -> usize {
        self.matrices[0].shape[1]
    }

    pub(crate) fn outputs(&self) -> usize {
        self.matrices[1].shape[0]
    }

    /// What two LoRAs must share for their matrices to be summed.
    pub(crate) fn numbers(&self) -> [(&'static str, String); 4] {
        [
            ("rank", self.rank.to_string()),
            ("scale", self.scale.to_string()),
            ("inputs", self.inputs().to_string()),
            ("outputs", self.outputs().to_string()),
        ]
    }
}

/// `base_model.model.<path>.lora_A.weight` → `(path, false)`, `lora_B` → `(path, true)`.
fn parse_key(name: &str) -> Option<(&str, bool)> {
    let rest = name.strip_prefix("base_model.model.")?.strip_suffix(".weight")?;
    match rest.strip_suffix(".lora_A") {
        Some(path) => Some((path, false)),
        None => Some((rest.strip_suffix(".lora_B")?, true)),
    }
}
