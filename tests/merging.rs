//! Merging and transforming modules: the numbers of the references (`goldens/routing.json`), what is loaded
//! of the results, and the commands.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use polyskill_adapters::library::Expected;
use polyskill_adapters::lora::LoraSite;
use polyskill_adapters::weights::LinearPart;
use polyskill_adapters::{Library, load_module};
use polyskill_cli::commands::adapters::{AdaptersCommand, run};
use polyskill_workshop::transform::{
    MergeOptions, Method, Rank, Refinement, Scaling, Sign, Weighted, merge, refine, rescale,
};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde_json::{Value as Json, json};

use crate::common::{fixtures, floats, golden, list, model, root, worst};

const SITE: &str = "model.layers.0.self_attn.q_proj";

/// A matrix and its shape.
type Matrix = (Vec<f32>, [usize; 2]);

fn matrix(value: &Json) -> Matrix {
    let rows = list(value).len();
    let values = floats(value);
    let columns = values.len() / rows;
    (values, [rows, columns])
}

fn identity(n: usize) -> Matrix {
    ((0..n * n).map(|at| f32::from(u8::from(at / n == at % n))).collect(), [n, n])
}

/// Writes a module: A and B by site.
fn write(root: &Path, name: &str, alpha: f32, sites: &[(&str, &Matrix, &Matrix)]) -> PathBuf {
    let directory = root.join(name);
    std::fs::create_dir(&directory).unwrap();
    let names: Vec<&str> = sites.iter().map(|(site, ..)| *site).collect();
    let rank = sites[0].1.1[0];
    let config =
        json!({"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": names});
    std::fs::write(directory.join("adapter_config.json"), config.to_string()).unwrap();
    let tensors: Vec<(String, [usize; 2], Vec<u8>)> = sites
        .iter()
        .flat_map(|(site, a, b)| [(site, "A", a), (site, "B", b)])
        .map(|(site, part, (values, shape))| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            (format!("base_model.model.{site}.lora_{part}.weight"), *shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
    });
    let weights = serialize(views, None).unwrap();
    std::fs::write(directory.join("adapter_model.safetensors"), weights).unwrap();
    directory
}

/// A or B of a module in f32.
fn part(directory: &Path, site: &str, part: &str) -> Matrix {
    let bytes = std::fs::read(directory.join("adapter_model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let view = tensors.tensor(&format!("base_model.model.{site}.lora_{part}.weight")).unwrap();
    let values = view.data().chunks_exact(4);
    let values = values.map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
    (values, [view.shape()[0], view.shape()[1]])
}

/// B·A of a module whose scale is 1.
fn product(directory: &Path, site: &str) -> Vec<f32> {
    let config = std::fs::read(directory.join("adapter_config.json")).unwrap();
    let config: Json = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["r"], config["lora_alpha"]);
    assert_eq!((&config["rank_pattern"], &config["use_rslora"]), (&json!({}), &json!(false)));
    let ((a, [rank, inputs]), (b, [outputs, _])) =
        (part(directory, site, "A"), part(directory, site, "B"));
    let element = |at: usize| {
        let terms = (0..rank).map(|k| b[at / inputs * rank + k] * a[k * inputs + at % inputs]);
        terms.sum()
    };
    (0..outputs * inputs).map(element).collect()
}

#[track_caller]
fn require(what: &str, found: &[f32], expected: &Json) {
    let off = worst(found, &floats(expected));
    assert!(off <= 1e-5, "{what} is off by {off}");
}

fn options(method: &str) -> MergeOptions {
    MergeOptions::new(Method::named(method).unwrap())
}

/// The modules with their weights.
fn weighted(directories: &[PathBuf], weights: &[f32]) -> Vec<Weighted> {
    let pairs = directories.iter().zip(weights);
    let input = |(directory, weight): (&PathBuf, &f32)| Weighted {
        directory: directory.clone(),
        weight: f64::from(*weight),
    };
    pairs.map(input).collect()
}

#[test]
fn pefts_weighted_adapters() {
    let golden = golden("routing");
    let (arrow, case) = (&golden["arrow_peft"], &golden["peft_merge"]);
    let root = tempfile::tempdir().unwrap();
    let modules: Vec<PathBuf> = floats(&case["scaling"])
        .iter()
        .enumerate()
        .map(|(at, scale)| {
            let (a, b) = (matrix(&arrow["A"][at]), matrix(&arrow["B"][at]));
            let alpha = scale * a.1[0] as f32;
            write(root.path(), &format!("m{at}"), alpha, &[(SITE, &a, &b)])
        })
        .collect();
    let inputs = weighted(&modules, &floats(&case["weights"]));
    let mut seen = 0;
    for case in list(&case["cases"]) {
        let kind = case["type"].as_str().unwrap();
        let method = format!("peft-{}", kind.replace('_', "-"));
        let options = MergeOptions {
            density: case["density"].as_f64(),
            rank: case["rank"].as_u64().map(|rank| Rank::Fixed(rank as usize)),
            ..options(&method)
        };
        let made = merge(&inputs, &options, &root.path().join(&method), &mut |_, _| {}).unwrap();
        let delta = case.get("delta_BA");
        match delta {
            Some(delta) => require(&method, &product(&made.path, SITE), delta),
            None => {
                require(&method, &part(&made.path, SITE, "A").0, &case["A"]);
                require(&method, &part(&made.path, SITE, "B").0, &case["B"]);
            }
        }
        seen += 1;
    }
    assert_eq!(seen, 5);
}

#[test]
fn ties_of_peft_and_of_mergekit() {
    let golden = golden("routing");
    let case = &golden["ties_tensors"];
    let root = tempfile::tempdir().unwrap();
    let modules: Vec<PathBuf> = list(&case["deltas"])
        .iter()
        .enumerate()
        .map(|(at, delta)| {
            let a = matrix(delta);
            let b = identity(a.1[0]);
            write(root.path(), &format!("m{at}"), a.1[0] as f32, &[(SITE, &a, &b)])
        })
        .collect();
    let inputs = weighted(&modules, &floats(&case["weights"]));
    for (method, sign, key) in [
        ("ties", Some(Sign::Total), "peft"),
        ("ties", Some(Sign::Frequency), "peft_frequency"),
        ("peft-ties-svd", None, "peft"),
        ("mergekit-ties", None, "mergekit_normalized"),
    ] {
        let options = MergeOptions { density: case["density"].as_f64(), sign, ..options(method) };
        let out = root.path().join(format!("{method}-{key}"));
        let made = merge(&inputs, &options, &out, &mut |_, _| {}).unwrap();
        require(&format!("{method}, {key}"), &product(&made.path, SITE), &case[key]);
    }
}

#[test]
fn timbers_refinement() {
    let golden = golden("routing");
    let case = &golden["timber"];
    let root = tempfile::tempdir().unwrap();
    let a = matrix(&case["delta"]);
    let b = identity(a.1[0]);
    let module = write(root.path(), "m", a.1[0] as f32, &[(SITE, &a, &b)]);
    for (gamma, key) in [(0.0, "gamma0"), (0.5, "gamma_half")] {
        let (timber, out) = (Refinement::Timber { gamma }, root.path().join(key));
        let made = refine(&module, timber, Default::default(), &out, &mut |_, _| {}).unwrap();
        require(key, &product(&made.path, SITE), &case[key]);
        let rank = if gamma == 0.0 { &case["k"] } else { &json!(5) };
        assert_eq!(&json!(made.sites[0].rank), rank, "{key}");
    }
}

#[test]
fn lines_scales_by_depth() {
    let golden = golden("routing");
    let case = &golden["lines"];
    let root = tempfile::tempdir().unwrap();
    let (a, b) = ((vec![1.0, -2.0], [1, 2]), (vec![0.5, 1.0, 2.0], [3, 1]));
    let names: Vec<String> = (0..list(&case["scales"]).len())
        .map(|layer| format!("model.layers.{layer}.mlp.up_proj"))
        .chain(["lm_head".to_owned()])
        .collect();
    let sites: Vec<(&str, &Matrix, &Matrix)> =
        names.iter().map(|name| (name.as_str(), &a, &b)).collect();
    let module = write(root.path(), "m", 1.0, &sites);
    let number = |key: &str| case[key].as_f64().unwrap();
    let lines = Scaling::Lines { alpha: number("alpha"), beta: number("beta"), layers: None };
    let out = root.path().join("out");
    rescale(&module, lines, &out).unwrap();
    let config = std::fs::read(out.join("adapter_config.json")).unwrap();
    let config: Json = serde_json::from_slice(&config).unwrap();
    let scale = |name: &String| {
        let alpha = config["alpha_pattern"].get(name).unwrap_or(&config["lora_alpha"]);
        alpha.as_f64().unwrap() as f32
    };
    let found: Vec<f32> = names.iter().map(scale).collect();
    require("scales", &found[..found.len() - 1], &case["scales"]);
    require("outside", &found[found.len() - 1..], &json!([case["outside"]]));
}

/// s·B·A, `[outputs, inputs]`.
fn delta(site: &LoraSite) -> Vec<f64> {
    let (a, b) = (site.a.as_slice().to_f32(), site.b_transposed.as_slice().to_f32());
    let (inputs, outputs) = (a.len() / site.rank, b.len() / site.rank);
    let element = |at: usize| {
        let (row, column) = (at / inputs, at % inputs);
        let terms = (0..site.rank)
            .map(|k| f64::from(b[k * outputs + row]) * f64::from(a[k * inputs + column]));
        f64::from(site.scale) * terms.sum::<f64>()
    };
    (0..outputs * inputs).map(element).collect()
}

/// The deltas of a module as the server loads it.
fn loaded(directory: &Path) -> BTreeMap<String, Vec<f64>> {
    let base = model("models/llama-tied");
    let module = load_module("m", directory, directory, &*base).unwrap();
    let library = Library::default();
    let module = library.publish("m", module, Expected::Absent).unwrap();
    let weights = &library.lease([&module]).unwrap()[0];
    let site = |(site, part): (polyskill_model::Site, &LinearPart)| {
        (site.to_string(), delta(part.lora.as_ref().unwrap()))
    };
    weights.sites().map(site).collect()
}

/// Unequal ranks, scales, dtypes and sites.
#[test]
fn what_is_written_is_loaded_with_the_deltas_that_are_meant() {
    let names =
        ["lora-basic", "lora-patterns", "lora-rslora", "lora-bf16", "lora-layers", "lora-regex"];
    let modules: Vec<PathBuf> =
        names.iter().map(|name| fixtures().join("adapters").join(name)).collect();
    let weights = [0.5, -1.0, 0.25, 1.5, 2.0, -0.75];
    let mut expected: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (module, weight) in modules.iter().zip(weights) {
        for (site, delta) in loaded(module) {
            let sum = expected.entry(site).or_insert_with(|| vec![0.0; delta.len()]);
            sum.iter_mut().zip(delta).for_each(|(sum, delta)| *sum += f64::from(weight) * delta);
        }
    }
    let root = tempfile::tempdir().unwrap();
    let inputs = weighted(&modules, &weights);
    let full = MergeOptions { rank: Some(Rank::Energy(1.0)), threads: 2, ..options("svd") };
    let prune = MergeOptions {
        density: Some(1.0),
        rank: Some(Rank::Energy(1.0)),
        ..options("magnitude-prune")
    };
    for (name, options) in [("cat", options("cat")), ("svd", full), ("dense", prune)] {
        let out = root.path().join(name);
        let made = merge(&inputs, &options, &out, &mut |_, _| {}).unwrap();
        let found = loaded(&out);
        assert!(found.keys().eq(expected.keys()), "{name}");
        for (site, found) in &found {
            let pairs = found.iter().zip(&expected[site]);
            let squares: f64 = pairs.map(|(found, expected)| (found - expected).powi(2)).sum();
            let norm: f64 = expected[site].iter().map(|value| value * value).sum();
            let off = (squares / norm).sqrt();
            assert!(off < 1e-6, "{name} at {site}: {off}");
        }
        let base = model("models/llama-tied");
        let module = load_module("m", &out, &out, &*base).unwrap();
        assert_eq!(module.generation(), made.generation);
        assert!(module.tags().contains(&options.method.name().to_owned()));
    }
}

/// Runs `polyskill adapters` with arguments as on the command line.
fn command(arguments: &[&str]) -> Result<String, String> {
    #[derive(clap::Parser)]
    struct Line {
        #[command(subcommand)]
        command: AdaptersCommand,
    }
    let line = ["adapters"].iter().chain(arguments);
    let line = <Line as clap::Parser>::try_parse_from(line).map_err(|error| error.to_string())?;
    let mut out = Vec::new();
    run(&line.command, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

#[test]
fn modules_are_merged_shown_verified_and_compared_on_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let adapters = fixtures().join("adapters");
    let adapters = adapters.to_str().unwrap();
    let (base, other) =
        (fixtures().join("models/llama-tied"), fixtures().join("models/llama-untied"));
    let (base, other) = (base.to_str().unwrap(), other.to_str().unwrap());
    let (merged, half) = (path("merged"), path("half"));
    let said = command(&[
        "merge",
        "--method",
        "svd",
        "--rank",
        "3",
        "--weight",
        "task-a=1",
        "--weight",
        "task-b=-0.5",
        "--adapters",
        adapters,
        "--out",
        &merged,
    ])
    .unwrap();
    let shown = command(&["inspect", &merged, "--json"]).unwrap();
    let shown: Json = serde_json::from_str(&shown).unwrap();
    let generation = shown["generation"].as_str().unwrap();
    assert!(said.contains(&format!("generation {generation}")), "{said}");
    assert!(said.contains("21 sites, rank 3\nrelative error: mean 0."), "{said}");
    assert_eq!(list(&shown["content"]["sites"]).len(), 21);
    assert!(list(&shown["tags"]).contains(&json!("svd")));
    let text = command(&["inspect", &merged]).unwrap();
    assert!(text.contains("down_proj       3  64x96     3      1    F32"), "{text}");
    let verified = command(&["verify", &merged, "--model", base, "--generation", generation]);
    assert!(verified.unwrap().contains("21 sites"));
    let refused =
        command(&["verify", &merged, "--model", other, "--generation", "00"]).unwrap_err();
    for part in [
        "`merged` is refused:\n- ",
        "has shape [3, 64], expected [3, 48]",
        &format!("the generation is {generation}, expected 00"),
    ] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    command(&["transform", "scale", "--factor", "-0.5", &merged, "--out", &half]).unwrap();
    let compared = command(&["diff", &merged, &half]).unwrap();
    assert!(compared.contains("relative distance 1.5000, cosine -1.0000"), "{compared}");
    let compared: Json =
        serde_json::from_str(&command(&["diff", &merged, &half, "--json"]).unwrap()).unwrap();
    let settings = json!([{"key": "lora_alpha", "values": [3, -1.5]}]);
    assert_eq!(compared["settings"], settings);
    assert!(command(&["diff", &merged, &merged]).unwrap().contains("the same generation"));
}

#[test]
fn commands_say_what_is_wrong_and_write_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let adapters = fixtures().join("adapters");
    let (path, adapters) = (out.to_str().unwrap(), adapters.to_str().unwrap());
    let merge = |method: &str, weights: &[&str]| {
        let mut line = vec!["merge", "--method", method, "--adapters", adapters, "--out", path];
        weights.iter().for_each(|weight| line.extend(["--weight", weight]));
        let said = command(&line).unwrap_err();
        assert!(!out.exists() && std::fs::read_dir(folder.path()).unwrap().count() == 0, "{said}");
        said
    };
    let found = merge("cat", &["task-a=much", "nobody", "../task-a"]);
    for part in ["`much` is no number", "`nobody` is no directory", "`../task-a` is no directory"] {
        assert!(found.contains(part), "{part}: {found}");
    }
    assert!(merge("ties", &["task-a=NaN"]).contains("is NaN"));
    assert!(merge("ties", &["task-a"]).contains("needs a density"));
    assert!(merge("cat", &["task-a", "lora-untied"]).contains("`lora-untied` has inputs 48"));
    assert!(merge("median", &["task-a"]).contains("mergekit-ties"));
    let origin = root().join("tests/fixtures/adapters/task-a");
    let origin = origin.to_str().unwrap();
    let found = command(&["transform", "prompt-vector", origin, "--origin", origin, "--out", path]);
    assert!(found.unwrap_err().contains("expected PROMPT_TUNING"));
}
