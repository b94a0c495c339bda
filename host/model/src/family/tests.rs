//! Configurations of families: values that are refused, and the variation points of those that are
//! not.

use super::*;
use serde_json::json;

fn base() -> Json {
    json!({"model_type": "llama", "vocab_size": 32, "hidden_size": 64, "intermediate_size": 96,
           "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
           "eos_token_id": [1, 2]})
}

fn with(key: &str, value: Json) -> Result<ModelConfig, Error> {
    let mut config = base();
    config[key] = value;
    from_hugging_face(&config, None)
}

#[test]
fn both_layouts_of_the_rope_settings_agree() {
    let scaling = json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 32, "rope_type": "llama3"});
    let mut older = base();
    older["rope_theta"] = json!(5e5);
    older["rope_scaling"] = scaling.clone();
    let mut newer = base();
    newer["rope_parameters"] = scaling;
    newer["rope_parameters"]["rope_theta"] = json!(5e5);
    let older = from_hugging_face(&older, None).unwrap();
    assert_eq!(older, from_hugging_face(&newer, None).unwrap());
    assert_eq!(older.eos_tokens, [1, 2]);
    assert_eq!(older.head_dim, 16);
}

#[test]
fn windows_and_ropes_are_those_of_the_layers() {
    let mut config = base();
    config["model_type"] = json!("gemma3_text");
    config["num_hidden_layers"] = json!(4);
    config["sliding_window"] = json!(9);
    config["sliding_window_pattern"] = json!(3);
    config["query_pre_attn_scalar"] = json!(64);
    config["rope_scaling"] = json!({"rope_type": "linear", "factor": 8.0});
    let older = from_hugging_face(&config, None).unwrap();
    assert_eq!(older.windows, [Some(9), Some(9), None, Some(9)]);
    assert_eq!((older.attention_scale, older.embedding_scale, older.head_dim), (0.125, 8.0, 256));
    let local = older.local_rope.clone().unwrap();
    assert_eq!((local.theta, local.scaling), (1e4, RopeScaling::None));
    assert_eq!(
        (older.rope.theta, &older.rope.scaling),
        (1e6, &RopeScaling::Linear { factor: 8.0 })
    );
    config["layer_types"] =
        json!(["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]);
    config["rope_parameters"] = json!({
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}});
    assert_eq!(from_hugging_face(&config, None).unwrap(), older);
    config["layer_types"][0] = json!("chunked_attention");
    let refused = from_hugging_face(&config, None).unwrap_err().to_string();
    assert!(refused.contains("chunked_attention"), "{refused}");
}

#[test]
fn a_window_is_there_where_the_family_has_one() {
    let windows = |family: &str, more: Json| {
        let mut config = base();
        config["model_type"] = json!(family);
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        from_hugging_face(&config, None).unwrap().windows
    };
    assert_eq!(windows("mistral", json!({})), [Some(4096); 2]);
    assert_eq!(windows("mistral", json!({"sliding_window": null})), [None; 2]);
    assert_eq!(windows("qwen2", json!({"sliding_window": 8})), [None; 2]);
    let some = json!({"sliding_window": 8, "use_sliding_window": true, "max_window_layers": 1});
    assert_eq!(windows("qwen3", some), [None, Some(8)]);
}

#[test]
fn what_is_not_said_is_what_the_family_takes() {
    let mut config = base();
    config["model_type"] = json!("mixtral");
    assert_eq!(from_hugging_face(&config, None).unwrap().rope.theta, 1e6);
    assert_eq!(from_hugging_face(&base(), None).unwrap().rope.theta, 1e4);
    config["model_type"] = json!("gemma3_text");
    config["attention_bias"] = json!(true);
    let biases = from_hugging_face(&config, None).unwrap().biases;
    assert!(biases.query_key_value && biases.attention_output);
    config["model_type"] = json!("mistral");
    config["layer_types"] = json!(["sliding_attention", "full_attention"]);
    assert_eq!(from_hugging_face(&config, None).unwrap().windows, [Some(4096), None]);
}

#[test]
fn values_of_another_type_are_refused_by_name() {
    for (key, value) in [
        ("rope_theta", json!("1e6")),
        ("rms_norm_eps", json!("1e-2")),
        ("hidden_act", json!(3)),
        ("tie_word_embeddings", json!(1)),
        ("attention_bias", json!("true")),
        ("rope_scaling", json!("linear")),
        ("layer_types", json!("sliding")),
    ] {
        let refused = with(key, value).unwrap_err().to_string();
        assert!(refused.contains(key), "{refused}");
    }
    let refused = with("rope_scaling", json!({"type": "linear", "factor": 0})).unwrap_err();
    assert!(refused.to_string().contains("rope factor `0`"), "{refused}");
    // As the 32-bit float that divides, it is 0 as well.
    let refused = with("rope_scaling", json!({"type": "linear", "factor": 1e-50})).unwrap_err();
    assert!(refused.to_string().contains("rope factor `0."), "{refused}");
}

#[test]
fn what_is_not_implemented_is_refused_by_name() {
    for (key, value, named) in [
        ("model_type", json!("gpt2"), "gpt2"),
        ("final_logit_softcapping", json!(30.0), "final_logit_softcapping"),
        ("hidden_act", json!("gelu"), "gelu"),
        ("rope_scaling", json!({"type": "yarn"}), "yarn"),
        ("num_key_value_heads", json!(3), "num_key_value_heads"),
        ("hidden_size", json!("wide"), "hidden_size"),
        ("num_hidden_layers", json!(1_u64 << 60), "num_hidden_layers"),
        ("quantization_config", json!({"quant_method": "awq"}), "awq"),
    ] {
        let message = with(key, value).unwrap_err().to_string();
        assert!(message.contains(named), "{message}");
    }
}
