//! What the simulated disk promises and what it loses.

use std::collections::BTreeSet;
use std::sync::mpsc;

use super::*;

const LEN: u64 = 1 << 20;

fn read(disk: &SimDisk, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xee; len];
    disk.read_at(offset, &mut buf).unwrap();
    buf
}

#[test]
fn flushed_bytes_survive_every_crash_and_the_rest_in_any_combination() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..200 {
        let disk = SimDisk::new(LEN, seed);
        disk.write_at(1000, &[1; 1000]).unwrap();
        disk.flush().unwrap();
        disk.write_at(1500, &[2; 2000]).unwrap();
        let disk = disk.reboot(Survival::Random);
        let found = read(&disk, 1000, 2500);
        assert!(found[..500].iter().all(|byte| *byte == 1));
        let sectors: Vec<u8> = [1500, 1536, 2048, 2560, 3072]
            .iter()
            .map(|at| found[at - 1000])
            .collect();
        outcomes.insert(sectors);
    }
    assert!(outcomes.contains([1, 1, 0, 0, 0].as_slice()));
    assert!(outcomes.contains([2, 2, 2, 2, 2].as_slice()));
    assert!(outcomes.len() > 10, "{outcomes:?}");

    let disk = SimDisk::new(LEN, 1);
    disk.write_at(0, &[1; 600]).unwrap();
    disk.flush().unwrap();
    disk.write_at(0, &[2; 600]).unwrap();
    let disk = disk.reboot(Survival::Process);
    assert_eq!(read(&disk, 0, 600), [2; 600]);
    let disk = disk.reboot(Survival::Nothing);
    assert_eq!(read(&disk, 0, 600), [1; 600]);
}

#[test]
fn a_cut_ends_the_machine_at_its_step() {
    for step in 1..=4 {
        let disk = SimDisk::new(LEN, step);
        disk.cut_at(step);
        let results = [
            disk.write_at(0, &[1; 512]).is_ok(),
            disk.flush().is_ok(),
            disk.write_at(512, &[2; 512]).is_ok(),
            disk.flush().is_ok(),
        ];
        let expected: Vec<bool> = (1..=4).map(|number| number < step).collect();
        assert_eq!(results.as_slice(), expected);
        assert!(disk.is_cut());
        assert!(disk.read_at(0, &mut [0]).is_err());
        let after = disk.reboot(Survival::Nothing);
        assert_eq!(read(&after, 0, 1)[0], u8::from(step > 2));
        assert_eq!(read(&after, 512, 1)[0], 0);
        assert!(after.write_at(0, &[3]).is_ok());
    }
}

#[test]
fn a_failed_flush_makes_the_cache_forget() {
    let disk = SimDisk::new(LEN, 1);
    disk.fail_at(2, Fault::Error(libc::EIO));
    disk.write_at(0, &[1; 512]).unwrap();
    assert!(disk.flush().is_err());
    disk.write_at(512, &[2; 512]).unwrap();
    disk.flush().unwrap();
    assert_eq!(read(&disk, 0, 512), [1; 512]);
    let disk = disk.reboot(Survival::Process);
    disk.flush().unwrap();
    let lost = disk.reboot(Survival::Nothing);
    assert_eq!(read(&lost, 0, 512), [0; 512]);
    assert_eq!(read(&lost, 512, 512), [2; 512]);

    let disk = SimDisk::new(LEN, 1);
    disk.fail_at(2, Fault::Error(libc::EIO));
    disk.write_at(0, &[1; 512]).unwrap();
    assert!(disk.flush().is_err());
    disk.write_at(0, &[3; 512]).unwrap();
    disk.flush().unwrap();
    let kept = disk.reboot(Survival::Nothing);
    assert_eq!(read(&kept, 0, 512), [3; 512]);
}

#[test]
fn started_operations_wait_and_a_flush_covers_what_came_before_it() {
    let disk = SimDisk::new(LEN, 1);
    disk.queue(true);
    let (log, lines) = mpsc::channel();
    let note = |name: &'static str| {
        let log = log.clone();
        move || log.send(name).unwrap()
    };
    let (write, flush, work) = (note("write"), note("flush"), note("work"));
    disk.write_at(0, &[1; 512]).unwrap();
    disk.start_flush(Box::new(move |result| {
        result.unwrap();
        flush();
    }));
    let data = Bytes::from_static(&[2; 512]);
    disk.start_write(512, data, Box::new(move |_| write()));
    disk.start_work(Box::new(work));
    assert_eq!((disk.waiting(), lines.try_iter().count()), (3, 0));
    assert!(disk.run(1));
    assert!(!disk.run(7));
    disk.run_all();
    assert_eq!(
        lines.try_iter().collect::<Vec<_>>(),
        ["write", "flush", "work"]
    );
    let disk = disk.reboot(Survival::Nothing);
    assert_eq!(read(&disk, 0, 512), [1; 512]);
    assert_eq!(read(&disk, 512, 512), [0; 512]);
}

#[test]
fn lost_misdirected_and_rotten_bytes() {
    let disk = SimDisk::new(LEN, 1);
    disk.fail_at(1, Fault::Lost);
    disk.fail_at(2, Fault::Misdirected(8192));
    disk.fail_at(3, Fault::Error(libc::ENOSPC));
    disk.write_at(0, &[1; 100]).unwrap();
    disk.write_at(0, &[2; 100]).unwrap();
    let error = disk.write_at(4096, &[3; 4096]).unwrap_err();
    assert!(crate::device::is_full(&error));
    assert_eq!(read(&disk, 0, 100), [0; 100]);
    assert_eq!(read(&disk, 8192, 100), [2; 100]);
    disk.rot(8193, 0x80);
    disk.flush().unwrap();
    let disk = disk.reboot(Survival::Nothing);
    assert_eq!(read(&disk, 8192, 3), [2, 0x82, 2]);
}

#[test]
fn equal_seeds_give_equal_disks() {
    let run = |seed| {
        let disk = SimDisk::new(LEN, seed);
        for number in 0..50_u64 {
            let data = vec![number as u8; 3000];
            disk.write_at(number * 1234, &data).unwrap();
        }
        read(&disk.reboot(Survival::Random), 0, 70_000)
    };
    assert_eq!(run(1), run(1));
    assert!((2..12).any(|seed| run(seed) != run(1)));
}
