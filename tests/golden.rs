//! This build reads what builds of format 1 wrote: a brick and every message.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use clap::Parser;
use mortar_protocol::attr::FileKind;
use mortar_protocol::fop::{Cut, Fop, Reply};
use mortar_protocol::ids::InodeId;
use mortar_protocol::limits::SHARD_SIZE;
use mortar_server::device::Device;
use mortar_server::device::sim::SimDisk;
use mortar_server::offline;
use mortar_server::store::Store;
use mortar_server::superblock::MIN_SIZE;
use mortar_tests::crash::look::{Plain, Reads};
use mortar_tests::crash::model::pattern;
use mortar_tests::golden::{self, brick, image, messages};

fn disk() -> Arc<SimDisk> {
    let bytes = std::fs::read(golden::dir().join("brick-1.image")).expect("the golden image");
    image::unpack(&bytes).expect("a compact image")
}

/// The image as a sparse file.
fn file(dir: &Path) -> PathBuf {
    let path = dir.join("brick");
    let file = std::fs::File::create(&path).expect("a file");
    file.set_len(MIN_SIZE).expect("a sparse file");
    for (number, page) in disk().pages() {
        file.write_all_at(&page, number * 4096).expect("a page");
    }
    path
}

fn mortard_brick(words: &[&str], device: &Path) -> (Result<bool, String>, Vec<u8>) {
    let mut line = vec!["brick"];
    line.extend(words);
    let device = device.to_str().expect("a path");
    line.push(device);
    let args = offline::Args::try_parse_from(line).expect("a command");
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let result = offline::execute_args(args, &mut out, &mut err);
    (result, out)
}

#[test]
fn the_offline_tools_read_the_golden_brick() {
    let dir = tempfile::tempdir().expect("a directory");
    let device = file(dir.path());
    let (sound, out) = mortard_brick(&["check"], &device);
    assert_eq!(sound, Ok(true), "{}", String::from_utf8_lossy(&out));
    let (_, out) = mortard_brick(&["info"], &device);
    let out = String::from_utf8(out).expect("text");
    assert!(
        out.contains("Format        1") && out.contains("volume ("),
        "{out}"
    );
    for (path, expected) in brick::contents() {
        let (sound, out) = mortard_brick(&["cat", "--path", path], &device);
        assert_eq!(sound, Ok(true), "{path}");
        assert!(out == expected, "{path} has other contents");
    }
    let (_, out) = mortard_brick(&["cat", "--path", "/long"], &device);
    let (hole, data) = out.split_at(SHARD_SIZE as usize);
    assert!(hole.iter().all(|byte| *byte == 0) && data == pattern(7, brick::IN_SECOND_SHARD));
    let (_, out) = mortard_brick(&["ls", "-R"], &device);
    let out = String::from_utf8(out).expect("text");
    let lines = [
        "-rw-r-----   2 ",
        " linked",
        " other-name",
        " link -> dir/linked",
        "prw-r-----",
        "crw-r-----",
        "drwxr-x--x",
        "-rws--x--x",
        " holes",
        "/dir/below:",
        " latest",
    ];
    for part in lines {
        assert!(out.contains(part), "{part:?} in {out}");
    }
}

fn read(from: &mut Plain<'_>, fop: Fop) -> Reply {
    let text = format!("{fop:?}");
    from.read(fop)
        .unwrap_or_else(|fault| panic!("{text}: {fault:?}"))
        .0
}

#[test]
fn a_store_opens_the_golden_brick_and_goes_on() {
    let device: Arc<dyn Device> = disk();
    let mut store = Store::open(device).expect("the brick opens");
    assert!(
        !store.log_damaged() && store.applied() < store.head(),
        "the log has a tail"
    );
    for applied in [false, true] {
        if applied {
            store.announce(store.head().seq);
            store
                .settle(&mut |_| Vec::new())
                .expect("the tail is applied");
            assert_eq!(store.applied(), store.head());
            assert_eq!(offline::check(&store).problems, Vec::<String>::new());
        }
        look_into(&mut Plain(&store));
    }
}

fn look_into(from: &mut Plain<'_>) {
    let root = InodeId::ROOT;
    let inline = brick::id_of(root, "inline");
    let Reply::Attr(attr, _) = read(from, Fop::GetAttr { id: inline }) else {
        panic!("attributes");
    };
    assert_eq!(
        (attr.kind, attr.perm, attr.nlink),
        (FileKind::File, 0o640, 1)
    );
    assert_eq!((attr.uid, attr.gid, attr.size), (1_000, 100, 777));
    assert_eq!(
        (attr.mtime, attr.ctime, attr.btime),
        (brick::TIME, brick::TIME, brick::TIME)
    );
    assert!(attr.has_xattr);
    let mut value = |id, name: &'static [u8]| {
        let name = Bytes::from_static(name);
        read(from, Fop::GetXattr { id, name })
    };
    assert_eq!(
        value(inline, brick::XATTR),
        Reply::Bytes(Bytes::from_static(b"blue"))
    );
    let acl = value(inline, b"system.posix_acl_access");
    assert_eq!(acl, Reply::Bytes(Bytes::from_static(brick::ACL)));
    let dir = brick::id_of(root, "dir");
    assert_eq!(
        value(dir, brick::XATTR),
        Reply::Bytes(Bytes::from_static(b"green"))
    );
    let id = brick::id_of(root, "link");
    let target = Bytes::from_static(b"dir/linked");
    assert_eq!(read(from, Fop::ReadLink { id }), Reply::Bytes(target));
    let (parent, name) = (dir, Bytes::from_static(b"other-name"));
    let Reply::Found {
        gfid,
        attr: Some(attr),
        ..
    } = read(from, Fop::Lookup { parent, name })
    else {
        panic!("a name");
    };
    assert_eq!(
        (gfid.id, gfid.generation, attr.nlink),
        (brick::id_of(dir, "linked"), 0x5eed, 2)
    );
    let id = brick::id_of(root, "long");
    let (shard, offset, len, cut) = (1, 0, 5_000, Cut::default());
    let read = from.read(Fop::Read {
        id,
        shard,
        offset,
        len,
        cut,
    });
    assert_eq!(read.expect("data").1, pattern(7, brick::IN_SECOND_SHARD));
}

#[test]
fn every_message_reads_and_is_written_as_before() {
    let text = std::fs::read_to_string(golden::dir().join("messages-1.txt")).expect("messages");
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    let mut golden: BTreeMap<&str, Vec<u8>> = lines
        .map(|(name, hex)| (name, messages::unhex(hex).expect("hexadecimal")))
        .collect();
    let mut wrong = Vec::new();
    for sample in messages::all() {
        match golden.remove(sample.name.as_str()) {
            None => wrong.push(format!("{} is not in the file", sample.name)),
            Some(bytes) => {
                wrong.extend(
                    sample
                        .check(&bytes)
                        .err()
                        .map(|why| format!("{}: {why}", sample.name)),
                );
            }
        }
    }
    wrong.extend(
        golden
            .keys()
            .map(|name| format!("{name} is no message any more")),
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn there_is_a_sample_of_every_variant() {
    let samples = messages::all();
    let mut variants: BTreeMap<&str, BTreeSet<u8>> = BTreeMap::new();
    for sample in samples.iter().filter(|sample| sample.name.contains('.')) {
        variants
            .entry(sample.kind())
            .or_default()
            .insert(sample.variant);
    }
    assert!(variants.len() > 15);
    for (kind, found) in &variants {
        let count = found.len() as u8;
        assert!(found.iter().copied().eq(0..count), "{kind}: {found:?}");
        let sample = samples
            .iter()
            .find(|sample| sample.kind() == *kind)
            .expect("one");
        assert!(
            sample.is_unknown(count),
            "{kind} has more than {count} variants"
        );
    }
}

#[test]
fn every_operation_has_a_place_of_its_own_in_the_counts() {
    let kinds: BTreeSet<usize> = messages::fops().iter().map(|fop| fop.kind()).collect();
    let places: BTreeSet<usize> = (0..mortar_protocol::fop::Fop::NAMES.len()).collect();
    assert_eq!(kinds, places);
}

#[test]
fn entries_behind_an_append_read_as_before() {
    let text = std::fs::read_to_string(golden::dir().join("messages-1.txt")).expect("messages");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("entries "))
        .expect("entries");
    let bytes = messages::unhex(line).expect("hexadecimal");
    let body: Vec<u8> = postcard::from_bytes(&bytes).expect("bytes");
    let entries = mortar_protocol::peer::decode_entries(body.clone().into()).expect("entries");
    assert_eq!(entries.len(), 6);
    for (at, entry) in entries.iter().enumerate() {
        assert_eq!(
            (entry.pos.seq.0, entry.body.len(), entry.effects.len()),
            (26 + at as u64, at, 7)
        );
    }
    assert_eq!(
        mortar_protocol::peer::encode_entries(&entries).expect("encodes"),
        body
    );
}
