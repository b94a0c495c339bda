//! Upcycling: feed-forward experts of a dense base and LoRA modules, for a router to mix.
//!
//! A dense layer becomes a mixture whose experts start as copies of its feed-forward (Komatsuzaki
//! et al., "Sparse Upcycling", 2023), here each with a module's changes multiplied out: E = W +
//! s·B·A for gate, up and down. What the modules change in the attention is averaged, as in
//! branch-train-mix (Sukhbaatar et al., 2024), into one LoRA that acts beside them. Gates that were
//! trained for PHATGOOSE at the gate projection become rows of the router: they were trained as
//! logits of the module against the base, with the sigmoid.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::bf16;
use polyskill_model::{Decoder, Projection, Site};

use super::factors::Factors;
use super::provenance::{Origin, Provenance};
use super::source::{Source, leaf, new_name};
use super::write::{self, Draft, Dtype, transform_error};
use super::{Made, Progress};
use polyskill_adapters::Error;
use polyskill_adapters::files::{Files, Problems};
use polyskill_adapters::library::Module;
use polyskill_adapters::load::load_module;
use polyskill_adapters::lora::Elements;
use polyskill_adapters::native;
use polyskill_adapters::peft::site_of;
use polyskill_adapters::weights::{Expert, FeedForward};

/// The name of the router artefacts that become rows of the router.
const GATES: &str = "phatgoose";
/// The folder of the averaged attention, which no source may have as its name.
pub const ATTENTION: &str = "attention";

/// The modules that were made.
#[derive(Clone, Debug)]
pub struct Upcycled {
    /// One module with experts for each source, with the number of its layers and of those that
    /// have a row for the router.
    pub experts: Vec<(Made, usize, usize)>,
    /// The mean of the sources' changes in the attention; `None` where none has any.
    pub attention: Option<Made>,
}

/// Makes a module with experts of each LoRA in `out`, under the LoRA's name, and one of the
/// averaged attention.
///
/// None of them may be there yet. Each expert has the full size of the base's feed-forward. They
/// are written one after the other, the attention first: if one fails, those before it stay.
/// `progress` hears of each source that is done.
///
/// # Errors
/// With all reasons why nothing was written, or if a file cannot be written.
pub fn upcycle(
    modules: &[PathBuf],
    base: &Decoder,
    dtype: Dtype,
    out: &Path,
    progress: Progress<'_>,
) -> Result<Upcycled, Error> {
    let mut problems = Problems::default();
    let sources = Source::read_all(modules, &mut problems);
    let targets: Vec<PathBuf> = sources.iter().map(|source| out.join(&source.name)).collect();
    targets.iter().for_each(|target| drop(new_name(target, &mut problems)));
    new_name(&out.join(ATTENTION), &mut problems);
    for (at, source) in sources.iter().enumerate() {
        let taken = sources[..at].iter().any(|other| other.name == source.name);
        if taken || source.name == ATTENTION {
            let name = &source.name;
            problems.add(format!("`{name}` is the name of something else that is made"));
        }
    }
    for source in &sources {
        check(source, base, &mut problems);
    }
    problems.into_result(()).map_err(|problems| Error::Transform { problems })?;
    let attention = attention(&sources, base, dtype, &out.join(ATTENTION))?;
    let mut experts = Vec::new();
    for (at, (source, path)) in sources.iter().zip(modules).enumerate() {
        let own = feed_forwards(source, path, base, dtype)?;
        let routed = own.values().filter(|own| own.router.is_some()).count();
        let (config, weights) =
            native::expert_draft(&own, base.config().hidden_size, base.weights_digest())
                .map_err(transform_error)?;
        let files = [native::CONFIG_FILE, native::WEIGHTS_FILE];
        let draft = Draft { files, config, weights, card: card(source), read: read_own };
        let generation = write::publish_one(&targets[at], &draft)?;
        let made = Made { path: targets[at].clone(), generation, sites: Vec::new() };
        experts.push((made, own.len(), routed));
        progress(at + 1, sources.len());
    }
    Ok(Upcycled { experts, attention })
}

/// The generation of a module in our own format that can be read.
fn read_own(directory: &Path) -> Result<polyskill_adapters::Generation, Error> {
    let name = leaf(directory);
    native::generation_of(Files { name: &name, directory, root: directory })
}

/// The three linears of a dense layer's feed-forward: gate, up and down.
fn inside(layer: usize) -> [Site; 3] {
    [Projection::Gate, Projection::Up, Projection::Down]
        .map(|projection| Site { layer, projection })
}

/// Adds sites that the base does not have or has in another shape, and a source that changes no
/// feed-forward.
fn check(source: &Source, base: &Decoder, problems: &mut Problems) {
    let config = base.config();
    for (path, raw) in &source.sites {
        let Some(site) = site_of(path, config) else {
            problems.add(format!("`{}`: the base has no linear `{path}`", source.name));
            continue;
        };
        let (outputs, inputs) = config.projection_shape(site.projection);
        let found = [raw.matrices[1].shape[0], raw.matrices[0].shape[1]];
        if found != [outputs, inputs] {
            let expected = [outputs, inputs];
            problems.add(format!(
                "`{}`: the delta at `{path}` has shape {found:?}, expected {expected:?}",
                source.name
            ));
        }
    }
    let inside = |path: &String| site_of(path, config).is_some_and(is_inside);
    if !source.sites.keys().any(inside) {
        problems.add(format!(
            "`{}` changes no feed-forward of a dense layer, so it makes no expert",
            source.name
        ));
    }
}

/// True for the gate, up and down projections of any layer.
fn is_inside(site: Site) -> bool {
    inside(site.layer).contains(&site)
}

/// The base's feed-forwards with a module's changes, by layer, in the layers where it changes one
/// of the three linears.
///
/// `path` is the module's directory, which is loaded once more for its router artefacts.
fn feed_forwards(
    source: &Source,
    path: &Path,
    base: &Decoder,
    dtype: Dtype,
) -> Result<BTreeMap<usize, FeedForward>, Error> {
    let factors: BTreeMap<Site, Factors> = source
        .sites
        .iter()
        .filter_map(|(path, raw)| Some((site_of(path, base.config())?, Factors::of(raw))))
        .filter(|(site, _)| is_inside(*site))
        .collect();
    let module = load_module(&source.name, path, path, base)?;
    let mut made = BTreeMap::new();
    for layer in factors.keys().map(|site| site.layer) {
        if made.contains_key(&layer) {
            continue;
        }
        let [gate, up, down] =
            inside(layer).map(|site| dense(base, site, factors.get(&site), dtype));
        let expert = Expert { width: base.config().intermediate_size, gate, up, down };
        let router = router_row(&module, layer, base.config().hidden_size);
        made.insert(layer, FeedForward { expert, replaces: true, router });
    }
    Ok(made)
}

/// The module's gate at the gate projection of a layer, `[hidden]`; `None` if it has none of that
/// length.
fn router_row(module: &Module, layer: usize, hidden: usize) -> Option<Vec<f32>> {
    let (_, row) = module.artefact(GATES, Site { layer, projection: Projection::Gate })?;
    (row.len() == hidden).then_some(row)
}

/// W + s·B·A, `[outputs, inputs]`, formed row by row and rounded to the type. Without factors it is
/// W.
fn dense(base: &Decoder, site: Site, factors: Option<&Factors>, dtype: Dtype) -> Elements {
    let (outputs, inputs) = base.config().projection_shape(site.projection);
    let mut values = Vec::with_capacity(outputs * inputs);
    let (mut row, mut delta) = (vec![0.0; inputs], vec![0.0; inputs]);
    for output in 0..outputs {
        if let Some(linear) = base.linear(site) {
            linear.matrix.read_row(output, &mut row);
        }
        if let Some(factors) = factors {
            factors.dense_row(output, &mut delta);
        }
        values.extend(row.iter().zip(&delta).map(|(row, delta)| (f64::from(*row) + delta) as f32));
    }
    match dtype {
        Dtype::F32 => Elements::F32(values),
        Dtype::Bf16 => {
            Elements::Bf16(values.iter().map(|value| bf16::from_f32(*value).to_bits()).collect())
        }
    }
}

/// The mean of the modules' changes outside of feed-forwards, written to `out`; `None` where there
/// are none.
///
/// The mean is over all sources, so a module that does not act at a site counts as zero there. It
/// is exact: its rank at a site is the sum of the ranks.
fn attention(
    sources: &[Source],
    base: &Decoder,
    dtype: Dtype,
    out: &Path,
) -> Result<Option<Made>, Error> {
    let mut sum: BTreeMap<String, Factors> = BTreeMap::new();
    let share = 1.0 / sources.len().max(1) as f64;
    for (path, raw) in sources.iter().flat_map(|source| &source.sites) {
        if site_of(path, base.config()).is_none_or(is_inside) {
            continue;
        }
        let part = Factors::of(raw).scaled(share);
        match sum.get_mut(path) {
            Some(sum) => sum.add(&part),
            None => drop(sum.insert(path.clone(), part)),
        }
    }
    if sum.is_empty() {
        return Ok(None);
    }
    let mut problems = Problems::default();
    let name = new_name(out, &mut problems);
    problems.into_result(()).map_err(|problems| Error::Transform { problems })?;
    let all: Vec<&Source> = sources.iter().collect();
    let mut provenance = Provenance::of(&name, "attention-mean", &all);
    "The mean of what the sources change outside of feed-forwards, to act beside experts that were made of them."
        .clone_into(&mut provenance.summary);
    provenance.origins =
        sources.iter().map(|source| Origin::of("source", source, Some(share))).collect();
    let mut rounded = BTreeMap::new();
    for (path, factors) in sum {
        rounded.insert(path, dtype.rounded(factors).map_err(transform_error)?);
    }
    let generation = write::lora(sources, &rounded, dtype, provenance.card(), out)?;
    Ok(Some(Made { path: out.to_owned(), generation, sites: Vec::new() }))
}

/// The card of a module with experts.
fn card(source: &Source) -> String {
    let mut provenance = Provenance::of(&source.name, "upcycling", &[source]);
    "The base's feed-forwards with the source's changes multiplied out, as experts beside the base's own."
        .clone_into(&mut provenance.summary);
    provenance.origins = vec![Origin::of("source", source, None)];
    provenance.card()
}
