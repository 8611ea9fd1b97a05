//! What people run on a file system, on a mount of whatever volume: POSIX suites, fio, git, sqlite.
//!
//! Each takes the directory it works in, and where it needs one a directory outside the mount for files of its own. The
//! suites of one daemon and those of a cluster call the same functions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::tool;

/// Tests of pjdfstest that do not pass, each with its reason.
const EXCLUDED: &[(&str, &str)] = &[(
    "open::etxtbsy",
    "with FUSE's ATOMIC_O_TRUNC the kernel has the file truncated by open(O_RDONLY|O_TRUNC) before it looks whether \
     the program runs; where that kills the program first, the open succeeds",
)];

/// All of pjdfstest (the Rust one, installed by `tests/run`). Needs root; says so and does nothing without.
pub fn pjdfstest(dir: &Path, own: &Path) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: pjdfstest changes users, which needs root");
        return;
    }
    let config = own.join("pjdfstest.toml");
    fs::write(
        &config,
        "[features]\nposix_fallocate = {}\nrename_ctime = {}\nutimensat = {}\nutime_now = {}\n\
         [settings]\nnaptime = 0.01\nallow_remount = false\n\
         [dummy_auth]\nentries = [ [\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"], [\"games\", \"games\"] ]\n",
    )
    .expect("config");
    let out = Command::new("pjdfstest")
        .arg("-c")
        .arg(&config)
        .arg("-p")
        .arg(dir)
        .output()
        .expect("pjdfstest runs (tests/run installs it)");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let failed: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("FAILED"))
        .filter(|line| !EXCLUDED.iter().any(|(name, _)| line.contains(name)))
        .collect();
    eprintln!("{}", tool::tail(&out.stdout));
    assert!(
        out.status.success() || (failed.is_empty() && text.contains("Summary:")),
        "pjdfstest: {}\n{}",
        failed.join("\n"),
        tool::tail(&out.stderr)
    );
}

/// fsx (the Rust one, installed by `tests/run`) with so many operations, or `FSX_OPERATIONS`. In parts, with a seed each:
/// fsx keeps every mapping it makes, and slows down with their number.
pub fn fsx(dir: &Path, own: &Path, operations: u32) {
    const PARTS: u32 = 8;
    let operations = std::env::var("FSX_OPERATIONS").map_or(operations, |text| {
        text.parse().expect("FSX_OPERATIONS is a number")
    });
    let part = operations.div_ceil(PARTS).to_string();
    let config = own.join("fsx.toml");
    fs::write(&config, "flen = 262144\n[weights]\nread = 10\nwrite = 10\nmapread = 5\nmapwrite = 5\ntruncate = 3\n\
        invalidate = 1\nclose_open = 1\nfsync = 1\nfdatasync = 1\npunch_hole = 2\nposix_fallocate = 1\ncopy_file_range = 2\n")
        .expect("config");
    for seed in 42..42 + PARTS {
        let (seed, file) = (seed.to_string(), format!("fsx-file-{seed}"));
        let config = config.to_str().expect("text");
        let words = ["-f", config, "-N", &part, "-S", &seed, &file];
        tool::run_in(dir, "fsx", &words);
    }
}

/// A repository of sources is cloned in, checked, changed, packed and checked again.
pub fn git(dir: &Path) {
    let origin = tempfile::tempdir().expect("directory");
    let git = |at: &Path, args: &[&str]| {
        let who = ["-c", "user.name=t", "-c", "user.email=t@example.org"];
        tool::run_in(at, "git", &[&who, args].concat())
    };
    git(origin.path(), &["init", "-q", "."]);
    let to = origin.path().to_str().expect("text");
    tool::run_in(tool::source_tree(), "cp", &["-a", "protocol", "server", to]);
    git(origin.path(), &["add", "-A"]);
    git(origin.path(), &["commit", "-qm", "all"]);
    let clone = dir.join("clone");
    git(dir, &["clone", "-q", &format!("file://{to}"), "clone"]);
    git(&clone, &["fsck", "--full", "--strict"]);
    fs::write(clone.join("new"), "text").expect("write");
    git(&clone, &["add", "-A"]);
    git(&clone, &["commit", "-qm", "more"]);
    git(&clone, &["gc", "-q"]);
    git(&clone, &["fsck", "--full", "--strict"]);
    let status = git(&clone, &["status", "--porcelain"]);
    assert!(status.stdout.is_empty(), "{}", tool::tail(&status.stdout));
}

/// Many changes of a database in both journal modes.
pub fn sqlite(dir: &Path) {
    for mode in ["delete", "wal"] {
        let script = format!(
            "pragma journal_mode={mode}; create table t(a integer primary key, b blob);\n\
             with recursive n(i) as (select 1 union all select i+1 from n where i<5000)\n\
             insert into t select i, randomblob(200) from n;\n\
             update t set b = randomblob(300) where a % 3 = 0; delete from t where a % 5 = 0; vacuum;\n\
             pragma integrity_check; select count(*) from t;"
        );
        let name = format!("{mode}.db");
        let out = tool::run_in(dir, "sqlite3", &[&name, &script]);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(
            text.lines().any(|line| line == "ok") && text.ends_with("4000\n"),
            "{mode}: {text}"
        );
    }
}

/// Transactions of two processes on one database, each in its own directory (of one mount, or of two): money goes from
/// account to account, and each transfer is noted.
pub fn sqlite_in_two_processes(dirs: [&Path; 2]) {
    const ACCOUNTS: u32 = 20;
    const TRANSFERS: u32 = 150;
    let db = "shared.db";
    let setup = format!(
        "create table account(id integer primary key, money integer);\n\
         create table transfer(id integer primary key, who text, number integer);\n\
         with recursive n(i) as (select 1 union all select i+1 from n where i<{ACCOUNTS})\n\
         insert into account select i, 1000 from n;"
    );
    tool::run_in(dirs[0], "sqlite3", &[db, &setup]);
    let start = |who: usize| -> Child {
        let mut script = String::from(".bail on\n.timeout 60000\n");
        for number in 0..TRANSFERS {
            let from = (number * 7 + who as u32 * 3) % ACCOUNTS + 1;
            let to = from % ACCOUNTS + 1;
            script.push_str(&format!(
                "begin immediate;\n\
                 update account set money = money - 5 where id = {from};\n\
                 insert into transfer(who, number) values ('p{who}', {number});\n\
                 update account set money = money + 5 where id = {to};\n\
                 commit;\n"
            ));
        }
        let file = tempfile::NamedTempFile::new().expect("script");
        fs::write(file.path(), script).expect("script");
        let input = fs::File::open(file.path()).expect("script");
        Command::new("sqlite3")
            .arg(db)
            .current_dir(dirs[who])
            .stdin(input)
            .spawn()
            .expect("sqlite3 (tests/run installs it)")
    };
    let both = [start(0), start(1)];
    for mut process in both {
        assert!(process.wait().expect("wait").success(), "a process failed");
    }
    for dir in dirs {
        let question = "pragma integrity_check; select sum(money) from account;\n\
             select who, count(*), count(distinct number) from transfer group by who order by who;";
        let out = tool::run_in(dir, "sqlite3", &[db, question]);
        assert_eq!(
            String::from_utf8_lossy(&out.stdout),
            format!(
                "ok\n{}\np0|{TRANSFERS}|{TRANSFERS}\np1|{TRANSFERS}|{TRANSFERS}\n",
                ACCOUNTS * 1000
            )
        );
    }
}

/// How much larger fio's files are than in the usual tests.
pub fn fio_scale() -> u64 {
    std::env::var("FIO_SCALE")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1)
}

/// fio's job files in `benches/jobs`, but for the one that needs a volume of its own.
pub fn fio_job_files() -> Vec<PathBuf> {
    let dir = tool::source_tree().join("benches/jobs");
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .expect("job files")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "fio"))
        .filter(|path| path.file_stem().is_some_and(|stem| stem != "large"))
        .collect();
    files.sort();
    assert_eq!(files.len(), 6, "{files:?}");
    files
}

/// Runs a job file in a directory; panics with fio's words if it finds anything wrong. What fio keeps of its own goes
/// to `own`.
pub fn fio(dir: &Path, own: &Path, jobs: &Path, more: &[&str]) {
    let (scale, shown) = (fio_scale(), jobs.display());
    let out = Command::new("fio")
        .arg(format!("--directory={}", dir.display()))
        .arg("--minimal")
        .arg(format!("--aux-path={}", own.display()))
        .args(more)
        .arg(jobs)
        .env("SIZE", format!("{scale}M"))
        .env("FILES", (40 * scale).to_string())
        .env("LARGE", format!("{}M", 320 * scale.min(2)))
        .stdin(Stdio::null())
        .output()
        .expect("fio (tests/run installs it)");
    assert!(
        out.status.success(),
        "{shown} {more:?}:\n{}\n{}",
        tool::tail(&out.stderr),
        tool::tail(&out.stdout)
    );
}

/// Runs all job files, each in a directory of its name below `dir`; with `--verify_only` they are only verified.
pub fn fio_jobs(dir: &Path, own: &Path, more: &[&str]) {
    for jobs in &fio_job_files() {
        let name = jobs.file_stem().and_then(|stem| stem.to_str());
        let place = dir.join(name.expect("text"));
        if !more.contains(&"--verify_only") {
            fs::create_dir(&place).expect("mkdir");
        }
        fio(&place, own, jobs, more);
    }
}

/// What fio writes in several ways, verified at once.
pub fn fio_verify(dir: &Path) {
    for (name, extra) in [
        ("buffered", vec!["--rw=randwrite", "--bs=4k-64k"]),
        (
            "direct",
            vec![
                "--rw=randwrite",
                "--bs=4k",
                "--direct=1",
                "--ioengine=libaio",
                "--iodepth=16",
            ],
        ),
        ("large", vec!["--rw=write", "--bs=1M"]),
        ("mixed", vec!["--rw=randrw", "--bs=1k-100k", "--fsync=32"]),
    ] {
        let name_argument = format!("--name={name}");
        let mut args = vec![
            name_argument.as_str(),
            "--size=48M",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--end_fsync=1",
            "--randseed=7",
            "--fallocate=none",
        ];
        args.extend(extra.iter());
        tool::run_in(dir, "fio", &args);
    }
}
