//! The layout of arguments in a guest's memory.

/// The rest of an area of arguments, which is filled from its beginning.
pub(super) struct Layout<'a>(pub(super) &'a mut [u8]);

impl Layout<'_> {
    /// The next bytes.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        let (now, rest) = std::mem::take(&mut self.0).split_at_mut(bytes.len());
        now.copy_from_slice(bytes);
        self.0 = rest;
    }

    /// Numbers of four bytes each; a plain copy on a little-endian machine.
    fn numbers<T: Copy>(&mut self, values: &[T], to_bytes: impl Fn(T) -> [u8; 4]) {
        let (now, rest) = std::mem::take(&mut self.0).split_at_mut(4 * values.len());
        for (target, &value) in now.chunks_exact_mut(4).zip(values) {
            target.copy_from_slice(&to_bytes(value));
        }
        self.0 = rest;
    }

    /// The next unsigned numbers.
    pub(super) fn words(&mut self, words: &[u32]) {
        self.numbers(words, u32::to_le_bytes);
    }

    /// The next floats.
    pub(super) fn floats(&mut self, values: &[f32]) {
        self.numbers(values, f32::to_le_bytes);
    }

    /// `count` numbers of zero.
    pub(super) fn zeros(&mut self, count: usize) {
        let (now, rest) = std::mem::take(&mut self.0).split_at_mut(4 * count);
        now.fill(0);
        self.0 = rest;
    }

    /// Leaves room for `count` numbers that the plugin writes.
    pub(super) fn skip(&mut self, count: usize) {
        self.0 = std::mem::take(&mut self.0).split_at_mut(4 * count).1;
    }
}
