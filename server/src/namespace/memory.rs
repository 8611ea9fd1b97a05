//! A state in memory that applies effects: what the tests run against.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use mortar_protocol::entry::{Effect, Object, Space};
use mortar_protocol::error::Fault;
use mortar_protocol::ids::StageId;
use mortar_protocol::limits::BLOCK;

use super::{Executed, State};

const SIZE: usize = BLOCK as usize;

/// One set's records, data and stages.
#[derive(Clone, Default, Debug)]
pub(super) struct Memory {
    pub(super) records: BTreeMap<Bytes, Bytes>,
    /// Blocks by number; `None` is an unwritten one.
    pub(super) objects: BTreeMap<Object, BTreeMap<u64, Option<Vec<u8>>>>,
    pub(super) stages: BTreeMap<StageId, Vec<u8>>,
    pub(super) space: Space,
}

impl Memory {
    pub(super) fn new() -> Self {
        Self {
            space: Space {
                total: 1 << 40,
                free: 1 << 40,
                ..Space::default()
            },
            ..Self::default()
        }
    }

    pub(super) fn apply(&mut self, executed: &Executed) {
        for effect in &executed.effects {
            self.apply_one(effect, &executed.body);
        }
        self.objects.retain(|_, blocks| !blocks.is_empty());
    }

    fn apply_one(&mut self, effect: &Effect, body: &Bytes) {
        match effect {
            Effect::Put { key, value } => {
                self.records.insert(key.clone(), value.clone());
            }
            Effect::Del { key } => {
                self.records.remove(key);
            }
            Effect::Write {
                object,
                offset,
                at,
                len,
            } => {
                let (at, len) = (*at as usize, *len as usize);
                self.write(*object, *offset, &body[at..at + len]);
            }
            Effect::Attach {
                object,
                offset,
                stage,
                ..
            } => {
                let bytes = self.stages.remove(stage).expect("the stage is held");
                self.write(*object, *offset, &bytes);
            }
            Effect::Punch {
                object,
                offset,
                len,
            } => self.punch(*object, *offset, *len),
            Effect::Reserve {
                object,
                offset,
                len,
                zero,
            } => {
                assert!(offset % BLOCK == 0 && len % BLOCK == 0);
                let blocks = self.objects.entry(*object).or_default();
                for block in offset / BLOCK..(offset + len) / BLOCK {
                    let content = blocks.entry(block).or_insert(None);
                    if *zero {
                        *content = None;
                    }
                }
            }
            Effect::Share {
                from,
                from_offset,
                object,
                offset,
                len,
            } => {
                assert!([from_offset, offset, len].iter().all(|n| *n % BLOCK == 0));
                for step in 0..len / BLOCK {
                    let source = self.objects[from][&(from_offset / BLOCK + step)].clone();
                    assert!(source.is_some(), "only data is shared");
                    let blocks = self.objects.entry(*object).or_default();
                    blocks.insert(offset / BLOCK + step, source);
                }
            }
        }
    }

    fn write(&mut self, object: Object, offset: u64, bytes: &[u8]) {
        let blocks = self.objects.entry(object).or_default();
        for (at, byte) in (offset..).zip(bytes) {
            let block = blocks.entry(at / BLOCK).or_insert(None);
            let block = block.get_or_insert_with(|| vec![0; SIZE]);
            block[(at % BLOCK) as usize] = *byte;
        }
    }

    fn punch(&mut self, object: Object, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        let blocks = self.objects.entry(object).or_default();
        blocks.retain(|block, content| {
            let (start, stop) = (block * BLOCK, (block + 1) * BLOCK);
            let (from, to) = (offset.max(start), end.min(stop));
            if from < to && to - from == BLOCK {
                return false;
            }
            if let Some(content) = content.as_mut().filter(|_| from < to) {
                content[(from - start) as usize..(to - start) as usize].fill(0);
            }
            true
        });
    }

    pub(super) fn bytes(&self, object: Object, offset: u64, len: usize) -> Vec<u8> {
        let blocks = self.objects.get(&object);
        (offset..offset + len as u64)
            .map(|at| {
                let block = blocks.and_then(|blocks| blocks.get(&(at / BLOCK)));
                match block {
                    Some(Some(content)) => content[(at % BLOCK) as usize],
                    _ => 0,
                }
            })
            .collect()
    }
}

impl State for Memory {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        Ok(self.records.get(key).cloned())
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        f: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Fault> {
        for (key, value) in self
            .records
            .range(Bytes::copy_from_slice(from)..Bytes::copy_from_slice(to))
        {
            if f(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn allocated(&self, object: Object, offset: u64, len: u64) -> Result<u64, Fault> {
        assert_eq!(offset % BLOCK, 0);
        let range = offset / BLOCK..offset.saturating_add(len).div_ceil(BLOCK);
        let blocks = self.objects.get(&object);
        Ok(blocks.map_or(0, |blocks| blocks.range(range).count() as u64))
    }

    fn seek(&self, object: Object, offset: u64, hole: bool) -> Result<Option<u64>, Fault> {
        let empty = BTreeMap::new();
        let blocks = self.objects.get(&object).unwrap_or(&empty);
        let is_data = |block: u64| matches!(blocks.get(&block), Some(Some(_)));
        if hole {
            let mut at = offset;
            while is_data(at / BLOCK) {
                at = (at / BLOCK + 1) * BLOCK;
            }
            return Ok(Some(at));
        }
        let data = blocks.range(offset / BLOCK..).find(|(_, c)| c.is_some());
        Ok(data.map(|(block, _)| (block * BLOCK).max(offset)))
    }

    fn read_now(&self, object: Object, offset: u64, len: usize) -> Result<Bytes, Fault> {
        Ok(self.bytes(object, offset, len).into())
    }

    fn stage(&self, id: StageId) -> Option<Vec<u32>> {
        let stage = self.stages.get(&id)?;
        Some(stage.chunks(SIZE).map(crc32fast::hash).collect())
    }

    fn space(&self) -> Space {
        self.space
    }
}
