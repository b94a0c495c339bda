//! SentencePiece's merging by scores, as llama.cpp does it.

use std::collections::{BinaryHeap, HashMap};

/// The character that SentencePiece writes for a blank.
pub(crate) const BLANK: &str = "\u{2581}";

/// A vocabulary whose pieces have scores.
#[derive(Debug)]
pub(super) struct SentencePiece {
    /// Ids by piece. Of equal pieces the last has the entry.
    ids: HashMap<String, u32>,
    /// Scores by id; higher ones are merged first.
    scores: Vec<f32>,
    /// Tokens for single bytes. 256 entries, by the byte's value.
    bytes: Vec<Option<u32>>,
    /// `add_space_prefix`: a blank is put before a text, and before what follows a special token.
    adds_prefix: bool,
}

/// A part of the text that is to become a token. Symbols form a doubly linked list over the text,
/// of which a merge takes one out.
#[derive(Clone, Copy)]
struct Symbol {
    /// First byte in the text.
    start: usize,
    /// 0 where it was merged into the one before it. In bytes.
    len: usize,
    /// Index of the left neighbour, or [`NONE`].
    before: usize,
    /// Index of the right neighbour, or [`NONE`].
    after: usize,
}

/// No neighbour.
const NONE: usize = usize::MAX;

/// Two neighbours that may be merged.
struct Pair {
    /// The merged piece's score.
    score: f32,
    /// Index of the left symbol.
    left: usize,
    /// Index of the right symbol.
    right: usize,
    /// Bytes of both when the pair was proposed. Another sum now means that one of them has changed
    /// since, and the pair is out of date.
    len: usize,
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pair {
    /// The highest score first, and of equal ones the leftmost.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl SentencePiece {
    /// `scores` has a value for each token or more. A byte without a token of the form `<0x0A>` has
    /// the token of its character, if it is ASCII and there is one.
    pub(super) fn new(tokens: &[&str], scores: Vec<f32>, adds_prefix: bool) -> Self {
        let ids: HashMap<String, u32> =
            (0..).zip(tokens).map(|(id, text)| ((*text).to_owned(), id)).collect();
        let byte = |byte: u8| {
            let spelled = ids.get(&format!("<0x{byte:02X}>"));
            let plain = || ids.get(std::str::from_utf8(&[byte]).ok()?);
            spelled.or_else(plain).copied()
        };
        let bytes = (0..=255).map(byte).collect();
        Self { ids, scores, bytes, adds_prefix }
    }

    /// Appends the ids of a text without special tokens. `behind_special` says that the text is the
    /// first or follows a special token, where `add_space_prefix` puts a blank. A symbol that is no
    /// piece falls back to the tokens of its bytes. The cost is n log n in the characters of the
    /// text.
    pub(super) fn encode(&self, text: &str, behind_special: bool, ids: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let prefix = if self.adds_prefix && behind_special { " " } else { "" };
        let text = [prefix, text].concat().replace(' ', BLANK);
        let mut symbols = symbols(&text);
        let mut pairs = BinaryHeap::new();
        (1..symbols.len())
            .for_each(|right| self.propose(&text, &symbols, right - 1, right, &mut pairs));
        while let Some(pair) = pairs.pop() {
            let (left, right) = (symbols[pair.left], symbols[pair.right]);
            if left.len == 0 || right.len == 0 || left.len + right.len != pair.len {
                continue;
            }
            symbols[pair.left].len = pair.len;
            symbols[pair.left].after = right.after;
            symbols[pair.right].len = 0;
            if right.after != NONE {
                symbols[right.after].before = pair.left;
                self.propose(&text, &symbols, pair.left, right.after, &mut pairs);
            }
            if left.before != NONE {
                self.propose(&text, &symbols, left.before, pair.left, &mut pairs);
            }
        }
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let piece = &text[symbol.start..symbol.start + symbol.len];
            match self.ids.get(piece) {
                Some(&id) => ids.push(id),
                // A byte without a token has no id at all.
                None => ids.extend(piece.bytes().filter_map(|byte| self.bytes[byte as usize])),
            }
        }
    }

    /// Adds two neighbours to the queue, if their text together is a piece.
    fn propose(
        &self,
        text: &str,
        symbols: &[Symbol],
        left: usize,
        right: usize,
        pairs: &mut BinaryHeap<Pair>,
    ) {
        let (start, len) = (symbols[left].start, symbols[left].len + symbols[right].len);
        if let Some(&id) = self.ids.get(&text[start..start + len]) {
            pairs.push(Pair { score: self.scores[id as usize], left, right, len });
        }
    }
}

/// The characters of a text. One symbol each, linked in order.
fn symbols(text: &str) -> Vec<Symbol> {
    let count = text.chars().count();
    let neighbours =
        |at: usize| (at.checked_sub(1).unwrap_or(NONE), if at + 1 < count { at + 1 } else { NONE });
    text.char_indices()
        .enumerate()
        .map(|(at, (start, c))| {
            let (before, after) = neighbours(at);
            Symbol { start, len: c.len_utf8(), before, after }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_merge_by_score_and_from_the_left() {
        let tokens = ["<unk>", "\u{2581}", "a", "b", "ab", "ba", "\u{2581}a", "<0xC3>", "<0xA9>"];
        let scores = vec![0.0, -9.0, -9.0, -9.0, -1.0, -1.0, -2.0, 0.0, 0.0];
        let encode = |text: &str, prefix: bool| {
            let mut ids = Vec::new();
            SentencePiece::new(&tokens, scores.clone(), prefix).encode(text, true, &mut ids);
            ids
        };
        // `ab` and `ba` have one score; the one on the left is taken first.
        assert_eq!(encode("aba", false), [4, 2]);
        assert_eq!(encode("a", true), [6]);
        assert_eq!(encode("é", false), [7, 8]);
        assert!(encode("?", false).is_empty());
    }
}
