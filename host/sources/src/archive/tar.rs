//! Modules out of tar files.
//!
//! Extensions for long names are read here, with a bound, and not by the crate `tar`, which reads
//! them whole.

use std::io::Read;

use tar::{Archive, Entry, EntryType, Header, PaxExtensions};

use super::unreadable;
use crate::error::Reason;
use crate::format::{components, shorten};
use crate::stage::Stage;

/// Longest name of an entry.
const MAX_NAME_BYTES: u64 = 4_096;
/// Longest extended header of an entry. An archive may have one for every entry, so it is not read
/// whole if it is longer.
const MAX_PAX_BYTES: u64 = 1 << 16;

/// True if a block is a header, by its sum: bytes 148 to 155, which hold the sum, count as spaces.
pub(super) fn is_header(block: &[u8]) -> bool {
    let mut header = Header::new_old();
    let Some(block) = block.get(..header.as_bytes().len()) else { return false };
    header.as_mut_bytes().copy_from_slice(block);
    let before_and_after = block[..148].iter().chain(&block[156..]);
    let sum: u32 = before_and_after.map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
    header.cksum().is_ok_and(|found| found == sum)
}

/// Puts the files of a module in place.
///
/// Links, devices and everything else that is no plain file or folder refuse the whole archive,
/// also where they would not be part of the module.
pub(super) fn unpack(from: impl Read, stage: &mut Stage) -> Result<(), Reason> {
    let clock = stage.clock.clone();
    // An error that the clock made is told by the clock.
    unpack_entries(from, stage).map_err(|reason| clock.check().err().unwrap_or(reason))
}

/// Goes through the entries in order. A long name that an extension gives holds for the next entry
/// that is none.
fn unpack_entries(from: impl Read, stage: &mut Stage) -> Result<(), Reason> {
    let mut archive = Archive::new(from);
    let entries = archive.entries().map_err(unreadable)?.raw(true);
    let mut long_name: Option<Vec<u8>> = None;
    for (count, entry) in entries.enumerate() {
        if count == stage.limits.max_entries {
            return Err(Reason::TooLarge {
                what: "entries of the archive".to_owned(),
                most: count as u64,
                limit: "max_entries",
            });
        }
        let mut entry = entry.map_err(unreadable)?;
        match entry.header().entry_type() {
            // Belongs to the archive as a whole, such as the commit that it was made from.
            EntryType::XGlobalHeader => {}
            EntryType::GNULongName => {
                let mut name = read_extension(&mut entry, MAX_NAME_BYTES)?;
                while name.last() == Some(&0) {
                    name.pop();
                }
                long_name = Some(name);
            }
            EntryType::XHeader => {
                let records = read_extension(&mut entry, MAX_PAX_BYTES)?;
                if let Some(name) = pax_name(&records)? {
                    long_name = Some(name);
                }
            }
            _ => {
                let name = long_name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
                unpack_entry(&mut entry, &name, stage)?;
            }
        }
    }
    // To the end of what is compressed, where its checksum is.
    std::io::copy(&mut archive.into_inner(), &mut std::io::sink()).map_err(unreadable)?;
    Ok(())
}

/// Writes one entry, if it is part of a module. `name` is the entry's whole name, extensions
/// included.
fn unpack_entry(
    entry: &mut Entry<'_, impl Read>,
    name: &[u8],
    stage: &mut Stage,
) -> Result<(), Reason> {
    // No part of a module has a name that is not UTF-8, but such a name may lead out all the same.
    let name = String::from_utf8_lossy(name);
    let kind = entry.header().entry_type();
    if kind.is_dir() {
        return components(&name).map(drop).map_err(Reason::unusable);
    }
    if kind != EntryType::Regular {
        return Err(Reason::unusable(format!(
            "`{}` is {}, expected plain files",
            shorten(&name),
            describe(kind)
        )));
    }
    // Without the name's own slash, an old header may hide a folder in a file.
    if name.ends_with('/') {
        return components(&name).map(drop).map_err(Reason::unusable);
    }
    let size = entry.header().entry_size().map_err(unreadable)?;
    match stage.reserve_archived(&name)? {
        Some(part) => stage.copy(part, entry, size).map(drop),
        None => Ok(()),
    }
}

/// The words for a kind of entry in messages.
fn describe(kind: EntryType) -> String {
    let known = match kind {
        EntryType::Link => "a hard link",
        EntryType::Symlink | EntryType::GNULongLink => "a symbolic link",
        EntryType::Char | EntryType::Block => "a device",
        EntryType::Fifo => "a pipe",
        EntryType::GNUSparse => "a sparse file",
        other => return format!("of the type {:#04x}", other.as_byte()),
    };
    known.to_owned()
}

/// The content of an extension of at most `most` bytes.
fn read_extension(entry: &mut Entry<'_, impl Read>, most: u64) -> Result<Vec<u8>, Reason> {
    let size = entry.header().entry_size().map_err(unreadable)?;
    if size > most {
        let problem = format!("an extended header has {size} bytes, expected at most {most}");
        return Err(Reason::unusable(problem));
    }
    let mut bytes = Vec::new();
    entry.take(most).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

/// The name in the records of an extended header; `None` where they set none.
///
/// Times and owners do not matter; what changes how the entry is read is refused, because programs
/// differ in what they make of it.
fn pax_name(records: &[u8]) -> Result<Option<Vec<u8>>, Reason> {
    let mut name = None;
    for record in PaxExtensions::new(records) {
        let record = record.map_err(unreadable)?;
        match record.key_bytes() {
            b"path" => name = Some(record.value_bytes().to_owned()),
            key if key == b"size" || key.starts_with(b"GNU.sparse") => {
                return Err(Reason::unusable(format!(
                    "an extended header sets `{}`, expected plain files of at most 8 GiB",
                    String::from_utf8_lossy(key)
                )));
            }
            _ => {}
        }
    }
    Ok(name)
}
