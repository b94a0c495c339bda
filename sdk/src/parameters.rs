//! Named scalar parameters of a router: the configured ones, overridden by a request's.

use std::fmt;

/// A scalar parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `true` or `false`.
    Flag(bool),
    /// Any number.
    Number(f64),
    /// Text.
    Text(String),
}

/// A parameter that a router cannot use; the caller's fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterError {
    /// The parameter.
    pub name: String,
    /// The found and the expected value.
    pub message: String,
}

impl fmt::Display for ParameterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "parameter `{}`: {}", self.name, self.message)
    }
}

impl std::error::Error for ParameterError {}

/// A set of parameters with typed look-ups. In the order given; names may repeat.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters(pub Vec<(String, Value)>);

impl Parameters {
    /// The value under a name; of several, the last.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// A number, or the default.
    ///
    /// # Errors
    /// If the value is not a finite number.
    pub fn number(&self, name: &str, default: f64) -> Result<f64, ParameterError> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Number(value)) if value.is_finite() => Ok(*value),
            Some(other) => Err(wrong(name, other, "a finite number")),
        }
    }

    /// A whole number from `least` on, or the default. At most 2⁵³, up to which a double holds
    /// every whole number.
    ///
    /// # Errors
    /// If the value is anything else.
    pub fn integer(&self, name: &str, default: u64, least: u64) -> Result<u64, ParameterError> {
        match self.get(name) {
            None => Ok(default),
            Some(&Value::Number(value))
                if value.fract() == 0.0
                    && value >= least as f64
                    && value <= 9_007_199_254_740_992.0 =>
            {
                Ok(value as u64)
            }
            Some(other) => Err(wrong(name, other, &format!("a whole number from {least} on"))),
        }
    }

    /// A text, where one is given.
    ///
    /// # Errors
    /// If the value is no text.
    pub fn text(&self, name: &str) -> Result<Option<&str>, ParameterError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, other, "a text")),
        }
    }

    /// A flag, or the default.
    ///
    /// # Errors
    /// If the value is no flag.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool, ParameterError> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Flag(value)) => Ok(*value),
            // The flat ABI carries flags as numbers.
            Some(&Value::Number(value)) if value == 0.0 || value == 1.0 => Ok(value == 1.0),
            Some(other) => Err(wrong(name, other, "true or false")),
        }
    }

    /// One of several texts; the first is the default. Returns its position.
    ///
    /// # Errors
    /// If the value is anything else.
    pub fn choice(&self, name: &str, choices: &[&str]) -> Result<usize, ParameterError> {
        let Some(value) = self.get(name) else { return Ok(0) };
        let found = match value {
            Value::Text(text) => choices.iter().position(|choice| choice == text),
            Value::Flag(_) | Value::Number(_) => None,
        };
        found.ok_or_else(|| wrong(name, value, &format!("one of {}", choices.join(", "))))
    }

    /// Refuses every name that is not listed.
    ///
    /// # Errors
    /// Names the first unknown parameter and the known ones.
    pub fn only(&self, known: &[&str]) -> Result<(), ParameterError> {
        match self.0.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some((name, _)) => Err(ParameterError {
                name: name.clone(),
                message: format!("unknown; known are: {}", known.join(", ")),
            }),
        }
    }
}

/// The error of a value that is not of the expected kind.
fn wrong(name: &str, found: &Value, expected: &str) -> ParameterError {
    let found = match found {
        Value::Flag(value) => value.to_string(),
        Value::Number(value) => value.to_string(),
        Value::Text(value) => format!("`{value}`"),
    };
    ParameterError { name: name.to_owned(), message: format!("found {found}, expected {expected}") }
}
