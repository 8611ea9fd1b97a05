//! What a run of a brick begins with, and what it saves for the next.

use bytes::Bytes;
use mortar_protocol::env::Mono;
use mortar_protocol::ids::{BootId, Pos, RunId, Seq};
use mortar_protocol::peer::History;
use mortar_protocol::report::{MAX_MEMBER_RUNS, MemberRuns};

use super::sessions::{self, Sessions};
use super::storage::{NEWEST, Storage};
use crate::setlog::SetLog;

/// What goes into the tree with every batch: the sessions as of its end.
pub(super) fn records<'a>(
    log: &'a SetLog,
    sessions: &'a mut Sessions,
) -> impl FnMut(Seq) -> Vec<(Bytes, Option<Bytes>)> + 'a {
    |upto| match log.position(upto) {
        Some(pos) => sessions.save(pos),
        None => Vec::new(),
    }
}

/// Positions and sessions as the store holds them.
pub(super) fn recover(storage: &dyn Storage, now: Mono) -> (History, Sessions) {
    let mut sessions = Sessions::default();
    let load = storage.scan(
        sessions::FIRST_KEY,
        sessions::LAST_KEY,
        NEWEST,
        &mut |key, value| {
            sessions.load(key, value);
            std::ops::ControlFlow::Continue(())
        },
    );
    if load.is_err() {
        tracing::error!("the saved sessions cannot be read");
    }
    let saved = storage.get(sessions::saved_at_key(), NEWEST).ok().flatten();
    let saved: Pos = saved
        .and_then(|at| postcard::from_bytes(&at).ok())
        .unwrap_or_default();
    let start = storage.log_start();
    let mut history = History {
        base: start,
        starts: Vec::new(),
        head: start,
    };
    // Of entries that the saved sessions hold only the positions are needed.
    while history.head.seq < storage.head().seq.min(saved.seq)
        && let Some(pos) = storage.position_at(history.head.seq.next())
    {
        crate::setlog::Positions::push(&mut history, pos);
    }
    while history.head.seq < storage.head().seq {
        let Ok(entries) = storage.entries_after(history.head, 4 << 20) else {
            break;
        };
        if entries.is_empty() {
            break;
        }
        for entry in entries {
            crate::setlog::Positions::push(&mut history, entry.pos);
            if entry.pos > saved {
                sessions.note(&entry, now);
            }
        }
    }
    (history, sessions)
}

/// The runs to name in the superblock once `run` is a member, given what it names now.
pub(crate) fn lineage(
    known: Option<MemberRuns>,
    run: RunId,
    boot: BootId,
    clean: bool,
) -> MemberRuns {
    let whole = known.filter(|known| known.boot == boot || known.clean);
    let mut runs = whole.map_or_else(Vec::new, |known| known.runs);
    if runs.last() != Some(&run) {
        runs.push(run);
    }
    runs.drain(..runs.len().saturating_sub(MAX_MEMBER_RUNS));
    MemberRuns { runs, boot, clean }
}
