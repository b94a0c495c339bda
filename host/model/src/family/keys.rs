//! Typed look-ups in a `config.json`.

use serde_json::{Map, Value as Json};

use super::{MAX_SIZE, checked_size};
use crate::config::{Rope, RopeScaling};
use crate::error::Error;

/// The setting for the context of pre-training, before frequencies were scaled.
const ORIGINAL: &str = "original_max_position_embeddings";
/// Settings that must be numbers where they are given.
const NUMBERS: [&str; 6] = [
    "rope_theta",
    "rms_norm_eps",
    "clip_qkv",
    "query_pre_attn_scalar",
    "rope_local_base_freq",
    "partial_rotary_factor",
];
/// Settings that must be true or false where they are given.
const FLAGS: [&str; 6] = [
    "attention_bias",
    "mlp_bias",
    "qkv_bias",
    "norm_topk_prob",
    "tie_word_embeddings",
    "use_sliding_window",
];

/// Typed look-ups in a JSON object.
///
/// Null counts as missing nearly everywhere, as in transformers.
pub(super) struct Keys<'a>(pub(super) &'a Json);

impl Keys<'_> {
    /// Refuses settings whose values are of another type than a family reads: none is taken for its
    /// default silently.
    pub(super) fn check_types(&self) -> Result<(), Error> {
        type Is = fn(&Json) -> bool;
        let kinds: [(&str, Is, &[&str]); 5] = [
            ("a number", Json::is_number, &NUMBERS),
            ("true or false", Json::is_boolean, &FLAGS),
            ("a text", Json::is_string, &["hidden_act", "hidden_activation"]),
            ("an object", Json::is_object, &["rope_scaling", "rope_parameters"]),
            ("a list", Json::is_array, &["layer_types"]),
        ];
        for (expected, is, names) in kinds {
            for name in names {
                let found = self.0.get(name).filter(|value| !value.is_null() && !is(value));
                if let Some(found) = found {
                    return Err(Error::unsupported(*name, found.to_string(), expected));
                }
            }
        }
        Ok(())
    }

    /// A size from 1 to [`MAX_SIZE`]; missing ones are an error without a default.
    pub(super) fn size(&self, key: &str, default: Option<usize>) -> Result<usize, Error> {
        let value = self.0.get(key).filter(|value| !value.is_null());
        match value {
            Some(value) if value.as_u64().is_none() => {
                Err(Error::unsupported(key, value.to_string(), "a positive integer"))
            }
            value => {
                checked_size(key, value.and_then(Json::as_u64).or(default.map(|size| size as u64)))
            }
        }
    }

    /// A size under the first of its names that is there, as transformers' attribute maps have
    /// them.
    pub(super) fn size_of(&self, names: &[&str], default: usize) -> Result<usize, Error> {
        let is_there = |name: &&&str| self.0.get(**name).is_some_and(|value| !value.is_null());
        let name = names.iter().find(is_there).or(names.last()).copied().unwrap_or_default();
        self.size(name, Some(default))
    }

    /// A number; `None` if it is missing. Types are checked by [`Keys::check_types`] before.
    pub(super) fn number(&self, key: &str) -> Option<f64> {
        self.0.get(key).and_then(Json::as_f64)
    }

    /// A flag, false if it is missing.
    pub(super) fn flag(&self, key: &str) -> bool {
        self.flag_or(key, false)
    }

    /// A flag with a default.
    pub(super) fn flag_or(&self, key: &str, default: bool) -> bool {
        self.0.get(key).and_then(Json::as_bool).unwrap_or(default)
    }

    /// A number that may be zero.
    pub(super) fn count(&self, key: &str, default: usize) -> Result<usize, Error> {
        match self.0.get(key).filter(|value| !value.is_null()) {
            None => Ok(default),
            Some(value) => match value.as_u64() {
                Some(count) if count <= MAX_SIZE => Ok(count as usize),
                _ => Err(Error::unsupported(key, value.to_string(), "a small whole number")),
            },
        }
    }

    /// Refuses settings that are there and say anything but no.
    pub(super) fn absent(&self, names: &[&str]) -> Result<(), Error> {
        for name in names {
            let found =
                self.0.get(name).filter(|value| !value.is_null() && **value != Json::Bool(false));
            if let Some(found) = found {
                return Err(Error::unsupported(*name, found.to_string(), "none"));
            }
        }
        Ok(())
    }

    /// `sliding_window`: null means none, and a family may have one where nothing is said.
    pub(super) fn window(&self, default: Option<usize>) -> Result<Option<usize>, Error> {
        match self.0.get("sliding_window") {
            None => Ok(default),
            Some(Json::Null) => Ok(None),
            Some(_) => self.size("sliding_window", None).map(Some),
        }
    }

    /// The window of each layer: as `layer_types` says, else where `has_window` is true.
    pub(super) fn windows(
        &self,
        num_layers: usize,
        window: Option<usize>,
        has_window: &dyn Fn(usize) -> bool,
    ) -> Result<Vec<Option<usize>>, Error> {
        let Some(types) = self.0.get("layer_types").and_then(Json::as_array) else {
            return Ok((0..num_layers).map(|layer| window.filter(|_| has_window(layer))).collect());
        };
        if types.len() != num_layers {
            let found = format!("{} entries", types.len());
            return Err(Error::unsupported(
                "layer_types",
                found,
                format!("{num_layers}, one per layer"),
            ));
        }
        types
            .iter()
            .map(|kind| match kind.as_str() {
                Some("full_attention" | "attention") => Ok(None),
                Some("sliding_attention") if window.is_some() => Ok(window),
                Some("sliding_attention") => Err(Error::unsupported(
                    "sliding_window",
                    "none",
                    "a window for the layers that want one",
                )),
                _ => Err(Error::unsupported(
                    "layer_types",
                    kind.to_string(),
                    "full_attention, sliding_attention",
                )),
            })
            .collect()
    }

    /// Layers with experts: every `decoder_sparse_step`-th that `mlp_only_layers` does not list.
    pub(super) fn sparse_layers(&self, num_layers: usize) -> Result<Vec<bool>, Error> {
        let step = self.size("decoder_sparse_step", Some(1))?;
        let dense: Vec<u64> = match self.0.get("mlp_only_layers") {
            None | Some(Json::Null) => Vec::new(),
            Some(listed) => serde_json::from_value(listed.clone()).map_err(|_| {
                Error::unsupported("mlp_only_layers", listed.to_string(), "a list of layers")
            })?,
        };
        let is_sparse =
            |layer: usize| !dense.contains(&(layer as u64)) && (layer + 1).is_multiple_of(step);
        Ok((0..num_layers).map(is_sparse).collect())
    }

    /// Tokens by number: one or a list. Anything else is passed over.
    pub(super) fn tokens(&self, key: &str) -> Vec<u32> {
        let token = |value: &Json| value.as_u64().and_then(|token| u32::try_from(token).ok());
        match self.0.get(key) {
            Some(Json::Array(values)) => values.iter().filter_map(token).collect(),
            Some(value) => token(value).into_iter().collect(),
            None => Vec::new(),
        }
    }

    /// Refuses any value but the accepted ones; a missing one counts as the default.
    pub(super) fn require(&self, key: &str, accepted: &[&str], default: &str) -> Result<(), Error> {
        let found = self.0.get(key).and_then(Json::as_str).unwrap_or(default);
        if accepted.contains(&found) {
            return Ok(());
        }
        Err(Error::unsupported(key, found, accepted.join(", ")))
    }

    /// Refuses ropes by kind of layer, for a family whose layers have one.
    pub(super) fn one_rope(&self) -> Result<(), Error> {
        let parameters = self.0.get("rope_parameters").and_then(Json::as_object);
        match parameters.into_iter().flatten().find(|(_, value)| value.is_object()) {
            Some((kind, _)) => Err(Error::unsupported(
                "rope_parameters",
                format!("parameters for `{kind}`"),
                "parameters for all layers",
            )),
            None => Ok(()),
        }
    }

    /// `rope_scaling` (older), which goes before `rope_parameters` (newer) unless it is empty;
    /// `rope_theta` inside goes before the one outside.
    pub(super) fn rope(&self, default_theta: f64) -> Result<Rope, Error> {
        let object = |key: &str| self.0.get(key).filter(|value| value.is_object());
        let older = object("rope_scaling").filter(|value| *value != &Json::Object(Map::new()));
        let parameters = older.or_else(|| object("rope_parameters"));
        self.rope_from(parameters, "rope_theta", default_theta)
    }

    /// The rope of one kind of layer: `rope_parameters.KIND` (newer), or a base of its own (older),
    /// where only layers that see everything are scaled.
    pub(super) fn rope_of(
        &self,
        kind: &str,
        theta_key: &str,
        default_theta: f64,
    ) -> Result<Rope, Error> {
        let kinds = self.0.get("rope_parameters").and_then(Json::as_object);
        if let Some(flat) = kinds.filter(|k| !k.is_empty() && !k.values().any(Json::is_object)) {
            let found = Json::Object(flat.clone()).to_string();
            return Err(Error::unsupported(
                "rope_parameters",
                found,
                "parameters by kind of layer",
            ));
        }
        let own = kinds.and_then(|kinds| kinds.get(kind)?.as_object());
        let older = self.0.get("rope_scaling").and_then(Json::as_object);
        let older = older.filter(|older| kind == "full_attention" && !older.is_empty());
        if let Some(older) = older.filter(|older| !older.contains_key("rope_type")) {
            // transformers passes over these, and the base's own makers did not.
            let found = Json::Object(older.clone()).to_string();
            return Err(Error::unsupported("rope_scaling", found, "one with `rope_type`"));
        }
        let mut parameters = own.cloned();
        if let Some(older) = older {
            let all = parameters.get_or_insert_default();
            all.extend(older.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        let parameters = parameters.map(Json::Object);
        self.rope_from(parameters.as_ref(), theta_key, default_theta)
    }

    /// The rope of an object of parameters; a base outside of it, under `theta_key`, is used if
    /// there is none inside.
    ///
    /// # Errors
    /// If the type of scaling is not implemented, one of its numbers is missing or not positive, or
    /// only a part of each head is rotated.
    fn rope_from(
        &self,
        parameters: Option<&Json>,
        theta_key: &str,
        default_theta: f64,
    ) -> Result<Rope, Error> {
        let number = |key: &str| parameters.and_then(|parameters| parameters.get(key)?.as_f64());
        let theta =
            number("rope_theta").or_else(|| self.number(theta_key)).unwrap_or(default_theta);
        let kind = parameters
            .and_then(|parameters| parameters.get("rope_type").or_else(|| parameters.get("type")));
        let kind = match kind.map(|kind| kind.as_str().ok_or(kind)) {
            None => None,
            Some(Ok(kind)) => Some(kind),
            Some(Err(other)) => {
                return Err(Error::unsupported("rope_type", other.to_string(), "a text"));
            }
        };
        let partial =
            number("partial_rotary_factor").or_else(|| self.number("partial_rotary_factor"));
        if let Some(partial) = partial.filter(|&partial| partial != 1.0) {
            return Err(Error::unsupported("partial_rotary_factor", partial.to_string(), "1"));
        }
        let need = |key: &str| {
            let found = parameters.and_then(|parameters| parameters.get(key));
            let shown = found.map_or_else(|| "missing".to_owned(), Json::to_string);
            number(key)
                .filter(|value| *value > 0.0)
                .ok_or_else(|| Error::unsupported(format!("rope {key}"), shown, "a number over 0"))
        };
        let scaling = match kind.unwrap_or("default") {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: need("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                // As transformers: outside of the object goes before inside.
                original_max_positions: match number(ORIGINAL) {
                    _ if self.0.get(ORIGINAL).is_some() => self.size(ORIGINAL, None)? as f64,
                    Some(_) => need(ORIGINAL)?,
                    None => self.size("max_position_embeddings", None)? as f64,
                },
            },
            other => {
                return Err(Error::unsupported("rope_type", other, "default, linear, llama3"));
            }
        };
        Ok(Rope { theta, scaling })
    }
}
