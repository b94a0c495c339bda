//! The files that a directory, a prefix or a repository holds, before any of them is fetched.

use std::collections::{BTreeMap, BTreeSet};

use super::error::Reason;
use super::format::{Class, Format, belongs, classify, components, format_of};
use super::policy::FetchLimits;

/// Names and sizes, as they are listed, with the bounds checked as they come.
pub(super) struct Listing<'a> {
    /// Bounds on entries, files and bytes.
    limits: &'a FetchLimits,
    /// The kind of place, for messages.
    what: &'static str,
    /// Entries so far, whatever they are.
    entries: usize,
    /// Sizes of the files that may be part of a module, by path; 0 where the listing does not tell.
    parts: BTreeMap<String, u64>,
    /// Paths of pickles.
    pickles: Vec<String>,
    /// Files that are no part.
    ignored: usize,
}

/// The files that are to be fetched.
pub(super) struct Chosen {
    /// The format of the module that they make.
    pub(super) format: Format,
    /// Names and bytes of the module's files, ascending by name; 0 bytes where the listing does not
    /// tell.
    pub(super) parts: Vec<(String, u64)>,
    /// The number of files that are left out.
    pub(super) ignored: usize,
}

impl<'a> Listing<'a> {
    /// A listing with nothing in it. `what` names the kind of place for messages.
    pub(super) fn new(what: &'static str, limits: &'a FetchLimits) -> Self {
        let (parts, pickles) = (BTreeMap::new(), Vec::new());
        Self { limits, what, entries: 0, parts, pickles, ignored: 0 }
    }

    /// Counts an entry, whatever it is, so that a place with endless entries ends the fetch.
    pub(super) fn count(&mut self) -> Result<(), Reason> {
        self.entries += 1;
        if self.entries <= self.limits.max_entries {
            return Ok(());
        }
        let what = format!("entries of the {}", self.what);
        Err(Reason::TooLarge { what, most: self.limits.max_entries as u64, limit: "max_entries" })
    }

    /// Takes in the file at a path within the module's folder. True if it may be part of a module;
    /// a part that is too large is refused.
    pub(super) fn add(&mut self, path: &str, bytes: u64) -> Result<bool, Reason> {
        match classify(&components(path).map_err(Reason::unusable)?) {
            Class::Part(part) => {
                if bytes > self.limits.max_file_bytes {
                    let what = format!("bytes of `{part}`");
                    let (most, limit) = (self.limits.max_file_bytes, "max_file_bytes");
                    return Err(Reason::TooLarge { what, most, limit });
                }
                self.parts.insert(part, bytes);
                return Ok(true);
            }
            Class::Pickle => self.pickles.push(path.to_owned()),
            Class::Other => {}
        }
        self.ignored += 1;
        Ok(false)
    }

    /// True where nothing was counted.
    #[cfg(feature = "object-store")]
    pub(super) fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// The files of the module, if there is one within the bounds. Parts of other formats are left
    /// out.
    pub(super) fn choose(self) -> Result<Chosen, Reason> {
        let names: BTreeSet<String> = self.parts.keys().cloned().collect();
        let format = format_of(&names, &self.pickles)?;
        let (parts, others): (Vec<_>, Vec<_>) =
            self.parts.into_iter().partition(|(name, _)| belongs(&format, name));
        let bytes: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
        let most_files = self.limits.max_files as u64;
        for (what, found, most, limit) in [
            ("files", parts.len() as u64, most_files, "max_files"),
            ("bytes", bytes, self.limits.max_total_bytes, "max_total_bytes"),
        ] {
            if found > most {
                return Err(Reason::TooLarge {
                    what: format!("{what} of the module"),
                    most,
                    limit,
                });
            }
        }
        Ok(Chosen { format, parts, ignored: self.ignored + others.len() })
    }
}
