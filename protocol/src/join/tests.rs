//! Two real ends on the loopback address, and what lies between them.

mod ends;
mod hostile;
mod lines;

use super::answer::{GUESS_SPAN, GUESSES, Guesses, Judged, judge};
use super::message::Prover;
use super::*;
use crate::attr::Time;
use crate::env::Mono;
use crate::env_real::{mono_now, wall_now};
use crate::ids::{ClusterId, NodeId};
use crate::transport::tls::Authority;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const OWN: NodeId = NodeId(0xa);
const OTHER: NodeId = NodeId(0xb);
const CLUSTER: ClusterId = ClusterId(1);

fn wall_ms() -> i64 {
    let Time { secs, nanos } = wall_now();
    secs * 1_000 + i64::from(nanos) / 1_000_000
}

/// The node that asks.
fn own() -> Introduction {
    Introduction {
        cluster: CLUSTER,
        node: OWN,
        run: 1,
        release: "0.1.0".to_owned(),
        wire: Wire::OWN,
        wall_ms: wall_ms(),
    }
}

/// A node that is fit for being taken in.
fn fit() -> Facts {
    Facts {
        who: Introduction {
            cluster: ClusterId(2),
            node: OTHER,
            run: 2,
            ..own()
        },
        others: 0,
        volumes: 0,
        host: "other".to_owned(),
        addrs: vec![addr()],
    }
}

fn addr() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 2], 24007))
}

fn adoption() -> Adoption {
    Adoption {
        cluster: CLUSTER,
        authority: Authority::generate(CLUSTER).unwrap().to_parts(),
        nodes: vec![(OWN, vec![addr()])],
    }
}

/// A secret file that holds this.
fn secret(dir: &Path, name: &str, text: &str) -> SecretFile {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    SecretFile::new(path)
}

const GOOD: &str = "0123456789abcdef\n";

#[test]
fn a_secret_is_made_once_and_private() {
    let dir = tempfile::tempdir().unwrap();
    let file = SecretFile::new(dir.path().join("etc/mortar/secret"));
    assert!(file.load().is_err());
    assert!(file.ensure().unwrap());
    let text = std::fs::read_to_string(file.path()).unwrap();
    assert_eq!(text.trim_end().len(), 64);
    let mode = std::fs::metadata(file.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    assert!(!file.ensure().unwrap());
    assert_eq!(std::fs::read_to_string(file.path()).unwrap(), text);
    let parent = file.path().parent().unwrap();
    assert_eq!(std::fs::read_dir(parent).unwrap().count(), 1);
    let again = SecretFile::new(dir.path().join("second"));
    assert!(again.ensure().unwrap());
    assert_ne!(std::fs::read_to_string(again.path()).unwrap(), text);
}

#[test]
fn white_space_at_the_end_of_a_secret_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let of = |name: &str, text: &str| secret(dir.path(), name, text).load().unwrap().0;
    let plain = of("a", "0123456789abcdef");
    assert_eq!(of("b", "0123456789abcdef \r\n\n"), plain);
    assert_ne!(of("c", " 0123456789abcdef"), plain);
    assert_ne!(of("d", "0123456789abcdeF"), plain);
}

#[test]
fn guesses_are_limited_by_the_minute() {
    let start = Mono(1_000);
    let mut guesses = Guesses::default();
    for n in 1..=GUESSES {
        assert!(guesses.open(start));
        assert_eq!(guesses.wrong(start), n == GUESSES);
    }
    assert!(!guesses.open(start));
    assert!(!guesses.open(Mono(start.0 + GUESS_SPAN.as_nanos() as u64 - 1)));
    let after = start.after(GUESS_SPAN);
    assert!(guesses.open(after));
    assert!(!guesses.wrong(after), "a new minute has begun");
    // A few that are far apart close nothing.
    let mut at = after;
    for _ in 0..50 {
        at = at.after(GUESS_SPAN / 4);
        assert!(guesses.open(at));
        guesses.wrong(at);
    }
}

#[test]
fn a_proof_counts_for_one_connection_one_role_and_one_text() {
    let [right, wrong] = ["a", "b"].map(|text| Secret::of(text.as_bytes()));
    let prover = |secret, binding| Prover { secret, binding };
    let here = prover(&right, [1; 32]);
    let hello = here.hello(own());
    assert!(here.accepts(&hello));
    assert!(!prover(&wrong, [1; 32]).accepts(&hello));
    assert!(!prover(&right, [2; 32]).accepts(&hello));
    let JoinRequest::Hello { who, proof } = hello else {
        panic!()
    };
    let mut other = who.clone();
    other.cluster = ClusterId(3);
    assert!(!here.accepts(&JoinRequest::Hello { who: other, proof }));
    // Neither a reflected proof nor one of another request.
    assert!(!here.accepts_greeting(&who, &fit(), proof));
    let adopt = here.adopt(who.clone(), adoption());
    assert!(here.accepts(&adopt));
    let JoinRequest::Adopt { proof: made, .. } = adopt else {
        panic!()
    };
    let forged = JoinRequest::Adopt {
        who: who.clone(),
        adoption: Box::new(adoption()),
        proof: made,
    };
    assert!(!here.accepts(&forged), "another authority");
    assert!(!here.accepts(&JoinRequest::Hello {
        who: who.clone(),
        proof: made
    }));
    let JoinReply::Greeting { facts, proof } = here.greeting(&who, fit()) else {
        panic!()
    };
    assert!(here.accepts_greeting(&who, &facts, proof));
    let mut changed = *facts;
    changed.volumes += 1;
    assert!(!here.accepts_greeting(&who, &changed, proof));
}

#[test]
fn an_adoption_is_judged_again_by_the_one_adopted() {
    let shared = Secret::of(GOOD.as_bytes());
    let prover = Prover {
        secret: &shared,
        binding: [0; 32],
    };
    let judged = |facts: Facts, adoption: Adoption| {
        judge(prover.adopt(own(), adoption), &prover, facts, addr())
    };
    let refusal = |judged: Judged| match judged {
        Judged::Reply(JoinReply::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    assert!(matches!(judged(fit(), adoption()), Judged::Adopt(_)));
    // A volume that was created after the probe.
    let mut busy = fit();
    busy.volumes = 1;
    let unfit = Refusal::Unfit(Box::new(busy.clone()));
    assert_eq!(refusal(judged(busy, adoption())), unfit);
    // Told a second time.
    let mut member = fit();
    member.who.cluster = CLUSTER;
    member.others = 2;
    assert!(matches!(
        judged(member, adoption()),
        Judged::Reply(JoinReply::Adopted)
    ));
    let mut foreign = adoption();
    foreign.cluster = ClusterId(9);
    let mut alone = adoption();
    alone.nodes.clear();
    let mut mixed = adoption();
    mixed.authority.key = adoption().authority.key;
    for nonsense in [foreign, alone, mixed] {
        assert_eq!(refusal(judged(fit(), nonsense)), Refusal::Garbled);
    }
}
