//! The parts that every task shares: a failure with an exit code, timed steps, and commands that
//! are checked.

use std::fmt;
use std::process::{Command, ExitStatus};
use std::time::Instant;

/// The reason for which a task stopped.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The message for the person at the terminal.
    pub(crate) message: String,
    /// The exit code of xtask: 1, 2 for a wrong command line, or that of a command that failed.
    pub(crate) code: u8,
}

/// A task's result.
pub(crate) type Outcome<T> = Result<T, Failure>;

impl Failure {
    /// A failure with the code 1.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 1 }
    }

    /// A failure of the command line, with the code 2.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 2 }
    }
}

/// Tells what was being done when an operation failed.
pub(crate) trait Context<T> {
    /// Puts `doing` before the error's text, and makes a failure of it.
    fn context(self, doing: impl FnOnce() -> String) -> Outcome<T>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, doing: impl FnOnce() -> String) -> Outcome<T> {
        self.map_err(|error| Failure::new(format!("{}: {error}", doing())))
    }
}

/// Announces a step, does it, and prints how long it took.
pub(crate) fn step<T>(title: &str, work: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    println!("==> {title}");
    let start = Instant::now();
    let outcome = work();
    let word = if outcome.is_ok() { "done" } else { "FAILED" };
    println!("    {word} in {:.1} s: {title}", start.elapsed().as_secs_f64());
    outcome
}

/// Runs a command with its output passed through; a non-zero exit is a failure with the same code.
pub(crate) fn run(command: &mut Command) -> Outcome<()> {
    let status = command.status().context(|| format!("cannot start {}", shown(command)))?;
    checked(command, status)
}

/// Runs a command and returns what it printed; its errors go into the failure.
pub(crate) fn output(command: &mut Command) -> Outcome<String> {
    let output = command.output().context(|| format!("cannot start {}", shown(command)))?;
    checked(command, output.status).map_err(|failure| {
        let errors = String::from_utf8_lossy(&output.stderr);
        Failure::new(format!("{}\n{}", failure.message, errors.trim_end()))
    })?;
    String::from_utf8(output.stdout).context(|| format!("output of {}", shown(command)))
}

/// Fails unless a command succeeded. One that a signal ended has the code 1.
fn checked(command: &Command, status: ExitStatus) -> Outcome<()> {
    if status.success() {
        return Ok(());
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Err(Failure { message: format!("{} failed ({status})", shown(command)), code })
}

/// The command as one would type it, without its environment.
fn shown(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program());
    let mut line = format!("`{}", name.to_string_lossy());
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line + "`"
}
