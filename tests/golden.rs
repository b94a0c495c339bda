//! The maths of the reference routers, at single sites (`goldens/routing.json`), and the text side
//! (`goldens/tokenizer.json`).

use std::path::{Path, PathBuf};

use polyskill_adapters::apply::{Combine, Scratch, add_delta};
use polyskill_adapters::lora::{Elements, LoraSite};
use polyskill_adapters::prototypes;
use polyskill_adapters::weights::LinearPart;
use polyskill_sdk::gate::{self, Op};
use polyskill_tokenizer::{Chat, Special, TextStream, Tokenizer};
use polyskill_workshop::transform;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde_json::Value as Json;

use crate::common::{fixtures, floats, golden, ids, list, text, worst};

/// One LoRA per expert, from `A` `[experts, rank, inputs]` and `B` `[experts, outputs, rank]`.
fn experts(a: &Json, b: &Json, scales: &[f32]) -> Vec<LoraSite> {
    let (a, b) = (list(a), list(b));
    assert_eq!((a.len(), b.len()), (scales.len(), scales.len()));
    let site = |((a, b), &scale): ((&Json, &Json), &f32)| {
        let (rank, outputs) = (list(a).len(), list(b).len());
        LoraSite {
            rank,
            scale,
            a: Elements::F32(floats(a)),
            b_transposed: Elements::F32(floats(b)).transposed(outputs, rank),
            magnitude: None,
        }
    };
    a.iter().zip(b).zip(scales).map(site).collect()
}

fn scales(case: &Json) -> Vec<f32> {
    let rank = case["r"].as_f64().unwrap() as f32;
    floats(&case["alpha"]).iter().map(|alpha| alpha / rank).collect()
}

/// `x` as rows, whatever its leading dimensions.
fn rows(x: &Json) -> Vec<Vec<f32>> {
    let inner = list(&list(x)[0])[0].as_array().map(Vec::len).unwrap();
    floats(x).chunks(inner).map(<[f32]>::to_vec).collect()
}

fn arrow_ops(top_k: usize, temperature: f32) -> Vec<Op> {
    vec![
        Op::LoadInput,
        Op::Linear { name: "p".to_owned() },
        Op::Abs,
        Op::TopK { k: top_k as u32 },
        Op::Affine { scale: 1.0 / temperature, shift: 0.0 },
        Op::Softmax,
        Op::Emit,
    ]
}

/// The picks of each row.
fn decide(ops: &[Op], x: &[Vec<f32>], vectors: &[Vec<f32>]) -> Vec<Vec<(u32, f32)>> {
    let defined = |_: &str| vectors.iter().map(Vec::as_slice).collect();
    x.iter().map(|row| gate::interpret(ops, row, defined).expect("finite weights")).collect()
}

/// Picks as `[rows, experts]`, zero where nothing was picked.
fn dense(picks: &[Vec<(u32, f32)>], experts: usize) -> Vec<f32> {
    let row = |picks: &Vec<(u32, f32)>| {
        let mut row = vec![0.0; experts];
        picks.iter().for_each(|&(expert, weight)| row[expert as usize] = weight);
        row
    };
    picks.iter().flat_map(row).collect()
}

/// The deltas of all rows, one after another.
fn deltas(
    combine: Combine,
    experts: &[LoraSite],
    x: &[Vec<f32>],
    picks: &[Vec<(u32, f32)>],
) -> Vec<f32> {
    let mut scratch = Scratch::default();
    let outputs = experts[0].num_outputs();
    let parts: Vec<LinearPart> = experts.iter().cloned().map(LinearPart::lora).collect();
    let mut all = Vec::new();
    for (x, picks) in x.iter().zip(picks) {
        let picks: Vec<(&LinearPart, f32)> =
            picks.iter().map(|&(expert, weight)| (&parts[expert as usize], weight)).collect();
        let mut y = vec![0.0; outputs];
        add_delta(combine, &[], &picks, None, x, &mut y, &mut scratch);
        all.extend(y);
    }
    all
}

/// 1e-5, relative for deltas that exceed 1.
fn require(what: &str, found: &[f32], expected: &Json) {
    let expected = floats(expected);
    let size = expected.iter().fold(1.0_f32, |size, value| size.max(value.abs()));
    let tolerance = if size > 1.0 { 1e-5 * size.max(2.0) } else { 1e-5 };
    let off = worst(found, &expected);
    assert!(off <= tolerance, "{what}: off by {off:e}, values up to {size}");
}

#[test]
fn the_start_of_the_power_iteration_is_torchs() {
    let golden = golden("routing");
    for case in list(&golden["torch_randn_cpu"]) {
        let n = case["n"].as_u64().unwrap() as usize;
        let values = prototypes::torch_randn(n, case["seed"].as_u64().unwrap());
        require(&format!("randn({n})"), &values, &case["values"]);
    }
}

#[test]
fn pefts_arrow() {
    let golden = golden("routing");
    let arrow = &golden["arrow_peft"];
    let (experts, x) = (experts(&arrow["A"], &arrow["B"], &scales(arrow)), rows(&arrow["x"]));
    for case in list(&arrow["cases"]) {
        require_arrow(case, &experts, &x);
    }
}

#[test]
fn pefts_arrow_with_fewer_than_sixteen_inputs() {
    let golden = golden("routing");
    let case = &golden["arrow_peft_din_lt_16"];
    let experts = experts(&case["A"], &case["B"], &scales(case));
    require_arrow(case, &experts, &rows(&case["x"]));
}

fn require_arrow(case: &Json, experts: &[LoraSite], x: &[Vec<f32>]) {
    let seed = case["seed"].as_u64().unwrap();
    let top_k = case["top_k"].as_u64().unwrap() as usize;
    let temperature = case["temperature"].as_f64().unwrap() as f32;
    let vectors: Vec<Vec<f32>> =
        experts.iter().map(|expert| prototypes::power_iteration(expert, 15, seed)).collect();
    let what = format!("top {top_k}, temperature {temperature}, seed {seed}");
    require(&format!("prototypes, {what}"), &vectors.concat(), &case["prototypes"]);
    let picks = decide(&arrow_ops(top_k, temperature), x, &vectors);
    assert!(picks.iter().all(|picks| picks.len() == top_k.min(experts.len())), "{what}");
    require(&what, &deltas(Combine::OutputSum, experts, x, &picks), &case["delta"]);
}

/// A module with one site: A `[rank, inputs]` and B `[outputs, rank]` at the first q_proj.
fn write_module(directory: &Path, a: &Json, b: &Json, alpha: f32) -> PathBuf {
    std::fs::create_dir_all(directory).unwrap();
    let rank = list(a).len();
    let config = format!(
        r#"{{"peft_type": "LORA", "r": {rank}, "lora_alpha": {alpha}, "target_modules": ["q_proj"]}}"#
    );
    std::fs::write(directory.join("adapter_config.json"), config).unwrap();
    let bytes = [a, b].map(|matrix| {
        floats(matrix).iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>()
    });
    let views = ["A", "B"].into_iter().zip([a, b]).zip(&bytes).map(|((part, matrix), bytes)| {
        let shape = vec![list(matrix).len(), floats(&list(matrix)[0]).len()];
        (key(part), TensorView::new(Dtype::F32, shape, bytes).unwrap())
    });
    let weights = serialize(views, None).unwrap();
    std::fs::write(directory.join("adapter_model.safetensors"), weights).unwrap();
    directory.to_path_buf()
}

fn key(part: &str) -> String {
    format!("base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight")
}

/// Subtracting the general adapters' mean from A and B (GenKnowSub), then Arrow.
#[test]
fn pefts_arrow_after_subtracting_general_knowledge() {
    let golden = golden("routing");
    let (arrow, case) = (&golden["arrow_peft"], &golden["arrow_peft_gks"]);
    let alphas = floats(&arrow["alpha"]);
    let root = tempfile::tempdir().unwrap();
    let (mut a_after, mut b_after) = (Vec::new(), Vec::new());
    for (at, &alpha) in alphas.iter().enumerate() {
        // A module and what is subtracted from it have one scale; the golden's modules differ.
        let folder = root.path().join(at.to_string());
        let module = |name: &str, a: &Json, b: &Json| write_module(&folder.join(name), a, b, alpha);
        let pairs = list(&case["gA"]).iter().zip(list(&case["gB"])).enumerate();
        let general: Vec<PathBuf> =
            pairs.map(|(at, (a, b))| module(&format!("general-{at}"), a, b)).collect();
        let task = module("task", &arrow["A"][at], &arrow["B"][at]);
        let written = transform::gen_know_sub(&general, &[task], &folder.join("out")).unwrap();
        let bytes = std::fs::read(written[0].join("adapter_model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        for (part, all) in [("A", &mut a_after), ("B", &mut b_after)] {
            let values = tensors.tensor(&key(part)).unwrap().data().chunks_exact(4);
            all.extend(values.map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())));
        }
    }
    require("A", &a_after, &case["A_after"]);
    require("B", &b_after, &case["B_after"]);
    let experts = experts(&case["A_after"], &case["B_after"], &scales(arrow));
    require_arrow(case, &experts, &rows(&arrow["x"]));
}

#[test]
fn mttls_arrow() {
    let golden = golden("routing");
    let (shared, arrow) = (&golden["arrow_peft"], &golden["arrow_mttl"]);
    let scale = (arrow["alpha"].as_f64().unwrap() / arrow["r"].as_f64().unwrap()) as f32;
    let (experts, x) = (experts(&shared["A"], &shared["B"], &[scale; 4]), rows(&shared["x"]));
    let vectors: Vec<Vec<f32>> = experts.iter().map(prototypes::exact).collect();
    let fix_sign = |vector: &Vec<f32>| {
        let by_size = |a: &&f32, b: &&f32| a.abs().total_cmp(&b.abs());
        let sign = vector.iter().max_by(by_size).unwrap().signum();
        vector.iter().map(|value| value * sign).collect::<Vec<f32>>()
    };
    let fixed: Vec<f32> = vectors.iter().flat_map(fix_sign).collect();
    require("prototypes", &fixed, &arrow["prototypes_sign_fixed"]);
    for case in list(&arrow["cases"]) {
        let top_k = case["top_k"].as_i64().unwrap();
        let top_k = usize::try_from(top_k).unwrap_or(experts.len());
        let temperature = case["temp"].as_f64().unwrap() as f32;
        let temperature = if temperature > 0.0 { temperature } else { (x[0].len() as f32).sqrt() };
        let picks = decide(&arrow_ops(top_k, temperature), &x, &vectors);
        let what = format!("top {top_k}, temperature {temperature}");
        require(&what, &dense(&picks, experts.len()), &case["dense_weights"]);
        let sum = deltas(Combine::OutputSum, &experts, &x, &picks);
        require(&format!("{what}, output sum"), &sum, &case["delta_output_sum"]);
        let merged = deltas(Combine::AbMerge, &experts, &x, &picks);
        require(&format!("{what}, merged A and B"), &merged, &case["delta_ab_merge"]);
    }
}

#[test]
fn phatgoose() {
    let golden = golden("routing");
    let shared = &golden["arrow_peft"];
    let rank = shared["r"].as_f64().unwrap() as f32;
    let (experts, x) = (experts(&shared["A"], &shared["B"], &[1.0 / rank; 4]), rows(&shared["x"]));
    for case in list(&golden["phatgoose"]["cases"]) {
        let gates: Vec<Vec<f32>> = list(&case["gates"])
            .iter()
            .map(|row| {
                let mut row = floats(row);
                gate::layer_norm(&mut row, 1e-5);
                let scale = 1.0 / (row.len() as f32).sqrt();
                row.iter().map(|value| value * scale).collect()
            })
            .collect();
        let mut ops = vec![
            Op::LoadInput,
            Op::LayerNorm { epsilon: 1e-5 },
            Op::Linear { name: "p".to_owned() },
            Op::Softmax,
            Op::Emit,
        ];
        let what = case["name"].as_str().unwrap();
        let scores = decide(&ops, &x, &gates);
        require(what, &dense(&scores, experts.len()), &case["router_softmax"]);
        ops.splice(4..4, [Op::TopK { k: 2 }, Op::Renormalise { epsilon: 1e-6 }]);
        let picks = decide(&ops, &x, &gates);
        require(what, &deltas(Combine::OutputSum, &experts, &x, &picks), &case["delta"]);
    }
}

#[test]
fn texts_and_chats_become_the_tokens_of_transformers() {
    let golden = golden("tokenizer");
    let model = Tokenizer::load(&fixtures().join("models/llama-tied")).unwrap();
    for entry in list(&golden["texts"]) {
        let (plain, tokens) = (text(entry, "text"), ids(&entry["ids"]));
        assert_eq!(model.encode(plain).unwrap(), tokens, "{plain}");
        assert_eq!(model.decode(&tokens, Special::Hidden), text(entry, "decoded_plain"));
    }
    for entry in list(&golden["chats"]) {
        let add = entry["add_generation_prompt"] == true;
        let messages = list(&entry["messages"]);
        let chat = Chat { messages, add_generation_prompt: add, ..Chat::default() };
        let tokens = model.encode_chat(&chat).unwrap();
        assert_eq!(tokens, ids(&entry["ids"]), "{}", text(entry, "text"));
    }
}

/// Whatever the tokens, the stream's pieces add up to the whole text.
#[test]
fn a_text_stream_gives_the_text_of_the_whole() {
    let golden = golden("tokenizer");
    let model = Tokenizer::load(&fixtures().join("models/llama-tied")).unwrap();
    for entry in list(&golden["texts"]) {
        let mut stream = TextStream::new(Special::Hidden);
        let tokens = ids(&entry["ids"]);
        let mut streamed: String =
            tokens.iter().map(|&token| stream.push(&model, token).text).collect();
        streamed.push_str(&stream.finish());
        assert_eq!(streamed, text(entry, "decoded_plain"));
    }
}

/// Byte-level BPE and SentencePiece's BPE out of GGUF files.
#[test]
fn tokenizers_of_gguf_files_agree_with_transformers() {
    let texts = golden("tokenizers");
    let texts = list(&texts["texts"]);
    assert!(texts.len() >= 20);
    for entry in texts {
        let model = Tokenizer::load(&fixtures().join("gguf").join(text(entry, "file"))).unwrap();
        let said = text(entry, "text");
        let found = model.encode(said).unwrap();
        assert_eq!(found, ids(&entry["ids"]), "{}: {said:?}", text(entry, "file"));
        assert_eq!(
            model.decode(&found, Special::Shown),
            text(entry, "decoded"),
            "{}",
            text(entry, "file")
        );
    }
}
