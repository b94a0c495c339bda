//! Chats as templates want them: roles, contents in parts, calls of tools, and the names that a request adds.

use polyskill_tokenizer::{Chat, ChatError, Tokenizer, TokenizerError};
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use super::error::ApiError;

/// Roles that every template is taken to know.
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// The fields of a chat that its template sees.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ChatFields {
    messages: Vec<Json>,
    tools: Option<Vec<Json>>,
    documents: Option<Vec<Json>>,
    chat_template_kwargs: Option<Map<String, Json>>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    add_special_tokens: Option<bool>,
    reasoning_effort: Option<String>,
}

/// A chat, ready to be rendered.
#[derive(Debug)]
pub(super) struct ChatInput {
    pub(super) messages: Vec<Json>,
    tools: Option<Vec<Json>>,
    documents: Option<Vec<Json>>,
    kwargs: Map<String, Json>,
    add_generation_prompt: bool,
    continue_final_message: bool,
    add_special_tokens: bool,
}

/// A chat's text and its tokens.
#[derive(Debug)]
pub(super) struct Rendered {
    pub(super) text: String,
    pub(super) tokens: Vec<u32>,
}

impl ChatFields {
    /// Checks the fields against the base's template.
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
    /// The chat's text and tokens, through the base's template.
    pub(super) fn render(&self, tokenizer: &Tokenizer) -> Result<Rendered, ApiError> {
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
        let text = text.map_err(|error| refused(&error))?;
        let tokens = tokenizer.encode_with(&text, self.add_special_tokens);
        let tokens = tokens.map_err(|error| of_tokenizer(&error))?;
        Ok(Rendered { text, tokens })
    }

    /// The last text by a user, which routers may read.
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

fn refused(error: &ChatError) -> ApiError {
    let param = match error {
        ChatError::NotContinued(_) => "continue_final_message",
        _ => "messages",
    };
    ApiError::bad_request(error.to_string(), Some(param))
}

fn of_tokenizer(error: &TokenizerError) -> ApiError {
    ApiError::bad_request(error.to_string(), Some("messages"))
}

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

/// Reads messages for one template.
struct Reader<'a> {
    tokenizer: &'a Tokenizer,
    with_tools: bool,
    /// True where the template reads contents in parts.
    takes_parts: bool,
}

impl Reader<'_> {
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

    /// A role that the template can be taken to know; `developer` is `system` where the template does not mention it.
    fn role(&self, role: Option<&Json>) -> Result<String, String> {
        let mentions = |role: &str| self.tokenizer.template_mentions(self.with_tools, role);
        match role.and_then(Json::as_str) {
            Some("developer") if !mentions("developer") => Ok("system".to_owned()),
            Some(role) if ROLES.contains(&role) || (!role.is_empty() && mentions(role)) => {
                Ok(role.to_owned())
            }
            _ => Err("`role` must be system, developer, user, assistant, tool, or one that the model's chat template names".to_owned()),
        }
    }

    /// Parts as they are where the template reads such, else their texts, a line each.
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

/// Calls in a history: their arguments are objects in templates, and texts in OpenAI's requests.
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
        let parsed =
            if text.trim().is_empty() { Ok(json!({})) } else { serde_json::from_str(text) };
        match parsed {
            Ok(object @ Json::Object(_)) => *arguments = object,
            _ => return Err(format!("`tool_calls[{at}].function.arguments` is no JSON object")),
        }
    }
    Ok(())
}

/// The text of a content, whatever its form.
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
