//! Every field that OpenAI, vLLM, SGLang and llama.cpp have in their requests, and its treatment
//! here.
//!
//! A field that changes an answer is served, or refused by its name; none is passed over in
//! silence. Names that are in no list are accepted, as clients send many of their own.

use serde_json::Value as Json;

use super::body::Body;
use super::error::ApiError;

/// The treatment of a field that a client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// It does what its name says.
    Served,
    /// Refused, but for null and these values, which ask for nothing. Each is a JSON text.
    Refused(&'static [&'static str]),
    /// Accepted without effect, as it changes no answer by its definition. The text is the reason.
    NoEffect(&'static str),
}

use Treatment::{NoEffect, Refused, Served};

/// A field's name and its treatment.
pub type Field = (&'static str, Treatment);

/// Fields of chat and completions alike.
pub const COMMON: &[Field] = &[
    ("model", Served),
    ("frequency_penalty", Served),
    ("presence_penalty", Served),
    ("repetition_penalty", Served),
    ("logit_bias", Served),
    ("temperature", Served),
    ("top_p", Served),
    ("top_k", Served),
    ("min_p", Served),
    ("seed", Served),
    ("n", Served),
    ("stop", Served),
    ("stop_token_ids", Served),
    ("include_stop_str_in_output", Served),
    ("ignore_eos", Served),
    ("min_tokens", Served),
    ("max_tokens", Served),
    ("skip_special_tokens", Served),
    ("truncate_prompt_tokens", Served),
    ("truncation_side", Served),
    ("add_special_tokens", Served),
    ("allowed_token_ids", Served),
    ("bad_words", Served),
    ("prompt_logprobs", Served),
    ("stream", Served),
    ("stream_options", Served),
    ("return_token_ids", Served),
    ("return_tokens_as_token_ids", Served),
    ("cache_salt", Served),
    ("user", Served),
    ("spaces_between_special_tokens", Refused(&["true"])),
    ("logprob_token_ids", Refused(&["[]"])),
    ("logits_processors", Refused(&["[]"])),
    ("use_beam_search", Refused(&["false"])),
    ("best_of", Refused(&["1"])),
    ("early_stopping", Refused(&["false"])),
    ("response_format", Refused(&[r#"{"type":"text"}"#])),
    ("structured_outputs", Refused(&["{}"])),
    ("guided_json", Refused(&[])),
    ("guided_regex", Refused(&[])),
    ("guided_choice", Refused(&["[]"])),
    ("guided_grammar", Refused(&[])),
    ("guided_whitespace_pattern", Refused(&[])),
    (
        "guided_decoding_backend",
        NoEffect("it names the engine of a constraint, and constraints are refused"),
    ),
    ("thinking_token_budget", Refused(&["-1"])),
    ("repetition_detection", Refused(&[])),
    ("watermarking", Refused(&["false"])),
    ("return_weight_versions", Refused(&["false"])),
    ("kv_transfer_params", Refused(&["{}"])),
    ("ec_transfer_params", Refused(&["{}"])),
    ("vllm_xargs", Refused(&["{}"])),
    ("length_penalty", NoEffect("it ranks beams, and beam search is refused")),
    ("stream_interval", NoEffect("it says how many tokens share a chunk, not which")),
    ("routed_experts_prompt_start", NoEffect("it cuts a list that this server never returns")),
    ("return_token_offsets", NoEffect("vLLM reads it on its rendering routes alone")),
    ("return_mm_kwargs", NoEffect("vLLM reads it on its rendering routes alone")),
    ("mm_payload", NoEffect("vLLM reads it on its rendering routes alone")),
    ("request_id", NoEffect("it names the request in another server's log")),
    ("session_id", NoEffect("it steers a balancer")),
    ("priority", NoEffect("it orders waiting requests")),
];

/// Fields of chats alone.
pub const CHAT: &[Field] = &[
    ("messages", Served),
    ("logprobs", Served),
    ("top_logprobs", Served),
    ("max_completion_tokens", Served),
    ("add_generation_prompt", Served),
    ("continue_final_message", Served),
    ("chat_template_kwargs", Served),
    ("documents", Served),
    ("tools", Served),
    ("tool_choice", Refused(&["\"none\"", "\"auto\""])),
    ("reasoning_effort", Served),
    ("return_prompt_text", Served),
    ("echo", Refused(&["false"])),
    ("chat_template", Refused(&[])),
    ("media_io_kwargs", Refused(&["{}"])),
    ("mm_processor_kwargs", Refused(&["{}"])),
    ("functions", Refused(&["[]"])),
    ("function_call", Refused(&["\"none\""])),
    ("modalities", Refused(&["[\"text\"]"])),
    ("audio", Refused(&[])),
    ("web_search_options", Refused(&[])),
    ("moderation", Refused(&[])),
    ("verbosity", Refused(&["\"medium\""])),
    (
        "parallel_tool_calls",
        NoEffect("it bounds calls that are parsed, and calls stand in the text here"),
    ),
    ("include_reasoning", NoEffect("no reasoning is split from the text")),
    ("prediction", NoEffect("it makes an answer faster, not another one")),
    ("store", NoEffect("nothing is stored")),
    ("metadata", NoEffect("it labels what is stored")),
    ("safety_identifier", NoEffect("it names the client's user")),
    ("prompt_cache_key", NoEffect("it steers a cache, which changes no answer")),
    ("prompt_cache_options", NoEffect("it steers a cache, which changes no answer")),
    ("prompt_cache_retention", NoEffect("it steers a cache, which changes no answer")),
    ("service_tier", NoEffect("there is one tier")),
];

/// Fields of completions alone.
pub const COMPLETIONS: &[Field] = &[
    ("prompt", Served),
    ("echo", Served),
    ("logprobs", Served),
    ("suffix", Refused(&["\"\""])),
    ("prompt_embeds", Refused(&["[]"])),
    ("tools", Refused(&["[]"])),
];

/// Fields of `/tokenize`.
pub const TOKENIZE: &[Field] = &[
    ("model", Served),
    ("prompt", Served),
    ("messages", Served),
    ("add_generation_prompt", Served),
    ("continue_final_message", Served),
    ("add_special_tokens", Served),
    ("chat_template_kwargs", Served),
    ("documents", Served),
    ("tools", Served),
    ("return_token_strs", Served),
    ("chat_template", Refused(&[])),
    ("media_io_kwargs", Refused(&["{}"])),
    ("mm_processor_kwargs", Refused(&["{}"])),
];

/// Fields of `/detokenize`.
pub const DETOKENIZE: &[Field] = &[("model", Served), ("tokens", Served)];

/// Fields of SGLang and llama.cpp that vLLM does not have, and that clients of theirs send. They
/// are checked after the lists of the route, which hold where a name is in both.
pub const OTHERS: &[Field] = &[
    // SGLang
    ("custom_logit_processor", Refused(&[])),
    ("custom_params", Refused(&["{}"])),
    ("ebnf", Refused(&[])),
    ("regex", Refused(&[])),
    ("json_schema", Refused(&[])),
    ("input_ids", Refused(&["[]"])),
    ("images_config", Refused(&["{}"])),
    ("video_config", Refused(&["{}"])),
    ("max_dynamic_patch", Refused(&[])),
    ("min_dynamic_patch", Refused(&[])),
    ("use_audio_in_video", Refused(&["false"])),
    ("lora_path", Refused(&[])),
    ("no_stop_trim", Refused(&["false"])),
    ("stop_regex", Refused(&["[]", "\"\""])),
    ("reasoning", Refused(&[])),
    ("thinking", Refused(&[])),
    ("task", Refused(&[])),
    ("watermark", Refused(&["false"])),
    ("sampling_logprobs_mode", Refused(&[])),
    ("return_cached_tokens_details", Refused(&["false"])),
    ("return_flat_raw_output_top_logprobs", Refused(&["false"])),
    ("return_flat_raw_top_logprobs_b64", Refused(&["false"])),
    ("return_hidden_states", Refused(&["false"])),
    ("return_input_ids_in_sglext", Refused(&["false"])),
    ("return_meta_info", Refused(&["false"])),
    ("return_output_ids_in_sglext", Refused(&["false"])),
    ("return_prompt_token_ids", Refused(&["false"])),
    ("return_routed_experts", Refused(&["false"])),
    ("return_sampling_mask", Refused(&["false"])),
    ("return_spec_tokens_details", Refused(&["false"])),
    ("separate_reasoning", NoEffect("no reasoning is split from the text")),
    ("stream_reasoning", NoEffect("no reasoning is split from the text")),
    ("routed_experts_start_len", NoEffect("it cuts a list that this server never returns")),
    ("rid", NoEffect("it names the request in another server's log")),
    // llama.cpp; values that switch a setting off ask for nothing.
    ("adaptive_target", Refused(&["-1", "-1.0"])),
    ("adaptive_decay", NoEffect("it goes with `adaptive_target`, which is refused")),
    ("dry_multiplier", Refused(&["0", "0.0"])),
    ("dry_base", NoEffect("it goes with `dry_multiplier`, which is refused")),
    ("dry_allowed_length", NoEffect("it goes with `dry_multiplier`, which is refused")),
    ("dry_penalty_last_n", NoEffect("it goes with `dry_multiplier`, which is refused")),
    ("dry_sequence_breakers", NoEffect("it goes with `dry_multiplier`, which is refused")),
    ("dynatemp_range", Refused(&["0", "0.0"])),
    ("dynatemp_exponent", NoEffect("it goes with `dynatemp_range`, which is refused")),
    ("mirostat", Refused(&["0"])),
    ("mirostat_tau", NoEffect("it goes with `mirostat`, which is refused")),
    ("mirostat_eta", NoEffect("it goes with `mirostat`, which is refused")),
    ("repeat_penalty", Refused(&["1", "1.0"])),
    ("repeat_last_n", NoEffect("it goes with `repeat_penalty`, which is refused")),
    ("top_n_sigma", Refused(&["-1", "-1.0"])),
    ("typical_p", Refused(&["1", "1.0"])),
    ("xtc_probability", Refused(&["0", "0.0"])),
    ("xtc_threshold", NoEffect("it goes with `xtc_probability`, which is refused")),
    ("min_keep", Refused(&["0"])),
    ("samplers", Refused(&[])),
    ("grammar", Refused(&["\"\""])),
    ("grammar_lazy", NoEffect("it goes with `grammar`, which is refused")),
    ("grammar_triggers", NoEffect("it goes with `grammar`, which is refused")),
    ("grammar_type", NoEffect("it goes with `grammar`, which is refused")),
    ("preserved_tokens", Refused(&["[]"])),
    ("lora", Refused(&["[]"])),
    ("n_predict", Refused(&[])),
    ("n_cmpl", Refused(&["1"])),
    ("n_discard", NoEffect("contexts are never shifted")),
    ("n_keep", NoEffect("contexts are never shifted")),
    ("n_indent", Refused(&["0"])),
    ("n_probs", Refused(&["0"])),
    ("post_sampling_probs", Refused(&["false"])),
    ("t_max_predict_ms", Refused(&["0", "-1"])),
    ("generation_prompt", Refused(&["\"\""])),
    ("reasoning_format", Refused(&["\"none\"", "\"auto\""])),
    ("thinking_budget_tokens", Refused(&["-1"])),
    ("reasoning_budget_tokens", Refused(&["-1"])),
    ("reasoning_budget_message", NoEffect("it goes with a budget, which is refused")),
    ("reasoning_budget_start_tag", NoEffect("it goes with a budget, which is refused")),
    ("reasoning_budget_end_tag", NoEffect("it goes with a budget, which is refused")),
    ("response_fields", Refused(&["[]"])),
    ("return_progress", Refused(&["false"])),
    ("return_tokens", Refused(&["false"])),
    ("timings_per_token", Refused(&["false"])),
    ("verbose", Refused(&["false"])),
    ("parse_tool_calls", Refused(&["false"])),
    ("chat_format", NoEffect("it says how calls are parsed, and calls stand in the text here")),
    ("chat_parser", NoEffect("it says how calls are parsed, and calls stand in the text here")),
    ("backend_sampling", NoEffect("it says where tokens are chosen, not which")),
    ("n_cache_reuse", NoEffect("it steers a cache, which changes no answer")),
];

/// Refuses a body with a field that would change the answer and is not served. Of several lists
/// with a field the first counts. Values of served fields are checked elsewhere.
///
/// # Errors
/// 400 with the field's name.
pub(super) fn check(body: &Body, lists: &[&[Field]]) -> Result<(), ApiError> {
    for (name, value) in body.entries() {
        let field = lists.iter().flat_map(|list| *list).find(|(field, _)| *field == name);
        let Some((_, Refused(neutral))) = field else { continue };
        if !value.is_null() && !neutral.iter().any(|neutral| is(value, neutral)) {
            return Err(ApiError::bad_request(refusal(name, value, neutral), Some(name)));
        }
    }
    Ok(())
}

/// True for a value that equals the one of a JSON text. Numbers are compared by type too: `1` is
/// not `1.0`.
fn is(value: &Json, neutral: &str) -> bool {
    serde_json::from_str::<Json>(neutral).is_ok_and(|neutral| neutral == *value)
}

/// The message of a refused field, with at most 80 bytes of its value and the values that are
/// taken.
fn refusal(name: &str, value: &Json, neutral: &[&str]) -> String {
    let mut shown = value.to_string();
    if shown.len() > 80 {
        shown.truncate(shown.floor_char_boundary(80));
        shown.push_str("...");
    }
    match neutral {
        [] => format!("`{name}` is not supported"),
        values => {
            let values = values.join("` or `");
            format!("`{name}` `{shown}` is not supported, expected `{values}`")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_field_stands_twice_where_it_could_be_treated_twice() {
        for own in [CHAT, COMPLETIONS] {
            let mut names: Vec<&str> =
                [COMMON, own, OTHERS].into_iter().flatten().map(|(name, _)| *name).collect();
            let all = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), all);
        }
    }

    #[test]
    fn neutral_values_are_json() {
        for (name, treatment) in [COMMON, CHAT, COMPLETIONS, TOKENIZE, OTHERS].into_iter().flatten()
        {
            let Refused(values) = treatment else { continue };
            for value in *values {
                assert!(serde_json::from_str::<Json>(value).is_ok(), "{name}: {value}");
            }
        }
    }

    #[test]
    fn refusals_name_field_and_value() {
        let body = Body::parse(br#"{"mirostat": 2, "x_mine": 5}"#).unwrap();
        let error = check(&body, &[COMMON, OTHERS]).unwrap_err();
        let expected = "`mirostat` `2` is not supported, expected `0`";
        assert_eq!(error, ApiError::bad_request(expected, Some("mirostat")));
        let body = Body::parse(br#"{"mirostat": 0, "suffix": null, "grammar": ""}"#).unwrap();
        assert_eq!(check(&body, &[COMMON, COMPLETIONS, OTHERS]), Ok(()));
    }
}
