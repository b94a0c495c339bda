//! PEFT's configurations and state dicts, made from seeds: each gives PEFT's logits, or is refused by a reason.
//!
//! `tests/goldens/peft_configs.py` says what the golden file holds and how weights follow from names.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use polyskill_adapters::library::Expected;
use polyskill_adapters::load_module;
use polyskill_engine::EngineConfig;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde_json::{Map, Value as Json};

use crate::common::{
    Bench, fixtures, floats, golden, greedy, ids, list, model, text, weighted, worst,
};

/// FNV-1a.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// The values of a tensor, between 0 and 1, by its name and the case's seed.
fn uniform(name: &str, seed: u64, count: usize) -> impl Iterator<Item = f64> {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let state = hash(name) ^ seed.wrapping_mul(STEP);
    (1..=count as u64).map(move |at| {
        let mut z = state.wrapping_add(at.wrapping_mul(STEP));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 24)
    })
}

/// `a.{b,c}.d` → `a.b.d`, `a.c.d`.
fn expanded(name: &str) -> Vec<String> {
    let Some((before, rest)) = name.split_once('{') else { return vec![name.to_owned()] };
    let (choices, after) = rest.split_once('}').unwrap();
    let after = expanded(after);
    let all = choices
        .split(',')
        .flat_map(|choice| after.iter().map(move |after| format!("{before}{choice}{after}")));
    all.collect()
}

struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn tensor(spec: &Json, name: &str, seed: u64, base: &SafeTensors<'_>) -> Tensor {
    let shape: Vec<usize> =
        list(&spec["shape"]).iter().map(|n| n.as_u64().unwrap() as usize).collect();
    if let Some(copied) = spec["base"].as_str() {
        let view = base.tensor(copied).unwrap();
        return Tensor {
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            bytes: view.data().to_vec(),
        };
    }
    let number = |key: &str, default: f64| spec[key].as_f64().unwrap_or(default);
    let (scale, offset) = (number("scale", 0.6), number("offset", 0.0));
    // A name that expands keeps its place among the names that it is like.
    let like = spec["like"].as_str().map_or_else(|| vec![name.to_owned()], expanded);
    let place = expanded(text(spec, "name")).iter().position(|other| other == name).unwrap();
    let like = &like[place % like.len()];
    let count = shape.iter().product();
    let mut values: Vec<f64> = uniform(like, seed, count).collect();
    if spec["transposed"] == true {
        let (rows, columns) = (shape[0], shape[1]);
        values = (0..count).map(|at| values[(at % columns) * rows + at / columns]).collect();
    }
    let float = |u: &f64| ((u - 0.5) * scale + offset) as f32;
    let dtype = spec["dtype"].as_str().unwrap_or("F32");
    let (dtype, bytes) = match dtype {
        "F32" => (Dtype::F32, values.iter().flat_map(|u| float(u).to_le_bytes()).collect()),
        "F16" => (
            Dtype::F16,
            values.iter().flat_map(|u| f16::from_f32(float(u)).to_le_bytes()).collect(),
        ),
        "BF16" => (
            Dtype::BF16,
            values.iter().flat_map(|u| bf16::from_f32(float(u)).to_le_bytes()).collect(),
        ),
        "F64" => {
            (Dtype::F64, values.iter().flat_map(|u| f64::from(float(u)).to_le_bytes()).collect())
        }
        // No module of whole numbers is read; their values do not matter.
        "I64" => (Dtype::I64, vec![0; 8 * count]),
        "I32" => (Dtype::I32, vec![0; 4 * count]),
        "I16" => (Dtype::I16, vec![0; 2 * count]),
        "I8" => (Dtype::I8, vec![0; count]),
        "U8" => (Dtype::U8, vec![0; count]),
        "BOOL" => (Dtype::BOOL, vec![0; count]),
        other => panic!("{other}"),
    };
    Tensor { dtype, shape, bytes }
}

fn write(case: &Json, template: &Json, base: &SafeTensors<'_>, directory: &Path) {
    let config = match case["text"].as_str() {
        Some(text) => text.to_owned(),
        None => {
            let mut config: Map<String, Json> = template["config"].as_object().unwrap().clone();
            for (key, value) in case["config"].as_object().into_iter().flatten() {
                config.insert(key.clone(), value.clone());
            }
            list(&case["without"]).iter().for_each(|key| {
                config.shift_remove(key.as_str().unwrap());
            });
            Json::Object(config).to_string()
        }
    };
    std::fs::write(directory.join("adapter_config.json"), config).unwrap();
    let seed = case["seed"].as_u64().unwrap();
    let specs = if case["tensors"].is_null() { &template["tensors"] } else { &case["tensors"] };
    let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
    for spec in list(specs) {
        for name in expanded(text(spec, "name")) {
            let made = tensor(spec, &name, seed, base);
            tensors.insert(name, made);
        }
    }
    let views = tensors.iter().map(|(name, tensor)| {
        (name, TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap())
    });
    let bytes = serialize(views, None).unwrap();
    std::fs::write(directory.join("adapter_model.safetensors"), bytes).unwrap();
}

/// PEFT warns of these and goes on with what it has; a module that is not what its file says is refused here.
const REFUSED_WARNINGS: [&str; 4] = ["missing", "unexpected", "clash", "replaced"];

#[test]
fn configurations_give_pefts_logits_or_are_refused() {
    let golden = golden("peft_configs");
    let meta = &golden["_meta"];
    let example = &meta["example"];
    let values: Vec<f32> = uniform(text(example, "name"), example["seed"].as_u64().unwrap(), 4)
        .map(|u| ((u - 0.5) * 0.6) as f32)
        .collect();
    assert!(worst(&values, &floats(&example["values"])) < 1e-7, "the rule of values");
    let (prompt, tokens) = (ids(&meta["prompt_ids"]), ids(&meta["token_ids"]));
    let position = |key: &str| meta["positions"][key].as_u64().unwrap() as usize;
    let mut benches: BTreeMap<&str, (Bench, Vec<u8>)> = BTreeMap::new();
    let (mut wrong, mut served, mut refused) = (Vec::new(), 0, 0);
    for case in list(&golden["cases"]) {
        let (name, base) = (text(case, "name"), text(case, "base"));
        let (bench, weights) = benches.entry(base).or_insert_with(|| {
            let path = format!("models/{base}");
            let weights = std::fs::read(fixtures().join(&path).join("model.safetensors")).unwrap();
            (Bench::over(model(&path), &[], EngineConfig::default()), weights)
        });
        let template =
            list(&golden["templates"]).iter().find(|t| t["kind"] == case["kind"]).unwrap();
        let root = tempfile::tempdir().unwrap();
        write(case, template, &SafeTensors::deserialize(weights).unwrap(), root.path());
        let loaded = load_module("m", root.path(), root.path(), bench.model.as_ref());
        let expected = (case["peft"] == "loads").then(|| {
            let rows = [(position("middle"), &case["middle"]), (position("last"), &case["last"])];
            rows.map(|(at, row)| (at, floats(row)))
        });
        let warns = list(&case["warned"])
            .iter()
            .any(|w| REFUSED_WARNINGS.contains(&w.as_str().unwrap_or("")))
            || case["warned"].as_object().is_some_and(|warned| {
                warned.keys().any(|w| REFUSED_WARNINGS.contains(&w.as_str()))
            });
        let module = match loaded {
            Ok(module) => module,
            Err(error) => {
                refused += 1;
                if expected.is_some() && !warns && std::env::var_os("PEFT_REFUSALS").is_some() {
                    wrong.push(format!("REFUSED {name} ({}): {error}", text(case, "about")));
                }
                continue;
            }
        };
        served += 1;
        let Some(rows) = expected else {
            wrong.push(format!("SERVED {name} ({}), PEFT {}", text(case, "about"), case["peft"]));
            continue;
        };
        bench.library.publish("m", module, Expected::Any).unwrap();
        let output = bench.run(&weighted(&[("m", 1.0)]), &prompt, greedy(1));
        for (at, expected) in rows {
            let row = output.row(at);
            let found: Vec<f32> = tokens.iter().map(|&token| row[token as usize]).collect();
            let distance = worst(&found, &expected);
            if distance.is_nan() || distance > 2e-4 {
                wrong.push(format!("DIFFERS {name} ({}): {distance} at {at}", text(case, "about")));
                break;
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong of {served} served, {refused} refused:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}
