//! What an administrator sees on the first day, on real processes: mount options, signals and detaching, logs, and "what
//! is it doing".

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mortar_tests::real::{Daemon, Kind, Mount, bin_dir, tool};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);

fn volume() -> (Daemon, Mount) {
    let daemon = Daemon::with_volume(Kind::Replica(3), "512M");
    let mount = Mount::new(&daemon, "vol");
    (daemon, mount)
}

fn text(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

fn mount_log(daemon: &Daemon) -> String {
    text(&daemon.dir().join("mount.log"))
}

/// Options of a mount as the kernel has them.
fn kernel_options(mount: &Mount) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let dir = mount.path().to_str().expect("text");
    let line = table
        .lines()
        .find(|line| line.split(' ').nth(1) == Some(dir))
        .expect("mounted");
    let options = line.split(' ').nth(3).expect("options");
    options.split(',').map(str::to_owned).collect()
}

fn client_pid(mount: &Mount) -> u32 {
    let pids = mount.client_pids();
    assert_eq!(pids.len(), 1, "one process per mount");
    pids[0]
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Arguments of `mortar mount` for a directory.
fn mount_words(daemon: &Daemon, dir: &Path, log: &Path) -> Vec<String> {
    let server = daemon.server();
    let (host, port) = server.rsplit_once(':').expect("host:port");
    let options = format!("server-port={port},log-file={}", log.display());
    let dir = dir.to_str().expect("text").to_owned();
    ["mount", &format!("{host}:/vol"), &dir, "-o", &options]
        .map(str::to_owned)
        .to_vec()
}

/// A process that a test started; killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_mount_leaves_nothing_of_its_caller() {
    let daemon = Daemon::with_volume(Kind::Replica(3), "512M");
    let mount = Mount::new(&daemon, "vol");
    mount.umount();
    let log = daemon.dir().join("detached.log");
    // The caller holds a descriptor that is not closed by exec, and waits for the end of the output.
    let out = Command::new("sh")
        .args([
            "-c",
            "exec 7</dev/zero; x=$(\"$@\" 2>&1); code=$?; echo \"[$x] $code\"",
            "sh",
        ])
        .arg(bin_dir().join("mortar"))
        .args(mount_words(&daemon, mount.path(), &log))
        .current_dir(daemon.dir())
        .stdin(File::open("/dev/zero").expect("open"))
        .output()
        .expect("sh");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "[] 0\n");
    assert!(mount.is_mounted());
    let process = PathBuf::from(format!("/proc/{}", client_pid(&mount)));
    assert_eq!(
        fs::read_link(process.join("cwd")).expect("cwd"),
        Path::new("/")
    );
    let stat = text(&process.join("stat"));
    let after_name: Vec<&str> = stat[stat.rfind(')').expect("name") + 2..]
        .split(' ')
        .collect();
    let pid = client_pid(&mount).to_string();
    assert_eq!(after_name[3], pid, "it leads a session of its own");
    let target = |fd: &str| fs::read_link(process.join("fd").join(fd)).expect("descriptor");
    assert_eq!(target("0"), Path::new("/dev/null"));
    assert_eq!(target("1"), Path::new("/dev/null"));
    assert_eq!(target("2"), log);
    for entry in fs::read_dir(process.join("fd")).expect("fd") {
        let link = fs::read_link(entry.expect("entry").path()).unwrap_or_default();
        assert_ne!(link, Path::new("/dev/zero"), "a descriptor of the caller");
    }
    mount.umount();
}

#[test]
#[allow(clippy::disallowed_methods)] // real processes need the real clock
fn a_mount_in_front_sends_what_it_holds_when_it_is_told_to_end() {
    let daemon = Daemon::with_volume(Kind::Replica(3), "512M");
    let mount = Mount::new(&daemon, "vol");
    mount.umount();
    for (signal, open) in [
        (libc::SIGTERM, false),
        (libc::SIGTERM, true),
        (libc::SIGINT, true),
    ] {
        let log = daemon.dir().join("front.log");
        let mut words = mount_words(&daemon, mount.path(), &log);
        words.insert(1, "-f".into());
        let child = Command::new(bin_dir().join("mortar"))
            .args(&words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("mortar");
        let mut child = Running(child);
        tool::wait_for("the mount", SOON, || mount.is_mounted().then_some(()));
        let name = format!("held-{signal}-{open}");
        let mut file = File::create(mount.join(&name)).expect("create");
        file.write_all(&vec![7; 300_000]).expect("write");
        let kept = open.then_some(file);
        let start = Instant::now();
        tool::signal(child.0.id(), signal);
        let status = tool::wait_for("its end", SOON, || child.0.try_wait().expect("wait"));
        assert_eq!(status.code(), Some(0), "{name}: {}", text(&log));
        assert!(start.elapsed() < SOON);
        drop(kept);
        assert!(!mount.is_mounted(), "{name}");
        assert!(
            text(&log).contains("told to end"),
            "-f with log-file logs there"
        );
        mount.mount(&daemon, "vol", "");
        assert_eq!(fs::read(mount.join(&name)).expect("read"), vec![7; 300_000]);
        mount.umount();
    }
}

/// Appends lines and syncs each until a file outside the mount is there; says how many. A process of its own: a start
/// of the daemon by the process that holds the file would wait for the daemon.
const WRITER: &str = "import os, sys\n\
    f = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n\
    n = 0\n\
    while not os.path.exists(sys.argv[2]):\n\
    \u{20}   os.write(f, b'line\\n'); os.fdatasync(f); n += 1\n\
    print(n)\n";

#[test]
fn mortard_ends_in_good_order_under_busy_mounts() {
    let mut daemon = Daemon::with_volume(Kind::Replica(3), "512M");
    let mount = Mount::new(&daemon, "vol");
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let path = mount.join(&format!("log-{signal}"));
        let stop = daemon.dir().join(format!("stop-{signal}"));
        let writer = Command::new("python3")
            .args(["-c", WRITER])
            .args([&path, &stop])
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
        tool::wait_for("some writing", SOON, || {
            (fs::metadata(&path).ok()?.len() > 500).then_some(())
        });
        let (code, took) = daemon.end_with(signal);
        assert_eq!(code, Some(0), "{}", daemon.log());
        assert!(took < SOON, "{took:?}");
        daemon.restart();
        fs::write(&stop, b"").expect("write");
        let out = writer.wait_with_output().expect("wait");
        assert!(out.status.success(), "the writer saw an error");
        let written = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        let lines = fs::read_to_string(&path).expect("read").lines().count();
        assert_eq!(lines.to_string(), written);
    }
}

/// Kills the daemon and has a call wait for it; unmounts with `flag`; gives when umount and the call were over.
#[allow(clippy::disallowed_methods)] // real processes need the real clock
fn umount_without_server(flag: &str) -> (Duration, Duration) {
    let (mut daemon, mount) = volume();
    fs::write(mount.join("file"), b"text").expect("write");
    let pid = client_pid(&mount);
    daemon.kill();
    // A process of its own waits, as umount of a tree in use by this process would find it busy.
    let waiting = Command::new("stat")
        .args(["-f", "-c", "%T"])
        .arg(mount.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("stat");
    let mut waiting = Running(waiting);
    std::thread::sleep(Duration::from_millis(300));
    assert!(
        waiting.0.try_wait().expect("wait").is_none(),
        "the call waits"
    );
    let start = Instant::now();
    // By force the kernel ends the calls first, and may still find the mount in use by them: then once more.
    tool::wait_for("umount", Duration::from_secs(5), || {
        let umount = Command::new("umount").arg(flag).arg(mount.path()).output();
        umount.expect("umount");
        (!mount.is_mounted()).then_some(())
    });
    let unmounted = start.elapsed();
    let status = tool::wait_for("the end of the call", Duration::from_secs(20), || {
        waiting.0.try_wait().expect("wait")
    });
    let ended = start.elapsed();
    assert!(!status.success(), "nobody answered");
    assert!(!mount.is_mounted());
    tool::wait_for("the end of the client", Duration::from_secs(40), || {
        (!tool::alive(pid)).then_some(())
    });
    (unmounted, ended)
}

#[test]
fn umount_by_force_ends_what_waits_for_an_absent_server() {
    let (unmounted, ended) = umount_without_server("-f");
    assert!(unmounted < Duration::from_secs(2), "{unmounted:?}");
    assert!(ended < Duration::from_secs(2), "{ended:?}");
}

#[test]
fn lazy_umount_ends_what_waits_for_an_absent_server() {
    let (unmounted, ended) = umount_without_server("-l");
    assert!(unmounted < Duration::from_secs(2), "{unmounted:?}");
    assert!(ended < Duration::from_secs(6), "{ended:?}");
}

#[test]
fn logs_are_opened_again_on_sighup() {
    let daemon = Daemon::start_with(|dir| {
        let log = dir.join("own.log").display().to_string();
        vec!["--log-file".into(), log]
    });
    daemon.wait_ready();
    daemon.volume("vol", Kind::Replica(3), "512M");
    let mount = Mount::new(&daemon, "vol");
    assert_eq!(daemon.log(), "", "nothing goes to standard error");
    for (log, pid) in [("own.log", daemon.pid()), ("mount.log", client_pid(&mount))] {
        let log = daemon.dir().join(log);
        let moved = log.with_extension("old");
        fs::rename(&log, &moved).expect("rename");
        assert!(!text(&moved).is_empty());
        tool::signal(pid, libc::SIGHUP);
        tool::wait_for("a new log", SOON, || {
            text(&log)
                .contains("told to open the log again")
                .then_some(())
        });
        let before = text(&moved);
        tool::signal(pid, libc::SIGHUP);
        tool::wait_for("another line", SOON, || {
            (text(&log).matches("told to open").count() == 2).then_some(())
        });
        assert_eq!(text(&moved), before, "the old one is left alone");
    }
    fs::write(mount.join("still"), b"serves").expect("write");
}

#[test]
fn log_levels_decide_what_is_logged() {
    let daemon = Daemon::start_with(|_| vec!["--log-level".into(), "error".into()]);
    daemon.wait_ready();
    assert!(!daemon.log().contains("INFO"), "{}", daemon.log());
    daemon.volume("vol", Kind::Plain, "512M");
    let mount = Mount::with_options(&daemon, "vol", "log-level=ERROR");
    assert_eq!(mount_log(&daemon), "");
    mount.umount();
    mount.mount(&daemon, "vol", "log-level=DEBUG");
    assert!(mount_log(&daemon).contains("mounted 127.0.0.1:/vol"));
}

#[test]
fn a_full_volume_is_in_the_log_with_file_and_cause_but_not_a_thousand_times() {
    let daemon = Daemon::with_volume(Kind::Replica(3), "256M");
    daemon.mortar_ok(&["volume", "set", "vol", "performance.write-behind", "off"]);
    let mount = Mount::new(&daemon, "vol");
    fs::create_dir_all(mount.join("some/where")).expect("mkdir");
    let path = mount.join("some/where/fill");
    let file = File::create(&path).expect("create");
    let chunk = vec![3; 1 << 20];
    let mut refused = 0;
    for at in 0..700u64 {
        if let Err(error) = file.write_all_at(&chunk, at << 20) {
            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
            refused += 1;
            if refused >= 30 {
                break;
            }
        }
    }
    assert!(refused >= 30, "the volume never filled up");
    let log = mount_log(&daemon);
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("ENOSPC: write"))
        .collect();
    assert!(
        (1..=3).contains(&lines.len()),
        "{} lines for {refused} errors:\n{log}",
        lines.len()
    );
    for part in [
        path.to_str().expect("text"),
        "in volume vol",
        "asked by",
        "set 0",
    ] {
        assert!(lines[0].contains(part), "no '{part}' in {}", lines[0]);
    }
    tool::wait_for("the count of the others", Duration::from_secs(15), || {
        let log = mount_log(&daemon);
        let more = log.contains("more calls of write in volume vol ended with ENOSPC");
        (more || log.contains("more since the last such line")).then_some(())
    });
}

#[test]
fn an_absent_server_is_in_the_log_with_the_cause() {
    let (mut daemon, mount) = volume();
    daemon.mortar_ok(&["volume", "set", "vol", "network.frame-timeout", "2"]);
    fs::create_dir(mount.join("dir")).expect("mkdir");
    daemon.kill();
    let error = fs::read(mount.join("dir/absent")).expect_err("no server");
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    let log = mount_log(&daemon);
    let line = log
        .lines()
        .find(|line| line.contains("ENOTCONN: lookup"))
        .unwrap_or_else(|| panic!("no line:\n{log}"));
    let named = format!("{}/dir", mount.path().display());
    assert!(
        line.contains(&named) && line.contains("set 0: no answer for"),
        "{line}"
    );
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("dump")).expect("JSON")
}

/// Makes a process write its state; gives it.
fn dump(pid: u32, path: &Path) -> Value {
    let _ = fs::remove_file(path);
    tool::signal(pid, libc::SIGUSR1);
    tool::wait_for("the state", SOON, || path.exists().then_some(()));
    json(path)
}

#[test]
fn a_mount_says_what_it_waits_for() {
    let (daemon, mount) = volume();
    let path = mount.join("file");
    fs::write(&path, b"text").expect("write");
    let state_file = daemon.dir().join("mount.state.json");
    // A process of its own: others that this one starts would wait for the mount when they close the file.
    let script = "import os, sys\n\
        f = os.open(sys.argv[1], os.O_RDWR)\n\
        print('open', flush=True); sys.stdin.readline()\n\
        os.pwrite(f, b'x', 0); os.fsync(f)\n";
    let mut waiting = Command::new("python3")
        .args(["-c", script])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3");
    let output = waiting.stdout.take().expect("output");
    let mut said = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut said).expect("line");
    tool::signal(daemon.pid(), libc::SIGSTOP);
    let mut input = waiting.stdin.take().expect("input");
    input.write_all(b"go\n").expect("input");
    let mut waiting = Running(waiting);
    let state = tool::wait_for("a waiting fsync", SOON, || {
        let state = dump(client_pid(&mount), &state_file);
        let all = state["requests_in_flight"].as_array().expect("list");
        let found = all.iter().any(|flight| flight["operation"] == "fsync");
        found.then_some(state)
    });
    let flight = &state["requests_in_flight"][0];
    assert!(flight["age_ms"].as_u64().expect("age") < 60_000, "{state}");
    let waits_for = flight["waits_for"].as_str().expect("text");
    assert!(
        ["set 0", "held changes"]
            .iter()
            .any(|part| waits_for.contains(part)),
        "{waits_for}"
    );
    assert_eq!(state["volume"], "vol");
    assert_eq!(state["sets"].as_array().expect("sets").len(), 1);
    assert!(state["held_bytes"].as_u64().expect("bytes") > 0, "{state}");
    tool::wait_for("a line for the slow request", SOON, || {
        let log = mount_log(&daemon);
        log.contains("fsync of inode").then_some(())
    });
    tool::signal(daemon.pid(), libc::SIGCONT);
    let status = waiting.0.wait().expect("wait");
    assert!(status.success(), "the fsync is answered");
    let log = mount_log(&daemon);
    let slow = log.lines().filter(|line| line.contains("fsync of inode"));
    assert_eq!(slow.count(), 1, "told once:\n{log}");
    let state = dump(client_pid(&mount), &state_file);
    assert_eq!(state["requests_in_flight"], Value::Array(vec![]));
    let mode = fs::metadata(&state_file).expect("stat").mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn mortard_says_what_it_has_in_hand() {
    let (daemon, mount) = volume();
    let two = Mount::new(&daemon, "vol");
    fs::write(mount.join("lock"), b"x").expect("write");
    let open = |mount: &Mount| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(mount.join("lock"))
            .expect("open")
    };
    let (held, other) = (open(&mount), open(&two));
    use rustix::fs::{FlockOperation, flock};
    flock(&held, FlockOperation::LockExclusive).expect("lock");
    let waiter = std::thread::spawn(move || flock(&other, FlockOperation::LockExclusive));
    let path = daemon.dir().join("data/state.json");
    let state = tool::wait_for("the waiting lock", SOON, || {
        let state = dump(daemon.pid(), &path);
        let all = state["requests_in_flight"]
            .as_array()
            .expect("list")
            .clone();
        let waits = |flight: &Value| flight["waits_for"] == "a lock that another owner holds";
        all.iter().any(waits).then_some(state)
    });
    let bricks = state["bricks"].as_array().expect("bricks");
    assert_eq!(bricks.len(), 3);
    let primary: Vec<_> = bricks
        .iter()
        .filter(|brick| brick["primary"] == true)
        .collect();
    assert_eq!(primary.len(), 1, "{state}");
    assert_eq!(primary[0]["locked_files"], 1);
    assert_eq!(primary[0]["sessions"].as_array().expect("list").len(), 2);
    assert_eq!(primary[0]["members"].as_array().expect("list").len(), 3);
    for field in ["log_head", "log_flushed", "log_applied", "checkpoint"] {
        assert!(primary[0][field].is_string(), "{field}: {state}");
    }
    assert_eq!(state["volumes"][0]["name"], "vol");
    let pending = state["pending"].as_array().expect("used and bound");
    assert_eq!(pending[1], 64 << 20, "{state}");
    // The mount that waits says so too.
    let own = dump(client_pid(&two), &daemon.dir().join("mount.state.json"));
    let waits_for = &own["requests_in_flight"][0]["waits_for"];
    assert_eq!(waits_for, "a lock that another owner holds", "{own}");
    flock(&held, FlockOperation::Unlock).expect("unlock");
    waiter.join().expect("thread").expect("lock");
}

#[test]
fn stats_count_what_was_asked() {
    let (daemon, mount) = volume();
    let file = File::create(mount.join("file")).expect("create");
    for at in 0..100 {
        file.write_all_at(b"some bytes", at * 10).expect("write");
        file.sync_data().expect("fsync");
    }
    let dir = mount.path().to_str().expect("text");
    let table = daemon.mortar_ok(&["stats", dir]);
    let line = |name: &str| {
        let line = table.lines().find(|line| line.starts_with(name));
        let words = line.unwrap_or_else(|| panic!("no {name}:\n{table}"));
        words
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(line("fsync ")[1], "100");
    assert_eq!(line("write ")[1], "100");
    assert_eq!(line("create ")[1..3], ["1", "0"]);
    let of = |what: &str| -> Vec<Value> {
        let text = daemon.mortar_ok(&["stats", "--json", what]);
        serde_json::from_str(&text).expect("JSON")
    };
    let fsync = |all: &[Value]| all.iter().find(|op| op["name"] == "fsync").cloned();
    let fsync = fsync(&of(dir)).expect("fsync");
    let number = |name: &str| fsync[name].as_u64().expect("number");
    assert!(number("p50_ns") > 10_000, "a flush takes longer: {fsync}");
    assert!(number("p50_ns") <= number("p99_ns") && number("p99_ns") <= number("max_ns"));
    let server = of("vol");
    let change = server
        .iter()
        .find(|op| op["name"] == "change")
        .expect("change");
    assert!(change["count"].as_u64().expect("number") >= 100, "{change}");
    // Errors are counted: a name that is not there is one.
    fs::metadata(mount.join("absent")).expect_err("absent");
    let lookups = of(dir);
    let lookup = lookups
        .iter()
        .find(|op| op["name"] == "lookup")
        .expect("lookup");
    assert!(lookup["failed"].as_u64().expect("number") >= 1, "{lookup}");

    let mut names = vec![0; 1000];
    let len = rustix::fs::listxattr(mount.path(), names.as_mut_slice()).expect("list");
    assert!(!String::from_utf8_lossy(&names[..len]).contains("mortar"));
    for name in ["trusted.mortar.stats", "mortar.stats"] {
        let flags = rustix::fs::XattrFlags::empty();
        let refused = rustix::fs::setxattr(mount.path(), name, b"x", flags);
        assert_eq!(refused, Err(rustix::io::Errno::OPNOTSUPP), "{name}");
    }
    let out = daemon.mortar(&["stats", daemon.dir().to_str().expect("text")]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("not on a mount of Mortar"));
    let out = daemon.mortar(&["stats", "nope"]);
    assert_eq!(
        String::from_utf8_lossy(&out.stderr),
        "mortar stats: Volume nope does not exist\n"
    );
    assert_eq!(out.status.code(), Some(1));
}

#[test]
fn mounts_have_the_options_they_were_given() {
    let (daemon, mount) = volume();
    let options = kernel_options(&mount);
    let has = |options: &[String], option: &str| options.iter().any(|found| found == option);
    assert!(has(&options, "default_permissions"), "{options:?}");
    if is_root() {
        assert!(has(&options, "allow_other"), "{options:?}");
        assert!(
            !has(&options, "nosuid") && !has(&options, "nodev"),
            "{options:?}"
        );
    }
    fs::write(mount.join("program"), "#!/bin/sh\nexit 0\n").expect("write");
    fs::set_permissions(mount.join("program"), PermissionsExt::from_mode(0o755)).expect("chmod");
    let run = || Command::new(mount.join("program")).status();
    assert!(run().expect("runs").success());
    mount.umount();

    mount.mount(&daemon, "vol", "ro,noatime,nodev,nosuid,noexec,acl");
    let options = kernel_options(&mount);
    for option in ["ro", "noatime", "nodev", "nosuid", "noexec"] {
        assert!(has(&options, option), "{option} of {options:?}");
    }
    let refused = fs::write(mount.join("new"), b"x").expect_err("read-only");
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    let refused = run().expect_err("noexec");
    assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    mount.umount();

    // Without a slash; caches that last as long as told.
    let server = daemon.server();
    let (host, port) = server.rsplit_once(':').expect("host:port");
    let dir = mount.path().to_str().expect("text");
    let words = format!(
        "server-port={port},log-file={},attribute-timeout=600,entry-timeout=600,negative-timeout=600",
        daemon.dir().join("mount.log").display()
    );
    daemon.mortar_ok(&["mount", &format!("{host}:vol"), dir, "-o", &words]);
    assert!(mount.is_mounted());
    fs::metadata(mount.join("program")).expect("stat");
    fs::metadata(mount.join("absent")).expect_err("absent");
    let fresh = Mount::with_options(
        &daemon,
        "vol",
        "attribute-timeout=0,entry-timeout=0,negative-timeout=0",
    );
    fs::metadata(fresh.join("absent")).expect_err("absent");
    fs::set_permissions(fresh.join("program"), PermissionsExt::from_mode(0o700)).expect("chmod");
    fs::write(fresh.join("absent"), b"").expect("create");
    let mode = |mount: &Mount| fs::metadata(mount.join("program")).expect("stat").mode() & 0o777;
    assert_eq!((mode(&mount), mode(&fresh)), (0o755, 0o700));
    assert!(fs::metadata(mount.join("absent")).is_err());
    assert!(fs::metadata(fresh.join("absent")).is_ok());
}

#[test]
fn reads_change_atime_only_where_volume_and_mount_say_so() {
    let (daemon, mount) = volume();
    let quiet = Mount::with_options(&daemon, "vol", "noatime");
    for name in ["default", "noatime", "read"] {
        fs::write(mount.join(name), name).expect("write");
    }
    let other = Mount::new(&daemon, "vol");
    let times = |name: &str| {
        let meta = fs::metadata(mount.join(name)).expect("stat");
        [
            (meta.atime(), meta.atime_nsec()),
            (meta.mtime(), meta.mtime_nsec()),
            (meta.ctime(), meta.ctime_nsec()),
        ]
    };
    // Not from the kernel's pages, which nobody else sees.
    let read = |mount: &Mount, name: &str| {
        let file = File::open(mount.join(name)).expect("open");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("drop pages");
        file.read_exact_at(&mut [0], 0).expect("read");
    };
    let before = ["default", "noatime", "read"].map(times);
    read(&other, "default");
    daemon.mortar_ok(&["volume", "set", "vol", "ctime.noatime", "off"]);
    // The option reaches the mounts within seconds.
    let moved = tool::wait_for("another atime", 2 * SOON, || {
        read(&quiet, "noatime");
        read(&other, "read");
        let now = times("read");
        (now[0] > now[1]).then_some(now)
    });
    assert_eq!(moved[1..], before[2][1..]);
    assert_eq!(times("default"), before[0]);
    assert_eq!(times("noatime"), before[1]);
}

#[test]
fn the_root_belongs_to_who_made_the_volume_and_keeps_its_mode() {
    let (mut daemon, mount) = volume();
    let root = || fs::metadata(mount.path()).expect("stat");
    let own = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    assert_eq!(
        (root().uid(), root().gid(), root().mode() & 0o7777),
        (own.0, own.1, 0o755)
    );
    fs::set_permissions(mount.path(), PermissionsExt::from_mode(0o2775)).expect("chmod");
    if is_root() {
        std::os::unix::fs::chown(mount.path(), Some(1234), Some(777)).expect("chown");
    }
    let before = (root().uid(), root().gid(), root().mode());
    daemon.terminate();
    daemon.restart();
    mount.umount();
    mount.mount(&daemon, "vol", "");
    assert_eq!((root().uid(), root().gid(), root().mode()), before);
    // Reading changes no access time.
    fs::write(mount.join("f"), b"text").expect("write");
    let times = |name: &str| {
        let meta = fs::metadata(mount.join(name)).expect("stat");
        (meta.atime(), meta.atime_nsec())
    };
    let before = times("f");
    fs::read(mount.join("f")).expect("read");
    mount.umount();
    mount.mount(&daemon, "vol", "");
    fs::read(mount.join("f")).expect("read");
    assert_eq!(times("f"), before);
}

#[test]
fn an_empty_data_directory_is_taken_and_closed_to_others() {
    let dir = tempfile::tempdir().expect("directory");
    let start = |data: &Path| {
        Command::new(bin_dir().join("mortard"))
            .arg("--data-dir")
            .arg(data)
            .arg("--secret-file")
            .arg(dir.path().join("secret"))
            .args(["--listen", "127.0.0.1:0", "--api", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stderr(File::create(dir.path().join("log")).expect("log"))
            .spawn()
            .expect("mortard")
    };
    let data = dir.path().join("data");
    fs::create_dir(&data).expect("mkdir");
    fs::set_permissions(&data, PermissionsExt::from_mode(0o755)).expect("chmod");
    let running = Running(start(&data));
    let log = || text(&dir.path().join("log"));
    tool::wait_for("the daemon", SOON, || {
        log().contains("mortard serves").then_some(())
    });
    assert!(log().contains("its mode is 0700 now"), "{}", log());
    assert_eq!(fs::metadata(&data).expect("stat").mode() & 0o777, 0o700);
    drop(running);
    let used = dir.path().join("used");
    fs::create_dir(&used).expect("mkdir");
    fs::set_permissions(&used, PermissionsExt::from_mode(0o755)).expect("chmod");
    fs::write(used.join("something"), b"").expect("write");
    let status = Running(start(&used)).0.wait().expect("wait");
    assert_eq!(status.code(), Some(1));
    assert!(log().contains("chmod 700"), "{}", log());
    assert_eq!(fs::metadata(&used).expect("stat").mode() & 0o777, 0o755);
}
