//! Projecting general knowledge out of modules (GenKnowSub's second way).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::factors::Factors;
use super::general::{Mean, SHARED, compare, mean, targets};
use super::matrix::{Mat, add_scaled, dot};
use super::provenance::{Origin, Provenance};
use super::source::Source;
use super::write::{self, Draft};
use super::{Made, SiteReport};
use polyskill_adapters::Error;
use polyskill_adapters::files::Problems;
use polyskill_adapters::peft::raw::{Matrix, RawSite};
use polyskill_adapters::tensor_file::{Tensor, tensor_name, weights_file};

/// Takes out of each module's A and B what lies in the span of the general modules' mean A and mean
/// B: of rows of A and of columns of B. Each result is written to a folder of `out` under its
/// module's name, in 32-bit floats and with the module's configuration.
///
/// Unlike subtraction, ranks and scales of a module may differ from those of the general ones. The
/// rank is kept as it is written, though the product may have a lower one.
///
/// # Errors
/// If something cannot be read or written, or with all problems: general modules must agree in
/// sites, ranks, shapes and scales, and modules must have their sites and shapes; nothing may stand
/// where a result goes.
pub fn project_out(
    general: &[PathBuf],
    modules: &[PathBuf],
    out: &Path,
) -> Result<Vec<Made>, Error> {
    let mut problems = Problems::default();
    let (general, modules) =
        (Source::read_all(general, &mut problems), Source::read_all(modules, &mut problems));
    match general.first() {
        Some(first) => {
            let others = general.iter().skip(1);
            others.for_each(|other| compare(first, other, &SHARED, &mut problems));
            let shapes = ["inputs", "outputs"];
            modules.iter().for_each(|other| compare(first, other, &shapes, &mut problems));
        }
        None => problems.add("found no general module, expected at least one".to_owned()),
    }
    let targets = targets(&modules, out, &mut problems);
    problems.into_result(()).map_err(|problems| Error::Transform { problems })?;
    let bases = bases(&general, &mean(&general));
    let mut reports = Vec::new();
    let generations = write::publish(&targets, |at| {
        let (draft, sites) = projected(&modules[at], &general, &bases)?;
        reports.push(sites);
        Ok(Cow::Owned(draft))
    })?;
    let made = targets.into_iter().zip(generations).zip(reports);
    Ok(made.map(|((path, generation), sites)| Made { path, generation, sites }).collect())
}

/// Orthonormal rows that span the rows of the mean A, and those that span the columns of the mean
/// B, by site: `[at most rank, inputs]` and `[at most rank, outputs]`.
type Bases = BTreeMap<String, [Mat; 2]>;

/// The bases of the means at each site of the first general module.
fn bases(general: &[Source], mean: &Mean) -> Bases {
    let Some(first) = general.first() else { return Bases::new() };
    let basis = |(path, site): (&String, &RawSite)| {
        let matrix = |part: usize| {
            let [rows, columns] = site.matrices[part].shape;
            Mat::from_f32(rows, columns, &mean[path][part])
        };
        (path.clone(), [span(&matrix(0)), span(&matrix(1).transposed())])
    };
    first.sites.iter().map(basis).collect()
}

/// An orthonormal basis of the span of rows, `[at most rows, columns]`, by Gram and Schmidt's
/// method.
///
/// A row counts only if what is left of it after the others is longer than 10⁻⁶ of it.
fn span(rows: &Mat) -> Mat {
    let mut basis = Mat::zeros(0, rows.columns);
    for row in 0..rows.rows {
        let mut left = rows.row(row).to_vec();
        let before = dot(&left, &left).sqrt();
        // Twice, since the first pass leaves rounding behind.
        take_out(&mut left, &basis);
        take_out(&mut left, &basis);
        let length = dot(&left, &left).sqrt();
        if length > 1e-6 * before {
            left.iter_mut().for_each(|value| *value /= length);
            basis.values.extend(left);
            basis.rows += 1;
        }
    }
    basis
}

/// Takes the parts along the rows of an orthonormal basis out of a row.
fn take_out(row: &mut [f64], basis: &Mat) {
    for at in 0..basis.rows {
        let along = dot(row, basis.row(at));
        add_scaled(row, -along, basis.row(at));
    }
}

/// The draft of a module with the bases projected out of A and B, and a report on each site.
///
/// The projection is exact but for rounding, so the reported error is 0; `from_sum` tells how much
/// of the delta went.
fn projected(
    module: &Source,
    general: &[Source],
    bases: &Bases,
) -> Result<(Draft, Vec<SiteReport>), Error> {
    let mut tensors = Vec::new();
    let mut reports = Vec::new();
    for (path, site) in &module.sites {
        let [of_a, of_b] = &bases[path];
        let without = |matrix: &Matrix, basis: &Mat, turned: bool| {
            let [rows, columns] = matrix.shape;
            let m = Mat::from_f32(rows, columns, &matrix.values);
            let mut m = if turned { m.transposed() } else { m };
            (0..m.rows).for_each(|row| take_out(m.row_mut(row), basis));
            if turned { m.transposed() } else { m }
        };
        let (a, b) =
            (without(&site.matrices[0], of_a, false), without(&site.matrices[1], of_b, true));
        for (part, m) in [("lora_A", &a), ("lora_B", &b)] {
            let values = m.values.iter().map(|&value| value as f32);
            let tensor = Tensor::f32(vec![m.rows, m.columns], values);
            tensors.push((tensor_name(path, part), tensor));
        }
        let (before, scale) = (Factors::of(site), f64::from(site.scale));
        let after = Factors { a: a.scaled(scale), bt: b.transposed() };
        let from_sum = after.relative_distance(&before);
        reports.push(SiteReport { site: path.clone(), rank: site.rank, error: 0.0, from_sum });
    }
    let mut provenance = Provenance::of(&module.name, "orthogonal-projection", &[module]);
    provenance.summary = format!(
        "`{}` with what lies in the span of the general modules' mean projected out of A and B.",
        module.name
    );
    provenance.origins = std::iter::once(Origin::of("derived_from", module, None))
        .chain(general.iter().map(|source| Origin::of("general", source, None)))
        .collect();
    let draft = Draft {
        files: write::PEFT_FILES,
        config: module.content.config.clone(),
        weights: weights_file(tensors).map_err(write::transform_error)?,
        card: provenance.card(),
        read: write::read_lora,
    };
    Ok((draft, reports))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::matrix::tests::{noise, worst};
    use crate::transform::testing::{Q0, deltas, write};

    #[test]
    fn nothing_of_the_general_span_is_left() {
        let root = tempfile::tempdir().unwrap();
        let lora = |name: &str, rank: usize, seed: u64| {
            let sites = [(Q0, noise(rank, 9, seed), noise(7, rank, seed + 1))];
            write(root.path(), name, &sites, 3.0, &[])
        };
        let general = [lora("g1", 2, 1), lora("g2", 2, 3)];
        let task = lora("task", 4, 5);
        let out = root.path().join("out");
        let made = project_out(&general, std::slice::from_ref(&task), &out).unwrap();
        assert_eq!(made[0].path, out.join("task"));
        let (before, after) = (Source::read(&task).unwrap(), Source::read(&made[0].path).unwrap());
        assert_eq!((before.sites[Q0].rank, before.sites[Q0].scale), (4, 0.75));
        assert_eq!((after.sites[Q0].rank, after.sites[Q0].scale), (4, 0.75));
        let read: Vec<Source> = general.iter().map(|path| Source::read(path).unwrap()).collect();
        let mean = |part: usize| {
            let [one, two] = [0, 1].map(|at: usize| &read[at].sites[Q0].matrices[part].values);
            one.iter().zip(two).map(|(one, two)| (one + two) / 2.0).collect::<Vec<f32>>()
        };
        let (a, b) = (Mat::from_f32(2, 9, &mean(0)), Mat::from_f32(7, 2, &mean(1)).transposed());
        let matrix = |part: usize| {
            let Matrix { shape: [rows, columns], values } = &after.sites[Q0].matrices[part];
            Mat::from_f32(*rows, *columns, values)
        };
        let zero = Mat::zeros(4, 2);
        assert!(worst(&matrix(0).times_transposed(&a), &zero) < 1e-6);
        assert!(worst(&matrix(1).transposed().times_transposed(&b), &zero) < 1e-6);
        // What is orthogonal already stays.
        let again = project_out(&general, &[made[0].path.clone()], &root.path().join("again"));
        let (again, once) = (deltas(&again.unwrap()[0].path), deltas(&made[0].path));
        assert!(worst(&again[Q0], &once[Q0]) < 1e-6 && once[Q0].norm2() > 0.1);
        // A module in the span of the general ones has nothing else.
        let alone = [general[0].clone()];
        let gone = project_out(&alone, &alone, &root.path().join("gone")).unwrap();
        assert!(deltas(&gone[0].path)[Q0].norm2() < 1e-10);
        assert!((gone[0].sites[0].from_sum - 1.0).abs() < 1e-6);
    }

    #[test]
    fn shapes_and_sites_must_agree() {
        let root = tempfile::tempdir().unwrap();
        let general = write(root.path(), "g", &[(Q0, noise(2, 9, 1), noise(7, 2, 2))], 3.0, &[]);
        let wide = write(root.path(), "wide", &[(Q0, noise(2, 8, 1), noise(7, 2, 2))], 3.0, &[]);
        let other = write(
            root.path(),
            "other",
            &[("model.layers.3.x", noise(2, 9, 1), noise(7, 2, 2))],
            3.0,
            &[],
        );
        let out = root.path().join("out");
        let found = project_out(&[general], &[wide, other], &out).unwrap_err().to_string();
        for part in
            ["`wide` has inputs 8", "`other` acts at model.layers.3.x", "`other` does not act at"]
        {
            assert!(found.contains(part), "{part}: {found}");
        }
        assert!(!out.exists());
        assert!(project_out(&[], &[], &out).unwrap_err().to_string().contains("no general module"));
    }
}
