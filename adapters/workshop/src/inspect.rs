//! Facts on a module on disk, and on the differences of two, without a base model.

mod diff;
mod other;

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::SafeTensors;
use serde_json::{Map, Value as Json};

use crate::transform::factors::Factors;
use crate::transform::prompt::Prompt;
use crate::transform::source::{Source, leaf};
use polyskill_adapters::Error;
use polyskill_adapters::Generation;
use polyskill_adapters::artefact;
use polyskill_adapters::card::Card;
use polyskill_adapters::files::Files;
use polyskill_adapters::peft::CONFIG_FILE;
use polyskill_adapters::peft::bundle::read_config;
use polyskill_adapters::{mlx, native, peft};

pub use diff::{Difference, Setting, SiteDifference, diff};

/// The facts on one module.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// The name of the directory, after links are resolved, or of the GGUF file without its ending.
    pub name: String,
    /// Its identity: a digest of its configuration and weights, or of the GGUF file.
    pub generation: Generation,
    /// The base that it was made for, as its configuration says; `None` where it says nothing.
    pub base_model: Option<String>,
    /// Its parts: sites, a prompt or tensors.
    pub content: Content,
    /// Tags and entries of its card; empty where it has none.
    pub card: Card,
    /// Router artefacts beside the weights; always empty for prompts and GGUF files.
    pub artefacts: Vec<ArtefactFile>,
}

/// The parts of a module, as far as they can be told without a base.
#[derive(Clone, Debug)]
pub enum Content {
    /// A LoRA, by site, ascending by path.
    Lora(Vec<LoraFacts>),
    /// A prompt of prompt tuning.
    Prompt {
        /// Virtual tokens.
        tokens: usize,
        /// Width of each.
        width: usize,
        /// The digest of the values, which prompt vectors name as their origin.
        digest: String,
        /// If it is a vector between prompts: the digest of its origin.
        origin: Option<String>,
    },
    /// Any other kind.
    Other {
        /// The kind that its configuration names, such as `LOHA`, or `gguf` and the type or
        /// architecture; `unknown` where it names none.
        kind: String,
        /// Its tensors, by name.
        tensors: Vec<TensorFacts>,
    },
}

/// A tensor of a module.
#[derive(Clone, Debug)]
pub struct TensorFacts {
    /// Its name.
    pub name: String,
    /// The type of its elements, as the file's format names it.
    pub dtype: String,
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Bytes that it takes in the file.
    pub bytes: usize,
}

/// A LoRA at one site.
#[derive(Clone, Debug)]
pub struct LoraFacts {
    /// The path of the linear.
    pub site: String,
    /// r.
    pub rank: usize,
    /// Factor on B·A: α/r, or α/√r with rank-stabilised LoRA.
    pub scale: f32,
    /// Width of the input.
    pub inputs: usize,
    /// Width of the output.
    pub outputs: usize,
    /// The type of the elements of A and B, `F32`, or `F32/BF16` if they differ.
    pub dtype: String,
    /// Bytes of A and B together, as stored.
    pub bytes: usize,
    /// Frobenius norm of the delta, scale included.
    pub norm: f64,
}

/// A file of router artefacts.
#[derive(Clone, Debug)]
pub struct ArtefactFile {
    /// The name that routers ask for.
    pub name: String,
    /// Bytes of the whole file.
    pub bytes: usize,
    /// The method that made it and reads it, as its header says; `None` if there is no such entry
    /// or it was not read.
    pub method: Option<String>,
    /// True if its header names this module's generation. Always true for modules other than LoRA,
    /// where no header is read.
    pub fits: bool,
}

/// Reads a module's directory or GGUF file: a LoRA by site, a prompt, anything else by its tensors.
///
/// The whole file of weights is read into memory. Nothing is compared with a base, so a module that
/// is shown here may still be refused by one.
///
/// # Errors
/// If it cannot be read, with all reasons.
pub fn inspect(directory: &Path) -> Result<Inspection, Error> {
    let io = |source| Error::io(&leaf(directory), directory, source);
    let directory = &directory.canonicalize().map_err(io)?;
    if directory.is_file() {
        return other::gguf(directory);
    }
    if directory.join(native::CONFIG_FILE).is_file() {
        return other::own(directory);
    }
    let name = leaf(directory);
    if mlx::is_mlx(Files { name: &name, directory, root: directory }) {
        return other::mlx(directory);
    }
    let settings = settings(directory)?;
    let text = |key: &str| settings.get(key).and_then(Json::as_str).map(str::to_owned);
    let base_model = text("base_model_name_or_path").filter(|name| !name.is_empty());
    if text("peft_type").as_deref() == Some("PROMPT_TUNING") {
        let prompt = Prompt::read(directory)?;
        let [tokens, width] = prompt.shape;
        let (digest, origin) = (prompt.digest(), prompt.origin().map(str::to_owned));
        return Ok(Inspection {
            content: Content::Prompt { tokens, width, digest, origin },
            generation: prompt.generation,
            card: prompt.card(directory)?,
            name: prompt.name,
            base_model,
            artefacts: Vec::new(),
        });
    }
    if !peft::is_plain_lora(&settings) {
        return other::peft(directory, &settings);
    }
    let source = Source::read(directory)?;
    Ok(Inspection {
        content: Content::Lora(lora_facts(&source)?),
        generation: source.content.generation,
        artefacts: artefacts(&source, directory)?,
        card: source.content.card.clone(),
        name: source.name,
        base_model,
    })
}

/// The configuration of a PEFT directory, of whatever `peft_type`.
fn settings(directory: &Path) -> Result<Map<String, Json>, Error> {
    let name = leaf(directory);
    let files = Files { name: &name, directory, root: directory };
    let config = read_config(files, CONFIG_FILE)?;
    serde_json::from_slice(&config).map_err(|error| {
        Error::refused(&name, vec![format!("{CONFIG_FILE} is no JSON object: {error}")])
    })
}

/// Facts on each site of a LoRA, in the order of paths.
///
/// Types and sizes are those of the tensors under PEFT's usual names; where a tensor has another
/// name, they are empty and zero.
fn lora_facts(source: &Source) -> Result<Vec<LoraFacts>, Error> {
    let tensors = source.content.tensors();
    let tensors = tensors.map_err(|problems| Error::refused(&source.name, problems))?;
    let stored: BTreeMap<String, (String, usize)> = tensors
        .iter()
        .map(|(name, view)| (name.to_owned(), (format!("{:?}", view.dtype()), view.data().len())))
        .collect();
    let facts = source.sites.iter().map(|(path, site)| {
        let part =
            |part| stored.get(&polyskill_adapters::tensor_file::tensor_name(path, part)).cloned();
        let (a, b) = (part("lora_A").unwrap_or_default(), part("lora_B").unwrap_or_default());
        LoraFacts {
            site: path.clone(),
            rank: site.rank,
            scale: site.scale,
            inputs: site.inputs(),
            outputs: site.outputs(),
            dtype: if a.0 == b.0 { a.0 } else { format!("{}/{}", a.0, b.0) },
            bytes: a.1 + b.1,
            norm: Factors::of(site).norm(),
        }
    });
    Ok(facts.collect())
}

/// The files of router artefacts beside a LoRA, with what their headers say. A file that is no
/// safetensors file is listed as one that does not fit.
fn artefacts(source: &Source, directory: &Path) -> Result<Vec<ArtefactFile>, Error> {
    let files = Files { name: &source.name, directory, root: directory };
    if !files.has(artefact::FOLDER) {
        return Ok(Vec::new());
    }
    let stems = files.stems(artefact::FOLDER, artefact::EXTENSION, artefact::MAX_ARTEFACTS)?;
    let read = stems.into_iter().map(|name| {
        let file = format!("{}/{name}.{}", artefact::FOLDER, artefact::EXTENSION);
        let bytes = files.read(&file, artefact::MAX_BYTES)?;
        let header = SafeTensors::read_metadata(&bytes).ok();
        let manifest = header.and_then(|(_, header)| header.metadata().clone()).unwrap_or_default();
        let generation = source.content.generation.to_string();
        Ok(ArtefactFile {
            name,
            bytes: bytes.len(),
            method: manifest.get("method").cloned(),
            fits: manifest.get("module_generation") == Some(&generation),
        })
    });
    read.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::testing::{Q0, Q1, module, site};

    #[test]
    fn a_module_says_what_it_is() {
        let root = tempfile::tempdir().unwrap();
        let directory = module(root.path(), "m", &[site(Q0, 3, 6, 5), site(Q1, 2, 6, 5)], 6.0, 1);
        std::fs::write(directory.join("README.md"), "---\ntags:\n- sums\nlicense: x\n---\n")
            .unwrap();
        std::fs::create_dir(directory.join("artefacts")).unwrap();
        std::fs::write(directory.join("artefacts/gates.safetensors"), b"nonsense").unwrap();
        let found = inspect(&directory).unwrap();
        assert_eq!((found.name.as_str(), found.base_model), ("m", None));
        assert_eq!(found.card.tags, ["sums"]);
        let artefact = &found.artefacts[0];
        assert_eq!((artefact.name.as_str(), artefact.bytes, artefact.fits), ("gates", 8, false));
        let Content::Lora(sites) = found.content else { unreachable!("a LoRA was written") };
        let of = |at: usize| {
            let LoraFacts { rank, scale, inputs, outputs, bytes, .. } = sites[at];
            (rank, scale, inputs, outputs, bytes)
        };
        assert_eq!((of(0), of(1)), ((3, 2.0, 5, 6, 132), (2, 3.0, 5, 6, 88)));
        assert_eq!((sites[0].site.as_str(), sites[0].dtype.as_str()), (Q0, "F32"));
        assert!(sites.iter().all(|site| site.norm > 0.0));
        let nothing = inspect(root.path()).unwrap_err().to_string();
        assert!(nothing.contains("cannot read"), "{nothing}");
    }
}
