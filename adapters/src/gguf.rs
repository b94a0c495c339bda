//! Modules in GGUF files, in llama.cpp's layout: LoRA adapters and control vectors.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use polyskill_model::gguf::{Header, TensorInfo, TensorType, parse};
use polyskill_model::load::{gguf_architecture, gguf_stored_row, gguf_tensor_name};
use polyskill_model::{ModelConfig, Projection, Site};

use crate::edits::{ActivationEdit, Point, Positions};
use crate::error::Error;
use crate::files::{Files, Problems};
use crate::generation::Generation;
use crate::library::Kind;
use crate::load::{Base, Content};
use crate::lora::{Elements, LoraSite};
use crate::peft::MAX_WEIGHT;
use crate::weights::{EmbeddingLora, LinearPart, Part, Weights};

/// The ending of the files.
const EXTENSION: &str = "gguf";
/// Largest file, 4 GiB: it is read into memory whole.
const MAX_BYTES: u64 = 4 << 30;

/// True for a file that may hold a module, by its ending.
pub(crate) fn is_module_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == EXTENSION) && path.is_file()
}

/// Identity of a file's content: the whole file, with a tag that keeps it apart from other formats.
fn generation(bytes: &[u8]) -> Generation {
    Generation::of(&[b"gguf", bytes])
}

/// The generation of a file; what is in it is not looked at.
pub(crate) fn generation_of(files: Files<'_>, file: &str) -> Result<Generation, Error> {
    files.read(file, MAX_BYTES).map(|bytes| generation(&bytes))
}

/// Reads a LoRA or a control vector, by the metadata `general.type` and `general.architecture`.
pub(crate) fn read(files: Files<'_>, file: &str, base: Base<'_>) -> Result<Content, Error> {
    let bytes = files.read(file, MAX_BYTES)?;
    let refused = |problems| Error::refused(files.name, problems);
    let header = parse(&bytes)
        .map_err(|problem| refused(vec![format!("{file} is not a valid GGUF file: {problem}")]))?;
    let reader = Reader { header: &header, bytes: &bytes, base };
    let (kind, weights) = match reader.text("general.type") {
        Some("adapter") => (Kind::Lora, reader.lora()),
        _ if reader.text("general.architecture") == Some("controlvector") => {
            (Kind::ActivationEdit, reader.control_vector())
        }
        found => {
            let found = found.unwrap_or("missing");
            let problem =
                format!("`general.type` is {found}: neither an adapter nor a control vector");
            return Err(refused(vec![problem]));
        }
    };
    let generation = generation(&bytes);
    Ok(Content { generation, kind, weights: weights.map_err(refused)? })
}

/// The weights that a pair of matrices changes. Pairs are read in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    /// A projection of a layer.
    Site(Site),
    /// The embedding table, `token_embd`.
    Embedding,
    /// The head, `output`.
    Head,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Site(site) => site.fmt(f),
            Self::Embedding => f.write_str("token_embd"),
            Self::Head => f.write_str("output"),
        }
    }
}

/// A file that is read for a base.
struct Reader<'a> {
    /// Metadata, and each tensor's type, shape and place.
    header: &'a Header,
    /// The whole file.
    bytes: &'a [u8],
    /// The base that serves.
    base: Base<'a>,
}

impl Reader<'_> {
    /// A text of the metadata; `None` where there is none or it is no text.
    fn text(&self, key: &str) -> Option<&str> {
        self.header.metadata.get(key)?.as_str()
    }

    /// A tensor of one shape as 32-bit floats, the outermost dimension first. Quantised tensors are
    /// widened. A value that is not finite, or beyond [`MAX_WEIGHT`], is a problem.
    fn floats(
        &self,
        name: &str,
        info: &TensorInfo,
        expected: &[usize],
    ) -> Result<Vec<f32>, String> {
        if info.shape != expected {
            return Err(format!("`{name}` has shape {:?}, expected {expected:?}", info.shape));
        }
        let bytes = &self.bytes[info.start..info.start + info.num_bytes];
        let values = info.to_f32(bytes).map_err(|problem| format!("`{name}`: {problem}"))?;
        match values.iter().find(|value| !value.is_finite() || value.abs() > MAX_WEIGHT) {
            None => Ok(values),
            Some(value) if value.is_finite() => Err(format!(
                "`{name}` holds a value beyond {MAX_WEIGHT}, the largest that is taken"
            )),
            Some(_) => Err(format!("`{name}` holds a value that is not finite")),
        }
    }

    /// Reads pairs `<tensor>.lora_a` and `<tensor>.lora_b`. α is one number for all of them; ranks
    /// may differ.
    fn lora(&self) -> Result<Weights, Vec<String>> {
        let mut problems = Problems::default();
        self.check_adapter(&mut problems);
        let alpha = self.alpha().unwrap_or_else(|problem| {
            problems.add(problem);
            1.0
        });
        let mut pairs: BTreeMap<Target, [Option<&str>; 2]> = BTreeMap::new();
        let names = self.target_names();
        for name in self.header.tensors.keys() {
            let split = name.rsplit_once('.').and_then(|(tensor, part)| {
                Some((names.get(tensor)?, ["lora_a", "lora_b"].iter().position(|p| *p == part)?))
            });
            match split {
                Some((target, part)) => pairs.entry(*target).or_default()[part] = Some(name),
                None => problems
                    .add(format!("tensor `{name}` belongs to no projection of the base model")),
            }
        }
        let mut weights = Weights::new(self.base.config.num_sites());
        for (target, pair) in &pairs {
            if let Err(problem) = self.put(*target, *pair, alpha, &mut weights) {
                problems.add(problem);
            }
        }
        if pairs.is_empty() {
            problems.add("it has no tensors `lora_a` and `lora_b`".to_owned());
        }
        problems.into_result(weights)
    }

    /// α of all pairs; 0, as llama.cpp takes it, where there is none.
    fn alpha(&self) -> Result<f64, String> {
        let Some(alpha) = self.header.metadata.get("adapter.lora.alpha") else { return Ok(0.0) };
        alpha.as_f64().filter(|alpha| alpha.abs() <= f64::from(MAX_WEIGHT)).ok_or_else(|| {
            format!("`adapter.lora.alpha` is no number from -{MAX_WEIGHT} to {MAX_WEIGHT}")
        })
    }

    /// Reads one pair into its place; one matrix without the other is a problem.
    fn put(
        &self,
        target: Target,
        pair: [Option<&str>; 2],
        alpha: f64,
        weights: &mut Weights,
    ) -> Result<(), String> {
        let [Some(a), Some(b)] = pair else {
            let missing = if pair[0].is_none() { "lora_a" } else { "lora_b" };
            return Err(format!("{target} has no `{missing}`"));
        };
        match target {
            Target::Embedding => {
                weights.add(Part::Embedding(self.embedding([a, b], alpha)?));
            }
            Target::Site(site) => {
                let lora = self.low_rank(target, [a, b], alpha)?;
                *weights.at_mut(site) = LinearPart::lora(lora);
            }
            Target::Head => {
                let lora = self.low_rank(target, [a, b], alpha)?;
                weights.add(Part::Head(LinearPart::lora(lora)));
            }
        }
        Ok(())
    }

    /// Reports another type of adapter than LoRA, another architecture than the base's, and
    /// activated LoRA.
    fn check_adapter(&self, problems: &mut Problems) {
        if self.text("adapter.type") != Some("lora") {
            let found = self.text("adapter.type").unwrap_or("missing");
            problems.add(format!("`adapter.type` is {found}, expected lora"));
        }
        let architecture = self.text("general.architecture");
        let expected = gguf_architecture(self.base.config);
        if architecture != Some(expected) {
            let found = architecture.unwrap_or("missing");
            problems.add(format!("`general.architecture` is {found}, expected {expected}"));
        }
        let aloras = self.header.metadata.keys().filter(|key| key.starts_with("adapter.alora."));
        for key in aloras {
            problems.add(format!("`{key}`: activated LoRA is not supported"));
        }
    }

    /// llama.cpp's names of the weights that a pair can change, for the base's architecture;
    /// nothing but these names is taken.
    fn target_names(&self) -> BTreeMap<String, Target> {
        let name = |key: &str| gguf_tensor_name(self.base.config, key);
        let sites = self.base.config.sites();
        let sites = sites.map(|site| (name(&format!("model.{site}.weight")), Target::Site(site)));
        let ends = [
            (name("model.embed_tokens.weight"), Target::Embedding),
            (name("lm_head.weight"), Target::Head),
        ];
        sites.chain(ends).collect()
    }

    /// A `[rank, inputs]` and B `[outputs, rank]` of a linear. Rows of B at q and k are put in the
    /// order of Hugging Face's checkpoints where llama.cpp's converter permutes them.
    fn low_rank(
        &self,
        target: Target,
        [a_name, b_name]: [&str; 2],
        alpha: f64,
    ) -> Result<LoraSite, String> {
        let (outputs, inputs) = match target {
            Target::Site(site) => self.base.config.projection_shape(site.projection),
            Target::Head | Target::Embedding => {
                (self.base.config.vocab_size, self.base.config.hidden_size)
            }
        };
        let (a, b) = (&self.header.tensors[a_name], &self.header.tensors[b_name]);
        let rank = a.shape.first().copied().filter(|rank| (1..=inputs).contains(rank));
        let rank = rank.ok_or_else(|| format!("`{a_name}` has shape {:?}", a.shape))?;
        let a_values = self.floats(a_name, a, &[rank, inputs])?;
        let b_values = self.floats(b_name, b, &[outputs, rank])?;
        let rotated =
            matches!(target, Target::Site(Site { projection: Projection::Q | Projection::K, .. }));
        let stored = |row| if rotated { gguf_stored_row(self.base.config, row) } else { row };
        let b_transposed = transposed(&b_values, outputs, rank, stored);
        let (a, b_transposed) = (as_stored(a.dtype, a_values), as_stored(b.dtype, b_transposed));
        Ok(LoraSite { rank, scale: scale(alpha, rank), a, b_transposed, magnitude: None })
    }

    /// A and B of the embedding table. llama.cpp's converter writes A as `[vocab_size, rank]`,
    /// since it looks rows up in it; as `[rank, vocab_size]`, PEFT's own layout, it is taken too.
    fn embedding(&self, [a_name, b_name]: [&str; 2], alpha: f64) -> Result<EmbeddingLora, String> {
        let (vocab, hidden) = (self.base.config.vocab_size, self.base.config.hidden_size);
        let (a, b) = (&self.header.tensors[a_name], &self.header.tensors[b_name]);
        let rank = b.shape.get(1).copied().filter(|rank| (1..=hidden).contains(rank));
        let rank = rank.ok_or_else(|| format!("`{b_name}` has shape {:?}", b.shape))?;
        let a_transposed = match a.shape[..] == [rank, vocab] && rank != vocab {
            true => transposed(&self.floats(a_name, a, &[rank, vocab])?, rank, vocab, |row| row),
            false => self.floats(a_name, a, &[vocab, rank])?,
        };
        let b_values = self.floats(b_name, b, &[hidden, rank])?;
        let b_transposed = transposed(&b_values, hidden, rank, |row| row);
        let a_transposed = as_stored(a.dtype, a_transposed);
        let b_transposed = as_stored(b.dtype, b_transposed);
        Ok(EmbeddingLora { rank, scale: scale(alpha, rank), a_transposed, b_transposed })
    }

    /// Reads vectors `direction.N`, `[hidden_size]`, each added to the residual stream after layer
    /// N, from 1 on as llama.cpp applies them.
    fn control_vector(&self) -> Result<Weights, Vec<String>> {
        let mut problems = Problems::default();
        let hint = self.text("controlvector.model_hint");
        if let Some(hint) = hint.filter(|hint| !names_architecture(hint, self.base.config)) {
            let expected = self.base.config.family;
            problems.add(format!("`controlvector.model_hint` is {hint}, expected {expected}"));
        }
        let mut edits = BTreeMap::new();
        for (name, info) in &self.header.tensors {
            let number = name.strip_prefix("direction.");
            let layer = number.and_then(|number| Some((number, number.parse::<usize>().ok()?)));
            let layer = layer.filter(|(number, layer)| layer.to_string() == *number);
            let layer = layer.map(|(_, layer)| layer);
            let layer = match layer {
                Some(layer) if (1..self.base.config.num_layers).contains(&layer) => layer,
                _ => {
                    let last = self.base.config.num_layers - 1;
                    problems
                        .add(format!("tensor `{name}`, expected direction.1 to direction.{last}"));
                    continue;
                }
            };
            match self.floats(name, info, &[self.base.config.hidden_size]) {
                Ok(vector) => {
                    let (point, positions) = (Point::Residual, Positions::All);
                    edits.insert(
                        layer,
                        ActivationEdit { layer, point, positions, vector, mix: None },
                    );
                }
                Err(problem) => problems.add(problem),
            }
        }
        if edits.is_empty() {
            problems.add("it has no `direction.N`".to_owned());
        }
        let mut weights = Weights::new(self.base.config.num_sites());
        edits.into_values().for_each(|edit| weights.add(Part::Edit(edit)));
        problems.into_result(weights)
    }
}

/// Rows `[rows, columns]`, where row r is stored as row `stored(r)`, to `[columns, rows]`. `stored`
/// is a permutation of the rows.
fn transposed(
    values: &[f32],
    rows: usize,
    columns: usize,
    stored: impl Fn(usize) -> usize,
) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    for row in 0..rows {
        let from = stored(row) * columns;
        for column in 0..columns {
            out[column * rows + row] = values[from + column];
        }
    }
    out
}

/// llama.cpp's factor: α/r, and 1 where α is 0.
fn scale(alpha: f64, rank: usize) -> f32 {
    if alpha == 0.0 { 1.0 } else { (alpha / rank as f64) as f32 }
}

/// True where a control vector's hint means the base's architecture. Tools write llama.cpp's name
/// of it, transformers' type of the model or of its text part, or the class; Mistral and Mixtral
/// are llama to llama.cpp.
fn names_architecture(hint: &str, config: &ModelConfig) -> bool {
    let plain = |name: &str| {
        let name = name.to_lowercase().replace(['_', '-'], "");
        let class = ["forcausallm", "forconditionalgeneration", "model"];
        let name = class.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
        match name.strip_suffix("text").unwrap_or(name) {
            "mistral" | "mixtral" => "llama".to_owned(),
            other => other.to_owned(),
        }
    };
    hint.is_empty() || plain(hint) == plain(gguf_architecture(config))
}

/// Values in half precision where the tensor came so; all other types become 32-bit floats.
fn as_stored(dtype: TensorType, values: Vec<f32>) -> Elements {
    match dtype {
        TensorType::F16 => Elements::f16(&values),
        _ => Elements::F32(values),
    }
}

#[cfg(test)]
mod tests {
    use polyskill_model::gguf::Value;

    use super::*;
    use crate::artefact::tests::config;

    /// The factor of a pair of rank 4 in a file with this α.
    fn factor(alpha: Option<Value>) -> Result<f32, String> {
        let config = config();
        let metadata = alpha.map(|alpha| ("adapter.lora.alpha".to_owned(), alpha));
        let header = Header { metadata: metadata.into_iter().collect(), tensors: BTreeMap::new() };
        let reader = Reader { header: &header, bytes: &[], base: (&config).into() };
        reader.alpha().map(|alpha| scale(alpha, 4))
    }

    #[test]
    fn a_missing_alpha_is_a_factor_of_one() {
        assert_eq!(factor(None), Ok(1.0));
        assert_eq!(factor(Some(Value::Float(0.0))), Ok(1.0));
        assert_eq!(factor(Some(Value::Float(2.0))), Ok(0.5));
        for wrong in [Value::Float(f64::NAN), Value::Text("four".to_owned())] {
            assert!(factor(Some(wrong)).unwrap_err().contains("adapter.lora.alpha"));
        }
    }
}
