//! Ranges of locks, ordered by (start, session, owner): what is held after an owner takes or frees some. Sets decide with it, and clients keep book with it.

use crate::fop::{LockHeld, LockKind};

/// Whether two locks have the same owner.
pub fn same_owner(a: &LockHeld, b: &LockHeld) -> bool {
    (a.session, a.owner) == (b.session, b.owner)
}

/// Whether two locks have a byte in common.
pub fn overlap(a: &LockHeld, b: &LockHeld) -> bool {
    a.start <= b.end && b.start <= a.end
}

/// Whether two locks cannot be held at the same time.
pub fn exclude(a: &LockHeld, b: &LockHeld) -> bool {
    let exclusive = a.kind == LockKind::Write || b.kind == LockKind::Write;
    exclusive && !same_owner(a, b) && overlap(a, b)
}

/// Removes a range from what its owner holds.
pub fn free(held: &mut Vec<LockHeld>, range: &LockHeld) {
    for lock in std::mem::take(held) {
        if !same_owner(&lock, range) || !overlap(&lock, range) {
            held.push(lock);
            continue;
        }
        if lock.start < range.start {
            held.push(LockHeld {
                end: range.start - 1,
                ..lock.clone()
            });
        }
        if range.end < lock.end {
            held.push(LockHeld {
                start: range.end + 1,
                ..lock
            });
        }
    }
    order(held);
}

/// Gives an owner a range: replaces what it held there, merges with neighbours of the same kind.
pub fn take(held: &mut Vec<LockHeld>, mut new: LockHeld) {
    free(held, &new);
    held.retain(|lock| {
        let joins = same_owner(lock, &new)
            && lock.kind == new.kind
            && (lock.end.checked_add(1) == Some(new.start)
                || new.end.checked_add(1) == Some(lock.start));
        if joins {
            new.start = new.start.min(lock.start);
            new.end = new.end.max(lock.end);
        }
        !joins
    });
    held.push(new);
    order(held);
}

fn order(held: &mut [LockHeld]) {
    held.sort_by_key(|lock| (lock.start, lock.session, lock.owner));
}

/// Whether an owner holds the whole range with at least the wanted kind.
pub fn covers(held: &[LockHeld], wanted: &LockHeld) -> bool {
    let mut next = wanted.start;
    for lock in held.iter().filter(|lock| same_owner(lock, wanted)) {
        let enough = lock.kind == LockKind::Write || wanted.kind == LockKind::Read;
        if lock.start <= next && next <= lock.end && enough {
            if lock.end >= wanted.end {
                return true;
            }
            next = lock.end + 1;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SessionId;

    fn lock(owner: u64, kind: LockKind, start: u64, end: u64) -> LockHeld {
        LockHeld {
            session: SessionId(1),
            owner,
            start,
            end,
            kind,
            pid: 1,
        }
    }

    /// Against a table of single bytes.
    #[test]
    fn taking_and_freeing_follow_a_model_of_bytes() {
        let mut draw = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = |below: u64| {
            draw ^= draw << 13;
            draw ^= draw >> 7;
            draw ^= draw << 17;
            draw % below
        };
        for _ in 0..200 {
            let mut held = Vec::new();
            let mut model = [[LockKind::Unlock; 16]; 2];
            for _ in 0..30 {
                let (owner, start) = (random(2), random(16));
                let end = start + random(16 - start);
                let kind = [LockKind::Read, LockKind::Write, LockKind::Unlock][random(3) as usize];
                let change = lock(owner, kind, start, end);
                match kind {
                    LockKind::Unlock => free(&mut held, &change),
                    _ => take(&mut held, change),
                }
                model[owner as usize][start as usize..=end as usize].fill(kind);
                for owner in 0..2 {
                    for byte in 0..16 {
                        let kind = model[owner as usize][byte as usize];
                        let read = lock(owner, LockKind::Read, byte, byte);
                        let write = lock(owner, LockKind::Write, byte, byte);
                        assert_eq!(covers(&held, &read), kind != LockKind::Unlock);
                        assert_eq!(covers(&held, &write), kind == LockKind::Write);
                    }
                }
                let whole = held.windows(2).all(|pair| pair[0].start <= pair[1].start);
                assert!(whole, "ordered");
            }
        }
    }
}
