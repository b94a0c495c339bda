//! A GGUF file as an adapter or a control vector.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| polyskill_fuzz::load_gguf_module(bytes));
