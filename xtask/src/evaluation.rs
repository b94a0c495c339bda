//! The task `evaluation`: every comparison of EVALUATION.md, from merging to its tables.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::demo;
use crate::json::{Value, quoted};
use crate::plugins;
use crate::step::{Context as _, Failure, Outcome, run, step};
use crate::workspace::Workspace;

/// The folder of the evaluation's files in the workspace.
const HOME: &str = "adapters/evaluation";
/// The line of EVALUATION.md after which everything is written by this task.
const MARK: &str = "<!-- Below this line everything is written by `cargo xtask evaluation`. -->\n";
/// Columns of the slice: the base, the reference, and the routers that this project ships first.
const SLICE_COLUMNS: [&str; 4] = ["base", "own module", "Arrow, top 3", "PHATGOOSE, per layer"];
/// Items of each task in the slice, the first ones.
const SLICE_ITEMS: f64 = 2.0;

/// The task itself: makes the modules that the columns name, runs them and writes the tables; goes
/// on where it was stopped.
///
/// Merged and subtracted modules are made anew each time. They come out with the same bits, so
/// their outcomes are found again.
pub(crate) fn evaluation(workspace: &Workspace) -> Outcome<()> {
    let home = workspace.root.join(HOME);
    let work = workspace.target.join("evaluation");
    plugins::build(workspace, "")?;
    demo::pull_model(workspace, demo::MODEL, "")?;
    let modules = lora_modules(&workspace.root.join("adapters/library"))?;
    step("merge and subtract", || {
        let made = work.join("made");
        if made.exists() {
            fs::remove_dir_all(&made).context(|| format!("cannot remove {}", made.display()))?;
        }
        fs::create_dir_all(&made).context(|| format!("cannot make {}", made.display()))?;
        merge(workspace, &modules, &made)?;
        subtract(workspace, &modules, &home.join("general/wikipedia"), &made)
    })?;
    let results = work.join("results");
    step("evaluation", || {
        run(polyskill(workspace)
            .arg("eval")
            .args(["--allow-unsigned", "--adapters", "adapters/library", "--adapters"])
            .arg(work.join("made"))
            .arg("--plugins")
            .arg(workspace.bundles())
            .args(["--tasks", "adapters/evaluation/test"])
            .args(["--columns", "adapters/evaluation/columns.toml", "--out"])
            .arg(&results)
            .stdout(std::process::Stdio::null()))
    })?;
    write_tables(&results, &home)?;
    println!(
        "    {}/EVALUATION.md and slice.jsonl; the page is {}",
        HOME,
        results.join("report.html").display()
    );
    Ok(())
}

/// The program as it was built last, in the workspace's root.
fn polyskill(workspace: &Workspace) -> Command {
    let mut command = Command::new(workspace.target.join("release/polyskill"));
    command.current_dir(&workspace.root);
    command
}

/// LoRA modules with the shape that merging and subtracting want: those with PHATGOOSE's gates
/// among their artefacts.
fn lora_modules(library: &Path) -> Outcome<Vec<PathBuf>> {
    let modules = demo::adapters(library)?;
    Ok(modules
        .into_iter()
        .filter(|m| m.join("artefacts/phatgoose.safetensors").is_file())
        .collect())
}

/// All modules in one, by TIES.
fn merge(workspace: &Workspace, modules: &[PathBuf], made: &Path) -> Outcome<()> {
    /// The rank of each module, so that the merged one keeps the sum of their ranks.
    const RANK: usize = 4;
    let mut command = polyskill(workspace);
    command
        .args([
            "adapters",
            "merge",
            "--method",
            "ties",
            "--density",
            "0.3",
            "--dtype",
            "bf16",
            "--rank",
        ])
        .arg((RANK * modules.len()).to_string())
        .arg("--out")
        .arg(made.join("merged-ties"));
    modules.iter().for_each(|module| {
        command.arg("--weight").arg(module);
    });
    run(command.stdout(std::process::Stdio::null()))
}

/// Every module without general knowledge, under its name with `-gks` after it.
///
/// They are made in a folder of their own, since the program keeps the names.
fn subtract(
    workspace: &Workspace,
    modules: &[PathBuf],
    general: &Path,
    made: &Path,
) -> Outcome<()> {
    let subtracted = made.join("subtracted");
    let mut command = polyskill(workspace);
    command
        .args(["adapters", "gen-know-sub", "--general"])
        .arg(general)
        .arg("--out")
        .arg(&subtracted);
    run(command.args(modules).stdout(std::process::Stdio::null()))?;
    for module in demo::adapters(&subtracted)? {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        let target = made.join(format!("{name}-gks"));
        fs::rename(&module, &target).context(|| format!("cannot move {}", module.display()))?;
    }
    fs::remove_dir(&subtracted).context(|| format!("cannot remove {}", subtracted.display()))
}

/// The tables into EVALUATION.md, and some outcomes into `slice.jsonl` for the test that repeats
/// them.
///
/// The text before the mark in EVALUATION.md stays as it is.
fn write_tables(results: &Path, home: &Path) -> Outcome<()> {
    let read = |path: &Path| {
        fs::read_to_string(path).context(|| format!("cannot read {}", path.display()))
    };
    let write = |path: &Path, text: &str| {
        fs::write(path, text).context(|| format!("cannot write {}", path.display()))
    };
    let page = home.join("EVALUATION.md");
    let text = read(&page)?;
    let (said, _) = text
        .split_once(MARK)
        .ok_or_else(|| Failure::new(format!("{} lacks the line {MARK}", page.display())))?;
    let tables = read(&results.join("report.md"))?;
    write(&page, &format!("{said}{MARK}\n{tables}"))?;
    let mut slice = Vec::new();
    for line in read(&results.join("results.jsonl"))?.lines() {
        let outcome = Value::parse(line).context(|| "results.jsonl".to_owned())?;
        slice.extend(sliced(&outcome));
    }
    // The results also hold what earlier runs asked; the last outcome of an item counts.
    let mut kept: Vec<(String, String)> = Vec::new();
    for (key, line) in slice {
        kept.retain(|(other, _)| *other != key);
        kept.push((key, line));
    }
    kept.sort();
    let lines: String = kept.into_iter().map(|(_, line)| line + "\n").collect();
    write(&home.join("slice.jsonl"), &lines)
}

/// An outcome of the slice: a key that tells task, item and column, and its line. `None` for one
/// that is not in the slice.
fn sliced(outcome: &Value) -> Option<(String, String)> {
    let (column, task) = (outcome.text("column")?, outcome.text("task")?);
    let number = |name: &str| match outcome.get(name)? {
        Value::Number(number) => Some(*number),
        _ => None,
    };
    let (index, score, logprob) = (number("index")?, number("score")?, number("logprob")?);
    let wanted = SLICE_COLUMNS.contains(&column) && index < SLICE_ITEMS;
    let line = format!(
        "{{\"column\":{},\"task\":{},\"index\":{index},\"score\":{score},\"logprob\":{logprob:.4}}}",
        quoted(column),
        quoted(task)
    );
    wanted.then(|| (format!("{task} {index} {column}"), line))
}

#[cfg(test)]
mod tests {
    use super::{Value, sliced};

    #[test]
    fn the_slice_takes_the_first_items_of_its_columns() {
        let line = |column: &str, index: usize| {
            let text = format!(
                r#"{{"column": "{column}", "task": "t", "index": {index}, "score": 1, "logprob": -0.123456}}"#
            );
            sliced(&Value::parse(&text).unwrap())
        };
        let (key, text) = line("base", 1).unwrap();
        assert_eq!(key, "t 1 base");
        assert_eq!(text, r#"{"column":"base","task":"t","index":1,"score":1,"logprob":-0.1235}"#);
        assert!(line("base", 2).is_none() && line("all, sum", 0).is_none());
    }
}
