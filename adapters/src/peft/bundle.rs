//! The files of a module's directory, before anything is made of them.

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::card::Card;
use crate::error::Error;
use crate::files::Files;
use crate::generation::Generation;
use crate::lora::Elements;

/// The card beside a module.
pub const CARD_FILE: &str = "README.md";
/// Longest configuration or card that is read.
pub const MAX_CONFIG_BYTES: u64 = 1 << 20;
const MAX_WEIGHT_BYTES: u64 = 4 << 30;
/// What PEFT and torch write where they pickle.
const PICKLES: [&str; 3] = ["adapter_model.bin", "adapter_model.pt", "pytorch_model.bin"];

/// Configuration and weights of a module, as they lie on disk.
#[derive(Debug)]
pub struct Bundle {
    /// The configuration, as it lies there.
    pub config: Vec<u8>,
    /// The weights, as they lie there.
    pub weights: Vec<u8>,
    weights_file: &'static str,
}

impl Bundle {
    /// Reads both.
    ///
    /// # Errors
    /// If a file is missing, too large, or lies outside the root.
    pub fn read(
        files: Files<'_>,
        config_file: &str,
        weights_file: &'static str,
    ) -> Result<Self, Error> {
        let config = files.read(config_file, MAX_CONFIG_BYTES)?;
        if !files.has(weights_file) {
            let found = match PICKLES.into_iter().find(|pickle| files.has(pickle)) {
                Some(pickle) => format!("only {pickle}, a pickle, which is never read"),
                None => "no weights".to_owned(),
            };
            let problem = format!("found {found}; expected {weights_file}");
            return Err(Error::refused(files.name, vec![problem]));
        }
        let weights = files.read(weights_file, MAX_WEIGHT_BYTES)?;
        Ok(Self { config, weights, weights_file })
    }

    /// Identity of the content; `kind` keeps formats apart.
    pub fn generation(&self, kind: &str) -> Generation {
        Generation::of(&[kind.as_bytes(), &self.config, &self.weights])
    }

    /// The tensors of the weights.
    ///
    /// # Errors
    /// If they are no safetensors file.
    pub fn tensors(&self) -> Result<SafeTensors<'_>, Vec<String>> {
        SafeTensors::deserialize(&self.weights).map_err(|error| {
            vec![format!("{} is not a valid safetensors file: {error}", self.weights_file)]
        })
    }
}

/// The card beside a module, empty where there is none.
pub fn card(files: Files<'_>) -> Result<Card, Error> {
    match files.has(CARD_FILE) {
        true => Ok(Card::parse(&files.read(CARD_FILE, MAX_CONFIG_BYTES)?)),
        false => Ok(Card::default()),
    }
}

/// Largest weight that is taken: what a half float can hold. Trained weights are far below; far above,
/// answers are noise, and sums overflow.
pub const MAX_WEIGHT: f32 = 65_504.0;

/// The elements of a tensor, if its dtype is known and none is beyond [`MAX_WEIGHT`].
pub fn elements(view: &TensorView<'_>) -> Result<Elements, String> {
    let halves = || view.data().chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let elements = match view.dtype() {
        Dtype::F32 => Elements::F32(
            view.data()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
        ),
        Dtype::BF16 => Elements::Bf16(halves().collect()),
        Dtype::F16 => Elements::F16(halves().collect()),
        other => return Err(format!("has dtype {other:?}, expected F32, F16 or BF16")),
    };
    check_range(&elements)?;
    Ok(elements)
}

/// Refuses values that no module can have been trained to.
fn check_range(elements: &Elements) -> Result<(), String> {
    // The largest magnitude as bits, which order as the values do; loops without a way out are vectorised.
    let largest = |bits: &[u16]| bits.iter().fold(0, |most, bits| (bits & 0x7fff).max(most));
    let (finite, small) = match elements {
        Elements::F32(values) => {
            let most =
                values.iter().fold(0, |most, value| (value.to_bits() & 0x7fff_ffff).max(most));
            (most < f32::INFINITY.to_bits(), most <= MAX_WEIGHT.to_bits())
        }
        // An exponent of all ones is no number, and 143 stands for 2^16.
        Elements::Bf16(bits) => (largest(bits) < 0x7f80, largest(bits) < 143 << 7),
        Elements::F16(bits) => (largest(bits) < 0x7c00, true),
    };
    match (finite, small) {
        (true, true) => Ok(()),
        (true, false) => {
            Err(format!("holds a value beyond {MAX_WEIGHT}, the largest that is taken"))
        }
        (false, _) => Err("holds a value that is not finite".to_owned()),
    }
}

/// A tensor of one shape, finite; `name` is what a problem calls it.
pub fn shaped(name: &str, view: &TensorView<'_>, expected: &[usize]) -> Result<Elements, String> {
    if view.shape() != expected {
        return Err(format!("{name} has shape {:?}, expected {expected:?}", view.shape()));
    }
    elements(view).map_err(|problem| format!("{name} {problem}"))
}

/// A tensor of one shape as 32-bit floats, finite.
pub fn floats(name: &str, view: &TensorView<'_>, expected: &[usize]) -> Result<Vec<f32>, String> {
    shaped(name, view, expected).map(|elements| elements.as_slice().to_f32())
}
