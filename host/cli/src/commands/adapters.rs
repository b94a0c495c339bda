//! `polyskill adapters`: making modules out of modules, and looking at them.

mod compare;
mod encode;
mod inspect;
mod merge;
mod remote;
mod sign;
mod table;
mod transform;
mod upcycle;
mod verify;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use polyskill_workshop::transform::{self as making, Dtype, Made, Rank};

pub use encode::EncodeArgs;
pub use merge::{MergeArgs, SignArg};
pub use remote::{RemoteCommand, ServerArgs};
pub use transform::TransformCommand;
pub use upcycle::UpcycleArgs;
pub use verify::VerifyArgs;

/// The commands on modules: those that write a new one, and those that look at one.
///
/// A new module goes to a directory of its own; those that it is made of stay as they are.
#[derive(Clone, Debug, Subcommand)]
pub enum AdaptersCommand {
    /// Merge modules into a new one.
    Merge(MergeArgs),
    /// Make a new module out of one.
    #[command(subcommand)]
    Transform(TransformCommand),
    /// Subtract general knowledge from modules, into new modules.
    GenKnowSub {
        /// Modules with general knowledge; their mean is subtracted.
        #[arg(long, required = true, num_args = 1..)]
        general: Vec<PathBuf>,
        /// Directory that the new modules go to, under the names of the old ones.
        #[arg(long)]
        out: PathBuf,
        /// Modules to subtract from.
        #[arg(required = true)]
        modules: Vec<PathBuf>,
    },
    /// Make experts of LoRA modules: the base's feed-forwards with their changes, for a router to
    /// mix.
    Upcycle(UpcycleArgs),
    /// Show what a module is.
    Inspect {
        /// The module's directory.
        directory: PathBuf,
        /// Print JSON, with every site.
        #[arg(long)]
        json: bool,
    },
    /// Let the base read a text once, and keep it as a module.
    Encode(EncodeArgs),
    /// Change and list the modules of a running server.
    Serving {
        /// The server that is asked.
        #[command(flatten)]
        server: ServerArgs,
        /// The request that is sent to it.
        #[command(subcommand)]
        command: RemoteCommand,
    },
    /// Load a module for a base model as the server would.
    Verify(VerifyArgs),
    /// Sign a module, for servers whose configuration asks for signatures.
    Sign {
        /// The module's directory or GGUF file.
        module: PathBuf,
        /// The file with the secret key.
        #[arg(long)]
        key: PathBuf,
        /// Make the key first; the file must not exist.
        #[arg(long)]
        new_key: bool,
    },
    /// Compare two modules: settings, and deltas by site.
    Diff {
        /// The one.
        one: PathBuf,
        /// The other.
        two: PathBuf,
        /// Print JSON, with every site.
        #[arg(long)]
        json: bool,
    },
}

/// The bound on a new module's rank: a number of singular values, or a share of their energy.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct RankArgs {
    /// Singular values to keep at each site; by default the highest rank among the sources.
    #[arg(long, conflicts_with = "energy")]
    pub rank: Option<usize>,
    /// Keep as few singular values as hold this part of the sum of their squares, from 0 to 1.
    #[arg(long)]
    pub energy: Option<f64>,
}

impl RankArgs {
    /// The bound for the transformation; `None` leaves it to the method.
    fn rank(self) -> Option<Rank> {
        self.rank.map(Rank::Fixed).or(self.energy.map(Rank::Energy))
    }
}

/// The storage type of new weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DtypeArg {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
}

impl From<DtypeArg> for Dtype {
    fn from(dtype: DtypeArg) -> Self {
        match dtype {
            DtypeArg::F32 => Self::F32,
            DtypeArg::Bf16 => Self::Bf16,
        }
    }
}

/// Runs the command; what it has to say goes to `out`.
///
/// # Errors
/// With all reasons why nothing was written, or what is wrong with the module.
pub fn run(command: &AdaptersCommand, out: &mut dyn Write) -> Result<(), String> {
    match command {
        AdaptersCommand::Merge(args) => merge::run(args, out),
        AdaptersCommand::Transform(command) => transform::run(command, out),
        AdaptersCommand::GenKnowSub { general, out: folder, modules } => {
            let made = making::gen_know_sub(general, modules, folder).map_err(message)?;
            made.iter().try_for_each(|path| say(out, &path.display().to_string()))
        }
        AdaptersCommand::Upcycle(args) => upcycle::run(args, out),
        AdaptersCommand::Inspect { directory, json } => inspect::run(directory, *json, out),
        AdaptersCommand::Encode(args) => encode::run(args, out),
        AdaptersCommand::Serving { server, command } => remote::run(server, command, out),
        AdaptersCommand::Sign { module, key, new_key } => sign::run(module, key, *new_key, out),
        AdaptersCommand::Verify(args) => verify::run(args, out),
        AdaptersCommand::Diff { one, two, json } => compare::run(one, two, *json, out),
    }
}

/// The text of an error, for `map_err`.
fn message(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Writes a line; fails where the terminal is gone.
fn say(out: &mut dyn Write, line: &str) -> Result<(), String> {
    writeln!(out, "{line}").map_err(message)
}

/// The directory of a module: a path that exists, or a name in one of the folders of modules, the
/// first that has it.
///
/// Without folders, `adapters/library` of the working directory is searched. A name has no slash
/// and does not begin with a dot, so it cannot leave its folder.
fn resolve(module: &str, folders: &[PathBuf]) -> Result<PathBuf, String> {
    let path = Path::new(module);
    if path.is_dir() {
        return Ok(path.to_owned());
    }
    let shipped = [PathBuf::from("adapters/library")];
    let folders = if folders.is_empty() { &shipped } else { folders };
    let is_name = !module.is_empty() && !module.contains(['/', '\\']) && !module.starts_with('.');
    let found = folders.iter().map(|folder| folder.join(module)).find(|path| path.is_dir());
    found.filter(|_| is_name).ok_or_else(|| {
        let folders: Vec<String> =
            folders.iter().map(|folder| folder.display().to_string()).collect();
        format!(
            "`{module}` is no directory, and no module of that name is in {}",
            folders.join(", ")
        )
    })
}

/// A progress bar over sites or modules, and a function that moves it, which takes how many are
/// done and how many there are.
///
/// `of` is the word after the numbers. Where standard error is no terminal, nothing is shown.
fn bar(of: &str) -> (ProgressBar, impl FnMut(usize, usize) + use<>) {
    let bar = ProgressBar::new(0);
    let template = format!("{{elapsed}} {{wide_bar}} {{pos}}/{{len}} {of}");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    let shown = bar.clone();
    (bar, move |done, all| {
        shown.set_length(all as u64);
        shown.set_position(done as u64);
    })
}

/// Says what was made: its directory, its generation, its ranks, its distance from the deltas that
/// the method means, and how far it is from what it was made of.
///
/// `from` names the latter. Without reports on sites, as for prompts and experts, only the first
/// two are said.
fn report(made: &Made, from: &str, out: &mut dyn Write) -> Result<(), String> {
    say(out, &format!("{}\ngeneration {}", made.path.display(), made.generation))?;
    if made.sites.is_empty() {
        return Ok(());
    }
    let ranks = made.sites.iter().map(|site| site.rank);
    let (low, high) = (ranks.clone().min().unwrap_or(0), ranks.max().unwrap_or(0));
    let rank = if low == high { format!("rank {low}") } else { format!("ranks {low} to {high}") };
    let errors = made.errors();
    let worst = made.sites.iter().max_by(|a, b| a.error.total_cmp(&b.error));
    let at = worst.filter(|_| errors.worst > 0.0).map(|site| format!(" at {}", site.site));
    say(out, &format!("{} sites, {rank}", made.sites.len()))?;
    let (mean, worst) = (table::number(errors.mean), table::number(errors.worst));
    let line = format!("relative error: mean {mean}, worst {worst}{}", at.unwrap_or_default());
    say(out, &line)?;
    let apart = made.sites.iter().map(|site| site.from_sum).sum::<f64>() / made.sites.len() as f64;
    say(out, &format!("relative distance from {from}: mean {}", table::number(apart)))
}
