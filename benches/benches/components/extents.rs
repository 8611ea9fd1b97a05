//! A store: writes in place and staged, reads.

use std::sync::{Arc, mpsc};

use bytes::Bytes;
use mortar_protocol::aligned::AlignedBuf;
use mortar_protocol::entry::{Effect, Entry};
use mortar_protocol::env_real::{mono_now, random};
use mortar_protocol::ids::{BrickId, ClusterId, NodeId, SessionId, SetId, StageId};
use mortar_protocol::view::SetKind;
use mortar_server::store::{FormatParams, Store};

use crate::codec::{OBJECT, write_entry};
use crate::measure::{Bench, Disks, Fail, Unit, timed};

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
            node: NodeId(7),
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
        let piece = AlignedBuf::zeroed(256 << 10).freeze();
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
            .start_read((OBJECT, offset, size), newest, true, Box::new(told));
        match wait.recv()??.len() == size {
            true => Ok(()),
            false => Err("a short read".into()),
        }
    }
}

/// Measures it.
pub(crate) fn run(bench: &Bench) -> Result<(), Fail> {
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
        let time = timed(|| extents.staged((random() % 64) << 20))?;
        extents.settle()?;
        Ok(time)
    })?;
    bench.quick(names[3], || extents.read(4 << 10))?;
    bench.line(names[4], Unit::Bytes(16.0 * 1_048_576.0), || {
        timed(|| (0..16).try_for_each(|_| extents.read(1 << 20)))
    })
}
