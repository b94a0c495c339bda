//! A chat template beside a good tokenizer.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use polyskill_fuzz::fixtures;
use polyskill_tokenizer::{Chat, Tokenizer};

fuzz_target!(|template: &[u8]| {
    static DIRECTORY: OnceLock<tempfile::TempDir> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let source = fixtures().join("models/llama-tied/tokenizer.json");
        std::fs::copy(source, directory.path().join("tokenizer.json")).expect("the fixture is there");
        directory
    });
    std::fs::write(directory.path().join("chat_template.jinja"), template).expect("a scratch file");
    if let Ok(tokenizer) = Tokenizer::load(directory.path()) {
        let messages = [serde_json::json!({"role": "user", "content": "hello <a>"})];
        let chat = Chat { messages: &messages, add_generation_prompt: true, ..Chat::default() };
        let _ = tokenizer.render_chat(&chat);
    }
});
