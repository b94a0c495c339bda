//! The modules of a route that act on every row.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::RouteError;

/// Modules by name and weight, in the order in which they act. Written as a list of objects.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Adapters(pub Vec<AdapterWeight>);

/// A module that acts on every row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AdapterWeight {
    /// The module's name or alias.
    pub name: String,
    /// The weight of its contribution, 1 where none is given; its range is checked when it is
    /// composed.
    pub weight: f32,
}

impl Adapters {
    /// Refuses a name that comes twice.
    pub(crate) fn check(&self) -> Result<(), RouteError> {
        let mut seen = BTreeSet::new();
        match self.0.iter().find(|adapter| !seen.insert(&adapter.name)) {
            None => Ok(()),
            Some(AdapterWeight { name, .. }) => Err(RouteError {
                field: "adapters",
                message: format!("`adapters` names `{name}` twice, expected each name once"),
            }),
        }
    }
}

impl FromIterator<(String, f32)> for Adapters {
    fn from_iter<T: IntoIterator<Item = (String, f32)>>(weights: T) -> Self {
        Self(weights.into_iter().map(|(name, weight)| AdapterWeight { name, weight }).collect())
    }
}

impl<'de> Deserialize<'de> for Adapters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListOrMap;

        impl<'de> Visitor<'de> for ListOrMap {
            type Value = Adapters;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of adapters with `name` and `weight`")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Adapters, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(list)).map(Adapters)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Adapters, A::Error> {
                let mut read = Vec::new();
                while let Some((name, weight)) = map.next_entry()? {
                    read.push(AdapterWeight { name, weight });
                }
                Ok(Adapters(read))
            }
        }

        deserializer.deserialize_any(ListOrMap)
    }
}

/// The object. Unknown keys are refused, as a misspelt one would change the answer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Object {
    name: String,
    #[serde(default = "one")]
    weight: f32,
}

/// The weight of a module without one.
fn one() -> f32 {
    1.0
}

impl<'de> Deserialize<'de> for AdapterWeight {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectOrPair;

        impl<'de> Visitor<'de> for ObjectOrPair {
            type Value = AdapterWeight;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with `name` and `weight`")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, pair: A) -> Result<AdapterWeight, A::Error> {
                let (name, weight) = Deserialize::deserialize(SeqAccessDeserializer::new(pair))?;
                Ok(AdapterWeight { name, weight })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<AdapterWeight, A::Error> {
                let Object { name, weight } = Object::deserialize(MapAccessDeserializer::new(map))?;
                Ok(AdapterWeight { name, weight })
            }
        }

        deserializer.deserialize_any(ObjectOrPair)
    }
}
