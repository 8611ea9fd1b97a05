//! Commands for the control plane that make no sense: the state machine refuses them without a change, and what it
//! accepts leaves a state that is sound and survives a snapshot.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use mortar_protocol::ids::{
    BrickId, Epoch, NodeId, Opening, RunId, SessionId, SetId, SetIndex, VolumeId,
};
use mortar_protocol::limits::MAX_HEAD;
use mortar_protocol::options::OPTIONS;
use mortar_protocol::view::{BrickInfo, Member, SetKind, View};
use mortar_server::control::machine::{Command, Outcome, State};

use crate::{Draw, mutated, rounds};

/// A text that nobody in his right mind would give as a name.
pub fn odd_text(draw: &mut Draw) -> String {
    match draw.below(9) {
        0 => String::new(),
        1 => "x".repeat(4_096),
        2 => "nul\0here".to_owned(),
        3 => "two\nlines".to_owned(),
        4 => "../../etc/passwd".to_owned(),
        5 => "\u{1b}[2Jescape\u{202e}".to_owned(),
        6 => "%s%n{}".to_owned(),
        7 => "[".repeat(300),
        _ => "\u{e9}".repeat(draw.below(300)),
    }
}

fn name(draw: &mut Draw) -> String {
    match draw.below(6) {
        0 => odd_text(draw),
        _ => format!("v{}", draw.below(4)),
    }
}

fn small(draw: &mut Draw, end: usize) -> u128 {
    match draw.below(20) {
        0 => 0,
        1 => u128::MAX,
        _ => 1 + draw.below(end) as u128,
    }
}

fn number(draw: &mut Draw) -> u64 {
    match draw.below(8) {
        0 => 0,
        1 => u64::MAX,
        2 => u64::MAX - 1,
        3 => 1 << 63,
        _ => draw.below(10) as u64,
    }
}

fn kind(draw: &mut Draw) -> SetKind {
    let copies = [0, 1, 2, 3, 16, 17, u16::MAX][draw.below(7)];
    match draw.below(5) {
        0 => SetKind::Plain,
        1 => SetKind::Disperse {
            data: copies,
            redundancy: copies,
        },
        _ => SetKind::Replicate { copies },
    }
}

fn brick(draw: &mut Draw) -> BrickInfo {
    let path = match draw.below(20) {
        0 => odd_text(draw),
        _ => format!("/b{}", draw.below(12)),
    };
    BrickInfo {
        id: BrickId(small(draw, 24)),
        node: NodeId(small(draw, 3)),
        host: format!("h{}", draw.below(3)),
        path,
    }
}

fn value(draw: &mut Draw) -> String {
    let values = [
        "on",
        "off",
        "-1",
        "0",
        "4MB",
        "18446744073709551615",
        "1s",
        "\u{e9}",
        "fsync",
        "*",
    ];
    match draw.below(12) {
        0 => odd_text(draw),
        1 => "v".repeat(64 << 10),
        at => values[at % values.len()].to_owned(),
    }
}

fn option(draw: &mut Draw) -> String {
    match draw.below(10) {
        0 => odd_text(draw),
        _ => OPTIONS[draw.below(OPTIONS.len())].name.to_owned(),
    }
}

fn view(draw: &mut Draw) -> View {
    let member = |draw: &mut Draw| Member {
        brick: BrickId(small(draw, 24)),
        node: NodeId(small(draw, 3)),
        run: RunId(small(draw, 3)),
        keeps_data: draw.below(4) > 0,
    };
    let members: Vec<Member> = (0..draw.below(4)).map(|_| member(draw)).collect();
    let first = members.first().map(|member| member.brick);
    View {
        set: SetId {
            volume: VolumeId(small(draw, 6)),
            index: SetIndex([0, 0, 0, 1, u32::MAX][draw.below(5)]),
        },
        epoch: Epoch(number(draw)),
        primary: first.unwrap_or_default(),
        members,
        absent: vec![BrickId(small(draw, 24)); draw.below(3)],
        opening: Opening(number(draw)),
        effective: draw.below(2) == 0,
    }
}

fn addrs(draw: &mut Draw) -> Vec<SocketAddr> {
    let addr = SocketAddr::from(([10, 0, 0, 1], 24_007));
    vec![addr; [0, 1, 2, 1_000][draw.below(4)]]
}

/// A command whose parts are likely to meet those of others.
pub fn command(draw: &mut Draw) -> Command {
    let node = NodeId(small(draw, 4));
    let volume = VolumeId(small(draw, 6));
    let now_secs = [0, i64::MIN, i64::MAX][draw.below(3)];
    match draw.below(18) {
        0 => Command::Node {
            node,
            host: name(draw),
            addrs: addrs(draw),
        },
        1 => Command::Invite {
            node,
            host: name(draw),
            addrs: addrs(draw),
            now_secs,
        },
        2 => Command::AlsoNamed {
            node,
            host: name(draw),
        },
        3 => Command::Detach { node },
        4 => Command::Forget { node },
        5 => Command::Cleared {
            bricks: (0..draw.below(4))
                .map(|_| BrickId(small(draw, 24)))
                .collect(),
        },
        6 | 7 => Command::BeginCreate {
            volume,
            name: name(draw),
            kind: kind(draw),
            bricks: (0..draw.below(7)).map(|_| brick(draw)).collect(),
            now_secs,
        },
        8 => Command::FinishCreate { volume },
        9 => Command::AbortCreate { volume },
        10 => Command::Start {
            volume: name(draw),
            force: draw.below(2) == 0,
        },
        11 => Command::Stop { volume: name(draw) },
        12 => Command::Delete {
            volume: name(draw),
            now_secs,
        },
        13 => Command::Set {
            volume: name(draw),
            options: (0..draw.below(4))
                .map(|_| (option(draw), value(draw)))
                .collect(),
        },
        14 => Command::Reset {
            volume: name(draw),
            option: (draw.below(2) == 0).then(|| option(draw)),
        },
        15 if draw.below(2) == 0 => Command::SetAside {
            node,
            count: draw.next() as u32 >> draw.below(32),
        },
        15 => Command::OpenSession {
            node,
            session: SessionId(number(draw)),
            volume,
            uid: draw.next() as u32,
        },
        16 => Command::EndSessions {
            volume,
            sessions: vec![SessionId(number(draw)); draw.below(3)],
        },
        _ => Command::Views((0..draw.below(3)).map(|_| view(draw)).collect()),
    }
}

/// What must be so of every state.
pub fn check(state: &State) -> Result<(), String> {
    let bytes = postcard::to_stdvec(state).map_err(|error| error.to_string())?;
    let again: State = postcard::from_bytes(&bytes).map_err(|error| error.to_string())?;
    if again != *state {
        return Err("a snapshot of it is another state".to_owned());
    }
    state.check()?;
    let aside = state.set_aside.values().flatten();
    let open = state
        .volumes
        .values()
        .flat_map(|volume| volume.sessions.keys());
    let sessions: Vec<&SessionId> = aside.chain(open).collect();
    let different: BTreeSet<&SessionId> = sessions.iter().copied().collect();
    if different.len() != sessions.len() {
        return Err("two sessions have one number".to_owned());
    }
    let infos: Vec<_> = (state.volumes.values().map(|volume| &volume.info))
        .chain(state.creating.values().map(|creating| &creating.info))
        .collect();
    let names: BTreeSet<&str> = infos.iter().map(|info| info.name.as_str()).collect();
    if names.len() != infos.len() {
        return Err("two volumes of one name".to_owned());
    }
    let bricks: Vec<&BrickInfo> = infos
        .iter()
        .flat_map(|info| info.sets.iter().flatten())
        .collect();
    let ids: BTreeSet<BrickId> = bricks.iter().map(|brick| brick.id).collect();
    let places: BTreeSet<_> = bricks
        .iter()
        .map(|brick| (brick.node, &brick.path))
        .collect();
    if ids.len() != bricks.len() || places.len() != bricks.len() {
        return Err("a brick is used twice".to_owned());
    }
    if let Some(brick) = bricks
        .iter()
        .find(|brick| !state.nodes.contains_key(&brick.node))
    {
        return Err(format!("{} is on a node that is gone", brick.path));
    }
    for volume in state.volumes.values() {
        for (set, views) in volume.info.sets.iter().zip(&volume.sets) {
            for view in [&views.current, &views.effective].into_iter().flatten() {
                let strange = |member: &Member| set.iter().all(|brick| brick.id != member.brick);
                if view.members.iter().any(strange) {
                    return Err(format!("{} has strangers as members", view.set));
                }
            }
        }
        let tall = |(_, value): (&String, &String)| value.len() > 4_096 || value.contains('\n');
        if volume.info.options.iter().any(tall) {
            return Err("an option has a value that fits no screen".to_owned());
        }
    }
    Ok(())
}

#[test]
fn commands_that_make_no_sense_are_refused_without_a_change() {
    let (mut done, mut refused) = (0, 0);
    for round in 0..rounds(300) {
        let mut draw = Draw::new(round + 60_000);
        let mut state = State::default();
        for _ in 0..200 {
            let mut given = command(&mut draw);
            if draw.below(4) == 0 {
                let bytes = postcard::to_stdvec(&given).expect("a command");
                given = match postcard::from_bytes(&mutated(&bytes, &mut draw)) {
                    Ok(other) => other,
                    Err(_) => continue,
                };
            }
            let before = state.clone();
            let outcome = catch_unwind(AssertUnwindSafe(|| state.apply(&given)));
            let text = || format!("round {round}: {:.2000}", format!("{given:?}"));
            let Ok(outcome) = outcome else {
                panic!("{}", text());
            };
            assert_eq!(state.applied, before.applied + 1);
            if let Outcome::Refused(why) = &outcome {
                crate::said(why);
                refused += 1;
                let mut same = state.clone();
                same.applied = before.applied;
                assert!(
                    same == before,
                    "refused, but not without a change: {}",
                    text()
                );
            } else {
                done += 1;
            }
            if let Err(why) = check(&state) {
                panic!("{why} after {}", text());
            }
        }
    }
    assert!(
        done > 1_000 && refused > 1_000,
        "{done} done, {refused} refused"
    );
}

#[test]
fn very_large_requests_are_answered_in_time() {
    let mut state = State::default();
    state.apply(&Command::Node {
        node: NodeId(1),
        host: "h".to_owned(),
        addrs: Vec::new(),
    });
    let bricks = |count: u32| -> Vec<BrickInfo> {
        let brick = |at: u32| BrickInfo {
            id: BrickId(u128::from(at) + 1),
            node: NodeId(1),
            host: "h".to_owned(),
            path: format!("/b{at}"),
        };
        (0..count).map(brick).collect()
    };
    let create = |count: u32| Command::BeginCreate {
        volume: VolumeId(u128::from(count) + 1),
        name: format!("v{count}"),
        kind: SetKind::Plain,
        bricks: bricks(count),
        now_secs: 0,
    };
    for (count, fits) in [(0, false), (1_024, true), (65_535, false)] {
        let outcome = state.apply(&create(count));
        let refused = matches!(outcome, Outcome::Refused(_));
        assert_eq!(refused, !fits, "{count} bricks: {outcome:?}");
    }
    let options = vec![("auth.allow".to_owned(), "v".repeat(MAX_HEAD)); 3];
    let volume = VolumeId(1_025);
    state.apply(&Command::FinishCreate { volume });
    let outcome = state.apply(&Command::Set {
        volume: "v1024".to_owned(),
        options,
    });
    assert!(matches!(outcome, Outcome::Refused(_)));
    check(&state).expect("a sound state");
}

/// Bytes of a snapshot that were damaged are an error, or a state that can be worked with.
#[test]
fn damaged_states_are_errors() {
    let (mut refused, mut read) = (0, 0);
    for round in 0..rounds(400) {
        let mut draw = Draw::new(round + 70_000);
        let mut state = State::default();
        for _ in 0..60 {
            state.apply(&command(&mut draw));
        }
        let bytes = postcard::to_stdvec(&state).expect("a state");
        for _ in 0..20 {
            let bytes = mutated(&bytes, &mut draw);
            let outcome = catch_unwind(|| match State::read(&bytes) {
                Err(why) => {
                    crate::said(&why);
                    false
                }
                Ok(mut state) => {
                    let mut draw = Draw::new(round);
                    for _ in 0..20 {
                        state.apply(&command(&mut draw));
                    }
                    true
                }
            });
            match outcome {
                Ok(true) => read += 1,
                Ok(false) => refused += 1,
                Err(_) => panic!("round {round}"),
            }
        }
    }
    assert!(refused > 100 && read > 100, "{refused} {read}");
}
