//! Case and kinds of characters, as the methods of `str` see them.

use super::super::python;
use super::lines::is_blank;

/// The methods of `str` that ask for the kind of all characters; an empty text has none, but for
/// `isascii` and `isprintable`. Python's classes of characters by Rust's: letters and numbers are
/// those of Unicode, digits those of [`is_decimal`].
pub(super) fn is_kind(text: &str, name: &str) -> bool {
    let all = |test: fn(char) -> bool| !text.is_empty() && text.chars().all(test);
    let letters = || text.chars().filter(|c| c.is_lowercase() || c.is_uppercase());
    match name {
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => text.is_ascii(),
        "isdecimal" | "isdigit" => all(|c| {
            c.is_ascii_digit()
                || (c.is_numeric() && !c.is_ascii() && c.to_string().chars().all(is_decimal))
        }),
        "isnumeric" => all(char::is_numeric),
        "isspace" => all(is_blank),
        "isprintable" => text.chars().all(python::is_printable),
        "islower" => letters().next().is_some() && letters().all(char::is_lowercase),
        "isupper" => letters().next().is_some() && letters().all(char::is_uppercase),
        "istitle" => letters().next().is_some() && titled(text) == text,
        "isidentifier" => {
            let mut chars = text.chars();
            chars.next().is_some_and(|c| c.is_alphabetic() || c == '_')
                && chars.all(|c| c.is_alphanumeric() || c == '_')
        }
        _ => false,
    }
}

/// Decimal digits of the common scripts: runs of ten from these zeros. Not all that Unicode has.
fn is_decimal(c: char) -> bool {
    const ZEROS: [u32; 12] =
        [0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xe50, 0xed0, 0xff10];
    ZEROS.iter().any(|&zero| (zero..zero + 10).contains(&u32::from(c)))
}

/// The methods of `str` that change case. `casefold` differs from `lower` in `ß` alone here;
/// Python's full table has more.
pub(super) fn cased(text: &str, name: &str) -> String {
    match name {
        "upper" => text.to_uppercase(),
        "lower" => text.to_lowercase(),
        "casefold" => text.to_lowercase().replace('ß', "ss"),
        "title" => titled(text),
        "capitalize" => capitalized(text),
        "swapcase" => text
            .chars()
            .flat_map(|c| match c.is_uppercase() {
                true => c.to_lowercase().collect::<Vec<_>>(),
                false => c.to_uppercase().collect(),
            })
            .collect(),
        _ => text.to_owned(),
    }
}

/// `str.capitalize`: the first character in title case, the others small.
pub(in super::super) fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(title_case);
    first.unwrap_or_default() + &chars.as_str().to_lowercase()
}

/// A character as the first of a word. A character that becomes several has the first as a capital.
pub(in super::super) fn title_case(c: char) -> String {
    // Letters that are two in one have a form of their own.
    match c {
        'ǆ' | 'Ǆ' => return "ǅ".to_owned(),
        'ǉ' | 'Ǉ' => return "ǈ".to_owned(),
        'ǌ' | 'Ǌ' => return "ǋ".to_owned(),
        'ǳ' | 'Ǳ' => return "ǲ".to_owned(),
        _ => {}
    }
    let mut upper = c.to_uppercase();
    let first: String = upper.next().into_iter().collect();
    first + &upper.collect::<String>().to_lowercase()
}

/// `str.title`: a capital after each character without case.
fn titled(text: &str) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let is_cased = c.is_lowercase() || c.is_uppercase();
        match inside {
            true => out.extend(c.to_lowercase()),
            false => out.push_str(&title_case(c)),
        }
        inside = is_cased;
    }
    out
}
