//! Clients: each makes commands about volumes of its own, at any node, and knows what their answers promise.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mortar_protocol::admin::{AdminReply, AdminRequest, BrickSpec, CreateVolume};
use mortar_protocol::env::Env;
use mortar_protocol::ids::SessionId;
use mortar_protocol::view::SetKind;
use parking_lot::Mutex;

use super::net;
use super::world::World;
use crate::sim::exec::SECOND;
use crate::sim::rng::Rng;

/// Whether something is so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// It is.
    Yes,
    /// It is not.
    No,
    /// An answer that would tell was lost, or said that it does not know.
    Unknown,
}

/// What is known of a volume by the answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expected {
    /// Whether it exists.
    pub exists: Known,
    /// Value of [`OPTION`]; none: not known.
    pub option: Option<Option<String>>,
}

/// Counts of a run.
#[derive(Clone, Default, Debug)]
pub struct Counts {
    /// Commands.
    pub commands: u64,
    /// Those that were done.
    pub done: u64,
    /// Those that were refused.
    pub refused: u64,
    /// Those without a known outcome.
    pub unknown: u64,
}

/// What all clients know.
#[derive(Default)]
pub struct Book {
    /// Volumes by name.
    pub volumes: Mutex<BTreeMap<String, Expected>>,
    /// Counts.
    pub counts: Mutex<Counts>,
    /// Numbers that sessions were given, and of which volume.
    pub sessions: Mutex<BTreeMap<SessionId, String>>,
    /// Commands that wait for an answer.
    pub waiting: Mutex<BTreeMap<u64, String>>,
}

/// An option that clients set.
pub const OPTION: &str = "network.frame-timeout";
/// No command may take longer, in nanoseconds of virtual time.
const LONGEST: u64 = 110 * SECOND;

/// What an answer says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It is done.
    Done,
    /// It is not.
    Refused(String),
    /// Whether it is is not known.
    Unknown,
}

fn meaning(reply: Option<AdminReply>) -> Answer {
    match reply {
        None => Answer::Unknown,
        Some(AdminReply::Refused { message }) => {
            let unsure = [
                "was lost",
                "the command counts if",
                "has failed on this node",
            ];
            match unsure.iter().any(|text| message.contains(*text)) {
                true => Answer::Unknown,
                false => Answer::Refused(message),
            }
        }
        Some(_) => Answer::Done,
    }
}

/// Has a node answer a command and writes it down.
pub async fn ask(
    world: &Arc<World>,
    book: &Arc<Book>,
    node: usize,
    request: AdminRequest,
) -> Answer {
    let number = world.exec.stamp();
    let text = match &request {
        AdminRequest::Create(create) => format!("Create {} {:?}", create.name, create.kind),
        other => format!("{other:?}"),
    };
    let begun = world.exec.now();
    world.exec.note(&format!("call {number} at n{node} {text}"));
    book.waiting.lock().insert(number, text.clone());
    let answer = meaning(Arc::clone(world).call(node, request).await);
    book.waiting.lock().remove(&number);
    world.exec.note(&format!("call {number} -> {answer:?}"));
    let took = world.exec.now() - begun;
    if took > LONGEST {
        world.fail(format!("call {number} ({text}) took {} s", took / SECOND));
    }
    let mut counts = book.counts.lock();
    counts.commands += 1;
    match &answer {
        Answer::Done => counts.done += 1,
        Answer::Refused(_) => counts.refused += 1,
        Answer::Unknown => counts.unknown += 1,
    }
    answer
}

/// A client mounts a volume; no two may get the same number, whatever was lost and whoever was restarted.
async fn open_session(world: &Arc<World>, book: &Arc<Book>, node: usize, volume: String) {
    let request = AdminRequest::OpenSession {
        volume: volume.clone(),
    };
    let reply = Arc::clone(world).call(node, request).await;
    book.counts.lock().commands += 1;
    let Some(AdminReply::Session(session)) = reply else {
        book.counts.lock().refused += 1;
        return;
    };
    book.counts.lock().done += 1;
    world.exec.note(&format!("n{node} gave session {session}"));
    let before = book.sessions.lock().insert(session, volume);
    if let Some(before) = before {
        world.fail(format!(
            "session {session} was given twice, first for {before}"
        ));
    }
}

/// A volume with a brick on each of some nodes.
pub fn create_of(name: &str, nodes: &[usize], copies: u8) -> AdminRequest {
    let bricks = nodes.iter().enumerate().map(|(index, node)| BrickSpec {
        host: net::addr(*node).ip().to_string(),
        path: format!("/bricks/{name}.{index}"),
    });
    AdminRequest::Create(CreateVolume {
        name: name.to_owned(),
        kind: match copies {
            0 | 1 => SetKind::Plain,
            copies => SetKind::Replicate {
                copies: copies.into(),
            },
        },
        bricks: bricks.collect(),
        brick_size: None,
        force: true,
    })
}

impl Book {
    /// Notes what a creation's answer says.
    pub fn created(&self, name: &str, answer: &Answer) {
        let exists = match answer {
            Answer::Done => Known::Yes,
            Answer::Refused(_) => Known::No,
            Answer::Unknown => Known::Unknown,
        };
        let expected = Expected {
            exists,
            option: Some(None),
        };
        self.volumes.lock().insert(name.to_owned(), expected);
    }

    /// Notes what a deletion's answer says.
    pub fn deleted(&self, name: &str, answer: &Answer) {
        if let Some(expected) = self.volumes.lock().get_mut(name) {
            match answer {
                Answer::Done => expected.exists = Known::No,
                Answer::Refused(_) => {}
                Answer::Unknown => expected.exists = Known::Unknown,
            }
        }
    }

    fn was_set(&self, name: &str, value: &str, answer: &Answer) {
        if let Some(expected) = self.volumes.lock().get_mut(name) {
            match answer {
                Answer::Done => expected.option = Some(Some(value.to_owned())),
                Answer::Refused(_) => {}
                Answer::Unknown => expected.option = None,
            }
        }
    }
}

/// One client, until it has made all its commands.
pub async fn client(
    world: Arc<World>,
    book: Arc<Book>,
    number: usize,
    env: Arc<dyn Env>,
    mut rng: Rng,
) {
    let nodes = world.nodes();
    for round in 0..rng.range(2, 5) {
        let name = format!("c{number}v{round}");
        let any = |rng: &mut Rng| rng.below(nodes as u64) as usize;
        let copies = rng.range(1, 4) as u8;
        let count = usize::from(copies) * if rng.permille(300) { 2 } else { 1 };
        let first = any(&mut rng);
        let at: Vec<usize> = (0..count).map(|index| (first + index) % nodes).collect();
        let node = any(&mut rng);
        let answer = ask(&world, &book, node, create_of(&name, &at, copies)).await;
        book.created(&name, &answer);
        for _ in 0..rng.range(1, 6) {
            env.sleep(Duration::from_millis(rng.range(1, 1_500))).await;
            let node = any(&mut rng);
            let volume = name.clone();
            match rng.below(10) {
                0 | 1 => {
                    let start = AdminRequest::Start {
                        volume,
                        force: false,
                    };
                    ask(&world, &book, node, start).await;
                }
                2 => {
                    let stop = AdminRequest::Stop {
                        volume,
                        force: false,
                    };
                    ask(&world, &book, node, stop).await;
                }
                3..=5 => {
                    let value = rng.range(31, 900).to_string();
                    let options = vec![(OPTION.to_owned(), value.clone())];
                    let set = AdminRequest::Set { volume, options };
                    let answer = ask(&world, &book, node, set).await;
                    book.was_set(&name, &value, &answer);
                }
                6 | 7 => open_session(&world, &book, node, volume).await,
                _ => {
                    let delete = AdminRequest::Delete { volume };
                    let answer = ask(&world, &book, node, delete).await;
                    book.deleted(&name, &answer);
                }
            }
        }
    }
}
