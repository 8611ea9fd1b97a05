//! Programs as people run them, on a mount: git, cargo, sqlite, fio; and the example program of the library.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use mortar_tests::real::{Daemon, Kind, Mount, bin_dir, suites, tool};

fn replicated() -> (Daemon, Mount) {
    let daemon = Daemon::with_volume(Kind::Replica(3), "1G");
    let mount = Mount::new(&daemon, "vol");
    (daemon, mount)
}

#[test]
fn git_clone_and_fsck() {
    let (_daemon, mount) = replicated();
    suites::git(mount.path());
}

#[test]
fn cargo_builds_a_small_crate() {
    let (_daemon, mount) = replicated();
    let dir = mount.join("small");
    fs::create_dir_all(dir.join("src")).expect("mkdir");
    fs::write(
        dir.join("Cargo.toml"),
        "[package]\nname = \"small\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n",
    )
    .expect("write");
    fs::write(
        dir.join("src/main.rs"),
        "fn main() { println!(\"{}\", small::answer()); }\n",
    )
    .expect("write");
    fs::write(dir.join("src/lib.rs"), "pub fn answer() -> u32 { 42 }\n").expect("write");
    tool::run_in(
        &dir,
        "cargo",
        &["build", "--offline", "--target-dir", "target"],
    );
    let out = tool::run_in(&dir, "target/debug/small", &[]);
    assert_eq!(out.stdout, b"42\n");
    fs::write(dir.join("src/lib.rs"), "pub fn answer() -> u32 { 43 }\n").expect("write");
    let out = tool::run_in(
        &dir,
        "cargo",
        &["run", "-q", "--offline", "--target-dir", "target"],
    );
    assert_eq!(out.stdout, b"43\n");
}

#[test]
fn sqlite_in_both_journal_modes() {
    let (_daemon, mount) = replicated();
    suites::sqlite(mount.path());
    suites::sqlite_in_two_processes([mount.path(); 2]);
    mount.umount();
}

#[test]
fn fio_verifies_what_it_wrote() {
    let (_daemon, mount) = replicated();
    suites::fio_verify(mount.path());
}

/// Runs `copy_in` as its documentation says.
fn copy_in(daemon: &Daemon, source: &Path, target: &str) -> Output {
    let program = bin_dir().join("examples/copy_in");
    Command::new(&program)
        .args([&daemon.server(), "vol"])
        .arg(source)
        .arg(target)
        .output()
        .unwrap_or_else(|err| {
            panic!(
                "{}: {err}; run `cargo build --workspace --all-targets` first",
                program.display()
            )
        })
}

#[test]
fn the_example_program_copies_a_tree_in() {
    let source = tempfile::tempdir().expect("directory");
    let tree = tool::source_tree();
    tool::run_in(
        tree,
        "cp",
        &[
            "-a",
            "client",
            "docs",
            source.path().to_str().expect("text"),
        ],
    );
    fs::create_dir(source.path().join("empty")).expect("mkdir");
    fs::write(source.path().join("nothing"), b"").expect("write");
    std::os::unix::fs::symlink("docs/../client", source.path().join("link")).expect("symlink");
    let large: Vec<u8> = (0..3 << 20).map(|at: u32| ((at * 7) >> 3) as u8).collect();
    fs::write(source.path().join("large"), large).expect("write");
    tool::run_in(source.path(), "chmod", &["-R", "u=rwX,go=rX", "."]);
    fs::set_permissions(
        source.path().join("nothing"),
        fs::Permissions::from_mode(0o4751),
    )
    .expect("chmod");

    for kind in [Kind::Replica(3), Kind::Distribute(2)] {
        let daemon = Daemon::with_volume(kind, "512M");
        let out = copy_in(&daemon, source.path(), "/in/to");
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(
            out.status.success() && said.starts_with("copied and verified: "),
            "{said}{}",
            tool::tail(&out.stderr)
        );
        // What another way shows is what was copied: names, modes, link targets and contents.
        let mount = Mount::new(&daemon, "vol");
        assert_eq!(
            tool::tree_hash(&mount.join("in/to")),
            tool::tree_hash(source.path()),
            "{kind:?}"
        );
        // A file that is there already is no success.
        let again = copy_in(&daemon, source.path(), "/in/to");
        assert!(
            !again.status.success() && String::from_utf8_lossy(&again.stderr).contains("EEXIST"),
            "{}",
            tool::tail(&again.stderr)
        );
    }
}
