//! The fields of a request that say how tokens are drawn, and which tokens may come.

use polyskill_engine::SamplingParams;

use super::error::ApiError;
use super::params::CommonParams;
use crate::service::Service;

/// Words that may not come, in one request.
const MAX_BAD_WORDS: usize = 64;
/// Bytes of one of them, without blanks before it.
const MAX_BAD_WORD_BYTES: usize = 256;

/// Stop tokens of one request: each is looked at for every token.
const MAX_STOP_TOKENS: usize = 4_096;

impl CommonParams {
    /// Checks and translates the sampling fields. An error names the field, its value and the
    /// range.
    ///
    /// The request's own stop tokens come first in `stop_tokens`, and the model's after them.
    /// Log-probabilities are left to the route.
    pub(crate) fn sampling(
        &self,
        service: &Service,
        max_tokens: usize,
    ) -> Result<SamplingParams, ApiError> {
        let range = |name: &str, value: Option<f32>, default: f32, low: f32, high: f32| match value
        {
            None => Ok(default),
            Some(value) if (low..=high).contains(&value) => Ok(value),
            Some(value) => {
                let message = format!("`{name}` is {value}, expected {low} to {high}");
                Err(ApiError::bad_request(message, Some(name)))
            }
        };
        let top_k = match self.top_k {
            None | Some(-1 | 0) => 0,
            Some(k) => usize::try_from(k).map_err(|_| {
                ApiError::bad_request(format!("`top_k` is {k}, expected -1 or more"), Some("top_k"))
            })?,
        };
        let mut stop_tokens = self.stop_token_ids.clone().unwrap_or_default();
        if stop_tokens.len() > MAX_STOP_TOKENS {
            let found = stop_tokens.len();
            let message = format!("`stop_token_ids` holds {found} ids, at most {MAX_STOP_TOKENS}");
            return Err(ApiError::bad_request(message, Some("stop_token_ids")));
        }
        if !self.ignore_eos.unwrap_or(false) {
            stop_tokens.extend(service.end_tokens());
        }
        let vocab_size = service.model.config().vocab_size;
        if let Some(id) = stop_tokens.iter().find(|&&id| id as usize >= vocab_size) {
            let message = format!("`stop_token_ids` holds {id}, expected ids below {vocab_size}");
            return Err(ApiError::bad_request(message, Some("stop_token_ids")));
        }
        self.check_min_tokens(max_tokens)?;
        let seed = self.seed.map_or_else(random_seed, |seed| seed as u64);
        Ok(SamplingParams {
            max_tokens,
            temperature: range("temperature", self.temperature, 1.0, 0.0, 100.0)?,
            top_p: range("top_p", self.top_p, 1.0, 0.0, 1.0)?,
            top_k,
            min_p: range("min_p", self.min_p, 0.0, 0.0, 1.0)?,
            repetition_penalty: range(
                "repetition_penalty",
                self.repetition_penalty,
                1.0,
                0.01,
                10.0,
            )?,
            presence_penalty: range("presence_penalty", self.presence_penalty, 0.0, -2.0, 2.0)?,
            frequency_penalty: range("frequency_penalty", self.frequency_penalty, 0.0, -2.0, 2.0)?,
            logit_bias: self.biases(vocab_size)?,
            allowed_tokens: self.allowed_tokens(vocab_size)?,
            bad_words: self.bad_words(service)?,
            stop_tokens,
            min_tokens: self.min_tokens.unwrap_or(0),
            seed,
            logprobs: None,
            prompt_logprobs: None,
            answer_from: None,
        })
    }

    /// Refuses a `min_tokens` that is more than `max_tokens`.
    pub(crate) fn check_min_tokens(&self, max_tokens: usize) -> Result<(), ApiError> {
        let Some(least) = self.min_tokens.filter(|&least| least > max_tokens) else {
            return Ok(());
        };
        let message =
            format!("`min_tokens` is {least}, but at most {max_tokens} tokens are to come");
        Err(ApiError::bad_request(message, Some("min_tokens")))
    }

    /// The pairs of `logit_bias`, with ids below `vocab_size`.
    fn biases(&self, vocab_size: usize) -> Result<Vec<(u32, f32)>, ApiError> {
        let parse = |(token, bias): (&String, &f32)| match token.parse::<u32>() {
            Ok(id) if bias.abs() <= 100.0 && (id as usize) < vocab_size => Ok((id, *bias)),
            _ => {
                let message = format!(
                    "`logit_bias` maps `{token}` to {bias}, expected ids of the vocabulary and -100 to 100"
                );
                Err(ApiError::bad_request(message, Some("logit_bias")))
            }
        };
        self.logit_bias.iter().flatten().map(parse).collect()
    }

    /// The tokens that may come; empty allows all. An empty list in the request is refused, as it
    /// allows no answer.
    fn allowed_tokens(&self, vocab_size: usize) -> Result<Vec<u32>, ApiError> {
        let Some(tokens) = &self.allowed_token_ids else { return Ok(Vec::new()) };
        let refused =
            |message: String| Err(ApiError::bad_request(message, Some("allowed_token_ids")));
        if tokens.is_empty() {
            return refused("`allowed_token_ids` is empty, which allows no answer".to_owned());
        }
        match tokens.iter().find(|&&token| token as usize >= vocab_size) {
            Some(token) => refused(format!(
                "`allowed_token_ids` holds {token}, expected ids of the vocabulary of {vocab_size}"
            )),
            None => Ok(tokens.clone()),
        }
    }

    /// The token sequences of words that may not come, at the beginning of a text and behind a
    /// blank. A word can be spelled by other tokens, and then it comes.
    fn bad_words(&self, service: &Service) -> Result<Vec<Vec<u32>>, ApiError> {
        let refused = |message: String| ApiError::bad_request(message, Some("bad_words"));
        let words = self.bad_words.as_deref().unwrap_or_default();
        if words.len() > MAX_BAD_WORDS {
            let found = words.len();
            return Err(refused(format!(
                "`bad_words` holds {found} words, expected at most {MAX_BAD_WORDS}"
            )));
        }
        let mut sequences: Vec<Vec<u32>> = Vec::new();
        for word in words {
            let word = word.trim_start();
            if word.is_empty() || word.len() > MAX_BAD_WORD_BYTES {
                return Err(refused(format!(
                    "`bad_words` holds a word of {} bytes, expected 1 to {MAX_BAD_WORD_BYTES}",
                    word.len()
                )));
            }
            let encode = |text: &str| service.tokenizer.encode_more(text);
            let plain = encode(word).map_err(|error| refused(error.to_string()))?;
            let behind_blank =
                encode(&format!(" {word}")).map_err(|error| refused(error.to_string()))?;
            // As vLLM: the form behind a blank counts where the blank is a part of its first token.
            let differs = behind_blank.first() != plain.first();
            if differs && behind_blank.len() == plain.len() {
                sequences.push(behind_blank);
            }
            sequences.push(plain);
        }
        sequences.retain(|sequence| !sequence.is_empty());
        Ok(sequences)
    }
}

/// A seed for a request without one.
fn random_seed() -> u64 {
    // The hasher's keys are random per process and differ per instance.
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0)
}
