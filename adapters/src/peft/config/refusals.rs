//! Refusals of settings that PEFT itself would not load, or that would change a result and are not
//! implemented.

use serde_json::{Map, Value as Json};

use super::fields::{is_truth, strings};

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
/// Settings of a LoRA that are read.
pub(super) const READ: [&str; 16] = [
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

/// A problem where the configuration is of another kind, as other tools' files may be.
pub(super) fn check_kind(object: &Map<String, Json>) -> Result<(), String> {
    match object.get("peft_type").and_then(Json::as_str) {
        Some("LORA") => Ok(()),
        Some(other) => Err(format!("peft_type is `{other}`, expected LORA")),
        None => Err("`peft_type` is missing, expected LORA".to_owned()),
    }
}

/// Problems with values at which PEFT itself raises when it loads the module.
pub(super) fn unloadable(object: &Map<String, Json>) -> Vec<String> {
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
fn check_task(object: &Map<String, Json>) -> Option<String> {
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
pub(crate) fn refused_settings(
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
pub(super) fn refused_lora_settings(object: &Map<String, Json>) -> Vec<String> {
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
