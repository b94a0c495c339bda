//! The record of one traced request.

use std::borrow::Cow;
use std::collections::BTreeMap;

use polyskill_engine::{LayerExperts, SamplingParams, Selection, SitePicks, TokenEvent};
use polyskill_model::Site;
use polyskill_route::{Adapters, RouteSpec, RouterSpec};
use polyskill_sdk::Parameters;
use polyskill_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};

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
#[serde(from = "ReadRepeat")]
pub struct Repeat {
    /// Tokens of the prompt.
    pub prompt: Vec<u32>,
    /// Its sampling parameters, the seed included.
    pub sampling: SamplingParams,
    /// The route that answered.
    pub route: RouteSpec,
    /// The text that the router was told.
    pub text: Option<String>,
    /// A hash of the request's unit, as the router was told.
    pub bucket: u64,
}

impl Repeat {
    /// The selection that answered, with the prompt that its router was told of.
    pub fn selection(&self) -> Selection {
        Selection::from(&self.route).told(self.prompt.len(), self.text.clone(), self.bucket)
    }
}

/// The fields as they are read.
#[derive(Deserialize)]
struct ReadRepeat {
    prompt: Vec<u32>,
    sampling: SamplingParams,
    #[serde(default)]
    route: RouteSpec,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    bucket: u64,
    /// The older form of `route`, `text` and `bucket`.
    #[serde(default)]
    selection: Option<ReadSelection>,
}

/// The older form of a route, with what its router was told.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum ReadSelection {
    /// The base alone.
    Base,
    /// Modules by name, with weights.
    Weighted(Adapters),
    /// A router, or a chain of them.
    Routed {
        router: String,
        #[serde(with = "polyskill_route::params")]
        parameters: Parameters,
        modules: Vec<String>,
        #[serde(alias = "beside")]
        always_on: Adapters,
        text: Option<String>,
        bucket: u64,
    },
}

impl From<ReadRepeat> for Repeat {
    fn from(read: ReadRepeat) -> Self {
        let ReadRepeat { prompt, sampling, route, text, bucket, selection } = read;
        let now = Self { prompt, sampling, route, text, bucket };
        match selection {
            None | Some(ReadSelection::Base) => now,
            Some(ReadSelection::Weighted(adapters)) => {
                Self { route: RouteSpec { router: None, adapters: Some(adapters) }, ..now }
            }
            Some(ReadSelection::Routed {
                router,
                parameters,
                modules,
                always_on,
                text,
                bucket,
            }) => {
                let router = RouterSpec { name: router, params: parameters, modules };
                let adapters = Some(always_on).filter(|adapters| !adapters.0.is_empty());
                Self { route: RouteSpec { router: Some(router), adapters }, text, bucket, ..now }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_is_the_same_after_it_was_written() {
        let sampling =
            SamplingParams { seed: u64::MAX, temperature: 0.1, ..SamplingParams::default() };
        for route in [
            json!({}),
            json!({"adapters": [{"name": "a", "weight": 0.1}]}),
            json!({
                "router": {"name": "retrieval+arrow", "modules": ["tag:x"], "params":
                    {"top_k": 2, "retrieval.k": 4, "share": "layer", "base": false}},
                "adapters": [{"name": "a", "weight": -0.3}]
            }),
        ] {
            let repeat = Repeat {
                prompt: vec![1, 2],
                sampling: sampling.clone(),
                route: serde_json::from_value(route).unwrap(),
                text: Some("hello".to_owned()),
                bucket: u64::MAX,
            };
            let line = serde_json::to_string(&repeat).unwrap();
            let again: Repeat = serde_json::from_str(&line).unwrap();
            assert_eq!((&again.prompt, &again.sampling), (&repeat.prompt, &sampling));
            assert_eq!((again.selection(), &again.route), (repeat.selection(), &repeat.route));
        }
    }
}
