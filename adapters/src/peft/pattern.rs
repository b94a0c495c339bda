//! Python's regular expressions, as PEFT's settings use them.
//!
//! The engine is one with look-around and back-references, so its steps are bounded. Where its
//! syntax means something else than Python's, or takes what Python refuses, the expression is
//! translated or refused: a pattern must never match other linears than it does in PEFT.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use fancy_regex::{Regex, RegexBuilder};

/// Longest expression, in bytes.
const MAX_LENGTH: usize = 4_096;
/// Most groups inside each other.
const MAX_DEPTH: usize = 100;
/// Steps back that one match may take.
const MAX_STEPS: usize = 200_000;
/// Largest compiled size of each part without look-around.
const MAX_COMPILED_BYTES: usize = 1 << 20;
/// Most characters of a group's beginning in a message.
const MAX_SHOWN: usize = 12;

/// An expression of a setting.
#[derive(Debug)]
pub(super) struct Pattern {
    /// The translated expression, anchored as its setting asks.
    regex: Regex,
    /// The setting that it comes from.
    setting: String,
    /// Set when a match took too many steps, so that its answer is not to be used.
    gave_up: AtomicBool,
}

impl Pattern {
    /// An expression for a whole path, as `re.fullmatch` takes it. Flags at its beginning hold for
    /// all of it.
    pub(super) fn of_whole(pattern: &str, setting: &str) -> Result<Self, String> {
        let (flags, pattern) = leading_flags(pattern);
        let translated = translated(pattern).map_err(|reason| named(setting, &reason))?;
        Self::build(&format!(r"{flags}\A(?:{translated})\z"), setting)
    }

    /// A key of `rank_pattern` and `alpha_pattern`: an expression for the end of a path, at a dot.
    pub(super) fn of_key(key: &str, setting: &str) -> Result<Self, String> {
        let translated = translated(key).map_err(|reason| named(setting, &reason))?;
        // PEFT's own group comes first, so that a key's back-references count from 2.
        Self::build(&format!(r"\A(?:(.*\.)?({translated})\z)"), setting)
    }

    /// An expression that begins at the beginning of a path, as `re.match` takes it.
    pub(super) fn of_beginning(pattern: &str, setting: &str) -> Result<Self, String> {
        let translated = translated(pattern).map_err(|reason| named(setting, &reason))?;
        Self::build(&format!(r"\A(?:{translated})"), setting)
    }

    /// Compiles a translated expression within the bounds.
    fn build(pattern: &str, setting: &str) -> Result<Self, String> {
        let regex = RegexBuilder::new(pattern)
            .backtrack_limit(MAX_STEPS)
            .delegate_size_limit(MAX_COMPILED_BYTES)
            .build()
            .map_err(|error| named(setting, &error.to_string().replace('\n', " ")))?;
        Ok(Self { regex, setting: setting.to_owned(), gave_up: AtomicBool::new(false) })
    }

    /// True where a path matches; false where that took too many steps, which [`Pattern::problem`]
    /// then says.
    pub(super) fn is_match(&self, path: &str) -> bool {
        self.regex.is_match(path).unwrap_or_else(|_| {
            self.gave_up.store(true, Relaxed);
            false
        })
    }

    /// The text of the group named `name` in the first match, if there is one.
    pub(super) fn group(&self, path: &str, name: &str) -> Option<String> {
        match self.regex.captures(path) {
            Ok(captures) => Some(captures?.name(name)?.as_str().to_owned()),
            Err(_) => {
                self.gave_up.store(true, Relaxed);
                None
            }
        }
    }

    /// The reason not to use its answers, if a match took too many steps.
    pub(super) fn problem(&self) -> Option<String> {
        let reason =
            format!("the expression takes more than {MAX_STEPS} steps on a path of the base");
        self.gave_up.load(Relaxed).then(|| named(&self.setting, &reason))
    }
}

/// A problem with the setting's name before it.
fn named(setting: &str, reason: &str) -> String {
    format!("`{setting}`: {reason}")
}

/// Flags for the whole expression, which Python takes at its beginning alone.
fn leading_flags(pattern: &str) -> (&str, &str) {
    let flags = pattern.strip_prefix("(?").and_then(|rest| {
        let len = rest.find(|c: char| !"aimsux".contains(c))?;
        (len > 0 && rest[len..].starts_with(')')).then_some(len + 3)
    });
    let (flags, rest) = pattern.split_at(flags.unwrap_or(0));
    // Both engines have Unicode on; `a` and `x` are left to be refused.
    match flags {
        "(?u)" => ("", rest),
        flags if flags.contains(['a', 'x', 'u']) => ("", pattern),
        flags => (flags, rest),
    }
}

/// An expression of Python in the syntax of the engine, without anchors of its own. Python that
/// cannot be said there is an error.
fn translated(pattern: &str) -> Result<String, String> {
    if pattern.len() > MAX_LENGTH {
        return Err(format!(
            "the expression has {} bytes, expected at most {MAX_LENGTH}",
            pattern.len()
        ));
    }
    let mut translator = Translator { rest: pattern, out: String::new(), depth: 0, repeats: true };
    while !translator.rest.is_empty() {
        translator.step()?;
    }
    Ok(translator.out)
}

/// A pass over an expression from left to right, which copies or rewrites one piece after the
/// other.
struct Translator<'p> {
    /// The part that is not yet read.
    rest: &'p str,
    /// The translation so far.
    out: String,
    /// Groups that are open.
    depth: usize,
    /// True where a quantifier would have nothing to repeat, or an anchor or a quantifier, which
    /// Python repeats as little.
    repeats: bool,
}

impl<'p> Translator<'p> {
    /// Passes over so many bytes and returns them.
    fn take(&mut self, len: usize) -> &'p str {
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        taken
    }

    /// Copies so many bytes as they are.
    fn copy(&mut self, len: usize) {
        let taken = self.take(len);
        self.out.push_str(taken);
    }

    /// Translates the next piece: a character, an escape, a class, a quantifier, or the beginning
    /// or the end of a group.
    fn step(&mut self) -> Result<(), String> {
        let first = self.rest.chars().next().unwrap_or_default();
        match first {
            '\\' => {
                let is_anchor = self.rest[1..].starts_with(['A', 'Z', 'b', 'B']);
                self.escape(false)?;
                self.repeats = is_anchor;
            }
            '[' => {
                self.class()?;
                self.repeats = false;
            }
            '(' => self.group()?,
            ')' => {
                self.depth = self.depth.saturating_sub(1);
                self.copy(1);
                self.repeats = false;
            }
            '*' | '+' | '?' => {
                self.quantifier(1)?;
            }
            '{' => match counted(self.rest) {
                Some(len) => self.quantifier(len)?,
                None => {
                    self.take(1);
                    self.out.push_str(r"\{");
                    self.repeats = false;
                }
            },
            '}' => {
                self.take(1);
                self.out.push_str(r"\}");
                self.repeats = false;
            }
            '$' => {
                // Paths have no line breaks, before which Python's `$` would match too.
                self.take(1);
                self.out.push_str(r"\z");
                self.repeats = true;
            }
            '|' | '^' => {
                self.copy(1);
                self.repeats = true;
            }
            c => {
                self.copy(c.len_utf8());
                self.repeats = false;
            }
        }
        Ok(())
    }

    /// Translates a quantifier of `len` bytes with the mark behind it. `{,n}` gets the 0 that the
    /// engine wants.
    fn quantifier(&mut self, len: usize) -> Result<(), String> {
        if self.repeats {
            return Err("nothing to repeat, or a repeat of an anchor or a repeat".to_owned());
        }
        let quantifier = self.take(len);
        match quantifier.strip_prefix("{,") {
            Some(rest) => {
                self.out.push_str("{0,");
                self.out.push_str(rest);
            }
            None => self.out.push_str(quantifier),
        }
        // Lazy, or possessive as in Python 3.11.
        if self.rest.starts_with(['?', '+']) {
            self.copy(1);
        }
        self.repeats = true;
        Ok(())
    }

    /// Translates the beginning of a group; a reference by name and a comment are read whole.
    fn group(&mut self) -> Result<(), String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("groups nest more than {MAX_DEPTH} deep"));
        }
        let is_after_nothing = std::mem::replace(&mut self.repeats, true);
        let Some(kind) = self.rest.strip_prefix("(?") else {
            self.copy(1);
            return Ok(());
        };
        // The engine reads a condition by name as an expression, and one on an open group in another way than Python.
        if kind.starts_with('(') {
            return Err("conditions, `(?(group)yes|no)`, are not supported".to_owned());
        }
        for plain in ["(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>"] {
            if self.rest.starts_with(plain) {
                self.copy(plain.len());
                return Ok(());
            }
        }
        if kind.starts_with("P<") {
            let close = self.rest.find('>').ok_or("a group's name is not closed")?;
            self.copy(close + 1);
            return Ok(());
        }
        if let Some(name) = kind.strip_prefix("P=") {
            let close = name.find(')').ok_or("a group is not closed")?;
            self.out.push_str(&format!(r"\k<{}>", &name[..close]));
            self.take(4 + close + 1);
            self.depth -= 1;
            self.repeats = false;
            return Ok(());
        }
        if kind.starts_with('#') {
            let close = self.rest.find(')').ok_or("a comment is not closed")?;
            self.take(close + 1);
            self.depth -= 1;
            // For Python a comment is not there.
            self.repeats = is_after_nothing;
            return Ok(());
        }
        let flags = kind.find(|c: char| !"ims-".contains(c)).unwrap_or(0);
        if flags > 0 && kind[flags..].starts_with(':') {
            self.copy(2 + flags + 1);
            return Ok(());
        }
        Err(refused_group(kind))
    }

    /// Translates a class in brackets. Characters that are operators in the engine's classes alone
    /// are escaped.
    fn class(&mut self) -> Result<(), String> {
        self.copy(1);
        if self.rest.starts_with('^') {
            self.copy(1);
        }
        let mut is_first = true;
        loop {
            let c = self.rest.chars().next().ok_or("a class is not closed")?;
            match c {
                ']' if !is_first => {
                    self.copy(1);
                    return Ok(());
                }
                '\\' => self.escape(true)?,
                // The engine's own operators inside classes.
                '[' | ']' | '&' | '~' => {
                    self.out.push('\\');
                    self.copy(1);
                }
                '-' if self.rest.starts_with("--") => {
                    return Err("`--` in a class has another meaning here".to_owned());
                }
                c => self.copy(c.len_utf8()),
            }
            is_first = false;
        }
    }

    /// Translates a backslash and what follows. Those that Python does not know are errors, as
    /// there, and so are those that the engine cannot say.
    fn escape(&mut self, in_class: bool) -> Result<(), String> {
        let c = self.rest[1..].chars().next().ok_or("the expression ends with `\\`")?;
        match c {
            'Z' if !in_class => {
                self.take(2);
                self.out.push_str(r"\z");
            }
            'A' | 'B' if !in_class => self.copy(2),
            'b' if !in_class => self.copy(2),
            'b' => {
                self.take(2);
                self.out.push_str(r"\x08");
            }
            'd' | 'D' | 's' | 'S' | 'w' | 'W' | 'a' | 'f' | 'n' | 'r' | 't' | 'v' => self.copy(2),
            'x' | 'u' | 'U' => {
                let len = match c {
                    'x' => 2,
                    'u' => 4,
                    _ => 8,
                };
                let digits =
                    self.rest.get(2..2 + len).filter(|d| d.chars().all(|c| c.is_ascii_hexdigit()));
                let digits =
                    digits.ok_or_else(|| format!("`\\{c}` is followed by no {len} digits"))?;
                self.out.push_str(&format!(r"\x{{{digits}}}"));
                self.take(2 + len);
            }
            '0' => {
                let len = self.rest[1..].find(|c: char| !('0'..='7').contains(&c));
                let len = len.unwrap_or(self.rest.len() - 1).min(3);
                let code = u32::from_str_radix(&self.rest[1..=len], 8).unwrap_or(0);
                self.out.push_str(&format!(r"\x{{{code:x}}}"));
                self.take(1 + len);
            }
            '1'..='9' if !in_class => {
                let len = self.rest[1..].find(|c: char| !c.is_ascii_digit());
                let len = len.unwrap_or(self.rest.len() - 1);
                if len > 2 {
                    return Err("three digits after `\\` are not supported here".to_owned());
                }
                // Apart from digits that may follow.
                let number = self.take(1 + len);
                self.out.push_str(&format!(r"(?:{number})"));
            }
            'N' => {
                return Err(
                    r"`\N`, a character by its name, is not supported here, expected the character"
                        .to_owned(),
                );
            }
            '1'..='7' => {
                return Err(format!(
                    "`\\{c}` in a class, an octal code, is not supported here, expected `\\x` and two digits"
                ));
            }
            c if c.is_ascii_alphanumeric() => {
                return Err(format!("`\\{c}` is no escape of Python"));
            }
            c if c.is_ascii_punctuation() => self.copy(2),
            c => {
                self.take(1);
                self.copy(c.len_utf8());
            }
        }
        Ok(())
    }
}

/// The refusal of a group that begins with `(?` and `kind`. Flags that Python knows are told from
/// what is no group there.
fn refused_group(kind: &str) -> String {
    let flags = kind.find(|c: char| !"aimsux-".contains(c)).unwrap_or(kind.len());
    let (flags, rest) = kind.split_at(flags);
    let shown: String = kind.chars().take(flags.len().max(1) + 1).take(MAX_SHOWN).collect();
    if flags.contains(['a', 'u', 'x']) && rest.starts_with([')', ':']) {
        return format!("`(?{shown}` sets a flag that is not supported here, expected i, m or s");
    }
    match !flags.is_empty() && !flags.contains('-') && rest.starts_with(')') {
        true => format!("`(?{shown}` sets flags anew, expected at the beginning alone"),
        false => format!("`(?{shown}` is no group of Python"),
    }
}

/// Bytes of `{2}`, `{2,}`, `{,3}` or `{2,3}`. `None` where the brace is plain text, as Python takes
/// it.
fn counted(text: &str) -> Option<usize> {
    let inner = text.strip_prefix('{')?;
    let end = inner.find('}')?;
    let count = &inner[..end];
    let (low, high) = count.split_once(',').unwrap_or((count, count));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let is_count = digits(low) && digits(high) && count.bytes().any(|byte| byte.is_ascii_digit());
    // Without a number Python takes it as text, but `{,}`, which repeats without bounds.
    (is_count || count == ",").then_some(end + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(pattern: &str, path: &str) -> Result<bool, String> {
        let pattern = Pattern::of_whole(pattern, "target_modules")?;
        let found = pattern.is_match(path);
        pattern.problem().map_or(Ok(found), Err)
    }

    #[test]
    fn expressions_mean_what_they_mean_in_python() {
        let path = "model.layers.1.self_attn.q_proj";
        for (pattern, expected) in [
            (r"^(?!.*(?:vision|lm_head)).*\.(q_proj)$", true),
            (r".*(?<=attn\.)[qk]_proj", true),
            (r".*\.(q)_proj\Z", true),
            (r"(?i)MODEL.*Q_PROJ", true),
            (r".*layers\.[0-2]\..*", true),
            (r".*[a&&b]ttn.*", true),
            (r".*_{1}proj", true),
            (r".*_{,2}proj", true),
            (r"q_proj", false),
            (r".*(?P<x>l)ayers.*(?P=x).*", true),
            (r".*(?P<x>y)ers.*(?P=x).*", false),
            (r".*(a)(t)\2n.*", true),
            (r"m(?#one)+odel.*", true),
            (r"^\bmodel\b.*$", true),
        ] {
            assert_eq!(whole(pattern, path), Ok(expected), "{pattern}");
        }
    }

    #[test]
    fn what_python_refuses_is_refused() {
        for pattern in [
            r"\p{L}+",
            r"\z",
            "a**",
            "*a",
            "^*a",
            "^{2}a",
            "^(?#none)*a",
            "a$*",
            "(a$+)",
            r"\b+a",
            r"\Aa\B?",
            r"a\Z{1,2}",
            "(?<n>a)",
            r"\x{41}",
            "a(?i)b",
            "[a",
            "(",
            r"\",
            "[0-2--2]",
            "(?x)a",
            "(?P<a>q)?(?(a)b|c)",
            "(q)(?(1)b|c)",
        ] {
            assert!(whole(pattern, "a").is_err(), "{pattern}");
        }
        assert!(whole(&"(".repeat(5_000), "a").is_err());
        assert!(whole(&("(".repeat(900) + &")".repeat(900)), "a").is_err());
    }

    #[test]
    fn refusals_say_what_python_knows() {
        for (pattern, part) in [
            ("(?x)a", "`(?x)` sets a flag that is not supported here"),
            ("(?a)a", "`(?a)` sets a flag that is not supported here"),
            ("b(?x:a)", "`(?x:` sets a flag that is not supported here"),
            ("a(?i)b", "`(?i)` sets flags anew, expected at the beginning"),
            ("(?<n>a)", "`(?<n` is no group of Python"),
            (r"\N{DIGIT ONE}", r"`\N`, a character by its name, is not supported here"),
            (r"[\1]", r"`\1` in a class, an octal code, is not supported here"),
            (r"\y", r"`\y` is no escape of Python"),
        ] {
            let refusal = whole(pattern, "a").unwrap_err();
            assert!(refusal.contains(part), "{pattern}: {refusal}");
        }
    }

    #[test]
    fn expressions_that_take_too_long_are_refused() {
        let error = whole(r"(?=(a+)+$)(?:(?:a|aa)+)+b\1", &"a".repeat(60)).unwrap_err();
        assert!(error.contains("steps"), "{error}");
    }
}
