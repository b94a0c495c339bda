//! Tests of merging.

use std::path::Path;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::transform::matrix::Mat;
use crate::transform::matrix::tests::{noise, worst};
use crate::transform::testing::{DOWN1, Q0, Q1, bytes, deltas, module, site, write};
use polyskill_adapters::peft::MAX_WEIGHT;

fn weighted(directories: &[(&PathBuf, f64)]) -> Vec<Weighted> {
    let input = |(directory, weight): &(&PathBuf, f64)| Weighted {
        directory: (*directory).clone(),
        weight: *weight,
    };
    directories.iter().map(input).collect()
}

fn options(name: &str) -> MergeOptions {
    MergeOptions::new(Method::named(name).unwrap())
}

/// Density 1 where a density is needed.
fn undiluted(method: Method) -> MergeOptions {
    let density = (method.recipe().prune != Prune::Nothing).then_some(1.0);
    MergeOptions { density, ..MergeOptions::new(method) }
}

fn run(inputs: &[Weighted], options: &MergeOptions, out: &Path) -> Made {
    merge(inputs, options, out, &mut |_, _| {}).unwrap()
}

fn refusal(inputs: &[Weighted], options: &MergeOptions, out: &Path) -> String {
    let error = merge(inputs, options, out, &mut |_, _| {}).unwrap_err().to_string();
    assert!(out.symlink_metadata().is_err(), "{error}");
    let partial = out.with_file_name(format!(".{}.partial", out.file_name().unwrap().display()));
    assert!(partial.symlink_metadata().is_err(), "{error}");
    error
}

fn require_near(found: &Path, expected: &[(&str, Mat)], tolerance: f64) {
    let found = deltas(found);
    assert_eq!(found.len(), expected.len());
    for (path, expected) in expected {
        let off = worst(&found[*path], expected);
        assert!(off <= tolerance, "{path}: {off}");
    }
}

fn add(target: &mut Mat, factor: f64, other: &Mat) {
    target.values.iter_mut().zip(&other.values).for_each(|(t, o)| *t += factor * o);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn one_module_comes_back_from_every_method(
        rank in 1_usize..7, outputs in 1_usize..14, inputs in 1_usize..14,
        alpha in prop_oneof![Just(-3.0), Just(0.25), Just(16.0)], seed in 0_u64..99,
    ) {
        let root = tempfile::tempdir().unwrap();
        let sites = [site(Q0, rank, outputs, inputs), site(DOWN1, 2, inputs, outputs)];
        let directory = module(root.path(), "m", &sites, alpha, seed);
        let before = deltas(&directory);
        for method in Method::all() {
            let out = root.path().join(method.name());
            run(&weighted(&[(&directory, 1.0)]), &undiluted(method), &out);
            for (path, after) in deltas(&out) {
                let size = before[&path].norm2().sqrt().max(1.0);
                let off = worst(&after, &before[&path]) / size;
                prop_assert!(off < 2e-6, "{} at {path}: {off}", method.name());
            }
        }
    }

    /// Unequal ranks, scales, signs and sites.
    #[test]
    fn sums_are_exact(
        ranks in [1_usize..6, 1_usize..6, 1_usize..6],
        weights in [-2.0_f64..2.0, -2.0..2.0, -2.0..2.0], seed in 0_u64..99,
    ) {
        let root = tempfile::tempdir().unwrap();
        let [r0, r1, r2] = ranks;
        let one = module(root.path(), "one", &[site(Q0, r0, 9, 7), site(Q1, r1, 9, 7)], 3.0, seed);
        let two = module(root.path(), "two", &[site(Q0, r1, 9, 7)], -8.0, seed + 1);
        let three = module(root.path(), "three", &[site(Q0, r2, 9, 7), site(DOWN1, r2, 5, 8)], 0.5, seed + 2);
        let inputs = weighted(&[(&one, weights[0]), (&two, weights[1]), (&three, weights[2])]);
        let (mut q0, mut q1, mut down) = (Mat::zeros(9, 7), Mat::zeros(9, 7), Mat::zeros(5, 8));
        let (one, two, three) = (deltas(&one), deltas(&two), deltas(&three));
        for (weight, m) in weights.iter().zip([&one, &two, &three]) {
            add(&mut q0, *weight, &m[Q0]);
        }
        add(&mut q1, weights[0], &one[Q1]);
        add(&mut down, weights[2], &three[DOWN1]);
        let expected = [(Q0, q0), (Q1, q1), (DOWN1, down)];
        let full = MergeOptions { rank: Some(Rank::Fixed(99)), ..options("svd") };
        for (name, options) in [("cat", options("cat")), ("svd", full)] {
            let made = run(&inputs, &options, &root.path().join(name));
            require_near(&made.path, &expected, 2e-5);
            prop_assert!(made.errors().worst < 1e-6, "{name}: {:?}", made.errors());
        }
        let mean = root.path().join("mean");
        run(&inputs, &options("mergekit-linear"), &mean);
        let total: f64 = weights.iter().sum();
        if total.abs() > 0.1 {
            let expected = expected.map(|(path, m)| (path, m.scaled(1.0 / total)));
            require_near(&mean, &expected, 1e-3);
        }
    }
}

#[test]
fn cut_sums_lose_what_is_reported() {
    let root = tempfile::tempdir().unwrap();
    let one = module(root.path(), "one", &[site(Q0, 4, 20, 30), site(Q1, 3, 20, 30)], 4.0, 1);
    let two = module(root.path(), "two", &[site(Q0, 6, 20, 30)], 4.0, 2);
    let inputs = weighted(&[(&one, 1.0), (&two, -0.5)]);
    let exact = deltas(&run(&inputs, &options("cat"), &root.path().join("cat")).path);
    let mut before = f64::INFINITY;
    for rank in [1, 4, 9, 10] {
        let options = MergeOptions { rank: Some(Rank::Fixed(rank)), ..options("svd") };
        let made = run(&inputs, &options, &root.path().join(format!("rank-{rank}")));
        assert_eq!(made.sites.iter().map(|s| s.rank).collect::<Vec<_>>(), [rank, rank.min(3)]);
        let mut left = deltas(&made.path).remove(Q0).unwrap();
        add(&mut left, -1.0, &exact[Q0]);
        let off = (left.norm2() / exact[Q0].norm2()).sqrt();
        assert!((off - made.sites[0].error).abs() < 1e-6, "{off}: {:?}", made.sites[0]);
        assert!(off < before && (off < 1e-6) == (rank == 10), "{off}");
        before = off;
        let card = std::fs::read_to_string(made.path.join("README.md")).unwrap();
        assert!(card.contains(&format!("relative_error_worst: \"{:.3e}\"", made.errors().worst)));
    }
    let energy = MergeOptions { rank: Some(Rank::Energy(0.9)), ..options("svd") };
    let made = run(&inputs, &energy, &root.path().join("energy"));
    assert!(made.errors().worst <= 0.1_f64.sqrt() + 1e-9 && made.sites[0].rank < 10, "{made:?}");
}

#[test]
fn dense_methods_say_what_is_lost_and_are_the_same_every_time() {
    let root = tempfile::tempdir().unwrap();
    let sites = [site(Q0, 3, 20, 12), site(Q1, 3, 12, 20), site(DOWN1, 2, 8, 8)];
    let one = module(root.path(), "one", &sites, 4.0, 1);
    let two = module(root.path(), "two", &sites, 2.0, 2);
    let inputs = weighted(&[(&one, 1.0), (&two, 0.7)]);
    for name in ["ties", "dare-linear", "dare-ties", "magnitude-prune", "mergekit-ties"] {
        let options = MergeOptions { density: Some(0.5), ..options(name) };
        let cut = run(&inputs, &options, &root.path().join(format!("{name}-cut")));
        assert!((0.05..1.0).contains(&cut.errors().worst), "{name}: {:?}", cut.errors());
        let full = MergeOptions { rank: Some(Rank::Fixed(64)), ..options.clone() };
        let full = run(&inputs, &full, &root.path().join(format!("{name}-full")));
        assert!(full.errors().worst < 1e-6, "{name}: {:?}", full.errors());
        let folder = root.path().join("again").join(format!("{name}-cut"));
        let again = run(&inputs, &MergeOptions { threads: 3, ..options }, &folder);
        assert_eq!(bytes(&again.path), bytes(&cut.path), "{name}");
        assert_eq!(again.generation, cut.generation);
    }
    let seeded = |seed, out| {
        let options = MergeOptions { density: Some(0.5), seed, ..options("dare-linear") };
        run(&inputs, &options, &root.path().join(out)).generation
    };
    assert_eq!(seeded(None, "a"), seeded(Some(0), "b"));
    assert_ne!(seeded(Some(1), "c"), seeded(Some(2), "d"));
}

#[test]
fn the_arc_keeps_the_length_that_the_line_loses() {
    let root = tempfile::tempdir().unwrap();
    let unit = |row: usize| {
        let (mut a, mut b) = (Mat::zeros(1, 3), Mat::zeros(3, 1));
        (a.values[row], b.values[0]) = (1.0, 2.0);
        (Q0, a, b)
    };
    let one = write(root.path(), "one", &[unit(0)], 1.0, &[]);
    let two = write(root.path(), "two", &[unit(1)], 1.0, &[]);
    let at = |t: f64, inputs: &[(&PathBuf, f64)], out: &str| {
        let options = MergeOptions { t: Some(t), ..options("slerp") };
        deltas(&run(&weighted(inputs), &options, &root.path().join(out)).path).remove(Q0).unwrap()
    };
    let pair = [(&one, 1.0), (&two, 1.0)];
    assert!(worst(&at(0.0, &pair, "start"), &deltas(&one)[Q0]) < 1e-6);
    assert!(worst(&at(1.0, &pair, "end"), &deltas(&two)[Q0]) < 1e-6);
    let middle = at(0.5, &pair, "middle");
    assert!((middle.norm2() - 4.0).abs() < 1e-5, "{middle:?}");
    let same = at(0.25, &[(&one, 1.0), (&one, 3.0)], "same");
    assert!(worst(&same, &deltas(&one)[Q0].clone().scaled(1.5)) < 1e-6);
    let three = refusal(
        &weighted(&[(&one, 1.0), (&two, 1.0), (&one, 1.0)]),
        &options("slerp"),
        &root.path().join("three"),
    );
    assert!(three.contains("one or two"), "{three}");
}

/// Where only one of two acts, the other end of the line is zero.
#[test]
fn the_line_keeps_its_direction_where_one_module_does_not_act() {
    let root = tempfile::tempdir().unwrap();
    let one = module(root.path(), "one", &[site(Q0, 2, 6, 5)], 4.0, 1);
    let two = module(root.path(), "two", &[site(Q1, 3, 6, 5)], 4.0, 2);
    let inputs = weighted(&[(&one, 1.0), (&two, 2.0)]);
    for t in [0.0, 0.25, 1.0] {
        let out = root.path().join(format!("at-{t}"));
        run(&inputs, &MergeOptions { t: Some(t), ..options("slerp") }, &out);
        let first = deltas(&one).remove(Q0).unwrap().scaled(1.0 - t);
        let second = deltas(&two).remove(Q1).unwrap().scaled(2.0 * t);
        require_near(&out, &[(Q0, first), (Q1, second)], 2e-5);
    }
}

#[test]
fn settings_out_of_range_are_named_together() {
    let root = tempfile::tempdir().unwrap();
    let sites = [site(Q0, 3, 6, 5)];
    let one = module(root.path(), "one", &sites, 4.0, 1);
    let out = root.path().join("out");
    let inputs = weighted(&[(&one, f64::NAN), (&one, f64::INFINITY)]);
    let all = MergeOptions {
        density: Some(f64::NAN),
        sign: Some(Sign::Total),
        rank: Some(Rank::Fixed(0)),
        seed: Some(1),
        t: Some(2.0),
        ..options("mergekit-ties")
    };
    let found = refusal(&inputs, &all, &out);
    for part in [
        "weight of",
        "is NaN",
        "is inf",
        "density is NaN",
        "does not elect signs by Total",
        "rank is 0",
        "has no seed",
        "has no t",
        "t is 2",
    ] {
        assert!(found.contains(part), "{part}: {found}");
    }
    let fine = weighted(&[(&one, 1.0)]);
    let cases = [
        (options("ties"), "needs a density"),
        (MergeOptions { density: Some(0.0), ..options("ties") }, "density is 0"),
        (MergeOptions { density: Some(0.5), ..options("cat") }, "has no density"),
        (MergeOptions { rank: Some(Rank::Fixed(4)), ..options("cat") }, "keeps its rank"),
        (MergeOptions { rank: Some(Rank::Energy(1.5)), ..options("svd") }, "energy is 1.5"),
    ];
    for (options, part) in cases {
        let found = refusal(&fine, &options, &out);
        assert!(found.contains(part), "{part}: {found}");
    }
    assert!(refusal(&[], &options("cat"), &out).contains("at least one"));
    let exists = merge(&fine, &options("cat"), &one, &mut |_, _| {}).unwrap_err().to_string();
    assert!(exists.contains("exists"), "{exists}");
    let name = refusal(&fine, &options("cat"), &root.path().join("no name"));
    assert!(name.contains("may hold letters"), "{name}");
}

#[test]
fn modules_that_do_not_fit_are_named_together() {
    let root = tempfile::tempdir().unwrap();
    let one = module(root.path(), "one", &[site(Q0, 3, 6, 5)], 4.0, 1);
    let tall = module(root.path(), "tall", &[site(Q0, 2, 7, 5)], 4.0, 1);
    let extra = |name: &str, key: &str, value: serde_json::Value| {
        let sites = [(Q0, noise(1, 5, 1), noise(6, 1, 1))];
        write(root.path(), name, &sites, 1.0, &[(key, value)])
    };
    let dora = extra("dora", "use_dora", json!(true));
    let biased = extra("biased", "bias", json!("lora_only"));
    let saved = extra("saved", "modules_to_save", json!(["lm_head"]));
    let gone = root.path().join("gone");
    let out = root.path().join("out");
    let inputs: Vec<(&PathBuf, f64)> =
        [&one, &tall, &dora, &biased, &saved, &gone].map(|directory| (directory, 1.0)).to_vec();
    let found = refusal(&weighted(&inputs), &options("peft-linear"), &out);
    for part in [
        "`tall` has outputs 7",
        "`tall` has rank 2",
        "expected 3 as in `one`",
        "adapter `dora`: `use_dora` is true",
        "adapter `biased`: `bias` is \"lora_only\"",
        "adapter `saved`: `modules_to_save`",
        "adapter `gone`: cannot read",
    ] {
        assert!(found.contains(part), "{part}: {found}");
    }
    let wide = module(root.path(), "wide", &[site(Q0, 2, 6, 5)], 4.0, 2);
    let pair = weighted(&[(&one, 1.0), (&wide, 1.0)]);
    assert!(refusal(&pair, &options("peft-linear"), &out).contains("rank 2"));
    run(&pair, &options("peft-cat"), &out);
}

#[test]
fn what_overflows_is_not_written() {
    let root = tempfile::tempdir().unwrap();
    let huge = Mat { rows: 1, columns: 2, values: vec![MAX_WEIGHT.into(), 1.0] };
    let b = Mat { rows: 2, columns: 1, values: vec![MAX_WEIGHT.into(), 1.0] };
    let one = write(root.path(), "one", &[(Q0, huge, b)], 1.0, &[]);
    // A's and B's own sums stay in range, and a mean of equals is one of them.
    let fits = |method: &Method| {
        method.recipe().space == Space::Parts || method.name() == "mergekit-linear"
    };
    for method in Method::all().filter(|method| !fits(method)) {
        let options = undiluted(method);
        let inputs = weighted(&[(&one, 1e3), (&one, 1e3)]);
        let found = refusal(&inputs, &options, &root.path().join("out"));
        assert!(found.contains("overflows") && found.contains(Q0), "{}: {found}", method.name());
    }
}

/// Ranks that differ by site need patterns for r and α, so that every scale is 1.
#[test]
fn the_configuration_is_peft_s_and_scales_are_one() {
    let root = tempfile::tempdir().unwrap();
    let one = module(root.path(), "one", &[site(Q0, 3, 6, 5), site(Q1, 3, 6, 5)], 4.0, 1);
    let two = module(root.path(), "two", &[site(Q0, 2, 6, 5), site(DOWN1, 5, 6, 5)], 4.0, 2);
    let out = root.path().join("out");
    let dtype = Dtype::Bf16;
    let made = run(
        &weighted(&[(&one, 1.0), (&two, 1.0)]),
        &MergeOptions { dtype, ..options("cat") },
        &out,
    );
    let source = Source::read(&out).unwrap();
    let found: Vec<(usize, f32)> = source.sites.values().map(|s| (s.rank, s.scale)).collect();
    assert_eq!(found, [(5, 1.0), (5, 1.0), (3, 1.0)]);
    assert_eq!(source.settings["r"], 5);
    assert_eq!(source.settings["rank_pattern"], json!({(Q1): 3}));
    assert_eq!(source.settings["alpha_pattern"], json!({(Q1): 3}));
    assert_eq!(
        source.settings["target_modules"],
        json!([Q0, DOWN1, Q1].iter().collect::<BTreeSet<_>>())
    );
    assert_eq!(made.generation, source.content.generation);
    assert!((1e-4..5e-3).contains(&made.errors().worst), "{:?}", made.errors());
    let card = &source.content.card;
    assert!(card.tags.contains(&"cat".to_owned()));
    let derived = card.metadata.iter().filter(|(key, _)| key == "derived_from").count();
    assert_eq!(derived, 2);
}
