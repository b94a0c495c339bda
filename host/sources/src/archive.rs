//! Archives and single files: what one is, told from its first bytes, and the module out of it.

mod tar;
#[cfg(test)]
mod tests;
mod zip;

use std::fs::File;
use std::io::{BufReader, Read, Seek as _};

use flate2::read::MultiGzDecoder;

use super::error::Reason;
use super::format::is_gguf;
use super::stage::{Clock, Stage};

/// The first bytes of gzip.
const GZIP: &[u8] = b"\x1f\x8b";
/// The first bytes of a GGUF file.
const GGUF: &[u8] = b"GGUF";
/// The first bytes of a zip file: a local header, or the end of an archive without entries.
const ZIP: [&[u8]; 2] = [b"PK\x03\x04", b"PK\x05\x06"];
/// The first bytes of zstd, a compression that is common and not read.
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
/// The place of tar's magic in a header.
const USTAR_AT: usize = 257;
/// The size of tar's blocks.
const BLOCK: usize = 512;

/// Takes a module out of an archive, or a GGUF file as it is.
///
/// The kind is told by the first bytes, never by the name. `name` is that of the file, for a GGUF
/// file that is kept and for messages.
pub(super) fn unpack(mut file: File, name: &str, stage: &mut Stage) -> Result<(), Reason> {
    let length = file.metadata().map_err(unreadable)?.len();
    let mut head = Vec::with_capacity(BLOCK);
    file.by_ref().take(BLOCK as u64).read_to_end(&mut head).map_err(unreadable)?;
    file.rewind().map_err(unreadable)?;
    if head.starts_with(GGUF) {
        let name = if is_gguf(name) { name } else { "adapter.gguf" };
        return match stage.reserve(name)? {
            Some(part) => stage.copy(part, &mut file, length).map(drop),
            None => Err(Reason::unusable(format!("`{name}` is no name for a GGUF file"))),
        };
    }
    if ZIP.iter().any(|magic| head.starts_with(magic)) {
        return zip::unpack(&mut file, length, stage);
    }
    if head.starts_with(GZIP) {
        let decoder = MultiGzDecoder::new(BufReader::new(file));
        return tar::unpack(Metered::new(decoder, length, stage), stage);
    }
    if is_tar(&head) {
        return tar::unpack(Metered::new(BufReader::new(file), length, stage), stage);
    }
    let found = match head.starts_with(ZSTD) {
        true => "zstd, which is not read",
        false => "something else",
    };
    Err(Reason::unusable(format!("`{name}` is {found}, expected tar, tar.gz, zip or GGUF")))
}

/// The reason of an archive that cannot be read.
#[expect(clippy::needless_pass_by_value, reason = "used with map_err")]
fn unreadable(error: std::io::Error) -> Reason {
    Reason::unusable(format!("the archive is not readable: {error}"))
}

/// True if the first block of a file is one of tar.
fn is_tar(head: &[u8]) -> bool {
    let ustar = head.get(USTAR_AT..USTAR_AT + 5) == Some(b"ustar");
    // Older than the magic: a block of zeros, which is an empty archive, or a header whose sum is right.
    head.len() == BLOCK && (ustar || head.iter().all(|byte| *byte == 0) || tar::is_header(head))
}

/// The bytes of an archive after decompression, which end with an error where they become too many
/// or take too long.
struct Metered<R> {
    /// The decompressed bytes.
    inner: R,
    /// Bytes that may still come.
    left: u64,
    /// The message where more come.
    refusal: String,
    /// The bound on time.
    clock: Clock,
}

impl<R: Read> Metered<R> {
    /// A bound for the bytes that an archive of a length unpacks to, headers and left-out entries
    /// among them.
    fn new(inner: R, archive_bytes: u64, stage: &Stage) -> Self {
        let (most, limit) = stage.limits.unpacked(archive_bytes);
        let refusal = format!(
            "it unpacks to more than {most} bytes, which `{limit}` allows for {archive_bytes}"
        );
        Self { inner, left: most, refusal, clock: stage.clock.clone() }
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.clock.check().map_err(std::io::Error::other)?;
        let read = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| std::io::Error::other(self.refusal.clone()))?;
        Ok(read)
    }
}
