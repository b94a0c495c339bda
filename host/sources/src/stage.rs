//! The folder into which a module is put together, within bounds, before anything reads it.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use super::error::Reason;
use super::format::{Class, belongs, classify, classify_below, components, format_of, shorten};
use super::policy::FetchLimits;
use super::{Fetched, Origin};
use crate::cache::{CacheError, Staging};

/// Bytes in which files are copied; the clock is looked at between them.
const PIECE_BYTES: usize = 1 << 16;

/// The time at which a fetch has to end, and the sign to end it before. Clones share the sign.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    /// The end of the time that the limits give.
    pub(super) deadline: Instant,
    /// That time, for messages.
    seconds: u64,
    /// True once nobody waits for the result.
    pub(super) cancelled: Arc<AtomicBool>,
}

impl Clock {
    /// A clock whose time begins now.
    pub(super) fn start(limits: &FetchLimits) -> Self {
        let seconds = limits.timeout_seconds;
        let deadline = Instant::now() + Duration::from_secs(seconds);
        Self { deadline, seconds, cancelled: Arc::default() }
    }

    /// Fails if the time is over or the fetch was cancelled. Work that cannot be interrupted calls
    /// it between its pieces.
    pub(super) fn check(&self) -> Result<(), Reason> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(Reason::Cancelled);
        }
        match Instant::now() < self.deadline {
            true => Ok(()),
            false => Err(self.timed_out()),
        }
    }

    /// The reason of a fetch whose time is over.
    pub(super) fn timed_out(&self) -> Reason {
        Reason::TimedOut { seconds: self.seconds }
    }
}

/// A module that is being put together in a folder of its own in the staging directory. The folder
/// goes when this is dropped, unless the module is finished.
///
/// A part is first taken in by its name, which is checked, and then written: by [`Self::copy`], or
/// by [`Self::open`] and [`Self::keep`]. Archives lie in the folder beside the module's directory.
pub(super) struct Stage {
    /// The folder, which goes with its guard.
    folder: Staging,
    /// The module's directory in it.
    directory: PathBuf,
    /// Bounds on files and bytes.
    pub(super) limits: FetchLimits,
    /// The bound on time.
    pub(super) clock: Clock,
    /// Parts that were taken in.
    parts: BTreeSet<String>,
    /// The folder of the archive in which the first part lay, and that part's path; later parts
    /// must lie in the same.
    top: Option<(String, String)>,
    /// Bytes of the parts that are complete.
    bytes: u64,
    /// Files that were left out.
    ignored: usize,
    /// Paths of pickles among them, at most as many as a module may have files.
    pickles: Vec<String>,
    /// Archives so far, which are numbered.
    archives: usize,
}

/// A file that is being written and hashed, with its bound.
pub(super) struct Sink {
    /// Its name for messages.
    name: String,
    /// The path that it is written to.
    path: PathBuf,
    /// The file, at its end.
    file: File,
    /// Bytes so far.
    written: u64,
    /// Most bytes that it may have.
    most: u64,
    /// The field of the limits that says so.
    limit: &'static str,
    /// SHA-256 of the bytes so far.
    hasher: Sha256,
}

impl Stage {
    /// An empty module in a new folder in `staging`, which is made if it is not there.
    pub(super) fn new(staging: &Path, limits: &FetchLimits, clock: Clock) -> Result<Self, Reason> {
        let io = |CacheError { path, source }| Reason::Io { path, source };
        let folder = Staging::new(staging).map_err(io)?;
        let directory = folder.path().join("module");
        std::fs::create_dir(&directory).map_err(Reason::io(&directory))?;
        Ok(Self {
            folder,
            directory,
            limits: limits.clone(),
            clock,
            parts: BTreeSet::new(),
            top: None,
            bytes: 0,
            ignored: 0,
            pickles: Vec::new(),
            archives: 0,
        })
    }

    /// Takes in a file of an archive by its path there, if it is part of a module; returns the
    /// part's name.
    ///
    /// The module may lie in one folder of the archive. `None` for a file that is no part.
    ///
    /// # Errors
    /// If its path leads out of the archive, or there is another of the name.
    pub(super) fn reserve_archived(&mut self, path: &str) -> Result<Option<String>, Reason> {
        let parts = components(path).map_err(Reason::unusable)?;
        let (top, class) = classify_below(&parts);
        let reserved = self.reserve_class(path, class)?;
        if reserved.is_none() {
            return Ok(None);
        }
        match &self.top {
            None => self.top = Some((top.to_owned(), path.to_owned())),
            Some((first, _)) if first == top => {}
            Some((_, first)) => {
                return Err(Reason::unusable(format!(
                    "`{}` and `{}` lie in different folders, expected the module in one",
                    shorten(first),
                    shorten(path)
                )));
            }
        }
        Ok(reserved)
    }

    /// Takes in a file by its path within the module's folder, if it is part of a module; returns
    /// the part's name. `None` for a file that is no part.
    ///
    /// # Errors
    /// If its path leads out of the folder, or there is another of the name.
    pub(super) fn reserve(&mut self, path: &str) -> Result<Option<String>, Reason> {
        let parts = components(path).map_err(Reason::unusable)?;
        self.reserve_class(path, classify(&parts))
    }

    /// Takes in a file of a class, or counts it as left out.
    fn reserve_class(&mut self, path: &str, class: Class) -> Result<Option<String>, Reason> {
        let part = match class {
            Class::Part(part) => part,
            Class::Pickle | Class::Other => {
                if class == Class::Pickle && self.pickles.len() < self.limits.max_files {
                    self.pickles.push(path.to_owned());
                }
                self.ignored += 1;
                return Ok(None);
            }
        };
        if self.parts.len() == self.limits.max_files {
            return Err(Reason::TooLarge {
                what: "files of the module".to_owned(),
                most: self.limits.max_files as u64,
                limit: "max_files",
            });
        }
        match self.parts.insert(part.clone()) {
            true => Ok(Some(part)),
            false => Err(Reason::unusable(format!("`{part}` is there twice, expected it once"))),
        }
    }

    /// A place for a part that was taken in, with the smaller of the bounds on a file and on what
    /// is left of the whole.
    ///
    /// One part is written at a time: what another has written counts only when it is kept.
    pub(super) fn open(&mut self, part: String) -> Result<Sink, Reason> {
        let path = self.directory.join(&part);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(Reason::io(folder))?;
        }
        let left = self.limits.max_total_bytes.saturating_sub(self.bytes);
        match self.limits.max_file_bytes <= left {
            true => Sink::create(part, path, self.limits.max_file_bytes, "max_file_bytes"),
            false => Sink::create(part, path, left, "max_total_bytes"),
        }
    }

    /// A place for an archive, outside the module's directory. Archives do not count to the
    /// module's bytes.
    pub(super) fn scratch(&mut self, name: &str) -> Result<Sink, Reason> {
        let path = self.folder.path().join(format!("archive-{}", self.archives));
        self.archives += 1;
        Sink::create(name.to_owned(), path, self.limits.max_total_bytes, "max_total_bytes")
    }

    /// Counts a part that is complete. Returns its SHA-256, hexadecimal.
    pub(super) fn keep(&mut self, sink: Sink) -> String {
        self.bytes += sink.written;
        hex(&sink.hasher.finalize())
    }

    /// Writes a part of a declared length into its place. Returns its SHA-256, hexadecimal. Another
    /// length is an error.
    pub(super) fn copy(
        &mut self,
        part: String,
        from: &mut dyn Read,
        declared: u64,
    ) -> Result<String, Reason> {
        let mut sink = self.open(part)?;
        sink.fill(from, declared, &self.clock)?;
        Ok(self.keep(sink))
    }

    /// Counts files that were found and left out, beside those that were seen here.
    pub(super) fn ignore(&mut self, more: usize) {
        self.ignored += more;
    }

    /// The module, if the parts make one. Parts of other formats are removed and counted as left
    /// out.
    ///
    /// Nothing of their content is checked; the loader does that.
    pub(super) fn finish(self, origin: Origin) -> Result<Fetched, Reason> {
        let format = format_of(&self.parts, &self.pickles)?;
        let (mut bytes, mut ignored) = (self.bytes, self.ignored);
        let mut files = 0;
        for part in &self.parts {
            if belongs(&format, part) {
                files += 1;
                continue;
            }
            let path = self.directory.join(part);
            bytes -= std::fs::metadata(&path).map_err(Reason::io(&path))?.len();
            std::fs::remove_file(&path).map_err(Reason::io(&path))?;
            ignored += 1;
        }
        Ok(Fetched {
            root: self.directory.clone(),
            directory: self.directory,
            format,
            origin,
            bytes,
            files,
            ignored,
            in_place: false,
            staging: Some(self.folder),
        })
    }
}

impl Sink {
    /// A new file of at most `most` bytes, a bound that the field `limit` sets.
    fn create(name: String, path: PathBuf, most: u64, limit: &'static str) -> Result<Self, Reason> {
        // Never into what is there already, whatever the file system takes for the same name.
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(Reason::io(&path))?;
        Ok(Self { name, path, file, written: 0, most, limit, hasher: Sha256::new() })
    }

    /// Refuses a length, as it was declared, before any of it comes.
    pub(super) fn expect(&self, length: u64) -> Result<(), Reason> {
        match length <= self.most {
            true => Ok(()),
            false => Err(self.too_large()),
        }
    }

    /// The reason of a file beyond its bound.
    fn too_large(&self) -> Reason {
        let what = format!("bytes of `{}`", self.name);
        Reason::TooLarge { what, most: self.most, limit: self.limit }
    }

    /// Appends a piece, unless the file would become too large by it.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), Reason> {
        self.expect(self.written.saturating_add(piece.len() as u64))?;
        self.file.write_all(piece).map_err(Reason::io(&self.path))?;
        self.hasher.update(piece);
        self.written += piece.len() as u64;
        Ok(())
    }

    /// Copies everything, which must be of the declared length. Reading stops with the piece that
    /// goes beyond it.
    pub(super) fn fill(
        &mut self,
        from: &mut dyn Read,
        declared: u64,
        clock: &Clock,
    ) -> Result<(), Reason> {
        self.expect(declared)?;
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            clock.check()?;
            let read = match from.read(&mut piece) {
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(Reason::unusable(format!("`{}`: {error}", shorten(&self.name))));
                }
            };
            if read == 0 {
                break;
            }
            self.push(&piece[..read])?;
            if self.written > declared {
                break;
            }
        }
        match self.written == declared {
            true => Ok(()),
            false => {
                let found = if self.written < declared { "fewer" } else { "more" };
                let name = shorten(&self.name);
                Err(Reason::unusable(format!(
                    "`{name}` has {found} bytes than the {declared} declared"
                )))
            }
        }
    }

    /// Bytes so far.
    #[cfg(feature = "object-store")]
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// The archive from its beginning, and its SHA-256, hexadecimal. Its name is removed, so its
    /// bytes go when it is closed.
    pub(super) fn into_archive(self) -> Result<(File, String), Reason> {
        let Self { path, mut file, hasher, .. } = self;
        // It needs its name no longer; where that cannot go now, it goes with the folder.
        let _ = std::fs::remove_file(&path);
        file.rewind().map_err(Reason::io(&path))?;
        Ok((file, hex(&hasher.finalize())))
    }
}

/// Bytes as lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Refuses bytes that are not those that were pinned. Digests are lower-case hexadecimal digits;
/// without an expected one, any is right.
pub(super) fn check_digest(what: &str, found: &str, expected: Option<&str>) -> Result<(), Reason> {
    match expected {
        Some(expected) if expected != found => Err(Reason::Digest {
            what: what.to_owned(),
            found: format!("sha256:{found}"),
            expected: format!("sha256:{expected}"),
        }),
        _ => Ok(()),
    }
}
