//! Log-probabilities in replies: the lists of chats and of completions, and those of prompts.

use polyskill_engine::{Logprob, PromptLogprob};
use polyskill_tokenizer::Tokenizer;
use serde_json::{Map, Value as Json, json};

use crate::answer::completion::TextToken;

/// The least log-probability in a reply: JSON has no infinity. vLLM has the same bound.
const LEAST: f32 = -9_999.0;

/// The names of tokens in a reply: by text or by id.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenNames<'a> {
    /// The base's tokenizer.
    pub(super) tokenizer: &'a Tokenizer,
    /// `token_id:5` in place of the text, as vLLM's `return_tokens_as_token_ids` has it.
    pub(super) as_ids: bool,
}

impl TokenNames<'_> {
    /// A token in a chat, which has its bytes next to it.
    fn of(self, token: u32) -> String {
        if self.as_ids { format!("token_id:{token}") } else { self.tokenizer.token_text(token) }
    }

    /// A token as a key, in completions; different tokens can have one key.
    fn key(self, token: u32) -> String {
        if self.as_ids { format!("token_id:{token}") } else { self.tokenizer.token_key(token) }
    }
}

/// The value with [`LEAST`] in place of anything below.
fn bounded(value: f32) -> f32 {
    value.max(LEAST)
}

/// The `logprobs` of a chat's choice or chunk: one entry per token, with its bytes and its
/// alternatives, the likeliest first.
pub(super) fn of_chat(names: TokenNames<'_>, tokens: &[TextToken]) -> Json {
    let entry = |token: u32, value: f32| {
        json!({"token": names.of(token), "logprob": bounded(value),
               "bytes": names.tokenizer.token_bytes(token)})
    };
    let content: Vec<Json> = tokens
        .iter()
        .filter_map(|token| {
            let logprob = token.logprob.as_ref()?;
            let mut one = entry(token.token, logprob.value);
            one["top_logprobs"] =
                logprob.top.iter().map(|&(token, value)| entry(token, value)).collect();
            Some(one)
        })
        .collect();
    json!({"content": content})
}

/// A token of a prompt or an answer, as completions list it.
pub(super) struct Listed<'a> {
    /// The token's id.
    pub(super) token: u32,
    /// Its log-probability; `None` for the first token of a prompt, which follows nothing.
    pub(super) logprob: Option<&'a Logprob>,
    /// Characters of the text before it.
    pub(super) offset: usize,
}

impl<'a> Listed<'a> {
    /// The tokens of an answer, behind `before` characters.
    pub(super) fn answer(
        tokens: &'a [TextToken],
        before: usize,
    ) -> impl Iterator<Item = Self> + use<'a> {
        tokens.iter().map(move |token| Self {
            token: token.token,
            logprob: token.logprob.as_ref(),
            offset: before + token.offset,
        })
    }

    /// The tokens of a prompt, with their places in the text that is echoed. Without places, as
    /// where nothing is echoed, there are none.
    pub(super) fn prompt(
        tokens: &'a [PromptLogprob],
        offsets: &'a [usize],
    ) -> impl Iterator<Item = Self> {
        tokens.iter().zip(offsets).map(|(token, offset)| Self {
            token: token.token,
            logprob: token.logprob.as_ref(),
            offset: *offset,
        })
    }
}

/// The `logprobs` of a completion's choice: four parallel lists, with the `top` best alternatives
/// of each token and the token itself. With a `top` of 0 the alternatives are null.
pub(super) fn of_completion<'a>(
    names: TokenNames<'_>,
    tokens: impl Iterator<Item = Listed<'a>>,
    top: usize,
) -> Json {
    let (mut texts, mut values, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
    for Listed { token, logprob, offset } in tokens {
        offsets.push(json!(offset));
        values.push(json!(logprob.map(|logprob| bounded(logprob.value))));
        let best = logprob.filter(|_| top > 0).map(|logprob| {
            let alternatives = logprob.top.iter().take(top).copied();
            let own = alternatives.clone().all(|(other, _)| other != token);
            let all = alternatives.chain(own.then_some((token, logprob.value)));
            alternatives_by_key(names, token, all)
        });
        tops.push(json!(best));
        texts.push(json!(names.key(token)));
    }
    json!({"tokens": texts, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets})
}

/// Log-probabilities by the keys of their tokens, in this order.
///
/// Keys are texts, and several tokens may have one text: it belongs to the token that was drawn,
/// else to the likeliest; the others are named by their ids.
fn alternatives_by_key(
    names: TokenNames<'_>,
    drawn: u32,
    alternatives: impl Iterator<Item = (u32, f32)>,
) -> Map<String, Json> {
    let drawn_key = names.key(drawn);
    let mut entries = Map::new();
    for (token, value) in alternatives {
        let mut key = names.key(token);
        if entries.contains_key(&key) || (token != drawn && key == drawn_key) {
            key = format!("token_id:{token}");
        }
        entries.insert(key, json!(bounded(value)));
    }
    entries
}

/// vLLM's `prompt_logprobs`: for each token of the prompt an object by ids, with the token itself
/// and the `top` best alternatives, each with its rank from 1. The first token has null.
pub(super) fn of_prompt(tokenizer: &Tokenizer, tokens: &[PromptLogprob], top: usize) -> Json {
    let one = |entry: &PromptLogprob| {
        let Some(logprob) = &entry.logprob else { return Json::Null };
        let mut entries = Map::new();
        let own = (entry.token, logprob.value, logprob.rank);
        let ranked = (1..).zip(logprob.top.iter().take(top));
        let alternatives = ranked.map(|(rank, &(token, value))| (token, value, rank));
        for (token, value, rank) in [own].into_iter().chain(alternatives) {
            entries.entry(token.to_string()).or_insert_with(|| {
                json!({"logprob": bounded(value), "rank": rank,
                       "decoded_token": tokenizer.token_text(token)})
            });
        }
        Json::Object(entries)
    };
    tokens.iter().map(one).collect()
}
