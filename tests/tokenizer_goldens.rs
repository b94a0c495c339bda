//! Chat templates against transformers, and tokenizers of GGUF files against llama.cpp.
//!
//! `tests/goldens` has the scripts that made the numbers.

use polyskill_tokenizer::{Chat, Tokenizer};
use serde_json::{Map, Value as Json};

use crate::common::{fixtures, golden};

fn list<'j>(value: &'j Json, key: &str) -> Option<&'j [Json]> {
    value.get(key).and_then(Json::as_array).map(Vec::as_slice)
}

/// A tokenizer with chat templates and special tokens of its own.
fn tokenizer(template: &Json, config: &Json) -> Tokenizer {
    let source = fixtures().join("models/llama-tied");
    let scratch = tempfile::tempdir().unwrap();
    std::fs::copy(source.join("tokenizer.json"), scratch.path().join("tokenizer.json")).unwrap();
    let mut config = config.clone();
    config["chat_template"] = template.clone();
    let config = config.to_string();
    std::fs::write(scratch.path().join("tokenizer_config.json"), config).unwrap();
    Tokenizer::load(scratch.path()).unwrap()
}

/// A GGUF value as it is written.
fn gguf_value(value: &Json) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let typed = |kind: u32, bytes: &[u8]| [&kind.to_le_bytes()[..], bytes].concat();
    match value {
        Json::Bool(value) => typed(7, &[u8::from(*value)]),
        Json::Number(number) => typed(4, &(number.as_u64().unwrap() as u32).to_le_bytes()),
        Json::String(value) => typed(8, &text(value)),
        Json::Array(items) => {
            let (kind, items): (u32, Vec<u8>) = match items.first() {
                Some(Json::String(_)) => {
                    (8, items.iter().flat_map(|item| text(item.as_str().unwrap())).collect())
                }
                Some(Json::Number(number)) if number.is_f64() => (
                    6,
                    items
                        .iter()
                        .flat_map(|item| (item.as_f64().unwrap() as f32).to_le_bytes())
                        .collect(),
                ),
                _ => (
                    5,
                    items
                        .iter()
                        .flat_map(|item| (item.as_i64().unwrap() as i32).to_le_bytes())
                        .collect(),
                ),
            };
            let count = value.as_array().unwrap().len() as u64;
            typed(9, &[&kind.to_le_bytes()[..], &count.to_le_bytes()[..], &items].concat())
        }
        other => panic!("{other}"),
    }
}

/// A vocabulary-only GGUF file with some keys set, and some (null) removed.
fn changed(file: &str, keys: &Map<String, Json>) -> tempfile::NamedTempFile {
    let bytes = std::fs::read(fixtures().join("gguf").join(file)).unwrap();
    let mut entries = entries(&bytes);
    for (key, value) in keys {
        entries.retain(|(name, _)| name != key);
        if !value.is_null() {
            entries.push((key.clone(), gguf_value(value)));
        }
    }
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend(0_u64.to_le_bytes());
    out.extend((entries.len() as u64).to_le_bytes());
    for (key, value) in entries {
        out.extend((key.len() as u64).to_le_bytes());
        out.extend(key.as_bytes());
        out.extend(value);
    }
    out.resize(out.len().next_multiple_of(32), 0);
    let scratch = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(scratch.path(), out).unwrap();
    scratch
}

/// Keys with their values, type and all, as they lie in the file.
fn entries(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let len_of = |kind: u32, at: usize| match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        8 => 8 + u64_at(at),
        _ => 8,
    };
    let mut at = 24;
    let mut entries = Vec::new();
    for _ in 0..u64_at(16) {
        let len = u64_at(at);
        let key = String::from_utf8(bytes[at + 8..at + 8 + len].to_vec()).unwrap();
        at += 8 + len;
        let (start, kind) = (at, u32_at(at));
        at += 4;
        if kind == 9 {
            let (inner, count) = (u32_at(at), u64_at(at + 4));
            at += 12;
            (0..count).for_each(|_| at += len_of(inner, at));
        } else {
            at += len_of(kind, at);
        }
        entries.push((key, bytes[start..at].to_vec()));
    }
    entries
}

/// Metadata in, the bytes, hidden tokens and ends of llama.cpp out.
#[test]
fn tokens_of_gguf_files_have_llama_cpps_bytes() {
    let golden = golden("gguf_tokenizers");
    let variants = list(&golden, "variants").unwrap();
    let mut known: std::collections::BTreeMap<&str, Vec<String>> = Default::default();
    for entry in list(&golden, "pieces").unwrap() {
        let name = entry["name"].as_str().unwrap();
        let mut pieces: Vec<String> = match &entry["pieces"] {
            Json::Array(pieces) => {
                pieces.iter().map(|piece| piece.as_str().unwrap().to_owned()).collect()
            }
            _ => known[entry["like"].as_str().unwrap()].clone(),
        };
        for (token, piece) in entry["pieces"].as_object().into_iter().flatten() {
            pieces[token.parse::<usize>().unwrap()] = piece.as_str().unwrap().to_owned();
        }
        known.insert(name, pieces.clone());
        let variant = variants.iter().find(|variant| variant["name"] == name).unwrap();
        let mut keys = variant["keys"].as_object().unwrap().clone();
        if let Some(pre) = variant.get("pre") {
            keys.insert("tokenizer.ggml.pre".to_owned(), pre.clone());
        }
        let file = changed(entry["file"].as_str().unwrap(), &keys);
        let Ok(model) = Tokenizer::load(file.path()) else {
            assert_eq!(name, "gemma4", "only splits that are not here are refused");
            continue;
        };
        let tokens = || 0..pieces.len() as u32;
        for token in tokens() {
            let bytes = model.token_bytes(token).iter();
            let hex: String = bytes.map(|byte| format!("{byte:02x}")).collect();
            // A letter that stands for no byte is written as it is, not as an error in the text.
            if hex != pieces[token as usize]
                && !pieces[token as usize].contains("5b554e4b5f425954455f")
            {
                panic!("{name}: token {token} is {hex}, expected {}", pieces[token as usize]);
            }
        }
        let of = |key: &str| -> Vec<u32> {
            list(entry, key).unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
        };
        let hidden: Vec<u32> = tokens().filter(|&token| model.is_special(token)).collect();
        assert_eq!(hidden, of("hidden"), "{name}");
        let mut ends = model.end_tokens().to_vec();
        ends.sort_unstable();
        assert_eq!(ends, of("ends"), "{name}");
    }
}

/// Splits that are not here, by what begins their names in the goldens.
const UNSUPPORTED: [&str; 8] = [
    "gemma4",
    "granite-embed-multi-311m",
    "sarvam-moe",
    "whitespace",
    "tiny_aya",
    "cohere2moe",
    "afmoe",
    "gpt2 ",
];

/// Vocabulary and metadata in, the ids, bytes and ends of llama.cpp out.
#[test]
fn tokenizers_of_gguf_files_give_llama_cpps_ids() {
    let golden = golden("gguf_tokenizers");
    let texts: Vec<&str> =
        list(&golden, "texts").unwrap().iter().map(|t| t["text"].as_str().unwrap()).collect();
    let mut known: std::collections::BTreeMap<&str, Vec<Vec<u32>>> = Default::default();
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for variant in list(&golden, "variants").unwrap() {
        let name = variant["name"].as_str().unwrap();
        let ids = |ids: &Json| -> Vec<u32> {
            ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
        };
        let mut expected: Vec<Vec<u32>> = match variant["like"].as_str() {
            Some(like) => known[like].clone(),
            None => vec![Vec::new(); texts.len()],
        };
        let (before, after) = (ids(&variant["before"]), ids(&variant["after"]));
        for (at, expected) in expected.iter_mut().enumerate() {
            *expected = match variant["ids"].get(at.to_string()) {
                Some(found) => ids(found),
                None => [&before[..], expected, &after].concat(),
            };
        }
        known.insert(name, expected.clone());
        if variant["parse_special"] == false
            || UNSUPPORTED.iter().any(|start| name.starts_with(start))
        {
            continue;
        }
        let mut keys = variant["keys"].as_object().unwrap().clone();
        if let Some(pre) = variant.get("pre") {
            keys.insert("tokenizer.ggml.pre".to_owned(), pre.clone());
        }
        let file = changed(variant["file"].as_str().unwrap(), &keys);
        let model = Tokenizer::load(file.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut differ = 0;
        for (text, expected) in texts.iter().zip(&expected) {
            let found = model.encode_with(text, variant["add_special"] == true).unwrap();
            checked += 1;
            if found != *expected {
                differ += 1;
                if differ == 1 {
                    wrong.push(format!(
                        "{name}: {text:?}\n  expected {expected:?}\n  found    {found:?}"
                    ));
                }
            }
        }
        if differ > 0 {
            wrong.push(format!("{name}: {differ} of {} texts differ", texts.len()));
        }
    }
    assert!(checked > 50_000, "{checked}");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Cases that differ, and why: Python's own objects, and HTML's escapes, are no part of chats.
const KNOWN: [(&str, &str); 25] = [
    ("filter/int", "digits of other scripts are no numbers"),
    ("print/views", "ranges, keys, values and items are lists here"),
    ("operator/equality", "a range is a list"),
    ("slice/tuple-and-range", "a range is a list"),
    ("list/methods", "a range is a list"),
    ("filter-error/tojson-range", "a range is a list"),
    ("filter-error/tojson-generator", "what a filter makes is a list"),
    ("filter-error/tojson-items", "items are a list"),
    ("print/namespace", "a namespace's names are not printed"),
    ("print/self", "there is no `self`"),
    ("block/named", "there is no `self`"),
    ("print/repr-unicode", "characters that Unicode has not assigned are printed"),
    ("literal/escapes", "characters have no names"),
    ("literal/bad-name", "any letters make a name"),
    ("string/predicates", "superscripts are no digits"),
    ("string/format", "there is no `format_map`"),
    ("string/other", "texts have no bytes"),
    ("block/autoescape", "nothing is escaped by itself"),
    ("filter/escape", "nothing is marked as escaped"),
    ("filter/web", "links and attributes of HTML are not written"),
    ("filter/wordwrap", "lines are not cut at hyphens"),
    ("block/generation-break", "`generation` is no call"),
    ("block/generation-caller", "`generation` is no call"),
    ("filter/unknown-in-dead-loop", "a filter is looked up when it is used"),
    ("filter/unknown-in-uncalled-macro", "a filter is looked up when it is used"),
];

/// Template, messages and settings in, text or refusal out, as transformers has them.
#[test]
fn chats_are_rendered_as_transformers_renders_them() {
    let golden = golden("templates");
    let now = golden["now"].as_str().unwrap().parse().unwrap();
    let empty = Map::new();
    let mut wrong = Vec::new();
    for case in list(&golden, "cases").unwrap() {
        let tokens = case["tokenizer"].as_str().unwrap_or("");
        let template = case["template"].as_str().unwrap();
        let model =
            tokenizer(&golden["templates"][template], &golden["tokenizers"][tokens]["config"]);
        let flag = |key: &str| case[key].as_bool().unwrap_or(false);
        let chat = Chat {
            messages: list(case, "messages").unwrap(),
            tools: list(case, "tools"),
            documents: list(case, "documents"),
            kwargs: Some(case["kwargs"].as_object().unwrap_or(&empty)),
            add_generation_prompt: flag("add_generation_prompt"),
            continue_final_message: match &case["continue_final_message"] {
                Json::String(field) if field.is_empty() => None,
                Json::String(field) => Some(field),
                other => (*other == true).then_some("content"),
            },
        };
        let rendered = model.render_chat_at(&chat, now);
        let name = case["name"].as_str().unwrap();
        if KNOWN.iter().any(|(known, _)| *known == name) {
            continue;
        }
        match (case["text"].as_str(), rendered) {
            (Some(expected), Ok(found)) if found == expected => {}
            (Some(expected), found) => {
                wrong.push(format!("{name}:\n  expected {expected:?}\n  found    {found:?}"));
            }
            (None, Ok(found)) => {
                let error = format!("{}: {}", case["error"], case["message"]);
                wrong.push(format!("{name}:\n  expected {error}\n  found    {found:?}"));
            }
            (None, Err(_)) => {}
        }
    }
    assert!(wrong.is_empty(), "{} cases differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// Files of Llama 3 say neither that a text begins with `<|begin_of_text|>` nor that a word of the vocabulary is not cut:
/// both follow from `pre`.
#[test]
fn files_of_llama_3_begin_and_keep_words() {
    let file = "tiny-f32.gguf";
    let bytes = std::fs::read(fixtures().join("gguf").join(file)).unwrap();
    let entries = entries(&bytes);
    let raw = &entries.iter().find(|(key, _)| key == "tokenizer.ggml.tokens").unwrap().1;
    let mut tokens: Vec<String> = Vec::new();
    let mut at = 16;
    while at < raw.len() {
        let len = u64::from_le_bytes(raw[at..at + 8].try_into().unwrap()) as usize;
        tokens.push(String::from_utf8(raw[at + 8..at + 8 + len].to_vec()).unwrap());
        at += 8 + len;
    }
    tokens[310] = "usit".to_owned();
    let types: Vec<i32> = (0..tokens.len()).map(|id| if id < 3 { 3 } else { 1 }).collect();
    let keys = serde_json::json!({
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": null,
        "tokenizer.ggml.add_space_prefix": null,
    });
    let scratch = changed(file, keys.as_object().unwrap());
    let tokenizer = Tokenizer::load(scratch.path()).unwrap();
    assert_eq!(tokenizer.encode("usit").unwrap(), [1, 310]);
    assert_eq!(tokenizer.encode("hello").unwrap(), [1, 293]);
    assert_eq!(tokenizer.encode_with("usit", false).unwrap(), [310]);
}
