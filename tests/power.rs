//! What survives a power cut, of a whole machine with its kernel: README's table, last column. `tests/run power` gets what
//! it needs. `POWER_CUTS` changes the number of cuts of each volume, `POWER_SEED` repeats their moments.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use mortar_tests::real::power::content::BLOCK;
use mortar_tests::real::power::{Machine, Said};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// What was closed this long before the cut is there. Servers flush once a second; the machine is emulated, so it is
/// given twice as long, and its console comes late.
const LAST: Duration = Duration::from_millis(2_500);

/// A file as it was found: its length, and the versions of its blocks (`None`: not what was ever written).
#[derive(Clone, PartialEq, Debug)]
struct Found {
    len: u64,
    blocks: Vec<Option<u64>>,
}

impl Found {
    fn is(&self, version: u64, blocks: u64) -> bool {
        self.len == blocks * BLOCK as u64 && self.blocks == vec![Some(version); blocks as usize]
    }
}

/// The files that the machine showed, by path.
fn found(said: &[Said]) -> BTreeMap<String, Found> {
    let parse = |line: &str| {
        let mut words = line.strip_prefix("file ")?.split(' ');
        let (path, len) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        let mut blocks = Vec::new();
        for word in words {
            let (version, count) = word.split_once('*')?;
            let count: usize = count.parse().ok()?;
            blocks.resize(blocks.len() + count, version.parse().ok());
        }
        Some((path, Found { len, blocks }))
    };
    said.iter().filter_map(|(_, line)| parse(line)).collect()
}

/// What was promised until power failed.
#[derive(Default, Debug)]
struct Promised {
    synced: BTreeMap<String, u64>,
    /// Names up to this number are there.
    named: Option<u64>,
    /// Files closed, oldest first, with the number of their blocks and how long before the cut.
    closed: Vec<(String, u64, Duration)>,
    /// The newest version begun and the newest promised, overwritten in place and replaced by rename.
    over: (u64, u64),
    current: (u64, u64),
}

fn promised(said: &[Said], cut: Instant) -> Promised {
    let mut all = Promised::default();
    for (at, line) in said.iter().filter(|(at, _)| *at <= cut) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().expect("a number");
        match words[0] {
            "synced" => drop(all.synced.insert(words[1].to_owned(), number(2))),
            "named" => all.named = Some(number(1)),
            "closed" => all.closed.push((words[1].to_owned(), number(2), cut - *at)),
            "overwriting" => all.over.0 = number(1),
            "overwritten" => all.over.1 = number(1),
            "replacing" => all.current.0 = number(1),
            "replaced" => all.current.1 = number(1),
            _ => {}
        }
    }
    all
}

/// What does not hold of one boot's directory.
fn broken(dir: &str, promised: &Promised, found: &BTreeMap<String, Found>) -> Vec<String> {
    let mut broken = Vec::new();
    let prefix = format!("{dir}/");
    let ours: BTreeMap<&str, &Found> = found
        .iter()
        .filter_map(|(path, file)| Some((path.strip_prefix(&prefix)?, file)))
        .collect();
    // Whatever is there is old, new or shorter, never something else.
    for (path, file) in &ours {
        if file.blocks.contains(&None)
            || file.blocks.len() as u64 != file.len.div_ceil(BLOCK as u64)
        {
            broken.push(format!(
                "{dir}/{path} holds what was never written: {file:?}"
            ));
        }
    }
    for (name, blocks) in &promised.synced {
        if !ours.get(&name[..]).is_some_and(|file| file.is(1, *blocks)) {
            broken.push(format!(
                "{dir}/{name} was synced with {blocks} blocks: {:?}",
                ours.get(&name[..])
            ));
        }
    }
    for n in 0..=promised.named.unwrap_or(0) {
        if promised.named.is_some() && !ours.contains_key(&format!("names/n{n}")[..]) {
            broken.push(format!(
                "{dir}/names/n{n} is gone, its directory was synced"
            ));
        }
    }
    // Files were made one after the other: all but the newest one there are whole.
    let newest = promised
        .closed
        .iter()
        .rposition(|(name, ..)| ours.contains_key(&name[..]));
    for (at, (name, blocks, before)) in promised.closed.iter().enumerate() {
        let whole = ours.get(&name[..]).is_some_and(|file| file.is(1, *blocks));
        if !whole && (*before > LAST || newest.is_some_and(|newest| at < newest)) {
            broken.push(format!(
                "{dir}/{name} was closed {before:?} before with {blocks} blocks: {:?}",
                ours.get(&name[..])
            ));
        }
    }
    let (begun, kept) = promised.over;
    let over = ours.get("over").map_or(&[][..], |file| &file.blocks);
    let versions: Vec<u64> = over.iter().map(|version| version.unwrap_or(0)).collect();
    let in_order = versions.is_sorted_by(|a, b| a >= b);
    let in_range = versions
        .iter()
        .all(|version| (kept..=begun + 1).contains(version));
    if !in_order || !in_range || (kept > 0 && versions.len() != 8) {
        broken.push(format!(
            "{dir}/over: {versions:?}, between {kept} and {begun}"
        ));
    }
    let (begun, kept) = promised.current;
    let current = ours.get("current");
    let version = current.and_then(|file| *file.blocks.first()?);
    let whole = current.is_none_or(|file| version.is_some_and(|version| file.is(version, 5)));
    if !whole || version.unwrap_or(0) < kept || version.unwrap_or(0) > begun + 1 {
        broken.push(format!(
            "{dir}/current: {current:?}, between {kept} and {begun}"
        ));
    }
    broken
}

fn cuts() -> usize {
    let cuts = std::env::var("POWER_CUTS").ok();
    cuts.map_or(6, |cuts| cuts.parse().expect("a number"))
}

#[allow(clippy::disallowed_methods)] // a real machine needs the real clock
fn power_fails(volume: &str, mib: &[u64]) {
    let seed = std::env::var("POWER_SEED").map_or_else(
        |_| u64::from(std::process::id()),
        |seed| seed.parse().expect("a number"),
    );
    println!("POWER_SEED={seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut machine = Machine::new(Path::new(env!("CARGO_BIN_EXE_power")), mib, volume);
    let mut past: Vec<(String, Promised)> = Vec::new();
    for round in 0..=cuts() {
        let start = Instant::now();
        let boot = machine.boot();
        machine.wait_for("shown");
        let files = found(&machine.said());
        let broken: Vec<String> = past
            .iter()
            .flat_map(|(dir, promised)| broken(dir, promised, &files))
            .collect();
        assert!(
            broken.is_empty(),
            "after cut {round}:\n{}\n{}",
            broken.join("\n"),
            machine.console()
        );
        if round == cuts() {
            break;
        }
        machine.wait_for("writing");
        let ready = start.elapsed();
        std::thread::sleep(Duration::from_millis(
            3_000 + u64::from(random.next_u32() % 3_000),
        ));
        let (moment, unflushed) = machine.cut(&mut random);
        let promised = promised(&machine.said(), moment);
        println!(
            "cut {round}: ready after {ready:?}, {} files found, {unflushed} sectors not flushed, {} synced, names to {:?}, {} closed, {:?} overwritten, {:?} replaced",
            files.len(),
            promised.synced.len(),
            promised.named,
            promised.closed.len(),
            promised.over,
            promised.current
        );
        assert!(
            !promised.synced.is_empty(),
            "nothing was promised\n{}",
            machine.console()
        );
        past.push((format!("boot{boot}"), promised));
    }
    let sum = |count: fn(&Promised) -> usize| {
        past.iter()
            .map(|(_, promised)| count(promised))
            .sum::<usize>()
    };
    assert!(sum(|promised| promised.closed.len()) > 10 * cuts());
    assert!(sum(|promised| promised.named.map_or(0, |named| named as usize)) > 0);
}

/// One brick, on a block device.
#[test]
fn what_survives_a_power_cut_on_a_device() {
    power_fails("127.0.0.1:/dev/vdb", &[256]);
}

/// Two copies: one on a block device, one in a directory of a file system.
#[test]
fn what_survives_a_power_cut_in_two_copies() {
    power_fails("replica 2 127.0.0.1:/dev/vdb 127.0.0.1:/data/brick", &[256]);
}
