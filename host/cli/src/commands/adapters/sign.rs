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
    let name = served_name(module)
        .ok_or_else(|| format!("{} has no name, expected the module's own", module.display()))?;
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
    say(out, "a server trusts it with this in its configuration:\n")?;
    let key = signed.public;
    say(out, &format!("[module_trust]\nkeys = [{{ key = \"{key}\", prefix = \"{name}\" }}]"))
}

/// The name of a module that lies in a directory of modules: all of its directory's name, or its
/// file's without the ending. A path such as `.` is looked up for it.
fn served_name(module: &Path) -> Option<String> {
    let own = |path: &Path| {
        let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
        name.map(|name| name.to_string_lossy().into_owned())
    };
    own(module).or_else(|| own(&module.canonicalize().ok()?))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_named_as_a_server_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let (directory, file) =
            (folder.path().join("german.v2"), folder.path().join("french.v3.gguf"));
        std::fs::create_dir_all(directory.join("artefacts")).unwrap();
        std::fs::write(&file, "").unwrap();
        for (path, name) in [
            (directory.clone(), "german.v2"),
            (directory.join("artefacts/.."), "german.v2"),
            (file, "french.v3"),
        ] {
            assert_eq!(served_name(&path).as_deref(), Some(name), "{path:?}");
        }
        assert_eq!(served_name(Path::new("/")), None);
    }
}
