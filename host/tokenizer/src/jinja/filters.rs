//! Jinja's filters: `value | name`.

mod sequences;

use std::rc::Rc;
use std::sync::Arc;

use super::error::JinjaError;
use super::formatting;
use super::methods::{BREAKS, capitalized, lines};
use super::operators;
use super::python::{self, JsonStyle};
use super::render::{Given, Renderer, weight};
use super::value::{Dict, Value};

/// A value, or the error that ends the rendering.
type Evaluated = Result<Value, JinjaError>;

/// Jinja's filters that are implemented here, with their aliases, in the order of the alphabet.
const NAMES: [&str; 47] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "wordcount",
];

/// True where there is a filter of this name. The four that are named apart are implemented as
/// well.
pub(super) fn exists(name: &str) -> bool {
    NAMES.contains(&name)
        || matches!(name, "wordwrap" | "urlencode" | "striptags" | "filesizeformat")
}

impl Renderer {
    /// Applies a filter. Counts the value's weight and the arguments' as work before it runs.
    ///
    /// # Errors
    /// A syntax error for an unknown name; else the filter's own, with Python's kinds.
    pub(super) fn filter(&self, name: &str, value: &Value, given: &Given) -> Evaluated {
        self.work(weight(value) as u64)?;
        self.arguments(given)?;
        match name {
            "abs" | "round" | "int" | "float" => self.number_filter(name, value, given),
            "capitalize" | "center" | "escape" | "e" | "forceescape" | "format" | "indent"
            | "lower" | "replace" | "safe" | "string" | "title" | "trim" | "truncate" | "upper"
            | "wordcount" | "wordwrap" | "pprint" => self.text_filter(name, value, given),
            "batch" | "slice" => self.chunks(name, value, given),
            "map" | "select" | "reject" | "selectattr" | "rejectattr" => {
                self.each(name, value, given)
            }
            "dictsort" => self.dictsort(value, given),
            "sort" | "unique" | "groupby" | "min" | "max" | "sum" => {
                self.ordered(name, value, given)
            }
            "attr" => match given.get(0, "name").and_then(Value::as_str) {
                Some(name) => operators::attribute(value, &name.into()),
                None => Err(JinjaError::of_type("attr() needs a name")),
            },
            "count" | "length" => Ok(Value::Int(value.len()? as i128)),
            "d" | "default" => {
                let replaces = match given.get(1, "boolean").is_some_and(Value::is_true) {
                    true => !value.is_true(),
                    false => value.is_undefined(),
                };
                let default = || given.get(0, "default_value").cloned();
                Ok(if replaces {
                    default().unwrap_or_else(|| Value::from(""))
                } else {
                    value.clone()
                })
            }
            "first" | "last" => {
                let items = self.items(value)?;
                let item = if name == "first" { items.first() } else { items.last() };
                let missing = format!("No {name} item, sequence was empty.");
                Ok(item.cloned().unwrap_or_else(|| Value::Undefined(missing.into())))
            }
            "items" => match value {
                Value::Undefined(_) => self.list(Vec::new()),
                Value::Dict(dict) => self.pairs(dict.entries()),
                _ => Err(JinjaError::of_type("Can only get item pairs from a mapping.")),
            },
            "join" => self.join(value, given),
            "list" => self.list(self.items(value)?.to_vec()),
            "reverse" => match value {
                Value::Str(text) => self.text(text.chars().rev().collect()),
                other => self.list(self.items(other)?.iter().rev().cloned().collect()),
            },
            "tojson" => self.tojson(value, given),
            "urlencode" => self.text(percent_encoded(&self.shown(value)?)),
            "striptags" => self.text(without_tags(&self.shown(value)?)),
            "filesizeformat" => {
                value.must_be_defined()?;
                let bytes = value.as_f64().ok_or_else(|| JinjaError::of_type("no size"))?;
                self.text(file_size(bytes, given.get(0, "binary").is_some_and(Value::is_true)))
            }
            other => Err(JinjaError::syntax(format!("No filter named '{other}'."), 0)),
        }
    }

    /// `abs`, `round`, `int` and `float`. `int` and `float` give their default for a text that is
    /// no number; a value that is undefined is an error there, as `int(Undefined)` is in Python.
    /// `round` of a whole number stays whole by the method `common`, the default, and not by `ceil`
    /// and `floor`. Floats have up to 30 places on either side of the point.
    fn number_filter(&self, name: &str, value: &Value, given: &Given) -> Evaluated {
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

    /// The filters that read the value as a text, with `str` first: Jinja's `soft_str`, so that
    /// numbers and lists have case and length too. `safe` leaves the value as it is, since nothing
    /// is escaped by itself here. `format` is Python's `%` formatting, and `replace` its
    /// `str.replace`.
    fn text_filter(&self, name: &str, value: &Value, given: &Given) -> Evaluated {
        let text = self.shown(value)?;
        match name {
            "lower" | "upper" | "title" | "capitalize" | "string" => given.allow(name, &[])?,
            "trim" => given.allow(name, &["chars"])?,
            "indent" | "wordwrap" => value.must_be_defined()?,
            _ => {}
        }
        if name == "indent" && value.as_str().is_none() {
            let kind = value.type_name();
            return Err(JinjaError::of_type(format!("indent() takes a text, not '{kind}'")));
        }
        match name {
            "safe" => Ok(value.clone()),
            "string" => Ok(Value::from(text)),
            "capitalize" => self.text(capitalized(&text)),
            "lower" => self.text(text.to_lowercase()),
            "upper" => self.text(text.to_uppercase()),
            "title" => self.text(title(&text)),
            "pprint" => self.text(python::repr(value)),
            "trim" => self.stripped(&text, "strip", given),
            "center" => {
                let width = given.get(0, "width").cloned().unwrap_or(Value::Int(80));
                let given = Given { positional: vec![width], named: Vec::new() };
                self.method(&Value::from(text), "center", &given)
            }
            "e" | "escape" | "forceescape" => {
                let mut out = String::new();
                for c in text.chars() {
                    match c {
                        '&' => out.push_str("&amp;"),
                        '<' => out.push_str("&lt;"),
                        '>' => out.push_str("&gt;"),
                        '"' => out.push_str("&#34;"),
                        '\'' => out.push_str("&#39;"),
                        c => out.push(c),
                    }
                }
                self.text(out)
            }
            "format" => {
                let values = match given.named.is_empty() {
                    true => Value::tuple(given.positional.clone()),
                    false => {
                        let mut dict = Dict::default();
                        for (key, value) in &given.named {
                            dict.insert(Value::Str(Arc::clone(key)), value.clone())?;
                        }
                        Value::Dict(Rc::new(dict))
                    }
                };
                Ok(Value::from(formatting::percent(self, &text, &values)?))
            }
            "replace" => {
                let part = |at: usize, name: &str| {
                    let value = given.get(at, name);
                    value.map(Value::to_string).ok_or_else(|| {
                        JinjaError::of_type(format!("replace() missing argument '{name}'"))
                    })
                };
                self.replaced(&text, &part(0, "old")?, &part(1, "new")?, given.get(2, "count"))
            }
            "wordcount" => {
                let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
                Ok(Value::Int(words.filter(|word| !word.is_empty()).count() as i128))
            }
            "truncate" => self.truncate(&text, given),
            "wordwrap" => self.wordwrap(&text, given),
            _ => self.indent(&text, given),
        }
    }

    /// Jinja's `do_indent`: lines but the first get `width` blanks, or the text that stands in its
    /// place. Empty lines get them only with `blank`. `first` indents the first line too. A width
    /// that is a text is put in as it is.
    fn indent(&self, text: &str, given: &Given) -> Evaluated {
        let indent = match given.get(0, "width") {
            Some(Value::Str(indent)) => indent.to_string(),
            other => {
                let width = other.and_then(Value::as_int).unwrap_or(4);
                " ".repeat(formatting::width("the indent", width)?)
            }
        };
        let first = given.get(1, "first").is_some_and(Value::is_true);
        let blank = given.get(2, "blank").is_some_and(Value::is_true);
        let breaks = text.chars().filter(|c| BREAKS.contains(c)).count() + 1;
        self.bytes(text.len().saturating_add(breaks.saturating_mul(indent.len())))?;
        // With a break at its end, a text keeps an empty last line.
        let text = [text, "\n"].concat();
        let mut out = if first { indent.clone() } else { String::new() };
        for (at, line) in lines(&text).into_iter().enumerate() {
            if at > 0 {
                out.push('\n');
                out.push_str(if blank || !line.is_empty() { &indent } else { "" });
            }
            out.push_str(line);
        }
        Ok(Value::from(out))
    }

    /// Jinja's `do_truncate`: a text that is longer than `length` and `leeway` is cut, at a blank
    /// unless `killwords`, and ends with `end`. Lengths are in characters, `end` included. Defaults
    /// are 255 for the length, `...` for the end and 5 for the leeway.
    fn truncate(&self, text: &str, given: &Given) -> Evaluated {
        let number =
            |at, name, default| given.get(at, name).and_then(Value::as_int).unwrap_or(default);
        let length = number(0, "length", 255).clamp(0, 1 << 40) as usize;
        let kills = given.get(1, "killwords").is_some_and(Value::is_true);
        let end = given.get(2, "end").map_or_else(|| "...".to_owned(), Value::to_string);
        let leeway = number(3, "leeway", 5).clamp(0, 1 << 40) as usize;
        if text.chars().count() <= length + leeway {
            return self.text(text.to_owned());
        }
        let cut: String = text.chars().take(length.saturating_sub(end.chars().count())).collect();
        let cut = if kills { &cut } else { cut.rsplit_once(' ').map_or(&*cut, |(words, _)| words) };
        self.text(cut.to_owned() + &end)
    }

    /// Jinja's `do_wordwrap`: each line is wrapped by itself, at white space. White space in a row
    /// becomes one blank here, which `textwrap` keeps. Words that are too long are broken unless
    /// `break_long_words` is false. The default width is 79, and lines are joined by `wrapstring`,
    /// a line break by default.
    fn wordwrap(&self, text: &str, given: &Given) -> Evaluated {
        let width = given.get(0, "width").and_then(Value::as_int).unwrap_or(79);
        if width < 1 {
            return Err(JinjaError::of_value(format!("invalid width {width} (must be > 0)")));
        }
        let width = width.min(1 << 40) as usize;
        let breaks = given.get(1, "break_long_words").is_none_or(|value| value.is_true());
        let newline = match given.get(2, "wrapstring") {
            Some(Value::Str(newline)) => newline.to_string(),
            _ => "\n".to_owned(),
        };
        let mut lines = Vec::new();
        for paragraph in text.lines() {
            let mut line = String::new();
            for word in paragraph.split_whitespace() {
                let mut word: &str = word;
                loop {
                    let used = line.chars().count();
                    let room = width.saturating_sub(if used > 0 { used + 1 } else { 0 });
                    if word.chars().count() <= room || (used == 0 && !breaks) {
                        line.push_str(if used > 0 { " " } else { "" });
                        line.push_str(word);
                        break;
                    }
                    if word.chars().count() > width && breaks && room > 0 {
                        let cut = word.char_indices().nth(room).map_or(word.len(), |(at, _)| at);
                        line.push_str(if used > 0 { " " } else { "" });
                        line.push_str(&word[..cut]);
                        word = &word[cut..];
                    }
                    lines.push(std::mem::take(&mut line));
                }
            }
            lines.push(line);
        }
        self.bytes(text.len() + lines.len().saturating_mul(newline.len()))?;
        Ok(Value::from(lines.join(&newline)))
    }

    /// transformers' `tojson`: `json.dumps` without HTML escapes and with all characters as they
    /// are. An `indent` gives each item a line of its own; without one, all is in one line with
    /// blanks behind commas and colons. The arguments are those of `json.dumps`: `ensure_ascii`
    /// (false), `indent`, `separators` and `sort_keys` (false).
    ///
    /// # Errors
    /// A value that JSON does not have, such as one that is undefined.
    fn tojson(&self, value: &Value, given: &Given) -> Evaluated {
        given.allow("tojson", &["ensure_ascii", "indent", "separators", "sort_keys"])?;
        let indent = match given.get(1, "indent") {
            None | Some(Value::None) => None,
            Some(Value::Str(indent)) => Some(indent.to_string()),
            Some(width) => {
                let width = formatting::width("the indent", width.as_int().unwrap_or(0))?;
                Some(" ".repeat(width))
            }
        };
        let separators = match given.get(2, "separators") {
            None | Some(Value::None) => None,
            Some(pair) => match self.items(pair)?.as_slice() {
                [item, key] => Some((item.to_string(), key.to_string())),
                _ => return Err(JinjaError::of_value("separators are two texts")),
            },
        };
        let default_item = if indent.is_some() { "," } else { ", " };
        let (item_separator, key_separator) =
            separators.unwrap_or_else(|| (default_item.to_owned(), ": ".to_owned()));
        let style = JsonStyle {
            ensure_ascii: given.get(0, "ensure_ascii").is_some_and(Value::is_true),
            indent,
            item_separator,
            key_separator,
            sort_keys: given.get(3, "sort_keys").is_some_and(Value::is_true),
        };
        // Each part may have separators, and be indented once per level; a part weighs two bytes or more.
        let indent = style.indent.as_ref().map_or(0, String::len);
        let separators = style.item_separator.len() + style.key_separator.len();
        let each = indent.saturating_mul(value.extent().depth as usize).saturating_add(separators);
        self.bytes((weight(value) / 4).saturating_mul(each.saturating_sub(3)))?;
        self.bytes(weight(value))?;
        if style.sort_keys {
            // Each key is compared as often as their number can be halved.
            let turns = weight(value).max(1).ilog2() as usize;
            self.work(weight(value).saturating_mul(turns) as u64)?;
        }
        self.text(python::json(value, &style)?)
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

/// Jinja's `title`: a capital after each blank, hyphen or opening bracket. Other letters become
/// small.
fn title(text: &str) -> String {
    let mut starts = true;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match starts {
            true => out.push_str(&super::methods::title_case(c)),
            false => out.extend(c.to_lowercase()),
        }
        starts = c.is_whitespace() || "-({[<".contains(c);
    }
    out
}

/// A text as a part of an address. As `urllib.parse.quote`: letters, digits, `_.-~` and `/` stay,
/// and other bytes become `%XX`.
fn percent_encoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' | b'/' => {
                out.push(char::from(byte));
            }
            byte => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// A text without tags and comments of HTML, its blanks in single. As `Markup.striptags`, with the
/// entities that Jinja's `escape` writes turned back.
fn without_tags(text: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('<') {
        let end = if rest[at..].starts_with("<!--") { "-->" } else { ">" };
        let Some(close) = rest[at..].find(end) else { break };
        out.push_str(&rest[..at]);
        rest = &rest[at + close + end.len()..];
    }
    out.push_str(rest);
    let words: Vec<&str> = out.split_whitespace().collect();
    let plain = [("&lt;", "<"), ("&gt;", ">"), ("&#34;", "\""), ("&#39;", "'"), ("&amp;", "&")];
    plain.iter().fold(words.join(" "), |text, (from, to)| text.replace(from, to))
}

/// A number of bytes as people write it. Jinja's `do_filesizeformat`: by 1,000 with `kB`, `MB`, or
/// by 1,024 with `KiB`, `MiB`, and one decimal.
fn file_size(bytes: f64, is_binary: bool) -> String {
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
