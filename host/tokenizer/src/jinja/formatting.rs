//! Values by Python's formats: `%` and `str.format`.

use std::sync::Arc;

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

/// The settings of one value, as either kind of format spells them.
#[derive(Clone, Copy, Debug, Default)]
struct Spec {
    /// The character that fills up to the width; a blank without one.
    fill: Option<char>,
    /// `<`, `>`, `^`, or `=` for a fill between the sign and the digits.
    align: Option<char>,
    /// `+` or a blank in front of numbers that are not negative.
    sign: Option<char>,
    /// `#`: a prefix for digits that are not decimal, and a point in any case.
    alternate: bool,
    /// Least characters.
    width: usize,
    /// `,` or `_` between groups of digits.
    separator: Option<char>,
    /// Digits behind the point or in all, or the most characters of a text.
    places: Option<usize>,
    /// The conversion.
    kind: Option<char>,
}

impl Spec {
    /// The settings in front of a text, up to the conversion, and the text behind. `*` takes one of
    /// the values. There is no conversion where the text ends before it.
    fn of_percent<'t>(
        text: &'t str,
        values: &mut std::slice::Iter<'_, Value>,
    ) -> Result<(Self, &'t str), JinjaError> {
        let mut spec = Self::default();
        let after = text.trim_start_matches(['-', '+', ' ', '#', '0']);
        for flag in text[..text.len() - after.len()].chars() {
            match flag {
                '-' => spec.align = Some('<'),
                '+' => spec.sign = Some('+'),
                ' ' => spec.sign = spec.sign.or(Some(' ')),
                '#' => spec.alternate = true,
                _ => spec.fill = Some('0'),
            }
        }
        let (asked, mut after) = number(after, values)?;
        if asked.is_some_and(|asked| asked < 0) {
            spec.align = Some('<');
        }
        spec.width = width("the width", asked.unwrap_or(0).saturating_abs())?;
        if let Some(places) = after.strip_prefix('.') {
            let (asked, behind) = number(places, values)?;
            spec.places = Some(width("the precision", asked.unwrap_or(0))?);
            after = behind;
        }
        if spec.align.is_some() {
            spec.fill = None;
        }
        let after = after.strip_prefix(['h', 'l', 'L']).unwrap_or(after);
        spec.kind = after.chars().next();
        Ok((spec, &after[spec.kind.map_or(0, char::len_utf8)..]))
    }

    /// The settings of a field of `str.format`, which are all that the text holds.
    ///
    /// # Errors
    /// Python's `ValueError` for another form.
    fn of_format(text: &str) -> Result<Self, JinjaError> {
        let wrong = || JinjaError::of_value(format!("Invalid format specifier '{text}'"));
        let (fill, align, rest) = alignment(text);
        let mut spec = Self { fill, align, ..Self::default() };
        let after = rest.strip_prefix(['+', '-', ' ']).unwrap_or(rest);
        spec.sign = rest[..rest.len() - after.len()].chars().next().filter(|&sign| sign != '-');
        let rest = after.strip_prefix('#').unwrap_or(after);
        spec.alternate = rest.len() < after.len();
        if spec.fill.is_none() && rest.starts_with('0') {
            spec.fill = Some('0');
        }
        let (asked, mut rest) = digits(rest);
        spec.width = width("the width", asked.unwrap_or(0))?;
        if let Some(after) = rest.strip_prefix([',', '_']) {
            spec.separator = rest.chars().next();
            rest = after;
        }
        if let Some(after) = rest.strip_prefix('.') {
            let (asked, behind) = digits(after);
            spec.places = Some(width("the precision", asked.ok_or_else(wrong)?)?);
            rest = behind;
        }
        let mut kinds = rest.chars();
        spec.kind = kinds.next();
        match kinds.next() {
            Some(_) => Err(wrong()),
            None => Ok(spec),
        }
    }

    /// A text, cut to the places. `align` is that of a text without one.
    fn text(&self, text: String, align: char) -> String {
        let text = match self.places {
            Some(places) => text.chars().take(places).collect(),
            None => text,
        };
        self.filled("", &text, self.align.unwrap_or(align))
    }

    /// A whole number in the digits of `kind`, decimal ones for a kind that has none of its own.
    fn whole(&self, value: i128, kind: char) -> String {
        let size = value.unsigned_abs();
        let (prefix, digits) = match kind {
            'b' => ("0b", format!("{size:b}")),
            'o' => ("0o", format!("{size:o}")),
            'x' => ("0x", format!("{size:x}")),
            'X' => ("0X", format!("{size:X}")),
            _ => ("", size.to_string()),
        };
        let missing = self.places.unwrap_or(0).saturating_sub(digits.len());
        let digits = "0".repeat(missing) + &digits;
        let head = self.signed(value < 0).to_owned() + if self.alternate { prefix } else { "" };
        let group = if prefix.is_empty() { 3 } else { 4 };
        self.number(&head, &digits, digits.len(), group)
    }

    /// A float: fixed, with an exponent, or by its size. Without a kind it is as `repr` has it, or
    /// has as many digits as places.
    fn real(&self, value: f64, kind: Option<char>) -> String {
        let size = if kind == Some('%') { value.abs() * 100.0 } else { value.abs() };
        let places = self.places.unwrap_or(6);
        let pointed = |text: String| if self.alternate && places == 0 { text + "." } else { text };
        let mut text = match kind.map(|kind| kind.to_ascii_lowercase()) {
            _ if !size.is_finite() => float(size),
            Some('f' | '%') => pointed(format!("{size:.places$}")),
            Some('e') => {
                let (digits, exponent) = scientific(size, places);
                pointed(digits) + &exponent_text(exponent)
            }
            None if self.places.is_none() => float(size),
            kind => self.general(size, kind.is_none()),
        };
        if kind.is_some_and(|kind| kind.is_ascii_uppercase()) {
            text.make_ascii_uppercase();
        }
        if kind == Some('%') {
            text.push('%');
        }
        let whole = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        self.number(self.signed(value.is_sign_negative() && !value.is_nan()), &text, whole, 3)
    }

    /// `g`: as many digits as places, without zeros at the end, and with an exponent where the
    /// point would lie far in front of them or behind. A number without a kind keeps a decimal
    /// behind the point, for which there must be a place.
    fn general(&self, size: f64, is_plain: bool) -> String {
        let places = self.places.unwrap_or(6).max(1);
        let (digits, exponent) = scientific(size, places - 1);
        let most = places as i32 - i32::from(is_plain);
        let is_fixed = (-4..most).contains(&exponent);
        let text = if is_fixed {
            let decimals = usize::try_from(places as i32 - 1 - exponent).unwrap_or(0);
            format!("{size:.decimals$}")
        } else {
            digits
        };
        let text = match (self.alternate, text.contains('.')) {
            (false, true) => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
            (true, false) => text + ".",
            _ => text,
        };
        match is_fixed {
            true if is_plain && !text.contains('.') => text + ".0",
            true => text,
            false => text + &exponent_text(exponent),
        }
    }

    /// The sign of a number.
    fn signed(&self, is_negative: bool) -> &'static str {
        match (is_negative, self.sign) {
            (true, _) => "-",
            (false, Some('+')) => "+",
            (false, Some(_)) => " ",
            (false, None) => "",
        }
    }

    /// A number filled up to the width. `head` is its sign and prefix. The first `whole` bytes of
    /// its digits are grouped by `size`; zeros that fill it belong to the groups.
    fn number(&self, head: &str, digits: &str, whole: usize, size: usize) -> String {
        let align = self.align.unwrap_or(if self.fill == Some('0') { '=' } else { '>' });
        let (whole, rest) = digits.split_at(whole);
        let Some(separator) = self.separator.filter(|_| !whole.is_empty()) else {
            return self.filled(head, digits, align);
        };
        let width = match self.fill == Some('0') && align == '=' {
            true => self.width.saturating_sub(head.len() + rest.len()),
            false => 0,
        };
        self.filled(head, &(grouped(whole, separator, size, width) + rest), align)
    }

    /// Head and body, filled up to the width: between them with `=`.
    fn filled(&self, head: &str, body: &str, align: char) -> String {
        let missing = self.width.saturating_sub(head.chars().count() + body.chars().count());
        let fill = |count: usize| self.fill.unwrap_or(' ').to_string().repeat(count);
        let (before, inside) = match align {
            '<' => (0, 0),
            '^' => (missing / 2, 0),
            '=' => (0, missing),
            _ => (missing, 0),
        };
        fill(before) + head + &fill(inside) + body + &fill(missing - before - inside)
    }
}

/// A number of decimal digits in front of a text, and the text behind. Those that are too large are
/// larger than any bound.
fn digits(text: &str) -> (Option<i128>, &str) {
    let after = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let found = &text[..text.len() - after.len()];
    ((!found.is_empty()).then(|| found.parse().unwrap_or(i128::MAX)), after)
}

/// As [`digits`], or the next of the values in the place of `*`.
fn number<'t>(
    text: &'t str,
    values: &mut std::slice::Iter<'_, Value>,
) -> Result<(Option<i128>, &'t str), JinjaError> {
    let Some(after) = text.strip_prefix('*') else { return Ok(digits(text)) };
    let found = values.next().and_then(Value::as_int);
    Ok((Some(found.ok_or_else(|| JinjaError::of_type("* wants int"))?), after))
}

/// The fill and the alignment in front of a specification, and its rest.
fn alignment(text: &str) -> (Option<char>, Option<char>, &str) {
    let is_align = |c: &char| "<>^=".contains(*c);
    let mut chars = text.chars();
    let (first, second) = (chars.next(), chars.next());
    if let (Some(fill), Some(align)) = (first, second.filter(is_align)) {
        return (Some(fill), Some(align), &text[fill.len_utf8() + 1..]);
    }
    match first.filter(is_align) {
        Some(align) => (None, Some(align), &text[1..]),
        None => (None, None, text),
    }
}

/// Digits of a float that is not negative, and its exponent. One digit stands before the point.
fn scientific(size: f64, places: usize) -> (String, i32) {
    let text = format!("{size:.places$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    (digits.to_owned(), exponent.parse().unwrap_or(0))
}

/// An exponent with its sign and two digits at least.
fn exponent_text(exponent: i32) -> String {
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("e{sign}{:02}", exponent.abs())
}

/// Digits with a separator between each `size` of them, counted from the right, and with zeros in
/// front until all has `width` characters. No separator stands in front.
fn grouped(digits: &str, separator: char, size: usize, width: usize) -> String {
    let mut reversed = Vec::new();
    for (at, digit) in digits.chars().rev().chain(std::iter::repeat('0')).enumerate() {
        if at >= digits.len() && reversed.len() >= width {
            break;
        }
        if at > 0 && at.is_multiple_of(size) {
            reversed.push(separator);
        }
        reversed.push(digit);
    }
    reversed.into_iter().rev().collect()
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
