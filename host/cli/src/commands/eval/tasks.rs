//! Task files: one question per line, as JSON.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::metric::{Metric, check_reference};
use crate::commands::lines::next_line;

/// Longest line in bytes.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// Questions in all files together.
const MAX_ITEMS: usize = 1 << 20;
/// Tokens of an answer, unless the item says.
const MAX_TOKENS: usize = 64;

/// A question and the answers that are right.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// The task, for rows of tables; the file's name where it is left out.
    #[serde(default)]
    pub task: String,
    /// The user's message. Either this or `messages`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// A conversation that ends with the user.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Message>,
    /// Right answers. The best of them counts; log-probabilities are those of the first.
    pub references: Vec<String>,
    /// The metric by which an answer is judged.
    #[serde(default)]
    pub metric: Metric,
    /// The module that was made for it, which answers in a column with `own`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// Groups for summaries, such as `seen`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// SQL that fills the database that the metric `sql` asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setup: Option<String>,
    /// The difference that the metric `numeric` allows, relative to the reference, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<f64>,
    /// Tokens of an answer at most.
    #[serde(default = "max_tokens")]
    pub max_tokens: usize,
}

/// The default of [`Item::max_tokens`], as serde calls it.
fn max_tokens() -> usize {
    MAX_TOKENS
}

/// A turn of a conversation.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text of the turn.
    pub content: String,
}

impl Item {
    /// The conversation up to the answer. A `prompt` is one turn of the user.
    pub(crate) fn conversation(&self) -> Vec<Message> {
        match &self.prompt {
            Some(prompt) => vec![Message { role: "user".to_owned(), content: prompt.clone() }],
            None => self.messages.clone(),
        }
    }

    /// The user's last message, for routers that look at the text.
    pub(crate) fn last_said(&self) -> String {
        self.conversation().pop().map(|message| message.content).unwrap_or_default()
    }

    /// Refuses an item with fields that contradict each other, and references that no answer could
    /// match.
    ///
    /// For SQL the references are run, so a file with many of them takes its time.
    fn check(&self) -> Result<(), String> {
        let (prompt, messages) = (self.prompt.is_some(), !self.messages.is_empty());
        if prompt == messages {
            return Err("expected either `prompt` or `messages`".to_owned());
        }
        if self.messages.last().is_some_and(|message| message.role != "user") {
            return Err("`messages` ends with another than the user".to_owned());
        }
        if self.references.is_empty() {
            return Err("`references` is empty, expected at least one".to_owned());
        }
        if self.max_tokens == 0 {
            return Err("`max_tokens` is 0, expected at least 1".to_owned());
        }
        if self.metric == Metric::Sql && self.setup.is_none() {
            return Err("the metric `sql` needs `setup`".to_owned());
        }
        if self.setup.is_some() && self.metric != Metric::Sql {
            return Err("`setup` is for the metric `sql`".to_owned());
        }
        let roles = ["system", "user", "assistant"];
        let stranger = |message: &&Message| !roles.contains(&message.role.as_str());
        if let Some(message) = self.messages.iter().find(stranger) {
            return Err(format!("the role `{}`, expected system, user or assistant", message.role));
        }
        self.references.iter().try_for_each(|reference| check_reference(self, reference))?;
        match self.tolerance {
            Some(_) if self.metric != Metric::Numeric => {
                Err("`tolerance` is for the metric `numeric`".to_owned())
            }
            Some(tolerance) if !(0.0..=1.0).contains(&tolerance) => {
                Err(format!("`tolerance` is {tolerance}, expected 0 to 1"))
            }
            _ => Ok(()),
        }
    }
}

/// The items of one task, in the order of the files.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its name.
    pub name: String,
    /// Its questions; not empty.
    pub items: Vec<Item>,
}

/// Reads task files, and those in directories, as tasks in the order of their names.
///
/// Items of one task may lie in several files. `limit` is the number of items that each task gets,
/// the first ones; files are read and checked to their end in any case.
///
/// # Errors
/// A message with file and line: a line that cannot be read or is no item, too many items, or none.
pub fn read_tasks(paths: &[PathBuf], limit: Option<usize>) -> Result<Vec<Task>, String> {
    let mut tasks: BTreeMap<String, Vec<Item>> = BTreeMap::new();
    let mut count = 0;
    for path in files(paths)? {
        for item in read_file(&path)? {
            let items = tasks.entry(item.task.clone()).or_default();
            if limit.is_none_or(|limit| items.len() < limit) {
                items.push(item);
                count += 1;
            }
            if count > MAX_ITEMS {
                return Err(format!("more than {MAX_ITEMS} items"));
            }
        }
    }
    if tasks.is_empty() {
        return Err("the task files hold no item".to_owned());
    }
    Ok(tasks.into_iter().map(|(name, items)| Task { name, items }).collect())
}

/// Files as they are given, and in the place of each directory its .jsonl files in the order of
/// their names.
fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let fail = |error: std::io::Error| format!("{}: {error}", path.display());
        let mut inside = Vec::new();
        for entry in std::fs::read_dir(path).map_err(fail)? {
            let file = entry.map_err(fail)?.path();
            if file.extension().is_some_and(|extension| extension == "jsonl") {
                inside.push(file);
            }
        }
        inside.sort();
        files.extend(inside);
    }
    Ok(files)
}

/// The items of one file. Blank lines are passed over, and so is a byte order mark.
fn read_file(path: &Path) -> Result<Vec<Item>, String> {
    let file = std::fs::File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut reader = BufReader::new(file);
    let mut items = Vec::new();
    for number in 1.. {
        let fail = |problem: String| format!("{}:{number}: {problem}", path.display());
        let line = next_line(&mut reader, MAX_LINE_BYTES).map_err(fail)?;
        let Some(line) = line else { break };
        let line = str::from_utf8(&line).map_err(|error| fail(error.to_string()))?;
        let line = line.trim_start_matches('\u{feff}');
        if line.trim().is_empty() {
            continue;
        }
        let mut item: Item = serde_json::from_str(line).map_err(|error| fail(error.to_string()))?;
        item.check().map_err(fail)?;
        if item.task.is_empty() {
            item.task = stem.clone().into_owned();
        }
        items.push(item);
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Task>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sums.jsonl");
        std::fs::write(&path, text).unwrap();
        read_tasks(&[folder.path().to_owned()], None)
            .map_err(|error| error.replace(&folder.path().display().to_string(), ""))
    }

    #[test]
    fn files_become_tasks() {
        let tasks = read(
            "{\"prompt\": \"1 + 1\", \"references\": [\"2\"], \"metric\": \"numeric\"}\n\n\
             {\"task\": \"a\", \"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"references\": [\"y\"]}\n",
        )
        .unwrap();
        let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
        assert_eq!(names, ["a", "sums"]);
        assert_eq!(tasks[1].items[0].metric, Metric::Numeric);
        assert_eq!(tasks[0].items[0].last_said(), "x");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let good = "{\"prompt\": \"a\", \"references\": [\"b\"]}\n";
        for (line, part) in [
            ("{\"prompt\": \"a\"}", "missing field `references`"),
            ("{\"prompt\": \"a\", \"references\": []}", "`references` is empty"),
            ("{\"references\": [\"b\"]}", "either `prompt` or `messages`"),
            (
                "{\"prompt\": \"a\", \"references\": [\"b\"], \"metric\": \"rouge\"}",
                "unknown variant `rouge`",
            ),
            ("{\"prompt\": \"a\", \"references\": [\"b\"], \"metric\": \"sql\"}", "needs `setup`"),
            ("{\"prompt\": \"a\", \"references\": [\"b\"], \"max_tokens\": 0}", "at least 1"),
            (
                "{\"prompt\": \"a\", \"references\": [\"b\"], \"weight\": 1}",
                "unknown field `weight`",
            ),
            (
                "{\"prompt\": \"a\", \"references\": [\"b\"], \"metric\": \"numeric\", \"tolerance\": -1}",
                "holds no number",
            ),
            (
                "{\"prompt\": \"a\", \"references\": [\"1\"], \"metric\": \"numeric\", \"tolerance\": -1}",
                "0 to 1",
            ),
            (
                "{\"prompt\": \"a\", \"references\": [\"b\"], \"tolerance\": 0.1}",
                "is for the metric `numeric`",
            ),
            ("{\"prompt\": \"a\", \"references\": [\"b\"], \"metric\": \"json\"}", "no JSON"),
            (
                "{\"prompt\": \"a\", \"references\": [\"SELECT 1 WHERE 0\"], \"metric\": \"sql\", \"setup\": \"\"}",
                "finds nothing",
            ),
            ("nonsense", "expected"),
        ] {
            let message = read(&format!("{good}{line}\n")).unwrap_err();
            assert!(message.contains("sums.jsonl:2: ") && message.contains(part), "{message}");
        }
        assert!(read("\n").unwrap_err().contains("no item"));
        for long in ["x".repeat(2 << 20), format!("x{}", "ä".repeat(1 << 20))] {
            assert!(read(&long).unwrap_err().contains("longer than"));
        }
    }
}
