//! The bytes of an archive or GGUF file that holds a module.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use polyskill_sources::{FetchLimits, unpack};

/// Files below a directory, and their bytes.
fn files(directory: &Path) -> (usize, u64) {
    let entries = std::fs::read_dir(directory).expect("the directory is readable");
    entries.map(|entry| entry.expect("an entry").path()).fold((0, 0), |(count, bytes), path| {
        let (more, of) = match path.is_dir() {
            true => files(&path),
            false => (1, path.symlink_metadata().expect("a file").len()),
        };
        (count + more, bytes + of)
    })
}

fuzz_target!(|bytes: &[u8]| {
    static SCRATCH: OnceLock<tempfile::TempDir> = OnceLock::new();
    let scratch = SCRATCH.get_or_init(|| tempfile::tempdir().expect("a scratch directory")).path();
    let (archive, staging) = (scratch.join("module.gguf"), scratch.join("staging"));
    std::fs::write(&archive, bytes).expect("the scratch directory is writable");
    let limits = FetchLimits { max_total_bytes: 1 << 20, ..FetchLimits::default() };
    if let Ok(module) = unpack(&archive, &limits, &staging) {
        assert!(module.directory.starts_with(&staging));
        assert_eq!(files(&module.directory), (module.files, module.bytes));
        assert!(module.bytes <= limits.max_total_bytes);
    }
    // The archive itself and the lock: nothing else was written, or it is gone again.
    assert_eq!(files(scratch).0, if staging.exists() { 2 } else { 1 });
});
