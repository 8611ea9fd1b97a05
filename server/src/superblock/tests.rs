//! Superblocks: encoding, choice of the newer copy, damage.

use mortar_protocol::ids::{Epoch, Opening, SetId};
use mortar_protocol::view::Member;

use super::*;
use crate::device::sim::{Fault, SimDisk, Survival};

fn sample(size: u64) -> Superblock {
    Superblock {
        cluster: ClusterId(1),
        generation: 2,
        node: NodeId(3),
        volume: VolumeId(4),
        volume_name: "vol".to_owned(),
        set: SetIndex(5),
        kind: SetKind::Replicate { copies: 3 },
        shard_size: 64 << 20,
        brick: BrickId(6),
        geometry: Geometry::for_size(size),
        view: None,
        boot: BootId(7),
        runs: vec![RunId(8)],
        clean: false,
        deleted: false,
        damaged: false,
    }
}

fn view(members: u128) -> View {
    let member = |number| Member {
        brick: BrickId(u128::MAX - number),
        node: NodeId(u128::MAX - number),
        run: RunId(u128::MAX - number),
        keeps_data: true,
    };
    View {
        set: SetId {
            volume: VolumeId(4),
            index: SetIndex(5),
        },
        epoch: Epoch(u64::MAX),
        primary: BrickId(u128::MAX),
        members: (0..members).map(member).collect(),
        absent: Vec::new(),
        opening: Opening(u64::MAX),
        effective: true,
    }
}

fn raw(disk: &SimDisk, copy: usize) -> [u8; COPY_SIZE] {
    let mut bytes = [0; COPY_SIZE];
    disk.read_at(COPIES[copy], &mut bytes).unwrap();
    bytes
}

#[test]
fn geometry_fits_devices_of_all_sizes() {
    for size in [MIN_SIZE, (300 << 20) + 12345, 1 << 30, 1 << 40, 1 << 50] {
        let geometry = Geometry::for_size(size);
        assert!(geometry.is_sound(size), "{size}: {geometry:?}");
        assert!(!geometry.is_sound(geometry.size - 1));
        assert!(geometry.extents.len > size / 10 * 9);
    }
    assert_eq!(Geometry::for_size(MIN_SIZE).wal.len, 8 << 20);
    assert_eq!(Geometry::for_size(1 << 50).wal.len, 256 << 20);
}

#[test]
fn changes_alternate_between_copies_and_the_newest_holds() {
    let disk = SimDisk::new(MIN_SIZE, 1);
    let mut stored = Stored::format(&*disk, sample(MIN_SIZE)).unwrap();
    for generation in 3..9 {
        stored
            .update(&*disk, |block| {
                block.generation = generation;
                block.view = Some(view(32));
            })
            .unwrap();
        let loaded = Stored::load(&*disk, true).unwrap();
        assert_eq!(loaded.block, stored.block);
        assert_eq!(loaded.block.generation, generation);
    }
    let error = stored.update(&*disk, |block| block.view = Some(view(100)));
    assert!(matches!(error, Err(SuperblockError::TooLarge(_))));
    assert_eq!(Stored::load(&*disk, true).unwrap().block.generation, 8);
}

#[test]
fn an_interrupted_or_failed_change_leaves_the_old_or_the_new_state() {
    for seed in 0..100 {
        let disk = SimDisk::new(MIN_SIZE, seed);
        let mut stored = Stored::format(&*disk, sample(MIN_SIZE)).unwrap();
        stored
            .update(&*disk, |block| block.generation = 10)
            .unwrap();
        disk.cut_at(disk.steps() + 1 + seed % 2);
        stored
            .update(&*disk, |block| block.generation = 11)
            .unwrap_err();
        assert_eq!(stored.block.generation, 10);
        let disk = disk.reboot(Survival::Random);
        let generation = Stored::load(&*disk, true).unwrap().block.generation;
        assert!(generation == 10 || generation == 11);
    }
    let disk = SimDisk::new(MIN_SIZE, 1);
    let mut stored = Stored::format(&*disk, sample(MIN_SIZE)).unwrap();
    disk.fail_at(disk.steps() + 1, Fault::Error(libc::EIO));
    stored
        .update(&*disk, |block| block.generation = 11)
        .unwrap_err();
    stored
        .update(&*disk, |block| block.generation = 12)
        .unwrap();
    assert_eq!(Stored::load(&*disk, true).unwrap().block.generation, 12);
}

#[test]
fn either_copy_serves_alone_and_none_is_an_error() {
    for copy in 0..2 {
        let disk = SimDisk::new(MIN_SIZE, 1);
        Stored::format(&*disk, sample(MIN_SIZE)).unwrap();
        disk.rot(COPIES[copy] + 300, 1);
        let loaded = Stored::load(&*disk, true).unwrap();
        assert_eq!(loaded.block, sample(MIN_SIZE));
        disk.rot(COPIES[1 - copy] + 20, 1);
        let error = Stored::load(&*disk, true).unwrap_err();
        assert!(matches!(error, SuperblockError::Damaged(_)));
    }
    let empty = SimDisk::new(MIN_SIZE, 1);
    let error = Stored::load(&*empty, true).unwrap_err();
    assert!(matches!(error, SuperblockError::NotABrick));
    let tiny = SimDisk::new(100, 1);
    assert!(Stored::load(&*tiny, true).is_err());
    assert!(Stored::format(&*tiny, sample(MIN_SIZE)).is_err());
}

/// Changes a copy and makes its checksum right again.
fn forge(disk: &SimDisk, copy: usize, change: impl FnOnce(&mut [u8; COPY_SIZE])) {
    let mut bytes = raw(disk, copy);
    change(&mut bytes);
    bytes[12..16].fill(0);
    let crc = crc32fast::hash(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    disk.write_at(COPIES[copy], &bytes).unwrap();
}

#[test]
fn newer_formats_and_unknown_features_are_refused() {
    let disk = SimDisk::new(MIN_SIZE, 1);
    Stored::format(&*disk, sample(MIN_SIZE)).unwrap();
    forge(&disk, 1, |bytes| bytes[24] = 1);
    forge(&disk, 0, |bytes| bytes[24] = 1);
    let error = Stored::load(&*disk, false).unwrap_err();
    assert!(matches!(error, SuperblockError::Features { bits: 1, .. }));

    forge(&disk, 1, |bytes| {
        bytes[24..33].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 4])
    });
    forge(&disk, 0, |bytes| {
        bytes[24..33].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 4])
    });
    Stored::load(&*disk, false).unwrap();
    let error = Stored::load(&*disk, true).unwrap_err();
    assert!(matches!(error, SuperblockError::Features { bits: 4, .. }));

    forge(&disk, 0, |bytes| {
        bytes[8] = 2;
        bytes[16] = 99;
        bytes[60..].fill(0xff);
    });
    let error = Stored::load(&*disk, true).unwrap_err().to_string();
    assert!(
        error.contains("format 2") && error.contains("format 1"),
        "{error}"
    );
}

#[test]
fn arbitrary_bytes_never_panic() {
    let mut seed = 1_u64;
    let disk = SimDisk::new(MIN_SIZE, 1);
    Stored::format(&*disk, sample(MIN_SIZE)).unwrap();
    let good = raw(&disk, 0);
    for round in 0..3000 {
        let mut bytes = good;
        for _ in 0..=round % 7 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = 16 + (seed >> 33) as usize % 200;
            bytes[at] = (seed >> 20) as u8;
        }
        disk.write_at(COPIES[0], &bytes).unwrap();
        forge(&disk, 0, |_| {});
        if let Ok(loaded) = Stored::load(&*disk, false) {
            assert!(loaded.block.geometry.is_sound(disk.len()));
        }
    }
}
