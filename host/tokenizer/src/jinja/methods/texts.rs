//! Methods of `str`: searching, replacing, cutting, joining and filling.

use std::rc::Rc;

use super::super::error::{ErrorKind, JinjaError};
use super::super::formatting;
use super::super::render::{Given, Renderer, VALUE_BYTES};
use super::super::value::Value;
use super::Evaluated;
use super::characters::{cased, is_kind};
use super::lines::{is_blank, line_break, lines, words};

/// Methods of texts that take no arguments.
const TAKES_NOTHING: [&str; 6] = ["upper", "lower", "title", "capitalize", "swapcase", "casefold"];

impl Renderer {
    /// A method of `str`. Positions and counts are in characters, as in Python. `find` and `rfind`
    /// answer −1 for nothing found, `index` and `rindex` fail. `startswith` and `endswith` take one
    /// text or a tuple of them.
    ///
    /// # Errors
    /// Python's `TypeError` for arguments of another type, and a refusal of `encode`, since there
    /// are no bytes here.
    pub(super) fn str_method(&self, text: &str, name: &str, given: &Given) -> Evaluated {
        let argument = |at: usize| {
            let value = given.positional.get(at);
            let Some(value) = value else {
                return Err(JinjaError::of_type(format!("{name}() takes more arguments")));
            };
            value.must_be_defined()?;
            value.as_str().ok_or_else(|| {
                let kind = value.type_name();
                JinjaError::of_type(format!("{name}() argument must be str, not {kind}"))
            })
        };
        if TAKES_NOTHING.contains(&name) || name.starts_with("is") {
            given.allow(name, &[])?;
        }
        let (text, skipped) = match name {
            "find" | "rfind" | "index" | "rindex" | "count" | "startswith" | "endswith" => {
                between(text, given.positional.get(1), given.positional.get(2))
            }
            _ => (text, 0),
        };
        let found = |at: Option<usize>| {
            Value::Int(at.map_or(-1, |at| (skipped + text[..at].chars().count()) as i128))
        };
        match name {
            "startswith" | "endswith" => affix(text, name, given),
            "replace" => self.replaced(text, argument(0)?, argument(1)?, given.get(2, "count")),
            "join" => self.joined(text, given.positional.first()),
            "format" => {
                Ok(Value::from(formatting::format(self, text, &given.positional, &given.named)?))
            }
            "split" | "rsplit" => self.split(text, given, name == "rsplit"),
            "splitlines" => self.lines(text, given),
            "partition" | "rpartition" => self.partition(text, argument(0)?, name),
            "removeprefix" => self.text(text.strip_prefix(argument(0)?).unwrap_or(text).to_owned()),
            "removesuffix" => self.text(text.strip_suffix(argument(0)?).unwrap_or(text).to_owned()),
            "find" => Ok(found(text.find(argument(0)?))),
            "rfind" => Ok(found(text.rfind(argument(0)?))),
            "index" | "rindex" => {
                let part = argument(0)?;
                let at = if name == "index" { text.find(part) } else { text.rfind(part) };
                match at {
                    Some(_) => Ok(found(at)),
                    None => Err(JinjaError::of_value("substring not found")),
                }
            }
            "count" => {
                let part = argument(0)?;
                let count = match part.is_empty() {
                    true => text.chars().count() + 1,
                    false => text.matches(part).count(),
                };
                Ok(Value::Int(count as i128))
            }
            "strip" | "lstrip" | "rstrip" => self.stripped(text, name, given),
            "center" | "ljust" | "rjust" | "zfill" => self.filled(text, name, given),
            "encode" => {
                Err(JinjaError::new(ErrorKind::Security, "texts of templates have no bytes"))
            }
            "expandtabs" => {
                let size = given.get(0, "tabsize").and_then(Value::as_int).unwrap_or(8);
                let size = formatting::width("the tab size", size)?;
                let tabs = text.matches('\t').count();
                self.bytes(text.len().saturating_add(tabs.saturating_mul(size)))?;
                Ok(Value::from(expanded(text, size)))
            }
            _ if name.starts_with("is") => Ok(Value::Bool(is_kind(text, name))),
            _ => self.text(cased(text, name)),
        }
    }

    /// `text.replace(from, to, count)`. All occurrences without a count or with a negative one. An
    /// empty `from` stands before each character and at the end.
    pub(in super::super) fn replaced(
        &self,
        text: &str,
        from: &str,
        to: &str,
        count: Option<&Value>,
    ) -> Evaluated {
        let most = count.and_then(Value::as_int).filter(|&count| count >= 0);
        let most = most.map_or(usize::MAX, |count| count.min(1 << 40) as usize);
        let matches = match from.is_empty() {
            true => text.chars().count() + 1,
            false => text.matches(from).count(),
        };
        self.bytes(text.len().saturating_add(matches.min(most).saturating_mul(to.len())))?;
        Ok(Value::from(text.replacen(from, to, most)))
    }

    /// `separator.join(items)`. All items must be texts, as in Python; the filter `join` takes
    /// others as well, and what is undefined as empty.
    fn joined(&self, separator: &str, items: Option<&Value>) -> Evaluated {
        let items = items.map_or_else(|| Ok(Rc::default()), |items| self.items(items))?;
        let mut out = String::new();
        for (at, item) in items.iter().enumerate() {
            item.must_be_defined()?;
            let Some(text) = item.as_str() else {
                let kind = item.type_name();
                return Err(JinjaError::of_type(format!(
                    "sequence item {at}: expected str instance, {kind} found"
                )));
            };
            self.bytes(text.len() + separator.len())?;
            out.push_str(if at > 0 { separator } else { "" });
            out.push_str(text);
        }
        Ok(Value::from(out))
    }

    /// A list of texts, with its bytes counted.
    fn parts(&self, parts: Vec<&str>) -> Evaluated {
        self.bytes(parts.iter().map(|part| part.len() + VALUE_BYTES + 16).sum())?;
        Ok(Value::list(parts.into_iter().map(Value::from).collect()))
    }

    /// `split` and `rsplit`: at a separator, or at runs of white space without one. `maxsplit` is
    /// the most cuts; all without it or with a negative one. Without a separator, white space at
    /// both ends is dropped and no part is empty.
    ///
    /// # Errors
    /// An empty separator.
    fn split(&self, text: &str, given: &Given, from_right: bool) -> Evaluated {
        let most = given.get(1, "maxsplit").and_then(Value::as_int).filter(|&most| most >= 0);
        let most = most.map_or(usize::MAX - 1, |most| most.min(1 << 40) as usize);
        let separator = match given.get(0, "sep") {
            None | Some(Value::None) => None,
            Some(value) => {
                value.must_be_defined()?;
                Some(value.as_str().ok_or_else(|| {
                    let kind = value.type_name();
                    JinjaError::of_type(format!("must be str or None, not {kind}"))
                })?)
            }
        };
        match separator {
            Some("") => Err(JinjaError::of_value("empty separator")),
            Some(separator) if from_right => {
                let mut parts: Vec<&str> = text.rsplitn(most + 1, separator).collect();
                parts.reverse();
                self.parts(parts)
            }
            Some(separator) => self.parts(text.splitn(most + 1, separator).collect()),
            None => self.parts(words(text, most, from_right)),
        }
    }

    /// `splitlines`, with the breaks where `keepends` asks for them.
    fn lines(&self, text: &str, given: &Given) -> Evaluated {
        let keeps = given.get(0, "keepends").is_some_and(Value::is_true);
        if !keeps {
            return self.parts(lines(text));
        }
        let (mut lines, mut rest) = (Vec::new(), text);
        while let Some(len) = line_break(rest) {
            let (line, after) = rest.split_at(len.end);
            lines.push(line);
            rest = after;
        }
        if !rest.is_empty() {
            lines.push(rest);
        }
        self.parts(lines)
    }

    /// `partition` and `rpartition`: a tuple of three texts. Without the separator, the text is the
    /// first part of `partition` and the last of `rpartition`.
    fn partition(&self, text: &str, separator: &str, name: &str) -> Evaluated {
        if separator.is_empty() {
            return Err(JinjaError::of_value("empty separator"));
        }
        let (found, missing) = match name {
            "partition" => (text.split_once(separator), [text, "", ""]),
            _ => (text.rsplit_once(separator), ["", "", text]),
        };
        let parts = found.map_or(missing, |(before, after)| [before, separator, after]);
        self.bytes(text.len() + 3 * VALUE_BYTES)?;
        Ok(Value::tuple(parts.into_iter().map(Value::from).collect()))
    }

    /// `strip`, `lstrip` and `rstrip`. `chars` is a set of characters, not a prefix; white space
    /// without it.
    pub(in super::super) fn stripped(&self, text: &str, name: &str, given: &Given) -> Evaluated {
        let set =
            match given.get(0, "chars") {
                None | Some(Value::None) => None,
                Some(value) => Some(value.as_str().ok_or_else(|| {
                    JinjaError::of_type(format!("{name} arg must be None or str"))
                })?),
            };
        let is_cut = |c: char| set.map_or_else(|| is_blank(c), |set| set.contains(c));
        let text = if name == "rstrip" { text } else { text.trim_start_matches(is_cut) };
        let text = if name == "lstrip" { text } else { text.trim_end_matches(is_cut) };
        self.text(text.to_owned())
    }

    /// `center`, `ljust`, `rjust` and `zfill`, to a width in characters. `zfill` keeps a sign in
    /// front. A fill may have several characters here, where Python takes one. `center` leaves the
    /// odd one as CPython does.
    fn filled(&self, text: &str, name: &str, given: &Given) -> Evaluated {
        let width = given.get(0, "width").and_then(Value::as_int);
        let width = width.ok_or_else(|| JinjaError::of_type(format!("{name}() needs a width")))?;
        let missing = width.clamp(0, 1 << 40) as usize;
        let missing = missing.saturating_sub(text.chars().count());
        let fill = given.get(1, "fillchar").and_then(Value::as_str).unwrap_or(" ");
        let fill = if name == "zfill" { "0" } else { fill };
        self.bytes(text.len() + missing.saturating_mul(fill.len()))?;
        let before = match name {
            "ljust" => 0,
            "rjust" | "zfill" => missing,
            // CPython leaves the odd one on the left where the width is odd.
            _ => missing / 2 + (missing & width as usize & 1),
        };
        if name == "zfill"
            && let Some(digits) = text.strip_prefix(['-', '+'])
        {
            let sign = &text[..1];
            return Ok(Value::from(format!("{sign}{}{digits}", "0".repeat(missing))));
        }
        Ok(Value::from(fill.repeat(before) + text + &fill.repeat(missing - before)))
    }
}

/// The part of a text between two bounds in characters, and the characters before it. Negative
/// bounds count from the end, and bounds beyond the ends are moved to them, as in slices.
fn between<'t>(text: &'t str, start: Option<&Value>, end: Option<&Value>) -> (&'t str, usize) {
    let (start, end) = (start.and_then(Value::as_int), end.and_then(Value::as_int));
    if start.is_none() && end.is_none() {
        return (text, 0);
    }
    let count = text.chars().count();
    let place =
        |at: i128| if at < 0 { at + count as i128 } else { at }.clamp(0, count as i128) as usize;
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(at, _)| at);
    let from = start.map_or(0, place);
    let to = end.map_or(count, place).max(from);
    (&text[byte(from)..byte(to)], from)
}

/// `startswith` and `endswith`, with one text or a tuple of them. Bounds are applied before.
fn affix(text: &str, name: &str, given: &Given) -> Evaluated {
    let holds = |part: &Value| {
        part.must_be_defined()?;
        let Some(part) = part.as_str() else {
            let kind = part.type_name();
            return Err(JinjaError::of_type(format!(
                "{name} first arg must be str or a tuple of str, not {kind}"
            )));
        };
        Ok(if name == "startswith" { text.starts_with(part) } else { text.ends_with(part) })
    };
    match given.positional.first() {
        Some(Value::Tuple(parts)) => {
            for part in parts.iter() {
                if holds(part)? {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        Some(part) => holds(part).map(Value::Bool),
        None => Err(JinjaError::of_type(format!("{name}() takes at least 1 argument"))),
    }
}

/// `str.expandtabs`: blanks up to the next multiple of `size` columns. A line break begins at
/// column 0 again. With `size` 0 tabs go.
fn expanded(text: &str, size: usize) -> String {
    let (mut out, mut column) = (String::new(), 0);
    for c in text.chars() {
        match c {
            '\t' if size > 0 => {
                let missing = size - column % size;
                out.push_str(&" ".repeat(missing));
                column += missing;
            }
            '\t' => {}
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            c => {
                out.push(c);
                column += 1;
            }
        }
    }
    out
}
