//! The program: the command line and its commands.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the terminal is this program's output"
)]

mod arguments;
pub mod commands;
mod embedded;
mod start;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use arguments::ServeArgs;
use commands::{
    adapters, bench, calibrate, check_config, eval, experiment, generate, plugin, pull, record,
    replay, serve,
};
use start::start_service;

/// One frozen base model, many modules, routed per token and per layer.
#[derive(Debug, Parser)]
#[command(name = "polyskill", version)]
struct Cli {
    /// The command that is run.
    #[command(subcommand)]
    command: Command,
}

/// The commands of the program, in the order of its help.
#[derive(Debug, Subcommand)]
enum Command {
    /// Serve OpenAI's HTTP API.
    Serve {
        /// Base, modules, plugins and address of the server.
        #[command(flatten)]
        args: ServeArgs,
        /// End when standard input does: whoever holds its other end has ended.
        #[arg(long, hide = true)]
        until_input_ends: bool,
    },
    /// Answer one prompt on the terminal.
    Generate(generate::GenerateArgs),
    /// Fetch a base model into the cache and print its path.
    Pull {
        /// A known name (`smollm2-135m-instruct`, `gemma-3-270m`), `owner/name`, or
        /// `owner/name/file.gguf`.
        model: String,
    },
    /// Measure prefill and decode of base, one LoRA, and a router.
    Bench(ServeArgs),
    /// Make an expert policy for a sparse base, from a text that it reads.
    ///
    /// A stopped run goes on where it was. The policy is a module: put it with the others, name it
    /// in a request or let the router `expert-pruning` choose it.
    Calibrate(calibrate::CalibrateArgs),
    /// Compare base, modules and routers on task files, with intervals and a page.
    ///
    /// A task file has a question per line: {"prompt": "2 + 2 = ?", "references": ["4"], "metric":
    /// "numeric"}. A column of the comparison is a TOML table: [[column]], name = "Arrow", router =
    /// "arrow". adapters/evaluation/README.md has all fields, and examples/evaluation.toml is a
    /// comparison.
    Eval {
        /// Tasks, columns and the place of the results.
        #[command(flatten)]
        eval: eval::EvalArgs,
        /// The service that answers.
        #[command(flatten)]
        serve: ServeArgs,
    },
    /// Try experiments on task files and recorded traffic, and plan them.
    #[command(subcommand)]
    Experiment(experiment::ExperimentCommand),
    /// Work with traces of requests.
    #[command(subcommand)]
    Trace(TraceCommand),
    /// Write what a router of a running server planned, and rows that it decided, as fixtures for
    /// its self-test.
    Record(record::RecordArgs),
    /// Print the effective configuration.
    CheckConfig(ServeArgs),
    /// Merge, transform, inspect, verify and compare modules.
    #[command(subcommand)]
    Adapters(adapters::AdaptersCommand),
    /// Write, build, test, measure, sign and serve router plugins.
    #[command(subcommand)]
    Plugin(plugin::PluginCommand),
}

/// Work with traces of requests.
#[derive(Clone, Debug, Subcommand)]
enum TraceCommand {
    /// Run recorded requests again: the same tokens and decisions must come out.
    Replay {
        /// The recorded requests.
        #[command(flatten)]
        replay: replay::ReplayArgs,
        /// The service that runs them again.
        #[command(flatten)]
        serve: ServeArgs,
    },
}

/// Runs the program: parses the command line, runs the command, and prints what went wrong to
/// standard error.
///
/// The log goes to standard error too, so that standard output holds results only. Warnings of all
/// crates are logged, and more of the project's own; `RUST_LOG` replaces this filter.
pub fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,polyskill_server=info,polyskill_engine=info,polyskill_plugin=info,polyskill_sources=info"));
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours);
    log.with_writer(std::io::stderr).init();
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Serve { args, until_input_ends } => serve::run(&args, until_input_ends),
        Command::Generate(args) => generate::run(args),
        Command::Pull { model } => pull::run(&model),
        Command::Bench(args) => bench::run(&args),
        Command::Calibrate(args) => calibrate::run(&args, &mut std::io::stdout()),
        Command::Eval { eval, serve } => evaluate(&eval, &serve),
        Command::Experiment(command) => experiment::command(&command, &mut std::io::stdout()),
        Command::Trace(TraceCommand::Replay { replay, serve }) => replay_traces(&replay, &serve),
        Command::Record(args) => record::record(&args).map(|count| {
            eprintln!("polyskill: {count} fixtures written");
        }),
        Command::CheckConfig(args) => check_config::run(&args),
        Command::Adapters(command) => adapters::run(&command, &mut std::io::stdout()),
        Command::Plugin(command) => plugin::run(&command, &mut std::io::stdout()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("polyskill: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Starts a service and runs recorded requests through it.
fn replay_traces(replay: &replay::ReplayArgs, serve: &ServeArgs) -> Result<(), String> {
    let service = start_service(&serve.config()?)?;
    replay::run(&service, replay, &mut std::io::stdout().lock())
}

/// Starts a service, evaluates, and prints the tables as Markdown.
fn evaluate(args: &eval::EvalArgs, serve: &ServeArgs) -> Result<(), String> {
    let service = start_service(&serve.config()?)?;
    print!("{}", eval::run(&service, args)?);
    eprintln!("polyskill: report.md, report.json and report.html are in {}", args.out.display());
    Ok(())
}
