//! Writing modules: whole or not at all, and never over anything.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use half::bf16;
use polyskill_adapters::tensor_file::{Tensor, tensor_name, weights_file};
use safetensors::tensor::Dtype as TensorType;
use serde_json::{Map, Value as Json, json};

use super::factors::Factors;
use super::matrix::Mat;
use super::source::{Source, leaf};
use polyskill_adapters::Error;
use polyskill_adapters::Generation;
use polyskill_adapters::peft::{CARD_FILE, CONFIG_FILE, MAX_WEIGHT, WEIGHTS_FILE};

/// The type of the weights of new modules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16, rounded to nearest even.
    Bf16,
}

impl Dtype {
    /// The bytes of values in this type, little endian, as safetensors has them.
    fn bytes(self, values: impl Iterator<Item = f64>) -> Vec<u8> {
        match self {
            Self::F32 => values.flat_map(|value| (value as f32).to_le_bytes()).collect(),
            Self::Bf16 => {
                values.flat_map(|value| bf16::from_f32(value as f32).to_le_bytes()).collect()
            }
        }
    }

    /// The nearest value of this type. bfloat16 is rounded by way of 32-bit floats, as it is
    /// stored.
    fn round(self, value: f64) -> f64 {
        match self {
            Self::F32 => f64::from(value as f32),
            Self::Bf16 => bf16::from_f32(value as f32).to_f64(),
        }
    }

    /// The factors in this precision, as they will be read back. An error names the part that has a
    /// value beyond what modules may have.
    pub(crate) fn rounded(self, mut factors: Factors) -> Result<Factors, String> {
        for (part, matrix) in [("lora_A", &mut factors.a), ("lora_B", &mut factors.bt)] {
            matrix.values.iter_mut().for_each(|value| *value = self.round(*value));
            if !matrix.values.iter().all(|value| value.abs() <= f64::from(MAX_WEIGHT)) {
                return Err(format!("`{part}` overflows: it has a value beyond {MAX_WEIGHT}"));
            }
        }
        Ok(factors)
    }
}

/// The safetensors file of factors by site, under PEFT's names: A `[rank, inputs]` and B `[outputs,
/// rank]`. Factors must be rounded to the type.
pub(crate) fn weights(sites: &BTreeMap<String, Factors>, dtype: Dtype) -> Result<Vec<u8>, String> {
    let tensors = sites.iter().flat_map(|(site, factors)| {
        let matrix = |part, m: &Mat| {
            let stored = match dtype {
                Dtype::F32 => TensorType::F32,
                Dtype::Bf16 => TensorType::BF16,
            };
            let bytes = dtype.bytes(m.values.iter().copied());
            (
                tensor_name(site, part),
                Tensor { dtype: stored, shape: vec![m.rows, m.columns], bytes },
            )
        };
        [matrix("lora_A", &factors.a), matrix("lora_B", &factors.bt.transposed())]
    });
    weights_file(tensors)
}

/// The configuration of a LoRA with these ranks, in which PEFT's scale is 1 at every site, because
/// α equals the rank.
///
/// The usual rank is the default, others are patterns. Base model, task and orientation of weights
/// are taken over where all sources agree; target modules are those of a source that acts at the
/// same sites, else a list of all paths.
pub(crate) fn config(sources: &[Source], ranks: &BTreeMap<&str, usize>) -> Vec<u8> {
    let shared = |key: &str| {
        let mut values = sources.iter().map(|source| source.settings.get(key));
        let first = values.next().flatten().cloned().unwrap_or(Json::Null);
        if values.all(|value| value.unwrap_or(&Json::Null) == &first) { first } else { Json::Null }
    };
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    ranks.values().for_each(|&rank| *counts.entry(rank).or_default() += 1);
    let usual = counts.iter().max_by_key(|(_, count)| **count).map_or(1, |(rank, _)| *rank);
    let others = ranks.iter().filter(|(_, rank)| **rank != usual);
    let pattern: Map<String, Json> =
        others.map(|(site, rank)| ((*site).to_owned(), json!(rank))).collect();
    // The targets of a source that acts at the same sites mean the same sites of the base.
    let same = sources.iter().find(|source| {
        source.sites.len() == ranks.len()
            && source.sites.keys().all(|site| ranks.contains_key(site.as_str()))
    });
    let target = |key: &str| {
        let inherited = same.map(|source| source.settings.get(key).cloned().unwrap_or(Json::Null));
        inherited.unwrap_or_else(|| match key {
            "target_modules" => json!(ranks.keys().collect::<Vec<_>>()),
            _ => Json::Null,
        })
    };
    let config = json!({
        "alpha_pattern": pattern,
        "base_model_name_or_path": shared("base_model_name_or_path"),
        "bias": "none",
        "exclude_modules": target("exclude_modules"),
        "fan_in_fan_out": shared("fan_in_fan_out").as_bool().unwrap_or(false),
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": target("layers_pattern"),
        "layers_to_transform": target("layers_to_transform"),
        "lora_alpha": usual,
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": usual,
        "rank_pattern": pattern,
        "target_modules": target("target_modules"),
        "task_type": shared("task_type"),
        "use_dora": false,
        "use_rslora": false,
    });
    pretty(&config)
}

/// Writes a LoRA with scale 1 at every site to `out`. `sites` are all that it acts at; `sources`
/// give the settings that are taken over.
pub(crate) fn lora(
    sources: &[Source],
    sites: &BTreeMap<String, Factors>,
    dtype: Dtype,
    card: String,
    out: &Path,
) -> Result<Generation, Error> {
    let ranks = sites.iter().map(|(path, factors)| (path.as_str(), factors.rank())).collect();
    let draft = Draft {
        files: PEFT_FILES,
        config: config(sources, &ranks),
        weights: weights(sites, dtype).map_err(transform_error)?,
        card,
        read: read_lora,
    };
    publish_one(out, &draft)
}

/// JSON as PEFT writes it: indented, with a line break at the end.
pub(crate) fn pretty(config: &Json) -> Vec<u8> {
    format!("{config:#}\n").into_bytes()
}

/// The files of a module in PEFT's format, configuration first.
pub(crate) const PEFT_FILES: [&str; 2] = [CONFIG_FILE, WEIGHTS_FILE];

/// The files of a module that is to be written.
#[derive(Clone)]
pub(crate) struct Draft {
    /// Names of configuration and weights.
    pub(crate) files: [&'static str; 2],
    /// Content of the configuration.
    pub(crate) config: Vec<u8>,
    /// Content of the weights.
    pub(crate) weights: Vec<u8>,
    /// Content of the card.
    pub(crate) card: String,
    /// Reads what was written as it will be read later, so that nothing is published which would
    /// then be refused.
    pub(crate) read: fn(&Path) -> Result<Generation, Error>,
}

/// The generation of a LoRA that can be read.
pub(crate) fn read_lora(directory: &Path) -> Result<Generation, Error> {
    Source::read(directory).map(|source| source.content.generation)
}

/// Writes modules into hidden folders beside their targets, reads them back, and then moves all
/// into place.
///
/// Nothing stays if anything fails before the first move. If a later move fails, modules that were
/// moved stay. Folders that a killed run has left are removed. Drafts are made one at a time, in
/// order, and dropped when they are written. Returns the generations of what was written, as they
/// were read, in the order of the targets.
pub(crate) fn publish<'a>(
    targets: &[PathBuf],
    mut draft: impl FnMut(usize) -> Result<Cow<'a, Draft>, Error>,
) -> Result<Vec<Generation>, Error> {
    targets.iter().for_each(|target| remove_leftover(target));
    let mut staged: Vec<Staged<'_>> = Vec::new();
    let written: Result<Vec<Generation>, Error> = targets
        .iter()
        .enumerate()
        .map(|(at, target)| {
            let draft = draft(at)?;
            let folder = Staged::new(target)?;
            let generation = fill(&folder.path, &draft);
            staged.push(folder);
            generation
        })
        .collect();
    let moved = written.and_then(|generations| {
        staged.iter().try_for_each(Staged::publish)?;
        Ok(generations)
    });
    if moved.is_err() {
        // The error that stopped the work is the one to report.
        staged.iter().for_each(|folder| drop(std::fs::remove_dir_all(&folder.path)));
    }
    moved
}

/// Publishes a single module.
pub(crate) fn publish_one(target: &Path, draft: &Draft) -> Result<Generation, Error> {
    let targets = [target.to_owned()];
    publish(&targets, |_| Ok(Cow::Borrowed(draft))).map(|generations| generations[0])
}

/// A hidden folder that is being filled.
struct Staged<'t> {
    /// The folder, `.NAME.partial` beside the target.
    path: PathBuf,
    /// The directory that it becomes.
    target: &'t Path,
    /// A shared lock on the directory around it, which tells other runs that the folder is in use,
    /// and ends with the process whichever way it does. `None` where directories have no locks.
    _lock: Option<File>,
}

impl<'t> Staged<'t> {
    /// Makes an empty folder and the directories above it. A folder that is there is an error:
    /// another run fills it, or has left it where it could not be known to be left.
    fn new(target: &'t Path) -> Result<Self, Error> {
        let around = around(target);
        std::fs::create_dir_all(around).map_err(|source| unwritten(around, &source))?;
        let lock = File::open(around).ok();
        if let Some(Err(TryLockError::WouldBlock)) = lock.as_ref().map(File::try_lock_shared) {
            let around = around.display();
            return Err(transform_error(format!("another program has locked {around}, try again")));
        }
        let path = hidden(target);
        std::fs::create_dir(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => transform_error(format!(
                "{} exists: another run fills it, or has left it and it can be removed",
                path.display()
            )),
            _ => unwritten(&path, &source),
        })?;
        Ok(Self { path, target, _lock: lock })
    }

    /// Moves the folder to its target, where nothing may be.
    fn publish(&self) -> Result<(), Error> {
        let target = self.target;
        // A rename would replace an empty directory.
        if target.symlink_metadata().is_ok() {
            return Err(transform_error(format!("{} exists", target.display())));
        }
        std::fs::rename(&self.path, target).map_err(|source| unwritten(target, &source))
    }
}

/// The hidden folder of a target.
fn hidden(target: &Path) -> PathBuf {
    target.with_file_name(format!(".{}.partial", leaf(target)))
}

/// The directory that a target lies in.
fn around(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Removes the hidden folder that a killed run has left beside the target. While a run fills one in
/// the same directory, which its lock there tells, nothing is removed.
fn remove_leftover(target: &Path) {
    let path = hidden(target);
    if path.symlink_metadata().is_err() {
        return;
    }
    let Ok(lock) = File::open(around(target)) else { return };
    if lock.try_lock().is_ok() {
        // If it cannot be removed, no new one can be made, and that is the error.
        let _ = std::fs::remove_dir_all(&path);
    }
}

/// Writes the three files of a draft into a folder and reads the module back.
fn fill(folder: &Path, draft: &Draft) -> Result<Generation, Error> {
    let files = [
        (draft.files[0], draft.config.as_slice()),
        (draft.files[1], &draft.weights),
        (CARD_FILE, draft.card.as_bytes()),
    ];
    files.into_iter().try_for_each(|(file, bytes)| {
        let path = folder.join(file);
        std::fs::write(&path, bytes).map_err(|source| unwritten(&path, &source))
    })?;
    (draft.read)(folder)
}

/// The error of a path that cannot be written.
fn unwritten(path: &Path, source: &std::io::Error) -> Error {
    transform_error(format!("cannot write {}: {source}", path.display()))
}

/// One reason why nothing is written.
pub(crate) fn transform_error(problem: String) -> Error {
    Error::Transform { problems: vec![problem] }
}

#[cfg(all(test, unix))]
mod tests {

    use super::*;
    use crate::transform::testing::{Q0, bytes, module, site};
    use crate::transform::{Scaling, rescale};

    #[test]
    fn a_killed_runs_folder_is_removed_and_one_in_use_is_not() {
        let root = tempfile::tempdir().unwrap();
        let source = module(root.path(), "m", &[site(Q0, 2, 4, 3)], 4.0, 1);
        let (left, used) = (root.path().join("left"), root.path().join("used"));
        std::fs::create_dir(hidden(&left)).unwrap();
        std::fs::write(hidden(&left).join("half"), b"half").unwrap();
        rescale(&source, Scaling::Factor(2.0), &left).unwrap();
        assert!(!hidden(&left).exists());
        assert_eq!(bytes(&left).len(), 3);
        let other = Staged::new(&used).unwrap();
        let refused = rescale(&source, Scaling::Factor(2.0), &used).unwrap_err().to_string();
        assert!(refused.contains("another run fills it"), "{refused}");
        assert!(other.path.is_dir() && !used.exists());
        drop(other);
        rescale(&source, Scaling::Factor(2.0), &used).unwrap();
    }
}
