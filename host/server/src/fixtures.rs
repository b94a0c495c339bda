//! Fixtures from live traffic: requests to a router, its plans, and the rows that its `route`
//! decided, as its self-test reads them.

use std::collections::BTreeMap;

use polyskill_engine::{PlannedRequest, RoutedRow, RoutedRows};
use polyskill_sdk::gate::Combine;
use polyskill_sdk::runtime::Fault;
use polyskill_sdk::{Parameters, Plan, Value, gate};
use serde_json::{Value as Json, json};

/// One planned request as a fixture; see `polyskill_plugin::self_test` for the format.
///
/// Modules are numbered by their place among the candidates. A fixture carries their names, tags
/// and texts, not their weights: it holds for decisions that a router makes from these.
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

/// Parameters as a JSON object's entries, ordered by name.
fn parameters(parameters: &Parameters) -> BTreeMap<&str, Json> {
    let value = |value: &Value| match value {
        Value::Flag(value) => json!(value),
        Value::Number(value) => json!(value),
        Value::Text(value) => json!(value),
    };
    parameters.0.iter().map(|(name, v)| (name.as_str(), value(v))).collect()
}

/// The kept rows of a router as one fixture, which calls `route` with them. Each row stands for
/// itself: its scores and picks are lists of one row.
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
