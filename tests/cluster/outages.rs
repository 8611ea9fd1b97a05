//! Nodes that are gone or hang: what goes on, and what says so in time.

use std::fs;
use std::process::Output;
use std::time::Duration;

use mortar_tests::real::{Cluster, Net, tool};

use crate::{ANSWER, SOON, on_both};

/// Runs a command, which has to answer in time.
fn in_time(cluster: &Cluster, n: u8, args: &[&str]) -> Output {
    let (out, took) = tool::timed(|| cluster.mortar(n, args));
    assert!(took < ANSWER, "node {n}, {args:?}: answered after {took:?}");
    out
}

/// The same; it has to succeed.
fn fine(cluster: &Cluster, n: u8, args: &[&str]) -> String {
    let out = in_time(cluster, n, args);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let wrong = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "node {n}, {args:?}: {text}{wrong}");
    text
}

/// The same; it has to fail with one line that names these nodes.
fn names(cluster: &Cluster, n: u8, args: &[&str], silent: &[u8]) {
    let out = in_time(cluster, n, args);
    let line = String::from_utf8_lossy(&out.stderr);
    assert!(
        !out.status.success() && line.lines().count() == 1,
        "node {n}, {args:?}: {}{line}",
        String::from_utf8_lossy(&out.stdout)
    );
    for node in silent {
        let host = cluster.name(*node);
        assert!(
            line.contains(&host),
            "node {n}, {args:?} does not name {host}: {line}"
        );
    }
}

on_both!(the_whole_cluster_restarts_in_any_order);
#[allow(clippy::disallowed_methods)] // real processes need the real clock
fn the_whole_cluster_restarts_in_any_order(net: Net) {
    let mut cluster = Cluster::new(net, 3);
    cluster.volume(1, "vol", &["replica", "3"], 2, "256M");
    let mount = cluster.mount(&cluster.servers(), "vol");
    let mut written = Vec::new();
    for (round, order) in [[1, 2, 3], [3, 2, 1], [2, 3, 1]].iter().enumerate() {
        let signal = [libc::SIGTERM, libc::SIGKILL][round % 2];
        let path = mount.join(&format!("f{round}"));
        fs::write(&path, vec![round as u8; 100_000]).expect("write");
        fs::File::open(&path)
            .and_then(|file| file.sync_all())
            .expect("fsync");
        written.push(path);
        for n in order {
            cluster.end(*n, signal);
        }
        for n in order.iter().rev() {
            cluster.start(*n);
            std::thread::sleep(Duration::from_millis(400));
        }
        let took = cluster.wait_whole(order[0], SOON);
        eprintln!("order {order:?}: whole {took:?} after the last start");
        cluster.wait_joined();
        for (at, path) in written.iter().enumerate() {
            assert_eq!(fs::read(path).expect("read"), vec![at as u8; 100_000]);
        }
        let value = ["off", "on"][round % 2];
        fine(
            &cluster,
            order[1],
            &["volume", "set", "vol", "performance.write-behind", value],
        );
    }
}

on_both!(one_of_three_is_not_missed);
fn one_of_three_is_not_missed(net: Net) {
    let mut cluster = Cluster::new(net, 3);
    cluster.volume(1, "vol", &["replica", "3"], 1, "256M");
    let leader = cluster.leader(1);
    for dead in [leader, leader % 3 + 1] {
        let left: Vec<u8> = (1..=3).filter(|n| *n != dead).collect();
        cluster.kill(dead);
        for (at, n) in left.iter().enumerate() {
            let (n, name) = (*n, format!("new{dead}{at}"));
            let bricks: Vec<String> = left.iter().map(|n| cluster.brick(*n, &name)).collect();
            let mut create = vec!["volume", "create", &name];
            create.extend(bricks.iter().map(String::as_str));
            create.extend(["--brick-size", "256M", "force"]);
            fine(&cluster, n, &create);
            fine(&cluster, n, &["volume", "start", &name]);
            fine(
                &cluster,
                n,
                &["volume", "set", &name, "performance.write-behind", "off"],
            );
            fine(
                &cluster,
                n,
                &["volume", "set", "vol", "cluster.open-wait", "11"],
            );
            let mount = cluster.mount(&[cluster.server(n)], &name);
            fs::write(mount.join("file"), b"written").expect("write");
            mount.umount();
            fine(&cluster, n, &["volume", "stop", &name]);
            fine(&cluster, n, &["volume", "delete", &name]);
            says_who_is_gone(&cluster, n, dead);
        }
        cluster.start(dead);
        cluster.wait_joined();
        cluster.wait_whole(dead, SOON);
    }
}

/// Every command at `n` answers in time, and those that have to do with it name the node that is silent.
fn says_who_is_gone(cluster: &Cluster, n: u8, silent: u8) {
    let host = cluster.name(silent);
    fine(cluster, n, &["volume", "list"]);
    fine(cluster, n, &["volume", "info"]);
    fine(cluster, n, &["volume", "get", "vol", "all"]);
    for args in [
        &["volume", "status", "vol"][..],
        &["peer", "status"],
        &["pool", "list"],
        &["cluster", "status"],
    ] {
        let text = fine(cluster, n, args);
        assert!(
            text.contains(&host) || text.contains(&cluster.host(silent)),
            "{args:?} does not name {host}: {text}"
        );
    }
    let peers = fine(cluster, n, &["peer", "status"]);
    assert!(peers.contains("(Disconnected)"), "{peers}");
    let brick = cluster.brick(silent, "never");
    let create = [
        "volume",
        "create",
        "never",
        &brick,
        "--brick-size",
        "256M",
        "force",
    ];
    let out = in_time(cluster, n, &create);
    let line = String::from_utf8_lossy(&out.stderr);
    let named = line.contains(&host) || line.contains(&cluster.host(silent));
    assert!(!out.status.success() && named, "{create:?}: {line}");
}

on_both!(a_node_that_hangs_is_named);
fn a_node_that_hangs_is_named(net: Net) {
    let cluster = Cluster::new(net, 3);
    cluster.volume(1, "vol", &["replica", "3"], 1, "256M");
    let leader = cluster.leader(1);
    for hung in [leader, leader % 3 + 1] {
        cluster.signal(hung, libc::SIGSTOP);
        for n in (1..=3).filter(|n| *n != hung) {
            let value = if n == hung % 3 + 1 { "off" } else { "on" };
            fine(
                &cluster,
                n,
                &["volume", "set", "vol", "performance.write-behind", value],
            );
            says_who_is_gone(&cluster, n, hung);
        }
        let out = in_time(&cluster, hung, &["volume", "list"]);
        let line = String::from_utf8_lossy(&out.stderr);
        assert!(line.contains(&cluster.server(hung)), "{line}");
        // Any of several servers will do.
        let both = format!("{},{}", cluster.server(hung), cluster.server(hung % 3 + 1));
        let mut command = cluster.client_of(&both);
        let (out, took) =
            tool::timed(|| command.args(["volume", "list"]).output().expect("mortar"));
        assert!(out.status.success() && took < ANSWER, "{took:?}");
        cluster.signal(hung, libc::SIGCONT);
        cluster.wait_joined();
        cluster.wait_whole(hung, SOON);
    }
}

#[test]
fn a_node_whose_link_is_down_is_named() {
    if !Net::Namespaces.is_available() {
        return;
    }
    let cluster = Cluster::new(Net::Namespaces, 3);
    cluster.volume(1, "vol", &["replica", "3"], 1, "256M");
    let leader = cluster.leader(1);
    for away in [leader, leader % 3 + 1] {
        cluster.places().set_link(away, false);
        for n in (1..=3).filter(|n| *n != away) {
            let value = if n == away % 3 + 1 { "off" } else { "on" };
            fine(
                &cluster,
                n,
                &["volume", "set", "vol", "performance.write-behind", value],
            );
            says_who_is_gone(&cluster, n, away);
        }
        cluster.places().set_link(away, true);
        cluster.wait_joined();
        cluster.wait_whole(away, SOON);
    }
}

on_both!(without_a_majority_reads_go_on);
fn without_a_majority_reads_go_on(net: Net) {
    let mut cluster = Cluster::new(net, 3);
    cluster.volume(1, "vol", &["replica", "3"], 1, "256M");
    let brick = cluster.brick(1, "own");
    cluster.create_plain(1, "own", &brick);
    cluster.ok(1, &["volume", "start", "own"]);
    let mount = cluster.mount(&cluster.servers(), "own");
    fs::write(mount.join("before"), b"written before").expect("write");
    cluster.kill(2);
    cluster.kill(3);
    // I/O in sets whose members are all alive.
    let (_, took) = tool::timed(|| fs::write(mount.join("during"), b"written without"));
    assert!(took < Duration::from_secs(1), "{took:?}");
    let other = cluster.brick(1, "other");
    let addr = cluster.places().addr(9).to_string();
    for args in [
        &["volume", "set", "vol", "performance.write-behind", "off"][..],
        &["volume", "reset", "vol"],
        &["volume", "stop", "vol"],
        &["volume", "stop", "own"],
        &["volume", "start", "own", "force"],
        &[
            "volume",
            "create",
            "other",
            &other,
            "--brick-size",
            "256M",
            "force",
        ],
        &["volume", "delete", "own"],
    ] {
        names(&cluster, 1, args, &[2, 3]);
    }
    let out = in_time(&cluster, 1, &["peer", "detach", &cluster.server(2)]);
    assert!(!out.status.success());
    in_time_or_six(&cluster, &["peer", "probe", &addr]);
    for args in [
        &["volume", "list"][..],
        &["volume", "info", "own"],
        &["volume", "status", "own"],
        &["volume", "status", "vol"],
        &["volume", "get", "vol", "all"],
        &["peer", "status"],
        &["pool", "list"],
        &["cluster", "status"],
        &["operation", "list"],
    ] {
        fine(&cluster, 1, args);
    }
    assert_eq!(cluster.status(1)["has_majority"], false);
    cluster.start(3);
    tool::wait_for("changes with a majority", SOON, || {
        let set = ["volume", "set", "vol", "performance.write-behind", "off"];
        cluster.mortar(1, &set).status.success().then_some(())
    });
    cluster.start(2);
    cluster.wait_joined();
    cluster.wait_whole(2, SOON);
}

#[test]
fn mounting_needs_no_majority() {
    let mut cluster = Cluster::new(Net::Loopback, 3);
    let brick = cluster.brick(1, "own");
    cluster.create_plain(1, "own", &brick);
    cluster.ok(1, &["volume", "start", "own"]);
    cluster.wait_whole(1, SOON);
    cluster.kill(2);
    cluster.kill(3);
    let servers = [cluster.server(2), cluster.server(1)];
    let (mount, took) = tool::timed(|| cluster.mount(&servers, "own"));
    eprintln!("mounted without a majority in {took:?}");
    fs::write(mount.join("file"), b"written").expect("write");
    assert_eq!(fs::read(mount.join("file")).expect("read"), b"written");
}

/// A probe may look for a silent port for 5 s by itself.
fn in_time_or_six(cluster: &Cluster, args: &[&str]) {
    let (out, took) = tool::timed(|| cluster.mortar(1, args));
    assert!(
        !out.status.success() && took < Duration::from_secs(6),
        "{took:?}"
    );
}
