//! Tokenizers out of GGUF metadata, which give the ids that llama.cpp gives (`llama-vocab.cpp`, October 2026).
//!
//! A text is first cut at special tokens; what is left is split and merged as the file's model says: byte-level BPE
//! after the regular expressions of `tokenizer.ggml.pre`, or SentencePiece's merging by scores.

mod partition;
mod pre_tokenizers;
mod sentence_piece;

use std::collections::HashSet;

use polyskill_model::gguf::{Header, Value};
use serde_json::{Value as Json, json};
use tokenizers::Tokenizer as Inner;

use crate::vocabulary::Vocabulary;
use crate::{TokenizerError, parse_tokenizer, unusable};
use partition::{Blanks, Fragment, Partition};
use sentence_piece::SentencePiece;

/// Names of tokens that end a generation, whatever the metadata says. llama.cpp's list of texts
/// that make a token an end of generation (`special_eog_ids`).
const END_NAMES: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Names of tokens for filling in the middle: none of them is text. Prefix, suffix and middle marks
/// of the models that llama.cpp knows.
const FILL_NAMES: [&str; 21] = [
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|code_middle|>",
];

/// Names of tokens that end a piece of a file that is filled in, and so a generation, where the key
/// does not say which token it is. Pairs of the key and its names.
const FILL_END_NAMES: [(&str, &[&str]); 3] = [
    ("fim_pad_token_id", &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"]),
    ("fim_rep_token_id", &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"]),
    ("fim_sep_token_id", &["<|file_sep|>"]),
];

/// Names of tokens that are shown, though their files call them control tokens. They frame the
/// parts of an answer in OpenAI's harmony format, which a reader of the text needs.
const SHOWN_NAMES: [&str; 4] = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// A token's type in GGUF. SentencePiece had the same numbers before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenType {
    /// Plain text.
    Normal,
    /// The token for what the vocabulary cannot spell.
    Unknown,
    /// A mark that texts leave out, such as a beginning or an end.
    Control,
    /// A token that is found before anything else, and is shown.
    UserDefined,
    /// A place without a text.
    Unused,
    /// A single byte, spelled `<0x0A>`.
    Byte,
    /// Any other number.
    Undefined,
}

impl TokenType {
    /// The type of a number, counted from 1.
    fn of(number: u64) -> Self {
        match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Undefined,
        }
    }

    /// True where it is looked for in a text before anything else. Such tokens make up the
    /// [`Partition`].
    fn is_special(self) -> bool {
        matches!(self, Self::Control | Self::UserDefined | Self::Unknown)
    }
}

/// A tokenizer of a GGUF file.
#[derive(Debug)]
pub(crate) struct GgufTokenizer {
    /// Cuts a text at special tokens, first of all.
    partition: Partition,
    /// Splits and merges what is between them.
    model: Model,
    /// The beginning token, put before a prompt where `adds_bos` says so.
    bos: Option<u32>,
    /// The end token, put behind a prompt where `adds_eos` says so.
    eos: Option<u32>,
    /// `add_bos_token`, else the default of the model or its pre-tokenizer.
    adds_bos: bool,
    /// `add_eos_token`, else false.
    adds_eos: bool,
}

/// The kinds of `tokenizer.ggml.model` that are supported: `gpt2` and `llama`.
#[derive(Debug)]
enum Model {
    /// Byte-level BPE behind splits by regular expressions.
    Bpe(Box<Inner>),
    /// Merges by scores, without a split before.
    SentencePiece(SentencePiece),
}

/// A GGUF file's tokenizer and what else its metadata says of text.
pub(crate) struct GgufText {
    /// The way from text to ids.
    pub(crate) tokenizer: GgufTokenizer,
    /// The way from ids to bytes.
    pub(crate) vocabulary: Vocabulary,
    /// Tokens that end a generation. Each once; those that keys name come first.
    pub(crate) ends: Vec<u32>,
    /// `bos_token` and the like. Names as in `tokenizer_config.json`, with the tokens' texts, for
    /// chat templates.
    pub(crate) special: Vec<(&'static str, String)>,
}

/// Defaults of a file whose keys are missing. They are llama.cpp's for the kind of vocabulary.
struct Defaults {
    /// Id of the beginning token.
    bos: Option<u64>,
    /// Id of the end token.
    eos: Option<u64>,
    /// Id of the token for what cannot be spelled.
    unknown: Option<u64>,
    /// True where prompts begin with the beginning token.
    adds_bos: bool,
}

/// Reads the tokenizer of a file. An id of a key that lies beyond the vocabulary is dropped in
/// favour of the default, as in llama.cpp. `add_space_prefix` is true where it is missing, and then
/// the first blank of a text is stripped again.
///
/// # Errors
/// If its kind is not known, or its metadata is not of the form that the kind has.
pub(crate) fn read(header: &Header) -> Result<GgufText, TokenizerError> {
    let tokens = texts(header, "tokens")?;
    let mut types = types(header, tokens.len())?;
    let fills = fill_ends(header);
    retype(&tokens, &fills, &mut types);
    let kind = text(header, "model").unwrap_or("missing");
    let (model, defaults, strips_first_blank) = match kind {
        "gpt2" => {
            let pre = pre_tokenizers::find(text(header, "pre").unwrap_or_default())?;
            let bpe = byte_level(header, &tokens, &pre)?;
            let defaults =
                Defaults { bos: Some(11), eos: Some(11), unknown: None, adds_bos: pre.adds_bos };
            (Model::Bpe(Box::new(bpe)), defaults, false)
        }
        "llama" => {
            let prefix = flag(header, "add_space_prefix")?.unwrap_or(true);
            let scores = scores(header, tokens.len())?;
            let model = SentencePiece::new(&tokens, scores, prefix);
            let defaults =
                Defaults { bos: Some(1), eos: Some(2), unknown: Some(0), adds_bos: true };
            (Model::SentencePiece(model), defaults, prefix)
        }
        other => {
            return Err(unusable(format!(
                "tokenizer.ggml.model `{other}` is not supported (supported: gpt2, llama)"
            )));
        }
    };
    let is_bpe = matches!(model, Model::Bpe(_));
    let id = |key: &str, default: Option<u64>| {
        let given = get(header, key).and_then(Value::as_u64);
        let known = |id: &u64| usize::try_from(*id).is_ok_and(|id| id < tokens.len());
        given.filter(known).or(default.filter(known)).map(|id| id as u32)
    };
    let (bos, eos) = (id("bos_token_id", defaults.bos), id("eos_token_id", defaults.eos));
    let named = [
        ("bos_token", bos),
        ("eos_token", eos),
        ("unk_token", id("unknown_token_id", defaults.unknown)),
        ("pad_token", id("padding_token_id", None)),
        ("sep_token", id("seperator_token_id", None)),
        ("mask_token", id("mask_token_id", None)),
    ];
    let spelled =
        |(name, id): (&'static str, Option<u32>)| Some((name, tokens[id? as usize].to_owned()));
    let tokenizer = GgufTokenizer {
        partition: Partition::new(&tokens, &types, blanks(header)),
        model,
        bos,
        eos,
        adds_bos: flag(header, "add_bos_token")?.unwrap_or(defaults.adds_bos),
        adds_eos: flag(header, "add_eos_token")?.unwrap_or(false),
    };
    Ok(GgufText {
        tokenizer,
        vocabulary: Vocabulary::of_gguf(&tokens, &types, is_bpe, strips_first_blank)?,
        ends: ends(header, &fills, &tokens, eos),
        special: named.into_iter().filter_map(spelled).collect(),
    })
}

impl GgufTokenizer {
    /// Token ids of a text. `with_special` puts the beginning and end tokens around it, where the
    /// file adds them. Special tokens that the text spells are found in any case.
    pub(crate) fn encode(
        &self,
        text: &str,
        with_special: bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::new();
        ids.extend(self.bos.filter(|_| with_special && self.adds_bos));
        let mut behind_special = true;
        for fragment in self.partition.cut(text) {
            match (fragment, &self.model) {
                (Fragment::Token(id), _) => ids.push(id),
                (Fragment::Text(text), Model::Bpe(bpe)) => {
                    let encoding = bpe.encode_fast(text, false).map_err(unusable)?;
                    ids.extend_from_slice(encoding.get_ids());
                }
                (Fragment::Text(text), Model::SentencePiece(model)) => {
                    model.encode(text, behind_special, &mut ids);
                }
            }
            behind_special = matches!(fragment, Fragment::Token(_));
        }
        ids.extend(self.eos.filter(|_| with_special && self.adds_eos));
        Ok(ids)
    }
}

/// A list of texts below `tokenizer.ggml`.
fn texts<'a>(header: &'a Header, key: &str) -> Result<Vec<&'a str>, TokenizerError> {
    let list = get(header, key).and_then(Value::as_list);
    let texts = list.and_then(|list| list.iter().map(Value::as_str).collect());
    texts.ok_or_else(|| {
        unusable(format!("`tokenizer.ggml.{key}` is missing or not a list of texts"))
    })
}

/// A value of the metadata below `tokenizer.ggml`.
fn get<'a>(header: &'a Header, key: &str) -> Option<&'a Value> {
    header.metadata.get(&format!("tokenizer.ggml.{key}"))
}

/// A text below `tokenizer.ggml`; `None` where it is missing or no text.
fn text<'a>(header: &'a Header, key: &str) -> Option<&'a str> {
    get(header, key).and_then(Value::as_str)
}

/// A flag below `tokenizer.ggml`; `None` where it is missing, an error where it is no flag.
fn flag(header: &Header, key: &str) -> Result<Option<bool>, TokenizerError> {
    let Some(value) = get(header, key) else { return Ok(None) };
    let flag = value.as_bool();
    flag.map(Some).ok_or_else(|| unusable(format!("`tokenizer.ggml.{key}` is not true or false")))
}

/// The type of each token; all are normal without the key. A list that is longer than the
/// vocabulary is accepted.
fn types(header: &Header, count: usize) -> Result<Vec<TokenType>, TokenizerError> {
    let Some(value) = get(header, "token_type") else { return Ok(vec![TokenType::Normal; count]) };
    let types = value.as_list().map(|list| {
        list.iter().map(|kind| TokenType::of(kind.as_u64().unwrap_or(0))).collect::<Vec<_>>()
    });
    let wrong = || unusable("`tokenizer.ggml.token_type` is not a number per token");
    types.filter(|types| types.len() >= count).ok_or_else(wrong)
}

/// The score of each token, the logarithm of a probability in SentencePiece; 0 without the key. NaN
/// is refused, as merges are ordered by scores.
fn scores(header: &Header, count: usize) -> Result<Vec<f32>, TokenizerError> {
    let Some(value) = get(header, "scores") else { return Ok(vec![0.0; count]) };
    let list = value.as_list();
    let scores: Option<Vec<f32>> =
        list.and_then(|list| list.iter().map(|score| Some(score.as_f64()? as f32)).collect());
    let is_fit = |scores: &Vec<f32>| scores.len() >= count && !scores.iter().any(|s| s.is_nan());
    scores
        .filter(is_fit)
        .ok_or_else(|| unusable("`tokenizer.ggml.scores` is not a number per token"))
}

/// Names that end a piece that is filled in, in a file that names no tokens for it. A key that is
/// there, whatever its value, takes its names out of the list.
fn fill_ends(header: &Header) -> Vec<&'static str> {
    let unnamed = FILL_END_NAMES.iter().filter(|(key, _)| get(header, key).is_none());
    unnamed.flat_map(|(_, names)| names.iter().copied()).collect()
}

/// Types that follow from a token's name, whatever the file says. As llama.cpp corrects files on
/// loading: end and fill names are control tokens, parts of the harmony format are shown, and
/// `</s>` is plain text for models that end by other tokens.
fn retype(tokens: &[&str], fills: &[&str], types: &mut [TokenType]) {
    let names: HashSet<&str> = tokens.iter().copied().collect();
    let has = |name: &str| names.contains(name);
    for (token, kind) in tokens.iter().zip(types.iter_mut()) {
        if [&END_NAMES[..], &FILL_NAMES, fills].iter().any(|names| names.contains(token)) {
            *kind = TokenType::Control;
        }
        if SHOWN_NAMES.contains(token) || (*token == "<|end|>" && is_harmony(&has)) {
            *kind = TokenType::UserDefined;
        }
        if *token == "</s>" && (has("<|tool_response>") || has("<|plamo:eos|>")) {
            *kind = TokenType::Normal;
        }
    }
}

/// True where `<|end|>` ends a part of an answer only. True for a vocabulary with the marks of
/// OpenAI's harmony format: a call, and a return or a flush.
fn is_harmony(has: &impl Fn(&str) -> bool) -> bool {
    let calls = has("<|call|>") || has("<|calls|>");
    calls && (has("<|return|>") || has("<|flush|>"))
}

/// Tokens that end a generation: `eos`, those that the metadata names, and those of known names. In
/// the order in which they are found. `eos` is the default where the metadata names none. A name
/// that the vocabulary uses for a part of an answer, such as harmony's `<|end|>`, is left out
/// unless a key names it.
fn ends(header: &Header, fills: &[&str], tokens: &[&str], eos: Option<u32>) -> Vec<u32> {
    let names: HashSet<&str> = tokens.iter().copied().collect();
    let has = |name: &str| names.contains(name);
    let keys = [
        "eot_token_id",
        "eom_token_id",
        "fim_pad_token_id",
        "fim_rep_token_id",
        "fim_sep_token_id",
    ];
    let keys = keys.iter().filter_map(|key| u32::try_from(get(header, key)?.as_u64()?).ok());
    let mut ends: Vec<u32> = Vec::new();
    for id in eos.into_iter().chain(keys.filter(|&id| (id as usize) < tokens.len())) {
        if !ends.contains(&id) {
            ends.push(id);
        }
    }
    for (id, token) in (0..).zip(tokens) {
        let is_part = (*token == "<|end|>" && is_harmony(&has))
            || (*token == "</s>" && (has("<|tool_response>") || has("<|plamo:eos|>")));
        let is_end = END_NAMES.contains(token) || fills.contains(token);
        if is_end && !is_part && !ends.contains(&id) {
            ends.push(id);
        }
    }
    ends
}

/// The blanks that belong to special tokens, by `general.name` and `tokenizer.ggml.pre`, as in
/// llama.cpp.
fn blanks(header: &Header) -> Blanks {
    let name = header.metadata.get("general.name").and_then(Value::as_str).unwrap_or_default();
    let name = name.to_lowercase();
    let pre = text(header, "pre").unwrap_or_default();
    Blanks {
        behind: name.contains("phi-3") || name.contains("phi3"),
        before_mask: pre.starts_with("jina-v2-"),
    }
}

/// Builds byte-level BPE as a `tokenizer.json` in memory: no normaliser, the split's expressions in
/// a row, then GPT-2's spelling of bytes. Special tokens are not part of it, as [`Partition`] cuts
/// at them before. Of equal merges the first counts; a merge is cut at its first blank behind the
/// first byte.
///
/// Merges whose parts or product are no tokens of the vocabulary are dropped, as the library knows
/// none. llama.cpp applies them, and spells what is no token in the end by its bytes, so that a
/// file with such merges has other ids there for the texts that they touch. Converters write no
/// such files.
fn byte_level(
    header: &Header,
    tokens: &[&str],
    pre: &pre_tokenizers::PreTokenizer,
) -> Result<Inner, TokenizerError> {
    let known: HashSet<&str> = tokens.iter().copied().collect();
    let merges = texts(header, "merges")?;
    let cut = |merge: &str| {
        let at = merge.bytes().skip(1).position(|byte| byte == b' ')? + 1;
        let (left, right) = (merge.get(..at)?, merge.get(at + 1..)?);
        Some((left.to_owned(), right.to_owned()))
    };
    let mut seen = HashSet::new();
    let merges: Vec<(String, String)> = merges
        .iter()
        .filter(|merge| seen.insert(**merge))
        .filter_map(|merge| cut(merge))
        .filter(|(left, right)| {
            // The library refuses a file with merges of what is no token.
            let product = [left.as_str(), right.as_str()].concat();
            known.contains(left.as_str())
                && known.contains(right.as_str())
                && known.contains(product.as_str())
        })
        .collect();
    let vocab: serde_json::Map<String, Json> =
        tokens.iter().enumerate().map(|(id, text)| ((*text).to_owned(), json!(id))).collect();
    let split = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let mut splits: Vec<Json> = pre.patterns.iter().map(split).collect();
    splits.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}));
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "added_tokens": [],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits},
        "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "ignore_merges": pre.ignores_merges, "vocab": vocab, "merges": merges},
    });
    parse_tokenizer(tokenizer.to_string().as_bytes())
        .map_err(|error| unusable(format!("tokenizer: {error}")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A header with entries below `tokenizer.ggml`.
    fn header(entries: &[(&str, Value)]) -> Header {
        let named = |(key, value): &(&str, Value)| (format!("tokenizer.ggml.{key}"), value.clone());
        Header { metadata: entries.iter().map(named).collect(), tensors: BTreeMap::new() }
    }

    #[test]
    fn a_file_without_an_end_has_that_of_its_model() {
        let mut tokens: Vec<Value> = (0..20).map(|id| Value::Text(format!("t{id}"))).collect();
        tokens[15] = Value::Text("<|im_end|>".to_owned());
        let list = |texts: &[&str]| {
            Value::List(texts.iter().map(|text| Value::Text((*text).to_owned())).collect())
        };
        let ends = |model: &str, more: &[(&str, Value)]| {
            let mut entries = vec![
                ("model", Value::Text(model.to_owned())),
                ("tokens", Value::List(tokens.clone())),
                ("merges", list(&[])),
            ];
            entries.extend_from_slice(more);
            read(&header(&entries)).unwrap().ends
        };
        assert_eq!(ends("gpt2", &[]), [11, 15]);
        assert_eq!(ends("llama", &[]), [2, 15]);
        let id = |key, id| (key, Value::Unsigned(id));
        assert_eq!(ends("llama", &[id("eos_token_id", 7), id("eot_token_id", 7)]), [7, 15]);
        // As for other names of tokens, an id beyond the vocabulary counts as none.
        assert_eq!(ends("llama", &[id("eos_token_id", 20), id("eom_token_id", 20)]), [2, 15]);
    }
}
