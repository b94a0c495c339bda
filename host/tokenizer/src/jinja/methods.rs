//! Methods of Python's values that templates may call; those that change a value are refused.

mod characters;
mod lines;
mod texts;

use std::fmt::Write as _;
use std::rc::Rc;

pub(super) use self::characters::{capitalized, title_case};
pub(super) use self::lines::{BREAKS, is_blank, lines};
use super::error::JinjaError;
use super::operators::cycled;
use super::python;
use super::render::{Given, Renderer, VALUE_BYTES, weight};
use super::value::Value;

/// A value, or the error that ends the rendering.
type Evaluated = Result<Value, JinjaError>;

/// Methods of `str`, in the order of the alphabet, but for those of [`OF_STR_TOO`]. `encode` is
/// there to be refused with a reason.
const OF_STR: [&str; 40] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
];
/// More methods of `str`.
const OF_STR_TOO: [&str; 4] = ["isprintable", "title", "upper", "zfill"];
/// Methods of `dict` that only read.
const OF_DICT: [&str; 5] = ["copy", "get", "items", "keys", "values"];
/// Methods of `list` that only read.
const OF_LIST: [&str; 3] = ["copy", "count", "index"];
/// Methods of `dict` that change it, which Jinja's `ImmutableSandboxedEnvironment` refuses.
const CHANGE_DICT: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];
/// Methods of `list` that change it.
const CHANGE_LIST: [&str; 8] =
    ["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];

/// True where a value has a method of this name. Others are undefined, or items of a mapping.
pub(super) fn exists(value: &Value, name: &str) -> bool {
    match value {
        Value::Str(_) => OF_STR.contains(&name) || OF_STR_TOO.contains(&name),
        Value::Dict(_) => OF_DICT.contains(&name),
        Value::List(_) => OF_LIST.contains(&name),
        Value::Tuple(_) => matches!(name, "count" | "index"),
        Value::Float(_) => name == "is_integer",
        Value::Int(_) | Value::Bool(_) => name == "bit_length",
        _ => false,
    }
}

/// True where a method of this name would change the value.
pub(super) fn changes(value: &Value, name: &str) -> bool {
    match value {
        Value::Dict(_) => CHANGE_DICT.contains(&name),
        Value::List(_) => CHANGE_LIST.contains(&name),
        _ => false,
    }
}

/// `count`, `index` and `copy` of a list or tuple. A copy is the value itself, as it cannot change.
/// `index` takes a start and no end.
fn list_method(items: &[Value], value: &Value, name: &str, given: &Given) -> Evaluated {
    let wanted = given.get(0, "value").unwrap_or(&Value::None);
    match name {
        "count" => {
            let count = items.iter().filter(|item| item.equals(wanted)).count();
            Ok(Value::Int(count as i128))
        }
        "index" => {
            let len = items.len() as i128;
            let start = given.get(1, "start").and_then(Value::as_int).unwrap_or(0);
            let start = if start < 0 { start + len } else { start }.clamp(0, len) as usize;
            match items[start..].iter().position(|item| item.equals(wanted)) {
                Some(at) => Ok(Value::Int((start + at) as i128)),
                None => {
                    let wanted = python::repr(wanted);
                    Err(JinjaError::of_value(format!("{wanted} is not in list")))
                }
            }
        }
        _ => Ok(value.clone()),
    }
}

impl Renderer {
    /// Calls a method that a look-up of an attribute gave out. Counts the value's weight and the
    /// arguments' as work.
    ///
    /// # Errors
    /// Python's, for wrong arguments.
    pub(super) fn method(&self, value: &Value, name: &str, given: &Given) -> Evaluated {
        self.work(weight(value) as u64)?;
        self.arguments(given)?;
        match value {
            Value::Str(text) => self.str_method(text, name, given),
            Value::Function(_) => self.dict_from_keys(given),
            Value::Dict(dict) => self.dict_method(dict, value, name, given),
            Value::List(items) | Value::Tuple(items) => list_method(items, value, name, given),
            Value::Loop(state) if name == "cycle" => {
                let items = &given.positional;
                let at = state.at.get() % items.len().max(1);
                let item = items.get(at).cloned();
                item.ok_or_else(|| JinjaError::of_type("no items for cycling given"))
            }
            Value::Loop(state) => {
                let mut seen = state.seen.borrow_mut();
                let same = seen.as_ref().is_some_and(|seen| {
                    seen.len() == given.positional.len()
                        && seen.iter().zip(&given.positional).all(|(a, b)| a.equals(b))
                });
                *seen = (!state.is_over.get()).then(|| given.positional.clone());
                Ok(Value::Bool(!same))
            }
            Value::Cycler(cycler) if name == "next" => Ok(cycled(&cycler.items, &cycler.at)),
            Value::Cycler(cycler) => {
                cycler.at.set(0);
                Ok(Value::None)
            }
            Value::Float(value) => Ok(Value::Bool(value.fract() == 0.0)),
            other => {
                let bits = other.as_int().unwrap_or(0).unsigned_abs();
                Ok(Value::Int(i128::from(u128::BITS - bits.leading_zeros())))
            }
        }
    }

    /// `dict.fromkeys`. The values are `None` unless one is given.
    fn dict_from_keys(&self, given: &Given) -> Evaluated {
        let keys =
            given.get(0, "iterable").map_or_else(|| Ok(Rc::default()), |keys| self.items(keys))?;
        let each = given.get(1, "value").cloned().unwrap_or(Value::None);
        let mut dict = super::value::Dict::default();
        for key in keys.iter() {
            dict.insert(key.clone(), each.clone())?;
        }
        self.bytes(dict.len() * 4 * VALUE_BYTES)?;
        Ok(Value::Dict(Rc::new(dict)))
    }

    /// `get`, `keys`, `values`, `items` and `copy`. Views are lists here, made on each call. `get`
    /// answers `None` without a default, not an undefined value.
    fn dict_method(
        &self,
        dict: &super::value::Dict,
        value: &Value,
        name: &str,
        given: &Given,
    ) -> Evaluated {
        match name {
            "get" => {
                let key = given.get(0, "key").ok_or_else(|| {
                    JinjaError::of_type("get expected at least 1 argument, got 0")
                })?;
                let default = || given.get(1, "default").cloned().unwrap_or(Value::None);
                Ok(dict.get(key).cloned().unwrap_or_else(default))
            }
            "keys" => self.list(dict.entries().iter().map(|(key, _)| key.clone()).collect()),
            "values" => self.list(dict.entries().iter().map(|(_, value)| value.clone()).collect()),
            "items" => self.pairs(dict.entries()),
            _ => Ok(value.clone()),
        }
    }

    /// Keys with their values, as tuples.
    pub(super) fn pairs(&self, entries: &[(Value, Value)]) -> Evaluated {
        self.bytes(entries.len() * 3 * VALUE_BYTES)?;
        let pair = |(key, value): &(Value, Value)| Value::tuple(vec![key.clone(), value.clone()]);
        Ok(Value::list(entries.iter().map(pair).collect()))
    }
}

/// A time as Python's `strftime` writes it in the C locale. Names of days and months are English.
/// Conversions are chrono's, which has nearly all of C's.
///
/// # Errors
/// If the format is none.
pub(super) fn strftime(now: chrono::NaiveDateTime, format: &str) -> Result<String, JinjaError> {
    let mut out = String::new();
    // Python's `%f` are microseconds.
    let halves = format.split("%%").map(|part| part.replace("%f", "%6f"));
    let format = &halves.collect::<Vec<_>>().join("%%");
    let items = chrono::format::StrftimeItems::new(format);
    write!(out, "{}", now.format_with_items(items))
        .map_err(|_| JinjaError::of_value(format!("`{format}` is no format of a time")))?;
    Ok(out)
}
