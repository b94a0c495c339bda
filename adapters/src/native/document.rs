//! Documents that the base has read once, kept as keys and values for any request.
//!
//! A request that uses one gives the logits of the same request with the document's tokens before
//! its prompt.

use std::borrow::Cow;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};

use super::FORMAT_VERSION;
use crate::error::Error;
use crate::files::Problems;
use crate::generation::Generation;
use crate::load::Base;
use crate::lora::Elements;
use crate::peft::bundle::shaped;
use crate::weights::{KvPrefix, Part, Weights};

/// Most tokens of a document. Its keys and values are in memory at once.
const MAX_TOKENS: usize = 1 << 16;

/// The settings of `DOCUMENT_PREFIX`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// Version of the format.
    pub(super) format_version: u32,
    /// Tokens of the document, 1 to [`MAX_TOKENS`].
    num_tokens: usize,
    /// Digest of the base that read it; keys and values mean nothing to another.
    base_digest: String,
}

/// Keys and values of a document.
#[derive(Clone, Debug)]
pub struct Document {
    /// Tokens of the document.
    pub num_tokens: usize,
    /// Per layer, `[num_tokens, kv heads · head_dim]`, after the rotary embedding at positions from
    /// 0.
    pub keys: Vec<Vec<f32>>,
    /// Per layer, of the same shape.
    pub values: Vec<Vec<f32>>,
}

/// Reads `model.layers.N.keys` and `.values` of every layer. A base from which experts were dropped
/// is refused: the whole base read the document.
pub(super) fn load(
    settings: &Settings,
    tensors: &SafeTensors<'_>,
    base: Base<'_>,
) -> Result<Weights, Vec<String>> {
    let mut problems = Problems::default();
    if let Some(digest) = base.digest
        && Generation(digest).to_string() != settings.base_digest
    {
        let found: String = settings.base_digest.chars().take(64).collect();
        problems.add(format!(
            "`base_digest` is {found}: another base read the document, expected {}",
            Generation(digest)
        ));
    }
    let count = settings.num_tokens;
    if !(1..=MAX_TOKENS).contains(&count) {
        return Err(vec![format!("`num_tokens` is {count}, expected 1 to {MAX_TOKENS}")]);
    }
    let width = base.config.num_kv_heads * base.config.head_dim;
    let mut layers = |part: &str| -> Vec<Elements> {
        let layer = |layer: usize| {
            let name = format!("model.layers.{layer}.{part}");
            let view = tensors.tensor(&name).map_err(|_| format!("tensor `{name}` is missing"))?;
            shaped(&format!("`{name}`"), &view, &[count, width])
        };
        let found = (0..base.config.num_layers).map(layer);
        found.filter_map(|found| found.map_err(|problem| problems.add(problem)).ok()).collect()
    };
    let (keys, values) = (layers("keys"), layers("values"));
    if base.model.is_some_and(|model| model.digest() != model.weights_digest()) {
        problems.add(
            "it was read by the whole base, and the one that is served lacks experts".to_owned(),
        );
    }
    if tensors.len() > 2 * base.config.num_layers {
        let expected = 2 * base.config.num_layers;
        problems.add(format!("{} tensors, expected {expected}", tensors.len()));
    }
    let mut weights = Weights::new(base.config.num_sites());
    weights.add(Part::Prefix(KvPrefix { num_tokens: count, keys, values }));
    problems.into_result(weights)
}

/// Writes a document as a module into a directory that does not exist yet. Values are written in 32
/// bits, so the file has about 8 · layers · tokens · width bytes.
///
/// # Errors
/// If the directory exists or cannot be written.
pub fn write_document(
    document: &Document,
    base_digest: [u8; 32],
    card: &str,
    directory: &Path,
) -> Result<(), Error> {
    let settings = Settings {
        format_version: FORMAT_VERSION,
        num_tokens: document.num_tokens,
        base_digest: Generation(base_digest).to_string(),
    };
    let parts = [("keys", &document.keys), ("values", &document.values)];
    let tensors = parts.into_iter().flat_map(|(part, layers)| {
        layers.iter().enumerate().map(move |(layer, values)| {
            let rows = values.len() / document.num_tokens.max(1);
            let tensor = Floats { shape: [document.num_tokens, rows], values };
            (format!("model.layers.{layer}.{part}"), tensor)
        })
    });
    super::write(&settings, "DOCUMENT_PREFIX", tensors, card, directory)
}

/// A tensor to be written, `[tokens, width]`; its bytes are made when the writer asks for them, one
/// tensor at a time.
struct Floats<'a> {
    /// Rows and columns.
    shape: [usize; 2],
    /// Values, row by row.
    values: &'a [f32],
}

impl View for Floats<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }
}
