//! `polyskill pull`.

use polyskill_sources::base_models;

/// Fetches a base model and prints its path.
pub(crate) fn run(model: &str) -> Result<(), String> {
    let path = base_models::resolve(model, &mut |message| eprintln!("polyskill: {message}"))
        .map_err(|error| error.to_string())?;
    println!("{}", path.display());
    Ok(())
}
