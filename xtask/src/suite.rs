//! The task `test`: everything the tests need, then the tests of the whole workspace.

use std::time::Instant;

use crate::step::{Outcome, run, step};
use crate::workspace::Workspace;
use crate::{demo, plugins};

/// A base of another family than the demo's.
const SECOND_MODEL: &str = "gemma-3-270m";

/// Everything that can be left out of the program, so that all of it is tested.
const FEATURES: &str = "full";

/// Builds the plugins, fetches the models if that is possible, and runs every test.
///
/// A model that cannot be fetched is no failure: tests that need it say so.
fn prepare_and_test(workspace: &Workspace) -> Outcome<()> {
    let bundles = plugins::build(workspace, FEATURES)?;
    plugins::build_flavours(workspace, FEATURES)?;
    for model in [demo::MODEL, SECOND_MODEL] {
        if let Err(failure) = demo::pull_model(workspace, model, FEATURES) {
            println!("    going on without {model}: {}", failure.message);
        }
    }
    step("cargo test --workspace --release", || {
        let mut cargo = workspace.cargo();
        run(cargo
            .args(["test", "--workspace", "--release", "--features", FEATURES])
            .env("POLYSKILL_PLUGINS", &bundles))
    })
}

/// The task itself, with its total time.
pub(crate) fn test(workspace: &Workspace) -> Outcome<()> {
    let start = Instant::now();
    let outcome = prepare_and_test(workspace);
    let word = if outcome.is_ok() { "passed" } else { "FAILED" };
    println!("tests {word}, {:.0} s in total", start.elapsed().as_secs_f64());
    outcome
}
