//! `polyskill eval`: task files through several compositions, and what each gets right.
//!
//! The [`Task`]s and the [`Column`]s to compare are read, every item runs through the engine that
//! serves, and the [`Outcome`]s become a [`Report`]. They are kept line by line, so that a run that
//! was stopped goes on.

use std::path::PathBuf;

use clap::Args;

use polyskill_server::service::Service;

mod columns;
mod html;
mod metric;
mod report;
mod results;
mod run;
#[cfg_attr(not(feature = "sql"), path = "eval/no_sql.rs")]
mod sql;
mod statistics;
mod tasks;

pub use columns::{Column, read_columns};
pub use metric::{Metric, score};
pub use report::{Cost, Report, Row, Shares};
pub use results::{Outcome, Routing};
pub use statistics::{Estimate, Pair, bootstrap};
pub use tasks::{Item, Message, Task, read_tasks};

/// The tasks that are evaluated, the columns to compare, and the directory of the results.
#[derive(Args, Clone, Debug)]
pub struct EvalArgs {
    /// A task file (JSON lines) or a directory of them; repeatable.
    #[arg(long = "tasks", required = true)]
    pub tasks: Vec<PathBuf>,
    /// Columns to compare (TOML); without it the base, each item's own module and each skill set.
    #[arg(long)]
    pub columns: Option<PathBuf>,
    /// Directory of the results; one that exists is gone on with.
    #[arg(long)]
    pub out: PathBuf,
    /// Items per task at most, the first ones.
    #[arg(long)]
    pub limit: Option<usize>,
    /// Items in the engine at once.
    #[arg(long, default_value_t = 16)]
    pub parallel: usize,
    /// Resamples of the confidence intervals.
    #[arg(long, default_value_t = 2_000)]
    pub resamples: usize,
}

/// Evaluates, and writes `results.jsonl`, `report.json`, `report.md` and `report.html` into the
/// directory of the results; returns the Markdown.
///
/// Outcomes that the directory has already are not asked for again, where item, column and
/// composition are the same.
///
/// # Errors
/// A message for the user: a file that cannot be read, a column that names what is not loaded, or
/// an engine that fails.
pub fn run(service: &Service, args: &EvalArgs) -> Result<String, String> {
    if args.parallel == 0 || args.resamples == 0 || args.limit == Some(0) {
        return Err("--parallel, --resamples and --limit are at least 1".to_owned());
    }
    let tasks = read_tasks(&args.tasks, args.limit)?;
    let columns = match &args.columns {
        Some(path) => read_columns(path)?,
        None => columns::default_columns(service),
    };
    let outcomes = run::run(service, &tasks, &columns, args)?;
    let report = report::Report::of(service, &tasks, &columns, &outcomes, args.resamples);
    let markdown = report.markdown();
    let write = |name: &str, text: &str| {
        let path = args.out.join(name);
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
    };
    write("report.md", &markdown)?;
    write("report.json", &report.json()?)?;
    write("report.html", &html::render(&report)?)?;
    Ok(markdown)
}
