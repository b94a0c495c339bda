//! Filters over texts: case, escapes, indents, wrapping and cutting.

use std::rc::Rc;
use std::sync::Arc;

use super::super::error::JinjaError;
use super::super::formatting;
use super::super::methods::{BREAKS, capitalized, lines, title_case};
use super::super::python;
use super::super::render::{Given, Renderer};
use super::super::value::{Dict, Value};
use super::Evaluated;

impl Renderer {
    /// The filters that read the value as a text, with `str` first: Jinja's `soft_str`, so that
    /// numbers and lists have case and length too. `safe` leaves the value as it is, since nothing
    /// is escaped by itself here. `format` is Python's `%` formatting, and `replace` its
    /// `str.replace`.
    pub(super) fn text_filter(&self, name: &str, value: &Value, given: &Given) -> Evaluated {
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
}

/// Jinja's `title`: a capital after each blank, hyphen or opening bracket. Other letters become
/// small.
fn title(text: &str) -> String {
    let mut starts = true;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match starts {
            true => out.push_str(&title_case(c)),
            false => out.extend(c.to_lowercase()),
        }
        starts = c.is_whitespace() || "-({[<".contains(c);
    }
    out
}

/// A text as a part of an address. As `urllib.parse.quote`: letters, digits, `_.-~` and `/` stay,
/// and other bytes become `%XX`.
pub(super) fn percent_encoded(text: &str) -> String {
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
pub(super) fn without_tags(text: &str) -> String {
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
