//! Module cards: tags and other facts from the front matter of a `README.md`.
//!
//! Read are lines `key: value`, `key: [a, b]`, and `key:` followed by `- item` lines. Anything else
//! that YAML can say is passed over: a card describes a module and never changes what it computes.

/// Most entries of a card, tags and metadata together.
const MAX_ENTRIES: usize = 256;
/// Longest key and value, together.
const MAX_BYTES: usize = 1_024;

/// The facts of a card's front matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Card {
    /// The items of `tags`.
    pub tags: Vec<String>,
    /// Everything else, in order; a list gives one entry per item.
    pub metadata: Vec<(String, String)>,
}

impl Card {
    /// Reads a card; it never fails. Without front matter between `---` lines it is empty. Entries
    /// beyond 256, and those longer than 1024 bytes, are dropped; bytes that are no UTF-8 are
    /// replaced.
    pub fn parse(card: &[u8]) -> Self {
        let text = String::from_utf8_lossy(card);
        let front = text.strip_prefix("---").and_then(|rest| rest.split_once("\n---"));
        let mut parsed = Self::default();
        let mut list = None;
        for line in front.map_or("", |(front, _)| front).lines() {
            let item = line.trim_start().strip_prefix("- ");
            if let (Some(key), Some(item)) = (list, item) {
                parsed.add(key, item);
            } else if let Some((key, value)) = key_value(line) {
                list = value.is_empty().then_some(key);
                match value.strip_prefix('[').and_then(|value| value.strip_suffix(']')) {
                    Some(items) => items.split(',').for_each(|item| parsed.add(key, item)),
                    None => parsed.add(key, value),
                }
            } else {
                list = None;
            }
        }
        parsed
    }

    /// Takes one value in, without its quotes. Empty values and unquoted nested structures are
    /// dropped.
    fn add(&mut self, key: &str, value: &str) {
        let value = value.trim();
        let quoted = ['"', '\''].iter().find_map(|&quote| {
            value.strip_prefix(quote).and_then(|value| value.strip_suffix(quote))
        });
        // Unquoted, these begin or are a nested structure.
        let nested = value.contains(": ") || value.ends_with(':') || value.starts_with(['|', '>']);
        let value = match quoted {
            Some(quoted) => quoted,
            None if nested => return,
            None => value,
        };
        let full = self.tags.len() + self.metadata.len() >= MAX_ENTRIES;
        if full || value.is_empty() || key.len() + value.len() > MAX_BYTES {
            return;
        }
        match key {
            "tags" => self.tags.push(value.to_owned()),
            key => self.metadata.push((key.to_owned(), value.to_owned())),
        }
    }
}

/// `key: value` at the outermost level, or `key:` with an empty value; an indented line is none.
fn key_value(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once(':')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let separated = value.is_empty() || value.starts_with([' ', '\t', '\r']);
    let is_key = !key.is_empty() && key.chars().all(plain) && separated;
    is_key.then_some((key, value.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_from_the_front_matter() {
        let card = Card::parse(
            b"---\r\nlicense: x\ndescription: \"dates: ISO\"\ntags:\n- german\n  - \"numbers\"\n- base_model:adapter:a/b\n\
              language: [en, 'de']\nmodel-index:\n- name: x\n  results:\n  - task:\nnote: >\n  folded\nother: 1\n---\n# Card\ntags:\n- no",
        );
        assert_eq!(card.tags, ["german", "numbers", "base_model:adapter:a/b"]);
        let expected = [
            ("license", "x"),
            ("description", "dates: ISO"),
            ("language", "en"),
            ("language", "de"),
            ("other", "1"),
        ];
        let found: Vec<(&str, &str)> =
            card.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_card_without_front_matter_says_nothing() {
        for card in ["# no front matter", "", "---\ntags:\n- never closed", "---"] {
            assert_eq!(Card::parse(card.as_bytes()), Card::default(), "{card}");
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_cards_are_bounded(body in r#"([a-z:|>"'\[\], -]{0,12}\n){0,40}"#, many in 0..400_usize) {
            let items = "- x\n".repeat(many);
            let card = Card::parse(format!("---\n{body}\ntags:\n{items}---\n").as_bytes());
            proptest::prop_assert!(card.tags.len() + card.metadata.len() <= MAX_ENTRIES);
        }
    }
}
