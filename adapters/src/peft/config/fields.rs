//! Values of single fields of a configuration.

use serde_json::{Map, Value as Json};

use crate::peft::bundle::MAX_WEIGHT;
use crate::peft::pattern::Pattern;

/// Largest rank of a configuration or a pattern.
const MAX_RANK: u64 = 1 << 14;

/// The configuration as an object.
pub(crate) fn object(bytes: &[u8]) -> Result<Map<String, Json>, Vec<String>> {
    match serde_json::from_slice(bytes) {
        Ok(Json::Object(object)) => Ok(object),
        Ok(_) => Err(vec!["adapter_config.json is not an object".to_owned()]),
        Err(error) => Err(vec![format!("adapter_config.json is not valid JSON: {error}")]),
    }
}

/// A number within [`MAX_WEIGHT`] of zero; 8, PEFT's default of α, where it is missing.
pub(super) fn number(value: Option<&Json>, name: &str) -> Result<f64, String> {
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
pub(super) fn positive_rank(value: Option<&Json>, name: &str) -> Result<f64, String> {
    match value {
        None => Ok(8.0),
        Some(value) => match value.as_u64() {
            Some(rank @ 1..=MAX_RANK) => Ok(rank as f64),
            _ => Err(format!("`{name}` is {value}, expected a rank from 1 to {MAX_RANK}")),
        },
    }
}

/// A map from patterns to values, in file order, as `rank_pattern` is one.
pub(super) fn pattern_map<T>(
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
pub(super) fn is_truth(value: Option<&Json>) -> bool {
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
