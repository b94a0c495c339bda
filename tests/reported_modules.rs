//! Modules as PEFT, llama.cpp and others write them, once refused or served wrongly, and chats that templates ask more
//! for; with the right values.

use std::path::{Path, PathBuf};

use polyskill_adapters::library::Expected;
use polyskill_adapters::load_module;
use polyskill_engine::{EngineConfig, Selection};
use safetensors::tensor::{SafeTensors, serialize};
use serde_json::{Value as Json, json};

use crate::common::{
    Bench, fixtures, floats, golden, greedy, ids, list, model, read_json, text, weighted, worst,
};
use crate::openai_api::Server;

fn field() -> PathBuf {
    fixtures().join("reported")
}

/// The same module with the name that PEFT gives an adapter in memory in its keys, as a state dict saved by hand has.
fn with_default_in_keys(source: &Path, target: &Path) {
    let config = "adapter_config.json";
    std::fs::copy(source.join(config), target.join(config)).unwrap();
    let bytes = std::fs::read(source.join("adapter_model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let renamed = tensors
        .iter()
        .map(|(key, view)| (key.replace(".weight", ".default.weight"), view))
        .collect::<Vec<_>>();
    let bytes = serialize(renamed, None).unwrap();
    std::fs::write(target.join("adapter_model.safetensors"), bytes).unwrap();
}

#[test]
fn modules_of_other_tools_give_pefts_numbers() {
    let golden = golden("reported");
    let benches = ["models/llama-tied", "gguf/tiny-f32.gguf"]
        .map(|base| Bench::over(model(base), &[], EngineConfig::default()));
    let mut checked = 0;
    for case in list(&golden["cases"]) {
        let name = text(case, "module");
        let scratch = tempfile::tempdir().unwrap();
        let path = match name {
            "default-in-keys" => {
                with_default_in_keys(&field().join("layers-empty"), scratch.path());
                scratch.path().to_owned()
            }
            name => field().join(name),
        };
        let root = path.parent().unwrap();
        let bench = &benches[usize::from(name.ends_with(".gguf"))];
        let module = load_module("m", &path, root, bench.model.as_ref()).unwrap();
        bench.library.publish("m", module, Expected::Any).unwrap();
        let prompt = ids(&case["prompt_ids"]);
        let output = bench.run(&weighted(&[("m", 1.0)]), &prompt, greedy(1));
        let distance = worst(&output.row(prompt.len() - 1), &floats(&case["logprobs"]));
        assert!(distance < 2e-4, "{name}: off by {distance} nats");
        checked += 1;
    }
    assert_eq!(checked, 7);
}

/// MLX's modules, the text's parts of modules for more than text, against what made them.
#[test]
fn modules_of_mlx_give_mlxs_numbers() {
    let golden = golden("mlx");
    let cases = list(&golden["cases"]);
    assert_eq!(cases.len(), 6);
    for case in cases {
        let name = text(case, "module");
        let root = fixtures().join("mlx");
        let bench = Bench::new(&format!("models/{}", text(case, "base")), &[]);
        let module = load_module("m", &root.join(name), &root, bench.model.as_ref()).unwrap();
        bench.library.publish("m", module, Expected::Any).unwrap();
        let prompt = ids(&case["prompt_ids"]);
        for (selection, expected) in
            [(Selection::Base, "base_logprobs"), (weighted(&[("m", 1.0)]), "logprobs")]
        {
            let output = bench.run(&selection, &prompt, greedy(1));
            let distance = worst(&output.row(prompt.len() - 1), &floats(&case[expected]));
            assert!(distance < 2e-4, "{name}, {expected}: off by {distance} nats");
        }
    }
}

/// A module that was trained on a model for pictures and text, where the text's part lies deeper, is the same module, and
/// its expressions see the paths that PEFT saw. One that changes what sees is refused.
#[test]
fn text_parts_of_larger_models_are_served() {
    let bench = Bench::new("models/llama-tied", &[]);
    let source = field().join("lookahead");
    let bytes = std::fs::read(source.join("adapter_model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let load = |prefix: &str, target: &str, more: Option<&str>| {
        let scratch = tempfile::tempdir().unwrap();
        let mut config = read_json(&source.join("adapter_config.json"));
        config["target_modules"] = json!(target);
        config["rank_pattern"] = json!({"^model.layers.0.self_attn.q_proj": 9});
        std::fs::write(scratch.path().join("adapter_config.json"), config.to_string()).unwrap();
        let mut renamed: Vec<_> = tensors
            .iter()
            .map(|(key, view)| (key.replace("base_model.model.model.", prefix), view))
            .collect();
        let another = renamed[0].1.clone();
        renamed.extend(more.map(|key| (key.to_owned(), another)));
        let bytes = serialize(renamed, None).unwrap();
        std::fs::write(scratch.path().join("adapter_model.safetensors"), bytes).unwrap();
        load_module("m", scratch.path(), scratch.path(), bench.model.as_ref())
    };
    let golden = golden("reported");
    let case = list(&golden["cases"]).iter().find(|case| case["module"] == "lookahead").unwrap();
    for (prefix, target) in [
        ("base_model.model.model.language_model.", r"^model\.language_model\.layers\..*q_proj$"),
        (
            "base_model.model.language_model.model.",
            r"^(?!.*vision).*language_model\.model.*q_proj$",
        ),
    ] {
        let module = load(prefix, target, None).unwrap();
        bench.library.publish("m", module, Expected::Any).unwrap();
        let prompt = ids(&case["prompt_ids"]);
        let output = bench.run(&weighted(&[("m", 1.0)]), &prompt, greedy(1));
        let distance = worst(&output.row(prompt.len() - 1), &floats(&case["logprobs"]));
        assert!(distance < 2e-4, "{prefix}: off by {distance} nats");
        let sees = "base_model.model.model.vision_tower.layers.0.q_proj.lora_A.weight";
        let refused = load(prefix, target, Some(sees)).unwrap_err().to_string();
        assert!(refused.contains("only text is served"), "{refused}");
        assert!(load(prefix, r"^model\.layers\..*q_proj$", None).is_err(), "{prefix}");
    }
}

/// Tools spell an architecture in several ways, and llama.cpp does not look at the hint at all.
#[test]
fn hints_of_control_vectors_are_taken_in_every_spelling() {
    let read = |hint: &str, base: &str| {
        let bytes = control_vector(hint, read_hidden_size(base));
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("vector.gguf");
        std::fs::write(&path, bytes).unwrap();
        load_module("vector", &path, scratch.path(), model(&format!("models/{base}")).as_ref())
    };
    for (hint, base) in [
        ("llama", "llama-tied"),
        ("LlamaForCausalLM", "llama-tied"),
        ("mistral", "llama-tied"),
        ("llama", "mistral"),
        ("mistral", "mistral"),
        ("MistralForCausalLM", "mistral"),
        ("LlamaModel", "mistral"),
        ("Gemma3TextModel", "gemma3"),
        ("", "qwen3"),
        ("llama", "mixtral"),
        ("mixtral", "mixtral"),
        ("qwen2moe", "qwen2_moe"),
        ("qwen2_moe", "qwen2_moe"),
        ("qwen3moe", "qwen3_moe"),
        ("gemma3", "gemma3"),
        ("gemma3_text", "gemma3"),
        ("Gemma3ForConditionalGeneration", "gemma3"),
    ] {
        read(hint, base).unwrap_or_else(|error| panic!("{hint} on {base}: {error}"));
    }
    let refused = read("qwen2", "llama-tied").unwrap_err().to_string();
    assert!(refused.contains("`controlvector.model_hint` is qwen2"), "{refused}");
}

fn read_hidden_size(base: &str) -> usize {
    let config = read_json(&fixtures().join("models").join(base).join("config.json"));
    config["hidden_size"].as_u64().unwrap() as usize
}

/// A control vector for layer 1, as a GGUF file.
fn control_vector(hint: &str, hidden: usize) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let entry =
        |key: &str, value: &str| [text(key), 8_u32.to_le_bytes().to_vec(), text(value)].concat();
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(1_u64.to_le_bytes());
    bytes.extend(2_u64.to_le_bytes());
    bytes.extend(entry("general.architecture", "controlvector"));
    bytes.extend(entry("controlvector.model_hint", hint));
    bytes.extend(text("direction.1"));
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend((hidden as u64).to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    (0..hidden).for_each(|at| bytes.extend((at as f32 * 0.01).to_le_bytes()));
    bytes
}

const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + \
    '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// The text of a chat's prompt, by way of `/tokenize` and `/detokenize`.
fn prompt(template: &Json, body: &Json) -> String {
    let source = fixtures().join("models/llama-tied");
    let scratch = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(source.join(file), scratch.path().join(file)).unwrap();
    }
    let mut config = read_json(&source.join("tokenizer_config.json"));
    config["chat_template"] = template.clone();
    std::fs::write(scratch.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let server = Server::start(|config| {
        config.model = Some(scratch.path().display().to_string());
        config.adapters = Vec::new();
    });
    let post = |path: &str, body: &Json| server.send("POST", path, None, body.to_string()).ok();
    let tokens = post("/tokenize", body)["tokens"].clone();
    let mut chat = body.clone();
    chat["max_tokens"] = json!(1);
    let usage = post("/v1/chat/completions", &chat)["usage"]["prompt_tokens"].clone();
    assert_eq!(usage, json!(list(&tokens).len()), "chat and /tokenize differ");
    text(&post("/detokenize", &json!({"tokens": tokens})), "prompt").to_owned()
}

#[test]
fn chats_are_rendered_as_their_templates_say() {
    let messages = json!([{"role": "user", "content": "hello <a> & 'b'"}]);
    let asked = "<|im_start|>user\nhello <a> & 'b'<|im_end|>\n<|im_start|>assistant\n";
    let ask = json!({"messages": messages});
    let named =
        json!([{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "T"}]);
    assert_eq!(prompt(&named, &ask), asked);
    let marked = format!("{{% generation %}}{CHATML}{{% endgeneration %}}");
    assert_eq!(prompt(&json!(marked), &ask), asked);
    let dated = format!("{{{{ strftime_now('%d %b %Y') }}}}|{CHATML}");
    let today = prompt(&json!(dated), &ask);
    let (date, rest) = today.split_once('|').unwrap();
    assert!(rest == asked && date.len() == 11 && date.contains(" 20"), "{today}");
    let json_of = "{% for m in messages %}{{ m['content'] | tojson }}{% endfor %}";
    assert_eq!(prompt(&json!(json_of), &ask), "\"hello <a> & 'b'\"");
    let thinking = CHATML.replace(
        "assistant\\n' }}{% endif %}",
        "assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}\
         {%- endif %}{% endif %}",
    );
    assert_ne!(thinking, CHATML);
    assert_eq!(prompt(&json!(thinking), &ask), asked);
    let without = json!({"messages": messages, "chat_template_kwargs": {"enable_thinking": false}});
    assert_eq!(prompt(&json!(thinking), &without), format!("{asked}<think>\n\n</think>\n\n"));
    let more = json!({
        "messages": [messages[0], {"role": "assistant", "content": "the world"}],
        "continue_final_message": true, "add_generation_prompt": false,
    });
    assert_eq!(prompt(&json!(CHATML), &more), format!("{asked}the world"));
    let tools = json!({
        "messages": messages,
        "tools": [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}],
    });
    let listed =
        format!("{{% for tool in tools %}}{{{{ tool.function.name }}}};{{% endfor %}}{CHATML}");
    assert_eq!(prompt(&json!(listed), &tools), format!("look_up;{asked}"));
    // Contents in parts reach templates that read such, however they do; others get one text.
    let parts = json!({"messages": [{"role": "user", "content": [
        {"type": "text", "text": "hello "}, {"type": "text", "text": "world"}]}]});
    for (template, expected) in [
        (
            "{% set c = messages[0]['content'] %}{% if c is string %}{{ c }}{% else %}{% for p in c %}{{ p['text'] }}{% endfor %}{% endif %}",
            "hello world",
        ),
        (
            "{% macro show(c) %}{% for item in c %}{{ item.text }}{% endfor %}{% endmacro %}{{ show(messages[0].content) }}",
            "hello world",
        ),
        ("{{ messages[0].content | map(attribute='text') | join('') }}", "hello world"),
        ("{{ messages[0]['content'][0]['text'] }}", "hello "),
        ("{{ messages[0].content }}", "hello \nworld"),
    ] {
        assert_eq!(prompt(&json!(template), &parts), expected, "{template}");
    }
    // A message without a content has none, unless the template cannot do without.
    let calls = json!({"messages": [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"type": "function", "function": {"name": "look_up", "arguments": "{}"}}]}]});
    let asks = "{% for m in messages %}{{ 'content' in m }};{% endfor %}";
    assert_eq!(prompt(&json!(asks), &calls), "True;False;");
    let needs = "{% for m in messages %}{{ m['role'] + ':' + m['content'] }};{% endfor %}";
    assert_eq!(prompt(&json!(needs), &calls), "user:hello;assistant:;");
}

/// PEFT names fused parameters by their ends, and newer releases write the last name alone.
#[test]
fn fused_parameters_are_known_by_their_last_names() {
    for base in ["qwen2_moe", "mixtral"] {
        let bench = Bench::new(&format!("models/{base}"), &[]);
        let source = fixtures().join(format!("adapters/lora-experts-{base}"));
        let scratch = tempfile::tempdir().unwrap();
        let weights = "adapter_model.safetensors";
        std::fs::copy(source.join(weights), scratch.path().join(weights)).unwrap();
        let mut config = read_json(&source.join("adapter_config.json"));
        let names = list(&config["target_parameters"]).iter().filter_map(Json::as_str);
        let last: Vec<&str> = names.filter_map(|name| name.rsplit('.').next()).collect();
        assert!(!last.is_empty());
        config["target_parameters"] = json!(last);
        std::fs::write(scratch.path().join("adapter_config.json"), config.to_string()).unwrap();
        let prompt = [5, 17, 33, 8];
        let bits = [source.as_path(), scratch.path()].map(|path| {
            let module = load_module("m", path, path, bench.model.as_ref()).unwrap();
            bench.library.publish("m", module, Expected::Any).unwrap();
            bench.run(&weighted(&[("m", 1.0)]), &prompt, greedy(2)).bits()
        });
        assert_eq!(bits[0], bits[1], "{base}");
    }
}
