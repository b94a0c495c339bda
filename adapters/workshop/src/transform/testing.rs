//! Modules for the tests of transforms.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::factors::Factors;
use super::matrix::Mat;
use super::matrix::tests::noise;
use super::source::Source;
use super::write::pretty;
use polyskill_adapters::peft::{CONFIG_FILE, WEIGHTS_FILE};
use polyskill_adapters::tensor_file::{Tensor, tensor_name, weights_file};

/// A site of a module to be written.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) path: &'static str,
    pub(crate) rank: usize,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
}

pub(crate) const Q0: &str = "model.layers.0.self_attn.q_proj";
pub(crate) const Q1: &str = "model.layers.1.self_attn.q_proj";
pub(crate) const DOWN1: &str = "model.layers.1.mlp.down_proj";

pub(crate) fn site(path: &'static str, rank: usize, outputs: usize, inputs: usize) -> Site {
    Site { path, rank, outputs, inputs }
}

/// Writes a module of noise with one α.
pub(crate) fn module(root: &Path, name: &str, sites: &[Site], alpha: f64, seed: u64) -> PathBuf {
    let values = |site: &Site, part: u64| {
        let seed =
            31 * seed + 7 * part + site.path.len() as u64 + u64::from(site.path.as_bytes()[13]);
        let (rows, columns) =
            if part == 0 { (site.rank, site.inputs) } else { (site.outputs, site.rank) };
        noise(rows, columns, seed)
    };
    let sites: Vec<(&str, Mat, Mat)> =
        sites.iter().map(|site| (site.path, values(site, 0), values(site, 1))).collect();
    write(root, name, &sites, alpha, &[])
}

/// Writes a module of given A and B, and further settings.
pub(crate) fn write(
    root: &Path,
    name: &str,
    sites: &[(&str, Mat, Mat)],
    alpha: f64,
    extra: &[(&str, serde_json::Value)],
) -> PathBuf {
    let directory = root.join(name);
    std::fs::create_dir(&directory).unwrap();
    let ranks: BTreeMap<&str, usize> = sites.iter().map(|(path, a, _)| (*path, a.rows)).collect();
    let mut config = json!({
        "peft_type": "LORA", "r": 1, "lora_alpha": alpha, "rank_pattern": ranks,
        "target_modules": ranks.keys().collect::<Vec<_>>(),
    });
    for (key, value) in extra {
        config[*key] = value.clone();
    }
    std::fs::write(directory.join(CONFIG_FILE), pretty(&config)).unwrap();
    let tensors = sites.iter().flat_map(|(path, a, b)| {
        [("lora_A", a), ("lora_B", b)].map(|(part, m)| {
            let values = m.values.iter().map(|&value| value as f32);
            (tensor_name(path, part), Tensor::f32(vec![m.rows, m.columns], values))
        })
    });
    std::fs::write(directory.join(WEIGHTS_FILE), weights_file(tensors).unwrap()).unwrap();
    directory
}

/// The deltas of a module on disk.
pub(crate) fn deltas(directory: &Path) -> BTreeMap<String, Mat> {
    let source = Source::read(directory).unwrap();
    source.sites.iter().map(|(path, site)| (path.clone(), Factors::of(site).dense())).collect()
}

/// The files of a module, for comparing bits.
pub(crate) fn bytes(directory: &Path) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

mod hostile {
    use proptest::prelude::*;

    use super::*;
    use crate::inspect::{diff, inspect};
    use crate::transform::{
        MergeOptions, Method, PromptSum, Refinement, Scaling, Weighted, merge, prompt_sum, refine,
        rescale,
    };

    /// Does everything that reads a module; whatever comes of it, it is a result.
    fn read_all_ways(root: &Path, broken: &Path, whole: &Path) {
        let inputs = [broken, whole]
            .map(|directory| Weighted { directory: directory.to_owned(), weight: 0.5 });
        for (at, method) in Method::all().enumerate() {
            let density = method.name().contains("ties").then_some(0.5);
            let options = MergeOptions { density, ..MergeOptions::new(method) };
            let _ = merge(&inputs, &options, &root.join(format!("merged-{at}")), &mut |_, _| {});
        }
        let lines = Scaling::Lines { alpha: 0.5, beta: 0.5, layers: None };
        let _ = rescale(broken, lines, &root.join("lines"));
        let timber = Refinement::Timber { gamma: 0.5 };
        let _ = refine(broken, timber, Default::default(), &root.join("t"), &mut |_, _| {});
        let _ = (inspect(broken), diff(broken, whole));
        let [vector, _] = inputs;
        let sum = PromptSum {
            origin: whole.to_owned(),
            vectors: vec![vector],
            coefficient: 1.0,
            cross_origin: true,
        };
        let _ = prompt_sum(&sum, &root.join("prompt"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn mutated_modules_are_read_or_refused(
            in_config in any::<bool>(), flips in prop::collection::vec((any::<u16>(), any::<u8>()), 1..4),
        ) {
            let root = tempfile::tempdir().unwrap();
            let sites = [site(Q0, 2, 4, 3), site(Q1, 1, 4, 3)];
            let whole = module(root.path(), "whole", &sites, 4.0, 1);
            let broken = module(root.path(), "broken", &sites, 4.0, 2);
            let file = broken.join(if in_config { CONFIG_FILE } else { WEIGHTS_FILE });
            let mut bytes = std::fs::read(&file).unwrap();
            let len = bytes.len();
            for (at, byte) in flips {
                bytes[usize::from(at) % len] = byte;
            }
            std::fs::write(&file, bytes).unwrap();
            read_all_ways(root.path(), &broken, &whole);
        }

        #[test]
        fn extreme_scales_and_empty_widths_are_results(
            alpha in prop::sample::select(vec![0.0, 1e-320, -1e38, 1e300, f64::MIN]),
            inputs in 0_usize..3, outputs in 0_usize..3, rank in 1_usize..4,
        ) {
            let root = tempfile::tempdir().unwrap();
            let sites = [site(Q0, rank, outputs, inputs)];
            let whole = module(root.path(), "whole", &sites, 1.0, 1);
            let extreme = module(root.path(), "extreme", &sites, alpha, 2);
            read_all_ways(root.path(), &extreme, &whole);
        }
    }
}
