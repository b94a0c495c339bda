//! Lists, tuples and dictionaries, and the size of all that they hold.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::error::JinjaError;
use super::Value;

/// The items of a list or tuple, with what is known of all that they hold.
#[derive(Debug, Default)]
pub(crate) struct Seq {
    /// The items, which never change.
    items: Vec<Value>,
    /// Worked out once, when the sequence is made.
    pub(super) extent: Extent,
}

impl Seq {
    /// A sequence of items, whose extents are added up.
    pub(in super::super) fn new(items: Vec<Value>) -> Self {
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
pub(in super::super) struct Extent {
    /// Bytes that a walk over it looks at.
    pub(in super::super) weight: usize,
    /// Lists and dictionaries inside each other.
    pub(in super::super) depth: u32,
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
    pub(super) extent: Extent,
}

/// A value as the key of a dictionary: numbers that are equal are one key. As in Python, `1`, `1.0`
/// and `True` are the same key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
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
    pub(super) fn of(value: &Value) -> Result<Self, JinjaError> {
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
    pub(in super::super) fn insert(&mut self, key: Value, value: Value) -> Result<(), JinjaError> {
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
    pub(in super::super) fn get(&self, key: &Value) -> Option<&Value> {
        let at = *self.index.get(&Key::of(key).ok()?)?;
        Some(&self.entries[at].1)
    }

    /// The value of a text as key.
    pub(in super::super) fn get_str(&self, key: &str) -> Option<&Value> {
        let at = *self.index.get(&Key::Str(key.into()))?;
        Some(&self.entries[at].1)
    }

    /// Keys and values, in the order of insertion.
    pub(in super::super) fn entries(&self) -> &[(Value, Value)] {
        &self.entries
    }

    /// The number of keys.
    pub(in super::super) fn len(&self) -> usize {
        self.entries.len()
    }
}
