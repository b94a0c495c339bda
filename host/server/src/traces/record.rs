//! The record of one traced request.

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

/// A request from its arrival to its end. The JSON of this is a line of the file of traces.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Trace {
    /// The reply's id.
    pub id: String,
    /// Arrival, in microseconds since 1970.
    pub at_us: u64,
    /// The caller's W3C `traceparent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// The model name in the request.
    pub model: String,
    /// Digest of the composition, hexadecimal.
    pub composition: String,
    /// The router of the composition, or the chain; `None` without one.
    pub router: Option<String>,
    /// `assigned`, or `fallback` where the base or the model name's own selection answered instead.
    pub served: String,
    /// The reason of a fallback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_reason: Option<String>,
    /// The experiment that the request counts for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experiment: Option<String>,
    /// The arm of the experiment; missing before its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arm: Option<String>,
    /// Modules by the numbers in picks.
    pub modules: Vec<String>,
    /// Mean weight of each module over generated tokens and sites.
    pub share: BTreeMap<String, f64>,
    /// `finish_reason` of the reply.
    pub reason: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them whose keys and values were in the cache.
    pub cached_tokens: usize,
    /// Generated tokens, a stop token included.
    pub completion_tokens: usize,
    /// Rows and sites that the base answered in place of a router.
    pub fallback_rows: u64,
    /// Time in the queue, in microseconds.
    pub queue_us: u64,
    /// From submission to the first token, in microseconds; `None` where there was none.
    pub first_token_us: Option<u64>,
    /// From submission to the end, in microseconds.
    pub total_us: u64,
    /// Each generated token with its picks, as in a reply with `trace: "full"`.
    pub tokens: Vec<TracedToken>,
    /// The parts that are needed to run it again; only where prompts are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat: Option<Repeat>,
}

/// A generated token with what was decided for the row that produced it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TracedToken {
    /// The token's id.
    pub token: u32,
    /// Its text.
    text: String,
    /// The picks, by site.
    pub sites: Vec<TracedSite>,
    /// The choices of sparse layers of the base.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub experts: Vec<TracedExperts>,
}

/// The picks at one site; where a program decided there, the best scores with the margin between
/// the first two.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TracedSite {
    /// The layer, from 0.
    layer: usize,
    /// The name of the projection, such as `q_proj`.
    site: Cow<'static, str>,
    /// Modules by their number in [`Trace::modules`], with weights, in the order in which they act.
    picks: Vec<(u32, f32)>,
    /// The best candidates by score, best first; empty where no program decided.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    scores: Vec<(u32, f32)>,
    /// The difference of the first two scores; `None` with fewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    margin: Option<f32>,
}

/// The choice of experts at one sparse layer of the base.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TracedExperts {
    /// The layer, from 0.
    layer: u32,
    /// `moe`.
    site: Cow<'static, str>,
    /// Logits of the base's own router, one per expert.
    logits: Vec<f32>,
    /// Experts that were run with their weights, ascending.
    experts: Vec<(u32, f32)>,
}

impl TracedToken {
    /// The record of an event whose routing was recorded; `None` where none was.
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

/// The parts of a request that are needed to run it again.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Repeat {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Its sampling parameters, the seed included.
    #[serde(with = "Sampling")]
    pub sampling: SamplingParams,
    /// The selection that answered.
    pub selection: Selected,
}

/// The fields of [`SamplingParams`], for serde: the engine's type has no form on the disk. A field
/// that is added there is to be added here.
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

/// The form of a [`Selection`] on the disk.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Selected {
    /// The base alone.
    Base,
    /// Modules by name, with weights.
    Weighted(Vec<(String, f32)>),
    /// A router, or a chain of them.
    Routed {
        /// The router's name, or the chain.
        router: String,
        /// The request's own parameters, scalars.
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
        /// A hash of the request's unit.
        bucket: u64,
    },
}

/// The form on the disk of a selection.
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

/// A parameter as JSON. A number that is not finite becomes null.
fn to_json((name, value): &(String, Value)) -> (String, Json) {
    let value = match value {
        Value::Flag(flag) => (*flag).into(),
        Value::Number(number) => (*number).into(),
        Value::Text(text) => text.clone().into(),
    };
    (name.clone(), value)
}

/// A selection as it was; a parameter that is no flag, text or number becomes NaN.
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
