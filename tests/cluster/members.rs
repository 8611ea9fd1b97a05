//! Nodes that become members, those that are refused, and those that leave or move.

use std::fs;
use std::process::Command;

use mortar_tests::real::{Cluster, Net, tool};
use serde_json::Value;

use crate::{ANSWER, SOON, on_both};

/// What a node says of the cluster, its members and its volumes: of what lasts, all.
fn identity(cluster: &Cluster, n: u8) -> Value {
    let mut status = cluster.status(n);
    let nodes = status["nodes"].as_array().expect("nodes");
    let mut nodes: Vec<[Value; 4]> = nodes
        .iter()
        .map(|node| ["id", "host", "addresses", "state"].map(|key| node[key].clone()))
        .collect();
    nodes.sort_by_key(|node| node[0].to_string());
    serde_json::json!([status["cluster"].take(), nodes, status["volumes"].take()])
}

on_both!(three_nodes_meet);
fn three_nodes_meet(net: Net) {
    let cluster = Cluster::apart(net, 3);
    assert_eq!(
        cluster.ok(1, &["peer", "probe", &cluster.server(2)]),
        "peer probe: success\n"
    );
    // Any member takes others in.
    assert_eq!(
        cluster.ok(2, &["peer", "probe", &cluster.server(3)]),
        "peer probe: success\n"
    );
    cluster.wait_joined();
    for n in 1..=3 {
        let status = cluster.ok(n, &["peer", "status"]);
        assert!(status.starts_with("Number of Peers: 2\n"), "{status}");
        let connected = "State: Peer in Cluster (Connected)\n";
        assert_eq!(status.matches(connected).count(), 2, "{status}");
        let pool = cluster.ok(n, &["pool", "list"]);
        assert_eq!(pool.lines().count(), 4, "{pool}");
        assert!(
            pool.lines()
                .last()
                .is_some_and(|line| line.contains("localhost")),
            "{pool}"
        );
        for other in (1..=3).filter(|other| *other != n) {
            let line = format!("Hostname: {}\n", cluster.name(other));
            assert!(status.contains(&line), "{line}{status}");
            assert!(pool.contains(&cluster.name(other)), "{pool}");
        }
        let status = cluster.status(n);
        assert_eq!(status["has_majority"], true);
        let role = |role: &str| {
            let nodes = status["nodes"].as_array().expect("nodes");
            nodes.iter().filter(|node| node["role"] == role).count()
        };
        assert_eq!((role("leader"), role("voter")), (1, 2), "{status:#}");
        assert_eq!(identity(&cluster, n), identity(&cluster, 1));
    }
    let before = identity(&cluster, 1);
    let again = cluster.ok(1, &["peer", "probe", &cluster.server(3)]);
    assert!(again.contains("already in peer list"), "{again}");
    let own = cluster.ok(2, &["peer", "probe", &cluster.server(2)]);
    assert!(own.contains("localhost"), "{own}");
    assert_eq!(identity(&cluster, 1), before);
}

on_both!(a_silent_port_is_named_in_time);
fn a_silent_port_is_named_in_time(net: Net) {
    let cluster = Cluster::apart(net, 1);
    let _silent = cluster.places().silence(9);
    let before = identity(&cluster, 1);
    let addr = cluster.places().addr(9).to_string();
    let (line, took) = tool::timed(|| cluster.refused(1, &["peer", "probe", &addr], 1));
    let text = format!("peer probe: failed: no answer on UDP {addr} within 5 s");
    assert!(
        line.starts_with(&text) && line.contains("firewall"),
        "{line}"
    );
    assert!(
        took < ANSWER + std::time::Duration::from_secs(1),
        "{took:?}"
    );
    assert_eq!(identity(&cluster, 1), before);
}

on_both!(a_node_that_does_not_fit_is_refused);
fn a_node_that_does_not_fit_is_refused(net: Net) {
    let mut cluster = Cluster::apart(net, 5);
    // 2: another secret. 3: a volume. 4 and 5: another cluster.
    cluster.set_secret(2, "a secret that only this node has\n");
    let brick = cluster.brick(3, "b");
    cluster.create_plain(3, "own", &brick);
    cluster.ok(4, &["peer", "probe", &cluster.server(5)]);
    tool::wait_for("the other cluster", SOON, || {
        let nodes = identity(&cluster, 5)[1].as_array().map(Vec::len);
        (nodes == Some(2)).then_some(())
    });
    let before: Vec<Value> = (1..=5).map(|n| identity(&cluster, n)).collect();
    for (n, text) in [
        (2, "has another secret than this node: copy "),
        (3, "has 1 volume of its own"),
        (4, "belongs to another cluster"),
        (5, "belongs to another cluster"),
    ] {
        let line = cluster.refused(1, &["peer", "probe", &cluster.server(n)], 1);
        assert!(line.starts_with("peer probe: failed: "), "{line}");
        assert!(
            line.contains(text) && line.contains(&cluster.server(n)),
            "{line}"
        );
    }
    for n in 1..=5 {
        assert_eq!(
            identity(&cluster, n),
            before[usize::from(n) - 1],
            "node {n}"
        );
    }
    // 3 becomes a copy of 2, as machines made from one image are.
    cluster.kill(2);
    cluster.kill(3);
    let [from, to] = [2, 3].map(|n| cluster.dir(n).join("data"));
    fs::remove_dir_all(&to).expect("the old data directory");
    let mut copy = Command::new("cp");
    let out = copy.arg("-a").args([&from, &to]).output().expect("cp");
    assert!(out.status.success());
    // Beside the original the copy would not start.
    for n in [3, 2] {
        cluster.start(n);
        cluster.wait_ready(n);
    }
    // A replaced secret file counts without a restart.
    let secret = fs::read_to_string(cluster.dir(1).join("secret")).expect("secret");
    cluster.set_secret(2, &secret);
    cluster.ok(1, &["peer", "probe", &cluster.server(2)]);
    let before: Vec<Value> = (1..=3).map(|n| identity(&cluster, n)).collect();
    let line = cluster.refused(1, &["peer", "probe", &cluster.server(3)], 1);
    let text = "has the id of a node of this cluster";
    assert!(line.contains(text), "{line}");
    for n in 1..=3 {
        assert_eq!(
            identity(&cluster, n),
            before[usize::from(n) - 1],
            "node {n}"
        );
    }
}

on_both!(a_detached_node_is_on_its_own_again);
fn a_detached_node_is_on_its_own_again(net: Net) {
    let cluster = Cluster::new(net, 3);
    cluster.volume(1, "vol", &["replica", "3"], 1, "256M");
    let line = cluster.refused(1, &["peer", "detach", &cluster.server(3)], 255);
    assert!(
        line.contains(&format!(
            "Peer {} hosts one or more bricks",
            cluster.host(3)
        )),
        "{line}"
    );
    cluster.ok(2, &["volume", "stop", "vol"]);
    cluster.ok(3, &["volume", "delete", "vol"]);
    let before = cluster.status(3)["cluster"].clone();
    assert_eq!(
        cluster.ok(1, &["peer", "detach", &cluster.server(3)]),
        "peer detach: success\n"
    );
    tool::wait_for("node 3 on its own", SOON, || {
        let out = cluster.mortar(3, &["cluster", "status", "--json"]);
        let status: Value = serde_json::from_slice(&out.stdout).ok()?;
        let alone = status["nodes"].as_array()?.len() == 1;
        (alone && status["cluster"] != before).then_some(())
    });
    assert_eq!(cluster.ok(2, &["pool", "list"]).lines().count(), 3);
    let line = cluster.refused(1, &["peer", "detach", &cluster.server(3)], 255);
    assert!(line.contains("is not part of cluster"), "{line}");
    cluster.ok(2, &["peer", "probe", &cluster.server(3)]);
    cluster.wait_joined();
    assert_eq!(cluster.status(3)["cluster"], before);
    cluster.volume(3, "vol", &["replica", "3"], 2, "256M");
}

on_both!(a_node_may_change_its_address);
fn a_node_may_change_its_address(net: Net) {
    if net == Net::Namespaces {
        // There a node has one address.
        return;
    }
    let mut cluster = Cluster::new(net, 3);
    cluster.volume(1, "vol", &["replica", "3"], 1, "256M");
    cluster.wait_whole(1, SOON);
    cluster.kill(3);
    let old = cluster.host(3);
    cluster.move_to(3, 13);
    cluster.start(3);
    for n in 1..=3 {
        tool::wait_for("the node at its new address", SOON, || {
            let status = cluster.status(n);
            let nodes = status["nodes"].as_array()?;
            let node = nodes.iter().find(|node| node["host"] == old.as_str())?;
            let there = node["addresses"].as_array()?;
            (node["answers"] == true && there.contains(&cluster.server(3).into())).then_some(())
        });
        cluster.wait_whole(n, SOON);
    }
    // What brick files say of the host stays; commands find it under both.
    cluster.ok(
        3,
        &["volume", "set", "vol", "performance.write-behind", "off"],
    );
    assert!(
        cluster
            .ok(1, &["volume", "info", "vol"])
            .contains(&format!("{old}:/"))
    );
}

/// All machines of a cluster got other addresses, and no node can tell another one its own.
#[test]
fn nodes_that_have_all_moved_find_each_other_by_their_names() {
    const NAMES: [&str; 3] = ["first", "second", "third.example"];
    let dir = tempfile::TempDir::with_prefix("mortar-hosts-").expect("temporary directory");
    let file = dir.path().join("hosts");
    let hosts = |addrs: [String; 3]| {
        let lines = addrs.iter().zip(NAMES);
        let text: String = lines.map(|(ip, name)| format!("{ip} {name}\n")).collect();
        fs::write(&file, text).expect("hosts");
    };
    let mut cluster = Cluster::prepared(Net::Loopback, 3, |places| {
        places.set_hosts(file.clone());
        hosts([1, 2, 3].map(|n| places.addr(n).ip().to_string()));
    });
    let port = cluster.places().addr(1).port();
    for name in &NAMES[1..] {
        cluster.ok(1, &["peer", "probe", &format!("{name}:{port}")]);
    }
    cluster.wait_joined();
    let bricks = [1, 2, 3].map(|n| {
        let (name, dir) = (NAMES[usize::from(n) - 1], cluster.dir(n).join("brick"));
        format!("{name}:{}", dir.display())
    });
    let mut words = vec!["volume", "create", "vol", "replica", "3"];
    words.extend(bricks.iter().map(String::as_str));
    words.extend(["--brick-size", "256M", "force"]);
    cluster.ok(2, &words);
    cluster.ok(3, &["volume", "start", "vol"]);
    let servers = NAMES.map(|name| format!("{name}:{port}"));
    let mount = cluster.mount(&servers, "vol");
    fs::write(mount.join("before"), "before").expect("write");

    for n in 1..=3 {
        cluster.kill(n);
    }
    for n in 1..=3 {
        cluster.move_to(n, n + 10);
    }
    hosts([1, 2, 3].map(|n| cluster.host(n)));
    for n in 1..=3 {
        cluster.start(n);
    }
    cluster.wait_joined();
    for n in 1..=3 {
        let status = cluster.ok(n, &["volume", "status", "vol"]);
        assert_eq!(status.matches(" Y ").count(), 3, "{status}");
    }
    // The mount knows servers by name only, too.
    let read = tool::wait_for("the mount", SOON, || fs::read(mount.join("before")).ok());
    assert_eq!(read, b"before");
    cluster.wait_whole(1, SOON);
    fs::write(mount.join("after"), "after").expect("write");
    assert_eq!(fs::read(mount.join("after")).expect("read"), b"after");
}
