//! What a set does with lost answers, other views, ended sessions and servers that do not answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::admin::AdminRequest;
use mortar_protocol::env::Env;
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{
    Call, Change, Cut, Fop, InodeOp, LockKind, LockOutcome, LockRequest, Reply,
};
use mortar_protocol::ids::{
    BrickId, InodeId, Mark, NodeId, Opening, Seq, SessionId, SetIndex, TxnId, VolumeId,
};
use mortar_protocol::transport::Lost;
use mortar_protocol::view::VolumeState;
use parking_lot::Mutex;

use super::hub::Hub;
use super::scripted::{Act, Scripted, TestEnv, view};
use super::{Cluster, How, Piece, Set};

type Log = Arc<Mutex<Vec<Call>>>;

/// A cluster whose answers to numbered requests come from `script` (the rest is answered plainly), and what it got.
async fn cluster(
    mut script: impl FnMut(&Call) -> Act + Send + 'static,
) -> (Arc<Scripted>, Arc<Cluster>, Arc<dyn Env>, Log) {
    let log = Log::default();
    let kept = log.clone();
    let servers = Scripted::new(1, move |call, _| {
        kept.lock().push(call.clone());
        match &call.fop {
            Fop::Change(_) | Fop::StatFs | Fop::Sync { .. } => script(call),
            _ => Act::Reply(Reply::Done),
        }
    });
    let env = TestEnv::start();
    let servers_at = ["127.0.0.1:1".parse().unwrap()];
    let limit = Duration::from_secs(4);
    let cluster = Cluster::connect(env.clone(), servers.clone(), &servers_at, "vol", limit).await;
    (servers, cluster.unwrap(), env, log)
}

fn change() -> Fop {
    Fop::Change(Change {
        id: InodeId(9),
        inode: true,
        cut: Cut::default(),
        time: Default::default(),
        ops: Vec::new(),
    })
}

fn changed() -> Act {
    Act::Reply(Reply::Changed {
        before: 1,
        attr: None,
        appended_at: None,
        blocks: 0,
    })
}

async fn make(set: &Set) -> Result<(), Fault> {
    let mut call = set.request(change(), How::default());
    set.run(&mut call, &Bytes::new()).await.map(drop)
}

/// The changes among what was sent.
fn changes(log: &Log) -> Vec<Call> {
    let is_change = |call: &&Call| matches!(call.fop, Fop::Change(_));
    log.lock().iter().filter(is_change).cloned().collect()
}

#[tokio::test(start_paused = true)]
async fn numbers_rise_and_the_session_is_begun_first() {
    let (_servers, cluster, _env, log) = cluster(|_| changed()).await;
    let set = cluster.set(SetIndex(0));
    for _ in 0..3 {
        make(&set).await.unwrap();
    }
    let first = log.lock()[0].clone();
    assert_eq!((first.fop, first.number), (Fop::SessionBegin, 0));
    let sent = changes(&log);
    let numbers: Vec<_> = sent
        .iter()
        .map(|call| (call.number, call.answered_below))
        .collect();
    assert_eq!(numbers, [(1, 1), (2, 2), (3, 3)]);
    assert!(
        sent.iter()
            .all(|call| call.session == SessionId(100) && !call.repeat)
    );
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_asked_for_again_under_the_same_number() {
    let mut tries = 0;
    let (_servers, cluster, env, log) = cluster(move |_| {
        tries += 1;
        match tries {
            1 => Act::Lost(Lost::NotSent),
            2 => Act::Lost(Lost::Unknown),
            3 => Act::Hang,
            _ => changed(),
        }
    })
    .await;
    let begun = env.now();
    make(&cluster.set(SetIndex(0))).await.unwrap();
    let sent: Vec<_> = changes(&log)
        .iter()
        .map(|call| (call.number, call.repeat))
        .collect();
    // What certainly was not sent is not a repeat.
    assert_eq!(sent, [(1, false), (1, false), (1, true), (1, true)]);
    assert!(env.now().since(begun) < Duration::from_secs(11));
}

#[tokio::test(start_paused = true)]
async fn requests_follow_the_primary() {
    let (servers, cluster, _env, log) = cluster(|call| match call.brick {
        BrickId(2) => changed(),
        BrickId(3) => Act::Fault(Fault::NotServing),
        _ => Act::Fault(Fault::NotPrimary(Some(Box::new(view(0, 2, 3))))),
    })
    .await;
    // The answer names one newer view, the control plane a newer one still.
    servers.views.lock()[0] = view(0, 5, 2);
    make(&cluster.set(SetIndex(0))).await.unwrap();
    let sent = changes(&log);
    let bricks: Vec<_> = sent
        .iter()
        .map(|call| (call.brick.0, call.epoch.0))
        .collect();
    assert_eq!(
        (bricks[0], bricks[1], bricks[bricks.len() - 1]),
        ((1, 1), (3, 2), (2, 5))
    );
    assert!(sent.iter().all(|call| call.number == 1 && !call.repeat));
}

#[tokio::test(start_paused = true)]
async fn calls_wait_half_a_minute_then_end_soon_until_somebody_answers() {
    let (servers, cluster, env, log) = cluster(|_| changed()).await;
    let set = cluster.set(SetIndex(0));
    make(&set).await.unwrap();
    *servers.dark.lock() = true;
    let took = async |set: &Set| {
        let begun = env.now();
        let outcome = make(set).await;
        (outcome, env.now().since(begun).as_secs_f32())
    };
    let gone = Err(Fault::Refused(Errno::ENOTCONN));
    let (outcome, seconds) = took(&set).await;
    assert_eq!(outcome, gone);
    assert!((29.0..32.0).contains(&seconds), "{seconds}");
    for _ in 0..2 {
        let (outcome, seconds) = took(&set).await;
        assert_eq!(outcome, gone);
        assert!(seconds < 2.5, "{seconds}");
    }
    *servers.dark.lock() = false;
    log.lock().clear();
    assert_eq!(took(&set).await.0, Ok(()));
    // What was given up counts as answered, so that a late copy is refused.
    assert_eq!(
        (changes(&log)[0].number, changes(&log)[0].answered_below),
        (5, 5)
    );
    *servers.dark.lock() = true;
    assert!(took(&set).await.1 > 29.0);
}

#[tokio::test(start_paused = true)]
async fn another_session_is_opened_when_one_has_ended() {
    let mut refusals = 0;
    let log = Log::default();
    let kept = log.clone();
    let servers = Scripted::new(1, move |call, _| {
        kept.lock().push(call.clone());
        let ended = call.session == SessionId(100);
        match &call.fop {
            Fop::SessionBegin if ended && refusals > 0 => Act::Fault(Fault::UnknownSession),
            Fop::Change(_) if ended && call.number > 1 => {
                refusals += 1;
                Act::Fault(Fault::UnknownSession)
            }
            Fop::Change(_) => changed(),
            _ => Act::Reply(Reply::Done),
        }
    });
    let env = TestEnv::start();
    let servers_at = ["127.0.0.1:1".parse().unwrap()];
    let cluster = Cluster::connect(env, servers, &servers_at, "vol", Duration::from_secs(4));
    let cluster = cluster.await.unwrap();
    let set = cluster.set(SetIndex(0));
    make(&set).await.unwrap();
    make(&set).await.unwrap();
    assert_eq!(cluster.session(), SessionId(101));
    let last = changes(&log).pop().unwrap();
    assert_eq!(
        (last.session, last.number, last.repeat),
        (SessionId(101), 1, false)
    );
}

#[tokio::test(start_paused = true)]
async fn what_builds_on_an_ended_session_is_not_sent_but_begun_again() {
    let (_servers, cluster, _env, log) = cluster(|_| changed()).await;
    let set = cluster.set(SetIndex(0));
    let mut stage = set.stage_id();
    stage.session = SessionId(99);
    let Fop::Change(mut attach) = change() else {
        unreachable!()
    };
    attach.ops.push(InodeOp::Attach {
        shard: 0,
        offset: 0,
        stage,
        len: 4_096,
    });
    let mut call = set.request(Fop::Change(attach), How::default());
    let outcome = set.run(&mut call, &Bytes::new()).await;
    assert_eq!(outcome.map(drop), Err(Fault::NoStage));
    assert!(changes(&log).is_empty());
    let decide = Fop::Decide {
        txn: TxnId {
            session: SessionId(99),
            number: 1,
        },
        parts: Vec::new(),
        sets: Vec::new(),
        time: Default::default(),
    };
    let mut call = set.request(decide, How::default());
    let outcome = set.run(&mut call, &Bytes::new()).await;
    assert_eq!(outcome.map(drop), Err(Fault::Refused(Errno::EAGAIN)));
    make(&set).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_repeated_request_of_an_ended_session_is_not_made_again() {
    let mut tries = 0;
    let (_servers, cluster, _env, log) = cluster(move |_| {
        tries += 1;
        match tries {
            1 => Act::Lost(Lost::Unknown),
            _ => Act::Fault(Fault::UnknownSession),
        }
    })
    .await;
    let outcome = make(&cluster.set(SetIndex(0))).await;
    assert_eq!(outcome, Err(Fault::Refused(Errno::EIO)));
    assert_eq!(changes(&log).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_block_that_one_member_cannot_read_is_read_from_another() {
    let (_servers, cluster, _env, log) = cluster(|call| match call.brick {
        BrickId(3) => Act::Reply(Reply::Done),
        _ => Act::Fault(Fault::Corrupt),
    })
    .await;
    let set = cluster.set(SetIndex(0));
    let mut call = set.request(Fop::StatFs, How::default());
    set.run(&mut call, &Bytes::new()).await.unwrap();
    let asked: Vec<_> = log.lock().iter().map(|call| call.brick.0).collect();
    assert_eq!(asked, [1, 1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn sync_asks_only_for_what_is_not_flushed_and_tells_a_loss_once() {
    let (servers, cluster, _env, log) = cluster(|call| match call.fop {
        Fop::Sync { upto } if upto.opening == Opening(0) => Act::Fault(Fault::Lost(Opening(1))),
        Fop::Sync { .. } => Act::Reply(Reply::Done),
        _ => changed(),
    })
    .await;
    let set = cluster.set(SetIndex(0));
    let mark = |opening, seq| Mark {
        opening: Opening(opening),
        seq: Seq(seq),
    };
    let id = Some(InodeId(9));
    *servers.mark.lock() = (mark(0, 4), Seq(4));
    make(&set).await.unwrap();
    set.sync(id, true).await.unwrap();
    assert!(
        !log.lock()
            .iter()
            .any(|call| matches!(call.fop, Fop::Sync { .. }))
    );
    *servers.mark.lock() = (mark(0, 6), Seq(4));
    make(&set).await.unwrap();
    // The set opens without entries 5 and 6.
    *servers.mark.lock() = (mark(1, 9), Seq(8));
    make(&set).await.unwrap();
    assert_eq!(set.sync(id, true).await, Err(Fault::Refused(Errno::EIO)));
    assert_eq!(set.sync(id, true).await, Ok(()));
    let synced: Vec<_> = log
        .lock()
        .iter()
        .filter_map(|call| match call.fop {
            Fop::Sync { upto } => Some(upto),
            _ => None,
        })
        .collect();
    assert_eq!(synced, [mark(0, 6), mark(1, 9)]);
}

#[tokio::test(start_paused = true)]
async fn bulk_data_goes_once_to_each_node() {
    let (servers, cluster, _env, _log) = cluster(|_| changed()).await;
    let set = cluster.set(SetIndex(0));
    let piece = |len| Piece {
        stage: set.stage_id(),
        data: vec![7; len].into(),
    };
    let pieces = [piece(4096), piece(8192)];
    set.stage(&pieces).await.unwrap();
    let sent: Vec<_> = servers
        .stages
        .lock()
        .iter()
        .map(|(node, stage, len)| (*node, stage.bricks.len(), *len))
        .collect();
    assert_eq!(
        sent,
        [
            (NodeId(1), 2, 4096),
            (NodeId(2), 1, 4096),
            (NodeId(1), 2, 8192),
            (NodeId(2), 1, 8192)
        ]
    );
    *servers.stage_result.lock() = Err(Fault::Refused(Errno::ENOSPC));
    let full = set.stage(&[piece(4096)]).await;
    assert_eq!(full, Err(Fault::Refused(Errno::ENOSPC)));
}

#[tokio::test(start_paused = true)]
async fn renewal_tells_which_orphans_are_open() {
    let log: Arc<Mutex<Vec<(Vec<InodeId>, Vec<InodeId>)>>> = Arc::default();
    let kept = log.clone();
    let servers = Scripted::new(1, move |call, _| match &call.fop {
        Fop::Renew { open, released } => {
            kept.lock().push((open.clone(), released.clone()));
            Act::Reply(Reply::Renewed {
                orphans: vec![InodeId(4), InodeId(5)],
                garbage: vec![(InodeId(6), 99)],
                claim: None,
                left: Vec::new(),
            })
        }
        Fop::Change(_) => changed(),
        _ => Act::Reply(Reply::Done),
    });
    let servers_at = ["127.0.0.1:1".parse().unwrap()];
    let env = TestEnv::start();
    let cluster = Cluster::connect(env, servers, &servers_at, "vol", Duration::from_secs(4));
    let cluster = cluster.await.unwrap();
    let is_open: super::OpenCheck = Arc::new(|id| id == InodeId(5));
    assert!(
        cluster.renew(&is_open).await.is_empty(),
        "the set does not know the session yet"
    );
    make(&cluster.set(SetIndex(0))).await.unwrap();
    let renewals = cluster.renew(&is_open).await;
    assert_eq!(renewals.len(), 1);
    assert_eq!(renewals[0].garbage, [(InodeId(6), 99)]);
    let told = log.lock().clone();
    assert_eq!(
        told,
        [(vec![], vec![]), (vec![InodeId(5)], vec![InodeId(4)])]
    );
}

fn lock_call(kind: LockKind, start: u64, end: u64) -> LockRequest {
    LockRequest {
        id: InodeId(9),
        owner: 3,
        start,
        end,
        kind,
        pid: 1,
        wait: false,
    }
}

fn locked(outcome: LockOutcome) -> Act {
    Act::Reply(Reply::Locked {
        outcome,
        attr: None,
    })
}

/// A set that asks for claims while `asks` says so, loses owner 4's locks, and lets `lock` answer lock calls.
async fn claiming(
    asks: Arc<Mutex<bool>>,
    mut lock: impl FnMut(&Call) -> Act + Send + 'static,
) -> (Arc<Scripted>, Arc<Cluster>, Log) {
    let log = Log::default();
    let kept = log.clone();
    let servers = Scripted::new(1, move |call, _| {
        kept.lock().push(call.clone());
        match &call.fop {
            Fop::Renew { .. } => Act::Reply(Reply::Renewed {
                orphans: Vec::new(),
                garbage: Vec::new(),
                claim: asks.lock().then_some(Opening(2)),
                left: Vec::new(),
            }),
            Fop::Claim { locks, .. } => Act::Reply(Reply::Claimed {
                lost: locks
                    .iter()
                    .filter(|lock| lock.owner == 4)
                    .map(|lock| (lock.id, lock.owner))
                    .collect(),
            }),
            Fop::Lock(_) | Fop::LockWait(_) => lock(call),
            _ => Act::Reply(Reply::Done),
        }
    });
    let (env, servers_at) = (TestEnv::start(), ["127.0.0.1:1".parse().unwrap()]);
    let limit = Duration::from_secs(4);
    let cluster = Cluster::connect(env, servers.clone(), &servers_at, "vol", limit).await;
    (servers, cluster.unwrap(), log)
}

/// The claims among what was sent: opening, and owner, kind and range of the locks.
fn claims(log: &Log) -> Vec<(Opening, Vec<(u64, LockKind, u64, u64)>)> {
    let log = log.lock();
    let claims = log.iter().filter_map(|call| match &call.fop {
        Fop::Claim { opening, locks } => Some((*opening, locks)),
        _ => None,
    });
    claims
        .map(|(opening, locks)| {
            let locks = locks.iter();
            let locks = locks.map(|lock| (lock.owner, lock.kind, lock.start, lock.end));
            (opening, locks.collect())
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_set_that_asks_is_told_all_locks_and_says_which_are_lost() {
    let asks = Arc::new(Mutex::new(false));
    let (_servers, cluster, log) = claiming(asks.clone(), |_| locked(LockOutcome::Granted)).await;
    let set = cluster.set(SetIndex(0));
    let is_open: super::OpenCheck = Arc::new(|_| true);
    let mut other = lock_call(LockKind::Read, 50, 59);
    other.owner = 4;
    for request in [
        lock_call(LockKind::Write, 0, 9),
        lock_call(LockKind::Unlock, 5, 9),
        other,
    ] {
        set.lock(request, How::default()).await.unwrap();
    }
    assert!(cluster.renew(&is_open).await[0].lost.is_empty());
    assert_eq!(claims(&log), []);
    *asks.lock() = true;
    let lost = std::mem::take(&mut cluster.renew(&is_open).await[0].lost);
    assert_eq!(lost, [(InodeId(9), 4)]);
    cluster.renew(&is_open).await;
    let (mine, others) = ((3, LockKind::Write, 0, 4), (4, LockKind::Read, 50, 59));
    let told = [(Opening(2), vec![mine, others]), (Opening(2), vec![mine])];
    assert_eq!(claims(&log), told, "what is lost is not claimed again");
}

#[tokio::test(start_paused = true)]
async fn a_lock_granted_around_a_claim_is_asked_for_again() {
    let mut tries = 0;
    let (_servers, cluster, log) = claiming(Arc::new(Mutex::new(true)), move |call| {
        tries += 1;
        match (&call.fop, tries) {
            // Granted, but the answer is late: it comes after a claim without this lock.
            (Fop::Lock(_), 1 | 2) => Act::Lost(Lost::Unknown),
            _ => locked(LockOutcome::Granted),
        }
    })
    .await;
    let set = cluster.set(SetIndex(0));
    let locking = {
        let set = set.clone();
        tokio::spawn(async move {
            set.lock(lock_call(LockKind::Write, 0, 9), How::default())
                .await
        })
    };
    // The first try is on its way.
    while !log
        .lock()
        .iter()
        .any(|call| matches!(call.fop, Fop::Lock(_)))
    {
        tokio::task::yield_now().await;
    }
    let is_open: super::OpenCheck = Arc::new(|_| true);
    cluster.renew(&is_open).await;
    assert_eq!(claims(&log), [(Opening(2), vec![])]);
    locking.await.unwrap().unwrap();
    let numbers: Vec<u64> = log
        .lock()
        .iter()
        .filter(|call| matches!(call.fop, Fop::Lock(_)))
        .map(|call| call.number)
        .collect();
    assert!(
        numbers.first() != numbers.last(),
        "a grant of before the claim was taken for good: {numbers:?}"
    );
    cluster.renew(&is_open).await;
    let mine = vec![(3, LockKind::Write, 0, 9)];
    assert_eq!(claims(&log).last(), Some(&(Opening(2), mine)));
}

#[tokio::test(start_paused = true)]
async fn calls_of_a_stopped_or_deleted_volume_end_at_once_until_it_is_started_again() {
    let serves = Arc::new(Mutex::new(true));
    let told = serves.clone();
    let (servers, cluster, env, _log) = cluster(move |_| match *told.lock() {
        true => changed(),
        false => Act::Fault(Fault::UnknownBrick),
    })
    .await;
    let set = cluster.set(SetIndex(0));
    make(&set).await.unwrap();
    let (own, other) = (VolumeId(7), VolumeId(8));
    let ends_soon = async |record: Option<(VolumeId, VolumeState)>| {
        *servers.record.lock() = record;
        *serves.lock() = false;
        let begun = env.now();
        let refused = make(&set).await;
        assert_eq!(refused, Err(Fault::Refused(Errno::ENOTCONN)), "{record:?}");
        let took = env.now().since(begun);
        assert!(took < Duration::from_secs(2), "{record:?}: {took:?}");
    };
    let comes_back = async || {
        *servers.record.lock() = Some((own, VolumeState::Started));
        *serves.lock() = true;
        make(&set).await.expect("it is started again");
    };
    ends_soon(Some((own, VolumeState::Stopped))).await;
    comes_back().await;
    ends_soon(None).await;
    comes_back().await;
    // Another volume of the name: nothing of it is ever shown.
    ends_soon(Some((other, VolumeState::Started))).await;
    *serves.lock() = true;
    let refused = make(&set).await;
    assert!(
        refused.is_ok() || refused == Err(Fault::Refused(Errno::ENOTCONN)),
        "{refused:?}"
    );
    assert_eq!(cluster.volume().id, own);
}

#[tokio::test(start_paused = true)]
async fn servers_that_have_moved_are_found_by_their_names() {
    let (servers, cluster, env, log) = cluster(|_| changed()).await;
    let set = cluster.set(SetIndex(0));
    let elsewhere: SocketAddr = "10.0.0.9:24007".parse().unwrap();
    let asked = Arc::new(Mutex::new(0));
    let count = asked.clone();
    cluster.set_resolve(Arc::new(move || {
        *count.lock() += 1;
        // The first answers come from before the change.
        let found = if *count.lock() < 3 {
            Vec::new()
        } else {
            vec![elsewhere]
        };
        Box::pin(async move { found })
    }));
    make(&set).await.unwrap();
    assert_eq!(*asked.lock(), 0);
    *servers.moved.lock() = Some(elsewhere);
    let start = env.now();
    make(&set).await.unwrap();
    let took = env.now().since(start);
    // These servers let each of two requests wait for 10 s.
    assert!(took < Duration::from_secs(21), "{took:?}");
    assert_eq!(changes(&log).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn silent_servers_do_not_keep_others_from_being_asked() {
    let servers = Scripted::new(1, |_, _| Act::Reply(Reply::Done));
    let there: SocketAddr = "127.0.0.1:9".parse().unwrap();
    *servers.moved.lock() = Some(there);
    let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let listed: Vec<SocketAddr> = (1..=9).map(at).collect();
    let env = TestEnv::start();
    let hub = Hub::new(env.clone(), servers, listed, "vol".to_owned());
    let request = AdminRequest::Layout {
        volume: "vol".to_owned(),
        newer_than: 0,
    };
    let time = Duration::from_secs(2);
    // Each call has time for one round only.
    let mut tries = 1;
    while hub.admin(&request, time, time).await.is_err() {
        tries += 1;
    }
    assert_eq!(tries, 3);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_opens_no_session_leaves_it_to_another() {
    let servers = Scripted::new(1, |_, _| Act::Reply(Reply::Done));
    let (env, servers_at) = (TestEnv::start(), ["127.0.0.1:1".parse().unwrap()]);
    let connect = || {
        let (env, servers) = (env.clone(), servers.clone());
        async move {
            let limit = Duration::from_secs(4);
            Cluster::connect(env, servers, &servers_at, "vol", limit).await
        }
    };
    // The first that is asked.
    *servers.refuses.lock() = Some(NodeId(1));
    assert!(connect().await.is_ok());
    *servers.refuses.lock() = None;
    *servers.record.lock() = Some((VolumeId(7), VolumeState::Stopped));
    assert!(connect().await.is_err());
}
