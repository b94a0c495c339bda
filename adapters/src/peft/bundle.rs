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

/// Files that may lie where a configuration is missing, and the tool or the format that they are of.
/// The first that is there is named.
const FOREIGN: [(&str, &str); 6] = [
    ("adapter_model.safetensors", "PEFT's weights"),
    ("adapters.safetensors", "MLX's weights"),
    ("pytorch_lora_weights.safetensors", "a LoRA of Diffusers, for a model of pictures"),
    ("model.safetensors", "a whole model, which is no module"),
    ("model.safetensors.index.json", "a whole model, which is no module"),
    ("pytorch_model.bin", "a whole model, which is no module"),
];
/// Endings of other files that tools write weights to, as kohya and torchtune do.
const FOREIGN_ENDINGS: [(&str, &str); 5] = [
    ("safetensors", "weights of another tool"),
    ("pt", "a pickle, which is never read"),
    ("pth", "a pickle, which is never read"),
    ("bin", "a pickle, which is never read"),
    ("ckpt", "a pickle, which is never read"),
];
/// Most files of one ending that are listed to name one of them.
const MAX_LISTED: usize = 4_096;

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
        let config = read_config(files, config_file)?;
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

/// The configuration of a module, by the name that the format gives it. Where it is missing, the
/// refusal says what is there in its place.
///
/// # Errors
/// If it is missing, too large, or lies outside the root.
pub fn read_config(files: Files<'_>, config_file: &str) -> Result<Vec<u8>, Error> {
    if !files.has(config_file)
        && let Some(found) = foreign(files)
    {
        let problem = format!(
            "found {found}; expected {config_file} beside its weights, as PEFT, MLX or polyskill write them, or a GGUF file"
        );
        return Err(Error::refused(files.name, vec![problem]));
    }
    files.read(config_file, MAX_CONFIG_BYTES)
}

/// The file that stands for no module of a known format, and what it is; `None` where nothing is
/// known.
fn foreign(files: Files<'_>) -> Option<String> {
    if files.directory.is_file() {
        return Some("a file that is no GGUF file".to_owned());
    }
    if let Some((file, of)) = FOREIGN.into_iter().find(|(file, _)| files.has(file)) {
        return Some(format!("{file}, {of}"));
    }
    FOREIGN_ENDINGS.into_iter().find_map(|(ending, of)| {
        let stems = files.stems(".", ending, MAX_LISTED).ok()?;
        Some(format!("{}.{ending}, {of}", stems.first()?))
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peft::CONFIG_FILE;

    #[test]
    fn files_of_other_tools_are_named() {
        let config = |directory: &std::path::Path| {
            let files = Files { name: "m", directory, root: directory };
            read_config(files, CONFIG_FILE).map_err(|error| error.to_string())
        };
        for (file, part) in [
            ("pytorch_lora_weights.safetensors", "a LoRA of Diffusers"),
            ("model.safetensors", "a whole model"),
            ("adapters.safetensors", "MLX's weights"),
            ("adapter_model.safetensors", "PEFT's weights"),
            ("kohya.safetensors", "weights of another tool"),
            ("adapter_0.pt", "a pickle"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join(file), b"").unwrap();
            let refusal = config(folder.path()).unwrap_err();
            assert!(refusal.contains(&format!("found {file}, {part}")), "{refusal}");
            assert!(refusal.contains("expected adapter_config.json"), "{refusal}");
            let file = config(&folder.path().join(file)).unwrap_err();
            assert!(file.contains("a file that is no GGUF file"), "{file}");
            std::fs::write(folder.path().join(CONFIG_FILE), b"{}").unwrap();
            assert_eq!(config(folder.path()), Ok(b"{}".to_vec()));
        }
        let nothing = config(tempfile::tempdir().unwrap().path()).unwrap_err();
        assert!(nothing.contains("cannot read"), "{nothing}");
    }
}
