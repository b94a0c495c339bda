//! A bundle's own fixtures, run before it serves anyone.
//!
//! A fixture is a JSON file in `fixtures/`: a made-up library, a request, rows, and what the router
//! must decide. The library is [`StubHost`]'s: one layer of seven sites, eight features wide,
//! modules of rank 1 with fixed weights.
//!
//! ```json
//! {
//!   "modules": [{"name": "german", "tags": ["language"]}, {"name": "dates"}],
//!   "parameters": {"top_k": 1},
//!   "request": {"candidates": [0, 1], "text": "Wie heißt das?", "parameters": {}},
//!   "site": 0,
//!   "rows": [[1, 0, 0, 0, 0, 0, 0, 0]],
//!   "expect": {"picks": [[[0, 1.0]]]}
//! }
//! ```
//!
//! `expect` holds one of `fixed` (module and weight per pick), `merged` (the same, where A and B
//! are merged), `narrowed` (modules), `picks` (per row: position in the candidates and weight),
//! `programs` (the plan as text of a gate file) or `error` (`abstain`, `not-ready`,
//! `invalid-parameter`, `failed`). Weights may differ by 1e-4.
//!
//! Instead of a request, a fixture may hold rows that `route` is called with, whatever the plan
//! was; they come from live traffic, so sites are those of a real model. A score of `null` is −∞.
//!
//! ```json
//! {
//!   "parameters": {},
//!   "routed": [{"site": 17, "candidates": [0, 2], "arguments": [0.2, 3], "scores": [[0.1, 0.9]],
//!               "picks": [[[1, 1.0]]]}]
//! }
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use polyskill_sdk::gate::{self, Combine, Op, Program, SiteSelector};
use polyskill_sdk::runtime::{Definition, Fault, LibraryView, LoadedRouter, Stepper};
use polyskill_sdk::testing::StubHost;
use polyskill_sdk::{Batch, Decision, LibraryChange, Parameters, Plan, Request, Tensor, Value};
use serde::Deserialize;

use crate::loader::Plugin;

/// Largest difference of a weight from the one that a fixture expects.
const TOLERANCE: f32 = 1e-4;
/// Modules of a made-up library, at most.
const MAX_MODULES: usize = 4_096;

/// A fixture that passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The fixture's file.
    pub name: String,
    /// The router's decision, in short.
    pub decided: String,
}

/// A fixture's file, of one of the two kinds: with `modules`, `request` and `expect`, or with
/// `routed`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// The made-up library.
    #[serde(default)]
    modules: Option<Vec<FixtureModule>>,
    /// The router's configured parameters.
    #[serde(default)]
    parameters: BTreeMap<String, Scalar>,
    /// The request that is planned.
    #[serde(default)]
    request: Option<FixtureRequest>,
    /// The site at which rows are decided.
    #[serde(default)]
    site: u32,
    /// Inputs of that site, each of the made-up model's width.
    #[serde(default)]
    rows: Vec<Vec<f32>>,
    /// The decision that the router must come to.
    #[serde(default)]
    expect: Option<Expect>,
    /// Recorded batches.
    #[serde(default)]
    routed: Option<Vec<Routed>>,
}

/// A batch of `route`, and its picks.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Routed {
    /// Number of the site in the model that the batch was recorded of.
    site: u32,
    /// Positions in the request's candidates, one per column.
    candidates: Vec<u32>,
    /// Arguments of the program's last op.
    #[serde(default)]
    arguments: Vec<f32>,
    /// A score per row and candidate; `null` is −∞.
    scores: Vec<Vec<Option<f32>>>,
    /// Column and weight of each row's picks, by ascending column.
    picks: Vec<Vec<(u32, f32)>>,
}

/// A fixture of the first kind, complete.
struct Fixture {
    /// The made-up library.
    modules: Vec<FixtureModule>,
    /// The router's configured parameters.
    parameters: BTreeMap<String, Scalar>,
    /// The request that is planned.
    request: FixtureRequest,
    /// The site at which rows are decided.
    site: u32,
    /// Inputs of that site.
    rows: Vec<Vec<f32>>,
    /// The decision that the router must come to.
    expect: Expect,
}

/// A module of the made-up library: its card, and artefacts beside fixed weights.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FixtureModule {
    /// The name on its card.
    name: String,
    /// Tags of its card.
    #[serde(default)]
    tags: Vec<String>,
    /// Metadata of its card.
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    /// The same row at every site.
    #[serde(default)]
    artefacts: BTreeMap<String, Vec<f32>>,
}

/// A request; its parameters take precedence over the configured ones.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FixtureRequest {
    /// Numbers of the modules that may be picked.
    candidates: Vec<u32>,
    /// The last user message.
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    prompt_tokens: u32,
    #[serde(default)]
    bucket: u64,
    #[serde(default)]
    parameters: BTreeMap<String, Scalar>,
}

/// A parameter's value as JSON has it.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Scalar {
    Flag(bool),
    Number(f64),
    Text(String),
}

/// A decision, as the module's documentation lists them.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Expect {
    /// Module and weight of each pick, in the plan's order.
    Fixed(Vec<(u32, f32)>),
    /// The same, where A and B are merged.
    Merged(Vec<(u32, f32)>),
    /// The candidates that are left.
    Narrowed(Vec<u32>),
    /// Column and weight of each row's picks.
    Picks(Vec<Vec<(u32, f32)>>),
    /// The programs as text of a gate file.
    Programs(String),
    /// The kind of fault.
    Error(String),
}

/// Parameters from a fixture's table, in order of their names.
fn parameters(table: &BTreeMap<String, Scalar>) -> Parameters {
    let value = |scalar: &Scalar| match scalar {
        Scalar::Flag(value) => Value::Flag(*value),
        Scalar::Number(value) => Value::Number(*value),
        Scalar::Text(value) => Value::Text(value.clone()),
    };
    Parameters(table.iter().map(|(name, scalar)| (name.clone(), value(scalar))).collect())
}

/// Runs one fixture, in an instance of its own.
///
/// # Errors
/// If the fixture lacks something, or the decision is another than it expects; the message says
/// both.
pub fn run(plugin: &Plugin, name: &str, bytes: &[u8]) -> Result<Report, Fault> {
    let fail = |reason: String| Fault::Failed(format!("self-test {name}: {reason}"));
    let file: File = serde_json::from_slice(bytes).map_err(|error| fail(error.to_string()))?;
    let File { modules, parameters: configured, request, site, rows, expect, routed } = file;
    let fixture = match (modules, request, expect, routed) {
        (Some(modules), Some(request), Some(expect), None) => {
            Fixture { modules, parameters: configured, request, site, rows, expect }
        }
        (None, None, None, Some(routed)) => {
            let decided = replay(plugin, &parameters(&configured), &routed).map_err(fail)?;
            return Ok(Report { name: name.to_owned(), decided });
        }
        _ => {
            let parts = "`modules`, `request` and `expect`, or `routed` without these";
            return Err(fail(format!("expected {parts}")));
        }
    };
    let library = library(&fixture).map_err(fail)?;
    let configured = parameters(&fixture.parameters);
    let view: Arc<dyn LibraryView> = Arc::new(library.clone());
    let mut router = plugin.instantiate(&view, configured.clone())?;
    let found = match decide(&mut *router, library, &fixture, configured) {
        Ok(found) => found,
        Err(fault) => Expect::Error(error_name(&fault).ok_or_else(|| fail(fault.to_string()))?),
    };
    if same(&found, &fixture.expect) {
        return Ok(Report { name: name.to_owned(), decided: format!("{found:?}") });
    }
    Err(fail(format!("decided {found:?}, expected {:?}", fixture.expect)))
}

/// Has a router decide recorded rows; says how many.
fn replay(plugin: &Plugin, configured: &Parameters, routed: &[Routed]) -> Result<String, String> {
    let view: Arc<dyn LibraryView> = Arc::new(StubHost::with_modules(0));
    let router = plugin.instantiate(&view, configured.clone()).map_err(|f| f.to_string())?;
    let mut stepper = router.stepper(&view).map_err(|fault| fault.to_string())?;
    let mut num_rows = 0;
    for (at, Routed { site, candidates, arguments, scores, picks }) in routed.iter().enumerate() {
        let columns = candidates.len();
        if let Some(row) = scores.iter().find(|row| row.len() != columns) {
            let found = row.len();
            return Err(format!("routed {at}: {found} scores for {columns} candidates"));
        }
        let scores: Vec<f32> =
            scores.iter().flatten().map(|score| score.unwrap_or(f32::NEG_INFINITY)).collect();
        let batch = Batch {
            site: *site,
            num_rows: picks.len(),
            candidates,
            scores: &scores,
            hidden: &[],
            arguments,
        };
        if scores.len() != picks.len() * columns {
            let (found, expected) = (scores.len(), picks.len() * columns);
            return Err(format!("routed {at}: {found} scores, expected {expected}"));
        }
        let decided = route(&mut *stepper, &batch).map_err(|f| format!("routed {at}: {f}"))?;
        let (decided, expected) = (Expect::Picks(decided), Expect::Picks(picks.clone()));
        if !same(&decided, &expected) {
            return Err(format!("routed {at}: decided {decided:?}, expected {expected:?}"));
        }
        num_rows += batch.num_rows;
    }
    Ok(format!("{num_rows} recorded rows"))
}

/// Has rows decided; the picks of each in ascending order.
fn route(stepper: &mut dyn Stepper, batch: &Batch<'_>) -> Result<Vec<Vec<(u32, f32)>>, Fault> {
    let mut decision = Decision::default();
    stepper.route(batch, &mut decision)?;
    decision.check_rows(batch.num_rows).map_err(Fault::Failed)?;
    let checked = (0..batch.num_rows).map(|row| {
        let mut picks = Vec::new();
        decision.row(row, batch.candidates.len(), &mut picks).map_err(Fault::Failed)?;
        picks.sort_by_key(|(column, _)| *column);
        Ok(picks)
    });
    checked.collect()
}

/// The fixture's word for a fault; `None` for a trap, which no fixture may expect.
fn error_name(fault: &Fault) -> Option<String> {
    let name = match fault {
        Fault::Abstain => "abstain",
        Fault::NotReady(_) => "not-ready",
        Fault::InvalidParameter(_) => "invalid-parameter",
        Fault::Failed(_) => "failed",
        Fault::Trap(_) => return None,
    };
    Some(name.to_owned())
}

/// The made-up library of a fixture.
///
/// # Errors
/// If it is too large, or the fixture names a candidate, a site or a width that it lacks.
fn library(fixture: &Fixture) -> Result<StubHost, String> {
    if fixture.modules.len() > MAX_MODULES {
        return Err(format!("{} modules, at most {MAX_MODULES}", fixture.modules.len()));
    }
    let width = StubHost::WIDTH as usize;
    if let Some(row) = fixture.rows.iter().find(|row| row.len() != width) {
        return Err(format!("a row of {} values, expected {width}", row.len()));
    }
    let mut host = StubHost::with_modules(fixture.modules.len() as u32);
    let num_sites = LibraryView::model(&host).sites.len() as u32;
    for (index, module) in (0..).zip(&fixture.modules) {
        if let Some(info) = host.module_mut(index) {
            info.name.clone_from(&module.name);
            info.tags.clone_from(&module.tags);
            info.metadata = module.metadata.clone().into_iter().collect();
        }
        for (name, row) in &module.artefacts {
            for site in 0..num_sites {
                let tensor = Tensor { shape: vec![row.len() as u32], values: row.clone() };
                host.set_artefact(index, site, name, tensor);
            }
        }
    }
    match fixture.request.candidates.iter().find(|&&c| c as usize >= fixture.modules.len()) {
        Some(candidate) => Err(format!("candidate {candidate} of {}", fixture.modules.len())),
        None if fixture.site >= num_sites => Err(format!("site {} of {num_sites}", fixture.site)),
        None => Ok(host),
    }
}

/// Tells the router of the library, plans, and decides the rows.
fn decide(
    router: &mut dyn LoadedRouter,
    mut library: StubHost,
    fixture: &Fixture,
    mut merged: Parameters,
) -> Result<Expect, Fault> {
    let keep = |library: &mut StubHost, definitions: Vec<Definition>| {
        for Definition { name, module, site, row } in definitions {
            library.definitions.insert((name, module, site), row);
        }
    };
    let own = parameters(&fixture.request.parameters);
    merged.0.retain(|(name, _)| own.get(name).is_none());
    merged.0.extend(own.0);
    let request = Request {
        parameters: merged,
        candidates: fixture.request.candidates.clone(),
        prompt_tokens: fixture.request.prompt_tokens,
        text: fixture.request.text.clone(),
        bucket: fixture.request.bucket,
    };
    let added = (0..fixture.modules.len() as u32).collect();
    let change = LibraryChange { added, removed: Vec::new() };
    let view: Arc<dyn LibraryView> = Arc::new(library.clone());
    let definitions = router.library_changed(&view, &change)?;
    keep(&mut library, definitions);
    let view: Arc<dyn LibraryView> = Arc::new(library.clone());
    let (plan, definitions) = router.plan(&view, &request)?;
    keep(&mut library, definitions);
    match plan {
        Plan::Fixed { picks, combine } => {
            let picks = picks.iter().map(|pick| (pick.module, pick.weight)).collect();
            Ok(match combine {
                Combine::OutputSum => Expect::Fixed(picks),
                Combine::AbMerge => Expect::Merged(picks),
            })
        }
        Plan::Narrowed(candidates) => Ok(Expect::Narrowed(candidates)),
        Plan::Gated(programs) if matches!(fixture.expect, Expect::Programs(_)) => {
            Ok(Expect::Programs(gate::to_text(&programs)))
        }
        Plan::Gated(programs) => {
            let view: Arc<dyn LibraryView> = Arc::new(library.clone());
            let at_site = |program: &&Program| match &program.sites {
                SiteSelector::All => true,
                SiteSelector::Listed(sites) => sites.contains(&fixture.site),
            };
            let Some(program) = programs.iter().find(at_site) else {
                return Ok(Expect::Picks(vec![Vec::new(); fixture.rows.len()]));
            };
            picks(router, &view, &library, program, &request.candidates, fixture)
        }
    }
}

/// The picks of the fixture's rows by an interpreted program; its last op may hand the scores to
/// the router's `route`.
fn picks(
    router: &dyn LoadedRouter,
    view: &Arc<dyn LibraryView>,
    library: &StubHost,
    program: &Program,
    candidates: &[u32],
    fixture: &Fixture,
) -> Result<Expect, Fault> {
    let row =
        |name: &str, module: u32| library.definitions.get(&(name.to_owned(), module, fixture.site));
    let defined = |name: &str| candidates.iter().all(|&module| row(name, module).is_some());
    gate::check(program, defined).map_err(|error| Fault::Failed(error.to_string()))?;
    let rows = |name: &str| {
        candidates.iter().filter_map(|&module| row(name, module)).map(Vec::as_slice).collect()
    };
    let interpret = |input: &Vec<f32>| {
        let scores = gate::interpret(&program.ops, input, rows);
        scores.ok_or_else(|| Fault::Failed("a weight is not finite".to_owned()))
    };
    let decided: Vec<Vec<(u32, f32)>> =
        fixture.rows.iter().map(interpret).collect::<Result<_, _>>()?;
    let Some(Op::Route { hidden, arguments }) = program.ops.last() else {
        return Ok(Expect::Picks(decided));
    };
    // Scores before `route` may have been thinned out: the columns are what is left in every row.
    let columns: Vec<u32> = (0..candidates.len() as u32).collect();
    let scores: Vec<f32> = decided
        .iter()
        .filter(|row| !row.is_empty())
        .flat_map(|row| {
            columns.iter().map(|&column| {
                row.iter().find(|(at, _)| *at == column).map_or(f32::NEG_INFINITY, |(_, s)| *s)
            })
        })
        .collect();
    let inputs: Vec<f32> = fixture.rows.iter().flatten().copied().collect();
    let batch = Batch {
        site: fixture.site,
        num_rows: fixture.rows.len(),
        candidates: &columns,
        scores: &scores,
        hidden: if *hidden { &inputs } else { &[] },
        arguments,
    };
    Ok(Expect::Picks(route(&mut *router.stepper(view)?, &batch)?))
}

/// True if both decisions are of one kind and their weights differ by no more than [`TOLERANCE`].
fn same(found: &Expect, expected: &Expect) -> bool {
    let close = |a: &[(u32, f32)], b: &[(u32, f32)]| {
        let near =
            |(a, b): (&(u32, f32), &(u32, f32))| a.0 == b.0 && (a.1 - b.1).abs() <= TOLERANCE;
        a.len() == b.len() && a.iter().zip(b).all(near)
    };
    match (found, expected) {
        (Expect::Fixed(a), Expect::Fixed(b)) | (Expect::Merged(a), Expect::Merged(b)) => {
            close(a, b)
        }
        (Expect::Picks(a), Expect::Picks(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| close(a, b))
        }
        (a, b) => a == b,
    }
}
