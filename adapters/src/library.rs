//! The hot-swappable library: names that point to immutable generations.
//!
//! Readers take a [`Snapshot`] and keep it for as long as they need; holding a module's `Arc` is the lease
//! that keeps its bytes. Writers publish a new snapshot; a failed change publishes nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use dashmap::DashMap;
use polyskill_model::Site;

use crate::artefact::{Artefact, Artefacts};
use crate::card::Card;
use crate::error::Error;
use crate::generation::Generation;
use crate::lora::Lora;

const MAX_NAME_BYTES: usize = 128;

/// One immutable module.
#[derive(Debug)]
pub struct Module {
    generation: Generation,
    edition: Generation,
    lora: Arc<Lora>,
    card: Card,
    artefacts: Artefacts,
}

impl Module {
    /// A LoRA module with tags and nothing else beside its weights.
    pub fn lora(generation: Generation, lora: Lora, tags: Vec<String>) -> Self {
        Self::new(generation, lora, Card { tags, metadata: Vec::new() }, Artefacts::default())
    }

    pub(crate) fn new(
        generation: Generation,
        lora: Lora,
        card: Card,
        artefacts: Artefacts,
    ) -> Self {
        let edition = edition(generation, &card, &artefacts);
        Self { generation, edition, lora: Arc::new(lora), card, artefacts }
    }

    /// Identity: what the module computes.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Identity of all that a router can see: generation, card and artefacts.
    ///
    /// What a router has derived from a module is valid for one edition.
    pub fn edition(&self) -> Generation {
        self.edition
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
        &self.card.tags
    }

    /// What else the module card says, in its order; a list gives one entry per item.
    pub fn metadata(&self) -> &[(String, String)] {
        &self.card.metadata
    }

    /// The module card's `description`.
    pub fn description(&self) -> Option<&str> {
        let mut entries = self.metadata().iter();
        entries.find(|(key, _)| key == "description").map(|(_, value)| value.as_str())
    }

    /// The router artefacts that came with the module, by name.
    pub fn artefacts(&self) -> &[Artefact] {
        &self.artefacts.valid
    }

    /// Shape and values of an artefact at a site.
    pub fn artefact(&self, name: &str, site: Site) -> Option<(&[u32], Vec<f32>)> {
        self.artefacts().iter().find(|artefact| artefact.name() == name)?.at(site)
    }

    /// Artefacts that are not offered because they were made with another base, and why.
    pub fn left_out(&self) -> &[String] {
        &self.artefacts.left_out
    }

    /// Bytes of weights.
    pub fn num_bytes(&self) -> usize {
        self.lora.num_bytes()
    }
}

fn edition(generation: Generation, card: &Card, artefacts: &Artefacts) -> Generation {
    let mut parts = vec![generation.0.to_vec()];
    for artefact in &artefacts.valid {
        parts.extend([artefact.name().as_bytes().to_vec(), artefact.digest().to_vec()]);
    }
    let entries = card.metadata.iter().map(|(key, value)| (key.as_str(), value));
    let tags = card.tags.iter().map(|tag| ("tags", tag));
    for (key, value) in tags.chain(entries) {
        parts.extend([key.as_bytes().to_vec(), value.as_bytes().to_vec()]);
    }
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    Generation::of(&parts)
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
    /// The editions of every generation that are loaded or still leased, so that equal content is held once.
    generations: DashMap<Generation, Vec<Weak<Module>>>,
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
        self.generations.retain(|_, editions| {
            editions.retain(|module| module.strong_count() > 0);
            !editions.is_empty()
        });
        let bytes = |editions: &Vec<Weak<Module>>| {
            let held: Vec<Arc<Module>> = editions.iter().filter_map(Weak::upgrade).collect();
            let weights = held.first().map_or(0, |module| module.num_bytes());
            let artefacts = held.iter().flat_map(|module| module.artefacts());
            weights + artefacts.map(Artefact::num_bytes).sum::<usize>()
        };
        self.generations.iter().map(|entry| bytes(entry.value())).sum()
    }

    /// The same edition that is already held, or the module with the weights that are already held.
    fn share(&self, mut module: Module) -> Arc<Module> {
        let mut editions = self.generations.entry(module.generation).or_default();
        editions.retain(|held| held.strong_count() > 0);
        let held: Vec<Arc<Module>> = editions.iter().filter_map(Weak::upgrade).collect();
        if let Some(same) = held.iter().find(|held| held.edition == module.edition) {
            return Arc::clone(same);
        }
        if let Some(twin) = held.first() {
            module.lora = Arc::clone(&twin.lora);
        }
        let module = Arc::new(module);
        editions.push(Arc::downgrade(&module));
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
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
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
    fn editions_of_a_generation_share_the_weights() {
        let library = Library::default();
        let tagged = |tag: &str| {
            Module::lora(Generation::of(&[b"same"]), Lora::new(0), vec![tag.to_owned()])
        };
        let a = library.publish("a", tagged("old"), Expected::Absent).unwrap();
        let b = library.publish("a", tagged("new"), Expected::Any).unwrap();
        assert_eq!((a.generation(), b.tags()), (b.generation(), ["new".to_owned()].as_slice()));
        assert_ne!(a.edition(), b.edition());
        assert!(Arc::ptr_eq(&a.lora, &b.lora));
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
