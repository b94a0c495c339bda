//! Fixtures from live traffic: what a router was asked and what it planned, as its self-test reads it.

use std::collections::BTreeMap;
use std::path::Path;

use polyskill_engine::PlannedRequest;
use polyskill_sdk::runtime::Fault;
use polyskill_sdk::{Plan, Value, gate};
use serde_json::{Value as Json, json};

/// One planned request as a fixture; see `polyskill_plugin::self_test` for the format.
///
/// A fixture carries names, tags and texts of modules, not their weights: it holds for what a router
/// decides from these.
pub fn fixture(planned: &PlannedRequest) -> Json {
    let position = |module: u32| planned.request.candidates.iter().position(|&c| c == module);
    let value = |value: &Value| match value {
        Value::Flag(value) => json!(value),
        Value::Number(value) => json!(value),
        Value::Text(value) => json!(value),
    };
    let parameters: BTreeMap<&str, Json> =
        planned.request.parameters.0.iter().map(|(name, v)| (name.as_str(), value(v))).collect();
    let modules: Vec<Json> = planned
        .candidates
        .iter()
        .map(|module| {
            let metadata: BTreeMap<_, _> = module.metadata.iter().cloned().collect();
            json!({"name": module.name, "tags": module.tags, "metadata": metadata})
        })
        .collect();
    let expect = match &planned.plan {
        Ok(Plan::Fixed(picks)) => {
            let picks = picks.iter().map(|pick| json!([position(pick.module), pick.weight]));
            json!({"fixed": picks.collect::<Vec<_>>()})
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
            "parameters": parameters,
        },
        "expect": expect,
    })
}

/// Where fixtures come from and go to.
#[derive(Clone, Debug, clap::Args)]
pub struct RecordArgs {
    /// The router whose plans are recorded.
    router: String,
    /// The running server, which must keep plans (`keep_plans` in its configuration).
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    server: String,
    /// Its admin key.
    #[arg(long, env = "POLYSKILL_ADMIN_KEY", hide_env_values = true)]
    admin_key: String,
    /// The folder that gets a file per fixture, such as a bundle's `fixtures`.
    #[arg(long)]
    out: std::path::PathBuf,
}

/// Fetches the plans that a server keeps and writes them as fixtures; returns how many.
///
/// # Errors
/// If the server does not answer with plans, or a file cannot be written.
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
    let plans = body["plans"].as_array().into_iter().flatten();
    let own = plans.filter(|plan| plan["router"] == args.router.as_str());
    std::fs::create_dir_all(&args.out).map_err(|error| error.to_string())?;
    let mut count = 0;
    for plan in own {
        write(&args.out.join(format!("recorded-{count:03}.json")), &plan["fixture"])?;
        count += 1;
    }
    if count == 0 {
        let kept = body["keep_plans"].as_u64().unwrap_or_default();
        return Err(format!(
            "the server has no plans of `{}`; it keeps {kept} (`keep_plans` in its configuration)",
            args.router
        ));
    }
    Ok(count)
}

fn write(path: &Path, fixture: &Json) -> Result<(), String> {
    let text = serde_json::to_string_pretty(fixture).map_err(|error| error.to_string())?;
    std::fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))
}
