//! Images of bricks.

use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use clap::Parser;
use mortar_protocol::fop::{Fop, Reply};
use mortar_protocol::ids::InodeId;
use mortar_server::device::Device;
use mortar_server::device::sim::SimDisk;
use mortar_server::offline;
use mortar_server::store::Store;
use mortar_server::superblock::{Geometry, MIN_SIZE};
use mortar_tests::crash::look::{Plain, Reads};
use mortar_tests::golden::brick;

use crate::{Draw, rounds, said};

type Pages = Vec<(u64, [u8; 4096])>;

fn golden_pages() -> Pages {
    brick::make().expect("a brick").pages()
}

/// Damages an image in one of several ways; says how.
fn damage(pages: &mut Pages, draw: &mut Draw) -> String {
    let geometry = Geometry::for_size(MIN_SIZE);
    let areas = [
        (0, 1 << 20),
        (geometry.wal.offset, geometry.wal.end()),
        (geometry.chunk_map.offset, geometry.chunk_map.end()),
        (geometry.extents.offset, geometry.extents.end()),
    ];
    let (from, to) = areas[draw.below(areas.len())];
    let inside: Vec<usize> = (0..pages.len())
        .filter(|at| (from..to).contains(&(pages[*at].0 * 4096)))
        .collect();
    let at = inside[draw.below(inside.len())];
    let number = pages[at].0;
    let (start, len) = (draw.below(4096), draw.below(300) + 1);
    let end = (start + len).min(4096);
    match draw.below(5) {
        0 => {
            pages[at].1[start] ^= 1 << draw.below(8);
            format!("a bit of byte {start} of page {number}")
        }
        1 => {
            pages[at].1[start..end].fill_with(|| draw.next() as u8);
            format!("bytes {start}..{end} of page {number}")
        }
        2 => {
            pages[at].1[start..].fill(0);
            format!("page {number} is zero from byte {start} on")
        }
        3 => {
            let other = draw.below(pages.len());
            pages[at].1 = pages[other].1;
            format!("page {number} is a copy of page {}", pages[other].0)
        }
        _ => {
            for at in inside {
                pages[at].1.fill_with(|| draw.next() as u8);
            }
            format!("all of {from}..{to}")
        }
    }
}

/// Reads what a checkpoint of the golden brick holds; nothing may be there with other contents.
fn read_kept(store: &Store) {
    let root = InodeId::ROOT;
    let dir = brick::id_of(root, "dir");
    let below = brick::id_of(dir, "below");
    let files = brick::contents();
    let kept = [
        ("/inline", brick::id_of(root, "inline")),
        ("/dir/linked", brick::id_of(dir, "linked")),
        ("/dir/below/holes", brick::id_of(below, "holes")),
    ];
    let mut from = Plain(store);
    for (path, id) in kept {
        let Ok((Reply::Opened { attr, cut, .. }, _)) = from.read(Fop::Open {
            id,
            known: None,
            data: false,
        }) else {
            continue;
        };
        assert_eq!(attr.size, files[path].len() as u64, "{path}");
        let read = Fop::Read {
            id,
            shard: 0,
            offset: 0,
            len: attr.size as u32,
            cut,
        };
        if let Ok((_, data)) = from.read(read) {
            assert!(data == files[path], "{path} shows what nobody wrote");
        }
    }
}

#[test]
fn damaged_images_are_refused_or_tell_their_problems() {
    let golden = golden_pages();
    let (mut refused, mut told, mut sound) = (0, 0, 0);
    for round in 0..rounds(1_000) {
        let mut draw = Draw::new(round);
        let mut pages = golden.clone();
        let mut what = damage(&mut pages, &mut draw);
        if draw.below(3) == 0 {
            what = format!("{what}; {}", damage(&mut pages, &mut draw));
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let device: Arc<dyn Device> = SimDisk::with_pages(MIN_SIZE, pages);
            match Store::open(device) {
                Err(error) => {
                    said(&error.to_string());
                    refused += 1;
                }
                Ok(mut store) => {
                    read_kept(&store);
                    let problems = offline::check(&store).problems;
                    problems.iter().for_each(|problem| said(problem));
                    if problems.is_empty() {
                        sound += 1;
                    } else {
                        told += 1;
                    }
                    store.announce(store.head().seq);
                    if let Err(error) = store.settle(&mut |_| Vec::new()) {
                        said(&error.to_string());
                    }
                    read_kept(&store);
                }
            }
        }));
        assert!(outcome.is_ok(), "round {round}: {what}");
    }
    // Much of the damage hits what is not in use, or one of two copies.
    assert!(
        refused > 10 && told > 10 && sound > 10,
        "{refused} {told} {sound}"
    );
}

#[test]
fn truncated_images_are_refused() {
    let golden = golden_pages();
    for round in 0..rounds(40) {
        let mut draw = Draw::new(round + 10_000);
        let len = match round % 4 {
            0 => draw.next() % (1 << 20),
            1 => draw.next() % (64 << 20),
            2 => MIN_SIZE - 4096 * (1 + draw.next() % 100),
            _ => draw.next() % MIN_SIZE,
        };
        let device: Arc<dyn Device> = SimDisk::with_pages(len, golden.clone());
        match Store::open(device) {
            Err(error) => said(&error.to_string()),
            Ok(_) => panic!("an image of {len} bytes opens"),
        }
    }
}

fn write_file(path: &Path, pages: &Pages, len: u64) {
    let file = std::fs::File::create(path).expect("a file");
    file.set_len(len).expect("a sparse file");
    for (number, page) in pages {
        if number * 4096 + 4096 <= len {
            file.write_all_at(page, number * 4096).expect("a page");
        }
    }
}

fn mortard_brick(words: &[&str], device: &Path) -> (Result<bool, String>, String) {
    let mut line = vec!["brick"];
    line.extend(words);
    line.push(device.to_str().expect("a path"));
    let args = offline::Args::try_parse_from(line).expect("a command");
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let result = offline::execute_args(args, &mut out, &mut err);
    (result, String::from_utf8_lossy(&out).into_owned())
}

#[test]
fn the_offline_tools_survive_damaged_images() {
    let dir = tempfile::tempdir().expect("a directory");
    let golden = golden_pages();
    for round in 0..rounds(50) {
        let mut draw = Draw::new(round + 20_000);
        let mut pages = golden.clone();
        let what = damage(&mut pages, &mut draw);
        let len = if draw.below(6) == 0 {
            draw.next() % MIN_SIZE
        } else {
            MIN_SIZE
        };
        let path = dir.path().join(format!("brick{round}"));
        write_file(&path, &pages, len);
        let outcome = catch_unwind(|| {
            for words in [
                &["info"][..],
                &["check"],
                &["ls", "-R"],
                &["cat", "--path", "/staged"],
            ] {
                match mortard_brick(words, &path) {
                    (Err(failure), _) => said(&failure),
                    (Ok(false), out) => said(&out),
                    (Ok(true), _) => {}
                }
            }
        });
        assert!(outcome.is_ok(), "round {round}: {what}, {len} bytes");
        std::fs::remove_file(&path).expect("the file goes");
    }
}

#[test]
fn a_newer_format_is_refused_with_both_versions_named() {
    let mut pages = golden_pages();
    for (number, page) in &mut pages {
        if *number == 0 || *number == 16 {
            page[8..12].copy_from_slice(&7u32.to_le_bytes());
            page[12..16].fill(0);
            let crc = crc32fast::hash(page);
            page[12..16].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let device: Arc<dyn Device> = SimDisk::with_pages(MIN_SIZE, pages.clone());
    let error = Store::open(device).err().expect("refused").to_string();
    assert!(
        error.contains("format 7") && error.contains("format 1"),
        "{error}"
    );
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("brick");
    write_file(&path, &pages, MIN_SIZE);
    for words in [&["info"][..], &["check"], &["ls"]] {
        let failure = mortard_brick(words, &path).0.expect_err("refused");
        assert!(
            failure.contains("format 7") && failure.contains("format 1"),
            "{failure}"
        );
    }
}

/// Forged superblocks: the checksum is right, the rest is anything.
#[test]
fn forged_superblocks_never_panic() {
    let golden = golden_pages();
    for round in 0..rounds(300) {
        let mut draw = Draw::new(round + 30_000);
        let mut pages = golden.clone();
        let start = 8 + draw.below(200);
        let end = start + 1 + draw.below(12);
        let with = [0, 0xff, draw.next() as u8][draw.below(3)];
        for (number, page) in &mut pages {
            if *number == 0 || *number == 16 {
                page[start..end].fill(with);
                page[12..16].fill(0);
                let crc = crc32fast::hash(page);
                page[12..16].copy_from_slice(&crc.to_le_bytes());
            }
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let device: Arc<dyn Device> = SimDisk::with_pages(MIN_SIZE, pages);
            match Store::open(device) {
                Err(error) => said(&error.to_string()),
                Ok(store) => drop(offline::check(&store)),
            }
        }));
        assert!(outcome.is_ok(), "bytes {start}..{end} are {with:#x}");
    }
}
