//! Transactions over several sets.

use mortar_protocol::fop::{LeftTxn, TxnStatus};
use mortar_protocol::ids::TxnId;

use super::super::records;
use super::*;

const ROOT: InodeId = InodeId::ROOT;
const TXN: TxnId = TxnId {
    session: SessionId(1),
    number: 9,
};

/// A rename of `from` on set 0 to `to` on set 1. The inode lies on set 0.
struct Rename {
    v: Sets,
    file: Attr,
    from: Bytes,
    to: Bytes,
}

impl Rename {
    fn new() -> Self {
        let mut v = Sets::new(2);
        let named = |v: &Sets, set: u32| {
            let name = (0..)
                .map(|n: u32| format!("n{n}"))
                .find(|name| v.name_set(ROOT, name.as_bytes()) == set);
            Bytes::from(name.unwrap())
        };
        let (from, to) = (named(&v, 0), named(&v, 1));
        let file = v.file(&from);
        Self { v, file, from, to }
    }

    fn prepare(&mut self) -> Result<Reply, Fault> {
        let parts = vec![
            Part::DirentRemove {
                parent: ROOT,
                name: self.from.clone(),
                expect: self.file.gfid,
            },
            Part::LinkMove {
                id: self.file.gfid.id,
                from: (ROOT, self.from.clone()),
                to: (ROOT, self.to.clone()),
            },
        ];
        let fop = Fop::Prepare {
            txn: TXN,
            decider: SetIndex(1),
            parts,
            time: self.v.time(),
        };
        self.v.run(0, fop, b"")
    }

    fn decide(&mut self) -> Result<Reply, Fault> {
        let parts = vec![Part::DirentAdd {
            parent: ROOT,
            name: self.to.clone(),
            gfid: self.file.gfid,
            kind: FileKind::File,
            replaces: None,
        }];
        let fop = Fop::Decide {
            txn: TXN,
            sets: vec![SetIndex(0)],
            parts,
            time: self.v.time(),
        };
        self.v.run(1, fop, b"")
    }

    fn state(&self) -> Reply {
        self.v.ask(1, Fop::TxnState { txn: TXN }).unwrap().0
    }

    fn intents_left(&self) -> usize {
        let letters = self.v.sets.iter().flat_map(|set| set.records.keys());
        letters.filter(|key| b"TKC".contains(&key[0])).count()
    }
}

fn is_locked<T: std::fmt::Debug>(result: Result<T, Fault>) -> bool {
    match result {
        Err(Fault::Intent { txn, decider, .. }) => {
            assert_eq!((txn, decider), (TXN, SetIndex(1)));
            true
        }
        _ => false,
    }
}

#[test]
fn a_rename_over_two_sets() {
    let mut r = Rename::new();
    assert_eq!(r.prepare(), Ok(Reply::Done));
    assert_eq!(r.prepare(), Ok(Reply::Done), "once is enough");
    assert_eq!(r.state(), Reply::Txn(TxnStatus::Unknown));
    let (id, from) = (r.file.gfid.id, r.from.clone());
    assert!(is_locked(r.v.look(ROOT, &from)));
    assert!(is_locked(r.v.attr(id)));
    assert!(is_locked(r.v.write(id, 0, b"x")));
    assert!(is_locked(r.v.unlink(&from, false)));
    let list = Fop::ReadDir {
        dir: ROOT,
        after: 0,
        max: 4_096,
        plus: false,
    };
    assert!(is_locked(r.v.ask(0, list)));
    let free = (0..)
        .map(|n: u32| format!("free{n}"))
        .find(|name| r.v.name_set(ROOT, name.as_bytes()) == 0)
        .unwrap();
    r.v.file(free.as_bytes());

    assert_eq!(r.decide(), Ok(Reply::Parts(vec![])));
    assert_eq!(r.state(), Reply::Txn(TxnStatus::Decided(vec![SetIndex(0)])));
    let abort = r.v.run(1, Fop::Abort { txn: TXN }, b"");
    assert_eq!(abort, Ok(Reply::Txn(TxnStatus::Decided(vec![SetIndex(0)]))));
    match r.v.run(0, Fop::Finish { txn: TXN }, b"").unwrap() {
        Reply::Parts(attrs) => assert_eq!(attrs[0].gfid, r.file.gfid),
        other => panic!("{other:?}"),
    }
    let again = r.v.run(0, Fop::Finish { txn: TXN }, b"");
    assert_eq!(again, Ok(Reply::Parts(vec![])));
    r.v.run(1, Fop::Forget { txn: TXN }, b"").unwrap();
    assert_eq!(r.intents_left(), 0);
    assert_eq!(r.v.look(ROOT, &from), refused(Errno::ENOENT));
    assert_eq!(r.v.look(ROOT, &r.to), Ok(r.file.gfid));
    match r.v.ask(0, Fop::Links { id }).unwrap().0 {
        Reply::Links { links, .. } => assert_eq!(links, [(ROOT, r.to.clone())]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_abort_restores_and_stops_latecomers() {
    let mut r = Rename::new();
    r.prepare().unwrap();
    r.v.session = SessionId(2);
    r.v.sessions.push(SessionId(2));
    for set in [1, 0] {
        let abort = r.v.run(set, Fop::Abort { txn: TXN }, b"");
        assert_eq!(abort, Ok(Reply::Txn(TxnStatus::Aborted)));
    }
    assert_eq!(r.state(), Reply::Txn(TxnStatus::Aborted));
    let from = r.from.clone();
    assert_eq!(r.v.look(ROOT, &from), Ok(r.file.gfid));
    let stranger = r.v.run(1, Fop::Forget { txn: TXN }, b"");
    assert_eq!(stranger, Err(Fault::Protocol));
    r.v.session = SessionId(1);
    assert_eq!(r.decide(), refused(Errno::EAGAIN));
    assert_eq!(r.prepare(), refused(Errno::EAGAIN));
    r.v.run(1, Fop::Forget { txn: TXN }, b"").unwrap();
    r.v.run(0, Fop::SessionEnd, b"").unwrap();
    assert_eq!(r.intents_left(), 0);
    assert_eq!(r.v.attr(r.file.gfid.id), Ok(r.file));
}

#[test]
fn a_share_that_cannot_be_done_is_not_prepared() {
    let mut r = Rename::new();
    let from = r.from.clone();
    r.v.unlink(&from, false).unwrap();
    assert_eq!(r.prepare(), refused(Errno::ENOENT));
    assert_eq!(r.intents_left(), 0);
}

#[test]
fn a_closing_directory_waits_for_names_on_their_way() {
    let mut v = Sets::new(2);
    let dir = v.dir(b"dir");
    let name = (0..)
        .map(|n: u32| format!("n{n}"))
        .find(|name| v.name_set(dir.gfid.id, name.as_bytes()) == 0)
        .map(Bytes::from)
        .unwrap();
    let parts = vec![Part::DirentAdd {
        parent: dir.gfid.id,
        name,
        gfid: Gfid {
            id: InodeId(77),
            generation: 1,
        },
        kind: FileKind::File,
        replaces: None,
    }];
    let prepare = |txn, parts, time| Fop::Prepare {
        txn,
        decider: SetIndex(1),
        parts,
        time,
    };
    let time = v.time();
    v.run(0, prepare(TXN, parts, time), b"").unwrap();
    let close = vec![Part::DirClose {
        dir: dir.gfid.id,
        held_open: false,
    }];
    assert!(is_locked(v.commit(0, close.clone())));
    v.run(0, Fop::Abort { txn: TXN }, b"").unwrap();
    let other = TxnId { number: 10, ..TXN };
    let time = v.time();
    v.run(0, prepare(other, close, time), b"").unwrap();
    let part = Fop::DirPart { dir: dir.gfid.id };
    assert!(matches!(v.ask(0, part), Err(Fault::Intent { .. })));
}

#[test]
fn the_tree_lock_is_held_by_one_transaction() {
    let mut v = Sets::new(2);
    let fop = |number, time| Fop::Prepare {
        txn: TxnId { number, ..TXN },
        decider: SetIndex(1),
        parts: vec![Part::TreeLock],
        time,
    };
    let time = v.time();
    v.run(0, fop(9, time), b"").unwrap();
    assert!(is_locked(v.run(0, fop(10, time), b"")));
    assert!(is_locked(v.commit(0, vec![Part::TreeLock])));
    assert!(v.attr(ROOT).is_ok(), "the root itself is not locked");
    v.clock += 3;
    match v.commit(0, vec![Part::TreeLock]) {
        Err(Fault::Intent { age_ms, .. }) => assert!(age_ms >= 3_000),
        other => panic!("{other:?}"),
    }
    let key = records::holders_key(records::TREE_LOCK);
    assert!(v.sets[0].records.contains_key(&key));
    assert_eq!(v.commit(1, vec![Part::TreeLock]), Err(Fault::Protocol));
}

/// Whoever moves a directory looks at the way up from its future parent while its own transaction holds an entry there.
#[test]
fn the_links_of_a_directory_that_gets_an_entry_can_be_read() {
    let mut v = Sets::new(2);
    let named = |v: &Sets, parent, set: u32| {
        (0..)
            .map(|n: u32| Bytes::from(format!("n{n}")))
            .find(|name| v.name_set(parent, name) == set)
            .unwrap()
    };
    let name = named(&v, ROOT, 0);
    let dir = v.dir(&name);
    let child = named(&v, dir.gfid.id, 0);
    let parts = vec![Part::DirentAdd {
        parent: dir.gfid.id,
        name: child,
        gfid: Gfid {
            id: InodeId(77),
            generation: 1,
        },
        kind: FileKind::Dir,
        replaces: None,
    }];
    let prepare = Fop::Prepare {
        txn: TXN,
        decider: SetIndex(1),
        parts,
        time: v.time(),
    };
    v.run(0, prepare, b"").unwrap();
    let links = v.ask(0, Fop::Links { id: dir.gfid.id }).unwrap().0;
    assert_eq!(
        links,
        Reply::Links {
            links: vec![(ROOT, name)],
            many: false
        }
    );
    assert!(
        matches!(v.attr(dir.gfid.id), Err(Fault::Intent { .. })),
        "attributes wait for the outcome"
    );
}

#[test]
fn what_an_ended_session_has_left_is_told_to_the_others() {
    let mut r = Rename::new();
    r.prepare().unwrap();
    r.decide().unwrap();
    r.v.session = SessionId(2);
    let told = |r: &Rename, set: u32| {
        let renew = Fop::Renew {
            open: Vec::new(),
            released: Vec::new(),
        };
        match r.v.ask(set, renew).unwrap().0 {
            Reply::Renewed { left, .. } => left,
            other => panic!("{other:?}"),
        }
    };
    r.v.sessions = vec![SessionId(1), SessionId(2)];
    assert_eq!((told(&r, 0), told(&r, 1)), (vec![], vec![]));
    r.v.sessions = vec![SessionId(2)];
    let (txn, decider, sets) = (TXN, SetIndex(1), vec![SetIndex(0)]);
    assert_eq!(told(&r, 0), [LeftTxn::Intent { txn, decider }]);
    assert_eq!(told(&r, 1), [LeftTxn::Decided { txn, sets }]);
    r.v.run(0, Fop::Finish { txn }, b"").unwrap();
    r.v.run(1, Fop::Forget { txn }, b"").unwrap();
    assert_eq!((told(&r, 0), told(&r, 1)), (vec![], vec![]));
    assert_eq!(r.intents_left(), 0);
    let (from, to) = (r.from.clone(), r.to.clone());
    assert!(r.v.look(ROOT, &from).is_err() && r.v.look(ROOT, &to).is_ok());
}
