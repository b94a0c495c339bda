//! The manifest of a bundle whose plugin is an empty component.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use polyskill_plugin::{Limits, Loader, Trust};

const EMPTY_COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

fuzz_target!(|manifest: &[u8]| {
    static LOADER: OnceLock<(Loader, tempfile::TempDir)> = OnceLock::new();
    let (loader, directory) = LOADER.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a scratch directory");
        std::fs::write(directory.path().join("a.wasm"), EMPTY_COMPONENT).expect("writable");
        (Loader::new(Limits::default(), Trust::unsigned(), None).expect("this machine runs wasmtime"), directory)
    });
    std::fs::write(directory.path().join("plugin.toml"), manifest).expect("writable");
    // An empty component exports no router, whatever its manifest says.
    assert!(loader.load(directory.path()).is_err());
});
