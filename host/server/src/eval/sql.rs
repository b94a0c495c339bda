//! Whether two queries give the same rows, on SQLite in memory.
//!
//! The queries come from a model: they may read and compute, nothing else, and not for ever.

use rusqlite::hooks::{AuthAction, Authorization};
use rusqlite::limits::Limit;
use rusqlite::types::Value;
use rusqlite::{Connection, Result};

/// Rows that are compared at most.
const MAX_ROWS: usize = 10_000;
/// SQLite's instructions, in thousands, until a query is given up.
const MAX_THOUSANDS: u32 = 2_000;

/// Whether a query answers like the reference; in its order, where the reference has one.
pub(super) fn agree(setup: &str, query: &str, reference: &str) -> bool {
    let Ok(wanted) = rows(setup, reference) else { return false };
    let Ok(found) = rows(setup, query) else { return false };
    let ordered = reference.to_ascii_uppercase().contains("ORDER BY");
    let sorted = |rows: Vec<String>| {
        let mut rows = rows;
        rows.sort_unstable();
        rows
    };
    if ordered { found == wanted } else { sorted(found) == sorted(wanted) }
}

fn rows(setup: &str, query: &str) -> Result<Vec<String>> {
    let mut connection = Connection::open_in_memory()?;
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0)?;
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, 1 << 20)?;
    let mut thousands = 0;
    let too_long = move || {
        thousands += 1;
        thousands > MAX_THOUSANDS
    };
    connection.progress_handler(1_000, Some(too_long))?;
    connection.execute_batch(setup)?;
    connection.authorizer(Some(|context: rusqlite::hooks::AuthContext<'_>| {
        match context.action {
            AuthAction::Select | AuthAction::Read { .. } | AuthAction::Recursive => {
                Authorization::Allow
            }
            AuthAction::Function { function_name } if function_name != "load_extension" => {
                Authorization::Allow
            }
            _ => Authorization::Deny,
        }
    }))?;
    let mut statement = connection.prepare(query)?;
    let columns = statement.column_count();
    let mut found = statement.query([])?;
    let mut rows = Vec::new();
    while let Some(row) = found.next()? {
        if rows.len() == MAX_ROWS {
            return Err(rusqlite::Error::QueryReturnedNoRows);
        }
        let values = (0..columns).map(|at| row.get::<_, Value>(at)).collect::<Result<Vec<_>>>()?;
        rows.push(format!("{values:?}"));
    }
    Ok(rows)
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
        let many =
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n";
        assert!(rows("", many).is_err());
    }
}
