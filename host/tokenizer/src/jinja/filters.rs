//! Jinja's filters: `value | name`.

mod numbers;
mod sequences;
mod texts;

use self::numbers::file_size;
use self::texts::{percent_encoded, without_tags};
use super::error::JinjaError;
use super::formatting;
use super::operators;
use super::python::{self, JsonStyle};
use super::render::{Given, Renderer, weight};
use super::value::Value;

/// A value, or the error that ends the rendering.
type Evaluated = Result<Value, JinjaError>;

/// Jinja's filters that are implemented here, with their aliases, in the order of the alphabet.
const NAMES: [&str; 47] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "wordcount",
];

/// True where there is a filter of this name. The four that are named apart are implemented as
/// well.
pub(super) fn exists(name: &str) -> bool {
    NAMES.contains(&name)
        || matches!(name, "wordwrap" | "urlencode" | "striptags" | "filesizeformat")
}

impl Renderer {
    /// Applies a filter. Counts the value's weight and the arguments' as work before it runs.
    ///
    /// # Errors
    /// A syntax error for an unknown name; else the filter's own, with Python's kinds.
    pub(super) fn filter(&self, name: &str, value: &Value, given: &Given) -> Evaluated {
        self.work(weight(value) as u64)?;
        self.arguments(given)?;
        match name {
            "abs" | "round" | "int" | "float" => self.number_filter(name, value, given),
            "capitalize" | "center" | "escape" | "e" | "forceescape" | "format" | "indent"
            | "lower" | "replace" | "safe" | "string" | "title" | "trim" | "truncate" | "upper"
            | "wordcount" | "wordwrap" | "pprint" => self.text_filter(name, value, given),
            "batch" | "slice" => self.chunks(name, value, given),
            "map" | "select" | "reject" | "selectattr" | "rejectattr" => {
                self.each(name, value, given)
            }
            "dictsort" => self.dictsort(value, given),
            "sort" | "unique" | "groupby" | "min" | "max" | "sum" => {
                self.ordered(name, value, given)
            }
            "attr" => match given.get(0, "name").and_then(Value::as_str) {
                Some(name) => operators::attribute(value, &name.into()),
                None => Err(JinjaError::of_type("attr() needs a name")),
            },
            "count" | "length" => Ok(Value::Int(value.len()? as i128)),
            "d" | "default" => {
                let replaces = match given.get(1, "boolean").is_some_and(Value::is_true) {
                    true => !value.is_true(),
                    false => value.is_undefined(),
                };
                let default = || given.get(0, "default_value").cloned();
                Ok(if replaces {
                    default().unwrap_or_else(|| Value::from(""))
                } else {
                    value.clone()
                })
            }
            "first" | "last" => {
                let items = self.items(value)?;
                let item = if name == "first" { items.first() } else { items.last() };
                let missing = format!("No {name} item, sequence was empty.");
                Ok(item.cloned().unwrap_or_else(|| Value::Undefined(missing.into())))
            }
            "items" => match value {
                Value::Undefined(_) => self.list(Vec::new()),
                Value::Dict(dict) => self.pairs(dict.entries()),
                _ => Err(JinjaError::of_type("Can only get item pairs from a mapping.")),
            },
            "join" => self.join(value, given),
            "list" => self.list(self.items(value)?.to_vec()),
            "reverse" => match value {
                Value::Str(text) => self.text(text.chars().rev().collect()),
                other => self.list(self.items(other)?.iter().rev().cloned().collect()),
            },
            "tojson" => self.tojson(value, given),
            "urlencode" => self.text(percent_encoded(&self.shown(value)?)),
            "striptags" => self.text(without_tags(&self.shown(value)?)),
            "filesizeformat" => {
                value.must_be_defined()?;
                let bytes = value.as_f64().ok_or_else(|| JinjaError::of_type("no size"))?;
                self.text(file_size(bytes, given.get(0, "binary").is_some_and(Value::is_true)))
            }
            other => Err(JinjaError::syntax(format!("No filter named '{other}'."), 0)),
        }
    }

    /// transformers' `tojson`: `json.dumps` without HTML escapes and with all characters as they
    /// are. An `indent` gives each item a line of its own; without one, all is in one line with
    /// blanks behind commas and colons. The arguments are those of `json.dumps`: `ensure_ascii`
    /// (false), `indent`, `separators` and `sort_keys` (false).
    ///
    /// # Errors
    /// A value that JSON does not have, such as one that is undefined.
    fn tojson(&self, value: &Value, given: &Given) -> Evaluated {
        given.allow("tojson", &["ensure_ascii", "indent", "separators", "sort_keys"])?;
        let indent = match given.get(1, "indent") {
            None | Some(Value::None) => None,
            Some(Value::Str(indent)) => Some(indent.to_string()),
            Some(width) => {
                let width = formatting::width("the indent", width.as_int().unwrap_or(0))?;
                Some(" ".repeat(width))
            }
        };
        let separators = match given.get(2, "separators") {
            None | Some(Value::None) => None,
            Some(pair) => match self.items(pair)?.as_slice() {
                [item, key] => Some((item.to_string(), key.to_string())),
                _ => return Err(JinjaError::of_value("separators are two texts")),
            },
        };
        let default_item = if indent.is_some() { "," } else { ", " };
        let (item_separator, key_separator) =
            separators.unwrap_or_else(|| (default_item.to_owned(), ": ".to_owned()));
        let style = JsonStyle {
            ensure_ascii: given.get(0, "ensure_ascii").is_some_and(Value::is_true),
            indent,
            item_separator,
            key_separator,
            sort_keys: given.get(3, "sort_keys").is_some_and(Value::is_true),
        };
        // Each part may have separators, and be indented once per level; a part weighs two bytes or more.
        let indent = style.indent.as_ref().map_or(0, String::len);
        let separators = style.item_separator.len() + style.key_separator.len();
        let each = indent.saturating_mul(value.extent().depth as usize).saturating_add(separators);
        self.bytes((weight(value) / 4).saturating_mul(each.saturating_sub(3)))?;
        self.bytes(weight(value))?;
        if style.sort_keys {
            // Each key is compared as often as their number can be halved.
            let turns = weight(value).max(1).ilog2() as usize;
            self.work(weight(value).saturating_mul(turns) as u64)?;
        }
        self.text(python::json(value, &style)?)
    }
}
