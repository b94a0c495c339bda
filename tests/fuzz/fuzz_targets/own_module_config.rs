//! The configuration of a module in our own format, over good weights.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| polyskill_fuzz::load_own_module_with("polyskill_config.json", bytes));
