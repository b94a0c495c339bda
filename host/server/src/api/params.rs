//! Request fields that chat and completions share, and polyskill's own extras.

use std::collections::BTreeMap;

use polyskill_engine::TraceLevel;
use polyskill_front::Tenant;
use polyskill_route::{RouteError, RouteSpec};
use polyskill_tokenizer::{Special, Stops};
use serde::{Deserialize, Deserializer};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::body::{one_of, texts};
use super::error::ApiError;
use super::front::Sender;
use super::reply::since_epoch;
use crate::answer::request::{AnswerRequest, OutputParams};
use crate::answer::route::Route;
use crate::experiments::{CONVERSATION_HEADER, Choice, TENANT_HEADER, UnitIds};
use crate::service::Service;

/// Stop strings of one request. OpenAI takes four; tasks of evaluations have more, and vLLM has no
/// bound.
const MAX_STOPS: usize = 64;
/// Longest salt in bytes, as vLLM bounds it.
const MAX_SALT_BYTES: usize = 1_024;

/// Fields of both request kinds, as sent: a field is `None` where it is missing or null, and its
/// range is checked when it is read. Unknown fields are accepted, as clients send many.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct CommonParams {
    /// The model name; missing or empty, it is the base.
    pub(crate) model: Option<String>,
    /// 0 to 100, 1 by default; 0 always takes the likeliest token.
    pub(crate) temperature: Option<f32>,
    /// The probability mass that is kept, 0 to 1; 1 by default, which keeps all.
    pub(crate) top_p: Option<f32>,
    /// The likeliest tokens that are kept; -1, 0 or missing keeps all.
    pub(crate) top_k: Option<i64>,
    /// The least probability that is kept, as a part of the largest; 0 to 1, 0 by default.
    pub(crate) min_p: Option<f32>,
    /// Choices per prompt, 1 to 16; 1 by default.
    pub(crate) n: Option<usize>,
    /// The seed of the first choice, any 64 bits; random where it is missing.
    pub(crate) seed: Option<i64>,
    /// Stop strings, at most 64.
    pub(crate) stop: Option<Stop>,
    /// -2 to 2, 0 by default, once for each time that the token came.
    pub(crate) frequency_penalty: Option<f32>,
    /// -2 to 2, 0 by default, for tokens that came at all.
    pub(crate) presence_penalty: Option<f32>,
    /// 0.01 to 10, 1 by default, which changes nothing.
    pub(crate) repetition_penalty: Option<f32>,
    /// Biases of -100 to 100 by token id; ids are texts, as keys of an object.
    pub(crate) logit_bias: Option<BTreeMap<String, f32>>,
    /// Sends the reply in chunks.
    pub(crate) stream: Option<bool>,
    /// The usage in a stream; needs `stream`.
    pub(crate) stream_options: Option<StreamOptions>,
    /// The client's user, which is a unit of experiments where `unit` is missing.
    pub(crate) user: Option<String>,
    /// Further tokens that end the answer.
    pub(crate) stop_token_ids: Option<Vec<u32>>,
    /// Tokens before which nothing stops the answer; at most as many as may be generated.
    pub(crate) min_tokens: Option<usize>,
    /// Goes on after the model's own end tokens.
    pub(crate) ignore_eos: Option<bool>,
    /// Keeps the text of a stop string or token in the answer.
    pub(crate) include_stop_str_in_output: Option<bool>,
    /// The unit by which experiments assign arms, before `user` and headers.
    pub(crate) unit: Option<String>,
    /// `"none"`, or an arm by name for testing; open where it is missing.
    pub(crate) experiment: Option<ExperimentChoice>,
    /// A text whose log-probability as an answer experiments may measure.
    pub(crate) reference: Option<String>,
    /// The routing that the reply reports: `none`, `summary` or `full`.
    pub(crate) trace: Option<String>,
    /// Keeps this caller's cached beginnings apart from others'; 1 to 1,024 bytes.
    pub(crate) cache_salt: Option<String>,
    /// Leaves special tokens out of the text; true by default.
    pub(crate) skip_special_tokens: Option<bool>,
    /// Puts the tokenizer's special tokens around a prompt; the default is the route's.
    pub(crate) add_special_tokens: Option<bool>,
    /// Tokens of the prompt that are kept; -1 keeps as many as fit.
    pub(crate) truncate_prompt_tokens: Option<i64>,
    /// The side that is cut off, `left` by default or `right`.
    pub(crate) truncation_side: Option<String>,
    /// The only tokens that may come; not empty.
    pub(crate) allowed_token_ids: Option<Vec<u32>>,
    /// Words that may not come, at most 64.
    pub(crate) bad_words: Option<Vec<String>>,
    /// Alternatives per token of the prompt, 0 to 20; not in streams.
    pub(crate) prompt_logprobs: Option<i64>,
    /// Reports the ids of prompt and answer.
    pub(crate) return_token_ids: Option<bool>,
    /// Names tokens by `token_id:ID` in lists of log-probabilities.
    pub(crate) return_tokens_as_token_ids: Option<bool>,
}

/// Stop strings, from one string or a list.
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

/// The field `stream_options`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StreamOptions {
    /// Sends the usage of the whole reply in a last chunk.
    pub(crate) include_usage: Option<bool>,
    /// Sends the usage so far in every chunk; needs `include_usage`.
    pub(crate) continuous_usage_stats: Option<bool>,
    /// OpenAI's padding against guesses by length; true is refused.
    pub(crate) include_obfuscation: Option<bool>,
}

/// The field `experiment`: `"none"`, or an arm by name.
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

impl CommonParams {
    /// The model name, or the base's where the request gives none.
    pub(crate) fn model_name<'a>(&'a self, service: &'a Service) -> &'a str {
        self.model.as_deref().filter(|model| !model.is_empty()).unwrap_or(&service.base_name)
    }

    /// True where the reply is sent in chunks.
    pub(crate) fn streams(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// Checks the options of a stream, which need one.
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

    /// The place of special tokens in the text: `skip_special_tokens`, the other way round.
    pub(crate) fn special(&self) -> Special {
        match self.skip_special_tokens {
            Some(false) => Special::Shown,
            _ => Special::Hidden,
        }
    }

    /// The stop strings, none of them empty, with the tokens before which they do not count.
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

    /// Alternatives per token of the prompt that the request asks for by itself. vLLM's -1 for the
    /// whole vocabulary is refused.
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

    /// True where a prompt that is too long is cut.
    pub(crate) fn truncates(&self) -> bool {
        self.truncate_prompt_tokens.is_some()
    }

    /// Cuts a prompt as `truncate_prompt_tokens` asks; `room` tokens are left for it. Without the
    /// field nothing is cut, and the engine refuses a prompt that is too long.
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

    /// A salt that keeps this caller's cached beginnings apart from others'; empty without one.
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

    /// The routing that the reply reports; none by default.
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

    /// The experiment that the request asks for: none, where its own `route` says what answers.
    fn experiment(&self, route: &RouteSpec) -> Choice {
        match &self.experiment {
            Some(ExperimentChoice(choice)) => choice.clone(),
            None if route.router.is_some() || route.adapters.is_some() => Choice::None,
            None => Choice::Open,
        }
    }

    /// The request as meant, with all fields of this struct checked but those of the reply's form, and
    /// `asked`, the route that it asks for. `id` is the reply's; at most `max_tokens` are to be
    /// generated for each choice.
    ///
    /// The unit's `beginning`, and log-probabilities of the answer, are left to the caller.
    pub(crate) fn meant(
        &self,
        service: &Service,
        sender: &Sender,
        asked: RouteSpec,
        id: String,
        max_tokens: usize,
    ) -> Result<AnswerRequest, ApiError> {
        let model = self.model_name(service);
        let named = service.route(model).ok_or_else(|| ApiError::unknown_model(model))?;
        let refused =
            |error: RouteError| ApiError::bad_request(error.to_string(), Some(error.field));
        asked.check().map_err(refused)?;
        let experiment = self.experiment(&asked);
        let route = Route::new(service, named, asked);
        let header = |name: &str| Some(sender.headers.get(name)?.to_str().ok()?.to_owned());
        Ok(AnswerRequest {
            id,
            model: model.to_owned(),
            route,
            experiment,
            bucket: self.bucket(),
            tenant: sender.tenant.clone(),
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
                cache_salt: salted(&sender.tenant, self.cache_salt()?),
                trace: self.trace_level()?,
                prompt_logprobs: self.prompt_logprobs()?,
            },
        })
    }

    /// A number that is the same for the same unit (`unit`, else `user`) on every server: the first
    /// bytes of its SHA-256. Requests without a unit all have bucket 0.
    fn bucket(&self) -> u64 {
        let Some(unit) = self.unit.as_ref().or(self.user.as_ref()) else { return 0 };
        let digest = Sha256::digest(unit.as_bytes());
        digest.iter().take(8).fold(0, |bucket, byte| bucket << 8 | u64::from(*byte))
    }

    /// Number of choices per prompt, 1 to 16.
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
    /// No usage in any chunk.
    None,
    /// In a chunk of its own at the end; null in the others.
    AtEnd,
    /// In every chunk.
    Continuous,
}

/// The salt of a tenant's cached beginnings: tenants with keys share none with others, whatever salt a
/// request names.
fn salted(tenant: &Tenant, salt: String) -> String {
    match tenant.has_key {
        true => format!("{}\0{salt}", tenant.name),
        false => salt,
    }
}
