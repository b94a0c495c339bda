//! The weights of a module, under a good configuration.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| polyskill_fuzz::load_module_with("adapter_model.safetensors", bytes));
