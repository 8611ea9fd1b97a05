//! When a node stands for election.
//!
//! The library draws the time after which a follower stands once for the life of its process: two nodes that happened to
//! draw nearly the same would split the votes again and again. Here it is drawn anew each time, and a node that has just
//! been told of a leader, or has given its vote, waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mortar_protocol::env::{Env, Mono};
use openraft::{Raft, ServerState};

use super::Types;
use super::runtime::within;

/// A follower trusts its leader for this long after its last sign of life, and gives no other its vote.
pub(super) const LEASE: Duration = Duration::from_millis(1_200);
/// Followers stand at some time within this span after the lease.
const SPREAD: Duration = Duration::from_millis(600);
/// Least time between two candidacies of a node.
const AGAIN: Duration = Duration::from_millis(300);

/// What a node is in the consensus, as far as elections go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Leads,
    Follows,
    /// Nobody else votes: there is nothing to wait for.
    VotesAlone,
    HasNoVote,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Stand,
    Wait(Duration),
}

/// When a node stands next. Pure: time, signs of life and random numbers come from outside.
#[derive(Debug)]
struct Turn {
    heard: Mono,
    due: Mono,
    stood: Option<Mono>,
}

impl Turn {
    fn new(now: Mono, random: u64) -> Self {
        Self {
            heard: now,
            due: patience(now, random),
            stood: None,
        }
    }

    /// What to do now. `heard` is the last sign of life of a leader.
    fn step(&mut self, now: Mono, place: Place, heard: Mono, random: u64) -> Step {
        match place {
            Place::Leads | Place::HasNoVote => {
                *self = Self::new(now, random);
                return Step::Wait(LEASE / 2);
            }
            Place::VotesAlone => {
                self.due = self.stood.map_or(now, |stood| stood.after(AGAIN));
            }
            Place::Follows => {
                if heard > self.heard {
                    self.heard = heard;
                    self.due = patience(heard, random);
                }
            }
        }
        let left = self.due.since(now);
        if !left.is_zero() {
            return Step::Wait(left);
        }
        self.stood = Some(now);
        self.due = now.after(AGAIN + spread(random));
        Step::Stand
    }
}

fn spread(random: u64) -> Duration {
    Duration::from_nanos(random % SPREAD.as_nanos() as u64)
}

fn patience(heard: Mono, random: u64) -> Mono {
    heard.after(LEASE + spread(random))
}

/// The last sign of life of a leader.
#[derive(Default, Debug)]
pub(super) struct SignOfLife(AtomicU64);

impl SignOfLife {
    /// A leader was heard, or this node gave its vote.
    pub(super) fn note(&self, now: Mono) {
        self.0.fetch_max(now.0, Ordering::Relaxed);
    }

    fn last(&self) -> Mono {
        Mono(self.0.load(Ordering::Relaxed))
    }
}

/// Stands for election whenever it is time, until the consensus ends.
pub(super) async fn run(env: Arc<dyn Env>, raft: Raft<Types>, life: Arc<SignOfLife>) {
    let own = raft.metrics().borrow().id;
    let mut turn = Turn::new(env.now(), env.random());
    loop {
        let place = {
            let metrics = raft.metrics();
            let metrics = metrics.borrow();
            if metrics.running_state.is_err() {
                return;
            }
            let membership = metrics.membership_config.membership();
            match metrics.state {
                ServerState::Leader => Place::Leads,
                _ if !membership.voter_ids().any(|voter| voter == own) => Place::HasNoVote,
                _ if membership.voter_ids().count() == 1 => Place::VotesAlone,
                _ => Place::Follows,
            }
        };
        match turn.step(env.now(), place, life.last(), env.random()) {
            Step::Wait(span) => env.sleep(span).await,
            Step::Stand => {
                if within(&env, raft.trigger().elect()).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Mono = Mono(5_000_000_000);

    fn follows(turn: &mut Turn, now: Mono, heard: Mono, random: u64) -> Step {
        turn.step(now, Place::Follows, heard, random)
    }

    #[test]
    fn a_follower_stands_after_the_lease_and_what_was_drawn() {
        let mut turn = Turn::new(START, 7);
        let due = START.after(LEASE + Duration::from_nanos(7));
        assert_eq!(
            follows(&mut turn, START, Mono(0), 0),
            Step::Wait(due.since(START))
        );
        assert_eq!(follows(&mut turn, due, Mono(0), 0), Step::Stand);
    }

    #[test]
    fn a_leader_that_is_heard_puts_it_off() {
        let mut turn = Turn::new(START, 0);
        let heard = START.after(LEASE);
        assert_eq!(
            follows(&mut turn, heard, heard, 3),
            Step::Wait(LEASE + Duration::from_nanos(3))
        );
        // The same sign of life counts once: the time is not drawn again.
        assert_eq!(
            follows(&mut turn, heard, heard, 9),
            Step::Wait(LEASE + Duration::from_nanos(3))
        );
    }

    #[test]
    fn two_that_split_the_votes_draw_anew() {
        let span = |random| {
            let mut turn = Turn::new(START, 0);
            let due = START.after(LEASE);
            assert_eq!(follows(&mut turn, due, Mono(0), random), Step::Stand);
            match follows(&mut turn, due, Mono(0), 0) {
                Step::Wait(span) => span,
                Step::Stand => panic!("stands again at once"),
            }
        };
        assert_eq!(span(5), AGAIN + Duration::from_nanos(5));
        assert_eq!(span(50_000_000), AGAIN + Duration::from_millis(50));
    }

    #[test]
    fn who_leads_or_has_no_vote_begins_to_wait_when_that_ends() {
        for place in [Place::Leads, Place::HasNoVote] {
            let mut turn = Turn::new(START, 0);
            let later = START.after(LEASE * 10);
            let wait = turn.step(later, place, Mono(0), 0);
            assert_eq!(wait, Step::Wait(LEASE / 2));
            assert_eq!(
                follows(&mut turn, later, Mono(0), 0),
                Step::Wait(LEASE),
                "{place:?}"
            );
        }
    }

    #[test]
    fn the_only_voter_does_not_wait() {
        let mut turn = Turn::new(START, 0);
        assert_eq!(turn.step(START, Place::VotesAlone, Mono(0), 0), Step::Stand);
        assert_eq!(
            turn.step(START, Place::VotesAlone, Mono(0), 0),
            Step::Wait(AGAIN)
        );
    }
}
