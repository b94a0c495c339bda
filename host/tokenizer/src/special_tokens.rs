//! Special tokens by name, as chat templates of a model directory see them in transformers
//! (`_from_pretrained` of `tokenization_utils_base.py` and `AutoTokenizer`, version 5).

use std::collections::BTreeMap;

use serde_json::Value as Json;

/// A tokenizer class of transformers: the special tokens that it has where no file names them.
struct Class {
    /// The class without `Fast` at its end.
    name: &'static str,
    /// Names and texts of the tokens.
    tokens: &'static [(&'static str, &'static str)],
}

/// The class without special tokens of its own. Classes that are not in [`CLASSES`] count as it.
const PLAIN: &str = "TokenizersBackend";

/// Classes with special tokens of their own, by the signatures of their constructors.
static CLASSES: [Class; 6] = [
    Class {
        name: "LlamaTokenizer",
        tokens: &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
    },
    Class {
        name: "CodeLlamaTokenizer",
        tokens: &[
            ("bos_token", "<s>"),
            ("eos_token", "</s>"),
            ("unk_token", "<unk>"),
            ("prefix_token", "▁<PRE>"),
            ("middle_token", "▁<MID>"),
            ("suffix_token", "▁<SUF>"),
            ("eot_token", "▁<EOT>"),
            ("fill_token", "<FILL_ME>"),
        ],
    },
    Class {
        name: "GPT2Tokenizer",
        tokens: &[
            ("bos_token", "<|endoftext|>"),
            ("eos_token", "<|endoftext|>"),
            ("unk_token", "<|endoftext|>"),
        ],
    },
    Class {
        name: "GPTNeoXTokenizer",
        tokens: &[
            ("bos_token", "<|endoftext|>"),
            ("eos_token", "<|endoftext|>"),
            ("unk_token", "<|endoftext|>"),
            ("pad_token", "<|padding|>"),
        ],
    },
    Class {
        name: "Qwen2Tokenizer",
        tokens: &[
            ("eos_token", "<|endoftext|>"),
            ("unk_token", "<|endoftext|>"),
            ("pad_token", "<|endoftext|>"),
        ],
    },
    Class {
        name: "GemmaTokenizer",
        tokens: &[
            ("bos_token", "<bos>"),
            ("eos_token", "<eos>"),
            ("unk_token", "<unk>"),
            ("pad_token", "<pad>"),
            ("mask_token", "<mask>"),
        ],
    },
];

/// Names of the special tokens that any model may have; others are a model's own.
const COMMON: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The class that `AutoTokenizer` takes: the one that `tokenizer_config.json` or else `config.json`
/// declares, or else that of the model's family. Of some families the declared class never counts.
/// A declared `LlamaTokenizer` has no bytes for tokens, so a `tokenizer.json` with them is read by
/// the plain class.
pub(crate) fn class(config: &Json, model: &Json, tokenizer: &[u8]) -> &'static str {
    let declared = [config, model].into_iter().find_map(|file| file["tokenizer_class"].as_str());
    let declared = declared.map(|name| name.strip_suffix("Fast").unwrap_or(name));
    let is_byte_level = || {
        let mark = b"\"ByteLevel\"";
        tokenizer.windows(mark.len()).any(|window| window == mark)
    };
    let name = match (model["model_type"].as_str(), declared) {
        (Some("mistral" | "mixtral"), _) => PLAIN,
        (Some("qwen2"), _) => "Qwen2Tokenizer",
        (_, Some("LlamaTokenizer")) if is_byte_level() => PLAIN,
        (_, Some(name)) => name,
        (Some("qwen2_moe" | "qwen3" | "qwen3_moe"), None) => "Qwen2Tokenizer",
        (Some("gemma3_text"), None) => "GemmaTokenizer",
        (Some("olmoe"), None) => "GPTNeoXTokenizer",
        _ => PLAIN,
    };
    CLASSES.iter().find(|class| class.name == name).map_or(PLAIN, |class| class.name)
}

/// The special tokens of `tokenizer_config.json` and `special_tokens_map.json`, and those of the
/// class that neither names. The map counts only beside a configuration without
/// `added_tokens_decoder`, and then goes before it, but for a model's own tokens. A token that is
/// null is not there. `extra_special_tokens` by name go before all others.
pub(crate) fn read(config: &Json, map: &Json, class: &str) -> BTreeMap<String, String> {
    let class = CLASSES.iter().find(|found| found.name == class);
    let defaults = class.into_iter().flat_map(|class| class.tokens);
    let mut named: BTreeMap<&str, Option<&str>> =
        defaults.map(|&(name, text)| (name, Some(text))).collect();
    let map = Some(map).filter(|_| config.get("added_tokens_decoder").is_none());
    let config = Some(config);
    for (file, are_common) in [(config, true), (map, true), (map, false), (config, false)] {
        for (name, value) in file.and_then(Json::as_object).into_iter().flatten() {
            let is_read = name.ends_with("_token") && COMMON.contains(&name.as_str()) == are_common;
            let text = token_text(value);
            if is_read && (text.is_some() || value.is_null()) {
                named.insert(name, text);
            }
        }
    }
    for file in [config, map].into_iter().flatten() {
        for (name, value) in file["extra_special_tokens"].as_object().into_iter().flatten() {
            named.extend(token_text(value).map(|text| (name.as_str(), Some(text))));
        }
    }
    named.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?.to_owned()))).collect()
}

/// A special token's text: a text, or an object with `content`.
fn token_text(value: &Json) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// transformers 5.23 gave the values, loading such directories by `AutoTokenizer`.
#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The tokens as `name text` in the order of the alphabet.
    fn tokens(config: &Json, map: &Json, class: &str) -> String {
        let named = read(config, map, class);
        let named: Vec<String> =
            named.iter().map(|(name, text)| format!("{name} {text}")).collect();
        named.join(", ")
    }

    #[test]
    fn classes_are_those_that_auto_tokenizer_takes() {
        let bytes = br#"{"decoder": {"type": "ByteLevel"}}"#;
        for (declared, family, expected, plain_text) in [
            ("GPT2TokenizerFast", "llama", "GPT2Tokenizer", "GPT2Tokenizer"),
            ("GPT2TokenizerFast", "qwen2", "Qwen2Tokenizer", "Qwen2Tokenizer"),
            ("GPT2Tokenizer", "mistral", PLAIN, PLAIN),
            ("LlamaTokenizerFast", "llama", PLAIN, "LlamaTokenizer"),
            ("LlamaTokenizer", "qwen3", PLAIN, "LlamaTokenizer"),
            ("LlamaTokenizer", "mixtral", PLAIN, PLAIN),
            ("GPTNeoXTokenizerFast", "gemma3_text", "GPTNeoXTokenizer", "GPTNeoXTokenizer"),
            ("PreTrainedTokenizerFast", "qwen3", PLAIN, PLAIN),
            ("NopeTokenizer", "olmoe", PLAIN, PLAIN),
            ("", "olmoe", "GPTNeoXTokenizer", "GPTNeoXTokenizer"),
            ("", "qwen3_moe", "Qwen2Tokenizer", "Qwen2Tokenizer"),
            ("", "gemma3_text", "GemmaTokenizer", "GemmaTokenizer"),
            ("", "llama", PLAIN, PLAIN),
        ] {
            let model = json!({"model_type": family});
            let config = match declared {
                "" => Json::Null,
                declared => json!({"tokenizer_class": declared}),
            };
            assert_eq!(class(&config, &model, bytes), expected, "{declared} {family}");
            assert_eq!(class(&config, &model, b"{}"), plain_text, "{declared} {family}");
        }
        let model = json!({"model_type": "llama", "tokenizer_class": "GPT2Tokenizer"});
        assert_eq!(class(&json!({}), &model, bytes), "GPT2Tokenizer");
        assert_eq!(class(&Json::Null, &Json::Null, b""), PLAIN);
    }

    #[test]
    fn tokens_that_no_file_names_are_those_of_the_class() {
        let none = Json::Null;
        let end = "<|endoftext|>";
        for (class, expected) in [
            ("LlamaTokenizer", "bos_token <s>, eos_token </s>, unk_token <unk>".to_owned()),
            ("GPT2Tokenizer", format!("bos_token {end}, eos_token {end}, unk_token {end}")),
            ("Qwen2Tokenizer", format!("eos_token {end}, pad_token {end}, unk_token {end}")),
            (
                "GPTNeoXTokenizer",
                format!("bos_token {end}, eos_token {end}, pad_token <|padding|>, unk_token {end}"),
            ),
            (
                "GemmaTokenizer",
                "bos_token <bos>, eos_token <eos>, mask_token <mask>, pad_token <pad>, \
                 unk_token <unk>"
                    .to_owned(),
            ),
            (PLAIN, String::new()),
        ] {
            assert_eq!(tokens(&none, &none, class), expected);
        }
        let config = json!({"bos_token": "<c>", "pad_token": null, "add_bos_token": true});
        let expected = format!("bos_token <c>, eos_token {end}, unk_token {end}");
        assert_eq!(tokens(&config, &none, "Qwen2Tokenizer"), expected);
    }

    #[test]
    fn the_map_goes_before_a_configuration_without_a_decoder_of_added_tokens() {
        let mut config = json!({"bos_token": "<c>", "eos_token": "<ce>", "pad_token": "<cp>",
                                "image_token": "<ci>", "extra_special_tokens": {"x": "<x>"}});
        let map = json!({"bos_token": "<m>", "eos_token": null, "unk_token": {"content": "<u>"},
                         "image_token": "<mi>", "audio_token": "<ma>",
                         "extra_special_tokens": {"boi": "<b>"}});
        assert_eq!(
            tokens(&config, &map, PLAIN),
            "audio_token <ma>, boi <b>, bos_token <m>, image_token <ci>, pad_token <cp>, \
             unk_token <u>, x <x>"
        );
        config["added_tokens_decoder"] = json!({});
        assert_eq!(
            tokens(&config, &map, PLAIN),
            "bos_token <c>, eos_token <ce>, image_token <ci>, pad_token <cp>, x <x>"
        );
    }
}
