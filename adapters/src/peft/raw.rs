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

/// The files of a LoRA, for those who compare LoRAs or make new ones of them. No base is needed.
#[derive(Debug)]
pub struct Content {
    /// `adapter_config.json`.
    pub config: Vec<u8>,
    /// The identity of its content.
    pub generation: Generation,
    /// The card beside it.
    pub card: Card,
    /// The parsed configuration.
    pub(super) settings: LoraSettings,
    /// `adapter_model.safetensors`.
    pub weights: Vec<u8>,
}

impl Content {
    /// Reads the files and parses the configuration; tensors are not checked yet.
    ///
    /// # Errors
    /// If a file is missing or refused, or the configuration is none of a LoRA.
    pub fn read(files: Files<'_>) -> Result<Self, Error> {
        let refused = |problems| Error::refused(files.name, problems);
        let bundle = Bundle::read(files, CONFIG_FILE, WEIGHTS_FILE)?;
        let settings = LoraSettings::parse(&bundle.config).map_err(refused)?;
        let (generation, card) = (generation(&bundle, "lora"), card(files)?);
        let Bundle { config, weights, .. } = bundle;
        Ok(Self { config, generation, card, settings, weights })
    }

    /// The tensors of the weights.
    ///
    /// # Errors
    /// If they are no safetensors file.
    pub fn tensors(&self) -> Result<SafeTensors<'_>, Vec<String>> {
        SafeTensors::deserialize(&self.weights).map_err(|error| {
            vec![format!("{WEIGHTS_FILE} is not a valid safetensors file: {error}")]
        })
    }

    /// A and B by the path of the linear (`model.layers.0.self_attn.q_proj`), as 32-bit floats.
    /// Shapes are checked against the rank alone, as no base is known.
    ///
    /// # Errors
    /// If the module is more than a low-rank product, or its tensors do not fit its configuration.
    pub fn sites(&self) -> Result<BTreeMap<String, RawSite>, Vec<String>> {
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
#[derive(Clone, Debug)]
pub struct Matrix {
    /// The numbers of rows and columns.
    pub shape: [usize; 2],
    /// Its values, row by row.
    pub values: Vec<f32>,
}

/// A LoRA at one linear: A `[rank, inputs]`, then B `[outputs, rank]`.
#[derive(Clone, Debug)]
pub struct RawSite {
    /// The rank of the product.
    pub rank: usize,
    /// The factor of the product: α/r, or α/√r with rsLoRA.
    pub scale: f32,
    /// α, which the scale was made of.
    pub alpha: f64,
    /// A `[rank, inputs]` and B `[outputs, rank]`.
    pub matrices: [Matrix; 2],
}

impl RawSite {
    /// Input features of the linear.
    pub fn inputs(&self) -> usize {
        self.matrices[0].shape[1]
    }

    /// Output features of the linear.
    pub fn outputs(&self) -> usize {
        self.matrices[1].shape[0]
    }

    /// The numbers that two LoRAs must share for their matrices to be summed, by name.
    pub fn numbers(&self) -> [(&'static str, String); 4] {
        [
            ("rank", self.rank.to_string()),
            ("scale", self.scale.to_string()),
            ("inputs", self.inputs().to_string()),
            ("outputs", self.outputs().to_string()),
        ]
    }
}

/// `base_model.model.<path>.lora_A.weight` → `(path, false)`, `lora_B` → `(path, true)`. Names as
/// in memory, with `.default`, are not taken here.
fn parse_key(name: &str) -> Option<(&str, bool)> {
    let rest = name.strip_prefix("base_model.model.")?.strip_suffix(".weight")?;
    match rest.strip_suffix(".lora_A") {
        Some(path) => Some((path, false)),
        None => Some((rest.strip_suffix(".lora_B")?, true)),
    }
}
