//! Trust in plugins: signatures over a bundle's digest, and the operator's keys.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bundle::{Bundle, Capability, SIGNATURE_FILE, is_tar};
use crate::error::Error;
use crate::limits::Limits;
use crate::signature::{self, SecretKey};

/// The context of signatures over plugins; see [`signature`].
const CONTEXT: &str = "polyskill plugin ";

/// The operator's decision about which plugins may be loaded: `[trust]` in the configuration.
///
/// By default nothing is trusted. A sandboxed plugin needs a signature; a dynamic library needs a
/// signature and an allowed path.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct Trust {
    /// Keys whose signatures count. Several may sign for one prefix.
    pub keys: Vec<TrustedKey>,
    /// For development: load bundles without a signature, from anywhere. Dynamic libraries are
    /// excepted.
    pub allow_unsigned: bool,
    /// For development: load bundles without a signature from these directories. Dynamic libraries
    /// are excepted.
    pub unsigned: Vec<PathBuf>,
    /// Digests of bundles, as `polyskill plugin inspect` prints them, that are loaded without a
    /// signature. Dynamic libraries are excepted.
    pub digests: Vec<String>,
    /// Dynamic libraries that may be loaded if they are signed, and directories of such.
    pub dylibs: Vec<PathBuf>,
}

/// A publisher's key.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct TrustedKey {
    /// The public key, hexadecimal, as `polyskill plugin sign` prints it.
    pub key: String,
    /// The beginning of the names that the key may sign for; empty means all. It ends where a part
    /// of the name does: `acme` covers `acme` and `acme/router`, and not `acme-x`.
    #[serde(default)]
    pub prefix: String,
    /// True if dynamic libraries may be signed with it.
    #[serde(default)]
    pub dylibs: bool,
}

impl TrustedKey {
    /// True for a name that the key may sign for.
    fn may_sign(&self, name: &str) -> bool {
        let prefix = &self.prefix;
        let rest = name.strip_prefix(prefix.as_str());
        rest.is_some_and(|rest| {
            let at_border = rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/');
            prefix.is_empty() || at_border
        })
    }
}

impl Trust {
    /// Trusts everything that is sandboxed, as tests and development need.
    pub fn unsigned() -> Self {
        Self { allow_unsigned: true, ..Self::default() }
    }

    /// Decides about a bundle from `path`; returns the signer where that key is trusted, and `None`
    /// for one that may go without.
    ///
    /// A signature that does not fit is refused even where none would be needed.
    ///
    /// # Errors
    /// If the bundle is not trusted; the message says what would help.
    pub(crate) fn admit(
        &self,
        path: &Path,
        bundle: &Bundle,
        is_dylib: bool,
    ) -> Result<Option<String>, Error> {
        let name = bundle.manifest.name.clone();
        let refuse = |reason: String| Error::Untrusted { name: name.clone(), reason };
        if is_dylib && !self.dylibs.iter().any(|allowed| lies_in(path, allowed)) {
            let reason = "it is a dynamic library, and no entry of `dylibs` in [trust] allows its \
                          path; build it for WebAssembly, which needs no trust";
            return Err(refuse(reason.to_owned()));
        }
        let is_named =
            self.digests.iter().any(|digest| digest.eq_ignore_ascii_case(&bundle.digest));
        let unsigned =
            self.allow_unsigned || is_named || self.unsigned.iter().any(|dir| lies_in(path, dir));
        let Some(text) = &bundle.signature else {
            // A dynamic library has the run of the process: for it, the path alone is not enough.
            if unsigned && !is_dylib {
                return Ok(None);
            }
            let reason = "it is not signed; sign it with `polyskill plugin sign`, or for development \
                          start with --allow-unsigned";
            return Err(refuse(reason.to_owned()));
        };
        let signer = verify(&bundle.digest, text).map_err(refuse)?;
        let known = self.keys.iter().find(|trusted| {
            trusted.key.eq_ignore_ascii_case(&signer)
                && trusted.may_sign(&name)
                && (trusted.dylibs || !is_dylib)
        });
        match known {
            Some(_) => Ok(Some(signer)),
            None if unsigned && !is_dylib => Ok(None),
            None => {
                let listed = self.keys.iter().any(|trusted| {
                    trusted.key.eq_ignore_ascii_case(&signer) && trusted.may_sign(&name)
                });
                let why = match listed {
                    true => "whose entry in [trust] lacks `dylibs = true`",
                    false => "which [trust] does not list for this name",
                };
                Err(refuse(format!("it is signed with {signer}, {why}")))
            }
        }
    }
}

/// True if a path is, or lies in, an allowed one. Links are resolved; a path that does not exist
/// lies nowhere.
fn lies_in(path: &Path, allowed: &Path) -> bool {
    match (path.canonicalize(), allowed.canonicalize()) {
        (Ok(path), Ok(allowed)) => path.starts_with(allowed),
        _ => false,
    }
}

/// Checks a plugin's signature against its digest; returns the signer's public key, trusted or not.
pub(crate) fn verify(digest: &str, text: &str) -> Result<String, String> {
    signature::verify(CONTEXT, digest, text)
}

/// Signs a bundle: writes its detached signature into it, or beside it where it is a file. Returns
/// digest and public key.
///
/// A signature that is there is replaced. Reading a tar looks for a signature inside of it alone,
/// so a bundle is signed before it is packed.
///
/// # Errors
/// If the bundle is a tar, it or the key cannot be read, or the signature cannot be written.
pub fn sign(path: &Path, key: &Path, limits: &Limits) -> Result<(String, String), Error> {
    if is_tar(path) {
        let reason = "a tar carries its signature inside; sign the bundle's folder, then pack it";
        return Err(Error::Manifest { path: path.to_owned(), reason: reason.to_owned() });
    }
    let key = SecretKey::read(key)?;
    let bundle = Bundle::read(path, limits)?;
    let (public, text) = (key.public(), key.sign(CONTEXT, &bundle.digest));
    let target = match path.is_dir() {
        true => path.join(SIGNATURE_FILE),
        false => path.with_file_name(format!("{}.sig", bundle.manifest.file)),
    };
    fs::write(&target, text).map_err(|source| Error::Io { path: target, source })?;
    Ok((bundle.digest, public))
}

/// Capabilities that are both asked for and granted.
pub(crate) fn granted(asked: &[Capability], granted: &[Capability]) -> Vec<Capability> {
    asked.iter().copied().filter(|capability| granted.contains(capability)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::new_key;

    fn bundle(directory: &Path) -> PathBuf {
        let path = directory.join("router");
        fs::create_dir(&path).unwrap();
        let manifest = "name = \"acme/r\"\nversion = \"1\"\nabi = \"0.1\"\nfile = \"r.toml\"\n";
        fs::write(path.join("plugin.toml"), manifest).unwrap();
        fs::write(path.join("r.toml"), "[[program]]\nops = []\n").unwrap();
        path
    }

    /// A signature beside a tar is never looked at: one is signed before it is packed.
    #[test]
    fn a_tar_is_not_signed_from_outside() {
        let directory = tempfile::tempdir().unwrap();
        let (path, key) = (bundle(directory.path()), directory.path().join("key"));
        let tar = directory.path().join("router.tar");
        let limits = Limits::default();
        let public = new_key(&key).unwrap();
        crate::bundle::pack(&path, &tar, &limits).unwrap();
        let refused = sign(&tar, &key, &limits).unwrap_err().to_string();
        assert!(refused.contains("router.tar") && refused.contains("then pack it"), "{refused}");
        let files = || fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(files(), 3, "nothing was written");
        let (digest, _) = sign(&path, &key, &limits).unwrap();
        crate::bundle::pack(&path, &tar, &limits).unwrap();
        let packed = Bundle::read(&tar, &limits).unwrap();
        assert_eq!(packed.digest, digest);
        assert_eq!(verify(&digest, &packed.signature.unwrap()), Ok(public));
    }

    #[test]
    fn only_trusted_and_unchanged_bundles_are_admitted() {
        let directory = tempfile::tempdir().unwrap();
        let (path, key) = (bundle(directory.path()), directory.path().join("key"));
        let limits = Limits::default();
        let public = new_key(&key).unwrap();
        assert!(new_key(&key).is_err(), "a key is never overwritten");
        let trusting = |prefix: &str| Trust {
            keys: vec![TrustedKey {
                key: public.clone(),
                prefix: prefix.to_owned(),
                dylibs: false,
            }],
            ..Trust::default()
        };
        let admit = |trust: &Trust| {
            let bundle = Bundle::read(&path, &limits).unwrap();
            trust.admit(&path, &bundle, false).map_err(|error| error.to_string())
        };
        assert!(admit(&trusting("")).unwrap_err().contains("not signed"));
        assert_eq!(admit(&Trust::unsigned()), Ok(None));
        let unsigned = Trust { unsigned: vec![directory.path().to_owned()], ..Trust::default() };
        assert_eq!(admit(&unsigned), Ok(None));
        let digest = Bundle::read(&path, &limits).unwrap().digest;
        let named = Trust { digests: vec![digest.to_uppercase()], ..Trust::default() };
        assert_eq!(admit(&named), Ok(None));
        let unnamed = Trust { digests: vec![digest[1..].to_owned()], ..Trust::default() };
        assert!(admit(&unnamed).unwrap_err().contains("not signed"));
        sign(&path, &key, &limits).unwrap();
        assert_eq!(admit(&trusting("acme/")), Ok(Some(public.clone())));
        assert_eq!(admit(&trusting("acme")), Ok(Some(public.clone())));
        for other in ["other/", "acm", "acme/router", "acme/r/"] {
            assert!(admit(&trusting(other)).unwrap_err().contains("does not list"), "{other}");
        }
        let bundle = Bundle::read(&path, &limits).unwrap();
        assert!(trusting("").admit(&path, &bundle, true).is_err(), "dylibs need a path and a key");
        assert!(named.admit(&path, &bundle, true).is_err(), "a digest is not enough for dylibs");
        fs::write(path.join("r.toml"), "[[program]]\nops = [\"emit\"]\n").unwrap();
        assert!(admit(&trusting("")).unwrap_err().contains("changed after signing"));
        assert!(admit(&Trust::unsigned()).is_err(), "a false signature is worse than none");
    }
}
