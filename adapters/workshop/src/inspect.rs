//! What a module on disk is, and how two differ, without a base model.

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
use polyskill_adapters::peft::{CONFIG_FILE, MAX_CONFIG_BYTES};
use polyskill_adapters::{mlx, native, peft};

pub use diff::{Difference, Setting, SiteDifference, diff};

/// What a module is.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// The directory's name.
    pub name: String,
    /// Its identity.
    pub generation: Generation,
    /// The base that it was made for, as its configuration says.
    pub base_model: Option<String>,
    /// What it consists of.
    pub content: Content,
    /// What its card says.
    pub card: Card,
    /// Router artefacts beside the weights.
    pub artefacts: Vec<ArtefactFile>,
}

/// What a module consists of.
#[derive(Clone, Debug)]
pub enum Content {
    /// A LoRA, by site.
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
        /// What its configuration says that it is.
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
    /// How its elements are stored.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its size.
    pub bytes: usize,
}

/// A LoRA at one site.
#[derive(Clone, Debug)]
pub struct LoraFacts {
    /// The path of the linear.
    pub site: String,
    /// r.
    pub rank: usize,
    /// Factor on B·A.
    pub scale: f32,
    /// Width of the input.
    pub inputs: usize,
    /// Width of the output.
    pub outputs: usize,
    /// How A and B are stored, `F32`, or `F32/BF16` if they differ.
    pub dtype: String,
    /// Bytes of A and B.
    pub bytes: usize,
    /// Frobenius norm of the delta.
    pub norm: f64,
}

/// A file of router artefacts.
#[derive(Clone, Debug)]
pub struct ArtefactFile {
    /// The name that routers ask for.
    pub name: String,
    /// Its size.
    pub bytes: usize,
    /// What its header says it is made for, and how.
    pub method: Option<String>,
    /// Whether it names this module's generation.
    pub fits: bool,
}

/// Reads a module's directory or GGUF file: a LoRA by site, a prompt, anything else by its tensors.
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

/// The configuration, of whatever kind.
fn settings(directory: &Path) -> Result<Map<String, Json>, Error> {
    let name = leaf(directory);
    let files = Files { name: &name, directory, root: directory };
    let config = files.read(CONFIG_FILE, MAX_CONFIG_BYTES)?;
    serde_json::from_slice(&config).map_err(|error| {
        Error::refused(&name, vec![format!("{CONFIG_FILE} is no JSON object: {error}")])
    })
}

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
