//! A conformance suite: made-up libraries, requests and batches, run against any build of a router.
//!
//! [`run`] finds what no host would accept, and returns a [`Transcript`]: two builds of one router, native
//! and sandboxed for instance, must give equal ones.

use std::sync::Arc;

use crate::batch::{Batch, Decision};
use crate::gate::{self, Op, Program};
use crate::parameters::Parameters;
use crate::router::{LibraryChange, ModuleInfo, Plan, Request};
use crate::runtime::{Definition, Fault, LibraryView, LoadedRouter};
use crate::testing::StubHost;

/// Makes an instance of the router under test. Called twice at least: a second instance must plan
/// as the first does.
pub type Make<'a> =
    dyn Fn(&Arc<dyn LibraryView>, Parameters) -> Result<Box<dyn LoadedRouter>, Fault> + 'a;

/// All that a router decided, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transcript(pub Vec<Decided>);

/// One decision.
#[derive(Clone, Debug, PartialEq)]
pub enum Decided {
    /// An answer to `plan`.
    Plan(Result<Plan, Fault>),
    /// The rows that a call defined, in the order of names, modules and sites.
    Definitions(Vec<Definition>),
    /// An answer to `route`; bits of weights, so that equal means equal.
    Rows(Result<Vec<Vec<(u32, u32)>>, Fault>),
}

/// A behaviour of a router that no host accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The place in the suite: the library, the text, or the instance.
    pub case: String,
    /// The found and the expected behaviour.
    pub message: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.case, self.message)
    }
}

impl std::error::Error for Violation {}

/// Library sizes, as they shrink and grow under one instance.
const LIBRARIES: [u32; 5] = [3, 17, 2, 1, 3];
/// Rows per batch. No row, one, a few, and a large batch.
const ROWS: [usize; 4] = [0, 1, 7, 256];
/// No text, an empty one, and a sentence.
const TEXTS: [Option<&str>; 3] = [None, Some(""), Some("What is seventeen in German?")];

/// Modules and texts beside the made-up ones, for routers that decide by these.
#[derive(Clone, Debug, Default)]
pub struct Cast {
    /// Names, tags and metadata for the first modules of every library; their other fields are not
    /// looked at.
    pub modules: Vec<ModuleInfo>,
    /// Texts of users, tried beside the suite's own.
    pub texts: Vec<String>,
}

impl Cast {
    /// A library of so many modules, of which the first ones are dressed as the cast says.
    fn library(&self, size: u32) -> StubHost {
        let mut library = StubHost::with_modules(size);
        for (index, module) in (0..size).zip(&self.modules) {
            if let Some(info) = library.module_mut(index) {
                info.name.clone_from(&module.name);
                info.tags.clone_from(&module.tags);
                info.metadata.clone_from(&module.metadata);
            }
        }
        library
    }

    /// The suite's texts, then the cast's.
    fn texts(&self) -> impl Iterator<Item = Option<&str>> {
        TEXTS.into_iter().chain(self.texts.iter().map(|text| Some(text.as_str())))
    }
}

/// Runs the suite with these parameters on every request.
///
/// # Errors
/// The first violation: a trap, an unusable plan or row, an answer that is not the same twice.
pub fn run(make: &Make<'_>, parameters: &Parameters) -> Result<Transcript, Violation> {
    run_with(make, parameters, &Cast::default())
}

/// As [`run`], with modules and texts to which the router has an answer. Each library is planned
/// for with each text, twice. Definitions of modules that are left over a change of the library are
/// kept, as the host keeps them.
///
/// # Errors
/// As there.
pub fn run_with(
    make: &Make<'_>,
    parameters: &Parameters,
    cast: &Cast,
) -> Result<Transcript, Violation> {
    let mut transcript = Transcript::default();
    let mut library = cast.library(LIBRARIES[0]);
    let view: Arc<dyn LibraryView> = Arc::new(library.clone());
    let made = |case: &str| {
        let fail = |fault: Fault| violation(case, &fault.to_string());
        make(&view, parameters.clone()).map_err(fail)
    };
    let mut router = made("init")?;
    let mut known = 0;
    for size in LIBRARIES {
        let case = format!("library of {size} modules");
        let fresh = cast.library(size);
        let definitions = std::mem::replace(&mut library, fresh).definitions;
        library.definitions =
            definitions.into_iter().filter(|((_, module, _), _)| *module < size).collect();
        let change = LibraryChange {
            added: (known.min(size)..size).collect(),
            removed: (size..known.max(size)).map(|index| format!("{index:064x}")).collect(),
        };
        known = size;
        let view: Arc<dyn LibraryView> = Arc::new(library.clone());
        let defined = router.library_changed(&view, &change);
        let defined = defined.map_err(|fault| violation(&case, &fault.to_string()))?;
        keep(&mut library, &mut transcript, defined);
        for text in cast.texts() {
            plan_twice(&mut *router, &mut library, &case, text, parameters, &mut transcript)?;
        }
    }
    // Another instance knows nothing of the first, and decides the same.
    let mut other = made("a second init")?;
    let mut again = Transcript::default();
    for text in cast.texts() {
        plan_twice(&mut *other, &mut library, "a second instance", text, parameters, &mut again)?;
    }
    let plans = |transcript: &Transcript| -> Vec<Decided> {
        let plan = |decided: &&Decided| matches!(decided, Decided::Plan(_));
        transcript.0.iter().filter(plan).cloned().collect()
    };
    if !plans(&transcript).ends_with(&plans(&again)) {
        return Err(violation("a second instance", "it plans differently from the first"));
    }
    Ok(transcript)
}

/// A violation from its parts.
fn violation(case: &str, message: &str) -> Violation {
    Violation { case: case.to_owned(), message: message.to_owned() }
}

/// Files definitions with the library, as the host does, and notes them in the transcript, sorted.
fn keep(library: &mut StubHost, transcript: &mut Transcript, mut defined: Vec<Definition>) {
    let key = |d: &Definition| (d.name.clone(), d.module, d.site);
    defined.sort_by_key(key);
    for definition in &defined {
        library.definitions.insert(key(definition), definition.row.clone());
    }
    transcript.0.push(Decided::Definitions(defined));
}

/// Plans the same request twice, checks the answer, and has its rows decided. All modules of the
/// library are candidates. A fault other than a trap is a valid answer, as long as it is the same
/// both times.
fn plan_twice(
    router: &mut dyn LoadedRouter,
    library: &mut StubHost,
    case: &str,
    text: Option<&str>,
    parameters: &Parameters,
    transcript: &mut Transcript,
) -> Result<(), Violation> {
    let case = format!("{case}, text {text:?}");
    let candidates: Vec<u32> = (0..LibraryView::modules(library).len() as u32).collect();
    let mut request = Request::for_candidates(&candidates);
    request.text = text.map(str::to_owned);
    request.parameters = parameters.clone();
    let mut plans = Vec::new();
    for _ in 0..2 {
        let view: Arc<dyn LibraryView> = Arc::new(library.clone());
        plans.push(match router.plan(&view, &request) {
            Ok((plan, defined)) => {
                keep(library, transcript, defined);
                Ok(plan)
            }
            Err(fault @ Fault::Trap(_)) => return Err(violation(&case, &fault.to_string())),
            Err(fault) => Err(fault),
        });
    }
    let (second, first) = (plans.pop(), plans.pop());
    if first != second {
        return Err(violation(&case, "the same request is planned differently the second time"));
    }
    let Some(plan) = first else { return Ok(()) };
    if let Ok(plan) = &plan {
        check_plan(plan, library, &candidates).map_err(|reason| violation(&case, &reason))?;
    }
    transcript.0.push(Decided::Plan(plan.clone()));
    let Ok(Plan::Gated(programs)) = plan else { return Ok(()) };
    for program in &programs {
        if matches!(program.ops.last(), Some(Op::Route { .. })) {
            let view: Arc<dyn LibraryView> = Arc::new(library.clone());
            route(router, &view, &candidates, &program.ops, transcript)
                .map_err(|reason| violation(&case, &reason))?;
        }
    }
    Ok(())
}

/// Checks what any host does: picks and narrowed modules are candidates and named once, weights are
/// finite, and programs pass [`gate::check`].
fn check_plan(plan: &Plan, library: &StubHost, candidates: &[u32]) -> Result<(), String> {
    let unique = |modules: Vec<u32>| {
        let mut sorted = modules.clone();
        sorted.sort_unstable();
        sorted.dedup();
        match modules.iter().find(|module| !candidates.contains(module)) {
            Some(module) => Err(format!("module {module} is no candidate")),
            None if sorted.len() < modules.len() => Err("a module is named twice".to_owned()),
            None => Ok(()),
        }
    };
    match plan {
        Plan::Fixed { picks, .. } => {
            if let Some(pick) = picks.iter().find(|pick| !pick.weight.is_finite()) {
                return Err(format!("module {} has the weight {}", pick.module, pick.weight));
            }
            unique(picks.iter().map(|pick| pick.module).collect())
        }
        Plan::Narrowed(fewer) => unique(fewer.clone()),
        Plan::Gated(programs) => programs.iter().try_for_each(|program: &Program| {
            let defined = |name: &str| {
                let row =
                    |module: &u32| library.definitions.contains_key(&(name.to_owned(), *module, 0));
                candidates.iter().all(row)
            };
            gate::check(program, defined).map_err(|error| error.to_string())
        }),
    }
}

/// Has batches of several sizes decided, with ties, −∞ and scores that are not numbers among them.
/// `ops` is the whole program, of which the last op is `route`. The scores are those that a host
/// would hand over: made-up products through the ops behind `linear`.
fn route(
    router: &dyn LoadedRouter,
    view: &Arc<dyn LibraryView>,
    candidates: &[u32],
    ops: &[Op],
    transcript: &mut Transcript,
) -> Result<(), String> {
    let Some(Op::Route { hidden, arguments }) = ops.last() else { return Ok(()) };
    let linear = ops.iter().position(|op| matches!(op, Op::Linear { .. }));
    let mut stepper = router.stepper(view).map_err(|fault| fault.to_string())?;
    for rows in ROWS {
        let scores: Vec<f32> = match linear {
            Some(at) => {
                (0..rows).flat_map(|row| scores(row, candidates.len(), &ops[at..])).collect()
            }
            None => Vec::new(),
        };
        let width = if *hidden { StubHost::WIDTH as usize } else { 0 };
        let hidden: Vec<f32> = (0..rows * width).map(|at| (at % 13) as f32 / 6.0 - 1.0).collect();
        let batch = Batch {
            site: 0,
            num_rows: rows,
            candidates,
            scores: &scores,
            hidden: &hidden,
            arguments,
        };
        let mut decision = Decision::default();
        let routed = match stepper.route(&batch, &mut decision) {
            Err(fault @ Fault::Trap(_)) => return Err(format!("{rows} rows: {fault}")),
            Err(fault) => Err(fault),
            Ok(()) => Ok(picks(&batch, &decision)?),
        };
        transcript.0.push(Decided::Rows(routed));
    }
    Ok(())
}

/// A row as the host hands it over: made-up products, through the ops that follow. −∞ stands for
/// columns that an op has dropped. The first row has no odd scores.
fn scores(row: usize, columns: usize, ops: &[Op]) -> Vec<f32> {
    let odd = [f32::NAN, f32::NEG_INFINITY, f32::INFINITY, 0.0];
    let product = |column: usize| match (row * columns + column) % 41 {
        special @ 37..=40 if row > 0 => odd[special - 37],
        _ => (((row * columns + column) * 7919) % 23) as f32 / 4.0 - 2.0,
    };
    let mut left: Vec<(u32, f32)> = (0..columns).map(|c| (c as u32, product(c))).collect();
    ops.iter().for_each(|op| gate::apply_to_scores(op, &mut left));
    let mut scores = vec![f32::NEG_INFINITY; columns];
    left.iter().for_each(|&(column, score)| scores[column as usize] = score);
    scores
}

/// The picks of each row, weights as bits; empty for a row of odd scores that has no valid answer.
fn picks(batch: &Batch<'_>, decision: &Decision) -> Result<Vec<Vec<(u32, u32)>>, String> {
    decision.check_rows(batch.num_rows)?;
    let row = |row: usize| {
        let mut picks = Vec::new();
        // A row of odd scores may have no answer; a row of numbers must.
        let odd = batch.scores_of(row).iter().any(|score| !score.is_finite());
        match decision.row(row, batch.candidates.len(), &mut picks) {
            Err(reason) if !odd => Err(format!("row {row} of {}: {reason}", batch.num_rows)),
            Err(_) => Ok(Vec::new()),
            Ok(()) => {
                Ok(picks.iter().map(|(column, weight)| (*column, weight.to_bits())).collect())
            }
        }
    };
    (0..batch.num_rows).map(row).collect()
}
