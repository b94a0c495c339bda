//! Tokens to text as they come: partial characters and possible stop strings are held back.

use crate::Tokenizer;

/// Special tokens in a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Special {
    /// They are left out.
    #[default]
    Hidden,
    /// They are spelled out.
    Shown,
}

/// The end of a text by its own words. Empty by default: nothing ends the text.
#[derive(Clone, Debug, Default)]
pub struct Stops {
    /// Texts that end a stream; the one that is complete first, and of those the first in this list.
    pub strings: Vec<String>,
    /// A stop string that was met stays in the text.
    pub include: bool,
    /// A stop string counts only where it ends behind this many tokens.
    pub min_tokens: usize,
}

/// The part of a text that one more token has made certain. All pieces and the rest of
/// [`TextStream::finish`] in a row are the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Text that is certain now. Empty while a character is incomplete or a stop string may have
    /// begun.
    pub text: String,
    /// Complete characters of the text before this token. Counted from the stream's beginning, held
    /// text included.
    pub offset: usize,
    /// The stop string that ended the text, by its place in [`Stops::strings`].
    pub stopped: Option<usize>,
}

/// Bytes to characters: complete ones are given out, and what can be none becomes U+FFFD.
#[derive(Clone, Debug, Default)]
struct Characters {
    /// The beginning of a character. At most three bytes, since a fourth completes or refutes it.
    partial: Vec<u8>,
}

impl Characters {
    /// Appends the characters that `bytes` complete to `out`.
    fn push(&mut self, bytes: &[u8], out: &mut String) {
        self.partial.extend_from_slice(bytes);
        let mut rest = self.partial.as_slice();
        loop {
            let error = match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    rest = &[];
                    break;
                }
                Err(error) => error,
            };
            let (text, after) = rest.split_at(error.valid_up_to());
            out.push_str(&String::from_utf8_lossy(text));
            rest = after;
            let Some(len) = error.error_len() else { break };
            out.push('\u{fffd}');
            rest = &rest[len..];
        }
        let done = self.partial.len() - rest.len();
        self.partial.drain(..done);
    }

    /// Ends the text: an incomplete character becomes one U+FFFD.
    fn finish(&mut self, out: &mut String) {
        if !std::mem::take(&mut self.partial).is_empty() {
            out.push('\u{fffd}');
        }
    }
}

/// A part of the text that has not been given out.
#[derive(Clone, Debug)]
struct Held {
    /// Complete characters.
    text: String,
    /// The text of a special token that is left out.
    is_hidden: bool,
}

/// Turns the tokens of one sequence into text.
///
/// Pieces in a row are the text of the whole, whatever the tokens: what a token adds depends on its
/// bytes, on an unfinished character before it, and on being the first that says something. Text is
/// held back while it may be the beginning of a stop string; without stop strings, only parts of
/// characters are.
#[derive(Clone, Debug)]
pub struct TextStream {
    /// Shows or hides special tokens.
    special: Special,
    /// The stop strings.
    stops: Stops,
    /// True where a stop string names a special token, so that hidden ones must be looked at.
    stops_at_special: bool,
    /// The character that is not complete yet.
    characters: Characters,
    /// True while nothing of the sequence is visible so far.
    at_start: bool,
    /// Text that has not been given out, in order; hidden parts only where a stop string may reach
    /// them.
    held: Vec<Held>,
    /// Complete characters of the visible text so far.
    num_chars: usize,
    /// Tokens so far, special ones too.
    num_tokens: usize,
    /// Bytes of held text that belong to tokens too early for stop strings.
    exempt: usize,
}

impl TextStream {
    /// A stream of a whole sequence. No stop strings. The first blank of a text is stripped where
    /// the tokenizer asks for it.
    pub fn new(special: Special) -> Self {
        Self {
            special,
            stops: Stops::default(),
            stops_at_special: false,
            characters: Characters::default(),
            at_start: true,
            held: Vec::new(),
            num_chars: 0,
            num_tokens: 0,
            exempt: 0,
        }
    }

    /// A stream of the tokens after a prompt, which ends at stop strings. The first blank of what
    /// follows is kept where the prompt has a visible token.
    pub fn after(tokenizer: &Tokenizer, prompt: &[u32], special: Special, stops: Stops) -> Self {
        let is_visible = |&token: &u32| special == Special::Shown || !tokenizer.is_special(token);
        let names_special = |stop: &String| {
            tokenizer.special_texts().iter().any(|special| stop.contains(special.as_str()))
        };
        Self {
            at_start: !prompt.iter().any(is_visible),
            stops_at_special: special == Special::Hidden && stops.strings.iter().any(names_special),
            stops,
            ..Self::new(special)
        }
    }

    /// Takes a token. Do not push more once a piece says that it stopped.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Piece {
        let offset = self.num_chars;
        self.num_tokens += 1;
        let is_hidden = self.special == Special::Hidden && tokenizer.is_special(token);
        let mut text = String::new();
        if is_hidden {
            if self.stops_at_special {
                let text = String::from_utf8_lossy(tokenizer.token_bytes(token)).into_owned();
                self.held.push(Held { text, is_hidden });
            }
        } else {
            let mut bytes = tokenizer.token_bytes(token);
            if std::mem::take(&mut self.at_start) && tokenizer.strips_first_blank() {
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            }
            self.characters.push(bytes, &mut text);
            self.hold(text);
        }
        if self.num_tokens <= self.stops.min_tokens {
            self.exempt = self.held.iter().map(|held| held.text.len()).sum();
        }
        let (text, stopped) = self.release();
        Piece { text, offset, stopped }
    }

    /// Complete characters of the text so far, given out or held back.
    pub fn num_chars(&self) -> usize {
        self.num_chars
    }

    /// The rest of the text, when the sequence ends. An incomplete character becomes U+FFFD; no
    /// stop string is looked for any more.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        self.characters.finish(&mut text);
        self.hold(text);
        let held = std::mem::take(&mut self.held);
        held.into_iter().filter(|held| !held.is_hidden).map(|held| held.text).collect()
    }

    /// Puts visible text behind what is held, and counts its characters.
    fn hold(&mut self, text: String) {
        self.num_chars += text.chars().count();
        if !text.is_empty() {
            self.held.push(Held { text, is_hidden: false });
        }
    }

    /// Gives out what no stop string can reach any more, or what stands before the one that has come.
    fn release(&mut self) -> (String, Option<usize>) {
        if self.stops.strings.is_empty() {
            let held = self.held.drain(..).filter(|held| !held.is_hidden);
            return (held.map(|held| held.text).collect(), None);
        }
        if let Some(stop) = self.stop() {
            let mut text = self.visible(0..stop.start);
            if self.stops.include {
                match stop.with_hidden {
                    true => text.push_str(&self.stops.strings[stop.which]),
                    false => text.push_str(&self.visible(stop.start..stop.end)),
                }
            }
            self.held.clear();
            return (text, Some(stop.which));
        }
        let total: usize = self.held.iter().map(|held| held.text.len()).sum();
        let all = self.joined(true);
        let visible = self.joined(false);
        let longest = |text: &str| {
            self.stops.strings.iter().map(|stop| overlap(text, stop)).max().unwrap_or(0)
        };
        // The longer of both ends, measured in the text with everything.
        let keep_visible = longest(&visible);
        let mut keep = self.with_hidden(keep_visible);
        if self.stops_at_special {
            keep = keep.max(longest(&all));
        }
        let text = self.visible(0..total - keep);
        self.drop_front(total - keep);
        self.exempt = self.exempt.saturating_sub(total - keep);
        (text, None)
    }

    /// The stop string that is complete first. Of those that end at one place, the first of the
    /// list. Where a stop string names a special token, the text with hidden tokens is searched
    /// too, and a match must not begin or end inside one.
    fn stop(&self) -> Option<FoundStop> {
        if self.stops.strings.is_empty() || self.num_tokens <= self.stops.min_tokens {
            return None;
        }
        let mut found: Option<FoundStop> = None;
        let texts = [(true, self.stops_at_special), (false, true)];
        for (with_hidden, looks) in texts {
            if !looks {
                continue;
            }
            let text = self.joined(with_hidden);
            let exempt = if with_hidden { self.exempt } else { self.visible(0..self.exempt).len() };
            for (which, stop) in self.stops.strings.iter().enumerate() {
                let Some(at) = first_after(&text, stop, exempt) else { continue };
                let (start, end) = (
                    self.place(at, with_hidden, false),
                    self.place(at + stop.len(), with_hidden, true),
                );
                if with_hidden && !(self.is_border(start) && self.is_border(end)) {
                    continue;
                }
                let better =
                    found.as_ref().is_none_or(|found| (end, which) < (found.end, found.which));
                if better {
                    found = Some(FoundStop { which, start, end, with_hidden });
                }
            }
        }
        found
    }

    /// Held text, with or without what is hidden.
    fn joined(&self, with_hidden: bool) -> String {
        let held = self.held.iter().filter(|held| with_hidden || !held.is_hidden);
        held.map(|held| held.text.as_str()).collect()
    }

    /// A place in the text with everything, from one in the text at hand.
    fn place(&self, at: usize, with_hidden: bool, is_end: bool) -> usize {
        if with_hidden {
            return at;
        }
        let (mut left, mut place) = (at, 0);
        for held in &self.held {
            if held.is_hidden {
                place += held.text.len();
            } else if left < held.text.len() || (is_end && left == held.text.len()) {
                return place + left;
            } else {
                left -= held.text.len();
                place += held.text.len();
            }
        }
        place
    }

    /// True where a place in the text with everything cuts no hidden token.
    fn is_border(&self, at: usize) -> bool {
        let mut start = 0;
        self.held.iter().all(|held| {
            let end = start + held.text.len();
            let cuts = held.is_hidden && start < at && at < end;
            start = end;
            !cuts
        })
    }

    /// The visible part of a range of the text with everything.
    fn visible(&self, range: std::ops::Range<usize>) -> String {
        let (mut start, mut out) = (0, String::new());
        for held in &self.held {
            let end = start + held.text.len();
            if !held.is_hidden {
                let (from, to) = (range.start.max(start), range.end.min(end));
                if from < to {
                    out.push_str(&held.text[from - start..to - start]);
                }
            }
            start = end;
        }
        out
    }

    /// Bytes at the end of the text with everything that hold the last `len` visible ones. Hidden
    /// parts between and behind these are counted in.
    fn with_hidden(&self, len: usize) -> usize {
        let (mut left, mut bytes) = (len, 0);
        for held in self.held.iter().rev() {
            if left == 0 {
                break;
            }
            if !held.is_hidden && held.text.len() >= left {
                return bytes + left;
            }
            left -= if held.is_hidden { 0 } else { held.text.len() };
            bytes += held.text.len();
        }
        bytes
    }

    /// Forgets the first `len` bytes of the text with everything.
    fn drop_front(&mut self, mut len: usize) {
        let mut kept = Vec::new();
        for held in std::mem::take(&mut self.held) {
            if len >= held.text.len() {
                len -= held.text.len();
            } else {
                kept.push(Held { text: held.text[len..].to_owned(), ..held });
                len = 0;
            }
        }
        self.held = kept;
    }
}

/// A stop string in the held text, by places in the text with everything.
struct FoundStop {
    /// Index of the stop string in [`Stops::strings`].
    which: usize,
    start: usize,
    end: usize,
    /// True where it was found in the text with hidden tokens, and may name one.
    with_hidden: bool,
}

/// The first place of `stop` that ends behind `exempt` bytes. An empty stop string is never found.
fn first_after(text: &str, stop: &str, exempt: usize) -> Option<usize> {
    if stop.is_empty() {
        return None;
    }
    let mut from = 0;
    while let Some(at) = text[from..].find(stop).map(|at| at + from) {
        if at + stop.len() > exempt {
            return Some(at);
        }
        from = at + text[at..].chars().next().map_or(1, char::len_utf8);
    }
    None
}

/// Bytes at the end of `text` that begin `stop`. The longest such part that is not the whole stop
/// string; 0 without any.
fn overlap(text: &str, stop: &str) -> usize {
    let most = text.len().min(stop.len().saturating_sub(1));
    let fits = |&len: &usize| stop.is_char_boundary(len) && text.ends_with(&stop[..len]);
    (1..=most).rev().find(fits).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(texts: &[(&str, bool)], stops: Stops) -> TextStream {
        let held = texts.iter().map(|&(text, is_hidden)| Held { text: text.to_owned(), is_hidden });
        let held: Vec<Held> = held.collect();
        let stops_at_special = held.iter().any(|held| held.is_hidden);
        let num_tokens = held.len();
        TextStream { held, stops, stops_at_special, num_tokens, ..TextStream::new(Special::Hidden) }
    }

    fn stops(strings: &[&str]) -> Stops {
        let strings = strings.iter().map(|&stop| stop.to_owned()).collect();
        Stops { strings, ..Stops::default() }
    }

    #[test]
    fn possible_stops_are_held_back() {
        assert_eq!(overlap("hello END", "ENDING"), 3);
        assert_eq!(overlap("hello", "xyz"), 0);
        assert_eq!(overlap("aé", "éb"), 2);
        let mut stream = held(&[("one E", false)], stops(&["END"]));
        assert_eq!(stream.release(), ("one ".to_owned(), None));
        stream.held.push(Held { text: "ND two".to_owned(), is_hidden: false });
        assert_eq!(stream.release(), (String::new(), Some(0)));
    }

    #[test]
    fn the_stop_that_is_complete_first_ends_the_text() {
        let text = [("a bc d", false)];
        assert_eq!(held(&text, stops(&[" bc d", "c"])).release(), ("a b".to_owned(), Some(1)));
        assert_eq!(held(&text, stops(&["bc", "c"])).release(), ("a ".to_owned(), Some(0)));
        let included = Stops { include: true, ..stops(&["bc"]) };
        assert_eq!(held(&text, included).release(), ("a bc".to_owned(), Some(0)));
    }

    #[test]
    fn hidden_tokens_can_stop_and_do_not_hide_stops() {
        let text = [("a", false), ("<|end|>", true), ("b", false)];
        assert_eq!(held(&text, stops(&["<|end|>"])).release(), ("a".to_owned(), Some(0)));
        assert_eq!(held(&text, stops(&["a<|end|>"])).release(), (String::new(), Some(0)));
        assert_eq!(held(&text, stops(&["ab"])).release(), (String::new(), Some(0)));
        let included = |stop: &str| Stops { include: true, ..stops(&[stop]) };
        let whole = ("a<|end|>".to_owned(), Some(0));
        assert_eq!(held(&text, included("<|end|>")).release(), whole);
        assert_eq!(held(&text, included("a<|end|>")).release(), whole);
        assert_eq!(held(&text, included("ab")).release(), ("ab".to_owned(), Some(0)));
        // A part of a hidden token is no text.
        assert_eq!(held(&text, stops(&["end"])).release(), ("ab".to_owned(), None));
        let mut stream = held(&[("a", false), ("<|end|>", true)], stops(&["ab"]));
        assert_eq!(stream.release(), (String::new(), None));
        assert_eq!(stream.finish(), "a");
    }

    #[test]
    fn stops_that_end_too_early_do_not_count() {
        let mut stream = held(&[("xaxa", false)], Stops { min_tokens: 0, ..stops(&["xa"]) });
        stream.exempt = 2;
        assert_eq!(stream.release(), ("xa".to_owned(), Some(0)));
    }

    #[test]
    fn bytes_become_characters_when_they_are_complete() {
        let (mut characters, mut out) = (Characters::default(), String::new());
        characters.push(&[0xf0, 0x9f], &mut out);
        assert_eq!(out, "");
        characters.push(&[0xa6, 0x80, b'a', 0xff, 0xc3], &mut out);
        assert_eq!(out, "\u{1f980}a\u{fffd}");
        characters.push(b"b", &mut out);
        characters.push(&[0xe2, 0x82], &mut out);
        characters.finish(&mut out);
        assert_eq!(out, "\u{1f980}a\u{fffd}\u{fffd}b\u{fffd}");
    }
}
