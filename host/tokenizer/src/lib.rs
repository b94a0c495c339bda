//! Text for polyskill: tokenizers of model directories and GGUF files, the bytes of tokens, chat templates, and the text
//! of a sequence as it grows.
//!
//! A token becomes text in one place, [`Tokenizer::token_bytes`]; whole texts ([`Tokenizer::decode`]), streams with stop
//! strings ([`TextStream`]), names of tokens in log-probabilities and offsets all follow from it.

mod chat;
mod gguf;
mod jinja;
mod special_tokens;
mod stream;
mod vocabulary;

use std::path::Path;

use polyskill_model::gguf::Value as GgufValue;
use polyskill_model::load::GgufFile;
use serde_json::{Map, Value as Json};
use tokenizers::Tokenizer as Inner;

pub use chat::{Chat, ChatError};
pub use stream::{Piece, Special, Stops, TextStream};

use chat::ChatTemplates;
use gguf::GgufTokenizer;
use vocabulary::Vocabulary;

/// Reasons for which a model's tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A file is missing or malformed, or asks for what is not supported.
    #[error("{0}")]
    Unusable(String),
    /// A chat has no text.
    #[error(transparent)]
    Chat(#[from] ChatError),
}

/// [`TokenizerError::Unusable`] with a text.
pub(crate) fn unusable(what: impl std::fmt::Display) -> TokenizerError {
    TokenizerError::Unusable(what.to_string())
}

/// A model's tokenizer and chat templates. Made once per base and shared.
#[derive(Debug)]
pub struct Tokenizer {
    /// The way from text to ids.
    encoder: Encoder,
    /// The way from ids to bytes.
    vocabulary: Vocabulary,
    /// Chat templates and the special tokens' texts.
    chat: ChatTemplates,
    /// See [`Tokenizer::end_tokens`]; empty for a directory, whose configuration names them.
    ends: Vec<u32>,
}

/// The way from text to ids.
#[derive(Debug)]
enum Encoder {
    /// A `tokenizer.json`.
    HuggingFace(Box<Inner>),
    /// A tokenizer out of GGUF metadata.
    Gguf {
        /// Cuts, splits and merges.
        tokenizer: Box<GgufTokenizer>,
        /// The vocabulary's spelling of each token, by id.
        pieces: Vec<String>,
    },
}

impl Tokenizer {
    /// Reads tokenizer and chat templates of a model directory or GGUF file. A directory needs
    /// `tokenizer.json`. `tokenizer_config.json`, `special_tokens_map.json` and `config.json` are
    /// read where they are there, for chat templates and the special tokens that these see.
    ///
    /// # Errors
    /// If they are missing or not supported. A broken chat template is no error before a chat is asked for.
    pub fn load(path: &Path) -> Result<Self, TokenizerError> {
        if path.is_dir() { Self::from_directory(path) } else { Self::from_gguf(path) }
    }

    /// Reads a model directory as transformers saves it. `tokenizer_config.json` may be missing but
    /// not malformed; `special_tokens_map.json` and `config.json` may be either.
    fn from_directory(path: &Path) -> Result<Self, TokenizerError> {
        let file = path.join("tokenizer.json");
        let of_file = |error: String| unusable(format!("{}: {error}", file.display()));
        let bytes = std::fs::read(&file).map_err(|error| of_file(error.to_string()))?;
        let tokenizer = parse_tokenizer(&bytes).map_err(of_file)?;
        let json = |name: &str| match std::fs::read_to_string(path.join(name)) {
            Ok(text) => serde_json::from_str::<Json>(&text)
                .map_err(|error| unusable(format!("{name}: {error}"))),
            Err(_) => Ok(Json::Null),
        };
        let config = json("tokenizer_config.json")?;
        let map = json("special_tokens_map.json").unwrap_or(Json::Null);
        let model = json("config.json").unwrap_or(Json::Null);
        let mut chat = ChatTemplates::default();
        read_templates(path, &config, &mut chat);
        let class = special_tokens::class(&config, &model, &bytes);
        chat.special = special_tokens::read(&config, &map, class);
        let vocabulary = Vocabulary::new(&tokenizer).map_err(|error| of_file(error.to_string()))?;
        let encoder = Encoder::HuggingFace(Box::new(tokenizer));
        Ok(Self { encoder, vocabulary, chat, ends: Vec::new() })
    }

    /// Reads the header of a GGUF file alone. `tokenizer.chat_template` is the default template,
    /// and `tokenizer.chat_templates` lists the names of more.
    fn from_gguf(path: &Path) -> Result<Self, TokenizerError> {
        let header = GgufFile::read_header(path).map_err(unusable)?;
        let read = gguf::read(&header)?;
        let text = |key: &str| {
            header.metadata.get(&format!("tokenizer.{key}")).and_then(GgufValue::as_str)
        };
        let mut chat = ChatTemplates::default();
        if let Some(source) = text("chat_template") {
            chat.insert("default", source.to_owned());
        }
        let names = header.metadata.get("tokenizer.chat_templates").and_then(GgufValue::as_list);
        for name in names.unwrap_or_default().iter().filter_map(GgufValue::as_str) {
            if let Some(source) = text(&format!("chat_template.{name}")) {
                chat.insert(name, source.to_owned());
            }
        }
        let named = read.special.into_iter().map(|(name, text)| (name.to_owned(), text));
        chat.special.extend(named);
        let pieces = header.metadata.get("tokenizer.ggml.tokens").and_then(GgufValue::as_list);
        let pieces = pieces.unwrap_or_default().iter().filter_map(GgufValue::as_str);
        let pieces = pieces.map(str::to_owned).collect();
        let encoder = Encoder::Gguf { tokenizer: Box::new(read.tokenizer), pieces };
        Ok(Self { encoder, vocabulary: read.vocabulary, chat, ends: read.ends })
    }

    /// Token ids of a plain prompt, with the special tokens that the model expects around it.
    /// Special tokens that the text spells out are found as well.
    ///
    /// # Errors
    /// If the tokenizer fails on the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, true)
    }

    /// Token ids of a text that goes on after others, without special tokens around it.
    ///
    /// # Errors
    /// If the tokenizer fails on the text.
    pub fn encode_more(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, false)
    }

    /// Token ids of a text, with special tokens around it or not.
    ///
    /// # Errors
    /// If the tokenizer fails on the text.
    pub fn encode_with(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        match &self.encoder {
            Encoder::HuggingFace(inner) => {
                let encoding = inner.encode_fast(text, add_special).map_err(unusable)?;
                Ok(encoding.get_ids().to_vec())
            }
            Encoder::Gguf { tokenizer, .. } => tokenizer.encode(text, add_special),
        }
    }

    /// Bytes of text that so many tokens stand for at most, special tokens around it aside. Where the
    /// tokenizer rewrites a text first, which may shorten it, four times as many.
    pub fn most_bytes(&self, tokens: usize) -> usize {
        let rewrites = match &self.encoder {
            Encoder::HuggingFace(inner) => inner.get_normalizer().is_some(),
            Encoder::Gguf { .. } => false,
        };
        let factor = if rewrites { 4 } else { 1 };
        tokens.saturating_mul(self.vocabulary.longest()).saturating_mul(factor)
    }

    /// True where the model says how a chat is written.
    pub fn has_template(&self) -> bool {
        !self.chat.is_empty()
    }

    /// True where the template for a chat reads the parts of a message's content, rather than a text.
    pub fn template_takes_parts(&self, with_tools: bool) -> bool {
        self.chat.takes_parts(with_tools)
    }

    /// True where the template for a chat mentions a word, such as a variable or a role.
    pub fn template_mentions(&self, with_tools: bool, word: &str) -> bool {
        self.chat.mentions(with_tools, word)
    }

    /// The text of a chat, through the model's template. `strftime_now` of a template shows the
    /// machine's local time.
    ///
    /// # Errors
    /// If there is no template, it refuses the messages, or it takes too much work or memory.
    pub fn render_chat(&self, chat: &Chat<'_>) -> Result<String, ChatError> {
        self.render_chat_at(chat, chrono::Local::now().naive_local())
    }

    /// The text of a chat at a given local time.
    ///
    /// # Errors
    /// As for [`Self::render_chat`].
    pub fn render_chat_at(
        &self,
        chat: &Chat<'_>,
        now: chrono::NaiveDateTime,
    ) -> Result<String, ChatError> {
        self.chat.render(chat, now)
    }

    /// Token ids of a chat, through the model's template. The template writes special tokens
    /// itself, so none are put around the text.
    ///
    /// # Errors
    /// As for [`Self::render_chat`], or if the tokenizer fails on the text.
    pub fn encode_chat(&self, chat: &Chat<'_>) -> Result<Vec<u32>, TokenizerError> {
        self.encode_more(&self.render_chat(chat)?)
    }

    /// The bytes that a token adds to a text; none for ids that stand for nothing. They may be a
    /// part of a character: join the bytes of several tokens before reading them as UTF-8.
    pub fn token_bytes(&self, token: u32) -> &[u8] {
        self.vocabulary.bytes(token)
    }

    /// True for a token that steers the model rather than says something, so that texts leave it out.
    pub fn is_special(&self, token: u32) -> bool {
        self.vocabulary.is_special(token)
    }

    /// Tokens that end a generation beside those that the model's configuration names.
    pub fn end_tokens(&self) -> &[u32] {
        &self.ends
    }

    /// One more than the largest id of a token. Ids from here on stand for nothing, and ids below
    /// may.
    pub fn num_ids(&self) -> u32 {
        self.vocabulary.num_ids()
    }

    /// The vocabulary's own spelling of a token, such as `▁time`. Empty for ids that stand for
    /// nothing.
    pub fn token_piece(&self, token: u32) -> String {
        match &self.encoder {
            Encoder::HuggingFace(inner) => inner.id_to_token(token).unwrap_or_default(),
            Encoder::Gguf { pieces, .. } => pieces.get(token as usize).cloned().unwrap_or_default(),
        }
    }

    /// A token's text; bytes that are no text are spelled `\xf0\x9f`, as OpenAI spells them, so that different tokens
    /// stay different.
    pub fn token_text(&self, token: u32) -> String {
        let bytes = self.token_bytes(token);
        match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => escaped(bytes),
        }
    }

    /// A token as the key of an object: as [`Self::token_text`], with `bytes:` before bytes that are no text.
    pub fn token_key(&self, token: u32) -> String {
        let bytes = self.token_bytes(token);
        match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => format!("bytes:{}", escaped(bytes)),
        }
    }

    /// The text of a whole sequence; what is no text becomes U+FFFD.
    pub fn decode(&self, tokens: &[u32], special: Special) -> String {
        let mut stream = TextStream::new(special);
        let mut text: String = tokens.iter().map(|&token| stream.push(self, token).text).collect();
        text.push_str(&stream.finish());
        text
    }

    /// The text that tokens add behind a prompt, without special tokens. The prompt only decides
    /// whether a first blank is stripped: it is kept where the prompt has text.
    pub fn decode_after(&self, prompt: &[u32], tokens: &[u32]) -> String {
        let mut stream = TextStream::after(self, prompt, Special::Hidden, Stops::default());
        let mut text: String = tokens.iter().map(|&token| stream.push(self, token).text).collect();
        text.push_str(&stream.finish());
        text
    }

    /// The text of tokens from anywhere in a sequence: their bytes in a row, special ones too. No
    /// blank is stripped, and what is no text becomes U+FFFD.
    pub fn decode_part(&self, tokens: &[u32]) -> String {
        let bytes: Vec<u8> =
            tokens.iter().flat_map(|&token| self.token_bytes(token)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// For each token of a text, the number of the text's characters that are complete before it.
    ///
    /// Tokens that the text does not spell, such as a beginning token that was put before it, have no width.
    pub fn offsets(&self, text: &str, tokens: &[u32]) -> Vec<usize> {
        let (offsets, fits) = self.offsets_by_bytes(text, tokens);
        if fits {
            return offsets;
        }
        // A tokenizer that changes texts before it cuts them knows where its tokens come from.
        if let Encoder::HuggingFace(inner) = &self.encoder
            && let Ok(encoding) = inner.encode_char_offsets(text, true)
            && encoding.get_ids() == tokens
        {
            return encoding.get_offsets().iter().map(|&(start, _)| start).collect();
        }
        offsets
    }

    /// Offsets found by laying the tokens' bytes along the text. False where a token that is not
    /// special does not fit, or the text goes on behind the last one.
    fn offsets_by_bytes(&self, text: &str, tokens: &[u32]) -> (Vec<usize>, bool) {
        let (mut at, mut chars, mut fits) = (0, 0, true);
        let mut offsets = Vec::with_capacity(tokens.len());
        for &token in tokens {
            offsets.push(chars);
            let bytes = self.token_bytes(token);
            let rest = &text.as_bytes()[at..];
            // SentencePiece puts a blank before a text that the text does not have.
            let shorter = bytes.strip_prefix(b" ").filter(|_| self.strips_first_blank());
            let spelled =
                [Some(bytes), shorter].into_iter().flatten().find(|b| rest.starts_with(b));
            match spelled {
                Some(spelled) => {
                    let end = at + spelled.len();
                    let starts = |byte: &u8| (*byte as i8) >= -0x40;
                    // A character is complete where the next one starts, or the text ends.
                    let begun = text.as_bytes()[..end].iter().filter(|byte| starts(byte)).count();
                    let is_inside = !text.is_char_boundary(end);
                    (at, chars) = (end, begun - usize::from(is_inside));
                }
                None if self.is_special(token) => {}
                None => fits = false,
            }
        }
        (offsets, fits && at == text.len())
    }

    /// See [`Vocabulary::strips_first_blank`].
    pub(crate) fn strips_first_blank(&self) -> bool {
        self.vocabulary.strips_first_blank()
    }

    /// Texts of all special tokens, by which a stop string that names one is known.
    pub(crate) fn special_texts(&self) -> &[String] {
        self.vocabulary.special_texts()
    }
}

/// Reads the chat templates of a directory: files before the configuration. Later ones replace
/// earlier ones of the same name: `tokenizer_config.json`, `chat_template.json`,
/// `chat_template.jinja`, then up to 64 files of `additional_chat_templates`. Files that cannot be
/// read are passed over.
fn read_templates(path: &Path, config: &Json, chat: &mut ChatTemplates) {
    chat.insert_json(&config["chat_template"]);
    if let Ok(text) = std::fs::read_to_string(path.join("chat_template.json"))
        && let Ok(json) = serde_json::from_str::<Map<String, Json>>(&text)
        && let Some(template) = json.get("chat_template")
    {
        chat.insert_json(template);
    }
    if let Ok(source) = std::fs::read_to_string(path.join("chat_template.jinja")) {
        chat.insert("default", source);
    }
    let more = std::fs::read_dir(path.join("additional_chat_templates"));
    for entry in more.into_iter().flatten().flatten().take(64) {
        let file = entry.path();
        let name = file.file_stem().and_then(|name| name.to_str()).map(str::to_owned);
        if let (Some(name), Some("jinja")) = (name, file.extension().and_then(|e| e.to_str()))
            && let Ok(source) = std::fs::read_to_string(&file)
        {
            chat.insert(&name, source);
        }
    }
}

/// Bytes with those that are no ASCII text written in hexadecimal. The `\x` escapes have two digits
/// in lower case.
fn escaped(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for &byte in bytes {
        match byte {
            b' '..=b'~' => text.push(char::from(byte)),
            byte => {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    text
}

/// The library unwraps where some parts of a file are not what it expects. Its panics become
/// errors. Truncation and padding of the file are turned off.
pub(crate) fn parse_tokenizer(bytes: &[u8]) -> Result<Inner, String> {
    let parsed = std::panic::catch_unwind(|| Inner::from_bytes(bytes));
    let parsed = parsed.map_err(|_| "not a tokenizer that this server can read".to_owned())?;
    let mut parsed = parsed.map_err(|error| error.to_string())?;
    // A prompt is taken whole, whatever the file was saved with.
    let _ = parsed.with_truncation(None);
    parsed.with_padding(None);
    Ok(parsed)
}
