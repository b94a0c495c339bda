//! Differences of two LoRAs.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value as Json;

use crate::transform::factors::{Factors, relative};
use crate::transform::source::Source;
use polyskill_adapters::Error;
use polyskill_adapters::Generation;
use polyskill_adapters::files::Problems;
use polyskill_adapters::peft::raw::RawSite;

/// Differences of two LoRAs. In all pairs the first is that of the first module.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Their identities.
    pub generations: [Generation; 2],
    /// Settings that differ, by ascending key.
    pub settings: Vec<Setting>,
    /// Sites of either, by ascending path, equal ones among them.
    pub sites: Vec<SiteDifference>,
    /// ‖Δ₂ − Δ₁‖ over all sites, in parts of ‖Δ₁‖; as it is if Δ₁ is zero.
    pub distance: f64,
    /// The cosine of the angle between all deltas, seen as one long vector each; `None` if one
    /// module is zero.
    pub cosine: Option<f64>,
}

/// A setting that differs.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// Its key in `adapter_config.json`.
    pub key: String,
    /// The values; `None` where it is not set.
    pub values: [Option<Json>; 2],
}

/// The difference of the deltas at one site. A module that does not act there has a delta of zero.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteDifference {
    /// The path of the linear.
    pub site: String,
    /// The ranks; `None` where a module does not act.
    pub ranks: [Option<usize>; 2],
    /// ‖Δ₁‖ and ‖Δ₂‖.
    pub norms: [f64; 2],
    /// ‖Δ₂ − Δ₁‖ in parts of ‖Δ₁‖; as it is if Δ₁ is zero.
    pub distance: f64,
    /// The cosine of the angle between the deltas, −1 to 1; `None` if one is zero.
    pub cosine: Option<f64>,
}

/// Compares two LoRAs: settings, and deltas by site.
///
/// Deltas are compared as products, so factors that differ and multiply out to the same are equal.
/// No delta is formed: the cost is that of Gram matrices of A and B.
///
/// # Errors
/// With all problems: what cannot be read, and sites whose inputs or outputs differ.
pub fn diff(one: &Path, two: &Path) -> Result<Difference, Error> {
    let mut problems = Problems::default();
    let read = Source::read_all(&[one.to_owned(), two.to_owned()], &mut problems);
    if let [one, two] = read.as_slice() {
        for (path, site) in &one.sites {
            let shape = |site: &RawSite| [site.outputs(), site.inputs()];
            if let Some(other) = two.sites.get(path).filter(|other| shape(other) != shape(site)) {
                problems.add(format!(
                    "{path} is {:?} in `{}` and {:?} in `{}`",
                    shape(site),
                    one.name,
                    shape(other),
                    two.name
                ));
            }
        }
    }
    problems.into_result(()).map_err(|problems| Error::Incomparable { problems })?;
    let (one, two) = (&read[0], &read[1]);
    let paths: BTreeSet<&String> = one.sites.keys().chain(two.sites.keys()).collect();
    let mut sums = [0.0; 4];
    let sites = paths
        .into_iter()
        .map(|path| compare(path, [one.sites.get(path), two.sites.get(path)], &mut sums))
        .collect();
    let [first, second, inner, apart] = sums;
    Ok(Difference {
        generations: [one.content.generation, two.content.generation],
        settings: settings(one, two),
        sites,
        distance: relative(apart.sqrt(), first.sqrt()),
        cosine: cosine(inner, first.sqrt(), second.sqrt()),
    })
}

/// The difference at one site. `sums` gathers ‖Δ₁‖², ‖Δ₂‖², their inner product and the squared
/// distance over sites.
fn compare(path: &str, sites: [Option<&RawSite>; 2], sums: &mut [f64; 4]) -> SiteDifference {
    let factors = sites.map(|site| site.map(Factors::of));
    let norms = factors.each_ref().map(|f| f.as_ref().map_or(0.0, Factors::norm));
    let (inner, apart) = match &factors {
        [Some(one), Some(two)] => (one.inner(two), one.distance(two)),
        _ => (0.0, norms[0] + norms[1]),
    };
    let squares = [norms[0] * norms[0], norms[1] * norms[1], inner, apart * apart];
    sums.iter_mut().zip(squares).for_each(|(sum, square)| *sum += square);
    SiteDifference {
        site: path.to_owned(),
        ranks: sites.map(|site| site.map(|site| site.rank)),
        norms,
        distance: relative(apart, norms[0]),
        cosine: cosine(inner, norms[0], norms[1]),
    }
}

/// The cosine from an inner product and two norms, clamped to −1 to 1; `None` if a norm is zero.
fn cosine(inner: f64, one: f64, two: f64) -> Option<f64> {
    let norms = one * two;
    (norms > 0.0).then(|| (inner / norms).clamp(-1.0, 1.0))
}

/// Settings with different values in the two configurations, one that is set in one only among
/// them. Values are compared as JSON, defaults are not filled in.
fn settings(one: &Source, two: &Source) -> Vec<Setting> {
    let keys: BTreeSet<&String> = one.settings.keys().chain(two.settings.keys()).collect();
    let setting = |key: &String| Setting {
        key: key.clone(),
        values: [one, two].map(|source| source.settings.get(key).cloned()),
    };
    keys.into_iter().map(setting).filter(|setting| setting.values[0] != setting.values[1]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::testing::{DOWN1, Q0, Q1, module, site};
    use crate::transform::{Scaling, rescale};

    #[test]
    fn deltas_are_compared_and_not_files() {
        let root = tempfile::tempdir().unwrap();
        let one = module(root.path(), "one", &[site(Q0, 3, 6, 5), site(Q1, 2, 6, 5)], 6.0, 1);
        let same = diff(&one, &one).unwrap();
        assert_eq!((same.distance, same.settings.len()), (0.0, 0));
        assert!(same.cosine.is_some_and(|cosine| cosine > 1.0 - 1e-12));
        let halved = root.path().join("halved");
        rescale(&one, Scaling::Factor(-0.5), &halved).unwrap();
        let found = diff(&one, &halved).unwrap();
        assert_eq!(
            found.settings.iter().map(|s| s.key.as_str()).collect::<Vec<_>>(),
            ["alpha_pattern", "lora_alpha"]
        );
        assert!((found.distance - 1.5).abs() < 1e-7, "{}", found.distance);
        assert!(found.cosine.is_some_and(|cosine| cosine < -1.0 + 1e-12));
        assert_ne!(found.generations[0], found.generations[1]);
        let other =
            module(root.path(), "other", &[site(Q0, 3, 6, 5), site(DOWN1, 2, 6, 5)], 6.0, 1);
        let found = diff(&one, &other).unwrap();
        let cosines: Vec<Option<f64>> = found.sites.iter().map(|site| site.cosine).collect();
        assert_eq!(
            found.sites.iter().map(|site| site.site.as_str()).collect::<Vec<_>>(),
            [Q0, DOWN1, Q1]
        );
        assert!(cosines[0].is_some() && cosines[1].is_none() && cosines[2].is_none());
        assert_eq!((found.sites[1].ranks, found.sites[2].distance), ([None, Some(2)], 1.0));
        let tall = module(root.path(), "tall", &[site(Q0, 3, 7, 5)], 6.0, 1);
        let found = diff(&one, &tall).unwrap_err().to_string();
        assert!(found.contains("[6, 5] in `one` and [7, 5] in `tall`"), "{found}");
    }
}
