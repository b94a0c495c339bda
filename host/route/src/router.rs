//! The router of a route.

use std::fmt;

use polyskill_sdk::Parameters;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{RouteError, params};

/// The name that stands for no router: modules act by their weights alone.
pub const NO_ROUTER: &str = "none";

/// A router with what it is told: a name as text, or an object with `name`, `params` and `modules`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouterSpec {
    /// The router, or a chain of several: `retrieval+arrow`. [`NO_ROUTER`] is none.
    pub name: String,
    /// Parameters over the configured ones. In a chain, `retrieval.k` is for the router of that
    /// name, and a plain name for the last.
    pub params: Parameters,
    /// Names, globs (`*`) or `tag:...` of the modules that may be picked; empty means all, or those
    /// of the route below.
    pub modules: Vec<String>,
}

impl RouterSpec {
    /// A router by its name alone.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// False for [`NO_ROUTER`], and for a name that is missing.
    pub fn decides(&self) -> bool {
        !self.name.is_empty() && self.name != NO_ROUTER
    }

    /// Refuses parameters and candidates without a router that could use them.
    pub(crate) fn check(&self) -> Result<(), RouteError> {
        let is_bare = self.params.0.is_empty() && self.modules.is_empty();
        let message = match self.name.as_str() {
            "" if is_bare => "`router` is empty, expected the name of a router",
            "" => "`params` and `modules` need a `router`",
            NO_ROUTER if !is_bare => "`router` is `none`, which has no `params` and no `modules`",
            _ => return Ok(()),
        };
        Err(RouteError { field: "router", message: message.to_owned() })
    }
}

/// The object. Unknown keys are refused, as a misspelt one would change the answer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Object {
    name: String,
    #[serde(default, with = "params")]
    params: Parameters,
    #[serde(default)]
    modules: Vec<String>,
}

impl<'de> Deserialize<'de> for RouterSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrObject;

        impl<'de> Visitor<'de> for NameOrObject {
            type Value = RouterSpec;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a router's name or an object with `name`, `params` and `modules`")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<RouterSpec, E> {
                Ok(RouterSpec::named(name))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RouterSpec, A::Error> {
                let Object { name, params, modules } =
                    Object::deserialize(MapAccessDeserializer::new(map))?;
                Ok(RouterSpec { name, params, modules })
            }
        }

        deserializer.deserialize_any(NameOrObject)
    }
}

impl Serialize for RouterSpec {
    /// A name alone is written as text.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let fields =
            1 + usize::from(!self.params.0.is_empty()) + usize::from(!self.modules.is_empty());
        if fields == 1 {
            return serializer.serialize_str(&self.name);
        }
        let mut object = serializer.serialize_map(Some(fields))?;
        object.serialize_entry("name", &self.name)?;
        if !self.params.0.is_empty() {
            object.serialize_entry("params", &params::Written(&self.params))?;
        }
        if !self.modules.is_empty() {
            object.serialize_entry("modules", &self.modules)?;
        }
        object.end()
    }
}
