//! Outcomes as tables: Markdown for documents, JSON for programs, and what the page is made of.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Serialize;

use super::columns::Column;
use super::metric::Metric;
use super::results::Outcome;
use super::statistics::{Estimate, Pair, bootstrap};
use super::tasks::Task;
use polyskill_server::service::Service;

/// Name of the column that a router should beat; tasks on which one does not are listed.
const UNIFORM: &str = "uniform";
/// Least gain in log-probability per token of a task's own module. Below it there is nothing that a
/// router could recover, and the quotient would be noise.
const LEAST_GAIN: f64 = 0.05;

/// All that is told about an evaluation. Cells are in the order of the columns.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The base model's name.
    pub base: String,
    /// The columns that were compared.
    pub columns: Vec<Column>,
    /// Scores, 0 to 1: a row per task, then per tag, then the mean over tasks.
    pub scores: Vec<Row>,
    /// Mean log-probability per token of the first reference; rows as of the scores.
    pub logprobs: Vec<Row>,
    /// The part of the own module's gain in log-probability that a column has, 1 for all of it: a
    /// row per task on which there is a gain, then their mean. Resamples of a task that have no
    /// gain are left out of the intervals. Empty without a column of own modules and one of the
    /// base.
    pub recovered: Vec<Row>,
    /// Speed and habits per column.
    pub costs: Vec<Cost>,
    /// Per routed column, the mean share of each module by task and by layer.
    pub shares: Vec<Shares>,
}

/// One row of a table: an estimate per column, `None` where there is no outcome to judge.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// A task, `tag:…`, or `mean`.
    pub name: String,
    /// In the order of the columns.
    pub cells: Vec<Option<Estimate>>,
}

/// Speed of a column, and the habits of its router.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// The column.
    pub column: String,
    /// Generated tokens per second, prompts included in the time; routed columns record all picks
    /// meanwhile.
    pub tokens_per_second: Option<f64>,
    /// Modules per token and site. `None` without a router.
    pub picks: Option<f64>,
    /// The share of tokens at which the strongest module of a site is another than for the token
    /// before, 0 to 1.
    pub changes: Option<f64>,
    /// Answers that the base gave in place of the router.
    pub fallbacks: usize,
}

/// Shares of modules in the picks of one routed column.
#[derive(Clone, Debug, Serialize)]
pub struct Shares {
    /// The column.
    pub column: String,
    /// Modules, in the order of the shares.
    pub modules: Vec<String>,
    /// By task, for tasks with a routed answer: its name, and the mean weight of each module.
    pub tasks: Vec<(String, Vec<f64>)>,
    /// By layer, from the first, `[layers, modules]`, over all tasks.
    pub layers: Vec<Vec<f64>>,
}

impl Report {
    /// Sums up outcomes. All cells have their intervals from `resamples` resamples.
    pub(super) fn of(
        service: &Service,
        tasks: &[Task],
        columns: &[Column],
        outcomes: &[Outcome],
        resamples: usize,
    ) -> Self {
        let table = Table { tasks, columns, outcomes, resamples };
        Self {
            base: service.base_name.clone(),
            columns: columns.to_vec(),
            scores: table.rows(&|cell| cell.scores()),
            logprobs: table.rows(&|cell| cell.logprobs()),
            recovered: table.recovered(),
            costs: columns.iter().map(|column| cost(column, outcomes)).collect(),
            shares: columns.iter().filter_map(|column| shares(column, tasks, outcomes)).collect(),
        }
    }

    /// As JSON. A line feed ends it.
    pub(super) fn json(&self) -> Result<String, String> {
        serde_json::to_string_pretty(self)
            .map(|text| text + "\n")
            .map_err(|error| error.to_string())
    }

    /// As Markdown: tables of scores, log-probabilities and recovered gains, the cost, and lists of
    /// tasks on which a column is below the base or below the column `uniform`.
    pub(super) fn markdown(&self) -> String {
        let mut text = String::new();
        // Adding zero takes the sign from a zero.
        let percent = |value: f64| format!("{:.0}", (100.0 * value).round() + 0.0);
        let plain = |value: f64| format!("{value:.2}");
        self.table(&mut text, "Score, %", &self.scores, &percent);
        self.table(&mut text, "Log-probability per token of the reference", &self.logprobs, &plain);
        if !self.recovered.is_empty() {
            let title = "Part of the own module's gain in log-probability, %";
            self.table(&mut text, title, &self.recovered, &percent);
        }
        text.push_str("## Cost\n\n| | tokens/s | modules per token and site | changes of the strongest module, % | answered by the base |\n|---|---|---|---|---|\n");
        for cost in &self.costs {
            let cell = |value: Option<f64>, digits: usize| {
                value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
            };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} |",
                cell_text(&cost.column),
                cell(cost.tokens_per_second, 0),
                cell(cost.picks, 2),
                cell(cost.changes.map(|changes| 100.0 * changes), 0),
                cost.fallbacks,
            );
        }
        let uniform = self.columns.iter().position(|column| column.name == UNIFORM);
        for (name, reference) in [("the base", self.base_column()), (UNIFORM, uniform)] {
            let losses = reference.map_or_else(Vec::new, |reference| self.losses(reference));
            if !losses.is_empty() {
                let _ = writeln!(
                    text,
                    "\n## Below {name}\n\nTasks on which a column's score is lower than that of {name}, or its log-probability by more than 0.02:\n"
                );
                losses.iter().for_each(|loss| text.push_str(&format!("- {loss}\n")));
            }
        }
        text
    }

    /// Writes one table with intervals in its cells; `show` formats a number.
    fn table(&self, text: &mut String, title: &str, rows: &[Row], show: &dyn Fn(f64) -> String) {
        let names: Vec<String> =
            self.columns.iter().map(|column| cell_text(&column.name)).collect();
        let _ = writeln!(text, "## {title}\n\n| | {} |", names.join(" | "));
        let _ = writeln!(text, "|---|{}", "---|".repeat(names.len()));
        for row in rows {
            let cells = row.cells.iter().map(|cell| match cell {
                Some(Estimate { mean, low, high, .. }) => {
                    format!("{} ({} to {})", show(*mean), show(*low), show(*high))
                }
                None => "–".to_owned(),
            });
            let cells: Vec<String> = cells.collect();
            let _ = writeln!(text, "| {} | {} |", cell_text(&row.name), cells.join(" | "));
        }
        text.push('\n');
    }

    /// The index of the column that is the base alone. There may be none.
    fn base_column(&self) -> Option<usize> {
        base_column(&self.columns)
    }

    /// Tasks on which a column is below the one at index `base`, one line each.
    ///
    /// Means are compared, not intervals. A log-probability counts from a difference of 0.02 on, a
    /// score from any. Summaries over tags and tasks are left out.
    fn losses(&self, base: usize) -> Vec<String> {
        let of = cell_text(&self.columns[base].name);
        let mut losses = Vec::new();
        for (rows, margin, what) in
            [(&self.scores, 0.0, "score"), (&self.logprobs, 0.02, "log-probability")]
        {
            for row in rows.iter().filter(|row| !is_summary(&row.name)) {
                let Some(reference) = row.cells.get(base).copied().flatten() else { continue };
                for (column, cell) in self.columns.iter().zip(&row.cells) {
                    let Some(cell) = cell.filter(|cell| cell.mean < reference.mean - margin) else {
                        continue;
                    };
                    losses.push(format!(
                        "{}, {}: {what} {:.2}, {of} {:.2}",
                        row.name, column.name, cell.mean, reference.mean
                    ));
                }
            }
        }
        losses
    }
}

/// A name that a table's cell holds as it is: without line feeds, bars and brackets that Markdown
/// would take for its own.
fn cell_text(name: &str) -> String {
    name.replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;").replace(['\n', '\r'], " ")
}

/// True for a row over several tasks.
fn is_summary(name: &str) -> bool {
    name == "mean" || name.starts_with("tag:")
}

/// The index of the first column without router and modules.
fn base_column(columns: &[Column]) -> Option<usize> {
    columns.iter().position(|column| {
        let Column { route, own, most_picked_of, .. } = column;
        let is_base = route.deciding_router().is_none() && route.adapters().is_empty();
        is_base && !own && most_picked_of.is_none()
    })
}

/// The outcomes that tables are made of.
struct Table<'a> {
    /// The tasks, in the order of the rows.
    tasks: &'a [Task],
    /// The columns, in the order of the cells.
    columns: &'a [Column],
    /// Outcomes of all columns and tasks, in any order.
    outcomes: &'a [Outcome],
    /// Resamples for each interval.
    resamples: usize,
}

/// The outcomes of one column for one task.
struct Cell<'a> {
    /// The task, which has the items' metrics.
    task: &'a Task,
    /// The outcomes of its items.
    outcomes: Vec<&'a Outcome>,
}

impl Cell<'_> {
    /// Scores of the items that have one: the metric `log-prob` asks for no answer.
    fn scores(&self) -> Vec<Pair> {
        let judged = |outcome: &&&Outcome| {
            let item = self.task.items.get(outcome.index);
            item.is_some_and(|item| item.metric != Metric::LogProb)
        };
        self.outcomes.iter().filter(judged).map(|outcome| (outcome.score, 1.0)).collect()
    }

    /// Log-probabilities of all items, whatever their metric.
    fn logprobs(&self) -> Vec<Pair> {
        self.outcomes.iter().map(|outcome| (outcome.logprob, 1.0)).collect()
    }
}

impl<'a> Table<'a> {
    /// Outcomes of a task in a column, of the items with a tag where one is given. All outcomes are
    /// looked through each time.
    fn cell(&self, task: &'a Task, column: &Column, tag: Option<&str>) -> Cell<'a> {
        let has_tag = |outcome: &Outcome| {
            let tags = task.items.get(outcome.index).map_or(&[][..], |item| &item.tags);
            tag.is_none_or(|tag| tags.iter().any(|found| found == tag))
        };
        let mine = |outcome: &&Outcome| {
            outcome.task == task.name && outcome.column == column.name && has_tag(outcome)
        };
        Cell { task, outcomes: self.outcomes.iter().filter(mine).collect() }
    }

    /// A row per task, one per tag in the order of the alphabet, and one over all tasks; `values`
    /// takes a cell's values. Rows without any value are left out.
    fn rows(&self, values: &dyn Fn(&Cell<'_>) -> Vec<Pair>) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        let mut groups: BTreeMap<&str, Vec<&Task>> = BTreeMap::new();
        for task in self.tasks {
            rows.push(self.row(&task.name, None, &[task], values));
            let tags: BTreeSet<&String> = task.items.iter().flat_map(|item| &item.tags).collect();
            tags.into_iter().for_each(|tag| groups.entry(tag).or_default().push(task));
        }
        for (tag, tasks) in groups {
            rows.push(self.row(&format!("tag:{tag}"), Some(tag), &tasks, values));
        }
        rows.push(self.row("mean", None, &self.tasks.iter().collect::<Vec<_>>(), values));
        rows.retain(|row| row.cells.iter().any(Option::is_some));
        rows
    }

    /// One row over some tasks, of the items with a tag where one is given. Tasks are the strata of
    /// its estimates, so each weighs the same however many items it has.
    fn row(
        &self,
        name: &str,
        tag: Option<&str>,
        tasks: &[&'a Task],
        values: &dyn Fn(&Cell<'_>) -> Vec<Pair>,
    ) -> Row {
        let cell = |column: &Column| {
            let strata = tasks.iter().map(|task| values(&self.cell(task, column, tag)));
            bootstrap(&strata.collect::<Vec<_>>(), 0.0, self.resamples)
        };
        Row { name: name.to_owned(), cells: self.columns.iter().map(cell).collect() }
    }

    /// (column − base) / (own − base) of log-probabilities, for the tasks on which the own module
    /// gains more than [`LEAST_GAIN`], and in their resamples alike.
    ///
    /// Sums are divided, not single items, whose own gain may be 0. Items that one of the three
    /// columns lacks are passed over.
    fn recovered(&self) -> Vec<Row> {
        let own = self.columns.iter().find(|column| column.own);
        let base = base_column(self.columns).map(|at| &self.columns[at]);
        let Some((own, base)) = own.zip(base) else { return Vec::new() };
        let mean = |pairs: Vec<Pair>| {
            pairs.iter().map(|pair| pair.0).sum::<f64>() / pairs.len().max(1) as f64
        };
        let gains = |task: &&'a Task| {
            let has_module = task.items.iter().any(|item| item.module.is_some());
            let gain = mean(self.cell(task, own, None).logprobs())
                - mean(self.cell(task, base, None).logprobs());
            has_module && gain > LEAST_GAIN
        };
        let tasks: Vec<&'a Task> = self.tasks.iter().filter(gains).collect();
        let pairs = |task: &'a Task, column: &Column| -> Vec<Pair> {
            let by_index = |column: &Column| -> BTreeMap<usize, f64> {
                let cell = self.cell(task, column, None);
                cell.outcomes.iter().map(|outcome| (outcome.index, outcome.logprob)).collect()
            };
            let (base, own) = (by_index(base), by_index(own));
            let pair = |(index, value): (usize, f64)| {
                let base = base.get(&index)?;
                Some((value - base, own.get(&index)? - base))
            };
            by_index(column).into_iter().filter_map(pair).collect()
        };
        let row = |name: &str, tasks: &[&'a Task]| {
            let cell = |column: &Column| {
                let strata: Vec<_> = tasks.iter().map(|task| pairs(task, column)).collect();
                bootstrap(&strata, LEAST_GAIN, self.resamples)
            };
            Row { name: name.to_owned(), cells: self.columns.iter().map(cell).collect() }
        };
        let mut rows: Vec<Row> = tasks.iter().map(|task| row(&task.name, &[task])).collect();
        if !rows.is_empty() {
            rows.push(row("mean", &tasks));
        }
        rows
    }
}

/// Speed and habits of a column. Items without a generated token do not count, but for fallbacks.
fn cost(column: &Column, outcomes: &[Outcome]) -> Cost {
    let mine: Vec<&Outcome> =
        outcomes.iter().filter(|outcome| outcome.column == column.name).collect();
    let tokens: usize = mine.iter().map(|outcome| outcome.tokens).sum();
    let seconds: f64 =
        mine.iter().filter(|outcome| outcome.tokens > 0).map(|outcome| outcome.seconds).sum();
    let mean = |values: Vec<f64>| {
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    let routings =
        || mine.iter().filter(|one| one.tokens > 0).filter_map(|one| one.routing.as_ref());
    Cost {
        column: column.name.clone(),
        tokens_per_second: (tokens > 0 && seconds > 0.0).then(|| tokens as f64 / seconds),
        picks: mean(routings().map(|routing| routing.picks).collect()),
        changes: mean(routings().filter_map(|routing| routing.changes).collect()),
        fallbacks: mine.iter().filter(|outcome| outcome.fallback.is_some()).count(),
    }
}

/// Mean shares of modules in a column; `None` where no answer was routed.
///
/// A module that an answer did not use has share 0 in it. Every answer weighs the same, whatever
/// its length.
fn shares(column: &Column, tasks: &[Task], outcomes: &[Outcome]) -> Option<Shares> {
    let mine: Vec<&Outcome> = outcomes
        .iter()
        .filter(|outcome| outcome.column == column.name && outcome.tokens > 0)
        .filter(|outcome| outcome.routing.is_some())
        .collect();
    let routing = |outcome: &&Outcome| outcome.routing.clone().unwrap_or_default();
    let all: Vec<_> = mine.iter().map(routing).collect();
    let names: BTreeSet<&String> = all.iter().flat_map(|routing| routing.share.keys()).collect();
    let modules: Vec<String> = names.into_iter().cloned().collect();
    let first = all.first()?;
    let mean = |shares: &[&BTreeMap<String, f64>]| -> Vec<f64> {
        let one = |module: &String| {
            let sum: f64 = shares.iter().filter_map(|share| share.get(module)).sum();
            sum / shares.len().max(1) as f64
        };
        modules.iter().map(one).collect()
    };
    let by_task = |task: &Task| {
        let here = mine.iter().zip(&all).filter(|(outcome, _)| outcome.task == task.name);
        let shares: Vec<_> = here.map(|(_, routing)| &routing.share).collect();
        (!shares.is_empty()).then(|| (task.name.clone(), mean(&shares)))
    };
    let by_layer = |layer: usize| {
        let shares: Vec<_> = all.iter().filter_map(|routing| routing.layers.get(layer)).collect();
        mean(&shares)
    };
    Some(Shares {
        column: column.name.clone(),
        tasks: tasks.iter().filter_map(by_task).collect(),
        layers: (0..first.layers.len()).map(by_layer).collect(),
        modules: modules.clone(),
    })
}
