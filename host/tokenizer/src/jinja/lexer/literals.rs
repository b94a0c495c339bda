//! Literals: strings with their escapes, and numbers.

use super::super::error::JinjaError;
use super::{Lexeme, Lexer, Token};

impl Lexer<'_> {
    /// A string literal in either kind of quotes. It may go over several lines.
    pub(super) fn text(&mut self, quote: char) -> Result<(), JinjaError> {
        let mut escaped = false;
        let end = self.rest[1..].find(|c: char| {
            let closes = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            closes
        });
        let end = end.ok_or_else(|| self.error("a string is not closed"))?;
        let text = unescape(&self.rest[1..1 + end]).map_err(|what| self.error(what))?;
        self.push(Token::Text(text.into()));
        self.take(end + 2);
        Ok(())
    }

    /// A number as Python writes it: `_` between digits, `0b`, `0o`, `0x`, fractions and exponents.
    /// A point without digits behind it belongs to what follows. Behind a point that is an
    /// operator, only whole numbers are read.
    pub(super) fn number(&mut self) -> Result<(), JinjaError> {
        let rest = self.rest;
        let radix = match rest.get(..2).map(str::to_ascii_lowercase).as_deref() {
            Some("0b") => 2,
            Some("0o") => 8,
            Some("0x") => 16,
            _ => 10,
        };
        if radix != 10 {
            let digits = &rest[2..];
            let len = digits.find(|c: char| !c.is_digit(radix) && c != '_');
            let len = len.unwrap_or(digits.len());
            return self.int(len + 2, 2, radix);
        }
        let whole = digits(rest);
        // `x.0.1` are two subscripts.
        if matches!(self.tokens.last(), Some(Lexeme { token: Token::Op("."), .. })) {
            return self.int(whole, 0, 10);
        }
        let mut len = whole;
        let fraction = rest[len..].strip_prefix('.').map_or(0, digits);
        if fraction > 0 {
            len += 1 + fraction;
        }
        let exponent = exponent(&rest[len..]);
        if fraction == 0 && exponent == 0 {
            return self.int(whole, 0, 10);
        }
        let text = rest[..len + exponent].replace('_', "");
        let value = text.parse().map_err(|_| self.error(format!("`{text}` is no number")))?;
        self.push(Token::Float(value));
        self.take(len + exponent);
        Ok(())
    }

    /// Adds a whole number of `len` bytes, of which `prefix` are no digits.
    fn int(&mut self, len: usize, prefix: usize, radix: u32) -> Result<(), JinjaError> {
        let text = self.rest[prefix..len].replace('_', "");
        let value = i128::from_str_radix(&text, radix);
        let value = value.map_err(|_| self.error(format!("`{text}` is no whole number")))?;
        self.push(Token::Int(value));
        self.take(len);
        Ok(())
    }
}

/// Bytes of decimal digits, with single `_` between them.
fn digits(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut len = 0;
    while bytes.get(len).is_some_and(u8::is_ascii_digit)
        || (len > 0
            && bytes.get(len) == Some(&b'_')
            && bytes.get(len + 1).is_some_and(u8::is_ascii_digit))
    {
        len += 1;
    }
    len
}

/// Bytes of an exponent. 0 where none begins here.
fn exponent(text: &str) -> usize {
    let Some(rest) = text.strip_prefix(['e', 'E']) else { return 0 };
    let unsigned = rest.strip_prefix(['+', '-']).unwrap_or(rest);
    match digits(unsigned) {
        0 => 0,
        len => text.len() - unsigned.len() + len,
    }
}

/// A string literal with Python's escapes replaced. Escapes by name, `\N{...}`, stay as they are,
/// like unknown ones.
fn unescape(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let Some(escape) = chars.next() else { return Err("a string ends with `\\`".to_owned()) };
        match escape {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(escape),
            'a' => out.push('\u{7}'),
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\u{b}'),
            '0'..='7' => {
                let mut code = escape.to_digit(8).unwrap_or(0);
                for _ in 0..2 {
                    let Some(digit) = chars.peek().and_then(|c| c.to_digit(8)) else { break };
                    code = code * 8 + digit;
                    chars.next();
                }
                out.push(char::from_u32(code).unwrap_or('\u{fffd}'));
            }
            'x' | 'u' | 'U' => {
                let len = match escape {
                    'x' => 2,
                    'u' => 4,
                    _ => 8,
                };
                out.push(hex(&mut chars, len)?);
            }
            other => out.extend(['\\', other]),
        }
    }
    Ok(out)
}

/// The character of `len` hexadecimal digits. Half of a surrogate pair becomes U+FFFD.
fn hex(chars: &mut impl Iterator<Item = char>, len: usize) -> Result<char, String> {
    let digits: String = chars.take(len).collect();
    let code = u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == len);
    let code = code.ok_or_else(|| format!("`\\` and `{digits}` are no character"))?;
    // Python keeps halves of surrogate pairs, which no UTF-8 text can hold.
    Ok(char::from_u32(code).unwrap_or('\u{fffd}'))
}
