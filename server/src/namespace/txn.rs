//! Transactions over several sets: shares are prepared in ascending order of the sets, the highest set decides.
//!
//! A prepared share keeps its parts and locks the records they touch, so that nothing they depend on changes; it is
//! done when the decision is known. What it adds to shared counters is computed only then.

use std::ops::ControlFlow;

use bytes::Bytes;
use mortar_protocol::attr::Time;
use mortar_protocol::error::{Errno, Fault};
use mortar_protocol::fop::{LeftTxn, Part, Reply, TxnStatus};
use mortar_protocol::ids::{SetIndex, TxnId};

use super::records::{self, Decision, Holder, Intent};
use super::working::Working;
use super::{Context, Executed, State, parts};

fn decision(state: &dyn State, txn: TxnId) -> Result<Option<Decision>, Fault> {
    match state.get(&records::decision_key(txn))? {
        Some(value) => records::decode(&value).map(Some),
        None => Ok(None),
    }
}

fn intent(state: &dyn State, txn: TxnId) -> Result<Option<Intent>, Fault> {
    match state.get(&records::intent_key(txn))? {
        Some(value) => records::decode(&value).map(Some),
        None => Ok(None),
    }
}

/// What the deciding set says.
///
/// # Errors
/// If the state cannot be read.
pub(super) fn status(state: &dyn State, txn: TxnId) -> Result<TxnStatus, Fault> {
    Ok(match decision(state, txn)? {
        Some(Decision::Decided(sets)) => TxnStatus::Decided(sets),
        Some(Decision::Aborted) => TxnStatus::Aborted,
        None => TxnStatus::Unknown,
    })
}

/// Work on behalf of a transaction.
fn working<'a>(state: &'a dyn State, cx: &'a Context<'a>, txn: TxnId, time: Time) -> Working<'a> {
    let mut work = Working::new(state, cx, time);
    work.actor = txn.session;
    work.txn = Some(txn);
    work
}

pub(super) fn prepare(
    state: &dyn State,
    cx: &Context<'_>,
    txn: TxnId,
    decider: SetIndex,
    parts: &[Part],
    time: Time,
) -> Result<Executed, Fault> {
    if txn.session != cx.session || decider <= cx.own {
        return Err(Fault::Protocol);
    }
    if decision(state, txn)?.is_some() {
        return Err(Errno::EAGAIN.into());
    }
    if intent(state, txn)?.is_some() {
        return Ok(Executed::nothing(Reply::Done));
    }
    // A trial run, of which only the claims are kept.
    let mut trial = working(state, cx, txn, time);
    trial.check_access = true;
    parts::apply(&mut trial, parts)?;
    let claims = trial.into_claims()?;

    let mut work = working(state, cx, txn, time);
    let mut locks: Vec<Bytes> = Vec::new();
    for (record, exclusive) in claims {
        let mut holders = work.holders(&record)?;
        match holders.iter_mut().find(|holder| holder.txn == txn) {
            Some(own) => own.exclusive |= exclusive,
            None => holders.push(Holder {
                txn,
                decider,
                since: cx.time,
                exclusive,
            }),
        }
        let key = records::holders_key(&record);
        work.put(key.clone(), records::encode(&holders));
        if !locks.contains(&key) {
            locks.push(key);
        }
    }
    let intent = Intent {
        decider,
        parts: parts.to_vec(),
        time,
        locks,
    };
    work.put(records::intent_key(txn), records::encode(&intent));
    work.counters_mut()?.intents += 1;
    work.note_growth();
    work.finish(Reply::Done)
}

pub(super) fn decide(
    state: &dyn State,
    cx: &Context<'_>,
    txn: TxnId,
    sets: &[SetIndex],
    parts: &[Part],
    time: Time,
) -> Result<Executed, Fault> {
    if txn.session != cx.session || sets.iter().any(|set| *set >= cx.own) {
        return Err(Fault::Protocol);
    }
    match decision(state, txn)? {
        Some(Decision::Decided(_)) => return Ok(Executed::nothing(Reply::Parts(Vec::new()))),
        Some(Decision::Aborted) => return Err(Errno::EAGAIN.into()),
        None => {}
    }
    let mut work = working(state, cx, txn, time);
    work.check_access = true;
    parts::apply(&mut work, parts)?;
    let decided = Decision::Decided(sets.to_vec());
    work.put(records::decision_key(txn), records::encode(&decided));
    let reply = parts::reply(&mut work)?;
    work.finish(reply)
}

/// Removes an intent and its locks.
fn drop_intent(work: &mut Working<'_>, txn: TxnId, intent: &Intent) -> Result<(), Fault> {
    for key in &intent.locks {
        let mut holders: Vec<Holder> = match work.get(key)? {
            Some(value) => records::decode(&value)?,
            None => Vec::new(),
        };
        holders.retain(|holder| holder.txn != txn);
        match holders.is_empty() {
            true => work.del(key.clone()),
            false => work.put(key.clone(), records::encode(&holders)),
        }
    }
    work.del(records::intent_key(txn));
    let counters = work.counters_mut()?;
    counters.intents = counters.intents.saturating_sub(1);
    Ok(())
}

pub(super) fn finish(state: &dyn State, cx: &Context<'_>, txn: TxnId) -> Result<Executed, Fault> {
    let Some(intent) = intent(state, txn)? else {
        return Ok(Executed::nothing(Reply::Parts(Vec::new())));
    };
    let mut work = working(state, cx, txn, intent.time);
    work.finishing = true;
    parts::apply(&mut work, &intent.parts)?;
    drop_intent(&mut work, txn, &intent)?;
    let reply = parts::reply(&mut work)?;
    // Promised: the reserve pays for it.
    Ok(work.finish_anyway(reply))
}

pub(super) fn abort(state: &dyn State, cx: &Context<'_>, txn: TxnId) -> Result<Executed, Fault> {
    if let Some(Decision::Decided(sets)) = decision(state, txn)? {
        let decided = Reply::Txn(TxnStatus::Decided(sets));
        return Ok(Executed::nothing(decided));
    }
    let mut work = working(state, cx, txn, cx.time);
    // The mark also stops a prepare or a decision that arrives late. It goes with the session: one whose session has
    // ended can do neither.
    if cx.sessions.contains(&txn.session) {
        let aborted = records::encode(&Decision::Aborted);
        work.put(records::decision_key(txn), aborted);
    }
    if let Some(intent) = intent(state, txn)? {
        drop_intent(&mut work, txn, &intent)?;
    }
    Ok(work.finish_anyway(Reply::Txn(TxnStatus::Aborted)))
}

pub(super) fn forget(state: &dyn State, cx: &Context<'_>, txn: TxnId) -> Result<Executed, Fault> {
    let Some(recorded) = decision(state, txn)? else {
        return Ok(Executed::nothing(Reply::Done));
    };
    if recorded == Decision::Aborted && txn.session != cx.session {
        return Err(Fault::Protocol);
    }
    let mut work = working(state, cx, txn, cx.time);
    work.del(records::decision_key(txn));
    Ok(work.finish_anyway(Reply::Done))
}

/// At most `max` of what ended sessions have left.
///
/// # Errors
/// If the state cannot be read.
pub(super) fn left(state: &dyn State, cx: &Context<'_>, max: usize) -> Result<Vec<LeftTxn>, Fault> {
    let (mut left, mut fault) = (Vec::new(), None);
    for (from, to) in [(b"C", b"D"), (b"T", b"U")] {
        state.scan(from, to, &mut |key, value| {
            match left_by_ended(cx, key, value) {
                Ok(found) => left.extend(found),
                Err(found) => fault = Some(found),
            }
            match fault.is_some() || left.len() >= max {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
    }
    fault.map_or(Ok(left), Err)
}

fn left_by_ended(cx: &Context<'_>, key: &[u8], value: &[u8]) -> Result<Option<LeftTxn>, Fault> {
    let txn = records::parse_txn(key).ok_or(Fault::Corrupt)?;
    if cx.sessions.contains(&txn.session) {
        return Ok(None);
    }
    if key.first() == Some(&b'T') {
        let Intent { decider, .. } = records::decode(value)?;
        return Ok(Some(LeftTxn::Intent { txn, decider }));
    }
    Ok(match records::decode(value)? {
        Decision::Decided(sets) => Some(LeftTxn::Decided { txn, sets }),
        Decision::Aborted => None,
    })
}
