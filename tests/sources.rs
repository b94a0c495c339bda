//! Modules from an archive to the library: fetched, loaded, compared with what was pinned and signed.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use polyskill_adapters::load_module;
use polyskill_sources::{
    FetchLimits, Fetched, ModuleTrust, Pin, Policy, SIGNATURE_FILE, Signer, Source, SourceError,
    TrustError, fetch, sign, verify,
};

use crate::common::{fixtures, model};

/// A module of the fixtures in one file, with more files beside it.
pub(crate) fn pack(target: &Path, more: &[(&str, &[u8])]) {
    let mut builder = tar::Builder::new(Vec::new());
    let source = fixtures().join("adapters/lora-basic");
    let files = ["adapter_config.json", "adapter_model.safetensors"];
    let files = files.map(|name| (name, std::fs::read(source.join(name)).unwrap()));
    let more = more.iter().map(|(name, bytes)| (*name, bytes.to_vec()));
    for (name, bytes) in files.into_iter().chain(more) {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, format!("basic/{name}"), bytes.as_slice()).unwrap();
    }
    let mut encoder = GzEncoder::new(std::fs::File::create(target).unwrap(), Compression::fast());
    encoder.write_all(&builder.into_inner().unwrap()).unwrap();
    encoder.finish().unwrap();
}

fn fetched(text: &str, root: &Path, staging: &Path) -> Result<Fetched, SourceError> {
    let source: Source = text.parse().unwrap();
    let policy = Policy { roots: vec![root.to_owned()], ..Policy::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(fetch(&source, &policy, &FetchLimits::default(), staging))
}

fn generation(fetched: &Fetched) -> String {
    let base = model("models/llama-tied");
    let module = load_module("basic", &fetched.directory, &fetched.root, base.config()).unwrap();
    module.generation().to_string()
}

#[test]
fn a_signed_archive_is_loaded_pinned_and_verified() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { scratch.path().join(name) };
    let (archive, staging, key) = (path("basic.tar.gz"), path("staging"), path("key"));
    let text = archive.display().to_string();
    // In place, copied and unpacked are the same module.
    let source = fixtures().join("adapters/lora-basic").display().to_string();
    let there = fetched(&source, &fixtures().join("adapters"), &staging).unwrap();
    assert!(there.is_in_place() && !staging.exists());
    let expected = generation(&there);
    let public = polyskill_plugin::new_key(&key).unwrap();
    let signed = sign(&expected, &key).unwrap();
    assert_eq!(signed.public, public);
    pack(&archive, &[(SIGNATURE_FILE, signed.text.as_bytes()), ("train.py", b"print()")]);
    let module = fetched(&text, scratch.path(), &staging).unwrap();
    assert_eq!((module.files, module.ignored), (3, 1));
    assert_eq!(generation(&module), expected);
    expected.parse::<Pin>().unwrap().check("basic", &generation(&module)).unwrap();
    let trust: ModuleTrust = toml::from_str(&format!(
        "signature = \"required\"\nkeys = [{{ key = \"{public}\", prefix = \"basic\" }}]"
    ))
    .unwrap();
    let signature = module.signature().unwrap();
    let verify = |name: &str, generation: &str, signature: Option<&[u8]>| {
        verify(name, generation, signature, &trust)
    };
    assert_eq!(
        verify("basic", &expected, signature.as_deref()).unwrap(),
        Signer::Trusted(public.clone())
    );
    let other = verify("other", &expected, signature.as_deref());
    assert!(matches!(other, Err(TrustError::Untrusted { .. })), "{other:?}");
    assert!(matches!(verify("basic", &expected, None), Err(TrustError::Unsigned { .. })));
    let another = verify("basic", &"0".repeat(64), signature.as_deref());
    assert!(matches!(another, Err(TrustError::Unfit { .. })), "{another:?}");
    // The pin of the archive itself.
    let digest = module.origin.digest.clone().unwrap().replace(':', "=");
    assert!(fetched(&format!("{text}#{digest}"), scratch.path(), &staging).is_ok());
    pack(&archive, &[]);
    let changed = fetched(&format!("{text}#{digest}"), scratch.path(), &staging).unwrap_err();
    assert!(changed.to_string().contains("expected sha256:"), "{changed}");
}

#[test]
fn a_pickle_in_an_archive_is_never_unpacked() {
    let scratch = tempfile::tempdir().unwrap();
    let archive = scratch.path().join("basic.tar.gz");
    pack(&archive, &[("adapter_model.bin", b"pickle"), ("optimizer.pt", b"pickle")]);
    let staging = scratch.path().join("staging");
    let module = fetched(&archive.display().to_string(), scratch.path(), &staging).unwrap();
    let names: Vec<_> = std::fs::read_dir(&module.directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!((names.len(), module.ignored), (2, 2), "{names:?}");
}
