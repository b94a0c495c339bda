//! GGUF's container: header, metadata and tensor directory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use polyskill_model::gguf;

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = gguf::parse(bytes) else { return };
    for (name, tensor) in &header.tensors {
        let end = tensor.start.checked_add(tensor.num_bytes);
        assert!(end.is_some_and(|end| end <= bytes.len()), "`{name}` lies beyond the file");
    }
});
