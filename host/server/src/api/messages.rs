//! Chats as templates want them: roles, contents in parts, calls of tools, and the names that a
//! request adds.

use polyskill_tokenizer::{Chat, ChatError, Tokenizer, TokenizerError};
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use super::body::oversized_integer;
use super::error::ApiError;

/// Roles that every template is taken to know; any other must be named or printed by it.
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// The fields of a chat that its template sees, as sent.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ChatFields {
    /// Messages, unchecked.
    messages: Vec<Json>,
    /// Tools that the template describes to the model. Calls are not parsed from the answer.
    tools: Option<Vec<Json>>,
    /// Documents that the template puts into the prompt.
    documents: Option<Vec<Json>>,
    /// Further variables of the template.
    chat_template_kwargs: Option<Map<String, Json>>,
    /// Begins the assistant's message; true unless the last message is continued.
    add_generation_prompt: Option<bool>,
    /// Leaves the last message open, so that the answer goes on with it.
    continue_final_message: Option<bool>,
    /// Encodes with the tokenizer's own special tokens around the text; false by default, as
    /// templates write them.
    add_special_tokens: Option<bool>,
    /// A word that goes to the template; `none` switches thinking off where the template has a
    /// switch.
    reasoning_effort: Option<String>,
}

/// A chat, checked and ready to be rendered.
#[derive(Debug)]
pub(super) struct ChatInput {
    /// Messages in the form that the template reads.
    pub(super) messages: Vec<Json>,
    /// Tools; `None` where there are none, so that the plain template is taken.
    tools: Option<Vec<Json>>,
    /// Documents, as sent.
    documents: Option<Vec<Json>>,
    /// Further variables, with those of `reasoning_effort`.
    kwargs: Map<String, Json>,
    /// Begins the assistant's message.
    add_generation_prompt: bool,
    /// Leaves the last message open.
    continue_final_message: bool,
    /// Encodes with special tokens around the text.
    add_special_tokens: bool,
}

/// A chat's text through the template, and its tokens.
#[derive(Debug)]
pub(super) struct Rendered {
    /// The text, special tokens spelled out.
    pub(super) text: String,
    /// The tokens, not cut yet.
    pub(super) tokens: Vec<u32>,
}

impl ChatFields {
    /// Checks the fields against the base's template: tools, documents and a reasoning effort that
    /// the template does not mention would change nothing, and are refused.
    pub(super) fn read(self, tokenizer: &Tokenizer) -> Result<ChatInput, ApiError> {
        let tools = self.tools.filter(|tools| !tools.is_empty());
        let with_tools = tools.is_some();
        let mentions = |word: &str| tokenizer.template_mentions(with_tools, word);
        for (given, name) in [(&tools, "tools"), (&self.documents, "documents")] {
            if given.as_ref().is_some_and(|given| !given.is_empty()) && !mentions(name) {
                let message = format!("this model's chat template has no place for `{name}`");
                return Err(ApiError::bad_request(message, Some(name)));
            }
        }
        let mut kwargs = self.chat_template_kwargs.unwrap_or_default();
        for own in
            ["messages", "tools", "documents", "add_generation_prompt", "chat_template", "tokenize"]
        {
            if kwargs.contains_key(own) {
                let message =
                    format!("`chat_template_kwargs` holds `{own}`, which has a field of its own");
                return Err(ApiError::bad_request(message, Some("chat_template_kwargs")));
            }
        }
        if let Some(effort) = self.reasoning_effort {
            if !mentions("reasoning_effort") && !mentions("enable_thinking") {
                let message = "this model's chat template has no place for `reasoning_effort`";
                return Err(ApiError::bad_request(message, Some("reasoning_effort")));
            }
            kwargs.entry("enable_thinking").or_insert_with(|| json!(effort != "none"));
            kwargs.entry("reasoning_effort").or_insert_with(|| json!(effort));
        }
        let continues = self.continue_final_message.unwrap_or(false);
        if continues && self.add_generation_prompt == Some(true) {
            let message = "`continue_final_message` and `add_generation_prompt` are both true, which begins another message";
            return Err(ApiError::bad_request(message, Some("continue_final_message")));
        }
        Ok(ChatInput {
            messages: read_messages(&self.messages, tokenizer, with_tools)?,
            tools,
            documents: self.documents,
            kwargs,
            add_generation_prompt: self.add_generation_prompt.unwrap_or(!continues),
            continue_final_message: continues,
            add_special_tokens: self.add_special_tokens.unwrap_or(false),
        })
    }
}

impl ChatInput {
    /// The chat's text, through the base's template. Where the template refuses a message without
    /// content, it is rendered again with empty contents. It may take long for a long chat: not for
    /// a thread of the async runtime.
    pub(super) fn text(&self, tokenizer: &Tokenizer) -> Result<String, ApiError> {
        let chat = Chat {
            messages: &self.messages,
            tools: self.tools.as_deref(),
            documents: self.documents.as_deref(),
            kwargs: Some(&self.kwargs),
            add_generation_prompt: self.add_generation_prompt,
            continue_final_message: self.continue_final_message.then_some("content"),
        };
        let lacks_content = |message: &Json| message.get("content").is_none();
        let text = match tokenizer.render_chat(&chat) {
            // transformers leaves out a content that is null, and many templates cannot do without.
            Err(ChatError::Refused(_)) if self.messages.iter().any(lacks_content) => {
                let messages: Vec<Json> = self.messages.iter().map(with_content).collect();
                tokenizer.render_chat(&Chat { messages: &messages, ..chat })
            }
            rendered => rendered,
        };
        text.map_err(|error| refused(&error))
    }

    /// The chat with its tokens. It may take long for a long text.
    pub(super) fn tokenize(
        &self,
        text: String,
        tokenizer: &Tokenizer,
    ) -> Result<Rendered, ApiError> {
        let tokens = tokenizer.encode_with(&text, self.add_special_tokens);
        let tokens = tokens.map_err(|error| of_tokenizer(&error))?;
        Ok(Rendered { text, tokens })
    }

    /// The text of the last message by a user, which routers may read; `None` without such a
    /// message or content.
    pub(super) fn last_user_text(&self) -> Option<String> {
        let last = self.messages.iter().rfind(|message| message["role"] == "user")?;
        Some(text_of(last.get("content")?))
    }
}

/// A message with an empty content behind its role, where it has none.
fn with_content(message: &Json) -> Json {
    let mut fields = Map::new();
    for (name, value) in message.as_object().into_iter().flatten() {
        fields.insert(name.clone(), value.clone());
        if name == "role" {
            fields
                .entry("content")
                .or_insert_with(|| message.get("content").cloned().unwrap_or_else(|| json!("")));
        }
    }
    Json::Object(fields)
}

/// 400 with the template's reason.
fn refused(error: &ChatError) -> ApiError {
    let param = match error {
        ChatError::NotContinued(_) => "continue_final_message",
        _ => "messages",
    };
    ApiError::bad_request(error.to_string(), Some(param))
}

/// 400 with the tokenizer's reason.
fn of_tokenizer(error: &TokenizerError) -> ApiError {
    ApiError::bad_request(error.to_string(), Some("messages"))
}

/// The messages in the form that the template reads; an error names the first that does not fit by
/// its number from 0.
fn read_messages(
    messages: &[Json],
    tokenizer: &Tokenizer,
    with_tools: bool,
) -> Result<Vec<Json>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::bad_request("`messages` is empty", Some("messages")));
    }
    let reader =
        Reader { tokenizer, with_tools, takes_parts: tokenizer.template_takes_parts(with_tools) };
    let read = messages.iter().enumerate().map(|(at, message)| {
        let message = reader.message(message);
        message.map_err(|reason| {
            ApiError::bad_request(format!("message {at}: {reason}"), Some("messages"))
        })
    });
    read.collect()
}

/// Reads messages for the template of one chat.
struct Reader<'a> {
    /// The base's tokenizer, which has the templates.
    tokenizer: &'a Tokenizer,
    /// True where the chat has tools: some models have a template of their own for these.
    with_tools: bool,
    /// True where the template reads contents in parts.
    takes_parts: bool,
}

impl Reader<'_> {
    /// A message with its role checked, a null content left out, and its parts and calls in the
    /// template's form. Other fields stay as they are.
    fn message(&self, message: &Json) -> Result<Json, String> {
        let Some(fields) = message.as_object() else {
            return Err("expected an object with `role` and `content`".to_owned());
        };
        let mut fields = fields.clone();
        let role = self.role(fields.get("role"))?;
        fields.insert("role".to_owned(), json!(role));
        match fields.get("content") {
            None => {}
            Some(Json::Null) => {
                fields.shift_remove("content");
            }
            Some(Json::String(_)) => {}
            Some(Json::Array(parts)) => {
                let parts = self.parts(parts)?;
                fields.insert("content".to_owned(), parts);
            }
            Some(_) => return Err("`content` must be text or a list of text parts".to_owned()),
        }
        if let Some(calls) = fields.get_mut("tool_calls") {
            read_calls(calls)?;
        }
        Ok(Json::Object(fields))
    }

    /// A role that the template can be taken to know; `developer` is `system` where the template
    /// does not mention it. A role of no list must be mentioned, or printed as any role is.
    fn role(&self, role: Option<&Json>) -> Result<String, String> {
        let mentions = |role: &str| self.tokenizer.template_mentions(self.with_tools, role);
        match role.and_then(Json::as_str) {
            Some("developer") if !mentions("developer") => Ok("system".to_owned()),
            Some(role) if ROLES.contains(&role) => Ok(role.to_owned()),
            Some(role) if !role.is_empty() && (mentions(role) || self.prints_any_role()) => {
                Ok(role.to_owned())
            }
            _ => Err("`role` must be system, developer, user, assistant, tool, or one that the model's chat template names or prints".to_owned()),
        }
    }

    /// True where the template prints the role of a message whatever it is. A template that passes
    /// over the messages of unknown roles does not, and would drop their contents.
    fn prints_any_role(&self) -> bool {
        const NOBODY: &str = "role-of-nobody";
        let messages =
            [json!({"role": "user", "content": "x"}), json!({"role": NOBODY, "content": "x"})];
        let text = self.tokenizer.render_chat(&Chat::to_answer(&messages));
        text.is_ok_and(|text| text.contains(NOBODY))
    }

    /// Parts as text parts where the template reads such, else their texts, a line each. Images and
    /// sounds are refused.
    fn parts(&self, parts: &[Json]) -> Result<Json, String> {
        let mut texts = Vec::new();
        for part in parts {
            let text = match part {
                Json::String(text) => Some(text.as_str()),
                part => part.get("text").or_else(|| part.get("refusal")).and_then(Json::as_str),
            };
            texts.push(text.ok_or("only text parts are supported")?);
        }
        if self.takes_parts {
            return Ok(texts.iter().map(|text| json!({"type": "text", "text": text})).collect());
        }
        Ok(json!(texts.join("\n")))
    }
}

/// Parses the arguments of calls in a history in place: they are objects in templates, and texts in
/// OpenAI's requests. An empty text is an empty object.
fn read_calls(calls: &mut Json) -> Result<(), String> {
    if calls.is_null() {
        return Ok(());
    }
    let Some(calls) = calls.as_array_mut() else {
        return Err("`tool_calls` must be a list".to_owned());
    };
    for (at, call) in calls.iter_mut().enumerate() {
        let Some(function) = call.get_mut("function") else { continue };
        let Some(arguments) = function.get_mut("arguments") else { continue };
        let Some(text) = arguments.as_str() else { continue };
        if let Some(number) = oversized_integer(text.as_bytes()) {
            return Err(format!(
                "`tool_calls[{at}].function.arguments` holds {number}, an integer of more than 64 bits"
            ));
        }
        let parsed =
            if text.trim().is_empty() { Ok(json!({})) } else { serde_json::from_str(text) };
        match parsed {
            Ok(object @ Json::Object(_)) => *arguments = object,
            _ => return Err(format!("`tool_calls[{at}].function.arguments` is no JSON object")),
        }
    }
    Ok(())
}

/// The text of a content in either form; parts are a line each.
fn text_of(content: &Json) -> String {
    match content {
        Json::String(text) => text.clone(),
        parts => {
            let parts = parts.as_array().into_iter().flatten();
            let texts: Vec<&str> = parts.filter_map(|part| part.get("text")?.as_str()).collect();
            texts.join("\n")
        }
    }
}
