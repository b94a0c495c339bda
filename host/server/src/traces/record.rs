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
pub(crate) struct Trace {
    /// The reply's id.
    pub(crate) id: String,
    /// Arrival, in microseconds since 1970.
    pub(crate) at_us: u64,
    /// The caller's W3C `traceparent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) traceparent: Option<String>,
    pub(crate) model: String,
    pub(crate) composition: String,
    pub(crate) router: Option<String>,
    pub(crate) served: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fallback_reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) experiment: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) arm: Option<String>,
    /// Modules by the numbers in picks.
    pub(crate) modules: Vec<String>,
    pub(crate) share: BTreeMap<String, f64>,
    pub(crate) reason: String,
    pub(crate) prompt_tokens: usize,
    pub(crate) cached_tokens: usize,
    pub(crate) completion_tokens: usize,
    pub(crate) fallback_rows: u64,
    pub(crate) queue_us: u64,
    /// From arrival to the first token.
    pub(crate) first_token_us: Option<u64>,
    pub(crate) total_us: u64,
    /// Each generated token with its picks, as in a reply with `trace: "full"`.
    pub(crate) tokens: Vec<TracedToken>,
    /// What it takes to run it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) repeat: Option<Repeat>,
}

/// A generated token with what was decided for the row that produced it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct TracedToken {
    pub(crate) token: u32,
    text: String,
    pub(crate) sites: Vec<TracedSite>,
    /// What sparse layers of the base did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) experts: Vec<TracedExperts>,
}

/// The picks at one site; where a program decided there, the best scores with the margin between the first two.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct TracedSite {
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
pub(crate) struct TracedExperts {
    layer: u32,
    site: Cow<'static, str>,
    logits: Vec<f32>,
    experts: Vec<(u32, f32)>,
}

impl TracedToken {
    /// Of an event whose routing was recorded; nothing where none was.
    pub(crate) fn of(event: TokenEvent, tokenizer: &Tokenizer) -> Option<Self> {
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
pub(crate) struct Repeat {
    pub(crate) prompt: Vec<u32>,
    #[serde(with = "Sampling")]
    pub(crate) sampling: SamplingParams,
    pub(crate) selection: Selected,
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
pub(crate) enum Selected {
    Base,
    Weighted(Vec<(String, f32)>),
    Routed {
        router: String,
        parameters: Vec<(String, Json)>,
        modules: Vec<String>,
        beside: Vec<(String, f32)>,
        prompt_tokens: usize,
        text: Option<String>,
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
                beside: asked.beside.clone(),
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
                beside,
                prompt_tokens,
                text,
                bucket,
            } => Self::Routed(RouterRequest {
                router,
                parameters: Parameters(parameters.into_iter().map(value).collect()),
                modules,
                beside,
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
            beside: vec![(text("a"), -0.3)],
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
}
