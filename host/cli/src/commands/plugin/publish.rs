//! `polyskill plugin pack`, `sign` and `verify`.

use std::io::Write;
use std::path::{Path, PathBuf};

use polyskill_plugin::{Kind, Limits};

use super::{say, short_name};

/// The text of an error.
#[expect(clippy::needless_pass_by_value, reason = "used with map_err")]
fn fail(error: polyskill_plugin::Error) -> String {
    error.to_string()
}

/// Writes a bundle as a tar and says whether it is signed.
///
/// A signature that does not fit is an error, and no tar is written.
pub(super) fn pack(
    bundle: &Path,
    output: Option<&Path>,
    out: &mut dyn Write,
) -> Result<(), String> {
    let limits = Limits::default();
    let found = polyskill_plugin::inspect(bundle, &limits).map_err(fail)?;
    let name = &found.manifest.name;
    let signer = found.signer.map_err(|reason| format!("plugin `{name}`: {reason}"))?;
    let signed = match signer {
        Some(key) => format!("signed by {key}"),
        None => "not signed".to_owned(),
    };
    let file = format!("{}-{}.tar", short_name(name), found.manifest.version);
    let target = output.map_or_else(|| PathBuf::from(file), Path::to_owned);
    polyskill_plugin::pack(bundle, &target, &limits).map_err(fail)?;
    let size = std::fs::metadata(&target).map_or(0, |entry| entry.len()).div_ceil(1024);
    say(out, format_args!("{} ({size} KiB)\ndigest {}, {signed}", target.display(), found.digest))
}

/// Signs a bundle's folder and prints what a server's configuration needs to trust the key.
///
/// The trust is for names with the publisher's prefix, or for this one's where there is no
/// publisher.
pub(super) fn sign(
    bundle: &Path,
    key: &Path,
    new_key: bool,
    out: &mut dyn Write,
) -> Result<(), String> {
    let limits = Limits::default();
    // A tar carries its signature inside, so what is signed is the folder that is packed.
    if bundle.extension().is_some_and(|extension| extension == "tar") {
        return Err(format!(
            "{} is a tar; sign the bundle's folder, then pack it",
            bundle.display()
        ));
    }
    let found = polyskill_plugin::inspect(bundle, &limits).map_err(fail)?;
    if new_key {
        polyskill_plugin::new_key(key).map_err(fail)?;
        say(
            out,
            format_args!("wrote the secret key to {}: keep it, and keep it secret", key.display()),
        )?;
    }
    let (digest, public) = polyskill_plugin::sign(bundle, key, &limits).map_err(fail)?;
    let name = &found.manifest.name;
    let prefix =
        name.rsplit_once('/').map_or(name.clone(), |(publisher, _)| format!("{publisher}/"));
    let dylibs = if found.kind == Kind::Dylib { ", dylibs = true" } else { "" };
    say(out, format_args!("signed {name}, digest {digest}"))?;
    say(out, "a server trusts it with this in its configuration:\n")?;
    say(
        out,
        format_args!("[trust]\nkeys = [{{ key = \"{public}\", prefix = \"{prefix}\"{dylibs} }}]"),
    )
}

/// Checks that a bundle is signed with a key. Digits of the key may be of either case.
pub(super) fn verify(bundle: &Path, key: &str, out: &mut dyn Write) -> Result<(), String> {
    let found = polyskill_plugin::inspect(bundle, &Limits::default()).map_err(fail)?;
    let name = &found.manifest.name;
    let signer = found.signer.map_err(|reason| format!("plugin `{name}`: {reason}"))?;
    match signer {
        None => Err(format!("plugin `{name}` is not signed")),
        Some(signer) if signer.eq_ignore_ascii_case(key) => {
            say(out, format_args!("ok: {name} {}, digest {}", found.manifest.version, found.digest))
        }
        Some(signer) => Err(format!("plugin `{name}` is signed with {signer}, expected {key}")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_bundle_with_a_false_signature_is_not_packed() {
        let folder = tempfile::tempdir().unwrap();
        let (bundle, tar) = (folder.path().join("r"), folder.path().join("r.tar"));
        fs::create_dir(&bundle).unwrap();
        let manifest = "name = \"acme/r\"\nversion = \"1\"\nabi = \"0.1\"\nfile = \"r.toml\"\n";
        fs::write(bundle.join("plugin.toml"), manifest).unwrap();
        fs::write(bundle.join("r.toml"), "[[program]]\nops = []\n").unwrap();
        sign(&bundle, &folder.path().join("key"), true, &mut Vec::new()).unwrap();
        fs::write(bundle.join("r.toml"), "[[program]]\nops = [\"emit\"]\n").unwrap();
        let refused = pack(&bundle, Some(&tar), &mut Vec::new()).unwrap_err();
        assert!(refused.contains("`acme/r`") && refused.contains("after signing"), "{refused}");
        assert!(!tar.exists());
    }
}
