//! The write-ahead log.

use std::sync::{Arc, mpsc};

use bytes::Bytes;
use mortar_protocol::entry::Entry;
use mortar_server::device::Device;
use mortar_server::superblock::Geometry;
use mortar_server::wal::{Wal, WalRecord};

use crate::codec::write_entry;
use crate::measure::{Bench, Disks, Fail, Unit, timed};

/// A new log on a device of its own.
fn make(disks: &Disks, name: &str) -> Result<(Arc<dyn Device>, Wal), Fail> {
    let device = disks.device(name)?;
    let region = Geometry::for_size(device.len()).wal;
    let start = Wal::format(device.clone(), region, 1)?;
    let wal = Wal::open(device.clone(), region, 1, start, true)?.wal;
    Ok((device, wal))
}

/// Appends `count` entries with one write.
fn append(wal: &mut Wal, count: u64, body: &Bytes) -> Result<(), Fail> {
    let first = wal.head().seq.0 + 1;
    let entries: Vec<Entry> = (first..first + count)
        .map(|seq| write_entry(seq, seq % 1_000 * 4_096, body))
        .collect();
    let record = |entry| WalRecord { entry, stages: &[] };
    wal.append(&entries.iter().map(record).collect::<Vec<_>>())?;
    if wal.free() < 16 << 20 {
        wal.release(wal.head());
    }
    Ok(())
}

/// Measures it.
pub(crate) fn run(bench: &Bench) -> Result<(), Fail> {
    let names = [
        "wal: append one 4 KiB entry",
        "wal: append 16 entries of 4 KiB, each",
        "wal: append and flush one 4 KiB entry",
        "wal: three logs append 16 entries, one group flush",
    ];
    if !bench.wanted(&names) {
        return Ok(());
    }
    let disks = Disks::new()?;
    let body = Bytes::from(vec![5; 4_096]);
    let mut logs = [make(&disks, "a")?, make(&disks, "b")?, make(&disks, "c")?];
    // Once around the ring: its first lap also writes zeros ahead.
    for (_, wal) in &mut logs {
        for _ in 0..600 {
            append(wal, 16, &body)?;
        }
    }
    let (device, wal) = &mut logs[0];
    bench.quick(names[0], || append(wal, 1, &body))?;
    bench.line(names[1], Unit::Each(16.0), || {
        timed(|| append(wal, 16, &body))
    })?;
    bench.line(names[2], Unit::Each(1.0), || {
        timed(|| {
            append(wal, 1, &body)?;
            flush(&[device])
        })
    })?;
    bench.line(names[3], Unit::Each(1.0), || {
        timed(|| {
            for (_, wal) in &mut logs {
                append(wal, 16, &body)?;
            }
            flush(&[&logs[0].0, &logs[1].0, &logs[2].0])
        })
    })
}

/// Flushes devices together.
fn flush(devices: &[&Arc<dyn Device>]) -> Result<(), Fail> {
    let (done, wait) = mpsc::channel();
    for device in devices {
        let done = done.clone();
        device.start_flush(Box::new(move |result| {
            // The receiver waits below.
            let _ = done.send(result);
        }));
    }
    for _ in devices {
        wait.recv()??;
    }
    Ok(())
}
