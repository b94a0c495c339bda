//! The durable part of experiments: one SQLite file, written by one thread that commits many
//! changes at once.
//!
//! A change is acknowledged after its commit has reached the disk. Changes of one moment share a
//! commit, so a busy server waits for the disk no more often than an idle one.

mod changes;
mod damage;

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use rusqlite::{Connection, OptionalExtension as _};
use tokio::sync::oneshot;

pub(super) use self::changes::{
    add_totals, count_request, put_experiment, put_feedback, put_request, put_rewards, put_unit,
    remove_experiment,
};
use super::records::{Durable, Kept, Served, StoreError, failed};

/// Most changes in one commit, so that no change waits long for others.
const MAX_CHANGES: usize = 1_024;

/// The tables. `total` has an empty arm for values from before the start, and an empty metric for
/// an exposure. `request` is numbered in the order of the requests, by which the oldest are
/// forgotten.
const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS experiment (
    name TEXT PRIMARY KEY, declaration TEXT NOT NULL, course TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS unit (
    experiment TEXT, unit TEXT, arm TEXT NOT NULL, epoch INTEGER NOT NULL, propensities TEXT,
    PRIMARY KEY (experiment, unit)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS arm (
    experiment TEXT, arm TEXT, requests INTEGER NOT NULL, fallbacks INTEGER NOT NULL,
    faults INTEGER NOT NULL, PRIMARY KEY (experiment, arm)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS total (
    experiment TEXT, arm TEXT, unit TEXT, metric TEXT, count INTEGER NOT NULL, sum REAL NOT NULL,
    PRIMARY KEY (experiment, arm, unit, metric)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rewards (
    experiment TEXT, arm TEXT, rewards TEXT NOT NULL, PRIMARY KEY (experiment, arm)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS request (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, experiment TEXT NOT NULL,
    arm TEXT NOT NULL, unit TEXT NOT NULL, counted INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS feedback (
    request TEXT, name TEXT, value REAL NOT NULL, PRIMARY KEY (request, name)) WITHOUT ROWID;
";

/// A change: given the connection, it tells with `true` that it was made, and gives the call for
/// when that is on the disk or has failed. Given the reason for which there is no transaction, it
/// does nothing.
type Change = Box<dyn FnOnce(Result<&Connection, StoreError>) -> (bool, Acknowledge) + Send>;
/// Tells of a commit or its failure.
type Acknowledge = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// The store. Dropping it waits for all queued changes.
#[derive(Debug)]
pub(super) struct Store {
    /// The queue of the writing thread; `None` while this is dropped.
    changes: Mutex<Option<Sender<Change>>>,
    /// The writing thread, which ends with its queue.
    writer: Option<JoinHandle<()>>,
    /// A connection of its own, so that reading does not wait for writing.
    reader: Mutex<Connection>,
    /// The place to which a damaged file was moved at the start.
    set_aside: Option<PathBuf>,
    /// The folder of a file that is deleted with the server, where none is configured.
    _passing: Option<tempfile::TempDir>,
}

impl Store {
    /// Opens the file in SQLite's WAL mode, or a passing one where `path` is `None`, and starts the
    /// thread that writes. Commits to a passing file do not wait for the disk. A damaged file is
    /// moved aside, whole, and an empty one takes its place.
    ///
    /// # Errors
    /// If the file cannot be read, written or moved.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, StoreError> {
        let (passing, place) = match path {
            Some(path) => (None, path.to_owned()),
            None => {
                let folder = tempfile::tempdir().map_err(failed)?;
                let place = folder.path().join("experiments.sqlite");
                (Some(folder), place)
            }
        };
        // What goes with the server needs no disk to wait for.
        let synchronous = if path.is_some() { "full" } else { "off" };
        let (opened, set_aside) = match connect(&place, synchronous) {
            Err(error) if damage::is_damage(&error) => {
                let moved = damage::set_aside(&place).map_err(failed)?;
                tracing::error!(
                    %error, file = %place.display(), moved_to = %moved.display(),
                    "the store of experiments is damaged; it was moved, and an empty one serves"
                );
                (connect(&place, synchronous), Some(moved))
            }
            opened => (opened, None),
        };
        let (writer, reader) = opened.map_err(failed)?;
        let (changes, queue) = channel();
        let thread = std::thread::Builder::new().name("experiments".to_owned());
        let writer = thread.spawn(move || write_all(&writer, &queue)).map_err(failed)?;
        let (changes, reader) = (Mutex::new(Some(changes)), Mutex::new(reader));
        Ok(Self { changes, writer: Some(writer), reader, set_aside, _passing: passing })
    }

    /// The place to which a damaged file was moved at the start, if it was.
    pub(super) fn set_aside(&self) -> Option<&Path> {
        self.set_aside.as_deref()
    }

    /// Queues a change; the receiver hears when it is on the disk. Changes are made in the order of
    /// the calls. Each is made as a whole or not at all.
    pub(super) fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Durable<T> {
        let (sender, receiver) = oneshot::channel();
        let change: Change = Box::new(move |connection| {
            let done = connection.and_then(|connection| change(connection).map_err(failed));
            // Who does not wait needs no answer.
            let made = done.is_ok();
            (made, Box::new(move |committed| drop(sender.send(committed.and(done)))))
        });
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        // A thread that is gone drops the sender, which the receiver hears.
        let _ = changes.as_ref().map(|changes| changes.send(change));
        receiver
    }

    /// All experiments with their records, by name. It reads everything that the store has of them.
    pub(super) fn load(&self) -> Result<Vec<(String, Kept)>, StoreError> {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let names =
            rows(&reader, "SELECT name FROM experiment ORDER BY name", [], |row| row.get(0))?;
        names
            .into_iter()
            .map(|name: String| Ok((name.clone(), load_one(&reader, &name)?)))
            .collect()
    }

    /// The request of an id, if it is still kept. A request that is queued to be written is not
    /// found yet.
    pub(super) fn served(&self, id: &str) -> Result<Option<Served>, StoreError> {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let query = "SELECT experiment, arm, unit, counted FROM request WHERE id = ?1";
        reader
            .query_row(query, [id], |row| {
                Ok(Served {
                    experiment: row.get(0)?,
                    arm: row.get(1)?,
                    unit: row.get(2)?,
                    counted: row.get(3)?,
                })
            })
            .optional()
            .map_err(failed)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        *self.changes.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
        // A panic of the thread was reported when it happened.
        let _ = self.writer.take().map(JoinHandle::join);
    }
}

/// Connections to the file for writing and for reading. The file is checked, which reads all of it.
fn connect(place: &Path, synchronous: &str) -> rusqlite::Result<(Connection, Connection)> {
    let open = || {
        let connection = Connection::open(place)?;
        connection.busy_timeout(std::time::Duration::from_secs(10))?;
        Ok::<_, rusqlite::Error>(connection)
    };
    let writer = open()?;
    writer.pragma_update(None, "journal_mode", "wal")?;
    writer.pragma_update(None, "synchronous", synchronous)?;
    damage::check(&writer)?;
    writer.execute_batch(SCHEMA)?;
    Ok((writer, open()?))
}

/// Commits the queued changes, as many as there are at a time, until nobody can queue any more.
fn write_all(connection: &Connection, queue: &Receiver<Change>) {
    while let Ok(first) = queue.recv() {
        let changes = std::iter::once(first).chain(queue.try_iter().take(MAX_CHANGES - 1));
        commit(connection, changes);
    }
}

/// Makes changes in one transaction and tells each how it went. A change that fails is undone
/// alone; where the transaction cannot begin, none is made.
fn commit(connection: &Connection, changes: impl Iterator<Item = Change>) {
    let began = connection.execute_batch("BEGIN IMMEDIATE").map_err(failed);
    let make = |change: Change| {
        if let Err(error) = &began {
            return change(Err(error.clone())).1;
        }
        // A change that fails takes nothing of its own and no other along.
        let _ = connection.execute_batch("SAVEPOINT one");
        let (made, acknowledge) = change(Ok(connection));
        let end = if made { "RELEASE one" } else { "ROLLBACK TO one; RELEASE one" };
        let _ = connection.execute_batch(end);
        acknowledge
    };
    let waiting: Vec<Acknowledge> = changes.map(make).collect();
    let committed = began.clone().and_then(|()| connection.execute_batch("COMMIT").map_err(failed));
    if let Err(error) = &committed {
        tracing::error!(%error, "experiments were not written");
        if began.is_ok() {
            let _ = connection.execute_batch("ROLLBACK");
        }
    }
    waiting.into_iter().for_each(|acknowledge| acknowledge(committed.clone()));
}

/// The rows of a query.
fn rows<T>(
    connection: &Connection,
    query: &str,
    parameters: impl rusqlite::Params,
    read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, StoreError> {
    let mut statement = connection.prepare(query).map_err(failed)?;
    let found = statement.query_map(parameters, read).map_err(failed)?;
    found.collect::<rusqlite::Result<_>>().map_err(failed)
}

/// A column that is never negative, as SQLite's integers have a sign.
fn count(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.unsigned_abs())
}

/// The records of one experiment.
fn load_one(connection: &Connection, name: &str) -> Result<Kept, StoreError> {
    let query = "SELECT declaration, course FROM experiment WHERE name = ?1";
    let (declaration, course) = connection
        .query_row(query, [name], |row| Ok((row.get(0)?, row.get(1)?)))
        .map_err(failed)?;
    let units = "SELECT unit, arm, epoch, propensities FROM unit WHERE experiment = ?1";
    let arms = "SELECT arm, requests, fallbacks, faults FROM arm WHERE experiment = ?1";
    let totals = "SELECT arm, unit, metric, count, sum FROM total WHERE experiment = ?1";
    let rewards = "SELECT arm, rewards FROM rewards WHERE experiment = ?1";
    let parsed = |(arm, rewards): (String, String)| {
        Ok((arm, serde_json::from_str(&rewards).map_err(failed)?))
    };
    Ok(Kept {
        declaration,
        course,
        units: rows(connection, units, [name], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })?,
        arms: rows(connection, arms, [name], |row| {
            Ok((row.get(0)?, count(row, 1)?, count(row, 2)?, count(row, 3)?))
        })?,
        totals: rows(connection, totals, [name], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, count(row, 3)?, row.get(4)?))
        })?,
        rewards: rows(connection, rewards, [name], |row| Ok((row.get(0)?, row.get(1)?)))?
            .into_iter()
            .map(parsed)
            .collect::<Result<_, StoreError>>()?,
    })
}

#[cfg(test)]
mod tests {
    use polyskill_experiment::totals::Outcome;

    use super::super::records::{Feedback, Noted};
    use super::*;

    fn served() -> Served {
        let text = str::to_owned;
        Served { experiment: text("e"), arm: text("a"), unit: text("u"), counted: true }
    }

    fn wait<T>(durable: Durable<T>) -> Result<T, StoreError> {
        durable.blocking_recv().unwrap()
    }

    #[test]
    fn what_was_acknowledged_is_there_when_the_file_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("experiments.sqlite");
        let text = str::to_owned;
        {
            let store = Store::open(Some(&path)).unwrap();
            wait(store.change(put_experiment(text("e"), text("{}"), text("{}")))).unwrap();
            let put_unit =
                |arm, epoch, propensities| put_unit(text("e"), text("u"), arm, epoch, propensities);
            wait(store.change(put_unit(text("a"), 3, Some(text("[0.5,0.5]"))))).unwrap();
            // The first arm stays.
            wait(store.change(put_unit(text("b"), 4, None))).unwrap();
            wait(store.change(put_request(text("r"), served(), 10))).unwrap();
            wait(store.change(count_request(
                text("e"),
                text("a"),
                Outcome { fallback: true, fault: false },
            )))
            .unwrap();
            let feedback = |value| Feedback { request: text("r"), name: text("correct"), value };
            let noted = wait(store.change(put_feedback(feedback(1.0), served())));
            assert_eq!(noted.unwrap(), Noted::New);
            let noted = wait(store.change(put_feedback(feedback(1.0), served())));
            assert_eq!(noted.unwrap(), Noted::Known);
            let noted = wait(store.change(put_feedback(feedback(0.0), served())));
            assert_eq!(noted.unwrap(), Noted::Other(1.0));
        }
        let store = Store::open(Some(&path)).unwrap();
        let (_, kept) = store.load().unwrap().remove(0);
        assert_eq!(kept.units, [(text("u"), text("a"), 3, Some(text("[0.5,0.5]")))]);
        assert_eq!(kept.arms, [(text("a"), 1, 1, 0)]);
        assert_eq!(kept.totals, [(text("a"), text("u"), text("correct"), 1, 1.0)]);
        assert_eq!(store.served("r").unwrap(), Some(served()));
        wait(store.change(remove_experiment(text("e")))).unwrap();
        assert!(store.load().unwrap().is_empty() && store.served("r").unwrap().is_none());
    }

    #[test]
    fn requests_are_bounded_and_a_change_that_fails_takes_no_other_along() {
        let store = Store::open(None).unwrap();
        let request = |number: usize| put_request(format!("r{number}"), served(), 5);
        let waiting: Vec<_> = (0..20).map(|number| store.change(request(number))).collect();
        let twice = store.change(request(3));
        let again = store.change(request(19));
        waiting.into_iter().for_each(|durable| wait(durable).unwrap());
        // The first is forgotten by now, the second is still there.
        assert!(wait(twice).is_ok() && wait(again).is_err());
        let kept = (0..20).filter(|number| store.served(&format!("r{number}")).unwrap().is_some());
        assert_eq!(kept.count(), 5);
    }

    /// A transaction that cannot begin makes no change: what is told as failed is not there.
    #[test]
    fn changes_without_a_transaction_are_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("experiments.sqlite");
        let (writer, reader) = connect(&path, "full").unwrap();
        // A statement that goes on holds SQLite's transaction, and none begins within it.
        writer.execute_batch("BEGIN").unwrap();
        let (sender, heard) = channel();
        let change: Change = Box::new(move |connection| {
            let is_asked = connection.is_ok();
            (is_asked, Box::new(move |committed| sender.send((is_asked, committed)).unwrap()))
        });
        commit(&writer, std::iter::once(change));
        let (is_asked, committed) = heard.recv().unwrap();
        assert!(!is_asked && committed.is_err(), "{committed:?}");
        let experiments: Vec<String> =
            rows(&reader, "SELECT name FROM experiment", [], |row| row.get(0)).unwrap();
        assert!(experiments.is_empty());
    }

    #[test]
    fn a_damaged_file_is_set_aside_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("experiments.sqlite");
        let text = str::to_owned;
        // Bytes that are no database, and a database with pages overwritten.
        std::fs::write(&path, b"no database at all, but long enough to be looked at").unwrap();
        let store = Store::open(Some(&path)).unwrap();
        let moved = store.set_aside().unwrap();
        assert!(std::fs::read(moved).unwrap().starts_with(b"no database"));
        for number in 0..300 {
            let name = format!("{number:0>200}");
            wait(store.change(put_experiment(name, text("{}"), text("{}")))).unwrap();
        }
        drop(store);
        let store = Store::open(Some(&path)).unwrap();
        assert_eq!((store.set_aside(), store.load().unwrap().len()), (None, 300));
        drop(store);
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle..middle + 8192].fill(0xa5);
        std::fs::write(&path, &bytes).unwrap();
        let store = Store::open(Some(&path)).unwrap();
        assert_eq!(std::fs::read(store.set_aside().unwrap()).unwrap(), bytes);
        assert!(store.load().unwrap().is_empty());
        wait(store.change(put_experiment(text("e"), text("{}"), text("{}")))).unwrap();
    }
}
