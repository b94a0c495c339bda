//! What a request asks for, and how it is refused.

use std::sync::Arc;

use polyskill_adapters::Snapshot;
use polyskill_sdk::{ParameterError, Parameters};

use super::versions::MAX_CHAIN;
use crate::compose::composition::NamedModule;

/// Largest weight of a module in a request; far beyond it, hidden states overflow.
pub const MAX_WEIGHT: f32 = 1e3;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Selection {
    /// The base model alone.
    Base,
    /// An exact weighted sum of modules by name.
    Weighted(Vec<(String, f32)>),
    /// A router decides.
    Routed(RouterRequest),
}

/// What a request asks of a router.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouterRequest {
    /// Name of the router, or of several in a chain: `retrieval+arrow`.
    pub router: String,
    /// Parameters of the request, over the configured ones. In a chain, `retrieval.k` is for the
    /// router of that name, and a plain name for the last.
    pub parameters: Parameters,
    /// Names, globs (`*`) or `tag:...` of the modules that may be picked; empty means all.
    pub modules: Vec<String>,
    /// Modules by name and weight that act on every row, whatever the router picks. They are no candidates.
    pub always_on: Vec<(String, f32)>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// The last user message.
    pub text: Option<String>,
    /// Hash of the request's unit.
    pub bucket: u64,
}

/// Why a request cannot be composed; the caller's fault.
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
        /// What is loaded.
        loaded: Vec<String>,
    },
    /// No module matches.
    #[error("no loaded adapter matches {patterns:?}")]
    NoModules {
        /// The patterns of the request.
        patterns: Vec<String>,
    },
    /// A weight is not usable.
    #[error("the weight of adapter `{name}` is {weight}, expected -1000 to 1000")]
    BadWeight {
        /// The module.
        name: String,
        /// The weight.
        weight: f32,
    },
    /// A router parameter is not usable.
    #[error("router {0}")]
    Parameter(ParameterError),
    /// The chain is too long.
    #[error("a chain of {found} routers, at most {MAX_CHAIN} are allowed")]
    LongChain {
        /// Routers in it.
        found: usize,
    },
    /// A module that comes before the sequence, or says which experts are run, is there or not.
    #[error("adapter `{name}` acts as a whole or not at all: its weight is {weight}, expected 1")]
    PartialStart {
        /// The module.
        name: String,
        /// The weight.
        weight: f32,
    },
    /// The modules' weights cannot be had; not the caller's fault, unless they are too large together.
    #[error("the adapters of this request are not at hand: {0}")]
    Weights(polyskill_adapters::Error),
    /// A router is asked twice: it would see what it has decided already.
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
        /// Why.
        reason: String,
    },
}

/// Looks up modules by weight.
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

/// Indices of the modules that match any pattern, or of all without patterns, but for those that act beside
/// the router.
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

/// `*` stands for any run of characters.
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

/// A weight that would put a part of a prompt or prefix before the sequence, or apply a part of a policy.
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
