//! What expert policies save: tokens per second of a prompt and of decoding, on the small mixture of experts and on a random
//! one whose experts are large enough to be most of the work. Each policy beside the base, in turns, medians.
//!
//! `cargo bench --bench experts`

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for people")]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use half::bf16;
use polyskill_model::moe::ExpertChoice;
use polyskill_model::{Compute, Decoder, Hooks, KvCache, Scratch, Step, load};
use polyskill_sdk::experts::{ExpertLayer, ExpertOp, LayerPolicy, interpret};
use safetensors::tensor::{Dtype, TensorView, serialize};

const PROMPT: usize = 256;
const DECODED: usize = 64;
/// Sequences that decode together.
const BATCH: usize = 8;
const ROUNDS: usize = 15;

/// Experts by a policy's programs, as the engine runs them.
struct Policy(Vec<(ExpertLayer, Vec<ExpertOp>)>);

impl Hooks for Policy {
    fn routed(&mut self, layer: usize, logits: &[f32], choice: &mut ExpertChoice) {
        let found = self.0.iter().find(|(of, _)| of.layer as usize == layer);
        let Some((of, ops)) = found else { return };
        let mut picks = Vec::new();
        for (row, logits) in logits.chunks_exact(of.num_experts as usize).enumerate() {
            if interpret(ops, logits, &mut picks) {
                choice.set(row, picks.iter().copied());
            }
        }
    }
}

fn policy(model: &Decoder, policy: &LayerPolicy) -> Policy {
    if policy.is_empty() {
        return Policy(Vec::new());
    }
    let config = model.config();
    let layers = (0..config.num_layers).filter_map(|layer| {
        let layer = polyskill_adapters::native::expert_layer(config, layer)?;
        Some((layer, policy.ops(layer)))
    });
    Policy(layers.collect())
}

/// A random mixtral: 4 layers, width 512, 8 experts of 1024 each, bf16.
fn write_random(folder: &Path) {
    const HIDDEN: usize = 512;
    const INNER: usize = 1024;
    let config = serde_json::json!({"model_type": "mixtral", "vocab_size": 512, "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5, "sliding_window": null, "tie_word_embeddings": true,
        "max_position_embeddings": 2048});
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".into(), vec![512, HIDDEN]),
        ("model.norm.weight".into(), vec![HIDDEN]),
    ];
    for layer in 0..4 {
        let mut add = |name: &str, shape: Vec<usize>| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        };
        add("input_layernorm", vec![HIDDEN]);
        add("post_attention_layernorm", vec![HIDDEN]);
        for (name, outs) in [("q", HIDDEN), ("k", 128), ("v", 128), ("o", HIDDEN)] {
            add(&format!("self_attn.{name}_proj"), vec![outs, HIDDEN]);
        }
        add("block_sparse_moe.gate", vec![8, HIDDEN]);
        for expert in 0..8 {
            let part = format!("block_sparse_moe.experts.{expert}");
            add(&format!("{part}.w1"), vec![INNER, HIDDEN]);
            add(&format!("{part}.w3"), vec![INNER, HIDDEN]);
            add(&format!("{part}.w2"), vec![HIDDEN, INNER]);
        }
    }
    let mut state = 1_u64;
    let mut bits = |scale: f32| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let unit = (state >> 40) as f32 / (1_u64 << 24) as f32 - 0.5;
        bf16::from_f32(unit * scale).to_bits().to_le_bytes()
    };
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(name, shape)| {
            let scale = if name.contains("norm") { 2.0 } else { 0.15 };
            (0..shape.iter().product::<usize>()).flat_map(|_| bits(scale)).collect()
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape), bytes)| {
        (name, TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap())
    });
    std::fs::write(folder.join("model.safetensors"), serialize(views, None).unwrap()).unwrap();
}

/// Seconds of a prompt and of decoding.
fn once(model: &Decoder, policy: &mut Policy, scratch: &mut Scratch) -> (f64, f64) {
    let vocab = model.config().vocab_size as u32;
    let length = PROMPT + DECODED;
    let blocks_each = KvCache::blocks_for(length);
    let mut kv = KvCache::new(model.config(), blocks_each * BATCH);
    let tables: Vec<Vec<u32>> = (0..BATCH)
        .map(|s| ((s * blocks_each) as u32..((s + 1) * blocks_each) as u32).collect())
        .collect();
    let tables: Vec<&[u32]> = tables.iter().map(Vec::as_slice).collect();
    let token = |sequence: usize, at: usize| ((sequence * 7919 + at * 104_729) as u32) % vocab;
    let mut prefill = 0.0;
    for sequence in 0..BATCH {
        let tokens: Vec<u32> = (0..PROMPT).map(|at| token(sequence, at)).collect();
        let positions: Vec<u32> = (0..PROMPT as u32).collect();
        let sequences = vec![sequence as u32; PROMPT];
        let step = Step {
            tokens: &tokens,
            positions: &positions,
            sequences: &sequences,
            block_tables: &tables,
            logit_rows: &[],
        };
        let started = Instant::now();
        model.forward(&step, &mut kv, policy, scratch);
        prefill += started.elapsed().as_secs_f64();
    }
    let sequences: Vec<u32> = (0..BATCH as u32).collect();
    let started = Instant::now();
    for at in PROMPT..length {
        let tokens: Vec<u32> = (0..BATCH).map(|sequence| token(sequence, at)).collect();
        let step = Step {
            tokens: &tokens,
            positions: &[at as u32; BATCH],
            sequences: &sequences,
            block_tables: &tables,
            logit_rows: &sequences,
        };
        model.forward(&step, &mut kv, policy, scratch);
    }
    (prefill, started.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// β under which half of the bench's own tokens skip, as calibration would find it.
fn beta(model: &Decoder, scratch: &mut Scratch) -> f32 {
    struct Ratios(Vec<f32>);
    impl Hooks for Ratios {
        fn routed(&mut self, _: usize, _: &[f32], choice: &mut ExpertChoice) {
            for row in 0..choice.num_rows() {
                if let [(_, a), (_, b)] = choice.row(row) {
                    self.0.push(a.min(*b) / a.max(*b));
                }
            }
        }
    }
    let mut ratios = Ratios(Vec::new());
    let tokens: Vec<u32> =
        (0..PROMPT).map(|at| (at * 104_729 % model.config().vocab_size) as u32).collect();
    let positions: Vec<u32> = (0..PROMPT as u32).collect();
    let blocks: Vec<u32> = (0..KvCache::blocks_for(PROMPT) as u32).collect();
    let step = Step {
        tokens: &tokens,
        positions: &positions,
        sequences: &[0; PROMPT],
        block_tables: &[&blocks],
        logit_rows: &[],
    };
    let mut kv = KvCache::new(model.config(), blocks.len());
    model.forward(&step, &mut kv, &mut ratios, scratch);
    ratios.0.sort_by(f32::total_cmp);
    ratios.0[ratios.0.len() / 2]
}

fn measure(name: &str, model: &Decoder) {
    let mut scratch = Scratch::default();
    let beta = beta(model, &mut scratch);
    let keep = |count: u32| Some((0..count).collect());
    let of = |keep, beta| LayerPolicy { keep, beta, ..LayerPolicy::default() };
    let named = [
        ("all experts", of(None, None)),
        ("6 of 8", of(keep(6), None)),
        ("4 of 8", of(keep(4), None)),
        ("skipping", of(None, Some(beta))),
        ("4 of 8, skipping", of(keep(4), Some(beta))),
    ];
    let mut policies: Vec<Policy> = named.iter().map(|(_, said)| policy(model, said)).collect();
    let mut times: Vec<(Vec<f64>, Vec<f64>)> = vec![Default::default(); named.len()];
    for round in 0..=ROUNDS {
        for (policy, times) in policies.iter_mut().zip(&mut times) {
            let (prefill, decode) = once(model, policy, &mut scratch);
            // The first round warms up.
            if round > 0 {
                times.0.push(prefill);
                times.1.push(decode);
            }
        }
    }
    println!("\n{name}: prompts of {PROMPT}, {BATCH} sequences decoding, medians of {ROUNDS}\n");
    println!("| policy | prompt, tokens/s | | decoding, tokens/s | |\n|---|---|---|---|---|");
    let medians: Vec<(f64, f64)> =
        times.into_iter().map(|(prefill, decode)| (median(prefill), median(decode))).collect();
    for ((policy, _), (prefill, decode)) in named.iter().zip(&medians) {
        let rate = |tokens: usize, seconds: f64| (tokens * BATCH) as f64 / seconds;
        println!(
            "| {policy} | {:.0} | {:.2}× | {:.0} | {:.2}× |",
            rate(PROMPT, *prefill),
            medians[0].0 / prefill,
            rate(DECODED, *decode),
            medians[0].1 / decode,
        );
    }
}

fn main() {
    let compute = || Arc::new(Compute::for_this_machine());
    let small = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/small-moe");
    let small = load::load(&small, compute(), &mut |_, _| {}).unwrap();
    measure("examples/small-moe", &small);
    drop(small);
    let folder = tempfile::tempdir().unwrap();
    write_random(folder.path());
    let random = load::load(folder.path(), compute(), &mut |_, _| {}).unwrap();
    measure("random, width 512, experts of 1024, bf16", &random);
}
