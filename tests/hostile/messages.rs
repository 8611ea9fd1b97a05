//! Messages: nothing that arrives makes a decoder panic, and file operations that make no sense do no harm.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use mortar_protocol::fop::{Fop, Reply, Request};
use mortar_protocol::frame::{Frame, PREFIX};
use mortar_protocol::ids::{InodeId, SessionId};
use mortar_protocol::peer::{PeerFrame, decode_entries};
use mortar_server::device::Device;
use mortar_server::offline;
use mortar_server::store::Store;
use mortar_tests::crash::rig::{Past, Rig, format};
use mortar_tests::golden::messages;

use crate::{Draw, mutated, rounds};

#[test]
fn no_bytes_make_a_decoder_panic() {
    let samples = messages::all();
    for round in 0..rounds(1_000) {
        let mut draw = Draw::new(round + 40_000);
        for sample in &samples {
            let bytes = mutated(&sample.bytes, &mut draw);
            let _ = sample.check(&bytes);
            let _ = decode_entries(bytes.clone().into());
            let frame = Frame {
                head: bytes.clone().into(),
                body: mutated(&bytes, &mut draw).into(),
            };
            if let Ok(Request::Peer(envelope)) = frame.message::<Request>() {
                let _ = PeerFrame::decode(envelope, frame.body.clone());
            }
            let mut prefix = [0; PREFIX];
            prefix.fill_with(|| draw.next() as u8);
            if let Ok((head, body)) = Frame::lengths(prefix) {
                assert!(head <= 256 << 10 && body <= 4 << 20);
            }
        }
    }
}

/// Every cut, every flipped bit, the longest number in every place, and messages that were mutated: an error, or a value
/// that is written and read as the same.
#[test]
fn what_can_be_read_can_be_written() {
    let long = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    let (mut read, mut refused) = (0, 0);
    for (number, sample) in messages::all().iter().enumerate() {
        let mut look = |bytes: &[u8]| match sample.again(bytes) {
            Ok(true) => read += 1,
            Ok(false) => refused += 1,
            Err(why) => panic!("{}: {why}", sample.name),
        };
        let whole = &sample.bytes;
        for at in 0..whole.len() {
            look(&whole[..at]);
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                look(&bytes);
            }
            let mut bytes = whole.clone();
            bytes.splice(at..=at, long);
            look(&bytes);
        }
        for round in 0..rounds(50) {
            let mut draw = Draw::new(round + 45_000 + number as u64 * 100_000);
            look(&mutated(whole, &mut draw));
        }
    }
    assert!(
        read > 1_000 && refused > 1_000,
        "{read} read, {refused} refused"
    );
}

#[test]
fn hostile_requests_do_no_harm() {
    const SESSION: SessionId = SessionId(1);
    let disk = format(5).expect("a brick");
    let mut rig = Rig::open(disk, Past::default(), SESSION, &[SESSION]).expect("it opens");
    rig.get(Fop::SessionBegin).expect("a session");
    let fops: Vec<Vec<u8>> = messages::all()
        .into_iter()
        .filter(|sample| matches!(sample.kind(), "Fop" | "Part" | "InodeOp"))
        .filter_map(|sample| hostile_fop(&sample))
        .collect();
    assert!(fops.len() > 50);
    let (mut refused, mut done) = (0, 0);
    for round in 0..rounds(400) {
        let mut draw = Draw::new(round + 50_000);
        for bytes in &fops {
            let bytes = if round == 0 {
                bytes.clone()
            } else {
                mutated(bytes, &mut draw)
            };
            let Ok(fop) = postcard::from_bytes::<Fop>(&bytes) else {
                continue;
            };
            if matches!(fop, Fop::SessionEnd | Fop::LockWait(_)) {
                continue; // the first ends the test, the other only waits
            }
            let body = Bytes::from(vec![7; draw.below(300)]);
            let text = format!("{fop:?}");
            let answer = catch_unwind(AssertUnwindSafe(|| rig.ask(fop, body, false)));
            match answer {
                Ok(Some((answer, _))) if answer.result.is_ok() => done += 1,
                Ok(_) => refused += 1,
                Err(_) => panic!("round {round}: {text}"),
            }
        }
        rig.pass_until_applied();
    }
    assert!(
        done > 100 && refused > 100,
        "{done} done, {refused} refused"
    );
    let (reply, _) = rig
        .get(Fop::GetAttr { id: InodeId::ROOT })
        .expect("it serves");
    assert!(matches!(reply, Reply::Attr(..)));
    rig.pass_until_checkpoint();
    let disk = rig
        .disk
        .reboot(mortar_server::device::sim::Survival::Process);
    drop(rig);
    let device: Arc<dyn Device> = disk;
    let mut store = Store::open(device).expect("it opens again");
    store.announce(store.head().seq);
    store.settle(&mut |_| Vec::new()).expect("it settles");
    assert_eq!(offline::check(&store).problems, Vec::<String>::new());
}

/// The encoded operation that a sample is, or is a part of; all work on the root and on one file.
fn hostile_fop(sample: &messages::Sample) -> Option<Vec<u8>> {
    let mut bytes = match sample.kind() {
        "Fop" => sample.bytes.clone(),
        // Within a commit or a change of one part: the number of the variant, then the part in place of its parts.
        kind => {
            let outer = messages::all().into_iter().find(|outer| {
                outer.name
                    == if kind == "Part" {
                        "Fop.commit"
                    } else {
                        "Fop.change"
                    }
            })?;
            let Ok(fop) = postcard::from_bytes::<Fop>(&outer.bytes) else {
                return None;
            };
            let fop = match fop {
                Fop::Commit { time, .. } => Fop::Commit {
                    parts: vec![postcard::from_bytes(&sample.bytes).ok()?],
                    time,
                },
                Fop::Change(mut change) => {
                    change.ops = vec![postcard::from_bytes(&sample.bytes).ok()?];
                    change.id = InodeId::ROOT;
                    Fop::Change(change)
                }
                _ => return None,
            };
            postcard::to_stdvec(&fop).ok()?
        }
    };
    bytes.shrink_to_fit();
    Some(bytes)
}
