//! `polyskill adapters sign`.

use std::io::Write;
use std::path::{Path, PathBuf};

use polyskill_adapters::{generation_of, is_module};

use super::{message, say};
use polyskill_sources::{SIGNATURE_FILE, sign};

/// Writes the signature of a module's generation into its directory, or beside its GGUF file, and
/// prints what a server's configuration needs to trust it.
///
/// The generation is a digest of the content, so a module that changes has to be signed again. With
/// `new_key` the key's file is made first.
pub(super) fn run(
    module: &Path,
    key: &Path,
    new_key: bool,
    out: &mut dyn Write,
) -> Result<(), String> {
    if !is_module(module) {
        return Err(format!("{} is no module's directory and no GGUF file", module.display()));
    }
    let generation = generation_of(module).map_err(message)?.to_string();
    if new_key {
        polyskill_plugin::new_key(key).map_err(message)?;
        say(
            out,
            &format!("wrote the secret key to {}: keep it, and keep it secret", key.display()),
        )?;
    }
    let signed = sign(&generation, key).map_err(message)?;
    let file = signature_file(module);
    std::fs::write(&file, &signed.text).map_err(|error| format!("{}: {error}", file.display()))?;
    say(out, &format!("signed generation {generation}, in {}", file.display()))?;
    let name = module.file_stem().unwrap_or_default().to_string_lossy();
    say(out, "a server trusts it with this in its configuration:\n")?;
    let key = signed.public;
    say(out, &format!("[module_trust]\nkeys = [{{ key = \"{key}\", prefix = \"{name}\" }}]"))
}

/// The place of a module's signature: in its directory, or the GGUF file's path with `.sig` after
/// it.
fn signature_file(module: &Path) -> PathBuf {
    if module.is_dir() {
        return module.join(SIGNATURE_FILE);
    }
    let mut name = module.as_os_str().to_owned();
    name.push(".sig");
    PathBuf::from(name)
}
