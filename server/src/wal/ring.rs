//! The ring on the device: logical offsets that only grow, mapped onto a region.

use std::io::{self, IoSlice};
use std::sync::Arc;

use crate::device::Device;
use crate::superblock::Region;

/// Unit in which the ring is filled with zeros ahead of its first use, in bytes.
pub(super) const SEGMENT: u64 = 256 << 10;

#[derive(Clone)]
pub(super) struct Ring {
    device: Arc<dyn Device>,
    region: Region,
}

impl Ring {
    pub(super) fn new(device: Arc<dyn Device>, region: Region) -> io::Result<Self> {
        let fits =
            region.len > 0 && region.len.is_multiple_of(SEGMENT) && region.end() <= device.len();
        if !fits {
            let what = "the WAL region does not fit the device";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        Ok(Self { device, region })
    }

    pub(super) fn len(&self) -> u64 {
        self.region.len
    }

    pub(super) fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// Place on the device of a logical offset, and how many bytes follow it without a wrap.
    fn place(&self, offset: u64) -> (u64, u64) {
        let within = offset % self.region.len;
        (self.region.offset + within, self.region.len - within)
    }

    /// Reads at most one lap.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let (place, room) = self.place(offset);
        let first = buf.len().min(room as usize);
        let (first, second) = buf.split_at_mut(first);
        self.device.read_at(place, first)?;
        if !second.is_empty() {
            self.device.read_at(self.region.offset, second)?;
        }
        Ok(())
    }

    /// Writes pieces that follow one another, at most one lap: one write, or two around the end of the ring.
    pub(super) fn write(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let (place, room) = self.place(offset);
        let mut room = room as usize;
        let (mut first, mut second) = (Vec::with_capacity(parts.len()), Vec::new());
        for part in parts {
            let (here, there) = part.split_at(part.len().min(room));
            room -= here.len();
            if !here.is_empty() {
                first.push(IoSlice::new(here));
            }
            if !there.is_empty() {
                second.push(IoSlice::new(there));
            }
        }
        self.device.write_vectored_at(place, &first)?;
        if !second.is_empty() {
            self.device.write_vectored_at(self.region.offset, &second)?;
        }
        Ok(())
    }

    /// Has the host promise space for a range within the first lap.
    pub(super) fn promise(&self, from: u64, upto: u64) -> io::Result<()> {
        let upto = upto.min(self.region.len);
        let len = upto.saturating_sub(from);
        self.device.allocate(self.region.offset + from, len)
    }

    /// Fills the segment at a logical offset with zeros.
    pub(super) fn clear(&self, segment: u64) -> io::Result<()> {
        static ZEROS: [u8; SEGMENT as usize] = [0; SEGMENT as usize];
        self.device.write_at(self.place(segment).0, &ZEROS)
    }
}
