//! Calibration texts as sequences of tokens.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;

use polyskill_model::Decoder;
use polyskill_tokenizer::Tokenizer;
use serde::Deserialize;

use super::CalibrateArgs;
use crate::commands::lines::next_line;

/// Bytes of a plain text that are read at a time; a line may be longer.
const CHUNK: u64 = 1 << 20;
/// Longest line in bytes, of plain text too: it bounds the memory for a file without line feeds.
const MAX_LINE: u64 = 16 << 20;

/// A line of a JSONL file; other fields are passed over.
#[derive(Deserialize)]
struct Document {
    /// The document.
    text: String,
}

/// The first sequences of the texts, as many as asked for, or fewer where there is less text.
///
/// A sequence has at most `sequence_length` tokens and no more than the base has positions. A
/// document is cut into sequences of its own, so a short one makes a short sequence; plain text is
/// cut in chunks of whole lines. A piece of one token is left out.
///
/// # Errors
/// If a file cannot be read, has a line that is too long or no document, or if there is no text at
/// all.
pub(super) fn read(
    args: &CalibrateArgs,
    model: &Decoder,
    tokenizer: &Tokenizer,
) -> Result<Vec<Vec<u32>>, String> {
    let longest = args.sequence_length.min(model.config().max_positions);
    let mut sequences = Vec::new();
    for path in &files(&args.text)? {
        let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let file = File::open(path).map_err(|error| fail(&error))?;
        let mut reader = BufReader::new(file);
        let is_documents = path.extension().is_some_and(|extension| extension == "jsonl");
        let mut number = 0;
        while sequences.len() < args.sequences {
            let piece = match is_documents {
                true => document(&mut reader, &mut number),
                false => chunk(&mut reader),
            };
            let Some(piece) = piece.map_err(|error| fail(&error))? else { break };
            let tokens = tokenizer.encode(&piece).map_err(|error| fail(&error))?;
            // A token alone has nothing before it; a last piece of one is left out.
            let pieces = tokens.chunks(longest).filter(|tokens| tokens.len() > 1);
            sequences.extend(pieces.map(<[u32]>::to_vec));
        }
    }
    sequences.truncate(args.sequences);
    if sequences.is_empty() {
        let files: Vec<_> = args.text.iter().map(|path| path.display().to_string()).collect();
        return Err(format!("{}: no text", files.join(", ")));
    }
    Ok(sequences)
}

/// Files as they are given, and in the place of each directory its .txt and .jsonl files in the
/// order of their names. Directories in it are not looked into.
fn files(given: &[PathBuf]) -> Result<Vec<PathBuf>, String> {
    let mut files = Vec::new();
    for path in given {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let fail = |error: std::io::Error| format!("{}: {error}", path.display());
        let mut found = Vec::new();
        for entry in std::fs::read_dir(path).map_err(fail)? {
            let file = entry.map_err(fail)?.path();
            let extension = file.extension().and_then(|extension| extension.to_str());
            if matches!(extension, Some("txt" | "jsonl")) {
                found.push(file);
            }
        }
        found.sort();
        files.extend(found);
    }
    Ok(files)
}

/// The text of the next line of a JSONL file; `None` at its end.
///
/// `number` counts the lines for messages.
fn document(reader: &mut impl BufRead, number: &mut usize) -> Result<Option<String>, String> {
    *number += 1;
    let fail = |error: String| format!("line {number}: {error}");
    let Some(line) = next_line(reader, MAX_LINE).map_err(fail)? else { return Ok(None) };
    let document = serde_json::from_slice::<Document>(&line);
    document.map(|document| Some(document.text)).map_err(|error| fail(error.to_string()))
}

/// Whole lines of about a megabyte; `None` at the end of the file.
fn chunk(reader: &mut impl BufRead) -> Result<Option<String>, String> {
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < CHUNK {
        let read = reader.take(MAX_LINE + 1).read_until(b'\n', &mut bytes);
        match read.map_err(|error| error.to_string())? as u64 {
            0 => break,
            length if length > MAX_LINE => return Err(format!("a line is over {MAX_LINE} bytes")),
            _ => {}
        }
    }
    match bytes.is_empty() {
        true => Ok(None),
        false => String::from_utf8(bytes).map(Some).map_err(|_| "not UTF-8".to_owned()),
    }
}
