//! What the state machine accepts and refuses, and that it is deterministic.

use super::*;
use mortar_protocol::ids::{Epoch, Opening, RunId};
use mortar_protocol::view::Member;
use proptest::prelude::*;

const NODE: NodeId = NodeId(9);

fn bricks(from: u128, count: u128) -> Vec<BrickInfo> {
    (from..from + count)
        .map(|id| BrickInfo {
            id: BrickId(id),
            node: NODE,
            host: "h".to_owned(),
            path: format!("/b/{id}"),
        })
        .collect()
}

fn create(id: u128, name: &str, copies: u16, bricks: Vec<BrickInfo>) -> Command {
    Command::BeginCreate {
        volume: VolumeId(id),
        name: name.to_owned(),
        kind: if copies == 1 {
            SetKind::Plain
        } else {
            SetKind::Replicate { copies }
        },
        bricks,
        now_secs: 5,
    }
}

fn with_volume() -> State {
    let mut state = State::default();
    let node = Command::Node {
        node: NODE,
        host: "h".to_owned(),
        addrs: Vec::new(),
    };
    assert_eq!(state.apply(&node), Outcome::Done);
    assert_eq!(state.apply(&create(1, "v", 3, bricks(1, 6))), Outcome::Done);
    let finish = Command::FinishCreate {
        volume: VolumeId(1),
    };
    assert_eq!(state.apply(&finish), Outcome::Done);
    state
}

fn refused(outcome: &Outcome, text: &str) {
    let Outcome::Refused(message) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(message.contains(text), "{message}");
}

#[test]
fn creations_are_checked() {
    let mut state = with_volume();
    assert_eq!(state.volume("v").unwrap().info.sets.len(), 2);
    for (command, text) in [
        (create(2, "v", 3, bricks(7, 3)), "Volume v already exists"),
        (create(2, "w", 3, bricks(7, 4)), "not a multiple of replica"),
        (
            create(2, "w", 3, bricks(6, 3)),
            "/b/6 is already part of a volume",
        ),
        (
            create(2, "w", 1, [bricks(8, 1), bricks(8, 1)].concat()),
            "duplicate",
        ),
        (create(2, "a/b", 1, bricks(8, 1)), "not a name"),
        (create(2, "w", 1, Vec::new()), "not a multiple"),
    ] {
        refused(&state.apply(&command), text);
    }
    let mut stranger = bricks(20, 1);
    stranger[0].node = NodeId(10);
    refused(
        &state.apply(&create(2, "w", 1, stranger)),
        "Host h is not in 'Peer in Cluster' state",
    );
    // What is being created is taken too; given up, it is free again.
    assert_eq!(state.apply(&create(2, "w", 1, bricks(7, 1))), Outcome::Done);
    refused(
        &state.apply(&create(3, "w", 1, bricks(8, 1))),
        "already exists",
    );
    refused(
        &state.apply(&create(3, "x", 1, bricks(7, 1))),
        "already part",
    );
    let volume = VolumeId(2);
    assert_eq!(state.apply(&Command::AbortCreate { volume }), Outcome::Done);
    refused(&state.apply(&Command::FinishCreate { volume }), "given up");
    // Its brick still has to be cleared: another one may lie there by then, but not of the same identity.
    let mut again = bricks(7, 1);
    let same = create(3, "w", 1, again.clone());
    refused(&state.apply(&same), "in use already");
    again[0].id = BrickId(70);
    assert_eq!(state.apply(&create(3, "w", 1, again)), Outcome::Done);
}

#[test]
fn a_volume_lives_as_recorded() {
    let mut state = with_volume();
    let volume = || "v".to_owned();
    let start = |force| Command::Start {
        volume: volume(),
        force,
    };
    let stop = Command::Stop { volume: volume() };
    let delete = Command::Delete {
        volume: volume(),
        now_secs: 9,
    };
    let aside = Command::SetAside {
        node: NODE,
        count: 3,
    };
    assert_eq!(state.apply(&aside), Outcome::Done);
    let id = state.volume("v").unwrap().info.id;
    let session = |session| Command::OpenSession {
        node: NODE,
        session: SessionId(session),
        volume: id,
        uid: 5,
    };
    let unused = Outcome::Notes(vec!["the session's volume is not started".to_owned()]);
    assert_eq!(state.apply(&session(1)), unused);
    refused(&state.apply(&stop), "Volume v is not in the started state");
    assert_eq!(state.apply(&start(false)), Outcome::Done);
    refused(&state.apply(&start(false)), "Volume v already started");
    assert_eq!(state.apply(&start(true)), Outcome::Done);
    refused(
        &state.apply(&delete),
        "Volume v has been started.Volume needs to be stopped before deletion.",
    );
    // The first was given for a volume that did not take it: it is gone.
    refused(&state.apply(&session(1)), "not set aside");
    assert_eq!(state.apply(&session(2)), Outcome::Done);
    assert_eq!(state.apply(&session(2)), Outcome::Done);
    refused(&state.apply(&session(4)), "not set aside");
    let told = "1 client has v mounted: its calls end with ENOTCONN until v is started again";
    let noted = Outcome::Notes(vec![told.to_owned()]);
    assert_eq!(state.apply(&stop), noted);
    assert!(state.volume("v").unwrap().sessions.is_empty());
    assert_eq!(state.apply(&start(false)), Outcome::Done);
    refused(&state.apply(&session(2)), "not set aside");
    assert_eq!(state.apply(&session(3)), Outcome::Done);
    assert_eq!(state.apply(&stop), noted);
    assert_eq!(state.apply(&delete), Outcome::Done);
    refused(&state.apply(&delete), "Volume v does not exist");
}

#[test]
fn options_are_checked_and_all_or_none() {
    let mut state = with_volume();
    let set = |options: &[(&str, &str)]| Command::Set {
        volume: "v".to_owned(),
        options: options
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
    };
    let good = ("network.frame-timeout", "10");
    refused(
        &state.apply(&set(&[good, ("nope.option", "1")])),
        "option : nope.option does not exist",
    );
    refused(
        &state.apply(&set(&[("network.ping-timeout", "abc")])),
        "invalid time format \"abc\" in \"option ping-timeout\"",
    );
    assert!(state.volume("v").unwrap().info.options.is_empty());
    assert_eq!(state.apply(&set(&[good])), Outcome::Done);
    assert_eq!(
        state.volume("v").unwrap().seconds("network.frame-timeout"),
        10
    );
    assert!(matches!(
        state.apply(&set(&[("nfs.disable", "on")])),
        Outcome::Notes(_)
    ));
    refused(&state.apply(&set(&[("encryption", "on")])), "not built yet");
    let address = set(&[("auth.allow", "10.0.0.1")]);
    refused(&state.apply(&address), "not told apart by address");
    let everybody = Command::Set {
        volume: "v".to_owned(),
        options: vec![("auth.allow".to_owned(), "*".to_owned())],
    };
    assert_eq!(state.apply(&everybody), Outcome::Done);
    state.apply(&Command::Reset {
        volume: "v".to_owned(),
        option: Some("auth.allow".to_owned()),
    });
    assert!(matches!(
        state.apply(&set(&[("performance.open-behind", "off")])),
        Outcome::Notes(_)
    ));
    state.apply(&Command::Reset {
        volume: "v".to_owned(),
        option: Some("performance.open-behind".to_owned()),
    });
    // Notes of people and programs: kept, at most so many, and taken back.
    let note = ("user.heketi.id", "7a1e7c32");
    assert_eq!(state.apply(&set(&[note])), Outcome::Done);
    assert_eq!(state.volume("v").unwrap().option(note.0), note.1);
    refused(
        &state.apply(&set(&[("user.", "1")])),
        "option : user. does not exist",
    );
    refused(&state.apply(&set(&[("user.x", "a\nb")])), "printed");
    let many: Vec<String> = (0..64).map(|n| format!("user.note-{n}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "1")).collect();
    refused(&state.apply(&set(&many)), "at most 64");
    assert_eq!(state.apply(&set(&many[1..])), Outcome::Done);
    for (name, _) in many[1..].iter().chain([&note]) {
        let option = Some((*name).to_owned());
        let volume = "v".to_owned();
        assert_eq!(
            state.apply(&Command::Reset { volume, option }),
            Outcome::Done
        );
    }
    assert_eq!(state.apply(&set(&[(SHARD_OPTION, "4MB")])), Outcome::Done);
    assert_eq!(state.volume("v").unwrap().info.shard_size, 4 << 20);
    state.apply(&Command::Start {
        volume: "v".to_owned(),
        force: false,
    });
    refused(&state.apply(&set(&[(SHARD_OPTION, "8MB")])), "fixed");
    state.apply(&Command::Reset {
        volume: "v".to_owned(),
        option: None,
    });
    let info = &state.volume("v").unwrap().info;
    assert_eq!((info.options.len(), info.shard_size), (1, 4 << 20));
}

fn view(epoch: u64, members: &[u128], effective: bool) -> View {
    View {
        set: SetId {
            volume: VolumeId(1),
            index: SetIndex(0),
        },
        epoch: Epoch(epoch),
        primary: BrickId(members[0]),
        members: members
            .iter()
            .map(|id| Member {
                brick: BrickId(*id),
                node: NODE,
                run: RunId(1),
                keeps_data: true,
            })
            .collect(),
        absent: Vec::new(),
        opening: Opening(0),
        effective,
    }
}

#[test]
fn views_only_move_forward() {
    let mut state = with_volume();
    let set = view(1, &[1], false).set;
    state.apply(&Command::Views(vec![view(2, &[1, 2, 3], false)]));
    let before = state.clone();
    // Older, another one of the same epoch, a brick of another set.
    for stale in [
        view(1, &[1], true),
        view(2, &[1, 2], true),
        view(3, &[1, 4], false),
    ] {
        state.apply(&Command::Views(vec![stale]));
    }
    assert_eq!(state.volumes, before.volumes);
    state.apply(&Command::Views(vec![view(2, &[1, 2, 3], true)]));
    state.apply(&Command::Views(vec![view(3, &[2, 3], false)]));
    let (volume, views) = state.set(set).unwrap();
    assert_eq!(views.current, Some(view(3, &[2, 3], false)));
    assert_eq!(views.effective, Some(view(2, &[1, 2, 3], true)));
    assert_eq!(volume.changed, state.applied);
    assert_eq!(
        state.set_of(BrickId(5)).map(|set| set.index),
        Some(SetIndex(1))
    );
}

fn any_command() -> impl Strategy<Value = Command> {
    let name = || prop_oneof![Just("v".to_owned()), Just("w".to_owned())];
    prop_oneof![
        (0u128..4, name(), 1u16..4, 0u128..12, 1u128..7).prop_map(
            |(id, name, copies, from, count)| create(id, &name, copies, bricks(from, count))
        ),
        (0u128..4).prop_map(|id| Command::FinishCreate {
            volume: VolumeId(id)
        }),
        (0u128..4).prop_map(|id| Command::AbortCreate {
            volume: VolumeId(id)
        }),
        (name(), any::<bool>()).prop_map(|(volume, force)| Command::Start { volume, force }),
        name().prop_map(|volume| Command::Stop { volume }),
        name().prop_map(|volume| Command::Delete {
            volume,
            now_secs: 9
        }),
        (0u32..5).prop_map(|count| Command::SetAside { node: NODE, count }),
        (0u128..4, 0u64..9).prop_map(|(id, session)| Command::OpenSession {
            node: NODE,
            session: SessionId(session),
            volume: VolumeId(id),
            uid: 0,
        }),
        (0u128..4, 0u64..5).prop_map(|(id, session)| Command::EndSessions {
            volume: VolumeId(id),
            sessions: vec![SessionId(session)],
        }),
        name().prop_map(|volume| Command::Reset {
            volume,
            option: None
        }),
        (1u64..6, any::<bool>()).prop_map(|(epoch, effective)| Command::Views(vec![view(
            epoch,
            &[1, 2],
            effective
        )])),
    ]
}

proptest! {
    #[test]
    fn replay_gives_the_same_state_and_outcomes(commands in proptest::collection::vec(any_command(), 0..60)) {
        let mut first = State::default();
        first.apply(&Command::Node { node: NODE, host: "h".to_owned(), addrs: Vec::new() });
        let mut second = first.clone();
        for (at, command) in commands.iter().enumerate() {
            let outcome = first.apply(command);
            // A snapshot half-way does not matter.
            if at % 7 == 3 {
                let bytes = postcard::to_stdvec(&second).unwrap();
                second = postcard::from_bytes(&bytes).unwrap();
            }
            prop_assert_eq!(second.apply(command), outcome);
        }
        prop_assert_eq!(&first, &second);
        // No number of a session is used twice.
        let aside = first.set_aside.values().flatten();
        let open = first.volumes.values().flat_map(|volume| volume.sessions.keys());
        let numbers: Vec<SessionId> = aside.chain(open).copied().collect();
        let distinct: BTreeSet<SessionId> = numbers.iter().copied().collect();
        prop_assert_eq!(numbers.len(), distinct.len());
        prop_assert!(numbers.iter().all(|one| *one < first.next_session));
        // No brick is in two volumes, no name twice.
        let infos: Vec<&VolumeInfo> = first.taken().collect();
        for (at, info) in infos.iter().enumerate() {
            for other in &infos[..at] {
                prop_assert_ne!(&info.name, &other.name);
                for brick in info.sets.iter().flatten() {
                    prop_assert!(!other.sets.iter().flatten().any(|b| b.path == brick.path));
                }
            }
        }
    }
}
