//! Is there an order of overlapping calls that explains all answers? (Wing and Gong's search with Lowe's memory of
//! states already seen.)

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};

/// What calls mean.
pub trait Model {
    /// State between two calls.
    type State: Clone + Hash + Debug;

    /// The state after call number `call`, or `None` if its answer does not fit.
    fn apply(&self, state: &Self::State, call: usize) -> Option<Self::State>;
}

/// When a call was under way. `end` is `None` if nobody knows what came of it: it may happen at any later time, or
/// never.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Number of the call, for [`Model::apply`].
    pub call: usize,
    /// When it was made.
    pub start: u64,
    /// When it was answered.
    pub end: Option<u64>,
}

/// What a search found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// There is an order.
    Explained,
    /// There is none; what was tried longest.
    Impossible(String),
    /// The search was given up.
    Undecided,
}

/// Most states looked at.
const LIMIT: usize = 400_000;
/// Most bytes shown of a state (which is printed in ASCII).
const SHOWN: usize = 4_000;

struct Level<S> {
    state: S,
    /// Calls that could come next, best first, and how many were tried.
    next: Vec<usize>,
    tried: usize,
    /// The call that led here.
    by: usize,
}

/// Looks for an order of `spans`, starting from `state`.
pub fn search<M: Model>(model: &M, state: M::State, spans: &[Span]) -> Verdict {
    let mut spans = spans.to_vec();
    spans.sort_by_key(|span| span.start);
    let needed = spans.iter().filter(|span| span.end.is_some()).count();
    let mut done = vec![false; spans.len()];
    let mut placed = 0;
    let mut key = 0u128;
    let mut seen = BTreeSet::new();
    let mut deepest = (0, String::new());
    let first = candidates(&spans, &done);
    let mut path = vec![Level {
        state,
        next: first,
        tried: 0,
        by: usize::MAX,
    }];
    if needed == 0 {
        return Verdict::Explained;
    }
    while let Some(level) = path.last_mut() {
        let Some(at) = level.next.get(level.tried).copied() else {
            let by = level.by;
            path.pop();
            if by != usize::MAX {
                done[by] = false;
                key ^= hash(&by);
                placed -= usize::from(spans[by].end.is_some());
            }
            continue;
        };
        level.tried += 1;
        let Some(state) = model.apply(&level.state, spans[at].call) else {
            continue;
        };
        let reached = key ^ hash(&at);
        if !seen.insert(reached ^ hash(&(&state, "state"))) {
            continue;
        }
        if seen.len() > LIMIT {
            return Verdict::Undecided;
        }
        done[at] = true;
        key = reached;
        placed += usize::from(spans[at].end.is_some());
        if placed == needed {
            return Verdict::Explained;
        }
        let next = candidates(&spans, &done);
        if placed > deepest.0 {
            let calls: Vec<usize> = next.iter().map(|at| spans[*at].call).collect();
            let mut what = format!("{state:?}");
            what.truncate(SHOWN);
            deepest = (
                placed,
                format!("after {placed} calls, none of {calls:?} fits {what}"),
            );
        }
        path.push(Level {
            state,
            next,
            tried: 0,
            by: at,
        });
    }
    Verdict::Impossible(deepest.1)
}

/// The calls that may come next: made before the first answer that is still to be explained.
fn candidates(spans: &[Span], done: &[bool]) -> Vec<usize> {
    let open = || (0..spans.len()).filter(|at| !done[*at]);
    let until = open().filter_map(|at| spans[at].end).min();
    let until = until.unwrap_or(u64::MAX);
    let mut next: Vec<usize> = open().take_while(|at| spans[*at].start <= until).collect();
    next.sort_by_key(|at| spans[*at].end.unwrap_or(u64::MAX));
    next
}

fn hash(what: &impl Hash) -> u128 {
    let half = |salt: u64| {
        let mut hasher = DefaultHasher::new();
        salt.hash(&mut hasher);
        what.hash(&mut hasher);
        hasher.finish()
    };
    (u128::from(half(1)) << 64) | u128::from(half(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A register: writes and reads of numbers.
    struct Register(Vec<(bool, u64)>);

    impl Model for Register {
        type State = u64;

        fn apply(&self, state: &u64, call: usize) -> Option<u64> {
            let (write, value) = self.0[call];
            if write {
                return Some(value);
            }
            (value == *state).then_some(value)
        }
    }

    fn verdict(calls: &[(bool, u64, u64, Option<u64>)]) -> Verdict {
        let model = Register(calls.iter().map(|call| (call.0, call.1)).collect());
        let spans: Vec<Span> = calls
            .iter()
            .enumerate()
            .map(|(call, (_, _, start, end))| Span {
                call,
                start: *start,
                end: *end,
            })
            .collect();
        search(&model, 0, &spans)
    }

    #[test]
    fn overlapping_calls_may_come_in_any_order() {
        let calls = [
            (true, 1, 0, Some(10)),
            (true, 2, 1, Some(9)),
            (false, 1, 11, Some(12)),
        ];
        assert_eq!(verdict(&calls), Verdict::Explained);
    }

    #[test]
    fn a_stale_read_is_found() {
        let calls = [
            (true, 1, 0, Some(1)),
            (true, 2, 2, Some(3)),
            (false, 1, 4, Some(5)),
        ];
        assert!(matches!(verdict(&calls), Verdict::Impossible(_)));
    }

    #[test]
    fn a_new_value_does_not_turn_old_again() {
        let calls = [
            (true, 1, 0, Some(20)),
            (false, 1, 1, Some(2)),
            (false, 0, 3, Some(4)),
        ];
        assert!(matches!(verdict(&calls), Verdict::Impossible(_)));
    }

    #[test]
    fn a_call_without_answer_may_happen_late_or_never() {
        let calls = [
            (true, 1, 0, None),
            (false, 0, 1, Some(2)),
            (false, 1, 3, Some(4)),
        ];
        assert_eq!(verdict(&calls), Verdict::Explained);
        assert_eq!(verdict(&calls[..2]), Verdict::Explained);
        let early = [(false, 1, 0, Some(1)), (true, 1, 2, None)];
        assert!(matches!(verdict(&early), Verdict::Impossible(_)));
    }
}
