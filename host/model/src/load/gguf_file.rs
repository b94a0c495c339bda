//! A GGUF file: weights in llama.cpp's names and block formats.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use half::f16;
use memmap2::Mmap;
use sha2::{Digest, Sha256};

use super::hugging_face::all_finite;
use super::{Progress, WeightSource, hash, map};
use crate::config::ModelConfig;
use crate::error::Error;
use crate::family;
use crate::gguf::{self, TensorInfo, TensorType};
use crate::kernels::PackedMatrix;
use crate::linear::{DenseType, DenseWeights, MappedWeights, Matrix};
use crate::site::Projection;

/// An opened GGUF file.
///
/// Single files only; a model that llama.cpp has split is merged first.
#[derive(Debug)]
pub struct GgufFile {
    /// The file's path, for messages.
    path: PathBuf,
    /// The whole file.
    map: Arc<Mmap>,
    /// Metadata and the directory of tensors.
    header: gguf::Header,
    /// The model's shape, from the metadata.
    config: ModelConfig,
    /// SHA-256 over the whole file.
    digest: [u8; 32],
}

impl GgufFile {
    /// Maps a file, checks its header and reads its configuration.
    ///
    /// All of the file is read once for its digest.
    ///
    /// # Errors
    /// If the file cannot be read, is malformed, or needs something that is not implemented.
    pub fn open(path: &Path, progress: Progress<'_>) -> Result<Self, Error> {
        let map = map(path)?;
        let header = gguf::parse(&map).map_err(|reason| Error::malformed(path, reason))?;
        let factors = rope_factors(path, &map, &header)?;
        let config = family::from_gguf(&header, factors)?;
        let (mut hasher, mut done) = (Sha256::new(), 0);
        hash(&mut hasher, &map, &mut done, map.len() as u64, progress);
        let digest = hasher.finalize().into();
        Ok(Self { path: path.to_owned(), map, header, config, digest })
    }

    /// Reads only the header of a file: metadata such as the tokenizer.
    ///
    /// # Errors
    /// If the file cannot be read or is malformed.
    pub fn read_header(path: &Path) -> Result<gguf::Header, Error> {
        gguf::parse(&map(path)?).map_err(|reason| Error::malformed(path, reason))
    }

    /// A tensor and its bytes; `None` if the file lacks it.
    ///
    /// # Errors
    /// If it has another shape.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Option<(&TensorInfo, &[u8])>, Error> {
        let Some(info) = self.header.tensors.get(name) else { return Ok(None) };
        if info.shape != shape {
            let (found, expected) = (info.shape.clone(), shape.to_vec());
            return Err(Error::Shape { name: name.to_owned(), found, expected });
        }
        Ok(Some((info, &self.map[info.start..info.start + info.num_bytes])))
    }

    /// The refusal of a tensor, with the file's path.
    fn not_finite(&self, name: &str) -> Error {
        Error::NotFinite { name: format!("{}: {name}", self.path.display()) }
    }

    /// A matrix out of a range of the file.
    ///
    /// Dense types stay as they are. Q4_0, Q4_1, Q4_K and Q8_0 keep their quants in the kernels'
    /// layout. All other block formats are dequantised and then quantised to 8 bits, which takes
    /// more memory than the file and is nearly exact.
    fn read(&self, name: &str, stored: &StoredMatrix) -> Result<Matrix, Error> {
        let StoredMatrix { dtype, start, outs, inner, order, .. } = *stored;
        let bytes = &self.map[start..start + stored.num_bytes];
        let matrix = match dtype {
            TensorType::F32 => self.dense(stored, DenseType::F32),
            TensorType::F16 => self.dense(stored, DenseType::F16),
            TensorType::Bf16 => self.dense(stored, DenseType::Bf16),
            TensorType::Q4_0 | TensorType::Q4_1 | TensorType::Q4K | TensorType::Q8_0 => {
                let packed = pack(bytes, dtype, outs, inner, order);
                Matrix::Packed(packed.ok_or_else(|| self.not_finite(name))?)
            }
            _ => {
                let values = dequantise(bytes, dtype, outs * inner)
                    .map_err(|error| Error::malformed(&self.path, error))?;
                let rows: Vec<f32> = (0..outs)
                    .flat_map(|row| {
                        let start = order.stored_row(row) * inner;
                        values[start..start + inner].iter().copied()
                    })
                    .collect();
                if !rows.iter().all(|value| value.is_finite()) {
                    return Err(self.not_finite(name));
                }
                Matrix::Packed(PackedMatrix::from_dense(&rows, inner))
            }
        };
        match &matrix {
            Matrix::Dense { weights, .. } if !all_finite(weights.as_slice()) => {
                Err(self.not_finite(name))
            }
            _ => Ok(matrix),
        }
    }

    /// A matrix of a dense type: mapped if its rows are in order and aligned, else copied.
    fn dense(&self, stored: &StoredMatrix, dtype: DenseType) -> Matrix {
        let StoredMatrix { start, outs, inner, .. } = *stored;
        let bytes = &self.map[start..start + stored.num_bytes];
        let mapped = || MappedWeights::new(Arc::clone(&self.map), start, outs * inner, dtype);
        let weights = match stored.order {
            RowOrder::AsStored => {
                mapped().map_or_else(|| copy_dense(bytes, dtype), DenseWeights::Mapped)
            }
            RowOrder::Interleaved { .. } => {
                let row_bytes = inner * dtype.num_bytes();
                let reordered: Vec<u8> = (0..outs)
                    .flat_map(|row| {
                        let start = stored.order.stored_row(row) * row_bytes;
                        bytes[start..start + row_bytes].iter().copied()
                    })
                    .collect();
                copy_dense(&reordered, dtype)
            }
        };
        Matrix::Dense { weights, inner }
    }
}

/// The place of a matrix in the file, and its form.
struct StoredMatrix {
    /// Storage type.
    dtype: TensorType,
    /// The first byte in the file.
    start: usize,
    /// Bytes in the file.
    num_bytes: usize,
    /// Rows.
    outs: usize,
    /// Elements per row.
    inner: usize,
    /// Order of the rows.
    order: RowOrder,
}

/// Order of a matrix's rows in the file.
#[derive(Clone, Copy)]
enum RowOrder {
    /// The order of Hugging Face's checkpoints.
    AsStored,
    /// llama.cpp's converter interleaves the two halves of each head of q and k for architectures
    /// of the llama kind.
    Interleaved {
        /// Rows per head.
        head_dim: usize,
    },
}

impl RowOrder {
    /// The stored row that holds row `row` of the half-split layout.
    fn stored_row(self, row: usize) -> usize {
        match self {
            Self::AsStored => row,
            Self::Interleaved { head_dim } => {
                let (head, within) = (row / head_dim, row % head_dim);
                let (half, pair) = (within / (head_dim / 2), within % (head_dim / 2));
                head * head_dim + 2 * pair + half
            }
        }
    }
}

impl WeightSource for GgufFile {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Option<Vec<f32>>, Error> {
        let gguf_name = gguf_tensor_name(&self.config, name);
        let Some((info, bytes)) = self.tensor(&gguf_name, &[len])? else { return Ok(None) };
        let values =
            dequantise(bytes, info.dtype, len).map_err(|e| Error::malformed(&self.path, e))?;
        let order = self.row_order(name);
        Ok(Some((0..len).map(|row| values[order.stored_row(row)]).collect()))
    }

    fn matrix(&mut self, name: &str, outs: usize, inner: usize) -> Result<Matrix, Error> {
        let gguf_name = gguf_tensor_name(&self.config, name);
        let Some((info, _)) = self.tensor(&gguf_name, &[outs, inner])? else {
            return Err(Error::MissingTensor { name: gguf_name });
        };
        let (dtype, start, num_bytes) = (info.dtype, info.start, info.num_bytes);
        let order = self.row_order(name);
        self.read(&gguf_name, &StoredMatrix { dtype, start, num_bytes, outs, inner, order })
    }

    fn expert(
        &mut self,
        layer: usize,
        expert: usize,
        projection: Projection,
        outs: usize,
        inner: usize,
    ) -> Result<Matrix, Error> {
        let name = match projection {
            Projection::Gate => format!("blk.{layer}.ffn_gate_exps.weight"),
            Projection::Up => format!("blk.{layer}.ffn_up_exps.weight"),
            _ => format!("blk.{layer}.ffn_down_exps.weight"),
        };
        let num_experts = self.config.experts_at(layer).map_or(0, |mixture| mixture.num_experts);
        let Some((info, _)) = self.tensor(&name, &[num_experts, outs, inner])? else {
            return Err(Error::MissingTensor { name });
        };
        let num_bytes = info.num_bytes / num_experts;
        let start = info.start + expert * num_bytes;
        let (dtype, order) = (info.dtype, RowOrder::AsStored);
        self.read(&name, &StoredMatrix { dtype, start, num_bytes, outs, inner, order })
    }

    fn digest(&self) -> [u8; 32] {
        self.digest
    }
}

impl TensorInfo {
    /// The tensor's elements as 32-bit floats, from its bytes, in the order of the file.
    ///
    /// # Errors
    /// If the bytes are not what its type and shape ask for.
    pub fn to_f32(&self, bytes: &[u8]) -> Result<Vec<f32>, String> {
        dequantise(bytes, self.dtype, self.shape.iter().product())
    }
}

/// The row of q or k in a GGUF file that holds row `row` of the half-split layout.
///
/// Modules in GGUF form have their rows of q and k in the same order.
pub fn gguf_stored_row(config: &ModelConfig, row: usize) -> usize {
    match family::gguf_permutes_queries_and_keys(config) {
        true => RowOrder::Interleaved { head_dim: config.head_dim }.stored_row(row),
        false => row,
    }
}

impl GgufFile {
    /// The order of a tensor's rows, from its name: that of q and k differs in some architectures.
    fn row_order(&self, name: &str) -> RowOrder {
        let rotated = name.contains(".q_proj.") || name.contains(".k_proj.");
        if rotated && family::gguf_permutes_queries_and_keys(&self.config) {
            return RowOrder::Interleaved { head_dim: self.config.head_dim };
        }
        RowOrder::AsStored
    }
}

/// llama.cpp's name of a tensor that has this name in a Hugging Face checkpoint.
///
/// Parts without a counterpart stay as they are.
pub fn gguf_tensor_name(config: &ModelConfig, name: &str) -> String {
    match name {
        "model.embed_tokens.weight" => return "token_embd.weight".to_owned(),
        "model.norm.weight" => return "output_norm.weight".to_owned(),
        "lm_head.weight" => return "output.weight".to_owned(),
        _ => {}
    }
    const PARTS: [(&str, &str); 18] = [
        ("model.layers.", "blk."),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
        ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
        ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
        ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
        ("mlp.gate.", "ffn_gate_inp."),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
    ];
    let after_attention = match config.output_norms {
        true => "post_attention_norm",
        false => "ffn_norm",
    };
    PARTS
        .iter()
        .chain(&[("post_attention_layernorm", after_attention)])
        .fold(name.to_owned(), |name, (from, to)| name.replacen(from, to, 1))
}

/// Packs blocks whose form the kernels hold; `None` if a scale or a min is not finite.
fn pack(
    bytes: &[u8],
    dtype: TensorType,
    outs: usize,
    inner: usize,
    order: RowOrder,
) -> Option<PackedMatrix> {
    let (block_elements, block_bytes) = dtype.block();
    let row_bytes = inner / block_elements * block_bytes;
    let mut packed = PackedMatrix::zeros(outs, inner, dtype != TensorType::Q8_0);
    for out in 0..outs {
        let row = &bytes[order.stored_row(out) * row_bytes..][..row_bytes];
        for (index, block) in row.chunks_exact(block_bytes).enumerate() {
            match dtype {
                TensorType::Q8_0 => pack_q8_0(&mut packed, out, index, block)?,
                TensorType::Q4K => pack_q4_k(&mut packed, out, index, block)?,
                _ => pack_q4(&mut packed, out, index, block)?,
            }
        }
    }
    Some(packed)
}

/// The little-endian half at a byte of a block; `None` if it is not finite.
fn half_at(block: &[u8], at: usize) -> Option<f16> {
    Some(f16::from_le_bytes([block[at], block[at + 1]])).filter(|value| value.is_finite())
}

/// Q8_0: an f16 scale and 32 signed bytes. Flipping the top bit adds 128, the kernels' zero.
fn pack_q8_0(packed: &mut PackedMatrix, out: usize, index: usize, block: &[u8]) -> Option<()> {
    let scale = half_at(block, 0)?;
    let quants = std::array::from_fn(|k| block[2 + k] ^ 0x80);
    packed.set_block(out, index, scale.to_bits(), 0, &quants);
    Some(())
}

/// Q4_0 (value = d · (q − 8)) and Q4_1 (value = d · q + m): low nibbles first, then the high ones.
fn pack_q4(packed: &mut PackedMatrix, out: usize, index: usize, block: &[u8]) -> Option<()> {
    let scale = half_at(block, 0)?;
    let (min, nibbles) = match block.len() {
        18 => (f16::from_f32(-8.0 * scale.to_f32()), &block[2..]),
        _ => (half_at(block, 2)?, &block[4..]),
    };
    let quants = std::array::from_fn(|k| match k {
        0..16 => nibbles[k] & 0xf,
        _ => nibbles[k - 16] >> 4,
    });
    packed.set_block(out, index, scale.to_bits(), min.to_bits(), &quants);
    Some(())
}

/// Q4_K: eight blocks of 32 with 6-bit scales and mins under two f16 factors. The products are
/// rounded to f16, half a thousandth of a scale at most and far below the format's own error.
fn pack_q4_k(packed: &mut PackedMatrix, out: usize, index: usize, block: &[u8]) -> Option<()> {
    let (scale, min) = (half_at(block, 0)?.to_f32(), half_at(block, 2)?.to_f32());
    let (packed_scales, nibbles) = (&block[4..16], &block[16..]);
    for sub in 0..8 {
        let (sub_scale, sub_min) = match sub {
            0..4 => (packed_scales[sub] & 63, packed_scales[sub + 4] & 63),
            _ => (
                (packed_scales[sub + 4] & 0xf) | (packed_scales[sub - 4] >> 6 << 4),
                (packed_scales[sub + 4] >> 4) | (packed_scales[sub] >> 6 << 4),
            ),
        };
        let scale = f16::from_f32(scale * f32::from(sub_scale));
        let min = f16::from_f32(-min * f32::from(sub_min));
        if !scale.is_finite() || !min.is_finite() {
            return None;
        }
        let bytes = &nibbles[sub / 2 * 32..][..32];
        let quants = std::array::from_fn(|k| (bytes[k] >> (4 * (sub % 2))) & 0xf);
        packed.set_block(out, index * 8 + sub, scale.to_bits(), min.to_bits(), &quants);
    }
    Some(())
}

/// `len` elements of any supported type as f32; block formats through candle.
///
/// # Errors
/// If the bytes do not make up that many elements.
fn dequantise(bytes: &[u8], dtype: TensorType, len: usize) -> Result<Vec<f32>, String> {
    let ggml = match dtype {
        TensorType::F32 => return Ok(copy_dense(bytes, DenseType::F32).as_slice().to_f32()),
        TensorType::F16 => return Ok(copy_dense(bytes, DenseType::F16).as_slice().to_f32()),
        TensorType::Bf16 => return Ok(copy_dense(bytes, DenseType::Bf16).as_slice().to_f32()),
        TensorType::Q4_0 => GgmlDType::Q4_0,
        TensorType::Q4_1 => GgmlDType::Q4_1,
        TensorType::Q5_0 => GgmlDType::Q5_0,
        TensorType::Q5_1 => GgmlDType::Q5_1,
        TensorType::Q8_0 => GgmlDType::Q8_0,
        TensorType::Q2K => GgmlDType::Q2K,
        TensorType::Q3K => GgmlDType::Q3K,
        TensorType::Q4K => GgmlDType::Q4K,
        TensorType::Q5K => GgmlDType::Q5K,
        TensorType::Q6K => GgmlDType::Q6K,
    };
    QStorage::from_data(Cow::Borrowed(bytes), &Device::Cpu, ggml)
        .and_then(|storage| QTensor::new(storage, len))
        .and_then(|tensor| tensor.dequantize(&Device::Cpu))
        .and_then(|tensor| tensor.to_vec1::<f32>())
        .map_err(|error| error.to_string())
}

/// Copies little-endian floats out of unaligned bytes.
pub(super) fn copy_dense(bytes: &[u8], dtype: DenseType) -> DenseWeights {
    let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
    match dtype {
        DenseType::F32 => DenseWeights::F32(
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        ),
        DenseType::Bf16 => DenseWeights::Bf16(halves()),
        DenseType::F16 => DenseWeights::F16(halves()),
    }
}

/// Llama 3's frequency divisors, which its GGUF files carry as a tensor; `None` for other models.
fn rope_factors(path: &Path, map: &Mmap, header: &gguf::Header) -> Result<Option<Vec<f64>>, Error> {
    let Some(info) = header.tensors.get("rope_freqs.weight") else { return Ok(None) };
    let bytes = &map[info.start..info.start + info.num_bytes];
    let len = info.shape.iter().product();
    let factors =
        dequantise(bytes, info.dtype, len).map_err(|error| Error::malformed(path, error))?;
    if !factors.iter().all(|factor| factor.is_finite() && *factor > 0.0) {
        return Err(Error::malformed(
            path,
            "`rope_freqs.weight` holds a divisor that is not positive",
        ));
    }
    Ok(Some(factors.into_iter().map(f64::from).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Tensor;

    /// Packed rows dequantise to what candle's own reader of the format gives.
    fn check(ggml: GgmlDType, dtype: TensorType, tolerance: f32) {
        let (outs, inner) = (19, 256);
        let values: Vec<f32> =
            (0..outs * inner).map(|i| ((i * 37 % 101) as f32 - 50.0) / 40.0).collect();
        let tensor = Tensor::from_vec(values, (outs, inner), &Device::Cpu).unwrap();
        let quantised = QTensor::quantize(&tensor, ggml).unwrap();
        let bytes = quantised.data().unwrap();
        let expected = dequantise(&bytes, dtype, outs * inner).unwrap();
        let packed = match dtype {
            TensorType::Q6K => PackedMatrix::from_dense(&expected, inner),
            _ => pack(&bytes, dtype, outs, inner, RowOrder::AsStored).unwrap(),
        };
        let mut row = vec![0.0; inner];
        for out in 0..outs {
            packed.read_row(out, &mut row);
            for (found, expected) in row.iter().zip(&expected[out * inner..]) {
                assert!((found - expected).abs() <= tolerance, "{dtype:?}: {found} {expected}");
            }
        }
    }

    #[test]
    fn block_formats_agree_with_candle() {
        check(GgmlDType::Q4_0, TensorType::Q4_0, 0.0);
        check(GgmlDType::Q4_1, TensorType::Q4_1, 0.0);
        check(GgmlDType::Q8_0, TensorType::Q8_0, 0.0);
        check(GgmlDType::Q4K, TensorType::Q4K, 2e-3);
        check(GgmlDType::Q6K, TensorType::Q6K, 1e-2);
    }

    #[test]
    fn interleaved_rows_are_undone() {
        let order = RowOrder::Interleaved { head_dim: 8 };
        let stored: Vec<usize> = (0..16).map(|row| order.stored_row(row)).collect();
        assert_eq!(stored, [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]);
    }

    #[test]
    fn names_follow_llama_cpp() {
        let config = crate::config::tests::tiny();
        let sandwich = ModelConfig { output_norms: true, ..config.clone() };
        for (config, name, expected) in [
            (&config, "model.layers.12.self_attn.o_proj.weight", "blk.12.attn_output.weight"),
            (&config, "model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
            (&config, "model.layers.0.self_attn.q_norm.weight", "blk.0.attn_q_norm.weight"),
            (
                &sandwich,
                "model.layers.0.post_attention_layernorm.weight",
                "blk.0.post_attention_norm.weight",
            ),
            (&sandwich, "model.layers.0.pre_feedforward_layernorm.weight", "blk.0.ffn_norm.weight"),
            (
                &sandwich,
                "model.layers.0.post_feedforward_layernorm.weight",
                "blk.0.post_ffw_norm.weight",
            ),
        ] {
            assert_eq!(gguf_tensor_name(config, name), expected);
        }
    }
}
