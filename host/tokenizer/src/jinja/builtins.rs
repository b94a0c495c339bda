//! Functions that every template can call.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use super::error::{ErrorKind, JinjaError};
use super::render::{Given, Renderer, VALUE_BYTES};
use super::value::{Cycler, Dict, Seq, Value};

/// Names of the functions. `raise_exception` and `strftime_now` are transformers' additions; the
/// others are Jinja's.
pub(super) const GLOBALS: [&str; 8] =
    ["range", "dict", "namespace", "cycler", "joiner", "lipsum", "raise_exception", "strftime_now"];

/// Longest range: the `MAX_RANGE` of Jinja's sandbox.
const MAX_RANGE: i128 = 100_000;

/// The refusal of a namespace's private name. The message is that of transformers.
pub(super) fn private(name: &str) -> JinjaError {
    JinjaError::new(
        ErrorKind::Security,
        format!(
            "Chat templates cannot store underscore-prefixed attributes on a namespace, but got '{name}'."
        ),
    )
}

impl Renderer {
    /// Calls a function of [`GLOBALS`]. `dict` and `namespace` take a mapping or pairs, then names;
    /// a namespace has no names with `_` in front. `lipsum` is known and refused.
    ///
    /// # Errors
    /// Python's errors for wrong arguments; [`ErrorKind::Raised`] for `raise_exception`.
    pub(super) fn function(&self, name: &str, given: &Given) -> Result<Value, JinjaError> {
        match name {
            "range" => self.range(given),
            "dict" | "namespace" => {
                let mut dict = Dict::default();
                match given.positional.as_slice() {
                    [] => {}
                    [first] => self.entries_of(first, &mut dict)?,
                    more => {
                        let message = format!("{name} expected 1 argument, got {}", more.len());
                        return Err(JinjaError::of_type(message));
                    }
                }
                for (key, value) in &given.named {
                    if name == "namespace" && key.starts_with('_') {
                        return Err(private(key));
                    }
                    dict.insert(Value::Str(key.clone()), value.clone())?;
                }
                self.bytes((dict.len() + 1) * 4 * VALUE_BYTES)?;
                if name == "dict" {
                    return Ok(Value::Dict(Rc::new(dict)));
                }
                if let Some((key, _)) =
                    dict.entries().iter().find(|(key, _)| key.to_string().starts_with('_'))
                {
                    return Err(private(&key.to_string()));
                }
                let names = dict.entries().iter();
                let names: BTreeMap<String, Value> =
                    names.map(|(key, value)| (key.to_string(), value.clone())).collect();
                let namespace = Value::Namespace(Rc::new(RefCell::new(names)));
                self.namespaces.borrow_mut().push(namespace.clone());
                Ok(namespace)
            }
            "cycler" if given.positional.is_empty() => {
                Err(JinjaError::of_type("at least one item has to be provided"))
            }
            "cycler" => {
                let items = Seq::new(given.positional.clone());
                Ok(Value::Cycler(Rc::new(Cycler { items, at: Cell::new(0) })))
            }
            "joiner" => {
                let separator = given.get(0, "sep").map(|separator| self.shown(separator));
                let separator = separator.unwrap_or_else(|| Ok(", ".to_owned()))?;
                Ok(Value::Joiner(separator.into(), Rc::new(Cell::new(false))))
            }
            "raise_exception" => {
                let message = given.get(0, "message").map(|message| self.shown(message));
                let message = message.unwrap_or_else(|| Ok(String::new()))?;
                Err(JinjaError::new(ErrorKind::Raised, message))
            }
            "lipsum" => Err(JinjaError::of_value("chat templates have no use for made-up text")),
            "strftime_now" => {
                given.allow("strftime_now", &["format"])?;
                let format = given.get(0, "format").and_then(Value::as_str);
                let format =
                    format.ok_or_else(|| JinjaError::of_type("strftime_now() needs a format"))?;
                // `%c` becomes some twenty characters.
                self.bytes(format.len().saturating_mul(16))?;
                self.text(super::methods::strftime(self.now, format)?)
            }
            other => Err(JinjaError::undefined(format!("'{other}' is undefined"))),
        }
    }

    /// Python's `range`, made as a list. One to three whole numbers. At most [`MAX_RANGE`] items.
    ///
    /// # Errors
    /// A step of 0, arguments that are no whole numbers, or too many items.
    fn range(&self, given: &Given) -> Result<Value, JinjaError> {
        let whole = |value: &Value| {
            value.must_be_defined()?;
            let kind = value.type_name();
            value.as_int().ok_or_else(|| {
                JinjaError::of_type(format!("'{kind}' object cannot be interpreted as an integer"))
            })
        };
        let numbers: Vec<i128> = given.positional.iter().map(whole).collect::<Result<_, _>>()?;
        let (start, stop, step) = match numbers[..] {
            [stop] => (0, stop, 1),
            [start, stop] => (start, stop, 1),
            [start, stop, step] => (start, stop, step),
            _ => return Err(JinjaError::of_type("range expected 1 to 3 arguments")),
        };
        if step == 0 {
            return Err(JinjaError::of_value("range() arg 3 must not be zero"));
        }
        let span = if step > 0 { stop.saturating_sub(start) } else { start.saturating_sub(stop) };
        let count = span.max(0).saturating_add(step.saturating_abs() - 1) / step.saturating_abs();
        if count > MAX_RANGE {
            return Err(JinjaError::new(
                ErrorKind::Bound,
                format!(
                    "Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE})."
                ),
            ));
        }
        self.list((0..count).map(|at| Value::Int(start + at * step)).collect())
    }

    /// Adds the entries of a mapping, or of a sequence of pairs, as `dict(value)` does. Later
    /// entries of a key replace its value.
    fn entries_of(&self, value: &Value, dict: &mut Dict) -> Result<(), JinjaError> {
        value.must_be_defined()?;
        if let Value::Dict(other) = value {
            self.bytes(super::render::weight(value))?;
            for (key, value) in other.entries() {
                dict.insert(key.clone(), value.clone())?;
            }
            return Ok(());
        }
        for pair in self.items(value)?.iter() {
            let pair = self.items(pair)?;
            let [key, value] = pair.as_slice() else {
                return Err(JinjaError::of_value(
                    "dictionary update sequence element needs two values",
                ));
            };
            self.bytes(super::render::weight(key))?;
            dict.insert(key.clone(), value.clone())?;
        }
        Ok(())
    }
}
