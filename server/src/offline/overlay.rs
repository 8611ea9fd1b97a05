//! A private overlay: reads come from a brick's device, writes stay in memory and are gone with it.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use mortar_protocol::aligned::AlignedBuf;
use parking_lot::Mutex;

use crate::device::{Device, Done};

const PAGE: u64 = 4096;
/// Most memory for changed pages, in bytes.
const MAX_CHANGED: usize = 1 << 30;

/// A device that can be written although what is below it is only read.
pub(super) struct Overlay {
    base: Arc<dyn Device>,
    /// This part of the device is shown as zeros.
    blank: Range<u64>,
    changed: Mutex<BTreeMap<u64, Box<[u8; PAGE as usize]>>>,
}

impl Overlay {
    pub(super) fn new(base: Arc<dyn Device>) -> Arc<Self> {
        Self::with_blank(base, 0..0)
    }

    /// The same, with a part of the device shown as zeros.
    pub(super) fn with_blank(base: Arc<dyn Device>, blank: Range<u64>) -> Arc<Self> {
        Arc::new(Self {
            base,
            blank,
            changed: Mutex::new(BTreeMap::new()),
        })
    }

    fn read_base(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.base.read_at(offset, buf)?;
        let from = self.blank.start.max(offset);
        let to = self.blank.end.min(offset + buf.len() as u64);
        if from < to {
            buf[(from - offset) as usize..(to - offset) as usize].fill(0);
        }
        Ok(())
    }

    /// The contents of a page before it is changed for the first time.
    fn original(&self, page: u64) -> io::Result<Box<[u8; PAGE as usize]>> {
        let mut data = Box::new([0; PAGE as usize]);
        let start = page * PAGE;
        let len = PAGE.min(self.base.len().saturating_sub(start)) as usize;
        self.read_base(start, &mut data[..len])?;
        Ok(data)
    }
}

impl Device for Overlay {
    fn len(&self) -> u64 {
        self.base.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_base(offset, buf)?;
        let Some(last) = (buf.len() as u64).checked_sub(1) else {
            return Ok(());
        };
        let end = offset + buf.len() as u64;
        let changed = self.changed.lock();
        for (page, data) in changed.range(offset / PAGE..=(offset + last) / PAGE) {
            let (from, to) = ((page * PAGE).max(offset), ((page + 1) * PAGE).min(end));
            let source = &data[(from - page * PAGE) as usize..(to - page * PAGE) as usize];
            buf[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset
            .checked_add(data.len() as u64)
            .is_none_or(|end| end > self.len())
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut changed = self.changed.lock();
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let (page, within) = (at / PAGE, (at % PAGE) as usize);
            let part = (PAGE as usize - within).min(data.len() - done);
            let source = &data[done..done + part];
            done += part;
            if let Some(known) = changed.get_mut(&page) {
                known[within..within + part].copy_from_slice(source);
                continue;
            }
            let mut original = self.original(page)?;
            // Opening a brick writes the tail of its log again, as it is: that needs no memory.
            if original[within..within + part] != *source {
                original[within..within + part].copy_from_slice(source);
                changed.insert(page, original);
            }
        }
        if changed.len() * PAGE as usize > MAX_CHANGED {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(())
    }

    fn write_vectored_at(&self, mut offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        for part in parts {
            self.write_at(offset, part)?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) {}

    fn start_write(&self, offset: u64, data: Bytes, done: Done<()>) {
        done(self.write_at(offset, &data));
    }

    fn start_read(&self, offset: u64, len: usize, done: Done<Bytes>) {
        let mut buf = AlignedBuf::zeroed(len);
        let result = self.read_at(offset, &mut buf);
        done(result.map(|()| buf.freeze()));
    }

    fn start_flush(&self, done: Done<()>) {
        done(Ok(()));
    }

    fn start_work(&self, job: Box<dyn FnOnce() + Send>) {
        job();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::sim::SimDisk;

    #[test]
    fn writes_are_seen_above_and_never_below() {
        let base = SimDisk::new(1 << 20, 1);
        base.write_at(5000, &[1; 10_000]).unwrap();
        let steps = base.steps();
        let overlay = Overlay::new(base.clone());
        overlay.write_at(9000, &[2; 1000]).unwrap();
        overlay.write_at(9500, &[3; 10]).unwrap();
        overlay.write_at((1 << 20) - 3, &[4; 3]).unwrap();
        assert!(overlay.write_at((1 << 20) - 3, &[4; 4]).is_err());
        let mut seen = vec![0; 10_000];
        overlay.read_at(5000, &mut seen).unwrap();
        let mut expected = vec![1; 10_000];
        expected[4000..5000].fill(2);
        expected[4500..4510].fill(3);
        assert_eq!(seen, expected);
        let mut below = vec![0; 10_000];
        base.read_at(5000, &mut below).unwrap();
        assert_eq!(below, [1; 10_000]);
        assert_eq!(base.steps(), steps);
    }

    #[test]
    fn writing_what_is_there_takes_no_memory() {
        let base = SimDisk::new(1 << 20, 1);
        base.write_at(5000, &[1; 10_000]).unwrap();
        let overlay = Overlay::new(base);
        overlay.write_at(6000, &[1; 9000]).unwrap();
        assert!(overlay.changed.lock().is_empty());
    }
}
