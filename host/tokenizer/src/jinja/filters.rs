//! Jinja's filters: `value | name`.

use std::cmp::Ordering;
use std::rc::Rc;
use std::sync::Arc;

use super::error::{ErrorKind, JinjaError};
use super::methods::{BREAKS, capitalized, lines};
use super::operators;
use super::python::{self, JsonStyle};
use super::render::{Given, Renderer, weight};
use super::value::{Dict, Value};

type Evaluated = Result<Value, JinjaError>;

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

/// Whether there is a filter of this name.
pub(super) fn exists(name: &str) -> bool {
    NAMES.contains(&name)
        || matches!(name, "wordwrap" | "urlencode" | "striptags" | "filesizeformat")
}

impl Renderer {
    pub(super) fn filter(&self, name: &str, value: &Value, given: &Given) -> Evaluated {
        self.work(weight(value) as u64)?;
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

    fn number_filter(&self, name: &str, value: &Value, given: &Given) -> Evaluated {
        match name {
            "abs" => {
                value.must_be_defined()?;
                match (value.as_int(), value) {
                    (Some(whole), _) => Ok(Value::Int(whole.abs())),
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
                let rounded = match given.get(1, "method").and_then(Value::as_str) {
                    Some("ceil") => (number * scale).ceil() / scale,
                    Some("floor") => (number * scale).floor() / scale,
                    _ if places >= 0 => half_even(number, places.min(30) as usize),
                    _ => (number * scale).round_ties_even() / scale,
                };
                match value.as_int().filter(|_| given.get(1, "method").is_none()) {
                    Some(_) => Ok(Value::Int(rounded as i128)),
                    None => Ok(Value::Float(rounded)),
                }
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
                self.bytes(weight(&values))?;
                self.text(python::percent(&text, &values)?)
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

    fn indent(&self, text: &str, given: &Given) -> Evaluated {
        let indent = match given.get(0, "width") {
            Some(Value::Str(indent)) => indent.to_string(),
            other => {
                let width = other.and_then(Value::as_int).unwrap_or(4).clamp(0, 10_000);
                " ".repeat(width as usize)
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

    fn join(&self, value: &Value, given: &Given) -> Evaluated {
        let separator = given.get(0, "d").map_or_else(String::new, Value::to_string);
        let attribute = given.get(1, "attribute");
        let mut out = String::new();
        for (at, item) in self.items(value)?.iter().enumerate() {
            let item = match attribute {
                Some(path) => self.path(item, path)?,
                None => item.clone(),
            };
            self.bytes(separator.len())?;
            out.push_str(if at > 0 { &separator } else { "" });
            out.push_str(&self.shown(&item)?);
        }
        Ok(Value::from(out))
    }

    /// An attribute by a path like `a.b.0`.
    fn path(&self, value: &Value, path: &Value) -> Evaluated {
        self.path_or(value, path, None)
    }

    /// An attribute by a path, with a value in the place of each part that is not there.
    fn path_or(&self, value: &Value, path: &Value, default: Option<&Value>) -> Evaluated {
        self.work(32)?;
        let or_default = |found: Value| match default {
            Some(default) if found.is_undefined() => default.clone(),
            _ => found,
        };
        if path.as_int().is_some() {
            return operators::item(value, path).map(or_default);
        }
        let path = self.shown(path)?;
        path.split('.').try_fold(value.clone(), |value, name| {
            // A filter looks for items first, as `environment.getitem` does.
            let key = name.parse().map_or_else(|_| Value::from(name), Value::Int);
            operators::item(&value, &key).map(or_default)
        })
    }

    fn chunks(&self, name: &str, value: &Value, given: &Given) -> Evaluated {
        let items = self.items(value)?;
        let count = given.get(0, if name == "batch" { "linecount" } else { "slices" });
        let count = count.and_then(Value::as_int).filter(|&count| (1..1 << 30).contains(&count));
        let count = count.ok_or_else(|| JinjaError::of_value(format!("{name}() needs a count")))?;
        let (count, fill) = (count as usize, given.get(1, "fill_with"));
        self.bytes((items.len() + count) * 2 * super::render::VALUE_BYTES)?;
        let mut chunks: Vec<Vec<Value>> = Vec::new();
        match name {
            "batch" => {
                chunks.extend(items.chunks(count).map(<[Value]>::to_vec));
                if let (Some(fill), Some(last)) = (fill, chunks.last_mut()) {
                    last.resize(count, fill.clone());
                }
            }
            _ => {
                let (each, longer) = (items.len() / count, items.len() % count);
                let mut at = 0;
                for slice in 0..count {
                    let len = each + usize::from(slice < longer);
                    let mut chunk = items[at..at + len].to_vec();
                    if let Some(fill) = fill.filter(|_| longer > 0 && slice >= longer) {
                        chunk.push(fill.clone());
                    }
                    chunks.push(chunk);
                    at += len;
                }
            }
        }
        self.list(chunks.into_iter().map(Value::list).collect())
    }

    /// `map`, and the filters that keep some of the items.
    fn each(&self, name: &str, value: &Value, given: &Given) -> Evaluated {
        if !value.is_true() {
            return self.list(Vec::new());
        }
        let items = self.items(value)?;
        let mut out = Vec::new();
        if name == "map" {
            for item in items.iter() {
                out.push(self.mapped(item, given)?);
            }
            return self.list(out);
        }
        let by_attribute = name.ends_with("attr");
        let keeps = name.starts_with("select");
        let skipped = usize::from(by_attribute);
        let attribute = given.positional.first().filter(|_| by_attribute);
        if by_attribute && attribute.is_none() {
            return Err(JinjaError::of_type("Missing parameter for attribute name"));
        }
        let test = given.positional.get(skipped).map(Value::to_string);
        let args = given.positional.get(skipped + 1..).unwrap_or_default().to_vec();
        let args = Given { positional: args, named: given.named.clone() };
        for item in items.iter() {
            let tested = match attribute {
                Some(path) => self.path(item, path)?,
                None => item.clone(),
            };
            let holds = match &test {
                Some(test) => self.test(test, &tested, &args)?,
                None => tested.is_true(),
            };
            if holds == keeps {
                out.push(item.clone());
            }
        }
        self.list(out)
    }

    fn mapped(&self, item: &Value, given: &Given) -> Evaluated {
        if given.positional.is_empty() {
            let Some(path) = given.get(0, "attribute") else {
                return Err(JinjaError::new(ErrorKind::Type, "map requires a filter argument"));
            };
            let default = given.named.iter().find(|(name, _)| &**name == "default");
            return self.path_or(item, path, default.map(|(_, default)| default));
        }
        let name = given.positional[0].to_string();
        let args = given.positional[1..].to_vec();
        self.filter(&name, item, &Given { positional: args, named: given.named.clone() })
    }

    fn dictsort(&self, value: &Value, given: &Given) -> Evaluated {
        let Value::Dict(dict) = value else {
            return Err(JinjaError::of_type("dictsort needs a mapping"));
        };
        let sensitive = given.get(0, "case_sensitive").is_some_and(Value::is_true);
        let by = given.get(1, "by").map(Value::to_string);
        if by.as_ref().is_some_and(|by| !matches!(&**by, "key" | "value")) {
            return Err(JinjaError::of_value("You can only sort by either \"key\" or \"value\""));
        }
        let by_value = by.as_deref() == Some("value");
        let reverse = given.get(2, "reverse").is_some_and(Value::is_true);
        let pairs = dict.entries().iter().map(|(key, value)| {
            let by = if by_value { value } else { key };
            (folded(by, sensitive), Value::tuple(vec![key.clone(), value.clone()]))
        });
        self.list(sorted(pairs.collect(), reverse)?)
    }

    /// The filters that compare items with each other, and `sum`.
    fn ordered(&self, name: &str, value: &Value, given: &Given) -> Evaluated {
        let items = self.items(value)?;
        self.work(weight(value).saturating_mul(1 + items.len().max(1).ilog2() as usize) as u64)?;
        let (attribute, sensitive, reverse) = match name {
            "sort" => {
                (given.get(2, "attribute"), given.get(1, "case_sensitive"), given.get(0, "reverse"))
            }
            "groupby" => (given.get(0, "attribute"), given.get(2, "case_sensitive"), None),
            "sum" => (given.get(0, "attribute"), None, None),
            _ => (given.get(1, "attribute"), given.get(0, "case_sensitive"), None),
        };
        let sensitive = sensitive.is_some_and(Value::is_true);
        let mut keyed = Vec::new();
        for item in items.iter() {
            let by = match attribute {
                Some(Value::None) | None => item.clone(),
                Some(Value::Str(paths)) if name == "sort" && paths.contains(',') => {
                    let parts = paths.split(',').map(|path| {
                        self.path(item, &Value::from(path)).map(|part| folded(&part, sensitive))
                    });
                    Value::tuple(parts.collect::<Result<_, _>>()?)
                }
                Some(path) => {
                    self.path_or(item, path, given.get(1, "default").filter(|_| name == "groupby"))?
                }
            };
            keyed.push((by, item.clone()));
        }
        if name == "sum" {
            let start = given.get(1, "start").cloned().unwrap_or(Value::Int(0));
            return keyed.iter().try_fold(start, |sum, (by, _)| {
                operators::binary(self, super::ast::BinaryOp::Add, &sum, by)
            });
        }
        if name == "groupby" {
            return self.grouped(keyed, sensitive);
        }
        for (by, _) in &mut keyed {
            *by = folded(by, sensitive);
        }
        match name {
            "sort" => self.list(sorted(keyed, reverse.is_some_and(Value::is_true))?),
            "unique" => {
                let (mut seen, mut kept) = (Dict::default(), Vec::new());
                for (by, item) in keyed {
                    if seen.get(&by).is_none() {
                        seen.insert(by, Value::None)?;
                        kept.push(item);
                    }
                }
                self.list(kept)
            }
            _ => {
                let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
                let mut best: Option<(Value, Value)> = None;
                for (by, item) in keyed {
                    let replaces = match &best {
                        Some((best, _)) => by.compare(best, "<")? == wanted,
                        None => true,
                    };
                    if replaces {
                        best = Some((by, item));
                    }
                }
                let missing = "No aggregated item, sequence was empty.";
                Ok(best.map_or_else(|| Value::Undefined(missing.into()), |(_, item)| item))
            }
        }
    }

    fn grouped(&self, keyed: Vec<(Value, Value)>, sensitive: bool) -> Evaluated {
        let pairs = keyed
            .into_iter()
            .map(|(by, item)| (folded(&by, sensitive), Value::tuple(vec![by, item])));
        let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
        for pair in sorted(pairs.collect(), false)? {
            let pair = self.items(&pair)?;
            let [by, item] = pair.as_slice() else { continue };
            let key = folded(by, sensitive);
            match groups.last_mut() {
                Some((last, _, items)) if last.equals(&key) => items.push(item.clone()),
                _ => groups.push((key, by.clone(), vec![item.clone()])),
            }
        }
        // Jinja's groups are tuples whose parts are named `grouper` and `list` too; templates unpack them.
        let group = |(_, by, items)| Value::tuple(vec![by, Value::list(items)]);
        self.list(groups.into_iter().map(group).collect())
    }

    /// transformers' `tojson`: `json.dumps` without HTML escapes and with all characters as they are.
    fn tojson(&self, value: &Value, given: &Given) -> Evaluated {
        given.allow("tojson", &["ensure_ascii", "indent", "separators", "sort_keys"])?;
        let indent = match given.get(1, "indent") {
            None | Some(Value::None) => None,
            Some(Value::Str(indent)) => Some(indent.to_string()),
            Some(width) => Some(" ".repeat(width.as_int().unwrap_or(0).clamp(0, 100) as usize)),
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
        // Each level of each value may be indented.
        let per_line = style.indent.as_ref().map_or(0, String::len).saturating_mul(16);
        self.bytes(weight(value).saturating_mul(1 + per_line / 8))?;
        self.text(python::json(value, &style)?)
    }
}

/// A value as it is compared: texts without case, unless asked.
fn folded(value: &Value, sensitive: bool) -> Value {
    match value {
        Value::Str(text) if !sensitive => Value::from(text.to_lowercase()),
        other => other.clone(),
    }
}

/// Items in the order of their keys.
fn sorted(mut keyed: Vec<(Value, Value)>, reverse: bool) -> Result<Vec<Value>, JinjaError> {
    let mut failed = None;
    keyed.sort_by(|(a, _), (b, _)| {
        let order = a.compare(b, "<").unwrap_or_else(|error| {
            failed.get_or_insert(error);
            Ordering::Equal
        });
        if reverse { order.reverse() } else { order }
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(keyed.into_iter().map(|(_, item)| item).collect()),
    }
}

/// Python's `round`: to the nearest, halves (of the exact value) to even.
fn half_even(number: f64, places: usize) -> f64 {
    format!("{number:.places$}").parse().unwrap_or(number)
}

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

/// Jinja's `title`: a capital after each blank, hyphen or opening bracket.
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

/// A text as a part of an address.
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

/// A text without tags and comments of HTML, its blanks in single.
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

/// A number of bytes as people write it.
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
