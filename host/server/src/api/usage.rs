//! The numbers of tokens that a reply reports.

use polyskill_engine::Finished;
use serde_json::{Value as Json, json};

/// The `usage` of a reply with `per_prompt` choices for each of its prompts. `finished` has the
/// choices with their numbers, in any order.
///
/// Each prompt counts once, by its first choice, however many choices answer it.
pub(super) fn of<'a>(
    finished: impl IntoIterator<Item = (usize, &'a Finished)>,
    per_prompt: usize,
) -> Json {
    let (mut prompt, mut cached, mut completion) = (0, 0, 0);
    for (choice, finished) in finished {
        if choice.is_multiple_of(per_prompt) {
            prompt += finished.prompt_tokens;
            cached += finished.cached_tokens;
        }
        completion += finished.completion_tokens;
    }
    let mut usage = so_far(prompt, completion);
    usage["prompt_tokens_details"] = json!({"cached_tokens": cached});
    usage
}

/// The `usage` of a chunk: its own prompt, and the tokens of its choice up to here.
pub(super) fn so_far(prompt: usize, completion: usize) -> Json {
    json!({"prompt_tokens": prompt, "completion_tokens": completion,
           "total_tokens": prompt + completion})
}
