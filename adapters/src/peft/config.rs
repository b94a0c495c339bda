//! `adapter_config.json`: which settings change arithmetic, and how. PEFT's rules for targets and
//! patterns are shared by its kinds; the settings of a LoRA are here, those of other kinds beside
//! their weights.

use std::collections::BTreeSet;

use polyskill_model::{ModelConfig, Site};
use serde_json::{Map, Value as Json};

use super::bundle::MAX_WEIGHT;
use super::pattern::Pattern;
use super::targets::{Layers, Matcher, Wrapper, layers, matcher, saved, target};

/// Settings that do not change a forward pass at inference.
const IGNORED: [&str; 8] = [
    "corda_config",
    "eva_config",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "qalora_group_size",
    "runtime_config",
];
/// Settings of every kind that do not change a forward pass at inference. PEFT itself takes
/// `fan_in_fan_out` back for the linears of these models.
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
/// Settings that change a forward pass, or make PEFT raise, with any value but null.
const ONLY_NULL: [&str; 5] =
    ["arrow_config", "kasa_config", "megatron_config", "use_bdlora", "velora_config"];
/// Settings that PEFT cannot do without: null is no default.
const NEVER_NULL: [&str; 6] =
    ["alpha_pattern", "bias", "lora_alpha", "lora_dropout", "r", "rank_pattern"];
/// Tasks that PEFT knows. PEFT raises for any other.
const TASKS: [&str; 6] =
    ["CAUSAL_LM", "FEATURE_EXTRACTION", "QUESTION_ANS", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS"];
/// Settings that are read below.
const READ: [&str; 16] = [
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
    "ensure_weight_tying",
];
/// Initialisers that leave the base's weights as they are.
const PLAIN_INITIALISERS: [&str; 3] = ["gaussian", "orthogonal", "eva"];
/// Largest rank of a configuration or a pattern.
const MAX_RANK: u64 = 1 << 14;
/// Names of the embedding table and the head, by which PEFT sees that a module changes one of them.
pub(super) const ENDS: [&str; 2] = ["embed_tokens", "lm_head"];

/// The settings of a LoRA's configuration that are about arithmetic.
#[derive(Debug)]
pub(super) struct LoraSettings {
    /// r, where no pattern says otherwise.
    rank: usize,
    /// α, where no pattern says otherwise.
    alpha: f64,
    /// Scales by α/√r (rank-stabilised LoRA, Kalajdzievski, 2023) rather than α/r.
    use_rslora: bool,
    /// Ranks of single modules, in file order; the first that matches counts.
    rank_pattern: Vec<(Pattern, usize)>,
    /// α of single modules, likewise.
    alpha_pattern: Vec<(Pattern, f64)>,
    /// `target_modules`, or PEFT's default.
    target: Matcher,
    /// Fused parameters, as PEFT's `target_parameters` names them.
    parameters: Vec<String>,
    /// `exclude_modules`, which goes before `target`.
    exclude: Option<Matcher>,
    /// `layers_to_transform`; `None` for all layers.
    layers: Option<Layers>,
    /// Modules that are saved whole, which PEFT does not target too.
    saved: Vec<Pattern>,
    /// `ensure_weight_tying`: both ends of a tied base share one LoRA.
    ensure_weight_tying: bool,
    /// The model around the text's part, in whose paths the file and its settings are written.
    pub(super) wrapper: Wrapper,
    /// True where sites have magnitudes.
    pub(super) use_dora: bool,
    /// True where B has a bias.
    pub(super) lora_bias: bool,
    /// True where biases of the base were trained too.
    pub(super) trains_biases: bool,
    /// True where the module has a head of its own.
    pub(super) own_head: bool,
    /// Tokens with rows of their own.
    pub(super) tokens: Option<TokenIndices>,
}

/// Tokens with rows of their own in the embedding table and the head.
#[derive(Debug)]
pub(super) struct TokenIndices {
    /// Ids of rows of the embedding table, in the order of the tensor's rows.
    pub(super) embedding: Vec<u32>,
    /// Ids of rows of the head; `None` where the head follows the embedding table if they are tied.
    pub(super) head: Option<Vec<u32>>,
}

impl LoraSettings {
    /// Parses a configuration, with all problems at once. It is not known yet for which base it is.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Vec<String>> {
        let object = object(bytes)?;
        let mut problems = Vec::new();
        problems.extend(check_kind(&object).err());
        problems.extend(unloadable(&object));
        problems.extend(refused_lora_settings(&object));
        let rank = kept(&mut problems, positive_rank(object.get("r"), "r"));
        let alpha = kept(&mut problems, number(object.get("lora_alpha"), "lora_alpha"));
        let rank_pattern = pattern_map(&object, "rank_pattern", |value, name| {
            positive_rank(Some(value), name).map(|rank| rank as usize)
        });
        let alpha_pattern =
            pattern_map(&object, "alpha_pattern", |value, name| number(Some(value), name));
        let rank_pattern = kept(&mut problems, rank_pattern);
        let alpha_pattern = kept(&mut problems, alpha_pattern);
        let target = kept(&mut problems, target(&object));
        let exclude = object.get("exclude_modules").filter(|value| !value.is_null());
        let exclude = exclude.map(|value| matcher(Some(value), "exclude_modules")).transpose();
        let exclude = kept(&mut problems, exclude);
        let layers = kept(&mut problems, layers(&object, target.as_ref()));
        let saved = kept(&mut problems, saved(&object));
        const TOKENS: &str = "trainable_token_indices";
        let tokens = kept(&mut problems, tokens(object.get(TOKENS), TOKENS));
        let flag = |name: &str| object.get(name).and_then(Json::as_bool).unwrap_or(false);
        if !problems.is_empty() {
            return Err(problems);
        }
        let parts = || {
            Some(Self {
                rank: rank? as usize,
                alpha: alpha?,
                use_rslora: flag("use_rslora"),
                rank_pattern: rank_pattern?,
                alpha_pattern: alpha_pattern?,
                target: target?,
                parameters: strings(object.get("target_parameters")),
                exclude: exclude?,
                layers: layers?,
                saved: saved?,
                ensure_weight_tying: is_truth(object.get("ensure_weight_tying")),
                wrapper: Wrapper::default(),
                use_dora: flag("use_dora"),
                lora_bias: flag("lora_bias"),
                trains_biases: trains_biases(&object),
                own_head: !strings(object.get("modules_to_save")).is_empty(),
                tokens: tokens?,
            })
        };
        parts().ok_or(problems)
    }

    /// The sites of the base that the configuration targets; the head and the embedding table are
    /// not among them.
    pub(super) fn targets(&self, base: &ModelConfig) -> BTreeSet<Site> {
        base.sites().filter(|site| self.is_target(&format!("model.{site}"))).collect()
    }

    /// Names of the settings by which the module does more than a plain low-rank product.
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

    /// True for a path, as in a model for text, that PEFT would wrap: targeted, neither excluded
    /// nor saved whole, and in the layers unless it is named whole.
    pub(super) fn is_target(&self, path: &str) -> bool {
        let path = &*self.wrapper.outer(path);
        let excluded = self.excludes(path) || self.saved.iter().any(|saved| saved.is_match(path));
        // A path that is named whole is meant, whatever its layer.
        let is_exact = self.target.names().iter().any(|name| name == path);
        !excluded && (is_exact || self.target.matches(path) && self.is_in_layers(path))
    }

    /// True for a path that `exclude_modules` names.
    pub(super) fn is_excluded(&self, path: &str) -> bool {
        self.excludes(&self.wrapper.outer(path))
    }

    /// The same for a path as PEFT saw it.
    fn excludes(&self, path: &str) -> bool {
        self.exclude.as_ref().is_some_and(|exclude| exclude.matches(path))
    }

    /// True where the embedding table and the head of a tied base share one LoRA.
    /// `ensure_weight_tying` asks for it, and a target must name one of the two.
    pub(super) fn ties_ends(&self, base: &ModelConfig) -> bool {
        let names_an_end = match &self.target {
            Matcher::Pattern(pattern) => ENDS.iter().any(|end| pattern.is_match(end)),
            names => names
                .names()
                .iter()
                .any(|name| ENDS.contains(&name.rsplit('.').next().unwrap_or_default())),
        };
        self.ensure_weight_tying && base.tied_embeddings && names_an_end
    }

    /// On a tied base, rows of the same tokens at both ends are one tensor, at the embedding table,
    /// as PEFT saves them. Without it the head's rows would be missed, since the file has none.
    pub(super) fn follow_ties(&mut self, base: &ModelConfig, head_has_rows: bool) {
        if let Some(tokens) =
            self.tokens.as_mut().filter(|_| base.tied_embeddings && !head_has_rows)
            && tokens.head.as_ref() == Some(&tokens.embedding)
        {
            tokens.head = None;
        }
    }

    /// A refusal of combinations of `ensure_weight_tying` that PEFT serves and this reader does
    /// not.
    pub(super) fn tying_problem(&self, base: &ModelConfig) -> Option<String> {
        if !self.ensure_weight_tying || !base.tied_embeddings {
            return None;
        }
        let of = |what: &str| {
            Some(format!("setting `ensure_weight_tying` with {what} is not supported"))
        };
        if self.own_head {
            return of("`modules_to_save`");
        }
        if self.ties_ends(base) && self.tokens.is_some() {
            return of("`trainable_token_indices` at a tied end");
        }
        match &self.tokens {
            Some(tokens) if tokens.head.as_ref().is_some_and(|head| *head != tokens.embedding) => {
                of("`trainable_token_indices` that differ between both ends")
            }
            _ => None,
        }
    }

    /// Reasons not to use matches of its expressions. They come up in matching, so this is asked
    /// last.
    pub(super) fn pattern_problems(&self) -> Vec<String> {
        let matchers = [Some(&self.target), self.exclude.as_ref()].into_iter().flatten();
        let containers = self.layers.iter().flat_map(|layers| &layers.containers);
        let ranks = self.rank_pattern.iter().map(|(pattern, _)| pattern);
        let alphas = self.alpha_pattern.iter().map(|(pattern, _)| pattern);
        let patterns = ranks.chain(alphas).chain(containers).chain(&self.saved);
        matchers.filter_map(Matcher::problem).chain(patterns.filter_map(Pattern::problem)).collect()
    }

    /// True for a fused parameter that `target_parameters` names, whole or by the end of its path.
    pub(super) fn is_target_parameter(&self, path: &str) -> bool {
        let path = &*self.wrapper.outer(path);
        let names = |name: &String| {
            path == name || path.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'))
        };
        self.parameters.iter().any(names)
    }

    /// True where `layers_to_transform` has the path's layer, or is not set.
    fn is_in_layers(&self, path: &str) -> bool {
        self.layers.as_ref().is_none_or(|layers| layers.holds(path))
    }

    /// α, which patterns override per module. The path is one as in a model for text.
    pub(super) fn alpha(&self, path: &str) -> f64 {
        first_match(&self.alpha_pattern, &self.wrapper.outer(path)).unwrap_or(self.alpha)
    }

    /// r, and the factor on B·A: α/r, or α/√r with rsLoRA; patterns override per module. The
    /// division is done in f64 and rounded once.
    pub(super) fn rank_and_scale(&self, path: &str) -> (usize, f32) {
        let rank = first_match(&self.rank_pattern, &self.wrapper.outer(path)).unwrap_or(self.rank);
        let alpha = self.alpha(path);
        let divisor = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        (rank, (alpha / divisor) as f32)
    }
}

/// PEFT's `get_pattern_key`: the first key, in file order, that matches a suffix at a dot. Longer
/// keys have no precedence.
fn first_match<T: Copy>(patterns: &[(Pattern, T)], path: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(path)).map(|(_, value)| *value)
}

/// A value, or its problem among the others.
fn kept<T>(problems: &mut Vec<String>, result: Result<T, String>) -> Option<T> {
    result.map_err(|problem| problems.push(problem)).ok()
}

/// The configuration as an object.
pub(crate) fn object(bytes: &[u8]) -> Result<Map<String, Json>, Vec<String>> {
    match serde_json::from_slice(bytes) {
        Ok(Json::Object(object)) => Ok(object),
        Ok(_) => Err(vec!["adapter_config.json is not an object".to_owned()]),
        Err(error) => Err(vec![format!("adapter_config.json is not valid JSON: {error}")]),
    }
}

/// True where `bias` is a text other than `none`.
fn trains_biases(object: &Map<String, Json>) -> bool {
    object.get("bias").and_then(Json::as_str).is_some_and(|which| which != "none")
}

/// A problem where the configuration is of another kind, as other tools' files may be.
fn check_kind(object: &Map<String, Json>) -> Result<(), String> {
    match object.get("peft_type").and_then(Json::as_str) {
        Some("LORA") => Ok(()),
        Some(other) => Err(format!("peft_type is `{other}`, expected LORA")),
        None => Err("`peft_type` is missing, expected LORA".to_owned()),
    }
}

/// Problems with values at which PEFT itself raises when it loads the module.
fn unloadable(object: &Map<String, Json>) -> Vec<String> {
    let problem = |name: &str, value: &Json, expected: &str| {
        let shown: String = value.to_string().chars().take(60).collect();
        format!("setting `{name}` = {shown}: expected {expected}")
    };
    let mut problems = Vec::new();
    for name in ONLY_NULL {
        let value = object.get(name).filter(|value| !value.is_null());
        // PEFT passes over an empty configuration of this one alone.
        let value = value.filter(|value| name != "megatron_config" || !is_empty(value));
        problems.extend(value.map(|value| problem(name, value, "null")));
    }
    let nulls = NEVER_NULL.iter().filter(|name| object.get(**name).is_some_and(Json::is_null));
    problems.extend(nulls.map(|name| problem(name, &Json::Null, "a value")));
    if let Some(dropout) = object.get("lora_dropout").filter(|value| !value.is_null()) {
        let is_share = dropout.as_f64().is_some_and(|share| (0.0..=1.0).contains(&share));
        if !is_share && !dropout.is_boolean() {
            problems.push(problem("lora_dropout", dropout, "a number from 0 to 1"));
        }
    }
    if let Some(bias) = object.get("bias").filter(|bias| !bias.is_null() && !bias.is_string()) {
        problems.push(problem("bias", bias, "none, all or lora_only"));
    }
    if let Some(eva) = object.get("eva_config").filter(|eva| !eva.is_null()) {
        let rho = eva.get("rho").map_or(Some(2.0), Json::as_f64);
        if !eva.is_object() || rho.is_none_or(|rho| rho < 1.0) {
            problems.push(problem("eva_config", eva, "an object with `rho` of at least 1"));
        }
    }
    if let Some(pattern) = object.get("layers_pattern").filter(|value| !value.is_null()) {
        if object.get("target_modules").is_some_and(Json::is_string) {
            problems.push(problem("layers_pattern", pattern, "null beside an expression"));
        }
        let is_any = object.get("layers_to_transform").is_none_or(Json::is_null);
        if is_any && is_truth(Some(pattern)) {
            problems.push(problem("layers_pattern", pattern, "`layers_to_transform` beside it"));
        }
    }
    problems
}

/// A task that PEFT does not know makes it raise.
pub(super) fn check_task(object: &Map<String, Json>) -> Option<String> {
    let task = object.get("task_type").filter(|task| !task.is_null())?;
    let is_known = task.as_str().is_some_and(|task| TASKS.contains(&task));
    (!is_known).then(|| format!("setting `task_type` = {task}: expected {}", TASKS.join(", ")))
}

/// True for a setting at the value that does nothing: null, false, or an empty list or object.
fn is_empty(value: &Json) -> bool {
    match value {
        Json::Null | Json::Bool(false) => true,
        Json::Array(values) => values.is_empty(),
        Json::Object(values) => values.is_empty(),
        Json::Bool(true) | Json::Number(_) | Json::String(_) => false,
    }
}

/// Settings that would change the result and are not implemented: all that are set and neither read
/// nor known to do nothing at inference. `is_known` says which are read; values are quoted up to 60
/// characters.
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
    refused.map(problem).chain(check_task(object)).collect()
}

/// [`refused_settings`] of a LoRA: some settings are known at certain values alone.
fn refused_lora_settings(object: &Map<String, Json>) -> Vec<String> {
    refused_settings(object, |key, value| match key {
        "bias" => matches!(value.as_str(), Some("none" | "all" | "lora_only")),
        "init_lora_weights" => {
            value.is_boolean()
                || value.as_str().is_some_and(|how| PLAIN_INITIALISERS.contains(&how))
        }
        // PEFT compares ends of paths; newer releases write the last name alone.
        "target_parameters" => strings(Some(value)).iter().all(|name| {
            let mut names = name.rsplit('.');
            let is_fused = matches!(names.next(), Some("gate_up_proj" | "down_proj"));
            is_fused && names.next().is_none_or(|holder| holder == "experts")
        }),
        "modules_to_save" => strings(Some(value)) == ["lm_head"],
        "lora_bias" | "use_dora" | "use_rslora" => value.is_boolean(),
        key => READ.contains(&key) || IGNORED.contains(&key),
    })
}

/// Token ids with rows of their own: a list, or PEFT's map from `embed_tokens` and `lm_head` to
/// lists. `None` where no token is named.
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

/// A number within [`MAX_WEIGHT`] of zero; 8, PEFT's default of α, where it is missing.
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

/// A rank from 1 to [`MAX_RANK`]; 8, PEFT's default, where it is missing.
fn positive_rank(value: Option<&Json>, name: &str) -> Result<f64, String> {
    match value {
        None => Ok(8.0),
        Some(value) => match value.as_u64() {
            Some(rank @ 1..=MAX_RANK) => Ok(rank as f64),
            _ => Err(format!("`{name}` is {value}, expected a rank from 1 to {MAX_RANK}")),
        },
    }
}

/// A map from patterns to values, in file order, as `rank_pattern` is one.
fn pattern_map<T>(
    object: &Map<String, Json>,
    name: &str,
    read: impl Fn(&Json, &str) -> Result<T, String>,
) -> Result<Vec<(Pattern, T)>, String> {
    match object.get(name) {
        None | Some(Json::Null) => Ok(Vec::new()),
        Some(Json::Object(patterns)) => patterns
            .iter()
            .map(|(key, value)| {
                let pattern = Pattern::of_key(key, name)?;
                Ok((pattern, read(value, &format!("{name}.{key}"))?))
            })
            .collect(),
        Some(other) => Err(format!("`{name}` is {other}, expected an object")),
    }
}

/// A value as Python's condition. An empty text, list or object and zero are false.
fn is_truth(value: Option<&Json>) -> bool {
    match value {
        None | Some(Json::Null) => false,
        Some(Json::Bool(value)) => *value,
        Some(Json::Number(number)) => number.as_f64() != Some(0.0),
        Some(Json::String(text)) => !text.is_empty(),
        Some(Json::Array(items)) => !items.is_empty(),
        Some(Json::Object(items)) => !items.is_empty(),
    }
}

/// A string or the strings of a list; anything else gives none.
pub(crate) fn strings(value: Option<&Json>) -> Vec<String> {
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
