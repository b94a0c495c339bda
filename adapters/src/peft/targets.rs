//! The places that a configuration means: names, expressions and layers, in the paths of the model
//! that PEFT saw.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde_json::{Map, Value as Json};

use super::config::{ENDS, strings};
use super::pattern::Pattern;

/// The number of names from which on PEFT shortens a list to the ends that tell its modules apart,
/// so that exact paths are lost.
const MAX_EXACT_NAMES: usize = 20;

/// The place of the text's part in the model that a module was trained on: models for pictures or
/// sound too have it inside. The settings speak of the paths that PEFT saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Wrapper {
    /// A model for text: `model.layers`, `lm_head`.
    #[default]
    None,
    /// `model.language_model.layers`, `lm_head`.
    Inside,
    /// `language_model.model.layers`, `language_model.lm_head`.
    Around,
}

impl Wrapper {
    /// The beginning of paths where the text's part lies in the model.
    const INSIDE: &str = "model.language_model.";
    /// The beginning of paths where the text's whole model lies in another.
    const AROUND: &str = "language_model.";

    /// The wrapper of a module's paths, by the first path that has one; none where no path has.
    pub(super) fn of<'a>(mut paths: impl Iterator<Item = &'a str>) -> Self {
        let wrapper = paths.find_map(|path| {
            let is_inside = path.starts_with(Self::INSIDE).then_some(Self::Inside);
            is_inside.or_else(|| path.starts_with(Self::AROUND).then_some(Self::Around))
        });
        wrapper.unwrap_or_default()
    }

    /// A path of the file as in a model for text; `None` for a path outside of the text's part.
    pub(super) fn inner(self, path: &str) -> Option<Cow<'_, str>> {
        match self {
            Self::None => Some(Cow::Borrowed(path)),
            Self::Around => path.strip_prefix(Self::AROUND).map(Cow::Borrowed),
            Self::Inside => match path.strip_prefix(Self::INSIDE) {
                Some(rest) => Some(Cow::Owned(format!("model.{rest}"))),
                None => (path == "lm_head").then_some(Cow::Borrowed(path)),
            },
        }
    }

    /// The path that PEFT saw, from one as in a model for text: the inverse of [`Wrapper::inner`].
    pub(super) fn outer(self, path: &str) -> Cow<'_, str> {
        match (self, path.strip_prefix("model.")) {
            (Self::Inside, Some(rest)) => Cow::Owned(format!("{}{rest}", Self::INSIDE)),
            (Self::Around, _) => Cow::Owned(format!("{}{path}", Self::AROUND)),
            _ => Cow::Borrowed(path),
        }
    }
}

/// The layers that a list of names is kept to.
#[derive(Debug)]
pub(super) struct Layers {
    /// The layers, as the configuration has them; negative ones match nothing.
    numbers: BTreeSet<i64>,
    /// Expressions of `layers_pattern` for the part of a path before a layer's number; without any,
    /// every part counts.
    pub(super) containers: Vec<Pattern>,
}

impl Layers {
    /// True where the path's first number behind a container is one of the layers'. Without
    /// containers it is the first number from the third part on, but not the last part, as PEFT
    /// reads it.
    pub(super) fn holds(&self, path: &str) -> bool {
        let number = match self.containers.as_slice() {
            [] => {
                let parts: Vec<&str> = path.split('.').collect();
                let inner = parts.get(2..parts.len().saturating_sub(1)).unwrap_or_default();
                inner.iter().find_map(|part| part.parse::<u32>().ok()).map(i64::from)
            }
            // The first expression that matches decides, also where it finds no number.
            containers => containers
                .iter()
                .find(|container| container.is_match(path))
                .and_then(|container| container.group(path, "idx")?.parse().ok()),
        };
        number.is_some_and(|number| self.numbers.contains(&number))
    }
}

/// A setting that names modules: `target_modules`, `exclude_modules` or `feedforward_modules`.
#[derive(Debug)]
pub(super) enum Matcher {
    /// `all-linear`: every linear but the head.
    AllLinear,
    /// A list of last components or longer ends of paths.
    Names(Vec<String>),
    /// An expression for whole paths.
    Pattern(Pattern),
}

impl Matcher {
    /// PEFT's rule: a string is a regular expression for the whole path; a list holds ends of
    /// paths, which begin at a dot.
    pub(super) fn matches(&self, path: &str) -> bool {
        match self {
            Self::AllLinear => !ENDS.iter().any(|end| path.ends_with(end)),
            Self::Pattern(pattern) => pattern.is_match(path),
            Self::Names(names) => names.iter().any(|name| {
                path == name
                    || path.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'))
            }),
        }
    }

    /// A reason not to use its answers, if there is one.
    pub(super) fn problem(&self) -> Option<String> {
        match self {
            Self::Pattern(pattern) => pattern.problem(),
            _ => None,
        }
    }

    /// The names of a list; none for the others.
    pub(super) fn names(&self) -> &[String] {
        match self {
            Self::Names(names) => names,
            _ => &[],
        }
    }
}

/// The matcher of a setting's value. `all-linear` may be written in any case, as PEFT has it.
pub(super) fn matcher(value: Option<&Json>, name: &str) -> Result<Matcher, String> {
    match value {
        Some(Json::String(text)) if text.eq_ignore_ascii_case("all-linear") => {
            Ok(Matcher::AllLinear)
        }
        Some(Json::String(text)) => Ok(Matcher::Pattern(Pattern::of_whole(text, name)?)),
        Some(Json::Array(values)) if values.iter().all(Json::is_string) => {
            Ok(Matcher::Names(strings(value)))
        }
        other => {
            let found = other.map_or("missing".to_owned(), Json::to_string);
            Err(format!("`{name}` is {found}, expected a list of names or a regular expression"))
        }
    }
}

/// The linears that PEFT takes for the families here where a configuration names none. They are not
/// used where `target_parameters` names fused parameters.
const DEFAULT_TARGETS: [&str; 2] = ["q_proj", "v_proj"];

/// The matcher of `target_modules`. Without it PEFT's defaults are meant, or nothing where
/// `target_parameters` is set.
pub(super) fn target(object: &Map<String, Json>) -> Result<Matcher, String> {
    match object.get("target_modules") {
        None | Some(Json::Null) => Ok(Matcher::Names(match object.get("target_parameters") {
            None | Some(Json::Null) => DEFAULT_TARGETS.map(str::to_owned).to_vec(),
            Some(_) => Vec::new(),
        })),
        value => matcher(value, "target_modules"),
    }
}

/// The layers of `layers_to_transform`; `None` where it is not set or empty. PEFT takes it beside a
/// list of names alone.
pub(super) fn layers(
    object: &Map<String, Json>,
    target: Option<&Matcher>,
) -> Result<Option<Layers>, String> {
    let wrong = || "`layers_to_transform` is not a list of layer numbers".to_owned();
    let value = match object.get("layers_to_transform") {
        None | Some(Json::Null) => return Ok(None),
        Some(value) => value,
    };
    let names = match target {
        Some(Matcher::Names(names)) => names,
        Some(_) => {
            let reason = "`layers_to_transform` needs `target_modules` to be a list of names";
            return Err(reason.to_owned());
        }
        None => return Ok(None),
    };
    let number = |value: &Json| value.as_i64().or_else(|| value.as_bool().map(i64::from));
    let numbers: BTreeSet<i64> = match value {
        // None of them means all.
        Json::Array(values) if values.is_empty() => return Ok(None),
        Json::Array(values) => {
            values.iter().map(number).collect::<Option<_>>().ok_or_else(wrong)?
        }
        value => BTreeSet::from([number(value).ok_or_else(wrong)?]),
    };
    if names.len() >= MAX_EXACT_NAMES {
        return Err(format!(
            "`layers_to_transform` with {MAX_EXACT_NAMES} names or more in `target_modules` is not supported"
        ));
    }
    let containers = strings(object.get("layers_pattern"));
    let container = |pattern: &String| {
        let pattern = format!(r"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.");
        Pattern::of_beginning(&pattern, "layers_pattern")
    };
    let is_any = object.get("layers_pattern").and_then(Json::as_str) == Some("");
    let containers = match is_any {
        true => Vec::new(),
        false => containers.iter().map(container).collect::<Result<_, String>>()?,
    };
    Ok(Some(Layers { numbers, containers }))
}

/// Modules that are saved whole, as expressions for paths that they exclude.
pub(super) fn saved(object: &Map<String, Json>) -> Result<Vec<Pattern>, String> {
    let names = strings(object.get("modules_to_save"));
    let pattern = |name: &String| {
        Pattern::of_beginning(&format!(r"(^|.*\.){name}($|\..*)"), "modules_to_save")
    };
    names.iter().map(pattern).collect()
}

/// The end of a refusal: the part of a larger model that a tensor without a place here belongs to.
pub(super) fn beyond_text(name: &str) -> &'static str {
    const PARTS: [&str; 5] = ["vision", "visual", "image", "audio", "multi_modal_projector"];
    const CHOOSERS: [&str; 3] = [".mlp.gate.", ".block_sparse_moe.gate.", "shared_expert_gate"];
    if PARTS.iter().any(|part| name.contains(part)) {
        return ": it changes what sees or hears, and only text is served";
    }
    match CHOOSERS.iter().any(|part| name.contains(part)) {
        true => {
            " that a module can change: `target_modules` at what chooses experts is not supported"
        }
        false => "",
    }
}
