//! Jinja's tests: `value is name`.

use super::ast::{BinaryOp, CompareOp};
use super::error::JinjaError;
use super::operators::{binary, compare};
use super::render::{Given, Renderer};
use super::value::Value;

/// Names of tests. [`Renderer::test`] has each, and refuses others.
const NAMES: [&str; 39] = [
    "odd",
    "even",
    "divisibleby",
    "defined",
    "undefined",
    "filter",
    "test",
    "none",
    "boolean",
    "false",
    "true",
    "integer",
    "float",
    "lower",
    "upper",
    "string",
    "mapping",
    "number",
    "sequence",
    "iterable",
    "callable",
    "sameas",
    "escaped",
    "in",
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    ">",
    "gt",
    "greaterthan",
    "ge",
    ">=",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
];

/// Tests that ask for the kind of a value alone. They cost nothing, however much the value holds.
const OF_KIND: [&str; 16] = [
    "defined",
    "undefined",
    "none",
    "boolean",
    "false",
    "true",
    "integer",
    "float",
    "number",
    "string",
    "mapping",
    "sequence",
    "iterable",
    "callable",
    "escaped",
    "odd",
];

impl Renderer {
    /// Most tests look at what a value is, not through it. The others count the value's weight and
    /// the arguments'.
    fn work_of_test(&self, name: &str, value: &Value, given: &Given) -> Result<(), JinjaError> {
        if OF_KIND.contains(&name) {
            return Ok(());
        }
        self.work(super::render::weight(value) as u64)?;
        self.arguments(given)
    }

    /// Runs a test of this name. Those that compare take the value to compare with as their first
    /// argument. `odd`, `even` and `divisibleby` take floats too. `mapping` is a dictionary, and `sequence` all
    /// that has a length.
    ///
    /// # Errors
    /// An unknown name, a missing argument, or values that the comparison does not take.
    pub(super) fn test(
        &self,
        name: &str,
        value: &Value,
        given: &Given,
    ) -> Result<bool, JinjaError> {
        self.work_of_test(name, value, given)?;
        let other = || {
            let missing =
                || JinjaError::of_type(format!("test '{name}' needs a value to compare with"));
            given.positional.first().ok_or_else(missing)
        };
        let whole = |value: &Value| {
            value.must_be_defined()?;
            let kind = value.type_name();
            let wrong =
                || JinjaError::of_type(format!("test '{name}' needs a whole number, found {kind}"));
            value.as_int().ok_or_else(wrong)
        };
        Ok(match name {
            "odd" | "even" => {
                let rest = match value {
                    Value::Float(value) => value.rem_euclid(2.0),
                    value => whole(value)?.rem_euclid(2) as f64,
                };
                rest == if name == "odd" { 1.0 } else { 0.0 }
            }
            "divisibleby" => {
                let by = given.get(0, "num").map_or_else(other, Ok)?;
                binary(self, BinaryOp::Rem, value, by)?.equals(&Value::Int(0))
            }
            "defined" => !value.is_undefined(),
            "undefined" => value.is_undefined(),
            "filter" => super::filters::exists(&value.to_string()),
            "test" => NAMES.contains(&&*value.to_string()),
            "none" => matches!(value, Value::None),
            "boolean" => matches!(value, Value::Bool(_)),
            "false" => matches!(value, Value::Bool(false)),
            "true" => matches!(value, Value::Bool(true)),
            "integer" => matches!(value, Value::Int(_)),
            "float" => matches!(value, Value::Float(_)),
            "number" => matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_)),
            "lower" => value.to_string() == value.to_string().to_lowercase() && has_case(value),
            "upper" => value.to_string() == value.to_string().to_uppercase() && has_case(value),
            "string" => matches!(value, Value::Str(_)),
            "mapping" => matches!(value, Value::Dict(_)),
            "sequence" => matches!(
                value,
                Value::Str(_)
                    | Value::List(_)
                    | Value::Tuple(_)
                    | Value::Dict(_)
                    | Value::Undefined(_)
            ),
            "iterable" => is_iterable(value),
            "callable" => matches!(
                value,
                Value::Macro(_)
                    | Value::Function(_)
                    | Value::Method(..)
                    | Value::Joiner(..)
                    | Value::Undefined(_)
            ),
            "sameas" => same(value, other()?),
            "escaped" => false,
            "in" => other()?.contains(value)?,
            "==" | "eq" | "equalto" => compare(CompareOp::Eq, value, other()?)?,
            "!=" | "ne" => compare(CompareOp::Ne, value, other()?)?,
            ">" | "gt" | "greaterthan" => compare(CompareOp::Gt, value, other()?)?,
            ">=" | "ge" => compare(CompareOp::Ge, value, other()?)?,
            "<" | "lt" | "lessthan" => compare(CompareOp::Lt, value, other()?)?,
            "<=" | "le" => compare(CompareOp::Le, value, other()?)?,
            other => return Err(JinjaError::syntax(format!("No test named '{other}'."), 0)),
        })
    }
}

/// True for a value whose text has a letter with case: `lower` and `upper` need one, as in Python.
fn has_case(value: &Value) -> bool {
    value.to_string().chars().any(|c| c.is_lowercase() || c.is_uppercase())
}

/// `is` of Python, for values of which there is one each. Whole numbers and texts are compared by
/// value, since Python mostly keeps one of each.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::None, Value::None) => true,
        (Value::Int(a), Value::Int(b)) => a == b,
        (Value::Str(a), Value::Str(b)) => a == b,
        (Value::List(a), Value::List(b)) => std::rc::Rc::ptr_eq(a, b),
        (Value::Dict(a), Value::Dict(b)) => std::rc::Rc::ptr_eq(a, b),
        _ => false,
    }
}

/// True for values that a loop accepts; what is undefined counts, as an empty sequence.
fn is_iterable(value: &Value) -> bool {
    matches!(
        value,
        Value::Undefined(_)
            | Value::Str(_)
            | Value::List(_)
            | Value::Tuple(_)
            | Value::Dict(_)
            | Value::Loop(_)
    )
}
