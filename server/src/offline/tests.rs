//! The commands on bricks that a store wrote: a volume of two sets, one of them with two copies.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use clap::Parser;
use mortar_protocol::attr::{FileKind, Time};
use mortar_protocol::entry::{Effect, Entry, EntryKind, Object};
use mortar_protocol::env::Mono;
use mortar_protocol::ids::{
    BrickId, ClusterId, Epoch, Gfid, InodeId, NodeId, Pos, Seq, SessionId, SetId, SetIndex,
    StageId, VolumeId,
};
use mortar_protocol::limits::BLOCK;
use mortar_protocol::view::SetKind;

use super::cli::{Args, execute_args};
use crate::device::{CreateOptions, Device, Engine, FileDevice};
use crate::namespace::records::{
    DirPart, Dirent, Inode, dirent_key, encode, inode_key, part_key, shard_key, xattr_key,
};
use crate::store::{FormatParams, Store};
use crate::superblock::MIN_SIZE;

const SHARD: u64 = 1 << 20;

/// A brick being written.
struct Writer {
    path: PathBuf,
    store: Store,
    seq: u64,
}

impl Writer {
    fn new(dir: &Path, name: &str, set: u32) -> Self {
        let engine = Engine::with_threads();
        let path = dir.join(name);
        let options = CreateOptions {
            size: Some(MIN_SIZE),
            least: MIN_SIZE,
            force: false,
        };
        let device: Arc<dyn Device> =
            Arc::new(FileDevice::create(&path, &options, &engine).unwrap());
        let params = FormatParams {
            cluster: ClusterId(1),
            generation: 0,
            node: NodeId(2),
            brick: BrickId(u128::from(set) + 10),
            set: SetId {
                volume: VolumeId(3),
                index: SetIndex(set),
            },
            volume_name: "vol".to_owned(),
            kind: SetKind::Replicate { copies: 2 },
            shard_size: SHARD,
            force: false,
        };
        Store::format(&device, &params).unwrap();
        let store = Store::open(device).unwrap();
        Self {
            path,
            store,
            seq: 0,
        }
    }

    fn append(&mut self, effects: Vec<Effect>, body: Bytes) {
        self.seq += 1;
        let entry = Entry {
            pos: Pos {
                epoch: Epoch(4),
                seq: Seq(self.seq),
            },
            kind: EntryKind::Internal,
            effects,
            body,
        };
        self.store.append(&[Arc::new(entry)]).unwrap();
    }

    fn put(&mut self, key: Bytes, value: Bytes) {
        self.append(vec![Effect::Put { key, value }], Bytes::new());
    }

    /// An inode, and its name if it has one.
    fn inode(&mut self, id: u64, inode: &Inode, name: Option<(u64, &str)>) {
        self.put(inode_key(InodeId(id)), encode(inode));
        if inode.is_dir() {
            self.put(part_key(InodeId(id)), encode(&DirPart::default()));
        }
        if let Some((parent, name)) = name {
            self.name(parent, name, id, inode.kind);
        }
    }

    fn name(&mut self, parent: u64, name: &str, id: u64, kind: FileKind) {
        let gfid = Gfid {
            id: InodeId(id),
            generation: 1,
        };
        let key = dirent_key(InodeId(parent), name.as_bytes());
        self.put(key, encode(&Dirent { gfid, kind }));
    }

    fn write(&mut self, id: u64, shard: u32, offset: u64, data: Vec<u8>) {
        let effect = Effect::Write {
            object: Object {
                id: InodeId(id),
                shard,
            },
            offset,
            at: 0,
            len: data.len() as u32,
        };
        self.append(vec![effect], data.into());
    }

    fn stage(&mut self, id: u64, offset: u64, data: Vec<u8>) {
        let stage = StageId {
            session: SessionId(1),
            number: self.seq,
        };
        let crcs = data.chunks(BLOCK as usize).map(crc32fast::hash).collect();
        let (send, receive) = std::sync::mpsc::channel();
        let done = Box::new(move |result: std::io::Result<()>| send.send(result).unwrap());
        self.store.stage(stage, data.into(), done);
        receive.recv().unwrap().unwrap();
        let effect = Effect::Attach {
            object: Object {
                id: InodeId(id),
                shard: 0,
            },
            offset,
            stage,
            crcs,
        };
        self.append(vec![effect], Bytes::new());
    }

    /// Applies everything so far and makes it durable.
    fn settle(&mut self) {
        self.store.device().flush().unwrap();
        let head = self.store.head();
        self.store.on_flushed(head);
        self.store.announce(head.seq);
        self.store.want_checkpoint();
        let mut now = Mono(0);
        // The checkpoint runs on a worker thread: a generous bound in real time, however busy the machine is.
        for _ in 0..60_000 {
            now = now.after(std::time::Duration::from_secs(1));
            self.store.poll(now, &mut |_| Vec::new()).unwrap();
            if self.store.applied() == head && !self.store.checkpoint_runs() {
                return;
            }
            #[allow(clippy::disallowed_methods)]
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        panic!("the store does not settle");
    }
}

fn time(secs: i64) -> Time {
    Time { secs, nanos: 5 }
}

fn inode(kind: FileKind, perm: u32, size: u64) -> Inode {
    let gfid = Gfid {
        id: InodeId(1),
        generation: 1,
    };
    let mut inode = Inode::new(gfid, kind, perm, time(1_000_000_000));
    inode.nlink = if kind == FileKind::Dir { 2 } else { 1 };
    inode.size = size;
    (inode.uid, inode.gid) = (
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    inode
}

fn pattern(len: u64, seed: u8) -> Vec<u8> {
    let byte = |at: u64| seed ^ (at / 7) as u8 ^ (at >> 12) as u8;
    (0..len).map(byte).collect()
}

/// What the sample volume holds: contents by path.
fn contents() -> BTreeMap<&'static str, Vec<u8>> {
    let mut big = vec![0; 2 * SHARD as usize + 100];
    big[..70_000].copy_from_slice(&pattern(70_000, 1));
    big[2 * SHARD as usize..].copy_from_slice(&pattern(100, 2));
    let mut staged = pattern(256 << 10, 3);
    staged.truncate((256 << 10) - 10);
    BTreeMap::from([
        ("big", big),
        ("dir/small", b"hello".to_vec()),
        ("dir/staged", staged),
        ("late", b"after the checkpoint".to_vec()),
    ])
}

/// Set 0 holds everything but the names `dir` and what is below it, and the third shard of `big`. Of set 0 there are
/// two bricks.
fn sample(dir: &Path) -> [PathBuf; 3] {
    let files = contents();
    let mut copies = ["a", "b"].map(|name| Writer::new(dir, name, 0));
    for copy in &mut copies {
        copy.inode(1, &inode(FileKind::Dir, 0o755, 0), None);
        let mut big = inode(FileKind::File, 0o640, 2 * SHARD + 100);
        big.sharded = true;
        big.blocks = (18 + 1) * 8;
        big.nlink = 2;
        big.xattrs = 1;
        copy.inode(100, &big, Some((1, "big")));
        copy.put(
            xattr_key(InodeId(100), b"user.color"),
            Bytes::from_static(b"blue"),
        );
        copy.name(1, "big-too", 100, FileKind::File);
        copy.write(100, 0, 0, files["big"][..70_000].to_vec());
        copy.settle();
        let late = &files["late"];
        copy.inode(
            101,
            &inode(FileKind::File, 0o600, late.len() as u64),
            Some((1, "late")),
        );
        copy.write(101, 0, 0, late.clone());
    }
    let mut other = Writer::new(dir, "c", 1);
    other.put(part_key(InodeId(1)), encode(&DirPart::default()));
    other.inode(200, &inode(FileKind::Dir, 0o711, 0), Some((1, "dir")));
    other.inode(201, &inode(FileKind::File, 0o644, 5), Some((200, "small")));
    other.write(201, 0, 0, b"hello".to_vec());
    let staged = &files["dir/staged"];
    other.inode(
        202,
        &inode(FileKind::File, 0o644, staged.len() as u64),
        Some((200, "staged")),
    );
    other.stage(202, 0, pattern(256 << 10, 3));
    let mut link = inode(FileKind::Symlink, 0o777, 6);
    link.target = Bytes::from_static(b"../big");
    other.inode(203, &link, Some((200, "link")));
    other.inode(204, &inode(FileKind::Fifo, 0o600, 0), Some((200, "pipe")));
    other.put(shard_key(InodeId(100), 2), Bytes::new());
    other.write(100, 2, 0, pattern(100, 2));
    other.settle();
    let [a, b] = copies;
    [a.path, b.path, other.path]
}

/// Runs a command line; gives whether all was well, standard output and error (of a failure, the failure).
fn mortard_brick(words: &[&str], bricks: &[&Path]) -> (Option<bool>, Vec<u8>, String) {
    let words = std::iter::once("brick").chain(words.iter().copied());
    let mut line: Vec<std::ffi::OsString> = words.map(Into::into).collect();
    line.extend(bricks.iter().map(|path| path.into()));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let result = execute_args(Args::try_parse_from(line).unwrap(), &mut out, &mut err);
    let err = String::from_utf8(err).unwrap();
    match result {
        Ok(sound) => (Some(sound), out, err),
        Err(failure) => (None, out, failure),
    }
}

/// Changes every occurrence of a text in a brick's extent area.
fn spoil(brick: &Path, text: &[u8]) {
    let file = brick.join(crate::device::BRICK_FILE);
    let mut image = std::fs::read(&file).unwrap();
    let from = crate::superblock::Geometry::for_size(MIN_SIZE)
        .extents
        .offset as usize;
    let places: Vec<usize> = (from..image.len() - text.len())
        .step_by(BLOCK as usize)
        .filter(|at| image[*at..].starts_with(text))
        .collect();
    assert!(!places.is_empty());
    for place in places {
        image[place] ^= 1;
    }
    std::fs::write(file, image).unwrap();
}

#[test]
fn a_volume_is_exported_whole_from_one_brick_of_each_set() {
    let dir = tempfile::tempdir().unwrap();
    let [a, _, c] = sample(dir.path());
    let before = std::fs::metadata(a.join("mortar.brick")).unwrap().mtime();
    let to = dir.path().join("out");
    let to_text = to.to_str().unwrap();
    let (sound, out, err) = mortard_brick(&["export", "--to", to_text], &[&a, &c]);
    let out = String::from_utf8(out).unwrap();
    assert_eq!(sound, Some(true), "{out}{err}");
    assert!(out.starts_with("4 files"), "{out}");
    assert!(
        err.contains("set 0 as of 4.") && err.contains("set 1 as of 4."),
        "{err}"
    );
    for (path, expected) in contents() {
        assert!(std::fs::read(to.join(path)).unwrap() == expected, "{path}");
    }
    let big = std::fs::metadata(to.join("big")).unwrap();
    assert_eq!((big.mode() & 0o7777, big.nlink()), (0o640, 2));
    assert_eq!((big.mtime(), big.mtime_nsec()), (1_000_000_000, 5));
    assert!(big.blocks() * 512 < SHARD, "holes stay holes");
    assert_eq!(
        big.ino(),
        std::fs::metadata(to.join("big-too")).unwrap().ino()
    );
    let mut color = [0; 4];
    rustix::fs::lgetxattr(to.join("big"), "user.color", &mut color).unwrap();
    assert_eq!(&color, b"blue");
    let link = std::fs::read_link(to.join("dir/link")).unwrap();
    assert_eq!(link, Path::new("../big"));
    let folder = std::fs::metadata(to.join("dir")).unwrap();
    assert_eq!(
        (folder.mode() & 0o777, folder.mtime()),
        (0o711, 1_000_000_000)
    );
    let after = std::fs::metadata(a.join("mortar.brick")).unwrap().mtime();
    assert_eq!(before, after);

    let (sound, _, failure) = mortard_brick(&["export", "--to", to_text], &[&a, &c]);
    assert_eq!(sound, Some(false), "the target is not empty: {failure}");
}

/// Two sets: names in the root and inodes lie on either. Of set 0: the root, `dir` (its name on set 1), in it `here`;
/// `named-there` (name on set 1), `two` (its second name, in `dir`, on set 1), and a file in a directory of set 1. Of set
/// 1: the directory `other`, in it `below`, and the name `gone` of an inode of set 0 that is not there.
fn torn(dir: &Path) -> [PathBuf; 2] {
    let mut one = Writer::new(dir, "one", 0);
    let mut two = Writer::new(dir, "two", 1);
    let linked = |mut inode: Inode, links: &[(u64, &'static str)]| {
        let link = |(parent, name): &(u64, &'static str)| (InodeId(*parent), Bytes::from(*name));
        inode.links = links.iter().map(link).collect();
        inode
    };
    let file = |size| inode(FileKind::File, 0o644, size);
    let folder = || inode(FileKind::Dir, 0o711, 0);
    one.inode(1, &folder(), None);
    one.inode(300, &linked(folder(), &[(1, "dir")]), None);
    one.inode(301, &linked(file(4), &[(300, "here")]), Some((300, "here")));
    one.write(301, 0, 0, b"here".to_vec());
    one.inode(302, &linked(file(5), &[(1, "named-there")]), None);
    one.write(302, 0, 0, b"there".to_vec());
    let mut both = linked(file(3), &[(1, "two"), (300, "second")]);
    both.nlink = 2;
    one.inode(303, &both, Some((1, "two")));
    one.write(303, 0, 0, b"two".to_vec());
    one.inode(304, &linked(file(5), &[(400, "alone")]), None);
    one.write(304, 0, 0, b"alone".to_vec());
    let mut unlinked = file(5);
    unlinked.nlink = 0;
    one.inode(305, &unlinked, None);
    two.name(1, "dir", 300, FileKind::Dir);
    two.name(1, "named-there", 302, FileKind::File);
    two.name(300, "second", 303, FileKind::File);
    two.inode(400, &linked(folder(), &[(1, "other")]), Some((1, "other")));
    two.name(400, "alone", 304, FileKind::File);
    two.inode(
        401,
        &linked(file(5), &[(400, "below")]),
        Some((400, "below")),
    );
    two.write(401, 0, 0, b"below".to_vec());
    two.settle();
    [one.path, two.path]
}

#[test]
fn what_the_given_bricks_hold_is_exported_without_the_names_that_lead_there() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = torn(dir.path());
    let run = |to: &Path, bricks: &[&Path]| {
        let (sound, out, err) = mortard_brick(&["export", "--to", to.to_str().unwrap()], bricks);
        (sound, String::from_utf8(out).unwrap(), err)
    };
    let whole = dir.path().join("whole");
    let (sound, out, err) = run(&whole, &[&one, &two]);
    assert_eq!(sound, Some(true), "{out}{err}");
    assert!(out.starts_with("5 files"), "{out}");
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
    assert_eq!(read(whole.join("other/alone")), "alone");

    // The first set alone: everything is where it was, but for what was in a directory of the other.
    let first = dir.path().join("first");
    let (sound, out, err) = run(&first, &[&one]);
    assert_eq!(sound, Some(false), "{out}{err}");
    assert!(out.starts_with("4 files"), "{out}");
    for (path, text, named) in [
        ("dir/here", "here", "first/dir"),
        ("named-there", "there", "first/named-there"),
        ("two", "two", ""),
        ("dir/second", "two", "first/dir/second"),
        (
            "lost+found/0000000000000190/alone",
            "alone",
            "first/lost+found/0000000000000190/alone",
        ),
    ] {
        assert_eq!(read(first.join(path)), text, "{path}");
        let line = format!(
            "{named}: {}",
            "its name lies on bricks of a set that is not given"
        );
        assert!(named.is_empty() || err.contains(&line), "{path}: {err}");
    }
    let meta = |path: &str| std::fs::metadata(first.join(path)).unwrap();
    assert_eq!(meta("two").ino(), meta("dir/second").ino());
    for path in ["", "dir"] {
        let meta = meta(path);
        assert_eq!((meta.mode() & 0o777, meta.mtime()), (0o711, 1_000_000_000));
    }

    // The other one alone: it has not even the root.
    let second = dir.path().join("second");
    let (sound, out, err) = run(&second, &[&two]);
    assert_eq!(sound, Some(false), "{out}{err}");
    assert_eq!(read(second.join("other/below")), "below");
    assert!(
        second.join("dir").is_dir(),
        "its name is there, its inode is not"
    );
    for named in [
        "second: inode 0000000000000001 ",
        "second/dir: inode 000000000000012c ",
        "second/named-there: ",
        "alone: ",
    ] {
        assert!(err.contains(named), "{named}: {err}");
    }
    assert!(!second.join("lost+found").exists());
    let to = dir.path().join("below");
    let words = [
        "export",
        "--path",
        "/other/below",
        "--to",
        to.to_str().unwrap(),
    ];
    assert_eq!(mortard_brick(&words, &[&two]).0, Some(true));
    assert_eq!(read(to), "below");
}

#[test]
fn files_are_listed_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let [a, _, c] = sample(dir.path());
    let (sound, out, _) = mortard_brick(&["ls", "-R"], &[&a, &c]);
    let out = String::from_utf8(out).unwrap();
    assert_eq!(sound, Some(true));
    assert!(out.starts_with("/:\n-rw-r-----   2 "), "{out}");
    for part in [
        " big\n",
        " big-too\n",
        "\n/dir:\n",
        " link -> ../big\n",
        "\nprw-------",
    ] {
        assert!(out.contains(part), "{part:?} in {out}");
    }
    let (_, out, _) = mortard_brick(&["cat", "--path", "/dir/staged"], &[&c, &a]);
    assert!(out == contents()["dir/staged"]);
    let (_, out, _) = mortard_brick(&["cat", "--path", "big"], &[&c, &a]);
    assert!(out == contents()["big"]);
    for (path, why) in [
        ("/none", "no such"),
        ("/big/x", "not a dir"),
        ("/dir", "not a reg"),
    ] {
        let (sound, _, failure) = mortard_brick(&["cat", "--path", path], &[&a, &c]);
        assert_eq!(sound, None);
        assert!(failure.contains(why), "{failure}");
    }
    let (_, out, _) = mortard_brick(&["ls"], &[&a]);
    assert!(
        !String::from_utf8(out).unwrap().contains("dir"),
        "its name is on the other set"
    );
    let (_, out, _) = mortard_brick(&["ls", "--path", "/dir"], &[&c, &a]);
    assert_eq!(String::from_utf8(out).unwrap().lines().count(), 4);
}

#[test]
fn an_earlier_state_can_be_named() {
    let dir = tempfile::tempdir().unwrap();
    let [a, _, _] = sample(dir.path());
    let (_, out, _) = mortard_brick(&["ls"], &[&a]);
    assert!(String::from_utf8(out).unwrap().contains(" late\n"));
    for (upto, late) in [("7", false), ("4.8", false), ("4.9", true)] {
        let (_, out, err) = mortard_brick(&["ls", "--upto", upto], &[&a]);
        let out = String::from_utf8(out).unwrap();
        assert_eq!(out.contains(" late\n"), late, "{upto}: {out}");
        assert!(err.contains(&format!(" as of {}", if late { "4.9" } else { "4." })));
    }
    let (sound, out, _) = mortard_brick(&["cat", "--path", "/late", "--upto", "4.9"], &[&a]);
    assert_eq!(
        (sound, out),
        (Some(true), vec![0; 20]),
        "named, but not written yet"
    );
    for wrong in ["1", "99", "3.9"] {
        let (sound, _, failure) = mortard_brick(&["ls", "--upto", wrong], &[&a]);
        assert_eq!(sound, None);
        assert!(failure.contains("the log holds entries 4."), "{failure}");
    }
}

#[test]
fn a_check_finds_rot_and_another_copy_helps() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, c] = sample(dir.path());
    for brick in [&a, &b, &c] {
        let (sound, out, _) = mortard_brick(&["check"], &[brick]);
        assert_eq!(sound, Some(true), "{}", String::from_utf8_lossy(&out));
    }
    spoil(&a, &pattern(BLOCK, 1));
    let (sound, out, _) = mortard_brick(&["check"], &[&a]);
    let out = String::from_utf8(out).unwrap();
    assert_eq!(sound, Some(false));
    assert!(out.contains("shard 0 block 0: wrong checksum"), "{out}");
    assert_eq!(out.lines().count(), 2, "{out}");

    let (sound, _, failure) = mortard_brick(&["cat", "--path", "/big"], &[&a, &c]);
    assert_eq!(sound, None);
    assert!(
        failure.contains("offset 0: a block fails its checksum"),
        "{failure}"
    );
    let (sound, out, _) = mortard_brick(&["cat", "--path", "/big"], &[&a, &b, &c]);
    assert_eq!(sound, Some(true));
    assert!(out == contents()["big"]);
    let to = dir.path().join("out");
    let to_text = to.to_str().unwrap();
    let (sound, _, err) = mortard_brick(&["export", "--to", to_text], &[&a, &c]);
    assert_eq!(sound, Some(false));
    assert!(err.contains("big: 4096 bytes at 0 are lost"), "{err}");
    let saved = std::fs::read(to.join("big")).unwrap();
    assert!(saved[BLOCK as usize..] == contents()["big"][BLOCK as usize..]);
}

#[test]
fn info_names_the_brick_and_odd_targets_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [a, _, _] = sample(dir.path());
    let (_, out, _) = mortard_brick(&["info"], &[&a]);
    let out = String::from_utf8(out).unwrap();
    assert!(
        out.contains("Volume        vol (") && out.contains("Format        1"),
        "{out}"
    );
    let (_, out, _) = mortard_brick(&["info", "--json"], &[&a]);
    let facts: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(facts[0]["volume"], "vol");
    assert_eq!(facts[0]["brick"], BrickId(10).to_string());

    let (sound, _, failure) = mortard_brick(&["info"], &[dir.path()]);
    assert_eq!(sound, None);
    assert!(failure.contains("does not exist"), "{failure}");
    let random = dir.path().join("random");
    std::fs::write(&random, pattern(1 << 20, 9)).unwrap();
    let (_, _, failure) = mortard_brick(&["info"], &[&random]);
    assert!(failure.contains("not a brick"), "{failure}");
    let engine = Engine::with_threads();
    let _busy = FileDevice::open(&a, &engine).unwrap();
    let (_, _, failure) = mortard_brick(&["info"], &[&a]);
    assert!(failure.contains("is in use by"), "{failure}");
}
