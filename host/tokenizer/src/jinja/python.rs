//! Values as Python writes them: `repr` and `json.dumps`.

use std::fmt::Write as _;

use super::error::JinjaError;
use super::sorting::sorted;
use super::value::Value;

/// `repr` of a value. Its length is bounded by that of the value: count [`super::render::weight`]
/// before.
pub(super) fn repr(value: &Value) -> String {
    let mut out = String::new();
    write_repr(value, &mut out);
    out
}

/// Appends `repr` of a value, and of all that it holds. What is undefined shows as `Undefined`, and
/// values without a form of their own as their type in angle brackets. An entry of a tuple of one
/// has a comma behind it.
fn write_repr(value: &Value, out: &mut String) {
    match value {
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Int(value) => {
            let _ = write!(out, "{value}");
        }
        Value::Float(value) => out.push_str(&float(*value)),
        Value::Str(text) => quoted(text, out),
        Value::List(items) => sequence('[', items, ']', out),
        Value::Tuple(items) => match items.as_slice() {
            [only] => {
                out.push('(');
                write_repr(only, out);
                out.push_str(",)");
            }
            items => sequence('(', items, ')', out),
        },
        Value::Dict(dict) => {
            out.push('{');
            for (at, (key, value)) in dict.entries().iter().enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                write_repr(key, out);
                out.push_str(": ");
                write_repr(value, out);
            }
            out.push('}');
        }
        Value::Loop(state) => {
            let _ = write!(out, "<LoopContext {}/{}>", state.at.get() + 1, state.items.len());
        }
        Value::Macro(def) => {
            let _ = write!(out, "<Macro '{}'>", def.def.name);
        }
        other => {
            let _ = write!(out, "<{}>", other.type_name());
        }
    }
}

/// Appends items in brackets, with `, ` between them.
fn sequence(open: char, items: &[Value], close: char, out: &mut String) {
    out.push(open);
    for (at, item) in items.iter().enumerate() {
        out.push_str(if at > 0 { ", " } else { "" });
        write_repr(item, out);
    }
    out.push(close);
}

/// Appends `repr` of a text: in single quotes, unless it has these and no double ones. Escapes are
/// `\\`, `\n`, `\r`, `\t`, the quote, and `\x`, `\u` or `\U` for what is not printable.
fn quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => {
                let code = u32::from(c);
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// Characters that `repr` shows as they are; the common ones that it does not are listed. Python
/// goes by Unicode's categories Cc, Cf, Cs, Co, Cn, Zl, Zp and Zs, of which not all characters are
/// listed here.
pub(super) fn is_printable(c: char) -> bool {
    let code = u32::from(c);
    !(c.is_control()
        || (c.is_whitespace() && c != ' ')
        || matches!(code, 0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x180e | 0x200b..=0x200f
            | 0x202a..=0x202e | 0x2060..=0x206f | 0xfeff | 0xfff9..=0xfffb | 0xe000..=0xf8ff
            | 0xe0001..=0xe007f | 0xf0000..=0x10_ffff))
}

/// `repr` of a float: the shortest digits that read back as the same. Scientific from 1e16 on and
/// below 1e-4, with two digits of exponent at least.
pub(super) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{value}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// The settings of `json.dumps` that templates may set.
#[derive(Clone, Debug)]
pub(super) struct JsonStyle {
    /// Writes characters beyond ASCII as `\u` escapes.
    pub(super) ensure_ascii: bool,
    /// The text that indents each level; without one, everything is in one line.
    pub(super) indent: Option<String>,
    /// Between items; a line break and the indent follow it where there is one.
    pub(super) item_separator: String,
    /// Between a key and its value.
    pub(super) key_separator: String,
    /// Sorts entries by their keys, as Python compares them.
    pub(super) sort_keys: bool,
}

/// `json.dumps` of a value. Keys that are no texts become texts; two of them may then be equal, as
/// in Python.
///
/// # Errors
/// If JSON cannot hold it.
pub(super) fn json(value: &Value, style: &JsonStyle) -> Result<String, JinjaError> {
    let mut out = String::new();
    write_json(value, style, 0, &mut out)?;
    Ok(out)
}

/// Appends a value that stands `depth` levels deep. Empty lists and mappings have no line breaks
/// inside, whatever the indent.
fn write_json(
    value: &Value,
    style: &JsonStyle,
    depth: usize,
    out: &mut String,
) -> Result<(), JinjaError> {
    match value {
        Value::None => out.push_str("null"),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Int(value) => {
            let _ = write!(out, "{value}");
        }
        Value::Float(value) => out.push_str(&json_float(*value)),
        Value::Str(text) => json_text(text, style.ensure_ascii, out),
        Value::List(items) | Value::Tuple(items) => {
            if items.is_empty() {
                out.push_str("[]");
                return Ok(());
            }
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                separate(style, depth + 1, at, out);
                write_json(item, style, depth + 1, out)?;
            }
            close(style, depth, ']', out);
        }
        Value::Dict(dict) => {
            if dict.len() == 0 {
                out.push_str("{}");
                return Ok(());
            }
            let mut entries: Vec<&(Value, Value)> = dict.entries().iter().collect();
            if style.sort_keys {
                entries = sorted(entries, |a, b| a.0.is_less(&b.0))?;
            }
            out.push('{');
            for (at, (key, value)) in entries.into_iter().enumerate() {
                separate(style, depth + 1, at, out);
                json_text(&json_key(key)?, style.ensure_ascii, out);
                out.push_str(&style.key_separator);
                write_json(value, style, depth + 1, out)?;
            }
            close(style, depth, '}', out);
        }
        other => {
            let kind = other.type_name();
            return Err(JinjaError::of_type(format!(
                "Object of type {kind} is not JSON serializable"
            )));
        }
    }
    Ok(())
}

/// Appends the text before item `at`: the separator, unless it is the first, and the indent.
fn separate(style: &JsonStyle, depth: usize, at: usize, out: &mut String) {
    if at > 0 {
        out.push_str(&style.item_separator);
    }
    if let Some(indent) = &style.indent {
        out.push('\n');
        (0..depth).for_each(|_| out.push_str(indent));
    }
}

/// The closing bracket, in a line of its own where there is an indent.
fn close(style: &JsonStyle, depth: usize, bracket: char, out: &mut String) {
    if let Some(indent) = &style.indent {
        out.push('\n');
        (0..depth).for_each(|_| out.push_str(indent));
    }
    out.push(bracket);
}

/// A key as text: `json.dumps` writes numbers, booleans and `None` as they are in JSON, and refuses
/// others.
fn json_key(key: &Value) -> Result<String, JinjaError> {
    match key {
        Value::Str(text) => Ok(text.to_string()),
        Value::None => Ok("null".to_owned()),
        Value::Bool(value) => Ok(value.to_string()),
        Value::Int(value) => Ok(value.to_string()),
        Value::Float(value) => Ok(json_float(*value)),
        other => Err(JinjaError::of_type(format!(
            "keys must be str, int, float, bool or None, not {}",
            other.type_name()
        ))),
    }
}

/// A float with JavaScript's names for what is no number, as `json.dumps` has them.
fn json_float(value: f64) -> String {
    if value.is_nan() {
        "NaN".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
    } else {
        float(value)
    }
}

/// Appends a text as a JSON string. Characters beyond U+FFFF are escaped as surrogate pairs.
/// Control characters are escaped in any case; `/` is not.
fn json_text(text: &str, ensure_ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || (ensure_ascii && !(' '..='~').contains(&c)) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
