//! `polyskill check-config`.

use polyskill_sources::redact;

use crate::arguments::ServeArgs;

/// Prints the effective configuration as TOML, after the checks that a server does at its start.
///
/// Keys show as `(set)`, and URLs without their passwords and queries. Nothing is loaded, so a path
/// that does not exist may still be printed.
pub(crate) fn run(args: &ServeArgs) -> Result<(), String> {
    let mut config = args.config()?;
    config.check().map_err(|error| error.to_string())?;
    // Keys are secrets; whether they are set is not.
    for key in [&mut config.api_key, &mut config.admin_key].into_iter().flatten() {
        *key = "(set)".to_owned();
    }
    let text = toml::to_string_pretty(&config).map_err(|error| error.to_string())?;
    print!("{}", redact(&text));
    Ok(())
}
