//! What the fuzz targets share: the fixtures of the tests, and modules with one file replaced.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use polyskill_adapters::load_module;
use polyskill_model::{Compute, Decoder, load};

/// The fixtures of the integration tests.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures")
}

/// A tiny base model, loaded once.
pub fn model() -> &'static Decoder {
    static MODEL: OnceLock<Decoder> = OnceLock::new();
    MODEL.get_or_init(|| {
        let path = fixtures().join("models/llama-tied");
        load::load(&path, Arc::new(Compute::new(1)), &mut |_, _| {}).expect("the fixture loads")
    })
}

/// Loads a good module one of whose files holds these bytes instead.
pub fn load_module_with(file: &str, bytes: &[u8]) {
    static MODULE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let directory = MODULE.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a scratch directory");
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let source = fixtures().join("adapters/lora-basic").join(file);
            std::fs::copy(source, directory.path().join(file)).expect("the fixture is there");
        }
        directory
    });
    std::fs::write(directory.path().join(file), bytes).expect("the scratch directory is writable");
    let _ = load_module("fuzzed", directory.path(), directory.path(), model().config());
}
