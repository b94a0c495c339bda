//! Lines of files from outside: one at a time, and none beyond a bound.

use std::io::{BufRead, Read as _};

/// The next line with its line feed, which the last one may lack; `None` at the end.
///
/// # Errors
/// If it cannot be read, or has more than `most` bytes.
pub(crate) fn next_line(reader: &mut impl BufRead, most: u64) -> Result<Option<Vec<u8>>, String> {
    let mut line = Vec::new();
    reader.take(most + 1).read_until(b'\n', &mut line).map_err(|error| error.to_string())?;
    match line.len() as u64 {
        0 => Ok(None),
        length if length > most => Err(format!("the line is longer than {most} bytes")),
        _ => Ok(Some(line)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_beyond_the_bound_is_not_read_to_its_end() {
        let mut text = "ab\n\nabc".as_bytes();
        let mut next = || next_line(&mut text, 3);
        assert_eq!(next(), Ok(Some(b"ab\n".to_vec())));
        assert_eq!(next(), Ok(Some(b"\n".to_vec())));
        assert_eq!(next(), Ok(Some(b"abc".to_vec())));
        assert_eq!(next(), Ok(None));
        // A bound that falls into a character is told as what it is.
        let mut text = "abä, and much more".as_bytes();
        let refused = next_line(&mut text, 2).unwrap_err();
        assert_eq!(refused, "the line is longer than 2 bytes");
        assert_eq!(text.len(), 16);
    }
}
