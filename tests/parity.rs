//! The same numbers as transformers and PEFT, and the same bits whatever else is served.

use std::sync::Arc;

use polyskill_adapters::prototypes;
use polyskill_engine::{EngineConfig, Selection};
use polyskill_model::{ActivationBits, Compute, Projection, Site, load};

use crate::common::{
    Bench, Case, Output, TASKS, arrow_selection, cases, fixtures, floats, golden, greedy, list,
    submit, text, weighted, worst,
};

/// PEFT's order of the library is the order of the names here.
fn require_task_order(case: &Case) {
    let adapters = list(&case.header["adapters"]).iter().filter_map(|name| name.as_str());
    assert!(adapters.eq(TASKS), "{}: another library", case.name);
}

#[test]
fn base_models_agree_with_transformers() {
    for case in cases("models") {
        let bench = Bench::new(&format!("models/{}", text(&case.header, "model")), &[]);
        let output = bench.run(&Selection::Base, &case.prompt, greedy(case.greedy_ids.len()));
        output.require(&case, 1e-4);
    }
}

/// Families beside llama: windows, norms of queries and keys, norms at both ends of a block, other activations, and
/// modules on them. Greedy tokens come step by step from the cache, past the window.
#[test]
fn families_agree_with_transformers() {
    let cases = cases("families");
    assert!(cases.len() >= 40);
    for case in cases {
        let model = format!("models/{}", text(&case.header, "model"));
        let adapters = list(&case.header["adapters"]).iter();
        let names: Vec<&str> = adapters.map(|adapter| text(adapter, "name")).collect();
        let entries: Vec<(&str, f32)> = names.iter().map(|name| (*name, 1.0)).collect();
        let selection = if names.is_empty() { Selection::Base } else { weighted(&entries) };
        let bench = Bench::new(&model, &names);
        let output = bench.run(&selection, &case.prompt, greedy(case.greedy_ids.len()));
        output.require(&case, 1e-4);
    }
}

/// The same weights as GGUF, in the precision that they have. Files of `qwen2` and its kin and of `mixtral` do not say
/// which layers have a window, so the prompts that are longer than one are left out.
#[test]
fn families_are_the_same_as_gguf() {
    let mut compared = 0;
    for case in cases("families").iter().filter(|case| list(&case.header["adapters"]).is_empty()) {
        let file = format!("gguf/{}.gguf", text(&case.header, "model"));
        let no_window = ["qwen2/long", "qwen2_moe/long", "mixtral/long"];
        if !fixtures().join(&file).is_file() || no_window.contains(&case.name.as_str()) {
            continue;
        }
        let bench = Bench::new(&file, &[]);
        let output = bench.run(&Selection::Base, &case.prompt, greedy(case.greedy_ids.len()));
        output.require(case, 1e-4);
        compared += 1;
    }
    assert_eq!(compared, 11);
}

#[test]
fn exact_gguf_agrees_with_transformers() {
    let exact =
        |case: &Case| ["tiny-f32.gguf", "tiny-f16.gguf"].contains(&text(&case.header, "file"));
    let cases: Vec<Case> = cases("gguf").into_iter().filter(exact).collect();
    assert_eq!(cases.len(), 4);
    for case in cases {
        let bench = Bench::new(&format!("gguf/{}", text(&case.header, "file")), &[]);
        let output = bench.run(&Selection::Base, &case.prompt, greedy(case.greedy_ids.len()));
        output.require(&case, 1e-4);
    }
}

/// Quantised products round the activations to 8 bits too, which the reference does not: log-probabilities
/// move, the choice does not where it was clear.
#[test]
fn quantised_gguf_stays_close_to_the_dequantised_weights() {
    const WORST: f32 = 0.45;
    const MEAN: f32 = 0.06;
    const CLEAR: f32 = 0.5;
    let mut clear_rows = 0;
    for case in cases("gguf") {
        let file = text(&case.header, "file");
        if !file.contains("-q") {
            continue;
        }
        let bench = Bench::new(&format!("gguf/{file}"), &[]);
        let output = bench.run(&Selection::Base, &case.prompt, greedy(1));
        let distance = output.distance(&case);
        assert!(distance <= WORST, "{}: off by {distance} nats", case.name);
        let (mut sum, mut count) = (0.0, 0);
        for (position, expected) in &case.rows {
            let found = output.row(*position);
            sum += found.iter().zip(expected).map(|(a, b)| (a - b).abs()).sum::<f32>();
            count += expected.len();
            let (best, lead) = lead(expected);
            if lead > CLEAR {
                clear_rows += 1;
                assert_eq!(self::lead(&found).0, best, "{}: position {position}", case.name);
            }
        }
        let mean = sum / count as f32;
        assert!(mean <= MEAN, "{}: off by {mean} nats on average", case.name);
    }
    assert!(clear_rows > 0, "no golden row has a clear favourite");
}

/// With 16 bits the products are those of the dequantised weights.
#[test]
fn activations_of_16_bits_agree_with_the_dequantised_weights() {
    let compute = Arc::new(Compute::new(2).with_activation_bits(ActivationBits::Sixteen));
    let mut compared = 0;
    for case in cases("gguf") {
        let file = text(&case.header, "file");
        if !file.contains("-q") {
            continue;
        }
        let path = fixtures().join("gguf").join(file);
        let model = load::load(&path, Arc::clone(&compute), &mut |_, _| {}).unwrap();
        let bench = Bench::over(Arc::new(model), &[], EngineConfig::default());
        let distance = bench.run(&Selection::Base, &case.prompt, greedy(1)).distance(&case);
        assert!(distance <= 5e-3, "{}: off by {distance} nats", case.name);
        compared += 1;
    }
    assert!(compared > 0);
}

/// The most likely token and its lead over the next.
fn lead(row: &[f32]) -> (usize, f32) {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
    (order[0], row[order[0]] - row[order[1]])
}

#[test]
fn adapters_agree_with_peft() {
    for case in cases("lora") {
        let entries: Vec<(&str, f32)> = list(&case.header["adapters"])
            .iter()
            .map(|entry| (text(entry, "name"), entry["weight"].as_f64().unwrap() as f32))
            .collect();
        let names: Vec<&str> = entries.iter().map(|(name, _)| *name).collect();
        let bench = Bench::new(&format!("models/{}", text(&case.header, "model")), &names);
        let output = bench.run(&weighted(&entries), &case.prompt, greedy(case.greedy_ids.len()));
        output.require(&case, 1e-4);
        let base = bench.run(&Selection::Base, &case.prompt, greedy(1));
        assert!(base.distance(&case) > 1e-2, "{}: the adapter changes nothing", case.name);
    }
}

/// DoRA, (IA)³, what comes before a sequence, tokens, heads, biases, GGUF, edits, grafts, and mixes of them.
#[test]
fn every_kind_agrees_with_its_reference() {
    let cases = cases("kinds");
    assert!(cases.len() > 50, "{} cases", cases.len());
    for case in cases {
        let entries: Vec<(String, f32)> = list(&case.header["adapters"])
            .iter()
            .map(|entry| (text(entry, "name").to_owned(), entry["weight"].as_f64().unwrap() as f32))
            .collect();
        let base = match case.header.get("file") {
            Some(_) => format!("gguf/{}", text(&case.header, "file")),
            None => format!("models/{}", text(&case.header, "model")),
        };
        let names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
        let bench = Bench::new(&base, &names);
        let weights: Vec<(&str, f32)> =
            entries.iter().map(|(name, weight)| (name.as_str(), *weight)).collect();
        let output = bench.run(&weighted(&weights), &case.prompt, greedy(case.greedy_ids.len()));
        output.require(&case, 1e-4);
        let base = bench.run(&Selection::Base, &case.prompt, greedy(1));
        assert!(base.distance(&case) > 1e-2, "{}: the module changes nothing", case.name);
    }
}

#[test]
fn arrow_agrees_with_peft() {
    let bench = Bench::arrow();
    for case in cases("arrow") {
        require_task_order(&case);
        let composition = bench.compose(&arrow_selection(&case));
        assert_eq!(composition.fallback(), None);
        let sampling = greedy(case.greedy_ids.len());
        let output = submit(&bench.engine, &composition, &case.prompt, sampling).wait();
        output.require(&case, 1e-3);
        assert_eq!(output.finished.fallback_rows, 0);
    }
}

#[test]
fn arrow_prototypes_agree_with_peft() {
    let golden = golden("arrow");
    let bench = Bench::new("models/llama-tied", &TASKS);
    let snapshot = bench.library.snapshot();
    assert!(!list(&golden["prototypes"]).is_empty());
    for entry in list(&golden["prototypes"]) {
        let site = site_of(entry);
        for ((name, module), expected) in snapshot.iter().zip(list(&entry["values"])) {
            let leases = bench.library.lease([module]).unwrap();
            let weights = leases[0].lora_at(site).unwrap();
            let seed = entry["seed"].as_u64().unwrap();
            let off = worst(&prototypes::power_iteration(weights, 15, seed), &floats(expected));
            assert!(off <= 1e-4, "{name} at {site}: off by {off:e}");
        }
    }
}

fn site_of(entry: &serde_json::Value) -> Site {
    let projection = text(entry, "projection");
    let projection = Projection::ALL.into_iter().find(|p| p.name() == projection).unwrap();
    Site { layer: entry["layer"].as_u64().unwrap() as usize, projection }
}

/// The trace of the first generated token is the routing of the prompt's last.
#[test]
fn arrow_coefficients_agree_with_peft() {
    let golden = golden("arrow");
    let bench = Bench::arrow();
    let entries = list(&golden["routing"]);
    let name = text(&entries[0], "case");
    let case = cases("arrow").into_iter().find(|case| case.name == name).unwrap();
    let output = bench.run(&arrow_selection(&case), &case.prompt, greedy(1));
    assert_eq!(output.tokens[0].routing.len(), entries.len());
    for entry in entries {
        let index = site_of(entry).index();
        let traced = output.tokens[0].routing.iter().find(|at| at.site as usize == index).unwrap();
        let mut found = vec![0.0; TASKS.len()];
        traced.picks.iter().for_each(|&(module, weight)| found[module as usize] = weight);
        let expected = floats(list(&entry["coefficients"]).last().unwrap());
        let off = worst(&found, &expected);
        assert!(off <= 1e-4, "{}: off by {off:e}", site_of(entry));
    }
}

/// Requests with other modules, other routing and other prompts beside one another change no bit.
#[test]
fn a_mixed_batch_gives_each_request_what_it_gets_alone() {
    let bench = Bench::arrow();
    let mut wanted: Vec<(String, Selection, Vec<u32>)> = Vec::new();
    for (index, case) in cases("arrow").into_iter().enumerate() {
        let share = 0.25 * (index + 1) as f32;
        let mixture = weighted(&[(TASKS[index % 5], share), (TASKS[(index + 2) % 5], -0.5)]);
        wanted.push((format!("base, {}", case.name), Selection::Base, case.prompt.clone()));
        wanted.push((format!("mixture, {}", case.name), mixture, case.prompt.clone()));
        wanted.push((case.name.clone(), arrow_selection(&case), case.prompt));
    }
    let alone: Vec<Output> = wanted
        .iter()
        .map(|(_, selection, prompt)| bench.run(selection, prompt, greedy(12)))
        .collect();
    let before = bench.engine.handle().stats().snapshot();
    let compositions: Vec<_> =
        wanted.iter().map(|(_, selection, _)| bench.compose(selection)).collect();
    let pending: Vec<_> = compositions
        .iter()
        .zip(&wanted)
        .map(|(composition, (_, _, prompt))| submit(&bench.engine, composition, prompt, greedy(12)))
        .collect();
    for ((pending, alone), (name, _, _)) in pending.into_iter().zip(&alone).zip(&wanted) {
        let together = pending.wait();
        assert_eq!(together.ids(), alone.ids(), "{name}");
        assert_eq!(together.bits(), alone.bits(), "{name}");
    }
    let after = bench.engine.handle().stats().snapshot();
    assert!(
        (after.steps - before.steps) * 2 < before.steps,
        "{} steps together, {} alone: nothing was batched",
        after.steps - before.steps,
        before.steps
    );
}
