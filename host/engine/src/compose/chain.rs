//! Requests to the routers of a chain, and checks of their answers.

use std::sync::Arc;

use polyskill_adapters::{Generation, Kind};
use polyskill_sdk::{ParameterError, Parameters, Pick, Request};

use super::ask::Question;
use super::selection::{ComposeError, MAX_WEIGHT, RouterRequest};
use super::versions::Link;
use crate::compose::composition::RouterIdentity;
use crate::routers::health::OnFault;
use crate::routers::version::{Offered, RouterVersion};

/// Those of a question's candidates that a router may be offered by its settings, in the same
/// order.
pub(super) fn offered(question: &Question<'_>, version: &RouterVersion) -> Vec<u32> {
    let is_offered = |index: &u32| {
        let (_, module) = question.modules[*index as usize];
        match version.settings.offered {
            Offered::Any => true,
            Offered::LowRank => module.shape().is_low_rank(),
            Offered::Experts => module.kind() == Kind::Expert,
        }
    };
    question.candidates.iter().copied().filter(is_offered).collect()
}

/// Refuses parameters for routers that are not in the chain: `retrieval.k` needs a router
/// `retrieval` there. The part before the first dot is the router's name.
///
/// Plain names are not checked here; the router that gets them does it.
pub(super) fn check_prefixes(
    router_request: &RouterRequest,
    chain: &[Link],
) -> Result<(), ParameterError> {
    let known = |name: &str| chain.iter().any(|link| link.version.name == name);
    let stranger = |(name, _): &&(String, polyskill_sdk::Value)| {
        name.split_once('.').is_some_and(|(router, _)| !known(router))
    };
    let Some((name, _)) = router_request.parameters.0.iter().find(stranger) else { return Ok(()) };
    let routers: Vec<&str> = chain.iter().map(|link| link.version.name.as_str()).collect();
    let message = format!("found the prefix of another router, asked are: {}", routers.join(", "));
    Err(ParameterError { name: name.clone(), message })
}

/// A refused parameter as the request names it: with its router's prefix where it was given so.
pub(super) fn as_given(
    router_request: &RouterRequest,
    version: &RouterVersion,
    mut error: ParameterError,
) -> ParameterError {
    let prefixed = format!("{}.{}", version.name, error.name);
    if router_request.parameters.get(&prefixed).is_some() {
        error.name = prefixed;
    }
    error
}

/// The request to one router of a chain: the parameters under its own name without the prefix, and
/// if it is the last, the plain ones. Text, length of the prompt and bucket are the same for all.
pub(super) fn request_for(
    version: &RouterVersion,
    router_request: &RouterRequest,
    is_last: bool,
    candidates: &[u32],
) -> Request {
    let mut request = Request::for_candidates(candidates);
    let own = |(name, value): &(String, polyskill_sdk::Value)| match name.split_once('.') {
        Some((router, name)) if router == version.name => Some((name.to_owned(), value.clone())),
        None if is_last => Some((name.clone(), value.clone())),
        _ => None,
    };
    request.parameters = Parameters(router_request.parameters.0.iter().filter_map(own).collect());
    request.prompt_tokens = u32::try_from(router_request.prompt_tokens).unwrap_or(u32::MAX);
    request.text.clone_from(&router_request.text);
    request.bucket = router_request.bucket;
    request
}

/// The identity of a chain: its name as the request gave it, and the digest of the one version that
/// was asked, or a hash over the digests of several in their order.
pub(super) fn identity(name: &str, asked: &[Arc<RouterVersion>]) -> RouterIdentity {
    let digest = match asked {
        [one] => one.digest.clone(),
        several => {
            let parts: Vec<&[u8]> =
                several.iter().map(|version| version.digest.as_bytes()).collect();
            Generation::of(&parts).to_string()
        }
    };
    RouterIdentity { name: name.to_owned(), digest }
}

/// Checks the candidates that a router leaves to the next one, and sorts them.
///
/// The reason is given where none is left, one is named twice, or one is no candidate. `candidates`
/// must be ascending.
pub(super) fn check_narrowed(
    mut narrowed: Vec<u32>,
    candidates: &[u32],
) -> Result<Vec<u32>, String> {
    if narrowed.is_empty() {
        return Err("it narrowed the candidates to none".to_owned());
    }
    narrowed.sort_unstable();
    if let Some(pair) = narrowed.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("it narrowed to module {} twice", pair[0]));
    }
    match narrowed.iter().find(|module| candidates.binary_search(module).is_err()) {
        Some(module) => Err(format!("it narrowed to module {module}, which is no candidate")),
        None => Ok(narrowed),
    }
}

/// Checks a fixed mixture and turns indices of the library into positions among `candidates`, which
/// must be ascending. The picks come out in ascending order.
///
/// The reason is given for a module that is no candidate or is picked twice, and for a weight
/// beyond ±[`MAX_WEIGHT`] or not a number.
pub(super) fn check_picks(picks: &[Pick], candidates: &[u32]) -> Result<Vec<(u32, f32)>, String> {
    let mut checked: Vec<(u32, f32)> = Vec::with_capacity(picks.len());
    for (at, pick) in picks.iter().enumerate() {
        let Ok(index) = candidates.binary_search(&pick.module) else {
            return Err(format!("pick {at} names module {}, which is no candidate", pick.module));
        };
        if !(-MAX_WEIGHT..=MAX_WEIGHT).contains(&pick.weight) {
            return Err(format!(
                "pick {at} has the weight {}, expected -{MAX_WEIGHT} to {MAX_WEIGHT}",
                pick.weight
            ));
        }
        if checked.iter().any(|(known, _)| *known == index as u32) {
            return Err(format!("pick {at} names module {} a second time", pick.module));
        }
        checked.push((index as u32, pick.weight));
    }
    // In ascending order, as a program's picks are: the sum's order is part of the result, and the
    // first pick gives a merge its scale.
    checked.sort_unstable_by_key(|(index, _)| *index);
    Ok(checked)
}

/// Counts an answer that is not usable. Where the request gave parameters or patterns of its own,
/// these may be the reason, and no client may take a router from all others: then the answer is
/// counted and logged, but brings no quarantine nearer.
pub(super) fn count(version: &RouterVersion, router_request: &RouterRequest, reason: &str) {
    let asks = !router_request.parameters.0.is_empty() || !router_request.modules.is_empty();
    match asks {
        true => version.count_unusable(reason),
        false => version.count_fault(reason),
    }
}

/// The error of a request whose router failed, where the policy is to fail the request; otherwise
/// `Ok`, and the caller falls back.
pub(super) fn refused(version: &RouterVersion, reason: &str) -> Result<(), ComposeError> {
    if version.health.policy().on_fault != OnFault::FailRequest {
        return Ok(());
    }
    Err(ComposeError::RouterFailed { router: version.name.clone(), reason: reason.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_are_untrusted() {
        let pick = |module, weight| Pick { module, weight };
        assert_eq!(check_picks(&[pick(5, 0.5)], &[2, 5]), Ok(vec![(1, 0.5)]));
        for bad in [
            vec![pick(3, 1.0)],
            vec![pick(5, f32::NAN)],
            vec![pick(5, 3e38)],
            vec![pick(5, 1.0), pick(5, 1.0)],
        ] {
            assert!(check_picks(&bad, &[2, 5]).is_err());
        }
    }
}
