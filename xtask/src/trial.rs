//! The task `experiment`: the shipped experiment on the shipped base, modules and questions, and
//! its reports.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::demo;
use crate::plugins;
use crate::step::{Context as _, Outcome, run, step};
use crate::workspace::Workspace;

/// The folder of experiments in the workspace.
const HOME: &str = "examples/experiments";
/// Name of the experiment's file, and of the folder of its reports.
const NAME: &str = "arrow-phatgoose-uniform";
/// Tasks that are not those of LoRA modules, which are all that the arms pick among.
const OTHERS: [&str; 5] = ["chat", "continents", "ing-form", "plurals", "word-feeling"];
/// Beginnings of the names of tasks that no single LoRA module was made for.
const COMPOSED: [&str; 4] = ["conversation", "sum-in-", "chat-near", "chat-own"];

/// The task itself: runs the experiment twice, each conversation under one arm, as live traffic,
/// and each under every arm.
///
/// The reports go into the workspace, below `split` and `paired`.
pub(crate) fn experiment(workspace: &Workspace) -> Outcome<()> {
    plugins::build(workspace, "")?;
    demo::pull_model(workspace, demo::MODEL, "")?;
    let traffic = traffic(&workspace.root)?;
    for (command, folder) in [("run", "split"), ("replay", "paired")] {
        let out = workspace.root.join(HOME).join(NAME).join(folder);
        step(&format!("experiment {command}"), || {
            let mut polyskill = Command::new(workspace.target.join("release/polyskill"));
            polyskill.current_dir(&workspace.root).args(["experiment", command]);
            polyskill.args(["--experiment", &format!("{HOME}/{NAME}.toml"), "--allow-unsigned"]);
            polyskill.args(["--model", demo::MODEL, "--adapters", "adapters/library", "--plugins"]);
            polyskill.arg(workspace.bundles());
            for file in &traffic {
                polyskill.arg("--traffic").arg(file);
            }
            run(polyskill.arg("--out").arg(&out))
        })?;
        println!("    {}", out.join("report.html").display());
    }
    Ok(())
}

/// The questions of the LoRA modules' tasks, held out and for validation, as files below the
/// workspace's root, sorted.
fn traffic(root: &Path) -> Outcome<Vec<PathBuf>> {
    let mut files = Vec::new();
    for part in ["test", "validation"] {
        let folder = Path::new("adapters/evaluation").join(part);
        let entries = fs::read_dir(root.join(&folder))
            .context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let entry = entry.context(|| format!("cannot read {}", folder.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(task) = name.strip_suffix(".jsonl") else { continue };
            if !OTHERS.contains(&task) && !COMPOSED.iter().any(|start| task.starts_with(start)) {
                files.push(folder.join(&name));
            }
        }
    }
    files.sort();
    Ok(files)
}
