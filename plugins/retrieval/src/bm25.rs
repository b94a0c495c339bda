//! An inverted index with BM25's weights worked out beforehand.

use std::collections::{BTreeMap, BTreeSet};

/// How soon more of the same word stops to count.
const K1: f32 = 1.2;
/// How much longer documents are discounted.
const B: f32 = 0.75;

/// Word → documents that hold it, with its share of their score.
#[derive(Debug, Default)]
pub(crate) struct Index {
    postings: BTreeMap<String, Vec<(u32, f32)>>,
    num_documents: usize,
}

impl Index {
    /// Takes each document as the texts that make it up.
    pub(crate) fn new(documents: impl Iterator<Item = Vec<String>>) -> Self {
        let mut postings: BTreeMap<String, Vec<(u32, f32)>> = BTreeMap::new();
        let mut lengths: Vec<f32> = Vec::new();
        for (number, texts) in (0..).zip(documents) {
            let mut length = 0.0;
            for word in texts.iter().flat_map(|text| words(text)) {
                length += 1.0;
                let documents = postings.entry(word).or_default();
                match documents.last_mut().filter(|last| last.0 == number) {
                    Some(last) => last.1 += 1.0,
                    None => documents.push((number, 1.0)),
                }
            }
            lengths.push(length);
        }
        let count = lengths.len() as f32;
        let average = (lengths.iter().sum::<f32>() / count.max(1.0)).max(1.0);
        for documents in postings.values_mut() {
            let held_by = documents.len() as f32;
            let rarity = (1.0 + (count - held_by + 0.5) / (held_by + 0.5)).ln();
            for (number, weight) in documents {
                let length = lengths[*number as usize] / average;
                *weight = rarity * *weight * (K1 + 1.0) / (*weight + K1 * (1.0 - B + B * length));
            }
        }
        Self { postings, num_documents: lengths.len() }
    }

    /// The score of every document; each word of the query counts once.
    pub(crate) fn scores(&self, query: &str) -> Vec<f32> {
        let mut scores = vec![0.0; self.num_documents];
        // In one order, so that equal queries give equal bits.
        for word in words(query).collect::<BTreeSet<_>>() {
            for &(number, weight) in self.postings.get(&word).into_iter().flatten() {
                scores[number as usize] += weight;
            }
        }
        scores
    }
}

/// Runs of letters and digits in lower case, without a plural's `s`.
fn words(text: &str) -> impl Iterator<Item = String> {
    let runs = text.split(|c: char| !c.is_alphanumeric()).filter(|run| !run.is_empty());
    runs.map(|run| {
        let mut word = run.to_lowercase();
        let singular = word.strip_suffix('s').filter(|rest| rest.len() > 2 && !rest.ends_with('s'));
        if let Some(length) = singular.map(str::len) {
            word.truncate(length);
        }
        word
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_normalised() {
        let found = |text| words(text).collect::<Vec<_>>();
        assert_eq!(found("ISO-Dates, 2nd class_es!"), ["iso", "date", "2nd", "class", "es"]);
        assert_eq!(found("Größen · 日本"), ["größen", "日本"]);
    }

    /// Against the formula, worked out by hand for two documents of three words and one.
    #[test]
    fn scores_are_bm25() {
        let documents = [vec!["a b".to_owned(), "a".to_owned()], vec!["b".to_owned()]];
        let index = Index::new(documents.into_iter());
        let scores = index.scores("a a z");
        let expected = 2.0_f32.ln() * 2.0 * 2.2 / (2.0 + 1.2 * (0.25 + 0.75 * 1.5));
        assert!((scores[0] - expected).abs() < 1e-6 && scores[1] == 0.0, "{scores:?}");
        assert!(index.scores("b")[1] > index.scores("b")[0], "short documents count more");
        assert!(Index::default().scores("a").is_empty());
    }
}
