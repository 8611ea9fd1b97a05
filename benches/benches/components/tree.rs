//! The metadata tree.

use std::sync::Arc;

use mortar_protocol::env_real::random;
use mortar_server::alloc::Allocator;
use mortar_server::superblock::Geometry;
use mortar_server::tree::{Place, Tree};
use parking_lot::Mutex;

use crate::measure::{Bench, Disks, Fail, Unit, timed};

/// Measures it.
pub(crate) fn run(bench: &Bench) -> Result<(), Fail> {
    let names = [
        "tree: insert 64 records in a batch, each",
        "tree: checkpoint of 64 records",
        "tree: get one of 100,000",
        "tree: get one that is not there",
    ];
    if !bench.wanted(&names) {
        return Ok(());
    }
    let disks = Disks::new()?;
    let device = disks.device("tree")?;
    let geometry = Geometry::for_size(device.len());
    let place = Place {
        map: geometry.chunk_map.offset,
        slot: geometry.chunk_map.len / 2,
        extents: geometry.extents.offset,
    };
    let alloc = Allocator::new(geometry.extents.len / 4_096);
    let tree = Tree::create(device, place, Arc::new(Mutex::new(alloc)))?;
    let key = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    tree.checkpoint(|batch| (0..100_000).try_for_each(|n| batch.put(&key(n), &[1; 110])))?;
    let mut next = 100_000;
    let mut more = || {
        next += 64;
        next - 64..next
    };
    bench.line(names[0], Unit::Each(64.0), || {
        let mut records = more();
        timed(|| Ok(tree.apply(|batch| records.try_for_each(|n| batch.put(&key(n), &[2; 110])))?))
    })?;
    bench.line(names[1], Unit::Each(1.0), || {
        let mut records = more();
        timed(|| {
            Ok(tree.checkpoint(|batch| records.try_for_each(|n| batch.put(&key(n), &[3; 110])))?)
        })
    })?;
    let snapshot = tree.snapshot()?;
    bench.quick(names[2], || {
        match snapshot.get(&key(random() % 100_000))? {
            Some(_) => Ok(()),
            None => Err("a record is missing".into()),
        }
    })?;
    bench.quick(names[3], || {
        match snapshot.get(&random().to_le_bytes()[..7])? {
            Some(_) => Err("a record is there".into()),
            None => Ok(()),
        }
    })
}
