//! The linear memory of a guest.

use crate::flat::Memory;

/// A guest's linear memory.
pub(super) struct Linear<'a>(pub(super) &'a mut [u8]);

impl Linear<'_> {
    /// A range of the memory, checked against its end.
    pub(super) fn range(&self, address: u64, len: usize) -> Result<std::ops::Range<usize>, String> {
        let start = usize::try_from(address).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(len)?));
        range.filter(|range| range.end <= self.0.len()).ok_or_else(|| {
            format!("{len} bytes at {address:#x} are outside its memory of {} bytes", self.0.len())
        })
    }
}

impl Memory for Linear<'_> {
    fn read(&self, address: u64, len: usize) -> Result<&[u8], String> {
        self.range(address, len).map(|range| &self.0[range])
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), String> {
        let range = self.range(address, bytes.len())?;
        self.0[range].copy_from_slice(bytes);
        Ok(())
    }
}
