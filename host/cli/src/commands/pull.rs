//! `polyskill pull`.

use polyskill_sources::base_models;

/// Fetches a base model into the cache, unless it is there already, and prints its path.
///
/// Progress goes to standard error, so that a script can take the path from standard output.
pub(crate) fn run(model: &str) -> Result<(), String> {
    let path = base_models::resolve(model, &mut |message| eprintln!("polyskill: {message}"))
        .map_err(|error| error.to_string())?;
    println!("{}", path.display());
    Ok(())
}
