//! What nobody in his right mind would send: no panic, always an answer, nothing changes.

use super::*;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use proptest::prelude::*;

use crate::env::Env;
use crate::frame::Frame;
use crate::transport::Strangers;

/// A clock that a test sets; no tasks.
#[derive(Default)]
struct Still(Mutex<Mono>);

impl Env for Still {
    fn now(&self) -> Mono {
        *self.0.lock()
    }

    fn wall(&self) -> Time {
        Time::default()
    }

    fn random(&self) -> u64 {
        4
    }

    fn sleep(&self, _span: Duration) -> BoxFuture<'static, ()> {
        unreachable!("nothing waits")
    }

    fn spawn(&self, _task: BoxFuture<'static, ()>) {
        unreachable!("nobody is adopted")
    }
}

struct Never;

impl Candidate for Never {
    fn facts(&self) -> Facts {
        fit()
    }

    fn adopt(&self, _adoption: Adoption) -> BoxFuture<'static, Result<(), String>> {
        unreachable!("nobody has proven anything")
    }
}

struct World {
    _dir: tempfile::TempDir,
    answerer: Answerer,
    env: Arc<Still>,
}

const BINDING: [u8; 32] = [7; 32];

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = secret(dir.path(), "secret", GOOD);
        let env = Arc::new(Still::default());
        Self {
            answerer: Answerer::new(Arc::new(Never), file, Arc::clone(&env) as _),
            _dir: dir,
            env,
        }
    }

    fn ask(&self, frame: Frame) -> JoinReply {
        self.ask_over(BINDING, frame)
    }

    /// Over another connection.
    fn ask_over(&self, binding: [u8; 32], frame: Frame) -> JoinReply {
        let answer = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&answer);
        let reply = Box::new(move |frame: Frame| *slot.lock() = Some(frame));
        self.answerer.serve(addr(), binding, frame, reply);
        let frame = answer.lock().take().expect("an answer at once");
        frame.message().unwrap()
    }

    fn tell(&self, request: &JoinRequest) -> JoinReply {
        self.ask(Frame::new(request, Bytes::new()).unwrap())
    }
}

fn shared() -> Secret {
    Secret::of(GOOD.trim_end().as_bytes())
}

fn requests() -> [JoinRequest; 2] {
    let shared = shared();
    let prover = Prover {
        secret: &shared,
        binding: BINDING,
    };
    [prover.hello(own()), prover.adopt(own(), adoption())]
}

#[test]
fn a_minute_after_the_guesses_it_answers_again() {
    let world = World::new();
    let [hello, _] = requests();
    let greets = || matches!(world.tell(&hello), JoinReply::Greeting { .. });
    assert!(greets());
    let wrong = Secret::of(b"wrong");
    let wrong = Prover {
        secret: &wrong,
        binding: BINDING,
    };
    for _ in 0..GUESSES {
        let refused = world.tell(&wrong.hello(own()));
        assert_eq!(refused, JoinReply::Refused(Refusal::Proof));
    }
    for _ in 0..20 {
        let refused = world.tell(&hello);
        assert_eq!(refused, JoinReply::Refused(Refusal::TooMany));
    }
    let over = world.env.now().after(GUESS_SPAN);
    *world.env.0.lock() = over;
    assert!(greets());
}

#[test]
fn every_cut_and_every_flipped_bit_is_refused() {
    for request in requests() {
        let whole = Frame::new(&request, Bytes::new()).unwrap().head;
        let mut world = World::new();
        for at in 0..whole.len() {
            let cut = Frame {
                head: whole.slice(..at),
                body: Bytes::new(),
            };
            assert_eq!(world.ask(cut), JoinReply::Refused(Refusal::Garbled));
        }
        for bit in 0..whole.len() * 8 {
            let mut head = whole.to_vec();
            head[bit / 8] ^= 1 << (bit % 8);
            let flipped = Frame {
                head: head.into(),
                body: Bytes::new(),
            };
            match world.ask(flipped) {
                JoinReply::Refused(Refusal::Garbled) => {}
                // One guess: a new world, or none would be looked at.
                JoinReply::Refused(Refusal::Proof) => world = World::new(),
                other => panic!("bit {bit}: {other:?}"),
            }
        }
    }
}

/// All that two nodes which know the secret say to each other over a connection.
fn said_over(who: &Introduction, binding: [u8; 32]) -> Vec<Bytes> {
    let shared = shared();
    let prover = Prover {
        secret: &shared,
        binding,
    };
    let mut other = who.clone();
    other.run += 1;
    let head = |frame: Result<Frame, _>| frame.unwrap().head;
    vec![
        head(Frame::new(&prover.hello(who.clone()), Bytes::new())),
        head(Frame::new(
            &prover.adopt(who.clone(), adoption()),
            Bytes::new(),
        )),
        head(Frame::new(&prover.greeting(who, fit()), Bytes::new())),
        head(Frame::new(&prover.greeting(&other, fit()), Bytes::new())),
        head(Frame::new(&JoinReply::Adopted, Bytes::new())),
    ]
}

#[test]
fn what_was_said_elsewhere_or_by_the_other_side_proves_nothing() {
    let bindings = [[1; 32], [2; 32], [3; 32]];
    let (shared, who) = (shared(), own());
    for (said_on, binding) in bindings.iter().enumerate() {
        for (number, head) in said_over(&who, *binding).into_iter().enumerate() {
            for (heard_on, binding) in bindings.iter().enumerate() {
                let frame = Frame {
                    head: head.clone(),
                    body: Bytes::new(),
                };
                let prover = Prover {
                    secret: &shared,
                    binding: *binding,
                };
                // As an answer: a greeting, on its own connection, to who asked.
                if let Ok(JoinReply::Greeting { facts, proof }) = frame.message() {
                    let right = said_on == heard_on && number == 2;
                    let accepted = prover.accepts_greeting(&who, &facts, proof);
                    assert_eq!(accepted, right, "{number} of {said_on} on {heard_on}");
                }
                // As a request: those that are one, on their own connection, which others show to be taken.
                if said_on != heard_on || number > 1 {
                    let reply = World::new().ask_over(*binding, frame);
                    assert!(
                        matches!(reply, JoinReply::Refused(Refusal::Proof | Refusal::Garbled)),
                        "{number} of {said_on} on {heard_on}: {reply:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_body_has_no_place() {
    let [hello, _] = requests();
    let frame = Frame::new(&hello, Bytes::from_static(b"x")).unwrap();
    assert_eq!(
        World::new().ask(frame),
        JoinReply::Refused(Refusal::Garbled)
    );
}

proptest! {
    #[test]
    fn noise_is_refused(
        kind in 0u8..4,
        noise in proptest::collection::vec(any::<u8>(), 0..2_000),
    ) {
        let world = World::new();
        // Half of it passes for the beginning of a request.
        let head = [&[kind][..], &noise].concat();
        let frame = Frame { head: head.into(), body: Bytes::new() };
        prop_assert!(matches!(world.ask(frame), JoinReply::Refused(_)));
    }

    #[test]
    fn lengths_that_are_not_there_take_no_memory(length in any::<u64>(), fill in any::<u8>()) {
        // A text that says it is very long.
        let [hello, adopt] = requests();
        for request in [hello, adopt] {
            let mut head = Frame::new(&request, Bytes::new()).unwrap().head.to_vec();
            let at = head.windows(5).position(|piece| piece == b"0.1.0").unwrap();
            let long = postcard::to_stdvec(&length).unwrap();
            head.splice(at - 1..at, long);
            head.extend(std::iter::repeat_n(fill, 100));
            let frame = Frame { head: head.into(), body: Bytes::new() };
            prop_assert!(matches!(World::new().ask(frame), JoinReply::Refused(_)));
        }
    }

    #[test]
    fn pieces_of_what_was_said_prove_nothing(
        one in 0usize..5,
        other in 0usize..5,
        cut in 0.0f64..1.0,
        and_on in 0.0f64..1.0,
        noise in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        // The beginning of the one, some noise, the rest of the other.
        let said = said_over(&own(), BINDING);
        let (first, second) = (&said[one], &said[other]);
        let at = |piece: &Bytes, share: f64| (piece.len() as f64 * share) as usize;
        let start = &first[..at(first, cut)];
        let rest = &second[at(second, and_on)..];
        let head: Bytes = [start, &noise, rest].concat().into();
        let frame = Frame { head, body: Bytes::new() };
        let same = said.contains(&frame.head);
        if let Ok(JoinReply::Greeting { facts, proof }) = frame.message() {
            let shared = shared();
            let prover = Prover { secret: &shared, binding: BINDING };
            let accepted = prover.accepts_greeting(&own(), &facts, proof);
            prop_assert!(!accepted || same);
        }
        if !same {
            let reply = World::new().ask(frame);
            prop_assert!(matches!(reply, JoinReply::Refused(_)), "{:?}", reply);
        }
    }

    #[test]
    fn replies_of_noise_are_errors(noise in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        let frame = Frame { head: noise.into(), body: Bytes::new() };
        // Whatever it is taken for, it says nothing that a proof would not have to cover.
        if let Ok(JoinReply::Greeting { facts, proof }) = frame.message() {
            let shared = shared();
            let prover = Prover { secret: &shared, binding: BINDING };
            prop_assert!(!prover.accepts_greeting(&own(), &facts, proof));
        }
    }
}
