//! The server's own measurements of a request, under the names that experiments declare.

use std::collections::BTreeMap;

use polyskill_engine::{Composition, FinishReason, Finished};
use polyskill_experiment::Declaration;
use polyskill_experiment::totals::Outcome;

/// The measurements of one request.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Its counters: fallen back, failed, or neither.
    pub outcome: Outcome,
    /// Values by metric; a metric that does not apply is missing.
    values: BTreeMap<String, f64>,
}

/// The names with their meaning; `module_share.NAME` is the mean weight of a module per token and
/// site.
pub const MEASURED: [(&str, &str); 13] = [
    ("ttft_ms", "milliseconds from the request to its first token"),
    ("inter_token_ms", "milliseconds between its tokens, on average"),
    ("queue_ms", "milliseconds that it waited"),
    ("prompt_tokens", "tokens of the prompt"),
    ("completion_tokens", "tokens that were generated"),
    (
        "computed_tokens",
        "tokens that were computed: those of the prompt that were not cached, and the answer's",
    ),
    ("fault", "1 where it failed"),
    ("fallback", "1 where the base answered for the router"),
    ("fallback_rows", "rows that the router left undecided"),
    ("routing_entropy", "entropy of the modules' shares, in nats"),
    ("agreement", "of a decision shadow: the part of decisions with the same strongest module"),
    ("overlap", "of a decision shadow: the weight given to the same modules, as a part of all"),
    (REFERENCE, "mean log-probability per token of the request's `reference`"),
];

/// True where the server measures a metric of this name itself, so that feedback has no say in it.
pub(super) fn is_measured(name: &str) -> bool {
    name.starts_with(SHARE) || MEASURED.iter().any(|(known, _)| *known == name)
}

/// The name of the log-probability of a given reference, in nats per token.
pub const REFERENCE: &str = "reference_logprob";

/// Prefix of a module's share; the module's name follows.
const SHARE: &str = "module_share.";

impl Measured {
    /// The measurements of a request that the engine has ended after `seconds`. Times to the first
    /// token and between tokens are missing where there are no such tokens.
    pub fn of(composition: &Composition, finished: &Finished, seconds: f64) -> Self {
        let fault = matches!(finished.reason, FinishReason::Error(_));
        let fallback = composition.fallback().is_some()
            || (finished.fallback_rows > 0 && finished.module_share.is_empty());
        let mut values = BTreeMap::new();
        let mut put = |name: &str, value: f64| {
            values.insert(name.to_owned(), value);
        };
        if let Some(first) = finished.time_to_first_token {
            let first = first.as_secs_f64();
            put("ttft_ms", first * 1e3);
            if finished.completion_tokens > 1 {
                let between = (seconds - first).max(0.0) / (finished.completion_tokens - 1) as f64;
                put("inter_token_ms", between * 1e3);
            }
        }
        put("queue_ms", finished.queue_time.as_secs_f64() * 1e3);
        put("prompt_tokens", finished.prompt_tokens as f64);
        put("completion_tokens", finished.completion_tokens as f64);
        let computed = finished.prompt_tokens.saturating_sub(finished.cached_tokens);
        put("computed_tokens", (computed + finished.completion_tokens) as f64);
        put("fault", f64::from(u8::from(fault)));
        put("fallback", f64::from(u8::from(fallback)));
        put("fallback_rows", finished.fallback_rows as f64);
        put("routing_entropy", entropy(&finished.module_share));
        if let Some(agreement) = finished.agreement.filter(|agreement| agreement.decisions > 0) {
            let decisions = agreement.decisions as f64;
            put("agreement", agreement.same_best as f64 / decisions);
            put("overlap", agreement.overlap / decisions);
        }
        for &(module, share) in &finished.module_share {
            if let Some(lease) = composition.modules().get(module as usize) {
                put(&format!("{SHARE}{}", lease.name), share);
            }
        }
        Self { outcome: Outcome { fallback, fault }, values }
    }

    /// True where a challenger's decisions were compared with the request's.
    pub fn is_compared(&self) -> bool {
        self.values.contains_key("agreement")
    }

    /// The control's part of a comparison: it agrees with itself.
    pub fn of_control(&self) -> Self {
        let mut own = self.clone();
        own.put("agreement", 1.0);
        own.put("overlap", 1.0);
        own
    }

    /// The challenger's part of a comparison: how far it decided alike. It served nothing, so that
    /// all other values are the control's alone.
    pub fn of_challenger(&self) -> Self {
        let mut values = self.values.clone();
        values.retain(|name, _| name == "agreement" || name == "overlap");
        Self { outcome: Outcome::default(), values }
    }

    /// The measurements of a request that no composition could be made for: a fault and a fallback.
    pub fn fault() -> Self {
        let values = BTreeMap::from([("fault".to_owned(), 1.0)]);
        Self { outcome: Outcome { fallback: true, fault: true }, values }
    }

    /// Adds a value, in place of one under this name.
    pub fn put(&mut self, name: &str, value: f64) {
        self.values.insert(name.to_owned(), value);
    }

    /// The values that an experiment measures and accepts. A module that was never picked counts
    /// with a share of 0; other values that are missing are not observed.
    pub(super) fn observations(&self, declaration: &Declaration) -> Vec<(String, f64)> {
        let value = |name: &str| {
            let none = name.starts_with(SHARE).then_some(0.0);
            self.values.get(name).copied().or(none)
        };
        let metrics = declaration.metrics.iter();
        let observed = metrics.filter_map(|metric| {
            let value = value(&metric.name).filter(|value| metric.accepts(*value))?;
            Some((metric.name.clone(), value))
        });
        observed.collect()
    }
}

/// −Σ p·ln p over shares as parts of their sum, in nats. Negative shares count as 0, and no shares
/// have an entropy of 0.
fn entropy(shares: &[(u32, f64)]) -> f64 {
    let sum: f64 = shares.iter().map(|(_, share)| share.max(0.0)).sum();
    let parts = shares.iter().map(|(_, share)| share.max(0.0) / sum).filter(|part| *part > 0.0);
    -parts.map(|part| part * part.ln()).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_is_that_of_the_parts() {
        assert_eq!(entropy(&[]), 0.0);
        assert_eq!(entropy(&[(0, 0.7)]), 0.0);
        assert!((entropy(&[(0, 0.5), (3, 0.5), (4, 0.0)]) - 2.0_f64.ln()).abs() < 1e-12);
    }
}
