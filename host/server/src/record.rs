//! Fixtures from live traffic: what a router was asked, what it planned and how its `route` decided rows, as
//! its self-test reads it.

use std::collections::BTreeMap;
use std::path::Path;

use polyskill_engine::{PlannedRequest, RoutedRow, RoutedRows};
use polyskill_sdk::gate::Combine;
use polyskill_sdk::runtime::Fault;
use polyskill_sdk::{Parameters, Plan, Value, gate};
use serde_json::{Value as Json, json};

/// One planned request as a fixture; see `polyskill_plugin::self_test` for the format.
///
/// A fixture carries names, tags and texts of modules, not their weights: it holds for what a router
/// decides from these.
pub fn fixture(planned: &PlannedRequest) -> Json {
    let position = |module: u32| planned.request.candidates.iter().position(|&c| c == module);
    let modules: Vec<Json> = planned
        .candidates
        .iter()
        .map(|module| {
            let metadata: BTreeMap<_, _> = module.metadata.iter().cloned().collect();
            json!({"name": module.name, "tags": module.tags, "metadata": metadata})
        })
        .collect();
    let expect = match &planned.plan {
        Ok(Plan::Fixed { picks, combine }) => {
            let picks = picks.iter().map(|pick| json!([position(pick.module), pick.weight]));
            let how = match combine {
                Combine::OutputSum => "fixed",
                Combine::AbMerge => "merged",
            };
            json!({ (how): picks.collect::<Vec<_>>() })
        }
        Ok(Plan::Narrowed(fewer)) => {
            json!({"narrowed": fewer.iter().map(|&module| position(module)).collect::<Vec<_>>()})
        }
        Ok(Plan::Gated(programs)) => json!({"programs": gate::to_text(programs)}),
        Err(fault) => json!({"error": match fault {
            Fault::Abstain => "abstain",
            Fault::NotReady(_) => "not-ready",
            Fault::InvalidParameter(_) => "invalid-parameter",
            Fault::Failed(_) | Fault::Trap(_) => "failed",
        }}),
    };
    json!({
        "modules": modules,
        "request": {
            "candidates": (0..planned.candidates.len()).collect::<Vec<_>>(),
            "text": planned.request.text,
            "prompt_tokens": planned.request.prompt_tokens,
            "bucket": planned.request.bucket,
            "parameters": parameters(&planned.request.parameters),
        },
        "expect": expect,
    })
}

fn parameters(parameters: &Parameters) -> BTreeMap<&str, Json> {
    let value = |value: &Value| match value {
        Value::Flag(value) => json!(value),
        Value::Number(value) => json!(value),
        Value::Text(value) => json!(value),
    };
    parameters.0.iter().map(|(name, v)| (name.as_str(), value(v))).collect()
}

/// The kept rows of a router as one fixture, which calls `route` with them.
pub fn rows_fixture(kept: &RoutedRows) -> Json {
    // JSON has no infinities: `null` is the score of a candidate that the program had dropped.
    let score = |&score: &f32| if score.is_finite() { json!(score) } else { Json::Null };
    let row = |row: &RoutedRow| {
        json!({
            "site": row.site,
            "candidates": row.candidates,
            "arguments": row.arguments,
            "scores": [row.scores.iter().map(score).collect::<Vec<_>>()],
            "picks": [row.picks],
        })
    };
    json!({
        "parameters": parameters(&kept.parameters),
        "routed": kept.rows.iter().map(row).collect::<Vec<_>>(),
    })
}

/// Where fixtures come from and go to.
#[derive(Clone, Debug, clap::Args)]
pub struct RecordArgs {
    /// The router whose plans and rows are recorded.
    router: String,
    /// The running server, which must keep some (`keep_plans` and `keep_rows` in its configuration).
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    server: String,
    /// Its admin key.
    #[arg(long, env = "POLYSKILL_ADMIN_KEY", hide_env_values = true)]
    admin_key: String,
    /// The folder that gets a file per fixture, such as a bundle's `fixtures`.
    #[arg(long)]
    out: std::path::PathBuf,
}

/// Fetches the plans and rows that a server keeps and writes them as fixtures; returns how many files.
///
/// # Errors
/// If the server does not answer with any, or a file cannot be written.
pub fn record(args: &RecordArgs) -> Result<usize, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let url = format!("{}/admin/plans", args.server.trim_end_matches('/'));
    let fetch = async {
        let request = reqwest::Client::new().get(&url).bearer_auth(&args.admin_key);
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
    for (number, plan) in plans.iter().enumerate() {
        write(&args.out.join(format!("recorded-{number:03}.json")), &plan["fixture"])?;
    }
    for kept in &rows {
        write(&args.out.join("recorded-rows.json"), &kept["fixture"])?;
    }
    Ok(plans.len() + rows.len())
}

fn write(path: &Path, fixture: &Json) -> Result<(), String> {
    let text = serde_json::to_string_pretty(fixture).map_err(|error| error.to_string())?;
    std::fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))
}
