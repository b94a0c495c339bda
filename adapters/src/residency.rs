//! The pool of weights: it decides whose are in memory.
//!
//! A module stays known (name, identity, shape, card) while its weights go: they are read again
//! when a request needs them. Requests hold leases; what is leased is never evicted. A request gets
//! all its weights or waits, holding nothing, so waiting cannot deadlock.
//!
//! A request that waits does not stand in line behind a request whose modules do not fit: those
//! whose modules are in memory go ahead, so requests for the same modules share steps instead of
//! evicting each other's. That would starve the first in line, so after [`Budget::patience`] nobody
//! overtakes it any more: leases then only end, and it is served when the longest request that runs
//! has finished.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::ops::Deref;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::budget::Budget;
use crate::error::Error;
use crate::weights::Weights;

/// Reads a module's weights again. An error, as one for a changed file, ends the request that asked
/// and those that waited for the same weights; the next one tries again.
pub type Reload = Box<dyn Fn() -> Result<Weights, Error> + Send + Sync>;

/// The weights of one generation: in memory, or to be read again. The last holder drops it, and
/// with it its entry in the pool.
pub struct Stored {
    /// Bytes of the weights when they are in memory.
    num_bytes: usize,
    /// Reads them again; without it they are never evicted.
    reload: Option<Reload>,
    /// Weights that no pool manages yet; a pool takes them out when it adopts them.
    fresh: Mutex<Option<Arc<Weights>>>,
    /// The pool that manages them, and their number there; set once.
    home: OnceLock<(Arc<Pool>, u64)>,
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stored").field("num_bytes", &self.num_bytes).finish_non_exhaustive()
    }
}

impl Stored {
    /// Weights in memory; without `reload` they stay there.
    pub(crate) fn new(weights: Weights, reload: Option<Reload>) -> Self {
        let num_bytes = weights.num_bytes();
        let fresh = Mutex::new(Some(Arc::new(weights)));
        Self { num_bytes, reload, fresh, home: OnceLock::new() }
    }

    /// Bytes of the weights when they are in memory.
    pub(crate) fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    /// The state of the weights in the pool that manages them; without one they are in memory.
    pub(crate) fn residency(&self) -> Residency {
        match self.home.get() {
            Some((pool, id)) => pool.lock().residency(*id),
            None => Residency { resident: true, ..Residency::default() },
        }
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        if let Some((pool, id)) = self.home.get() {
            pool.forget(*id);
        }
    }
}

/// The use that weights are leased for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A request.
    Serve,
    /// A look at them, such as a router takes at every module. It says nothing of what is popular.
    Look,
}

/// The place of a module's weights, and counts of what was done with them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Residency {
    /// True while they are in memory.
    pub resident: bool,
    /// True where they are not evicted.
    pub pinned: bool,
    /// Leases on them that have not ended.
    pub leases: usize,
    /// Requests that wait for room for them.
    pub wanted: usize,
    /// Leases of requests that found them in memory.
    pub hits: u64,
    /// Times that they were read again.
    pub loads: u64,
    /// Times that they made room.
    pub evictions: u64,
    /// The time that the last reading took; zero before the first.
    pub load_time: Duration,
}

/// Weights that a request holds; they stay in memory until it is dropped. It also keeps the
/// module's content known to its pool.
pub struct Lease {
    /// The weights, which stay valid whatever the pool does.
    weights: Arc<Weights>,
    /// The content that the lease is counted for.
    stored: Arc<Stored>,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("stored", &self.stored).finish_non_exhaustive()
    }
}

impl Deref for Lease {
    type Target = Weights;

    fn deref(&self) -> &Weights {
        &self.weights
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some((pool, id)) = self.stored.home.get() {
            pool.lock().end_lease(*id);
            pool.changed.notify_all();
        }
    }
}

/// Totals of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Bytes in memory, with those that are being read.
    pub resident_bytes: usize,
    /// Bytes of modules that requests hold, each counted once.
    pub leased_bytes: usize,
    /// Modules in memory, with those that are being read.
    pub num_resident: usize,
    /// Modules that are known.
    pub num_known: usize,
    /// Requests that wait for room.
    pub waiting: usize,
    /// Leases of requests that found their module in memory.
    pub hits: u64,
    /// Modules that were read again.
    pub loads: u64,
    /// Modules that made room.
    pub evictions: u64,
}

/// The memory of all modules. One lock guards all of its state; weights are read without it.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    /// Entries, line and counters.
    state: Mutex<State>,
    /// Signalled after every change by which a waiting request may get on.
    changed: Condvar,
}

/// The pool's state. Looks at all entries are linear in the known modules, and are made per lease
/// and while waiting.
#[derive(Debug, Default)]
struct State {
    /// The bounds, which may change at any time.
    budget: Budget,
    /// Adopted weights by number.
    entries: HashMap<u64, Entry>,
    /// Requests that wait, in order of arrival.
    line: Vec<Ticket>,
    /// The next number of an entry or a ticket; both ascend in it.
    next: u64,
    /// Grows with every lease; orders entries by their last use.
    clock: u64,
    /// Bytes in memory, with those that are being read: room is taken before the reading begins.
    resident_bytes: usize,
    /// Leases of requests that found their module in memory.
    hits: u64,
    /// Modules that were read again.
    loads: u64,
    /// Modules that made room.
    evictions: u64,
}

/// Weights that the pool manages.
#[derive(Debug)]
struct Entry {
    /// Bytes of the weights, in memory or not.
    num_bytes: usize,
    /// The weights, or their absence.
    place: Place,
    /// True where they can be read again.
    evictable: bool,
    /// The clock at the last lease of a request, or at the last reading.
    last_used: u64,
    /// Pin and counters; `resident` and `wanted` are filled in when asked for.
    residency: Residency,
}

/// The place of an entry's weights.
#[derive(Debug)]
enum Place {
    /// In memory.
    Memory(Arc<Weights>),
    /// A request reads them, and others wait for it. Their bytes count as taken.
    Loading,
    /// Not in memory: the next lease reads them.
    Elsewhere,
}

/// A request in the line for memory.
#[derive(Debug)]
struct Ticket {
    /// Its place: lower numbers came earlier.
    number: u64,
    /// Its arrival; patience and the longest wait count from here.
    since: Instant,
    /// Numbers of the entries that it wants together.
    wanted: Vec<u64>,
}

impl Pool {
    /// Sets the bounds, evicts what is too much and wakes those who wait.
    pub(crate) fn set_budget(&self, budget: Budget) {
        let mut state = self.lock();
        state.budget = budget;
        state.make_room(0);
        drop(state);
        self.changed.notify_all();
    }

    pub(crate) fn budget(&self) -> Budget {
        self.lock().budget
    }

    /// Totals at this moment, linear in the known modules.
    pub(crate) fn stats(&self) -> PoolStats {
        let state = self.lock();
        let entries = || state.entries.values();
        let held = entries().filter(|entry| entry.residency.leases > 0);
        PoolStats {
            resident_bytes: state.resident_bytes,
            leased_bytes: held.map(|entry| entry.num_bytes).sum(),
            num_resident: entries().filter(|entry| entry.is_resident()).count(),
            num_known: state.entries.len(),
            waiting: state.line.len(),
            hits: state.hits,
            loads: state.loads,
            evictions: state.evictions,
        }
    }

    /// Takes weights over, once: later calls change nothing. Weights that can be read again stay in
    /// memory only where they fit without evicting others; those that cannot always stay.
    pub(crate) fn adopt(self: &Arc<Self>, stored: &Stored) {
        let mut state = self.lock();
        let id = state.next;
        if stored.home.set((Arc::clone(self), id)).is_err() {
            return;
        }
        state.next += 1;
        let weights = stored.fresh.lock().unwrap_or_else(PoisonError::into_inner).take();
        let evictable = stored.reload.is_some();
        let keeps = !evictable || state.fits_free(stored.num_bytes);
        let place = match weights {
            Some(weights) if keeps => Place::Memory(weights),
            _ => Place::Elsewhere,
        };
        if let Place::Memory(_) = place {
            state.resident_bytes += stored.num_bytes;
        }
        let entry = Entry {
            num_bytes: stored.num_bytes,
            place,
            evictable,
            last_used: 0,
            residency: Residency::default(),
        };
        state.entries.insert(id, entry);
    }

    /// An error where not all modules fit beside what stays, with this one added and another gone.
    /// Every module must fit the budget together with all that is pinned or cannot be read again.
    pub(crate) fn check_room(
        &self,
        stored: &Stored,
        pinned: bool,
        replaced: Option<&Stored>,
    ) -> Result<(), Error> {
        let own = self.id_of(stored);
        let gone = replaced.and_then(|replaced| self.id_of(replaced)).filter(|id| own != Some(*id));
        let state = self.lock();
        let Some(most) = state.budget.max_bytes else { return Ok(()) };
        let others = || {
            let entries = state.entries.iter();
            entries.filter(|(id, _)| own != Some(**id) && gone != Some(**id)).map(|(_, one)| one)
        };
        // A pin of another name of the same content stays.
        let is_pinned = |id: u64| state.entries.get(&id).is_some_and(|one| one.residency.pinned);
        let stays = pinned || stored.reload.is_none() || own.is_some_and(is_pinned);
        let sum = others().filter(|one| one.stays()).map(|one| one.num_bytes).sum::<usize>();
        let largest = others().filter(|one| !one.stays()).map(|one| one.num_bytes).max();
        let beside = if stays { largest.unwrap_or(0) } else { 0 };
        let needed = sum + stored.num_bytes + beside;
        if needed > most {
            return Err(Error::TooLarge { needed, most });
        }
        Ok(())
    }

    /// Keeps weights from eviction, or no longer; weights of no pool are passed over.
    pub(crate) fn pin(&self, stored: &Stored, pinned: bool) {
        let Some((_, id)) = stored.home.get() else { return };
        if let Some(entry) = self.lock().entries.get_mut(id) {
            entry.residency.pinned = pinned;
        }
    }

    /// All of the modules' weights, or none; waits for room, and then reads what is missing, one
    /// after the other. A panic in the reading is an error.
    pub(crate) fn lease(
        self: &Arc<Self>,
        wanted: &[Arc<Stored>],
        purpose: Purpose,
    ) -> Result<Vec<Lease>, Error> {
        let ids: Vec<u64> = wanted.iter().filter_map(|stored| self.id_of(stored)).collect();
        let to_load = self.wait_for_room(&ids, purpose)?;
        let mut failure = None;
        for stored in wanted {
            let Some(id) = self.id_of(stored).filter(|id| to_load.contains(id)) else { continue };
            match failure {
                None => failure = self.load(stored, id).err(),
                Some(_) => self.lock().load_failed(id),
            }
        }
        self.changed.notify_all();
        // All of them first: each lease is counted already and must end.
        let leases: Vec<Result<Lease, Error>> =
            wanted.iter().map(|stored| self.take(stored)).collect();
        match failure {
            Some(error) => Err(error),
            None => leases.into_iter().collect(),
        }
    }

    /// The number of weights that this pool manages; `None` for others.
    fn id_of(&self, stored: &Stored) -> Option<u64> {
        let (home, id) = stored.home.get()?;
        std::ptr::eq(Arc::as_ptr(home), self).then_some(*id)
    }

    /// Waits until all fit, then counts leases for all; returns those that the caller must read.
    /// The errors are [`Error::TooLarge`] at once, [`Error::TooManyWaiting`] where the line is
    /// full, and [`Error::NoRoom`].
    fn wait_for_room(&self, ids: &[u64], purpose: Purpose) -> Result<Vec<u64>, Error> {
        let mut state = self.lock();
        if let Some(error) = state.never_fits(ids) {
            return Err(error);
        }
        let since = Instant::now();
        let number = state.next;
        state.next += 1;
        if !state.may_go(number, ids) && state.line.len() >= state.budget.max_waiting {
            return Err(Error::TooManyWaiting { waiting: state.line.len() });
        }
        state.line.push(Ticket { number, since, wanted: ids.to_vec() });
        loop {
            if state.may_go(number, ids) {
                state.line.retain(|ticket| ticket.number != number);
                let to_load = state.grant(ids, purpose);
                drop(state);
                self.changed.notify_all();
                return Ok(to_load);
            }
            let left = state.budget.max_wait.saturating_sub(since.elapsed());
            if left.is_zero() {
                state.line.retain(|ticket| ticket.number != number);
                drop(state);
                self.changed.notify_all();
                return Err(Error::NoRoom { waited: since.elapsed() });
            }
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Reads weights that [`State::grant`] left to the caller.
    fn load(&self, stored: &Stored, id: u64) -> Result<(), Error> {
        let started = Instant::now();
        // A panic must not leave others waiting for weights that never come.
        let loaded = match &stored.reload {
            Some(reload) => {
                std::panic::catch_unwind(AssertUnwindSafe(reload)).unwrap_or(Err(Error::Gone))
            }
            None => Err(Error::Gone),
        };
        let mut state = self.lock();
        match loaded {
            Ok(weights) => state.loaded(id, weights, started.elapsed()),
            Err(error) => {
                state.load_failed(id);
                return Err(error);
            }
        }
        Ok(())
    }

    /// A lease that is counted already; waits for another request that reads the weights.
    fn take(&self, stored: &Arc<Stored>) -> Result<Lease, Error> {
        let lease = |weights: &Arc<Weights>| Lease {
            weights: Arc::clone(weights),
            stored: Arc::clone(stored),
        };
        let Some(id) = self.id_of(stored) else {
            // Another library's, or nobody's.
            if let Some((home, _)) = stored.home.get() {
                let mut leases = home.lease(std::slice::from_ref(stored), Purpose::Serve)?;
                return leases.pop().ok_or(Error::Gone);
            }
            let fresh = stored.fresh.lock().unwrap_or_else(PoisonError::into_inner);
            return fresh.as_ref().map(lease).ok_or(Error::Gone);
        };
        let mut state = self.lock();
        loop {
            match state.entries.get(&id).map(|entry| &entry.place) {
                Some(Place::Memory(weights)) => return Ok(lease(weights)),
                Some(Place::Loading) => {}
                _ => {
                    state.end_lease(id);
                    drop(state);
                    self.changed.notify_all();
                    return Err(Error::Gone);
                }
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Drops an entry whose content nobody knows any more, and its bytes with it.
    fn forget(&self, id: u64) {
        let mut state = self.lock();
        if let Some(entry) = state.entries.remove(&id)
            && entry.is_resident()
        {
            state.resident_bytes -= entry.num_bytes;
        }
        drop(state);
        self.changed.notify_all();
    }

    /// The state; a panic of another thread does not poison it for good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// True where its bytes count as taken: in memory, or being read.
    fn is_resident(&self) -> bool {
        !matches!(self.place, Place::Elsewhere)
    }

    /// True where it is never evicted, as long as its pin stays: pinned, or not readable again.
    fn stays(&self) -> bool {
        self.residency.pinned || !self.evictable
    }

    /// True where it can be evicted now: readable again, in memory, neither pinned nor leased.
    fn may_leave(&self) -> bool {
        !self.stays() && self.residency.leases == 0 && matches!(self.place, Place::Memory(_))
    }
}

impl State {
    /// An entry's state with the number of tickets that want it.
    fn residency(&self, id: u64) -> Residency {
        let wanted = self.line.iter().filter(|ticket| ticket.wanted.contains(&id)).count();
        self.entries.get(&id).map_or_else(Residency::default, |entry| Residency {
            resident: matches!(entry.place, Place::Memory(_)),
            wanted,
            ..entry.residency
        })
    }

    /// True where so many bytes fit without evicting anything.
    fn fits_free(&self, num_bytes: usize) -> bool {
        self.budget.max_bytes.is_none_or(|most| self.resident_bytes + num_bytes <= most)
    }

    /// Bytes of the modules that are not in memory, each module counted once.
    fn missing_bytes(&self, ids: &[u64]) -> usize {
        let ids: BTreeSet<&u64> = ids.iter().collect();
        let missing = |id: &u64| self.entries.get(id).filter(|entry| !entry.is_resident());
        ids.into_iter().filter_map(missing).map(|entry| entry.num_bytes).sum()
    }

    /// Bytes that eviction could free now.
    fn movable_bytes(&self) -> usize {
        let movable = self.entries.values().filter(|entry| entry.may_leave());
        movable.map(|entry| entry.num_bytes).sum()
    }

    /// True where the modules fit beside what must stay. `movable_bytes` counts wanted modules too,
    /// which must not leave, so they are taken off again.
    fn fits(&self, ids: &[u64], movable_bytes: usize) -> bool {
        let Some(most) = self.budget.max_bytes else { return true };
        let missing = self.missing_bytes(ids);
        let wanted: BTreeSet<&u64> = ids.iter().collect();
        let own = wanted.into_iter().filter_map(|id| self.entries.get(id));
        let own: usize = own.filter(|entry| entry.may_leave()).map(|entry| entry.num_bytes).sum();
        missing == 0 || self.resident_bytes + own + missing <= most + movable_bytes
    }

    /// The error for modules that do not fit even when nothing else runs: beside them stay those
    /// that are pinned or cannot be read again. Modules that are all in memory always fit.
    fn never_fits(&self, ids: &[u64]) -> Option<Error> {
        let most = self.budget.max_bytes?;
        let stays = |(id, entry): &(&u64, &Entry)| entry.stays() || ids.contains(id);
        let needed = self.entries.iter().filter(stays).map(|(_, entry)| entry.num_bytes).sum();
        let missing = self.missing_bytes(ids) > 0;
        (missing && needed > most).then_some(Error::TooLarge { needed, most })
    }

    /// True where it is this one's turn: it fits, and nobody before it has lost patience or fits as
    /// well.
    fn may_go(&self, number: u64, ids: &[u64]) -> bool {
        let movable = self.movable_bytes();
        let overtaken = self.line.iter().filter(|ticket| ticket.number < number);
        let goes_first = |ticket: &Ticket| {
            ticket.since.elapsed() >= self.budget.patience || self.fits(&ticket.wanted, movable)
        };
        self.fits(ids, movable) && !overtaken.into_iter().any(goes_first)
    }

    /// Counts leases, makes room and takes it; returns the entries that the caller must read. The
    /// first that wants missing weights reads them; others find them [`Place::Loading`].
    fn grant(&mut self, ids: &[u64], purpose: Purpose) -> Vec<u64> {
        self.clock += 1;
        let clock = self.clock;
        let mut to_load = Vec::new();
        let mut missing = 0;
        for id in ids {
            let Some(entry) = self.entries.get_mut(id) else { continue };
            entry.residency.leases += 1;
            if purpose == Purpose::Serve || !entry.is_resident() {
                entry.last_used = clock;
            }
            if entry.is_resident() {
                let hits = u64::from(purpose == Purpose::Serve);
                entry.residency.hits += hits;
                self.hits += hits;
            } else {
                entry.place = Place::Loading;
                missing += entry.num_bytes;
                to_load.push(*id);
            }
        }
        self.make_room(missing);
        self.resident_bytes += missing;
        to_load
    }

    /// Evicts what was not used for longest until so many bytes fit, or nothing more can leave.
    fn make_room(&mut self, num_bytes: usize) {
        let Some(most) = self.budget.max_bytes else { return };
        while self.resident_bytes + num_bytes > most {
            let leave = self.entries.iter_mut().filter(|(_, entry)| entry.may_leave());
            let Some((_, oldest)) = leave.min_by_key(|(id, entry)| (entry.last_used, **id)) else {
                return;
            };
            oldest.place = Place::Elsewhere;
            oldest.residency.evictions += 1;
            self.resident_bytes -= oldest.num_bytes;
            self.evictions += 1;
        }
    }

    /// Puts weights that were read into their entry; their bytes were counted by [`State::grant`].
    fn loaded(&mut self, id: u64, weights: Weights, took: Duration) {
        self.loads += 1;
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.place = Place::Memory(Arc::new(weights));
            entry.residency.loads += 1;
            entry.residency.load_time = took;
        }
    }

    /// Gives the room of a reading that failed back; those who wait for it get an error.
    fn load_failed(&mut self, id: u64) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.place = Place::Elsewhere;
            self.resident_bytes -= entry.num_bytes;
        }
    }

    /// Ends one lease, and evicts what is above a budget that was lowered in the meantime.
    fn end_lease(&mut self, id: u64) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.residency.leases = entry.residency.leases.saturating_sub(1);
        }
        self.make_room(0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;

    use super::*;
    use crate::lora::Elements;
    use crate::weights::{Part, SoftPrompt};

    fn weights(num_bytes: usize) -> Weights {
        let mut weights = Weights::default();
        let embeddings = Elements::Bf16(vec![0; num_bytes / 2]);
        weights.add(Part::Prompt(SoftPrompt { num_tokens: 1, embeddings }));
        weights
    }

    /// A module of `num_bytes` bytes that counts how often it is read.
    fn stored(pool: &Arc<Pool>, num_bytes: usize, reads: &Arc<AtomicUsize>) -> Arc<Stored> {
        let weights = move || weights(num_bytes);
        let reads = Arc::clone(reads);
        let reload: Reload = Box::new(move || {
            reads.fetch_add(1, Ordering::Relaxed);
            Ok(weights())
        });
        let stored = Arc::new(Stored::new(weights(), Some(reload)));
        pool.adopt(&stored);
        stored
    }

    fn pool(max_bytes: usize) -> Arc<Pool> {
        let pool = Arc::new(Pool::default());
        let patience = Duration::from_secs(3600);
        pool.set_budget(Budget { max_bytes: Some(max_bytes), patience, ..Budget::default() });
        pool
    }

    #[test]
    fn what_is_used_least_makes_room_and_is_read_again() {
        let (pool, reads) = (pool(200), Arc::default());
        let modules: Vec<_> = (0..3).map(|_| stored(&pool, 100, &reads)).collect();
        assert_eq!(pool.stats().resident_bytes, 200, "the third found no room");
        for module in [0, 1, 2, 0] {
            drop(pool.lease(std::slice::from_ref(&modules[module]), Purpose::Serve).unwrap());
        }
        assert_eq!(reads.load(Ordering::Relaxed), 2, "2 evicted 0, and 0 evicted 1");
        let stats = pool.stats();
        assert_eq!((stats.loads, stats.evictions, stats.hits), (2, 2, 2));
        assert_eq!((stats.resident_bytes, stats.leased_bytes), (200, 0));
        drop(modules);
        assert_eq!(
            pool.stats(),
            PoolStats { loads: 2, evictions: 2, hits: 2, ..PoolStats::default() }
        );
    }

    #[test]
    fn leased_and_pinned_modules_stay() {
        let (pool, reads) = (pool(200), Arc::default());
        let modules: Vec<_> = (0..3).map(|_| stored(&pool, 100, &reads)).collect();
        pool.pin(&modules[0], true);
        let held = pool.lease(&modules[1..2], Purpose::Serve).unwrap();
        let too_large = pool.lease(&modules, Purpose::Serve).unwrap_err();
        assert!(matches!(too_large, Error::TooLarge { needed: 300, most: 200 }), "{too_large}");
        let (sender, receiver) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let lease = pool.lease(&modules[2..], Purpose::Serve).unwrap();
                sender.send(()).unwrap();
                drop(lease);
            });
            while pool.stats().waiting == 0 {
                std::thread::yield_now();
            }
            assert!(receiver.try_recv().is_err(), "nothing may make room");
            drop(held);
            receiver.recv().unwrap();
        });
        assert!(modules[0].residency().resident && !modules[1].residency().resident);
    }

    #[test]
    fn what_could_never_be_leased_is_not_let_in() {
        let (pool, reads) = (pool(250), Arc::default());
        let kept = Arc::new(Stored::new(weights(100), None));
        pool.adopt(&kept);
        let refused = |stored: &Stored, pinned, needed| {
            let error = pool.check_room(stored, pinned, None).unwrap_err();
            let is_right =
                matches!(error, Error::TooLarge { needed: found, .. } if found == needed);
            assert!(is_right, "{error}, expected {needed}");
        };
        let large = stored(&pool, 200, &reads);
        refused(&large, false, 300);
        assert!(pool.lease(std::slice::from_ref(&large), Purpose::Serve).is_err());
        drop(large);
        let module = stored(&pool, 100, &reads);
        pool.check_room(&module, true, None).unwrap();
        // What stays for good must leave room for the others, as a pin must.
        refused(&Stored::new(weights(100), None), false, 300);
        pool.check_room(&Stored::new(weights(100), None), false, Some(kept.as_ref())).unwrap();
    }

    #[test]
    fn modules_in_memory_overtake_until_patience_ends() {
        let (pool, reads) = (pool(100), Arc::default());
        let modules: Vec<_> = (0..2).map(|_| stored(&pool, 100, &reads)).collect();
        let held = pool.lease(&modules[..1], Purpose::Serve).unwrap();
        let served = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let wait = |module: usize| {
                let (pool, modules, served) = (&pool, &modules, &served);
                move || {
                    let _leases = pool.lease(&modules[module..=module], Purpose::Serve).unwrap();
                    served.fetch_add(1, Ordering::Relaxed)
                }
            };
            let second = scope.spawn(wait(1));
            while pool.stats().waiting == 0 {
                std::thread::yield_now();
            }
            // It is in memory, so it need not stand behind the one that waits.
            assert_eq!(scope.spawn(wait(0)).join().unwrap(), 0);
            let patience = Duration::ZERO;
            pool.set_budget(Budget { max_bytes: Some(100), patience, ..Budget::default() });
            let third = scope.spawn(wait(0));
            while pool.stats().waiting < 2 {
                std::thread::yield_now();
            }
            drop(held);
            assert_eq!(second.join().unwrap(), 1, "nobody overtakes it any more");
            third.join().unwrap();
        });
        assert_eq!(pool.stats().leased_bytes, 0);
    }

    #[test]
    fn a_failed_reading_leaves_nothing_behind() {
        let (pool, reads) = (pool(200), Arc::default());
        let good = stored(&pool, 100, &reads);
        let other = stored(&pool, 100, &reads);
        let bad = Arc::new(Stored::new(weights(100), Some(Box::new(|| panic!("boom")))));
        pool.adopt(&bad);
        for _ in 0..2 {
            assert!(pool.lease(&[Arc::clone(&good), Arc::clone(&bad)], Purpose::Serve).is_err());
            assert_eq!(pool.stats().leased_bytes, 0);
        }
        assert!(pool.stats().resident_bytes <= 200);
        assert!(pool.lease(&[good, other], Purpose::Serve).is_ok());
    }

    #[test]
    fn another_pools_weights_are_its_own() {
        let (pool, other, reads) = (pool(200), self::pool(200), Arc::default());
        let (ours, theirs) = (stored(&pool, 100, &reads), stored(&other, 40, &reads));
        let leases = pool.lease(&[ours, theirs], Purpose::Serve).unwrap();
        assert_eq!(leases.iter().map(|lease| lease.num_bytes()).collect::<Vec<_>>(), [100, 40]);
        assert_eq!((pool.stats().leased_bytes, other.stats().leased_bytes), (100, 40));
        drop(leases);
        assert_eq!((pool.stats().leased_bytes, other.stats().leased_bytes), (0, 0));
    }

    #[test]
    fn waiting_is_bounded() {
        let (pool, reads) = (pool(100), Arc::default());
        let modules: Vec<_> = (0..2).map(|_| stored(&pool, 100, &reads)).collect();
        let _held = pool.lease(&modules[..1], Purpose::Serve).unwrap();
        let max_wait = Duration::from_millis(1);
        let budget = Budget { max_bytes: Some(100), max_wait, ..Budget::default() };
        pool.set_budget(budget);
        assert!(matches!(pool.lease(&modules[1..], Purpose::Serve), Err(Error::NoRoom { .. })));
        pool.set_budget(Budget { max_waiting: 0, ..budget });
        assert!(matches!(
            pool.lease(&modules[1..], Purpose::Serve),
            Err(Error::TooManyWaiting { .. })
        ));
        assert_eq!(pool.stats().waiting, 0);
    }
}
