//! Byte buffers aligned to 4 KiB, so that a device can be read into and written from them with O_DIRECT.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use bytes::Bytes;

/// Alignment of every [`AlignedBuf`], in bytes.
pub const ALIGN: usize = 4096;

/// A growable-once buffer whose start is aligned to [`ALIGN`]; its capacity is a multiple of it.
pub struct AlignedBuf {
    start: NonNull<u8>,
    capacity: usize,
    len: usize,
}

// SAFETY: the buffer owns its memory alone, as a Vec<u8> does.
unsafe impl Send for AlignedBuf {}
// SAFETY: a shared reference only gives shared access to the bytes.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// An empty buffer with room for at least `capacity` bytes (not initialised).
    pub fn with_capacity(capacity: usize) -> Self {
        let layout = Self::layout(capacity.max(1).next_multiple_of(ALIGN));
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(layout)
        };
        Self {
            start,
            capacity: layout.size(),
            len: 0,
        }
    }

    /// A buffer of `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        let mut buf = Self::with_capacity(len);
        // SAFETY: `len` bytes lie within the capacity; after this they are initialised.
        unsafe { buf.start.as_ptr().write_bytes(0, len) };
        buf.len = len;
        buf
    }

    /// A copy of `data`.
    pub fn copy_of(data: &[u8]) -> Self {
        let mut buf = Self::with_capacity(data.len());
        buf.extend(data);
        buf
    }

    fn layout(capacity: usize) -> Layout {
        // Both the size (bounded by the frame limits, far below isize::MAX) and the alignment are valid.
        match Layout::from_size_align(capacity, ALIGN) {
            Ok(layout) => layout,
            Err(_) => handle_alloc_error(Layout::new::<u8>()),
        }
    }

    /// Bytes it has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The room behind the initialised bytes.
    pub fn spare(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: the range lies within the allocation, and MaybeUninit needs no initialisation.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.start.as_ptr().add(self.len).cast(),
                self.capacity - self.len,
            )
        }
    }

    /// Counts the first `more` bytes of [`Self::spare`] as initialised.
    ///
    /// # Safety
    /// They must have been initialised.
    pub unsafe fn advance(&mut self, more: usize) {
        debug_assert!(self.len + more <= self.capacity);
        self.len += more;
    }

    /// Appends as much of `data` as there is room for and says how much that was.
    pub fn extend(&mut self, data: &[u8]) -> usize {
        let count = data.len().min(self.capacity - self.len);
        // SAFETY: the target has room for `count` bytes and cannot overlap with `data`, which is borrowed from elsewhere.
        unsafe {
            self.start
                .as_ptr()
                .add(self.len)
                .copy_from_nonoverlapping(data.as_ptr(), count);
        }
        self.len += count;
        count
    }

    /// Shortens it to `len` bytes; does nothing if it is shorter.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Turns it into [`Bytes`] without a copy.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `with_capacity` with this layout.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the first `len` bytes are initialised.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the first `len` bytes are initialised, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} of {})", self.len, self.capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_aligned_through_freeze() {
        let mut buf = AlignedBuf::with_capacity(5000);
        assert_eq!(buf.capacity(), 8192);
        assert_eq!(buf.extend(&[7; 9000]), 8192);
        buf.truncate(5000);
        let bytes = buf.freeze();
        assert_eq!(bytes.as_ptr() as usize % ALIGN, 0);
        assert!(bytes.len() == 5000 && bytes.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn zeroed_and_copied() {
        assert!(AlignedBuf::zeroed(10).iter().all(|byte| *byte == 0));
        assert_eq!(&*AlignedBuf::copy_of(b"abc"), b"abc");
        assert!(AlignedBuf::zeroed(0).is_empty());
    }
}
