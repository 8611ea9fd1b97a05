//! Bricks on simulated disks, with the real decisions on views.

mod away;
mod memory;
mod rig;

use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{Call, Fop, InodeOp, LockKind, LockOutcome, LockRequest, Reply};
use mortar_protocol::ids::{Gfid, InodeId, Mark, Opening, Seq, SessionId, StageId};
use mortar_protocol::limits::SHARD_SIZE;
use mortar_protocol::peer::PeerMessage;

use crate::device::sim::{Fault as DiskFault, Survival};
use rig::{FILE, Rig, SESSION, change, create, write};

#[test]
fn creates_writes_and_reads_on_every_member() {
    for bricks in [1, 3] {
        let mut rig = Rig::new(bricks);
        rig.create();
        rig.done(write(0, 5), b"hello");
        for at in 0..bricks {
            assert_eq!(
                rig.read(at, 100),
                Ok(Bytes::from_static(b"hello")),
                "brick {at}"
            );
        }
    }
}

#[test]
fn a_repeated_request_gets_the_first_answer_also_after_a_restart() {
    let mut rig = Rig::new(3);
    rig.create();
    let call = rig.request(create(
        Gfid {
            id: InodeId(77),
            generation: 1,
        },
        b"other",
    ));
    let primary = rig.primary();
    let slot = rig.send(primary, call.clone(), Bytes::new());
    rig.settle();
    let (first, _) = slot.lock().take().expect("an answer");
    assert!(first.result.is_ok());
    let again = Call {
        repeat: true,
        ..call
    };
    let slot = rig.send(primary, again.clone(), Bytes::new());
    rig.settle();
    let (second, _) = slot.lock().take().expect("an answer");
    assert_eq!(
        (second.result, second.mark),
        (first.result.clone(), first.mark)
    );
    for at in 0..3 {
        rig.reboot(at, Survival::Process);
    }
    rig.settle();
    let primary = rig.primary();
    let slot = rig.send(primary, again, Bytes::new());
    rig.settle();
    let (third, _) = slot.lock().take().expect("an answer");
    assert_eq!((third.result, third.mark), (first.result, first.mark));
}

#[test]
fn results_survive_that_their_entries_are_applied_and_leave_the_log() {
    let mut rig = Rig::new(3);
    rig.create();
    let call = rig.request(write(0, 3));
    let primary = rig.primary();
    let slot = rig.send(primary, call.clone(), Bytes::from_static(b"abc"));
    rig.settle();
    let (first, _) = slot.lock().take().expect("an answer");
    // Flushed, announced, applied; then a checkpoint that is due after 30 s.
    rig.pass(Duration::from_secs(35));
    for at in 0..3 {
        rig.reboot(at, Survival::Process);
    }
    rig.settle();
    let primary = rig.primary();
    let again = Call {
        repeat: true,
        ..call
    };
    let slot = rig.send(primary, again, Bytes::from_static(b"abc"));
    rig.settle();
    let (second, _) = slot.lock().take().expect("an answer");
    assert_eq!((second.result, second.mark), (first.result, first.mark));
}

#[test]
fn what_sync_answered_survives_power_loss_and_what_it_did_not_is_told() {
    let mut rig = Rig::new(3);
    rig.create();
    let kept = rig.done(write(0, 4), b"kept").mark;
    assert_eq!(rig.sync(kept), Ok(Reply::Done));
    let lost = rig.done(write(4, 4), b"lost").mark;
    for at in 0..3 {
        rig.reboot(at, Survival::Nothing);
    }
    rig.settle();
    assert_eq!(rig.view().members.len(), 3);
    assert_eq!(rig.read(0, 100), Ok(Bytes::from_static(b"kept")));
    assert_eq!(rig.sync(kept), Ok(Reply::Done));
    assert_eq!(rig.sync(lost), Err(Fault::Lost(rig.view().opening)));
}

#[test]
fn restart_of_processes_loses_nothing() {
    let mut rig = Rig::new(3);
    rig.create();
    let mark = rig.done(write(0, 4), b"here").mark;
    for at in 0..3 {
        rig.reboot(at, Survival::Process);
    }
    rig.settle();
    assert_eq!(rig.read(2, 100), Ok(Bytes::from_static(b"here")));
    assert_eq!(rig.sync(mark), Ok(Reply::Done));
}

#[test]
fn a_restarted_member_joins_by_its_log() {
    let mut rig = Rig::new(3);
    rig.create();
    rig.reboot(2, Survival::Process);
    rig.settle();
    rig.done(write(0, 5), b"after");
    rig.pass(Duration::from_secs(3));
    assert_eq!(rig.view().members.len(), 3);
    assert_eq!(rig.read(2, 100), Ok(Bytes::from_static(b"after")));
}

pub(super) fn attach(number: u64, blocks: u32) -> Fop {
    attach_at(number, 0, blocks)
}

/// Attaches at a place of the file.
pub(super) fn attach_at(number: u64, at: u64, blocks: u32) -> Fop {
    let stage = StageId {
        session: SESSION,
        number,
    };
    change(InodeOp::Attach {
        shard: (at / SHARD_SIZE) as u32,
        offset: at % SHARD_SIZE,
        stage,
        len: blocks * 4096,
    })
}

#[test]
fn staged_data_is_attached_on_every_member() {
    let mut rig = Rig::new(3);
    rig.create();
    let data = Bytes::from(vec![7; 64 << 10]);
    assert_eq!(rig.stage(1, data.clone(), &[0, 1, 2]), vec![Ok(()); 3]);
    rig.done(attach(1, 16), b"");
    for at in 0..3 {
        assert_eq!(rig.read(at, 64 << 10), Ok(data.clone()));
    }
    assert!(!rig.passed.contains(&"stagewanted"));
}

#[test]
fn a_dump_shows_bulk_data_that_the_disk_has_not_written() {
    let mut rig = Rig::new(3);
    rig.create();
    let bytes = 64 << 10;
    rig.hang(1, true);
    let slot = rig.begin_stage(5, Bytes::from(vec![7; bytes]), 1);
    rig.pass(Duration::from_millis(300));
    assert!(slot.lock().is_none());
    let staging = rig.state(1).staging;
    assert_eq!(staging.len(), 1);
    assert_eq!((staging[0].number, staging[0].bytes), (5, bytes));
    assert!(staging[0].age_ms >= 300, "{staging:?}");
    assert_eq!(rig.state(0).staging, []);
}

#[test]
fn a_member_without_the_stage_fetches_it_before_it_answers() {
    let mut rig = Rig::new(3);
    rig.create();
    let data = Bytes::from(vec![9; 128 << 10]);
    let primary = rig.primary();
    let others: Vec<usize> = (0..3).filter(|at| *at != primary).collect();
    rig.stage(1, data.clone(), &[primary, others[0]]);
    let call = rig.request(attach(1, 32));
    let slot = rig.send(primary, call, Bytes::new());
    rig.settle();
    assert!(
        slot.lock().is_none(),
        "not acknowledged while a member lacks the bytes"
    );
    rig.pass(Duration::from_millis(400));
    let wanted = PeerMessage::StageWanted {
        at: Default::default(),
        stage: StageId {
            session: SESSION,
            number: 1,
        },
    };
    assert!(rig.saw(&wanted));
    assert!(slot.lock().take().expect("an answer").0.result.is_ok());
    assert_eq!(rig.read(others[1], 128 << 10), Ok(data));
}

#[test]
fn a_missing_stage_is_told_after_a_while() {
    let mut rig = Rig::new(1);
    rig.create();
    let call = rig.request(attach(5, 16));
    let slot = rig.send(0, call, Bytes::new());
    rig.pass(Duration::from_secs(1));
    let (answer, _) = slot.lock().take().expect("an answer");
    assert_eq!(answer.result, Err(Fault::NoStage));
}

#[test]
fn a_change_refused_for_a_missing_stage_is_not_done_when_a_late_copy_arrives() {
    let mut rig = Rig::new(1);
    rig.create();
    let call = Call {
        repeat: true,
        ..rig.request(attach(5, 16))
    };
    let slot = rig.send(0, call.clone(), Bytes::new());
    rig.pass(Duration::from_secs(1));
    let (answer, _) = slot.lock().take().expect("an answer");
    assert_eq!(answer.result, Err(Fault::NoStage));
    // The client sends the data, and tries with another number; a copy of the first request comes before that.
    assert_eq!(rig.stage(5, Bytes::from(vec![7; 64 << 10]), &[0]), [Ok(())]);
    let slot = rig.send(0, call, Bytes::new());
    rig.pass(Duration::from_secs(1));
    let (answer, _) = slot.lock().take().expect("an answer");
    assert_eq!(answer.result, Err(Fault::NoStage));
    assert_eq!(rig.read(0, 8), Ok(Bytes::new()));
    rig.done(attach(5, 16), b"");
    assert_eq!(rig.read(0, 8), Ok(Bytes::from(vec![7; 8])));
}

#[test]
fn refusals_and_their_dependants() {
    let mut rig = Rig::new(3);
    rig.create();
    let primary = rig.primary();
    let gfid = Gfid {
        id: InodeId(99),
        generation: 1,
    };
    let refused = rig.request(create(gfid, b"file"));
    let after = rig.request(write(0, 2));
    let (first, second) = (refused.number, after.number);
    assert_eq!(second, first + 1);
    // The dependant arrives first and waits.
    let dependant = rig.send(
        primary,
        Call {
            after: first,
            ..after
        },
        Bytes::from_static(b"no"),
    );
    rig.settle();
    assert!(dependant.lock().is_none());
    let slot = rig.send(primary, refused, Bytes::new());
    rig.settle();
    let (answer, _) = slot.lock().take().expect("an answer");
    assert_eq!(answer.result, Err(Fault::Refused(Errno::EEXIST)));
    let (answer, _) = dependant.lock().take().expect("an answer");
    assert_eq!(answer.result, Err(Fault::Refused(Errno::EIO)));
    assert_eq!(rig.read(primary, 100), Ok(Bytes::new()));
}

#[test]
fn numbers_that_were_given_up_are_never_run() {
    let mut rig = Rig::new(1);
    rig.create();
    let given_up = rig.request(write(0, 4));
    let next = rig.request(write(0, 4));
    let next = Call {
        answered_below: next.number,
        ..next
    };
    let slot = rig.send(0, next, Bytes::from_static(b"next"));
    rig.settle();
    assert!(slot.lock().take().expect("an answer").0.result.is_ok());
    let slot = rig.send(0, given_up, Bytes::from_static(b"late"));
    rig.settle();
    assert_eq!(
        slot.lock().take().expect("an answer").0.result,
        Err(Fault::Protocol)
    );
    assert_eq!(rig.read(0, 100), Ok(Bytes::from_static(b"next")));
}

#[test]
fn a_brick_whose_disk_fails_leaves_and_the_set_goes_on() {
    let mut rig = Rig::new(3);
    rig.create();
    let victim = (rig.primary() + 1) % 3;
    let steps = rig.disks[victim].steps();
    rig.disks[victim].fail_at(steps + 1, DiskFault::Error(libc::EIO));
    rig.disks[victim].fail_at(steps + 2, DiskFault::Error(libc::EIO));
    let mark = rig.done(write(0, 4), b"safe").mark;
    rig.pass(Duration::from_secs(2));
    assert_eq!(rig.view().members.len(), 2);
    assert_eq!(rig.sync(mark), Ok(Reply::Done));
    let primary = rig.primary();
    assert_eq!(rig.read(primary, 100), Ok(Bytes::from_static(b"safe")));
    assert!(
        rig.read(victim, 100).is_err(),
        "a poisoned brick answers nothing"
    );
}

#[test]
fn too_few_members_refuse_changes_but_not_what_was_done_nor_unlocking() {
    let mut rig = Rig::new(3);
    rig.create();
    let done = rig.request(change(InodeOp::Append { len: 3 }));
    let body = Bytes::from_static(b"one");
    let primary = rig.primary();
    let slot = rig.send(primary, done.clone(), body.clone());
    rig.settle();
    let first = slot.lock().take().expect("an answer").0;
    let granted = rig.call(primary, Fop::Lock(lock(0)), b"").0.result;
    assert_eq!(locked(granted), LockOutcome::Granted);
    for victim in (0..3).filter(|at| *at != primary) {
        let steps = rig.disks[victim].steps();
        rig.disks[victim].fail_at(steps + 1, DiskFault::Error(libc::EIO));
        rig.disks[victim].fail_at(steps + 2, DiskFault::Error(libc::EIO));
    }
    rig.done(write(8, 1), b"x");
    rig.pass(Duration::from_secs(12));
    assert_eq!(rig.view().members.len(), 1);
    let refused = rig.call(primary, write(8, 1), b"y").0.result;
    assert_eq!(refused, Err(Errno::EROFS.into()));
    let again = Call {
        repeat: true,
        ..done
    };
    let slot = rig.send(primary, again, body);
    rig.settle();
    let second = slot.lock().take().expect("an answer").0;
    assert_eq!((second.result, second.mark), (first.result, first.mark));
    let unlock = LockRequest {
        kind: LockKind::Unlock,
        ..lock(0)
    };
    let released = rig.call(primary, Fop::Lock(unlock), b"").0.result;
    assert_eq!(locked(released), LockOutcome::Granted);
    assert_eq!(rig.read(primary, 3), Ok(Bytes::from_static(b"one")));
}

#[test]
fn a_primary_whose_disk_fails_is_replaced_and_its_unanswered_call_runs_once() {
    let mut rig = Rig::new(3);
    rig.create();
    rig.done(write(0, 3), b"one");
    let old = rig.primary();
    let steps = rig.disks[old].steps();
    rig.disks[old].fail_at(steps + 1, DiskFault::Error(libc::EIO));
    let call = rig.request(change(InodeOp::Append { len: 3 }));
    let slot = rig.send(old, call.clone(), Bytes::from_static(b"two"));
    rig.pass(Duration::from_secs(2));
    let told = slot.lock().take();
    assert!(told.is_none_or(|(answer, _)| answer.result.is_err()));
    assert_ne!(rig.primary(), old);
    let primary = rig.primary();
    for _ in 0..2 {
        let again = Call {
            repeat: true,
            ..call.clone()
        };
        let slot = rig.send(primary, again, Bytes::from_static(b"two"));
        rig.settle();
        assert!(slot.lock().take().expect("an answer").0.result.is_ok());
    }
    assert_eq!(rig.read(primary, 100), Ok(Bytes::from_static(b"onetwo")));
}

#[test]
fn a_session_that_the_control_plane_ended_is_unknown_and_stays_so() {
    let mut rig = Rig::new(3);
    rig.create();
    rig.live.clear();
    rig.tell_sessions();
    rig.settle();
    let primary = rig.primary();
    let (answer, _) = rig.call(primary, write(0, 1), b"x");
    assert_eq!(answer.result, Err(Fault::UnknownSession));
    let (answer, _) = rig.call(primary, Fop::SessionBegin, b"");
    assert_eq!(answer.result, Err(Fault::UnknownSession));
    for at in 0..3 {
        rig.reboot(at, Survival::Process);
    }
    rig.settle();
    assert_eq!(rig.read(0, 1), Err(Fault::UnknownSession));
}

#[test]
fn the_control_plane_is_told_of_a_session_that_its_client_ended_until_it_knows() {
    let mut rig = Rig::new(3);
    rig.create();
    rig.done(Fop::SessionEnd, b"");
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.gone, [SESSION]);
    rig.pass(Duration::from_secs(5));
    assert_eq!(rig.gone, [SESSION; 2], "the first time may be lost");
    rig.live.clear();
    rig.tell_sessions();
    rig.pass(Duration::from_secs(11));
    assert_eq!(rig.gone, [SESSION; 2]);
}

#[test]
fn reads_of_a_backup_wait_for_what_it_holds() {
    let mut rig = Rig::new(3);
    rig.create();
    let primary = rig.primary();
    let backup = (primary + 1) % 3;
    rig.lose = vec!["written"];
    let call = rig.request(write(0, 4));
    let pending = rig.send(primary, call, Bytes::from_static(b"wait"));
    rig.settle();
    assert!(pending.lock().is_none());
    let call = rig.request(rig::read(100));
    let waiting = rig.send(backup, call, Bytes::new());
    rig.settle();
    assert!(
        waiting.lock().is_none(),
        "it holds an entry of which it does not know whether it stands"
    );
    rig.lose.clear();
    rig.pass(Duration::from_secs(2));
    assert!(pending.lock().is_some());
    let (answer, body) = waiting.lock().take().expect("an answer");
    assert!(answer.result.is_ok());
    assert_eq!(body, Bytes::from_static(b"wait"));
}

#[test]
fn a_mark_of_a_later_place_than_the_set_has_is_lost() {
    let mut rig = Rig::new(1);
    rig.create();
    let mark = Mark {
        opening: rig.view().opening,
        seq: Seq(1_000),
    };
    assert!(matches!(rig.sync(mark), Err(Fault::Lost(_))));
}

/// A second client beside [`SESSION`].
const OTHER: SessionId = SessionId(2);

fn as_session(rig: &mut Rig, session: SessionId, fop: Fop) -> Result<Reply, Fault> {
    let call = Call {
        session,
        ..rig.request(fop)
    };
    let primary = rig.primary();
    let slot = rig.send(primary, call, Bytes::new());
    rig.settle();
    let answer = slot.lock().take();
    answer.expect("an answer").0.result
}

fn lock(start: u64) -> LockRequest {
    LockRequest {
        id: FILE.id,
        owner: 1,
        start,
        end: start + 9,
        kind: LockKind::Write,
        pid: 1,
        wait: false,
    }
}

fn locked(result: Result<Reply, Fault>) -> LockOutcome {
    match result {
        Ok(Reply::Locked { outcome, .. }) => outcome,
        other => panic!("{other:?}"),
    }
}

/// Two sessions, a lock of the first that is lost with the power, and the set is open again.
fn with_a_lost_lock() -> Rig {
    let mut rig = Rig::new(3);
    rig.live.push(OTHER);
    rig.tell_sessions();
    rig.create();
    assert_eq!(
        as_session(&mut rig, OTHER, Fop::SessionBegin),
        Ok(Reply::Done)
    );
    let mark = rig.done(write(0, 4), b"file").mark;
    assert_eq!(rig.sync(mark), Ok(Reply::Done));
    let granted = as_session(&mut rig, SESSION, Fop::Lock(lock(0)));
    assert_eq!(locked(granted), LockOutcome::Granted);
    for at in 0..3 {
        rig.reboot(at, Survival::Nothing);
    }
    rig.settle();
    rig
}

fn asked_for(rig: &mut Rig, session: SessionId) -> Option<Opening> {
    let renew = Fop::Renew {
        open: Vec::new(),
        released: Vec::new(),
    };
    match as_session(rig, session, renew) {
        Ok(Reply::Renewed { claim, .. }) => claim,
        other => panic!("{other:?}"),
    }
}

#[test]
fn after_a_lossy_opening_locks_are_granted_once_all_sessions_have_claimed() {
    let mut rig = with_a_lost_lock();
    let opening = rig.view().opening;
    let lock_it = |rig: &mut Rig| as_session(rig, OTHER, Fop::Lock(lock(5)));
    assert_eq!(lock_it(&mut rig), Err(Fault::NotServing));
    assert_eq!(asked_for(&mut rig, SESSION), Some(opening));
    let claims = |locks| Fop::Claim { opening, locks };
    let claimed = Ok(Reply::Claimed { lost: vec![] });
    assert_eq!(as_session(&mut rig, OTHER, claims(vec![])), claimed);
    assert_eq!(lock_it(&mut rig), Err(Fault::NotServing));
    // Who has claimed is part of the log: another view or another run of all goes on with it.
    for at in 0..3 {
        rig.reboot(at, Survival::Process);
    }
    rig.settle();
    assert_eq!(rig.view().opening, opening, "nothing was lost this time");
    assert_eq!(lock_it(&mut rig), Err(Fault::NotServing));
    assert_eq!(asked_for(&mut rig, OTHER), None);
    assert_eq!(asked_for(&mut rig, SESSION), Some(opening));
    assert_eq!(
        as_session(&mut rig, SESSION, claims(vec![lock(0)])),
        claimed
    );
    assert_eq!(locked(lock_it(&mut rig)), LockOutcome::Busy);
    let elsewhere = as_session(&mut rig, OTHER, Fop::Lock(lock(10)));
    assert_eq!(locked(elsewhere), LockOutcome::Granted);
}

#[test]
fn after_a_lossy_opening_a_session_that_ends_is_not_waited_for() {
    let mut rig = with_a_lost_lock();
    let opening = rig.view().opening;
    let claim = Fop::Claim {
        opening,
        locks: vec![],
    };
    let claimed = as_session(&mut rig, OTHER, claim);
    assert_eq!(claimed, Ok(Reply::Claimed { lost: vec![] }));
    assert_eq!(
        as_session(&mut rig, OTHER, Fop::Lock(lock(5))),
        Err(Fault::NotServing)
    );
    rig.live.retain(|session| *session != SESSION);
    rig.tell_sessions();
    rig.settle();
    let granted = as_session(&mut rig, OTHER, Fop::Lock(lock(5)));
    assert_eq!(locked(granted), LockOutcome::Granted);
}

#[test]
fn after_a_lossless_opening_nobody_has_to_claim() {
    let mut rig = Rig::new(3);
    rig.create();
    let granted = as_session(&mut rig, SESSION, Fop::Lock(lock(0)));
    assert_eq!(locked(granted), LockOutcome::Granted);
    for at in 0..3 {
        rig.reboot(at, Survival::Process);
    }
    rig.settle();
    assert_eq!(asked_for(&mut rig, SESSION), None);
    let mut other = lock(5);
    other.owner = 2;
    let busy = as_session(&mut rig, SESSION, Fop::Lock(other));
    assert_eq!(locked(busy), LockOutcome::Busy);
}
