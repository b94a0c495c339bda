//! The configuration of a module, over good weights.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| polyskill_fuzz::load_module_with("adapter_config.json", bytes));
