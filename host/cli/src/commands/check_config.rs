//! `polyskill check-config`.

use crate::arguments::ServeArgs;

/// Prints the configuration as it is meant, without its secrets.
pub(crate) fn run(args: &ServeArgs) -> Result<(), String> {
    let mut config = args.config()?;
    config.check().map_err(|error| error.to_string())?;
    // Keys are secrets; whether they are set is not.
    for key in [&mut config.api_key, &mut config.admin_key].into_iter().flatten() {
        *key = "(set)".to_owned();
    }
    print!("{}", toml::to_string_pretty(&config).map_err(|error| error.to_string())?);
    Ok(())
}
