//! Chat templates as transformers renders them (`transformers.utils.chat_template_utils`, version 5).

use std::collections::BTreeMap;
use std::sync::OnceLock;

use serde_json::{Map, Value as Json, json};

use crate::jinja::{ErrorKind, JinjaError, Limits, Template, Value};

/// Longest template. In bytes. A longer one counts as broken, without being read.
const MAX_SOURCE: usize = 1 << 20;

/// The mark that shows where the last message ends in a rendered chat. transformers appends the
/// same text. A template that trims the message takes the blank at its end away, which tells how
/// the rendered text is to be cut.
const CONTINUE_MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Names of one field: what an assistant thought before it answered. In the order in which they are
/// looked for: templates and clients differ in the name.
const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A chat, and how it is to be written. Borrowed: rendering copies the messages into values of the
/// template once.
#[derive(Clone, Debug, Default)]
pub struct Chat<'a> {
    /// Messages, each an object with `role` and `content`. transformers' `conversation`. An empty
    /// list is refused.
    pub messages: &'a [Json],
    /// Tools that the model may call, as JSON schemas. With tools, a template named `tool_use` goes
    /// before `default`.
    pub tools: Option<&'a [Json]>,
    /// Documents that the model may use.
    pub documents: Option<&'a [Json]>,
    /// Further names for the template. transformers' `chat_template_kwargs`; they hide special
    /// tokens of the same name, and are hidden by `messages`, `tools`, `documents` and
    /// `add_generation_prompt`.
    pub kwargs: Option<&'a Map<String, Json>>,
    /// True where the head of the assistant's next message is written.
    pub add_generation_prompt: bool,
    /// The field of the last message that is left open, to be gone on with: mostly `content`. Not
    /// together with `add_generation_prompt`.
    pub continue_final_message: Option<&'a str>,
}

impl<'a> Chat<'a> {
    /// Messages that the assistant is to answer.
    pub fn to_answer(messages: &'a [Json]) -> Self {
        Self { messages, add_generation_prompt: true, ..Self::default() }
    }
}

/// Reasons for which a chat has no text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The base has no template.
    #[error("this model has no chat template; use /v1/completions")]
    NoTemplate,
    /// The base has several templates, and none for this chat.
    #[error(
        "this model has several chat templates and none is named `default`; it has: {}",
        names.join(", ")
    )]
    NoDefault {
        /// Names of the templates.
        names: Vec<String>,
    },
    /// The template is broken, which is no fault of the messages.
    #[error("the model's chat template cannot be used: {0}")]
    Broken(String),
    /// The template refused the messages, or cannot render them.
    #[error("the chat template refused the messages: {0}")]
    Refused(String),
    /// The template takes too much work or memory with these messages.
    #[error("the chat template was stopped: {0}")]
    Stopped(String),
    /// The last message cannot be gone on with.
    #[error("`continue_final_message`: {0}")]
    NotContinued(String),
}

impl From<JinjaError> for ChatError {
    /// A syntax error is the template's fault, a bound stops it, and all else is a refusal.
    fn from(error: JinjaError) -> Self {
        let message = error.to_string();
        match error.kind {
            ErrorKind::Syntax => Self::Broken(message),
            ErrorKind::Bound => Self::Stopped(message),
            _ => Self::Refused(message),
        }
    }
}

/// The templates of a base, and the special tokens that they may name.
#[derive(Debug, Default)]
pub(crate) struct ChatTemplates {
    /// By name; a base with one template has it as `default`.
    templates: BTreeMap<String, Parsed>,
    /// `bos_token` and the like. By the names of `tokenizer_config.json`.
    pub(crate) special: BTreeMap<String, String>,
}

/// A template with its source. One that cannot be parsed is kept with its error, which is shown
/// when a chat asks for it.
#[derive(Debug)]
struct Parsed {
    /// The text as it was read; [`ChatTemplates::mentions`] searches it.
    source: String,
    /// The tree, or the reason for which there is none.
    template: Result<Template, JinjaError>,
    /// The answer of [`ChatTemplates::takes_parts`], once that was asked.
    takes_parts: OnceLock<bool>,
}

impl ChatTemplates {
    /// Parses a template and files it under a name; a later one of the same name replaces it.
    pub(crate) fn insert(&mut self, name: &str, source: String) {
        let template = match source.len() > MAX_SOURCE {
            true => Err(JinjaError {
                kind: ErrorKind::Syntax,
                message: format!("it has {} bytes, expected at most {MAX_SOURCE}", source.len()),
                line: 0,
            }),
            false => Template::parse(&source),
        };
        self.templates
            .insert(name.to_owned(), Parsed { source, template, takes_parts: OnceLock::new() });
    }

    /// Reads `chat_template` of a configuration: a text, or a list of named ones. A list has
    /// objects with `name` and `template`; an object maps names to templates. Entries of another
    /// form are passed over.
    pub(crate) fn insert_json(&mut self, value: &Json) {
        if let Some(source) = value.as_str() {
            return self.insert("default", source.to_owned());
        }
        for entry in value.as_array().into_iter().flatten() {
            if let (Some(name), Some(source)) = (entry["name"].as_str(), entry["template"].as_str())
            {
                self.insert(name, source.to_owned());
            }
        }
        for (name, source) in value.as_object().into_iter().flatten() {
            if let Some(source) = source.as_str() {
                self.insert(name, source.to_owned());
            }
        }
    }

    /// True where the base has no template at all, not even a broken one.
    pub(crate) fn is_empty(&self) -> bool {
        self.templates.is_empty()
    }

    /// The template of a chat: `tool_use` where there are tools and such a template, else
    /// `default`. As `get_chat_template` of transformers.
    fn choose(&self, with_tools: bool) -> Result<&Parsed, ChatError> {
        let tool_use = self.templates.get("tool_use").filter(|_| with_tools);
        if let Some(found) = tool_use.or_else(|| self.templates.get("default")) {
            return Ok(found);
        }
        match self.templates.is_empty() {
            true => Err(ChatError::NoTemplate),
            false => Err(ChatError::NoDefault { names: self.templates.keys().cloned().collect() }),
        }
    }

    /// True where the template of a chat reads the parts of a message's content. It is tried: a
    /// part's text comes out, and not as Python prints a list of parts. The answer is kept with the
    /// template, so that only the first call renders. A template that renders neither parts nor a
    /// text is judged by its loops: one over `content` takes parts.
    pub(crate) fn takes_parts(&self, with_tools: bool) -> bool {
        const PROBE: &str = "What-a-part-says";
        const PRINTED: [&str; 2] = ["'type'", "\"type\""];
        let Ok(chosen) = self.choose(with_tools) else { return false };
        let Ok(template) = &chosen.template else { return false };
        let tried = |content: Json| {
            let message = json!([{"role": "user", "content": content}]);
            let chat = Chat { add_generation_prompt: true, ..Chat::default() };
            let names = self.names(&chat, &message);
            let text = template.render(names, chrono::NaiveDateTime::default(), Limits::default());
            text.ok().filter(|text| text.contains(PROBE))
        };
        *chosen.takes_parts.get_or_init(|| match tried(json!([{"type": "text", "text": PROBE}])) {
            Some(text) => !PRINTED.iter().any(|printed| text.contains(printed)),
            None => tried(json!(PROBE)).is_none() && template.loops_over("content"),
        })
    }

    /// True where the template of a chat mentions a name or text, such as `tools` or a role. A
    /// search in the source, comments included, so it may find a word that the template never uses.
    pub(crate) fn mentions(&self, with_tools: bool, word: &str) -> bool {
        self.choose(with_tools).is_ok_and(|chosen| chosen.source.contains(word))
    }

    /// The text of a chat; `now` is the local time. With `continue_final_message`, the text is cut
    /// behind the last message's field.
    ///
    /// # Errors
    /// A [`ChatError`], whose kind says whether template, messages or bounds are at fault.
    pub(crate) fn render(
        &self,
        chat: &Chat<'_>,
        now: chrono::NaiveDateTime,
    ) -> Result<String, ChatError> {
        let chosen = self.choose(chat.tools.is_some())?;
        if chat.messages.is_empty() {
            return Err(ChatError::Refused("there is no message".to_owned()));
        }
        for (given, name) in [(chat.tools, "tools"), (chat.documents, "documents")] {
            if given.into_iter().flatten().any(|item| !item.is_object()) {
                return Err(ChatError::Refused(format!("`{name}` holds what is no object")));
            }
        }
        let template = chosen.template.as_ref().map_err(|error| ChatError::from(error.clone()))?;
        let mut messages: Vec<Map<String, Json>> = chat.messages.iter().map(plain).collect();
        if chat.continue_final_message.is_some() && chat.add_generation_prompt {
            let why = "it does not go with `add_generation_prompt`, which begins another message";
            return Err(ChatError::NotContinued(why.to_owned()));
        }
        let last = chat.continue_final_message;
        let last = last.map(|field| mark_last(&mut messages, field, &chosen.source)).transpose()?;
        let messages: Vec<Json> = messages.into_iter().map(Json::Object).collect();
        let rendered =
            template.render(self.names(chat, &messages.into()), now, Limits::default())?;
        match last {
            Some(last) => cut_at_mark(rendered, &last),
            None => Ok(rendered),
        }
    }

    /// The names that a template sees; those of the request go before special tokens. Of equal
    /// names the last counts: special tokens, `kwargs`, then the names that transformers sets.
    /// `tools` and `documents` are `None` where there are none.
    fn names(&self, chat: &Chat<'_>, messages: &Json) -> Vec<(String, Value)> {
        let list = |items: Option<&[Json]>| items.map_or(Json::Null, |items| json!(items));
        let special =
            self.special.iter().map(|(name, text)| (name.clone(), Value::from(text.as_str())));
        let mut names: Vec<(String, Value)> = special.collect();
        let kwargs = chat.kwargs.into_iter().flatten();
        names.extend(kwargs.map(|(name, value)| (name.clone(), Value::from(value))));
        names.extend([
            ("messages".to_owned(), Value::from(messages)),
            ("tools".to_owned(), Value::from(&list(chat.tools))),
            ("documents".to_owned(), Value::from(&list(chat.documents))),
            ("add_generation_prompt".to_owned(), Value::Bool(chat.add_generation_prompt)),
        ]);
        names
    }
}

/// A message without fields that are null, since templates ask `is defined` rather than for `None`.
/// The first of [`REASONING_FIELDS`] that it has is also put under `thinking` and
/// `reasoning_content`.
fn plain(message: &Json) -> Map<String, Json> {
    let fields = message.as_object().into_iter().flatten();
    let mut fields: Map<String, Json> =
        fields.filter(|(_, value)| !value.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect();
    let reasoning = REASONING_FIELDS.iter().find_map(|name| fields.get(*name).cloned());
    if let Some(reasoning) = reasoning {
        let rest = std::mem::take(&mut fields);
        fields.insert("thinking".to_owned(), reasoning.clone());
        fields.extend(rest);
        fields.insert("reasoning_content".to_owned(), reasoning);
    }
    fields
}

/// Puts the mark behind a field of the last message; returns what stands there. Of a list of parts,
/// the last part with `text` is marked.
///
/// # Errors
/// [`ChatError::NotContinued`] where the field is missing or no text, or the template's source does
/// not mention it.
fn mark_last(
    messages: &mut [Map<String, Json>],
    field: &str,
    source: &str,
) -> Result<String, ChatError> {
    let fail = |why: String| Err(ChatError::NotContinued(why));
    let Some(last) = messages.last_mut() else { return fail("there is no message".to_owned()) };
    let Some(found) = last.get(field).cloned() else {
        return fail(format!("the last message has no `{field}`"));
    };
    // What an assistant thought stands under several names; the template reads one of them.
    let names: Vec<&str> = match REASONING_FIELDS.contains(&field) {
        true => {
            REASONING_FIELDS.into_iter().filter(|name| last.get(*name) == Some(&found)).collect()
        }
        false => vec![field],
    };
    if !names.iter().any(|name| source.contains(name)) {
        return fail(format!("the chat template reads no `{field}`"));
    }
    let mut said = None;
    for name in names {
        let Some(value) = last.get_mut(name) else { continue };
        let text = match value {
            Json::Array(parts) => parts.iter_mut().rev().find_map(|part| part.get_mut("text")),
            text => Some(text),
        };
        let Some(text) = text else {
            return fail("the last message has no part with `text`".to_owned());
        };
        let Some(plain) = text.as_str().map(str::to_owned) else {
            return fail(format!("the last message's `{field}` is no text"));
        };
        *text = Json::String(plain.clone() + CONTINUE_MARK);
        said = Some(plain);
    }
    Ok(said.unwrap_or_default())
}

/// The text before the mark, as `continue_final_message` of transformers leaves it: blanks before
/// the mark stay only where the template kept the mark's own blank. The stripped last message must
/// appear in the text.
fn cut_at_mark(rendered: String, last: &str) -> Result<String, ChatError> {
    let mark = rendered.rfind(CONTINUE_MARK.trim_end());
    let Some(at) = mark.filter(|_| rendered.contains(python_strip(last))) else {
        return Err(ChatError::NotContinued(
            "the last message does not appear in the chat as the template writes it".to_owned(),
        ));
    };
    let keeps_blanks = rendered[at..].starts_with(CONTINUE_MARK);
    let mut text = rendered;
    text.truncate(at);
    if !keeps_blanks {
        text.truncate(text.trim_end().len());
    }
    Ok(text)
}

/// Text without white space at both ends. Rust's `trim` stands for `str.strip`; they differ in
/// U+001C to U+001F alone.
fn python_strip(text: &str) -> &str {
    text.trim()
}
