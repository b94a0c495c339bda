//! Modules of other kinds than LoRA and prompts: what they say they are, and their tensors.

use std::path::Path;

use polyskill_model::gguf;
use safetensors::tensor::SafeTensors;
use serde_json::{Map, Value as Json};

use super::{ArtefactFile, Content, Inspection, TensorFacts};
use crate::transform::source::leaf;
use polyskill_adapters::Error;
use polyskill_adapters::Generation;
use polyskill_adapters::artefact;
use polyskill_adapters::files::Files;
use polyskill_adapters::peft::bundle::{Bundle, card};
use polyskill_adapters::{mlx, native, peft};

/// Longest GGUF file that is read, since it is read whole.
const MAX_BYTES: u64 = 4 << 30;

/// A directory of PEFT's, of any `peft_type`, told by its tensors. `settings` is its configuration.
pub(super) fn peft(directory: &Path, settings: &Map<String, Json>) -> Result<Inspection, Error> {
    let kind = settings.get("peft_type").and_then(Json::as_str).unwrap_or("unknown").to_owned();
    let tag = kind.to_ascii_lowercase();
    let base_model = settings.get("base_model_name_or_path").and_then(Json::as_str);
    Ok(Inspection {
        base_model: base_model.filter(|name| !name.is_empty()).map(str::to_owned),
        ..read(directory, kind, peft::CONFIG_FILE, peft::WEIGHTS_FILE, &tag)?
    })
}

/// A directory that MLX wrote: PEFT's name for the configuration, its own for the weights.
pub(super) fn mlx(directory: &Path) -> Result<Inspection, Error> {
    read(directory, "LORA of MLX".to_owned(), peft::CONFIG_FILE, mlx::WEIGHTS_FILE, mlx::TAG)
}

/// A directory of our own format, whose kind `polyskill_type` names.
pub(super) fn own(directory: &Path) -> Result<Inspection, Error> {
    let name = leaf(directory);
    let files = Files { name: &name, directory, root: directory };
    let config = files.read(native::CONFIG_FILE, peft::MAX_CONFIG_BYTES)?;
    let config: Json = serde_json::from_slice(&config).map_err(|error| {
        Error::refused(&name, vec![format!("{}: {error}", native::CONFIG_FILE)])
    })?;
    let kind = config["polyskill_type"].as_str().unwrap_or("unknown").to_owned();
    read(directory, kind, native::CONFIG_FILE, native::WEIGHTS_FILE, "polyskill")
}

/// A directory with a configuration and a safetensors file, told by its tensors.
///
/// `config` and `weights` are names of files, and `tag` is the kind that goes into the generation,
/// so it must be the one that the loader uses. The base model is left out.
fn read(
    directory: &Path,
    kind: String,
    config: &str,
    weights: &'static str,
    tag: &str,
) -> Result<Inspection, Error> {
    let name = leaf(directory);
    let files = Files { name: &name, directory, root: directory };
    let bundle = Bundle::read(files, config, weights)?;
    let tensors = bundle.tensors().map_err(|problems| Error::refused(&name, problems))?;
    Ok(Inspection {
        content: Content::Other { kind, tensors: facts(&tensors) },
        generation: bundle.generation(tag),
        base_model: None,
        card: card(files)?,
        artefacts: artefacts(files)?,
        name,
    })
}

/// Name, type, shape and size of each tensor, by ascending name.
fn facts(tensors: &SafeTensors<'_>) -> Vec<TensorFacts> {
    let fact = |(name, view): (String, safetensors::tensor::TensorView<'_>)| TensorFacts {
        name,
        dtype: format!("{:?}", view.dtype()),
        shape: view.shape().to_vec(),
        bytes: view.data().len(),
    };
    let mut facts: Vec<TensorFacts> = tensors.tensors().into_iter().map(fact).collect();
    facts.sort_by(|a, b| a.name.cmp(&b.name));
    facts
}

/// Artefacts by name and size, with nothing read of their headers: they count as fitting, and a
/// load for a base tells.
fn artefacts(files: Files<'_>) -> Result<Vec<ArtefactFile>, Error> {
    if !files.has(artefact::FOLDER) {
        return Ok(Vec::new());
    }
    let stems = files.stems(artefact::FOLDER, artefact::EXTENSION, artefact::MAX_ARTEFACTS)?;
    let file = |name: String| {
        let path = format!("{}/{name}.{}", artefact::FOLDER, artefact::EXTENSION);
        let bytes = files.read(&path, artefact::MAX_BYTES)?.len();
        Ok(ArtefactFile { name, bytes, method: None, fits: true })
    };
    stems.into_iter().map(file).collect()
}

/// A GGUF file, told by its header and its tensors, by ascending name.
///
/// Its kind is `gguf` with `general.type`, such as `adapter`, or with the architecture where it has
/// no type.
pub(super) fn gguf(path: &Path) -> Result<Inspection, Error> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let (root, file) = (path.parent().unwrap_or(path), path.file_name().unwrap_or_default());
    let files = Files { name: &name, directory: root, root };
    let bytes = files.read(&file.to_string_lossy(), MAX_BYTES)?;
    let header = gguf::parse(&bytes).map_err(|problem| Error::refused(&name, vec![problem]))?;
    let text = |key: &str| header.metadata.get(key).and_then(|value| value.as_str());
    let kind = match text("general.type") {
        Some(kind) => format!("gguf {kind}"),
        None => format!("gguf {}", text("general.architecture").unwrap_or("unknown")),
    };
    let tensors = header.tensors.iter().map(|(name, info)| TensorFacts {
        name: name.clone(),
        dtype: format!("{:?}", info.dtype),
        shape: info.shape.clone(),
        bytes: info.num_bytes,
    });
    Ok(Inspection {
        content: Content::Other { kind, tensors: tensors.collect() },
        generation: Generation::of(&[b"gguf", &bytes]),
        base_model: text("general.base_model.0.name").map(str::to_owned),
        card: Default::default(),
        artefacts: Vec::new(),
        name,
    })
}
