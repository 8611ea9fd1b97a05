//! Transactions over several sets: the pure core. The highest set decides; the others are prepared first, one after
//! the other in ascending order, and finish afterwards. Interrupted anywhere, whoever meets what is left asks the
//! deciding set and finishes or aborts it ([`resolve`]), so that all shares are done or none (P7).

use std::collections::BTreeMap;
use std::time::Duration;

use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{Part, TxnStatus};
use mortar_protocol::ids::{SetIndex, TxnId};

/// An intent older than this may be resolved by anyone, in milliseconds.
pub const STALE_MS: u32 = 500;

/// Each set's share.
pub type Shares = BTreeMap<SetIndex, Vec<Part>>;

/// What to do next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Prepare this set's share, flushed.
    Prepare(SetIndex),
    /// Decide, flushed.
    Decide,
    /// Abort on these sets (nothing was or will be decided), then fail.
    Abort(Vec<SetIndex>, Fault),
    /// Finish on these sets, flushed; then forget on the deciding one. The outcome is certain already.
    Finish(Vec<SetIndex>),
    /// It failed, and whether it was decided is not known: others will resolve it.
    Unknown(Fault),
}

/// A transaction on its way.
#[derive(Debug)]
pub struct Txn {
    /// Its identity.
    pub id: TxnId,
    /// The set that decides.
    pub decider: SetIndex,
    shares: Shares,
    /// The other sets, in the order in which they are prepared.
    others: Vec<SetIndex>,
    prepared: usize,
    end: Option<Step>,
}

impl Txn {
    /// A transaction of several shares. `first` is prepared before the others (for a lock that must be held while they
    /// are worked out); it does not decide unless it is alone.
    pub fn new(id: TxnId, shares: Shares, first: Option<SetIndex>) -> Self {
        let decider = shares.keys().rev().find(|set| Some(**set) != first);
        let decider = decider
            .or(shares.keys().next())
            .copied()
            .unwrap_or_default();
        let mut others: Vec<SetIndex> = shares.keys().copied().filter(|s| *s != decider).collect();
        others.sort_by_key(|set| (Some(*set) != first, *set));
        Self {
            id,
            decider,
            shares,
            others,
            prepared: 0,
            end: None,
        }
    }

    /// The sets beside the deciding one.
    pub fn others(&self) -> &[SetIndex] {
        &self.others
    }

    /// A set's share.
    pub fn share(&self, set: SetIndex) -> Vec<Part> {
        self.shares.get(&set).cloned().unwrap_or_default()
    }

    /// What to do next.
    pub fn next(&self) -> Step {
        if let Some(end) = &self.end {
            return end.clone();
        }
        match self.others.get(self.prepared) {
            Some(set) => Step::Prepare(*set),
            None => Step::Decide,
        }
    }

    /// How the preparation asked for went.
    pub fn on_prepared(&mut self, result: Result<(), Fault>) {
        match result {
            Ok(()) => self.prepared += 1,
            Err(fault) => {
                // Refused, it left nothing there; without an answer it may arrive yet, and is refused in advance.
                let reached = self.prepared + usize::from(is_unknown(&fault));
                let reached = reached.min(self.others.len());
                self.end = Some(Step::Abort(self.others[..reached].to_vec(), fault));
            }
        }
    }

    /// Something else says that it must not go on.
    pub fn give_up(&mut self, fault: Fault) {
        self.end = Some(Step::Abort(self.others[..self.prepared].to_vec(), fault));
    }

    /// How the decision went.
    pub fn on_decided(&mut self, result: Result<(), Fault>) {
        self.end = Some(match result {
            Ok(()) => Step::Finish(self.others.clone()),
            Err(fault) if is_unknown(&fault) => Step::Unknown(fault),
            Err(fault) => Step::Abort(self.others.clone(), fault),
        });
    }
}

/// Whether a fault leaves open if the request was done.
fn is_unknown(fault: &Fault) -> bool {
    matches!(fault, Fault::Refused(Errno::ENOTCONN | Errno::EIO))
}

/// What to do about an intent that is in the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resolve {
    /// It is decided: finish it here.
    Finish,
    /// It is aborted: drop it here.
    Drop,
    /// Ask the deciding set to abort it.
    AskAbort,
    /// Its client is probably at work: wait, then ask again.
    Wait(Duration),
}

/// What to do about an intent, by what its deciding set says and how old it is.
pub fn resolve(status: &TxnStatus, age_ms: u32) -> Resolve {
    match status {
        TxnStatus::Decided(_) => Resolve::Finish,
        TxnStatus::Aborted => Resolve::Drop,
        TxnStatus::Unknown if age_ms >= STALE_MS => Resolve::AskAbort,
        TxnStatus::Unknown => Resolve::Wait(Duration::from_millis(u64::from(
            (STALE_MS - age_ms).min(age_ms / 2 + 2),
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortar_protocol::ids::{InodeId, SessionId};

    fn id() -> TxnId {
        TxnId {
            session: SessionId(1),
            number: 7,
        }
    }

    fn shares(sets: &[u32]) -> Shares {
        let part = |set: &u32| Part::ParentIs {
            dir: InodeId(u64::from(*set)),
            parent: InodeId::ROOT,
        };
        sets.iter()
            .map(|set| (SetIndex(*set), vec![part(set)]))
            .collect()
    }

    /// Sets as far as transactions go: is the share done, prepared, refused in advance; and the decision.
    #[derive(Clone, Default, PartialEq, Eq, Debug)]
    struct Model {
        prepared: BTreeMap<SetIndex, bool>,
        done: BTreeMap<SetIndex, bool>,
        barred: BTreeMap<SetIndex, bool>,
        decided: bool,
        aborted: bool,
    }

    impl Model {
        fn prepare(&mut self, set: SetIndex) -> Result<(), Fault> {
            if self.barred.get(&set) == Some(&true) {
                return Err(Fault::Refused(Errno::EAGAIN));
            }
            self.prepared.insert(set, true);
            Ok(())
        }
        fn decide(&mut self, decider: SetIndex) -> Result<(), Fault> {
            if self.aborted {
                return Err(Fault::Refused(Errno::EAGAIN));
            }
            self.decided = true;
            self.done.insert(decider, true);
            Ok(())
        }
        fn finish(&mut self, set: SetIndex) {
            assert!(self.decided, "finished without a decision");
            if self.prepared.insert(set, false) == Some(true) {
                self.done.insert(set, true);
            }
        }
        fn abort(&mut self, set: SetIndex) {
            assert!(
                !self.decided || self.done.get(&set) == Some(&true),
                "aborted though decided"
            );
            self.prepared.insert(set, false);
            self.barred.insert(set, true);
        }
        fn status(&self) -> TxnStatus {
            match (self.decided, self.aborted) {
                (true, _) => TxnStatus::Decided(Vec::new()),
                (_, true) => TxnStatus::Aborted,
                _ => TxnStatus::Unknown,
            }
        }
        /// Another client meets what is left on `set`.
        fn meet(&mut self, set: SetIndex) {
            while self.prepared.get(&set) == Some(&true) {
                match resolve(&self.status(), STALE_MS) {
                    Resolve::Finish => self.finish(set),
                    Resolve::Drop => self.abort(set),
                    Resolve::AskAbort => self.aborted = !self.decided,
                    Resolve::Wait(_) => panic!("waits for a stale intent"),
                }
            }
        }
    }

    /// Runs it for at most `steps` steps; says whether it ended, and how.
    fn drive(model: &mut Model, txn: &mut Txn, steps: usize) -> Option<Result<(), Fault>> {
        for _ in 0..steps {
            match txn.next() {
                Step::Prepare(set) => txn.on_prepared(model.prepare(set)),
                Step::Decide => txn.on_decided(model.decide(txn.decider)),
                Step::Finish(sets) => {
                    sets.into_iter().for_each(|set| model.finish(set));
                    return Some(Ok(()));
                }
                Step::Abort(sets, fault) => {
                    sets.into_iter().for_each(|set| model.abort(set));
                    return Some(Err(fault));
                }
                Step::Unknown(fault) => return Some(Err(fault)),
            }
        }
        None
    }

    fn all_or_nothing(model: &Model, sets: &[u32]) -> bool {
        let done = sets
            .iter()
            .filter(|set| model.done.get(&SetIndex(**set)) == Some(&true))
            .count();
        assert!(done == 0 || done == sets.len(), "torn: {model:?}");
        done > 0
    }

    #[test]
    fn sets_are_prepared_in_order_and_the_highest_decides() {
        let txn = Txn::new(id(), shares(&[4, 1, 2]), None);
        assert_eq!(txn.decider, SetIndex(4));
        assert_eq!(txn.others(), [SetIndex(1), SetIndex(2)]);
        let txn = Txn::new(id(), shares(&[0, 1, 2]), Some(SetIndex(2)));
        assert_eq!(txn.decider, SetIndex(1));
        assert_eq!(txn.others(), [SetIndex(2), SetIndex(0)]);
    }

    #[test]
    fn any_interruption_leaves_all_or_nothing() {
        let sets = [0, 1, 2];
        for steps in 0..6 {
            // Whoever comes meets what is left in any order.
            for start in 0..3 {
                let mut model = Model::default();
                let mut txn = Txn::new(id(), shares(&sets), None);
                let ended = drive(&mut model, &mut txn, steps);
                for at in 0..3 {
                    model.meet(SetIndex((start + at) % 3));
                }
                let done = all_or_nothing(&model, &sets);
                if ended.is_some() {
                    assert!(done);
                }
                // The client was only slow: what it does next changes nothing any more.
                drive(&mut model, &mut txn, 6);
                for at in 0..3 {
                    model.meet(SetIndex((start + at) % 3));
                }
                assert_eq!(all_or_nothing(&model, &sets), done || steps == 0);
            }
        }
    }

    #[test]
    fn a_refused_share_undoes_the_others() {
        for refused in 0..2 {
            let mut model = Model::default();
            model.barred.insert(SetIndex(refused), true);
            let mut txn = Txn::new(id(), shares(&[0, 1, 2]), None);
            let ended = drive(&mut model, &mut txn, 9);
            assert_eq!(ended, Some(Err(Fault::Refused(Errno::EAGAIN))));
            assert!(!all_or_nothing(&model, &[0, 1, 2]));
            assert!(model.prepared.values().all(|prepared| !prepared));
        }
    }

    #[test]
    fn an_answer_that_never_came_leaves_nothing_behind() {
        // A preparation that may arrive later is refused in advance.
        let lost = Fault::Refused(Errno::ENOTCONN);
        let mut model = Model::default();
        let mut txn = Txn::new(id(), shares(&[0, 1, 2]), None);
        txn.on_prepared(model.prepare(SetIndex(0)));
        txn.on_prepared(Err(lost.clone()));
        assert_eq!(drive(&mut model, &mut txn, 9), Some(Err(lost.clone())));
        assert!(model.prepare(SetIndex(1)).is_err());
        // A decision without an answer is not undone.
        let mut txn = Txn::new(id(), shares(&[0, 1]), None);
        txn.on_prepared(Ok(()));
        txn.on_decided(Err(lost.clone()));
        assert_eq!(txn.next(), Step::Unknown(lost));
    }
}
