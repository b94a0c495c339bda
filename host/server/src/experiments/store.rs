//! What experiments must not forget: one SQLite file, written by one thread that commits many changes at once.
//!
//! A change is acknowledged after its commit has reached the disk. Changes of one moment share a commit, so a busy server
//! waits for the disk no more often than an idle one.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use polyskill_experiment::bandit::Rewards;
use polyskill_experiment::totals::Outcome;
use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::sync::oneshot;

/// Most changes in one commit.
const MAX_CHANGES: usize = 1_024;

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

/// Why the store does not do what it is asked for.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the store of experiments: {0}")]
pub struct StoreError(String);

fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError(error.to_string())
}

/// A change: whether it was made, and what is done once that is on the disk or has failed.
type Change = Box<dyn FnOnce(&Connection) -> (bool, Acknowledge) + Send>;
type Acknowledge = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// The store.
#[derive(Debug)]
pub(super) struct Store {
    changes: Mutex<Sender<Change>>,
    /// A connection of its own, so that reading does not wait for writing.
    reader: Mutex<Connection>,
    /// The folder of a file that goes with the server.
    _passing: Option<tempfile::TempDir>,
}

/// The outcome of a change, once it is on the disk.
pub type Durable<T> = oneshot::Receiver<Result<T, StoreError>>;

/// An experiment as it is kept.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) declaration: String,
    pub(super) course: String,
    /// Unit, arm, epoch of the weights, propensities of a bandit.
    pub(super) units: Vec<(String, String, u32, Option<String>)>,
    /// Arm, requests, fallbacks, faults.
    pub(super) arms: Vec<(String, u64, u64, u64)>,
    /// Arm (empty before the start), unit, metric (empty for an exposure), count, sum.
    pub(super) totals: Vec<(String, String, String, u64, f64)>,
    pub(super) rewards: Vec<(String, Rewards)>,
}

/// A request that feedback may come for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Served {
    pub(super) experiment: String,
    /// Empty before the experiment's start.
    pub(super) arm: String,
    pub(super) unit: String,
    /// Whether it counts in the analysis.
    pub(super) counted: bool,
}

impl Store {
    /// Opens the file, or one that goes with the server where there is none.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, StoreError> {
        let passing = match path {
            Some(_) => None,
            None => Some(tempfile::tempdir().map_err(failed)?),
        };
        let place = match (path, &passing) {
            (Some(path), _) => path.to_owned(),
            (None, passing) => {
                let folder = passing.as_ref().map(tempfile::TempDir::path);
                folder.unwrap_or(Path::new("")).join("experiments.sqlite")
            }
        };
        let open = || {
            let connection = Connection::open(&place)?;
            connection.busy_timeout(std::time::Duration::from_secs(10))?;
            Ok::<_, rusqlite::Error>(connection)
        };
        let writer = open().map_err(failed)?;
        writer.pragma_update(None, "journal_mode", "wal").map_err(failed)?;
        // What goes with the server needs no disk to wait for.
        let synchronous = if path.is_some() { "full" } else { "off" };
        writer.pragma_update(None, "synchronous", synchronous).map_err(failed)?;
        writer.execute_batch(SCHEMA).map_err(failed)?;
        let reader = open().map_err(failed)?;
        let (changes, queue) = channel();
        std::thread::Builder::new()
            .name("experiments".to_owned())
            .spawn(move || write_all(&writer, &queue))
            .map_err(failed)?;
        let (changes, reader) = (Mutex::new(changes), Mutex::new(reader));
        Ok(Self { changes, reader, _passing: passing })
    }

    /// Queues a change; the receiver hears when it is on the disk. Changes are made in the order of the calls.
    pub(super) fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Durable<T> {
        let (sender, receiver) = oneshot::channel();
        let change: Change = Box::new(move |connection| {
            let done = change(connection).map_err(failed);
            // Who does not wait needs no answer.
            let made = done.is_ok();
            (made, Box::new(move |committed| drop(sender.send(committed.and(done)))))
        });
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        // A thread that is gone drops the sender, which the receiver hears.
        let _ = changes.send(change);
        receiver
    }

    /// All experiments.
    pub(super) fn load(&self) -> Result<Vec<(String, Kept)>, StoreError> {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let names =
            rows(&reader, "SELECT name FROM experiment ORDER BY name", [], |row| row.get(0))?;
        names
            .into_iter()
            .map(|name: String| Ok((name.clone(), load_one(&reader, &name)?)))
            .collect()
    }

    /// The request of an id, if it is still kept.
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

/// Commits what is queued, as much as there is at a time, until nobody can queue any more.
fn write_all(connection: &Connection, queue: &Receiver<Change>) {
    while let Ok(first) = queue.recv() {
        let changes = std::iter::once(first).chain(queue.try_iter().take(MAX_CHANGES - 1));
        let began = connection.execute_batch("BEGIN IMMEDIATE").map_err(failed);
        let mut waiting: Vec<Acknowledge> = Vec::new();
        for change in changes {
            // A change that fails takes nothing of its own and no other along.
            let _ = connection.execute_batch("SAVEPOINT one");
            let (made, acknowledge) = change(connection);
            let end = if made { "RELEASE one" } else { "ROLLBACK TO one; RELEASE one" };
            let _ = connection.execute_batch(end);
            waiting.push(acknowledge);
        }
        let committed = began.and_then(|()| connection.execute_batch("COMMIT").map_err(failed));
        if let Err(error) = &committed {
            tracing::error!(%error, "experiments were not written");
            let _ = connection.execute_batch("ROLLBACK");
        }
        waiting.into_iter().for_each(|acknowledge| acknowledge(committed.clone()));
    }
}

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

/// A column that is never negative.
fn count(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.unsigned_abs())
}

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
        Ok((arm, serde_json::from_str::<Rewards>(&rewards).map_err(failed)?))
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

/// Writes an experiment's declaration and course.
pub(super) fn put_experiment(
    name: String,
    declaration: String,
    course: String,
) -> impl FnOnce(&Connection) -> rusqlite::Result<()> {
    move |connection| {
        let query = "INSERT INTO experiment VALUES (?1, ?2, ?3)
                     ON CONFLICT DO UPDATE SET declaration = ?2, course = ?3";
        connection.execute(query, params![name, declaration, course]).map(drop)
    }
}

/// Forgets an experiment with all that belongs to it.
pub(super) fn remove_experiment(name: String) -> impl FnOnce(&Connection) -> rusqlite::Result<()> {
    move |connection| {
        let feedback = "DELETE FROM feedback WHERE request IN
                        (SELECT id FROM request WHERE experiment = ?1)";
        connection.execute(feedback, [&name])?;
        for table in ["unit", "arm", "total", "rewards", "request"] {
            connection.execute(&format!("DELETE FROM {table} WHERE experiment = ?1"), [&name])?;
        }
        connection.execute("DELETE FROM experiment WHERE name = ?1", [&name]).map(drop)
    }
}

/// Writes a unit's arm.
pub(super) fn put_unit(
    experiment: String,
    unit: String,
    arm: String,
    epoch: u32,
    propensities: Option<String>,
) -> impl FnOnce(&Connection) -> rusqlite::Result<()> {
    move |connection| {
        let query = "INSERT OR IGNORE INTO unit VALUES (?1, ?2, ?3, ?4, ?5)";
        let parameters = params![experiment, unit, arm, epoch, propensities];
        connection.prepare(query)?.execute(parameters).map(drop)
    }
}

/// Writes a request that feedback may come for, and forgets the oldest beyond `most`.
pub(super) fn put_request(
    id: String,
    served: Served,
    most: u64,
) -> impl FnOnce(&Connection) -> rusqlite::Result<()> {
    move |connection| {
        let Served { experiment, arm, unit, counted } = served;
        let query = "INSERT INTO request (id, experiment, arm, unit, counted)
                     VALUES (?1, ?2, ?3, ?4, ?5)";
        let parameters = params![id, experiment, arm, unit, counted];
        connection.prepare(query)?.execute(parameters)?;
        let last = connection.last_insert_rowid() as u64;
        let Some(oldest) = last.checked_sub(most).map(|oldest| oldest as i64) else {
            return Ok(());
        };
        let feedback = "DELETE FROM feedback WHERE request IN
                        (SELECT id FROM request WHERE number <= ?1)";
        connection.prepare(feedback)?.execute([oldest])?;
        let request = "DELETE FROM request WHERE number <= ?1";
        connection.prepare(request)?.execute([oldest]).map(drop)
    }
}

/// Adds to an arm's counters.
pub(super) fn count_request(
    experiment: String,
    arm: String,
    outcome: Outcome,
) -> impl FnOnce(&Connection) -> rusqlite::Result<()> {
    move |connection| {
        let query = "INSERT INTO arm VALUES (?1, ?2, 1, ?3, ?4) ON CONFLICT DO UPDATE SET
                     requests = requests + 1, fallbacks = fallbacks + ?3, faults = faults + ?4";
        let Outcome { fallback, fault } = outcome;
        let parameters = params![experiment, arm, fallback, fault];
        connection.prepare(query)?.execute(parameters).map(drop)
    }
}

/// The totals of a unit under an arm of an experiment.
#[derive(Clone, Debug)]
pub(super) struct UnitTotals {
    pub(super) experiment: String,
    pub(super) arm: String,
    pub(super) unit: String,
}

impl UnitTotals {
    /// Those of a unit, by names.
    pub(super) fn of(experiment: &str, arm: &str, unit: &str) -> Self {
        let (experiment, arm) = (experiment.to_owned(), arm.to_owned());
        Self { experiment, arm, unit: unit.to_owned() }
    }
}

/// Adds to a unit's totals: metrics with their values. An empty metric stands for the exposure.
pub(super) fn add_totals(
    connection: &Connection,
    place: &UnitTotals,
    observations: &[(String, f64)],
) -> rusqlite::Result<()> {
    let query = "INSERT INTO total VALUES (?1, ?2, ?3, ?4, 1, ?5) ON CONFLICT DO UPDATE SET
                 count = count + 1, sum = sum + ?5";
    let mut statement = connection.prepare(query)?;
    for (metric, value) in observations {
        let UnitTotals { experiment, arm, unit } = place;
        statement.execute(params![experiment, arm, unit, metric, value])?;
    }
    Ok(())
}

/// What became of feedback.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Noted {
    /// It is new, and was counted.
    New,
    /// The same value was there.
    Known,
    /// Another value was there, and stays.
    Other(f64),
}

/// A value of a metric for a request that was served.
#[derive(Clone, Debug)]
pub(super) struct Feedback {
    /// The reply's id.
    pub(super) request: String,
    /// The metric.
    pub(super) name: String,
    pub(super) value: f64,
}

/// Notes feedback once, with its place in the totals.
pub(super) fn put_feedback(
    feedback: Feedback,
    served: Served,
) -> impl FnOnce(&Connection) -> rusqlite::Result<Noted> {
    move |connection| {
        let Feedback { request, name, value } = feedback;
        let query = "SELECT value FROM feedback WHERE request = ?1 AND name = ?2";
        let found: Option<f64> =
            connection.query_row(query, params![request, name], |row| row.get(0)).optional()?;
        match found {
            Some(found) if found == value => return Ok(Noted::Known),
            Some(found) => return Ok(Noted::Other(found)),
            None => {}
        }
        let insert = "INSERT INTO feedback VALUES (?1, ?2, ?3)";
        connection.execute(insert, params![request, name, value])?;
        if served.counted {
            let place = UnitTotals::of(&served.experiment, &served.arm, &served.unit);
            add_totals(connection, &place, &[(name, value)])?;
        }
        Ok(Noted::New)
    }
}

/// Writes what a bandit's arm has earned.
pub(super) fn put_rewards(
    experiment: String,
    arm: String,
    rewards: String,
) -> impl FnOnce(&Connection) -> rusqlite::Result<()> {
    move |connection| {
        let query = "INSERT INTO rewards VALUES (?1, ?2, ?3)
                     ON CONFLICT DO UPDATE SET rewards = ?3";
        connection.execute(query, params![experiment, arm, rewards]).map(drop)
    }
}

#[cfg(test)]
mod tests {
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
}
