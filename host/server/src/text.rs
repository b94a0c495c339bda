//! Text to tokens and back: tokenizers, chat templates, incremental detokenising, stop strings.

use std::path::Path;

use minijinja::{Environment, Value as Jinja, context};
use polyskill_model::gguf;
use polyskill_model::load::GgufFile;
use serde_json::Value as Json;
use tokenizers::Tokenizer;

mod gguf_tokenizer;

/// Why a model's text side cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file is missing or malformed.
    #[error("{0}")]
    Unusable(String),
    /// The chat template refused the messages.
    #[error("the chat template refused the messages: {0}")]
    Template(String),
}

fn unusable(what: impl std::fmt::Display) -> TextError {
    TextError::Unusable(what.to_string())
}

/// A model's tokenizer and chat template.
pub struct TextModel {
    tokenizer: Tokenizer,
    template: Option<String>,
    bos: String,
    eos: String,
    add_bos: Option<u32>,
}

impl std::fmt::Debug for TextModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextModel")
            .field("template", &self.template.is_some())
            .finish_non_exhaustive()
    }
}

impl TextModel {
    /// Reads tokenizer and chat template of a model directory or GGUF file.
    ///
    /// # Errors
    /// If they are missing or not supported.
    pub fn load(path: &Path) -> Result<Self, TextError> {
        if path.is_dir() { Self::from_directory(path) } else { Self::from_gguf(path) }
    }

    fn from_directory(path: &Path) -> Result<Self, TextError> {
        let file = path.join("tokenizer.json");
        let of_file = |error: String| unusable(format!("{}: {error}", file.display()));
        let bytes = std::fs::read(&file).map_err(|error| of_file(error.to_string()))?;
        let tokenizer = parse_tokenizer(&bytes).map_err(of_file)?;
        let read = |name: &str| std::fs::read_to_string(path.join(name)).ok();
        let config: Json = match read("tokenizer_config.json") {
            Some(text) => serde_json::from_str(&text)
                .map_err(|error| unusable(format!("tokenizer_config.json: {error}")))?,
            None => Json::Null,
        };
        let token = |key: &str| {
            let value = config.get(key);
            let text = value.and_then(|v| v.as_str().or_else(|| v.get("content")?.as_str()));
            text.unwrap_or_default().to_owned()
        };
        let inline = config.get("chat_template").and_then(Json::as_str).map(str::to_owned);
        let template = read("chat_template.jinja").or(inline);
        Ok(Self {
            tokenizer,
            template,
            bos: token("bos_token"),
            eos: token("eos_token"),
            add_bos: None,
        })
    }

    fn from_gguf(path: &Path) -> Result<Self, TextError> {
        let header = GgufFile::read_header(path).map_err(unusable)?;
        let get = |key: &str| header.metadata.get(&format!("tokenizer.{key}"));
        let tokens = gguf_tokenizer::texts(&header, "tokens")?;
        let tokenizer = gguf_tokenizer::build(&header, &tokens)?;
        let id = |key: &str| get(key).and_then(gguf::Value::as_u64);
        let text = |key: &str| {
            id(key)
                .and_then(|id| tokens.get(id as usize))
                .map(|text| (*text).to_owned())
                .unwrap_or_default()
        };
        let wants_bos = get("ggml.add_bos_token").and_then(gguf::Value::as_bool);
        let wants_bos = wants_bos.unwrap_or_else(|| gguf_tokenizer::adds_bos_unless_told(&header));
        let bos_id = id("ggml.bos_token_id").and_then(|id| u32::try_from(id).ok());
        Ok(Self {
            tokenizer,
            template: get("chat_template").and_then(gguf::Value::as_str).map(str::to_owned),
            bos: text("ggml.bos_token_id"),
            eos: text("ggml.eos_token_id"),
            add_bos: bos_id.filter(|_| wants_bos),
        })
    }

    /// Token ids of a plain prompt, with the special tokens that the model expects around it.
    ///
    /// # Errors
    /// If the tokenizer fails on the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let encoding = self.tokenizer.encode(text, true).map_err(unusable)?;
        let first = self.add_bos.filter(|bos| encoding.get_ids().first() != Some(bos));
        Ok(first.into_iter().chain(encoding.get_ids().iter().copied()).collect())
    }

    /// Token ids of a text that goes on after others, without special tokens around it.
    ///
    /// # Errors
    /// If the tokenizer fails on the text.
    pub fn encode_more(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let encoding = self.tokenizer.encode(text, false).map_err(unusable)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Whether the model says how a chat is written.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Token ids of a chat, through the model's template.
    ///
    /// # Errors
    /// If there is no template or it refuses the messages.
    pub fn encode_chat(
        &self,
        messages: &Json,
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>, TextError> {
        let text = self.render_chat(messages, add_generation_prompt)?;
        let encoding = self.tokenizer.encode(text, false).map_err(unusable)?;
        Ok(encoding.get_ids().to_vec())
    }

    fn render_chat(
        &self,
        messages: &Json,
        add_generation_prompt: bool,
    ) -> Result<String, TextError> {
        let Some(source) = &self.template else {
            return Err(TextError::Template(
                "this model has no chat template; use /v1/completions".into(),
            ));
        };
        let mut environment = Environment::new();
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(5_000_000));
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<String, minijinja::Error> {
                Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
            },
        );
        let template = |error: minijinja::Error| TextError::Template(error.to_string());
        environment.add_template("chat", source).map_err(template)?;
        let rendered = environment.get_template("chat").map_err(template)?;
        rendered
            .render(context! {
                messages => Jinja::from_serialize(messages),
                add_generation_prompt,
                bos_token => self.bos,
                eos_token => self.eos,
            })
            .map_err(template)
    }

    /// The text of one token, special tokens included; lossy for partial characters.
    pub fn token_text(&self, token: u32) -> String {
        self.tokenizer.decode(&[token], false).unwrap_or_default()
    }

    /// The text of several tokens, special tokens included.
    pub fn decode_all(&self, tokens: &[u32]) -> String {
        self.tokenizer.decode(tokens, false).unwrap_or_default()
    }

    /// The text of several tokens, special tokens left out.
    pub fn decode(&self, tokens: &[u32]) -> String {
        self.tokenizer.decode(tokens, true).unwrap_or_default()
    }
}

/// The library unwraps where some parts of a file are not what it expects.
fn parse_tokenizer(bytes: &[u8]) -> Result<Tokenizer, String> {
    let parsed = std::panic::catch_unwind(|| Tokenizer::from_bytes(bytes));
    let parsed = parsed.map_err(|_| "not a tokenizer that this server can read".to_owned())?;
    parsed.map_err(|error| error.to_string())
}

/// Turns tokens into text as they come, holding back partial characters and possible stop strings.
#[derive(Debug)]
pub struct TextStream {
    tokens: Vec<u32>,
    /// Tokens before `prefix` are final; those up to `read` have been given out.
    prefix: usize,
    read: usize,
    held: String,
    stops: Vec<String>,
    include_stop: bool,
}

impl TextStream {
    /// A stream that ends at any of the stop strings.
    pub fn new(stops: Vec<String>, include_stop: bool) -> Self {
        Self { tokens: Vec::new(), prefix: 0, read: 0, held: String::new(), stops, include_stop }
    }

    /// Takes a token; returns the text that is now certain and whether a stop string was reached.
    pub fn push(&mut self, model: &TextModel, token: u32) -> (String, bool) {
        self.tokens.push(token);
        let before = model.decode(&self.tokens[self.prefix..self.read]);
        let now = model.decode(&self.tokens[self.prefix..]);
        if now.len() > before.len() && !now.ends_with('\u{fffd}') {
            self.held.push_str(now.get(before.len()..).unwrap_or_default());
            self.prefix = self.read;
            self.read = self.tokens.len();
        }
        self.release()
    }

    /// What is left when the generation ends.
    pub fn finish(&mut self, model: &TextModel) -> String {
        let before = model.decode(&self.tokens[self.prefix..self.read]);
        let now = model.decode(&self.tokens[self.prefix..]);
        self.held.push_str(now.get(before.len()..).unwrap_or_default());
        std::mem::take(&mut self.held)
    }

    fn release(&mut self) -> (String, bool) {
        let found = self.stops.iter().filter(|stop| !stop.is_empty());
        let found =
            found.filter_map(|stop| Some((self.held.find(stop.as_str())?, stop.len()))).min();
        if let Some((at, len)) = found {
            let end = if self.include_stop { at + len } else { at };
            let text = self.held[..end].to_owned();
            self.held.clear();
            self.tokens.truncate(self.read);
            self.prefix = self.read;
            return (text, true);
        }
        let longest = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let keep = self.held.split_off(self.held.len() - longest);
        (std::mem::replace(&mut self.held, keep), false)
    }
}

/// Bytes at the end of `text` that begin `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let most = text.len().min(stop.len().saturating_sub(1));
    let fits = |&len: &usize| stop.is_char_boundary(len) && text.ends_with(&stop[..len]);
    (1..=most).rev().find(fits).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn possible_stops_are_held_back() {
        assert_eq!(overlap("hello END", "ENDING"), 3);
        assert_eq!(overlap("hello", "xyz"), 0);
        assert_eq!(overlap("aé", "éb"), 2);
        let mut stream = TextStream::new(vec!["END".to_owned()], false);
        stream.held = "one E".to_owned();
        assert_eq!(stream.release(), ("one ".to_owned(), false));
        stream.held.push_str("ND two");
        assert_eq!(stream.release(), (String::new(), true));
    }
}
