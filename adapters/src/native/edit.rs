//! Activation edits: vectors that are added to hidden states or mixed into them.

use safetensors::tensor::SafeTensors;
use serde::Deserialize;

use crate::edits::{ActivationEdit, Point, Positions};
use crate::files::Problems;
use crate::load::Base;
use crate::peft::bundle::floats;
use crate::weights::{Part, Weights};

/// Most edits of a module.
const MAX_EDITS: usize = 4_096;

/// The settings of `ACTIVATION_EDIT`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// Version of the format.
    pub(super) format_version: u32,
    /// Edits, in the order in which they apply.
    edits: Vec<EditSettings>,
}

/// One edit, with the names of its tensors.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EditSettings {
    /// Layer number, from 0.
    layer: usize,
    /// The hidden state that is edited.
    point: PointName,
    /// Addition, or mixing.
    operation: Operation,
    /// The tokens at which it is edited.
    positions: PositionsName,
    /// Name of v's tensor, as wide as the hidden state.
    vector: String,
    /// Name of α's tensor, for mixing alone: one value, one per head at the heads, or one per
    /// feature. Without it α is 1, so that v replaces the hidden state at weight 1.
    #[serde(default)]
    alpha: Option<String>,
}

/// [`Point`] by its name in the file.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PointName {
    Residual,
    Heads,
}

/// The two ways to bring v in.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Operation {
    /// h += w·v
    Add,
    /// h += w·α ⊙ (v − h)
    Mix,
}

/// [`Positions`] by their name in the file.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PositionsName {
    All,
    LastPrompt,
    FromLastPrompt,
}

/// Reads all edits. A tensor that no edit names is a problem.
pub(super) fn load(
    settings: &Settings,
    tensors: &SafeTensors<'_>,
    base: Base<'_>,
) -> Result<Weights, Vec<String>> {
    let mut problems = Problems::default();
    let mut weights = Weights::new(base.config.num_sites());
    if settings.edits.is_empty() || settings.edits.len() > MAX_EDITS {
        problems.add(format!("{} `edits`, expected 1 to {MAX_EDITS}", settings.edits.len()));
    }
    for (index, edit) in settings.edits.iter().take(MAX_EDITS).enumerate() {
        match edit.read(tensors, base) {
            Ok(edit) => weights.add(Part::Edit(edit)),
            Err(problem) => problems.add(format!("edit {index}: {problem}")),
        }
    }
    let uses = |name: &str| {
        let mut edits = settings.edits.iter();
        edits.any(|edit| edit.vector == name || edit.alpha.as_deref() == Some(name))
    };
    for name in tensors.names().into_iter().filter(|name| !uses(name)) {
        problems.add(format!("tensor `{name}` is used by no edit"));
    }
    problems.into_result(weights)
}

impl EditSettings {
    /// Reads the vectors of one edit. α is widened to one value per feature.
    fn read(&self, tensors: &SafeTensors<'_>, base: Base<'_>) -> Result<ActivationEdit, String> {
        if self.layer >= base.config.num_layers {
            return Err(format!("layer {}, the base has {}", self.layer, base.config.num_layers));
        }
        let num_heads = base.config.num_heads;
        let (point, width) = match self.point {
            PointName::Residual => (Point::Residual, base.config.hidden_size),
            PointName::Heads => (Point::Heads, num_heads * base.config.head_dim),
        };
        let view =
            |name: &str| tensors.tensor(name).map_err(|_| format!("tensor `{name}` is missing"));
        let vector = floats(&format!("`{}`", self.vector), &view(&self.vector)?, &[width])?;
        let mix = match (self.operation, &self.alpha) {
            (Operation::Add, None) => None,
            (Operation::Add, Some(_)) => {
                return Err("`alpha` belongs to the operation mix".to_owned());
            }
            (Operation::Mix, None) => Some(vec![1.0; width]),
            (Operation::Mix, Some(name)) => {
                let view = view(name)?;
                let len = match (view.shape(), point) {
                    ([1], _) => 1,
                    ([len], Point::Heads) if *len == num_heads => num_heads,
                    _ => width,
                };
                let alpha = floats(&format!("`{name}`"), &view, &[len])?;
                Some(
                    alpha
                        .iter()
                        .flat_map(|&alpha| std::iter::repeat_n(alpha, width / len))
                        .collect(),
                )
            }
        };
        let positions = match self.positions {
            PositionsName::All => Positions::All,
            PositionsName::LastPrompt => Positions::LastPrompt,
            PositionsName::FromLastPrompt => Positions::FromLastPrompt,
        };
        Ok(ActivationEdit { layer: self.layer, point, positions, vector, mix })
    }
}
