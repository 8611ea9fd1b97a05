//! The leader ends at every step of `volume create` and `volume delete`.

use std::sync::Arc;

use mortar_protocol::admin::AdminRequest;

use super::clients::{Answer, Book};
use super::world::{End, World};
use super::{Outcome, clients, finish, settle, trouble};
use crate::sim::exec::{MILLI, SECOND};
use crate::sim::rng::Rng;

/// A step of the enumeration: what is asked, and after how many events the leader ends.
fn round(
    world: &Arc<World>,
    book: &Arc<Book>,
    rng: &mut Rng,
    (step, delete): (usize, bool),
) -> bool {
    let Some(leader) = world.leader() else {
        world.fail("no node leads".to_owned());
        return false;
    };
    let name = format!("{}{step}", if delete { "d" } else { "c" });
    let create = clients::create_of(&name, &[0, 1, 2], 3);
    // At the leader, or at another node that hands it on.
    let node = match rng.permille(400) {
        true => leader,
        false => (leader + 1) % world.nodes(),
    };
    if delete {
        let answer = settle::ask(world, book, node, create.clone());
        book.created(&name, &answer);
        if answer != Answer::Done {
            world.fail(format!("{name} was not created: {answer:?}"));
            return false;
        }
    }
    let request = match delete {
        true => AdminRequest::Delete {
            volume: name.clone(),
        },
        false => create,
    };
    let from = world.exec.noted();
    let told = settle::send(world, book, node, request);
    while told.lock().is_none() && world.exec.noted() < from + step {
        world.exec.step();
    }
    let in_time = told.lock().is_none();
    if in_time {
        let how = if rng.permille(500) {
            End::Killed
        } else {
            End::PowerLost
        };
        let wait = rng.range(50 * MILLI, 4 * SECOND);
        trouble::restart(world, leader, how, wait);
        while told.lock().is_none() {
            world.pass(50 * MILLI);
        }
        world.pass(4 * SECOND);
    }
    let answer = told.lock().take().unwrap_or(Answer::Unknown);
    match delete {
        true => book.deleted(&name, &answer),
        false => book.created(&name, &answer),
    }
    settle::wait(world);
    settle::bricks(world);
    settle::answers(world, book);
    in_time
}

/// Runs every `every`-th step from `first` on.
pub fn run(seed: u64, (first, every): (usize, usize), delete: bool) -> Outcome {
    let mut rng = Rng::new(seed ^ 0xdead);
    let world = World::new(rng.draw(), 3, 0, None);
    let book = Arc::new(Book::default());
    if settle::form(&world, &book) {
        let mut step = first;
        while world.failures().is_empty() && round(&world, &book, &mut rng, (step, delete)) {
            step += every;
        }
        world.exec.note(&format!("done before step {step}"));
    }
    finish(&world, &book)
}
