//! Nodes that are killed and started again under a load of writes, and nodes that get another executable.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mortar_tests::real::manifest::{Promise, Writers, broken};
use mortar_tests::real::{Cluster, Mount, Net, bin_dir, tool};

use crate::{SOON, on_both};

/// A node that is started again is back in its sets within this time. The goal is 3 s; a debug build beside other tests
/// gets twice as much. The times are printed.
const BACK: Duration = Duration::from_secs(6);

fn rounds() -> u32 {
    let given = std::env::var("CLUSTER_ROUNDS");
    given.ok().and_then(|text| text.parse().ok()).unwrap_or(10)
}

/// A small generator: only variety is needed.
fn draw(random: &mut u64) -> u64 {
    *random = random
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1);
    *random >> 33
}

fn all_kept(when: &str, promises: &[Promise]) {
    let lost = broken(promises);
    assert!(
        lost.is_empty(),
        "{when}: {} of {} promises broken:\n{}",
        lost.len(),
        promises.len(),
        lost.join("\n")
    );
}

/// Everything is there at the end, and after a restart of all nodes and of the mount.
fn check(cluster: &mut Cluster, mount: &Mount, writers: Writers) -> usize {
    let done = writers.rounds();
    let promises = writers.finish().expect("no writer saw an error");
    assert!(done > 0 && !promises.is_empty(), "the writers did nothing");
    all_kept("at the end", &promises);
    mount.umount();
    for n in 1..=cluster.count() {
        cluster.kill(n);
    }
    for n in 1..=cluster.count() {
        cluster.start(n);
    }
    cluster.wait_ready(1);
    cluster.wait_whole(1, SOON);
    let out = cluster.try_mount(mount, &cluster.servers(), "vol", "");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    all_kept("after a restart of everything", &promises);
    promises.len()
}

/// Writes a file that is on some set, and syncs it.
fn probe(mount: &Mount, name: &str) {
    let path = mount.join(name);
    fs::write(&path, b"alive").expect("the mount serves after the restart");
    fs::File::open(&path)
        .and_then(|file| file.sync_all())
        .expect("fsync");
    fs::remove_file(&path).expect("unlink");
}

on_both!(restarts_under_load_lose_nothing);
#[allow(clippy::disallowed_methods)] // real processes need the real clock
fn restarts_under_load_lose_nothing(net: Net) {
    let mut cluster = Cluster::new(net, 3);
    cluster.volume(1, "vol", &["replica", "3"], 2, "512M");
    cluster.wait_whole(1, SOON);
    let mount = cluster.mount(&cluster.servers(), "vol");
    let writers = Writers::start(mount.path(), 4, 17);
    let mut random = 0x5eed_u64;
    let (mut back, mut served) = (Vec::new(), Vec::new());
    for round in 0..rounds() {
        std::thread::sleep(Duration::from_millis(200 + draw(&mut random) % 800));
        let leader = cluster.leader(1);
        let others: Vec<u8> = (1..=3).filter(|n| *n != leader).collect();
        let other = others[(draw(&mut random) % 2) as usize];
        let mut killed = vec![if round % 2 == 0 { leader } else { other }];
        if round % 3 == 2 {
            killed.extend((1..=3).find(|n| !killed.contains(n) && *n != leader));
        }
        let witness = (1..=3).find(|n| !killed.contains(n)).expect("one is left");
        for n in &killed {
            cluster.kill(*n);
        }
        // Some at once, as a service manager does; some later; some after another node has taken the lead.
        let away = [0, 700, 2_500][(draw(&mut random) % 3) as usize];
        std::thread::sleep(Duration::from_millis(away));
        let start = Instant::now();
        for n in &killed {
            cluster.start(*n);
        }
        for at in 0..4 {
            probe(&mount, &format!("probe{round}-{at}"));
        }
        let first = start.elapsed();
        cluster.wait_whole(witness, SOON);
        let whole = start.elapsed();
        eprintln!(
            "round {round}: killed {killed:?} (leader {leader}), served after {first:?}, whole after {whole:?}"
        );
        assert!(
            whole < BACK,
            "round {round}: {killed:?} back after {whole:?}"
        );
        served.push(first);
        back.push(whole);
    }
    let written = writers.rounds();
    let kept = check(&mut cluster, &mount, writers);
    for (what, mut times) in [("served", served), ("back in the sets", back)] {
        times.sort();
        eprintln!(
            "{what} after: median {:?}, longest {:?}",
            times[times.len() / 2],
            times.last().expect("rounds")
        );
    }
    eprintln!("{written} rounds of writing, {kept} promises kept");
}

/// fio, again and again until it is told to stop: writes in two jobs, and verifies what it wrote. Other processes than
/// this one see each error that a mount shows.
struct Fio {
    shell: Child,
    own: PathBuf,
}

impl Fio {
    fn start(mount: &Mount, own: PathBuf) -> Self {
        fs::create_dir(&own).expect("directory");
        let dir = mount.join("fio");
        fs::create_dir(&dir).expect("directory");
        let fio = format!(
            "fio --directory={} --aux-path={} --numjobs=2 --group_reporting --size=8M --fallocate=none --bs=4k-64k \
             --fsync=16 --verify=crc32c --verify_fatal=1 --do_verify=1 --name=buffered --rw=randwrite --name=direct \
             --stonewall --rw=randwrite --direct=1 --ioengine=libaio --iodepth=8",
            dir.display(),
            own.display()
        );
        let script =
            format!("while [ ! -e stop ]; do {fio} >out 2>&1 || exit 1; echo >>turns; done");
        let shell = Command::new("sh")
            .args(["-c", &script])
            .current_dir(&own)
            .stdin(Stdio::null())
            .spawn()
            .expect("sh");
        Self { shell, own }
    }

    /// Times that it went through.
    fn turns(&self) -> u64 {
        fs::metadata(self.own.join("turns")).map_or(0, |meta| meta.len())
    }

    /// Has it finish; it may not have seen an error.
    fn finish(mut self) -> u64 {
        fs::write(self.own.join("stop"), b"").expect("a sign");
        let status = self.shell.wait().expect("sh");
        let said = fs::read(self.own.join("out")).unwrap_or_default();
        assert!(status.success(), "fio: {}", tool::tail(&said));
        self.turns()
    }
}

on_both!(an_upgrade_node_by_node_shows_no_error);
#[allow(clippy::disallowed_methods)] // real processes need the real clock
fn an_upgrade_node_by_node_shows_no_error(net: Net) {
    let mut cluster = Cluster::new(net, 3);
    cluster.volume(1, "vol", &["replica", "3"], 2, "256M");
    let mount = cluster.mount(&cluster.servers(), "vol");
    let fio = Fio::start(&mount, cluster.dir(1).join("fio"));
    let writers = Writers::start(mount.path(), 2, 23);
    for n in 1..=3 {
        // The new executable takes the place of the old one while that runs, as packages do it.
        let bin = cluster.dir(n).join("bin");
        fs::create_dir(&bin).expect("directory");
        // By another process: one that this one starts meanwhile would hold a file written here open, and a program that is
        // open for writing cannot be started.
        let old = bin_dir().join("mortard");
        tool::run_in(&bin, "cp", &[old.to_str().expect("text"), "new"]);
        fs::rename(bin.join("new"), bin.join("mortard")).expect("rename");
        let (before, turned) = (writers.rounds(), fio.turns());
        cluster.set_bin(n, &bin);
        cluster.end(n, libc::SIGTERM);
        cluster.start(n);
        let back = Instant::now();
        cluster.wait_whole(n % 3 + 1, SOON);
        eprintln!(
            "node {n}: back in its sets {:?} after its start",
            back.elapsed()
        );
        tool::wait_for("more writes", 2 * SOON, || {
            (writers.rounds() > before + 4 && fio.turns() > turned).then_some(())
        });
    }
    eprintln!("fio wrote and verified {} times", fio.finish());
    check(&mut cluster, &mount, writers);
}
