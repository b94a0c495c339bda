//! An inverted index with BM25's weights worked out beforehand.

use std::collections::{BTreeMap, BTreeSet};

/// k₁ of BM25: the larger, the more a further occurrence of a word in a document still counts. 1.2
/// is the usual value.
const K1: f32 = 1.2;
/// b of BM25: the discount of long documents, from 0 (none) to 1 (in full proportion). 0.75 is the
/// usual value.
const B: f32 = 0.75;

/// English words that say nothing about a task. In a small library, BM25 alone does not see that.
/// With a blank around each, so that a search finds whole words.
const IGNORED: &str = " a an and are as at be by can do does for from give has have how i in into is it its \
                       like me my not of on one or please say so that the this to was what which will \
                       with you your ";

/// An inverted index: for each word the documents that hold it, with its share of their score. The
/// weights are worked out once, so that a query adds up one number per word and document.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// Document number and weight, by ascending number.
    postings: BTreeMap<String, Vec<(u32, f32)>>,
    /// Number of documents, those without a word included.
    num_documents: usize,
}

impl Index {
    /// Takes each document as the texts that make it up. The weight of a word in a document is idf
    /// · f (k₁ + 1) / (f + k₁ (1 − b + b · l / l̄)), f its occurrences there, l the document's
    /// words and l̄ their mean over documents, with idf = ln(1 + (N − n + ½) / (n + ½)) for a word
    /// in n of N documents. Words that all documents hold are left out, unless there is only one
    /// document.
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
        // What all say tells none apart: the licence, the base model.
        postings.retain(|_, documents| documents.len() < lengths.len() || lengths.len() == 1);
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

    /// The score of every document; each word of the query counts once. By document number; 0 for a
    /// document that shares no word with the query.
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

/// Runs of letters and digits in lower case, without a plural's `s` and without words that say
/// nothing. A plural loses its `s` where more than two letters are left and these do not end with
/// another `s`.
fn words(text: &str) -> impl Iterator<Item = String> {
    let runs = text.split(|c: char| !c.is_alphanumeric()).filter(|run| !run.is_empty());
    runs.map(str::to_lowercase).filter(|word| !IGNORED.contains(&format!(" {word} "))).map(
        |mut word| {
            let singular =
                word.strip_suffix('s').filter(|rest| rest.len() > 2 && !rest.ends_with('s'));
            if let Some(length) = singular.map(str::len) {
                word.truncate(length);
            }
            word
        },
    )
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

    /// Against the formula, worked out by hand for documents of three words, one and two.
    #[test]
    fn scores_are_bm25() {
        let documents = [vec!["x y", "x"], vec!["y"], vec!["z", "the", "z"]];
        let owned = |texts: Vec<&str>| texts.into_iter().map(str::to_owned).collect();
        let index = Index::new(documents.into_iter().map(owned));
        let scores = index.scores("x x w");
        let rarity = (1.0_f32 + 2.5 / 1.5).ln();
        let expected = rarity * 2.0 * 2.2 / (2.0 + 1.2 * (0.25 + 0.75 * 1.5));
        assert!((scores[0] - expected).abs() < 1e-6 && scores[1] == 0.0, "{scores:?}");
        assert!(index.scores("y")[1] > index.scores("y")[0], "short documents count more");
        assert!(Index::default().scores("x").is_empty());
    }

    #[test]
    fn what_all_say_counts_for_nothing() {
        let index = |texts: &[&str]| Index::new(texts.iter().map(|text| vec![(*text).to_owned()]));
        assert_eq!(index(&["mit dates", "mit names"]).scores("mit"), [0.0, 0.0]);
        assert!(index(&["mit dates"]).scores("mit")[0] > 0.0, "one module alone is not compared");
    }
}
