//! One trace, as it is written.

use std::borrow::Cow;
use std::collections::BTreeMap;

use polyskill_engine::{
    LayerExperts, RouterRequest, SamplingParams, Selection, SitePicks, TokenEvent,
};
use polyskill_model::Site;
use polyskill_sdk::{Parameters, Value};
use polyskill_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// A request from its arrival to its end.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Trace {
    /// The reply's id.
    pub id: String,
    /// Arrival, in microseconds since 1970.
    pub at_us: u64,
    /// The caller's W3C `traceparent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// The name in the request.
    pub model: String,
    /// Digest of the composition.
    pub composition: String,
    /// The router that was asked.
    pub router: Option<String>,
    /// The name of what answered.
    pub served: String,
    /// Set where the base answered in place of a router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_reason: Option<String>,
    /// The experiment that the request counts for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experiment: Option<String>,
    /// Its arm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arm: Option<String>,
    /// Modules by the numbers in picks.
    pub modules: Vec<String>,
    /// Part of the picks' weight, by module.
    pub share: BTreeMap<String, f64>,
    /// The reason of the end, as in the reply.
    pub reason: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those whose keys and values were there already.
    pub cached_tokens: usize,
    /// Generated tokens.
    pub completion_tokens: usize,
    /// Rows that the base answered in place of a router.
    pub fallback_rows: u64,
    /// Time in the queue.
    pub queue_us: u64,
    /// From arrival to the first token.
    pub first_token_us: Option<u64>,
    /// From arrival to the end.
    pub total_us: u64,
    /// Each generated token with its picks, as in a reply with `trace: "full"`.
    pub tokens: Vec<TracedToken>,
    /// What it takes to run it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat: Option<Repeat>,
}

/// A generated token with what was decided for the row that produced it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TracedToken {
    /// The token.
    pub token: u32,
    text: String,
    /// The picks, by site.
    pub sites: Vec<TracedSite>,
    /// What sparse layers of the base did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub experts: Vec<TracedExperts>,
}

/// The picks at one site; where a program decided there, the best scores with the margin between the first two.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TracedSite {
    layer: usize,
    site: Cow<'static, str>,
    picks: Vec<(u32, f32)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    scores: Vec<(u32, f32)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    margin: Option<f32>,
}

/// Native logits and the experts that were run.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TracedExperts {
    layer: u32,
    site: Cow<'static, str>,
    logits: Vec<f32>,
    experts: Vec<(u32, f32)>,
}

impl TracedToken {
    /// Of an event whose routing was recorded; nothing where none was.
    pub fn of(event: TokenEvent, tokenizer: &Tokenizer) -> Option<Self> {
        let TokenEvent { token, routing, experts, .. } = event;
        if routing.is_empty() && experts.is_empty() {
            return None;
        }
        let site = |SitePicks { site, picks, scores }: SitePicks| {
            let at = Site::from_index(site as usize);
            let margin = scores.get(1).map(|second| scores[0].1 - second.1);
            let name = Cow::Borrowed(at.projection.name());
            TracedSite { layer: at.layer, site: name, picks, scores, margin }
        };
        let layer = |LayerExperts { layer, logits, experts }: LayerExperts| TracedExperts {
            layer,
            site: Cow::Borrowed("moe"),
            logits,
            experts,
        };
        Some(Self {
            token,
            text: tokenizer.token_text(token),
            sites: routing.into_iter().map(site).collect(),
            experts: experts.into_iter().map(layer).collect(),
        })
    }
}

/// A request, to be run again.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Repeat {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Its sampling parameters.
    #[serde(with = "Sampling")]
    pub sampling: SamplingParams,
    /// The selection that the request asked for.
    pub selection: Selected,
}

/// The fields of [`SamplingParams`].
#[derive(Deserialize, Serialize)]
#[serde(remote = "SamplingParams")]
struct Sampling {
    max_tokens: usize,
    temperature: f32,
    top_p: f32,
    top_k: usize,
    min_p: f32,
    repetition_penalty: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    logit_bias: Vec<(u32, f32)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    allowed_tokens: Vec<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    bad_words: Vec<Vec<u32>>,
    stop_tokens: Vec<u32>,
    min_tokens: usize,
    seed: u64,
    logprobs: Option<usize>,
    prompt_logprobs: Option<usize>,
    answer_from: Option<usize>,
}

/// A [`Selection`].
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Selected {
    /// The base alone.
    Base,
    /// Modules by name, with weights.
    Weighted(Vec<(String, f32)>),
    /// A router, or a chain of them.
    Routed {
        /// Its name.
        router: String,
        /// Its parameters.
        parameters: Vec<(String, Json)>,
        /// Patterns of the candidates' names.
        modules: Vec<String>,
        /// Modules that are always on, with weights.
        #[serde(alias = "beside")]
        always_on: Vec<(String, f32)>,
        /// Tokens of the prompt, as the router was told.
        prompt_tokens: usize,
        /// The text that the router read.
        text: Option<String>,
        /// The request's bucket of 10,000.
        bucket: u64,
    },
}

impl From<&Selection> for Selected {
    fn from(selection: &Selection) -> Self {
        match selection {
            Selection::Base => Self::Base,
            Selection::Weighted(weights) => Self::Weighted(weights.clone()),
            Selection::Routed(asked) => Self::Routed {
                router: asked.router.clone(),
                parameters: asked.parameters.0.iter().map(to_json).collect(),
                modules: asked.modules.clone(),
                always_on: asked.always_on.clone(),
                prompt_tokens: asked.prompt_tokens,
                text: asked.text.clone(),
                bucket: asked.bucket,
            },
        }
    }
}

fn to_json((name, value): &(String, Value)) -> (String, Json) {
    let value = match value {
        Value::Flag(flag) => (*flag).into(),
        Value::Number(number) => (*number).into(),
        Value::Text(text) => text.clone().into(),
    };
    (name.clone(), value)
}

impl From<Selected> for Selection {
    fn from(selected: Selected) -> Self {
        let value = |(name, value): (String, Json)| {
            let value = match value {
                Json::Bool(flag) => Value::Flag(flag),
                Json::String(text) => Value::Text(text),
                other => Value::Number(other.as_f64().unwrap_or(f64::NAN)),
            };
            (name, value)
        };
        match selected {
            Selected::Base => Self::Base,
            Selected::Weighted(weights) => Self::Weighted(weights),
            Selected::Routed {
                router,
                parameters,
                modules,
                always_on,
                prompt_tokens,
                text,
                bucket,
            } => Self::Routed(RouterRequest {
                router,
                parameters: Parameters(parameters.into_iter().map(value).collect()),
                modules,
                always_on,
                prompt_tokens,
                text,
                bucket,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_the_same_after_it_was_written() {
        let text = str::to_owned;
        let asked = RouterRequest {
            router: text("retrieval+arrow"),
            parameters: Parameters(vec![
                (text("top_k"), Value::Number(2.0)),
                (text("retrieval.k"), Value::Number(4.0)),
                (text("share"), Value::Text(text("layer"))),
                (text("base"), Value::Flag(false)),
            ]),
            modules: vec![text("tag:x")],
            always_on: vec![(text("a"), -0.3)],
            prompt_tokens: 7,
            text: Some(text("hello")),
            bucket: u64::MAX,
        };
        let sampling =
            SamplingParams { seed: u64::MAX, temperature: 0.1, ..SamplingParams::default() };
        for selection in
            [Selection::Base, Selection::Weighted(vec![(text("a"), 0.1)]), Selection::Routed(asked)]
        {
            let repeat = Repeat {
                prompt: vec![1, 2],
                sampling: sampling.clone(),
                selection: Selected::from(&selection),
            };
            let line = serde_json::to_string(&repeat).unwrap();
            let again: Repeat = serde_json::from_str(&line).unwrap();
            assert_eq!((again.prompt, &again.sampling), (vec![1, 2], &sampling));
            assert_eq!(Selection::from(again.selection), selection);
        }
    }

    /// Traces that were written before `always_on` had its name.
    #[test]
    fn old_names_are_read() {
        let old = r#"{"routed": {"router": "arrow", "parameters": [["top_k", 2.0]], "modules": [],
            "beside": [["a", 0.5]], "prompt_tokens": 3, "text": null, "bucket": 7}}"#;
        let read: Selected = serde_json::from_str(old).unwrap();
        let Selection::Routed(request) = Selection::from(read) else { panic!("not routed") };
        assert_eq!(request.always_on, [("a".to_owned(), 0.5)]);
    }
}
