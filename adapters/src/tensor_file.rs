//! Tensors to be written, and safetensors files as PEFT writes them.

use std::borrow::Cow;
use std::collections::HashMap;

use safetensors::tensor::{Dtype, View, serialize};

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// The type of its values.
    pub dtype: Dtype,
    /// Its dimensions, the outermost first.
    pub shape: Vec<usize>,
    /// Its values, little-endian.
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// A tensor of 32-bit floats.
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

/// The name of a weight in PEFT's files.
pub fn tensor_name(site: &str, part: &str) -> String {
    format!("base_model.model.{site}.{part}.weight")
}

/// A safetensors file as PEFT writes it.
///
/// # Errors
/// If the names and shapes make no file.
pub fn weights_file(
    tensors: impl IntoIterator<Item = (String, Tensor)>,
) -> Result<Vec<u8>, String> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    serialize(tensors, Some(metadata)).map_err(|error| error.to_string())
}
