//! `polyskill adapters verify`.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use polyskill_adapters::library::Expected;
use polyskill_adapters::{Error, Library, load_module};
use polyskill_model::{Compute, load};
use polyskill_workshop::inspect::inspect;

use super::table::bytes;
use super::{message, say};
use polyskill_sources::base_models;

/// The module that is loaded, the base, and the generation that is expected.
#[derive(Args, Clone, Debug)]
pub struct VerifyArgs {
    /// The module's directory.
    pub directory: PathBuf,
    /// The base: a path, or a name as for `serve`.
    #[arg(long)]
    pub model: String,
    /// The generation that the module must have.
    #[arg(long)]
    pub generation: Option<String>,
}

/// Loads a module for a base and publishes it in an empty library, as a server does at its start.
///
/// All reasons against it are told at once, a generation other than the expected one among them.
/// Nothing is generated, so a module of bad quality passes.
pub(super) fn run(args: &VerifyArgs, out: &mut dyn Write) -> Result<(), String> {
    let mut quiet = |_: &str| {};
    let path = base_models::resolve(&args.model, &mut quiet).map_err(message)?;
    let compute = Arc::new(Compute::for_this_machine());
    let model = load::load(&path, compute, &mut |_, _| {}).map_err(message)?;
    let directory = args.directory.canonicalize();
    let directory = directory.map_err(|error| format!("{}: {error}", args.directory.display()))?;
    let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let root = directory.parent().unwrap_or(&directory);
    let module = load_module(&name, &directory, root, &model)
        .and_then(|module| Library::default().publish(&name, module, Expected::Absent));
    let mut problems = match &module {
        Ok(_) => Vec::new(),
        Err(Error::Refused { problems, .. }) => problems.clone(),
        Err(error) => vec![error.to_string()],
    };
    // Also known of a module that the base does not fit.
    let found = match &module {
        Ok(module) => Some(module.generation()),
        Err(_) => inspect(&directory).ok().map(|found| found.generation),
    };
    let found = found.map_or("unknown".to_owned(), |generation| generation.to_string());
    if let Some(expected) = args.generation.as_ref().filter(|expected| **expected != found) {
        problems.push(format!("the generation is {found}, expected {expected}"));
    }
    let module = match module {
        Ok(module) if problems.is_empty() => module,
        _ => return Err(format!("`{name}` is refused:\n- {}", problems.join("\n- "))),
    };
    say(out, &format!("`{name}` fits {}", path.display()))?;
    say(out, &format!("generation {found}"))?;
    say(out, &format!("edition    {}", module.edition()))?;
    let size = bytes(module.num_bytes());
    let (kind, sites) = (module.kind().as_str(), module.shape().sites.len());
    say(out, &format!("{kind}, {sites} sites, {size}"))?;
    for artefact in module.artefacts() {
        say(out, &format!("artefact {}: {}", artefact.name(), bytes(artefact.num_bytes())))?;
    }
    module.left_out().iter().try_for_each(|reason| say(out, &format!("left out: {reason}")))
}
