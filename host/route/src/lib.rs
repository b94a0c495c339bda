//! Routes: what answers a request, as configurations, requests, experiments, evaluations and traces
//! write it.
//!
//! All of them have the same two fields. `router` is a router's name or an object, `adapters` a
//! list:
//!
//! ```
//! # use polyskill_route::RouteSpec;
//! let route: RouteSpec = serde_json::from_str(
//!     r#"{
//!         "router": {"name": "arrow", "params": {"top_k": 2}, "modules": ["german-*"]},
//!         "adapters": [{"name": "tone", "weight": 0.5}]
//!     }"#,
//! )?;
//! assert_eq!(route.router.unwrap().name, "arrow");
//! # Ok::<_, serde_json::Error>(())
//! ```
//!
//! Older spellings are read and never written: `params` or `parameters` and `modules` beside
//! `router`, and adapters as a map of weights or a list of pairs.

mod adapters;
pub mod params;
mod router;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use adapters::{AdapterWeight, Adapters};
pub use router::{NO_ROUTER, RouterSpec};

/// What answers a request: the base, modules by weight, or a router over its candidates.
///
/// A struct that holds one takes its fields in with `#[serde(flatten)]`, and refuses unknown keys
/// with `deny_unknown_fields` of its own.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(from = "Fields")]
pub struct RouteSpec {
    /// The router; `None` where the field is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router: Option<RouterSpec>,
    /// The modules that act on every row, whatever a router picks; `None` where the field is
    /// missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapters: Option<Adapters>,
}

impl RouteSpec {
    /// The modules that act on every row, none where the field is missing.
    pub fn adapters(&self) -> &[AdapterWeight] {
        self.adapters.as_ref().map_or(&[], |adapters| &adapters.0)
    }

    /// The router that decides, if any: that of the field, but not [`NO_ROUTER`].
    pub fn deciding_router(&self) -> Option<&RouterSpec> {
        self.router.as_ref().filter(|router| router.decides())
    }

    /// The names of modules and the router hold together.
    ///
    /// # Errors
    /// Parameters or candidates without a router that could use them, or an adapter that is named
    /// twice.
    pub fn check(&self) -> Result<(), RouteError> {
        if let Some(router) = &self.router {
            router.check()?;
        }
        self.adapters.as_ref().map_or(Ok(()), Adapters::check)
    }
}

/// A route whose parts do not hold together.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RouteError {
    /// The field: `router` or `adapters`.
    pub field: &'static str,
    /// One sentence with the found and the expected value.
    message: String,
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for RouteError {}

/// The fields as they are read, with older spellings.
#[derive(Deserialize)]
struct Fields {
    /// The router's name, or all about it.
    #[serde(default)]
    router: Option<RouterSpec>,
    /// Older place of the router's parameters.
    #[serde(default, alias = "parameters", with = "params::optional")]
    params: Option<polyskill_sdk::Parameters>,
    /// Older place of the router's candidates.
    #[serde(default)]
    modules: Option<Vec<String>>,
    /// Modules that act on every row.
    #[serde(default)]
    adapters: Option<Adapters>,
}

impl From<Fields> for RouteSpec {
    /// Parameters and candidates beside a router belong to it, behind its own. Without one they
    /// make a router without a name, which [`RouteSpec::check`] refuses.
    fn from(Fields { router, params, modules, adapters }: Fields) -> Self {
        if params.is_none() && modules.is_none() {
            return Self { router, adapters };
        }
        let mut router = router.unwrap_or_default();
        router.params = params::over(&router.params, &params.unwrap_or_default());
        router.modules.extend(modules.unwrap_or_default());
        let is_empty = router == RouterSpec::default();
        Self { router: (!is_empty).then_some(router), adapters }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    /// A holder of a route, as arms and skill sets are.
    #[derive(Debug, Deserialize, PartialEq, Serialize)]
    #[serde(deny_unknown_fields)]
    struct Arm {
        name: String,
        #[serde(flatten)]
        route: RouteSpec,
    }

    fn read(value: Json) -> RouteSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn all_spellings_are_one_route() {
        let one = json!({"router": {"name": "arrow", "params": {"top_k": 2.0, "soft": true},
            "modules": ["a-*"]}, "adapters": [{"name": "x", "weight": 0.5}, {"name": "y", "weight": 1.0}]});
        let route = read(one.clone());
        assert_eq!(serde_json::to_value(&route).unwrap(), one);
        for other in [
            json!({"router": "arrow", "params": {"top_k": 2, "soft": true}, "modules": ["a-*"],
                "adapters": {"x": 0.5, "y": 1}}),
            json!({"router": "arrow", "parameters": {"top_k": 2, "soft": true}, "modules": ["a-*"],
                "adapters": [["x", 0.5], ["y", 1.0]]}),
            json!({"router": "arrow", "parameters": [["top_k", 2], ["soft", true]],
                "modules": ["a-*"], "adapters": [{"name": "x", "weight": 0.5}, {"name": "y"}]}),
            json!({"router": {"name": "arrow", "params": {"top_k": 2}}, "modules": ["a-*"],
                "params": {"soft": true}, "adapters": [["x", 0.5], {"name": "y"}]}),
        ] {
            assert_eq!(read(other.clone()), route, "{other}");
        }
        let toml = "router = \"arrow\"\nmodules = [\"a-*\"]\nadapters = { x = 0.5, y = 1.0 }\n\
            params = { top_k = 2, soft = true }\n";
        let mut route_of_toml: RouteSpec = toml::from_str(toml).unwrap();
        route_of_toml.router.as_mut().unwrap().params.0.reverse();
        let sorted = |mut route: RouteSpec| {
            let params = &mut route.router.as_mut().unwrap().params.0;
            params.sort_by(|a, b| a.0.cmp(&b.0));
            route
        };
        assert_eq!(sorted(route_of_toml), sorted(route));
    }

    #[test]
    fn missing_fields_stay_missing() {
        assert_eq!(read(json!({})), RouteSpec::default());
        assert_eq!(read(json!({"router": null, "modules": []})), RouteSpec::default());
        assert_eq!(serde_json::to_value(RouteSpec::default()).unwrap(), json!({}));
        let named = read(json!({"router": "arrow", "adapters": []}));
        assert_eq!(
            serde_json::to_value(&named).unwrap(),
            json!({"router": "arrow", "adapters": []})
        );
        let none = read(json!({"router": "none"}));
        assert_eq!(none.deciding_router(), None);
        assert_eq!(none.check(), Ok(()));
    }

    #[test]
    fn holders_refuse_unknown_keys_and_keep_the_rest() {
        let arm = json!({"name": "a", "router": "arrow"});
        let read: Arm = serde_json::from_value(arm.clone()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), arm);
        for (key, value) in [("rooter", json!("x")), ("weight", json!(1))] {
            let mut wrong = arm.clone();
            wrong[key] = value;
            let error = serde_json::from_value::<Arm>(wrong).unwrap_err().to_string();
            assert!(error.contains(&format!("unknown field `{key}`")), "{error}");
        }
    }

    #[test]
    fn wrong_values_are_named() {
        for (value, words) in [
            (json!({"router": 5}), "expected a router's name or an object with `name`"),
            (json!({"router": {"params": {}}}), "missing field `name`"),
            (json!({"router": {"name": "a", "topk": 2}}), "unknown field `topk`"),
            (json!({"router": {"name": "a", "params": {"k": []}}}), "expected a flag, a number"),
            (json!({"router": {"name": "a", "params": {"k": null}}}), "expected a flag, a number"),
            (json!({"router": {"name": "a", "params": 3}}), "expected parameters by name"),
            (json!({"router": "a", "params": {"k": {}}}), "expected a flag, a number"),
            (json!({"adapters": {"x": "1"}}), "invalid type: string \"1\""),
            (json!({"adapters": [{"weight": 1}]}), "missing field `name`"),
            (json!({"adapters": [{"name": "x", "wieght": 1}]}), "unknown field `wieght`"),
            (json!({"adapters": 1}), "expected a list of adapters"),
        ] {
            let error = serde_json::from_value::<RouteSpec>(value).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        for (value, words) in [
            (json!({"modules": ["a"]}), "need a `router`"),
            (json!({"router": {"name": "none", "params": {"k": 1}}}), "`router` is `none`, which"),
            (json!({"adapters": [{"name": "x"}, {"name": "x"}]}), "`adapters` names `x` twice"),
        ] {
            let error = read(value).check().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
