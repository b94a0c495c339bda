//! Request fields that chat and completions share, and polyskill's own extras.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use axum::http::HeaderMap;
use polyskill_engine::{RouterRequest, TraceLevel};
use polyskill_sdk::{Parameters, Value};
use polyskill_tokenizer::{Special, Stops};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value as Json;

use super::body::{one_of, texts};
use super::error::ApiError;
use super::reply::since_epoch;
use crate::answer::request::{AnswerRequest, OutputParams};
use crate::answer::route::{Route, RouteFields, RouterField};
use crate::experiments::{CONVERSATION_HEADER, Choice, TENANT_HEADER, UnitIds};
use crate::service::Service;

/// Stop strings of one request. OpenAI takes four; tasks of evaluations have more, and vLLM has no bound.
const MAX_STOPS: usize = 64;
/// Longest salt, as vLLM bounds it.
const MAX_SALT_BYTES: usize = 1_024;

/// Fields of both request kinds. Unknown fields are accepted, as clients send many.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct CommonParams {
    pub(crate) model: Option<String>,
    pub(crate) temperature: Option<f32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) top_k: Option<i64>,
    pub(crate) min_p: Option<f32>,
    pub(crate) n: Option<usize>,
    pub(crate) seed: Option<i64>,
    pub(crate) stop: Option<Stop>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) presence_penalty: Option<f32>,
    pub(crate) repetition_penalty: Option<f32>,
    pub(crate) logit_bias: Option<BTreeMap<String, f32>>,
    pub(crate) stream: Option<bool>,
    pub(crate) stream_options: Option<StreamOptions>,
    pub(crate) user: Option<String>,
    pub(crate) stop_token_ids: Option<Vec<u32>>,
    pub(crate) min_tokens: Option<usize>,
    pub(crate) ignore_eos: Option<bool>,
    pub(crate) include_stop_str_in_output: Option<bool>,
    pub(crate) router: Option<RouterChoice>,
    pub(crate) adapters: Option<Vec<AdapterWeight>>,
    pub(crate) unit: Option<String>,
    pub(crate) experiment: Option<ExperimentChoice>,
    /// A text whose log-probability experiments may measure.
    pub(crate) reference: Option<String>,
    pub(crate) trace: Option<String>,
    pub(crate) cache_salt: Option<String>,
    pub(crate) skip_special_tokens: Option<bool>,
    pub(crate) add_special_tokens: Option<bool>,
    pub(crate) truncate_prompt_tokens: Option<i64>,
    pub(crate) truncation_side: Option<String>,
    pub(crate) allowed_token_ids: Option<Vec<u32>>,
    pub(crate) bad_words: Option<Vec<String>>,
    pub(crate) prompt_logprobs: Option<i64>,
    pub(crate) return_token_ids: Option<bool>,
    pub(crate) return_tokens_as_token_ids: Option<bool>,
}

/// One string or several.
#[derive(Clone, Debug)]
pub(crate) struct Stop(Vec<String>);

impl<'de> Deserialize<'de> for Stop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        one_of(deserializer, "a string or a list of strings", |value| match value {
            Json::String(stop) => Some(Self(vec![stop.clone()])),
            several => texts(several).map(Self),
        })
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StreamOptions {
    pub(crate) include_usage: Option<bool>,
    pub(crate) continuous_usage_stats: Option<bool>,
    pub(crate) include_obfuscation: Option<bool>,
}

#[derive(Clone, Debug)]
pub(crate) enum RouterChoice {
    Name(String),
    Full(RouterSpec),
}

impl<'de> Deserialize<'de> for RouterChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "a router's name or an object with `name`, `params` and `modules`";
        let value = one_of(deserializer, expected, |value| {
            (value.is_string() || value.is_object()).then(|| value.clone())
        })?;
        match value {
            Json::String(name) => Ok(Self::Name(name)),
            spec => RouterSpec::deserialize(spec).map(Self::Full).map_err(D::Error::custom),
        }
    }
}

impl RouterChoice {
    fn name(&self) -> &str {
        match self {
            Self::Name(name) => name,
            Self::Full(spec) => &spec.name,
        }
    }
}

/// `"none"`, or an arm by name.
#[derive(Clone, Debug)]
pub(crate) struct ExperimentChoice(Choice);

impl<'de> Deserialize<'de> for ExperimentChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "`none`, or an object with `name` and `arm`";
        one_of(deserializer, expected, |value| {
            if value == "none" {
                return Some(Self(Choice::None));
            }
            let text = |key: &str| Some(value.get(key)?.as_str()?.to_owned());
            Some(Self(Choice::Arm(text("name")?, text("arm")?)))
        })
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RouterSpec {
    name: String,
    #[serde(default)]
    params: BTreeMap<String, Json>,
    #[serde(default)]
    modules: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AdapterWeight {
    name: String,
    #[serde(default = "one")]
    weight: f32,
}

fn one() -> f32 {
    1.0
}

impl CommonParams {
    pub(crate) fn model_name<'a>(&'a self, service: &'a Service) -> &'a str {
        self.model.as_deref().filter(|model| !model.is_empty()).unwrap_or(&service.base_name)
    }

    pub(crate) fn streams(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// Checks the options of a stream.
    pub(crate) fn stream_usage(&self) -> Result<StreamUsage, ApiError> {
        let Some(options) = &self.stream_options else { return Ok(StreamUsage::None) };
        let refused = |message: &str| Err(ApiError::bad_request(message, Some("stream_options")));
        if !self.streams() {
            return refused("`stream_options` needs `stream`: true");
        }
        if options.include_obfuscation == Some(true) {
            return refused("`stream_options.include_obfuscation` is not supported");
        }
        let continuous = options.continuous_usage_stats.unwrap_or(false);
        match (options.include_usage.unwrap_or(false), continuous) {
            (true, true) => Ok(StreamUsage::Continuous),
            (true, false) => Ok(StreamUsage::AtEnd),
            (false, true) => refused(
                "`stream_options.continuous_usage_stats` needs `stream_options.include_usage`",
            ),
            (false, false) => Ok(StreamUsage::None),
        }
    }

    /// `skip_special_tokens`, the other way round: the place of special tokens in the text.
    pub(crate) fn special(&self) -> Special {
        match self.skip_special_tokens {
            Some(false) => Special::Shown,
            _ => Special::Hidden,
        }
    }

    pub(crate) fn stops(&self) -> Result<Stops, ApiError> {
        let strings = self.stop.as_ref().map_or(&[][..], |stop| &stop.0);
        if strings.len() > MAX_STOPS {
            let message =
                format!("`stop` holds {} strings, expected at most {MAX_STOPS}", strings.len());
            return Err(ApiError::bad_request(message, Some("stop")));
        }
        if strings.iter().any(String::is_empty) {
            let message = "`stop` holds an empty string, which every text begins with";
            return Err(ApiError::bad_request(message, Some("stop")));
        }
        Ok(Stops {
            strings: strings.to_vec(),
            include: self.include_stop_str_in_output.unwrap_or(false),
            min_tokens: self.min_tokens.unwrap_or(0),
        })
    }

    /// Alternatives per token of the prompt that the request asks for by itself.
    pub(crate) fn prompt_logprobs(&self) -> Result<Option<usize>, ApiError> {
        let refused =
            |message: String| Err(ApiError::bad_request(message, Some("prompt_logprobs")));
        match self.prompt_logprobs {
            None => Ok(None),
            Some(_) if self.streams() => {
                refused("`prompt_logprobs` with `stream` is not supported".to_owned())
            }
            Some(top @ 0..=20) => Ok(Some(top as usize)),
            Some(top) => refused(format!("`prompt_logprobs` is {top}, expected 0 to 20")),
        }
    }

    /// Cuts a prompt as `truncate_prompt_tokens` asks; `room` tokens are left for it.
    pub(crate) fn truncate(&self, tokens: &mut Vec<u32>, room: usize) -> Result<(), ApiError> {
        let refused = |name, message: String| Err(ApiError::bad_request(message, Some(name)));
        let Some(keep) = self.truncate_prompt_tokens else { return Ok(()) };
        let keep = match keep {
            -1 => room,
            keep => match usize::try_from(keep) {
                Ok(keep) if keep <= room => keep,
                _ => {
                    let message =
                        format!("`truncate_prompt_tokens` is {keep}, expected -1 to {room}");
                    return refused("truncate_prompt_tokens", message);
                }
            },
        };
        match self.truncation_side.as_deref() {
            None | Some("left") => {
                tokens.drain(..tokens.len().saturating_sub(keep));
            }
            Some("right") => tokens.truncate(keep),
            Some(other) => {
                let message = format!("`truncation_side` is `{other}`, expected left or right");
                return refused("truncation_side", message);
            }
        }
        Ok(())
    }

    /// What keeps this caller's cached beginnings apart from others'.
    pub(crate) fn cache_salt(&self) -> Result<String, ApiError> {
        match &self.cache_salt {
            None => Ok(String::new()),
            Some(salt) if (1..=MAX_SALT_BYTES).contains(&salt.len()) => Ok(salt.clone()),
            Some(salt) => {
                let len = salt.len();
                let message =
                    format!("`cache_salt` has {len} bytes, expected 1 to {MAX_SALT_BYTES}");
                Err(ApiError::bad_request(message, Some("cache_salt")))
            }
        }
    }

    pub(crate) fn trace_level(&self) -> Result<TraceLevel, ApiError> {
        match self.trace.as_deref() {
            None | Some("none") => Ok(TraceLevel::None),
            Some("summary") => Ok(TraceLevel::Summary),
            Some("full") => Ok(TraceLevel::Full),
            Some(other) => {
                let message = format!("`trace` is `{other}`, expected none, summary or full");
                Err(ApiError::bad_request(message, Some("trace")))
            }
        }
    }

    /// The experiment that the request asks for: none, where it says itself what answers.
    fn experiment(&self) -> Choice {
        match &self.experiment {
            Some(ExperimentChoice(choice)) => choice.clone(),
            None if self.router.is_some() || self.adapters.is_some() => Choice::None,
            None => Choice::Open,
        }
    }

    /// The fields that say what answers.
    fn route_fields(&self) -> Result<RouteFields, ApiError> {
        let adapters = self.adapters.as_deref().map(weights).transpose()?;
        let router = match &self.router {
            None => RouterField::Unset,
            Some(choice) if choice.name() == "none" => RouterField::None,
            Some(choice) => RouterField::Router(routed(choice)?),
        };
        Ok(RouteFields { adapters, router })
    }

    /// The request as meant. `id` is the reply's; at most `max_tokens` are to be generated for each choice.
    pub(crate) fn meant(
        &self,
        service: &Service,
        headers: &HeaderMap,
        id: String,
        max_tokens: usize,
    ) -> Result<AnswerRequest, ApiError> {
        let model = self.model_name(service);
        let named = service.selection(model).ok_or_else(|| ApiError::unknown_model(model))?;
        let route = Route::new(service, named, self.route_fields()?, self.bucket());
        let route = route.map_err(|twice| {
            let message = format!(
                "`adapters` names `{twice}`, which `model` names already, expected it once"
            );
            ApiError::bad_request(message, Some("adapters"))
        })?;
        let header = |name: &str| Some(headers.get(name)?.to_str().ok()?.to_owned());
        Ok(AnswerRequest {
            id,
            model: model.to_owned(),
            route,
            experiment: self.experiment(),
            units: UnitIds {
                unit: self.unit.clone(),
                user: self.user.clone(),
                conversation: header(CONVERSATION_HEADER),
                tenant: header(TENANT_HEADER),
                beginning: None,
            },
            reference: self.reference.clone(),
            at_us: since_epoch().as_micros() as u64,
            traceparent: header("traceparent"),
            output: OutputParams {
                choices: self.choices()?,
                sampling: self.sampling(service, max_tokens)?,
                num_own_stops: self.stop_token_ids.as_ref().map_or(0, Vec::len),
                stops: self.stops()?,
                special: self.special(),
                cache_salt: self.cache_salt()?,
                trace: self.trace_level()?,
            },
        })
    }

    /// The same number for the same unit (`unit`, else `user`).
    fn bucket(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.unit.as_ref().or(self.user.as_ref()).hash(&mut hasher);
        hasher.finish()
    }

    /// Number of choices.
    pub(crate) fn choices(&self) -> Result<usize, ApiError> {
        match self.n {
            None => Ok(1),
            Some(n @ 1..=16) => Ok(n),
            Some(n) => {
                Err(ApiError::bad_request(format!("`n` is {n}, expected 1 to 16"), Some("n")))
            }
        }
    }
}

/// The usage that a stream reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamUsage {
    None,
    /// In a chunk of its own at the end; null in the others.
    AtEnd,
    /// In every chunk.
    Continuous,
}

fn weights(adapters: &[AdapterWeight]) -> Result<Vec<(String, f32)>, ApiError> {
    let mut seen = BTreeSet::new();
    if let Some(twice) = adapters.iter().find(|adapter| !seen.insert(&adapter.name)) {
        let message = format!("`adapters` names `{}` twice, expected each name once", twice.name);
        return Err(ApiError::bad_request(message, Some("adapters")));
    }
    Ok(adapters.iter().map(|adapter| (adapter.name.clone(), adapter.weight)).collect())
}

fn routed(choice: &RouterChoice) -> Result<RouterRequest, ApiError> {
    let (router, params, modules) = match choice {
        RouterChoice::Name(name) => (name, None, Vec::new()),
        RouterChoice::Full(spec) => (&spec.name, Some(&spec.params), spec.modules.clone()),
    };
    let scalar = |(name, value): (&String, &Json)| {
        let value = match value {
            Json::Bool(value) => Value::Flag(*value),
            Json::Number(value) => Value::Number(value.as_f64().unwrap_or(f64::NAN)),
            Json::String(value) => Value::Text(value.clone()),
            other => {
                let message = format!("router parameter `{name}` is {other}, expected a scalar");
                return Err(ApiError::bad_request(message, Some("router.params")));
            }
        };
        Ok((name.clone(), value))
    };
    let parameters = params.into_iter().flatten().map(scalar).collect::<Result<_, _>>()?;
    let (router, parameters) = (router.clone(), Parameters(parameters));
    Ok(RouterRequest { router, parameters, modules, ..RouterRequest::default() })
}
