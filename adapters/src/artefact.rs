//! Router artefacts: what a router needs of a module beyond the module's weights, such as trained
//! gates.
//!
//! `artefacts/<name>.safetensors` in a module's directory. The header's metadata is the manifest,
//! and every tensor is named by the site that it belongs to (`model.layers.0.self_attn.q_proj`).
//!
//! A module's generation does not cover its artefacts: the same weights give the same logits,
//! whatever a router was trained to make of them, and compare-and-swap, leases and requests that
//! name the module must not notice that a gate came along later. What depends on artefacts depends
//! on [`Artefact::digest`].

mod read;

use std::collections::BTreeMap;

use polyskill_model::Site;

use crate::lora::Elements;

pub(crate) use read::load;
#[cfg(test)]
pub(crate) use read::tests;

/// The folder of a module's artefacts.
pub const FOLDER: &str = "artefacts";
/// The ending of their files.
pub const EXTENSION: &str = "safetensors";
/// Most artefacts of a module.
pub const MAX_ARTEFACTS: usize = 16;
/// Largest artefact. It is read into memory whole.
pub const MAX_BYTES: u64 = 64 << 20;

/// One artefact of a module. It was made for one generation of the module, and perhaps for one
/// base.
#[derive(Clone, Debug)]
pub struct Artefact {
    /// The stem of the file, which the manifest repeats.
    name: String,
    /// The manifest's `method`.
    method: String,
    /// The manifest's `variant`.
    variant: String,
    /// SHA-256 of the file.
    digest: [u8; 32],
    /// Shape and elements by site, row by row.
    tensors: BTreeMap<Site, (Vec<u32>, Elements)>,
}

impl Artefact {
    /// The name that routers ask for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The routing method that it was trained for, such as `phatgoose`.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// The variant of the method, such as `sigmoid`, as the manifest names it.
    pub fn variant(&self) -> &str {
        &self.variant
    }

    /// SHA-256 of the file, metadata included.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// Shape and values at a site, widened to 32 bits at every call; `None` where it has no tensor
    /// there.
    pub fn at(&self, site: Site) -> Option<(&[u32], Vec<f32>)> {
        let (shape, elements) = self.tensors.get(&site)?;
        Some((shape, elements.as_slice().to_f32()))
    }

    /// The sites that have a tensor, ascending.
    pub fn sites(&self) -> impl Iterator<Item = Site> {
        self.tensors.keys().copied()
    }

    /// Bytes of tensors. They are in memory for as long as the module is known.
    pub fn num_bytes(&self) -> usize {
        self.tensors.values().map(|(_, elements)| elements.num_bytes()).sum()
    }
}

/// All artefacts of a module, and the reasons for which others were left out.
#[derive(Debug, Default)]
pub(crate) struct Artefacts {
    /// Those for this base, by name.
    pub(crate) valid: Vec<Artefact>,
    /// One sentence per artefact that another base was used for; it names the file.
    pub(crate) left_out: Vec<String>,
}
