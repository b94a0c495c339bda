//! Outcomes of items, and the file that keeps them.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::commands::lines::next_line;

/// Longest line of the results in bytes.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// The result of one column on one item.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Outcome {
    /// Digest of the item, the column and the composition that answered.
    pub key: String,
    /// The column's name.
    pub column: String,
    /// The task's name.
    pub task: String,
    /// The item's number in its task.
    pub index: usize,
    /// The greedy answer; empty where none was asked for.
    pub answer: String,
    /// The score, from 0 to 1; 0 for the metric `log-prob`.
    pub score: f64,
    /// Mean log-probability of the tokens of the first reference and of the end after it; 0 if
    /// there are none.
    pub logprob: f64,
    /// Generated tokens.
    pub tokens: usize,
    /// Wall time of the generation in which it ran, divided by the number of items that ran at
    /// once.
    pub seconds: f64,
    /// The reason for which the base answered in place of a router, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// The router's picks while it answered; `None` without a router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<Routing>,
}

/// Picks of one answer, over its tokens and sites.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
pub struct Routing {
    /// Mean weight of each module that was picked, over tokens and sites.
    pub share: BTreeMap<String, f64>,
    /// The same by layer, from the first, over the sites of the layer alone.
    pub layers: Vec<BTreeMap<String, f64>>,
    /// Mean number of modules picked per token and site.
    pub picks: f64,
    /// The share of tokens, 0 to 1, at which the strongest module at a site is another than for the
    /// token before; `None` for one token.
    pub changes: Option<f64>,
}

impl Routing {
    /// The module with the largest share. Of equal shares the last by name; `None` if nothing was
    /// picked.
    pub fn most_picked(&self) -> Option<&str> {
        let by_weight = |a: &(&String, &f64), b: &(&String, &f64)| a.1.total_cmp(b.1);
        self.share.iter().max_by(by_weight).map(|(name, _)| name.as_str())
    }
}

/// Outcomes on disk, one per line. The file is locked for as long as this lives.
pub(super) struct Kept {
    /// All outcomes by their keys, also of items and columns that are not asked for now.
    known: HashMap<String, Outcome>,
    /// `results.jsonl`, open for appending.
    file: File,
}

impl Kept {
    /// Opens the results in a directory, which is made if need be. A last line that was cut short
    /// is dropped.
    ///
    /// # Errors
    /// If another evaluation has the file, or a whole line is no outcome.
    pub(super) fn open(directory: &Path) -> Result<Self, String> {
        let path = directory.join("results.jsonl");
        let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        std::fs::create_dir_all(directory).map_err(|error| fail(&error))?;
        let mut open = OpenOptions::new();
        open.read(true).create(true).append(true);
        let mut file = open.open(&path).map_err(|error| fail(&error))?;
        file.try_lock().map_err(|error| fail(&format!("another evaluation writes it: {error}")))?;
        let mut known = HashMap::new();
        let mut reader = BufReader::new(&file);
        let mut whole = 0;
        for number in 1.. {
            let at = |error: String| format!("{}:{number}: {error}", path.display());
            // Bytes, since what is cut short may end within a character.
            let line = next_line(&mut reader, MAX_LINE_BYTES).map_err(at)?;
            let Some(line) = line.filter(|line| line.ends_with(b"\n")) else { break };
            let outcome: Outcome =
                serde_json::from_slice(&line).map_err(|error| at(error.to_string()))?;
            whole += line.len() as u64;
            known.insert(outcome.key.clone(), outcome);
        }
        file.set_len(whole).map_err(|error| fail(&error))?;
        file.flush().map_err(|error| fail(&error))?;
        Ok(Self { known, file })
    }

    /// The outcome with a key, if it is known.
    pub(super) fn get(&self, key: &str) -> Option<&Outcome> {
        self.known.get(key)
    }

    /// Appends an outcome to the file and remembers it. Nothing is synced, so a machine that loses
    /// power may lose the last ones.
    pub(super) fn add(&mut self, outcome: &Outcome) -> Result<(), String> {
        let line = serde_json::to_string(outcome).map_err(|error| error.to_string())?;
        self.file
            .write_all(format!("{line}\n").as_bytes())
            .map_err(|error| format!("results.jsonl: {error}"))?;
        self.known.insert(outcome.key.clone(), outcome.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_short_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let outcome = |key: &str| Outcome {
            key: key.to_owned(),
            column: "c".to_owned(),
            task: "t".to_owned(),
            index: 0,
            answer: "a\nbä".to_owned(),
            score: 0.5,
            logprob: -1.0,
            tokens: 3,
            seconds: 0.1,
            fallback: None,
            routing: None,
        };
        Kept::open(folder.path()).unwrap().add(&outcome("1")).unwrap();
        let path = folder.path().join("results.jsonl");
        let whole = std::fs::read_to_string(&path).unwrap();
        // Before, in and after a character of two bytes.
        let wide = whole.find('ä').unwrap();
        for cut in [wide, wide + 2, wide + 1] {
            let cut = [whole.as_bytes(), &whole.as_bytes()[..cut]].concat();
            std::fs::write(&path, cut).unwrap();
            let kept = Kept::open(folder.path()).unwrap();
            assert_eq!(kept.known.len(), 1);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
        }
        let mut kept = Kept::open(folder.path()).unwrap();
        kept.add(&outcome("2")).unwrap();
        let second = Kept::open(folder.path()).map(drop).unwrap_err();
        assert!(second.contains("another evaluation"), "{second}");
        drop(kept);
        let kept = Kept::open(folder.path()).unwrap();
        assert_eq!(kept.get("1"), Some(&outcome("1")));
        assert_eq!((kept.known.len(), kept.get("2")), (2, Some(&outcome("2"))));
        drop(kept);
        std::fs::write(&path, "{}\n").unwrap();
        let refused = Kept::open(folder.path()).map(drop).unwrap_err();
        assert!(refused.contains("results.jsonl:1: missing field"), "{refused}");
    }
}
