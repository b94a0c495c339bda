//! Rewriting one module's deltas through their singular values.

use std::collections::BTreeMap;
use std::path::Path;

use super::factors::Factors;
use super::merge::check_rank;
use super::provenance::{Origin, Provenance};
use super::source::{Source, new_name};
use super::svd::{self, Rank, SMALLEST};
use super::write::{self, Dtype};
use super::{Made, Progress, SiteReport, in_parallel};
use polyskill_adapters::Error;
use polyskill_adapters::files::Problems;

/// The change of a module's singular values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Refinement {
    /// The small ones are cut off, which gives the nearest delta of the lower rank.
    Rank(Rank),
    /// Timber (2025): those after the effective rank ⌈exp(−Σ p·ln(p + 10⁻⁹))⌉, p = σ/Σσ, are
    /// multiplied by γ; 0 drops them.
    Timber {
        /// γ: finite and not below 0. 1 changes nothing, and above 1 the tail grows.
        gamma: f64,
    },
}

impl Refinement {
    /// The method's name on cards.
    fn method(self) -> &'static str {
        match self {
            Self::Rank(_) => "svd",
            Self::Timber { .. } => "timber",
        }
    }

    /// The delta that is meant, before rounding.
    fn apply(self, factors: &Factors) -> Factors {
        match self {
            Self::Rank(rank) => {
                svd::product(factors, |sigma| rank.choose(sigma, factors.rank())).factors.or_zero()
            }
            Self::Timber { gamma } => timber(factors, gamma),
        }
    }
}

/// Timber at one site. With γ = 0 the rank falls to the effective rank, rounded up; else only
/// components that are rounding go.
fn timber(factors: &Factors, gamma: f64) -> Factors {
    let svd = svd::product(factors, <[f64]>::len);
    let kept = effective_rank(&svd.sigma).ceil() as usize;
    let mut refined = svd.factors;
    for row in kept..refined.rank() {
        refined.bt.row_mut(row).iter_mut().for_each(|value| *value *= gamma);
    }
    if gamma == 0.0 {
        refined.a.keep_rows(kept);
        refined.bt.keep_rows(kept);
    }
    refined.or_zero()
}

/// The effective rank of singular values that descend: exp of the entropy of their shares of the
/// sum (Roy and Vetterli, 2007), with Timber's 10⁻⁹ in the logarithm. Values that are rounding do
/// not count; 1 if all are zero.
fn effective_rank(sigma: &[f64]) -> f64 {
    let largest = sigma.first().copied().unwrap_or(0.0);
    let values = || sigma.iter().filter(|&&value| value > SMALLEST * largest);
    let sum: f64 = values().sum();
    let entropy: f64 = values().map(|value| value / sum).map(|p| -p * (p + 1e-9).ln()).sum();
    entropy.exp()
}

/// Refines a module into a new one at `out`. `progress` hears of each site that is done.
///
/// # Errors
/// With all problems, and nothing is written: a module that cannot be read or is more than A and B,
/// a setting that is out of range, a result that overflows, or something at `out`.
pub fn refine(
    module: &Path,
    refinement: Refinement,
    dtype: Dtype,
    out: &Path,
    progress: Progress<'_>,
) -> Result<Made, Error> {
    let mut problems = Problems::default();
    check(refinement, &mut problems);
    let name = new_name(out, &mut problems);
    let read = Source::read_all(&[module.to_owned()], &mut problems);
    problems.into_result(()).map_err(|problems| Error::Transform { problems })?;
    let source = &read[0];
    let paths: Vec<&String> = source.sites.keys().collect();
    let done = in_parallel(paths.len(), 1, progress, |at| {
        let before = Factors::of(&source.sites[paths[at]]);
        let meant = refinement.apply(&before);
        let stored =
            dtype.rounded(meant.clone()).map_err(|what| format!("{}: {what}", paths[at]))?;
        let distance = |from: &Factors| stored.relative_distance(from);
        // What is cut off is an error of a cut, and is meant by Timber.
        let error = match refinement {
            Refinement::Rank(_) => distance(&before),
            Refinement::Timber { .. } => distance(&meant),
        };
        let (site, rank, from_sum) = (paths[at].clone(), stored.rank(), distance(&before));
        Ok((stored, SiteReport { site, rank, error, from_sum }))
    });
    let mut problems = Problems::default();
    let (mut sites, mut reports) = (BTreeMap::new(), Vec::new());
    for result in done {
        match result {
            Ok((factors, report)) => {
                sites.insert(report.site.clone(), factors);
                reports.push(report);
            }
            Err(problem) => problems.add(problem),
        }
    }
    problems.into_result(()).map_err(|problems| Error::Transform { problems })?;
    let card = card(&name, refinement, source, &reports);
    let generation = write::lora(&read, &sites, dtype, card, out)?;
    Ok(Made { path: out.to_owned(), generation, sites: reports })
}

/// Adds a rank or γ that is out of range.
fn check(refinement: Refinement, problems: &mut Problems) {
    let mut require = |holds: bool, problem: &dyn Fn() -> String| {
        if !holds {
            problems.add(problem());
        }
    };
    match refinement {
        Refinement::Rank(rank) => check_rank(rank, &mut require),
        Refinement::Timber { gamma } => require(gamma.is_finite() && gamma >= 0.0, &|| {
            format!("gamma is {gamma}, expected a finite number that is not below 0")
        }),
    }
}

/// The card: the source, the change with its parameter, and the errors of the sites.
fn card(name: &str, refinement: Refinement, source: &Source, reports: &[SiteReport]) -> String {
    let mut provenance = Provenance::of(name, refinement.method(), &[source]);
    let (what, parameter) = match refinement {
        Refinement::Rank(rank) => ("cut to a lower rank", ("rank", rank.to_string())),
        Refinement::Timber { gamma } => {
            ("refined by effective rank (Timber)", ("gamma", gamma.to_string()))
        }
    };
    provenance.summary = format!("`{name}` is `{}` {what}.", source.name);
    provenance.parameters = vec![parameter];
    provenance.add_errors(reports);
    provenance.origins = vec![Origin::of("derived_from", source, None)];
    provenance.card()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::matrix::tests::worst;
    use crate::transform::testing::{DOWN1, Q0, deltas, module, site};

    #[test]
    fn a_lower_rank_is_the_best_of_its_rank() {
        let root = tempfile::tempdir().unwrap();
        let one = module(root.path(), "one", &[site(Q0, 5, 12, 9), site(DOWN1, 2, 9, 12)], 6.0, 1);
        let before = deltas(&one);
        let run = |rank, dtype, name: &str| {
            refine(&one, Refinement::Rank(rank), dtype, &root.path().join(name), &mut |_, _| {})
        };
        let all = run(Rank::Largest, Dtype::F32, "all").unwrap();
        deltas(&all.path).iter().for_each(|(path, m)| assert!(worst(m, &before[path]) < 1e-5));
        let cut = run(Rank::Fixed(3), Dtype::F32, "cut").unwrap();
        assert_eq!(cut.sites.iter().map(|site| site.rank).collect::<Vec<_>>(), [3, 2]);
        let sigma = svd::dense(&before[Q0], <[f64]>::len).sigma;
        let energy = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>();
        let expected = (energy(&sigma[3..]) / energy(&sigma)).sqrt();
        assert!((cut.sites[0].error - expected).abs() < 1e-6, "{cut:?}");
        let coarse = run(Rank::Largest, Dtype::Bf16, "coarse").unwrap();
        assert!((1e-4..1e-2).contains(&coarse.errors().worst), "{coarse:?}");
        let none = run(Rank::Fixed(0), Dtype::F32, "none").unwrap_err().to_string();
        assert!(none.contains("rank is 0") && !root.path().join("none").exists(), "{none}");
    }

    #[test]
    fn timber_with_gamma_one_changes_nothing_and_below_shrinks_the_tail() {
        let root = tempfile::tempdir().unwrap();
        let one = module(root.path(), "one", &[site(Q0, 6, 12, 9)], 6.0, 1);
        let before = deltas(&one);
        let run = |gamma: f64, name: &str| {
            let timber = Refinement::Timber { gamma };
            refine(&one, timber, Dtype::F32, &root.path().join(name), &mut |_, _| {})
        };
        let same = run(1.0, "same").unwrap();
        assert!(worst(&deltas(&same.path)[Q0], &before[Q0]) < 1e-5);
        let sigma = svd::dense(&before[Q0], <[f64]>::len).sigma;
        let kept = effective_rank(&sigma).ceil() as usize;
        let (half, none) = (run(0.5, "half").unwrap(), run(0.0, "none").unwrap());
        assert_eq!((half.sites[0].rank, none.sites[0].rank), (6, kept.min(6)));
        let halved = svd::dense(&deltas(&half.path)[Q0], <[f64]>::len).sigma;
        for (at, (before, after)) in sigma.iter().zip(&halved).take(6).enumerate() {
            let expected = before * if at < kept { 1.0 } else { 0.5 };
            assert!((after - expected).abs() < 1e-4, "{at}: {after} {expected}");
        }
        for gamma in [f64::NAN, -0.1] {
            assert!(run(gamma, "wrong").unwrap_err().to_string().contains("gamma is"));
        }
    }

    #[test]
    fn the_effective_rank_counts_equal_values() {
        assert!((effective_rank(&[2.0, 2.0, 2.0, 1e-9]) - 3.0).abs() < 1e-6);
        assert!((effective_rank(&[5.0, 0.0]) - 1.0).abs() < 1e-6);
        assert_eq!(effective_rank(&[0.0]), 1.0);
    }
}
