//! The task `experts`: policies of every kind for the small mixture of experts, and the table of
//! its EVALUATION.md.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use crate::plugins;
use crate::step::{Context as _, Failure, Outcome, run, step};
use crate::workspace::Workspace;

/// The base, below the workspace.
const BASE: &str = "examples/small-moe";
/// The line of EVALUATION.md after which everything is written by this task.
const MARK: &str = "<!-- Below this line everything is written by `cargo xtask experts`. -->\n";
/// Methods of `calibrate` that are compared, each with every number in [`KEPT`].
const METHODS: [&str; 6] =
    ["naee", "naee-progressive", "greedy", "least-used", "mc-smoe", "uncurl"];
/// Experts that are kept of eight per layer: three quarters and a half.
const KEPT: [u32; 2] = [6, 4];
/// Seeds of the policies that keep any experts.
const SEEDS: [u32; 3] = [1, 2, 3];
/// Calibration sequences, as many as there are questions.
const SEQUENCES: &str = "400";
/// A word of each task's questions, for the router that finds a policy by it.
const TAGS: [(&str, &str); 8] = [
    ("clock-time", "24-hour"),
    ("french-dates", "French"),
    ("german-numbers", "German"),
    ("iso-date", "ISO"),
    ("past-tense", "past tense"),
    ("regex", "regular expression"),
    ("roman-numerals", "Roman"),
    ("spanish-numbers", "Spanish"),
];

/// Questions of `demo --experts`, which are among the test questions.
const QUESTIONS: [&str; 3] = [
    "What is 916 in German words?",
    "What is May 25, 1969 in ISO format?",
    "Write 348 in Roman numerals.",
];

/// A row of the table, which is a column of the evaluation.
struct Row {
    /// Its name in both.
    name: String,
    /// The TOML of the column, without its name; empty for the base.
    column: String,
}

/// The task itself: makes the policies, asks the test questions and writes the table.
///
/// Policies are made anew each time; outcomes of equal ones are found again.
pub(crate) fn experts(workspace: &Workspace) -> Outcome<()> {
    plugins::build(workspace, "")?;
    let work = workspace.target.join("experts");
    let policies = work.join("policies");
    if policies.exists() {
        fs::remove_dir_all(&policies)
            .context(|| format!("cannot remove {}", policies.display()))?;
    }
    fs::create_dir_all(&policies).context(|| format!("cannot make {}", policies.display()))?;
    let rows = step("calibrate", || calibrate(workspace, &policies))?;
    let columns: String = rows
        .iter()
        .map(|row| format!("[[column]]\nname = \"{}\"\n{}\n", row.name, row.column))
        .collect();
    let file = work.join("columns.toml");
    fs::write(&file, columns).context(|| format!("cannot write {}", file.display()))?;
    let results = work.join("results");
    step("evaluation", || {
        run(polyskill(workspace)
            .args(["eval", "--allow-unsigned", "--model", BASE, "--adapters"])
            .arg(&policies)
            .arg("--plugins")
            .arg(workspace.bundles())
            .args(["--tasks", &format!("{BASE}/test"), "--columns"])
            .arg(&file)
            .arg("--out")
            .arg(&results)
            .stdout(std::process::Stdio::null()))
    })?;
    write_table(&results.join("report.md"), &workspace.root.join(BASE).join("EVALUATION.md"), &rows)
}

/// `demo --experts`: the small mixture of experts answers whole, skipping, and with half of its
/// experts.
///
/// Policies for it are made anew each time. It prints, and judges nothing.
pub(crate) fn demo(workspace: &Workspace) -> Outcome<()> {
    step("polyskill", || {
        run(workspace.cargo().args(["build", "--release", "--bin", "polyskill"]))
    })?;
    let policies = workspace.target.join("experts/demo");
    if policies.exists() {
        fs::remove_dir_all(&policies)
            .context(|| format!("cannot remove {}", policies.display()))?;
    }
    step("calibrate", || {
        for (name, more) in [("skipping", vec!["--skip"]), ("half", vec!["--keep", "4"])] {
            let mut command = polyskill(workspace);
            command.args(["calibrate", "--model", BASE, "--sequences", SEQUENCES, "--text"]);
            command.arg(format!("{BASE}/calibration")).args(more);
            run(command.arg("--out").arg(policies.join(name)).stdout(std::process::Stdio::null()))?;
        }
        Ok(())
    })?;
    let generate = |question: &str, policy: Option<&str>| {
        let mut command = polyskill(workspace);
        command
            .args(["generate", question, "--max-tokens", "24", "--model", BASE, "--adapters"])
            .arg(&policies);
        command.args(policy.into_iter().flat_map(|policy| ["--adapter", policy]));
        print!("  {:<12}", policy.unwrap_or("all experts"));
        std::io::stdout().flush().context(|| "standard output".to_owned())?;
        run(&mut command)
    };
    for question in QUESTIONS {
        println!("\n  {question}");
        for policy in [None, Some("skipping"), Some("half")] {
            generate(question, policy)?;
        }
    }
    println!("\nServe it, and name a policy in `adapters` of a request:\n");
    println!("  target/release/polyskill serve --model {BASE} --adapters {}", policies.display());
    Ok(())
}

/// The program as it was built last, in the workspace's root.
fn polyskill(workspace: &Workspace) -> std::process::Command {
    let mut command = std::process::Command::new(workspace.target.join("release/polyskill"));
    command.current_dir(&workspace.root);
    command
}

/// Makes all policies; returns the table's rows in their order.
///
/// Policies with a tag are calibrated on the questions of one task each, for the last two rows.
fn calibrate(workspace: &Workspace, policies: &Path) -> Outcome<Vec<Row>> {
    let make = |name: &str, text: &str, more: &[&str]| {
        let mut command = polyskill(workspace);
        command.args(["calibrate", "--model", BASE, "--text", text, "--sequences", SEQUENCES]);
        command.args(more).arg("--out").arg(policies.join(name));
        run(command.stdout(std::process::Stdio::null()))
    };
    let all = format!("{BASE}/calibration");
    let named = |name: &str, policy: &str| Row {
        name: name.to_owned(),
        column: format!("adapters = [{{ name = \"{policy}\", weight = 1.0 }}]\n"),
    };
    let mut rows = vec![Row { name: "all experts".to_owned(), column: String::new() }];
    make("skip-8", &all, &["--skip"])?;
    rows.push(named("all experts, skipping", "skip-8"));
    for kept in KEPT {
        let keep = kept.to_string();
        for method in METHODS {
            let name = format!("{method}-{kept}");
            make(&name, &all, &["--keep", &keep, "--method", method])?;
            rows.push(named(&format!("{method}, {kept} of 8"), &name));
        }
        let name = format!("naee-skip-{kept}");
        make(&name, &all, &["--keep", &keep, "--skip"])?;
        rows.push(named(&format!("naee, {kept} of 8, skipping"), &name));
        for seed in SEEDS {
            let name = format!("random-{kept}-{seed}");
            let seed = seed.to_string();
            make(&name, &all, &["--keep", &keep, "--method", "random", "--seed", &seed])?;
            rows.push(named(&format!("random, {kept} of 8, seed {seed}"), &name));
        }
    }
    for (task, tag) in TAGS {
        let text = format!("{all}/{task}.jsonl");
        make(&format!("for-{task}"), &text, &["--keep", "4", "--tag", tag])?;
    }
    rows.push(Row {
        name: "naee, 4 of 8, for the task".to_owned(),
        column: "own = true\n".to_owned(),
    });
    let column = "router = { name = \"expert-pruning\", modules = [\"for-*\"] }\n".to_owned();
    rows.push(Row { name: "the same, found by expert-pruning".to_owned(), column });
    Ok(rows)
}

/// Writes right answers and log-probability of each row, means over tasks, below the mark of the
/// page.
///
/// `rows` are in the order of the report's columns.
fn write_table(report: &Path, page: &Path, rows: &[Row]) -> Outcome<()> {
    let read = |path: &Path| {
        fs::read_to_string(path).context(|| format!("cannot read {}", path.display()))
    };
    let report = read(report)?;
    let score = means(&report, "## Score, %")?;
    let logprob = means(&report, "## Log-probability per token of the reference")?;
    let mut table = String::from(
        "\n| policy | log-probability per token | right answers, % |\n|---|---|---|\n",
    );
    for ((row, score), logprob) in rows.iter().zip(&score).zip(&logprob) {
        // Writing to a string cannot fail.
        let _ = writeln!(table, "| {} | {logprob} | {score} |", row.name);
    }
    let text = read(page)?;
    let (said, _) = text
        .split_once(MARK)
        .ok_or_else(|| Failure::new(format!("{} lacks the line {MARK}", page.display())))?;
    fs::write(page, format!("{said}{MARK}{table}"))
        .context(|| format!("cannot write {}", page.display()))?;
    println!("    {BASE}/EVALUATION.md");
    Ok(())
}

/// The row `mean` of the table below a heading, by column, with its intervals as text.
fn means(report: &str, heading: &str) -> Outcome<Vec<String>> {
    let table = report.split_once(heading).map(|(_, after)| after);
    let mean = table.and_then(|table| table.lines().find(|line| line.starts_with("| mean |")));
    let mean =
        mean.ok_or_else(|| Failure::new(format!("the report lacks the mean of {heading}")))?;
    let cells = mean.trim_matches('|').split('|').skip(1);
    Ok(cells.map(|cell| cell.trim().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::means;

    #[test]
    fn the_mean_of_a_table_is_found() {
        let report = "## A\n| | x |\n| mean | 1 (0 to 2) |\n## B\n| | x | y |\n| t | 3 | 4 |\n| mean | 5 | 6 |\n";
        assert_eq!(means(report, "## A").unwrap(), ["1 (0 to 2)"]);
        assert_eq!(means(report, "## B").unwrap(), ["5", "6"]);
        assert!(means(report, "## C").is_err());
    }
}
