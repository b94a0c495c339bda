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

/// A value. Lists and dictionaries cannot change, as in Jinja's immutable sandbox.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// A value that is not there, with the message of its misuse.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Arc<str>),
    List(Rc<Seq>),
    Tuple(Rc<Seq>),
    Dict(Rc<Dict>),
    Namespace(Rc<RefCell<BTreeMap<String, Self>>>),
    Loop(Rc<Loop>),
    Macro(Rc<Macro>),
    /// A function of the environment.
    Function(&'static str),
    /// A method of a value, not called yet.
    Method(Rc<Self>, Arc<str>),
    Cycler(Rc<Cycler>),
    /// The separator, and whether it has been asked before.
    Joiner(Arc<str>, Rc<Cell<bool>>),
}

/// A macro, or the body of a `call` block.
#[derive(Debug)]
pub(crate) struct Macro {
    pub(super) def: Arc<MacroDef>,
    pub(super) scope: Scope,
}

/// Values that are given out in turn.
#[derive(Debug)]
pub(crate) struct Cycler {
    pub(super) items: Vec<Value>,
    pub(super) at: Cell<usize>,
}

/// A loop as its body sees it.
#[derive(Debug)]
pub(crate) struct Loop {
    pub(super) items: Rc<Seq>,
    pub(super) at: Cell<usize>,
    pub(super) depth: usize,
    /// The arguments of `changed` when it was called last.
    pub(super) seen: RefCell<Option<Vec<Value>>>,
    /// A recursive loop, with the scope that it began in.
    pub(super) again: Option<(Arc<super::ast::ForLoop>, Scope)>,
}

/// Names in force, from the inside out.
#[derive(Clone, Debug)]
pub(crate) struct Scope(Rc<Level>);

#[derive(Debug)]
struct Level {
    names: RefCell<HashMap<Arc<str>, Value>>,
    outer: Option<Scope>,
}

impl Scope {
    pub(super) fn new(outer: Option<Self>) -> Self {
        Self(Rc::new(Level { names: RefCell::default(), outer }))
    }

    pub(super) fn inner(&self) -> Self {
        Self::new(Some(self.clone()))
    }

    pub(super) fn set(&self, name: &Arc<str>, value: Value) {
        self.0.names.borrow_mut().insert(Arc::clone(name), value);
    }

    pub(super) fn get(&self, name: &str) -> Option<Value> {
        let mut scope = self;
        loop {
            if let Some(value) = scope.0.names.borrow().get(name) {
                return Some(value.clone());
            }
            scope = scope.0.outer.as_ref()?;
        }
    }

    /// Forgets its names, which may hold the scope itself through a macro.
    pub(super) fn clear(&self) {
        let names = std::mem::take(&mut *self.0.names.borrow_mut());
        drop(names);
    }
}

/// The items of a list or tuple, with what is known of all that they hold.
#[derive(Debug, Default)]
pub(crate) struct Seq {
    items: Vec<Value>,
    extent: Extent,
}

impl Seq {
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

/// The size of a value with all that it holds; parts that it holds twice count twice.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extent {
    /// Bytes that a walk over it looks at.
    pub(super) weight: usize,
    /// Lists and dictionaries inside each other.
    pub(super) depth: u32,
}

impl Extent {
    fn add(&mut self, value: &Value) {
        let inner = value.extent();
        self.weight = self.weight.saturating_add(inner.weight).saturating_add(2);
        self.depth = self.depth.max(inner.depth + 1);
    }
}

/// A dictionary in the order of insertion.
#[derive(Debug, Default)]
pub(crate) struct Dict {
    entries: Vec<(Value, Value)>,
    index: HashMap<Key, usize>,
    extent: Extent,
}

/// A value as the key of a dictionary: numbers that are equal are one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    None,
    Int(i128),
    Float(u64),
    Str(Arc<str>),
    Tuple(Vec<Self>),
}

impl Key {
    fn of(value: &Value) -> Result<Self, JinjaError> {
        Ok(match value {
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

    pub(super) fn get_str(&self, key: &str) -> Option<&Value> {
        let at = *self.index.get(&Key::Str(key.into()))?;
        Some(&self.entries[at].1)
    }

    pub(super) fn entries(&self) -> &[(Value, Value)] {
        &self.entries
    }

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
    /// JSON as Python reads it.
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
    pub(super) fn list(items: Vec<Self>) -> Self {
        Self::List(Rc::new(Seq::new(items)))
    }

    pub(super) fn tuple(items: Vec<Self>) -> Self {
        Self::Tuple(Rc::new(Seq::new(items)))
    }

    pub(super) fn extent(&self) -> Extent {
        match self {
            Self::Str(text) => Extent { weight: text.len(), depth: 0 },
            Self::List(items) | Self::Tuple(items) => items.extent,
            Self::Dict(dict) => dict.extent,
            _ => Extent { weight: 8, depth: 0 },
        }
    }

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

    /// The value as a condition.
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

    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

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

    /// The values that a loop over it meets.
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

    /// `len` of it.
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

    /// `==` of Python.
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

    /// The order of two values; an error where Python has none.
    pub(super) fn compare(&self, other: &Self, op: &str) -> Result<Ordering, JinjaError> {
        self.must_be_defined()?;
        other.must_be_defined()?;
        match (self, other) {
            (Self::Str(a), Self::Str(b)) => return Ok(a.cmp(b)),
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => {
                for (a, b) in a.iter().zip(b.iter()) {
                    if !a.equals(b) {
                        return a.compare(b, op);
                    }
                }
                return Ok(a.len().cmp(&b.len()));
            }
            _ => {}
        }
        if let (Some(a), Some(b)) = (self.as_int(), other.as_int()) {
            return Ok(a.cmp(&b));
        }
        if let (Some(a), Some(b)) = (self.as_f64(), other.as_f64()) {
            // NaN is neither less nor more; no template is asked to sort it.
            return Ok(a.partial_cmp(&b).unwrap_or(Ordering::Greater));
        }
        let (a, b) = (self.type_name(), other.type_name());
        Err(JinjaError::of_type(format!(
            "'{op}' not supported between instances of '{a}' and '{b}'"
        )))
    }

    /// `needle in self`.
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
