//! Metrics: the score of an answer from 0 to 1, the best over the references.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::sql;
use super::tasks::Item;

/// Difference of numbers that counts as none, relative to the reference, unless the item says.
const TOLERANCE: f64 = 1e-6;

/// The rule by which an answer is compared with a reference.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// The same text, but for blanks around it.
    #[default]
    Exact,
    /// Overlap of words, case and punctuation aside: F1, as SQuAD counts it (Rajpurkar et al.,
    /// 2016).
    TokenF1,
    /// The first object or array in the answer is the same JSON value.
    Json,
    /// The answer's query gives the same rows as the reference's.
    Sql,
    /// The first number in the answer is the reference.
    Numeric,
    /// No answer is asked for; what counts is the log-probability of the reference.
    LogProb,
}

/// The score of an answer, 0 to 1: that of the reference which fits it best.
///
/// Only `TokenF1` gives values between. A log-probability is no score: 0.
pub fn score(item: &Item, answer: &str) -> f64 {
    let one = |reference: &String| match item.metric {
        Metric::Exact => yes(answer.trim() == reference.trim()),
        Metric::TokenF1 => token_f1(answer, reference),
        Metric::Json => yes(first_json(answer).is_some_and(|found| {
            serde_json::from_str::<Json>(reference).is_ok_and(|wanted| wanted == found)
        })),
        Metric::Sql => {
            yes(sql::agree(item.setup.as_deref().unwrap_or_default(), answer, reference))
        }
        Metric::Numeric => {
            yes(numbers_agree(answer, reference, item.tolerance.unwrap_or(TOLERANCE)))
        }
        Metric::LogProb => 0.0,
    };
    item.references.iter().map(one).fold(0.0, f64::max)
}

/// The score of an answer that is right or wrong.
fn yes(right: bool) -> f64 {
    if right { 1.0 } else { 0.0 }
}

/// Words in lower case, without articles. Everything but letters and digits parts words.
fn words(text: &str) -> Vec<String> {
    let clean: String =
        text.to_lowercase().chars().map(|c| if c.is_alphanumeric() { c } else { ' ' }).collect();
    let is_article = |word: &&str| matches!(*word, "a" | "an" | "the");
    clean.split_whitespace().filter(|word| !is_article(word)).map(str::to_owned).collect()
}

/// The harmonic mean of precision and recall of the answer's words, each counted as often as it
/// occurs. Without words on either side, 1 if both have none.
fn token_f1(answer: &str, reference: &str) -> f64 {
    let (found, wanted) = (words(answer), words(reference));
    if found.is_empty() || wanted.is_empty() {
        return yes(found == wanted);
    }
    let mut left: BTreeMap<&str, usize> = BTreeMap::new();
    wanted.iter().for_each(|word| *left.entry(word).or_default() += 1);
    let mut common = 0;
    for word in &found {
        if let Some(count) = left.get_mut(word.as_str()).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    // 2PR/(P + R) with P = common/found and R = common/wanted.
    2.0 * f64::from(common) / (found.len() + wanted.len()) as f64
}

/// The first object or array in a text that parses. What follows it does not matter.
fn first_json(text: &str) -> Option<Json> {
    // A bracket may be of the text: what does not parse is passed over, up to a number that no answer has.
    /// Brackets at which a value is looked for. Each costs a parse of what follows, so this bounds
    /// the time for an answer of brackets alone.
    const MAX_STARTS: usize = 64;
    let starts = text.match_indices(['{', '[']).take(MAX_STARTS);
    let value =
        |start: usize| serde_json::Deserializer::from_str(&text[start..]).into_iter().next()?.ok();
    starts.map(|(start, _)| start).find_map(value)
}

/// The first number in a text, with thousands apart by commas or not. The minus may be the sign
/// U+2212.
fn first_number(text: &str) -> Option<f64> {
    static NUMBER: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"[-−]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?").ok());
    let found = NUMBER.as_ref()?.find(text)?.as_str();
    found.replace('−', "-").replace(',', "").parse().ok()
}

/// Refuses a reference that no answer could match under the item's metric; the error says what is
/// wrong with it.
pub(super) fn check_reference(item: &Item, reference: &str) -> Result<(), String> {
    match item.metric {
        Metric::Json => serde_json::from_str::<Json>(reference)
            .map(drop)
            .map_err(|error| format!("the reference is no JSON: {error}")),
        Metric::Numeric if first_number(reference).is_none() => {
            Err("the reference holds no number".to_owned())
        }
        Metric::Sql => sql::check(item.setup.as_deref().unwrap_or_default(), reference),
        _ => Ok(()),
    }
}

/// True if both texts have a number, and they differ by no more than `tolerance` times the
/// reference's magnitude.
///
/// A reference of 0 is met by 0 alone, but for numbers too small to be normal.
fn numbers_agree(answer: &str, reference: &str, tolerance: f64) -> bool {
    let Some((found, wanted)) = first_number(answer).zip(first_number(reference)) else {
        return false;
    };
    (found - wanted).abs() <= tolerance * wanted.abs().max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(metric: Metric, reference: &str) -> Item {
        serde_json::from_value(serde_json::json!({
            "prompt": "x", "references": [reference], "metric": metric,
            "setup": (metric == Metric::Sql)
                .then_some("CREATE TABLE t(a, b); INSERT INTO t VALUES (1, 'x'), (2, 'y'), (2, 'z');"),
        }))
        .unwrap()
    }

    #[test]
    fn answers_are_judged() {
        for (metric, reference, answer, expected) in [
            (Metric::Exact, "four", " four\n", 1.0),
            (Metric::Exact, "four", "Four", 0.0),
            (Metric::TokenF1, "the red house", "A red, red house!", 0.8),
            (Metric::TokenF1, "the", "nothing", 0.0),
            (Metric::TokenF1, "", "", 1.0),
            (Metric::Json, "{\"a\": 1, \"b\": [2]}", "Sure: {\"b\":[2],\"a\":1}.", 1.0),
            (Metric::Json, "{\"a\": 1}", "{\"a\": 1, \"b\": 2}", 0.0),
            (Metric::Json, "{\"a\": 1}", "{\"a\": ", 0.0),
            (Metric::Json, "{\"a\": 1}", "[note] {\"a\": 1}", 1.0),
            (Metric::Numeric, "1234", "It is 1,234.", 1.0),
            (Metric::Numeric, "-5", "-5 degrees", 1.0),
            (Metric::Numeric, "5", "-5", 0.0),
            (Metric::Numeric, "5", "five", 0.0),
            (Metric::Numeric, "0", "0.0", 1.0),
            (Metric::Numeric, "1e-5", "1 + 2", 0.0),
            (Metric::Numeric, "1e-5", "about 0.00001", 1.0),
            (Metric::Numeric, "−1", "1", 0.0),
            (Metric::Numeric, ".5", "0.5.", 1.0),
            (Metric::Sql, "SELECT b FROM t WHERE a = 2;", "select b from t where a > 1", 1.0),
            (Metric::Sql, "SELECT b FROM t ORDER BY b DESC", "SELECT b FROM t ORDER BY b", 0.0),
            (Metric::Sql, "SELECT b FROM t", "SELECT b FROM t ORDER BY b DESC", 1.0),
            (Metric::Sql, "SELECT a FROM t", "SELECT a FROM nowhere", 0.0),
            (Metric::LogProb, "x", "x", 0.0),
        ] {
            let found = score(&item(metric, reference), answer);
            assert!((found - expected).abs() < 1e-12, "{metric:?} {reference} {answer}: {found}");
        }
    }

    #[test]
    fn the_best_reference_counts() {
        let two = Item { references: vec!["a".into(), "b".into()], ..item(Metric::Exact, "") };
        assert_eq!((score(&two, "b"), score(&two, "c")), (1.0, 0.0));
    }

    proptest! {
        #[test]
        fn scores_are_fractions(answer in ".{0,40}", reference in ".{0,20}", kind in 0_usize..5) {
            let metric = [Metric::Exact, Metric::TokenF1, Metric::Json, Metric::Numeric, Metric::Sql];
            let found = score(&item(metric[kind], &reference), &answer);
            prop_assert!((0.0..=1.0).contains(&found), "{}", found);
        }
    }
}
