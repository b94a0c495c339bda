//! Lines and words of texts, by the breaks and the white space that Python knows.

/// Characters that end a line. Those of `str.splitlines`.
pub(in super::super) const BREAKS: [char; 10] =
    ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];

/// The first break of a text. Its range in bytes; `\r\n` is one break.
pub(super) fn line_break(text: &str) -> Option<std::ops::Range<usize>> {
    let at = text.find(BREAKS)?;
    let len = match text[at..].starts_with("\r\n") {
        true => 2,
        false => text[at..].chars().next().map_or(1, char::len_utf8),
    };
    Some(at..at + len)
}

/// The lines of a text, without their breaks. A break at the end begins no further line.
pub(in super::super) fn lines(text: &str) -> Vec<&str> {
    let (mut lines, mut rest) = (Vec::new(), text);
    while let Some(found) = line_break(rest) {
        lines.push(&rest[..found.start]);
        rest = &rest[found.end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// White space as Python's `str.strip` sees it. U+001C to U+001F are white space to Python and not
/// to Unicode.
pub(in super::super) fn is_blank(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Words between white space, after at most `most` cuts from either side; the rest is one word.
/// From the right, the rest is what stands in front.
pub(super) fn words(text: &str, most: usize, from_right: bool) -> Vec<&str> {
    let mut words = Vec::new();
    if !from_right {
        let mut rest = text.trim_start_matches(is_blank);
        while !rest.is_empty() {
            if words.len() == most {
                words.push(rest);
                break;
            }
            let end = rest.find(is_blank).unwrap_or(rest.len());
            words.push(&rest[..end]);
            rest = rest[end..].trim_start_matches(is_blank);
        }
        return words;
    }
    let mut rest = text.trim_end_matches(is_blank);
    while !rest.is_empty() {
        if words.len() == most {
            words.push(rest);
            break;
        }
        let found = rest.char_indices().rev().find(|(_, c)| is_blank(*c));
        let start = found.map_or(0, |(at, c)| at + c.len_utf8());
        words.push(&rest[start..]);
        rest = rest[..start].trim_end_matches(is_blank);
    }
    words.reverse();
    words
}
