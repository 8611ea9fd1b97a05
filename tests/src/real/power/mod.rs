//! A virtual machine whose power fails: Debian's kernel in QEMU, the executables under test in its initramfs, its disks
//! in this process ([`disk`]). It says on its console what was promised to it.

pub mod content;
pub mod disk;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tempfile::TempDir;

use super::{bin_dir, tool};
use disk::Disk;

/// What the machine does once it has booted.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin
busybox mkdir -p /proc /sys /dev /tmp /run /data /mnt /etc /var/log
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do insmod $module; done
ifconfig lo 127.0.0.1 up
say() { printf '\n@ %s ;\n' "$*"; }
word() { for pair in $(cat /proc/cmdline); do case $pair in mortar.$1=*) echo ${pair#*=};; esac; done; }
die() { say failed "$*"; sleep 1000; }
mount -t ext4 /dev/vda /data || die mount of the data directory
mortard --data-dir /data/mortard --listen 127.0.0.1:24007 --api 127.0.0.1:24008 &
tries=0
until mortar volume list > /tmp/list 2>&1 || grep -q 'No volumes' /tmp/list; do
    tries=$((tries + 1)); [ $tries -lt 200 ] || { cat /tmp/list; die mortard; }; sleep 0.2
done
if [ "$(word boot)" = 1 ]; then
    mortar volume create vol $(word volume | tr , ' ') force || die create
    mortar volume start vol || die start
fi
mortar mount 127.0.0.1:/vol /mnt || die mount of the volume
say mounted
power show /mnt
dir=/mnt/boot$(word boot)
mkdir $dir
busybox sync $dir
power write $dir
die writers
"#;
/// Modules of the kernel that it needs, each behind those it needs itself.
const MODULES: [&str; 7] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "fuse",
];

/// The unpacked package of a kernel: `MORTAR_KERNEL_DIR`, else `target/power/kernel`, where `tests/run power` puts it.
fn kernel_dir() -> PathBuf {
    let dir = std::env::var_os("MORTAR_KERNEL_DIR").map(PathBuf::from);
    let dir = dir.unwrap_or_else(|| tool::source_tree().join("target/power/kernel"));
    assert!(
        dir.join("boot").exists(),
        "{} holds no kernel: `tests/run power` gets one, or set MORTAR_KERNEL_DIR",
        dir.display()
    );
    dir
}

fn find(dir: &Path, wanted: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    let mut entries: Vec<_> = fs::read_dir(dir).ok()?.filter_map(Result::ok).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let kind = entry.file_type().ok()?;
        let name = entry.file_name();
        if kind.is_dir() {
            if let Some(found) = find(&entry.path(), wanted) {
                return Some(found);
            }
        } else if wanted(&name.to_string_lossy()) {
            return Some(entry.path());
        }
    }
    None
}

/// Executables and the libraries they name, in a tree below `root`.
fn install(root: &Path, programs: &[PathBuf]) {
    let copy = |from: &Path, to: PathBuf| {
        fs::create_dir_all(to.parent().expect("a directory")).expect("mkdir");
        fs::copy(from, &to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        to
    };
    for program in programs {
        let name = program.file_name().expect("a name");
        let to = copy(program, root.join("bin").join(name));
        tool::run_in(root, "strip", &[to.to_str().expect("text")]);
        let out = tool::run_in(root, "ldd", &[program.to_str().expect("text")]);
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        for path in said.split_whitespace().filter(|word| word.starts_with('/')) {
            copy(Path::new(path), root.join(&path[1..]));
        }
    }
}

/// Packs the initramfs.
fn initramfs(dir: &Path, guest: &Path) -> PathBuf {
    let (root, kernel) = (dir.join("root"), kernel_dir());
    for sub in ["bin", "modules"] {
        fs::create_dir_all(root.join(sub)).expect("mkdir");
    }
    fs::write(root.join("init"), INIT).expect("init");
    tool::run_in(&root, "chmod", &["755", "init"]);
    let bin = bin_dir();
    install(
        &root,
        &[bin.join("mortard"), bin.join("mortar"), guest.to_owned()],
    );
    fs::copy("/bin/busybox", root.join("bin/busybox"))
        .expect("busybox-static (tests/run installs it)");
    for (at, module) in MODULES.iter().enumerate() {
        let wanted = format!("{module}.ko");
        // One that is not there is part of the kernel.
        if let Some(from) = find(&kernel.join("lib/modules"), &|name| name == wanted) {
            fs::copy(from, root.join(format!("modules/{at}-{wanted}"))).expect("a module");
        }
    }
    let pack = "find . | busybox cpio -o -H newc > ../initramfs 2> /dev/null";
    tool::run_in(&root, "sh", &["-c", pack]);
    dir.join("initramfs")
}

/// A line of the console, and when it came.
pub type Said = (Instant, String);

/// A machine that can be switched on and whose power can be cut.
pub struct Machine {
    dir: TempDir,
    kernel: PathBuf,
    initramfs: PathBuf,
    disks: Vec<Disk>,
    volume: String,
    running: Option<Child>,
    boots: u32,
    console: Arc<Mutex<Vec<String>>>,
    said: Arc<Mutex<Vec<Said>>>,
}

#[allow(clippy::disallowed_methods)] // a real machine needs the real clock
impl Machine {
    /// A machine with a disk for data directories (/dev/vda) and empty ones of so many MiB (/dev/vdb and on), on which a
    /// volume of these words is made at the first boot. `guest` is the program that writes.
    pub fn new(guest: &Path, mib: &[u64], volume: &str) -> Self {
        let dir = TempDir::with_prefix("mortar-power-").expect("temporary directory");
        let mut disks = Vec::new();
        for (at, mib) in [640].iter().chain(mib).enumerate() {
            let path = dir.path().join(format!("disk{at}"));
            let file = fs::File::create(&path).expect("a disk");
            file.set_len(mib << 20).expect("a disk");
            if at == 0 {
                let path = path.to_str().expect("text");
                tool::run_in(dir.path(), "/sbin/mkfs.ext4", &["-q", "-F", path]);
            }
            disks.push(Disk::new(&path).expect("a disk"));
        }
        let kernel = find(&kernel_dir().join("boot"), &|name| {
            name.starts_with("vmlinuz")
        });
        Self {
            kernel: kernel.expect("a kernel"),
            initramfs: initramfs(dir.path(), guest),
            dir,
            disks,
            volume: volume.to_owned(),
            running: None,
            boots: 0,
            console: Arc::default(),
            said: Arc::default(),
        }
    }

    /// Switches it on; gives the number of the boot, from 1 on.
    pub fn boot(&mut self) -> u32 {
        self.boots += 1;
        self.said.lock().clear();
        self.console.lock().clear();
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-accel",
            "tcg,thread=multi",
            "-smp",
            "2",
            "-m",
            "640",
            "-cpu",
            "max",
        ])
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(["-serial", "stdio", "-kernel"])
        .arg(&self.kernel)
        .arg("-initrd")
        .arg(&self.initramfs)
        .arg("-append")
        .arg(format!(
            "console=ttyS0 quiet loglevel=2 panic=-1 mortar.boot={} mortar.volume={}",
            self.boots,
            self.volume.replace(' ', ",")
        ));
        for (at, disk) in self.disks.iter().enumerate() {
            let socket = self.dir.path().join(format!("socket{at}"));
            disk.serve(&socket).expect("a socket");
            qemu.arg("-blockdev").arg(format!(
                "driver=nbd,node-name=disk{at},server.type=unix,server.path={}",
                socket.display()
            ));
            qemu.args(["-device", &format!("virtio-blk-pci,drive=disk{at}")]);
        }
        let mut child = qemu
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("qemu-system-x86_64 (tests/run power installs it)");
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        let (console, said) = (self.console.clone(), self.said.clone());
        std::thread::spawn(move || {
            for line in out.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim().to_owned();
                let word = line
                    .strip_prefix("@ ")
                    .and_then(|rest| rest.strip_suffix(" ;"));
                if let Some(word) = word {
                    said.lock().push((Instant::now(), word.to_owned()));
                } else if !line.is_empty() {
                    console.lock().push(line);
                }
            }
        });
        self.running = Some(child);
        self.boots
    }

    /// What it has said since it was switched on.
    pub fn said(&self) -> Vec<Said> {
        self.said.lock().clone()
    }

    /// The end of its console, for messages of failures.
    pub fn console(&self) -> String {
        let console = self.console.lock();
        console[console.len().saturating_sub(40)..].join("\n")
    }

    /// Waits until it has said something that begins so.
    ///
    /// # Panics
    /// If it says that something failed, or nothing for long.
    pub fn wait_for(&mut self, what: &str) {
        let start = Instant::now();
        loop {
            let said = self.said();
            if let Some((_, failure)) = said.iter().find(|(_, line)| line.starts_with("failed")) {
                panic!("{failure}\n{}", self.console());
            }
            if said.iter().any(|(_, line)| line.starts_with(what)) {
                return;
            }
            let late = start.elapsed() > Duration::from_secs(120);
            let ended = self
                .running
                .as_mut()
                .is_some_and(|child| child.try_wait().is_ok_and(|end| end.is_some()));
            assert!(
                !late && !ended,
                "no '{what}' (ended: {ended})\n{}",
                self.console()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Cuts its power; gives when, and how many sectors had not been flushed.
    pub fn cut(&mut self, random: &mut rand_chacha::ChaCha8Rng) -> (Instant, usize) {
        let mut child = self.running.take().expect("it runs");
        child.kill().expect("kill");
        let moment = Instant::now();
        child.wait().expect("qemu ends");
        let lost = self
            .disks
            .iter()
            .map(|disk| disk.cut(random).expect("the disk"));
        (moment, lost.sum())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut child) = self.running.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
