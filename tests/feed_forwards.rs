//! Experts beside the base's own feed-forwards: reference numbers, requests in one batch, upcycling.

use std::path::Path;

use polyskill_adapters::load_module;
use polyskill_engine::{Offered, RouterSettings, Selection};
use polyskill_plugin::{Limits, Loader, Trust};
use polyskill_router_branch_train_mix::BranchTrainMix;
use polyskill_sdk::runtime::Native;
use polyskill_sdk::{Parameters, Value};
use polyskill_workshop::transform::{Dtype, upcycle};
use serde_json::{Value as Json, json};

use crate::common::{
    Bench, Case, Output, beside, cases, fixtures, greedy, list, model, plugins, routed, submit,
    text, weighted, worst,
};

const TOLERANCE: f32 = 1e-4;

fn bench(base: &str) -> Bench {
    let (prefix, lora) = match base {
        "mixtral" => ("expert-mixtral", "lora-mixtral"),
        _ => ("expert", "lora-all"),
    };
    let names = ["one", "two", "added"].map(|name| format!("{prefix}-{name}"));
    let mut modules: Vec<&str> = names.iter().map(String::as_str).collect();
    modules.push(lora);
    let bench = Bench::new(&format!("models/{base}"), &modules);
    let router = Native::<BranchTrainMix>::new(&bench.composer.view(), &Parameters::default());
    add(&bench, "branch-train-mix", "native", Box::new(router.unwrap()));
    bench
}

fn add(
    bench: &Bench,
    name: &str,
    digest: &str,
    router: Box<dyn polyskill_sdk::runtime::LoadedRouter>,
) {
    let settings = RouterSettings { offered: Offered::Experts, ..RouterSettings::default() };
    bench.composer.add_router(name, digest.to_owned(), router, settings).unwrap();
}

/// What a golden case asks for.
fn selection(header: &Json, router: &str) -> Selection {
    if let Some(adapters) = header.get("adapters") {
        let weight = |adapter: &Json| adapter["weight"].as_f64().unwrap() as f32;
        let named: Vec<(&str, f32)> =
            list(adapters).iter().map(|adapter| (text(adapter, "name"), weight(adapter))).collect();
        return weighted(&named);
    }
    let Selection::Routed(mut asked) = routed(router, parameters(&header["parameters"])) else {
        unreachable!()
    };
    asked.modules =
        list(&header["modules"]).iter().map(|name| name.as_str().unwrap().to_owned()).collect();
    Selection::Routed(asked)
}

fn parameters(settings: &Json) -> Parameters {
    let value = |value: &Json| match value {
        Json::Bool(flag) => Value::Flag(*flag),
        other => Value::Number(other.as_f64().unwrap()),
    };
    let settings = settings.as_object().unwrap();
    Parameters(settings.iter().map(|(name, found)| (name.clone(), value(found))).collect())
}

fn run(bench: &Bench, selection: &Selection, case: &Case) -> Output {
    assert_eq!(bench.compose(selection).fallback(), None, "{}", case.name);
    bench.run(selection, &case.prompt, greedy(case.greedy_ids.len()))
}

/// The worst difference between two outputs, in nats.
fn distance(one: &Output, two: &Output, case: &Case) -> f32 {
    let rows = (0..case.prompt.len()).map(|at| worst(&one.row(at), &two.row(at)));
    rows.fold(0.0, f32::max)
}

fn of_base<'a>(cases: &'a [Case], base: &'a str) -> impl Iterator<Item = &'a Case> {
    cases.iter().filter(move |case| case.header["model"] == base)
}

#[test]
fn mixtures_agree_with_transformers() {
    let cases = cases("experts");
    assert_eq!(cases.len(), 24);
    for base in ["llama-tied", "mixtral"] {
        let bench = bench(base);
        for case in of_base(&cases, base) {
            run(&bench, &selection(&case.header, "branch-train-mix"), case)
                .require(case, TOLERANCE);
            let base = run(&bench, &Selection::Base, case);
            assert!(base.distance(case) > 1e-2, "{}: the experts change nothing", case.name);
        }
    }
}

/// The plugin in its sandbox says what the native router says.
#[test]
fn the_sandboxed_router_mixes_alike() {
    let loader = Loader::new(Limits::default(), Trust::unsigned(), None).unwrap();
    let plugin = loader.load(&plugins().join("branch-train-mix")).unwrap();
    assert!(!plugin.self_test().unwrap().is_empty());
    let cases = cases("experts");
    for base in ["llama-tied", "mixtral"] {
        let bench = bench(base);
        let router = plugin.start(&bench.composer.view(), Parameters::default()).unwrap();
        add(&bench, "sandboxed", plugin.digest(), router);
        for case in of_base(&cases, base).filter(|case| case.header["modules"].is_array()) {
            let run = |router: &str| run(&bench, &selection(&case.header, router), case);
            let (sandboxed, native) = (run("sandboxed"), run("branch-train-mix"));
            assert_eq!(sandboxed.ids(), native.ids(), "{}", case.name);
            // Its exponential function is not the system's.
            let distance = distance(&sandboxed, &native, case);
            assert!(distance < 1e-5, "{}: {distance:e}", case.name);
        }
    }
}

/// Requests with experts, with others, with LoRA beside them and without any share a batch, and each gives the bits that it
/// gives alone.
#[test]
fn experts_act_on_their_request_alone() {
    let all = cases("experts");
    for (base, prefix, lora) in
        [("llama-tied", "expert", "lora-all"), ("mixtral", "expert-mixtral", "lora-mixtral")]
    {
        let bench = bench(base);
        let case = of_base(&all, base).nth(1).unwrap();
        let mut selections: Vec<Selection> = of_base(&all, base)
            .step_by(2)
            .map(|case| selection(&case.header, "branch-train-mix"))
            .collect();
        let last = selections.last().unwrap().clone();
        selections.push(beside(last, vec![(lora.to_owned(), 0.5)]));
        selections.push(weighted(&[(lora, 0.5), (&format!("{prefix}-two"), 1.0)]));
        selections.push(Selection::Base);
        let alone: Vec<Vec<u32>> =
            selections.iter().map(|selection| run(&bench, selection, case).bits()).collect();
        for (at, bits) in alone.iter().enumerate() {
            assert!(!alone[..at].contains(bits), "{base}: selection {at} is like another");
        }
        let pending: Vec<_> = selections
            .iter()
            .map(|selection| {
                let composition = bench.compose(selection);
                let sampling = greedy(case.greedy_ids.len());
                submit(&bench.engine, &composition, &case.prompt, sampling)
            })
            .collect();
        for (pending, alone) in pending.into_iter().zip(alone) {
            assert_eq!(pending.wait().bits(), alone, "{base}");
        }
    }
}

/// At weight 1, the expert of a module and what it changes in the attention are the module.
#[test]
fn an_upcycled_module_is_itself() {
    let folder = tempfile::tempdir().unwrap();
    let source = fixtures().join("adapters/lora-all");
    let base = model("models/llama-tied");
    let made =
        upcycle(std::slice::from_ref(&source), &base, Dtype::F32, folder.path(), &mut |_, _| {})
            .unwrap();
    assert_eq!((made.experts[0].1, made.experts[0].2), (3, 0));
    let attention = made.attention.unwrap();
    let again = upcycle(&[source], &base, Dtype::F32, folder.path(), &mut |_, _| {});
    let again = again.unwrap_err().to_string();
    assert!(again.contains("lora-all exists"), "{again}");

    let bench = Bench::new("models/llama-tied", &["lora-all"]);
    for (name, path) in [("expert", &made.experts[0].0.path), ("attention", &attention.path)] {
        let module = load_module(name, path, folder.path(), bench.model.as_ref()).unwrap();
        bench.library.publish(name, module, polyskill_adapters::library::Expected::Absent).unwrap();
    }
    let case = &cases("experts")[1];
    let module = run(&bench, &weighted(&[("lora-all", 1.0)]), case);
    let both = run(&bench, &weighted(&[("attention", 1.0), ("expert", 1.0)]), case);
    let expert = run(&bench, &weighted(&[("expert", 1.0)]), case);
    assert!(distance(&both, &module, case) < TOLERANCE, "{}", distance(&both, &module, case));
    assert!(distance(&expert, &module, case) > 1e-2);
}

#[test]
fn what_makes_no_expert_is_refused_with_all_reasons() {
    let folder = tempfile::tempdir().unwrap();
    let modules = ["lora-basic", "dora-all", "lora-untied"]
        .map(|name| fixtures().join("adapters").join(name));
    let base = model("models/llama-tied");
    let refused = upcycle(&modules, &base, Dtype::F32, folder.path(), &mut |_, _| {});
    let refused = refused.unwrap_err().to_string();
    for part in
        ["`lora-basic` changes no feed-forward", "`use_dora`", "`lora-untied`: the delta at"]
    {
        assert!(refused.contains(part), "{part} is not in: {refused}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Why an expert with this configuration, and with these of `expert-one`'s tensors, is refused.
fn refusal(config: &Json, keep: impl Fn(&str) -> bool) -> String {
    let from = fixtures().join("adapters/expert-one");
    let bytes = std::fs::read(from.join("polyskill_module.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let kept = tensors.iter().filter(|(name, _)| keep(name));
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("polyskill_module.safetensors", &safetensors::serialize(kept, None).unwrap());
    let mut all = json!({"polyskill_type": "FEED_FORWARD_EXPERT", "format_version": 1});
    all.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    write("polyskill_config.json", all.to_string().as_bytes());
    let path: &Path = folder.path();
    load_module("expert", path, path, model("models/llama-tied").as_ref()).unwrap_err().to_string()
}

#[test]
fn broken_experts_are_refused_by_name() {
    let layers = |layers: Json| json!({"operation": "mix", "layers": layers});
    for (config, part) in [
        (layers(json!([])), "no layers"),
        (layers(json!([0])), "model.layers.2.mlp.down_proj.weight` is used by no layer"),
        (layers(json!([0, 1, 2])), "`model.layers.1.mlp.gate_proj.weight` is missing"),
        (layers(json!([2, 0])), "layer 0: layers must ascend"),
        (layers(json!([0, 2, 7])), "layer 7: the base has 3 layers"),
        (layers(json!([0, -1])), "-1"),
        (json!({"operation": "double", "layers": [0, 2]}), "double"),
        (json!({"operation": "mix", "layers": [0, 2], "width": 3}), "width"),
        (json!({"operation": "mix", "layers": [0, 2], "base_digest": "00"}), "`base_digest` is 00"),
    ] {
        let found = refusal(&config, |_| true);
        assert!(found.contains(part), "{config}: {found}");
    }
    let found = refusal(&layers(json!([0, 2])), |name| !name.contains("2.mlp.up_proj"));
    assert!(found.contains("`model.layers.2.mlp.up_proj.weight` is missing"), "{found}");
}
