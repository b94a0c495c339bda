//! `polyskill plugin bench`: what a router costs, several side by side.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use polyskill_plugin::Plugin;
use polyskill_sdk::gate::Op;
use polyskill_sdk::runtime::{LibraryView, LoadedRouter};
use polyskill_sdk::testing::StubHost;
use polyskill_sdk::{Batch, Decision, LibraryChange, Parameters, Plan, Request};

use super::{SandboxArgs, Settings, prepare, say};

/// Modules in the stub libraries. Loading and starting are measured with the first.
const MODULES: [u32; 3] = [8, 64, 256];
/// Rows of a batch.
const ROWS: [usize; 3] = [1, 8, 32];
/// Loads and starts that are measured. They are slow and few; calls are many, within a time.
const LOADS: usize = 7;
/// Calls that are measured at most.
const CALLS: usize = 2_000;
/// Calls before the first that is measured.
const WARM_UP: usize = 20;
/// Time after which no further call begins, warm-up not counted. One is measured in any case.
const PATIENCE: Duration = Duration::from_millis(500);

/// Sorted seconds of one thing, or the reason for which there are none.
type Times = Result<Vec<f64>, String>;
/// The things that were measured, in the order of the table, with their times.
type Figures = Vec<(String, Times)>;

/// Measures all bundles, one after the other, and prints them side by side.
pub(super) fn run(
    bundles: &[PathBuf],
    args: &SandboxArgs,
    out: &mut dyn Write,
) -> Result<(), String> {
    let settings = Settings::new(args)?;
    let mut columns = Vec::new();
    for bundle in bundles {
        let cache = tempfile::tempdir().map_err(|error| error.to_string())?;
        columns.push(measure(bundle, cache.path(), &settings, args.native)?);
    }
    table(&columns, out)
}

/// The title and the figures of one bundle.
///
/// `cache` is an empty folder. The first loads get a cache each, so that they compile; the others
/// find compiled code in that of the first.
fn measure(
    bundle: &Path,
    cache: &Path,
    settings: &Settings,
    native: bool,
) -> Result<(String, Figures), String> {
    let fail = |error: polyskill_plugin::Error| error.to_string();
    let mut cold = Vec::new();
    for load in 0..LOADS {
        let cache = cache.join(load.to_string());
        let prepared = prepare(bundle, settings, Some(cache), native)?;
        cold.push(timed(|| prepared.loader.load(&prepared.path).map_err(fail))?);
    }
    let prepared = prepare(bundle, settings, Some(cache.join("0")), native)?;
    let mut cached = Vec::new();
    for _ in 0..LOADS {
        cached.push(timed(|| prepared.loader.load(&prepared.path).map_err(fail))?);
    }
    let plugin = prepared.loader.load(&prepared.path).map_err(fail)?;
    let parameters = settings.parameters(plugin.name());
    let view = view(&StubHost::with_modules(MODULES[0]));
    let mut starts = Vec::new();
    for _ in 0..LOADS {
        let start = || plugin.start(&view, parameters.clone()).map_err(|fault| fault.to_string());
        starts.push(timed(start)?);
    }
    let mut figures: Figures = vec![
        ("load, first time".to_owned(), Ok(sorted(cold))),
        ("load, compiled before".to_owned(), Ok(sorted(cached))),
        ("start, fixtures included".to_owned(), Ok(sorted(starts))),
    ];
    let mut routes = Vec::new();
    for modules in MODULES {
        let (planned, routed) = calls(&plugin, &parameters, modules);
        figures.push((format!("plan, {modules} modules"), planned));
        routes.extend(routed);
    }
    figures.extend(routes);
    Ok((format!("{} ({})", plugin.name(), plugin.kind()), figures))
}

/// The library as routers see it, a copy of it as it is now.
fn view(library: &StubHost) -> Arc<dyn LibraryView> {
    Arc::new(library.clone())
}

/// Seconds of work that succeeds. Its result is freed after the time is taken.
fn timed<T>(work: impl FnOnce() -> Result<T, String>) -> Result<f64, String> {
    let start = Instant::now();
    work().map(|_| start.elapsed().as_secs_f64())
}

/// Times, ascending.
fn sorted(mut times: Vec<f64>) -> Vec<f64> {
    times.sort_by(f64::total_cmp);
    times
}

/// Repeats until there are enough times or the patience ends. The first failure ends it too, and no
/// times are kept.
fn repeat(mut work: impl FnMut() -> Result<(), String>) -> Times {
    for _ in 0..WARM_UP {
        work()?;
    }
    let (begin, mut times) = (Instant::now(), Vec::new());
    while times.len() < CALLS && (times.is_empty() || begin.elapsed() < PATIENCE) {
        times.push(timed(&mut work)?);
    }
    Ok(sorted(times))
}

/// Times of plans for a library of this size; and of rows, where the plan has the router decide
/// them.
///
/// The latter are there only for gate programs of which one ends with a call of the router; the
/// first such program gives the arguments.
fn calls(plugin: &Plugin, parameters: &Parameters, modules: u32) -> (Times, Figures) {
    let mut plan = None;
    let planned = plans(plugin, parameters, modules, &mut plan);
    let Some((router, library, Plan::Gated(programs))) = plan else { return (planned, Vec::new()) };
    let last = programs.iter().filter_map(|program| program.ops.last().map(|op| (program, op)));
    let route = last.into_iter().find_map(|(program, op)| match op {
        Op::Route { hidden, arguments } => Some((program, *hidden, arguments)),
        _ => None,
    });
    let Some((program, hidden, arguments)) = route else { return (planned, Vec::new()) };
    let scores = program.ops.iter().any(|op| matches!(op, Op::Linear { .. }));
    let case = |rows: usize| {
        let shape = BatchShape { rows, modules, scores, hidden };
        let measured = route_rows(&*router, &library, shape, arguments);
        let plural = if rows == 1 { "" } else { "s" };
        (format!("route, {rows} row{plural}, {modules} modules"), measured)
    };
    (planned, ROWS.into_iter().map(case).collect())
}

/// A router that has planned, the library that it planned for, and its first plan.
type Planned = (Box<dyn LoadedRouter>, Arc<dyn LibraryView>, Plan);

/// Times of plans for all modules as candidates. `plan` gets the router for what follows, if
/// nothing failed.
fn plans(
    plugin: &Plugin,
    parameters: &Parameters,
    modules: u32,
    plan: &mut Option<Planned>,
) -> Times {
    let fail = |fault: polyskill_plugin::Fault| fault.to_string();
    let mut library = StubHost::with_modules(modules);
    let mut router = plugin.start(&view(&library), parameters.clone()).map_err(fail)?;
    let candidates: Vec<u32> = (0..modules).collect();
    let change = LibraryChange { added: candidates.clone(), removed: Vec::new() };
    let mut request = Request::for_candidates(&candidates);
    request.parameters = parameters.clone();
    request.text = Some("Which of module-0 and module-1 knows seventeen in German?".to_owned());
    let mut defined = router.library_changed(&view(&library), &change).map_err(fail)?;
    // The first plan defines what is missing; those that follow are what requests pay.
    let (first, more) = router.plan(&view(&library), &request).map_err(fail)?;
    defined.extend(more);
    for row in defined {
        library.definitions.insert((row.name, row.module, row.site), row.row);
    }
    let library = view(&library);
    let times = repeat(|| router.plan(&library, &request).map(drop).map_err(fail))?;
    *plan = Some((router, library, first));
    Ok(times)
}

/// The size of a batch that a router decides, and the inputs that come with it.
#[derive(Clone, Copy)]
struct BatchShape {
    /// Rows, which are tokens of any requests.
    rows: usize,
    /// Candidates of each row.
    modules: u32,
    /// True where the gate program gives scores, `[rows, modules]`; without it there are none.
    scores: bool,
    /// True where the router asks for hidden states, `[rows, width]`; without it there are none.
    hidden: bool,
}

/// Times of a router's decisions on batches of made-up values from 0 to 1, the same in each call.
///
/// Modules are numbered from 0 on, and all of them are candidates.
fn route_rows(
    router: &dyn LoadedRouter,
    library: &Arc<dyn LibraryView>,
    shape: BatchShape,
    arguments: &[f32],
) -> Times {
    let BatchShape { rows, modules, scores, hidden } = shape;
    let mut stepper = router.stepper(library).map_err(|fault| fault.to_string())?;
    let candidates: Vec<u32> = (0..modules).collect();
    let value = |at: usize| ((at * 7_919) % 997) as f32 / 997.0;
    let values = |count: usize| -> Vec<f32> { (0..count).map(value).collect() };
    let scores = values(if scores { rows * candidates.len() } else { 0 });
    let hidden = values(if hidden { rows * StubHost::WIDTH as usize } else { 0 });
    let batch = Batch {
        site: 0,
        num_rows: rows,
        candidates: &candidates,
        scores: &scores,
        hidden: &hidden,
        arguments,
    };
    let mut decision = Decision::default();
    repeat(|| {
        decision.clear();
        stepper.route(&batch, &mut decision).map_err(|fault| fault.to_string())
    })
}

/// Median and p99, in the unit that suits the median.
fn show(times: &Times) -> String {
    let Ok(times) = times else { return "none".to_owned() };
    let at = |quantile: f64| {
        let last = times.len().saturating_sub(1);
        times.get((last as f64 * quantile).round() as usize).copied().unwrap_or_default()
    };
    let (median, tail) = (at(0.5), at(0.99));
    let (unit, factor) = if median >= 1e-3 { ("ms", 1e3) } else { ("µs", 1e6) };
    format!("{:.1} / {:.1} {unit}", median * factor, tail * factor)
}

/// Prints a row per thing and a column per bundle, then why there are no times where there are
/// none.
///
/// Bundles may have different rows: those that one lacks show as a dash.
fn table(columns: &[(String, Figures)], out: &mut dyn Write) -> Result<(), String> {
    let mut names: Vec<&String> = Vec::new();
    for name in columns.iter().flat_map(|(_, figures)| figures).map(|(name, _)| name) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let label = names.iter().map(|name| name.len()).max().unwrap_or_default();
    let width = |title: &str| title.chars().count().max(20);
    let mut head = format!("{:label$}", "median / p99");
    for (title, _) in columns {
        head.push_str(&format!("  {title:>width$}", width = width(title)));
    }
    say(out, head)?;
    for name in names {
        let mut line = format!("{name:label$}");
        for (title, figures) in columns {
            let times = figures.iter().find(|(known, _)| known == name);
            let shown = times.map_or_else(|| "–".to_owned(), |(_, times)| show(times));
            line.push_str(&format!("  {shown:>width$}", width = width(title)));
        }
        say(out, line)?;
    }
    for (title, figures) in columns {
        for (name, times) in figures {
            if let Err(reason) = times {
                say(out, format_args!("{title}: {name}: {reason}"))?;
            }
        }
    }
    Ok(())
}
