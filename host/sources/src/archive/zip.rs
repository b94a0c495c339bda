//! Modules out of zip files.
//!
//! Read here, and not by a crate, because only a narrow kind of zip is wanted, and a reader that
//! accepts no other needs no guesses: one directory of the archive's entries, right before its end,
//! and both headers of an entry saying the same. Stored and deflated entries are read; encryption,
//! several disks and the extension for archives over 4 GiB are refused.

use std::fs::File;
use std::io::{BufReader, Read, Seek as _, SeekFrom};
use std::ops::Range;

use flate2::Crc;
use flate2::read::DeflateDecoder;

use super::unreadable;
use crate::error::Reason;
use crate::format::{components, shorten};
use crate::stage::Stage;

/// The signature of the end of the archive's directory.
const END: &[u8] = b"PK\x05\x06";
/// Bytes of that record, without the comment after it.
const END_BYTES: usize = 22;
/// Longest comment, whose length has 16 bits.
const MAX_COMMENT_BYTES: usize = u16::MAX as usize;
/// The signature of an entry of the directory.
const ENTRY: &[u8] = b"PK\x01\x02";
/// Bytes of such an entry, without name, extra field and comment.
const ENTRY_BYTES: usize = 46;
/// The signature of the header before an entry's data.
const LOCAL: &[u8] = b"PK\x03\x04";
/// Bytes of such a header, without name and extra field.
const LOCAL_BYTES: usize = 30;
/// The flag of encrypted data.
const ENCRYPTED: u16 = 1;
/// The flag of a local header without sum and sizes; they follow the data.
const SIZES_FOLLOW: u16 = 1 << 3;
/// The method of data without compression.
const STORED: u16 = 0;
/// The method of deflate.
const DEFLATED: u16 = 8;
/// The system on which an entry's attributes are those of Unix.
const UNIX: u8 = 3;
/// The bits of those attributes that tell the kind of a file.
const KIND: u32 = 0o170_000;
/// The kinds that are read: not told, a plain file, a folder.
const PLAIN_KINDS: [u32; 3] = [0, 0o100_000, 0o040_000];

/// A part of the module, as the archive's directory describes it.
struct Part {
    /// Its path in the module's directory.
    part: String,
    /// Its path in the archive, byte by byte, which the local header must repeat.
    path: Vec<u8>,
    /// Its compression, one of [`STORED`] and [`DEFLATED`].
    method: u16,
    /// CRC-32 of the unpacked bytes.
    crc: u32,
    /// Bytes in the archive.
    compressed: u64,
    /// Unpacked bytes.
    size: u64,
    /// The place of its local header in the archive.
    offset: u64,
}

/// Puts the files of a module in place; everything that is no plain file or folder refuses the
/// whole archive.
///
/// `length` is that of the file. Sizes are summed before anything is unpacked, and parts must not
/// share bytes, so a small archive cannot unpack the same data many times.
pub(super) fn unpack(file: &mut File, length: u64, stage: &mut Stage) -> Result<(), Reason> {
    let clock = stage.clock.clone();
    let (directory, mut parts) = read_directory(file, length, stage)?;
    // In the archive's order, so that entries which share bytes are found.
    parts.sort_by_key(|part| part.offset);
    let (most, limit) = stage.limits.unpacked(length);
    if parts.iter().map(|part| part.size).sum::<u64>() > most {
        let what = format!("bytes that {length} bytes unpack to");
        return Err(Reason::TooLarge { what, most, limit });
    }
    let mut free = 0..directory;
    for part in parts {
        clock.check()?;
        free.start = unpack_part(file, part, &free, stage)?;
    }
    Ok(())
}

/// A little-endian number; 0 beyond the end.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// A little-endian number; 0 beyond the end.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

/// The bytes in which the archive's directory lies, and the number of its entries. There must be
/// one record that can be the end, and nothing between it and the directory.
fn find_directory(
    file: &mut File,
    length: u64,
    max_entries: usize,
) -> Result<(Range<u64>, u16), Reason> {
    let tail_bytes = length.min((END_BYTES + MAX_COMMENT_BYTES) as u64);
    file.seek(SeekFrom::Start(length - tail_bytes)).map_err(unreadable)?;
    let mut tail = Vec::new();
    file.by_ref().take(tail_bytes).read_to_end(&mut tail).map_err(unreadable)?;
    // A comment may hold what looks like another end, and programs differ in which they take.
    let mut ends = (0..tail.len().saturating_sub(END_BYTES - 1)).filter(|&at| {
        tail[at..].starts_with(END)
            && at + END_BYTES + usize::from(u16_at(&tail, at + 20)) == tail.len()
    });
    let (Some(at), None) = (ends.next(), ends.next()) else {
        return Err(Reason::unusable(
            "the zip file has no end record of its own, it may be cut off",
        ));
    };
    let end = &tail[at..at + END_BYTES];
    let (here, entries) = (u16_at(end, 8), u16_at(end, 10));
    let (bytes, start) = (u32_at(end, 12), u32_at(end, 16));
    if u32_at(end, 4) != 0 || here != entries {
        return Err(Reason::unusable("the zip file spans several disks, expected one"));
    }
    if entries == u16::MAX || bytes == u32::MAX || start == u32::MAX {
        return Err(Reason::unusable(
            "the zip file is one for over 4 GiB (zip64), which is not read",
        ));
    }
    if usize::from(entries) > max_entries {
        return Err(Reason::TooLarge {
            what: "entries of the archive".to_owned(),
            most: max_entries as u64,
            limit: "max_entries",
        });
    }
    let end_at = length - tail_bytes + at as u64;
    if u64::from(start) + u64::from(bytes) != end_at {
        return Err(Reason::unusable("the zip file's directory does not lie right before its end"));
    }
    Ok((start.into()..end_at, entries))
}

/// The beginning of the archive's directory, and the parts of a module in it, in the directory's
/// order. The name and kind of every entry are checked, also of those that are no part.
fn read_directory(
    file: &mut File,
    length: u64,
    stage: &mut Stage,
) -> Result<(u64, Vec<Part>), Reason> {
    let (lies, entries) = find_directory(file, length, stage.limits.max_entries)?;
    file.seek(SeekFrom::Start(lies.start)).map_err(unreadable)?;
    let mut directory = BufReader::new(file.by_ref().take(lies.end - lies.start));
    let mut parts = Vec::new();
    for _ in 0..entries {
        stage.clock.check()?;
        let mut entry = [0; ENTRY_BYTES];
        directory.read_exact(&mut entry).map_err(unreadable)?;
        if !entry.starts_with(ENTRY) {
            return Err(Reason::unusable("the zip file's directory has an entry that is none"));
        }
        let mut name = vec![0; usize::from(u16_at(&entry, 28))];
        directory.read_exact(&mut name).map_err(unreadable)?;
        let more = u64::from(u16_at(&entry, 30)) + u64::from(u16_at(&entry, 32));
        std::io::copy(&mut directory.by_ref().take(more), &mut std::io::sink())
            .map_err(unreadable)?;
        parts.extend(part(&entry, name, stage)?);
    }
    match directory.read(&mut [0]).map_err(unreadable)? {
        0 => Ok((lies.start, parts)),
        _ => Err(Reason::unusable("the zip file's directory is longer than its entries")),
    }
}

/// The part that an entry of the directory describes; `None` for folders and files that are no
/// part.
fn part(
    entry: &[u8; ENTRY_BYTES],
    path: Vec<u8>,
    stage: &mut Stage,
) -> Result<Option<Part>, Reason> {
    let text = String::from_utf8_lossy(&path);
    let refused = |found: &str| {
        Reason::unusable(format!("`{}` is {found}, expected plain files", shorten(&text)))
    };
    let kind = (u32_at(entry, 38) >> 16) & KIND;
    if entry[5] == UNIX && !PLAIN_KINDS.contains(&kind) {
        return Err(refused(if kind == 0o120_000 { "a symbolic link" } else { "a special file" }));
    }
    if u16_at(entry, 8) & ENCRYPTED != 0 {
        return Err(refused("encrypted"));
    }
    if text.ends_with('/') {
        components(&text).map_err(Reason::unusable)?;
        return Ok(None);
    }
    let Some(part) = stage.reserve_archived(&text)? else { return Ok(None) };
    let method = u16_at(entry, 10);
    if method != STORED && method != DEFLATED {
        return Err(refused(&format!("compressed with method {method}")));
    }
    let (compressed, size, offset) = (u32_at(entry, 20), u32_at(entry, 24), u32_at(entry, 42));
    if [compressed, size, offset].contains(&u32::MAX) {
        return Err(refused("one of a zip file for over 4 GiB (zip64)"));
    }
    let crc = u32_at(entry, 16);
    let (compressed, size, offset) = (compressed.into(), size.into(), offset.into());
    Ok(Some(Part { part, path, method, crc, compressed, size, offset }))
}

/// Unpacks one entry, which must lie in the free bytes; returns the end of its data.
///
/// Its local header must agree with the directory, and its bytes with size and sum.
fn unpack_part(
    file: &mut File,
    part: Part,
    free: &Range<u64>,
    stage: &mut Stage,
) -> Result<u64, Reason> {
    let Part { part, path, method, crc, compressed, size, offset } = part;
    let shown = shorten(&String::from_utf8_lossy(&path));
    let refused = |found: &str| Reason::unusable(format!("`{shown}` {found}"));
    if offset < free.start {
        return Err(refused("shares bytes with the entry before it"));
    }
    file.seek(SeekFrom::Start(offset)).map_err(unreadable)?;
    let mut local = [0; LOCAL_BYTES];
    file.read_exact(&mut local).map_err(unreadable)?;
    let mut local_path = vec![0; usize::from(u16_at(&local, 26))];
    file.read_exact(&mut local_path).map_err(unreadable)?;
    let follow = u16_at(&local, 6) & SIZES_FOLLOW != 0;
    let sizes = [u32_at(&local, 14), u32_at(&local, 18), u32_at(&local, 22)].map(u64::from);
    let same = local.starts_with(LOCAL)
        && local_path == path
        && u16_at(&local, 8) == method
        && (follow || sizes == [u64::from(crc), compressed, size]);
    if !same {
        return Err(refused("has a header that the archive's directory does not agree with"));
    }
    let extra = u64::from(u16_at(&local, 28));
    let start = offset + (LOCAL_BYTES + path.len()) as u64 + extra;
    let end = start + compressed;
    if end > free.end {
        return Err(refused("lies beyond the archive's entries"));
    }
    file.seek(SeekFrom::Start(start)).map_err(unreadable)?;
    let data = BufReader::new(file.by_ref().take(compressed));
    let mut checked = match method {
        STORED => Summed::new(Box::new(data)),
        _ => Summed::new(Box::new(DeflateDecoder::new(data))),
    };
    stage.copy(part, &mut checked, size)?;
    match checked.sum.sum() == crc {
        true => Ok(end),
        false => Err(refused("has another checksum than its header says")),
    }
}

/// A reader with the CRC-32 of the bytes so far.
struct Summed<'a> {
    /// The unpacked bytes.
    inner: Box<dyn Read + 'a>,
    /// Their sum so far.
    sum: Crc,
}

impl<'a> Summed<'a> {
    fn new(inner: Box<dyn Read + 'a>) -> Self {
        Self { inner, sum: Crc::new() }
    }
}

impl Read for Summed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.sum.update(&buffer[..read]);
        Ok(read)
    }
}
