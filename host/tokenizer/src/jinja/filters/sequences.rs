//! Filters over sequences: cutting, choosing, ordering, grouping.

use std::cmp::Ordering;

use super::super::ast::BinaryOp;
use super::super::error::{ErrorKind, JinjaError};
use super::super::operators;
use super::super::render::{Given, Renderer, VALUE_BYTES, weight};
use super::super::sorting;
use super::super::value::{Dict, Value};
use super::Evaluated;

impl Renderer {
    /// Jinja's `join`: items by `str`, or an attribute of each, with `d` between them. Bytes are
    /// counted item by item, before each is appended.
    pub(super) fn join(&self, value: &Value, given: &Given) -> Evaluated {
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

    /// An attribute by a path like `a.b.0`. A part of digits is an index.
    fn path(&self, value: &Value, path: &Value) -> Evaluated {
        self.path_or(value, path, None)
    }

    /// An attribute by a path, with a value in the place of each part that is not there. A whole
    /// number as path is an index. `default` is Jinja's: it stands for each part that is undefined,
    /// and the path goes on from it.
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

    /// `batch` and `slice`. `batch` makes lists of `linecount` items; `slice` makes `slices` lists,
    /// of which the first ones are longer. `fill_with` fills up the short ones. `batch` fills up
    /// the last list alone; `slice` adds one item to each list that is shorter than the first ones,
    /// where some are longer.
    ///
    /// # Errors
    /// A count that is missing, below 1, or 2^30 or more.
    pub(super) fn chunks(&self, name: &str, value: &Value, given: &Given) -> Evaluated {
        let items = self.items(value)?;
        let count = given.get(0, if name == "batch" { "linecount" } else { "slices" });
        let count = count.and_then(Value::as_int).filter(|&count| (1..1 << 30).contains(&count));
        let count = count.ok_or_else(|| JinjaError::of_value(format!("{name}() needs a count")))?;
        let (count, fill) = (count as usize, given.get(1, "fill_with"));
        self.bytes((items.len() + count) * 2 * VALUE_BYTES)?;
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

    /// `map`, and the filters that keep some of the items: `select` and `selectattr` those for
    /// which a test holds, `reject` and `rejectattr` the others. Without the name of a test, the
    /// item's truth decides. With `attr`, the first argument is the path of the attribute that is
    /// tested. Of a value that is false or undefined nothing is kept.
    pub(super) fn each(&self, name: &str, value: &Value, given: &Given) -> Evaluated {
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

    /// One item of `map`: an attribute of it, `default` in its place, or a filter's result. Further
    /// arguments are the filter's.
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

    /// Pairs of a mapping, sorted by key or value; texts without case, unless `case_sensitive`.
    pub(super) fn dictsort(&self, value: &Value, given: &Given) -> Evaluated {
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
        let mut pairs = Vec::new();
        self.bytes(dict.len() * 4 * VALUE_BYTES)?;
        for (key, value) in dict.entries() {
            let by = self.folded(if by_value { value } else { key }, sensitive)?;
            pairs.push((by, Value::tuple(vec![key.clone(), value.clone()])));
        }
        self.list(self.sorted(pairs, reverse)?)
    }

    /// The filters that compare items with each other, and `sum`. Each comparison is counted.
    /// `sort`, `unique`, `min`, `max` and `groupby` compare texts without case, unless
    /// `case_sensitive`. `sort` takes several attributes with commas between them, and compares
    /// them as lists, so that equal ones need no order, such as two that are `None`. `unique` keeps
    /// the first item of each key, `min` and `max` the first of the best ones; both are undefined
    /// for nothing. `sum` begins with `start`, 0 by default.
    pub(super) fn ordered(&self, name: &str, value: &Value, given: &Given) -> Evaluated {
        let items = self.items(value)?;
        self.bytes(items.len() * 2 * VALUE_BYTES)?;
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
                    let parts = paths
                        .split(',')
                        .map(|path| self.folded(&self.path(item, &Value::from(path))?, sensitive));
                    Value::tuple(parts.collect::<Result<_, _>>()?)
                }
                Some(path) => {
                    self.path_or(item, path, given.get(1, "default").filter(|_| name == "groupby"))?
                }
            };
            self.work(weight(&by) as u64)?;
            keyed.push((by, item.clone()));
        }
        if name == "sum" {
            let start = given.get(1, "start").cloned().unwrap_or(Value::Int(0));
            return keyed
                .iter()
                .try_fold(start, |sum, (by, _)| operators::binary(self, BinaryOp::Add, &sum, by));
        }
        if name == "groupby" {
            return self.grouped(keyed, sensitive);
        }
        for (by, _) in &mut keyed {
            *by = self.folded(by, sensitive)?;
        }
        match name {
            "sort" => {
                self.bytes(keyed.len() * 2 * VALUE_BYTES)?;
                keyed.iter_mut().for_each(|(by, _)| *by = Value::tuple(vec![by.clone()]));
                self.list(self.sorted(keyed, reverse.is_some_and(Value::is_true))?)
            }
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
            _ => best(name, keyed),
        }
    }

    /// Groups of items with equal keys, by ascending key: pairs of the key, as the first item of a
    /// group has it, and the items. The order inside of a group is that of the input. `keyed` holds
    /// each item behind its key.
    fn grouped(&self, keyed: Vec<(Value, Value)>, sensitive: bool) -> Evaluated {
        let mut pairs = Vec::new();
        self.bytes(keyed.len() * 4 * VALUE_BYTES)?;
        for (by, item) in keyed {
            pairs.push((self.folded(&by, sensitive)?, Value::tuple(vec![by, item])));
        }
        let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
        for pair in self.sorted(pairs, false)? {
            let pair = self.items(&pair)?;
            let [by, item] = pair.as_slice() else { continue };
            let key = self.folded(by, sensitive)?;
            self.work(weight(&key) as u64)?;
            match groups.last_mut() {
                Some((last, _, items)) if last.equals(&key) => items.push(item.clone()),
                _ => groups.push((key, by.clone(), vec![item.clone()])),
            }
        }
        // Jinja's groups are tuples whose parts are named `grouper` and `list` too; templates unpack them.
        let group = |(_, by, items)| Value::tuple(vec![by, Value::list(items)]);
        self.list(groups.into_iter().map(group).collect())
    }

    /// A value as it is compared: texts without case, unless asked. Texts inside of a tuple keep
    /// their case.
    fn folded(&self, value: &Value, sensitive: bool) -> Evaluated {
        match value {
            Value::Str(text) if !sensitive => {
                self.bytes(text.len())?;
                Ok(Value::from(text.to_lowercase()))
            }
            other => Ok(other.clone()),
        }
    }

    /// Items in the order of their keys. Stable, also in reverse. The first comparison that Python
    /// does not have is the error; each is counted. `keyed` holds each item behind its key; the
    /// keys are dropped.
    fn sorted(
        &self,
        mut keyed: Vec<(Value, Value)>,
        reverse: bool,
    ) -> Result<Vec<Value>, JinjaError> {
        // Python too turns the items around on both sides of the sorting.
        if reverse {
            keyed.reverse();
        }
        let mut keyed = sorting::sorted(keyed, |a, b| {
            self.work(16 + weight(&a.0).min(weight(&b.0)) as u64)?;
            a.0.is_less(&b.0)
        })?;
        if reverse {
            keyed.reverse();
        }
        Ok(keyed.into_iter().map(|(_, item)| item).collect())
    }
}

/// The first of the least items for `min`, of the greatest ones else. `keyed` holds each item
/// behind its key.
fn best(name: &str, keyed: Vec<(Value, Value)>) -> Evaluated {
    let (wanted, op) = match name {
        "min" => (Ordering::Less, "<"),
        _ => (Ordering::Greater, ">"),
    };
    let mut best: Option<(Value, Value)> = None;
    for (by, item) in keyed {
        let replaces = match &best {
            Some((best, _)) => by.compare(best, op)? == Some(wanted),
            None => true,
        };
        if replaces {
            best = Some((by, item));
        }
    }
    let missing = "No aggregated item, sequence was empty.";
    Ok(best.map_or_else(|| Value::Undefined(missing.into()), |(_, item)| item))
}
