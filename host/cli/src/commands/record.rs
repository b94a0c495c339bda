//! `polyskill record`: what a server keeps, written as a bundle's fixtures.

use std::collections::BTreeMap;
use std::path::Path;

use polyskill_sources::http_client;
use serde_json::Value as Json;

/// A running server, the router whose decisions are taken from it, and the folder of the fixtures.
#[derive(Clone, Debug, clap::Args)]
pub struct RecordArgs {
    /// The router whose plans and rows are recorded.
    router: String,
    /// The running server, which must keep some (`keep_plans` and `keep_rows` in its
    /// configuration).
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    server: String,
    /// Its admin key.
    #[arg(long, env = "POLYSKILL_ADMIN_KEY", hide_env_values = true)]
    admin_key: String,
    /// The folder that gets a file per fixture, such as a bundle's `fixtures`.
    #[arg(long)]
    out: std::path::PathBuf,
}

/// Fetches the plans and rows that a server keeps and writes them as fixtures; returns how many
/// files.
///
/// Plans become `recorded-000.json` and so on, and rows `recorded-rows.json`; where the server has
/// several lists of rows, the others have numbers. Files of these names are overwritten, and others
/// in the folder stay. The server answers from what it keeps in memory at that moment, so only
/// recent requests are there.
///
/// # Errors
/// If the server does not answer with any, or a file cannot be written.
pub fn record(args: &RecordArgs) -> Result<usize, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let url = format!("{}/admin/plans", args.server.trim_end_matches('/'));
    let client = http_client().build().map_err(|error| error.to_string())?;
    let fetch = async {
        let request = client.get(&url).bearer_auth(&args.admin_key);
        let reply = request.send().await.map_err(|error| format!("{url}: {error}"))?;
        let status = reply.status();
        let body = reply.text().await.map_err(|error| format!("{url}: {error}"))?;
        match status.is_success() {
            true => Ok(body),
            false => Err(format!("{url} answered {status}: {body}")),
        }
    };
    let body = runtime.block_on(fetch)?;
    let body: Json = serde_json::from_str(&body).map_err(|error| format!("{url}: {error}"))?;
    let own = |what: &str| {
        let kept = body[what].as_array().cloned().unwrap_or_default();
        kept.into_iter().filter(|kept| kept["router"] == args.router.as_str()).collect::<Vec<_>>()
    };
    let (plans, rows) = (own("plans"), own("rows"));
    if plans.is_empty() && rows.is_empty() {
        let most = |name: &str| body[name].as_u64().unwrap_or_default();
        return Err(format!(
            "the server has no plans and no rows of `{}`; its configuration says `keep_plans = {}` \
             and `keep_rows = {}`",
            args.router,
            most("keep_plans"),
            most("keep_rows"),
        ));
    }
    std::fs::create_dir_all(&args.out).map_err(|error| error.to_string())?;
    let files = files(&plans, &rows);
    for (name, fixture) in &files {
        write(&args.out.join(name), fixture)?;
    }
    Ok(files.len())
}

/// The fixtures by the names of their files.
fn files<'a>(plans: &'a [Json], rows: &'a [Json]) -> BTreeMap<String, &'a Json> {
    let plan = |number: usize| format!("recorded-{number:03}.json");
    let list = |number: usize| match number {
        0 => "recorded-rows.json".to_owned(),
        _ => format!("recorded-rows-{number:03}.json"),
    };
    let plans = plans.iter().enumerate().map(|(number, kept)| (plan(number), &kept["fixture"]));
    let rows = rows.iter().enumerate().map(|(number, kept)| (list(number), &kept["fixture"]));
    plans.chain(rows).collect()
}

/// Writes a fixture as indented JSON with a line feed at its end.
fn write(path: &Path, fixture: &Json) -> Result<(), String> {
    let text = serde_json::to_string_pretty(fixture).map_err(|error| error.to_string())?;
    std::fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_fixture_has_a_file() {
        let kept: Vec<Json> = (0..3).map(|at| json!({"fixture": at})).collect();
        let files = files(&kept[..1], &kept[1..]);
        let expected = [
            ("recorded-000.json".to_owned(), &kept[0]["fixture"]),
            ("recorded-rows-001.json".to_owned(), &kept[2]["fixture"]),
            ("recorded-rows.json".to_owned(), &kept[1]["fixture"]),
        ];
        assert_eq!(files.into_iter().collect::<Vec<_>>(), expected);
    }
}
