//! What is logged, and how loud: levels that follow the options of volumes, and nodes that are away.

use std::fs;
use std::time::Duration;

use mortar_tests::real::{Cluster, Daemon, Kind, Mount, Net, tool};

const SOON: Duration = Duration::from_secs(10);
/// Within this time a changed option counts.
const EFFECT: Duration = Duration::from_secs(1);

const OF_CLIENTS: &str = "diagnostics.client-log-level";
const OF_BRICKS: &str = "diagnostics.brick-log-level";

fn set(daemon: &Daemon, option: &str, value: &str) {
    daemon.mortar_ok(&["volume", "set", "vol", option, value]);
}

#[allow(clippy::disallowed_methods)] // real processes need the real clock
fn pass(span: Duration) {
    std::thread::sleep(span);
}

/// Whether a mount logs that it was told to write its state, which is of level INFO.
fn informs(daemon: &Daemon, mount: &Mount) -> bool {
    let log = daemon.dir().join("mount.log");
    let count = || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.matches("wrote the state to").count()
    };
    let state = daemon.dir().join("mount.state.json");
    let _ = fs::remove_file(&state);
    let before = count();
    tool::signal(mount.client_pids()[0], libc::SIGUSR1);
    tool::wait_for("the state", SOON, || state.exists().then_some(()));
    pass(Duration::from_millis(100));
    count() > before
}

#[test]
fn the_level_of_a_mount_follows_the_volume() {
    let daemon = Daemon::with_volume(Kind::Plain, "256M");
    let mount = Mount::new(&daemon, "vol");
    assert!(informs(&daemon, &mount));
    for (level, speaks) in [
        ("ERROR", false),
        ("DEBUG", true),
        ("NONE", false),
        ("TRACE", true),
        ("CRITICAL", false),
        ("INFO", true),
        ("WARNING", false),
    ] {
        set(&daemon, OF_CLIENTS, level);
        pass(EFFECT);
        assert_eq!(informs(&daemon, &mount), speaks, "{level}");
    }
    daemon.mortar_ok(&["volume", "reset", "vol", OF_CLIENTS]);
    pass(EFFECT);
    assert!(informs(&daemon, &mount), "as before it was set");
    mount.umount();

    // What the mount was told counts while the volume says nothing.
    let quiet = Mount::with_options(&daemon, "vol", "log-level=ERROR");
    assert!(!informs(&daemon, &quiet));
    set(&daemon, OF_CLIENTS, "INFO");
    pass(EFFECT);
    assert!(informs(&daemon, &quiet));
    quiet.umount();
    // A volume that had it set before counts at once.
    let loud = Mount::with_options(&daemon, "vol", "log-level=ERROR");
    pass(EFFECT);
    assert!(informs(&daemon, &loud));
    let refused = daemon.mortar(&["volume", "set", "vol", OF_CLIENTS, "LOUD"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{told}");
    assert!(told.contains("CRITICAL"), "{told}");
}

/// Whether a change of the volume is logged by its bricks, which is of level DEBUG.
fn bricks_speak(daemon: &Daemon, value: &str) -> bool {
    let count = || {
        daemon
            .log()
            .matches("mortar_server::node::bricks: an order")
            .count()
    };
    let before = count();
    set(daemon, "network.session-timeout", value);
    pass(EFFECT);
    count() > before
}

#[test]
fn the_level_of_bricks_follows_the_volumes() {
    let daemon = Daemon::with_volume(Kind::Plain, "256M");
    assert!(!bricks_speak(&daemon, "21"));
    set(&daemon, OF_BRICKS, "DEBUG");
    pass(EFFECT);
    assert!(bricks_speak(&daemon, "22"));
    // The more verbose one counts.
    daemon.volume("other", Kind::Plain, "256M");
    daemon.mortar_ok(&["volume", "set", "other", OF_BRICKS, "ERROR"]);
    pass(EFFECT);
    assert!(bricks_speak(&daemon, "23"));
    set(&daemon, OF_BRICKS, "ERROR");
    pass(EFFECT);
    assert!(!bricks_speak(&daemon, "24"));
    // What is not about bricks is logged as before.
    let log = daemon.log();
    assert!(
        log.lines().last().is_some_and(|line| line.contains("INFO")),
        "{log}"
    );
    daemon.mortar_ok(&["volume", "reset", "vol", OF_BRICKS]);
    pass(EFFECT);
    let before = daemon
        .log()
        .matches("mortar_server::node::bricks: open")
        .count();
    daemon.volume("third", Kind::Plain, "256M");
    let after = daemon
        .log()
        .matches("mortar_server::node::bricks: open")
        .count();
    assert!(after > before, "INFO counts again");
}

#[test]
fn a_node_that_is_away_is_told_once_and_once_more_when_it_is_back() {
    let mut cluster = Cluster::new(Net::Loopback, 3);
    let leader = cluster.leader(1);
    let away = if leader == 3 { 2 } else { 3 };
    let name = cluster.name(away);
    cluster.kill(away);
    let lost = format!("node {name} does not answer");
    tool::wait_for("the line", SOON, || {
        cluster.log(leader).contains(&lost).then_some(())
    });

    let line = cluster.refused(leader, &["peer", "detach", &cluster.server(away)], 255);
    for part in ["One of the peers is probably down", &name, "'force'"] {
        assert!(line.contains(part), "no '{part}' in {line}");
    }
    pass(Duration::from_secs(3));
    cluster.start(away);
    let back = format!("node {name} answers again");
    tool::wait_for("the line", SOON, || {
        cluster.log(leader).contains(&back).then_some(())
    });
    let log = cluster.log(leader);
    let counts = [&lost[..], &back, "openraft"].map(|text| log.matches(text).count());
    assert_eq!(counts, [1, 1, 0], "{log}");
}
