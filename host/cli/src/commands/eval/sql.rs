//! Comparison of two queries by their rows, on SQLite in memory.
//!
//! The queries come from a model: they may read and compute, nothing else, and not for ever.

use std::time::{Duration, Instant};

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::types::Value;
use rusqlite::{Connection, Result};

/// Rows that are compared at most.
const MAX_ROWS: usize = 10_000;
/// Bytes of all values of a result, as text.
const MAX_BYTES: usize = 4 << 20;
/// Bytes of a value; also bounds what one instruction of SQLite can cost.
const MAX_VALUE_BYTES: i32 = 16 << 10;
/// Pages of 4 KiB that `setup` may fill.
const MAX_PAGES: u32 = 2_048;
/// SQLite's instructions between two looks at the clock.
const LOOK_EVERY: i32 = 50;
/// Time for setup and query together. A query that takes longer is stopped and counts as wrong.
const MOST: Duration = Duration::from_secs(2);

/// True if a query gives the rows of the reference; in its order, where the reference has one.
///
/// `ORDER BY` anywhere in the reference counts, also in a part of it. Values must have the same
/// type in SQLite: 1 and 1.0 differ. A query that fails is wrong. Names of columns do not matter.
pub(super) fn agree(setup: &str, query: &str, reference: &str) -> bool {
    let Ok(mut wanted) = rows(setup, reference) else { return false };
    let Ok(mut found) = rows(setup, query) else { return false };
    if !reference.to_ascii_uppercase().contains("ORDER BY") {
        wanted.sort_unstable();
        found.sort_unstable();
    }
    found == wanted
}

/// Refuses a reference that does not run or finds nothing: any query without rows would be right
/// then.
pub(super) fn check(setup: &str, reference: &str) -> std::result::Result<(), String> {
    match rows(setup, reference) {
        Ok(rows) if rows.is_empty() => Err("the reference's query finds nothing".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("`setup` or the reference does not run: {error}")),
    }
}

/// The rows of a query on a database that `setup` has filled, each as text.
///
/// Every call makes a database of its own. `setup` comes from the task file and may do what SQLite
/// can within bounds of size and time, but attach files; the query may only read.
fn rows(setup: &str, query: &str) -> Result<Vec<String>> {
    let mut connection = Connection::open_in_memory()?;
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)?;
    connection.pragma_update(None, "max_page_count", MAX_PAGES)?;
    let started = Instant::now();
    connection.progress_handler(LOOK_EVERY, Some(move || started.elapsed() > MOST))?;
    connection.execute_batch(setup)?;
    connection.authorizer(Some(allow))?;
    let mut statement = connection.prepare(query)?;
    let columns = statement.column_count();
    let mut found = statement.query([])?;
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while let Some(row) = found.next()? {
        let values = (0..columns).map(|at| row.get::<_, Value>(at)).collect::<Result<Vec<_>>>()?;
        let text = format!("{values:?}");
        bytes += text.len();
        if rows.len() == MAX_ROWS || bytes > MAX_BYTES {
            return Err(rusqlite::Error::ToSqlConversionFailure("the result is too large".into()));
        }
        rows.push(text);
    }
    Ok(rows)
}

/// The authorizer of queries: they read and compute, nothing else. It is asked while a statement is
/// compiled.
fn allow(context: AuthContext<'_>) -> Authorization {
    match context.action {
        AuthAction::Select | AuthAction::Read { .. } | AuthAction::Recursive => {
            Authorization::Allow
        }
        AuthAction::Function { function_name } if function_name != "load_extension" => {
            Authorization::Allow
        }
        _ => Authorization::Deny,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_only_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.db");
        let setup = "CREATE TABLE t(a); INSERT INTO t VALUES (1);";
        assert!(rows(setup, "SELECT upper(a) FROM t").is_ok());
        for query in [
            format!("ATTACH DATABASE '{}' AS x", file.display()),
            format!("VACUUM INTO '{}'", file.display()),
            "DELETE FROM t".to_owned(),
            "CREATE TABLE u(a)".to_owned(),
            "PRAGMA temp_store_directory = '/'".to_owned(),
            "SELECT load_extension('x')".to_owned(),
            String::new(),
        ] {
            assert!(rows(setup, &query).is_err_and(|_| true) || query.is_empty(), "{query}");
            assert!(!agree(setup, &query, "SELECT a FROM t"), "{query}");
        }
        assert!(!file.exists());
    }

    #[test]
    fn endless_queries_end() {
        let endless =
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT sum(i) FROM n";
        assert!(rows("", endless).is_err());
        let costly = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) \
                      SELECT sum(instr(zeroblob(16000), zeroblob(8000) || x'01')) FROM n";
        assert!(rows("", costly).is_err());
        let large = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 9000) \
                     SELECT zeroblob(16000) FROM n";
        assert!(rows("", large).is_err());
        let full = "CREATE TABLE t(a); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n \
                    LIMIT 9000) INSERT INTO t SELECT zeroblob(16000) FROM n;";
        assert!(rows(full, "SELECT count(*) FROM t").is_err());
        let many =
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n";
        assert!(rows("", many).is_err());
    }
}
