//! Tokenizers from GGUF metadata, in the form of a `tokenizer.json`.

use std::collections::HashMap;

use polyskill_model::gguf::{Header, Value};
use serde_json::{Value as Json, json};
use tokenizers::Tokenizer;

use super::{TextError, parse_tokenizer, unusable};

/// What SentencePiece writes for a blank.
const BLANK: &str = "\u{2581}";

/// Bytes of a piece that is still made of others; real ones are shorter, and cutting takes time squared.
const LONGEST_PIECE: usize = 256;

/// Builds the tokenizer of a model: byte-level BPE, or the BPE of SentencePiece.
pub(super) fn build(header: &Header, tokens: &[&str]) -> Result<Tokenizer, TextError> {
    let tokenizer = match text(header, "model").unwrap_or("missing") {
        "gpt2" => byte_level(header, tokens)?,
        "llama" => sentence_piece(header, tokens)?,
        other => {
            return Err(unusable(format!(
                "tokenizer.ggml.model `{other}` is not supported (supported: gpt2, llama)"
            )));
        }
    };
    parse_tokenizer(tokenizer.to_string().as_bytes())
        .map_err(|error| unusable(format!("tokenizer: {error}")))
}

/// Whether prompts begin with a token of their own where the file does not say.
pub(super) fn adds_bos_unless_told(header: &Header) -> bool {
    text(header, "model") == Some("llama")
}

/// A list of texts below `tokenizer.ggml`.
pub(super) fn texts<'a>(header: &'a Header, key: &str) -> Result<Vec<&'a str>, TextError> {
    let list = get(header, key).and_then(Value::as_list);
    let texts = list.and_then(|list| list.iter().map(Value::as_str).collect());
    texts.ok_or_else(|| {
        unusable(format!("`tokenizer.ggml.{key}` is missing or not a list of texts"))
    })
}

fn get<'a>(header: &'a Header, key: &str) -> Option<&'a Value> {
    header.metadata.get(&format!("tokenizer.ggml.{key}"))
}

fn text<'a>(header: &'a Header, key: &str) -> Option<&'a str> {
    get(header, key).and_then(Value::as_str)
}

fn byte_level(header: &Header, tokens: &[&str]) -> Result<Json, TextError> {
    const GPT2: &str =
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
    const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let mut normalizer = Json::Null;
    let splits = match text(header, "pre").unwrap_or("default") {
        "smollm" => vec![json!({"type": "Digits", "individual_digits": true}), split(GPT2), bytes],
        "default" | "gpt-2" | "gpt2" => vec![split(GPT2), bytes],
        "llama-bpe" | "llama3" => vec![split(LLAMA3), bytes],
        "qwen2" => {
            normalizer = json!({"type": "NFC"});
            vec![split(QWEN2), bytes]
        }
        other => {
            let supported = "smollm, gpt-2, llama-bpe, qwen2";
            return Err(unusable(format!(
                "tokenizer.ggml.pre `{other}` is not supported (supported: {supported})"
            )));
        }
    };
    let merges = texts(header, "merges")?;
    let merges: Vec<(&str, &str)> =
        merges.iter().filter_map(|merge| merge.split_once(' ')).collect();
    let vocab: serde_json::Map<String, Json> =
        tokens.iter().enumerate().map(|(id, text)| ((*text).to_owned(), json!(id))).collect();
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": normalizer,
        "added_tokens": added(header, tokens),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "ignore_merges": false, "vocab": vocab, "merges": merges},
    }))
}

/// SentencePiece's BPE: the file has a vocabulary with scores, and the merges follow from them.
fn sentence_piece(header: &Header, tokens: &[&str]) -> Result<Json, TextError> {
    let architecture = header.metadata.get("general.architecture").and_then(Value::as_str);
    let is_gemma = architecture.is_some_and(|name| name.starts_with("gemma"));
    // Runs of blanks stand in these files as they are, all other blanks as SentencePiece writes them.
    let spelled =
        |text: &&str| match is_gemma && text.len() > 1 && text.trim_matches(' ').is_empty() {
            true => BLANK.repeat(text.len()),
            false => (*text).to_owned(),
        };
    let pieces: Vec<String> = tokens.iter().map(spelled).collect();
    let scores: Vec<f64> = match is_gemma {
        // Gemma's scores do not order its merges; its vocabulary does.
        true => (0..pieces.len()).map(|id| -(id as f64)).collect(),
        false => {
            let list = get(header, "scores").and_then(Value::as_list);
            let scores: Option<Vec<f64>> =
                list.and_then(|list| list.iter().map(Value::as_f64).collect());
            scores
                .filter(|scores| {
                    scores.len() == pieces.len() && scores.iter().all(|s| s.is_finite())
                })
                .ok_or_else(|| {
                    unusable("`tokenizer.ggml.scores` is missing or not a number per token")
                })?
        }
    };
    let merges = merges_of(&pieces, &scores);
    let vocab: serde_json::Map<String, Json> =
        pieces.iter().enumerate().map(|(id, text)| (text.clone(), json!(id))).collect();
    let unknown = get(header, "unknown_token_id").and_then(Value::as_u64);
    let unknown = unknown.and_then(|id| pieces.get(id as usize));
    let prefix = get(header, "add_space_prefix").and_then(Value::as_bool).unwrap_or(!is_gemma);
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": BLANK}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": added(header, tokens),
        "pre_tokenizer": {"type": "Metaspace", "replacement": BLANK, "split": false,
                          "prepend_scheme": if prefix { "first" } else { "never" }},
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
                  "ignore_merges": false, "vocab": vocab, "merges": merges},
    }))
}

/// Every way to make a piece of two others; pieces of high scores first, and of one piece's ways those with the
/// longer left part.
fn merges_of<'a>(pieces: &'a [String], scores: &[f64]) -> Vec<(&'a str, &'a str)> {
    let known: HashMap<&str, usize> =
        pieces.iter().enumerate().map(|(id, text)| (text.as_str(), id)).collect();
    let mut found: Vec<(usize, &str, &str)> = Vec::new();
    for (id, piece) in pieces.iter().enumerate().filter(|(_, piece)| piece.len() <= LONGEST_PIECE) {
        let cuts = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        found.extend(
            cuts.filter(|(left, right)| known.contains_key(left) && known.contains_key(right))
                .map(|(left, right)| (id, left, right)),
        );
    }
    found.sort_by(|a, b| {
        let by_score = scores[b.0].total_cmp(&scores[a.0]);
        by_score.then(b.1.chars().count().cmp(&a.1.chars().count()))
    });
    found.into_iter().map(|(_, left, right)| (left, right)).collect()
}

/// Tokens that are looked for in the text before anything else.
fn added(header: &Header, tokens: &[&str]) -> Vec<Json> {
    let types = get(header, "token_type").and_then(Value::as_list).unwrap_or_default();
    tokens
        .iter()
        .enumerate()
        .filter_map(|(id, text)| {
            let kind = types.get(id).and_then(Value::as_u64)?;
            // ggml's token types: 3 is a control token, 4 was added by the user.
            let special = match kind {
                3 => true,
                4 if !text.trim_matches(' ').is_empty() => false,
                _ => return None,
            };
            Some(json!({"id": id, "content": text, "special": special, "normalized": false,
                        "lstrip": false, "rstrip": false, "single_word": false}))
        })
        .collect()
}
