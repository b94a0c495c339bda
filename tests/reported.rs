//! Reports of other servers' users, as right values: tokens and bytes, stop strings, usage, names that compose, heads
//! and modules at both ends.

use std::path::Path;

use polyskill_engine::Selection;
use polyskill_sdk::{Parameters, Value};
use polyskill_server::config::Config;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde_json::{Map, Value as Json, json};

use crate::common::{Bench, fixtures, floats, greedy, list, routed, submit, text};
use crate::openai_api::Server;

/// The character that SentencePiece writes for a blank.
const BLANK: &str = "\u{2581}";

/// A tokenizer with the parts of Llama 2's, and a model that is a table: after `from` comes `to`, and others less likely.
pub(crate) struct Automaton {
    pub(crate) vocab: Map<String, Json>,
    pub(crate) merges: Vec<[String; 2]>,
    /// `(from, to, weight)`.
    pub(crate) table: Vec<(u32, u32, f32)>,
}

impl Automaton {
    pub(crate) fn new(words: &[&str]) -> Self {
        let mut automaton = Self { vocab: Map::new(), merges: Vec::new(), table: Vec::new() };
        ["<unk>", "<s>", "</s>"].iter().for_each(|token| automaton.add(token));
        (0..=255).for_each(|byte| automaton.add(&format!("<0x{byte:02X}>")));
        for word in words {
            word.chars().for_each(|c| automaton.add(&c.to_string()));
            let mut made = String::new();
            for c in word.chars() {
                let pair = [made.clone(), c.to_string()];
                if !made.is_empty() && !automaton.merges.contains(&pair) {
                    automaton.merges.push(pair);
                }
                made.push(c);
                automaton.add(&made);
            }
        }
        automaton
    }

    pub(crate) fn add(&mut self, token: &str) {
        let next = self.vocab.len();
        self.vocab.entry(token).or_insert_with(|| json!(next));
    }

    pub(crate) fn id(&self, token: &str) -> u32 {
        self.vocab[token].as_u64().unwrap() as u32
    }

    pub(crate) fn tokenizer(&self) -> Json {
        let special = |id: u32, content: &str| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        };
        let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": BLANK}, replace(" ", BLANK)]},
            "pre_tokenizer": null,
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
            "decoder": {"type": "Sequence", "decoders": [replace(BLANK, " "), {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
                "vocab": self.vocab, "merges": self.merges},
        })
    }

    /// Writes it as a checkpoint: one-hot embeddings, a layer that adds nothing, and the table as the head.
    pub(crate) fn write(&self, directory: &Path) {
        let size = self.vocab.len().next_multiple_of(8);
        let mut embeddings = vec![0.0_f32; size * size];
        (0..size).for_each(|at| embeddings[at * size + at] = 1.0);
        let mut head = vec![0.0_f32; size * size];
        for &(from, to, weight) in &self.table {
            head[to as usize * size + from as usize] += weight;
        }
        let ones = || vec![1.0_f32; size];
        let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = vec![
            ("model.embed_tokens.weight".into(), vec![size, size], embeddings),
            ("lm_head.weight".into(), vec![size, size], head),
            ("model.norm.weight".into(), vec![size], ones()),
        ];
        for (name, outs, ins) in [
            ("self_attn.q_proj", size, size),
            ("self_attn.k_proj", size, size),
            ("self_attn.v_proj", size, size),
            ("self_attn.o_proj", size, size),
            ("mlp.gate_proj", 8, size),
            ("mlp.up_proj", 8, size),
            ("mlp.down_proj", size, 8),
        ] {
            let name = format!("model.layers.0.{name}.weight");
            tensors.push((name, vec![outs, ins], vec![0.0; outs * ins]));
        }
        for name in ["input_layernorm", "post_attention_layernorm"] {
            tensors.push((format!("model.layers.0.{name}.weight"), vec![size], ones()));
        }
        write_tensors(&directory.join("model.safetensors"), &tensors);
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": size,
            "hidden_size": size, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 4, "hidden_act": "silu",
            "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
            "tie_word_embeddings": false, "rope_theta": 10000.0, "torch_dtype": "float32"});
        let template = "{% for m in messages %}{{ m['content'] }}{% endfor %}";
        let texts = json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": template});
        for (file, content) in [
            ("config.json", config),
            ("tokenizer.json", self.tokenizer()),
            ("tokenizer_config.json", texts),
        ] {
            std::fs::write(directory.join(file), content.to_string()).unwrap();
        }
    }
}

fn write_tensors(path: &Path, tensors: &[(String, Vec<usize>, Vec<f32>)]) {
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, _, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    std::fs::write(path, serialize(views, None).unwrap()).unwrap();
}

pub(crate) fn serve(model: &Path, change: impl FnOnce(&mut Config)) -> Server {
    Server::start(|config| {
        config.model = Some(model.display().to_string());
        config.served_model_name = Some("base".to_owned());
        config.adapters = Vec::new();
        change(config);
    })
}

pub(crate) fn post(server: &Server, path: &str, body: &Json) -> Json {
    server.send("POST", path, None, body.to_string()).ok()
}

pub(crate) fn complete(server: &Server, fields: Json) -> Json {
    let mut body = json!({"model": "base", "temperature": 0});
    let Json::Object(fields) = fields else { panic!("{fields}") };
    fields.into_iter().for_each(|(name, value)| body[name] = value);
    post(server, "/v1/completions", &body)
}

pub(crate) fn streamed(server: &Server, path: &str, body: &Json) -> Vec<Json> {
    let mut body = body.clone();
    body["stream"] = json!(true);
    server.send("POST", path, None, body.to_string()).events()
}

/// The automaton of the first reports: `▁a` → `▁time`, `▁I ▁see` → the four bytes of a crab, `▁Once` → `▁true`, with
/// `true` close behind.
fn sentence_piece() -> (Server, Automaton, tempfile::TempDir) {
    let words = ["Once", "upon", "a", "time", "true", "world", "hello", "I", "see"];
    let marked: Vec<String> = words.iter().map(|word| format!("{BLANK}{word}")).collect();
    let mut all: Vec<&str> = marked.iter().map(String::as_str).collect();
    all.extend(["true", "hello", "é"]);
    let mut automaton = Automaton::new(&all);
    let id = |word: &str| automaton.id(&format!("{BLANK}{word}"));
    let plain = |word: &str| automaton.id(word);
    let byte = |byte: u32| 3 + byte;
    automaton.table = vec![
        (id("a"), id("time"), 1.0),
        (id("time"), 2, 1.0),
        (id("hello"), id("world"), 1.0),
        (id("world"), 2, 1.0),
        (id("I"), id("see"), 1.0),
        (id("see"), byte(0xf0), 1.0),
        (id("see"), byte(0xe2), 0.9),
        (id("see"), byte(0xc3), 0.8),
        (byte(0xf0), byte(0x9f), 1.0),
        (byte(0x9f), byte(0xa6), 1.0),
        (byte(0xa6), byte(0x80), 1.0),
        (byte(0x80), 2, 1.0),
        (id("Once"), id("true"), 1.0),
        (id("Once"), plain("true"), 0.9),
        (id("Once"), id("time"), 0.5),
    ];
    let directory = tempfile::tempdir().unwrap();
    automaton.write(directory.path());
    (serve(directory.path(), |_| {}), automaton, directory)
}

#[test]
fn a_sentence_piece_base_keeps_the_blank_before_its_answer() {
    let (server, automaton, _directory) = sentence_piece();
    let ask = json!({"prompt": "Once upon a", "max_tokens": 4});
    let reply = complete(&server, ask.clone());
    assert_eq!(reply["choices"][0]["text"], " time");
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    assert_eq!(reply["choices"][0]["stop_reason"], Json::Null);
    let mut echo = ask.clone();
    echo["echo"] = json!(true);
    assert_eq!(complete(&server, echo)["choices"][0]["text"], "Once upon a time");
    let mut stop = ask.clone();
    stop["stop"] = json!([" time"]);
    let reply = complete(&server, stop);
    assert_eq!(reply["choices"][0]["text"], "");
    assert_eq!(reply["choices"][0]["stop_reason"], " time");
    assert_eq!(reply["usage"]["completion_tokens"], 1);
    let mut body = ask;
    body["model"] = json!("base");
    body["temperature"] = json!(0);
    let events = streamed(&server, "/v1/completions", &body);
    let texts: String = events.iter().filter_map(|e| e["choices"][0]["text"].as_str()).collect();
    assert_eq!(texts, " time");
    let time = automaton.id(&format!("{BLANK}time"));
    let said = post(&server, "/detokenize", &json!({"tokens": [time]}));
    assert_eq!(said["prompt"], " time");
    // Nothing was said before: the text begins with its first word.
    let reply = complete(
        &server,
        json!({"prompt": [1], "max_tokens": 1, "logit_bias": {time.to_string(): 100}}),
    );
    assert_eq!(reply["choices"][0]["text"], "time");
}

#[test]
fn tokens_with_other_bytes_stay_apart_in_logprobs() {
    let (server, _automaton, _directory) = sentence_piece();
    let reply = complete(&server, json!({"prompt": "Once", "max_tokens": 1, "logprobs": 3}));
    let logprobs = &reply["choices"][0]["logprobs"];
    let top = logprobs["top_logprobs"][0].as_object().unwrap();
    let mut keys: Vec<&str> = top.keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, [" time", " true", "true"]);
    assert_eq!(top[" true"], logprobs["token_logprobs"][0]);
    assert!(top[" true"].as_f64() > top["true"].as_f64());
    let reply = complete(&server, json!({"prompt": "I see", "max_tokens": 1, "logprobs": 3}));
    let top = reply["choices"][0]["logprobs"]["top_logprobs"][0].as_object().unwrap();
    let mut keys: Vec<&str> = top.keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, [r"bytes:\xc3", r"bytes:\xe2", r"bytes:\xf0"]);
    let ask = json!({"model": "base", "messages": [{"role": "user", "content": "Once"}], "max_tokens": 1,
                     "temperature": 0, "logprobs": true, "top_logprobs": 3});
    let reply = post(&server, "/v1/chat/completions", &ask);
    let top = list(&reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]);
    let pairs: Vec<(&str, &Json)> = top.iter().map(|e| (text(e, "token"), &e["bytes"])).collect();
    assert_eq!(
        pairs,
        [
            (" true", &json!([32, 116, 114, 117, 101])),
            ("true", &json!([116, 114, 117, 101])),
            (" time", &json!([32, 116, 105, 109, 101])),
        ]
    );
}

#[test]
fn bytes_of_partial_characters_are_their_own() {
    let (server, _automaton, _directory) = sentence_piece();
    let ask = json!({"model": "base", "messages": [{"role": "user", "content": "I"}], "max_tokens": 8,
                     "temperature": 0, "logprobs": true, "top_logprobs": 3});
    let reply = post(&server, "/v1/chat/completions", &ask);
    assert_eq!(reply["choices"][0]["message"]["content"], " see\u{1f980}");
    let content = list(&reply["choices"][0]["logprobs"]["content"]);
    let bytes: Vec<u8> = content
        .iter()
        .take(5)
        .flat_map(|entry| list(&entry["bytes"]).iter().map(|byte| byte.as_u64().unwrap() as u8))
        .collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), " see\u{1f980}");
    let crab: Vec<&str> = content[1..5].iter().map(|entry| text(entry, "token")).collect();
    assert_eq!(crab, [r"\xf0", r"\x9f", r"\xa6", r"\x80"]);
    let top = list(&content[1]["top_logprobs"]);
    let bytes: Vec<&Json> = top.iter().map(|entry| &entry["bytes"]).collect();
    assert_eq!(bytes, [&json!([0xf0]), &json!([0xe2]), &json!([0xc3])]);
    // Streams give the character out when it is complete.
    let events = streamed(&server, "/v1/chat/completions", &ask);
    let texts: Vec<&str> =
        events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(texts.concat(), " see\u{1f980}");
    assert!(!texts.iter().any(|text| text.contains('\u{fffd}')), "{texts:?}");
}

#[test]
fn offsets_go_on_over_chunks_and_fit_an_echoed_text() {
    let server = serve(&fixtures().join("models/llama-tied"), |_| {});
    // Token 293 is "hello".
    let body = json!({"model": "base", "prompt": "hello world", "max_tokens": 5, "temperature": 0,
                      "logprobs": 1, "logit_bias": {"293": 100}});
    let whole = post(&server, "/v1/completions", &body);
    let offsets = floats(&whole["choices"][0]["logprobs"]["text_offset"]);
    assert_eq!(offsets, [0.0, 5.0, 10.0, 15.0, 20.0]);
    let events = streamed(&server, "/v1/completions", &body);
    let chunks: Vec<f32> = events
        .iter()
        .filter(|event| event["choices"][0]["logprobs"].is_object())
        .flat_map(|event| floats(&event["choices"][0]["logprobs"]["text_offset"]))
        .collect();
    assert_eq!(chunks, offsets);
    let prompt = "<|im_start|>user\nhello<|im_end|>\n";
    let ask = json!({"prompt": prompt, "max_tokens": 0, "echo": true, "logprobs": 0});
    let echoed = complete(&server, ask);
    let choice = &echoed["choices"][0];
    assert_eq!(choice["text"], prompt);
    let tokens: Vec<&str> =
        list(&choice["logprobs"]["tokens"]).iter().filter_map(Json::as_str).collect();
    assert_eq!(tokens.concat(), prompt);
    let offsets = floats(&choice["logprobs"]["text_offset"]);
    let mut expected = 0;
    for (token, offset) in tokens.iter().zip(&offsets) {
        assert_eq!(*offset, expected as f32, "{token}");
        expected += token.chars().count();
    }
    // Tokens that are no characters of their own have the place of the one that they are a part of.
    let crab = complete(
        &server,
        json!({"prompt": "a\u{1f980}b", "max_tokens": 0, "echo": true, "logprobs": 0}),
    );
    let offsets = floats(&crab["choices"][0]["logprobs"]["text_offset"]);
    assert_eq!((offsets[0], offsets.last()), (0.0, Some(&2.0)));
    assert!(offsets[1..offsets.len() - 1].iter().all(|&offset| offset == 1.0), "{offsets:?}");
}

#[test]
fn usage_counts_every_prompt_and_chunks_have_none() {
    let server = serve(&fixtures().join("models/llama-tied"), |_| {});
    let prompts = json!(["hello", "the user is in the world and on"]);
    let count = |prompt: &str| {
        let reply = complete(&server, json!({"prompt": prompt, "max_tokens": 3}));
        reply["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let both = count("hello") + count("the user is in the world and on");
    for (prompts, n) in [
        (prompts.clone(), 1),
        (json!(["the user is in the world and on", "hello"]), 1),
        (prompts.clone(), 2),
    ] {
        let ask = json!({"prompt": prompts, "max_tokens": 3, "ignore_eos": true, "n": n});
        let usage = complete(&server, ask)["usage"].clone();
        assert_eq!(usage["prompt_tokens"], both);
        assert_eq!(usage["completion_tokens"], 6 * n);
        assert_eq!(usage["total_tokens"], both + 6 * n);
    }
    let body = json!({"model": "base", "prompt": prompts, "max_tokens": 3, "temperature": 0, "ignore_eos": true,
                      "stream_options": {"include_usage": true}});
    let events = streamed(&server, "/v1/completions", &body);
    let (last, others) = events.split_last().unwrap();
    assert_eq!(
        (&last["usage"]["prompt_tokens"], &last["usage"]["completion_tokens"]),
        (&json!(both), &json!(6))
    );
    assert!(others.iter().all(|event| event.get("usage") == Some(&Json::Null)), "{others:?}");
    let mut continuous = body;
    continuous["stream_options"]["continuous_usage_stats"] = json!(true);
    let events = streamed(&server, "/v1/completions", &continuous);
    let of_first = events.iter().filter(|e| e["choices"][0]["index"] == 0);
    let counts: Vec<&Json> = of_first.map(|e| &e["usage"]["completion_tokens"]).collect();
    assert_eq!(counts.last(), Some(&&json!(3)));
}

#[test]
fn stop_strings_see_special_tokens_and_wait_for_min_tokens() {
    let server = serve(&fixtures().join("models/llama-tied"), |_| {});
    let ask = |fields: Json| {
        let mut body = json!({"prompt": "x", "max_tokens": 6});
        fields.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        let reply = complete(&server, body);
        let choice = &reply["choices"][0];
        let tokens = reply["usage"]["completion_tokens"].as_u64().unwrap();
        (text(choice, "text").to_owned(), text(choice, "finish_reason").to_owned(), tokens)
    };
    let found = |text: &str, reason: &str, tokens| (text.to_owned(), reason.to_owned(), tokens);
    // Token 1 is `<|im_start|>`.
    let special = json!({"1": 100});
    assert_eq!(ask(json!({"logit_bias": special})), found("", "length", 6));
    assert_eq!(ask(json!({"logit_bias": special, "stop": ["<|im_start|>"]})), found("", "stop", 1));
    let shown = json!({"logit_bias": special, "skip_special_tokens": false});
    assert_eq!(ask(shown), found(&"<|im_start|>".repeat(6), "length", 6));
    let shown = json!({"logit_bias": special, "skip_special_tokens": false, "stop": ["start|><|"]});
    assert_eq!(ask(shown), found("<|im_", "stop", 2));
    // Token 293 is `hello`. A stop string counts where it ends behind the third token.
    let hello = json!({"293": 100});
    let late = json!({"logit_bias": hello, "stop": ["hello"], "min_tokens": 3});
    assert_eq!(ask(late), found("hellohellohello", "stop", 4));
    let over = json!({"logit_bias": hello, "stop": ["lohe"], "min_tokens": 3});
    assert_eq!(ask(over), found("hellohellohel", "stop", 4));
    // The first that is complete, whatever its place in the list.
    let two = json!({"logit_bias": hello, "stop": ["ohello", "lohe"]});
    assert_eq!(ask(two), found("hel", "stop", 2));
    // No token behind the stop string is made, however often.
    for _ in 0..20 {
        assert_eq!(ask(json!({"logit_bias": hello, "stop": ["hellohe"]})), found("", "stop", 2));
    }
}

#[test]
fn words_tokens_and_probabilities_that_may_not_come_do_not() {
    let server = serve(&fixtures().join("models/llama-tied"), |_| {});
    let ask = json!({"prompt": "x", "max_tokens": 4, "ignore_eos": true, "allowed_token_ids": [293, 296],
                     "return_token_ids": true, "temperature": 1.5, "seed": 3});
    let reply = complete(&server, ask);
    let choice = &reply["choices"][0];
    assert!(list(&choice["token_ids"]).iter().all(|id| *id == 293 || *id == 296), "{choice}");
    assert!(!list(&choice["prompt_token_ids"]).is_empty());
    let ask =
        json!({"prompt": "x", "max_tokens": 4, "logit_bias": {"293": 100}, "bad_words": ["hello"]});
    assert!(!text(&complete(&server, ask)["choices"][0], "text").contains("hello"));
    // Nothing but the likeliest token is left.
    let first = |fields: Json| {
        let mut body = json!({"prompt": "hello", "max_tokens": 8, "ignore_eos": true});
        fields.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        complete(&server, body)["choices"][0]["text"].clone()
    };
    assert_eq!(first(json!({"top_p": 0, "temperature": 1, "seed": 1})), first(json!({})));
    let ask = json!({"prompt": "hello", "max_tokens": 2, "logprobs": 2, "return_tokens_as_token_ids": true});
    let reply = complete(&server, ask);
    let tokens = list(&reply["choices"][0]["logprobs"]["tokens"]);
    assert!(
        tokens.iter().all(|token| token.as_str().unwrap().starts_with("token_id:")),
        "{tokens:?}"
    );
    let ask = json!({"prompt": "hello the world", "max_tokens": 1, "prompt_logprobs": 1});
    let reply = complete(&server, ask);
    let prompt = list(&reply["choices"][0]["prompt_logprobs"]);
    assert_eq!(prompt[0], Json::Null);
    for entry in &prompt[1..] {
        let entries = entry.as_object().unwrap();
        assert!((1..=2).contains(&entries.len()), "{entry}");
        assert!(
            entries
                .values()
                .all(|e| e["rank"].as_u64() >= Some(1) && e["decoded_token"].is_string())
        );
    }
}

/// A named module acts, whatever stands beside its name.
#[test]
fn names_of_modules_compose() {
    let server = serve(&fixtures().join("models/llama-tied"), |config| {
        config.adapters = vec![fixtures().join("adapters")];
    });
    let ask = |fields: Json| {
        let mut body =
            json!({"prompt": "hello the world", "max_tokens": 0, "echo": true, "logprobs": 0});
        fields.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        let reply = complete(&server, body);
        let modules: Vec<String> = list(&reply["polyskill"]["modules"])
            .iter()
            .map(|module| text(module, "name").to_owned())
            .collect();
        (
            floats(&Json::from(
                list(&reply["choices"][0]["logprobs"]["token_logprobs"])[1..].to_vec(),
            )),
            modules,
        )
    };
    let (base, none) = ask(json!({}));
    assert!(none.is_empty());
    let (alone, names) = ask(json!({"model": "lora-all"}));
    assert_eq!(names, ["lora-all"]);
    assert_ne!(alone, base);
    for fields in [
        json!({"model": "lora-all", "adapters": []}),
        json!({"model": "lora-all", "router": "none"}),
        json!({"model": "lora-all", "router": "none", "adapters": []}),
        json!({"model": "base:lora-all", "adapters": [{"name": "lora-all"}]}),
    ] {
        assert_eq!(ask(fields.clone()), (alone.clone(), names.clone()), "{fields}");
    }
    let both = ask(json!({"adapters": [{"name": "lora-all"}, {"name": "task-a", "weight": 0.5}]}));
    let composed =
        ask(json!({"model": "lora-all", "adapters": [{"name": "task-a", "weight": 0.5}]}));
    assert_eq!(composed, both);
    assert_eq!(composed.1, ["lora-all", "task-a"]);
    let half = ask(json!({"adapters": [{"name": "lora-all", "weight": 0.5}]}));
    assert_eq!(
        ask(json!({"model": "lora-all", "adapters": [{"name": "lora-all", "weight": 0.5}]})),
        half
    );
    // Beside a router too.
    let router = json!({"name": "arrow", "modules": ["task-*"]});
    let routed = ask(json!({"model": "lora-all", "router": router}));
    assert!(routed.1.contains(&"lora-all".to_owned()), "{:?}", routed.1);
    let beside = ask(json!({"router": router, "adapters": [{"name": "lora-all"}]}));
    assert_eq!(routed, beside);
}

#[test]
fn names_with_slashes_are_served_under_them() {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("files");
    std::fs::create_dir(&target).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(fixtures().join("adapters/lora-all").join(file), target.join(file)).unwrap();
    }
    let server = serve(&fixtures().join("models/llama-tied"), |config| {
        config.adapters = vec![root.path().to_owned()];
    });
    let key = Some(crate::openai_api::ADMIN_KEY);
    let body = json!({"lora_name": "org/name", "lora_path": target.display().to_string()});
    let loaded = server.send("POST", "/v1/load_lora_adapter", key, body.to_string());
    assert_eq!(loaded.status, 200, "{loaded:?}");
    let reply = complete(&server, json!({"model": "org/name", "prompt": "hello", "max_tokens": 1}));
    assert_eq!(reply["polyskill"]["modules"][0]["name"], "org/name");
    for path in ["/v1/models/org/name", "/v1/models/org%2Fname"] {
        assert_eq!(server.send("GET", path, None, "").ok()["id"], "org/name", "{path}");
    }
    let metrics = server.send("GET", "/metrics", None, "");
    assert!(metrics.body.contains("org/name"), "{}", metrics.body);
    let removed = server.send("DELETE", "/admin/modules/org/name", key, "");
    assert_eq!(removed.status, 200, "{removed:?}");
}

/// A tied configuration whose file has a head of its own: transformers 5 serves the head.
#[test]
fn a_head_of_its_own_serves_where_the_configuration_says_tied() {
    let source = fixtures().join("models/llama-tied");
    let bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let read = |view: &TensorView<'_>| {
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let mut all: Vec<(String, Vec<usize>, Vec<f32>)> = tensors
        .iter()
        .map(|(name, view)| (name.to_owned(), view.shape().to_vec(), read(&view)))
        .collect();
    let table = all.iter().find(|(name, ..)| name == "model.embed_tokens.weight").unwrap().clone();
    let head: Vec<f32> = table.2.chunks(table.1[1]).rev().flatten().copied().collect();
    all.push(("lm_head.weight".to_owned(), table.1.clone(), head));
    let score = |tied: bool| {
        let scratch = tempfile::tempdir().unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(source.join(file), scratch.path().join(file)).unwrap();
        }
        let mut config = crate::common::read_json(&source.join("config.json"));
        config["tie_word_embeddings"] = json!(tied);
        std::fs::write(scratch.path().join("config.json"), config.to_string()).unwrap();
        write_tensors(&scratch.path().join("model.safetensors"), &all);
        let server = serve(scratch.path(), |_| {});
        let ask =
            json!({"prompt": "hello the world", "max_tokens": 0, "echo": true, "logprobs": 0});
        complete(&server, ask)["choices"][0]["logprobs"]["token_logprobs"].clone()
    };
    assert_eq!(score(true), score(false));
}

/// Prompts that were cut are echoed as they were read, and limits that contradict each other are refused.
#[test]
fn cut_prompts_are_echoed_as_they_were_read() {
    let server = serve(&fixtures().join("models/llama-tied"), |_| {});
    let whole = complete(&server, json!({"prompt": "hello the world", "max_tokens": 1}));
    let cut = json!({"prompt": "hello the world", "truncate_prompt_tokens": 1, "echo": true,
                     "max_tokens": 1, "logprobs": 0});
    let reply = complete(&server, cut);
    assert_eq!(reply["usage"]["prompt_tokens"], 1);
    assert!(whole["usage"]["prompt_tokens"].as_u64().unwrap() > 1);
    let (said, logprobs) = (text(&reply["choices"][0], "text"), &reply["choices"][0]["logprobs"]);
    let tokens: Vec<&str> = list(&logprobs["tokens"]).iter().filter_map(Json::as_str).collect();
    assert_eq!(tokens.concat(), said);
    assert!(!said.starts_with("hello"), "{said}");
    for (name, value) in [("stop_token_ids", json!([99_999])), ("min_tokens", json!(9))] {
        let mut body = json!({"prompt": "hello", "max_tokens": 2});
        body[name] = value;
        let reply = server.send("POST", "/v1/completions", None, body.to_string());
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!(name)));
    }
    let stops: Vec<String> = (0..9).map(|number| format!("no {number}")).collect();
    complete(&server, json!({"prompt": "hello", "max_tokens": 2, "stop": stops}));
}

/// A router that gives a part of a module that acts as a whole has made a mistake, and the request has not: the base
/// answers, the report says why, and the fault is the router's.
#[test]
fn a_routers_mistake_falls_back_and_is_counted_for_it() {
    let bench = Bench::new("models/llama-tied", &["prompt-5", "prefix-7", "lora-all"]);
    bench.add_mixture();
    let plan = |weights: &str| {
        let weights = ("weights".to_owned(), Value::Text(weights.to_owned()));
        bench.compose(&routed("mixture", Parameters(vec![weights])))
    };
    let prompt = [293, 263, 296];
    let base = bench.run(&Selection::Base, &prompt, greedy(4));
    for (picks, named) in [
        ("prompt-5=0.5,lora-all=0.5", "prompt-5"),
        ("lora-all=1,prefix-7=0.25", "prefix-7"),
        ("lora-all=1e30", "1e30"),
    ] {
        let before = bench.composer.routers()[0].faults;
        let composition = plan(picks);
        let reason = composition.fallback().unwrap();
        assert!(reason.contains(named) || reason.contains("weight"), "{picks}: {reason}");
        let output = submit(&bench.engine, &composition, &prompt, greedy(4)).wait();
        assert_eq!(output.bits(), base.bits(), "{picks}");
        assert_eq!(bench.composer.routers()[0].faults, before + 1, "{picks}");
    }
    assert!(plan("prompt-5=1,lora-all=0.5").fallback().is_none());
}
