//! Values as Python writes them: `repr`, `json.dumps`, `%` and `format`.

use std::fmt::Write as _;

use super::error::JinjaError;
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
                sort_entries(&mut entries)?;
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

/// Sorts entries by their keys; keys that Python cannot compare are an error.
fn sort_entries(entries: &mut [&(Value, Value)]) -> Result<(), JinjaError> {
    let mut failed = None;
    entries.sort_by(|a, b| {
        a.0.compare(&b.0, "<").unwrap_or_else(|error| {
            failed = Some(error);
            std::cmp::Ordering::Equal
        })
    });
    failed.map_or(Ok(()), Err)
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

/// `template % values`. A tuple holds several values, and a mapping those of `%(name)s`. Widths and
/// places may be `*`. Widths are at most [`MAX_WIDTH`], places at most 50.
///
/// # Errors
/// If a value is missing, left over, or of the wrong kind.
pub(super) fn percent(template: &str, values: &Value) -> Result<String, JinjaError> {
    let several = match values {
        Value::Tuple(items) => items.to_vec(),
        other => vec![other.clone()],
    };
    let mut values_left = several.into_iter();
    let (mut out, mut rest) = (String::new(), template);
    let mut named = false;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let mut key = None;
        if let Some((name, after)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            (key, rest) = (Some(name), after);
        }
        let len = rest.find(|c: char| !"-+ #0123456789.*".contains(c));
        let Some(len) = len else { return Err(JinjaError::of_value("incomplete format")) };
        let (flags, conversion) = (&rest[..len], rest[len..].chars().next().unwrap_or_default());
        rest = &rest[len + conversion.len_utf8()..];
        if conversion == '%' {
            out.push('%');
            continue;
        }
        // A width or a number of places may stand among the values.
        let mut flags = flags.to_owned();
        while let Some(star) = flags.find('*') {
            let width = values_left.next().and_then(|width| width.as_int());
            let width = width.ok_or_else(|| JinjaError::of_type("* wants int"))?;
            flags.replace_range(star..=star, &width.to_string());
        }
        let flags = flags.as_str();
        let value = match (key, values) {
            (Some(name), Value::Dict(dict)) => {
                named = true;
                dict.get_str(name).cloned()
            }
            (Some(_), _) => return Err(JinjaError::of_type("format requires a mapping")),
            (None, _) => values_left.next(),
        };
        let missing = || JinjaError::of_type("not enough arguments for format string");
        let value = value.ok_or_else(missing)?;
        let text = converted(&value, flags, conversion)?;
        out.push_str(&padded(&text, flags, value.as_f64().is_some())?);
    }
    out.push_str(rest);
    let is_mapping = matches!(values, Value::Dict(_));
    if !named && !is_mapping && values_left.next().is_some() {
        return Err(JinjaError::of_type("not all arguments converted during string formatting"));
    }
    Ok(out)
}

/// A value by one conversion, without its width. `flags` is all between `%` and the conversion.
/// `%g` has six digits, whatever places are asked for. `%d` cuts a float toward zero. A sign flag
/// counts only where it comes first.
///
/// # Errors
/// Python's `TypeError` where a number is needed, and `ValueError` for an unknown conversion.
fn converted(value: &Value, flags: &str, conversion: char) -> Result<String, JinjaError> {
    let places = flags.split_once('.').map(|(_, places)| places.parse().unwrap_or(0));
    let wrong = || {
        let kind = value.type_name();
        JinjaError::of_type(format!("%{conversion} format: a real number is required, not {kind}"))
    };
    let whole = || value.as_int().or_else(|| value.as_f64().map(|value| value as i128));
    let signed = |text: String| {
        let sign = ['+', ' '].into_iter().find(|sign| flags.starts_with(*sign));
        match sign.filter(|_| !text.starts_with('-')) {
            Some(sign) => format!("{sign}{text}"),
            None => text,
        }
    };
    Ok(match conversion {
        's' => cut(value.to_string(), places),
        'r' => cut(repr(value), places),
        'd' | 'i' | 'u' => signed(whole().ok_or_else(wrong)?.to_string()),
        'x' if flags.contains('#') => format!("{:#x}", value.as_int().ok_or_else(wrong)?),
        'x' => format!("{:x}", value.as_int().ok_or_else(wrong)?),
        'X' => format!("{:X}", value.as_int().ok_or_else(wrong)?),
        'o' => format!("{:o}", value.as_int().ok_or_else(wrong)?),
        'f' | 'F' => {
            signed(format!("{:.*}", places.unwrap_or(6).min(50), value.as_f64().ok_or_else(wrong)?))
        }
        'e' => {
            let value = value.as_f64().ok_or_else(wrong)?;
            let text = format!("{value:.*e}", places.unwrap_or(6).min(50));
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let exponent: i32 = exponent.parse().unwrap_or(0);
            let sign = if exponent < 0 { '-' } else { '+' };
            signed(format!("{digits}e{sign}{:02}", exponent.abs()))
        }
        'g' => {
            let value = value.as_f64().ok_or_else(wrong)?;
            // Six digits, as many as `%g` has where none are named.
            let scientific = format!("{value:.5e}");
            let exponent =
                scientific.split_once('e').map_or(0, |(_, e)| e.parse::<i32>().unwrap_or(0));
            signed(match exponent {
                -4..6 => {
                    let text = format!("{value:.*}", (5 - exponent).max(0) as usize);
                    let text = if text.contains('.') { text.trim_end_matches('0') } else { &text };
                    text.trim_end_matches('.').to_owned()
                }
                _ => {
                    let digits = scientific.split_once('e').map_or("", |(digits, _)| digits);
                    let digits = digits.trim_end_matches('0').trim_end_matches('.');
                    let sign = if exponent < 0 { '-' } else { '+' };
                    format!("{digits}e{sign}{:02}", exponent.abs())
                }
            })
        }
        'c' => match value {
            Value::Str(text) => text.to_string(),
            other => {
                let code = other.as_int().and_then(|code| char::from_u32(code as u32));
                code.ok_or_else(wrong)?.to_string()
            }
        },
        other => {
            return Err(JinjaError::of_value(format!("unsupported format character '{other}'")));
        }
    })
}

/// The first characters of a text: the places of `%s`.
fn cut(text: String, places: Option<usize>) -> String {
    match places {
        Some(places) => text.chars().take(places).collect(),
        None => text,
    }
}

/// Widths that a format may ask for.
const MAX_WIDTH: usize = 10_000;

/// A text filled up to the width in `flags`: on the left with blanks or zeros, on the right after
/// `-`. Zeros stand behind a sign. Zeros are for numbers alone, and `-` goes before `0`.
///
/// # Errors
/// A width above [`MAX_WIDTH`].
fn padded(text: &str, flags: &str, is_number: bool) -> Result<String, JinjaError> {
    let signs = flags.trim_start_matches(['-', '+', ' ', '#', '0']);
    let width = signs.split('.').next().unwrap_or_default();
    let width: usize = if width.is_empty() { 0 } else { width.parse().unwrap_or(usize::MAX) };
    if width > MAX_WIDTH {
        return Err(JinjaError::of_value(format!("a width of {width} is above {MAX_WIDTH}")));
    }
    let flags = &flags[..flags.len() - signs.len()];
    let missing = width.saturating_sub(text.chars().count());
    if flags.contains('-') {
        return Ok(text.to_owned() + &" ".repeat(missing));
    }
    if flags.contains('0') && is_number {
        let (sign, digits) = match text.strip_prefix(['-', '+']) {
            Some(digits) => text.split_at(text.len() - digits.len()),
            None => ("", text),
        };
        return Ok(format!("{sign}{}{digits}", "0".repeat(missing)));
    }
    Ok(" ".repeat(missing) + text)
}

/// `str.format` with plain fields: `{}`, `{0}`, `{name}`, and widths, signs and places after `:`.
/// `{{` and `}}` stand for a bracket. Fields may have a path, `!r`, and widths that are no fields
/// themselves.
///
/// # Errors
/// If a value is missing or a field is of another form.
pub(super) fn format(
    template: &str,
    positional: &[Value],
    named: &[(std::sync::Arc<str>, Value)],
) -> Result<String, JinjaError> {
    let mut out = String::new();
    let mut rest = template;
    let mut next = 0;
    while let Some(at) = rest.find(['{', '}']) {
        out.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            out.push_str(brace);
            rest = after;
            continue;
        }
        let single =
            || JinjaError::of_value(format!("Single '{brace}' encountered in format string"));
        if brace == "}" {
            return Err(single());
        }
        let (field, after) = rest.split_once('}').ok_or_else(single)?;
        rest = after;
        let (name, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = name.split_once('!').unwrap_or((name, ""));
        let (name, path) = name.split_at(name.find(['.', '[']).unwrap_or(name.len()));
        let value = match name {
            "" => {
                next += 1;
                positional.get(next - 1)
            }
            name => match name.parse::<usize>() {
                Ok(at) => positional.get(at),
                Err(_) => named.iter().find(|(key, _)| **key == *name).map(|(_, value)| value),
            },
        };
        let value = value.ok_or_else(|| {
            JinjaError::of_value(format!("Replacement index {name} out of range"))
        })?;
        let value = at_path(value, path)?;
        let shown = if conversion == "r" { Value::from(repr(&value)) } else { value };
        out.push_str(&formatted(&shown, spec)?);
    }
    out.push_str(rest);
    Ok(out)
}

/// The value at a path like `.a[0]`. A part of digits is an index.
fn at_path(value: &Value, path: &str) -> Result<Value, JinjaError> {
    let names = path.split(['.', '[']).skip(1).map(|name| name.trim_end_matches(']'));
    names.into_iter().try_fold(value.clone(), |value, name| {
        let key = name.parse().map_or_else(|_| Value::from(name), Value::Int);
        let found = super::operators::item(&value, &key)?;
        found.must_be_defined()?;
        Ok(found)
    })
}

/// A value by a format specification: fill, alignment, sign, `#`, zero, width, grouping, places and
/// type. Numbers stand on the right and other values on the left, unless an alignment is given. `,`
/// and `_` group the digits by three. The alignment `=` is taken for `>`.
fn formatted(value: &Value, spec: &str) -> Result<String, JinjaError> {
    if spec.is_empty() {
        return Ok(value.to_string());
    }
    let (fill, align, rest) = alignment(spec);
    let conversion = rest.chars().next_back().filter(char::is_ascii_alphabetic);
    let flags = rest.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let grouped = flags.chars().find(|c| matches!(c, ',' | '_'));
    let flags = flags.replace([',', '_'], "");
    let is_number = value.as_f64().is_some();
    let kind = conversion.unwrap_or(match value {
        Value::Float(_) if flags.contains('.') => 'f',
        Value::Float(_) => 'r',
        value if value.as_int().is_some() => 'd',
        _ => 's',
    });
    let is_percent = rest.ends_with('%');
    let mut text = match (kind, value.as_f64()) {
        (_, Some(number)) if is_percent => {
            let places = flags.trim_end_matches('%').split_once('.');
            let places: usize = places.map_or(6, |(_, places)| places.parse().unwrap_or(6));
            format!("{:.*}%", places.min(50), number * 100.0)
        }
        ('b', _) => format!("{:b}", value.as_int().unwrap_or(0)),
        ('r', Some(number)) => float(number),
        _ => converted(value, &flags, kind)?,
    };
    if flags.contains('#') && matches!(kind, 'X' | 'o' | 'b') {
        text = format!("0{kind}{text}");
    }
    if let Some(separator) = grouped {
        text = in_groups(&text, separator);
    }
    let flags = flags.trim_end_matches('%').to_owned();
    let Some(align) = align else {
        let left = if is_number { String::new() } else { "-".to_owned() };
        return padded(&text, &(left + &flags), is_number);
    };
    let width: String = flags
        .trim_start_matches(['+', '-', ' ', '0'])
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    let width = width.parse::<usize>().unwrap_or(0).min(MAX_WIDTH);
    let missing = width.saturating_sub(text.chars().count());
    let before = match align {
        '<' => 0,
        '^' => missing / 2,
        _ => missing,
    };
    let fill = |count: usize| fill.to_string().repeat(count);
    Ok(fill(before) + &text + &fill(missing - before))
}

/// The fill, the alignment if there is one, and the rest of a specification. The fill is a blank
/// where only the alignment is given.
fn alignment(spec: &str) -> (char, Option<char>, &str) {
    let mut chars = spec.chars();
    let (first, second) = (chars.next().unwrap_or(' '), chars.next());
    if let Some(align) = second.filter(|c| "<>^=".contains(*c)) {
        return (first, Some(align), &spec[first.len_utf8() + 1..]);
    }
    match "<>^=".contains(first) {
        true => (' ', Some(first), &spec[1..]),
        false => (' ', None, spec),
    }
}

/// A number with a separator between each three digits of its whole part. A sign and a fraction
/// stay as they are.
fn in_groups(number: &str, separator: char) -> String {
    let (whole, fraction) = number.split_once('.').map_or((number, None), |(w, f)| (w, Some(f)));
    let digits = whole.trim_start_matches(['-', '+']);
    let mut out = whole[..whole.len() - digits.len()].to_owned();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(separator);
        }
        out.push(digit);
    }
    fraction.map_or(out.clone(), |fraction| out + "." + fraction)
}
