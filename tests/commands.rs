//! The commands as a person types them: outputs and exit codes as recorded for gluster, and what bad input gets.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use mortar_tests::real::{Daemon, Kind, bin_dir, tool};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn refused(out: &Output, message: &str) {
    assert_eq!(
        out.status.code(),
        Some(1),
        "exit code; stderr: {}",
        text(&out.stderr)
    );
    assert_eq!(text(&out.stderr).trim_end(), message);
}

#[test]
fn the_life_of_a_volume() {
    let daemon = Daemon::start();
    daemon.wait_ready();
    let out = daemon.mortar(&["volume", "list"]);
    assert_eq!(text(&out.stderr), "No volumes present in cluster\n");
    let brick = |n: u32| format!("127.0.0.1:{}", daemon.dir().join(format!("b{n}")).display());
    let (b1, b2, b3) = (brick(1), brick(2), brick(3));

    let create = [
        "volume",
        "create",
        "rep3",
        "replica",
        "3",
        &b1,
        &b2,
        &b3,
        "--brick-size",
        "300M",
    ];
    let with_force: Vec<&str> = create.iter().copied().chain(["force"]).collect();
    assert_eq!(
        daemon.mortar_ok(&with_force),
        "volume create: rep3: success: please start the volume to access data\n"
    );
    refused(
        &daemon.mortar(&with_force),
        "volume create: rep3: failed: Volume rep3 already exists",
    );
    refused(
        &daemon.mortar(&["volume", "status", "rep3"]),
        "Volume rep3 is not started",
    );
    assert_eq!(
        daemon.mortar_ok(&["volume", "start", "rep3"]),
        "volume start: rep3: success\n"
    );
    refused(
        &daemon.mortar(&["volume", "start", "rep3"]),
        "volume start: rep3: failed: Volume rep3 already started",
    );
    assert_eq!(daemon.mortar_ok(&["volume", "list"]), "rep3\n");

    let info = daemon.mortar_ok(&["volume", "info", "rep3"]);
    for line in [
        "Volume Name: rep3",
        "Type: Replicate",
        "Status: Started",
        "Number of Bricks: 1 x 3 = 3",
        &format!("Brick1: {b1}"),
        &format!("Brick3: {b3}"),
    ] {
        assert!(
            info.lines().any(|found| found == line),
            "no line '{line}' in:\n{info}"
        );
    }
    let status = daemon.mortar_ok(&["volume", "status", "rep3"]);
    assert!(status.starts_with("Status of volume: rep3\n"), "{status}");
    assert_eq!(
        status
            .lines()
            .filter(|line| line.starts_with("Brick ") && line.contains(" Y "))
            .count(),
        3,
        "{status}"
    );

    assert_eq!(
        daemon.mortar_ok(&["volume", "set", "rep3", "performance.write-behind", "off"]),
        "volume set: success\n"
    );
    let got = daemon.mortar_ok(&["volume", "get", "rep3", "performance.write-behind"]);
    assert!(
        got.lines().any(|line| line
            .split_whitespace()
            .eq(["performance.write-behind", "off"])),
        "{got}"
    );
    let unknown = daemon.mortar(&["volume", "set", "rep3", "nope.option", "1"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        text(&unknown.stderr)
            .starts_with("volume set: failed: option : nope.option does not exist")
    );
    assert_eq!(
        daemon.mortar_ok(&["volume", "reset", "rep3"]),
        "volume reset: success: reset volume successful\n"
    );

    refused(
        &daemon.mortar(&["--mode=script", "volume", "delete", "rep3"]),
        "volume delete: rep3: failed: Volume rep3 has been started.Volume needs to be stopped before deletion.",
    );
    assert_eq!(
        daemon.mortar_ok(&["--mode=script", "volume", "stop", "rep3"]),
        "volume stop: rep3: success\n"
    );
    refused(
        &daemon.mortar(&["--mode=script", "volume", "stop", "rep3"]),
        "volume stop: rep3: failed: Volume rep3 is not in the started state",
    );
    assert_eq!(
        daemon.mortar_ok(&["--mode=script", "volume", "delete", "rep3"]),
        "volume delete: rep3: success\n"
    );
    refused(
        &daemon.mortar(&["volume", "info", "rep3"]),
        "Volume rep3 does not exist",
    );
}

#[test]
fn unknown_volumes_and_wrong_counts_are_refused() {
    let daemon = Daemon::start();
    daemon.wait_ready();
    refused(
        &daemon.mortar(&["volume", "start", "nope"]),
        "volume start: nope: failed: Volume nope does not exist",
    );
    refused(
        &daemon.mortar(&["--mode=script", "volume", "stop", "nope"]),
        "volume stop: nope: failed: Volume nope does not exist",
    );
    let b1 = format!("127.0.0.1:{}", daemon.dir().join("b1").display());
    let b2 = format!("127.0.0.1:{}", daemon.dir().join("b2").display());
    let out = daemon.mortar(&["volume", "create", "x", "replica", "3", &b1, &b2, "force"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(
        text(&out.stderr).starts_with("volume create: x: failed"),
        "{}",
        text(&out.stderr)
    );
    let out = daemon.mortar(&["volume", "create", "y", "10.9.9.9:/nowhere/z", "force"]);
    refused(
        &out,
        "volume create: y: failed: Host 10.9.9.9 is not in 'Peer in Cluster' state",
    );
    assert!(
        !daemon.dir().join("b1").join("mortar.brick").exists(),
        "a refused create left a brick"
    );
}

#[test]
fn a_daemon_that_is_not_there_is_named_within_five_seconds() {
    let daemon = Daemon::start();
    daemon.wait_ready();
    let mut gone = daemon;
    gone.kill();
    let start = gone.dir().join("start");
    std::fs::write(&start, "").expect("timestamp");
    let begun = std::fs::metadata(&start)
        .and_then(|meta| meta.modified())
        .expect("time");
    let out = gone.mortar(&["volume", "list"]);
    std::fs::write(&start, "x").expect("timestamp");
    let took = std::fs::metadata(&start)
        .and_then(|meta| meta.modified())
        .expect("time")
        .duration_since(begun)
        .unwrap_or_default();
    assert_eq!(out.status.code(), Some(1));
    assert!(took.as_secs() < 6, "took {took:?}");
    assert!(
        text(&out.stderr).contains(&gone.server()),
        "{}",
        text(&out.stderr)
    );
}

/// `mortar`, or whatever `name` it is called by, without a server.
fn mortar(name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(bin_dir().join("mortar"));
    command
        .arg0(name)
        .args(args)
        .env_remove("MORTAR_SERVER")
        .stdin(Stdio::null());
    command
}

fn ran(command: &mut Command) -> Output {
    command.output().expect("mortar runs")
}

/// A socket that nobody reads, and its address, of which no daemon that was killed has left anything.
fn silent_server() -> (UdpSocket, String) {
    loop {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("socket");
        let addr = socket.local_addr().expect("address").to_string();
        let left = Path::new("/run/mortar").join(format!("{addr}.sock"));
        if left.symlink_metadata().is_err() {
            return (socket, addr);
        }
    }
}

#[test]
fn the_first_of_several_servers_that_answers_is_used() {
    let daemon = Daemon::with_volume(Kind::Replica(3), "300M");
    // They take every packet and answer none.
    let (_one, silent) = silent_server();
    let (_other, other) = silent_server();
    let both = format!("{silent},{}", daemon.server());
    let by_flag = || {
        ran(&mut mortar(
            "mortar",
            &["--server", &both, "volume", "list"],
        ))
    };
    let by_flags = || {
        let server = format!("--remote-host={}", daemon.server());
        ran(&mut mortar(
            "mortar",
            &["volume", "list", "--server", &silent, &server],
        ))
    };
    let by_variable = || ran(mortar("mortar", &["volume", "list"]).env("MORTAR_SERVER", &both));
    let ways: [&dyn Fn() -> Output; 3] = [&by_flag, &by_flags, &by_variable];
    for way in ways {
        let (out, took) = tool::timed(way);
        assert_eq!(text(&out.stdout), "vol\n", "{}", text(&out.stderr));
        assert!(took.as_millis() < 2_000, "took {took:?}");
    }
    // Its socket for certificates takes the question, too.
    let mut stopped = Daemon::start();
    stopped.wait_ready();
    tool::signal(stopped.pid(), libc::SIGSTOP);
    let server = format!("--server={},{}", stopped.server(), daemon.server());
    let (out, took) = tool::timed(|| ran(&mut mortar("mortar", &[&server, "volume", "list"])));
    tool::signal(stopped.pid(), libc::SIGCONT);
    stopped.kill();
    assert_eq!(text(&out.stdout), "vol\n", "{}", text(&out.stderr));
    assert!(took.as_millis() < 2_000, "took {took:?}");
    let none = format!("--server={silent},{other}");
    let (out, took) = tool::timed(|| ran(&mut mortar("mortar", &[&none, "volume", "list"])));
    assert_eq!(out.status.code(), Some(1));
    let said = text(&out.stderr);
    assert!(
        said.contains(&format!("no mortard answers at {silent}, {other}")),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(took.as_secs() < 5, "took {took:?}");
}

#[test]
fn it_answers_to_the_name_of_gluster() {
    let daemon = Daemon::with_volume(Kind::Replica(3), "300M");
    let server = format!("--remote-host={}", daemon.server());
    let gluster = |args: &[&str]| {
        let mut all = vec![server.as_str()];
        all.extend(args);
        ran(&mut mortar("/usr/sbin/gluster", &all))
    };
    let out = gluster(&["vol", "i", "vol", "--xml"]);
    let xml = text(&out.stdout);
    assert!(
        xml.starts_with(
            "<?xml version=\"1.0\" encoding=\"UTF-8\" standalone=\"yes\"?>\n<cliOutput>\n"
        ),
        "{xml}"
    );
    for part in [
        "<statusStr>Started</statusStr>",
        "<replicaCount>3</replicaCount>",
        "<typeStr>Replicate</typeStr>",
        "<isArbiter>0</isArbiter></brick>\n",
    ] {
        assert!(xml.contains(part), "{part} in {xml}");
    }
    let out = gluster(&["volume", "foo"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stdout).starts_with(
        "unrecognized word: foo (position 1)\n\n Usage: gluster [options] <help> <peer> <pool> <volume>\n"
    ));
    let out = gluster(&["--xml", "volume", "start", "vol"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out.stdout).contains("<opErrstr>Volume vol already started</opErrstr>"));
    let out = gluster(&["--foo", "volume", "list"]);
    assert_eq!(text(&out.stderr), "unrecognized option --foo\n");
    let status = gluster(&["volume", "status", "vol", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
    assert_eq!(status["volumes"][0]["bricks"][2]["online"], true);
    let version = ran(&mut mortar("gluster", &["--version"]));
    assert!(text(&version.stdout).starts_with("glusterfs 10.3"));
}

#[test]
fn questions_are_asked_where_somebody_can_answer() {
    let daemon = Daemon::with_volume(Kind::Replica(3), "300M");
    let asked = |answer: &str| {
        let server = daemon.server();
        let words = [
            "--server",
            &server,
            "--mode=interactive",
            "volume",
            "stop",
            "vol",
        ];
        let mut child = mortar("mortar", &words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("mortar runs");
        let mut stdin = child.stdin.take().expect("its input");
        stdin.write_all(answer.as_bytes()).expect("an answer");
        drop(stdin);
        child.wait_with_output().expect("its outputs")
    };
    const QUESTION: &str =
        "Stopping volume will make its data inaccessible. Do you want to continue? (y/n) ";
    for no in ["n\n", "", "yellow\n"] {
        let out = asked(no);
        assert_eq!(text(&out.stdout), QUESTION);
        assert_eq!(
            (out.status.code(), text(&out.stderr).as_str()),
            (Some(1), "not done\n")
        );
    }
    let status = daemon.mortar_ok(&["volume", "info", "vol"]);
    assert!(status.contains("Status: Started"), "{status}");
    let out = asked("y\n");
    assert_eq!(
        text(&out.stdout),
        format!("{QUESTION}volume stop: vol: success\n")
    );
    // No terminal and no word about it: as in a script.
    assert_eq!(
        daemon.mortar_ok(&["volume", "delete", "vol"]),
        "volume delete: vol: success\n"
    );
}

#[test]
fn random_bytes_on_the_port_change_nothing() {
    let daemon = Daemon::with_volume(Kind::Replica(3), "300M");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("socket");
    let mut random = 0x1234_5678_9abc_def1_u64;
    for round in 0..2_000_usize {
        let mut packet = vec![0u8; 1 + (round * 37) % 1_400];
        for byte in &mut packet {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            *byte = random as u8;
        }
        socket.send_to(&packet, daemon.server()).expect("send");
    }
    assert_eq!(daemon.mortar_ok(&["volume", "list"]), "vol\n");
}

#[test]
fn hello_is_served_over_http() {
    let daemon = Daemon::start();
    daemon.wait_ready();
    let mut stream = TcpStream::connect(daemon.api()).expect("http port");
    stream
        .write_all(b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .expect("request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.to_lowercase().contains("hello from"), "{answer}");
    let mut stream = TcpStream::connect(daemon.api()).expect("http port");
    stream
        .write_all(b"GET /volumes HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .expect("request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
}
