//! What came of each item, and the file that keeps it.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What one column made of one item.
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
    /// From 0 to 1.
    pub score: f64,
    /// Mean log-probability of the tokens of the first reference and of the end after it.
    pub logprob: f64,
    /// Generated tokens.
    pub tokens: usize,
    /// Wall time of the generation, shared among the items that ran at once.
    pub seconds: f64,
    /// Why the base answered in place of a router, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// What the router picked while it answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<Routing>,
}

/// Picks of one answer, over its tokens and sites.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
pub struct Routing {
    /// Mean weight of each module.
    pub share: BTreeMap<String, f64>,
    /// The same by layer.
    pub layers: Vec<BTreeMap<String, f64>>,
    /// Mean number of modules picked.
    pub picks: f64,
    /// How often the strongest module at a site is another than for the token before; `None` for one token.
    pub changes: Option<f64>,
}

impl Routing {
    /// The module with the largest share.
    pub fn most_picked(&self) -> Option<&str> {
        let by_weight = |a: &(&String, &f64), b: &(&String, &f64)| a.1.total_cmp(b.1);
        self.share.iter().max_by(by_weight).map(|(name, _)| name.as_str())
    }
}

/// Outcomes on disk, one per line.
pub(super) struct Kept {
    known: HashMap<String, Outcome>,
    file: File,
}

impl Kept {
    /// Opens the results in a directory, which is made if need be. A last line that was cut short is dropped.
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
            let mut line = String::new();
            let read = reader.read_line(&mut line).map_err(|error| fail(&error))?;
            if !line.ends_with('\n') {
                break;
            }
            let outcome: Outcome = serde_json::from_str(&line)
                .map_err(|error| format!("{}:{number}: {error}", path.display()))?;
            whole += read as u64;
            known.insert(outcome.key.clone(), outcome);
        }
        file.set_len(whole).map_err(|error| fail(&error))?;
        file.flush().map_err(|error| fail(&error))?;
        Ok(Self { known, file })
    }

    pub(super) fn get(&self, key: &str) -> Option<&Outcome> {
        self.known.get(key)
    }

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
            answer: "a\nb".to_owned(),
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
        std::fs::write(&path, format!("{whole}{}", &whole[..20])).unwrap();
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
