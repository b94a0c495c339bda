//! Comparisons of values: equality, order and membership.

use std::cmp::Ordering;
use std::rc::Rc;

use super::super::error::JinjaError;
use super::Value;
use super::containers::Key;

impl Value {
    /// `==` of Python. Values of different types are unequal, but for numbers and booleans.
    /// Functions, methods, loops and cyclers equal nothing.
    pub(in super::super) fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Undefined(_), Self::Undefined(_)) | (Self::None, Self::None) => true,
            (Self::Str(a), Self::Str(b)) => a == b,
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => {
                a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.equals(b))
            }
            (Self::Dict(a), Self::Dict(b)) => {
                a.len() == b.len()
                    && a.entries()
                        .iter()
                        .all(|(key, value)| b.get(key).is_some_and(|found| found.equals(value)))
            }
            (Self::Namespace(a), Self::Namespace(b)) => Rc::ptr_eq(a, b),
            (Self::Macro(a), Self::Macro(b)) => Rc::ptr_eq(a, b),
            _ => match (self.as_int(), other.as_int()) {
                (Some(a), Some(b)) => a == b,
                _ => match (self.as_f64(), other.as_f64()) {
                    (Some(a), Some(b)) => a == b,
                    _ => false,
                },
            },
        }
    }

    /// The order of two values; an error where Python has none. `op` is the operator that the
    /// message shows. Texts go by code points, and sequences by their first unequal items. Beside
    /// NaN nothing is less, equal or greater.
    pub(in super::super) fn compare(
        &self,
        other: &Self,
        op: &str,
    ) -> Result<Option<Ordering>, JinjaError> {
        self.must_be_defined()?;
        other.must_be_defined()?;
        match (self, other) {
            (Self::Str(a), Self::Str(b)) => return Ok(Some(a.cmp(b))),
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => {
                for (a, b) in a.iter().zip(b.iter()) {
                    if !a.equals(b) {
                        return a.compare(b, op);
                    }
                }
                return Ok(Some(a.len().cmp(&b.len())));
            }
            _ => {}
        }
        if let (Some(a), Some(b)) = (self.as_int(), other.as_int()) {
            return Ok(Some(a.cmp(&b)));
        }
        if let (Some(a), Some(b)) = (self.as_f64(), other.as_f64()) {
            return Ok(a.partial_cmp(&b));
        }
        let (a, b) = (self.type_name(), other.type_name());
        Err(JinjaError::of_type(format!(
            "'{op}' not supported between instances of '{a}' and '{b}'"
        )))
    }

    /// `self < other`, by which Python sorts.
    ///
    /// # Errors
    /// Python's `TypeError` for two values without an order.
    pub(in super::super) fn is_less(&self, other: &Self) -> Result<bool, JinjaError> {
        Ok(self.compare(other, "<")? == Some(Ordering::Less))
    }

    /// `needle in self`. Python's error where the container takes no such needle.
    pub(in super::super) fn contains(&self, needle: &Self) -> Result<bool, JinjaError> {
        match (self, needle) {
            (Self::Str(text), Self::Str(part)) => Ok(text.contains(&**part)),
            (Self::Str(_), Self::Undefined(message)) => Err(JinjaError::undefined(&**message)),
            (Self::Str(_), other) => {
                let kind = other.type_name();
                Err(JinjaError::of_type(format!(
                    "'in <string>' requires string as left operand, not {kind}"
                )))
            }
            (Self::Dict(dict), key) => {
                Key::of(key)?;
                Ok(dict.get(key).is_some())
            }
            (Self::List(items) | Self::Tuple(items), _) => {
                Ok(items.iter().any(|item| item.equals(needle)))
            }
            (Self::Undefined(_), _) => Ok(false),
            (other, _) => {
                let kind = other.type_name();
                Err(JinjaError::of_type(format!("argument of type '{kind}' is not iterable")))
            }
        }
    }
}
