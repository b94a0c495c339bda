//! Specifications of one value's format: their reading, and texts and numbers by them.

use super::super::error::JinjaError;
use super::super::python::float;
use super::super::value::Value;
use super::width;

/// The settings of one value, as either kind of format spells them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spec {
    /// The character that fills up to the width; a blank without one.
    pub(super) fill: Option<char>,
    /// `<`, `>`, `^`, or `=` for a fill between the sign and the digits.
    pub(super) align: Option<char>,
    /// `+` or a blank in front of numbers that are not negative.
    pub(super) sign: Option<char>,
    /// `#`: a prefix for digits that are not decimal, and a point in any case.
    pub(super) alternate: bool,
    /// Least characters.
    pub(super) width: usize,
    /// `,` or `_` between groups of digits.
    pub(super) separator: Option<char>,
    /// Digits behind the point or in all, or the most characters of a text.
    pub(super) places: Option<usize>,
    /// The conversion.
    pub(super) kind: Option<char>,
}

impl Spec {
    /// The settings in front of a text, up to the conversion, and the text behind. `*` takes one of
    /// the values. There is no conversion where the text ends before it.
    pub(super) fn of_percent<'t>(
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
    pub(super) fn of_format(text: &str) -> Result<Self, JinjaError> {
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
    pub(super) fn text(&self, text: String, align: char) -> String {
        let text = match self.places {
            Some(places) => text.chars().take(places).collect(),
            None => text,
        };
        self.filled("", &text, self.align.unwrap_or(align))
    }

    /// A whole number in the digits of `kind`, decimal ones for a kind that has none of its own.
    pub(super) fn whole(&self, value: i128, kind: char) -> String {
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
    pub(super) fn real(&self, value: f64, kind: Option<char>) -> String {
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

/// A number in front of a text as [`digits`] has it, or the next of the values in the place of `*`.
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
