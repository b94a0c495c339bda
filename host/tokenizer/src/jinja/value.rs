//! Values of templates: those of Python that Jinja's language reaches.

mod comparisons;
mod containers;
mod scope;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use serde_json::Value as Json;

use self::containers::Extent;
pub(crate) use self::containers::{Dict, Seq};
pub(crate) use self::scope::Scope;
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
