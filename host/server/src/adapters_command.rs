//! `polyskill adapters`: making modules out of modules.

use std::path::PathBuf;

use clap::Subcommand;
use polyskill_adapters::transform;

/// What can be made.
#[derive(Clone, Debug, Subcommand)]
pub enum AdaptersCommand {
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
}

/// Runs the command; the paths of the new modules.
///
/// # Errors
/// With all reasons why nothing was written.
pub fn run(command: &AdaptersCommand) -> Result<Vec<PathBuf>, String> {
    match command {
        AdaptersCommand::GenKnowSub { general, out, modules } => {
            transform::gen_know_sub(general, modules, out).map_err(|error| error.to_string())
        }
    }
}
