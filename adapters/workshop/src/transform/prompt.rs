//! Arithmetic on prompts of PEFT's prompt tuning: task prompt vectors (Belanec et al., 2024).
//!
//! A task prompt vector is v = P − O, for a prompt P that was trained from the origin O. Vectors of
//! one origin add up: P' = O + c·Σ w·v. Each vector names its origin by digest, since the sum of
//! vectors from different origins means something else.

use std::path::{Path, PathBuf};

use safetensors::tensor::SafeTensors;
use serde_json::{Map, Value as Json, json};

use super::provenance::{Origin, Provenance};
use super::source::{leaf, new_name};
use super::write::{self, Draft, pretty};
use super::{Made, Weighted};
use polyskill_adapters::Error;
use polyskill_adapters::Generation;
use polyskill_adapters::card::Card;
use polyskill_adapters::files::{Files, Problems};
use polyskill_adapters::peft::bundle::read_config;
use polyskill_adapters::peft::{
    CARD_FILE, CONFIG_FILE, MAX_CONFIG_BYTES, MAX_WEIGHT, WEIGHTS_FILE, elements,
};
use polyskill_adapters::tensor_file::{Tensor, weights_file};

/// The name of the only tensor of a prompt, as PEFT writes it.
const TENSOR: &str = "prompt_embeddings";
/// The setting that makes a prompt a vector and names its origin: `{"origin": DIGEST}`. PEFT does
/// not know it.
const VECTOR: &str = "prompt_vector";
/// Longest file of weights that is read.
const MAX_PROMPT_BYTES: u64 = 1 << 30;

/// A prompt, or a vector between prompts, as it lies on disk.
pub(crate) struct Prompt {
    /// The name of its directory, after links are resolved.
    pub(crate) name: String,
    /// Its configuration, which results take over.
    settings: Map<String, Json>,
    /// Its identity: a digest of configuration and weights.
    pub(crate) generation: Generation,
    /// Virtual tokens, and the width of each.
    pub(crate) shape: [usize; 2],
    /// The embeddings, `[tokens, width]`.
    values: Vec<f32>,
}

impl Prompt {
    /// Reads a prompt or a vector; its files must agree on the shape.
    pub(crate) fn read(directory: &Path) -> Result<Self, Error> {
        let io = |source| Error::io(&leaf(directory), directory, source);
        let directory = directory.canonicalize().map_err(io)?;
        let name = leaf(&directory);
        let files = Files { name: &name, directory: &directory, root: &directory };
        let config = read_config(files, CONFIG_FILE)?;
        let weights = files.read(WEIGHTS_FILE, MAX_PROMPT_BYTES)?;
        let read = parse(&config, &weights);
        let (settings, shape, values) = read.map_err(|problems| Error::refused(&name, problems))?;
        let generation = Generation::of(&[b"prompt_tuning", &config, &weights]);
        Ok(Self { name, settings, generation, shape, values })
    }

    /// Reads what can be read, in order, and adds the rest to the problems.
    fn read_all(directories: &[&Path], problems: &mut Problems) -> Vec<Self> {
        let read = directories.iter().map(|directory| Self::read(directory));
        read.filter_map(|prompt| prompt.map_err(|error| problems.add(error.to_string())).ok())
            .collect()
    }

    /// The digest of the origin's values, if this is a vector; `None` for a prompt.
    pub(crate) fn origin(&self) -> Option<&str> {
        self.settings.get(VECTOR)?.get("origin")?.as_str()
    }

    /// The digest of shape and values, whatever file they came in: vectors name their origin by it.
    /// A copy with another configuration or in another type has the same digest if its values are
    /// the same 32-bit floats.
    pub(crate) fn digest(&self) -> String {
        let [tokens, width] = self.shape.map(|size| (size as u64).to_le_bytes());
        let values: Vec<u8> = self.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Generation::of(&[b"prompt values", &tokens, &width, &values]).to_string()
    }

    /// The card beside it; an empty one if there is none.
    pub(crate) fn card(&self, directory: &Path) -> Result<Card, Error> {
        let files = Files { name: &self.name, directory, root: directory };
        match files.has(CARD_FILE) {
            true => Ok(Card::parse(&files.read(CARD_FILE, MAX_CONFIG_BYTES)?)),
            false => Ok(Card::default()),
        }
    }

    /// The prompt as an entry of another's card.
    fn as_origin(&self, role: &'static str, weight: Option<f64>) -> Origin {
        Origin { role, name: self.name.clone(), generation: self.generation.to_string(), weight }
    }
}

/// Configuration, shape and values.
type Parsed = (Map<String, Json>, [usize; 2], Vec<f32>);

/// Reads the two files of a prompt, with all problems that are found.
///
/// There must be one tensor, `[tokens, width]`, neither of them zero. `num_virtual_tokens` and
/// `token_dim` must agree with it where they are set.
fn parse(config: &[u8], weights: &[u8]) -> Result<Parsed, Vec<String>> {
    let settings: Map<String, Json> = serde_json::from_slice(config)
        .map_err(|error| vec![format!("{CONFIG_FILE} is no object: {error}")])?;
    let mut problems = Vec::new();
    let kind = settings.get("peft_type").unwrap_or(&Json::Null);
    if kind != "PROMPT_TUNING" {
        problems.push(format!("peft_type is {kind}, expected PROMPT_TUNING"));
    }
    if let Some(vector) = settings.get(VECTOR)
        && vector.get("origin").and_then(Json::as_str).is_none()
    {
        problems.push(format!("`{VECTOR}` names no origin"));
    }
    let tensors = SafeTensors::deserialize(weights).map_err(|error| {
        vec![format!("{WEIGHTS_FILE} is not a valid safetensors file: {error}")]
    })?;
    for name in tensors.names().into_iter().filter(|name| *name != TENSOR) {
        problems.push(format!("found tensor `{name}`, expected `{TENSOR}` alone"));
    }
    let read = tensors.tensor(TENSOR).map_err(|_| format!("has no tensor `{TENSOR}`"));
    let read = read.and_then(|view| match *view.shape() {
        [tokens, width] if tokens > 0 && width > 0 => {
            let values = elements(&view).map_err(|problem| format!("`{TENSOR}` {problem}"))?;
            Ok(([tokens, width], values.as_slice().to_f32()))
        }
        _ => Err(format!("`{TENSOR}` has shape {:?}, expected tokens and width", view.shape())),
    });
    let (shape, values) = match read {
        Ok(read) => read,
        Err(problem) => {
            problems.push(problem);
            return Err(problems);
        }
    };
    for (key, found) in [("num_virtual_tokens", shape[0]), ("token_dim", shape[1])] {
        let said = settings.get(key).filter(|said| !said.is_null());
        if let Some(said) = said.filter(|said| **said != json!(found)) {
            problems.push(format!("`{TENSOR}` has {found}, `{key}` is {said}"));
        }
    }
    if problems.is_empty() { Ok((settings, shape, values)) } else { Err(problems) }
}

/// Makes the task prompt vector v = P − O of a prompt, at `out`; it names its origin.
///
/// Settings are those of the prompt. The result has the prompt's shape and is stored in 32-bit
/// floats.
///
/// # Errors
/// With all problems, and nothing is written: what cannot be read or is no prompt, vectors where
/// prompts are expected, shapes that differ, a difference that overflows, or something at `out`.
pub fn prompt_vector(prompt: &Path, origin: &Path, out: &Path) -> Result<Made, Error> {
    let mut problems = Problems::default();
    let name = new_name(out, &mut problems);
    let read = Prompt::read_all(&[prompt, origin], &mut problems);
    for prompt in read.iter().filter(|prompt| prompt.origin().is_some()) {
        problems.add(format!("`{}` is a prompt vector, expected a prompt", prompt.name));
    }
    check_shapes(&read, &mut problems);
    problems.into_result(()).map_err(|problems| Error::Transform { problems })?;
    let (prompt, origin) = (&read[0], &read[1]);
    let values =
        prompt.values.iter().zip(&origin.values).map(|(p, o)| f64::from(*p) - f64::from(*o));
    let mut settings = prompt.settings.clone();
    settings.insert(VECTOR.to_owned(), json!({"origin": origin.digest()}));
    let mut provenance = Provenance::of(&name, "prompt-vector", &[]);
    provenance.summary =
        format!("The task prompt vector of `{}`: it minus its origin.", prompt.name);
    provenance.parameters = vec![("origin_digest", origin.digest())];
    provenance.origins =
        vec![prompt.as_origin("derived_from", None), origin.as_origin("origin", None)];
    publish(settings, prompt.shape, values, &provenance, out)
}

/// The terms of a sum of prompts.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptSum {
    /// The directory of the prompt O that vectors are added to.
    pub origin: PathBuf,
    /// Directories of vectors v and their weights w, at least one.
    pub vectors: Vec<Weighted>,
    /// The factor c on the sum of the vectors.
    pub coefficient: f64,
    /// Allows vectors that were taken from other origins. Their sum with this one means something
    /// else.
    pub cross_origin: bool,
}

/// Makes the prompt P = O + c·Σ w·v at `out`.
///
/// Settings are those of the origin. The sum is taken in 64 bits and stored in 32-bit floats.
///
/// # Errors
/// With all problems, and nothing is written: what cannot be read or is no vector, a vector of
/// another origin unless that is allowed, shapes that differ, factors that are not finite, a sum
/// that overflows, or something at `out`.
pub fn prompt_sum(sum: &PromptSum, out: &Path) -> Result<Made, Error> {
    let mut problems = Problems::default();
    let name = new_name(out, &mut problems);
    let weights = sum.vectors.iter().map(|vector| vector.weight);
    for factor in weights.clone().chain([sum.coefficient]).filter(|factor| !factor.is_finite()) {
        problems.add(format!("a factor is {factor}, expected a finite number"));
    }
    if sum.vectors.is_empty() {
        problems.add("found no prompt vector, expected at least one".to_owned());
    }
    let directories: Vec<&Path> = std::iter::once(sum.origin.as_path())
        .chain(sum.vectors.iter().map(|vector| vector.directory.as_path()))
        .collect();
    let read = Prompt::read_all(&directories, &mut problems);
    if read.len() == directories.len() {
        check_origins(&read[0], &read[1..], sum.cross_origin, &mut problems);
    }
    check_shapes(&read, &mut problems);
    problems.into_result(()).map_err(|problems| Error::Transform { problems })?;
    let (origin, vectors) = (&read[0], &read[1..]);
    let mut values: Vec<f64> = origin.values.iter().map(|&value| f64::from(value)).collect();
    for (vector, weight) in vectors.iter().zip(weights.clone()) {
        let pairs = values.iter_mut().zip(&vector.values);
        pairs.for_each(|(sum_, &v)| *sum_ += sum.coefficient * weight * f64::from(v));
    }
    let mut provenance = Provenance::of(&name, "prompt-sum", &[]);
    provenance.summary =
        format!("`{}` plus {} times the sum of prompt vectors.", origin.name, sum.coefficient);
    provenance.parameters = vec![
        ("coefficient", sum.coefficient.to_string()),
        ("origin_digest", origin.digest()),
        ("cross_origin", sum.cross_origin.to_string()),
    ];
    let terms = vectors.iter().zip(weights);
    provenance.origins =
        terms.map(|(vector, weight)| vector.as_origin("derived_from", Some(weight))).collect();
    provenance.origins.push(origin.as_origin("origin", Some(1.0)));
    publish(origin.settings.clone(), origin.shape, values.into_iter(), &provenance, out)
}

/// Adds an origin that is a vector, a vector that is a prompt, and vectors of other origins unless
/// `cross` allows them.
fn check_origins(origin: &Prompt, vectors: &[Prompt], cross: bool, problems: &mut Problems) {
    if origin.origin().is_some() {
        problems.add(format!("`{}` is a prompt vector, expected a prompt", origin.name));
    }
    let digest = origin.digest();
    for vector in vectors {
        match vector.origin() {
            None => problems.add(format!("`{}` is no prompt vector", vector.name)),
            Some(found) if found != digest && !cross => problems.add(format!(
                "`{}` is a vector from origin {found}, expected {digest}, that of `{}`",
                vector.name, origin.name
            )),
            Some(_) => {}
        }
    }
}

/// Adds prompts whose shape differs from that of the first.
fn check_shapes(prompts: &[Prompt], problems: &mut Problems) {
    let Some(first) = prompts.first() else { return };
    for other in prompts.iter().filter(|other| other.shape != first.shape) {
        problems.add(format!(
            "`{}` has shape {:?}, expected {:?} as in `{}`",
            other.name, other.shape, first.shape, first.name
        ));
    }
}

/// Writes a prompt with these settings and values, `[tokens, width]`, to `out`. Values beyond what
/// modules may have are refused.
fn publish(
    settings: Map<String, Json>,
    shape: [usize; 2],
    values: impl Iterator<Item = f64>,
    provenance: &Provenance,
    out: &Path,
) -> Result<Made, Error> {
    let values: Vec<f32> = values.map(|value| value as f32).collect();
    if !values.iter().all(|value| value.abs() <= MAX_WEIGHT) {
        let problem = format!("`{TENSOR}` overflows: it has a value beyond {MAX_WEIGHT}");
        return Err(write::transform_error(problem));
    }
    let tensor = Tensor::f32(shape.to_vec(), values.into_iter());
    let draft = Draft {
        files: write::PEFT_FILES,
        config: pretty(&Json::Object(settings)),
        weights: weights_file([(TENSOR.to_owned(), tensor)]).map_err(write::transform_error)?,
        card: provenance.card(),
        read: |directory| Prompt::read(directory).map(|prompt| prompt.generation),
    };
    let generation = write::publish_one(out, &draft)?;
    Ok(Made { path: out.to_owned(), generation, sites: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(root: &Path, name: &str, shape: [usize; 2], values: &[f32]) -> PathBuf {
        let directory = root.join(name);
        std::fs::create_dir(&directory).unwrap();
        let [tokens, width] = shape;
        let config = json!({
            "peft_type": "PROMPT_TUNING", "num_virtual_tokens": tokens, "token_dim": width,
        });
        std::fs::write(directory.join(CONFIG_FILE), pretty(&config)).unwrap();
        let tensor = Tensor::f32(shape.to_vec(), values.iter().copied());
        let weights = weights_file([(TENSOR.to_owned(), tensor)]).unwrap();
        std::fs::write(directory.join(WEIGHTS_FILE), weights).unwrap();
        directory
    }

    fn weighted(directory: &Path, weight: f64) -> Weighted {
        Weighted { directory: directory.to_owned(), weight }
    }

    #[test]
    fn vectors_add_up_on_their_origin_and_on_others_if_asked() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let origin = prompt(root, "origin", [1, 3], &[1.0, 2.0, 3.0]);
        let other = prompt(root, "other", [1, 3], &[0.0, 0.0, 1.0]);
        let tasks = [[2.0, 2.0, 3.0], [1.0, 2.0, 7.0]];
        let vectors: Vec<PathBuf> = tasks
            .iter()
            .enumerate()
            .map(|(at, values)| {
                let task = prompt(root, &format!("task-{at}"), [1, 3], values);
                prompt_vector(&task, &origin, &root.join(format!("vector-{at}"))).unwrap().path
            })
            .collect();
        let vector = Prompt::read(&vectors[1]).unwrap();
        assert_eq!(vector.values, [0.0, 0.0, 4.0]);
        let digest = Prompt::read(&origin).unwrap().digest();
        assert_eq!(vector.origin(), Some(digest.as_str()));
        let mut sum = PromptSum {
            origin: origin.clone(),
            vectors: vec![weighted(&vectors[0], 1.0), weighted(&vectors[1], -0.5)],
            coefficient: 2.0,
            cross_origin: false,
        };
        let made = prompt_sum(&sum, &root.join("sum")).unwrap();
        let found = Prompt::read(&made.path).unwrap();
        assert_eq!((found.values.as_slice(), found.origin()), ([3.0, 2.0, -1.0].as_slice(), None));
        assert_eq!(made.generation, found.generation);
        sum.origin = other;
        let refused = prompt_sum(&sum, &root.join("cross")).unwrap_err().to_string();
        assert!(refused.contains(&format!("vector from origin {digest}")), "{refused}");
        assert!(!root.join("cross").exists());
        sum.cross_origin = true;
        let made = prompt_sum(&sum, &root.join("cross")).unwrap();
        assert_eq!(Prompt::read(&made.path).unwrap().values, [2.0, 0.0, -3.0]);
    }

    #[test]
    fn what_is_no_prompt_or_no_vector_is_named() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let origin = prompt(root, "origin", [1, 2], &[1.0, 2.0]);
        let long = prompt(root, "long", [2, 2], &[1.0; 4]);
        let huge = prompt(root, "huge", [1, 2], &[MAX_WEIGHT, 0.0]);
        let low = prompt(root, "low", [1, 2], &[-MAX_WEIGHT, 0.0]);
        let wrong = prompt(root, "wrong", [1, 2], &[f32::NAN, 0.0]);
        let out = root.join("out");
        let vector = |prompt: &Path, origin: &Path| {
            let refused = prompt_vector(prompt, origin, &out).unwrap_err().to_string();
            assert!(!out.exists(), "{refused}");
            refused
        };
        assert!(vector(&long, &origin).contains("has shape [1, 2], expected [2, 2]"));
        assert!(vector(&huge, &low).contains("overflows"));
        assert!(vector(&wrong, &origin).contains("not finite"));
        let sum = PromptSum {
            origin: origin.clone(),
            vectors: vec![weighted(&long, f64::NAN)],
            coefficient: 1.0,
            cross_origin: true,
        };
        let refused = prompt_sum(&sum, &out).unwrap_err().to_string();
        for part in ["a factor is NaN", "`long` is no prompt vector", "has shape [2, 2]"] {
            assert!(refused.contains(part), "{part}: {refused}");
        }
        let config = origin.join(CONFIG_FILE);
        let lora = r#"{"peft_type": "LORA", "num_virtual_tokens": 3, "prompt_vector": 1}"#;
        std::fs::write(config, lora).unwrap();
        let refused = vector(&origin, &huge);
        for part in ["expected PROMPT_TUNING", "`num_virtual_tokens` is 3", "names no origin"] {
            assert!(refused.contains(part), "{part}: {refused}");
        }
    }

    proptest::proptest! {
        #[test]
        fn mutated_prompts_are_read_or_refused(
            in_config in proptest::bool::ANY,
            flips in proptest::collection::vec((0_usize..4096, 0_u8..=255), 1..4),
        ) {
            let root = tempfile::tempdir().unwrap();
            let directory = prompt(root.path(), "p", [2, 3], &[0.5; 6]);
            let file = directory.join(if in_config { CONFIG_FILE } else { WEIGHTS_FILE });
            let mut bytes = std::fs::read(&file).unwrap();
            let len = bytes.len();
            flips.into_iter().for_each(|(at, byte)| bytes[at % len] = byte);
            std::fs::write(&file, bytes).unwrap();
            if let Ok(read) = Prompt::read(&directory) {
                proptest::prop_assert_eq!(read.values.len(), read.shape[0] * read.shape[1]);
            }
        }
    }
}
