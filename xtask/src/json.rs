//! A small JSON reader: enough for `cargo metadata`, example files and the server's answers.

use std::fmt;

/// Deeper nesting is refused rather than recursed into.
const DEPTH: usize = 64;

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    /// As 64-bit floats: integers beyond 2⁵³ lose digits.
    Number(f64),
    Text(String),
    List(Vec<Self>),
    /// Members in the order of the text; of equal keys the first is found.
    Object(Vec<(String, Self)>),
}

/// The place at which a text is not JSON, and the reason.
#[derive(Debug, PartialEq)]
pub(crate) struct Malformed {
    /// Bytes before the place.
    at: usize,
    /// The reason, in a few words.
    what: &'static str,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not JSON: {} at byte {}", self.what, self.at)
    }
}

impl Value {
    /// A whole text as one value. Numbers that Rust parses and JSON does not have, such as `1.`,
    /// are taken too.
    pub(crate) fn parse(text: &str) -> Result<Self, Malformed> {
        let mut reader = Reader { text, at: 0 };
        let value = reader.value(0)?;
        reader.space();
        if reader.at == text.len() { Ok(value) } else { Err(reader.error("trailing text")) }
    }

    /// A member of an object; `None` where it is missing, or this is no object.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        self.members().iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// An object's members; none where it is something else.
    pub(crate) fn members(&self) -> &[(String, Self)] {
        if let Self::Object(members) = self { members } else { &[] }
    }

    /// A member that is a text. `None` where it is missing or something else.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        if let Some(Self::Text(text)) = self.get(key) { Some(text) } else { None }
    }

    /// A member that is a list; empty where it is missing or something else.
    pub(crate) fn list(&self, key: &str) -> &[Self] {
        if let Some(Self::List(list)) = self.get(key) { list } else { &[] }
    }
}

/// A text as a JSON string, quotes included; control characters are escaped.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out + "\""
}

/// A position in a text that is being read.
struct Reader<'a> {
    /// The whole text.
    text: &'a str,
    /// Bytes that are read.
    at: usize,
}

impl Reader<'_> {
    /// An error at the position.
    fn error(&self, what: &'static str) -> Malformed {
        Malformed { at: self.at, what }
    }

    /// The next byte; `None` at the end.
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Skips white space.
    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Skips white space and takes `byte` if it comes next.
    fn takes(&mut self, byte: u8) -> bool {
        self.space();
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// A value of any kind; `depth` is the number of lists and objects around it.
    fn value(&mut self, depth: usize) -> Result<Value, Malformed> {
        if depth > DEPTH {
            return Err(self.error("too deep"));
        }
        self.space();
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.list(depth),
            Some(b'"') => self.string().map(Value::Text),
            _ => self.word(),
        }
    }

    /// An object whose `{` comes next.
    fn object(&mut self, depth: usize) -> Result<Value, Malformed> {
        self.at += 1;
        let mut members = Vec::new();
        if self.takes(b'}') {
            return Ok(Value::Object(members));
        }
        loop {
            self.space();
            let key = self.string()?;
            if !self.takes(b':') {
                return Err(self.error("expected `:`"));
            }
            members.push((key, self.value(depth + 1)?));
            if self.takes(b'}') {
                return Ok(Value::Object(members));
            }
            if !self.takes(b',') {
                return Err(self.error("expected `,` or `}`"));
            }
        }
    }

    /// A list whose `[` comes next.
    fn list(&mut self, depth: usize) -> Result<Value, Malformed> {
        self.at += 1;
        let mut items = Vec::new();
        if self.takes(b']') {
            return Ok(Value::List(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            if self.takes(b']') {
                return Ok(Value::List(items));
            }
            if !self.takes(b',') {
                return Err(self.error("expected `,` or `]`"));
            }
        }
    }

    /// `null`, `true`, `false` or a number.
    fn word(&mut self) -> Result<Value, Malformed> {
        let rest = &self.text[self.at..];
        let end = rest
            .find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '+' | '-' | '.'))
            .unwrap_or(rest.len());
        let value = match &rest[..end] {
            "null" => Value::Null,
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            word if word.starts_with(|c: char| c == '-' || c.is_ascii_digit()) => {
                Value::Number(word.parse().map_err(|_| self.error("bad number"))?)
            }
            _ => return Err(self.error("expected a value")),
        };
        self.at += end;
        Ok(value)
    }

    /// A string whose opening quote comes next. Control characters in it are taken, though JSON
    /// wants them escaped.
    fn string(&mut self) -> Result<String, Malformed> {
        if self.peek() != Some(b'"') {
            return Err(self.error("expected a string"));
        }
        self.at += 1;
        let mut out = String::new();
        loop {
            let rest = &self.text[self.at..];
            let plain = rest.find(['"', '\\']).ok_or_else(|| self.error("unclosed string"))?;
            out.push_str(&rest[..plain]);
            self.at += plain + 1;
            if rest.as_bytes()[plain] == b'"' {
                return Ok(out);
            }
            out.push(self.escape()?);
        }
    }

    /// The character that an escape stands for; its backslash is read.
    fn escape(&mut self) -> Result<char, Malformed> {
        let letter = self.peek().ok_or_else(|| self.error("unfinished escape"))?;
        self.at += 1;
        match letter {
            b'"' | b'\\' | b'/' => Ok(char::from(letter)),
            b'b' => Ok('\u{8}'),
            b'f' => Ok('\u{c}'),
            b'n' => Ok('\n'),
            b'r' => Ok('\r'),
            b't' => Ok('\t'),
            b'u' => self.unicode(),
            _ => Err(self.error("unknown escape")),
        }
    }

    /// The digits after `\u`, with the second half of a surrogate pair where there is one.
    fn unicode(&mut self) -> Result<char, Malformed> {
        let mut code = self.hex()?;
        if (0xD800..0xDC00).contains(&code) && self.text[self.at..].starts_with("\\u") {
            self.at += 2;
            let low = self.hex()?;
            if !(0xDC00..0xE000).contains(&low) {
                return Err(self.error("half a surrogate pair"));
            }
            code = 0x1_0000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        }
        char::from_u32(code).ok_or_else(|| self.error("half a surrogate pair"))
    }

    /// Four hexadecimal digits.
    fn hex(&mut self) -> Result<u32, Malformed> {
        let digits = self.text.get(self.at..self.at + 4);
        let code = digits
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
            .ok_or_else(|| self.error("bad \\u escape"))?;
        self.at += 4;
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::{DEPTH, Value, quoted};

    #[test]
    fn reads_nested_values() {
        let value = Value::parse(r#" {"a": [1, -2.5e1, true, null], "b": {"c": "d"}, "e": {}} "#);
        let value = value.unwrap();
        let expected = [Value::Number(1.0), Value::Number(-25.0), Value::Bool(true), Value::Null];
        assert_eq!(value.list("a"), expected);
        assert_eq!(value.get("b").and_then(|b| b.text("c")), Some("d"));
        assert!(value.get("e").unwrap().members().is_empty());
        assert!(value.list("b").is_empty());
    }

    #[test]
    fn quoting_and_reading_are_inverse() {
        let text = "ü \"q\" \\ \n \u{1} \u{1F600}";
        assert_eq!(Value::parse(&quoted(text)).unwrap(), Value::Text(text.to_owned()));
        let escaped = Value::parse(r#""\ud83d\ude00\u00fc\/""#).unwrap();
        assert_eq!(escaped, Value::Text("\u{1F600}ü/".to_owned()));
    }

    #[test]
    fn refuses_what_is_not_json() {
        for text in
            ["", "{", "[1,", "[1 2]", "{\"a\" 1}", "\"a", "\"\\u12\"", "\"\\ud800\"", "1 2", "nan"]
        {
            assert!(Value::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn refuses_deep_nesting() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(Value::parse(&nested(DEPTH)).is_ok());
        assert!(Value::parse(&nested(100_000)).is_err());
    }
}
