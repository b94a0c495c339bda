//! Tensors to be written, and safetensors files as PEFT writes them.

use std::borrow::Cow;
use std::collections::HashMap;

use safetensors::tensor::{Dtype, View, serialize};

/// A tensor to be written. It owns its bytes, so all tensors of a file are in memory before the
/// file is written.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// The type of its values.
    pub dtype: Dtype,
    /// Its dimensions, the outermost first.
    pub shape: Vec<usize>,
    /// Its values in row-major order, little-endian.
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// A tensor of 32-bit floats; `values` come in row-major order, as many as the shape asks for.
    pub fn f32(shape: Vec<usize>, values: impl Iterator<Item = f32>) -> Self {
        let bytes = values.flat_map(f32::to_le_bytes).collect();
        Self { dtype: Dtype::F32, shape, bytes }
    }
}

impl View for Tensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// The name of a weight in PEFT's files: `site` is a path such as
/// `model.layers.0.self_attn.q_proj`, `part` is `lora_A` or `lora_B`.
pub fn tensor_name(site: &str, part: &str) -> String {
    format!("base_model.model.{site}.{part}.weight")
}

/// A safetensors file as PEFT writes it: the metadata says `format` = `pt`.
///
/// # Errors
/// If the names and shapes make no file.
pub fn weights_file(
    tensors: impl IntoIterator<Item = (String, Tensor)>,
) -> Result<Vec<u8>, String> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    serialize(tensors, Some(metadata)).map_err(|error| error.to_string())
}
