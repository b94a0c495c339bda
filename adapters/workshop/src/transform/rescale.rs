//! Scaling a module's deltas through α alone: A and B stay as they are, bit for bit.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::provenance::{Origin, Provenance};
use super::source::{Source, new_name};
use super::write::{self, Draft, pretty};
use super::{Made, SiteReport};
use polyskill_adapters::Error;
use polyskill_adapters::files::Problems;
use polyskill_adapters::peft::MAX_WEIGHT;

/// The factors on a module's deltas.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// The same everywhere.
    Factor(f64),
    /// LiNeS (Wang et al., 2024): α + β·ℓ/(L − 1) in layer ℓ of L, counted from 0, and α at sites
    /// outside of layers.
    Lines {
        /// The factor in the first layer.
        alpha: f64,
        /// The increase from the first layer to the last.
        beta: f64,
        /// L, at least 2. If it is left out, the last layer that the module acts in is taken for
        /// the base's last.
        layers: Option<usize>,
    },
}

impl Scaling {
    /// The method's name on cards.
    fn method(self) -> &'static str {
        match self {
            Self::Factor(-1.0) => "negate",
            Self::Factor(_) => "scale",
            Self::Lines { .. } => "lines",
        }
    }

    /// The factor at each site, in the order of `paths`. Adds factors that are not finite, fewer
    /// than two layers, and a site in a layer beyond L.
    fn factors<'a>(
        self,
        paths: impl Iterator<Item = &'a String> + Clone,
        problems: &mut Problems,
    ) -> Vec<f64> {
        let (alpha, beta, layers) = match self {
            Self::Factor(factor) => (factor, 0.0, Some(2)),
            Self::Lines { alpha, beta, layers } => (alpha, beta, layers),
        };
        for (what, value) in [("first factor", alpha), ("increase of the factor", beta)] {
            if !value.is_finite() {
                problems.add(format!("the {what} is {value}, expected a finite number"));
            }
        }
        if matches!(self, Self::Factor(_)) {
            return paths.map(|_| alpha).collect();
        }
        let last = paths.clone().filter_map(|path| layer_of(path)).max();
        let count = layers.or(last.map(|last| last + 1)).unwrap_or(0);
        if count < 2 {
            problems.add(format!("found {count} layers, scaling by depth needs at least 2"));
        } else if let Some(last) = last.filter(|&last| last >= count) {
            problems.add(format!("the module acts in layer {last}, expected below {count}"));
        }
        let steps = count.saturating_sub(1).max(1) as f64;
        paths
            .map(|path| alpha + layer_of(path).map_or(0.0, |layer| beta * layer as f64 / steps))
            .collect()
    }
}

/// The number of the layer that a path lies in: its first component that is a number; `None`
/// outside of layers.
fn layer_of(path: &str) -> Option<usize> {
    path.split('.').find_map(|component| component.parse().ok())
}

/// Multiplies the deltas of a module, into a new one at `out` with the same weights.
///
/// Only `lora_alpha` and `alpha_pattern` change, so a factor of 0 gives a module that acts as none
/// and keeps its weights. `SiteReport::from_sum` is |factor − 1|.
///
/// # Errors
/// With all problems, and nothing is written: a module that cannot be read or is more than A and B,
/// factors that are not finite or overflow, fewer than two layers for LiNeS, or something at `out`.
pub fn rescale(module: &Path, scaling: Scaling, out: &Path) -> Result<Made, Error> {
    let mut problems = Problems::default();
    let name = new_name(out, &mut problems);
    let read = Source::read_all(&[module.to_owned()], &mut problems);
    let mut alphas = BTreeMap::new();
    let mut sites = Vec::new();
    for source in &read {
        let factors = scaling.factors(source.sites.keys(), &mut problems);
        for ((path, site), factor) in source.sites.iter().zip(factors) {
            if !(f64::from(site.scale) * factor).abs().le(&f64::from(MAX_WEIGHT)) {
                problems
                    .add(format!("the scale {} times {factor} overflows at {path}", site.scale));
            }
            alphas.insert(path.as_str(), site.alpha * factor);
            let (site, rank, from_sum) = (path.clone(), site.rank, (factor - 1.0).abs());
            sites.push(SiteReport { site, rank, error: 0.0, from_sum });
        }
    }
    problems.into_result(()).map_err(|problems| Error::Transform { problems })?;
    let source = &read[0];
    let draft = Draft {
        files: write::PEFT_FILES,
        config: with_alphas(&source.settings, &alphas),
        weights: source.content.weights.clone(),
        card: card(&name, scaling, source),
        read: write::read_lora,
    };
    let generation = write::publish_one(out, &draft)?;
    Ok(Made { path: out.to_owned(), generation, sites })
}

/// The configuration with other α by site; the usual one is the default, the rest are patterns with
/// whole paths.
fn with_alphas(settings: &Map<String, Json>, alphas: &BTreeMap<&str, f64>) -> Vec<u8> {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    alphas.values().for_each(|alpha| *counts.entry(alpha.to_bits()).or_default() += 1);
    let usual = counts.iter().max_by_key(|(_, count)| **count).map_or(0, |(bits, _)| *bits);
    let others = alphas.iter().filter(|(_, alpha)| alpha.to_bits() != usual);
    let pattern: Map<String, Json> =
        others.map(|(path, alpha)| ((*path).to_owned(), number(*alpha))).collect();
    let mut settings = settings.clone();
    settings.insert("lora_alpha".to_owned(), number(f64::from_bits(usual)));
    settings.insert("alpha_pattern".to_owned(), Json::Object(pattern));
    pretty(&Json::Object(settings))
}

/// A whole number where it is one, as PEFT writes α.
fn number(value: f64) -> Json {
    let whole = value as i64;
    if whole as f64 == value { json!(whole) } else { json!(value) }
}

/// The card: the source and the factors, with L as it was used.
fn card(name: &str, scaling: Scaling, source: &Source) -> String {
    let mut provenance = Provenance::of(name, scaling.method(), &[source]);
    let what = match scaling {
        Scaling::Factor(factor) => format!("times {factor}"),
        Scaling::Lines { alpha, beta, .. } => {
            format!("scaled by depth, from {alpha} to {} (LiNeS)", alpha + beta)
        }
    };
    provenance.summary = format!("`{name}` is `{}` {what}; A and B are unchanged.", source.name);
    provenance.parameters = match scaling {
        Scaling::Factor(factor) => vec![("factor", factor.to_string())],
        Scaling::Lines { alpha, beta, layers } => {
            let last = source.sites.keys().filter_map(|path| layer_of(path)).max();
            let layers = layers.or(last.map(|last| last + 1)).unwrap_or(0);
            let numbers = [("alpha", alpha), ("beta", beta), ("layers", layers as f64)];
            numbers.map(|(key, value)| (key, value.to_string())).to_vec()
        }
    };
    provenance.origins = vec![Origin::of("derived_from", source, None)];
    provenance.card()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::matrix::tests::worst;
    use crate::transform::testing::{DOWN1, Q0, Q1, deltas, module, site, write};

    #[test]
    fn weights_keep_their_bits() {
        let root = tempfile::tempdir().unwrap();
        let sites = [site(Q0, 3, 6, 5), site(Q1, 2, 6, 5), site(DOWN1, 2, 5, 6)];
        let one = module(root.path(), "one", &sites, 6.0, 1);
        let before = deltas(&one);
        let weights = |directory: &Path| std::fs::read(directory.join("adapter_model.safetensors"));
        for (scaling, at_q0, at_others, name) in [
            (Scaling::Factor(-1.0), -1.0, -1.0, "negate"),
            (Scaling::Factor(0.0), 0.0, 0.0, "scale"),
            (Scaling::Lines { alpha: 0.3, beta: 0.7, layers: None }, 0.3, 1.0, "lines"),
            (Scaling::Lines { alpha: 0.3, beta: 0.7, layers: Some(8) }, 0.3, 0.4, "lines-8"),
        ] {
            let made = rescale(&one, scaling, &root.path().join(name)).unwrap();
            assert_eq!(weights(&made.path).unwrap(), weights(&one).unwrap());
            for (path, after) in deltas(&made.path) {
                let factor = if path == Q0 { at_q0 } else { at_others };
                let off = worst(&after, &before[&path].clone().scaled(factor));
                assert!(off < 1e-5, "{name} at {path}: {off}");
            }
            let source = Source::read(&made.path).unwrap();
            assert!(source.content.card.tags.contains(&scaling.method().to_owned()));
        }
    }

    #[test]
    fn depth_needs_layers_and_factors_are_finite() {
        let root = tempfile::tempdir().unwrap();
        let one = module(root.path(), "one", &[site(Q0, 3, 6, 5)], 6.0, 1);
        let deep = module(root.path(), "deep", &[site(Q1, 3, 6, 5)], 6.0, 1);
        let lines = |alpha, layers| Scaling::Lines { alpha, beta: 1.0, layers };
        let out = root.path().join("out");
        for (directory, scaling, part) in [
            (&one, lines(1.0, None), "found 1 layers"),
            (&one, lines(1.0, Some(1)), "found 1 layers"),
            (&deep, lines(f64::NAN, None), "first factor is NaN"),
            (&deep, lines(1e39, None), "overflows at"),
            (&one, Scaling::Factor(f64::INFINITY), "first factor is inf"),
            (&out, Scaling::Factor(1.0), "cannot read"),
        ] {
            let found = rescale(directory, scaling, &out).unwrap_err().to_string();
            assert!(found.contains(part) && !out.exists(), "{part}: {found}");
        }
        let far = ("model.layers.5.self_attn.q_proj", [1, 2], [2, 1]);
        let [a, b] = [far.1, far.2]
            .map(|[rows, columns]| crate::transform::matrix::Mat::zeros(rows, columns));
        let far = write(root.path(), "far", &[(far.0, a, b)], 1.0, &[]);
        let found = rescale(&far, lines(1.0, Some(4)), &out).unwrap_err().to_string();
        assert!(found.contains("acts in layer 5, expected below 4"), "{found}");
    }

    #[test]
    fn the_layer_is_the_first_component_that_is_a_number() {
        assert_eq!(layer_of("model.layers.10.mlp.down_proj"), Some(10));
        assert_eq!(layer_of("model.layers.1.experts.7.w1"), Some(1));
        assert_eq!(layer_of("lm_head"), None);
    }
}
