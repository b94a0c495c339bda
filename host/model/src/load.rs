//! Reading a base model from disk: a Hugging Face directory or a GGUF file.
//!
//! Both sources answer for tensors under Hugging Face's names; building the decoder is written
//! once.

mod gguf_file;
mod hugging_face;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use crate::compute::Compute;
use crate::config::{Mixture, ModelConfig, QueryKeyNorm};
use crate::decoder::{Decoder, FeedForward, Layer};
use crate::error::Error;
use crate::linear::{Linear, Matrix};
use crate::moe::{Experts, SharedExpert};
use crate::rope::RopeTable;
use crate::site::Projection;

pub use crate::family::gguf_architecture;
pub use gguf_file::{GgufFile, gguf_stored_row, gguf_tensor_name};

/// Called as loading proceeds with `(bytes done, bytes in all)`.
///
/// Called from the loading thread every few megabytes.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// A place that tensors come from, under Hugging Face's names.
///
/// Matrices are `[outs, inner]` with heads in the half-split order of the rotary embedding, and
/// free of values that are not finite, whatever the file holds.
trait WeightSource {
    /// The model's shape, as the source describes it.
    fn config(&self) -> &ModelConfig;
    /// A vector as f32; `None` if the source has no such tensor.
    ///
    /// Values may be infinite or NaN: [`required`] refuses those.
    ///
    /// # Errors
    /// If the tensor has another shape.
    fn vector(&mut self, name: &str, len: usize) -> Result<Option<Vec<f32>>, Error>;
    /// A matrix in the form that the kernels hold; mapped rather than copied where the file allows
    /// it.
    ///
    /// # Errors
    /// If the tensor is missing, has another shape or type, or holds a value that is not finite.
    fn matrix(&mut self, name: &str, outs: usize, inner: usize) -> Result<Matrix, Error>;
    /// A projection of a routed expert of a sparse layer: gate, up or down, `[outs, inner]`.
    ///
    /// # Errors
    /// As [`WeightSource::matrix`].
    fn expert(
        &mut self,
        layer: usize,
        expert: usize,
        projection: Projection,
        outs: usize,
        inner: usize,
    ) -> Result<Matrix, Error>;
    /// SHA-256 over the source's files.
    fn digest(&self) -> [u8; 32];
    /// Tensors that nothing has asked for so far. A source that does not keep track, as a GGUF
    /// file, gives none.
    fn unread(&self) -> Vec<String> {
        Vec::new()
    }
    /// Number that is added to the weights of norms: 1 for checkpoints that keep them around zero.
    fn norm_offset(&self) -> f32 {
        0.0
    }
}

/// Loads a base model from a directory with `config.json` and safetensors, or from a `.gguf` file.
///
/// The whole of the weights is read once for their digest, which also warms the system's cache.
///
/// # Errors
/// If files are missing or malformed, or the model needs something that is not implemented.
pub fn load(path: &Path, compute: Arc<Compute>, progress: Progress<'_>) -> Result<Decoder, Error> {
    load_keeping(path, compute, &KeptExperts::new(), progress)
}

/// The experts of sparse layers that are held in memory, by layer, ascending. A layer that is not
/// named keeps all of its own.
pub type KeptExperts = BTreeMap<usize, Vec<u32>>;

/// Loads a base model without some of its experts: they are never read, and no row can choose them.
///
/// # Errors
/// As [`load`], and if an expert does not exist.
pub fn load_keeping(
    path: &Path,
    compute: Arc<Compute>,
    kept: &KeptExperts,
    progress: Progress<'_>,
) -> Result<Decoder, Error> {
    if path.is_dir() {
        let source = hugging_face::Directory::open(path, progress)?;
        build(source, compute, kept)
    } else {
        let source = GgufFile::open(path, progress)?;
        build(source, compute, kept)
    }
}

/// Refuses experts that are not there, and layers of which none would be left.
fn check_kept(kept: &KeptExperts, config: &ModelConfig) -> Result<(), Error> {
    for (&layer, experts) in kept {
        let Some(mixture) = config.experts_at(layer) else {
            return Err(Error::KeptExperts(format!(
                "layer {layer}: the base has no experts there"
            )));
        };
        let count = mixture.num_experts;
        let ascend = experts.windows(2).all(|pair| pair[0] < pair[1]);
        if experts.is_empty() || !ascend || experts.last().is_some_and(|&e| e as usize >= count) {
            return Err(Error::KeptExperts(format!(
                "layer {layer}: found {experts:?}, expected some of {count} experts, ascending"
            )));
        }
    }
    Ok(())
}

/// Refuses tensors that nothing reads, as their effect would be missing without a word.
///
/// Tables of rotary frequencies, which follow from the configuration, are let through, and so are
/// experts where some are dropped.
fn check_unread(unread: &[String], kept: &KeptExperts) -> Result<(), Error> {
    let is_known = |name: &&String| {
        name.ends_with("rotary_emb.inv_freq") || !kept.is_empty() && name.contains(".experts.")
    };
    match unread.iter().find(|name| !is_known(name)) {
        None => Ok(()),
        Some(name) => Err(Error::unsupported(
            "the tensor",
            name.as_str(),
            "those that the configuration speaks of",
        )),
    }
}

/// Digest of a base from which experts were dropped, and the files' digest where none were: with
/// other experts a base computes another function, and results for one are not results for the
/// other.
fn identity(digest: [u8; 32], kept: &KeptExperts) -> [u8; 32] {
    if kept.is_empty() {
        return digest;
    }
    let text = format!("kept experts {kept:?}");
    Sha256::new_with_prefix(digest).chain_update(text).finalize().into()
}

/// Reads all tensors of a source and checks that none is left over. Written once for both formats.
fn build(
    mut source: impl WeightSource,
    compute: Arc<Compute>,
    kept: &KeptExperts,
) -> Result<Decoder, Error> {
    let mut config = source.config().clone();
    check_kept(kept, &config)?;
    let hidden = config.hidden_size;
    let (embeddings, head) = ends(&mut source, &mut config)?;
    let layers = (0..config.num_layers)
        .map(|layer| build_layer(&mut source, &config, layer, kept))
        .collect::<Result<_, _>>()?;
    let final_norm = norm(&mut source, "model.norm.weight", hidden)?;
    check_unread(&source.unread(), kept)?;
    Ok(Decoder {
        embeddings,
        layers,
        final_norm,
        head,
        rope: RopeTable::new(&config.rope, config.head_dim),
        local_rope: config.local_rope.as_ref().map(|rope| RopeTable::new(rope, config.head_dim)),
        compute,
        digest: identity(source.digest(), kept),
        weights_digest: source.digest(),
        config,
    })
}

/// The embedding table, and the head where it is another matrix.
///
/// A configuration may say that both are one while the file holds a head of its own, as merging a
/// module with one leaves it: as in transformers 5, a head that differs serves, and then nothing is
/// tied. A file with the head alone has the embedding table in it.
fn ends(
    source: &mut impl WeightSource,
    config: &mut ModelConfig,
) -> Result<(Matrix, Option<Linear>), Error> {
    const EMBEDDINGS: &str = "model.embed_tokens.weight";
    const HEAD: &str = "lm_head.weight";
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let names = source.unread();
    let holds = |wanted: &str| names.iter().any(|name| name == wanted);
    if config.tied_embeddings && holds(HEAD) && !holds(EMBEDDINGS) {
        return Ok((source.matrix(HEAD, vocab, hidden)?, None));
    }
    let embeddings = source.matrix(EMBEDDINGS, vocab, hidden)?;
    if config.tied_embeddings && !holds(HEAD) {
        return Ok((embeddings, None));
    }
    let head = source.matrix(HEAD, vocab, hidden)?;
    if config.tied_embeddings && are_equal(&embeddings, &head, vocab, hidden) {
        return Ok((embeddings, None));
    }
    config.tied_embeddings = false;
    Ok((embeddings, Some(Linear { matrix: head, bias: None })))
}

/// True if two matrices have the same values, row by row; they may be of different types.
fn are_equal(a: &Matrix, b: &Matrix, rows: usize, width: usize) -> bool {
    let [mut of_a, mut of_b] = [vec![0.0; width], vec![0.0; width]];
    (0..rows).all(|row| {
        a.read_row(row, &mut of_a);
        b.read_row(row, &mut of_b);
        of_a == of_b
    })
}

/// Reads one layer: projections with their biases, norms, and experts if the layer is sparse.
fn build_layer(
    source: &mut impl WeightSource,
    config: &ModelConfig,
    layer: usize,
    kept: &KeptExperts,
) -> Result<Layer, Error> {
    let prefix = format!("model.layers.{layer}");
    let mut linear = |projection: Projection| {
        let (outs, inner) = config.projection_shape(projection);
        let has_bias = match projection {
            Projection::Q | Projection::K | Projection::V => config.biases.query_key_value,
            Projection::O => config.biases.attention_output,
            Projection::Gate | Projection::Up | Projection::Down => config.biases.feed_forward,
        };
        let name = format!("{prefix}.{}", projection.path());
        let matrix = source.matrix(&format!("{name}.weight"), outs, inner)?;
        let bias = match has_bias {
            true => Some(required(source, &format!("{name}.bias"), outs)?),
            false => None,
        };
        Ok(Linear { matrix, bias })
    };
    let [q, k, v, o, gate, up, down] = Projection::ALL;
    let attention = [linear(q)?, linear(k)?, linear(v)?, linear(o)?];
    let feed_forward = match config.experts_at(layer) {
        None => FeedForward::Dense([linear(gate)?, linear(up)?, linear(down)?]),
        Some(mixture) => {
            let kept = kept.get(&layer).map(Vec::as_slice);
            FeedForward::Sparse(build_experts(source, config, layer, mixture, kept)?)
        }
    };
    let hidden = config.hidden_size;
    let mut named = |name: &str, len: usize| norm(source, &format!("{prefix}.{name}.weight"), len);
    let mut normed_heads = |name: &str, num_heads: usize| match config.query_key_norm {
        QueryKeyNorm::None => Ok(None),
        QueryKeyNorm::PerHead => named(name, config.head_dim).map(Some),
        QueryKeyNorm::FullWidth => named(name, num_heads * config.head_dim).map(Some),
    };
    let query_norm = normed_heads("self_attn.q_norm", config.num_heads)?;
    let key_norm = normed_heads("self_attn.k_norm", config.num_kv_heads)?;
    let attention_norm = named("input_layernorm", hidden)?;
    // With norms at both ends of a block, the name that others have for the second block's first is the first block's last.
    let (attention_output_norm, feed_forward_norm, feed_forward_output_norm) =
        match config.output_norms {
            false => (None, named("post_attention_layernorm", hidden)?, None),
            true => (
                Some(named("post_attention_layernorm", hidden)?),
                named("pre_feedforward_layernorm", hidden)?,
                Some(named("post_feedforward_layernorm", hidden)?),
            ),
        };
    Ok(Layer {
        attention_norm,
        attention_output_norm,
        feed_forward_norm,
        feed_forward_output_norm,
        query_norm,
        key_norm,
        attention,
        feed_forward,
    })
}

/// Reads the router, the experts that are `kept` (all for `None`), and the shared expert of a
/// sparse layer. Experts that are dropped are not read.
fn build_experts(
    source: &mut impl WeightSource,
    config: &ModelConfig,
    layer: usize,
    mixture: &Mixture,
    kept: Option<&[u32]>,
) -> Result<Experts, Error> {
    let hidden = config.hidden_size;
    let prefix = format!("model.layers.{layer}.mlp");
    let plain = |matrix: Matrix| Linear { matrix, bias: None };
    let router = source.matrix(&format!("{prefix}.gate.weight"), mixture.num_experts, hidden)?;
    let is_kept =
        |expert: usize| kept.is_none_or(|kept| kept.binary_search(&(expert as u32)).is_ok());
    let mut routed = |expert: usize| {
        if !is_kept(expert) {
            return Ok(None);
        }
        let mut linear = |projection: Projection| {
            let (outs, inner) = mixture.expert_shape(hidden, expert, projection);
            source.expert(layer, expert, projection, outs, inner).map(plain)
        };
        let [gate, up, down] = [Projection::Gate, Projection::Up, Projection::Down];
        Ok(Some([linear(gate)?, linear(up)?, linear(down)?]))
    };
    let routed = (0..mixture.num_experts).map(&mut routed).collect::<Result<_, Error>>()?;
    let shared = match mixture.shared_expert {
        None => None,
        Some(_) => {
            let mut linear = |projection: Projection| {
                let (outs, inner) = mixture.expert_shape(hidden, mixture.num_experts, projection);
                let name = format!("{prefix}.shared_expert.{}.weight", projection.name());
                source.matrix(&name, outs, inner).map(plain)
            };
            let linears =
                [linear(Projection::Gate)?, linear(Projection::Up)?, linear(Projection::Down)?];
            Some(SharedExpert { linears, gate: shared_gate(source, &prefix, hidden)? })
        }
    };
    Ok(Experts { router: plain(router), routed, shared })
}

/// The gate of a shared expert, `[hidden_size]`: one row of a matrix, which GGUF files hold as a
/// vector.
fn shared_gate(
    source: &mut impl WeightSource,
    prefix: &str,
    hidden: usize,
) -> Result<Vec<f32>, Error> {
    let name = format!("{prefix}.shared_expert_gate.weight");
    match source.matrix(&name, 1, hidden) {
        Ok(matrix) => {
            let mut row = vec![0.0; hidden];
            matrix.read_row(0, &mut row);
            Ok(row)
        }
        Err(Error::Shape { .. }) => required(source, &name, hidden),
        Err(error) => Err(error),
    }
}

/// A norm's weights as the decoder multiplies with them, the source's offset included.
fn norm(source: &mut impl WeightSource, name: &str, len: usize) -> Result<Vec<f32>, Error> {
    let mut weights = required(source, name, len)?;
    let offset = source.norm_offset();
    weights.iter_mut().for_each(|weight| *weight += offset);
    Ok(weights)
}

/// A vector that the architecture needs.
///
/// # Errors
/// If it is missing, has another shape or holds a value that is not finite.
fn required(source: &mut impl WeightSource, name: &str, len: usize) -> Result<Vec<f32>, Error> {
    let values = source.vector(name, len)?;
    let values = values.ok_or_else(|| Error::MissingTensor { name: name.to_owned() })?;
    if values.iter().all(|value| value.is_finite()) {
        return Ok(values);
    }
    Err(Error::NotFinite { name: name.to_owned() })
}

/// Maps a whole file for reading.
#[expect(unsafe_code, reason = "memory-maps a file that nothing else writes while it is served")]
fn map(path: &Path) -> Result<Arc<Mmap>, Error> {
    let file = File::open(path).map_err(|source| Error::io(path, source))?;
    // SAFETY: the map is read-only. Another process that truncates a model file while it is served can
    // fault this one, as with every memory-mapping loader; the documentation says to replace by rename.
    let map = unsafe { Mmap::map(&file) }.map_err(|source| Error::io(path, source))?;
    Ok(Arc::new(map))
}

/// Adds a file's bytes to a digest, reporting progress every 4 MiB. `done` counts over several
/// files.
fn hash(hasher: &mut Sha256, bytes: &[u8], done: &mut u64, total: u64, progress: Progress<'_>) {
    for chunk in bytes.chunks(4 << 20) {
        hasher.update(chunk);
        *done += chunk.len() as u64;
        progress(*done, total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::DenseWeights;

    /// A source of one tensor.
    struct OneTensor {
        shape: Vec<usize>,
        values: Vec<f32>,
    }

    impl OneTensor {
        fn of(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>, Error> {
            if self.shape == expected {
                return Ok(self.values.clone());
            }
            let (found, expected) = (self.shape.clone(), expected.to_vec());
            Err(Error::Shape { name: name.to_owned(), found, expected })
        }
    }

    impl WeightSource for OneTensor {
        fn config(&self) -> &ModelConfig {
            unreachable!("one tensor is read")
        }
        fn vector(&mut self, name: &str, len: usize) -> Result<Option<Vec<f32>>, Error> {
            self.of(name, &[len]).map(Some)
        }
        fn matrix(&mut self, name: &str, outs: usize, inner: usize) -> Result<Matrix, Error> {
            let values = self.of(name, &[outs, inner])?;
            match values.iter().all(|value| value.is_finite()) {
                true => Ok(Matrix::Dense { weights: DenseWeights::F32(values), inner }),
                false => Err(Error::NotFinite { name: name.to_owned() }),
            }
        }
        fn expert(
            &mut self,
            _: usize,
            _: usize,
            _: Projection,
            _: usize,
            _: usize,
        ) -> Result<Matrix, Error> {
            unreachable!("one tensor is read")
        }
        fn digest(&self) -> [u8; 32] {
            [0; 32]
        }
    }

    #[test]
    fn the_gate_of_a_shared_expert_is_a_row_or_a_vector() {
        let gate = |shape: &[usize], values: [f32; 2]| {
            let mut source = OneTensor { shape: shape.to_vec(), values: values.to_vec() };
            shared_gate(&mut source, "mlp", 2).map_err(|error| error.to_string())
        };
        for shape in [&[1, 2][..], &[2]] {
            assert_eq!(gate(shape, [0.5, 2.0]), Ok(vec![0.5, 2.0]));
            let refused = gate(shape, [0.5, f32::NAN]).unwrap_err();
            assert!(refused.contains("not finite"), "{shape:?}: {refused}");
        }
        let refused = gate(&[2, 1], [0.5, 2.0]).unwrap_err();
        assert!(refused.contains("has shape [2, 1]"), "{refused}");
    }
}
