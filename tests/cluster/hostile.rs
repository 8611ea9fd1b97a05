//! What lies in a data directory may be damaged, and what arrives at a port may be anything.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use mortar_protocol::enrol;
use mortar_protocol::frame::Frame;
use mortar_protocol::ids::{ClusterId, NodeId};
use mortar_protocol::join::Adoption;
use mortar_protocol::transport::Transport;
use mortar_protocol::transport::quic::{QuicTransport, StrangerConnection};
use mortar_protocol::transport::tls::Authority;
use mortar_tests::golden::messages;
use mortar_tests::real::{Cluster, Daemon, Kind, Net, bin_dir, tool};
use mortar_tests::sim::rng::Rng;

use crate::{ANSWER, SOON};

/// Data directories that are tried.
const DAMAGED: u64 = 48;
/// How long a live cluster is sent garbage.
const GARBAGE: Duration = Duration::from_secs(5);

fn seed() -> u64 {
    let text = std::env::var("HOSTILE_SEED").ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// What came of a start on a data directory.
#[derive(Debug)]
enum Start {
    Serves,
    Ends(Option<i32>, String),
}

/// Starts mortard there, until it serves or has ended.
#[allow(clippy::disallowed_methods)] // a real process needs the real clock
fn start(data: &Path, listen: &str) -> Start {
    let log = data.with_extension("log");
    let file = fs::File::create(&log).expect("a log");
    let mut child = Command::new(bin_dir().join("mortard"))
        .arg("--data-dir")
        .arg(data)
        .arg("--secret-file")
        .arg(data.join("secret"))
        .args(["--listen", listen, "--api", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .stdout(file.try_clone().expect("the log"))
        .stderr(file)
        .spawn()
        .expect("mortard");
    let begun = Instant::now();
    loop {
        let ended = child.try_wait().expect("mortard");
        let text = fs::read(&log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        if let Some(status) = ended {
            return Start::Ends(status.code(), text);
        }
        if text.contains("mortard serves") || begun.elapsed() > SOON {
            child.kill().expect("it runs");
            child.wait().expect("its end");
            assert!(
                text.contains("mortard serves"),
                "neither serves nor ends:\n{text}"
            );
            assert!(!text.contains("PANIC"), "{text}");
            return Start::Serves;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// It must have ended with exit code 1, and a last line that names what cannot be used.
fn refused(told: Start, named: &Path) -> String {
    let Start::Ends(code, text) = told else {
        panic!("mortard serves on {}", named.display());
    };
    let line = text.lines().last().unwrap_or_default().to_owned();
    assert_eq!(code, Some(1), "{text}");
    assert!(!text.contains("PANIC"), "{text}");
    assert!(line.starts_with("mortard: "), "{text}");
    assert!(line.contains(named.to_str().expect("text")), "{line}");
    line
}

/// Damages a file.
fn damage(path: &Path, rng: &mut Rng) -> String {
    let mut bytes = fs::read(path).expect("the file");
    let at = rng.below(bytes.len() as u64 + 1) as usize;
    let what = match rng.below(5) {
        0 => {
            bytes.truncate(at);
            format!("cut at {at}")
        }
        1 => {
            let end = (at + 1 + rng.below(600) as usize).min(bytes.len());
            bytes[at..end].fill_with(|| rng.draw() as u8);
            format!("bytes {at}..{end}")
        }
        2 => {
            let end = (at + 4_096).min(bytes.len());
            bytes[at..end].fill(0);
            format!("zeros from {at} to {end}")
        }
        3 => {
            bytes.clear();
            "empty".to_owned()
        }
        _ => {
            let at = at.min(bytes.len() - 1);
            bytes[at] ^= 1 << rng.below(8);
            format!("a bit of byte {at}")
        }
    };
    fs::write(path, bytes).expect("the file");
    format!("{}: {what}", path.display())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn copy(from: &Path, to: &Path) {
    let words = [
        "-a",
        from.to_str().expect("text"),
        to.to_str().expect("text"),
    ];
    tool::run_in(Path::new("/"), "cp", &words);
}

/// A data directory of a node with a volume, and the address it listens on.
fn pristine() -> (Daemon, PathBuf, String) {
    let mut daemon = Daemon::with_volume(Kind::Plain, "256M");
    assert_eq!(daemon.terminate().0, Some(0));
    let data = daemon.dir().join("data");
    let secret = data.join("secret");
    fs::copy(daemon.dir().join("secret"), &secret).expect("the secret");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("its mode");
    let listen = daemon.server();
    (daemon, data, listen)
}

#[test]
fn a_damaged_data_directory_is_refused_by_the_name_of_the_file() {
    let (daemon, data, listen) = pristine();
    assert!(matches!(start(&data, &listen), Start::Serves));
    let mut rng = Rng::new(seed());
    let files = [
        "control.redb",
        "identity",
        "tls/ca.pem",
        "tls/ca.key",
        "tls/node.pem",
        "tls/node.key",
        "addresses",
        "secret",
    ];
    let (mut served, mut ended) = (0, 0);
    for round in 0..DAMAGED {
        let own = daemon.dir().join(format!("copy{round}"));
        copy(&data, &own);
        // Half of them hit what holds the state.
        let file = match rng.permille(500) {
            true => files[0],
            false => files[rng.below(files.len() as u64) as usize],
        };
        let what = damage(&own.join(file), &mut rng);
        eprintln!("{what}");
        match start(&own, &listen) {
            Start::Serves => served += 1,
            told => {
                eprintln!("    {}", refused(told, &own));
                ended += 1;
            }
        }
        fs::remove_dir_all(&own).expect("the copy goes");
    }
    // A node that has lost its state does not begin anew by itself.
    for removed in [false, true] {
        let own = daemon.dir().join(format!("gone{removed}"));
        copy(&data, &own);
        let file = own.join("control.redb");
        match removed {
            true => fs::remove_file(&file).expect("the file goes"),
            false => fs::write(&file, b"").expect("the file"),
        }
        refused(start(&own, &listen), &file);
    }
    eprintln!("{served} served, {ended} refused");
    assert!(ended > DAMAGED / 4, "{served} served, {ended} refused");
}

#[test]
fn a_damaged_note_of_another_cluster_changes_nothing() {
    let (daemon, data, listen) = pristine();
    let cluster = ClusterId(9);
    let adoption = Adoption {
        cluster,
        authority: Authority::generate(cluster)
            .expect("an authority")
            .to_parts(),
        nodes: vec![(NodeId(1), vec![SocketAddr::from(([127, 0, 0, 1], 9))])],
    };
    let mut note = vec![0];
    note.extend(postcard::to_stdvec(&adoption).expect("a note"));
    // What would leave the cluster, with the rest of it behind.
    let mut leaves = note.clone();
    leaves[0] = 1;
    let mut foreign = note.clone();
    foreign[1] ^= 0x7f;
    let cut = note[..note.len() / 2].to_vec();
    let identity = fs::read(data.join("identity")).expect("identity");
    for (number, bytes) in [leaves, foreign, cut].iter().enumerate() {
        let own = daemon.dir().join(format!("noted{number}"));
        copy(&data, &own);
        fs::write(own.join("change"), hex(bytes)).expect("the note");
        refused(start(&own, &listen), &own.join("change"));
        assert_eq!(fs::read(own.join("identity")).expect("identity"), identity);
        assert!(own.join("control.redb").exists());
    }
    let own = daemon.dir().join("text");
    copy(&data, &own);
    fs::write(own.join("change"), "what is this?\u{e9}").expect("the note");
    refused(start(&own, &listen), &own.join("change"));
}

#[test]
fn senseless_arguments_are_refused() {
    for words in [
        &["--data-dir"][..],
        &["--data-dir", "/proc/nowhere", "--listen", "127.0.0.1:0"],
        &["--data-dir", "/dev/null/data", "--listen", "127.0.0.1:0"],
        &["--data-dir", "/tmp", "--listen", "nowhere"],
        &["--data-dir", "/tmp", "--listen", "127.0.0.1:65536"],
        &["--data-dir", "/tmp", "--log-level", "loud"],
        &["--data-dir", "/tmp", "--threads", "0"],
        &["--data-dir", "/tmp", "--threads", "-1"],
        &["--data-dir", "/tmp", "--unknown", "\u{1b}[2J"],
    ] {
        let out = Command::new(bin_dir().join("mortard"))
            .args(words)
            .stdin(Stdio::null())
            .output()
            .expect("mortard");
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(
            matches!(out.status.code(), Some(1 | 2)),
            "{words:?}: {text}"
        );
        assert!(!text.contains("PANIC") && !text.trim().is_empty(), "{text}");
    }
}

#[test]
fn a_copy_of_a_data_directory_is_refused_beside_the_original() {
    let mut daemon = Daemon::with_volume(Kind::Plain, "256M");
    let own = daemon.dir().join("copy");
    copy(&daemon.dir().join("data"), &own);
    let line = refused(start(&own, "127.0.0.1:0"), &own);
    for part in ["is a copy", &daemon.server()] {
        assert!(line.contains(part), "no '{part}' in {line}");
    }
    daemon.mortar_ok(&["volume", "info", "vol"]);
    // Without the original it is a node that has moved.
    assert_eq!(daemon.terminate().0, Some(0));
    assert!(matches!(start(&own, "127.0.0.1:0"), Start::Serves));
}

fn resident(cluster: &Cluster, n: u8) -> u64 {
    let pid = fs::read_to_string(cluster.dir(n).join("pid")).expect("pid");
    let status = fs::read_to_string(format!("/proc/{}/status", pid.trim()));
    let status = status.expect("the process runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    kib.expect("its memory")
}

/// Bytes of a message, changed here and there.
fn changed(bytes: &[u8], rng: &mut Rng) -> Bytes {
    let mut bytes = bytes.to_vec();
    for _ in 0..rng.below(4) {
        let at = rng.below(bytes.len() as u64 + 1) as usize;
        match rng.below(4) {
            0 => bytes.truncate(at),
            1 => bytes.extend((0..at).map(|_| rng.draw() as u8)),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = rng.draw() as u8;
                }
            }
        }
    }
    bytes.into()
}

/// Datagrams to all nodes, some of which begin as QUIC does.
#[allow(clippy::disallowed_methods)] // real processes need the real clock
fn datagrams(to: &[SocketAddr], rng: &mut Rng, over: &AtomicBool) -> u64 {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let mut sent = 0;
    while !over.load(Ordering::Relaxed) {
        for addr in to {
            let len = [1, 20, 100, 1_200, 1_450][rng.below(5) as usize];
            let mut bytes: Vec<u8> = (0..len).map(|_| rng.draw() as u8).collect();
            if rng.permille(700) {
                bytes[0] = 0xc0 | (bytes[0] & 0x3f);
                for (at, byte) in [0, 0, 0, 1, 8].iter().enumerate() {
                    if let Some(place) = bytes.get_mut(at + 1) {
                        *place = *byte;
                    }
                }
            }
            // A buffer that is full is no trouble of the test.
            sent += u64::from(socket.send_to(&bytes, addr).is_ok());
        }
        std::thread::sleep(Duration::from_micros(300));
    }
    sent
}

/// Frames over connections of strangers.
async fn strange(to: Vec<SocketAddr>, mut rng: Rng, over: Arc<AtomicBool>) -> u64 {
    let mut sent = 0;
    while !over.load(Ordering::Relaxed) {
        let addr = to[rng.below(to.len() as u64) as usize];
        let Ok(connection) = StrangerConnection::connect(addr, ANSWER).await else {
            continue;
        };
        for _ in 0..4 {
            let frame = Frame {
                head: (0..rng.below(2_000)).map(|_| rng.draw() as u8).collect(),
                body: (0..rng.below(2_000)).map(|_| rng.draw() as u8).collect(),
            };
            // No answer is an answer.
            let _ = connection.call(frame, Duration::from_millis(300)).await;
            sent += 1;
        }
    }
    sent
}

#[test]
#[allow(clippy::disallowed_methods)] // real processes need the real clock
fn garbage_does_not_end_a_live_cluster_nor_fill_its_memory() {
    let cluster = Cluster::new(Net::Loopback, 3);
    cluster.volume(1, "kept", &["replica", "3"], 3, "256M");
    let addrs: Vec<SocketAddr> = (1..=3)
        .map(|n| cluster.server(n).parse().expect("an address"))
        .collect();
    let enrolment = enrol::find(&addrs[..1]).expect("a certificate");
    let before: Vec<u64> = (1..=3).map(|n| resident(&cluster, n)).collect();
    let over = Arc::new(AtomicBool::new(false));
    let mut rng = Rng::new(seed());
    let (mut noise, to, flag) = (rng.fork(), addrs.clone(), Arc::clone(&over));
    let noise = std::thread::spawn(move || datagrams(&to, &mut noise, &flag));
    let answered = Arc::new(AtomicU64::new(0));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let strange = runtime.block_on(async {
        let transport = QuicTransport::new(&enrolment.credentials, runtime.handle());
        let transport = transport.expect("a way");
        let strange = tokio::spawn(strange(addrs.clone(), rng.fork(), Arc::clone(&over)));
        let samples = messages::all();
        let end = Instant::now() + GARBAGE;
        while Instant::now() < end {
            let calls = (0..16).map(|_| {
                let sample = &samples[rng.below(samples.len() as u64) as usize];
                let head = changed(&sample.bytes, &mut rng);
                let body = changed(&head, &mut rng);
                let frame = Frame { head, body };
                let call = transport.call(enrolment.node, &addrs[..1], frame);
                let answered = Arc::clone(&answered);
                async move {
                    let limit = Duration::from_millis(300);
                    if let Ok(Ok(_)) = tokio::time::timeout(limit, call).await {
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            futures_util::future::join_all(calls).await;
        }
        over.store(true, Ordering::Relaxed);
        strange.await.expect("strangers")
    });
    let noise = noise.join().expect("datagrams");
    let answered = answered.load(Ordering::Relaxed);
    eprintln!("{noise} datagrams, {strange} strange frames, {answered} answers");
    assert!(noise > 1_000 && strange > 4 && answered > 100);
    for n in 1..=3 {
        let (info, took) = tool::timed(|| cluster.ok(n, &["volume", "info", "kept"]));
        assert!(
            info.contains("Status: Started") && took < ANSWER,
            "{info} {took:?}"
        );
        let grown = resident(&cluster, n).saturating_sub(before[usize::from(n) - 1]);
        assert!(grown < 64 << 10, "node {n} has grown by {grown} KiB");
        let log = cluster.log(n);
        assert!(!log.contains("PANIC"), "{log}");
        assert_eq!(
            log.matches("mortard serves").count(),
            2 - usize::from(n == 1),
            "{log}"
        );
    }
    cluster.wait_whole(1, SOON);
}
