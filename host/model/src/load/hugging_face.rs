//! A Hugging Face directory: `config.json` and one or several safetensors files.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::{Progress, WeightSource, hash, map};
use crate::config::ModelConfig;
use crate::error::Error;
use crate::family;
use crate::kernels::WeightSlice;
use crate::linear::{DenseType, DenseWeights, MappedWeights, Matrix};
use crate::site::Projection;

/// Largest JSON file that is read.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// An opened directory; tensors are read from its maps on demand.
///
/// Norms of gemma are kept around zero in this format; see [`WeightSource::norm_offset`].
pub(super) struct Directory {
    /// The model's shape, from `config.json`.
    config: ModelConfig,
    /// All tensors of all files, by the names that the files have.
    tensors: BTreeMap<String, Location>,
    /// Names of the tensors that were asked for; those that are left are refused at the end.
    read: RefCell<BTreeSet<String>>,
    /// SHA-256 over `config.json` and the weight files in order of their names.
    digest: [u8; 32],
}

/// The place of one tensor.
struct Location {
    /// The file.
    map: Arc<Mmap>,
    /// The file's path, for messages.
    path: PathBuf,
    /// The first byte in the file.
    start: usize,
    /// Storage type, of which F32, F16 and BF16 are read.
    dtype: Dtype,
    /// Shape, outermost dimension first.
    shape: Vec<usize>,
}

impl Directory {
    /// Reads the configuration, maps all weight files and computes their digest. Tokenizers and
    /// templates are read elsewhere.
    pub(super) fn open(path: &Path, progress: Progress<'_>) -> Result<Self, Error> {
        let config_path = path.join("config.json");
        let generation_path = path.join("generation_config.json");
        let generation =
            generation_path.exists().then(|| read_json(&generation_path)).transpose()?;
        let config = family::from_hugging_face(&read_json(&config_path)?, generation.as_ref())?;
        let files = weight_files(path)?;
        let maps =
            files.iter().map(|file| Ok((file, map(file)?))).collect::<Result<Vec<_>, Error>>()?;
        let total = maps.iter().map(|(_, map)| map.len() as u64).sum();
        let (mut hasher, mut done) = (Sha256::new(), 0);
        hasher
            .update(std::fs::read(&config_path).map_err(|source| Error::io(&config_path, source))?);
        let mut tensors = BTreeMap::new();
        for (file, map) in maps {
            locate(file, &map, &mut tensors)?;
            hash(&mut hasher, &map, &mut done, total, &mut *progress);
        }
        let (read, digest) = (RefCell::default(), hasher.finalize().into());
        Ok(Self { config, tensors, read, digest })
    }

    /// The tensor of a name or of one of its other spellings; it counts as read from then on.
    fn find(&self, name: &str) -> Option<&Location> {
        // Some exporters leave out the `model.` prefix of the bare decoder; mixtral's have another name for the block.
        let found = |name: &str| {
            let bare = name.strip_prefix("model.");
            let all = std::iter::once(name).chain(bare);
            all.into_iter().find_map(|name| self.tensors.get_key_value(name))
        };
        let older = || name.replacen(".mlp.gate.", ".block_sparse_moe.gate.", 1);
        let (name, location) = found(name).or_else(|| found(&older()))?;
        self.read.borrow_mut().insert(name.clone());
        Some(location)
    }
}

/// Reads a JSON file, which is bounded as it comes from strangers.
fn read_json(path: &Path) -> Result<Json, Error> {
    let len = std::fs::metadata(path).map_err(|source| Error::io(path, source))?.len();
    if len > MAX_JSON_BYTES {
        return Err(Error::malformed(
            path,
            format!("{len} bytes, at most {MAX_JSON_BYTES} are read"),
        ));
    }
    let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
    serde_json::from_slice(&bytes).map_err(|error| Error::malformed(path, error.to_string()))
}

/// `model.safetensors`, or the shards that the index names.
///
/// Names in the index must be plain file names ending in `.safetensors`: nothing outside of the
/// directory is opened. Each file comes once, in order of the names.
fn weight_files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let index_path = path.join("model.safetensors.index.json");
    if !index_path.exists() {
        return Ok(vec![path.join("model.safetensors")]);
    }
    let index = read_json(&index_path)?;
    let weight_map = index
        .get("weight_map")
        .and_then(Json::as_object)
        .ok_or_else(|| Error::malformed(&index_path, "`weight_map` is missing or not an object"))?;
    let mut names = BTreeSet::new();
    for (tensor, file) in weight_map {
        let name = file.as_str().unwrap_or_default();
        let plain = Path::new(name).file_name().is_some_and(|plain| plain == name);
        if !plain || !name.ends_with(".safetensors") {
            let reason =
                format!("tensor `{tensor}` names the file {file}, expected a plain *.safetensors");
            return Err(Error::malformed(&index_path, reason));
        }
        names.insert(name);
    }
    Ok(names.into_iter().map(|name| path.join(name)).collect())
}

/// Adds the tensors of one file to the table.
///
/// # Errors
/// If the file is malformed, or a tensor is in two files.
fn locate(
    path: &Path,
    map: &Arc<Mmap>,
    tensors: &mut BTreeMap<String, Location>,
) -> Result<(), Error> {
    let parsed = SafeTensors::deserialize(map).map_err(|error| {
        Error::malformed(path, format!("not a valid safetensors file: {error}"))
    })?;
    for (name, view) in parsed.iter() {
        let start = view.data().as_ptr().addr() - map.as_ptr().addr();
        let location = Location {
            map: Arc::clone(map),
            path: path.to_owned(),
            start,
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
        };
        if tensors.insert(name.to_owned(), location).is_some() {
            return Err(Error::malformed(
                path,
                format!("tensor `{name}` is in more than one file"),
            ));
        }
    }
    Ok(())
}

impl Location {
    /// The whole tensor.
    fn weights(&self, name: &str, shape: &[usize]) -> Result<DenseWeights, Error> {
        self.part(name, shape, 0..shape.iter().product())
    }

    /// Some elements of the tensor, which must have this shape.
    ///
    /// Mapped where they are aligned in the file, copied otherwise.
    fn part(
        &self,
        name: &str,
        shape: &[usize],
        elements: Range<usize>,
    ) -> Result<DenseWeights, Error> {
        if self.shape != shape {
            let (found, expected) = (self.shape.clone(), shape.to_vec());
            return Err(Error::Shape { name: name.to_owned(), found, expected });
        }
        let dtype = match self.dtype {
            Dtype::F32 => DenseType::F32,
            Dtype::BF16 => DenseType::Bf16,
            Dtype::F16 => DenseType::F16,
            other => {
                let what = format!("{}: dtype of `{name}`", self.path.display());
                return Err(Error::unsupported(what, format!("{other:?}"), "F32, F16, BF16"));
            }
        };
        let start = self.start + elements.start * dtype.num_bytes();
        let len = elements.len();
        if let Some(mapped) = MappedWeights::new(Arc::clone(&self.map), start, len, dtype) {
            return Ok(DenseWeights::Mapped(mapped));
        }
        let bytes = &self.map[start..start + len * dtype.num_bytes()];
        Ok(super::gguf_file::copy_dense(bytes, dtype))
    }
}

impl WeightSource for Directory {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Option<Vec<f32>>, Error> {
        self.find(name)
            .map(|location| Ok(location.weights(name, &[len])?.as_slice().to_f32()))
            .transpose()
    }

    fn matrix(&mut self, name: &str, outs: usize, inner: usize) -> Result<Matrix, Error> {
        let location =
            self.find(name).ok_or_else(|| Error::MissingTensor { name: name.to_owned() })?;
        finite(name, location.weights(name, &[outs, inner])?, inner)
    }

    fn expert(
        &mut self,
        layer: usize,
        expert: usize,
        projection: Projection,
        outs: usize,
        inner: usize,
    ) -> Result<Matrix, Error> {
        let prefix = format!("model.layers.{layer}");
        let (old, new) = match projection {
            Projection::Gate => ("w1", "gate_proj"),
            Projection::Up => ("w3", "up_proj"),
            _ => ("w2", "down_proj"),
        };
        for name in [
            format!("{prefix}.mlp.experts.{expert}.{new}.weight"),
            format!("{prefix}.block_sparse_moe.experts.{expert}.{old}.weight"),
        ] {
            if self.find(&name).is_some() {
                return self.matrix(&name, outs, inner);
            }
        }
        // All experts in one tensor, gate above up.
        let num_experts = self.config.experts_at(layer).map_or(0, |mixture| mixture.num_experts);
        let (name, rows, first) = match projection {
            Projection::Gate => ("gate_up_proj", 2 * outs, 0),
            Projection::Up => ("gate_up_proj", 2 * outs, outs),
            _ => ("down_proj", outs, 0),
        };
        let name = format!("{prefix}.mlp.experts.{name}");
        let location = self.find(&name).ok_or_else(|| Error::MissingTensor {
            name: format!("{prefix}.mlp.experts.{expert}.{new}.weight"),
        })?;
        let start = (expert * rows + first) * inner;
        let elements = start..start + outs * inner;
        finite(&name, location.part(&name, &[num_experts, rows, inner], elements)?, inner)
    }

    fn digest(&self) -> [u8; 32] {
        self.digest
    }

    fn unread(&self) -> Vec<String> {
        let read = self.read.borrow();
        self.tensors.keys().filter(|name| !read.contains(*name)).cloned().collect()
    }

    fn norm_offset(&self) -> f32 {
        family::hugging_face_norm_offset(&self.config)
    }
}

/// A matrix of the weights, whose every value is looked at once.
fn finite(name: &str, weights: DenseWeights, inner: usize) -> Result<Matrix, Error> {
    match all_finite(weights.as_slice()) {
        true => Ok(Matrix::Dense { weights, inner }),
        false => Err(Error::NotFinite { name: name.to_owned() }),
    }
}

/// True if no value is infinite or NaN, which an exponent of all ones tells.
pub(super) fn all_finite(weights: WeightSlice<'_>) -> bool {
    match weights {
        WeightSlice::F32(values) => values.iter().all(|value| value.is_finite()),
        WeightSlice::Bf16(bits) => bits.iter().all(|bits| bits & 0x7f80 != 0x7f80),
        WeightSlice::F16(bits) => bits.iter().all(|bits| bits & 0x7c00 != 0x7c00),
    }
}
