//! Tokenizers, chat templates, model cards, GGUF files and configurations of any form are used or refused.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use polyskill_adapters::load_module;
use polyskill_model::{Compute, load};
use polyskill_server::config::Config;
use polyskill_tokenizer::{Chat, Special, Tokenizer};
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, Strategy};
use proptest::sample::select;
use serde_json::json;

use crate::common::{fixtures, model, read_json, root};

fn edits() -> impl Strategy<Value = Vec<(usize, u8)>> {
    vec((0..usize::MAX, 0..=255_u8), 0..5)
}

fn mutated(bytes: &[u8], edits: &[(usize, u8)]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for &(at, byte) in edits {
        let at = at % bytes.len();
        bytes[at] = byte;
    }
    bytes
}

/// Uses the text side of a model as a request would.
fn use_text(path: &Path) {
    let text = match Tokenizer::load(path) {
        Ok(text) => text,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let messages = [
        json!({"role": "system", "content": "be kind"}),
        json!({"role": "user", "content": "hello \u{1f600} <|im_end|>"}),
    ];
    let chat = text.encode_chat(&Chat::to_answer(&messages));
    let plain = text.encode("hello world \u{e4}\u{0}");
    for tokens in chat.into_iter().chain(plain) {
        let _ = text.decode(&tokens, Special::Shown);
        let _ = text.decode_part(&tokens);
    }
    let _ = text.token_text(u32::MAX);
}

/// Pieces of templates: together they nest, loop, recurse and fail.
const PIECES: [&str; 18] = [
    "{% for m in messages %}",
    "{% endfor %}",
    "{% if m['role'] == 'user' %}",
    "{% else %}",
    "{% endif %}",
    "{{ m['content'] }}",
    "{{ messages[0].content | trim }}",
    "{{ raise_exception('no') }}",
    "{{ bos_token }}",
    "{% set x = namespace(y=1) %}",
    "{% set x.y = x.y * 999999999999 %}",
    "{{ 'a' * 999999999999 }}",
    "{{ range(100000000000) | list }}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{{ messages[-99] }}",
    "{{ 1 // 0 }}",
    "{{ [1, 2][::0] }}",
    "{% include 'other' %}",
];

proptest::proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

    #[test]
    fn mutated_tokenizers_are_used_or_refused(
        edits in edits(),
        file in select(vec!["tokenizer.json", "tokenizer_config.json"]),
    ) {
        let source = fixtures().join("models/llama-tied");
        let scratch = tempfile::tempdir().unwrap();
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(source.join(name), scratch.path().join(name)).unwrap();
        }
        let bytes = std::fs::read(source.join(file)).unwrap();
        std::fs::write(scratch.path().join(file), mutated(&bytes, &edits)).unwrap();
        use_text(scratch.path());
    }

    #[test]
    fn templates_of_any_form_end(
        pieces in vec(select(PIECES.to_vec()), 0..12),
        noise in "[{}%#a-z '.|()*+~-]{0,30}",
    ) {
        let scratch = tempfile::tempdir().unwrap();
        let tokenizer = fixtures().join("models/llama-tied/tokenizer.json");
        std::fs::copy(tokenizer, scratch.path().join("tokenizer.json")).unwrap();
        for template in [pieces.concat(), noise.clone(), pieces.join(&noise)] {
            std::fs::write(scratch.path().join("chat_template.jinja"), template).unwrap();
            use_text(scratch.path());
        }
    }

    /// Weights and text of one file; most edits fall into its header.
    #[test]
    fn mutated_gguf_files_are_used_or_refused(
        edits in vec((0..usize::MAX, 0..=255_u8), 0..5),
        of_header in proptest::bool::weighted(0.8),
        file in select(vec!["tiny-f16.gguf", "tiny-q4_0.gguf", "tiny-q4_1.gguf", "tiny-q8_0.gguf"]),
        keep in select(vec![1.0, 1.0, 1.0, 0.99, 0.1]),
    ) {
        let mut bytes = std::fs::read(fixtures().join("gguf").join(file)).unwrap();
        let within = if of_header { 12_000 } else { bytes.len() };
        for (at, byte) in edits {
            bytes[at % within] = byte;
        }
        bytes.truncate((bytes.len() as f64 * keep) as usize);
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("model.gguf");
        std::fs::write(&path, bytes).unwrap();
        let _ = load::load(&path, Arc::new(Compute::new(1)), &mut |_, _| {});
        use_text(&path);
    }

    #[test]
    fn cards_of_any_form_are_read(front in "[-a-z:\n\r \"]{0,80}", bytes in vec(0..=255_u8, 0..40)) {
        let source = fixtures().join("adapters/lora-basic");
        let scratch = tempfile::tempdir().unwrap();
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(source.join(name), scratch.path().join(name)).unwrap();
        }
        let card = [b"---\ntags:\n- ".as_slice(), front.as_bytes(), &bytes].concat();
        std::fs::write(scratch.path().join("README.md"), card).unwrap();
        let base = model("models/llama-tied");
        load_module("card", scratch.path(), scratch.path(), base.config()).unwrap();
    }

    #[test]
    fn mutated_configurations_are_used_or_refused(edits in edits(), keep in 0.1..1.3) {
        let example = std::fs::read(root().join("examples/skill_set.toml")).unwrap();
        let mut bytes = mutated(&example, &edits);
        bytes.truncate((bytes.len() as f64 * keep) as usize);
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("polyskill.toml");
        std::fs::write(&path, bytes).unwrap();
        if let Ok(config) = Config::read(&path) {
            let _ = config.check();
        }
    }
}

/// The library that reads tokenizers unwraps here.
#[test]
fn a_tokenizer_with_an_unknown_decoder_is_refused() {
    let source = fixtures().join("models/llama-tied/tokenizer.json");
    for decoder in [json!({"type": "Nothing"}), json!({"type": 5}), json!([1])] {
        let mut tokenizer = read_json(&source);
        tokenizer["decoder"] = decoder;
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let message = Tokenizer::load(scratch.path()).unwrap_err().to_string();
        assert!(message.contains("tokenizer.json"), "{message}");
    }
}

/// The program itself, where a configuration comes in.
#[test]
fn check_config_refuses_what_no_server_can_run_with() {
    let check = |text: &str| {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("polyskill.toml");
        std::fs::write(&path, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_polyskill"))
            .args(["check-config", "--config"])
            .arg(&path)
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), stderr)
    };
    for (text, message) in [
        ("listen = \"nope\"", "`listen` is `nope`, expected host:port, such as 127.0.0.1:8080"),
        ("[engine]\nmax_rows = 0", "`engine.max_rows` is 0, expected 1 to 65536"),
        ("[engine]\nmax_rows = -1", "max_rows"),
        ("listen = ", "polyskill.toml"),
    ] {
        let (code, stdout, stderr) = check(text);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{text}: {stderr}");
        assert!(stderr.starts_with("polyskill: ") && stderr.contains(message), "{text}: {stderr}");
    }
    let (code, stdout, stderr) = check("listen = \"localhost:1\"\nadmin_key = \"secret\"");
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("localhost:1") && !stdout.contains("secret"), "{stdout}");
    let (code, stdout, stderr) = check(
        "adapters = [\"https://me:secret@example.org/a.zip\"]\n[[module]]\nname = \"a\"\n\
         source = \"https://example.org/b.zip?signature=secret\"\n\
         [traces]\notlp = \"http://me:secret@localhost:4318/v1/traces\"",
    );
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("example.org/b.zip") && !stdout.contains("secret"), "{stdout}");
}
