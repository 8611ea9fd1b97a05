//! Processes killed for real: what fsync promised is there afterwards, and nobody sees an error that should not.

use std::fs;
use std::time::{Duration, Instant};

use mortar_tests::real::manifest::{Writers, broken};
use mortar_tests::real::{Daemon, Kind, Mount, tool};

fn rounds() -> u32 {
    std::env::var("KILL_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(30)
}

#[test]
#[allow(clippy::disallowed_methods)] // real processes need the real clock
fn killing_mortard_loses_nothing_and_shows_no_error() {
    // What is written stays, up to 20 MB in a round.
    let (size, limit) = match rounds() {
        // The larger ring holds more to be done again: up to 20,000 entries of each brick, by a debug build.
        61.. => ("8G", Duration::from_secs(5)),
        _ => ("2G", Duration::from_secs(3)),
    };
    let mut daemon = Daemon::with_volume(Kind::Replica(3), size);
    daemon.supervise();
    let mount = Mount::new(&daemon, "vol");
    let writers = Writers::start(mount.path(), 4, 11);
    let mut random = 0x5eed_u64;
    let mut slowest = Duration::ZERO;
    for round in 0..rounds() {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        std::thread::sleep(Duration::from_millis(100 + (random >> 33) % 900));
        daemon.kill_supervised();
        let start = Instant::now();
        let probe = mount.join(&format!("probe{round}"));
        fs::write(&probe, b"alive").expect("the mount serves after the restart");
        fs::remove_file(&probe).expect("unlink");
        slowest = slowest.max(start.elapsed());
        assert!(
            start.elapsed() < limit,
            "round {round}: served after {:?}",
            start.elapsed()
        );
    }
    let done = writers.rounds();
    let promises = writers.finish().expect("no writer saw an error");
    assert!(done > 0 && !promises.is_empty(), "the writers did nothing");
    let lost = broken(&promises);
    assert!(
        lost.is_empty(),
        "{} of {} promises broken:\n{}",
        lost.len(),
        promises.len(),
        lost.join("\n")
    );
    mount.umount();
    mount.mount(&daemon, "vol", "");
    let lost = broken(&promises);
    assert!(lost.is_empty(), "after remount:\n{}", lost.join("\n"));
    eprintln!(
        "{done} rounds of writing, {} promises kept, slowest return {slowest:?}",
        promises.len()
    );
}

#[test]
#[allow(clippy::disallowed_methods)] // real processes need the real clock
fn killing_the_mount_keeps_what_was_synced() {
    let daemon = Daemon::with_volume(Kind::Replica(3), "1G");
    let mount = Mount::new(&daemon, "vol");
    let mut all = Vec::new();
    for round in 0..(rounds() / 6).max(3) {
        let dir = mount.join(&format!("round{round}"));
        fs::create_dir(&dir).expect("mkdir");
        let writers = Writers::start(&dir, 3, u64::from(round));
        std::thread::sleep(Duration::from_millis(300 + u64::from(round) * 130 % 700));
        mount.kill_client();
        let start = Instant::now();
        while !mount.client_pids().iter().all(|pid| !tool::alive(*pid)) {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "the client does not die"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        // A call that was on its way when the connection ended gets ECONNABORTED.
        let mut calls = (0..100).map(|_| fs::metadata(mount.join("x")).expect_err("dead"));
        let error = calls.find(|error| error.raw_os_error() != Some(libc::ECONNABORTED));
        let errno = error.and_then(|error| error.raw_os_error());
        assert_eq!(errno, Some(libc::ENOTCONN), "the mount is dead");
        let (promises, _errors) = writers.collect();
        mount.mount(&daemon, "vol", "");
        all.extend(promises);
        let lost = broken(&all);
        assert!(lost.is_empty(), "round {round}: {}", lost.join("\n"));
    }
    assert!(!all.is_empty(), "nothing was promised");
}

/// A file written and left open, one closed, one synced; gives the open one.
fn three_files(mount: &Mount) -> fs::File {
    use std::io::Write;
    let mut open = fs::File::create(mount.join("open")).expect("create");
    open.write_all(&[1; 70_000]).expect("write");
    fs::write(mount.join("closed"), [2; 70_000]).expect("write");
    let mut synced = fs::File::create(mount.join("synced")).expect("create");
    synced.write_all(&[3; 70_000]).expect("write");
    synced.sync_all().expect("fsync");
    // Of this one nothing but the directory's entry is synced.
    fs::File::create(mount.join("named")).expect("create");
    fs::rename(mount.join("named"), mount.join("renamed")).expect("rename");
    fs::File::open(mount.path())
        .and_then(|dir| dir.sync_all())
        .expect("fsync of the directory");
    open
}

/// Kills the mount process and waits for its end.
fn end_client(mount: &Mount) {
    let pids = mount.client_pids();
    mount.kill_client();
    tool::wait_for("the end of the client", Duration::from_secs(10), || {
        pids.iter().all(|pid| !tool::alive(*pid)).then_some(())
    });
}

/// What fsync of the directory promised.
fn has_names(mount: &Mount) -> bool {
    let names = fs::read_dir(mount.path()).expect("list");
    let mut names: Vec<_> = names
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    names.sort();
    names == ["closed", "open", "renamed", "synced"]
}

fn is_whole(mount: &Mount, name: &str, byte: u8) -> bool {
    fs::read(mount.join(name)).is_ok_and(|data| data == vec![byte; 70_000])
}

#[test]
#[allow(clippy::disallowed_methods)] // real processes need the real clock
fn what_survives_the_death_of_the_mount_process() {
    let daemon = Daemon::with_volume(Kind::Replica(3), "512M");
    let mount = Mount::new(&daemon, "vol");
    let open = three_files(&mount);
    end_client(&mount);
    drop(open);
    mount.mount(&daemon, "vol", "");
    assert!(is_whole(&mount, "closed", 2) && is_whole(&mount, "synced", 3));
    assert!(has_names(&mount));
    // Before close: what is older than a second has been sent.
    let open = three_files(&mount);
    std::thread::sleep(Duration::from_millis(2_500));
    end_client(&mount);
    drop(open);
    mount.mount(&daemon, "vol", "");
    assert!(is_whole(&mount, "open", 1));
    assert!(is_whole(&mount, "closed", 2) && is_whole(&mount, "synced", 3));
    assert!(has_names(&mount));
}

#[test]
fn what_survives_the_death_of_mortard() {
    let mut daemon = Daemon::with_volume(Kind::Replica(3), "512M");
    daemon.supervise();
    let mount = Mount::new(&daemon, "vol");
    let open = three_files(&mount);
    daemon.kill_supervised();
    // The mount sends what it holds again: nothing is lost, and nobody sees an error.
    open.sync_all().expect("fsync after the restart");
    drop(open);
    mount.umount();
    mount.mount(&daemon, "vol", "");
    assert!(is_whole(&mount, "open", 1));
    assert!(is_whole(&mount, "closed", 2) && is_whole(&mount, "synced", 3));
    assert!(has_names(&mount));
}
