//! Detached ed25519 signatures over digests, and the files of their keys.
//!
//! The message that is signed is a context followed by the digest, both ASCII, without anything
//! between or after: the context says what the digest is of, so that a signature of one kind of
//! thing is none of another. The text of a signature is `ed25519 PUBLIC-KEY SIGNATURE`, both
//! hexadecimal, of 64 and 128 digits.

use std::fs;
use std::path::Path;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};

use crate::error::Error;
use crate::sandbox::hex;

/// A key that signs. Printing it shows the public half alone.
pub struct SecretKey(SigningKey);

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretKey").field("public", &self.public()).finish_non_exhaustive()
    }
}

impl SecretKey {
    /// Reads the file that [`new_key`] has written.
    ///
    /// # Errors
    /// If it cannot be read or holds something else.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path)
            .map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let secret = unhex(text.trim()).ok_or_else(|| Error::Manifest {
            path: path.to_owned(),
            reason: "is no signing key: expected 64 hexadecimal digits".to_owned(),
        })?;
        Ok(Self(SigningKey::from_bytes(&secret)))
    }

    /// The public key, 64 hexadecimal digits.
    pub fn public(&self) -> String {
        hex(self.0.verifying_key().as_bytes())
    }

    /// The text of a signature over a digest in a context, with a line's end.
    ///
    /// Ed25519 is deterministic: the same key and digest give the same text.
    pub fn sign(&self, context: &str, digest: &str) -> String {
        let signature = self.0.sign(message(context, digest).as_bytes());
        format!("ed25519 {} {}\n", self.public(), hex(&signature.to_bytes()))
    }
}

/// Checks the text of a signature against a digest; returns the signer's public key, in lower case.
///
/// Any key is accepted: the caller decides whether it is trusted. Words behind the signature are
/// passed over.
///
/// # Errors
/// If the text is no signature, or one of something else.
pub fn verify(context: &str, digest: &str, text: &str) -> Result<String, String> {
    let malformed =
        || "its signature is not `ed25519 PUBLIC-KEY SIGNATURE` in hexadecimal".to_owned();
    let mut words = text.split_whitespace();
    let (Some("ed25519"), Some(key), Some(signature)) = (words.next(), words.next(), words.next())
    else {
        return Err(malformed());
    };
    let key_bytes: [u8; 32] = unhex(key).ok_or_else(malformed)?;
    let signature: [u8; 64] = unhex(signature).ok_or_else(malformed)?;
    let verifier = VerifyingKey::from_bytes(&key_bytes).map_err(|_| malformed())?;
    verifier
        .verify_strict(message(context, digest).as_bytes(), &Signature::from_bytes(&signature))
        .map_err(|_| {
            "its signature does not fit its files: they were changed after signing".to_owned()
        })?;
    Ok(hex(&key_bytes))
}

/// True for the text of a public key: 64 hexadecimal digits that are a point of the curve.
pub fn is_public_key(text: &str) -> bool {
    unhex(text).is_some_and(|bytes| VerifyingKey::from_bytes(&bytes).is_ok())
}

/// The bytes that are signed.
fn message(context: &str, digest: &str) -> String {
    format!("{context}{digest}")
}

/// The bytes of exactly `2 · N` hexadecimal digits; `None` for any other text.
fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// Makes a key pair; the secret goes to a file that only this user may read. Returns the public
/// key.
///
/// # Errors
/// If the file exists or cannot be written, or the system has no randomness.
pub fn new_key(path: &Path) -> Result<String, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let mut secret = [0; 32];
    getrandom::fill(&mut secret)
        .map_err(|error| io(std::io::Error::other(format!("no randomness: {error}"))))?;
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    let mut file = options.open(path).map_err(io)?;
    std::io::Write::write_all(&mut file, format!("{}\n", hex(&secret)).as_bytes()).map_err(io)?;
    Ok(SecretKey(SigningKey::from_bytes(&secret)).public())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_of_one_digest_in_one_context() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        let public = new_key(&path).unwrap();
        let key = SecretKey::read(&path).unwrap();
        assert_eq!(key.public(), public);
        assert!(is_public_key(&public) && !is_public_key("00") && !is_public_key(&"+1".repeat(32)));
        assert!(!format!("{key:?}").contains(fs::read_to_string(&path).unwrap().trim()));
        let text = key.sign("a thing ", "00ff");
        assert_eq!(verify("a thing ", "00ff", &text), Ok(public));
        assert!(verify("a thing ", "00fe", &text).unwrap_err().contains("does not fit"));
        assert!(verify("another thing ", "00ff", &text).unwrap_err().contains("does not fit"));
        for malformed in ["", "ed25519", "ed25519 00 00", "rsa 00 00"] {
            let reason = verify("a thing ", "00ff", malformed).unwrap_err();
            assert!(reason.contains("hexadecimal"), "{malformed}: {reason}");
        }
    }
}
