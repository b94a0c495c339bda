//! Checkpoints as transformers 5 saves them, and every spelling of a configuration: the same model, or a refusal.
//!
//! `tests/goldens/resaved.py` says what the golden file holds.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};
use polyskill_engine::{EngineConfig, Selection};
use polyskill_model::{Compute, load};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde_json::{Map, Value as Json};

use crate::common::{Bench, fixtures, floats, golden, greedy, ids, list, read_json, text, worst};

/// A tensor as 32-bit floats.
#[derive(Clone)]
struct Tensor {
    shape: Vec<usize>,
    values: Vec<f32>,
}

type Tensors = BTreeMap<String, Tensor>;

fn tensors_of(model: &str) -> Tensors {
    let directory = fixtures().join("models").join(model);
    let mut tensors = Tensors::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let bytes = std::fs::read(path).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().iter() {
            let halves = || view.data().chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
            let values = match view.dtype() {
                Dtype::F32 => view
                    .data()
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                    .collect(),
                Dtype::BF16 => halves().map(|bits| bf16::from_bits(bits).to_f32()).collect(),
                Dtype::F16 => halves().map(|bits| f16::from_bits(bits).to_f32()).collect(),
                other => panic!("{other:?}"),
            };
            tensors.insert(name.to_owned(), Tensor { shape: view.shape().to_vec(), values });
        }
    }
    tensors
}

fn write_tensors(path: &Path, tensors: &Tensors) {
    let bytes: Vec<(&String, Vec<u8>)> = tensors
        .iter()
        .map(|(name, tensor)| (name, tensor.values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = bytes.iter().map(|(name, bytes)| {
        let shape = tensors[*name].shape.clone();
        (*name, TensorView::new(Dtype::F32, shape, bytes).unwrap())
    });
    std::fs::write(path, serialize(views, None).unwrap()).unwrap();
}

/// The log-probabilities that the goldens list, of the model in a directory; the reason where it is refused.
fn logprobs(directory: &Path, prompt: &[u32], tokens: &[u32]) -> Result<Vec<f32>, String> {
    let compute = Arc::new(Compute::new(2));
    let model =
        load::load(directory, compute, &mut |_, _| {}).map_err(|error| error.to_string())?;
    let bench = Bench::over(Arc::new(model), &[], EngineConfig::default());
    let output = bench.run(&Selection::Base, prompt, greedy(1));
    let row = output.row(prompt.len() - 1);
    Ok(tokens.iter().map(|&token| row[token as usize]).collect())
}

#[test]
fn what_transformers_saves_again_is_the_same_model() {
    let golden = golden("resaved");
    let tokens = ids(&golden["_meta"]["token_ids"]);
    let cases = list(&golden["resaved"]);
    assert!(cases.len() >= 12);
    for case in cases {
        let (name, model) = (text(case, "name"), text(case, "model"));
        let stored = tensors_of(model);
        let mut saved = Tensors::new();
        for tensor in list(&case["tensors"]) {
            let number = |value: &Json| value.as_u64().unwrap() as usize;
            let values = list(&tensor["from"]).iter().flat_map(|range| {
                let (first, count) = (number(&range[1]), number(&range[2]));
                stored[range[0].as_str().unwrap()].values[first..first + count].to_vec()
            });
            let shape = list(&tensor["shape"]).iter().map(number).collect();
            saved.insert(
                text(tensor, "name").to_owned(),
                Tensor { shape, values: values.collect() },
            );
        }
        let scratch = tempfile::tempdir().unwrap();
        for file in ["config.json", "generation_config.json"] {
            let from = fixtures().join("resaved").join(model).join(file);
            if from.is_file() {
                std::fs::copy(from, scratch.path().join(file)).unwrap();
            }
        }
        match case["files"].as_object() {
            None => write_tensors(&scratch.path().join("model.safetensors"), &saved),
            Some(files) => {
                for (file, names) in files {
                    let names: Vec<&str> = list(names).iter().filter_map(Json::as_str).collect();
                    let part = names.iter().map(|name| ((*name).to_owned(), saved[*name].clone()));
                    write_tensors(&scratch.path().join(file), &part.collect());
                }
                let map: Map<String, Json> = files
                    .iter()
                    .flat_map(|(file, names)| {
                        list(names)
                            .iter()
                            .map(|name| (name.as_str().unwrap().to_owned(), file.clone().into()))
                    })
                    .collect();
                let index = serde_json::json!({"metadata": {}, "weight_map": map});
                let path = scratch.path().join("model.safetensors.index.json");
                std::fs::write(path, index.to_string()).unwrap();
            }
        }
        let found = logprobs(scratch.path(), &ids(&case["prompt_ids"]), &tokens);
        let found = found.unwrap_or_else(|error| panic!("{name}: {error}"));
        let distance = worst(&found, &floats(&case["logprobs"]));
        assert!(distance <= 1e-4, "{name}: off by {distance:e}");
    }
}

/// Applies `{"key": value}` and `{"key": {"$delete": true}}`.
fn patched(mut object: Json, patch: &Json) -> Json {
    for (key, value) in patch.as_object().into_iter().flatten() {
        match value["$delete"] == true {
            true => {
                object.as_object_mut().unwrap().shift_remove(key);
            }
            false => object[key] = value.clone(),
        }
    }
    object
}

fn patch_weights(tensors: &mut Tensors, patch: &Json) {
    let before = tensors.clone();
    for (name, value) in patch.as_object().into_iter().flatten() {
        if let Some(source) = value["$copy"].as_str() {
            tensors.insert(name.clone(), before[source].clone());
        } else if let Some(source) = value["$reversed_rows"].as_str() {
            let mut tensor = before[source].clone();
            let width = tensor.shape[1];
            tensor.values = tensor.values.chunks(width).rev().flatten().copied().collect();
            tensors.insert(name.clone(), tensor);
        } else {
            tensors.remove(name);
        }
    }
}

/// Settings of another type than the family's: transformers raises, and the value says what was meant.
const TAKEN: &str = "null, or a whole number for a fraction, is taken for what it stands for";

#[test]
fn configurations_mean_what_they_mean_in_transformers() {
    let golden = golden("resaved");
    let tokens = ids(&golden["_meta"]["token_ids"]);
    let bases = list(&golden["bases"]);
    let prompt = |base: &str| {
        ids(&bases.iter().find(|entry| text(entry, "name") == base).unwrap()["prompt_ids"])
    };
    let (mut wrong, mut same, mut refused, mut taken) = (Vec::new(), 0, 0, 0);
    for variant in list(&golden["variants"]) {
        let (name, base) = (text(variant, "name"), text(variant, "base"));
        let source = fixtures().join("models").join(base);
        let scratch = tempfile::tempdir().unwrap();
        let config = patched(read_json(&source.join("config.json")), &variant["config_patch"]);
        std::fs::write(scratch.path().join("config.json"), config.to_string()).unwrap();
        let mut weights = tensors_of(base);
        patch_weights(&mut weights, &variant["weights_patch"]);
        write_tensors(&scratch.path().join("model.safetensors"), &weights);
        let found = logprobs(scratch.path(), &prompt(base), &tokens);
        let loads = variant["outcome"] == "loads";
        match found {
            Err(reason) if loads && std::env::var_os("RESAVED_REFUSALS").is_some() => {
                wrong.push(format!("REFUSED {name}: {reason}"))
            }
            Err(_) => refused += 1,
            Ok(found) if loads => {
                let distance = worst(&found, &floats(&variant["logprobs"]));
                same += 1;
                if distance.is_nan() || distance > 1e-4 {
                    wrong.push(format!("{name}: off by {distance:e}, {}", variant["config_patch"]));
                }
            }
            // transformers is stricter about types.
            Ok(_) => taken += 1,
        }
    }
    assert!(wrong.is_empty(), "{} of {same}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(same > 400 && refused > 150, "{same} the same, {refused} refused, {taken}: {TAKEN}");
}
