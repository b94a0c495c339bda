//! Merging at one site.

use super::MergeOptions;
use crate::transform::SiteReport;
use crate::transform::factors::{Factors, relative};
use crate::transform::matrix::Mat;
use crate::transform::recipe::{Cut, Recipe, Space};
use crate::transform::sparse::{Divisor, Stream, combine, prune};
use crate::transform::svd::{self, Rank};
use polyskill_adapters::peft::raw::RawSite;

/// Vectors whose cosine is beyond this are as good as parallel, and are mixed on the line: the
/// arc's sines would be divided by almost zero.
const PARALLEL: f64 = 0.9995;

/// One merge, seen from its sites. Settings were checked before.
pub(super) struct Merge<'a> {
    /// The recipe that is followed.
    pub(super) recipe: &'static Recipe,
    /// The settings.
    pub(super) options: &'a MergeOptions,
    /// The weight of each module, by position among the inputs.
    pub(super) weights: &'a [f64],
}

impl Merge<'_> {
    /// The merged factors at a site, as they will be stored, and a report on them.
    ///
    /// `present` holds the modules that act there with their positions, at least one. An error
    /// tells that the merged delta overflows.
    pub(super) fn site(
        &self,
        path: &str,
        present: &[(usize, &RawSite)],
    ) -> Result<(Factors, SiteReport), String> {
        let parts: Vec<(f64, Factors)> =
            present.iter().map(|&(at, site)| (self.weights[at], Factors::of(site))).collect();
        let sum = sum(parts.iter().map(|(weight, factors)| (*weight, factors)));
        let keep = self.keep(present.iter().map(|(_, site)| site.rank).max().unwrap_or(1));
        let (factors, error) = match self.recipe.space {
            Space::Sum => self.cut(&self.factor_sum(present, &sum, &parts), keep)?,
            Space::Arc => self.cut(&self.arc(present, &parts), keep)?,
            Space::Parts => self.cut(&self.part_sums(present, path), keep)?,
            Space::Dense => self.dense(path, present, &parts, keep)?,
        };
        let from_sum = factors.relative_distance(&sum);
        let report = SiteReport { site: path.to_owned(), rank: factors.rank(), error, from_sum };
        Ok((factors, report))
    }

    /// The choice among singular values, where some are cut off; `None` where the rank stays.
    /// `largest` is the highest rank among the sources.
    fn keep(&self, largest: usize) -> Option<impl Fn(&[f64]) -> usize> {
        let rank = match (self.recipe.cut, self.options.rank) {
            (Cut::Never, _) | (Cut::Asked, None) => return None,
            (_, Some(rank)) => rank,
            (Cut::Always, None) => Rank::Largest,
        };
        Some(move |sigma: &[f64]| rank.choose(sigma, largest))
    }

    /// Factors as they will be stored, and the distance of their product from `target`, relative to
    /// its norm. The rank stays where `keep` is `None`.
    fn cut(
        &self,
        target: &Factors,
        keep: Option<impl Fn(&[f64]) -> usize>,
    ) -> Result<(Factors, f64), String> {
        let norm = target.norm();
        if !norm.is_finite() {
            return Err("the merged delta overflows".to_owned());
        }
        let factors = match keep {
            Some(keep) => svd::product(target, keep).factors.or_zero(),
            None => target.clone(),
        };
        let factors = self.options.dtype.rounded(factors)?;
        let error = relative(factors.distance(target), norm);
        Ok((factors, error))
    }

    /// The weighted sum of the deltas as factors: `exact`, unless scales are applied twice or the
    /// sum is divided.
    ///
    /// The divisor is the sum of all weights, those of modules that do not act at the site among
    /// them.
    fn factor_sum(
        &self,
        present: &[(usize, &RawSite)],
        exact: &Factors,
        parts: &[(f64, Factors)],
    ) -> Factors {
        let target = match self.recipe.squared {
            false => exact.clone(),
            true => {
                let twice = present.iter().map(|(_, site)| f64::from(site.scale));
                sum(twice.zip(parts).map(|(scale, (weight, factors))| (weight * scale, factors)))
            }
        };
        match self.recipe.divisor {
            Divisor::Weights => {
                let total: f64 = self.weights.iter().sum();
                // mergekit does not divide by what is as good as zero.
                target.scaled(if total.abs() < 1e-8 { 1.0 } else { 1.0 / total })
            }
            _ => target,
        }
    }

    /// The delta between two on the arc that they span; on the line if they are parallel or only
    /// one acts here.
    ///
    /// Spherical interpolation (Shoemake, 1985) of deltas with their weights, each seen as one long
    /// vector. A merge of one module gives that module. The line and the arc begin at the first of
    /// the inputs, whether it acts here or not.
    fn arc(&self, present: &[(usize, &RawSite)], parts: &[(f64, Factors)]) -> Factors {
        let t = self.options.t.unwrap_or(0.5);
        let weighted: Vec<Factors> =
            parts.iter().map(|(weight, factors)| factors.clone().scaled(*weight)).collect();
        let line = [1.0 - t, t];
        let shares = match weighted.as_slice() {
            [only] if self.weights.len() == 1 => return only.clone(),
            [one, two] => {
                let norms = one.norm() * two.norm();
                let cosine = if norms > 0.0 { one.inner(two) / norms } else { 1.0 };
                if cosine.abs() > PARALLEL {
                    line
                } else {
                    let angle = cosine.acos();
                    line.map(|share| (share * angle).sin() / angle.sin())
                }
            }
            _ => line,
        };
        let share = |at: usize| shares.get(at).copied().unwrap_or(0.0);
        sum(present.iter().zip(parts).map(|((at, _), (weight, f))| (weight * share(*at), f)))
    }

    /// Sums of A and of B, each pruned and with elected signs if the method says so. The root of
    /// weight times scale goes to both and its sign to A, as PEFT has it.
    ///
    /// Cross terms of different modules stay in the product.
    fn part_sums(&self, present: &[(usize, &RawSite)], path: &str) -> Factors {
        let of_part = |part: usize| {
            let roots = present.iter().map(|&(at, site)| {
                let product = self.weights[at] * f64::from(site.scale);
                let root = product.abs().sqrt();
                if part == 0 { root.copysign(product) } else { root }
            });
            let tensors = present.iter().map(|&(at, site)| {
                let mut tensor = site.matrices[part].values.clone();
                self.prune(&mut tensor, path, at);
                tensor
            });
            let (roots, tensors): (Vec<f64>, Vec<Vec<f32>>) = roots.zip(tensors).unzip();
            let [rows, columns] = present[0].1.matrices[part].shape;
            Mat { rows, columns, values: self.combine(&tensors, &roots) }
        };
        Factors { a: of_part(0), bt: of_part(1).transposed() }
    }

    /// Merges dense deltas: each is formed, pruned and summed, and the sum is decomposed into
    /// factors.
    ///
    /// Memory holds a delta of every module that acts here, `[outputs, inputs]` in 32-bit floats,
    /// and the sum in 64 bits. The distance that is returned is relative to the norm of the sum.
    fn dense(
        &self,
        path: &str,
        present: &[(usize, &RawSite)],
        parts: &[(f64, Factors)],
        keep: Option<impl Fn(&[f64]) -> usize>,
    ) -> Result<(Factors, f64), String> {
        let (rows, columns) = (parts[0].1.outputs(), parts[0].1.inputs());
        let tensors: Vec<Vec<f32>> = present
            .iter()
            .zip(parts)
            .map(|(&(at, _), (_, factors))| {
                let mut tensor = factors.dense_f32();
                self.prune(&mut tensor, path, at);
                tensor
            })
            .collect();
        let scale = |site: &RawSite| if self.recipe.squared { f64::from(site.scale) } else { 1.0 };
        let weights: Vec<f64> = present
            .iter()
            .zip(parts)
            .map(|((_, site), (weight, _))| weight * scale(site))
            .collect();
        let target = Mat { rows, columns, values: self.combine(&tensors, &weights) };
        drop(tensors);
        if !target.values.iter().all(|value| value.is_finite()) {
            return Err("the merged delta overflows".to_owned());
        }
        let keep = |sigma: &[f64]| keep.map_or(sigma.len(), |keep| keep(sigma));
        let factors = self.options.dtype.rounded(svd::dense(&target, keep).factors.or_zero())?;
        let error = relative(factors.distance_from_dense(&target), target.norm2().sqrt());
        Ok((factors, error))
    }

    /// Prunes a tensor of the source at a position, with the random stream of that source at this
    /// site.
    fn prune(&self, tensor: &mut [f32], path: &str, source: usize) {
        let stream = || Stream::new(self.options.seed.unwrap_or(0), path, source);
        prune(tensor, self.recipe.prune, self.options.density.unwrap_or(1.0), stream);
    }

    /// Σ w·t with the recipe's election of signs, if it has one.
    fn combine(&self, tensors: &[Vec<f32>], weights: &[f64]) -> Vec<f64> {
        combine(tensors, weights, self.recipe.consensus(self.options.sign))
    }
}

/// Σ w·Δ, exactly, as factors that stand side by side. Parts with weight zero are left out; if all
/// are zero, the result is a delta of zeros of rank 1.
fn sum<'a>(parts: impl Iterator<Item = (f64, &'a Factors)> + Clone) -> Factors {
    let mut weighted = parts.clone().filter(|(weight, _)| *weight != 0.0);
    let Some((weight, first)) = weighted.next() else {
        let mut all = parts;
        return all
            .next()
            .map_or(Factors::zero(0, 0), |(_, f)| Factors::zero(f.outputs(), f.inputs()));
    };
    let mut sum = first.clone().scaled(weight);
    weighted.for_each(|(weight, factors)| sum.add(&factors.clone().scaled(weight)));
    sum
}
