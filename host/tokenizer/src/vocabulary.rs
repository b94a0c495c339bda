//! The bytes of every token: the one place where a token becomes text.
//!
//! A tokenizer's decoder is a chain of steps over the pieces of a whole sequence. Nearly all of them act on one piece
//! at a time, so that each token has bytes of its own, and a sequence's text is its tokens' bytes in a row. What is
//! left is the blank that SentencePiece puts before a text and takes away again: [`Vocabulary::strips_first_blank`].

use std::collections::HashMap;

use serde_json::Value as Json;
use tokenizers::Tokenizer as Inner;

use crate::TokenizerError;
use crate::gguf::TokenType;

/// Bytes of all tokens. All bytes lie in one buffer, of which every token has a range.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    /// Entries by id; ids may have gaps.
    tokens: HashMap<u32, Entry>,
    /// The tokens' bytes in a row.
    bytes: Vec<u8>,
    /// Bytes of the longest token.
    longest: usize,
    /// One more than the largest id.
    num_ids: u32,
    /// See [`Vocabulary::strips_first_blank`].
    strips_first_blank: bool,
    /// Texts of special tokens. In no order, for the search of stop strings.
    special_texts: Vec<String>,
}

/// One token.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// First byte in the buffer.
    start: u32,
    /// Number of bytes.
    len: u32,
    /// True for a token that texts leave out.
    is_special: bool,
}

impl Vocabulary {
    /// Reads the bytes of all tokens off a tokenizer. Added tokens keep their spelling under a
    /// byte-level decoder. Special are those that the file marks so.
    ///
    /// # Errors
    /// If its decoder has a step whose result for a token depends on the tokens around it.
    pub(crate) fn new(tokenizer: &Inner) -> Result<Self, TokenizerError> {
        let decoder = serde_json::to_value(tokenizer.get_decoder());
        let decoder = decoder.map_err(|error| crate::unusable(format!("decoder: {error}")))?;
        let decoder = Decoder::read(&decoder)?;
        let added = tokenizer.get_added_tokens_decoder();
        let mut vocabulary = Self::empty(decoder.strips_first_blank);
        for (piece, id) in tokenizer.get_vocab(true) {
            let is_added = added.contains_key(&id);
            let is_special = added.get(&id).is_some_and(|token| token.special);
            vocabulary.insert(id, &decoder.bytes(&piece, is_added), is_special)?;
        }
        Ok(vocabulary)
    }

    /// The bytes of a GGUF file's tokens, as llama.cpp writes them. `tokens` and `types` go by id.
    /// Control, unknown and user-defined tokens are spelled as they are; normal ones by GPT-2's
    /// bytes or with `▁` for a blank.
    ///
    /// # Errors
    /// If they are too many.
    pub(crate) fn of_gguf(
        tokens: &[&str],
        types: &[TokenType],
        is_byte_level: bool,
        strips_first_blank: bool,
    ) -> Result<Self, TokenizerError> {
        let mut vocabulary = Self::empty(strips_first_blank);
        for ((id, piece), kind) in (0..).zip(tokens).zip(types) {
            let bytes = match kind {
                TokenType::Control | TokenType::Unknown | TokenType::UserDefined => {
                    piece.as_bytes().to_vec()
                }
                TokenType::Byte => fallback_byte(piece).into_iter().collect(),
                TokenType::Normal if is_byte_level => {
                    let bytes: Option<Vec<u8>> = piece.chars().map(byte_of).collect();
                    bytes.unwrap_or_else(|| piece.as_bytes().to_vec())
                }
                TokenType::Normal => piece.replace('\u{2581}', " ").into_bytes(),
                TokenType::Unused | TokenType::Undefined => Vec::new(),
            };
            let is_special = matches!(kind, TokenType::Control | TokenType::Unknown);
            vocabulary.insert(id, &bytes, is_special)?;
        }
        Ok(vocabulary)
    }

    /// A vocabulary without tokens.
    fn empty(strips_first_blank: bool) -> Self {
        Self {
            tokens: HashMap::new(),
            bytes: Vec::new(),
            longest: 1,
            num_ids: 0,
            strips_first_blank,
            special_texts: Vec::new(),
        }
    }

    /// Adds a token. The buffer is at most 4 GiB, as its places are 32 bits wide.
    fn insert(&mut self, id: u32, bytes: &[u8], is_special: bool) -> Result<(), TokenizerError> {
        let too_large = || crate::unusable("the vocabulary's texts have more than 4 GiB");
        let start = u32::try_from(self.bytes.len()).map_err(|_| too_large())?;
        let len = u32::try_from(bytes.len()).map_err(|_| too_large())?;
        if is_special && !bytes.is_empty() {
            self.special_texts.push(String::from_utf8_lossy(bytes).into_owned());
        }
        self.bytes.extend_from_slice(bytes);
        self.longest = self.longest.max(bytes.len());
        self.num_ids = self.num_ids.max(id.saturating_add(1));
        self.tokens.insert(id, Entry { start, len, is_special });
        Ok(())
    }

    /// The bytes that a token adds to a text; none for ids that stand for nothing.
    pub(crate) fn bytes(&self, token: u32) -> &[u8] {
        let entry = self.tokens.get(&token);
        entry.map_or(&[], |entry| {
            let start = entry.start as usize;
            &self.bytes[start..start + entry.len as usize]
        })
    }

    /// Bytes of the longest token, 1 at least.
    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    /// One more than the largest id; ids below may have gaps.
    pub(crate) fn num_ids(&self) -> u32 {
        self.num_ids
    }

    /// True for a token that steers the model rather than says something, so that texts leave it out.
    pub(crate) fn is_special(&self, token: u32) -> bool {
        self.tokens.get(&token).is_some_and(|entry| entry.is_special)
    }

    /// True where the text of a whole sequence lacks the blank that its first token begins with.
    pub(crate) fn strips_first_blank(&self) -> bool {
        self.strips_first_blank
    }

    /// Texts of special tokens.
    pub(crate) fn special_texts(&self) -> &[String] {
        &self.special_texts
    }
}

/// A tokenizer's decoder, for one token. Only decoders whose steps act on each piece by itself can
/// be read into it.
struct Decoder {
    /// The steps in their order.
    steps: Vec<Step>,
    /// True where the decoder takes a blank from the front of the whole text.
    strips_first_blank: bool,
}

/// One step of a decoder, as `tokenizers` names it.
enum Step {
    /// Each character stands for a byte, as in GPT-2.
    ByteLevel,
    /// `<0x0A>` is a byte.
    ByteFallback,
    /// A text that is replaced everywhere in a piece, and its replacement.
    Replace(String, String),
    /// Characters that are taken off both ends of each piece. As many as are there, and no more
    /// than `start` in front and `stop` behind.
    Strip {
        /// The character.
        content: char,
        /// Most characters in front.
        start: usize,
        /// Most characters behind.
        stop: usize,
    },
    /// A blank before each piece.
    Prepend,
    /// BERT's pieces: one with the prefix continues a word, and any other begins one with a blank.
    WordPiece {
        /// The mark of a continuation, `##` mostly.
        prefix: String,
        /// Takes blanks before punctuation away.
        cleanup: bool,
    },
}

impl Decoder {
    /// Reads the decoder of a `tokenizer.json`: one step, or a sequence of them. Without a decoder
    /// `tokenizers` joins pieces by blanks.
    fn read(decoder: &Json) -> Result<Self, TokenizerError> {
        let mut read = Self { steps: Vec::new(), strips_first_blank: false };
        if decoder.is_null() {
            // Without a decoder pieces are joined by blanks.
            read.steps.push(Step::Prepend);
            read.strips_first_blank = true;
            return Ok(read);
        }
        let steps = match decoder["type"].as_str() {
            Some("Sequence") => decoder["decoders"].as_array().cloned().unwrap_or_default(),
            _ => vec![decoder.clone()],
        };
        let mut is_fused = false;
        for step in &steps {
            read.step(step, &mut is_fused)?;
        }
        Ok(read)
    }

    /// Adds a step. Behind `Fuse` all pieces are one text, so that `Strip` may take one blank from
    /// the front alone. `Replace` by a regular expression, and steps that look at neighbours, are
    /// refused.
    fn step(&mut self, step: &Json, is_fused: &mut bool) -> Result<(), TokenizerError> {
        let text = |key: &str| step[key].as_str().unwrap_or_default().to_owned();
        let count = |key: &str| step[key].as_u64().unwrap_or(0) as usize;
        match step["type"].as_str().unwrap_or_default() {
            "ByteLevel" => self.steps.push(Step::ByteLevel),
            "ByteFallback" => self.steps.push(Step::ByteFallback),
            "Fuse" => *is_fused = true,
            "Replace" => match step["pattern"]["String"].as_str() {
                Some(pattern) if !pattern.is_empty() => {
                    self.steps.push(Step::Replace(pattern.to_owned(), text("content")));
                }
                _ => return Err(crate::unusable("decoder: `Replace` by an expression")),
            },
            "Strip" if *is_fused => {
                let content = text("content");
                if content != " " || count("start") > 1 || count("stop") > 0 {
                    return Err(crate::unusable(
                        "decoder: `Strip` of more than one blank before a text",
                    ));
                }
                self.strips_first_blank |= count("start") == 1;
            }
            "Strip" => self.steps.push(Step::Strip {
                content: text("content").chars().next().unwrap_or(' '),
                start: count("start"),
                stop: count("stop"),
            }),
            "Metaspace" => {
                self.steps.push(Step::Replace(text("replacement"), " ".to_owned()));
                self.strips_first_blank |= step["prepend_scheme"] != "never";
            }
            "WordPiece" => {
                let cleanup = step["cleanup"].as_bool().unwrap_or(true);
                self.steps.push(Step::WordPiece { prefix: text("prefix"), cleanup });
                self.strips_first_blank = true;
            }
            "BPEDecoder" => self.steps.push(Step::Replace(text("suffix"), " ".to_owned())),
            other => return Err(crate::unusable(format!("decoder: `{other}` is not supported"))),
        }
        Ok(())
    }

    /// The bytes of a piece. Applies the steps in order; `ByteLevel` and a byte of `ByteFallback`
    /// end the chain. `is_added` tells an added token.
    fn bytes(&self, piece: &str, is_added: bool) -> Vec<u8> {
        let mut text = piece.to_owned();
        for step in &self.steps {
            match step {
                // Added tokens are spelled as they are.
                Step::ByteLevel if is_added && !text.is_ascii() => return text.into_bytes(),
                Step::ByteLevel => {
                    let bytes: Option<Vec<u8>> = text.chars().map(byte_of).collect();
                    return bytes.unwrap_or_else(|| text.into_bytes());
                }
                Step::ByteFallback => {
                    if let Some(byte) = fallback_byte(&text) {
                        return vec![byte];
                    }
                }
                Step::Replace(from, to) => text = text.replace(from.as_str(), to),
                Step::Strip { content, start, stop } => {
                    text = stripped(&text, *content, *start, *stop)
                }
                Step::Prepend => text.insert(0, ' '),
                Step::WordPiece { prefix, cleanup } => {
                    text = match text.strip_prefix(prefix.as_str()) {
                        Some(rest) if !prefix.is_empty() => rest.to_owned(),
                        _ => format!(" {text}"),
                    };
                    if *cleanup {
                        text = cleaned(&text);
                    }
                }
            }
        }
        text.into_bytes()
    }
}

/// A byte in the spelling of SentencePiece. `<0x0A>`, with two hexadecimal digits.
fn fallback_byte(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// The byte that GPT-2 spells as a character: printable Latin-1 as it is, the others from U+0100
/// on. The inverse of `bytes_to_unicode` in GPT-2's encoder. `None` for a character that spells no
/// byte.
fn byte_of(c: char) -> Option<u8> {
    let code = u32::from(c);
    let is_plain = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if is_plain(code) {
        return Some(code as u8);
    }
    let at = code.checked_sub(0x100)?;
    let others = (0..=0xff_u32).filter(|&byte| !is_plain(byte));
    others.into_iter().nth(at as usize).map(|byte| byte as u8)
}

/// The text without up to `start` times `content` in front and up to `stop` times behind.
fn stripped(text: &str, content: char, start: usize, stop: usize) -> String {
    let leading = text.chars().take(start).take_while(|&c| c == content).count();
    let text: String = text.chars().skip(leading).collect();
    let trailing = text.chars().rev().take(stop).take_while(|&c| c == content).count();
    let len = text.chars().count() - trailing;
    text.chars().take(len).collect()
}

/// WordPiece's clean-up of blanks before punctuation. The pairs are those of `cleanup` in
/// `tokenizers`, replaced one after another.
fn cleaned(text: &str) -> String {
    let pairs = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" do not", " don't"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    pairs.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn characters_of_gpt_2_are_bytes() {
        assert_eq!(byte_of('a'), Some(b'a'));
        assert_eq!(byte_of('\u{120}'), Some(b' '));
        assert_eq!(byte_of('\u{10a}'), Some(b'\n'));
        assert_eq!(byte_of('\u{c3}'), Some(0xc3));
        assert_eq!(byte_of('\u{143}'), Some(0xad));
        assert_eq!((byte_of('\u{144}'), byte_of(' ')), (None, None));
    }

    #[test]
    fn ids_are_counted_up_to_the_largest() {
        let types = [TokenType::Control, TokenType::Normal];
        let vocabulary = Vocabulary::of_gguf(&["<s>", "a"], &types, true, false).unwrap();
        assert_eq!(
            (vocabulary.num_ids(), vocabulary.bytes(1), vocabulary.bytes(2)),
            (2, &b"a"[..], &b""[..])
        );
        let mut gaps = Vocabulary::empty(false);
        assert_eq!(gaps.num_ids(), 0);
        for id in [7, 3, u32::MAX] {
            gaps.insert(id, b"a", false).unwrap();
        }
        assert_eq!(gaps.num_ids(), u32::MAX);
    }

    #[test]
    fn pieces_become_bytes_as_their_decoder_says() {
        let llama = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        let decoder = Decoder::read(&llama).unwrap();
        assert!(decoder.strips_first_blank);
        assert_eq!(decoder.bytes("\u{2581}time", false), b" time");
        assert_eq!(decoder.bytes("<0xF0>", false), [0xf0]);
        assert_eq!(decoder.bytes("<0xF>", false), b"<0xF>");
        let bytes = Decoder::read(&json!({"type": "ByteLevel"})).unwrap();
        assert_eq!(bytes.bytes("\u{120}\u{c3}\u{a9}", false), " é".as_bytes());
        assert_eq!(bytes.bytes("<é>", true), "<é>".as_bytes());
        assert!(Decoder::read(&json!({"type": "CTC"})).is_err());
    }
}
