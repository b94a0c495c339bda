//! Trust in modules: pinned generations, signatures, and the names that need one.
//!
//! A signature is one of the ASCII bytes `polyskill module ` followed by the 64 lower-case
//! hexadecimal digits of the module's generation, nothing else. A generation covers configuration
//! and weights; it does not cover the card, artefacts, or the name under which the module is
//! served.

use std::path::Path;
use std::str::FromStr;

use polyskill_plugin::signature::{self, SecretKey};
use serde::{Deserialize, Serialize};

use super::source::sha256_digits;

/// The bytes that are signed before the generation: a signature of something else is not one of a
/// module.
const CONTEXT: &str = "polyskill module ";

/// Keys whose signatures count for modules, and names that need one. By default no name does.
///
/// A module whose name needs none is served with any signature that fits it, and with none.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct ModuleTrust {
    /// Keys whose signatures count.
    pub keys: Vec<ModuleKey>,
    /// Rules for names that need a signature or none; of the prefixes that fit, the longest counts.
    pub namespaces: Vec<NamespaceRule>,
    /// The rule for names that no namespace is a prefix of.
    pub signature: Requirement,
}

/// A publisher's key.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ModuleKey {
    /// The public key, 64 hexadecimal digits.
    pub key: String,
    /// The beginning of the names of modules for which it counts; empty means all.
    #[serde(default)]
    pub prefix: String,
}

/// The rule for the names that start with a prefix.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct NamespaceRule {
    /// The prefix, compared byte by byte: `a` is also one of `ab/c`.
    pub prefix: String,
    /// The need for a signature.
    pub signature: Requirement,
}

/// The need of a module for a signature.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Requirement {
    /// It may have none, or one of a key that is not listed; one that does not fit is refused all
    /// the same.
    #[default]
    Optional,
    /// It needs one of a key that is listed for its name.
    Required,
}

/// The one who vouches for a module. Keys are public keys in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signer {
    /// A key that is listed for the module's name.
    Trusted(String),
    /// A key that is not listed for it, where a signature is optional. It proves nothing but that
    /// the holder of that key signed.
    Unknown(String),
    /// Nobody, where a signature is optional.
    Nobody,
}

/// A reason for which a module is not served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// Another module was expected.
    #[error("module `{name}` has generation {found}, pinned is {expected}")]
    Pinned {
        /// The module.
        name: String,
        /// Its generation.
        found: String,
        /// The generation that was pinned.
        expected: String,
    },
    /// A text that is no generation.
    #[error("`{found}` is no generation, expected 64 hexadecimal digits")]
    NoGeneration {
        /// The text.
        found: String,
    },
    /// There is no signature, and its name needs one.
    #[error("module `{name}` is not signed, and names that start with `{prefix}` need a signature")]
    Unsigned {
        /// The module.
        name: String,
        /// The namespace that says so.
        prefix: String,
    },
    /// The signature is malformed or one of something else.
    #[error("module `{name}`: {reason}")]
    Unfit {
        /// The module.
        name: String,
        /// A sentence on what is wrong with the signature.
        reason: String,
    },
    /// The signer is not listed for the name.
    #[error("module `{name}` is signed with {key}, which is not listed for this name")]
    Untrusted {
        /// The module.
        name: String,
        /// The signer's public key.
        key: String,
    },
    /// The signing key could not be read.
    #[error("the key {path}: {reason}", path = path.display())]
    Key {
        /// Its file.
        path: std::path::PathBuf,
        /// The reason for which it could not be read.
        reason: String,
    },
}

/// The generation that a module must have, parsed from 64 hexadecimal digits in any case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin(String);

impl FromStr for Pin {
    type Err = TrustError;

    fn from_str(text: &str) -> Result<Self, TrustError> {
        generation(text).map(Self)
    }
}

impl Pin {
    /// Compares a loaded module's generation, 64 lower-case hexadecimal digits. `name` is for the
    /// error.
    ///
    /// # Errors
    /// If it is another.
    pub fn check(&self, name: &str, found: &str) -> Result<(), TrustError> {
        match found == self.0 {
            true => Ok(()),
            false => Err(TrustError::Pinned {
                name: name.to_owned(),
                found: found.to_owned(),
                expected: self.0.clone(),
            }),
        }
    }
}

/// A generation in lower case, or the error that names the text.
fn generation(text: &str) -> Result<String, TrustError> {
    sha256_digits(text)
        .map_err(|_| TrustError::NoGeneration { found: text.chars().take(80).collect() })
}

impl ModuleTrust {
    /// The rule for a name, and the prefix that it is written for; an empty prefix for the rule of
    /// all other names.
    fn requirement(&self, name: &str) -> (Requirement, &str) {
        let fitting = self.namespaces.iter().filter(|rule| name.starts_with(&rule.prefix));
        let rule = fitting.max_by_key(|rule| rule.prefix.len());
        rule.map_or((self.signature, ""), |rule| (rule.signature, &rule.prefix))
    }

    /// True if the key is listed for the name.
    fn trusts(&self, key: &str, name: &str) -> bool {
        let mut keys = self.keys.iter();
        keys.any(|known| known.key.eq_ignore_ascii_case(key) && name.starts_with(&known.prefix))
    }

    /// Allows a module to be served under another name too, by the signer that [`verify`] found.
    ///
    /// The signature itself is not looked at again.
    ///
    /// # Errors
    /// If the name needs a signature, and there is none by a key that is listed for it.
    pub fn check_signer(&self, name: &str, signer: &Signer) -> Result<(), TrustError> {
        let (requirement, prefix) = self.requirement(name);
        if requirement == Requirement::Optional {
            return Ok(());
        }
        let (name, prefix) = (name.to_owned(), prefix.to_owned());
        match signer {
            Signer::Trusted(key) | Signer::Unknown(key) if self.trusts(key, &name) => Ok(()),
            Signer::Trusted(key) | Signer::Unknown(key) => {
                Err(TrustError::Untrusted { name, key: key.clone() })
            }
            Signer::Nobody => Err(TrustError::Unsigned { name, prefix }),
        }
    }

    /// Every entry that cannot be meant, each as one sentence: malformed keys, prefixes that come
    /// twice, and namespaces that need a signature which no key can give.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for key in self.keys.iter().filter(|key| !signature::is_public_key(&key.key)) {
            let found: String = key.key.chars().take(80).collect();
            problems.push(format!("`keys` has `{found}`, expected a public key of 64 digits"));
        }
        for (index, rule) in self.namespaces.iter().enumerate() {
            if self.namespaces[..index].iter().any(|earlier| earlier.prefix == rule.prefix) {
                problems.push(format!("`namespaces` has the prefix `{}` twice", rule.prefix));
            }
            let trusted = self.keys.iter().any(|key| {
                key.prefix.starts_with(&rule.prefix) || rule.prefix.starts_with(&key.prefix)
            });
            if rule.signature == Requirement::Required && !trusted {
                problems.push(format!(
                    "`namespaces` requires signatures for `{}`, and no key is listed for such names",
                    rule.prefix
                ));
            }
        }
        problems
    }
}

/// Decides whether a module may be served under a name; says who signed it.
///
/// `generation` is that of the loaded module, `signature` the content of its signature file: the
/// line `ed25519 PUBLIC-KEY SIGNATURE`, hexadecimal.
///
/// # Errors
/// If a signature that the name needs is missing or not by a key that is listed for it. A signature
/// that does not fit the module is refused even where none is needed: it is worse than none.
pub fn verify(
    name: &str,
    generation: &str,
    signature: Option<&[u8]>,
    trust: &ModuleTrust,
) -> Result<Signer, TrustError> {
    let generation = self::generation(generation)?;
    let (requirement, prefix) = trust.requirement(name);
    let Some(signature) = signature else {
        return match requirement {
            Requirement::Optional => Ok(Signer::Nobody),
            Requirement::Required => {
                Err(TrustError::Unsigned { name: name.to_owned(), prefix: prefix.to_owned() })
            }
        };
    };
    let unfit = |reason| TrustError::Unfit { name: name.to_owned(), reason };
    let text = str::from_utf8(signature);
    let text = text.map_err(|_| unfit("its signature is not text".to_owned()))?;
    let key = signature::verify(CONTEXT, &generation, text).map_err(unfit)?;
    match (trust.trusts(&key, name), requirement) {
        (true, _) => Ok(Signer::Trusted(key)),
        (false, Requirement::Optional) => Ok(Signer::Unknown(key)),
        (false, Requirement::Required) => Err(TrustError::Untrusted { name: name.to_owned(), key }),
    }
}

/// A signature that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The content of the signature file.
    pub text: String,
    /// The signer's public key, in hexadecimal digits.
    pub public: String,
}

/// Signs a generation with the key in a file, as `polyskill plugin sign --new-key` makes it.
///
/// # Errors
/// If the key cannot be read, or the text is no generation.
pub fn sign(generation: &str, key: &Path) -> Result<Signed, TrustError> {
    let generation = self::generation(generation)?;
    let key = SecretKey::read(key).map_err(|error| {
        let reason = match error {
            polyskill_plugin::Error::Io { source, .. } => source.to_string(),
            polyskill_plugin::Error::Manifest { reason, .. } => reason,
            other => other.to_string(),
        };
        TrustError::Key { path: key.to_owned(), reason }
    })?;
    Ok(Signed { text: key.sign(CONTEXT, &generation), public: key.public() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GENERATION: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

    struct Keys {
        _directory: tempfile::TempDir,
        ours: std::path::PathBuf,
        public: String,
        theirs: std::path::PathBuf,
        trust: ModuleTrust,
    }

    fn keys() -> Keys {
        let directory = tempfile::tempdir().unwrap();
        let path = |name| directory.path().join(name);
        let (ours, theirs) = (path("ours"), path("theirs"));
        let public = polyskill_plugin::new_key(&ours).unwrap();
        polyskill_plugin::new_key(&theirs).unwrap();
        let text = format!(
            "keys = [{{ key = \"{public}\", prefix = \"acme-\" }}]\n\
             [[namespaces]]\nprefix = \"acme-\"\nsignature = \"required\"\n\
             [[namespaces]]\nprefix = \"acme-lab-\"\nsignature = \"optional\"\n"
        );
        let trust: ModuleTrust = toml::from_str(&text).unwrap();
        assert_eq!(trust.problems(), Vec::<String>::new());
        Keys { _directory: directory, ours, public, theirs, trust }
    }

    #[test]
    fn names_need_the_signatures_that_their_namespace_says() {
        let keys = keys();
        let verify = |name, signature: Option<&str>| {
            super::verify(name, GENERATION, signature.map(str::as_bytes), &keys.trust)
        };
        let signed = sign(GENERATION, &keys.ours).unwrap();
        assert_eq!(signed.public, keys.public);
        let other = sign(GENERATION, &keys.theirs).unwrap();
        let (ours, theirs) = (Some(signed.text.as_str()), Some(other.text.as_str()));
        assert_eq!(verify("acme-dates", ours).unwrap(), Signer::Trusted(keys.public.clone()));
        assert!(matches!(verify("acme-dates", None), Err(TrustError::Unsigned { .. })));
        assert!(matches!(verify("acme-dates", theirs), Err(TrustError::Untrusted { .. })));
        assert_eq!(verify("acme-lab-dates", None).unwrap(), Signer::Nobody);
        assert_eq!(verify("dates", None).unwrap(), Signer::Nobody);
        assert_eq!(verify("dates", ours).unwrap(), Signer::Unknown(keys.public.clone()));
        assert_eq!(verify("dates", theirs).unwrap(), Signer::Unknown(other.public.clone()));
        let strict = ModuleTrust { signature: Requirement::Required, ..keys.trust.clone() };
        let message = super::verify("dates", GENERATION, None, &strict).unwrap_err().to_string();
        assert!(message.contains("`dates` is not signed"), "{message}");
    }

    #[test]
    fn a_signature_of_something_else_is_refused_even_where_none_is_needed() {
        let keys = keys();
        let another = GENERATION.replace('b', "c");
        let of_another = sign(&another, &keys.ours).unwrap().text;
        let key = SecretKey::read(&keys.ours).unwrap();
        let of_plugin = key.sign("polyskill plugin ", GENERATION);
        for signature in [of_another.as_bytes(), of_plugin.as_bytes(), b"", b"\xff", b"ed25519 0 0"]
        {
            let refused = verify("dates", GENERATION, Some(signature), &keys.trust);
            assert!(matches!(refused, Err(TrustError::Unfit { .. })), "{refused:?}");
        }
        // What is signed is exactly this.
        let text = sign(GENERATION, &keys.ours).unwrap().text;
        let public = signature::verify("", &format!("polyskill module {GENERATION}"), &text);
        assert_eq!(public, Ok(keys.public));
        assert!(sign("00", &keys.ours).is_err());
    }

    #[test]
    fn a_pin_is_one_generation() {
        let pin: Pin = GENERATION.to_ascii_uppercase().parse().unwrap();
        assert!(pin.check("dates", GENERATION).is_ok());
        let message = pin.check("dates", &"0".repeat(64)).unwrap_err().to_string();
        assert!(message.contains(GENERATION), "{message}");
        assert!("b179".parse::<Pin>().is_err());
    }

    #[test]
    fn entries_that_cannot_be_meant_are_named() {
        let rule = |prefix: &str| NamespaceRule {
            prefix: prefix.to_owned(),
            signature: Requirement::Required,
        };
        let key = ModuleKey { key: "zz".to_owned(), prefix: "b".to_owned() };
        let trust = ModuleTrust {
            keys: vec![key],
            namespaces: vec![rule("a"), rule("a")],
            ..ModuleTrust::default()
        };
        assert_eq!(trust.problems().len(), 4, "{:?}", trust.problems());
        assert!(toml::from_str::<ModuleTrust>("signature = \"maybe\"").is_err());
        assert!(toml::from_str::<ModuleTrust>("allow = true").is_err());
    }
}
