//! Merging modules into one, site by site.

mod site;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::provenance::{Origin, Provenance};
use super::recipe::{Cut, Method, Recipe, Space};
use super::source::{Source, new_name};
use super::sparse::{Prune, Sign};
use super::svd::Rank;
use super::write::{self, Dtype};
use super::{Made, Progress, SiteReport, in_parallel};
use polyskill_adapters::Error;
use polyskill_adapters::files::Problems;
use polyskill_adapters::peft::raw::RawSite;
use site::Merge;

/// Elements of the largest delta that is formed: 1 GiB in 32-bit floats, once for each module that
/// acts at the site.
const MAX_ELEMENTS: usize = 1 << 28;

/// A module and its weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Weighted {
    /// PEFT's directory.
    pub directory: PathBuf,
    /// The factor on its delta, any finite number.
    pub weight: f64,
}

/// Settings of a merge. A setting that the method does not know must be left out.
#[derive(Clone, Debug, PartialEq)]
pub struct MergeOptions {
    /// The method.
    pub method: Method,
    /// The part of elements that stays, above 0 and at most 1, for methods that prune.
    pub density: Option<f64>,
    /// The rule by which an element gets its sign, for methods that elect signs; the method's usual
    /// one if left out.
    pub sign: Option<Sign>,
    /// The bound on the rank, for methods that cut it down. If left out, those that always cut keep
    /// the highest rank among the sources, and the others cut nothing off.
    pub rank: Option<Rank>,
    /// Start of the random stream, for methods that drop at random; 0 if left out.
    pub seed: Option<u64>,
    /// The place on the arc, for `slerp`: 0 is the first module, 1 the second; half-way if left
    /// out.
    pub t: Option<f64>,
    /// The type of the new module's weights.
    pub dtype: Dtype,
    /// Sites that are worked on at a time; each may hold a dense delta per module. The result does
    /// not depend on it.
    pub threads: usize,
}

impl MergeOptions {
    /// A method with its usual settings, in 32-bit floats, on one thread.
    pub fn new(method: Method) -> Self {
        Self {
            method,
            density: None,
            sign: None,
            rank: None,
            seed: None,
            t: None,
            dtype: Dtype::F32,
            threads: 1,
        }
    }
}

/// Merges modules into a new one at `out`. `progress` hears of each site that is done.
///
/// A site of the result is one at which any of the modules acts; a module that does not act there
/// adds nothing. The new module has scale 1 at every site: scales and weights are multiplied into A
/// and B.
///
/// # Errors
/// With all problems, and nothing is written: a weight or setting that is out of range or not the
/// method's, modules that cannot be read, whose shapes differ, or which are more than A and B, a
/// result that overflows, or something at `out`.
pub fn merge(
    inputs: &[Weighted],
    options: &MergeOptions,
    out: &Path,
    progress: Progress<'_>,
) -> Result<Made, Error> {
    let mut problems = Problems::default();
    check(inputs, options, &mut problems);
    let name = new_name(out, &mut problems);
    let directories: Vec<PathBuf> = inputs.iter().map(|input| input.directory.clone()).collect();
    let sources = Source::read_all(&directories, &mut problems);
    let recipe = recipe(options.method, inputs.len());
    check_sites(&sources, recipe, &mut problems);
    problems.into_result(()).map_err(|problems| Error::Transform { problems })?;

    let weights: Vec<f64> = inputs.iter().map(|input| input.weight).collect();
    let merge = Merge { recipe, options, weights: &weights };
    let paths: Vec<&String> =
        sources.iter().flat_map(|s| s.sites.keys()).collect::<BTreeSet<_>>().into_iter().collect();
    let mut problems = Problems::default();
    let (mut sites, mut reports) = (BTreeMap::new(), Vec::new());
    let done = in_parallel(paths.len(), options.threads, progress, |at| {
        merge.site(paths[at], &present(&sources, paths[at]))
    });
    for (path, result) in paths.iter().zip(done) {
        match result {
            Ok((factors, report)) => {
                sites.insert((*path).clone(), factors);
                reports.push(report);
            }
            Err(problem) => problems.add(format!("{path}: {problem}")),
        }
    }
    problems.into_result(()).map_err(|problems| Error::Transform { problems })?;
    let card = card(&name, &merge, &sources, &reports);
    let generation = write::lora(&sources, &sites, options.dtype, card, out)?;
    Ok(Made { path: out.to_owned(), generation, sites: reports })
}

/// The recipe that is followed: PEFT takes `linear` for a single module, whatever was asked for.
fn recipe(method: Method, modules: usize) -> &'static Recipe {
    let recipe = method.recipe();
    match (recipe.is_pefts() && modules == 1, Method::named("peft-linear")) {
        (true, Some(linear)) => linear.recipe(),
        _ => recipe,
    }
}

/// Adds every setting that is out of range or not the method's, without a look at the modules.
fn check(inputs: &[Weighted], options: &MergeOptions, problems: &mut Problems) {
    let recipe = options.method.recipe();
    let mut require = |holds: bool, problem: &dyn Fn() -> String| {
        if !holds {
            problems.add(problem());
        }
    };
    for input in inputs {
        let Weighted { directory, weight } = input;
        require(weight.is_finite(), &|| {
            format!("the weight of {} is {weight}, expected a finite number", directory.display())
        });
    }
    let name = recipe.name;
    let most = if recipe.space == Space::Arc { 2 } else { usize::MAX };
    require((1..=most).contains(&inputs.len()), &|| {
        let expected = if most == 2 { "one or two" } else { "at least one" };
        format!("found {} modules, `{name}` merges {expected}", inputs.len())
    });
    let prunes = recipe.prune != Prune::Nothing;
    match options.density {
        None => require(!prunes, &|| format!("`{name}` needs a density")),
        Some(density) => {
            require(prunes, &|| format!("`{name}` has no density"));
            require(density > 0.0 && density <= 1.0, &|| {
                format!("the density is {density}, expected a number above 0 and at most 1")
            });
        }
    }
    if let Some(sign) = options.sign {
        require(recipe.signs.contains(&sign), &|| {
            format!("`{name}` does not elect signs by {sign:?} (known: {:?})", recipe.signs)
        });
    }
    require(options.seed.is_none() || recipe.is_random(), &|| format!("`{name}` has no seed"));
    if let Some(t) = options.t {
        require(recipe.space == Space::Arc, &|| format!("`{name}` has no t"));
        require((0.0..=1.0).contains(&t), &|| format!("t is {t}, expected 0 to 1"));
    }
    if let Some(rank) = options.rank {
        require(recipe.cut != Cut::Never, &|| format!("`{name}` keeps its rank"));
        check_rank(rank, &mut require);
    }
}

/// Requires a rank of at least 1, or a part of the energy above 0 and at most 1. `require` gets a
/// condition and the problem where it does not hold.
pub(crate) fn check_rank(rank: Rank, require: &mut dyn FnMut(bool, &dyn Fn() -> String)) {
    match rank {
        Rank::Fixed(rank) => require(rank > 0, &|| "the rank is 0, expected at least 1".to_owned()),
        Rank::Energy(part) => require(part > 0.0 && part <= 1.0, &|| {
            format!("the energy is {part}, expected a number above 0 and at most 1")
        }),
        Rank::Largest => {}
    }
}

/// Adds sites with shapes that differ between modules, and deltas that would be too large to form.
///
/// Ranks must agree only where A and B are summed each for itself. The first module that acts at a
/// site is the one that others are compared with.
fn check_sites(sources: &[Source], recipe: &Recipe, problems: &mut Problems) {
    let mut first: BTreeMap<&String, (&Source, &RawSite)> = BTreeMap::new();
    for source in sources {
        for (path, site) in &source.sites {
            let (owner, expected) = *first.entry(path).or_insert((source, site));
            for ((what, found), (_, expected)) in site.numbers().into_iter().zip(expected.numbers())
            {
                let matters = match what {
                    "inputs" | "outputs" => true,
                    "rank" => recipe.space == Space::Parts,
                    _ => false,
                };
                if matters && found != expected {
                    let (name, owner) = (&source.name, &owner.name);
                    problems.add(format!(
                        "`{name}` has {what} {found} at {path}, expected {expected} as in `{owner}`"
                    ));
                }
            }
            let elements = site.inputs().saturating_mul(site.outputs());
            if recipe.space == Space::Dense && elements > MAX_ELEMENTS {
                problems.add(format!(
                    "{path} has {elements} weights, at most {MAX_ELEMENTS} are formed at a time"
                ));
            }
        }
    }
}

/// The modules that act at a site, each with its position among the inputs, which weights and
/// random streams go by.
fn present<'a>(sources: &'a [Source], path: &str) -> Vec<(usize, &'a RawSite)> {
    let sites = sources.iter().enumerate();
    sites.filter_map(|(at, source)| Some((at, source.sites.get(path)?))).collect()
}

/// The card: sources with weights, the settings that the method used, and the errors of the sites.
fn card(name: &str, merge: &Merge<'_>, sources: &[Source], reports: &[SiteReport]) -> String {
    let options = merge.options;
    let all: Vec<&Source> = sources.iter().collect();
    let mut provenance = Provenance::of(name, options.method.name(), &all);
    let count = sources.len();
    let about = options.method.about();
    provenance.summary =
        format!("`{name}` is {count} modules merged with `{}`: {about}.", options.method.name());
    let pairs = sources.iter().zip(merge.weights);
    provenance.origins =
        pairs.map(|(source, weight)| Origin::of("derived_from", source, Some(*weight))).collect();
    let mut add = |key, value: Option<String>| {
        provenance.parameters.extend(value.map(|value| (key, value)));
    };
    add("weights", Some(merge.weights.iter().map(f64::to_string).collect::<Vec<_>>().join(", ")));
    add("density", options.density.map(|density| density.to_string()));
    let sign = merge.recipe.consensus(options.sign).map(|consensus| consensus.sign);
    add("sign", sign.map(|sign| format!("{sign:?}").to_lowercase()));
    add("seed", merge.recipe.is_random().then(|| options.seed.unwrap_or(0).to_string()));
    add("t", (merge.recipe.space == Space::Arc).then(|| options.t.unwrap_or(0.5).to_string()));
    add("rank", options.rank.map(|rank| rank.to_string()));
    provenance.add_errors(reports);
    provenance.card()
}

#[cfg(test)]
mod tests;
