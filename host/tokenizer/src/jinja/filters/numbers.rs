//! Filters over numbers: rounding, reading numbers from texts, sizes of files.

use super::super::error::JinjaError;
use super::super::operators;
use super::super::render::{Given, Renderer};
use super::super::value::Value;
use super::Evaluated;

impl Renderer {
    /// `abs`, `round`, `int` and `float`. `int` and `float` give their default for a text that is
    /// no number; a value that is undefined is an error there, as `int(Undefined)` is in Python.
    /// `round` of a whole number stays whole by the method `common`, the default, and not by `ceil`
    /// and `floor`. Floats have up to 30 places on either side of the point.
    pub(super) fn number_filter(&self, name: &str, value: &Value, given: &Given) -> Evaluated {
        match name {
            "abs" => {
                value.must_be_defined()?;
                match (value.as_int(), value) {
                    (Some(whole), _) => {
                        let size = whole.checked_abs().map(Value::Int);
                        size.ok_or_else(|| operators::too_large(&format!("abs({whole})")))
                    }
                    (None, Value::Float(value)) => Ok(Value::Float(value.abs())),
                    _ => {
                        let kind = value.type_name();
                        Err(JinjaError::of_type(format!("bad operand type for abs(): '{kind}'")))
                    }
                }
            }
            "round" => {
                value.must_be_defined()?;
                let places = given.get(0, "precision").and_then(Value::as_int).unwrap_or(0);
                let number = value.as_f64();
                let number = number.ok_or_else(|| JinjaError::of_type("round() needs a number"))?;
                let method = given.get(1, "method").map(Value::to_string);
                if method.is_some_and(|method| !matches!(&*method, "common" | "ceil" | "floor")) {
                    return Err(JinjaError::of_value("method must be common, ceil or floor"));
                }
                let scale = 10_f64.powi(places.clamp(-30, 30) as i32);
                let rounded = match (given.get(1, "method").and_then(Value::as_str), value) {
                    (Some("ceil"), _) => (number * scale).ceil() / scale,
                    (Some("floor"), _) => (number * scale).floor() / scale,
                    (_, Value::Int(_) | Value::Bool(_)) => {
                        return whole_half_even(value.as_int().unwrap_or(0), places);
                    }
                    _ if places >= 0 => half_even(number, places.min(30) as usize),
                    _ => (number * scale).round_ties_even() / scale,
                };
                Ok(Value::Float(rounded))
            }
            "int" | "float" if value.is_undefined() => {
                value.must_be_defined()?;
                Ok(Value::None)
            }
            "int" => {
                let base = given.get(1, "base").and_then(Value::as_int).unwrap_or(10);
                let default = given.get(0, "default").cloned().unwrap_or(Value::Int(0));
                Ok(whole_of(value, base).map_or(default, Value::Int))
            }
            _ => {
                let default = given.get(0, "default").cloned().unwrap_or(Value::Float(0.0));
                let read = match value {
                    Value::Str(text) => text.trim().replace('_', "").parse().ok(),
                    other => other.as_f64(),
                };
                Ok(read.map_or(default, Value::Float))
            }
        }
    }
}

/// Python's `round`: to the nearest, halves (of the exact value) to even. `places` is the number of
/// decimals.
fn half_even(number: f64, places: usize) -> f64 {
    format!("{number:.places$}").parse().unwrap_or(number)
}

/// Python's `round` of a whole number, halves to even. Negative places stand before the point.
fn whole_half_even(whole: i128, places: i128) -> Evaluated {
    let Ok(zeros) = u32::try_from(places.saturating_neg()) else { return Ok(Value::Int(whole)) };
    // A unit beyond 128 bits is more than twice any number.
    let Some(unit) = 10_i128.checked_pow(zeros) else { return Ok(Value::Int(0)) };
    let (quotient, rest) = (whole.div_euclid(unit), whole.rem_euclid(unit));
    let is_up = rest > unit - rest || (rest == unit - rest && quotient % 2 != 0);
    let rounded = (quotient + i128::from(is_up)).checked_mul(unit).map(Value::Int);
    rounded.ok_or_else(|| operators::too_large(&format!("round({whole}, {places})")))
}

/// `int(value, base)` as the filter has it: a text of digits in the base, with or without its
/// prefix, or of a float that is cut toward zero. `None` where it is neither. White space around it
/// and `_` are passed over.
fn whole_of(value: &Value, base: i128) -> Option<i128> {
    match value {
        Value::Str(text) => {
            let text = text.trim().replace('_', "");
            let lower = text.to_ascii_lowercase();
            let digits = match base {
                16 => lower.strip_prefix("0x").unwrap_or(&lower),
                8 => lower.strip_prefix("0o").unwrap_or(&lower),
                2 => lower.strip_prefix("0b").unwrap_or(&lower),
                _ => &lower,
            };
            let (digits, base) = match base {
                0 => match lower.get(..2) {
                    Some("0x") => (&lower[2..], 16),
                    Some("0o") => (&lower[2..], 8),
                    Some("0b") => (&lower[2..], 2),
                    _ => (&*lower, 10),
                },
                base => (digits, base),
            };
            let base = u32::try_from(base).ok().filter(|base| (2..=36).contains(base))?;
            let whole = i128::from_str_radix(digits, base).ok();
            whole.or_else(|| text.parse::<f64>().ok().filter(|f| f.is_finite()).map(|f| f as i128))
        }
        Value::Float(value) => value.is_finite().then_some(*value as i128),
        other => other.as_int(),
    }
}

/// A number of bytes as people write it. Jinja's `do_filesizeformat`: by 1,000 with `kB`, `MB`, or
/// by 1,024 with `KiB`, `MiB`, and one decimal.
pub(super) fn file_size(bytes: f64, is_binary: bool) -> String {
    let base: f64 = if is_binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return "1 Byte".to_owned();
    }
    if bytes < base {
        return format!("{} Bytes", bytes as i64);
    }
    let (mut unit, mut power) = ('k', base);
    for (next, c) in (2..).zip("MGTPEZY".chars()) {
        if bytes < power * base {
            break;
        }
        (unit, power) = (c, base.powi(next));
    }
    let unit = if is_binary { format!("{}i", unit.to_ascii_uppercase()) } else { unit.to_string() };
    format!("{:.1} {unit}B", bytes / power)
}
