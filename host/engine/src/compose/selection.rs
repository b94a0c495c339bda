//! The selection of a request: the base, a mixture or a router, and the ways in which it is
//! refused.

use std::sync::Arc;

use polyskill_adapters::Snapshot;
use polyskill_route::{RouteSpec, RouterSpec};
use polyskill_sdk::{ParameterError, Parameters};

use super::versions::MAX_CHAIN;
use crate::compose::composition::NamedModule;

/// Largest weight of a module in a request; far beyond it, hidden states overflow.
pub const MAX_WEIGHT: f32 = 1e3;

/// The modules that a request wants, or the router that picks them.
#[derive(Clone, Debug, PartialEq)]
pub enum Selection {
    /// The base model alone.
    Base,
    /// An exact weighted sum of modules by name. An empty one is the base.
    Weighted(Vec<(String, f32)>),
    /// A router, or a chain of them, decides.
    Routed(RouterRequest),
}

/// A request to a router: its name, its parameters, and the modules that it may pick from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouterRequest {
    /// Name of the router, or of several in a chain: `retrieval+arrow`.
    pub router: String,
    /// Parameters of the request, over the configured ones. In a chain, `retrieval.k` is for the
    /// router of that name, and a plain name for the last.
    pub parameters: Parameters,
    /// Names, globs (`*`) or `tag:...` of the modules that may be picked; empty means all.
    pub modules: Vec<String>,
    /// Modules by name and weight that act on every row, whatever the router picks. They are no
    /// candidates.
    pub always_on: Vec<(String, f32)>,
    /// Tokens of the prompt, which a router may plan by.
    pub prompt_tokens: usize,
    /// The last user message; `None` where there is none.
    pub text: Option<String>,
    /// Hash of the unit by which experiments are assigned, such as a user.
    pub bucket: u64,
}

impl Selection {
    /// Tells a router, if there is one, of the prompt: its tokens, the text that it may read, and
    /// the hash of the unit that asks.
    #[must_use]
    pub fn told(mut self, prompt_tokens: usize, text: Option<String>, bucket: u64) -> Self {
        if let Self::Routed(request) = &mut self {
            (request.prompt_tokens, request.text, request.bucket) = (prompt_tokens, text, bucket);
        }
        self
    }
}

impl From<&RouteSpec> for Selection {
    /// The selection that a route stands for. A router is not told of a prompt yet.
    fn from(route: &RouteSpec) -> Self {
        let adapters = route.adapters().iter();
        let adapters = adapters.map(|adapter| (adapter.name.clone(), adapter.weight)).collect();
        match route.deciding_router() {
            Some(RouterSpec { name, params, modules }) => Self::Routed(RouterRequest {
                router: name.clone(),
                parameters: params.clone(),
                modules: modules.clone(),
                always_on: adapters,
                ..RouterRequest::default()
            }),
            None if adapters.is_empty() => Self::Base,
            None => Self::Weighted(adapters),
        }
    }
}

impl From<RouterRequest> for RouteSpec {
    /// The route of a request to a router, without the prompt.
    fn from(RouterRequest { router, parameters, modules, always_on, .. }: RouterRequest) -> Self {
        let router = Some(RouterSpec { name: router, params: parameters, modules });
        let adapters = (!always_on.is_empty()).then(|| always_on.into_iter().collect());
        Self { router, adapters }
    }
}

/// A reason for which a request cannot be composed; the caller's fault, where it does not say
/// otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ComposeError {
    /// No such module.
    #[error("the adapter `{name}` does not exist")]
    UnknownModule {
        /// The name.
        name: String,
    },
    /// No such router.
    #[error("the router `{name}` does not exist; loaded are: {}", loaded.join(", "))]
    UnknownRouter {
        /// The name.
        name: String,
        /// The routers that are loaded, in alphabetical order.
        loaded: Vec<String>,
    },
    /// No loaded module matches the patterns, and no router chose experts.
    #[error("no loaded adapter matches {patterns:?}")]
    NoModules {
        /// The patterns of the request.
        patterns: Vec<String>,
    },
    /// A weight is beyond ±[`MAX_WEIGHT`], or not a number.
    #[error("the weight of adapter `{name}` is {weight}, expected -1000 to 1000")]
    BadWeight {
        /// The module.
        name: String,
        /// The weight.
        weight: f32,
    },
    /// A router parameter is refused: by the router, or for its prefix.
    #[error("router {0}")]
    Parameter(ParameterError),
    /// The chain names more routers than are allowed.
    #[error("a chain of {found} routers, at most {MAX_CHAIN} are allowed")]
    LongChain {
        /// Routers in it.
        found: usize,
    },
    /// A module that comes before the sequence, or chooses experts, acts as a whole or not at all.
    #[error("adapter `{name}` acts as a whole or not at all: its weight is {weight}, expected 1")]
    PartialStart {
        /// The module.
        name: String,
        /// The weight.
        weight: f32,
    },
    /// The modules' weights cannot be brought into memory; not the caller's fault, unless they are
    /// too large together.
    #[error("the adapters of this request are not at hand: {0}")]
    Weights(polyskill_adapters::Error),
    /// A chain names a router twice: it would see candidates that it has narrowed already.
    #[error("the chain `{chain}` names the router `{name}` twice, expected each name once")]
    RepeatedRouter {
        /// The chain.
        chain: String,
        /// The router.
        name: String,
    },
    /// The router failed, and its policy is to fail the request; not the caller's fault.
    #[error("the router `{router}` failed: {reason}")]
    RouterFailed {
        /// The router.
        router: String,
        /// The reason, in the router's or the host's words.
        reason: String,
    },
}

/// Looks up modules with weights, in the order of the request.
///
/// An error is a name that does not exist, or a weight that cannot be used with its module.
pub(super) fn named_modules(
    snapshot: &Snapshot,
    weights: &[(String, f32)],
) -> Result<Vec<(NamedModule, f32)>, ComposeError> {
    let lease = |(name, weight): &(String, f32)| {
        if !(-MAX_WEIGHT..=MAX_WEIGHT).contains(weight) {
            return Err(ComposeError::BadWeight { name: name.clone(), weight: *weight });
        }
        let (name, module) = snapshot
            .resolve(name)
            .ok_or_else(|| ComposeError::UnknownModule { name: name.clone() })?;
        let lease = NamedModule { name: name.to_owned(), module: Arc::clone(module) };
        match partial_start(&lease, *weight) {
            Some(error) => Err(error),
            None => Ok((lease, *weight)),
        }
    };
    weights.iter().map(lease).collect()
}

/// Indices of the modules that match any pattern, or of all without patterns, ascending. Modules
/// that are always on are left out. Cost: modules times patterns.
pub(super) fn candidates(
    snapshot: &Snapshot,
    patterns: &[String],
    beside: &[(NamedModule, f32)],
) -> Vec<u32> {
    let matches = |name: &str, tags: &[String]| {
        patterns.is_empty()
            || patterns.iter().any(|pattern| match pattern.strip_prefix("tag:") {
                Some(tag) => tags.iter().any(|found| found == tag),
                None => glob(pattern, name),
            })
    };
    (0..)
        .zip(snapshot.iter())
        .filter(|(_, (name, module))| matches(name, module.tags()))
        .filter(|(_, (name, _))| beside.iter().all(|(lease, _)| lease.name != *name))
        .map(|(index, _)| index)
        .collect()
}

/// True where a name matches a pattern, in which `*` stands for any run of characters.
fn glob(pattern: &str, name: &str) -> bool {
    let Some((prefix, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut left) = name.strip_prefix(prefix) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.ends_with(last)
}

/// The error of a weight other than 1 that would put a part of a soft prompt or prefix before the
/// sequence, or apply a part of an expert policy.
pub(super) fn partial_start(lease: &NamedModule, weight: f32) -> Option<ComposeError> {
    let shape = lease.module.shape();
    let whole = shape.num_prefix + shape.num_prompt > 0 || !shape.policy.is_empty();
    let partial = whole && weight != 1.0;
    partial.then(|| ComposeError::PartialStart { name: lease.name.clone(), weight })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, name, expected) in [
            ("*", "anything", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*c*e", "abcde", true),
            ("a*c", "abcd", false),
            ("abc", "abc", true),
            ("ab", "abc", false),
        ] {
            assert_eq!(glob(pattern, name), expected, "{pattern} {name}");
        }
    }
}
