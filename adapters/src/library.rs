//! The hot-swappable library: names that point to immutable generations.
//!
//! Readers take a [`Snapshot`] and keep it for as long as they need; holding a module's `Arc` is the lease
//! that keeps its bytes. Writers publish a new snapshot; a failed change publishes nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use dashmap::DashMap;

use crate::error::Error;
use crate::generation::Generation;
use crate::lora::Lora;

const MAX_NAME_BYTES: usize = 128;

/// One immutable module.
#[derive(Debug)]
pub struct Module {
    generation: Generation,
    lora: Lora,
    tags: Vec<String>,
}

impl Module {
    /// A LoRA module.
    pub fn lora(generation: Generation, lora: Lora, tags: Vec<String>) -> Self {
        Self { generation, lora, tags }
    }

    /// Identity.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// What kind of module this is, as in reports.
    pub fn kind(&self) -> &'static str {
        "lora"
    }

    /// The weights.
    pub fn weights(&self) -> &Lora {
        &self.lora
    }

    /// Tags of the module card.
    pub fn tags(&self) -> &[String] {
        &self.tags
    }

    /// Bytes of weights.
    pub fn num_bytes(&self) -> usize {
        self.lora.num_bytes()
    }
}

/// The library at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    version: u64,
    modules: BTreeMap<String, Arc<Module>>,
}

impl Snapshot {
    /// Grows by one with every change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The module under a name.
    pub fn get(&self, name: &str) -> Option<&Arc<Module>> {
        self.modules.get(name)
    }

    /// All names and modules, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<Module>)> {
        self.modules.iter().map(|(name, module)| (name.as_str(), module))
    }

    /// Number of names.
    pub fn len(&self) -> usize {
        self.modules.len()
    }

    /// Whether no module is loaded.
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }
}

/// What may stand under a name before a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Nothing.
    Absent,
    /// Anything or nothing.
    Any,
    /// Exactly this generation.
    Generation(Generation),
}

/// The library.
#[derive(Debug, Default)]
pub struct Library {
    current: RwLock<Arc<Snapshot>>,
    /// Serialises writers, so that compare-and-swap compares with what it replaces.
    writer: Mutex<()>,
    /// Every generation that is loaded or still leased, so that equal content is held once.
    generations: DashMap<Generation, Weak<Module>>,
}

impl Library {
    /// The current snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Publishes a module under a name.
    ///
    /// # Errors
    /// If the name is not acceptable or what stands under it is not `expected`.
    pub fn publish(
        &self,
        name: &str,
        module: Module,
        expected: Expected,
    ) -> Result<Arc<Module>, Error> {
        check_name(name)?;
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = self.snapshot();
        check_expected(name, snapshot.get(name), expected)?;
        let module = self.share(module);
        let mut modules = snapshot.modules.clone();
        modules.insert(name.to_owned(), Arc::clone(&module));
        self.swap(snapshot.version, modules);
        Ok(module)
    }

    /// Takes a name out; leases keep the module until they end.
    ///
    /// # Errors
    /// If nothing stands under the name, or not what was expected.
    pub fn remove(&self, name: &str, expected: Expected) -> Result<Arc<Module>, Error> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = self.snapshot();
        if snapshot.get(name).is_none() {
            return Err(Error::NotFound { name: name.to_owned() });
        }
        if let Expected::Generation(_) = expected {
            check_expected(name, snapshot.get(name), expected)?;
        }
        let mut modules = snapshot.modules.clone();
        let removed = modules.remove(name);
        self.swap(snapshot.version, modules);
        removed.ok_or_else(|| Error::NotFound { name: name.to_owned() })
    }

    /// Bytes of all modules that are loaded or still leased.
    pub fn resident_bytes(&self) -> usize {
        self.generations.retain(|_, module| module.strong_count() > 0);
        let held = self.generations.iter().filter_map(|entry| entry.value().upgrade());
        held.map(|module| module.num_bytes()).sum()
    }

    fn share(&self, module: Module) -> Arc<Module> {
        let generation = module.generation;
        let mut entry = self.generations.entry(generation).or_default();
        if let Some(shared) = entry.upgrade() {
            return shared;
        }
        let module = Arc::new(module);
        *entry = Arc::downgrade(&module);
        module
    }

    fn swap(&self, version: u64, modules: BTreeMap<String, Arc<Module>>) {
        let snapshot = Arc::new(Snapshot { version: version + 1, modules });
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }
}

fn check_expected(
    name: &str,
    found: Option<&Arc<Module>>,
    expected: Expected,
) -> Result<(), Error> {
    match (expected, found) {
        (Expected::Any, _) | (Expected::Absent, None) => Ok(()),
        (Expected::Absent, Some(_)) => Err(Error::AlreadyLoaded { name: name.to_owned() }),
        (Expected::Generation(expected), Some(found)) if found.generation == expected => Ok(()),
        (Expected::Generation(expected), found) => Err(Error::GenerationMismatch {
            name: name.to_owned(),
            found: found.map_or("none".to_owned(), |module| module.generation.to_string()),
            expected: expected.to_string(),
        }),
    }
}

/// Names travel in URLs, metrics labels and paths, so they are plain.
fn check_name(name: &str) -> Result<(), Error> {
    let bad = |reason| Err(Error::BadName { name: name.chars().take(64).collect(), reason });
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return bad("must have 1 to 128 characters");
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.chars().all(plain) || name.starts_with('.') {
        return bad("may hold letters, digits, `-`, `_` and `.`, and must not begin with a dot");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(content: u8) -> Module {
        Module::lora(Generation::of(&[&[content]]), Lora::new(0), Vec::new())
    }

    #[test]
    fn replacing_is_compare_and_swap_and_leases_survive() {
        let library = Library::default();
        let first = library.publish("a", module(1), Expected::Absent).unwrap();
        assert!(matches!(
            library.publish("a", module(2), Expected::Absent),
            Err(Error::AlreadyLoaded { .. })
        ));
        let stale = Generation::of(&[b"stale"]);
        let mismatch = library.publish("a", module(2), Expected::Generation(stale)).unwrap_err();
        assert!(matches!(mismatch, Error::GenerationMismatch { .. }));
        let before = library.snapshot();
        library.publish("a", module(2), Expected::Generation(first.generation())).unwrap();
        assert_eq!(before.get("a").unwrap().generation(), first.generation());
        assert_ne!(library.snapshot().get("a").unwrap().generation(), first.generation());
        library.remove("a", Expected::Any).unwrap();
        assert!(matches!(library.remove("a", Expected::Any), Err(Error::NotFound { .. })));
        assert!(library.snapshot().is_empty());
    }

    #[test]
    fn equal_content_is_held_once() {
        let library = Library::default();
        let a = library.publish("a", module(1), Expected::Absent).unwrap();
        let b = library.publish("b", module(1), Expected::Absent).unwrap();
        assert!(Arc::ptr_eq(&a, &b));
    }

    #[test]
    fn names_are_plain() {
        let library = Library::default();
        for name in ["", "a,b", "a/b", "..", "a b", ".hidden", "ä"] {
            let refused = library.publish(name, module(1), Expected::Any);
            assert!(matches!(refused, Err(Error::BadName { .. })), "{name}");
        }
    }
}
