//! `polyskill experiment`: task files as traffic of an experiment, recorded traffic under every
//! arm, and planning.

mod page;
mod traffic;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use polyskill_experiment::Declaration;
use polyskill_experiment::analysis::plan::{Design, Plan};
use polyskill_experiment::assignment::{Place, place};
use serde_json::Value as Json;

use polyskill_server::service::Service;

use crate::arguments::ServeArgs;
use crate::start::start_service;

/// Units whose arms are asked for.
#[derive(Args, Clone, Debug)]
pub struct AssignArgs {
    /// The experiment (TOML).
    #[arg(long)]
    pub experiment: PathBuf,
    /// Units, as they are hashed.
    #[arg(required = true)]
    pub units: Vec<String>,
}

/// An experiment, the traffic that meets it, and the place of the report.
#[derive(Args, Clone, Debug)]
pub struct TrafficArgs {
    /// The experiment (TOML), as in a configuration's `[[experiment]]`.
    #[arg(long)]
    pub experiment: PathBuf,
    /// Task files (JSON lines), directories of them, or traces that a server wrote with their
    /// prompts; repeatable. Answers to traces are measured and not graded.
    #[arg(long = "traffic", required = true)]
    pub traffic: Vec<PathBuf>,
    /// Directory of `report.json` and `report.html`.
    #[arg(long)]
    pub out: PathBuf,
    /// Conversations of each task, whatever files it lies in, and of each file of traces at most;
    /// the first ones.
    #[arg(long)]
    pub limit: Option<usize>,
    /// Conversations in the engine at once.
    #[arg(long, default_value_t = 8)]
    pub parallel: usize,
    /// Seed of the order in which conversations come.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// The numbers that a plan takes: one of the effect and the units is given, the other is found.
#[derive(Args, Clone, Debug)]
pub struct PlanArgs {
    /// Variance of the metric between units; of a share p it is p·(1 − p).
    #[arg(long, allow_negative_numbers = true)]
    pub variance: f64,
    /// The smallest difference that is to be found; prints the units that it takes.
    #[arg(
        long,
        conflicts_with = "units",
        required_unless_present = "units",
        allow_negative_numbers = true
    )]
    pub effect: Option<f64>,
    /// Units of the whole experiment; prints the smallest difference that can be found.
    #[arg(long)]
    pub units: Option<f64>,
    /// Accepted rate of false alarms.
    #[arg(long, default_value_t = 0.05)]
    pub level: f64,
    /// Wanted rate of true alarms.
    #[arg(long, default_value_t = 0.8)]
    pub power: f64,
    /// Units of the arm for each unit of the control.
    #[arg(long, default_value_t = 1.0)]
    pub allocation: f64,
    /// Correlation with the same metric before the experiment.
    #[arg(long, default_value_t = 0.0)]
    pub correlation: f64,
}

/// Work with experiments that needs no server.
#[derive(Clone, Debug, Subcommand)]
pub enum ExperimentCommand {
    /// Let each conversation of task files meet one arm, as live traffic would, grade the answers,
    /// and report.
    Run {
        /// The traffic.
        #[command(flatten)]
        traffic: TrafficArgs,
        /// The service that answers it.
        #[command(flatten)]
        serve: ServeArgs,
    },
    /// Let recorded requests meet every arm, one after the other, and report on pairs.
    Replay {
        /// The traffic.
        #[command(flatten)]
        traffic: TrafficArgs,
        /// The service that answers it.
        #[command(flatten)]
        serve: ServeArgs,
    },
    /// Find the units that an experiment needs, or the effect that it can find.
    Plan(PlanArgs),
    /// Print the arms that units get.
    Assign(AssignArgs),
}

/// Runs the command and prints what it finds. Only `run` and `replay` load a base.
///
/// # Errors
/// A message for the user.
pub fn command(command: &ExperimentCommand, out: &mut dyn Write) -> Result<(), String> {
    let (traffic, serve, every_arm) = match command {
        ExperimentCommand::Plan(args) => return plan(args, out),
        ExperimentCommand::Assign(args) => return assign(args, out),
        ExperimentCommand::Run { traffic, serve } => (traffic, serve, false),
        ExperimentCommand::Replay { traffic, serve } => (traffic, serve, true),
    };
    let service = start_service(&serve.config()?)?;
    run(&service, traffic, every_arm, out)
}

/// Reads a declaration, without looking at what it says.
///
/// # Errors
/// If the file cannot be read, or is none.
fn read(path: &Path) -> Result<Declaration, String> {
    let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| fail(&error))?;
    toml::from_str(&text).map_err(|error| fail(&error))
}

/// Prints the arm of each unit, without a server.
///
/// It depends on the declaration and the unit alone. A unit may also be held out, or lie in the
/// share of a layer that other experiments have.
///
/// # Errors
/// If the declaration is not usable.
pub fn assign(args: &AssignArgs, out: &mut dyn Write) -> Result<(), String> {
    let declaration = read(&args.experiment)?;
    declaration.validate().map_err(|problems| problems.join("; "))?;
    for unit in &args.units {
        let arm = match place(&declaration, unit) {
            Place::HeldOut => "held out",
            Place::Elsewhere => "not in its share of the layer",
            Place::Arm(at) => &declaration.arms[at].name,
        };
        say(out, &format!("{unit}\t{arm}"))?;
    }
    Ok(())
}

/// Writes a line; fails where the terminal is gone.
fn say(out: &mut dyn Write, line: &str) -> Result<(), String> {
    writeln!(out, "{line}").map_err(|error| error.to_string())
}

/// Prints needed units, or the smallest effect, of two designs: a look at the end, and always-valid
/// intervals, which allow any number of looks and need more units for it.
///
/// # Errors
/// If the numbers are not usable.
pub fn plan(args: &PlanArgs, out: &mut dyn Write) -> Result<(), String> {
    let is_share = |value: f64| value > 0.0 && value < 1.0;
    let is_size = |value: f64| value > 0.0 && value.is_finite();
    let sizes = [Some(args.variance), Some(args.allocation), args.effect, args.units];
    if !(is_share(args.level) && is_share(args.power)) || args.correlation.abs() >= 1.0 {
        return Err("--level and --power must lie between 0 and 1, --correlation between -1 and 1"
            .to_owned());
    }
    if !sizes.into_iter().flatten().all(is_size) {
        return Err("--variance, --effect, --units and --allocation must be over 0".to_owned());
    }
    let plan = Plan {
        level: args.level,
        power: args.power,
        variance: args.variance,
        allocation: args.allocation,
        correlation: args.correlation,
    };
    for (design, name) in
        [(Design::Fixed, "one look at the end"), (Design::AlwaysValid, "always-valid, any look")]
    {
        let line = match (args.effect, args.units) {
            (Some(effect), _) => {
                format!("{name}: {} units find {effect}", plan.needed_units(design, effect))
            }
            (None, Some(units)) => {
                let found = plan.minimum_effect(design, units);
                format!("{name}: {units} units find {found:.4}")
            }
            (None, None) => return Err("expected --effect or --units".to_owned()),
        };
        say(out, &line)?;
    }
    Ok(())
}

/// Runs traffic through a service, each conversation under its arm or, with `every_arm`, under
/// every arm; says how it ended.
///
/// `report.json` and `report.html` in `args.out` are overwritten.
///
/// # Errors
/// A message for the user.
pub fn run(
    service: &Service,
    args: &TrafficArgs,
    every_arm: bool,
    out: &mut dyn Write,
) -> Result<(), String> {
    let declaration = read(&args.experiment)?;
    let report = traffic::run(service, declaration, args, every_arm)?;
    let fail = |error: std::io::Error| format!("{}: {error}", args.out.display());
    std::fs::create_dir_all(&args.out).map_err(fail)?;
    std::fs::write(args.out.join("report.json"), format!("{report:#}\n")).map_err(fail)?;
    std::fs::write(args.out.join("report.html"), page::render(&report)?).map_err(fail)?;
    summary(&report, out)?;
    say(out, &format!("report.json and report.html are in {}", args.out.display()))
}

/// Prints each metric by arm, each arm's difference from the control with its interval, and the
/// verdict.
///
/// The report is read as JSON, as a client of the server would read it. What is missing shows as
/// nothing or NaN.
fn summary(report: &Json, out: &mut dyn Write) -> Result<(), String> {
    let list = |value: &Json| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Json| value.as_str().unwrap_or_default().to_owned();
    for metric in list(&report["metrics"]) {
        let values: Vec<String> = list(&metric["arms"])
            .iter()
            .map(|arm| {
                let value = arm["value"].as_f64().map_or("–".to_owned(), |v| format!("{v:.3}"));
                format!("{} {value} of {} units", text(&arm["arm"]), arm["units"])
            })
            .collect();
        say(out, &format!("{}: {}", text(&metric["name"]), values.join(", ")))?;
        for comparison in list(&metric["comparisons"]) {
            let number = |value: &Json| value.as_f64().unwrap_or(f64::NAN);
            let interval = &comparison["always_valid"];
            say(
                out,
                &format!(
                    "  {} less the control: {:+.3}, always-valid interval {:+.3} to {:+.3}: {}",
                    text(&comparison["arm"]),
                    number(&comparison["difference"]),
                    number(&interval[0]),
                    number(&interval[1]),
                    text(&comparison["verdict"]),
                ),
            )?;
        }
    }
    let verdict = &report["verdict"];
    say(out, &format!("verdict: {}: {}", text(&verdict["state"]), text(&verdict["reason"])))
}
