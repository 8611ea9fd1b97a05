//! The beginning and the end of a run: a cluster is formed; all becomes calm, and what must be so then is looked at.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mortar_protocol::admin::{AdminRequest, PeerState};
use mortar_protocol::view::BrickInfo;
use mortar_server::control::consensus::voters;
use mortar_server::control::machine::State;
use parking_lot::Mutex;

use super::clients::{self, Answer, Book, Known, OPTION};
use super::net::{self, Weather};
use super::world::World;
use crate::sim::exec::{MILLI, SECOND};

/// How long it may take until all nodes agree once all is calm, in virtual seconds.
const SETTLE: u64 = 90;
/// How long a node may take to answer once all is calm, in nanoseconds.
const PROMPT: u64 = 10 * SECOND;

/// Has a node answer a command while time passes.
pub fn ask(world: &Arc<World>, book: &Arc<Book>, node: usize, request: AdminRequest) -> Answer {
    let told = send(world, book, node, request);
    loop {
        if let Some(answer) = told.lock().take() {
            return answer;
        }
        world.pass(5 * MILLI);
    }
}

/// Where an answer arrives.
pub type Told = Arc<Mutex<Option<Answer>>>;

/// Sends a command.
pub fn send(world: &Arc<World>, book: &Arc<Book>, node: usize, request: AdminRequest) -> Told {
    let told = Told::default();
    let (tell, of, book) = (Arc::clone(&told), Arc::clone(world), Arc::clone(book));
    world.exec.spawn(
        world.owner(),
        Box::pin(async move {
            let answer = clients::ask(&of, &book, node, request).await;
            *tell.lock() = Some(answer);
        }),
    );
    told
}

/// Forms the cluster; false if that fails.
pub fn form(world: &Arc<World>, book: &Arc<Book>) -> bool {
    world.start(0);
    world.pass(2 * SECOND);
    for node in 1..world.nodes() {
        let host = net::addr(node).ip().to_string();
        let probe = send(world, book, 0, AdminRequest::Probe { host });
        while probe.lock().is_none() {
            world.pass(50 * MILLI);
            if world.net.born().contains(&node) && !world.runs(node) {
                world.start(node);
            }
        }
        let answer = probe.lock().take();
        if answer != Some(Answer::Done) {
            world.fail(format!("n{node} was not taken in: {answer:?}"));
            return false;
        }
    }
    let seats = voters::seats(world.nodes());
    for _ in 0..100 {
        let up = world.up(0);
        let standing = up.and_then(|up| Some(up.control.consensus()?.standing()));
        if standing.is_some_and(|standing| standing.voters.len() == seats) {
            return true;
        }
        world.pass(100 * MILLI);
    }
    world.fail("the voters were not chosen".to_owned());
    false
}

/// Ends all trouble.
pub fn calm(world: &Arc<World>) {
    world.exec.note("calm");
    world.net.mend();
    world.net.weather(Weather::default());
    world.slow.store(0, Ordering::Relaxed);
    for node in 0..world.nodes() {
        world.start(node);
    }
}

fn states(world: &Arc<World>) -> Option<Vec<Arc<State>>> {
    (0..world.nodes())
        .map(|node| Some(world.up(node)?.control.state()))
        .collect()
}

/// Why it is not settled.
fn unsettled(world: &Arc<World>) -> Option<String> {
    let Some(states) = states(world) else {
        return Some("a node does not serve".to_owned());
    };
    if world.leader().is_none() {
        return Some("no node leads".to_owned());
    }
    for (node, state) in states.iter().enumerate() {
        if let Some(creating) = state.creating.values().next() {
            let name = &creating.info.name;
            return Some(format!("{name} is still being created on n{node}"));
        }
        if let Some(left) = state.left_over.values().next() {
            return Some(format!(
                "{}:{} is left over on n{node}: {:?}",
                left.brick.host, left.brick.path, left.chore
            ));
        }
        if state != &states[0] {
            return Some(format!("the states of n0 and n{node} differ"));
        }
        if state
            .nodes
            .values()
            .any(|record| record.state != PeerState::Joined)
        {
            return Some("a node has not joined".to_owned());
        }
    }
    None
}

/// Waits until all nodes agree; false if they do not in time.
pub fn wait(world: &Arc<World>) -> bool {
    let until = world.exec.now() + SETTLE * SECOND;
    let mut why = unsettled(world);
    while why.is_some() && world.exec.now() < until {
        world.pass(500 * MILLI);
        why = unsettled(world);
    }
    // What is on its way may still arrive.
    world.pass(6 * SECOND);
    let why = why.or_else(|| unsettled(world));
    match why {
        None => true,
        Some(why) => {
            world.fail(format!("{SETTLE} s after all became calm: {why}"));
            false
        }
    }
}

/// All that must be so at the end.
pub fn settled(world: &Arc<World>, book: &Arc<Book>) {
    if !wait(world) {
        return;
    }
    for node in 0..world.nodes() {
        let name = format!("last{node}");
        let nodes: Vec<usize> = (0..world.nodes().min(3)).collect();
        let create = clients::create_of(&name, &nodes, nodes.len() as u8);
        let answer = promptly(world, book, node, create);
        book.created(&name, &answer);
        let answer = promptly(
            world,
            book,
            node,
            AdminRequest::Delete {
                volume: name.clone(),
            },
        );
        book.deleted(&name, &answer);
    }
    if wait(world) {
        bricks(world);
        sessions(world, book);
        answers(world, book);
    }
}

fn promptly(world: &Arc<World>, book: &Arc<Book>, node: usize, request: AdminRequest) -> Answer {
    let begun = world.exec.now();
    let text = format!("{request:?}");
    let answer = ask(world, book, node, request);
    let took = world.exec.now() - begun;
    if took > PROMPT {
        world.fail(format!("n{node} took {} ms: {text}", took / MILLI));
    }
    let full = matches!(&answer, Answer::Refused(why) if why.contains("no space left"));
    if answer != Answer::Done && !full && !text.starts_with("Delete") {
        world.fail(format!("n{node} answered {answer:?} to {text}"));
    }
    answer
}

/// The control plane has heard of each number that was given, and of nothing else.
fn sessions(world: &Arc<World>, book: &Arc<Book>) {
    let Some(states) = states(world) else { return };
    for (session, volume) in book.sessions.lock().iter() {
        if states[0]
            .set_aside
            .values()
            .any(|own| own.contains(session))
        {
            world.fail(format!("nobody has heard of session {session} of {volume}"));
        }
        let other = states[0]
            .volumes
            .values()
            .find(|other| other.sessions.contains_key(session) && other.info.name != *volume);
        if let Some(other) = other {
            let other = &other.info.name;
            world.fail(format!("session {session} of {volume} is one of {other}"));
        }
    }
}

/// No orphan brick, no half volume.
pub fn bricks(world: &Arc<World>) {
    let Some(states) = states(world) else { return };
    for node in 0..world.nodes() {
        let volumes = states[0].volumes.values();
        let wanted: BTreeMap<&str, &BrickInfo> = volumes
            .flat_map(|volume| volume.info.sets.iter().flatten())
            .filter(|brick| brick.node == net::id(node))
            .map(|brick| (brick.path.as_str(), brick))
            .collect();
        let shelf = world.shelf(node);
        let shelf = shelf.lock();
        for (path, there) in shelf.iter() {
            let of = wanted
                .get(path.as_str())
                .filter(|brick| brick.id == there.id);
            match (of, there.deleted) {
                (Some(_), true) => world.fail(format!("n{node}:{path} is marked as deleted")),
                (None, false) => world.fail(format!("n{node}:{path} is an orphan brick")),
                _ => {}
            }
        }
        for (path, brick) in wanted {
            if shelf.get(path).is_none_or(|there| there.id != brick.id) {
                world.fail(format!("n{node}:{path} is not formatted: half a volume"));
            }
        }
    }
}

/// What was answered is so.
pub fn answers(world: &Arc<World>, book: &Book) {
    let Some(states) = states(world) else { return };
    for (name, expected) in book.volumes.lock().iter() {
        let volume = states[0].volume(name);
        match (expected.exists, volume) {
            (Known::Yes, None) => world.fail(format!("{name} was created and is not there")),
            (Known::No, Some(_)) => world.fail(format!("{name} is there and must not be")),
            (Known::Yes, Some(volume)) => {
                let value = volume.info.options.get(OPTION);
                if expected
                    .option
                    .as_ref()
                    .is_some_and(|known| known.as_ref() != value)
                {
                    world.fail(format!("{name} was set to {expected:?}, but has {value:?}"));
                }
            }
            _ => {}
        }
    }
}
