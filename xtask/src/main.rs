//! Development tasks of the workspace, run as `cargo xtask <task>`; without a task they are listed.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a task runner: its output is for the person at the terminal"
)]

mod demo;
mod evaluation;
mod experts;
mod http;
mod json;
mod map;
mod plugins;
mod provision;
mod server;
mod step;
mod suite;
mod toolchain;
mod trial;
mod workspace;

use std::process::ExitCode;

use demo::Options;
use step::{Failure, Outcome};
use workspace::{Workspace, find_root};

/// The list of tasks. It says what each makes and, where it is long, how long it takes.
const HELP: &str = "\
cargo xtask <task>

  plugins      build the program, and with it everything in plugins/ into target/plugins;
               what is not written in Rust is skipped where its compiler is missing
  flavours     build the same as core modules and dynamic libraries, into target/flavours
  compilers    get compilers for the plugins in C and Python, as packages of Python
  toolchain    find or provision the compiler for WASM, and say which one it is
  model        fetch the demo's base model
  demo         plugins, model and server; asks one question per adapter in adapters/library
                 --listen ADDR   where the server listens (default 127.0.0.1:8080)
                 --experts       a small mixture of experts instead: whole, skipping, and with half of its experts
                 --check         on a free port; stop afterwards, fail if answers are missing or many are wrong
  evaluation   plugins, model, and every comparison of adapters/evaluation/EVALUATION.md, whose tables
               it writes; takes half an hour on two cores and goes on where it was stopped
  experts      plugins, expert policies for examples/small-moe, and the table of its EVALUATION.md
  experiment   plugins, model, and the experiment of examples/experiments, whose reports it writes; takes ten minutes
  map          print every Rust file with the first line of what it says about itself, by crate and folder
  test         plugins, models and `cargo test --workspace --release`
  help         this list

POLYSKILL_CACHE (else $XDG_CACHE_HOME/polyskill, else ~/.cache/polyskill) holds the WASM compiler
where rustup has none; CARGO_TARGET_DIR moves everything that is built, plugin bundles included.";

/// Runs a task; its failure goes to standard error, with its exit code.
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// Finds the task by its name. Only `demo` takes arguments of its own.
fn dispatch(arguments: &[String]) -> Outcome<()> {
    let (task, rest) = match arguments.split_first() {
        Some((task, rest)) => (task.as_str(), rest),
        None => ("help", arguments),
    };
    if matches!(task, "help" | "-h" | "--help") {
        println!("{HELP}");
        return Ok(());
    }
    if task != "demo"
        && let Some(extra) = rest.first()
    {
        return Err(Failure::usage(format!("`{task}` takes no argument `{extra}`")));
    }
    match task {
        "plugins" => plugins::build(&Workspace::find()?, "").map(|_| ()),
        "flavours" => plugins::build_flavours(&Workspace::find()?, ""),
        "compilers" => plugins::install_compilers(),
        "toolchain" => toolchain::show(&Workspace::find()?),
        "model" => demo::pull_model(&Workspace::find()?, demo::MODEL, ""),
        "demo" => demo::demo(&Workspace::find()?, &Options::parse(rest)?),
        "evaluation" => evaluation::evaluation(&Workspace::find()?),
        "experts" => experts::experts(&Workspace::find()?),
        "experiment" => trial::experiment(&Workspace::find()?),
        "map" => map::print(&find_root()?),
        "test" => suite::test(&Workspace::find()?),
        other => Err(Failure::usage(format!("no task `{other}`; `cargo xtask help` lists them"))),
    }
}
