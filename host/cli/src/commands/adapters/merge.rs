//! `polyskill adapters merge`.

use std::io::Write;
use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Args, ValueEnum};
use polyskill_workshop::transform::{self, MergeOptions, Method, Sign, Weighted};

use super::{DtypeArg, RankArgs, bar, message, report, resolve};

/// The modules that are merged, the method with its settings, and the directory of the result.
///
/// Settings that a method does not know are refused by it.
#[derive(Args, Clone, Debug)]
pub struct MergeArgs {
    /// The method of merging.
    #[arg(long, value_parser = methods())]
    pub method: String,
    /// A module and its weight, `NAME=W` or `DIRECTORY=W`; 1 without `=W`. Repeatable.
    #[arg(long = "weight", value_name = "MODULE[=W]", required = true)]
    pub weights: Vec<String>,
    /// The new module's directory; its name is the module's.
    #[arg(long)]
    pub out: PathBuf,
    /// Folders in which modules are looked up by name; adapters/library without any.
    #[arg(long)]
    pub adapters: Vec<PathBuf>,
    /// The bound on the rank of the result.
    #[command(flatten)]
    pub rank: RankArgs,
    /// The part of elements that stays, for methods that prune.
    #[arg(long)]
    pub density: Option<f64>,
    /// Rule by which an element gets its sign, for methods that elect signs.
    #[arg(long, value_enum)]
    pub sign: Option<SignArg>,
    /// Start of the random stream, for methods that drop at random; 0 by default.
    #[arg(long)]
    pub seed: Option<u64>,
    /// The place on the arc, for `slerp`: 0 is the first module, 1 the second; 0.5 by default.
    #[arg(long)]
    pub t: Option<f64>,
    /// Storage type of the new weights.
    #[arg(long, value_enum, default_value_t)]
    pub dtype: DtypeArg,
    /// Sites that are worked on at a time; by default as many as there are cores.
    #[arg(long)]
    pub threads: Option<usize>,
}

/// The names of all methods, each with one line about it for the help.
fn methods() -> PossibleValuesParser {
    let value = |method: Method| PossibleValue::new(method.name()).help(method.about());
    Method::all().map(value).collect::<Vec<_>>().into()
}

/// The rule by which an element gets its sign, in methods that elect signs as TIES does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SignArg {
    /// The sign of the weighted sum.
    Weighted,
    /// The sign of the sum without weights.
    Total,
    /// The sign that more modules have.
    Frequency,
}

impl From<SignArg> for Sign {
    fn from(sign: SignArg) -> Self {
        match sign {
            SignArg::Weighted => Self::Weighted,
            SignArg::Total => Self::Total,
            SignArg::Frequency => Self::Frequency,
        }
    }
}

/// Merges modules and reports how far the result is from their weighted sum.
///
/// The bits of the result do not depend on the number of threads.
pub(super) fn run(args: &MergeArgs, out: &mut dyn Write) -> Result<(), String> {
    let method = Method::named(&args.method)
        .ok_or_else(|| format!("there is no method `{}`", args.method))?;
    let inputs = weighted(&args.weights, &args.adapters)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let options = MergeOptions {
        density: args.density,
        sign: args.sign.map(Sign::from),
        rank: args.rank.rank(),
        seed: args.seed,
        t: args.t,
        dtype: args.dtype.into(),
        threads: args.threads.unwrap_or(cores),
        ..MergeOptions::new(method)
    };
    let (bar, mut progress) = bar("sites");
    let made = transform::merge(&inputs, &options, &args.out, &mut progress);
    bar.finish_and_clear();
    report(&made.map_err(message)?, "the weighted sum of the modules", out)
}

/// The directories and weights of modules written `MODULE` or `MODULE=W`. Problems are collected,
/// so that a person sees all of them at once.
///
/// The weight follows the last `=`. A text whose end is no number is taken whole if a directory has
/// that name.
pub(super) fn weighted(texts: &[String], folders: &[PathBuf]) -> Result<Vec<Weighted>, String> {
    let parse = |text: &String| -> Result<Weighted, String> {
        // A directory may have `=` in its name.
        let (module, weight) = match text.rsplit_once('=') {
            Some((module, weight)) => match weight.parse() {
                Ok(weight) => (module, weight),
                Err(_) if std::path::Path::new(text).is_dir() => (text.as_str(), 1.0),
                Err(_) => return Err(format!("`{text}`: `{weight}` is no number")),
            },
            None => (text.as_str(), 1.0),
        };
        Ok(Weighted { directory: resolve(module, folders)?, weight })
    };
    let (mut inputs, mut problems) = (Vec::new(), Vec::new());
    for text in texts {
        match parse(text) {
            Ok(input) => inputs.push(input),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(inputs) } else { Err(problems.join("; ")) }
}
