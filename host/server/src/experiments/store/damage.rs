//! Damage of the file, and the place where a damaged file goes.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode};

/// Reads the file and looks for pages and rows that cannot be; the time grows with its size.
pub(super) fn check(connection: &Connection) -> rusqlite::Result<()> {
    let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found == "ok" {
        return Ok(());
    }
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    Err(rusqlite::Error::SqliteFailure(code, Some(found)))
}

/// True for an error that says the file's bytes are no database, or no longer one.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Moves a file with its log to a name of their own beside it, from which SQLite's tools may still
/// recover rows, and returns the new place.
pub(super) fn set_aside(place: &Path) -> std::io::Result<PathBuf> {
    let with = |path: &Path, end: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        PathBuf::from(name)
    };
    let mut names = (1..=1_000).map(|number| with(place, &format!(".damaged-{number}")));
    let Some(moved) = names.find(|path| !path.exists()) else {
        return Err(std::io::Error::other("1,000 damaged files lie beside it already"));
    };
    std::fs::rename(place, &moved)?;
    for end in ["-wal", "-shm"] {
        match std::fs::rename(with(place, end), with(&moved, end)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(moved)
}
