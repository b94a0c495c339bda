//! Tokens of a template: text, and what stands between `{{ }}` and `{% %}`, with Jinja's control of white space.
//!
//! Blocks are trimmed as transformers asks Jinja to (`trim_blocks`, `lstrip_blocks`), and one line break at the end
//! of a template is dropped, as Jinja does by default.

mod literals;

use std::sync::Arc;

use super::error::JinjaError;
use super::methods::is_blank;

/// A token of a template.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// Text that is written as it is.
    Data(Arc<str>),
    /// `{{`
    VariableBegin,
    /// `}}`
    VariableEnd,
    /// `{%`
    BlockBegin,
    /// `%}`
    BlockEnd,
    /// A name or keyword.
    Name(Arc<str>),
    /// A string literal, its escapes replaced.
    Text(Arc<str>),
    /// A whole number.
    Int(i128),
    /// A number with a fraction or an exponent.
    Float(f64),
    /// An operator or bracket.
    Op(&'static str),
    /// The end of the template.
    End,
}

impl Token {
    /// The token as error messages show it.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Data(_) => "text".to_owned(),
            Self::VariableBegin => "{{".to_owned(),
            Self::VariableEnd => "end of print statement".to_owned(),
            Self::BlockBegin => "{%".to_owned(),
            Self::BlockEnd => "end of statement block".to_owned(),
            Self::Name(name) => format!("`{name}`"),
            Self::Text(_) => "a string".to_owned(),
            Self::Int(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Op(op) => format!("`{op}`"),
            Self::End => "end of template".to_owned(),
        }
    }
}

/// A token and the line it stands in, from 1.
#[derive(Clone, Debug)]
pub(super) struct Lexeme {
    /// The token.
    pub(super) token: Token,
    /// Its line; of a string literal, the first.
    pub(super) line: u32,
}

/// Operators; longer ones before those that they begin with.
const OPERATORS: [&str; 25] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}",
    ">", "<", "=", ".", ":", "|", ",",
];

/// All tokens of a template, ended by [`Token::End`]. All line breaks become `\n` first, as with
/// Jinja's `newline_sequence`.
///
/// # Errors
/// If a tag, comment or string is not closed, or a character belongs nowhere.
pub(super) fn tokenize(source: &str) -> Result<Vec<Lexeme>, JinjaError> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = source.strip_suffix('\n').unwrap_or(&source);
    let mut lexer =
        Lexer { rest: source, line: 1, tokens: Vec::new(), at_line_start: true, open: Vec::new() };
    lexer.template()?;
    lexer.push(Token::End);
    Ok(lexer.tokens)
}

/// The state of the lexer.
struct Lexer<'s> {
    /// The source from here on.
    rest: &'s str,
    /// The line of `rest`, from 1.
    line: u32,
    /// Tokens so far.
    tokens: Vec<Lexeme>,
    /// True where the source that was taken last ended with a line break, or nothing was taken yet:
    /// `lstrip_blocks` strips blanks before a tag there.
    at_line_start: bool,
    /// Brackets that are open, by what closes them. A tag does not end inside of brackets.
    open: Vec<&'static str>,
}

/// The kinds of tags.
#[derive(Clone, Copy, PartialEq)]
enum Tag {
    /// `{{ }}`
    Variable,
    /// `{% %}`
    Block,
    /// `{# #}`
    Comment,
}

impl<'s> Lexer<'s> {
    /// Adds a token of the line at hand.
    fn push(&mut self, token: Token) {
        self.tokens.push(Lexeme { token, line: self.line });
    }

    /// A syntax error in the line at hand.
    fn error(&self, message: impl Into<String>) -> JinjaError {
        JinjaError::syntax(message, self.line)
    }

    /// Moves over the next `len` bytes. Counts lines on the way. `len` must lie between characters.
    fn take(&mut self, len: usize) -> &'s str {
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        self.line += taken.bytes().filter(|&byte| byte == b'\n').count() as u32;
        if !taken.is_empty() {
            self.at_line_start = taken.ends_with('\n');
        }
        taken
    }

    /// Moves over white space.
    fn skip_blanks(&mut self) {
        let blanks = self.rest.len() - self.rest.trim_start_matches(is_blank).len();
        self.take(blanks);
    }

    /// Text and tags in turn, up to the end. The opening of each tag is taken by
    /// [`Self::data_before`].
    fn template(&mut self) -> Result<(), JinjaError> {
        while let Some((at, tag)) = first_tag(self.rest) {
            self.data_before(at, tag);
            match tag {
                Tag::Comment => self.comment()?,
                Tag::Variable => self.expression(Token::VariableBegin, "}}")?,
                Tag::Block if self.raw()? => {}
                Tag::Block => self.expression(Token::BlockBegin, "%}")?,
            }
        }
        let rest = self.take(self.rest.len());
        self.data(rest);
        Ok(())
    }

    /// Adds text, unless it is empty.
    fn data(&mut self, text: &str) {
        if !text.is_empty() {
            self.push(Token::Data(text.into()));
        }
    }

    /// The text before a tag, trimmed as the tag asks; moves behind the tag's opening. After `-`
    /// the text loses all white space at its end; before a block or comment without `+`, the blanks
    /// of its last line, if nothing else stands there (`lstrip_blocks`).
    fn data_before(&mut self, at: usize, tag: Tag) {
        let was_line_start = self.at_line_start;
        let text = self.take(at);
        let sign = self.rest.as_bytes().get(2).copied();
        let text = match sign {
            Some(b'-') => text.trim_end_matches(is_blank),
            Some(b'+') => text,
            _ if tag == Tag::Variable => text,
            _ => without_indent(text, was_line_start),
        };
        self.data(text);
        let len = if matches!(sign, Some(b'-' | b'+')) { 3 } else { 2 };
        self.take(len);
    }

    /// Moves behind a comment, whose opening is taken.
    fn comment(&mut self) -> Result<(), JinjaError> {
        let end = self.rest.find("#}").ok_or_else(|| self.error("a comment is not closed"))?;
        let text = self.take(end);
        let sign = text.chars().next_back().filter(|&sign| sign == '-' || sign == '+');
        self.take(2);
        self.after_end(sign);
        Ok(())
    }

    /// Text after the end of a block or comment: trimmed whole after `-`, else by one line break,
    /// unless `+` forbids it. The line break is `trim_blocks`.
    fn after_end(&mut self, sign: Option<char>) {
        match sign {
            Some('-') => self.skip_blanks(),
            Some('+') => {}
            _ if self.rest.starts_with('\n') => {
                self.take(1);
            }
            _ => {}
        }
    }

    /// A raw block, if one begins here (the opening is taken already). Answers false, with nothing
    /// taken, where another block begins.
    fn raw(&mut self) -> Result<bool, JinjaError> {
        let inner = self.rest.trim_start();
        let Some(after) = inner.strip_prefix("raw") else { return Ok(false) };
        let after = after.trim_start();
        let (end, trims) = match (after.strip_prefix("-%}"), after.strip_prefix("%}")) {
            (Some(end), _) => (end, true),
            (None, Some(end)) => (end, false),
            (None, None) => return Ok(false),
        };
        self.take(self.rest.len() - end.len());
        if trims {
            self.skip_blanks();
        }
        let close = end_of_raw(self.rest).ok_or_else(|| self.error("`raw` is not closed"))?;
        let was_line_start = self.at_line_start;
        let text = self.take(close.at);
        let text = match close.opening {
            Some('-') => text.trim_end_matches(is_blank),
            Some(_) => text,
            None => without_indent(text, was_line_start),
        };
        self.data(text);
        self.take(close.len);
        self.after_end(close.closing);
        Ok(true)
    }

    /// Tokens up to the end of a tag. Adds `begin` first. `end` closes the tag only where no
    /// bracket is open.
    fn expression(&mut self, begin: Token, end: &'static str) -> Result<(), JinjaError> {
        let is_block = begin == Token::BlockBegin;
        self.push(begin);
        self.open.clear();
        loop {
            self.skip_blanks();
            if self.rest.is_empty() {
                return Err(self.error("a tag is not closed"));
            }
            if self.open.is_empty()
                && let Some(sign) = self.ends_with_sign(end, is_block)
            {
                self.push(if is_block { Token::BlockEnd } else { Token::VariableEnd });
                self.take(end.len() + usize::from(sign.is_some()));
                match (is_block, sign) {
                    (true, _) => self.after_end(sign),
                    (false, Some(_)) => self.skip_blanks(),
                    (false, None) => {}
                }
                return Ok(());
            }
            self.token()?;
        }
    }

    /// The sign of a tag's end that begins here: `Some(None)` where it has none. `-` may stand
    /// before any end, `+` before that of a block.
    fn ends_with_sign(&self, end: &str, is_block: bool) -> Option<Option<char>> {
        if self.rest.starts_with(end) {
            return Some(None);
        }
        let sign = self.rest.chars().next().filter(|&c| c == '-' || (c == '+' && is_block))?;
        self.rest[1..].starts_with(end).then_some(Some(sign))
    }

    /// Adds the token that begins here: a string, a number, a name or an operator. Names are those
    /// of Unicode's letters and digits.
    fn token(&mut self) -> Result<(), JinjaError> {
        let rest = self.rest;
        let first = rest.chars().next().unwrap_or_default();
        if first == '\'' || first == '"' {
            return self.text(first);
        }
        if first.is_ascii_digit() {
            return self.number();
        }
        if first.is_alphabetic() || first == '_' {
            let len = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let name = self.take(len);
            self.push(Token::Name(name.into()));
            return Ok(());
        }
        let Some(op) = OPERATORS.iter().find(|op| rest.starts_with(**op)) else {
            return Err(self.error(format!("unexpected character `{first}`")));
        };
        self.bracket(op)?;
        self.push(Token::Op(op));
        self.take(op.len());
        Ok(())
    }

    /// Keeps account of open brackets; one that closes another is an error.
    fn bracket(&mut self, op: &str) -> Result<(), JinjaError> {
        match op {
            "(" => self.open.push(")"),
            "[" => self.open.push("]"),
            "{" => self.open.push("}"),
            ")" | "]" | "}" => match self.open.pop() {
                Some(expected) if expected == op => {}
                Some(expected) => {
                    return Err(self.error(format!("unexpected `{op}`, expected `{expected}`")));
                }
                None => return Err(self.error(format!("unexpected `{op}`"))),
            },
            _ => {}
        }
        Ok(())
    }
}

/// The first tag of a text. Its place in bytes and its kind.
fn first_tag(text: &str) -> Option<(usize, Tag)> {
    let mut from = 0;
    while let Some(at) = text[from..].find('{').map(|at| at + from) {
        match text.as_bytes().get(at + 1) {
            Some(b'{') => return Some((at, Tag::Variable)),
            Some(b'%') => return Some((at, Tag::Block)),
            Some(b'#') => return Some((at, Tag::Comment)),
            _ => from = at + 1,
        }
    }
    None
}

/// A text without the blanks after its last line break; the whole text counts where a line begins
/// with it. Blanks count as an indent only if the line holds nothing else.
fn without_indent(text: &str, begins_line: bool) -> &str {
    let line = match text.rfind('\n') {
        Some(at) => at + 1,
        None if begins_line => 0,
        None => return text,
    };
    if text[line..].chars().all(is_blank) { &text[..line] } else { text }
}

/// The end of a raw block.
struct EndOfRaw {
    /// Place of `{% endraw %}` in the text.
    at: usize,
    /// Bytes from `{%` to behind `%}`.
    len: usize,
    /// The sign behind `{%`.
    opening: Option<char>,
    /// The sign before `%}`.
    closing: Option<char>,
}

/// The first `{% endraw %}` of a text, with or without signs and white space inside. Its parts tell
/// how the text around is trimmed.
fn end_of_raw(text: &str) -> Option<EndOfRaw> {
    let signed = |text: &str, signs: &[char]| text.chars().next().filter(|c| signs.contains(c));
    let mut from = 0;
    while let Some(at) = text[from..].find("{%").map(|at| at + from) {
        from = at + 2;
        let opening = signed(&text[from..], &['-', '+']);
        let inner = text[from + usize::from(opening.is_some())..].trim_start();
        let Some(after) = inner.strip_prefix("endraw") else { continue };
        let after = after.trim_start();
        let closing = signed(after, &['-', '+']);
        let after = &after[usize::from(closing.is_some())..];
        let Some(rest) = after.strip_prefix("%}") else { continue };
        return Some(EndOfRaw { at, len: text.len() - at - rest.len(), opening, closing });
    }
    None
}
