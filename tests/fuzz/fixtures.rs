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
    let files = ["adapter_config.json", "adapter_model.safetensors"];
    load_with(MODULE.get_or_init(|| copy("lora-basic", &files)), file, bytes);
}

/// The same with a module of our own format.
pub fn load_own_module_with(file: &str, bytes: &[u8]) {
    static MODULE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let files = ["polyskill_config.json", "polyskill_module.safetensors"];
    load_with(MODULE.get_or_init(|| copy("soft-injection", &files)), file, bytes);
}

/// Loads a GGUF file of these bytes.
pub fn load_gguf_module(bytes: &[u8]) {
    static DIRECTORY: OnceLock<tempfile::TempDir> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| tempfile::tempdir().expect("a scratch directory"));
    let path = directory.path().join("fuzzed.gguf");
    std::fs::write(&path, bytes).expect("the scratch directory is writable");
    let _ = load_module("fuzzed", &path, directory.path(), model());
}

fn copy(module: &str, files: &[&str]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a scratch directory");
    for file in files {
        let source = fixtures().join("adapters").join(module).join(file);
        std::fs::copy(source, directory.path().join(file)).expect("the fixture is there");
    }
    directory
}

fn load_with(directory: &tempfile::TempDir, file: &str, bytes: &[u8]) {
    std::fs::write(directory.path().join(file), bytes).expect("the scratch directory is writable");
    let _ = load_module("fuzzed", directory.path(), directory.path(), model());
}
