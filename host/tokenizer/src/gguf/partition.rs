//! Special tokens in a text.

use super::TokenType;

/// A part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fragment<'t> {
    /// Text between special tokens, for the model to cut further.
    Text(&'t str),
    /// The id of a special token.
    Token(u32),
}

/// Tokens that are looked for in a text before anything else.
#[derive(Debug)]
pub(super) struct Partition {
    /// The longest first.
    tokens: Vec<(String, u32)>,
    /// The blanks to take away beside the tokens.
    blanks: Blanks,
}

/// The blanks of a text that belong to special tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Blanks {
    /// Those behind every token, but a few.
    pub(super) behind: bool,
    /// Those before `<mask>`.
    pub(super) before_mask: bool,
}

/// ASCII white space, as C's `isspace` has it.
fn is_blank(c: char) -> bool {
    c == ' ' || ('\t'..='\r').contains(&c)
}

impl Partition {
    /// Takes the tokens whose type is special (control, user-defined or unknown), by descending
    /// length in bytes. Tokens of one length keep the vocabulary's order.
    pub(super) fn new(tokens: &[&str], types: &[TokenType], blanks: Blanks) -> Self {
        let special = (0..).zip(tokens).zip(types).filter(|(_, kind)| kind.is_special());
        let mut found: Vec<(String, u32)> = special
            .filter(|((_, text), _)| !text.is_empty())
            .map(|((id, text), _)| ((*text).to_owned(), id))
            .collect();
        found.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        Self { tokens: found, blanks }
    }

    /// The parts of a text. Each token is looked for in all that the longer ones have left. The
    /// result has no empty texts. One search of the text per token: the cost grows with the number
    /// of special tokens times the length of the text.
    pub(super) fn cut<'t>(&self, text: &'t str) -> Vec<Fragment<'t>> {
        let mut fragments = vec![Fragment::Text(text)];
        for (token, id) in &self.tokens {
            // Most tokens are nowhere in a text.
            if !text.contains(token.as_str()) {
                continue;
            }
            let mut cut = Vec::with_capacity(fragments.len());
            for fragment in fragments {
                match fragment {
                    Fragment::Text(text) => self.cut_at(text, token, *id, &mut cut),
                    token => cut.push(token),
                }
            }
            fragments = cut;
        }
        fragments.retain(|fragment| *fragment != Fragment::Text(""));
        fragments
    }

    /// Appends the parts of one text around every place of `token`, from left to right. Texts may
    /// be empty.
    fn cut_at<'t>(&self, text: &'t str, token: &str, id: u32, cut: &mut Vec<Fragment<'t>>) {
        let mut rest = text;
        while let Some(at) = rest.find(token) {
            let before = &rest[..at];
            let strips = self.blanks.before_mask && token == "<mask>";
            cut.push(Fragment::Text(if strips {
                before.trim_end_matches(is_blank)
            } else {
                before
            }));
            cut.push(Fragment::Token(id));
            rest = &rest[at + token.len()..];
            if self.blanks.behind && !matches!(token, "<unk>" | "<s>" | "<|endoftext|>") {
                rest = rest.trim_start_matches(is_blank);
            }
        }
        cut.push(Fragment::Text(rest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_tokens_are_cut_out_first() {
        let tokens = ["<ab", "b>x!", "zz"];
        let types = [TokenType::Control, TokenType::UserDefined, TokenType::Normal];
        let partition = Partition::new(&tokens, &types, Blanks::default());
        assert_eq!(
            partition.cut("<ab>x!zz"),
            [Fragment::Text("<a"), Fragment::Token(1), Fragment::Text("zz")]
        );
        assert_eq!(partition.cut("<ab<ab"), [Fragment::Token(0), Fragment::Token(0)]);
        assert_eq!(partition.cut(""), []);
    }
}
