//! Taking general knowledge out of modules (GenKnowSub, 2025).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use safetensors::tensor::SafeTensors;

use super::provenance::{Origin, Provenance};
use super::source::{Source, new_name};
use super::write::{self, Draft};
use polyskill_adapters::Error;
use polyskill_adapters::files::Problems;
use polyskill_adapters::peft;
use polyskill_adapters::tensor_file::{Tensor, tensor_name, weights_file};

/// Subtracts general knowledge from modules, as PEFT's Arrow does with `use_gks` (GenKnowSub,
/// 2025).
///
/// With A_g and B_g the means over the `general` modules, a module gets A − A_g and B − B_g. Its
/// product is then (B − B_g)·(A − A_g), which is not B·A − B_g·A_g. Each result is written to a
/// folder of `out` under its module's name, as PEFT writes modules and in 32-bit floats: a
/// difference of two 16-bit values is rarely one. Router artefacts are not taken along, since they
/// belong to the original's weights.
///
/// # Errors
/// If something cannot be read or written, or with all problems: every module must have the sites,
/// ranks, shapes and scales of every general module, and nothing may stand where a result goes.
pub fn gen_know_sub(
    general: &[PathBuf],
    modules: &[PathBuf],
    out: &Path,
) -> Result<Vec<PathBuf>, Error> {
    let mut problems = Problems::default();
    let (general, modules) =
        (Source::read_all(general, &mut problems), Source::read_all(modules, &mut problems));
    match general.first() {
        Some(first) => {
            let others = general.iter().skip(1).chain(&modules);
            others.for_each(|other| compare(first, other, &SHARED, &mut problems));
        }
        None => problems.add("found no general module, expected at least one".to_owned()),
    }
    let targets = targets(&modules, out, &mut problems);
    problems.into_result(()).map_err(|problems| Error::Transform { problems })?;
    let mean = mean(&general);
    write::publish(&targets, |at| subtracted(&modules[at], &general, &mean).map(Cow::Owned))?;
    Ok(targets)
}

/// The numbers that modules must share for their A and B to be summed, as `RawSite::numbers` names
/// them.
pub(super) const SHARED: [&str; 4] = ["rank", "scale", "inputs", "outputs"];

/// Adds sites that only one of two modules has, and those at which one of the numbers named in
/// `shared` differs.
pub(super) fn compare(first: &Source, other: &Source, shared: &[&str], problems: &mut Problems) {
    let paths: BTreeSet<&String> = first.sites.keys().chain(other.sites.keys()).collect();
    for path in paths {
        let (a, b) = match (first.sites.get(path), other.sites.get(path)) {
            (Some(a), Some(b)) => (a, b),
            (Some(_), None) => {
                problems
                    .add(format!("`{}` does not act at {path}, `{}` does", other.name, first.name));
                continue;
            }
            _ => {
                problems.add(format!("`{}` acts at {path}, `{}` does not", other.name, first.name));
                continue;
            }
        };
        let (found, expected) = (b.numbers(), a.numbers());
        for ((what, found), (_, expected)) in found.into_iter().zip(expected) {
            if shared.contains(&what) && found != expected {
                problems.add(format!(
                    "`{}` has {what} {found} at {path}, expected {expected} as in `{}`",
                    other.name, first.name
                ));
            }
        }
    }
}

/// The places of the results: the names of the modules in the directory `out`, in order. Adds names
/// that come twice, and places where something is.
pub(super) fn targets(modules: &[Source], out: &Path, problems: &mut Problems) -> Vec<PathBuf> {
    let mut seen = BTreeSet::new();
    let target = |module: &Source| {
        if !seen.insert(module.name.clone()) {
            problems.add(format!("two modules are named `{}`", module.name));
        }
        let target = out.join(&module.name);
        new_name(&target, problems);
        target
    };
    modules.iter().map(target).collect()
}

/// Means of A, `[rank, inputs]`, and of B, `[outputs, rank]`, by site.
pub(super) type Mean = BTreeMap<String, [Vec<f32>; 2]>;

/// The means of the general modules' A and B, summed in 64 bits. Scales are not multiplied in.
///
/// All must have the sites and shapes of the first, as [`compare`] requires; empty without modules.
pub(super) fn mean(general: &[Source]) -> Mean {
    let Some(first) = general.first() else { return Mean::new() };
    let mean = |path: &String, of_b: usize| {
        let mut sum = vec![0.0_f64; first.sites[path].matrices[of_b].values.len()];
        for source in general {
            let values = source.sites[path].matrices[of_b].values.iter();
            sum.iter_mut().zip(values).for_each(|(sum, &value)| *sum += f64::from(value));
        }
        sum.into_iter().map(|sum| (sum / general.len() as f64) as f32).collect()
    };
    first.sites.keys().map(|path| (path.clone(), [mean(path, 0), mean(path, 1)])).collect()
}

/// The draft of a module without the mean. Its configuration stays, for its scales and ranks do.
fn subtracted(module: &Source, general: &[Source], mean: &Mean) -> Result<Draft, Error> {
    let tensors = module.sites.iter().flat_map(|(path, site)| {
        let pairs = ["lora_A", "lora_B"].into_iter().zip(&site.matrices).zip(&mean[path]);
        pairs.map(move |((part, matrix), mean)| {
            let values = matrix.values.iter().zip(mean).map(|(a, b)| a - b);
            (tensor_name(path, part), Tensor::f32(matrix.shape.to_vec(), values))
        })
    });
    let refused = |problem: String| Error::refused(&module.name, vec![problem]);
    let weights = weights_file(tensors).map_err(refused)?;
    require_finite(&weights).map_err(refused)?;
    let summary = "with the mean of the general modules subtracted from A and B (GenKnowSub)";
    Ok(Draft {
        files: write::PEFT_FILES,
        config: module.content.config.clone(),
        weights,
        card: card(module, general, "genknowsub", summary),
        read: write::read_lora,
    })
}

/// Refuses weights with a value beyond what modules may have: differences of finite values can
/// overflow, and such a module would be refused later. Names up to four tensors.
fn require_finite(weights: &[u8]) -> Result<(), String> {
    let tensors = SafeTensors::deserialize(weights).map_err(|error| error.to_string())?;
    let wrong = tensors.iter().filter(|(_, view)| peft::elements(view).is_err());
    let names: Vec<&str> = wrong.map(|(name, _)| name).take(4).collect();
    if names.is_empty() { Ok(()) } else { Err(format!("the difference overflows at {names:?}")) }
}

/// The card: the module that was changed, and the general ones.
fn card(module: &Source, general: &[Source], method: &'static str, summary: &str) -> String {
    let mut provenance = Provenance::of(&module.name, method, &[module]);
    provenance.summary = format!("`{}` {summary}.", module.name);
    provenance.origins = std::iter::once(Origin::of("derived_from", module, None))
        .chain(general.iter().map(|source| Origin::of("general", source, None)))
        .collect();
    provenance.card()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A module of rank 2 at q_proj of some layers, three inputs and two outputs, filled with one
    /// value.
    fn module(root: &Path, name: &str, layers: &[usize], extra: &str, value: f32) -> PathBuf {
        let directory = root.join(name);
        std::fs::create_dir(&directory).unwrap();
        let config = format!(
            r#"{{"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "lora_alpha": 4{extra}}}"#
        );
        std::fs::write(directory.join(peft::CONFIG_FILE), config).unwrap();
        let tensors = layers.iter().flat_map(|layer| {
            [("lora_A", [2, 3], value), ("lora_B", [2, 2], 2.0 * value)].map(
                |(part, shape, value)| {
                    let name = format!(
                        "base_model.model.model.layers.{layer}.self_attn.q_proj.{part}.weight"
                    );
                    let bytes = value.to_le_bytes().repeat(shape.iter().product());
                    (name, Tensor { dtype: safetensors::Dtype::F32, shape: shape.to_vec(), bytes })
                },
            )
        });
        std::fs::write(directory.join(peft::WEIGHTS_FILE), weights_file(tensors).unwrap()).unwrap();
        directory
    }

    fn refusal(general: &[PathBuf], modules: &[PathBuf], out: &Path) -> String {
        let before = out.exists();
        let error = gen_know_sub(general, modules, out).unwrap_err().to_string();
        assert_eq!(out.exists(), before, "{error}");
        error
    }

    #[test]
    fn the_mean_is_subtracted_and_the_original_kept() {
        let root = tempfile::tempdir().unwrap();
        let general = [
            module(root.path(), "g1", &[0, 1], "", 1.0),
            module(root.path(), "g2", &[0, 1], "", 2.0),
        ];
        let task = module(root.path(), "task", &[0, 1], "", 4.0);
        let card = "---\ntags:\n- maths\ndescription: sums\n---\n";
        std::fs::write(task.join("README.md"), card).unwrap();
        let before = Source::read(&task).unwrap();
        let out = root.path().join("new/out");
        let written = gen_know_sub(&general, std::slice::from_ref(&task), &out).unwrap();
        assert_eq!(written, [out.join("task")]);
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1);
        let after = Source::read(&written[0]).unwrap();
        assert_eq!(after.sites.len(), 2);
        for site in after.sites.values() {
            assert_eq!(
                (&site.matrices[0].values[..], &site.matrices[1].values[..]),
                ([2.5; 6].as_slice(), [5.0; 4].as_slice())
            );
        }
        assert_eq!(after.content.card.tags, ["maths", "genknowsub"]);
        let derived = ("derived_from".to_owned(), before.content.generation.to_string());
        assert!(after.content.card.metadata.contains(&derived));
        assert_eq!(Source::read(&task).unwrap().content.generation, before.content.generation);
        let again = refusal(&general, &[task], &out);
        assert!(again.contains("exists"), "{again}");
    }

    #[test]
    fn all_that_differs_is_named() {
        let root = tempfile::tempdir().unwrap();
        let general = [module(root.path(), "g", &[0, 1], "", 1.0)];
        let pattern = r#", "rank_pattern": {}, "alpha_pattern": {"layers.1.self_attn.q_proj": 6}"#;
        let modules = [
            module(root.path(), "elsewhere", &[0, 2], "", 1.0),
            module(root.path(), "scaled", &[0, 1], pattern, 1.0),
            module(root.path(), "ranked", &[0, 1], r#", "rank_pattern": {"q_proj": 3}"#, 1.0),
            module(root.path(), "infinite", &[0, 1], "", f32::INFINITY),
            root.path().join("missing"),
        ];
        let found = refusal(&general, &modules, &root.path().join("out"));
        let expected = [
            "`elsewhere` does not act at model.layers.1.self_attn.q_proj",
            "`elsewhere` acts at model.layers.2.self_attn.q_proj, `g` does not",
            "`scaled` has scale 3 at model.layers.1.self_attn.q_proj, expected 2 as in `g`",
            "layers.0.self_attn.q_proj.lora_B.weight` has shape [2, 2], expected rank 3",
            "adapter `infinite`",
            "adapter `missing`: cannot read",
        ];
        for part in expected {
            assert!(found.contains(part), "{part}: {found}");
        }
    }

    #[test]
    fn nothing_is_written_over_or_twice() {
        let root = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let general = [module(root.path(), "g", &[0], "", 1.0)];
        let twins =
            [module(root.path(), "t", &[0], "", 2.0), module(other.path(), "t", &[0], "", 2.0)];
        assert!(refusal(&general, &twins, &root.path().join("out")).contains("two modules"));
        assert!(refusal(&general, &twins[..1], root.path()).contains("exists"));
        assert!(refusal(&[], &twins[..1], &root.path().join("out")).contains("at least one"));
        let huge = [module(root.path(), "h", &[0], "", peft::MAX_WEIGHT / 2.0)];
        let minus = [module(root.path(), "m", &[0], "", -peft::MAX_WEIGHT / 2.0)];
        let out = root.path().join("out");
        let overflow = gen_know_sub(&minus, &huge, &out).unwrap_err().to_string();
        assert!(overflow.contains("overflows"), "{overflow}");
        assert!(!out.exists());
    }
}
