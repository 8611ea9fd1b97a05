//! The components alone: codec, log, extents, tree, QUIC.
//!
//! ```text
//! cargo bench-one components            all
//! cargo bench-one components -- wal     those whose name contains "wal"
//! ```
//!
//! Each line is the median of many samples, how far the middle four fifths of them lie apart, and the unit. Devices are
//! files in `MORTAR_BENCH_DIR`, or else in the system's temporary directory: whether a flush costs anything depends on
//! what that lies on.

use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use mortar_benches::driven::Driven;
use mortar_benches::stats::median;
use mortar_protocol::attr::{Attr, Cred, FileKind, Time};
use mortar_protocol::entry::{Effect, Entry, EntryKind, Object};
use mortar_protocol::env_real::{mono_now, random};
use mortar_protocol::fop::{Answer, Call, Change, Cut, Fop, InodeOp, Reply, Request};
use mortar_protocol::frame::Frame;
use mortar_protocol::ids::{
    BrickId, ClusterId, Epoch, Gfid, InodeId, Mark, NodeId, Pos, Seq, SessionId, SetId, StageId,
};
use mortar_protocol::transport::quic::{QuicServer, QuicTransport, ServerLimits};
use mortar_protocol::transport::tls::Authority;
use mortar_protocol::transport::{Peer, ReplyTo, Service, Transport};
use mortar_protocol::view::SetKind;
use mortar_server::alloc::Allocator;
use mortar_server::device::{CreateOptions, Device, Engine, FileDevice};
use mortar_server::store::{FormatParams, Store};
use mortar_server::superblock::{Geometry, MIN_SIZE};
use mortar_server::tree::{Place, Tree};
use mortar_server::wal::{Wal, WalRecord};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

type Fail = Box<dyn std::error::Error>;

/// Samples of a line.
const SAMPLES: usize = 31;
/// A sample repeats what is quick for about so long.
const SAMPLE: Duration = Duration::from_millis(5);
const NODE: NodeId = NodeId(7);

fn main() -> Result<(), Fail> {
    // Cargo's own arguments begin with a dash.
    let filter = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    let bench = Bench { filter };
    println!("{:52} {:>12} {:>8}", "component", "median", "spread");
    codec(&bench)?;
    wal(&bench)?;
    extents(&bench)?;
    tree(&bench)?;
    quic(&bench)
}

/// Measures and prints.
struct Bench {
    filter: Option<String>,
}

impl Bench {
    fn wanted(&self, names: &[&str]) -> bool {
        self.filter
            .as_deref()
            .is_none_or(|filter| names.iter().any(|name| name.contains(filter)))
    }

    /// Times what is quick: as often per sample as makes it long enough for the clock.
    fn quick(&self, name: &str, mut work: impl FnMut() -> Result<(), Fail>) -> Result<(), Fail> {
        if !self.wanted(&[name]) {
            return Ok(());
        }
        let mut repeats = 0u32;
        let start = mono_now();
        while mono_now().since(start) < SAMPLE {
            work()?;
            repeats += 1;
        }
        self.line(name, Unit::Each(f64::from(repeats)), || {
            let start = mono_now();
            for _ in 0..repeats {
                work()?;
            }
            Ok(mono_now().since(start))
        })
    }

    /// Prints the median of samples that time themselves.
    fn line(
        &self,
        name: &str,
        unit: Unit,
        mut sample: impl FnMut() -> Result<Duration, Fail>,
    ) -> Result<(), Fail> {
        if !self.wanted(&[name]) {
            return Ok(());
        }
        sample()?;
        let mut figures = Vec::with_capacity(SAMPLES);
        for _ in 0..SAMPLES {
            figures.push(unit.figure(sample()?));
        }
        figures.sort_by(f64::total_cmp);
        let middle = median(&figures);
        let spread = figures[SAMPLES * 9 / 10] - figures[SAMPLES / 10];
        let (scale, label) = unit.label(middle);
        println!(
            "{name:52} {:>12.2} {:>7.0}% {label}",
            middle / scale,
            spread / middle * 100.0
        );
        Ok(())
    }
}

/// What a sample's time means.
#[derive(Clone, Copy)]
enum Unit {
    /// Time of one of so many operations.
    Each(f64),
    /// So many operations per second.
    Rate(f64),
    /// So many bytes per second.
    Bytes(f64),
}

impl Unit {
    fn figure(self, time: Duration) -> f64 {
        match self {
            Self::Each(count) => time.as_nanos() as f64 / count,
            Self::Rate(count) | Self::Bytes(count) => count / time.as_secs_f64(),
        }
    }

    fn label(self, figure: f64) -> (f64, &'static str) {
        match self {
            Self::Each(_) if figure < 1e3 => (1.0, "ns"),
            Self::Each(_) if figure < 1e6 => (1e3, "us"),
            Self::Each(_) => (1e6, "ms"),
            Self::Rate(_) => (1.0, "/s"),
            Self::Bytes(_) => (1e6, "MB/s"),
        }
    }
}

/// How long something takes.
fn timed<T>(work: impl FnOnce() -> Result<T, Fail>) -> Result<Duration, Fail> {
    let start = mono_now();
    work()?;
    Ok(mono_now().since(start))
}

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
fn write_entry(seq: u64, offset: u64, body: &Bytes) -> Entry {
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

fn codec(bench: &Bench) -> Result<(), Fail> {
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

/// Files as devices, removed in the end.
struct Disks {
    dir: TempDir,
    engine: Arc<Engine>,
}

impl Disks {
    fn new() -> Result<Self, Fail> {
        let dir = std::env::var_os("MORTAR_BENCH_DIR")
            .map_or_else(std::env::temp_dir, std::path::PathBuf::from);
        Ok(Self {
            dir: TempDir::with_prefix_in("mortar-bench-", dir)?,
            engine: Engine::new(),
        })
    }

    fn device(&self, name: &str) -> Result<Arc<dyn Device>, Fail> {
        let options = CreateOptions {
            size: Some(1 << 30),
            least: MIN_SIZE,
            force: true,
        };
        let path = self.dir.path().join(name);
        Ok(Arc::new(FileDevice::create(&path, &options, &self.engine)?))
    }

    fn wal(&self, name: &str) -> Result<(Arc<dyn Device>, Wal), Fail> {
        let device = self.device(name)?;
        let region = Geometry::for_size(device.len()).wal;
        let start = Wal::format(device.clone(), region, 1)?;
        let wal = Wal::open(device.clone(), region, 1, start, true)?.wal;
        Ok((device, wal))
    }
}

/// Appends `count` entries with one write.
fn append(wal: &mut Wal, count: u64, body: &Bytes) -> Result<(), Fail> {
    let first = wal.head().seq.0 + 1;
    let entries: Vec<Entry> = (first..first + count)
        .map(|seq| write_entry(seq, seq % 1_000 * 4_096, body))
        .collect();
    let record = |entry| WalRecord { entry, stages: &[] };
    wal.append(&entries.iter().map(record).collect::<Vec<_>>())?;
    if wal.free() < 16 << 20 {
        wal.release(wal.head());
    }
    Ok(())
}

fn wal(bench: &Bench) -> Result<(), Fail> {
    let names = [
        "wal: append one 4 KiB entry",
        "wal: append 16 entries of 4 KiB, each",
        "wal: append and flush one 4 KiB entry",
        "wal: three logs append 16 entries, one group flush",
    ];
    if !bench.wanted(&names) {
        return Ok(());
    }
    let disks = Disks::new()?;
    let body = Bytes::from(vec![5; 4_096]);
    let mut logs = [disks.wal("a")?, disks.wal("b")?, disks.wal("c")?];
    // Once around the ring: its first lap also writes zeros ahead.
    for (_, wal) in &mut logs {
        for _ in 0..600 {
            append(wal, 16, &body)?;
        }
    }
    let (device, wal) = &mut logs[0];
    bench.quick(names[0], || append(wal, 1, &body))?;
    bench.line(names[1], Unit::Each(16.0), || {
        timed(|| append(wal, 16, &body))
    })?;
    bench.line(names[2], Unit::Each(1.0), || {
        timed(|| {
            append(wal, 1, &body)?;
            flush(&[device])
        })
    })?;
    bench.line(names[3], Unit::Each(1.0), || {
        timed(|| {
            for (_, wal) in &mut logs {
                append(wal, 16, &body)?;
            }
            flush(&[&logs[0].0, &logs[1].0, &logs[2].0])
        })
    })
}

/// Flushes devices together.
fn flush(devices: &[&Arc<dyn Device>]) -> Result<(), Fail> {
    let (done, wait) = mpsc::channel();
    for device in devices {
        let done = done.clone();
        device.start_flush(Box::new(move |result| {
            // The receiver waits below.
            let _ = done.send(result);
        }));
    }
    for _ in devices {
        wait.recv()??;
    }
    Ok(())
}

const OBJECT: Object = Object {
    id: InodeId(0x5555_6666_7777_8888),
    shard: 0,
};
/// Size of the object that is read, in bytes.
const SIZE: u64 = 64 << 20;

/// A store with one large object.
struct Extents {
    store: Store,
    stages: u64,
}

impl Extents {
    fn new(disks: &Disks) -> Result<Self, Fail> {
        let device = disks.device("store")?;
        let params = FormatParams {
            cluster: ClusterId(1),
            generation: 0,
            node: NODE,
            brick: BrickId(1),
            set: SetId::default(),
            volume_name: "bench".to_owned(),
            kind: SetKind::Plain,
            shard_size: 64 << 20,
            force: true,
        };
        Store::format(&device, &params)?;
        let mut made = Self {
            store: Store::open(device)?,
            stages: 0,
        };
        for at in (0..SIZE).step_by(1 << 20) {
            made.staged(at)?;
        }
        made.settle()?;
        Ok(made)
    }

    /// Applies everything and makes room in the log.
    fn settle(&mut self) -> Result<(), Fail> {
        self.store.announce(self.store.head().seq);
        self.store.settle(&mut |_| Vec::new())?;
        Ok(())
    }

    fn append(&mut self, entry: Entry) -> Result<(), Fail> {
        Ok(self.store.append(&[Arc::new(entry)])?)
    }

    /// Appends 64 writes of 4 KiB.
    fn inline(&mut self, body: &Bytes) -> Result<(), Fail> {
        for _ in 0..64 {
            let seq = self.store.head().seq.0 + 1;
            self.append(write_entry(seq, random() % (SIZE / 4_096) * 4_096, body))?;
        }
        Ok(())
    }

    /// Applies what was appended, without a checkpoint.
    fn apply(&mut self) -> Result<(), Fail> {
        self.store.announce(self.store.head().seq);
        while self.store.applied() < self.store.head() {
            self.store.poll(mono_now(), &mut |_| Vec::new())?;
        }
        Ok(())
    }

    /// Writes 1 MiB as the client does: four stages, then the entry that attaches them.
    fn staged(&mut self, at: u64) -> Result<(), Fail> {
        let piece = mortar_protocol::aligned::AlignedBuf::zeroed(256 << 10).freeze();
        let (done, wait) = mpsc::channel();
        let mut effects = Vec::new();
        for part in 0..4 {
            self.stages += 1;
            let stage = StageId {
                session: SessionId(1),
                number: self.stages,
            };
            let done = done.clone();
            let told = move |result| {
                // The receiver waits below.
                let _ = done.send(result);
            };
            self.store.stage(stage, piece.clone(), Box::new(told));
            effects.push((stage, at + part * (256 << 10)));
        }
        for _ in 0..4 {
            wait.recv()??;
        }
        let attach = |(stage, offset)| {
            let info = self.store.stage_info(stage).ok_or("a stage is missing")?;
            Ok::<_, Fail>(Effect::Attach {
                object: OBJECT,
                offset,
                stage,
                crcs: info.crcs,
            })
        };
        let effects = effects.into_iter().map(attach).collect::<Result<_, _>>()?;
        let mut entry = write_entry(self.store.head().seq.0 + 1, 0, &Bytes::new());
        entry.effects = effects;
        self.append(entry)
    }

    fn read(&self, size: usize) -> Result<(), Fail> {
        let offset = random() % (SIZE / size as u64) * size as u64;
        let (done, wait) = mpsc::channel();
        let told = move |result| {
            // The receiver waits below.
            let _ = done.send(result);
        };
        let newest = self.store.head().seq;
        self.store
            .start_read(OBJECT, offset, size, newest, Box::new(told));
        match wait.recv()??.len() == size {
            true => Ok(()),
            false => Err("a short read".into()),
        }
    }
}

fn extents(bench: &Bench) -> Result<(), Fail> {
    let names = [
        "extents: append 64 writes of 4 KiB, each",
        "extents: apply 64 writes of 4 KiB in place, each",
        "extents: stage and attach 1 MiB",
        "extents: read 4 KiB, verified",
        "extents: read 1 MiB, verified",
    ];
    if !bench.wanted(&names) {
        return Ok(());
    }
    let disks = Disks::new()?;
    let mut extents = Extents::new(&disks)?;
    let body = Bytes::from(vec![9; 4_096]);
    bench.line(names[0], Unit::Each(64.0), || {
        let time = timed(|| extents.inline(&body))?;
        extents.settle()?;
        Ok(time)
    })?;
    bench.line(names[1], Unit::Each(64.0), || {
        extents.inline(&body)?;
        let time = timed(|| extents.apply())?;
        extents.settle()?;
        Ok(time)
    })?;
    bench.line(names[2], Unit::Bytes(1_048_576.0), || {
        let time = timed(|| extents.staged(random() % 64 << 20))?;
        extents.settle()?;
        Ok(time)
    })?;
    bench.quick(names[3], || extents.read(4 << 10))?;
    bench.line(names[4], Unit::Bytes(16.0 * 1_048_576.0), || {
        timed(|| (0..16).try_for_each(|_| extents.read(1 << 20)))
    })
}

fn tree(bench: &Bench) -> Result<(), Fail> {
    let names = [
        "tree: insert 64 records in a batch, each",
        "tree: checkpoint of 64 records",
        "tree: get one of 100,000",
        "tree: get one that is not there",
    ];
    if !bench.wanted(&names) {
        return Ok(());
    }
    let disks = Disks::new()?;
    let device = disks.device("tree")?;
    let geometry = Geometry::for_size(device.len());
    let place = Place {
        map: geometry.chunk_map.offset,
        slot: geometry.chunk_map.len / 2,
        extents: geometry.extents.offset,
    };
    let alloc = Allocator::new(geometry.extents.len / 4_096);
    let tree = Tree::create(device, place, Arc::new(Mutex::new(alloc)))?;
    let key = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    tree.checkpoint(|batch| (0..100_000).try_for_each(|n| batch.put(&key(n), &[1; 110])))?;
    let mut next = 100_000;
    let mut more = || {
        next += 64;
        next - 64..next
    };
    bench.line(names[0], Unit::Each(64.0), || {
        let mut records = more();
        timed(|| Ok(tree.apply(|batch| records.try_for_each(|n| batch.put(&key(n), &[2; 110])))?))
    })?;
    bench.line(names[1], Unit::Each(1.0), || {
        let mut records = more();
        timed(|| {
            Ok(tree.checkpoint(|batch| records.try_for_each(|n| batch.put(&key(n), &[3; 110])))?)
        })
    })?;
    let snapshot = tree.snapshot()?;
    bench.quick(names[2], || {
        match snapshot.get(&key(random() % 100_000))? {
            Some(_) => Ok(()),
            None => Err("a record is missing".into()),
        }
    })?;
    bench.quick(names[3], || {
        match snapshot.get(&random().to_le_bytes()[..7])? {
            Some(_) => Err("a record is there".into()),
            None => Ok(()),
        }
    })
}

/// Answers a request with as many bytes as its head says.
struct Bounce(Bytes);

impl Service for Bounce {
    fn serve(&self, _peer: Peer, frame: Frame, reply: ReplyTo) {
        let wanted = frame.message::<u32>().unwrap_or(0) as usize;
        let body = self.0.slice(..wanted.min(self.0.len()));
        reply(Frame {
            head: Bytes::new(),
            body,
        });
    }
}

/// A client and a server over loopback, on a thread each.
struct Pair {
    client: Runtime,
    transport: QuicTransport,
    addr: SocketAddr,
    _server: (QuicServer, Driven),
}

impl Pair {
    fn new() -> Result<Self, Fail> {
        let authority = Authority::generate(ClusterId(1))?;
        let server = Driven::start("server")?;
        let service = Arc::new(Bounce(vec![4; 1 << 20].into()));
        let quic = QuicServer::start(
            &authority.issue_node(NODE)?,
            SocketAddr::from(([127, 0, 0, 1], 0)),
            ServerLimits::default(),
            server.handle(),
            service,
        )?;
        let client = Builder::new_current_thread().enable_all().build()?;
        let transport = QuicTransport::new(&authority.issue_client(0)?, client.handle())?;
        Ok(Self {
            client,
            transport,
            addr: quic.local_addr(),
            _server: (quic, server),
        })
    }

    /// Makes `count` requests, `depth` at a time.
    fn requests(&self, count: usize, depth: usize, send: usize, receive: u32) -> Result<(), Fail> {
        let frame = Frame::new(&receive, vec![6; send].into())?;
        let one = |transport: QuicTransport, addr, frame: Frame| async move {
            for _ in 0..count / depth {
                let answer = transport.call(NODE, &[addr], frame.clone()).await;
                if answer.map_err(|lost| lost.to_string())?.body.len() != receive as usize {
                    return Err("a short answer".to_owned());
                }
            }
            Ok(())
        };
        self.client.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..depth {
                tasks.spawn(one(self.transport.clone(), self.addr, frame.clone()));
            }
            while let Some(done) = tasks.join_next().await {
                done??;
            }
            Ok(())
        })
    }
}

fn quic(bench: &Bench) -> Result<(), Fail> {
    let names = [
        "quic: 4 KiB there, 16 bytes back, one at a time",
        "quic: 4 KiB there, 16 bytes back, 16 at a time",
        "quic: 1 MiB there, 4 at a time",
        "quic: 1 MiB back, 4 at a time",
    ];
    if !bench.wanted(&names) {
        return Ok(());
    }
    let pair = Pair::new()?;
    let bytes = Unit::Bytes(32.0 * 1_048_576.0);
    bench.line(names[0], Unit::Each(100.0), || {
        timed(|| pair.requests(100, 1, 4_096, 16))
    })?;
    bench.line(names[1], Unit::Rate(1_600.0), || {
        timed(|| pair.requests(1_600, 16, 4_096, 16))
    })?;
    bench.line(names[2], bytes, || {
        timed(|| pair.requests(32, 4, 1 << 20, 0))
    })?;
    bench.line(names[3], bytes, || {
        timed(|| pair.requests(32, 4, 0, 1 << 20))
    })?;
    pair.client.block_on(pair.transport.close());
    Ok(())
}
