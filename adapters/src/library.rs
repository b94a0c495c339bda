//! The hot-swappable library: names that point to immutable generations.
//!
//! Readers take a [`Snapshot`] and keep it for as long as they need; holding a module's `Arc` is
//! the lease that keeps its bytes. Writers publish a new snapshot; a failed change publishes
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use dashmap::DashMap;

use crate::artefact::Artefact;
use crate::budget::Budget;
use crate::error::Error;
use crate::generation::Generation;
pub use crate::kind::Kind;
pub use crate::module::Module;
use crate::residency::{Lease, Pool, PoolStats, Purpose, Stored};

/// Longest name of a module or an alias.
const MAX_NAME_BYTES: usize = 128;

/// The library at one moment. It never changes: whoever holds one sees the same names and
/// generations until it asks for the next.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The number of changes before it.
    version: u64,
    /// Modules by their own names.
    modules: BTreeMap<String, Arc<Module>>,
    /// Other names, and the own name that each stands for; an alias never stands for an alias.
    aliases: BTreeMap<String, String>,
}

impl Snapshot {
    /// The number of changes so far; it grows by one with every change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The module under a name or an alias.
    pub fn get(&self, name: &str) -> Option<&Arc<Module>> {
        self.resolve(name).map(|(_, module)| module)
    }

    /// The module under a name or an alias, with its own name. Own names and aliases never overlap.
    pub fn resolve(&self, name: &str) -> Option<(&str, &Arc<Module>)> {
        let own = self.aliases.get(name).map_or(name, String::as_str);
        self.modules.get_key_value(own).map(|(name, module)| (name.as_str(), module))
    }

    /// Aliases and the names that they stand for, by alias. The names are always those of modules
    /// that are loaded.
    pub fn aliases(&self) -> impl Iterator<Item = (&str, &str)> {
        self.aliases.iter().map(|(alias, name)| (alias.as_str(), name.as_str()))
    }

    /// All names and modules, by name; aliases are not among them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<Module>)> {
        self.modules.iter().map(|(name, module)| (name.as_str(), module))
    }

    /// Number of modules' own names; aliases are not counted.
    pub fn len(&self) -> usize {
        self.modules.len()
    }

    /// True where no module is loaded.
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }
}

/// The state of a name that a change requires, as in compare-and-swap. A change that finds another
/// state publishes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Nothing.
    Absent,
    /// Anything or nothing.
    Any,
    /// Exactly this generation.
    Generation(Generation),
}

/// The library: one current snapshot, and the pool that holds weights. Readers never wait for
/// writers' work: the lock around the snapshot is held for a swap of pointers alone.
#[derive(Debug, Default)]
pub struct Library {
    /// The snapshot that new readers get.
    current: RwLock<Arc<Snapshot>>,
    /// Serialises writers, so that compare-and-swap compares with what it replaces.
    writer: Mutex<()>,
    /// The editions of every generation that are loaded or still leased, so that equal content is
    /// held once.
    generations: DashMap<Generation, Vec<Weak<Module>>>,
    /// The memory of all modules' weights.
    pool: Arc<Pool>,
}

impl Library {
    /// Sets how much memory weights may take; what is too much leaves at once or when its leases
    /// end.
    pub fn set_budget(&self, budget: Budget) {
        self.pool.set_budget(budget);
    }

    /// The memory that weights may take, and the bounds on waiting for it.
    pub fn budget(&self) -> Budget {
        self.pool.budget()
    }

    /// Totals of the weights in memory, leases and evictions.
    pub fn pool_stats(&self) -> PoolStats {
        self.pool.stats()
    }

    /// The weights of modules, all or none, for as long as the leases are held. Waits for room, and
    /// reads what is not in memory: never call it on a thread that others wait for. A module that
    /// is named twice is leased twice and counted in memory once.
    ///
    /// # Errors
    /// If the modules do not fit the budget, room was not found in time, or weights cannot be read
    /// again.
    pub fn lease<'a>(
        &self,
        modules: impl IntoIterator<Item = &'a Arc<Module>>,
    ) -> Result<Vec<Lease>, Error> {
        let stored: Vec<Arc<Stored>> =
            modules.into_iter().map(|module| Arc::clone(&module.stored)).collect();
        self.pool.lease(&stored, Purpose::Serve)
    }

    /// A module's weights for a look at them, which does not count as use: neither hits nor the
    /// order of eviction change where they are in memory already.
    ///
    /// # Errors
    /// Those of [`Library::lease`].
    pub fn look_at(&self, module: &Module) -> Result<Lease, Error> {
        let mut leases = self.pool.lease(&[Arc::clone(&module.stored)], Purpose::Look)?;
        leases.pop().ok_or(Error::Gone)
    }

    /// Checks that there will be room for a module once it has its name and perhaps a pin: beside
    /// all that is pinned or cannot be read again, every module must fit the budget, or it could
    /// never serve. Nothing is reserved.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if it does not, or another module would not any more.
    pub fn check_room(&self, name: &str, module: &Module, pinned: bool) -> Result<(), Error> {
        let held = self.generations.get(&module.generation());
        let twin = held.and_then(|editions| editions.iter().find_map(Weak::upgrade));
        let stored = twin.as_ref().map_or(&module.stored, |twin| &twin.stored);
        let snapshot = self.snapshot();
        // What the name stands for now goes, unless another name keeps it.
        let replaced = snapshot.modules.get(name).filter(|replaced| {
            let mut others = snapshot.modules.iter().filter(|(other, _)| *other != name);
            others.all(|(_, other)| other.generation() != replaced.generation())
        });
        self.pool.check_room(stored, pinned, replaced.map(|replaced| &*replaced.stored))
    }

    /// Keeps a module's weights in memory once they are there, or lets them go again. It reads
    /// nothing by itself, and taking a pin away evicts nothing at once.
    pub fn pin(&self, module: &Module, pinned: bool) {
        self.pool.pin(&module.stored, pinned);
    }

    /// The current snapshot, for as long as the caller keeps it.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Publishes a module under a name. A module of the same content that is held already is
    /// returned in the place of this one, so equal weights lie in memory once. Leases of the module
    /// that stood there before keep it until they end.
    ///
    /// # Errors
    /// If the name is not acceptable or what stands under it is not `expected`.
    pub fn publish(
        &self,
        name: &str,
        module: Module,
        expected: Expected,
    ) -> Result<Arc<Module>, Error> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = self.snapshot();
        check_publish(&snapshot, name, expected)?;
        let module = self.share(module);
        let mut next = Snapshot::clone(&snapshot);
        next.modules.insert(name.to_owned(), Arc::clone(&module));
        self.swap(next);
        Ok(module)
    }

    /// The answer that [`Library::publish`] would give to a name now; nothing is changed.
    ///
    /// # Errors
    /// If the name is not acceptable or what stands under it is not `expected`.
    pub fn check(&self, name: &str, expected: Expected) -> Result<(), Error> {
        check_publish(&self.snapshot(), name, expected)
    }

    /// Lets another name stand for a module, whatever generation it is at. An alias of the same
    /// name is replaced.
    ///
    /// # Errors
    /// If the name is not acceptable or is a module's, or there is no such module.
    pub fn alias(&self, alias: &str, name: &str) -> Result<(), Error> {
        check_name(alias)?;
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = self.snapshot();
        if snapshot.modules.contains_key(alias) {
            return Err(Error::AlreadyLoaded { name: alias.to_owned() });
        }
        if !snapshot.modules.contains_key(name) {
            return Err(Error::NotFound { name: name.to_owned() });
        }
        let mut next = Snapshot::clone(&snapshot);
        next.aliases.insert(alias.to_owned(), name.to_owned());
        self.swap(next);
        Ok(())
    }

    /// Takes an alias away.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn remove_alias(&self, alias: &str) -> Result<(), Error> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Snapshot::clone(&self.snapshot());
        if next.aliases.remove(alias).is_none() {
            return Err(Error::NotFound { name: alias.to_owned() });
        }
        self.swap(next);
        Ok(())
    }

    /// Generations that a name stands for, or that a lease still holds.
    pub fn live_generations(&self) -> BTreeSet<Generation> {
        let live = |editions: &Vec<Weak<Module>>| editions.iter().any(|one| one.strong_count() > 0);
        let entries = self.generations.iter().filter(|entry| live(entry.value()));
        entries.map(|entry| *entry.key()).collect()
    }

    /// Takes a name out, and the aliases for it; leases keep the module until they end.
    /// [`Expected::Absent`] and [`Expected::Any`] both take whatever stands there.
    ///
    /// # Errors
    /// If nothing stands under the name, or not what was expected.
    pub fn remove(&self, name: &str, expected: Expected) -> Result<Arc<Module>, Error> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Snapshot::clone(&self.snapshot());
        let not_found = || Error::NotFound { name: name.to_owned() };
        let removed = next.modules.remove(name).ok_or_else(not_found)?;
        if let Expected::Generation(_) = expected {
            check_expected(name, Some(&removed), expected)?;
        }
        next.aliases.retain(|_, target| target != name);
        self.swap(next);
        Ok(removed)
    }

    /// Bytes of modules and artefacts in memory, also of modules that are only leased any more.
    /// Artefacts of every edition count; weights of one generation count once.
    pub fn resident_bytes(&self) -> usize {
        self.generations.retain(|_, editions| {
            editions.retain(|module| module.strong_count() > 0);
            !editions.is_empty()
        });
        let bytes = |editions: &Vec<Weak<Module>>| {
            let held: Vec<Arc<Module>> = editions.iter().filter_map(Weak::upgrade).collect();
            let artefacts = held.iter().flat_map(|module| module.artefacts());
            artefacts.map(Artefact::num_bytes).sum::<usize>()
        };
        let artefacts: usize = self.generations.iter().map(|entry| bytes(entry.value())).sum();
        artefacts + self.pool.stats().resident_bytes
    }

    /// The same edition that is already held, or the module with the weights that are already held.
    /// Twins of other editions share one [`Stored`] and one [`Shape`](crate::weights::Shape); the
    /// first of a generation is handed to the pool.
    fn share(&self, mut module: Module) -> Arc<Module> {
        let mut editions = self.generations.entry(module.generation()).or_default();
        editions.retain(|held| held.strong_count() > 0);
        let held: Vec<Arc<Module>> = editions.iter().filter_map(Weak::upgrade).collect();
        if let Some(same) = held.iter().find(|held| held.edition() == module.edition()) {
            return Arc::clone(same);
        }
        match held.first() {
            Some(twin) => {
                module.stored = Arc::clone(&twin.stored);
                module.shape = Arc::clone(&twin.shape);
            }
            None => self.pool.adopt(&module.stored),
        }
        let module = Arc::new(module);
        editions.push(Arc::downgrade(&module));
        module
    }

    /// Publishes a snapshot under the next version; the caller holds `writer`.
    fn swap(&self, mut next: Snapshot) {
        next.version += 1;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
    }
}

/// An error where the name is not acceptable, is an alias, or does not stand for what is expected.
fn check_publish(snapshot: &Snapshot, name: &str, expected: Expected) -> Result<(), Error> {
    check_name(name)?;
    if snapshot.aliases.contains_key(name) {
        return Err(Error::BadName { name: name.to_owned(), reason: "is an alias" });
    }
    check_expected(name, snapshot.modules.get(name), expected)
}

/// Compares what stands under a name, `None` for nothing, with the state that a change requires.
fn check_expected(
    name: &str,
    found: Option<&Arc<Module>>,
    expected: Expected,
) -> Result<(), Error> {
    match (expected, found) {
        (Expected::Any, _) | (Expected::Absent, None) => Ok(()),
        (Expected::Absent, Some(_)) => Err(Error::AlreadyLoaded { name: name.to_owned() }),
        (Expected::Generation(expected), Some(found)) if found.generation() == expected => Ok(()),
        (Expected::Generation(expected), found) => Err(Error::GenerationMismatch {
            name: name.to_owned(),
            found: found.map_or("none".to_owned(), |module| module.generation().to_string()),
            expected: expected.to_string(),
        }),
    }
}

/// Names travel in URLs, metrics labels and paths, so they are plain: parts with `/` between them,
/// as hubs have them. At most 128 bytes, of which no part begins with a dot, so that a name never
/// leads out of a directory.
///
/// # Errors
/// If the name is another.
pub fn check_name(name: &str) -> Result<(), Error> {
    let bad = |reason| Err(Error::BadName { name: name.chars().take(64).collect(), reason });
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return bad("must have 1 to 128 characters");
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_part =
        |part: &str| !part.is_empty() && !part.starts_with('.') && part.chars().all(plain);
    match name.split('/').all(is_part) {
        true => Ok(()),
        false => bad(
            "may hold letters, digits, `-`, `_` and `.` in parts with `/` between them, of which none is empty or begins with a dot",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Weights;

    fn module(content: u8) -> Module {
        Module::in_memory(Generation::of(&[&[content]]), Kind::Lora, Weights::default(), Vec::new())
    }

    #[test]
    fn names_are_safe_in_paths_and_addresses() {
        for name in ["a", "org/name", "a/b/c-1_2.3", "A.b"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in [
            "", "/a", "a/", "a//b", "../a", "a/../b", "a/.b", ".", "a b", "a\\b", "a:b", "a?b", "ä",
        ] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(check_name(&"a/".repeat(64)).is_err());
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
    fn aliases_follow_their_module() {
        let library = Library::default();
        library.publish("a", module(1), Expected::Absent).unwrap();
        library.alias("latest", "a").unwrap();
        let second = library.publish("a", module(2), Expected::Any).unwrap();
        let snapshot = library.snapshot();
        let (name, found) = snapshot.resolve("latest").unwrap();
        assert_eq!((name, found.generation()), ("a", second.generation()));
        assert_eq!(snapshot.iter().count(), 1);
        assert!(matches!(library.alias("a", "a"), Err(Error::AlreadyLoaded { .. })));
        assert!(matches!(library.alias("b", "missing"), Err(Error::NotFound { .. })));
        let taken = library.publish("latest", module(1), Expected::Any);
        assert!(matches!(taken, Err(Error::BadName { .. })));
        library.remove("a", Expected::Any).unwrap();
        assert!(library.snapshot().get("latest").is_none());
        assert!(matches!(library.remove_alias("latest"), Err(Error::NotFound { .. })));
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
            let tags = vec![tag.to_owned()];
            Module::in_memory(Generation::of(&[b"same"]), Kind::Lora, Weights::default(), tags)
        };
        let a = library.publish("a", tagged("old"), Expected::Absent).unwrap();
        let b = library.publish("a", tagged("new"), Expected::Any).unwrap();
        assert_eq!((a.generation(), b.tags()), (b.generation(), ["new".to_owned()].as_slice()));
        assert_ne!(a.edition(), b.edition());
        assert!(Arc::ptr_eq(&a.stored, &b.stored));
    }

    #[test]
    fn names_are_plain() {
        let library = Library::default();
        for name in ["", "a,b", "/a", "a/", "a//b", "a/../b", "..", "a b", ".hidden", "ä"] {
            let refused = library.publish(name, module(1), Expected::Any);
            assert!(matches!(refused, Err(Error::BadName { .. })), "{name}");
        }
    }
}
