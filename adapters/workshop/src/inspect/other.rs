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

const MAX_BYTES: u64 = 4 << 30;

/// A directory of PEFT's, whatever it holds.
pub(super) fn peft(directory: &Path, settings: &Map<String, Json>) -> Result<Inspection, Error> {
    let kind = settings.get("peft_type").and_then(Json::as_str).unwrap_or("unknown").to_owned();
    let files = (peft::CONFIG_FILE, peft::WEIGHTS_FILE, kind.to_ascii_lowercase());
    let base_model = settings.get("base_model_name_or_path").and_then(Json::as_str);
    Ok(Inspection {
        base_model: base_model.filter(|name| !name.is_empty()).map(str::to_owned),
        ..read(directory, kind, files)?
    })
}

/// A directory of MLX's.
pub(super) fn mlx(directory: &Path) -> Result<Inspection, Error> {
    let files = (peft::CONFIG_FILE, mlx::WEIGHTS_FILE, mlx::TAG.to_owned());
    read(directory, "LORA of MLX".to_owned(), files)
}

/// A directory of our own format.
pub(super) fn own(directory: &Path) -> Result<Inspection, Error> {
    let name = leaf(directory);
    let files = Files { name: &name, directory, root: directory };
    let config = files.read(native::CONFIG_FILE, peft::MAX_CONFIG_BYTES)?;
    let config: Json = serde_json::from_slice(&config).map_err(|error| {
        Error::refused(&name, vec![format!("{}: {error}", native::CONFIG_FILE)])
    })?;
    let kind = config["polyskill_type"].as_str().unwrap_or("unknown").to_owned();
    read(directory, kind, (native::CONFIG_FILE, native::WEIGHTS_FILE, "polyskill".to_owned()))
}

fn read(
    directory: &Path,
    kind: String,
    (config, weights, tag): (&str, &'static str, String),
) -> Result<Inspection, Error> {
    let name = leaf(directory);
    let files = Files { name: &name, directory, root: directory };
    let bundle = Bundle::read(files, config, weights)?;
    let tensors = bundle.tensors().map_err(|problems| Error::refused(&name, problems))?;
    Ok(Inspection {
        content: Content::Other { kind, tensors: facts(&tensors) },
        generation: bundle.generation(&tag),
        base_model: None,
        card: card(files)?,
        artefacts: artefacts(files)?,
        name,
    })
}

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

/// Artefacts by name and size; whether they fit is seen when the module is loaded for a base.
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

/// A GGUF file.
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
