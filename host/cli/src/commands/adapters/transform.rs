//! `polyskill adapters transform`.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use polyskill_workshop::transform::{self, PromptSum, Rank, Refinement, Scaling};

use super::merge::weighted;
use super::{DtypeArg, RankArgs, bar, message, report};

/// The module that distances are measured from, as reports name it.
const SOURCE: &str = "the module it was made of";

/// The ways to make a new module out of one.
#[derive(Clone, Debug, Subcommand)]
pub enum TransformCommand {
    /// Multiply a module's deltas by a number; A and B keep their bits.
    Scale {
        /// The factor.
        #[arg(long, allow_negative_numbers = true)]
        factor: f64,
        /// The module and the new one.
        #[command(flatten)]
        paths: Paths,
    },
    /// Turn a module's deltas round; A and B keep their bits.
    Negate {
        /// The module and the new one.
        #[command(flatten)]
        paths: Paths,
    },
    /// Scale by depth, alpha + beta·l/(L − 1) in layer l of L (LiNeS); A and B keep their bits.
    Lines {
        /// The factor in the first layer.
        #[arg(long, allow_negative_numbers = true)]
        alpha: f64,
        /// The amount by which the factor in the last layer is larger.
        #[arg(long, allow_negative_numbers = true)]
        beta: f64,
        /// Layers of the base; by default those up to the module's last.
        #[arg(long)]
        layers: Option<usize>,
        /// The module and the new one.
        #[command(flatten)]
        paths: Paths,
    },
    /// Keep the largest singular values.
    Svd {
        /// The number of them, or the share of their energy.
        #[command(flatten)]
        rank: RankArgs,
        /// Storage type of the new weights.
        #[arg(long, value_enum, default_value_t)]
        dtype: DtypeArg,
        /// The module and the new one.
        #[command(flatten)]
        paths: Paths,
    },
    /// Scale the singular values after the effective rank (Timber).
    Timber {
        /// The factor; 0 drops them.
        #[arg(long)]
        gamma: f64,
        /// Storage type of the new weights.
        #[arg(long, value_enum, default_value_t)]
        dtype: DtypeArg,
        /// The module and the new one.
        #[command(flatten)]
        paths: Paths,
    },
    /// Project what general modules span out of A and B.
    Project {
        /// Modules with general knowledge; their mean's span is taken out.
        #[arg(long, required = true, num_args = 1..)]
        general: Vec<PathBuf>,
        /// Directory that the new modules go to, under the names of the old ones.
        #[arg(long)]
        out: PathBuf,
        /// Modules to project.
        #[arg(required = true)]
        modules: Vec<PathBuf>,
    },
    /// The task prompt vector of a prompt: it minus the origin that it was trained from.
    PromptVector {
        /// The prompt that training began with.
        #[arg(long)]
        origin: PathBuf,
        /// The module and the new one.
        #[command(flatten)]
        paths: Paths,
    },
    /// A prompt: an origin plus the weighted sum of task prompt vectors.
    PromptSum {
        /// The prompt that vectors are added to.
        #[arg(long)]
        origin: PathBuf,
        /// A vector and its weight, `DIRECTORY=W`; 1 without `=W`. Repeatable.
        #[arg(long = "vector", value_name = "DIRECTORY[=W]", required = true)]
        vectors: Vec<String>,
        /// The factor on the sum.
        #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
        coefficient: f64,
        /// Let vectors come from other origins.
        #[arg(long)]
        cross_origin: bool,
        /// The new prompt's directory.
        #[arg(long)]
        out: PathBuf,
    },
}

/// The module that is read and the directory of the new one, which must not exist.
#[derive(Args, Clone, Debug)]
pub struct Paths {
    /// The module's directory.
    pub module: PathBuf,
    /// The new module's directory; its name is the module's.
    #[arg(long)]
    pub out: PathBuf,
}

/// Makes the new module and reports on it.
///
/// Without a bound, `svd` keeps the rank of each site. `negate` is a scaling by -1.
pub(super) fn run(command: &TransformCommand, out: &mut dyn Write) -> Result<(), String> {
    use TransformCommand as C;
    let made = match command {
        C::Scale { factor, paths } => rescale(paths, Scaling::Factor(*factor)),
        C::Negate { paths } => rescale(paths, Scaling::Factor(-1.0)),
        C::Lines { alpha, beta, layers, paths } => {
            rescale(paths, Scaling::Lines { alpha: *alpha, beta: *beta, layers: *layers })
        }
        C::Svd { rank, dtype, paths } => {
            refine(paths, Refinement::Rank(rank.rank().unwrap_or(Rank::Largest)), *dtype)
        }
        C::Timber { gamma, dtype, paths } => {
            refine(paths, Refinement::Timber { gamma: *gamma }, *dtype)
        }
        C::Project { general, out: folder, modules } => {
            let made = transform::project_out(general, modules, folder).map_err(message)?;
            return made.iter().try_for_each(|made| report(made, SOURCE, out));
        }
        C::PromptVector { origin, paths } => {
            transform::prompt_vector(&paths.module, origin, &paths.out).map_err(message)
        }
        C::PromptSum { origin, vectors, coefficient, cross_origin, out: target } => {
            let sum = PromptSum {
                origin: origin.clone(),
                vectors: weighted(vectors, &[])?,
                coefficient: *coefficient,
                cross_origin: *cross_origin,
            };
            transform::prompt_sum(&sum, target).map_err(message)
        }
    };
    report(&made?, SOURCE, out)
}

/// Scales deltas by a number or by depth. Only the scale of each site is written anew.
fn rescale(paths: &Paths, scaling: Scaling) -> Result<transform::Made, String> {
    transform::rescale(&paths.module, scaling, &paths.out).map_err(message)
}

/// Takes the deltas apart into singular values, site by site, and builds them anew; a bar shows the
/// progress.
fn refine(
    paths: &Paths,
    refinement: Refinement,
    dtype: DtypeArg,
) -> Result<transform::Made, String> {
    let (bar, mut progress) = bar("sites");
    let made =
        transform::refine(&paths.module, refinement, dtype.into(), &paths.out, &mut progress);
    bar.finish_and_clear();
    made.map_err(message)
}
