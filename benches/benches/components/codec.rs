//! Encoding and decoding.

use bytes::Bytes;
use mortar_protocol::attr::{Attr, Cred, FileKind, Time};
use mortar_protocol::entry::{Effect, Entry, EntryKind, Object};
use mortar_protocol::env_real::random;
use mortar_protocol::fop::{Answer, Call, Change, Cut, Fop, InodeOp, Reply, Request};
use mortar_protocol::frame::Frame;
use mortar_protocol::ids::{BrickId, Epoch, Gfid, InodeId, Mark, Pos, Seq, SessionId};

use crate::measure::{Bench, Fail};

/// The object that entries write to.
pub(crate) const OBJECT: Object = Object {
    id: InodeId(0x5555_6666_7777_8888),
    shard: 0,
};

fn write_call() -> Request {
    Request::Fop(Call {
        brick: BrickId(0x1234_5678_9abc_def0),
        epoch: Epoch(3),
        session: SessionId(17),
        number: 4_711,
        answered_below: 4_700,
        repeat: false,
        after: 4_710,
        cred: Cred {
            uid: 1_000,
            gid: 1_000,
            groups: vec![],
        },
        durable: false,
        fop: Fop::Change(Change {
            id: InodeId(0x5555_6666_7777_8888),
            inode: true,
            cut: Cut::default(),
            time: Time {
                secs: 1_790_000_000,
                nanos: 1,
            },
            ops: vec![InodeOp::Write {
                shard: 0,
                offset: 1 << 20,
                len: 4_096,
            }],
        }),
    })
}

fn answer() -> Answer {
    let time = Time {
        secs: 1_790_000_000,
        nanos: 123_456_789,
    };
    let attr = Attr {
        gfid: Gfid {
            id: InodeId(0x5555_6666_7777_8888),
            generation: random(),
        },
        kind: FileKind::File,
        perm: 0o644,
        nlink: 1,
        uid: 1_000,
        gid: 1_000,
        rdev: 0,
        size: 1 << 30,
        blocks: 1 << 21,
        atime: time,
        mtime: time,
        ctime: time,
        btime: time,
        change: 99,
        has_xattr: false,
    };
    Answer {
        mark: Mark::default(),
        flushed: Seq(4_000),
        result: Ok(Reply::Changed {
            before: 98,
            attr: Some(attr),
            appended_at: None,
            blocks: 0,
        }),
    }
}

/// An entry as a 4 KiB write makes it.
pub(crate) fn write_entry(seq: u64, offset: u64, body: &Bytes) -> Entry {
    Entry {
        pos: Pos {
            epoch: Epoch(1),
            seq: Seq(seq),
        },
        kind: EntryKind::Change {
            session: SessionId(17),
            number: seq,
            answered_below: seq.saturating_sub(16),
            result: Bytes::from_static(&[7; 90]),
        },
        effects: vec![
            Effect::Write {
                object: OBJECT,
                offset,
                at: 0,
                len: body.len() as u32,
            },
            Effect::Put {
                key: Bytes::from_static(b"I\x55\x55\x66\x66\x77\x77\x88\x88"),
                value: Bytes::from_static(&[3; 110]),
            },
        ],
        body: body.clone(),
    }
}

/// Measures it.
pub(crate) fn run(bench: &Bench) -> Result<(), Fail> {
    let page = Bytes::from(vec![1; 4_096]);
    let (call, answer, entry) = (write_call(), answer(), write_entry(1, 0, &page));
    let frames = (
        Frame::new(&call, page.clone())?,
        Frame::new(&answer, Bytes::new())?,
        Frame::new(&entry, page.clone())?,
    );
    let keep = |made: usize| match made {
        0 => Err::<(), Fail>("nothing was made".into()),
        _ => Ok(()),
    };
    bench.quick("codec: encode a 4 KiB write call", || {
        keep(Frame::new(&call, page.clone())?.head.len())
    })?;
    bench.quick("codec: decode a 4 KiB write call", || {
        keep(usize::from(frames.0.message::<Request>()? == call))
    })?;
    bench.quick("codec: encode an answer with attributes", || {
        keep(Frame::new(&answer, Bytes::new())?.head.len())
    })?;
    bench.quick("codec: decode an answer with attributes", || {
        keep(usize::from(
            frames.1.message::<Answer>()?.flushed == Seq(4_000),
        ))
    })?;
    bench.quick("codec: encode an entry", || {
        keep(Frame::new(&entry, page.clone())?.head.len())
    })?;
    bench.quick("codec: decode an entry", || {
        keep(frames.2.message::<Entry>()?.effects.len())
    })
}
