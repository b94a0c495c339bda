//! Methods of Python's values that templates may call; those that change a value are refused.

use std::fmt::Write as _;
use std::rc::Rc;

use super::error::{ErrorKind, JinjaError};
use super::formatting;
use super::operators::cycled;
use super::python;
use super::render::{Given, Renderer, VALUE_BYTES, weight};
use super::value::Value;

/// A value, or the error that ends the rendering.
type Evaluated = Result<Value, JinjaError>;

/// Methods of `str`, in the order of the alphabet, but for those of [`OF_STR_TOO`]. `encode` is
/// there to be refused with a reason.
const OF_STR: [&str; 40] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
];
/// More methods of `str`.
const OF_STR_TOO: [&str; 4] = ["isprintable", "title", "upper", "zfill"];
/// Methods of `dict` that only read.
const OF_DICT: [&str; 5] = ["copy", "get", "items", "keys", "values"];
/// Methods of `list` that only read.
const OF_LIST: [&str; 3] = ["copy", "count", "index"];
/// Methods of `dict` that change it, which Jinja's `ImmutableSandboxedEnvironment` refuses.
const CHANGE_DICT: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];
/// Methods of `list` that change it.
const CHANGE_LIST: [&str; 8] =
    ["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];

/// True where a value has a method of this name. Others are undefined, or items of a mapping.
pub(super) fn exists(value: &Value, name: &str) -> bool {
    match value {
        Value::Str(_) => OF_STR.contains(&name) || OF_STR_TOO.contains(&name),
        Value::Dict(_) => OF_DICT.contains(&name),
        Value::List(_) => OF_LIST.contains(&name),
        Value::Tuple(_) => matches!(name, "count" | "index"),
        Value::Float(_) => name == "is_integer",
        Value::Int(_) | Value::Bool(_) => name == "bit_length",
        _ => false,
    }
}

/// True where a method of this name would change the value.
pub(super) fn changes(value: &Value, name: &str) -> bool {
    match value {
        Value::Dict(_) => CHANGE_DICT.contains(&name),
        Value::List(_) => CHANGE_LIST.contains(&name),
        _ => false,
    }
}

/// `count`, `index` and `copy` of a list or tuple. A copy is the value itself, as it cannot change.
/// `index` takes a start and no end.
fn list_method(items: &[Value], value: &Value, name: &str, given: &Given) -> Evaluated {
    let wanted = given.get(0, "value").unwrap_or(&Value::None);
    match name {
        "count" => {
            let count = items.iter().filter(|item| item.equals(wanted)).count();
            Ok(Value::Int(count as i128))
        }
        "index" => {
            let len = items.len() as i128;
            let start = given.get(1, "start").and_then(Value::as_int).unwrap_or(0);
            let start = if start < 0 { start + len } else { start }.clamp(0, len) as usize;
            match items[start..].iter().position(|item| item.equals(wanted)) {
                Some(at) => Ok(Value::Int((start + at) as i128)),
                None => {
                    let wanted = python::repr(wanted);
                    Err(JinjaError::of_value(format!("{wanted} is not in list")))
                }
            }
        }
        _ => Ok(value.clone()),
    }
}

impl Renderer {
    /// Calls a method that a look-up of an attribute gave out. Counts the value's weight and the
    /// arguments' as work.
    ///
    /// # Errors
    /// Python's, for wrong arguments.
    pub(super) fn method(&self, value: &Value, name: &str, given: &Given) -> Evaluated {
        self.work(weight(value) as u64)?;
        self.arguments(given)?;
        match value {
            Value::Str(text) => self.str_method(text, name, given),
            Value::Function(_) => self.dict_from_keys(given),
            Value::Dict(dict) => self.dict_method(dict, value, name, given),
            Value::List(items) | Value::Tuple(items) => list_method(items, value, name, given),
            Value::Loop(state) if name == "cycle" => {
                let items = &given.positional;
                let at = state.at.get() % items.len().max(1);
                let item = items.get(at).cloned();
                item.ok_or_else(|| JinjaError::of_type("no items for cycling given"))
            }
            Value::Loop(state) => {
                let mut seen = state.seen.borrow_mut();
                let same = seen.as_ref().is_some_and(|seen| {
                    seen.len() == given.positional.len()
                        && seen.iter().zip(&given.positional).all(|(a, b)| a.equals(b))
                });
                *seen = (!state.is_over.get()).then(|| given.positional.clone());
                Ok(Value::Bool(!same))
            }
            Value::Cycler(cycler) if name == "next" => Ok(cycled(&cycler.items, &cycler.at)),
            Value::Cycler(cycler) => {
                cycler.at.set(0);
                Ok(Value::None)
            }
            Value::Float(value) => Ok(Value::Bool(value.fract() == 0.0)),
            other => {
                let bits = other.as_int().unwrap_or(0).unsigned_abs();
                Ok(Value::Int(i128::from(u128::BITS - bits.leading_zeros())))
            }
        }
    }

    /// `dict.fromkeys`. The values are `None` unless one is given.
    fn dict_from_keys(&self, given: &Given) -> Evaluated {
        let keys =
            given.get(0, "iterable").map_or_else(|| Ok(Rc::default()), |keys| self.items(keys))?;
        let each = given.get(1, "value").cloned().unwrap_or(Value::None);
        let mut dict = super::value::Dict::default();
        for key in keys.iter() {
            dict.insert(key.clone(), each.clone())?;
        }
        self.bytes(dict.len() * 4 * VALUE_BYTES)?;
        Ok(Value::Dict(Rc::new(dict)))
    }

    /// `get`, `keys`, `values`, `items` and `copy`. Views are lists here, made on each call. `get`
    /// answers `None` without a default, not an undefined value.
    fn dict_method(
        &self,
        dict: &super::value::Dict,
        value: &Value,
        name: &str,
        given: &Given,
    ) -> Evaluated {
        match name {
            "get" => {
                let key = given.get(0, "key").ok_or_else(|| {
                    JinjaError::of_type("get expected at least 1 argument, got 0")
                })?;
                let default = || given.get(1, "default").cloned().unwrap_or(Value::None);
                Ok(dict.get(key).cloned().unwrap_or_else(default))
            }
            "keys" => self.list(dict.entries().iter().map(|(key, _)| key.clone()).collect()),
            "values" => self.list(dict.entries().iter().map(|(_, value)| value.clone()).collect()),
            "items" => self.pairs(dict.entries()),
            _ => Ok(value.clone()),
        }
    }

    /// Keys with their values, as tuples.
    pub(super) fn pairs(&self, entries: &[(Value, Value)]) -> Evaluated {
        self.bytes(entries.len() * 3 * VALUE_BYTES)?;
        let pair = |(key, value): &(Value, Value)| Value::tuple(vec![key.clone(), value.clone()]);
        Ok(Value::list(entries.iter().map(pair).collect()))
    }

    /// A method of `str`. Positions and counts are in characters, as in Python. `find` and `rfind`
    /// answer −1 for nothing found, `index` and `rindex` fail. `startswith` and `endswith` take one
    /// text or a tuple of them.
    ///
    /// # Errors
    /// Python's `TypeError` for arguments of another type, and a refusal of `encode`, since there
    /// are no bytes here.
    fn str_method(&self, text: &str, name: &str, given: &Given) -> Evaluated {
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
    pub(super) fn replaced(
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
    pub(super) fn joined(&self, separator: &str, items: Option<&Value>) -> Evaluated {
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
    pub(super) fn stripped(&self, text: &str, name: &str, given: &Given) -> Evaluated {
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

/// Characters that end a line. Those of `str.splitlines`.
pub(super) const BREAKS: [char; 10] =
    ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];

/// The first break of a text. Its range in bytes; `\r\n` is one break.
fn line_break(text: &str) -> Option<std::ops::Range<usize>> {
    let at = text.find(BREAKS)?;
    let len = match text[at..].starts_with("\r\n") {
        true => 2,
        false => text[at..].chars().next().map_or(1, char::len_utf8),
    };
    Some(at..at + len)
}

/// The lines of a text, without their breaks. A break at the end begins no further line.
pub(super) fn lines(text: &str) -> Vec<&str> {
    let (mut lines, mut rest) = (Vec::new(), text);
    while let Some(found) = line_break(rest) {
        lines.push(&rest[..found.start]);
        rest = &rest[found.end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// Methods of texts that take no arguments.
const TAKES_NOTHING: [&str; 6] = ["upper", "lower", "title", "capitalize", "swapcase", "casefold"];

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

/// White space as Python's `str.strip` sees it. U+001C to U+001F are white space to Python and not
/// to Unicode.
pub(super) fn is_blank(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Words between white space, after at most `most` cuts from either side; the rest is one word.
/// From the right, the rest is what stands in front.
fn words(text: &str, most: usize, from_right: bool) -> Vec<&str> {
    let mut words = Vec::new();
    if !from_right {
        let mut rest = text.trim_start_matches(is_blank);
        while !rest.is_empty() {
            if words.len() == most {
                words.push(rest);
                break;
            }
            let end = rest.find(is_blank).unwrap_or(rest.len());
            words.push(&rest[..end]);
            rest = rest[end..].trim_start_matches(is_blank);
        }
        return words;
    }
    let mut rest = text.trim_end_matches(is_blank);
    while !rest.is_empty() {
        if words.len() == most {
            words.push(rest);
            break;
        }
        let found = rest.char_indices().rev().find(|(_, c)| is_blank(*c));
        let start = found.map_or(0, |(at, c)| at + c.len_utf8());
        words.push(&rest[start..]);
        rest = rest[..start].trim_end_matches(is_blank);
    }
    words.reverse();
    words
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

/// The methods of `str` that ask for the kind of all characters; an empty text has none, but for
/// `isascii` and `isprintable`. Python's classes of characters by Rust's: letters and numbers are
/// those of Unicode, digits those of [`is_decimal`].
fn is_kind(text: &str, name: &str) -> bool {
    let all = |test: fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    let letters = || text.chars().filter(|c| c.is_lowercase() || c.is_uppercase());
    match name {
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => text.is_ascii(),
        "isdecimal" | "isdigit" => all(|c| {
            c.is_ascii_digit()
                || (c.is_numeric() && !c.is_ascii() && c.to_string().chars().all(is_decimal))
        }),
        "isnumeric" => all(char::is_numeric),
        "isspace" => all(is_blank),
        "isprintable" => text.chars().all(python::is_printable),
        "islower" => letters().next().is_some() && letters().all(char::is_lowercase),
        "isupper" => letters().next().is_some() && letters().all(char::is_uppercase),
        "istitle" => letters().next().is_some() && titled(text) == text,
        "isidentifier" => {
            let mut chars = text.chars();
            chars.next().is_some_and(|c| c.is_alphabetic() || c == '_')
                && chars.all(|c| c.is_alphanumeric() || c == '_')
        }
        _ => false,
    }
}

/// Decimal digits of the common scripts: runs of ten from these zeros. Not all that Unicode has.
fn is_decimal(c: char) -> bool {
    const ZEROS: [u32; 12] =
        [0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xe50, 0xed0, 0xff10];
    ZEROS.iter().any(|&zero| (zero..zero + 10).contains(&u32::from(c)))
}

/// The methods of `str` that change case. `casefold` differs from `lower` in `ß` alone here;
/// Python's full table has more.
fn cased(text: &str, name: &str) -> String {
    match name {
        "upper" => text.to_uppercase(),
        "lower" => text.to_lowercase(),
        "casefold" => text.to_lowercase().replace('ß', "ss"),
        "title" => titled(text),
        "capitalize" => capitalized(text),
        "swapcase" => text
            .chars()
            .flat_map(|c| match c.is_uppercase() {
                true => c.to_lowercase().collect::<Vec<_>>(),
                false => c.to_uppercase().collect(),
            })
            .collect(),
        _ => text.to_owned(),
    }
}

/// `str.capitalize`: the first character in title case, the others small.
pub(super) fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(title_case);
    first.unwrap_or_default() + &chars.as_str().to_lowercase()
}

/// A character as the first of a word. A character that becomes several has the first as a capital.
pub(super) fn title_case(c: char) -> String {
    // Letters that are two in one have a form of their own.
    match c {
        'ǆ' | 'Ǆ' => return "ǅ".to_owned(),
        'ǉ' | 'Ǉ' => return "ǈ".to_owned(),
        'ǌ' | 'Ǌ' => return "ǋ".to_owned(),
        'ǳ' | 'Ǳ' => return "ǲ".to_owned(),
        _ => {}
    }
    let mut upper = c.to_uppercase();
    let first: String = upper.next().into_iter().collect();
    first + &upper.collect::<String>().to_lowercase()
}

/// `str.title`: a capital after each character without case.
fn titled(text: &str) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let is_cased = c.is_lowercase() || c.is_uppercase();
        match inside {
            true => out.extend(c.to_lowercase()),
            false => out.push_str(&title_case(c)),
        }
        inside = is_cased;
    }
    out
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

/// A time as Python's `strftime` writes it in the C locale. Names of days and months are English.
/// Conversions are chrono's, which has nearly all of C's.
///
/// # Errors
/// If the format is none.
pub(super) fn strftime(now: chrono::NaiveDateTime, format: &str) -> Result<String, JinjaError> {
    let mut out = String::new();
    // Python's `%f` are microseconds.
    let halves = format.split("%%").map(|part| part.replace("%f", "%6f"));
    let format = &halves.collect::<Vec<_>>().join("%%");
    let items = chrono::format::StrftimeItems::new(format);
    write!(out, "{}", now.format_with_items(items))
        .map_err(|_| JinjaError::of_value(format!("`{format}` is no format of a time")))?;
    Ok(out)
}
