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
/// Largest file of weights, 4 GiB: it is read into memory whole.
const MAX_WEIGHT_BYTES: u64 = 4 << 30;
/// The files that PEFT and torch write where they pickle: to read one is to run it.
const PICKLES: [&str; 3] = ["adapter_model.bin", "adapter_model.pt", "pytorch_model.bin"];

/// Configuration and weights of a module, as they lie on disk. Both files are in memory whole, so
/// that what is hashed is what is read.
#[derive(Debug)]
pub struct Bundle {
    /// The configuration's bytes.
    pub config: Vec<u8>,
    /// The bytes of the safetensors file.
    pub weights: Vec<u8>,
    /// The name of the weights' file, for messages.
    weights_file: &'static str,
}

impl Bundle {
    /// Reads configuration and weights by the names that the format gives them.
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

    /// Identity of the content; `kind` keeps formats apart that could have the same bytes.
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
///
/// # Errors
/// If the card cannot be read or is longer than [`MAX_CONFIG_BYTES`]; what it says is never an
/// error.
pub fn card(files: Files<'_>) -> Result<Card, Error> {
    match files.has(CARD_FILE) {
        true => Ok(Card::parse(&files.read(CARD_FILE, MAX_CONFIG_BYTES)?)),
        false => Ok(Card::default()),
    }
}

/// Largest weight that is taken: what a half float can hold. Trained weights are far below; far
/// above, answers are noise, and sums overflow.
pub const MAX_WEIGHT: f32 = 65_504.0;

/// The elements of a tensor, if its dtype is F32, F16 or BF16 and none is beyond [`MAX_WEIGHT`].
/// The precision is kept.
///
/// # Errors
/// For another dtype, or a value that is not finite or beyond the bound; the message follows the
/// tensor's name.
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

/// Refuses values that no module can have been trained to. The cost is one pass over the bits.
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

/// A tensor of one shape, finite; `name` is what a problem calls it. The shape is compared before
/// any element is read.
///
/// # Errors
/// If the shape is another, or for the reasons of [`elements`].
pub fn shaped(name: &str, view: &TensorView<'_>, expected: &[usize]) -> Result<Elements, String> {
    if view.shape() != expected {
        return Err(format!("{name} has shape {:?}, expected {expected:?}", view.shape()));
    }
    elements(view).map_err(|problem| format!("{name} {problem}"))
}

/// A tensor of one shape widened to 32-bit floats, with the checks of [`shaped`].
///
/// # Errors
/// Those of [`shaped`].
pub fn floats(name: &str, view: &TensorView<'_>, expected: &[usize]) -> Result<Vec<f32>, String> {
    shaped(name, view, expected).map(|elements| elements.as_slice().to_f32())
}
