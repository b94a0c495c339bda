//! Expert policies: the arithmetic of the papers, policies on a tiny mixtral, and requests with and without one in a batch.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use polyskill_adapters::load_module;
use polyskill_cli::commands::calibrate::{self, CalibrateArgs, Method};
use polyskill_engine::{EngineConfig, Offered, RouterRequest, RouterSettings, Selection};
use polyskill_model::config::Activation;
use polyskill_model::linear::DenseWeights;
use polyskill_model::{Compute, Experts, Linear, Matrix};
use polyskill_plugin::{Limits, Loader, Trust};
use polyskill_router_expert_pruning::ExpertPruning;
use polyskill_sdk::experts::{ExpertLayer, ExpertOp, LayerPolicy, interpret, native};
use polyskill_sdk::runtime::Native;
use polyskill_sdk::{Parameters, Value};
use polyskill_workshop::calibration::{Enumeration, Tokens, Usage};
use serde_json::Value as Json;

use crate::common::{
    Bench, Case, Output, beside, cases, floats, golden, greedy, list, plugins, read_json, root,
    routed, submit, text, weighted, worst,
};

const TOLERANCE: f32 = 1e-5;

fn linear(rows: &Json) -> Linear {
    let inner = list(&list(rows)[0]).len();
    Linear { matrix: Matrix::Dense { weights: DenseWeights::F32(floats(rows)), inner }, bias: None }
}

/// The layer of the golden file.
struct Layer {
    experts: Experts,
    compute: Compute,
    info: ExpertLayer,
    hidden: usize,
}

impl Layer {
    fn new(golden: &Json) -> Self {
        let expert = |e: &Json| [linear(&e["w1"]), linear(&e["w3"]), linear(&e["w2"])];
        let routed: Vec<_> = list(&golden["experts"]).iter().map(expert).collect();
        let info = ExpertLayer {
            layer: 0,
            num_experts: routed.len() as u32,
            top_k: golden["top_k"].as_u64().unwrap() as u32,
            renormalise: true,
        };
        let hidden = list(&list(&golden["gate"])[0]).len();
        let experts = Experts::new(linear(&golden["gate"]), routed);
        Self { experts, compute: Compute::new(1), info, hidden }
    }

    fn logits(&self, x: &[f32]) -> Vec<f32> {
        let mut logits = Vec::new();
        self.experts.logits(&self.compute, x, &mut logits);
        logits
    }

    fn outputs(&self, x: &[f32]) -> Vec<f32> {
        let mut outputs = Vec::new();
        self.experts.outputs(&self.compute, Activation::Silu, x, &mut outputs);
        outputs
    }

    /// What the layer gives where a program chooses its experts.
    fn run(&self, ops: &[ExpertOp], x: &[f32]) -> Vec<f32> {
        let (logits, outputs) = (self.logits(x), self.outputs(x));
        let num_tokens = x.len() / self.hidden;
        let mut sum = vec![0.0; x.len()];
        let mut picks = Vec::new();
        for (token, logits) in logits.chunks_exact(self.info.num_experts as usize).enumerate() {
            assert!(interpret(ops, logits, &mut picks));
            for &(expert, weight) in &picks {
                for at in 0..self.hidden {
                    let made = outputs[(expert as usize * num_tokens + token) * self.hidden + at];
                    sum[token * self.hidden + at] += weight * made;
                }
            }
        }
        sum
    }
}

#[test]
fn naee_to_the_digit() {
    let golden = &golden("routing")["naee"];
    let layer = Layer::new(golden);
    let batches: Vec<Vec<f32>> = list(&golden["X"]).iter().map(floats).collect();
    let own = native(layer.info);
    let mut usage = Usage::new(layer.info);
    for (x, expected) in batches.iter().zip(list(&golden["full_out"])) {
        assert!(worst(&layer.run(&own, x), &floats(expected)) <= TOLERANCE);
        usage.add(&layer.logits(x), &own);
    }
    let beta = usage.beta().unwrap();
    assert!((f64::from(beta) - golden["beta_median"].as_f64().unwrap()).abs() <= 1e-5, "{beta}");
    let skip = LayerPolicy { beta: Some(beta), ..LayerPolicy::default() }.ops(layer.info);
    for (x, expected) in batches.iter().zip(list(&golden["skip_out"])) {
        assert!(worst(&layer.run(&skip, x), &floats(expected)) <= TOLERANCE);
    }
    for prune in list(&golden["prune"]) {
        let keep = prune["keep"].as_u64().unwrap() as usize;
        let mut search = Enumeration::all(layer.info, keep).unwrap();
        for x in &batches {
            let (logits, outputs) = (layer.logits(x), layer.outputs(x));
            let (rest, expected) = (vec![0.0; x.len()], layer.run(&own, x));
            let (rest, expected) = (&rest[..], &expected[..]);
            search.add(Tokens { logits: &logits, outputs: &outputs, rest, expected });
            search.end_batch();
        }
        let (kept, _) = search.best();
        let dropped = |set: &[u32]| -> Vec<u32> {
            (0..layer.info.num_experts).filter(|e| !set.contains(e)).collect()
        };
        assert_eq!(dropped(kept), crate::common::ids(&prune["dropped"]));
        for ((set, loss), entry) in search.sets().zip(list(&prune["losses"])) {
            assert_eq!(dropped(set), crate::common::ids(&entry[0]));
            let expected = entry[1].as_f64().unwrap();
            assert!((loss - expected).abs() <= 1e-5 * expected.max(1.0), "{loss} {expected}");
        }
        let pruned = LayerPolicy { keep: Some(kept.to_vec()), ..LayerPolicy::default() };
        for (x, expected) in batches.iter().zip(list(&prune["out"])) {
            assert!(worst(&layer.run(&pruned.ops(layer.info), x), &floats(expected)) <= TOLERANCE);
        }
    }
}

const POLICIES: [&str; 5] =
    ["policy-prune", "policy-skip", "policy-prune-skip", "policy-alias", "policy-merged"];

fn bench() -> Bench {
    let bench = Bench::new("models/mixtral", &[&POLICIES[..], &["lora-mixtral"]].concat());
    let router = Native::<ExpertPruning>::new(&bench.composer.view(), &Parameters::default());
    let settings = RouterSettings { offered: Offered::Any, ..RouterSettings::default() };
    let (name, digest) = ("expert-pruning", "native".to_owned());
    bench.composer.add_router(name, digest, Box::new(router.unwrap()), settings).unwrap();
    bench
}

fn pruning(parameters: &[(&str, Value)]) -> Selection {
    let own = |(name, value): &(&str, Value)| ((*name).to_owned(), value.clone());
    routed("expert-pruning", Parameters(parameters.iter().map(own).collect()))
}

fn policy(name: &str) -> (&'static str, Value) {
    ("policy", Value::Text(name.to_owned()))
}

fn run(bench: &Bench, selection: &Selection, case: &Case) -> Output {
    bench.run(selection, &case.prompt, greedy(case.greedy_ids.len()))
}

#[test]
fn policies_agree_with_transformers_named_and_through_the_router() {
    let bench = bench();
    let cases = cases("policies");
    assert_eq!(cases.len(), 2 * POLICIES.len());
    for case in &cases {
        let name = text(&list(&case.header["adapters"])[0], "name");
        let named = run(&bench, &weighted(&[(name, 1.0)]), case);
        named.require(case, 1e-4);
        let asked = pruning(&[policy(name)]);
        assert_eq!(bench.compose(&asked).fallback(), None);
        assert_eq!(run(&bench, &asked, case).bits(), named.bits(), "{}", case.name);
        let base = run(&bench, &Selection::Base, case);
        assert!(base.distance(case) > 1e-2, "{}: the policy changes nothing", case.name);
    }
}

/// One request runs pruned while others in the batch run full, skip, or have merged experts; each gives the bits that it
/// gives alone.
#[test]
fn policies_hold_for_their_request_alone() {
    let bench = bench();
    let case = &cases("policies")[1];
    let mut selections: Vec<Selection> =
        POLICIES.iter().map(|name| pruning(&[policy(name)])).collect();
    selections.push(Selection::Base);
    selections.push(weighted(&[("policy-prune", 1.0), ("lora-mixtral", 0.5)]));
    let alone: Vec<Vec<u32>> =
        selections.iter().map(|selection| run(&bench, selection, case).bits()).collect();
    assert!(alone.windows(2).all(|pair| pair[0] != pair[1]));
    let sampling = || greedy(case.greedy_ids.len());
    let pending: Vec<_> = selections
        .iter()
        .map(|s| submit(&bench.engine, &bench.compose(s), &case.prompt, sampling()))
        .collect();
    for (pending, alone) in pending.into_iter().zip(alone) {
        assert_eq!(pending.wait().bits(), alone);
    }
}

#[test]
fn parts_of_a_policy_can_be_left_out() {
    let bench = bench();
    let case = &cases("policies")[0];
    let run = |selection: &Selection| run(&bench, selection, case);
    let bits = |parameters: &[(&str, Value)]| run(&pruning(parameters)).bits();
    let both = policy("policy-prune-skip");
    let off = || Value::Flag(false);
    let base = run(&Selection::Base);
    assert!(bits(&[both.clone(), ("prune", off()), ("skip", off())]) == base.bits());
    let pruned = run(&weighted(&[("policy-prune", 1.0)])).bits();
    assert!(bits(&[both, ("skip", off())]) == pruned);
    // A policy beside the router decides what the router leaves open.
    let open = pruning(&[policy("policy-skip"), ("skip", off())]);
    let beside_it = beside(open, vec![("policy-prune".to_owned(), 1.0)]);
    assert!(run(&beside_it).bits() == pruned);
    // No ratio is under 0, and every ratio of two different weights is under 1.
    let distance = |beta: f64| {
        let output = run(&pruning(&[("beta", Value::Number(beta))]));
        let last = case.prompt.len() - 1;
        worst(&output.row(last), &base.row(last))
    };
    assert!(distance(0.0) < 1e-4 && distance(1.0) > 1e-2);
}

/// What one policy keeps and another skips is both done.
#[test]
fn policies_of_one_request_add_up() {
    let bench = bench();
    let case = &cases("policies")[0];
    let run = |selection: &Selection| run(&bench, selection, case).bits();
    let both = run(&weighted(&[("policy-prune-skip", 1.0)]));
    assert!(run(&weighted(&[("policy-prune", 1.0), ("policy-skip", 1.0)])) == both);
    assert!(run(&weighted(&[("policy-skip", 1.0), ("policy-prune", 1.0)])) == both);
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let bench = bench();
    let refused =
        |selection: &Selection| bench.composer.compose(selection).unwrap_err().to_string();
    let half = refused(&weighted(&[("policy-skip", 0.5)]));
    assert!(half.contains("`policy-skip`") && half.contains("0.5, expected 1"), "{half}");
    let unknown = refused(&pruning(&[policy("lora-mixtral")]));
    assert!(unknown.contains("policies of this request are: policy-alias"), "{unknown}");
    let wrong = refused(&pruning(&[("beta", Value::Number(-1.0))]));
    assert!(wrong.contains("beta"), "{wrong}");
}

/// Full traces have the native logits and what was run for each generated token.
#[test]
fn traces_show_the_experts() {
    let bench = bench();
    let case = &cases("policies")[0];
    let base = run(&bench, &Selection::Base, case);
    let pruned = run(&bench, &weighted(&[("policy-prune", 1.0)]), case);
    let kept = |name: &str| {
        let path = crate::common::fixtures().join("adapters").join(name);
        polyskill_adapters::native::kept_experts(&path).unwrap().layers
    };
    let kept = kept("policy-prune");
    for token in &base.tokens {
        assert_eq!(token.experts.len(), 3);
        for at in &token.experts {
            let mut best: Vec<(u32, f32)> = (0..).zip(at.logits.iter().copied()).collect();
            best.sort_by(|a, b| b.1.total_cmp(&a.1));
            let mut best: Vec<u32> = best[..2].iter().map(|(expert, _)| *expert).collect();
            best.sort_unstable();
            let run: Vec<u32> = at.experts.iter().map(|(expert, _)| *expert).collect();
            assert_eq!((at.logits.len(), run), (6, best));
        }
    }
    for at in pruned.tokens.iter().flat_map(|token| &token.experts) {
        let kept = &kept[&(at.layer as usize)];
        assert!(at.experts.iter().all(|(expert, _)| kept.contains(expert)), "{at:?}");
    }
}

/// A base that is loaded without the experts that a policy drops gives what the policy gives on the whole base, in less
/// memory; policies that need what is gone leave rows to what is there.
#[test]
fn experts_can_be_dropped_for_all_requests() {
    let path = crate::common::fixtures().join("models/mixtral");
    let load = |kept: &polyskill_model::load::KeptExperts| {
        polyskill_model::load::load_keeping(&path, Arc::new(Compute::new(1)), kept, &mut |_, _| {})
    };
    let policies = crate::common::fixtures().join("adapters");
    let kept =
        polyskill_adapters::native::kept_experts(&policies.join("policy-prune")).unwrap().layers;
    let fewer = Arc::new(load(&kept).unwrap());
    let whole = bench();
    let [fewer_bytes, all_bytes] = [fewer.num_bytes(), whole.model.num_bytes()];
    assert!(fewer_bytes < all_bytes * 9 / 10, "{fewer_bytes} of {all_bytes}");
    assert_ne!(fewer.digest(), whole.model.digest());
    assert_eq!(fewer.weights_digest(), whole.model.weights_digest());
    let bench = Bench::over(
        fewer,
        &[&POLICIES[..], &["lora-experts-mixtral"]].concat(),
        EngineConfig::default(),
    );
    for case in &cases("policies")[..2] {
        let named = weighted(&[("policy-prune", 1.0)]);
        let expected = run(&whole, &named, case);
        // The base sums its softmax in another order than a policy's program does.
        let near = |output: &Output| {
            (0..case.prompt.len()).all(|at| worst(&output.row(at), &expected.row(at)) < TOLERANCE)
        };
        assert!(near(&run(&bench, &Selection::Base, case)), "{}", case.name);
        assert!(near(&run(&bench, &named, case)), "{}", case.name);
        for other in [("policy-merged", 1.0), ("policy-alias", 1.0), ("lora-experts-mixtral", 1.0)]
        {
            let output = run(&bench, &weighted(&[other]), case);
            let finite = |output: &Output| output.row(0).iter().all(|value| value.is_finite());
            assert!(finite(&output), "{}", other.0);
        }
    }
    for (kept, part) in [
        (vec![(0, vec![])], "layer 0: found []"),
        (vec![(1, vec![2, 6])], "expected some of 6 experts"),
        (vec![(1, vec![2, 1])], "ascending"),
        (vec![(8, vec![0])], "layer 8: the base has no experts there"),
    ] {
        let refused = load(&kept.into_iter().collect()).unwrap_err().to_string();
        assert!(refused.contains(part), "{refused}");
    }
    let skips =
        polyskill_adapters::native::kept_experts(&policies.join("policy-skip")).unwrap_err();
    assert!(skips.to_string().contains("skips or merges"), "{skips}");
}

/// The plugin in its sandbox says what the native router says.
#[test]
fn the_sandboxed_router_decides_alike() {
    let bench = bench();
    let loader = Loader::new(Limits::default(), Trust::unsigned(), None).unwrap();
    let plugin = loader.load(&plugins().join("expert-pruning")).unwrap();
    assert!(!plugin.self_test().unwrap().is_empty());
    let router = plugin.start(&bench.composer.view(), Parameters::default()).unwrap();
    let settings = RouterSettings { offered: Offered::Any, ..RouterSettings::default() };
    bench.composer.add_router("sandboxed", plugin.digest().to_owned(), router, settings).unwrap();
    let case = &cases("policies")[0];
    for name in POLICIES {
        let asked = pruning(&[policy(name)]);
        let Selection::Routed(request) = asked.clone() else { unreachable!() };
        let sandboxed = Selection::Routed(RouterRequest { router: "sandboxed".into(), ..request });
        assert!(run(&bench, &sandboxed, case).bits() == run(&bench, &asked, case).bits(), "{name}");
    }
}

/// The configuration of a policy for the small mixture of experts, and where it lies.
fn calibrate(method: Method, keep: usize, out: &Path) -> (Json, PathBuf) {
    let args = CalibrateArgs {
        model: root().join("examples/small-moe").display().to_string(),
        text: vec![root().join("examples/small-moe/calibration/iso-date.jsonl")],
        out: out.join(format!("{method:?}-{keep}")),
        method,
        keep: Some(keep),
        skip: false,
        sequences: 12,
        sequence_length: 64,
        batch: 4,
        seed: 1,
        tag: vec!["date".to_owned()],
    };
    let mut said = Vec::new();
    calibrate::run(&args, &mut said).unwrap();
    assert!(!args.out.with_extension("partial.json").exists());
    let config = read_json(&args.out.join("polyskill_config.json"));
    let again = calibrate::run(&args, &mut Vec::new()).unwrap_err();
    assert!(again.contains("exists"), "{again}");
    (config, args.out)
}

/// On the small mixture of experts: dropping one expert is the same search for all of NAEE's kin, the first layer is the
/// same whether layers before it are pruned or not, and kept experts are as many as asked for.
#[test]
fn calibration_of_a_real_base() {
    let folder = tempfile::tempdir().unwrap();
    let kept = |method, keep| -> Vec<Vec<u32>> {
        let (config, _) = calibrate(method, keep, folder.path());
        list(&config["layers"]).iter().map(|layer| crate::common::ids(&layer["keep"])).collect()
    };
    let one = kept(Method::Naee, 7);
    assert_eq!(one, kept(Method::Greedy, 7));
    assert_eq!(one[0], kept(Method::NaeeProgressive, 7)[0]);
    for method in [Method::LeastUsed, Method::Random, Method::Greedy] {
        let kept = kept(method, 3);
        assert!(kept.len() == 4 && kept.iter().all(|layer| layer.len() == 3), "{kept:?}");
    }
}

/// UNCURL on the small mixture of experts: as many clusters as asked for, an expert of the policy's own for each with more
/// than one, the same bytes from another run, and a policy that the server runs. Of one cluster each, nothing changes.
#[test]
fn uncurl_merges_clusters() {
    const KEEP: usize = 6;
    let [folder, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (config, path) = calibrate(Method::Uncurl, KEEP, folder.path());
    assert_eq!(config["method"], "uncurl");
    let layers = list(&config["layers"]);
    assert_eq!(layers.len(), 4);
    for layer in layers {
        let alias = crate::common::ids(&layer["alias"]);
        let mut run = alias.clone();
        run.sort_unstable();
        run.dedup();
        assert!(alias.len() == 8 && run.len() == KEEP, "{alias:?}");
        let merged = run.iter().filter(|expert| **expert >= 8).count();
        assert_eq!(layer["experts"].as_u64().unwrap() as usize, merged);
        assert!(merged >= 1, "{alias:?}");
        for (expert, target) in (0..).zip(&alias) {
            assert!(*target >= 8 || *target == expert, "{alias:?}");
        }
    }
    let (_, again) = calibrate(Method::Uncurl, KEEP, other.path());
    for file in ["polyskill_config.json", "polyskill_module.safetensors", "README.md"] {
        let read = |path: &Path| std::fs::read(path.join(file)).unwrap();
        assert!(read(&path) == read(&again), "{file}");
    }
    let card = std::fs::read_to_string(path.join("README.md")).unwrap();
    assert!(card.contains("nothing is trained"), "{card}");
    let (all, _) = calibrate(Method::Uncurl, 8, folder.path());
    for layer in list(&all["layers"]) {
        assert_eq!(crate::common::ids(&layer["alias"]), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert!(layer["experts"].is_null());
    }
}

/// A policy with these layers and no tensors, on the tiny mixtral: why it is refused.
fn refusal(layers: &Json) -> String {
    let folder = tempfile::tempdir().unwrap();
    let config = serde_json::json!({"polyskill_type": "EXPERT_POLICY", "format_version": 1, "layers": layers});
    std::fs::write(folder.path().join("polyskill_config.json"), config.to_string()).unwrap();
    let nothing: [(&str, safetensors::tensor::TensorView<'_>); 0] = [];
    let bytes = safetensors::serialize(nothing, None).unwrap();
    std::fs::write(folder.path().join("polyskill_module.safetensors"), bytes).unwrap();
    let bench = Bench::new("models/mixtral", &[]);
    let loaded = load_module("policy", folder.path(), folder.path(), bench.model.as_ref());
    loaded.unwrap_err().to_string()
}

#[test]
fn broken_policies_are_refused_by_name() {
    for (layers, part) in [
        (serde_json::json!([]), "no layers"),
        (serde_json::json!([{"layer": 9, "keep": [0]}]), "layer 9: the base has no experts there"),
        (serde_json::json!([{"layer": 1, "keep": [0]}, {"layer": 0, "keep": [0]}]), "must ascend"),
        (serde_json::json!([{"layer": 0, "keep": []}]), "at least one"),
        (serde_json::json!([{"layer": 0, "keep": [0, 6]}]), "expert 6 of 6"),
        (serde_json::json!([{"layer": 0, "keep": [1, 1]}]), "ascend"),
        (serde_json::json!([{"layer": 0, "alias": [0, 1]}]), "2 aliases for 6 experts"),
        (serde_json::json!([{"layer": 0, "alias": [0, 1, 2, 3, 4, 6]}]), "expert 6, there are 6"),
        (serde_json::json!([{"layer": 0, "beta": -0.5}]), "β is -0.5"),
        (serde_json::json!([{"layer": 0, "experts": 1}]), "gate_proj.weight` is missing"),
        (serde_json::json!([{"layer": 0, "experts": 4_000_000}]), "at most 1024"),
        (serde_json::json!([{"layer": 0, "keeps": [0]}]), "keeps"),
        (serde_json::json!([{"layer": 0, "keep": [-1]}]), "-1"),
    ] {
        let found = refusal(&layers);
        assert!(found.contains(part), "{layers}: {found}");
    }
}
