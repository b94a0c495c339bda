//! `adapter_config.json`: which settings change arithmetic, and how. PEFT's rules for targets and patterns are
//! shared by its kinds; the settings of a LoRA are here, those of other kinds beside their weights.

use std::collections::BTreeSet;

use polyskill_model::{ModelConfig, Site};
use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value as Json};

use super::bundle::MAX_WEIGHT;

/// Settings that do not change a forward pass at inference.
const IGNORED: [&str; 10] = [
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "qalora_group_size",
    "runtime_config",
];
/// Settings of every kind that do not change a forward pass at inference. PEFT itself takes `fan_in_fan_out`
/// back for the linears of these models.
const ALWAYS_IGNORED: [&str; 8] = [
    "auto_mapping",
    "base_model_name_or_path",
    "fan_in_fan_out",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "task_type",
];
/// Settings that are read below.
const READ: [&str; 15] = [
    "r",
    "lora_alpha",
    "lora_bias",
    "use_dora",
    "use_rslora",
    "trainable_token_indices",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "bias",
    "init_lora_weights",
    "modules_to_save",
];
/// Initialisers that leave the base's weights as they are.
const PLAIN_INITIALISERS: [&str; 3] = ["gaussian", "orthogonal", "eva"];
const MAX_RANK: u64 = 1 << 14;
/// Compiled size of one pattern from outside.
const MAX_REGEX_BYTES: usize = 1 << 20;

/// What a LoRA's configuration says about arithmetic.
#[derive(Debug)]
pub(super) struct LoraSettings {
    rank: usize,
    alpha: f64,
    use_rslora: bool,
    rank_pattern: Vec<(Regex, usize)>,
    alpha_pattern: Vec<(Regex, f64)>,
    target: Matcher,
    /// Fused parameters, as PEFT's `target_parameters` names them.
    parameters: Vec<String>,
    exclude: Option<Matcher>,
    layers: Option<BTreeSet<u64>>,
    layer_containers: Vec<String>,
    /// Whether sites have magnitudes.
    pub(super) use_dora: bool,
    /// Whether B has a bias.
    pub(super) lora_bias: bool,
    /// Whether biases of the base were trained too.
    pub(super) trains_biases: bool,
    /// Whether the module has a head of its own.
    pub(super) own_head: bool,
    /// Tokens with rows of their own.
    pub(super) tokens: Option<TokenIndices>,
}

/// Tokens with rows of their own in the embedding table and the head.
#[derive(Debug)]
pub(super) struct TokenIndices {
    pub(super) embedding: Vec<u32>,
    /// `None` where the head follows the embedding table if they are tied.
    pub(super) head: Option<Vec<u32>>,
}

/// What `target_modules` and its like say.
#[derive(Debug)]
pub(super) enum Matcher {
    AllLinear,
    Names(Vec<String>),
    Pattern(Regex),
}

impl Matcher {
    /// PEFT's rule: a string is a regular expression for the whole path; a list holds last components.
    pub(super) fn matches(&self, path: &str) -> bool {
        match self {
            Self::AllLinear => path != "lm_head" && !path.ends_with("embed_tokens"),
            Self::Pattern(pattern) => pattern.is_match(path),
            Self::Names(names) => names.iter().any(|name| {
                path == name
                    || path.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'))
            }),
        }
    }
}

impl LoraSettings {
    /// Parses a configuration, with all problems at once.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Vec<String>> {
        let object = object(bytes)?;
        let mut problems = Vec::new();
        let mut keep = |result: Result<(), String>| problems.extend(result.err());
        keep(check_kind(&object));
        refused_lora_settings(&object).into_iter().for_each(|problem| keep(Err(problem)));
        let mut value = |result: Result<f64, String>, default: f64| match result {
            Ok(value) => value,
            Err(problem) => {
                keep(Err(problem));
                default
            }
        };
        let rank = value(positive_rank(object.get("r"), "r"), 1.0) as usize;
        let alpha = value(number(object.get("lora_alpha"), "lora_alpha"), 1.0);
        let rank_pattern = pattern_map(&object, "rank_pattern", |value, name| {
            positive_rank(Some(value), name).map(|rank| rank as usize)
        });
        let alpha_pattern =
            pattern_map(&object, "alpha_pattern", |value, name| number(Some(value), name));
        let target = matcher(object.get("target_modules"), "target_modules");
        let exclude = match object.get("exclude_modules") {
            None | Some(Json::Null) => Ok(None),
            Some(value) => matcher(Some(value), "exclude_modules").map(Some),
        };
        let layers = layers(object.get("layers_to_transform"));
        let layer_containers = strings(object.get("layers_pattern"));
        let tokens = match tokens(object.get("trainable_token_indices"), "trainable_token_indices")
        {
            Ok(tokens) => tokens,
            Err(problem) => {
                problems.push(problem);
                None
            }
        };
        let flag = |name: &str| object.get(name).and_then(Json::as_bool).unwrap_or(false);
        let own_head = !strings(object.get("modules_to_save")).is_empty();
        match (rank_pattern, alpha_pattern, target, exclude, layers) {
            (Ok(rank_pattern), Ok(alpha_pattern), Ok(target), Ok(exclude), Ok(layers))
                if problems.is_empty() =>
            {
                let use_rslora = flag("use_rslora");
                Ok(Self {
                    rank,
                    alpha,
                    use_rslora,
                    rank_pattern,
                    alpha_pattern,
                    target,
                    parameters: strings(object.get("target_parameters")),
                    exclude,
                    layers,
                    layer_containers,
                    use_dora: flag("use_dora"),
                    lora_bias: flag("lora_bias"),
                    trains_biases: trains_biases(&object),
                    own_head,
                    tokens,
                })
            }
            (rank_pattern, alpha_pattern, target, exclude, layers) => {
                problems.extend(rank_pattern.err());
                problems.extend(alpha_pattern.err());
                problems.extend(target.err());
                problems.extend(exclude.err());
                problems.extend(layers.err());
                Err(problems)
            }
        }
    }

    /// The sites that the configuration targets.
    pub(super) fn targets(&self, base: &ModelConfig) -> BTreeSet<Site> {
        base.sites().filter(|site| self.is_target(&format!("model.{site}"))).collect()
    }

    /// What the module does beside a plain low-rank product, by the name of the setting.
    pub(super) fn beyond_low_rank(&self) -> Vec<&'static str> {
        let settings = [
            ("use_dora", self.use_dora),
            ("lora_bias", self.lora_bias),
            ("bias", self.trains_biases),
            ("modules_to_save", self.own_head),
            ("trainable_token_indices", self.tokens.is_some()),
        ];
        settings.into_iter().filter(|(_, is_set)| *is_set).map(|(name, _)| name).collect()
    }

    pub(super) fn is_target(&self, path: &str) -> bool {
        let excluded = self.exclude.as_ref().is_some_and(|exclude| exclude.matches(path));
        !excluded && self.target.matches(path) && self.is_in_layers(path)
    }

    /// Whether `target_parameters` names a fused parameter.
    pub(super) fn is_target_parameter(&self, path: &str) -> bool {
        let names = |name: &String| {
            path == name || path.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'))
        };
        self.parameters.iter().any(names) && self.is_in_layers(path)
    }

    fn is_in_layers(&self, path: &str) -> bool {
        let Some(layers) = &self.layers else { return true };
        let Some(rest) = path.strip_prefix("model.layers.") else { return false };
        let container = self.layer_containers.is_empty()
            || self.layer_containers.iter().any(|container| container == "layers");
        let layer = rest.split('.').next().and_then(|layer| layer.parse().ok());
        container && layer.is_some_and(|layer: u64| layers.contains(&layer))
    }

    /// α, which patterns override per module.
    pub(super) fn alpha(&self, path: &str) -> f64 {
        first_match(&self.alpha_pattern, path).unwrap_or(self.alpha)
    }

    /// r, and the factor on B·A: α/r, or α/√r with rsLoRA; patterns override per module.
    pub(super) fn rank_and_scale(&self, path: &str) -> (usize, f32) {
        let rank = first_match(&self.rank_pattern, path).unwrap_or(self.rank);
        let alpha = self.alpha(path);
        let divisor = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        (rank, (alpha / divisor) as f32)
    }
}

/// PEFT's `get_pattern_key`: the first key, in file order, that matches a suffix at a dot.
fn first_match<T: Copy>(patterns: &[(Regex, T)], path: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(path)).map(|(_, value)| *value)
}

/// The configuration as an object.
pub(super) fn object(bytes: &[u8]) -> Result<Map<String, Json>, Vec<String>> {
    match serde_json::from_slice(bytes) {
        Ok(Json::Object(object)) => Ok(object),
        Ok(_) => Err(vec!["adapter_config.json is not an object".to_owned()]),
        Err(error) => Err(vec![format!("adapter_config.json is not valid JSON: {error}")]),
    }
}

fn trains_biases(object: &Map<String, Json>) -> bool {
    object.get("bias").and_then(Json::as_str).is_some_and(|which| which != "none")
}

fn check_kind(object: &Map<String, Json>) -> Result<(), String> {
    match object.get("peft_type").and_then(Json::as_str) {
        Some("LORA") => Ok(()),
        Some(other) => Err(format!("peft_type is `{other}`, expected LORA")),
        None => Err("`peft_type` is missing, expected LORA".to_owned()),
    }
}

/// Whether a setting is at the value that does nothing.
fn is_empty(value: &Json) -> bool {
    match value {
        Json::Null | Json::Bool(false) => true,
        Json::Array(values) => values.is_empty(),
        Json::Object(values) => values.is_empty(),
        Json::Bool(true) | Json::Number(_) | Json::String(_) => false,
    }
}

/// Settings that would change the result and are not implemented: all that are set and neither read nor
/// known to do nothing at inference.
pub(super) fn refused_settings(
    object: &Map<String, Json>,
    is_known: impl Fn(&str, &Json) -> bool,
) -> Vec<String> {
    let refused = object.iter().filter(|(key, value)| {
        !is_empty(value) && !ALWAYS_IGNORED.contains(&key.as_str()) && !is_known(key, value)
    });
    let problem = |(key, value): (&String, &Json)| {
        let shown: String = value.to_string().chars().take(60).collect();
        format!("setting `{key}` = {shown} is not supported")
    };
    refused.map(problem).collect()
}

fn refused_lora_settings(object: &Map<String, Json>) -> Vec<String> {
    refused_settings(object, |key, value| match key {
        "bias" => matches!(value.as_str(), Some("none" | "all" | "lora_only")),
        "init_lora_weights" => {
            value.is_boolean()
                || value.as_str().is_some_and(|how| PLAIN_INITIALISERS.contains(&how))
        }
        "target_parameters" => strings(Some(value)).iter().all(|name| {
            ["experts.gate_up_proj", "experts.down_proj"].iter().any(|known| name.ends_with(known))
        }),
        "modules_to_save" => strings(Some(value)) == ["lm_head"],
        "lora_bias" | "use_dora" | "use_rslora" => value.is_boolean(),
        key => READ.contains(&key) || IGNORED.contains(&key),
    })
}

/// Token ids with rows of their own: a list, or PEFT's map from `embed_tokens` and `lm_head` to lists.
pub(super) fn tokens(value: Option<&Json>, name: &str) -> Result<Option<TokenIndices>, String> {
    let list = |value: &Json| {
        let id = |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = value.as_array().and_then(|ids| ids.iter().map(id).collect());
        ids.ok_or_else(|| format!("`{name}` is not a list of token ids"))
    };
    let indices = match value {
        None | Some(Json::Null) => return Ok(None),
        Some(Json::Object(map)) => {
            let known = ["embed_tokens", "lm_head"];
            if let Some(other) = map.keys().find(|key| !known.contains(&key.as_str())) {
                let expected = "only `embed_tokens` and `lm_head` are supported";
                return Err(format!("`{name}` names `{other}`, {expected}"));
            }
            let embedding = map.get("embed_tokens").map(list).transpose()?.unwrap_or_default();
            TokenIndices { embedding, head: map.get("lm_head").map(list).transpose()? }
        }
        Some(ids) => TokenIndices { embedding: list(ids)?, head: None },
    };
    let none = indices.embedding.is_empty() && indices.head.as_ref().is_none_or(Vec::is_empty);
    Ok((!none).then_some(indices))
}

fn number(value: Option<&Json>, name: &str) -> Result<f64, String> {
    match value {
        None => Ok(8.0),
        Some(value) => {
            value.as_f64().filter(|value| value.abs() <= f64::from(MAX_WEIGHT)).ok_or_else(|| {
                format!("`{name}` is {value}, expected a number from -{MAX_WEIGHT} to {MAX_WEIGHT}")
            })
        }
    }
}

fn positive_rank(value: Option<&Json>, name: &str) -> Result<f64, String> {
    match value {
        None => Ok(8.0),
        Some(value) => match value.as_u64() {
            Some(rank @ 1..=MAX_RANK) => Ok(rank as f64),
            _ => Err(format!("`{name}` is {value}, expected a rank from 1 to {MAX_RANK}")),
        },
    }
}

fn regex(pattern: &str, name: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern)
        .size_limit(MAX_REGEX_BYTES)
        .build()
        .map_err(|error| format!("`{name}`: {}", error.to_string().replace('\n', " ")))
}

fn pattern_map<T>(
    object: &Map<String, Json>,
    name: &str,
    read: impl Fn(&Json, &str) -> Result<T, String>,
) -> Result<Vec<(Regex, T)>, String> {
    match object.get(name) {
        None | Some(Json::Null) => Ok(Vec::new()),
        Some(Json::Object(patterns)) => patterns
            .iter()
            .map(|(key, value)| {
                let pattern = regex(&format!(r"\A(?:.*\.)?(?:{key})\z"), name)?;
                Ok((pattern, read(value, &format!("{name}.{key}"))?))
            })
            .collect(),
        Some(other) => Err(format!("`{name}` is {other}, expected an object")),
    }
}

pub(super) fn matcher(value: Option<&Json>, name: &str) -> Result<Matcher, String> {
    match value {
        Some(Json::String(text)) if text == "all-linear" => Ok(Matcher::AllLinear),
        Some(Json::String(text)) => Ok(Matcher::Pattern(regex(&format!(r"\A(?:{text})\z"), name)?)),
        Some(Json::Array(values)) if values.iter().all(Json::is_string) => {
            Ok(Matcher::Names(strings(value)))
        }
        other => {
            let found = other.map_or("missing".to_owned(), Json::to_string);
            Err(format!("`{name}` is {found}, expected a list of names or a regular expression"))
        }
    }
}

fn layers(value: Option<&Json>) -> Result<Option<BTreeSet<u64>>, String> {
    let numbers = match value {
        None | Some(Json::Null) => return Ok(None),
        Some(Json::Array(values)) => values.iter().map(Json::as_u64).collect(),
        Some(value) => value.as_u64().map(|layer| BTreeSet::from([layer])),
    };
    let numbers: Option<BTreeSet<u64>> = numbers;
    numbers
        .map(Some)
        .ok_or_else(|| "`layers_to_transform` is not a list of layer numbers".to_owned())
}

/// A string or a list of strings.
pub(super) fn strings(value: Option<&Json>) -> Vec<String> {
    match value {
        Some(Json::String(text)) => vec![text.clone()],
        Some(Json::Array(values)) => {
            values.iter().filter_map(Json::as_str).map(str::to_owned).collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(extra: &str) -> Result<LoraSettings, Vec<String>> {
        let text = format!(r#"{{"peft_type": "LORA", "r": 4, "lora_alpha": 8, {extra}}}"#);
        LoraSettings::parse(text.as_bytes())
    }

    #[test]
    fn the_first_matching_pattern_wins() {
        let parsed = settings(
            r#""target_modules": ["q_proj"], "rank_pattern": {"self_attn.k_proj": 5, "k_proj": 3,
               "^model.layers.2.self_attn.v_proj": 1}, "alpha_pattern": {"proj": 100}"#,
        )
        .unwrap();
        assert_eq!(parsed.rank_and_scale("model.layers.0.self_attn.k_proj"), (5, 8.0 / 5.0));
        assert_eq!(parsed.rank_and_scale("model.layers.2.self_attn.v_proj"), (1, 8.0));
        assert_eq!(parsed.rank_and_scale("model.layers.12.self_attn.v_proj"), (4, 2.0));
    }

    #[test]
    fn names_match_whole_components_only() {
        let parsed = settings(r#""target_modules": ["proj", "self_attn.q_proj"]"#).unwrap();
        assert!(parsed.is_target("model.layers.0.self_attn.q_proj"));
        assert!(!parsed.is_target("model.layers.0.self_attn.k_proj"));
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        let problems = settings(
            r#""target_modules": 3, "use_qalora": true, "bias": "some", "lora_alpha": "x""#,
        )
        .unwrap_err();
        for part in ["target_modules", "use_qalora", "bias", "lora_alpha"] {
            assert!(problems.iter().any(|problem| problem.contains(part)), "{part}: {problems:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_configurations_never_panic(
            key in proptest::sample::select(READ.to_vec()),
            value in r#"[\[\]{}":,a-z0-9().*+?\\^$|-]{0,60}"#,
        ) {
            let text = format!(r#"{{"peft_type": "LORA", "target_modules": ["q_proj"], "{key}": {value}}}"#);
            let _ = LoraSettings::parse(text.as_bytes());
            let quoted = serde_json::to_string(&value).unwrap();
            let text = format!(r#"{{"peft_type": "LORA", "target_modules": {quoted}, "rank_pattern": {{{quoted}: 3}}}}"#);
            if let Ok(settings) = LoraSettings::parse(text.as_bytes()) {
                let _ = settings.is_target("model.layers.1.self_attn.q_proj");
                let _ = settings.rank_and_scale("model.layers.1.self_attn.q_proj");
            }
        }
    }
}
