//! Modules from OCI image layouts on disk.
//!
//! A layout is a folder with `oci-layout`, `index.json` and `blobs/sha256/*`
//! (<https://github.com/opencontainers/image-spec/blob/main/image-layout.md>). Every blob that is
//! read has the size and the SHA-256 that names it, or nothing is fetched. A layer is one file of
//! the module where it has a title, else an archive; what it has by other addresses is not asked
//! for.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::archive::unpack;
use super::error::Reason;
use super::format::shorten;
use super::source::{Image, sha256_digits};
use super::stage::{Stage, check_digest, hex};
use super::{Fetched, Origin, Request};

/// The file that makes a folder a layout and tells its version.
const LAYOUT_FILE: &str = "oci-layout";
/// The file that lists the images.
const INDEX_FILE: &str = "index.json";
/// The media type of an index, which one image for several platforms is.
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// The annotation with an image's reference, such as a tag.
const REFERENCE: &str = "org.opencontainers.image.ref.name";
/// The annotation with the name of the file that a layer is.
const TITLE: &str = "org.opencontainers.image.title";
/// The annotation of a layer with a title that is an archive of that folder, as ORAS writes it.
const IS_FOLDER: &str = "io.deis.oras.content.unpack";
/// Longest index, manifest or layout file.
const MAX_JSON_BYTES: u64 = 1 << 20;

/// Content of `oci-layout`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    /// The version; 1.x is read.
    image_layout_version: String,
}

/// An index of images, in a file or a blob.
#[derive(Deserialize)]
struct Index {
    /// Manifests of images, or further indexes.
    manifests: Vec<Descriptor>,
}

/// The manifest of an image. Its configuration is not read.
#[derive(Deserialize)]
struct Manifest {
    /// The layers, in order.
    layers: Vec<Descriptor>,
}

/// The name of a blob, with its size.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    /// The type of the blob; it only tells an index from a manifest here.
    #[serde(default)]
    media_type: String,
    /// The digest, `sha256:HEX`, which is also the path of the blob.
    digest: String,
    /// Bytes of the blob.
    size: u64,
    /// Annotations, by name.
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// The SHA-256 of the blob, 64 lower-case hexadecimal digits; other digests, and digits in
    /// upper case, are refused.
    fn sha256(&self) -> Result<String, Reason> {
        let digits = self.digest.strip_prefix("sha256:").and_then(|hex| sha256_digits(hex).ok());
        digits.filter(|digits| self.digest.ends_with(digits.as_str())).ok_or_else(|| {
            let found = shorten(&self.digest);
            Reason::unusable(format!("a descriptor has the digest `{found}`, expected sha256:HEX"))
        })
    }

    /// An annotation by its name.
    fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str)
    }
}

/// A module from an image of a layout, which must lie in an allowed directory. Without `image` the
/// layout must have one image only.
pub(super) fn fetch(
    directory: &Path,
    image: Option<&Image>,
    request: &Request<'_>,
) -> Result<Fetched, Reason> {
    let blobs = Blobs { layout: request.policy.locate(directory)? };
    let layout: Layout = blobs.json(LAYOUT_FILE)?;
    if !layout.image_layout_version.starts_with("1.") {
        let found = shorten(&layout.image_layout_version);
        return Err(Reason::unusable(format!("the layout has version `{found}`, expected 1.x")));
    }
    let index: Index = blobs.json(INDEX_FILE)?;
    let mut chosen = choose(&index.manifests, image)?;
    if chosen.media_type == INDEX_TYPE {
        // One image for several platforms; a module has none.
        let index: Index = blobs.json_blob(&chosen)?;
        chosen = choose(&index.manifests, None)?;
    }
    let manifest: Manifest = blobs.json_blob(&chosen)?;
    if manifest.layers.len() > request.limits.max_entries {
        let most = request.limits.max_entries as u64;
        let what = "layers of the image".to_owned();
        return Err(Reason::TooLarge { what, most, limit: "max_entries" });
    }
    let mut stage = request.stage()?;
    for layer in &manifest.layers {
        blobs.layer(layer, &mut stage)?;
    }
    stage.finish(Origin { digest: Some(chosen.digest), ..Origin::default() })
}

/// The one manifest that fits; all fit where no image is asked for.
fn choose(manifests: &[Descriptor], image: Option<&Image>) -> Result<Descriptor, Reason> {
    let wanted = |manifest: &&Descriptor| match image {
        None => true,
        Some(Image::Reference(name)) => manifest.annotation(REFERENCE) == Some(name),
        Some(Image::Digest(digits)) => manifest.digest == format!("sha256:{digits}"),
    };
    let found: Vec<&Descriptor> = manifests.iter().filter(wanted).collect();
    match (found.as_slice(), image) {
        ([one], _) => Ok((*one).clone()),
        // The same image may be listed under several names.
        ([first, ..], Some(Image::Digest(_))) => Ok((*first).clone()),
        ([], Some(Image::Reference(name))) => {
            Err(Reason::NotFound(format!("no image has the reference `{name}`")))
        }
        ([], _) => Err(Reason::NotFound("the index has no such image".to_owned())),
        (several, _) => Err(Reason::unusable(format!(
            "{} images fit, name one of them: oci:DIRECTORY:REFERENCE or oci:DIRECTORY@sha256:HEX",
            several.len()
        ))),
    }
}

/// The files of a layout.
struct Blobs {
    /// The layout's directory, after links are resolved.
    layout: PathBuf,
}

impl Blobs {
    /// A file inside the layout with its length, after links of folders are resolved; the file
    /// itself is none.
    fn open(&self, path: &Path) -> Result<(std::fs::File, u64), Reason> {
        let folder = path.parent().unwrap_or(path);
        let resolved = folder.canonicalize().map_err(Reason::io(path))?;
        if !resolved.starts_with(&self.layout) {
            let problem = format!("`{}` leads out of the layout", path.display());
            return Err(Reason::unusable(problem));
        }
        let (file, metadata) = super::local::open_plain(path)?;
        Ok((file, metadata.len()))
    }

    /// A blob of the size that its descriptor says. Its digest is not checked yet.
    fn blob(&self, descriptor: &Descriptor) -> Result<std::fs::File, Reason> {
        let path = self.layout.join("blobs/sha256").join(descriptor.sha256()?);
        let (file, found) = self.open(&path)?;
        match found == descriptor.size {
            true => Ok(file),
            false => Err(Reason::unusable(format!(
                "the blob {} has {found} bytes, expected {}",
                descriptor.digest, descriptor.size
            ))),
        }
    }

    /// A file of the layout, by its name.
    fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T, Reason> {
        let (file, _) = self.open(&self.layout.join(name))?;
        parse(&read_json(file, name)?, name)
    }

    /// A blob, with its size and digest checked.
    fn json_blob<T: DeserializeOwned>(&self, descriptor: &Descriptor) -> Result<T, Reason> {
        let what = format!("the blob {}", descriptor.digest);
        let bytes = read_json(self.blob(descriptor)?, &what)?;
        let digest = hex(&<sha2::Sha256 as sha2::Digest>::digest(&bytes));
        check_digest(&what, &digest, Some(&descriptor.sha256()?))?;
        parse(&bytes, &what)
    }

    /// Puts the file of a layer in place, or the files of the archive that it is. The digest is
    /// checked before an archive is read, and of a file when it is written.
    fn layer(&self, layer: &Descriptor, stage: &mut Stage) -> Result<(), Reason> {
        let expected = layer.sha256()?;
        let what = format!("the blob {}", layer.digest);
        let is_folder = layer.annotation(IS_FOLDER) == Some("true");
        if let Some(title) = layer.annotation(TITLE).filter(|_| !is_folder) {
            let Some(part) = stage.reserve(title)? else { return Ok(()) };
            let digest = stage.copy(part, &mut self.blob(layer)?, layer.size)?;
            return check_digest(&what, &digest, Some(&expected));
        }
        let mut archive = stage.scratch(&layer.digest)?;
        let clock = stage.clock.clone();
        archive.fill(&mut self.blob(layer)?, layer.size, &clock)?;
        let (file, digest) = archive.into_archive()?;
        check_digest(&what, &digest, Some(&expected))?;
        unpack(file, &layer.digest, stage)
    }
}

/// The bytes of a file, up to [`MAX_JSON_BYTES`]. `what` names it in messages.
fn read_json(file: std::fs::File, what: &str) -> Result<Vec<u8>, Reason> {
    let mut bytes = Vec::new();
    let read = file.take(MAX_JSON_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| Reason::unusable(format!("{what}: {error}")))?;
    match bytes.len() as u64 <= MAX_JSON_BYTES {
        true => Ok(bytes),
        false => Err(Reason::unusable(format!("{what} has more than {MAX_JSON_BYTES} bytes"))),
    }
}

/// The value of a text of JSON; unknown fields are passed over.
fn parse<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, Reason> {
    serde_json::from_slice(bytes)
        .map_err(|error| Reason::unusable(format!("{what} is not as expected: {error}")))
}

#[cfg(test)]
mod tests;
