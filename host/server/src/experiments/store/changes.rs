//! Changes of the store: experiments, units, requests, counts and feedback, as they are written.

use polyskill_experiment::totals::Outcome;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::super::records::{Feedback, Noted, Served, UnitTotals};

/// Writes an experiment's declaration and course, as JSON, over those before.
pub(in super::super) fn put_experiment(
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

/// Forgets an experiment with all that belongs to it, feedback on its requests included.
pub(in super::super) fn remove_experiment(
    name: String,
) -> impl FnOnce(&Connection) -> rusqlite::Result<()> {
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

/// Writes a unit's arm. A unit that has one keeps it.
pub(in super::super) fn put_unit(
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

/// Writes a request that feedback may come for, and forgets the oldest beyond `most` with their
/// feedback.
pub(in super::super) fn put_request(
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

/// Adds one request to an arm's counters.
pub(in super::super) fn count_request(
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

/// Adds to a unit's totals: 1 to the count and the value to the sum of each metric. An empty metric
/// stands for the exposure.
pub(in super::super) fn add_totals(
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

/// Notes feedback once, with its place in the totals where the request counts.
pub(in super::super) fn put_feedback(
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

/// Writes an arm's rewards as a bandit's, as JSON, over those before.
pub(in super::super) fn put_rewards(
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
