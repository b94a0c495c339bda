//! Sources of modules, as text.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use reqwest::Url;

use super::error::{Reason, SourceError};

/// Longest text of a source, in bytes.
const MAX_BYTES: usize = 4_096;
/// Schemes of object stores, as the crate `object_store` knows them.
const STORES: [&str; 8] = ["s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss"];
/// The text that stands for a secret.
const HIDDEN: &str = "…";

/// The place that a module comes from.
///
/// | text | what |
/// |---|---|
/// | a path, `file:///path` | a module's directory, an archive or a GGUF file |
/// | `https://…`, `http://…` | an archive or a GGUF file |
/// | `s3://…`, `gs://…`, `az://…`, `abfs://…` | an archive or a GGUF file where the key ends like one, else a prefix |
/// | `hf://owner/name[/folder][@revision]` | a repository on the Hugging Face hub |
/// | `oci:DIRECTORY[:REFERENCE]`, `oci:DIRECTORY@sha256:HEX` | an OCI image layout on disk |
///
/// `#sha256=HEX` after a single file pins its bytes. Display and Debug leave out user names and
/// passwords of web addresses and everything after `?`; without such, the displayed text parses to
/// the same source.
#[derive(Clone, PartialEq, Eq)]
pub struct Source {
    /// The place, and the module in it.
    pub place: Place,
    /// The SHA-256 that the archive or file must have, 64 lower-case hexadecimal digits.
    pub sha256: Option<String>,
}

/// A kind of place, and a module in it.
#[derive(Clone, PartialEq, Eq)]
pub enum Place {
    /// A directory, an archive or a GGUF file on this machine.
    Path(PathBuf),
    /// An archive or a GGUF file on a web server.
    Web(Url),
    /// An object or a prefix in an object store. Such a URL has no query, fragment or password.
    Store(Url),
    /// A repository on the Hugging Face hub.
    Hub(Repository),
    /// An image in an OCI image layout on this machine.
    Oci {
        /// The layout's directory.
        directory: PathBuf,
        /// One of its images; may be left out where it has one.
        image: Option<Image>,
    },
}

/// A folder of a repository on the hub, at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// The user or organisation.
    pub owner: String,
    /// The repository's name.
    pub name: String,
    /// The folder in it, without slashes around it; empty for the repository's own.
    pub folder: String,
    /// A branch, tag or commit; `main` unless given.
    pub revision: Option<String>,
}

/// The choice of an image in a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    /// By the annotation `org.opencontainers.image.ref.name`.
    Reference(String),
    /// By the SHA-256 of its manifest, 64 lower-case hexadecimal digits.
    Digest(String),
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let text = text.trim();
        let malformed = |reason| Reason::Malformed(reason).at(shown_malformed(text));
        if text.is_empty() || text.len() > MAX_BYTES || text.chars().any(char::is_control) {
            let expected = format!("expected 1 to {MAX_BYTES} bytes without control characters");
            return Err(Reason::Malformed(expected).at(text.chars().take(32).collect::<String>()));
        }
        let (text, sha256) = match text.rsplit_once("#sha256=") {
            Some((place, digest)) => (place, Some(sha256_digits(digest).map_err(malformed)?)),
            None => (text, None),
        };
        let place = Place::parse(text).map_err(malformed)?;
        if sha256.is_some() && matches!(place, Place::Hub(_) | Place::Oci { .. }) {
            let reason = "`#sha256=` pins single files; use `@COMMIT` or `@sha256:HEX` here";
            return Err(malformed(reason.to_owned()));
        }
        Ok(Self { place, sha256 })
    }
}

impl Place {
    /// The place of a text without its pin. A text with a scheme that is not followed by `//` is a
    /// path, but for `oci:`; one with an unknown scheme is refused.
    fn parse(text: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = text.split_once(':') else {
            return Ok(Self::Path(PathBuf::from(text)));
        };
        match scheme {
            "oci" => parse_oci(rest),
            _ if !rest.starts_with("//") => Ok(Self::Path(PathBuf::from(text))),
            "file" => {
                let path = url(text)?.to_file_path();
                path.map(Self::Path).map_err(|()| "expected file:///absolute/path".to_owned())
            }
            "http" | "https" => {
                let url = url(text)?;
                match url.fragment() {
                    None => Ok(Self::Web(url)),
                    Some(_) => Err("has a fragment, expected none but `#sha256=HEX`".to_owned()),
                }
            }
            "hf" => parse_hub(&rest[2..]).map(Self::Hub),
            _ if STORES.contains(&scheme) => parse_store(text).map(Self::Store),
            _ => Err(format!(
                "has the scheme `{scheme}`, expected a path, file, http, https, hf, oci or one of {}",
                STORES.join(", ")
            )),
        }
    }
}

/// A URL, with the reason if it is none.
fn url(text: &str) -> Result<Url, String> {
    Url::parse(text).map_err(|error| format!("is no URL: {error}"))
}

/// A URL of an object store, with a bucket and a plain key.
///
/// Credentials of stores come from the environment, never from the address. Escaped slashes and
/// dots are refused, since they could lead out of the prefix that a policy allows.
fn parse_store(text: &str) -> Result<Url, String> {
    let url = url(text)?;
    if url.host_str().is_none_or(str::is_empty) {
        return Err("names no bucket".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() || url.password().is_some() {
        return Err("has a query, fragment or password, expected SCHEME://BUCKET/KEY".to_owned());
    }
    let lower = format!("{text} {url}").to_ascii_lowercase();
    if ["%2f", "%5c", "%2e"].iter().any(|escaped| lower.contains(escaped)) {
        return Err("has an escaped separator or dot, expected a plain key".to_owned());
    }
    Ok(url)
}

/// A repository from the text after `hf://`.
///
/// Every part of it, revisions included, starts with a letter or digit, so none is `..` or an
/// option of a command.
fn parse_hub(rest: &str) -> Result<Repository, String> {
    let (path, revision) = match rest.split_once('@') {
        Some((path, revision)) => (path, Some(revision)),
        None => (rest, None),
    };
    let parts: Vec<&str> = path.trim_end_matches('/').split('/').collect();
    let [owner, name, folder @ ..] = parts.as_slice() else {
        return Err("expected hf://owner/name[/folder][@revision]".to_owned());
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_name = |part: &&str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(plain)
    };
    let revision_parts = revision.map(|revision| revision.split('/'));
    let all = parts.iter().copied().chain(revision_parts.into_iter().flatten());
    if let Some(bad) = all.into_iter().find(|part| !is_name(part)) {
        return Err(format!(
            "has `{bad}`, expected letters, digits, `-`, `_` and `.`, the first a letter or digit"
        ));
    }
    Ok(Repository {
        owner: (*owner).to_owned(),
        name: (*name).to_owned(),
        folder: folder.join("/"),
        revision: revision.map(str::to_owned),
    })
}

/// A layout's directory and image from the text after `oci:`. A colon counts as that of a reference
/// only if no slash follows.
fn parse_oci(rest: &str) -> Result<Place, String> {
    let (directory, image) = if let Some((directory, digest)) = rest.rsplit_once("@sha256:") {
        (directory, Some(Image::Digest(sha256_digits(digest)?)))
    } else {
        match rest.rsplit_once(':').filter(|(_, reference)| !reference.contains('/')) {
            Some((_, "")) => return Err("names an empty reference".to_owned()),
            Some((directory, name)) => (directory, Some(Image::Reference(name.to_owned()))),
            None => (rest, None),
        }
    };
    match directory {
        "" => Err("expected oci:DIRECTORY[:REFERENCE] or oci:DIRECTORY@sha256:HEX".to_owned()),
        _ => Ok(Place::Oci { directory: PathBuf::from(directory), image }),
    }
}

/// The 64 hexadecimal digits of a SHA-256, in lower case. Any other text is refused, a prefix such
/// as `sha256:` included.
pub(super) fn sha256_digits(text: &str) -> Result<String, String> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err("has a SHA-256 that is not 64 hexadecimal digits".to_owned());
    }
    Ok(text.to_ascii_lowercase())
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.place, f)?;
        match &self.sha256 {
            Some(digest) => write!(f, "#sha256={digest}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({self})")
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Web(url) => f.write_str(&redact(url.as_str())),
            Self::Store(url) => f.write_str(url.as_str()),
            Self::Hub(Repository { owner, name, folder, revision }) => {
                write!(f, "hf://{owner}/{name}")?;
                if !folder.is_empty() {
                    write!(f, "/{folder}")?;
                }
                revision.iter().try_for_each(|revision| write!(f, "@{revision}"))
            }
            Self::Oci { directory, image } => {
                write!(f, "oci:{}", directory.display())?;
                match image {
                    None => Ok(()),
                    Some(Image::Reference(reference)) => write!(f, ":{reference}"),
                    Some(Image::Digest(digest)) => write!(f, "@sha256:{digest}"),
                }
            }
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({self})")
    }
}

/// The text that is shown for one that is no source: of one with an `@`, it is not known which part
/// is a password, so nothing after the scheme is shown.
fn shown_malformed(text: &str) -> String {
    match text.split_once("://").filter(|(scheme, rest)| *scheme != "hf" && rest.contains('@')) {
        Some((scheme, _)) => format!("{scheme}://{HIDDEN}"),
        None => redact(text),
    }
}

/// A text without the secrets of the URLs in it: without what stands before `@` in the host, and
/// after `?` or `#`.
///
/// A URL begins at `://` and ends at a space, a quote, `)` or `>`. Everything else stays as it is.
pub fn redact(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, url) = rest.split_at(at + 3);
        shown.push_str(before);
        let ends = |c: char| c.is_whitespace() || matches!(c, ')' | '"' | '\'' | '`' | '>');
        let (url, after) = url.split_at(url.find(ends).unwrap_or(url.len()));
        let (path, secret) = url.split_at(url.find(['?', '#']).unwrap_or(url.len()));
        let (host, path) = path.split_at(path.find('/').unwrap_or(path.len()));
        match host.rsplit_once('@') {
            Some((_, host)) => shown.extend([HIDDEN, "@", host, path]),
            None => shown.extend([host, path]),
        }
        if let Some(mark) = secret.chars().next() {
            shown.push(mark);
            shown.push_str(HIDDEN);
        }
        rest = after;
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Source {
        text.parse().unwrap()
    }

    const DIGEST: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

    #[test]
    fn every_kind_of_place_is_told_by_its_text_and_displayed_as_it() {
        for text in [
            "adapters/library/iso-date",
            "a:b/c",
            "https://example.org/a/b.tar.gz",
            "http://127.0.0.1:8080/b.gguf",
            "s3://bucket/some/prefix",
            "abfss://container@account.dfs.core.windows.net/key.zip",
            "hf://owner/name",
            "hf://owner/name/some/folder@refs/pr/1",
            "oci:layouts/modules",
            "oci:layouts/modules:v1",
        ] {
            assert_eq!(parsed(text).to_string(), text);
            assert_eq!(format!("{:?}", parsed(text)), format!("Source({text})"));
        }
        for text in ["a.zip", "https://example.org/b.tar.gz", "gs://bucket/key.tgz"] {
            let pinned = format!("{text}#sha256={DIGEST}");
            assert_eq!(parsed(&pinned).to_string(), pinned);
            assert_eq!(parsed(&pinned).sha256.as_deref(), Some(DIGEST));
        }
        let Place::Oci { directory, image } = parsed(&format!("oci:a:b@sha256:{DIGEST}")).place
        else {
            panic!("no layout");
        };
        assert_eq!(directory, PathBuf::from("a:b"));
        assert_eq!(image, Some(Image::Digest(DIGEST.to_owned())));
        assert_eq!(parsed("file:///a%20b").place, Place::Path(PathBuf::from("/a b")));
    }

    #[test]
    fn what_is_no_source_is_refused_with_a_reason() {
        for (text, reason) in [
            ("", "expected 1 to"),
            ("ftp://example.org/a", "scheme `ftp`"),
            ("https://", "is no URL"),
            ("https://example.org/a#b", "fragment"),
            ("file://host/a", "file:///absolute"),
            ("s3:///key", "no bucket"),
            ("s3://bucket/key?versionId=1", "has a query"),
            ("s3://bucket/a%2F..%2Fb", "escaped separator"),
            ("s3://bucket/%2e%2e/b", "escaped separator"),
            ("s3://\\@bucket", "escaped separator"),
            ("hf://owner", "expected hf://"),
            ("hf://owner/name/../x", "has `..`"),
            ("hf://owner/name@a/../b", "has `..`"),
            ("hf://owner/name#sha256=00", "64 hexadecimal"),
            ("oci:", "expected oci:"),
            ("oci:a:", "empty reference"),
            ("oci:a@sha256:00", "64 hexadecimal"),
            ("a.zip#sha256=zz", "64 hexadecimal"),
        ] {
            let message = text.parse::<Source>().unwrap_err().to_string();
            assert!(message.contains(reason), "{text}: {message}");
        }
        let pinned = format!("hf://owner/name#sha256={DIGEST}");
        assert!(pinned.parse::<Source>().unwrap_err().to_string().contains("single files"));
    }

    #[test]
    fn secrets_of_urls_are_never_shown() {
        let secret = "https://user:hunter2@example.org/a.zip?X-Amz-Signature=hunter2";
        let source = parsed(secret);
        for shown in [source.to_string(), format!("{source:?}"), format!("{:?}", source.place)] {
            assert!(!shown.contains("hunter2") && shown.contains("example.org/a.zip"), "{shown}");
        }
        for text in [
            "ftp://user:hunter2@example.org/",
            "https://u:hunter2@example.org/#hunter2",
            "https://u:hunter2/@example.org:port/",
            "s3://u:hunter2@bucket/key",
        ] {
            let error = text.parse::<Source>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
        let text = format!("request for ({secret}) failed: {secret}");
        assert_eq!(
            redact(&text),
            "request for (https://…@example.org/a.zip?…) failed: https://…@example.org/a.zip?…"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_a_source_or_a_reason(text in "(s3://|hf://|oci:|https://|file://)?[ -~é]{0,80}") {
            if let Ok(source) = text.parse::<Source>()
                // What is hidden or was escaped is written another way.
                && !source.to_string().contains(HIDDEN) && !text.contains('%')
            {
                prop_assert_eq!(source.to_string().parse::<Source>().ok(), Some(source));
            }
        }
    }
}
