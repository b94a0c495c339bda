//! From a path to a module, whatever format it is in.

use std::path::Path;
use std::sync::Arc;

use polyskill_model::Decoder;

use crate::artefact;
pub use crate::base::Base;
pub(crate) use crate::base::Content;
use crate::error::Error;
use crate::files::Files;
use crate::generation::Generation;
use crate::module::Module;
use crate::peft::bundle;
use crate::{gguf, mlx, native, peft};

/// True for a path that looks like a module: a directory with a known configuration, or a GGUF
/// file. Nothing is read.
pub fn is_module(path: &Path) -> bool {
    peft::is_module_directory(path)
        || path.join(native::CONFIG_FILE).is_file()
        || gguf::is_module_file(path)
}

/// Reads a module for a base model; its weights stay in memory. `root` is the directory that no
/// file of the module may lie outside. `name` stands in messages alone.
///
/// # Errors
/// If a file cannot be read, or with every reason why the module's result could not be reproduced.
pub fn load_module<'a>(
    name: &str,
    path: &Path,
    root: &Path,
    base: impl Into<Base<'a>>,
) -> Result<Module, Error> {
    let base = base.into();
    let content = read(name, path, root, base)?;
    module(name, path, root, content, base, None)
}

/// Reads a module whose weights may leave memory: they are then read from the same path again, and
/// refused if the content has changed. `keep` is held for as long as the module is known, and
/// dropped with it: a guard of files that must stay, such as a folder that is deleted when nothing
/// uses it.
///
/// # Errors
/// As [`load_module`].
pub fn open_module(
    name: &str,
    path: &Path,
    root: &Path,
    model: &Arc<Decoder>,
    keep: impl Send + Sync + 'static,
) -> Result<Module, Error> {
    let base = Base::from(model.as_ref());
    let content = read(name, path, root, base)?;
    let generation = content.generation;
    let (model, place) = (Arc::clone(model), (name.to_owned(), path.to_owned(), root.to_owned()));
    let reload = Box::new(move || {
        let _kept = &keep;
        let (name, path, root) = &place;
        let again = read(name, path, root, Base::from(model.as_ref()))?;
        if again.generation != generation {
            return Err(Error::GenerationMismatch {
                name: name.clone(),
                found: again.generation.to_string(),
                expected: generation.to_string(),
            });
        }
        Ok(again.weights)
    });
    module(name, path, root, content, base, Some(reload))
}

/// The module of a content, with the card and the artefacts beside it. A GGUF file stands alone and
/// has neither. Without `reload` the weights stay in memory.
fn module(
    name: &str,
    path: &Path,
    root: &Path,
    content: Content,
    base: Base<'_>,
    reload: Option<crate::residency::Reload>,
) -> Result<Module, Error> {
    let Content { generation, kind, weights } = content;
    if path.is_file() {
        let (card, artefacts) = Default::default();
        return Ok(Module::new(generation, kind, weights, reload, card, artefacts));
    }
    let files = Files { name, directory: path, root };
    let card = bundle::card(files)?;
    let artefacts = artefact::load(files, generation, base)?;
    Ok(Module::new(generation, kind, weights, reload, card, artefacts))
}

/// The generation of a module, without a base: its tensors are hashed and not checked against
/// anything.
///
/// # Errors
/// If its files cannot be read, or its configuration is none.
pub fn generation_of(path: &Path) -> Result<Generation, Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if gguf::is_module_file(path) {
        let directory = path.parent().unwrap_or(path);
        return gguf::generation_of(Files { name: &name, directory, root: directory }, &name);
    }
    let files = Files { name: &name, directory: path, root: path };
    match files.has(native::CONFIG_FILE) {
        true => native::generation_of(files),
        false if mlx::is_mlx(files) => mlx::generation_of(files),
        false => peft::generation_of(files),
    }
}

/// Reads a path by the format that is found there: a GGUF file, then our own configuration, then
/// MLX's, else PEFT's.
fn read(name: &str, path: &Path, root: &Path, base: Base<'_>) -> Result<Content, Error> {
    // A file that has gone is missed under its own name.
    let was_file = !path.exists() && path.extension().is_some_and(|ending| ending == "gguf");
    if gguf::is_module_file(path) || was_file {
        let parent = path.parent().unwrap_or(root);
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        return gguf::read(Files { name, directory: parent, root }, &file, base);
    }
    let files = Files { name, directory: path, root };
    match files.has(native::CONFIG_FILE) {
        true => native::read(files, base),
        false if mlx::is_mlx(files) => mlx::read(files, base),
        false => peft::read(files, base),
    }
}
