//! Modules as transforms read them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use polyskill_adapters::Error;
use polyskill_adapters::files::{Files, Problems};
use polyskill_adapters::library::check_name;
use polyskill_adapters::peft::CONFIG_FILE;
use polyskill_adapters::peft::bundle::read_config;
use polyskill_adapters::peft::raw::{Content, RawSite};

/// Settings that make a module more than B·A, which weight-space methods cannot express. Each may
/// be there with an empty value.
const BEYOND_LORA: [&str; 6] = [
    "use_dora",
    "bias",
    "lora_bias",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
];

/// A LoRA as it lies on disk, read whole.
pub(crate) struct Source {
    /// The name of its directory, after links are resolved.
    pub(crate) name: String,
    /// Its files, with generation and card.
    pub(crate) content: Content,
    /// Its configuration, for the settings that a new module takes over.
    pub(crate) settings: Map<String, Json>,
    /// A, B and scale, by the path of the linear; there is at least one.
    pub(crate) sites: BTreeMap<String, RawSite>,
}

impl Source {
    /// Reads a LoRA. Modules that act at no site, and those that are more than A and B, are
    /// refused.
    pub(crate) fn read(directory: &Path) -> Result<Self, Error> {
        let io = |source| Error::io(&leaf(directory), directory, source);
        // The name of `.` or `..` is that of the directory it leads to.
        let directory = directory.canonicalize().map_err(io)?;
        let name = leaf(&directory);
        let files = Files { name: &name, directory: &directory, root: &directory };
        let settings = settings(files)?;
        let content = Content::read(files)?;
        let sites = content.sites().map_err(|problems| Error::refused(&name, problems))?;
        if sites.is_empty() {
            return Err(Error::refused(&name, vec!["acts at no site".to_owned()]));
        }
        Ok(Self { name, content, settings, sites })
    }

    /// Reads what can be read, in order, and adds the rest to the problems: the result is shorter
    /// than `directories` where there were any.
    pub(crate) fn read_all(directories: &[PathBuf], problems: &mut Problems) -> Vec<Self> {
        let read = directories.iter().map(|directory| Self::read(directory));
        read.filter_map(|source| source.map_err(|error| problems.add(error.to_string())).ok())
            .collect()
    }
}

/// The configuration of a LoRA that is nothing but B·A; every setting that makes it more is named
/// in the error.
fn settings(files: Files<'_>) -> Result<Map<String, Json>, Error> {
    let config = read_config(files, CONFIG_FILE)?;
    let refused = |problems| Error::refused(files.name, problems);
    let settings: Map<String, Json> = serde_json::from_slice(&config)
        .map_err(|error| refused(vec![format!("{CONFIG_FILE} is no object: {error}")]))?;
    let problems: Vec<String> = BEYOND_LORA
        .into_iter()
        .filter_map(|key| Some((key, settings.get(key)?)))
        .filter(|(key, value)| !is_empty(value) && (*key != "bias" || *value != "none"))
        .map(|(key, value)| {
            let shown: String = value.to_string().chars().take(60).collect();
            format!("`{key}` is {shown}, which cannot be expressed in weights A and B")
        })
        .collect();
    if problems.is_empty() { Ok(settings) } else { Err(refused(problems)) }
}

/// True for values that switch a setting off: null, false, an empty list or an empty object.
fn is_empty(value: &Json) -> bool {
    match value {
        Json::Null | Json::Bool(false) => true,
        Json::Array(values) => values.is_empty(),
        Json::Object(values) => values.is_empty(),
        _ => false,
    }
}

/// The last component of a path; empty for paths that end in `..` or are a root.
pub(crate) fn leaf(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The name of a module that is to be made at `path`, where nothing may be. Adds a name that no
/// module can have, and anything that is there.
pub(crate) fn new_name(path: &Path, problems: &mut Problems) -> String {
    let name = leaf(path);
    if let Err(error) = check_name(&name) {
        problems.add(error.to_string());
    }
    if path.symlink_metadata().is_ok() {
        problems.add(format!("{} exists", path.display()));
    }
    name
}
