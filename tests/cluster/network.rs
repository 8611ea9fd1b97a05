//! Networks that lose packets, or carry only small ones.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use mortar_tests::real::{Cluster, Mount, Net, tool};

use crate::{SOON, on_both};

on_both!(a_mount_passes_over_silent_servers);
fn a_mount_passes_over_silent_servers(net: Net) {
    let cluster = Cluster::new(net, 3);
    cluster.volume(1, "vol", &["replica", "3"], 1, "256M");
    cluster.wait_whole(1, SOON);
    // At one somebody takes the packets and says nothing; at the other there is nobody.
    let silent = [11, 12].map(|n| cluster.places().silence(n));
    let named = [11, 12].map(|n| cluster.places().addr(n).to_string());
    let mut servers = named.to_vec();
    servers.push(cluster.server(3));
    let (mount, took) = tool::timed(|| cluster.mount(&servers, "vol"));
    eprintln!("mounted in {took:?} past two silent servers");
    assert!(took < Duration::from_secs(3), "{took:?}");
    fs::write(mount.join("file"), b"there").expect("write");
    mount.umount();
    drop(silent);
    // The same by the option of mount.glusterfs, with addresses that nobody has.
    if net == Net::Namespaces {
        let nobody = [13, 14].map(|n| cluster.places().addr(n).ip().to_string());
        let options = format!("backup-volfile-servers={}:{}", nobody[1], cluster.host(2));
        let (mount, took) = tool::timed(|| cluster.mount_with(&nobody[..1], "vol", &options));
        eprintln!("mounted in {took:?} past two addresses that nobody has");
        assert!(took < Duration::from_secs(3), "{took:?}");
        assert_eq!(fs::read(mount.join("file")).expect("read"), b"there");
    }
}

/// Writes and reads 1 MiB at a time, `count` times.
fn large_io(mount: &Mount, name: &str, count: u64) {
    let path = mount.join(name);
    let file = fs::File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(&path);
    let file = file.expect("create");
    let block = |at: u64| -> Vec<u8> {
        (0..1 << 20)
            .map(|n: u64| (n ^ (n >> 8) ^ at) as u8)
            .collect()
    };
    for at in 0..count {
        file.write_all_at(&block(at), at << 20).expect("write");
        if at % 8 == 7 {
            file.sync_all().expect("fsync");
        }
    }
    file.sync_all().expect("fsync");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("fadvise");
    let mut read = vec![0; 1 << 20];
    for at in 0..count {
        file.read_exact_at(&mut read, at << 20).expect("read");
        assert!(read == block(at), "block {at} of {name}");
    }
}

#[test]
fn small_packets_carry_large_io() {
    if !Net::Namespaces.is_available() {
        return;
    }
    let cluster = Cluster::prepared(Net::Namespaces, 3, |places| {
        for n in 0..=3 {
            places.set_mtu(n, 1_450);
        }
    });
    cluster.join();
    cluster.volume(1, "vol", &["replica", "3"], 1, "256M");
    let mount = cluster.mount(&cluster.servers(), "vol");
    let ((), took) = tool::timed(|| large_io(&mount, "before", 32));
    eprintln!("32 MiB written and read at MTU 1,450: {took:?}");
    // From now on larger packets vanish on the way, and nobody is told.
    std::thread::scope(|scope| {
        let load = scope.spawn(|| tool::timed(|| large_io(&mount, "during", 32)));
        for n in 0..=3 {
            cluster.places().shrink_path(n, 1_280);
        }
        let ((), took) = load.join().expect("I/O goes on");
        eprintln!("32 MiB written and read while the MTU shrank to 1,280: {took:?}");
        assert!(took < Duration::from_secs(20), "{took:?}");
    });
    large_io(&mount, "after", 32);
    mount.umount();
    let mount = cluster.mount(&cluster.servers(), "vol");
    large_io(&mount, "mounted later", 16);
    cluster.wait_joined();
    cluster.wait_whole(2, SOON);
}
