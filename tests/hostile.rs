//! Broken files are refused with a reason, and broken routers cost no more than the modules.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use polyskill_adapters::library::Expected;
use polyskill_adapters::load_module;
use polyskill_engine::{FaultPolicy, RouterSettings, Selection};
use polyskill_model::{Compute, load};
use polyskill_sdk::gate::{Combine, Op, Program, Share, SiteSelector};
use polyskill_sdk::runtime::Native;
use polyskill_sdk::{
    Descriptor, Host, LibraryChange, Parameters, Pick, Plan, Request, RouteError, Router, Value,
};
use serde_json::Value as Json;

use crate::common::{
    Bench, TASKS, fixtures, greedy, list, model, read_json, routed, text, weighted,
};

/// Parts of messages that name what is wrong, for entries of the manifest.
const REASONS: [(&str, &str); 13] = [
    ("adapters/wrong-in", "48"),
    ("adapters/unknown-layer", "7"),
    ("adapters/nan", "finite"),
    ("adapters/infinite", "finite"),
    ("adapters/modules-to-save", "modules_to_save"),
    ("adapters/pickle-only", "pickle"),
    ("adapters/config-missing", "adapter_config.json"),
    ("adapters/peft-type-unknown", "peft_type"),
    ("models/config-type-unknown", "model_type"),
    ("models/missing-tensors", "missing"),
    ("gguf/magic.gguf", "GGUF"),
    ("gguf/version.gguf", "99"),
    ("gguf/tensor-type.gguf", "type"),
];

fn refusal(entry: &Json) -> Option<String> {
    let root = fixtures().join("hostile");
    let (path, kind) = (text(entry, "path"), text(entry, "kind"));
    if ["adapter", "module", "gguf-adapter"].contains(&kind) {
        let base = model("models/llama-tied");
        let loaded = load_module("hostile", &root.join(path), &root, base.as_ref());
        return loaded.err().map(|error| error.to_string());
    }
    let loaded = load::load(&root.join(path), Arc::new(Compute::new(1)), &mut |_, _| {});
    loaded.err().map(|error| error.to_string())
}

#[test]
fn every_hostile_file_is_refused_with_a_reason() {
    let manifest = read_json(&fixtures().join("hostile/hostile.json"));
    let entries = list(&manifest["entries"]);
    assert!(entries.len() > 90, "the manifest has shrunk");
    let mut wrong = String::new();
    for entry in entries {
        let (path, expected) = (text(entry, "path"), entry["refused"] == true);
        let refusal = refusal(entry);
        if refusal.is_some() != expected {
            let _ = writeln!(wrong, "{path} ({}): {refusal:?}", text(entry, "why"));
        }
        let words = entry.get("expect").map(list).into_iter().flatten().filter_map(Json::as_str);
        let message = refusal.clone().unwrap_or_default();
        for word in words.filter(|word| !message.contains(word)) {
            let _ = writeln!(wrong, "{path}: the message does not say `{word}`: {message}");
        }
        let Some(message) = refusal else { continue };
        if message.len() < 20 || message.len() > 4_000 {
            let _ = writeln!(wrong, "{path}: the message has {} bytes", message.len());
        }
        let known = REASONS.iter().find(|(known, _)| *known == path);
        if known.is_some_and(|(_, part)| !message.contains(part)) {
            let _ = writeln!(wrong, "{path}: the message does not name the reason: {message}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[cfg(unix)]
#[test]
fn a_link_out_of_the_root_is_refused() {
    let base = model("models/llama-tied");
    let source = fixtures().join("adapters/lora-basic");
    let load_with_link = |config: &Path, weights: &Path| {
        let root = tempfile::tempdir().unwrap();
        let module = root.path().join("module");
        std::fs::create_dir(&module).unwrap();
        for (file, target) in
            [("adapter_config.json", config), ("adapter_model.safetensors", weights)]
        {
            match target.is_absolute() {
                true => std::os::unix::fs::symlink(target, module.join(file)).unwrap(),
                false => drop(std::fs::copy(source.join(file), module.join(file)).unwrap()),
            }
        }
        load_module("linked", &module, root.path(), base.config())
    };
    let (config, weights) =
        (source.join("adapter_config.json"), source.join("adapter_model.safetensors"));
    let plain = Path::new("copied");
    load_with_link(plain, plain).unwrap();
    for (config, weights) in [(config.as_path(), plain), (plain, weights.as_path())] {
        let error = load_with_link(config, weights).unwrap_err().to_string();
        assert!(error.contains("linked") && error.contains("outside"), "{error}");
    }
}

/// A router that answers wrongly in a way that its parameter `mode` names.
#[derive(Debug)]
struct Hostile;

fn program(sites: SiteSelector, ops: Vec<Op>) -> Plan {
    Plan::Gated(vec![Program { sites, share: Share::Site, ops, combine: Combine::OutputSum }])
}

fn fixed(picks: &[(u32, f32)]) -> Plan {
    Plan::output_sum(picks.iter().map(|&(module, weight)| Pick { module, weight }))
}

const MODES: [&str; 15] = [
    "nan-weight",
    "infinite-weight",
    "unknown-module",
    "duplicate-pick",
    "undefined-name",
    "site-out-of-range",
    "no-ops",
    "no-emit",
    "wrong-order",
    "top-none",
    "too-many-ops",
    "nan-affine",
    "bad-row",
    "failed",
    "not-ready",
];

impl Router for Hostile {
    fn init(_: &mut dyn Host, parameters: &Parameters) -> Result<Self, String> {
        match parameters.get("refuse") {
            Some(_) => Err("these parameters are not for me".to_owned()),
            None => Ok(Self),
        }
    }

    fn descriptor(&self) -> Descriptor {
        Descriptor { name: "hostile".into(), version: "0.0.0".into(), causal: true }
    }

    fn library_changed(
        &mut self,
        host: &mut dyn Host,
        change: &LibraryChange,
    ) -> Result<(), String> {
        for &module in &change.added {
            for at in host.sites(module) {
                let inputs = host.model().sites[at.site as usize].inputs as usize;
                host.define("ones", module, at.site, vec![1.0; inputs])?;
            }
        }
        Ok(())
    }

    fn plan(&mut self, host: &mut dyn Host, request: &Request) -> Result<Plan, RouteError> {
        let Some(Value::Text(mode)) = request.parameters.get("mode") else {
            return Err(RouteError::Failed("no mode".to_owned()));
        };
        let linear = |name: &str| Op::Linear { name: name.to_owned() };
        let all = |ops| Ok(program(SiteSelector::All, ops));
        match mode.as_str() {
            "nan-weight" => Ok(fixed(&[(0, f32::NAN)])),
            "infinite-weight" => Ok(fixed(&[(0, 1.0), (1, f32::INFINITY)])),
            "unknown-module" => Ok(fixed(&[(4_000_000_000, 1.0)])),
            "duplicate-pick" => Ok(fixed(&[(1, 0.5), (1, 0.5)])),
            "undefined-name" => all(vec![Op::LoadInput, linear("nobody"), Op::Emit]),
            "site-out-of-range" => {
                let ops = vec![Op::LoadInput, linear("ones"), Op::Emit];
                Ok(program(SiteSelector::Listed(vec![0, u32::MAX]), ops))
            }
            "no-ops" => all(vec![]),
            "no-emit" => all(vec![Op::LoadInput, linear("ones")]),
            "wrong-order" => all(vec![linear("ones"), Op::LoadInput, Op::Emit]),
            "top-none" => all(vec![Op::LoadInput, linear("ones"), Op::TopK { k: 0 }, Op::Emit]),
            "too-many-ops" => {
                let mut ops = vec![Op::LoadInput, linear("ones")];
                ops.extend(vec![Op::Abs; 10_000]);
                ops.push(Op::Emit);
                all(ops)
            }
            "nan-affine" => {
                let affine = Op::Affine { scale: f32::NAN, shift: 0.0 };
                all(vec![Op::LoadInput, linear("ones"), affine, Op::Emit])
            }
            "bad-row" => {
                let refused = host.define("row", 0, 0, vec![1.0; 3]);
                refused.and_then(|()| host.define("row", 9_999, 0, vec![1.0; 64]))?;
                Ok(fixed(&[]))
            }
            "not-ready" => Err(RouteError::NotReady("gates are missing".to_owned())),
            "overflow" => {
                let affine = Op::Affine { scale: 3e38, shift: 0.0 };
                all(vec![Op::LoadInput, linear("ones"), affine.clone(), affine, Op::Emit])
            }
            other => Err(RouteError::Failed(other.to_owned())),
        }
    }
}

fn mode(name: &str) -> Selection {
    routed("hostile", Parameters(vec![("mode".to_owned(), Value::Text(name.to_owned()))]))
}

fn bench() -> Bench {
    let bench = Bench::new("models/llama-tied", &TASKS);
    let none = Parameters::default();
    let router = Native::<Hostile>::new(&bench.composer.view(), &none).unwrap();
    let patient = FaultPolicy { max_faults: usize::MAX, ..FaultPolicy::default() };
    let settings = RouterSettings { faults: patient, ..RouterSettings::default() };
    bench.composer.add_router("hostile", "native".to_owned(), Box::new(router), settings).unwrap();
    bench
}

#[test]
fn the_base_answers_for_a_router_that_does_not() {
    let bench = bench();
    let prompt: Vec<u32> = (10..40).collect();
    let base = bench.run(&Selection::Base, &prompt, greedy(6));
    for (index, name) in MODES.into_iter().enumerate() {
        let composition = bench.compose(&mode(name));
        let reason = composition.fallback().unwrap_or_else(|| panic!("{name} was accepted"));
        assert!(reason.len() > 10, "{name}: {reason}");
        assert!(composition.modules().is_empty(), "{name}");
        assert_eq!(composition.router().unwrap().name, "hostile");
        let output = bench.run(&mode(name), &prompt, greedy(6));
        assert!(output.bits() == base.bits(), "{name} changed the base");
        // Two compositions per mode; the last is no fault, but a decision that is left to others.
        let info = &bench.composer.routers()[0];
        let (faults, abstentions) = match name {
            "not-ready" => (2 * index as u64, 2),
            _ => (2 * index as u64 + 2, 0),
        };
        assert_eq!((info.faults, info.abstentions), (faults, abstentions), "{name}");
    }
    let info = &bench.composer.routers()[0];
    assert!(info.last_fault.as_ref().is_some_and(|fault| fault.contains("failed: failed")));
}

/// Weights that overflow only on real rows are found there: the base runs alone, row by row.
#[test]
fn rows_without_a_usable_weight_fall_back() {
    let bench = bench();
    let prompt: Vec<u32> = (10..40).collect();
    let base = bench.run(&Selection::Base, &prompt, greedy(6));
    let composition = bench.compose(&mode("overflow"));
    assert_eq!(composition.fallback(), None);
    let output = bench.run(&mode("overflow"), &prompt, greedy(6));
    assert!(output.finished.fallback_rows > 0);
    assert!(output.bits() == base.bits());
    assert!(bench.engine.handle().stats().snapshot().fallback_rows > 0);
}

#[test]
fn a_router_that_refuses_its_parameters_is_not_published() {
    let bench = Bench::new("models/llama-tied", &TASKS);
    let refuse = Parameters(vec![("refuse".to_owned(), Value::Flag(true))]);
    let fault = Native::<Hostile>::new(&bench.composer.view(), &refuse).unwrap_err();
    assert_eq!(fault.to_string(), "the router failed: these parameters are not for me");
    assert!(bench.composer.routers().is_empty());
    let error = bench.composer.compose(&mode("failed")).unwrap_err();
    assert!(error.to_string().contains("`hostile` does not exist"), "{error}");
}

/// Writes `file` of a copied directory with some bytes changed and the end cut off.
fn mutate(source: &Path, target: &Path, file: &str, edits: &[(usize, u8)], keep: f64) {
    for entry in std::fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), target.join(entry.file_name())).unwrap();
    }
    let mut bytes = std::fs::read(source.join(file)).unwrap();
    // Most edits fall into the header, where the structure is.
    edits.iter().for_each(|&(at, byte)| {
        let at = at % bytes.len().min(2_000);
        bytes[at] = byte;
    });
    bytes.truncate((bytes.len() as f64 * keep) as usize);
    std::fs::write(target.join(file), bytes).unwrap();
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Whatever kind a module is of, and whatever is loaded does no harm to a request.
    #[test]
    fn mutated_modules_of_every_kind_never_panic(
        content in proptest::sample::select(vec![
            "dora-all", "ia3-default", "prompt-5", "prefix-7", "tokens-lora-tied", "tokens-alone-tied",
            "lora-embedding-saved", "steering", "soft-injection", "graft", "../mlx/lora",
            "../mlx/lora-tied-table",
        ]),
        gguf in proptest::sample::select(vec!["lora-task-b-q8_0.gguf", "control-vector.gguf"]),
        edits in proptest::collection::vec((0..2_000_usize, 0..=255_u8), 0..6),
        keep in proptest::sample::select(vec![1.0, 1.0, 0.99, 0.5, 0.001]),
        of_config in proptest::bool::ANY,
    ) {
        let base = model("models/llama-tied");
        let scratch = tempfile::tempdir().unwrap();
        let source = fixtures().join("adapters").join(content);
        let is_own = source.join("polyskill_config.json").exists();
        let is_mlx = source.join("adapters.safetensors").exists();
        let file = match (is_own, of_config) {
            (false, false) if is_mlx => "adapters.safetensors",
            (false, true) => "adapter_config.json",
            (false, false) => "adapter_model.safetensors",
            (true, true) => "polyskill_config.json",
            (true, false) => "polyskill_module.safetensors",
        };
        mutate(&source, scratch.path(), file, &edits, keep);
        let loaded = load_module("mutated", scratch.path(), scratch.path(), base.as_ref());
        if let Ok(module) = loaded {
            let bench = Bench::new("models/llama-tied", &[]);
            bench.library.publish("mutated", module, Expected::Absent).unwrap();
            let prompt = [5, 6, 7, 8];
            let output = bench.run(&weighted(&[("mutated", 1.0)]), &prompt, greedy(3));
            proptest::prop_assert_eq!(output.finished.prompt_tokens, 4);
        }
        let scratch = tempfile::tempdir().unwrap();
        let mut bytes = std::fs::read(fixtures().join("gguf").join(gguf)).unwrap();
        for &(at, byte) in &edits {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        bytes.truncate((bytes.len() as f64 * keep) as usize);
        let path = scratch.path().join("mutated.gguf");
        std::fs::write(&path, bytes).unwrap();
        let _ = load_module("mutated", &path, scratch.path(), base.as_ref());
    }

    #[test]
    fn mutated_modules_and_checkpoints_never_panic(
        edits in proptest::collection::vec((0..2_000_usize, 0..=255_u8), 0..6),
        keep in proptest::sample::select(vec![1.0, 1.0, 0.99, 0.5, 0.001]),
        of_config in proptest::bool::ANY,
    ) {
        let base = model("models/llama-tied");
        let scratch = tempfile::tempdir().unwrap();
        let file = if of_config { "adapter_config.json" } else { "adapter_model.safetensors" };
        mutate(&fixtures().join("adapters/lora-basic"), scratch.path(), file, &edits, keep);
        let _ = load_module("mutated", scratch.path(), scratch.path(), base.config());
        let scratch = tempfile::tempdir().unwrap();
        let file = if of_config { "config.json" } else { "model.safetensors" };
        mutate(&fixtures().join("models/llama-tied"), scratch.path(), file, &edits, keep);
        let _ = load::load(scratch.path(), Arc::new(Compute::new(1)), &mut |_, _| {});
        let scratch = tempfile::tempdir().unwrap();
        let file = "model.safetensors.index.json";
        mutate(&fixtures().join("models/llama3-rope"), scratch.path(), file, &edits, keep);
        let _ = load::load(scratch.path(), Arc::new(Compute::new(1)), &mut |_, _| {});
    }
}

/// A tensor that nothing reads would be missing without a word.
#[test]
fn tensors_without_a_place_are_refused_by_name() {
    let source = fixtures().join("models/llama-tied");
    let scratch = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&source).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, scratch.path().join(path.file_name().unwrap())).unwrap();
    }
    let file = scratch.path().join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let load = || load::load(scratch.path(), Arc::new(Compute::new(1)), &mut |_, _| {});
    assert!(load().is_ok());
    let zeros = [0_u8; 16];
    for (name, refused) in [
        ("model.layers.0.self_attn.q_proj.bias", true),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", false),
    ] {
        let more = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![4], &zeros);
        let all = tensors.iter().chain([(name, more.unwrap())]);
        std::fs::write(&file, safetensors::serialize(all, None).unwrap()).unwrap();
        let found = load().err().map(|error| error.to_string()).unwrap_or_default();
        assert_eq!(found.contains(name), refused, "{found}");
    }
}
