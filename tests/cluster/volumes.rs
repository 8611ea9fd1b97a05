//! Volumes whose bricks are on several nodes, and commands at any node.

use std::fs;

use mortar_tests::real::{Cluster, Net, tool};

use crate::{SOON, on_both};

on_both!(volumes_of_every_kind_span_nodes);
fn volumes_of_every_kind_span_nodes(net: Net) {
    let cluster = Cluster::new(net, 3);
    let plain = cluster.brick(2, "plain");
    cluster.create_plain(1, "plain", &plain);
    cluster.ok(3, &["volume", "start", "plain"]);
    cluster.volume(1, "dist", &[], 1, "256M");
    cluster.volume(2, "rep", &["replica", "3"], 1, "256M");
    cluster.volume(3, "drep", &["replica", "3"], 2, "256M");
    for (volume, bricks, kind) in [
        ("plain", 1, "Distribute"),
        ("dist", 3, "Distribute"),
        ("rep", 3, "Replicate"),
        ("drep", 6, "Distributed-Replicate"),
    ] {
        let info = cluster.ok(1, &["volume", "info", volume]);
        assert!(info.contains(&format!("Type: {kind}\n")), "{info}");
        let lines = info
            .lines()
            .filter(|line| line.starts_with("Brick") && line.contains(":/"));
        assert_eq!(lines.count(), bricks, "{info}");
        let mount = cluster.mount(&cluster.servers(), volume);
        for name in 0..20_u8 {
            fs::write(mount.join(&format!("f{name}")), vec![name; 10_000]).expect("write");
        }
        mount.umount();
        let other = cluster.mount(&[cluster.server(3)], volume);
        for name in 0..20_u8 {
            let read = fs::read(other.join(&format!("f{name}"))).expect("read");
            assert_eq!(read, vec![name; 10_000]);
        }
        other.umount();
        for n in 1..=3 {
            assert_eq!(cluster.ok(n, &["volume", "info", volume]), info, "node {n}");
            let status = cluster.ok(n, &["volume", "status", volume]);
            let online = status
                .lines()
                .filter(|line| line.split_whitespace().any(|word| word == "Y"));
            assert_eq!(online.count(), bricks, "node {n}: {status}");
        }
    }
    // Each set has one brick per node, in the order of the arguments.
    let info = cluster.ok(2, &["volume", "info", "drep"]);
    let order: Vec<String> = (1..=2)
        .flat_map(|brick| (1..=3).map(move |n| (n, brick)))
        .map(|(n, brick)| cluster.brick(n, &format!("drep-b{brick}")))
        .collect();
    for (at, brick) in order.iter().enumerate() {
        assert!(
            info.contains(&format!("Brick{}: {brick}\n", at + 1)),
            "{info}"
        );
    }
    for (n, volume) in [(1, "plain"), (2, "dist"), (3, "rep"), (1, "drep")] {
        cluster.ok(n, &["volume", "stop", volume]);
        cluster.ok(n % 3 + 1, &["volume", "delete", volume]);
    }
    for n in 1..=3 {
        tool::wait_for("the end of all volumes", SOON, || {
            (cluster.status(n)["volumes"]["total"] == 0).then_some(())
        });
    }
}

/// Nothing of a volume is on any node.
fn nothing_is_left(cluster: &Cluster, bricks: &[(u8, &str)]) {
    for n in 1..=cluster.count() {
        tool::wait_for("no volume and no operation", SOON, || {
            let status = cluster.status(n);
            let idle = status["operations"].as_array().is_some_and(Vec::is_empty);
            (status["volumes"]["total"] == 0 && idle).then_some(())
        });
    }
    for (n, name) in bricks {
        let path = cluster.dir(*n).join(name);
        let left = fs::read_dir(&path).map(|entries| {
            let names = entries.map(|entry| entry.expect("entry").file_name());
            names.collect::<Vec<_>>()
        });
        assert!(
            left.as_ref().map_or(true, Vec::is_empty),
            "{}: {left:?}",
            path.display()
        );
    }
}

on_both!(what_cannot_be_created_leaves_nothing);
fn what_cannot_be_created_leaves_nothing(net: Net) {
    let cluster = Cluster::new(net, 3);
    let brick = |n: u8, name: &str| cluster.brick(n, name);
    let create = |n: u8, bricks: &[String], last: &[&str]| {
        let mut args = vec!["volume", "create", "vol"];
        args.extend(["replica", "3"]);
        args.extend(bricks.iter().map(String::as_str));
        args.extend(["--brick-size", "256M"]);
        args.extend(last);
        cluster.refused(n, &args, 1)
    };
    let twice = [brick(1, "a"), brick(2, "a"), brick(2, "b")];
    let line = create(1, &twice, &[]);
    assert!(line.starts_with("volume create: vol: failed: "), "{line}");
    assert!(
        line.contains("same") || line.contains("multiple bricks"),
        "{line}"
    );
    let same = [brick(1, "a"), brick(2, "a"), brick(2, "a")];
    let line = create(2, &same, &["force"]);
    assert!(line.contains("Found duplicate exports"), "{line}");
    let stranger = format!("{}:/b", cluster.places().addr(17).ip());
    let line = create(3, &[brick(1, "a"), brick(2, "a"), stranger], &["force"]);
    assert!(
        line.contains("not in cluster") || line.contains("not in 'Peer in Cluster'"),
        "{line}"
    );
    // The place of the third is a file.
    fs::write(cluster.dir(3).join("file"), b"not a directory").expect("write");
    for n in 1..=3 {
        let bricks = [brick(1, "a"), brick(2, "a"), brick(3, "file/b")];
        let line = create(n, &bricks, &["force"]);
        assert!(
            line.contains(&cluster.host(3)),
            "it does not name the node: {line}"
        );
        nothing_is_left(&cluster, &[(1, "a"), (2, "a")]);
    }
    // With `force` two copies may share a node, and the places are as free as before.
    let mut args = vec!["volume", "create", "vol", "replica", "3"];
    args.extend(twice.iter().map(String::as_str));
    args.extend(["--brick-size", "256M", "force"]);
    cluster.ok(3, &args);
    // A brick of a volume is not used again.
    let mut args = vec!["volume", "create", "other"];
    let used = brick(2, "b");
    args.extend([used.as_str(), "--brick-size", "256M", "force"]);
    let line = cluster.refused(1, &args, 1);
    assert!(line.contains(&used) || line.contains("already"), "{line}");
    cluster.ok(1, &["volume", "delete", "vol"]);
    nothing_is_left(&cluster, &[]);
}

on_both!(an_option_reaches_a_mount_within_a_second);
fn an_option_reaches_a_mount_within_a_second(net: Net) {
    let cluster = Cluster::new(net, 3);
    cluster.volume(1, "vol", &["replica", "3"], 1, "256M");
    let mount = cluster.mount(&cluster.servers(), "vol");
    let fresh = "attribute-timeout=0,entry-timeout=0";
    let other = cluster.mount_with(&cluster.servers(), "vol", fresh);
    let mut file = fs::File::create(mount.join("held")).expect("create");
    let name = other.join("held");
    let mut at_once = || {
        use std::io::Write;
        file.sync_all().expect("fsync");
        let before = fs::metadata(&name).expect("stat").len();
        file.write_all(&[1; 4096]).expect("write");
        fs::metadata(&name).expect("stat").len() == before + 4096
    };
    assert!(!at_once(), "with write-behind a write is held for a moment");
    for (n, value) in [(2, "off"), (3, "on")] {
        cluster.ok(
            n,
            &["volume", "set", "vol", "performance.write-behind", value],
        );
        let (_, took) = tool::timed(|| {
            tool::wait_for("the option at the mount", SOON, || {
                (at_once() == (value == "off")).then_some(())
            });
        });
        eprintln!("performance.write-behind {value} reached the mount after {took:?}");
        assert!(took < std::time::Duration::from_secs(1), "{took:?}");
    }
}
