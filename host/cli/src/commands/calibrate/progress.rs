//! The state that a stopped calibration goes on from: kept beside the policy until it is written.

use std::path::{Path, PathBuf};

use polyskill_workshop::calibration::{Orders, Usage};
use serde::{Deserialize, Serialize};

/// State of a calibration. A run with other settings, base or text does not take it.
///
/// The method determines the fields that are in use; the others are empty.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(super) struct Progress {
    /// Digest of all that the result depends on.
    pub(super) key: String,
    /// Kept experts of layers that are done, by layer.
    pub(super) done: Vec<Vec<u32>>,
    /// Steps of the search in the layers at hand that are done: sets that it has come to.
    pub(super) kept: Vec<Vec<u32>>,
    /// Losses of the layers at hand, of every candidate set, over the batches that are done.
    pub(super) losses: Vec<Vec<f64>>,
    /// Usage of the experts of each layer by the base.
    pub(super) usage: Vec<Sums>,
    /// Orders of features of layers that are aligned.
    pub(super) orders: Vec<Orders>,
    /// Batches in the losses or in the usage.
    pub(super) batches: usize,
    /// The file of this state, `OUT.partial.json` beside the policy.
    #[serde(skip)]
    path: PathBuf,
}

/// Sums of a layer's [`Usage`].
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Sums {
    /// Tokens that chose each expert, `[experts]`.
    counts: Vec<u64>,
    /// Bits of the products: a number in JSON may come back with another last digit. They are sums
    /// over tokens of products of two experts' logits, `[experts, experts]`.
    products: Vec<u64>,
}

impl Sums {
    /// The sums of a usage as they are saved.
    pub(super) fn of(usage: &Usage) -> Self {
        let (counts, products) = usage.sums();
        let bits = products.iter().map(|product| product.to_bits());
        Self { counts: counts.to_vec(), products: bits.collect() }
    }

    /// Puts the sums into a usage; false, with nothing changed, if it has another number of
    /// experts.
    pub(super) fn restore(&self, usage: &mut Usage) -> bool {
        let products: Vec<f64> = self.products.iter().map(|bits| f64::from_bits(*bits)).collect();
        usage.restore(&self.counts, &products)
    }
}

impl Progress {
    /// The state of an earlier run with the same key, or an empty one.
    ///
    /// A file that cannot be read or that has another key is as good as none, and the next
    /// [`Self::save`] replaces it.
    pub(super) fn open(out: &Path, key: String) -> Self {
        let mut name = out.file_name().unwrap_or_default().to_os_string();
        name.push(".partial.json");
        let path = out.with_file_name(name);
        let found = std::fs::read(&path).ok();
        let found = found.and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        match found.filter(|found| found.key == key) {
            Some(found) => Self { path, ..found },
            None => Self { key, path, ..Self::default() },
        }
    }

    /// Writes the state in the place of what was there, in one go: a run that is killed meanwhile
    /// leaves the old one.
    pub(super) fn save(&self) -> Result<(), String> {
        let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", self.path.display());
        let bytes = serde_json::to_vec(self).map_err(|error| fail(&error))?;
        if let Some(parent) = self.path.parent() {
            std::fs::create_dir_all(parent).map_err(|error| fail(&error))?;
        }
        let partial = self.path.with_extension("tmp");
        std::fs::write(&partial, bytes).map_err(|error| fail(&error))?;
        std::fs::rename(&partial, &self.path).map_err(|error| fail(&error))
    }

    /// Removes the file, once the policy is written.
    pub(super) fn remove(&self) {
        // If it stays, it is only of use to a run with the same settings.
        let _ = std::fs::remove_file(&self.path);
    }
}
