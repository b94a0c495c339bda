//! Values of templates: those of Python that Jinja's language reaches.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use serde_json::Value as Json;

use super::ast::MacroDef;
use super::error::JinjaError;
use super::python;

/// A value. Lists and dictionaries cannot change, as in Jinja's immutable sandbox. Cloning copies a
/// pointer at most.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// A value that is not there, with the message of its misuse.
    Undefined(Rc<str>),
    /// Python's `None`.
    None,
    /// A boolean, which counts as 0 or 1 in arithmetic.
    Bool(bool),
    /// A whole number, within 128 bits.
    Int(i128),
    /// A float.
    Float(f64),
    /// A text, as UTF-8; its places are counted in characters.
    Str(Arc<str>),
    /// A list.
    List(Rc<Seq>),
    /// A tuple: as a list, but hashable and printed in round brackets.
    Tuple(Rc<Seq>),
    /// A dictionary.
    Dict(Rc<Dict>),
    /// Jinja's `namespace`, whose attributes a template may set: the one value that changes.
    Namespace(Rc<RefCell<BTreeMap<String, Self>>>),
    /// The name `loop` in the body of a loop.
    Loop(Rc<Loop>),
    /// A macro, to be called.
    Macro(Rc<Macro>),
    /// A function of the environment. By its name in [`super::builtins::GLOBALS`].
    Function(&'static str),
    /// A method of a value, not called yet. The value and the method's name.
    Method(Rc<Self>, Arc<str>),
    /// Jinja's `cycler`.
    Cycler(Rc<Cycler>),
    /// Jinja's `joiner`: the separator, and true once it was asked. The first answer is empty.
    Joiner(Arc<str>, Rc<Cell<bool>>),
}

/// A macro, or the body of a `call` block.
#[derive(Debug)]
pub(crate) struct Macro {
    /// The definition in the tree.
    pub(super) def: Arc<MacroDef>,
    /// The scope that it was defined in, whose names its body sees.
    pub(super) scope: Scope,
}

/// Values that are given out in turn.
#[derive(Debug)]
pub(crate) struct Cycler {
    /// At least one.
    pub(super) items: Seq,
    /// Index of the next one.
    pub(super) at: Cell<usize>,
}

/// A loop as its body sees it.
#[derive(Debug)]
pub(crate) struct Loop {
    /// All items, behind the loop's filter.
    pub(super) items: Rc<Seq>,
    /// Index of the item at hand.
    pub(super) at: Cell<usize>,
    /// Recursive calls around it, 0 for the outermost.
    pub(super) depth: usize,
    /// The arguments of `changed` when it was called last.
    pub(super) seen: RefCell<Option<Vec<Value>>>,
    /// True behind the last turn. A loop that is over remembers no arguments, through which it
    /// could hold other loops in a chain without an end.
    pub(super) is_over: Cell<bool>,
    /// A recursive loop, with the scope that it began in. `None` for a loop without `recursive`.
    pub(super) again: Option<(Arc<super::ast::ForLoop>, Scope)>,
}

/// Names in force, from the inside out. A clone is the same scope.
#[derive(Clone, Debug)]
pub(crate) struct Scope(Rc<Level>);

/// One scope with the one around it.
#[derive(Debug)]
struct Level {
    /// Names that were set here.
    names: RefCell<HashMap<Arc<str>, Value>>,
    /// The scope around it; none around the outermost.
    outer: Option<Scope>,
    /// True once [`Scope::clear`] was here.
    is_cleared: Cell<bool>,
}

impl Scope {
    /// An empty scope.
    pub(super) fn new(outer: Option<Self>) -> Self {
        Self(Rc::new(Level { names: RefCell::default(), outer, is_cleared: Cell::new(false) }))
    }

    /// An empty scope inside of this one.
    pub(super) fn inner(&self) -> Self {
        Self::new(Some(self.clone()))
    }

    /// Sets a name here, whether or not a scope around has it: Jinja's `set` does not reach out of
    /// a loop.
    pub(super) fn set(&self, name: &Arc<str>, value: Value) {
        self.0.names.borrow_mut().insert(Arc::clone(name), value);
    }

    /// The value of a name here or in the scopes around.
    pub(super) fn get(&self, name: &str) -> Option<Value> {
        let mut scope = self;
        loop {
            if let Some(value) = scope.0.names.borrow().get(name) {
                return Some(value.clone());
            }
            scope = scope.0.outer.as_ref()?;
        }
    }

    /// Forgets its names and those of the scopes around it, any of which may hold the scope itself
    /// through a macro or a loop.
    pub(super) fn clear(&self) {
        let mut scope = self;
        while !scope.0.is_cleared.replace(true) {
            let names = std::mem::take(&mut *scope.0.names.borrow_mut());
            drop(names);
            let Some(outer) = &scope.0.outer else { return };
            scope = outer;
        }
    }
}

/// The items of a list or tuple, with what is known of all that they hold.
#[derive(Debug, Default)]
pub(crate) struct Seq {
    /// The items, which never change.
    items: Vec<Value>,
    /// Worked out once, when the sequence is made.
    extent: Extent,
}

impl Seq {
    /// A sequence of items, whose extents are added up.
    pub(super) fn new(items: Vec<Value>) -> Self {
        let mut extent = Extent::default();
        items.iter().for_each(|item| extent.add(item));
        Self { items, extent }
    }
}

impl std::ops::Deref for Seq {
    type Target = Vec<Value>;

    fn deref(&self) -> &Vec<Value> {
        &self.items
    }
}

/// The size of a value with all that it holds; parts that it holds twice count twice. It costs
/// nothing to read, so that each walk over a value can be counted before it begins.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extent {
    /// Bytes that a walk over it looks at.
    pub(super) weight: usize,
    /// Lists and dictionaries inside each other.
    pub(super) depth: u32,
}

impl Extent {
    /// Takes in a value that is held, with two bytes for what separates it.
    fn add(&mut self, value: &Value) {
        let inner = value.extent();
        self.weight = self.weight.saturating_add(inner.weight).saturating_add(2);
        self.depth = self.depth.max(inner.depth + 1);
    }
}

/// A dictionary in the order of insertion.
#[derive(Debug, Default)]
pub(crate) struct Dict {
    /// Keys and values.
    entries: Vec<(Value, Value)>,
    /// Places of the keys in `entries`.
    index: HashMap<Key, usize>,
    /// Of all that was ever inserted, replaced values too.
    extent: Extent,
}

/// A value as the key of a dictionary: numbers that are equal are one key. As in Python, `1`, `1.0`
/// and `True` are the same key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// All that is undefined, which is equal.
    Undefined,
    /// `None`.
    None,
    /// A whole number, a boolean, or a float without a fraction.
    Int(i128),
    /// Any other float, by its bits.
    Float(u64),
    /// A text.
    Str(Arc<str>),
    /// A tuple of keys.
    Tuple(Vec<Self>),
}

impl Key {
    /// The key of a value; Python's `TypeError` for what cannot be hashed.
    fn of(value: &Value) -> Result<Self, JinjaError> {
        Ok(match value {
            Value::Undefined(_) => Self::Undefined,
            Value::None => Self::None,
            Value::Bool(value) => Self::Int(i128::from(*value)),
            Value::Int(value) => Self::Int(*value),
            Value::Float(value) if value.fract() == 0.0 && value.abs() < 1e18 => {
                Self::Int(*value as i128)
            }
            Value::Float(value) => Self::Float(value.to_bits()),
            Value::Str(value) => Self::Str(Arc::clone(value)),
            Value::Tuple(items) => {
                Self::Tuple(items.iter().map(Self::of).collect::<Result<_, _>>()?)
            }
            other => {
                let kind = other.type_name();
                return Err(JinjaError::of_type(format!("unhashable type: '{kind}'")));
            }
        })
    }
}

impl Dict {
    /// Sets the value of a key: a new key comes last, and a known one keeps its place and spelling.
    pub(super) fn insert(&mut self, key: Value, value: Value) -> Result<(), JinjaError> {
        let hashed = Key::of(&key)?;
        self.extent.add(&key);
        self.extent.add(&value);
        match self.index.get(&hashed) {
            Some(&at) => self.entries[at].1 = value,
            None => {
                self.index.insert(hashed, self.entries.len());
                self.entries.push((key, value));
            }
        }
        Ok(())
    }

    /// The value of a key; nothing for keys that no dictionary can have.
    pub(super) fn get(&self, key: &Value) -> Option<&Value> {
        let at = *self.index.get(&Key::of(key).ok()?)?;
        Some(&self.entries[at].1)
    }

    /// The value of a text as key.
    pub(super) fn get_str(&self, key: &str) -> Option<&Value> {
        let at = *self.index.get(&Key::Str(key.into()))?;
        Some(&self.entries[at].1)
    }

    /// Keys and values, in the order of insertion.
    pub(super) fn entries(&self) -> &[(Value, Value)] {
        &self.entries
    }

    /// The number of keys.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Str(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Str(text.into())
    }
}

impl From<&Json> for Value {
    /// JSON as Python reads it. Whole numbers beyond 64 bits become floats.
    fn from(json: &Json) -> Self {
        match json {
            Json::Null => Self::None,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => {
                let whole = number.as_i64().map(i128::from);
                let whole = whole.or_else(|| number.as_u64().map(i128::from));
                whole.map_or_else(|| Self::Float(number.as_f64().unwrap_or(f64::NAN)), Self::Int)
            }
            Json::String(text) => Self::from(text.as_str()),
            Json::Array(items) => Self::list(items.iter().map(Self::from).collect()),
            Json::Object(fields) => {
                let mut dict = Dict::default();
                for (key, value) in fields {
                    // Texts can always be keys.
                    let _ = dict.insert(Self::from(key.as_str()), Self::from(value));
                }
                Self::Dict(Rc::new(dict))
            }
        }
    }
}

impl Value {
    /// A list; its bytes are for the caller to count.
    pub(super) fn list(items: Vec<Self>) -> Self {
        Self::List(Rc::new(Seq::new(items)))
    }

    /// A tuple; its bytes are for the caller to count.
    pub(super) fn tuple(items: Vec<Self>) -> Self {
        Self::Tuple(Rc::new(Seq::new(items)))
    }

    /// The size of the value with all that it holds. Values that hold no others weigh 8 bytes, but
    /// for texts. The items of a loop weigh nothing, since nothing walks over them through `loop`.
    pub(super) fn extent(&self) -> Extent {
        match self {
            Self::Str(text) => Extent { weight: text.len(), depth: 0 },
            Self::List(items) | Self::Tuple(items) => items.extent,
            Self::Dict(dict) => dict.extent,
            Self::Cycler(cycler) => cycler.items.extent,
            Self::Loop(state) => Extent { weight: 8, depth: state.items.extent.depth },
            Self::Method(value, _) => Extent { weight: 8, depth: value.extent().depth },
            _ => Extent { weight: 8, depth: 0 },
        }
    }

    /// The undefined value of a name that no scope has.
    pub(super) fn undefined(name: &str) -> Self {
        Self::Undefined(format!("'{name}' is undefined").into())
    }

    /// Python's name of its type.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::Namespace(_) => "Namespace",
            Self::Loop(_) => "LoopContext",
            Self::Macro(_) => "Macro",
            Self::Function(_) => "function",
            Self::Method(..) => "builtin_function_or_method",
            Self::Cycler(_) => "Cycler",
            Self::Joiner(..) => "Joiner",
        }
    }

    /// The value as a condition. Python's `bool`: empty values, zeros and `None` are false, and so
    /// is what is undefined.
    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Str(text) => !text.is_empty(),
            Self::List(items) | Self::Tuple(items) => !items.is_empty(),
            Self::Dict(dict) => dict.len() > 0,
            _ => true,
        }
    }

    /// The text, if it is one.
    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    /// True for a value that is not there.
    pub(super) fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    /// The value as a whole number; booleans count as in Python.
    pub(super) fn as_int(&self) -> Option<i128> {
        match self {
            Self::Bool(value) => Some(i128::from(*value)),
            Self::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// The value as a float: a number or a boolean.
    pub(super) fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            other => other.as_int().map(|value| value as f64),
        }
    }

    /// The error of using a value that is not there.
    pub(super) fn must_be_defined(&self) -> Result<(), JinjaError> {
        match self {
            Self::Undefined(message) => Err(JinjaError::undefined(&**message)),
            _ => Ok(()),
        }
    }

    /// The values that a loop over it meets. Keys of a dictionary, characters of a text, nothing of
    /// what is undefined.
    pub(super) fn items(&self) -> Result<Rc<Seq>, JinjaError> {
        match self {
            Self::Undefined(_) => Ok(Rc::default()),
            Self::List(items) | Self::Tuple(items) => Ok(Rc::clone(items)),
            Self::Dict(dict) => {
                let keys = dict.entries().iter().map(|(key, _)| key.clone()).collect();
                Ok(Rc::new(Seq::new(keys)))
            }
            Self::Str(text) => {
                let chars = text.chars().map(|c| Self::from(&*c.encode_utf8(&mut [0; 4])));
                Ok(Rc::new(Seq::new(chars.collect())))
            }
            other => {
                let kind = other.type_name();
                Err(JinjaError::of_type(format!("'{kind}' object is not iterable")))
            }
        }
    }

    /// `len` of it. In characters, items or keys; 0 where it is undefined.
    pub(super) fn len(&self) -> Result<usize, JinjaError> {
        match self {
            Self::Undefined(_) => Ok(0),
            Self::Str(text) => Ok(text.chars().count()),
            Self::List(items) | Self::Tuple(items) => Ok(items.len()),
            Self::Dict(dict) => Ok(dict.len()),
            other => {
                let kind = other.type_name();
                Err(JinjaError::of_type(format!("object of type '{kind}' has no len()")))
            }
        }
    }

    /// `==` of Python. Values of different types are unequal, but for numbers and booleans.
    /// Functions, methods, loops and cyclers equal nothing.
    pub(super) fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Undefined(_), Self::Undefined(_)) | (Self::None, Self::None) => true,
            (Self::Str(a), Self::Str(b)) => a == b,
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => {
                a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.equals(b))
            }
            (Self::Dict(a), Self::Dict(b)) => {
                a.len() == b.len()
                    && a.entries()
                        .iter()
                        .all(|(key, value)| b.get(key).is_some_and(|found| found.equals(value)))
            }
            (Self::Namespace(a), Self::Namespace(b)) => Rc::ptr_eq(a, b),
            (Self::Macro(a), Self::Macro(b)) => Rc::ptr_eq(a, b),
            _ => match (self.as_int(), other.as_int()) {
                (Some(a), Some(b)) => a == b,
                _ => match (self.as_f64(), other.as_f64()) {
                    (Some(a), Some(b)) => a == b,
                    _ => false,
                },
            },
        }
    }

    /// The order of two values; an error where Python has none. `op` is the operator that the
    /// message shows. Texts go by code points, and sequences by their first unequal items. Beside
    /// NaN nothing is less, equal or greater.
    pub(super) fn compare(&self, other: &Self, op: &str) -> Result<Option<Ordering>, JinjaError> {
        self.must_be_defined()?;
        other.must_be_defined()?;
        match (self, other) {
            (Self::Str(a), Self::Str(b)) => return Ok(Some(a.cmp(b))),
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => {
                for (a, b) in a.iter().zip(b.iter()) {
                    if !a.equals(b) {
                        return a.compare(b, op);
                    }
                }
                return Ok(Some(a.len().cmp(&b.len())));
            }
            _ => {}
        }
        if let (Some(a), Some(b)) = (self.as_int(), other.as_int()) {
            return Ok(Some(a.cmp(&b)));
        }
        if let (Some(a), Some(b)) = (self.as_f64(), other.as_f64()) {
            return Ok(a.partial_cmp(&b));
        }
        let (a, b) = (self.type_name(), other.type_name());
        Err(JinjaError::of_type(format!(
            "'{op}' not supported between instances of '{a}' and '{b}'"
        )))
    }

    /// `self < other`, by which Python sorts.
    ///
    /// # Errors
    /// Python's `TypeError` for two values without an order.
    pub(super) fn is_less(&self, other: &Self) -> Result<bool, JinjaError> {
        Ok(self.compare(other, "<")? == Some(Ordering::Less))
    }

    /// `needle in self`. Python's error where the container takes no such needle.
    pub(super) fn contains(&self, needle: &Self) -> Result<bool, JinjaError> {
        match (self, needle) {
            (Self::Str(text), Self::Str(part)) => Ok(text.contains(&**part)),
            (Self::Str(_), Self::Undefined(message)) => Err(JinjaError::undefined(&**message)),
            (Self::Str(_), other) => {
                let kind = other.type_name();
                Err(JinjaError::of_type(format!(
                    "'in <string>' requires string as left operand, not {kind}"
                )))
            }
            (Self::Dict(dict), key) => {
                Key::of(key)?;
                Ok(dict.get(key).is_some())
            }
            (Self::List(items) | Self::Tuple(items), _) => {
                Ok(items.iter().any(|item| item.equals(needle)))
            }
            (Self::Undefined(_), _) => Ok(false),
            (other, _) => {
                let kind = other.type_name();
                Err(JinjaError::of_type(format!("argument of type '{kind}' is not iterable")))
            }
        }
    }
}

impl std::fmt::Display for Value {
    /// `str` of Python, as a template prints it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Undefined(_) => Ok(()),
            Self::Str(text) => f.write_str(text),
            Self::Joiner(separator, asked) => match asked.replace(true) {
                true => f.write_str(separator),
                false => Ok(()),
            },
            other => f.write_str(&python::repr(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clearing_a_scope_clears_those_around_it() {
        let outer = Scope::new(None);
        let (inner, other) = (outer.inner().inner(), outer.inner());
        for scope in [&outer, &inner, &other] {
            scope.set(&"a".into(), Value::None);
        }
        inner.clear();
        assert!(inner.get("a").is_none() && outer.get("a").is_none());
        assert!(other.get("a").is_some());
    }
}
