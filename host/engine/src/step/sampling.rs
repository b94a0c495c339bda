//! Sampling: penalties and cuts on a row of logits, and the draw of a token.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::request::{Logprob, SamplingParams};

/// Candidates looked at first when the vocabulary must be cut; four times as many until the mass
/// suffices.
const FIRST_CANDIDATES: usize = 256;

/// The random stream and the token counts of one request.
#[derive(Debug)]
pub(crate) struct Sampler {
    /// The request's parameters.
    params: SamplingParams,
    /// The stream, seeded by the request: other requests of a step do not move it.
    random: ChaCha8Rng,
    /// Counts of the prompt's tokens, for the repetition penalty; empty without one.
    prompt: BTreeMap<u32, u32>,
    /// Counts of generated tokens.
    output: BTreeMap<u32, u32>,
    /// The output in its order, in which bad words are looked for; empty without any.
    history: Vec<u32>,
}

impl Sampler {
    /// The state before the first token; `prompt` is without placeholders.
    pub(crate) fn new(params: SamplingParams, prompt: &[u32]) -> Self {
        let mut counts = BTreeMap::new();
        if params.repetition_penalty != 1.0 {
            prompt.iter().for_each(|&token| *counts.entry(token).or_default() += 1);
        }
        let random = ChaCha8Rng::seed_from_u64(params.seed);
        Self { params, random, prompt: counts, output: BTreeMap::new(), history: Vec::new() }
    }

    /// Chooses a token from the logits, `[vocab_size]`, which it changes, and counts it as output.
    /// The log-probability is that before any change. `None` where no token may be chosen: the
    /// request leaves none, or the logits are no numbers.
    pub(crate) fn sample(&mut self, logits: &mut [f32]) -> Option<(u32, Option<Logprob>)> {
        let logprobs = self.params.logprobs.map(|top| Logprobs::new(logits, top));
        self.adjust(logits);
        // A maximum passes over what is no number, so that one alone would go unseen.
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if max == f32::NEG_INFINITY || logits.iter().any(|logit| logit.is_nan()) {
            return None;
        }
        let token = if self.params.temperature <= 0.0 { argmax(logits) } else { self.draw(logits) };
        *self.output.entry(token).or_default() += 1;
        if !self.params.bad_words.is_empty() {
            self.history.push(token);
        }
        Some((token, logprobs.map(|logprobs| logprobs.of(token))))
    }

    /// Changes the logits: allowed tokens, bias, penalties, bad words, and stop tokens that come
    /// too early, in this order.
    fn adjust(&self, logits: &mut [f32]) {
        let params = &self.params;
        if !params.allowed_tokens.is_empty() {
            let allowed = params.allowed_tokens.iter();
            let kept: Vec<(u32, f32)> =
                allowed.filter_map(|&token| Some((token, *logits.get(token as usize)?))).collect();
            logits.fill(f32::NEG_INFINITY);
            kept.into_iter().for_each(|(token, logit)| logits[token as usize] = logit);
        }
        let mut at = |token: u32, change: &dyn Fn(f32) -> f32| {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = change(*logit);
            }
        };
        params.logit_bias.iter().for_each(|&(token, bias)| at(token, &|logit| logit + bias));
        if params.repetition_penalty != 1.0 {
            let penalty = params.repetition_penalty;
            let new = self.output.keys().filter(|token| !self.prompt.contains_key(token));
            for &token in self.prompt.keys().chain(new) {
                at(token, &|logit| if logit > 0.0 { logit / penalty } else { logit * penalty });
            }
        }
        for (&token, &count) in &self.output {
            let penalty = params.presence_penalty + params.frequency_penalty * count as f32;
            at(token, &|logit| logit - penalty);
        }
        for word in &params.bad_words {
            if let Some((&last, before)) = word.split_last()
                && self.history.ends_with(before)
            {
                at(last, &|_| f32::NEG_INFINITY);
            }
        }
        let generated: u32 = self.output.values().sum();
        if (generated as usize) < params.min_tokens {
            params.stop_tokens.iter().for_each(|&token| at(token, &|_| f32::NEG_INFINITY));
        }
    }

    /// Draws from softmax(logits / temperature) cut by top-k, min-p and top-p, in this order. Every
    /// token takes one random number, whatever the cuts.
    fn draw(&mut self, logits: &mut [f32]) -> u32 {
        let params = &self.params;
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let inverse = 1.0 / params.temperature;
        let weight = |logit: f32| ((logit - max) * inverse).exp();
        let whole = params.top_k == 0 && params.top_p >= 1.0 && params.min_p <= 0.0;
        if whole || !max.is_finite() {
            let total: f32 = logits.iter().map(|&logit| weight(logit)).sum();
            let point = self.random.random::<f32>() * total;
            let weights = (0..).zip(logits.iter().map(|&logit| weight(logit)));
            return pick(point, weights).unwrap_or_else(|| argmax(logits));
        }
        let mut kept = self.cut(logits, weight);
        let total: f32 = kept.iter().map(|(_, weight)| weight).sum();
        let point = self.random.random::<f32>() * total;
        let last = kept.pop();
        pick(point, kept.into_iter().chain(last)).unwrap_or_else(|| argmax(logits))
    }

    /// The tokens that survive the cuts, most likely first, with their weights: `weight` is
    /// exp((logit − max) / T), so the most likely token has 1.
    ///
    /// The largest logits are selected and sorted alone, more of them while the cuts are not met.
    /// Top-p counts the mass of what top-k and min-p leave.
    fn cut(&self, logits: &[f32], weight: impl Fn(f32) -> f32) -> Vec<(u32, f32)> {
        let params = &self.params;
        let total: f32 = logits.iter().map(|&logit| weight(logit)).sum();
        let limit = if params.top_k == 0 { logits.len() } else { params.top_k.min(logits.len()) };
        let mut count = FIRST_CANDIDATES.min(limit);
        loop {
            let mut kept: Vec<(u32, f32)> = best(logits, count)
                .into_iter()
                .map(|(token, logit)| (token, weight(logit)))
                .collect();
            kept.retain(|(_, weight)| *weight >= params.min_p);
            let cut_by_min_p = kept.len() < count;
            let base = if params.top_k == 0 && params.min_p <= 0.0 {
                total
            } else if count == limit || cut_by_min_p {
                kept.iter().map(|(_, weight)| weight).sum()
            } else {
                f32::INFINITY
            };
            let mut mass = 0.0;
            let enough = kept.iter().position(|(_, weight)| {
                mass += weight;
                mass >= params.top_p * base
            });
            if let Some(position) = enough {
                kept.truncate(position + 1);
                return kept;
            }
            if count == limit || cut_by_min_p {
                return kept;
            }
            count = (count * 4).min(limit);
        }
    }
}

/// The `count` largest logits, best first; the lower token first on ties. Linear in the vocabulary,
/// plus a sort of those.
fn best(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    if count < all.len() && count > 0 {
        all.select_nth_unstable_by(count - 1, order);
    }
    all.truncate(count);
    all.sort_unstable_by(order);
    all
}

/// The token at which the running sum of weights exceeds `point`, or the last one with a weight
/// where rounding leaves the sum below. `None` where no weight is above 0.
fn pick(point: f32, weights: impl Iterator<Item = (u32, f32)>) -> Option<u32> {
    let mut sum = 0.0;
    let mut last = None;
    for (token, weight) in weights {
        sum += weight;
        if weight > 0.0 {
            last = Some(token);
            if sum > point {
                break;
            }
        }
    }
    last
}

/// The token with the largest logit, the lowest one on ties.
fn argmax(logits: &[f32]) -> u32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&logit| logit == max).unwrap_or(0) as u32
}

/// Log-probabilities of one row of logits.
pub(crate) struct Logprobs<'a> {
    /// The logits, before sampling changed them.
    logits: std::borrow::Cow<'a, [f32]>,
    /// ln Σ exp(logit), which turns logits into log-probabilities.
    normaliser: f32,
    /// The most likely tokens with their log-probabilities, best first.
    top: Vec<(u32, f32)>,
}

impl Logprobs<'static> {
    /// The log-softmax of a row, with its `top` most likely tokens. A copy is made, as sampling
    /// changes the logits.
    pub(crate) fn new(logits: &[f32], top: usize) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
        let normaliser = max + sum.ln() as f32;
        let top = best(logits, top).into_iter().map(|(t, logit)| (t, logit - normaliser)).collect();
        Self { logits: logits.to_vec().into(), normaliser, top }
    }

    /// The log-probability of a token, and its rank from 1. The rank costs a pass over the
    /// vocabulary.
    pub(crate) fn of(self, token: u32) -> Logprob {
        let logit = self.logits[token as usize];
        let rank = self.logits.iter().filter(|&&other| other >= logit).count();
        Logprob { value: logit - self.normaliser, rank, top: self.top }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(params: SamplingParams, logits: &[f32]) -> Vec<u32> {
        let mut sampler = Sampler::new(SamplingParams { seed: 7, ..params }, &[]);
        let mut tokens: Vec<u32> =
            (0..400).map(|_| sampler.sample(&mut logits.to_vec()).unwrap().0).collect();
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }

    #[test]
    fn cuts_keep_exactly_the_right_tokens() {
        // Probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625.
        let logits: Vec<f32> = [0.5_f32, 0.25, 0.125, 0.0625, 0.0625].map(f32::ln).to_vec();
        let plain = SamplingParams::default();
        assert_eq!(draw(plain.clone(), &logits), [0, 1, 2, 3, 4]);
        assert_eq!(draw(SamplingParams { top_k: 2, ..plain.clone() }, &logits), [0, 1]);
        assert_eq!(draw(SamplingParams { top_p: 0.7, ..plain.clone() }, &logits), [0, 1]);
        assert_eq!(draw(SamplingParams { min_p: 0.2, ..plain.clone() }, &logits), [0, 1, 2]);
        assert_eq!(draw(SamplingParams { temperature: 0.0, ..plain.clone() }, &logits), [0]);
        // Of the top three, 0.875 in all, top-p 0.6 keeps 0.525: the first token has 0.5, so two stay.
        assert_eq!(draw(SamplingParams { top_k: 3, top_p: 0.6, ..plain.clone() }, &logits), [0, 1]);
        let biased = SamplingParams { logit_bias: vec![(4, 100.0)], ..plain };
        assert_eq!(draw(biased, &logits), [4]);
    }

    #[test]
    fn only_allowed_tokens_are_chosen_and_bad_words_are_not_completed() {
        let logits = [3.0, 2.0, 1.0, 0.0];
        let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let allowed = SamplingParams { allowed_tokens: vec![2, 3, 900], ..greedy.clone() };
        assert_eq!(Sampler::new(allowed, &[]).sample(&mut logits.clone()).unwrap().0, 2);
        let bad = SamplingParams { bad_words: vec![vec![0, 0], vec![1]], ..greedy };
        let mut sampler = Sampler::new(bad, &[]);
        let tokens = [0, 0, 0].map(|_| sampler.sample(&mut logits.clone()).unwrap().0);
        // Never 1; 0 not after 0.
        assert_eq!(tokens, [0, 2, 0]);
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let logits: Vec<f32> = [0.5_f32, 0.3, 0.2].map(f32::ln).to_vec();
        let mut sampler = Sampler::new(SamplingParams::default(), &[]);
        let mut counts = [0_u32; 3];
        for _ in 0..20_000 {
            counts[sampler.sample(&mut logits.clone()).unwrap().0 as usize] += 1;
        }
        for (count, expected) in counts.iter().zip([0.5, 0.3, 0.2]) {
            assert!((f64::from(*count) / 20_000.0 - expected).abs() < 0.02);
        }
    }

    #[test]
    fn penalties_discourage_repeats() {
        let params = SamplingParams {
            temperature: 0.0,
            repetition_penalty: 2.0,
            frequency_penalty: 0.5,
            ..SamplingParams::default()
        };
        let mut sampler = Sampler::new(params, &[0]);
        assert_eq!(sampler.sample(&mut [3.0, 2.0, 0.0]).unwrap().0, 1);
        assert_eq!(sampler.sample(&mut [3.0, 2.0, 0.0]).unwrap().0, 0);
    }

    #[test]
    fn logprobs_are_normalised() {
        let logprob = Logprobs::new(&[1.0, 2.0, 3.0], 2).of(0);
        let sum: f32 = [1.0_f32, 2.0, 3.0].iter().map(|logit| logit.exp()).sum();
        assert!((logprob.value - (1.0 - sum.ln())).abs() < 1e-6);
        assert_eq!(logprob.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [2, 1]);
    }
}
