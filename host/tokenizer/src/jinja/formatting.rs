//! Values by Python's formats: `%` and `str.format`.

mod spec;

use std::sync::Arc;

use self::spec::Spec;
use super::error::JinjaError;
use super::python::{float, repr};
use super::render::{Renderer, weight};
use super::value::Value;

/// Largest width, number of places, indent or tab that a template may ask for. Python has no such
/// bound.
const MAX_WIDTH: usize = 10_000;

/// A width or a number of places that a template asks for; 0 for what is negative. `name` is the
/// word for it in the message.
///
/// # Errors
/// A number above [`MAX_WIDTH`].
pub(super) fn width(name: &str, asked: i128) -> Result<usize, JinjaError> {
    match usize::try_from(asked.max(0)) {
        Ok(width) if width <= MAX_WIDTH => Ok(width),
        _ => Err(JinjaError::of_value(format!("{name} is {asked}, expected at most {MAX_WIDTH}"))),
    }
}

/// `template % values`. A tuple holds several values, and a mapping those of `%(name)s`. Widths and
/// places may be `*`, and are at most [`MAX_WIDTH`]. All that it makes is counted piece by piece.
///
/// # Errors
/// If a value is missing, left over, or of the wrong kind, or a bound is reached.
pub(super) fn percent(
    run: &Renderer,
    template: &str,
    values: &Value,
) -> Result<String, JinjaError> {
    let several = match values {
        Value::Tuple(items) => items.as_slice(),
        other => std::slice::from_ref(other),
    };
    let mut values_left = several.iter();
    let (mut out, mut rest) = (String::new(), template);
    let mut named = false;
    run.bytes(template.len())?;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let mut key = None;
        if let Some((name, after)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            (key, rest) = (Some(name), after);
        }
        let (spec, after) = Spec::of_percent(rest, &mut values_left)?;
        rest = after;
        let kind = spec.kind.ok_or_else(|| JinjaError::of_value("incomplete format"))?;
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = match (key, values) {
            (Some(name), Value::Dict(dict)) => {
                named = true;
                dict.get_str(name)
            }
            (Some(_), _) => return Err(JinjaError::of_type("format requires a mapping")),
            (None, _) => values_left.next(),
        };
        let missing = || JinjaError::of_type("not enough arguments for format string");
        let value = value.ok_or_else(missing)?;
        run.bytes(weight(value))?;
        let text = converted(value, kind, &spec)?;
        run.bytes(text.len())?;
        out.push_str(&text);
    }
    out.push_str(rest);
    let is_mapping = matches!(values, Value::Dict(_));
    if !named && !is_mapping && values_left.next().is_some() {
        return Err(JinjaError::of_type("not all arguments converted during string formatting"));
    }
    Ok(out)
}

/// `str.format` with plain fields: `{}`, `{0}`, `{name}`, and a specification after `:`. `{{` and
/// `}}` stand for a bracket. Fields may have a path, `!r`, and widths that are no fields
/// themselves. All that it makes is counted piece by piece.
///
/// # Errors
/// If a value is missing or a field is of another form, or a bound is reached.
pub(super) fn format(
    run: &Renderer,
    template: &str,
    positional: &[Value],
    named: &[(Arc<str>, Value)],
) -> Result<String, JinjaError> {
    let mut out = String::new();
    let mut rest = template;
    let mut next = 0;
    run.bytes(template.len())?;
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
        run.work(named.len() as u64)?;
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
        // A path may look for a character of a text.
        run.work(weight(value) as u64)?;
        let value = at_path(value, path)?;
        run.bytes(weight(&value))?;
        let shown = if conversion == "r" { Value::from(repr(&value)) } else { value };
        let text = formatted(&shown, spec)?;
        run.bytes(text.len())?;
        out.push_str(&text);
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

/// A value by one conversion of `%`. `%d` cuts a float toward zero. Zeros fill numbers alone.
///
/// # Errors
/// Python's `TypeError` where a number is needed, and `ValueError` for an unknown conversion.
fn converted(value: &Value, kind: char, spec: &Spec) -> Result<String, JinjaError> {
    let wrong = |wanted: &str| {
        let found = value.type_name();
        JinjaError::of_type(format!("%{kind} format: {wanted} is required, not {found}"))
    };
    let plain = Spec { fill: None, ..*spec };
    match kind {
        's' => Ok(plain.text(value.to_string(), '>')),
        'r' => Ok(plain.text(repr(value), '>')),
        'c' => Ok(plain.text(character(value)?, '>')),
        'd' | 'i' | 'u' => {
            let real = value.as_f64().ok_or_else(|| wrong("a real number"))?;
            // Floats from here on do not fit.
            let cut = (real.abs() < i128::MAX as f64).then_some(real as i128);
            let whole = value.as_int().or(cut).ok_or_else(|| {
                let real = float(real);
                JinjaError::of_value(format!("{real} is beyond the whole numbers of a template"))
            })?;
            Ok(spec.whole(whole, 'd'))
        }
        'x' | 'X' | 'o' => Ok(spec.whole(value.as_int().ok_or_else(|| wrong("an integer"))?, kind)),
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            Ok(spec.real(value.as_f64().ok_or_else(|| wrong("a real number"))?, Some(kind)))
        }
        other => Err(JinjaError::of_value(format!("unsupported format character '{other}'"))),
    }
}

/// The value of `%c`: a text of one character, or the number of one.
fn character(value: &Value) -> Result<String, JinjaError> {
    if let Value::Str(text) = value
        && text.chars().count() == 1
    {
        return Ok(text.to_string());
    }
    let code = value.as_int().ok_or_else(|| JinjaError::of_type("%c requires int or char"))?;
    let found = u32::try_from(code).ok().and_then(char::from_u32);
    found.map(String::from).ok_or_else(|| JinjaError::of_value(format!("{code} is no character")))
}

/// A value by a specification: fill, alignment, sign, `#`, zero, width, grouping, places and type.
/// Numbers stand on the right and texts on the left, unless an alignment is given. `,` and `_`
/// group the digits by three, those that are not decimal by four.
///
/// # Errors
/// Python's, for a specification that the value does not take.
fn formatted(value: &Value, text: &str) -> Result<String, JinjaError> {
    if text.is_empty() {
        return Ok(value.to_string());
    }
    let spec = Spec::of_format(text)?;
    let unknown = || {
        let (kind, found) = (spec.kind.unwrap_or(' '), value.type_name());
        JinjaError::of_value(format!("Unknown format code '{kind}' for object of type '{found}'"))
    };
    let is_number = value.as_f64().is_some();
    let misses = match (spec.separator, spec.kind) {
        (Some(_), Some('c' | 'n' | 's')) => true,
        (Some(separator), Some('b' | 'o' | 'x' | 'X')) => separator == ',',
        _ => false,
    };
    let is_numeric = spec.sign.is_some() || spec.alternate || spec.align == Some('=');
    if misses || (!is_number && (is_numeric || spec.separator.is_some())) {
        let kind = value.type_name();
        return Err(JinjaError::of_value(format!("format specifier '{text}' is not for '{kind}'")));
    }
    match (value, value.as_int(), spec.kind) {
        (Value::Str(text), _, None | Some('s')) => Ok(spec.text(text.to_string(), '<')),
        (Value::Float(number), _, None | Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | 'n' | '%')) => {
            Ok(spec.real(*number, spec.kind))
        }
        (_, Some(whole), Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%')) => {
            Ok(spec.real(whole as f64, spec.kind))
        }
        (_, Some(_), None | Some('b' | 'c' | 'd' | 'n' | 'o' | 'x' | 'X'))
            if spec.places.is_some() =>
        {
            Err(JinjaError::of_value("Precision not allowed in integer format specifier"))
        }
        (_, Some(_), Some('c')) => Ok(spec.text(character(value)?, '>')),
        (_, Some(whole), None | Some('b' | 'd' | 'n' | 'o' | 'x' | 'X')) => {
            Ok(spec.whole(whole, spec.kind.unwrap_or('d')))
        }
        (Value::Str(_) | Value::Float(_), ..) | (_, Some(_), _) => Err(unknown()),
        (other, None, _) => {
            let kind = other.type_name();
            Err(JinjaError::of_type(format!(
                "unsupported format string passed to {kind}.__format__"
            )))
        }
    }
}
