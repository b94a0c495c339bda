//! Reading the files of a module's directory, which come from outside.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Most problems that one refusal lists; a module for another base would else name every tensor.
const MAX_PROBLEMS: usize = 20;

/// The directory of one module, from which files are read by name. Its content is not trusted:
/// links may point anywhere, and files may have any size.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// The module's name, for messages.
    pub name: &'a str,
    /// The directory that the module lies in.
    pub directory: &'a Path,
    /// The directory that no file of the module may lie outside.
    pub root: &'a Path,
}

impl Files<'_> {
    /// True where there is a file or a folder under a name; links are followed.
    pub fn has(&self, file: &str) -> bool {
        self.directory.join(file).exists()
    }

    /// Reads a file that lies inside the root after all links are resolved, and is a plain file of
    /// at most `max_bytes`.
    ///
    /// # Errors
    /// If the file is missing, lies outside the root, is no plain file, or is larger than
    /// `max_bytes`.
    pub fn read(&self, file: &str, max_bytes: u64) -> Result<Vec<u8>, Error> {
        let resolved = self.resolve(file)?;
        let io = |source| Error::io(self.name, &resolved, source);
        let metadata = std::fs::metadata(&resolved).map_err(io)?;
        if !metadata.is_file() {
            return Err(self.refused(format!("{file} is not a file")));
        }
        if metadata.len() > max_bytes {
            let problem =
                format!("{file} is {} bytes, at most {max_bytes} are read", metadata.len());
            return Err(self.refused(problem));
        }
        let opened = File::open(&resolved).map_err(io)?;
        // It may have grown since.
        let bytes = bounded(opened, metadata.len(), max_bytes).map_err(io)?;
        bytes.ok_or_else(|| {
            self.refused(format!("{file} grows beyond the {max_bytes} bytes that are read"))
        })
    }

    /// The stems of the files in a folder that end in an extension, ascending. More than `max` of
    /// them are an error; other files are passed over.
    ///
    /// # Errors
    /// If the folder cannot be read, lies outside the root, or has more than `max` such files.
    pub fn stems(&self, folder: &str, extension: &str, max: usize) -> Result<Vec<String>, Error> {
        let resolved = self.resolve(folder)?;
        let entries = std::fs::read_dir(&resolved)
            .map_err(|source| Error::io(self.name, &resolved, source))?;
        let mut stems = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| Error::io(self.name, &resolved, source))?;
            let file = PathBuf::from(entry.file_name());
            if file.extension().is_none_or(|found| found != extension) {
                continue;
            }
            if stems.len() == max {
                return Err(self.refused(format!("{folder} has more than {max} files")));
            }
            stems.push(file.file_stem().unwrap_or_default().to_string_lossy().into_owned());
        }
        stems.sort();
        Ok(stems)
    }

    /// The path of a file with all links resolved, which must lie under the root.
    fn resolve(&self, file: &str) -> Result<PathBuf, Error> {
        let path = self.directory.join(file);
        let io = |source| Error::io(self.name, &path, source);
        let resolved = path.canonicalize().map_err(io)?;
        if !resolved.starts_with(self.root.canonicalize().map_err(io)?) {
            let problem = format!("{file} lies outside the directory that modules may come from");
            return Err(self.refused(problem));
        }
        Ok(resolved)
    }

    /// A refusal of this module for one problem.
    fn refused(&self, problem: String) -> Error {
        Error::refused(self.name, vec![problem])
    }
}

/// The bytes of a source that is expected to have a number of them; `None` where it has more than
/// `max_bytes`, which are not read.
fn bounded(source: impl Read, expected: u64, max_bytes: u64) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::with_capacity(usize::try_from(expected.min(max_bytes)).unwrap_or(0));
    source.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= max_bytes).then_some(bytes))
}

/// Collects problems up to a bound and says how many there were.
#[derive(Debug, Default)]
pub struct Problems {
    /// The first [`MAX_PROBLEMS`] of them.
    listed: Vec<String>,
    /// The number of those that came later.
    more: usize,
}

impl Problems {
    /// Takes one problem in.
    pub fn add(&mut self, problem: String) {
        if self.listed.len() < MAX_PROBLEMS {
            self.listed.push(problem);
        } else {
            self.more += 1;
        }
    }

    /// The value where there were no problems, else all of them.
    ///
    /// # Errors
    /// The problems.
    pub fn into_result<T>(mut self, value: T) -> Result<T, Vec<String>> {
        if self.more > 0 {
            self.listed.push(format!("and {} more", self.more));
        }
        if self.listed.is_empty() { Ok(value) } else { Err(self.listed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_grows_is_read_to_its_bound_alone() {
        assert_eq!(bounded(&b"four"[..], 4, 4).unwrap().as_deref(), Some(&b"four"[..]));
        assert_eq!(bounded(&b"four"[..], 0, 3).unwrap(), None);
        assert_eq!(bounded(std::io::repeat(1), 4, 1_000).unwrap(), None);
    }
}
