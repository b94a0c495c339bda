//! The flat ABI: plugins whose memory and answers are the input; every row is usable or refused.
#![no_main]

use std::sync::OnceLock;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use polyskill_plugin::{Limits, Loader, Trust};

#[path = "../../zoo/generated.rs"]
mod generated;

#[derive(Arbitrary, Debug)]
struct Input {
    sources: [(u16, u16); 3],
    lie: (u32, u32),
    codes: [i8; 2],
    num_rows: u8,
    num_columns: u8,
    memory: Vec<u8>,
}

fuzz_target!(|input: Input| {
    static LOADER: OnceLock<(Loader, tempfile::TempDir)> = OnceLock::new();
    let (loader, directory) = LOADER.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let loader = Loader::new(Limits::default(), Trust::unsigned(), None);
        (loader.expect("this machine runs wasmtime"), directory)
    });
    let mut memory = input.memory;
    memory.truncate(1 << 12);
    let generated = generated::Generated {
        memory,
        sources: input.sources,
        lie: input.lie,
        codes: input.codes.map(i32::from),
        num_rows: 1 + input.num_rows % 32,
        num_columns: 1 + input.num_columns % 8,
    };
    let path = directory.path().join("generated.wasm");
    let code = wat::parse_str(generated.text()).expect("the text is well-formed");
    std::fs::write(&path, code).expect("writable");
    generated.run(loader, &path);
});
