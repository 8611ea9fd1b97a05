//! What goes wrong.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::net::Weather;
use super::world::{End, World};
use crate::sim::exec::{MILLI, SECOND};
use crate::sim::rng::Rng;

/// Ends a process and starts it again later.
pub fn restart(world: &Arc<World>, node: usize, how: End, after: u64) {
    world.end(node, how);
    let again = Arc::clone(world);
    world.exec.after(after, move || again.start(node));
}

fn how(rng: &mut Rng) -> End {
    if rng.permille(500) {
        End::Killed
    } else {
        End::PowerLost
    }
}

/// Makes trouble for a while.
pub fn make(world: &Arc<World>, rng: &mut Rng) {
    let nodes = world.nodes() as u64;
    let slow = [0, 0, 5, 40, 250][rng.below(5) as usize];
    world.slow.store(slow, Ordering::Relaxed);
    for _ in 0..rng.range(4, 12) {
        world.pass(rng.range(100 * MILLI, 4 * SECOND));
        let any = rng.below(nodes) as usize;
        let wait = rng.range(100 * MILLI, 6 * SECOND);
        match rng.below(10) {
            0 | 1 => restart(world, any, how(rng), wait),
            2 | 3 => {
                let node = world.leader().unwrap_or(any);
                restart(world, node, how(rng), wait);
            }
            4 | 5 => {
                let node = world.leader().filter(|_| rng.permille(500)).unwrap_or(any);
                world.exec.note(&format!("TROUBLE n{node} is cut off"));
                isolate(world, node);
            }
            6 => {
                let other = rng.below(nodes) as usize;
                world
                    .exec
                    .note(&format!("TROUBLE n{any} does not reach n{other}"));
                world.net.cut(any, other);
            }
            7 => {
                let weather = Weather {
                    lost: rng.below(150),
                    late: rng.below(200),
                };
                world.exec.note(&format!("TROUBLE {weather:?}"));
                world.net.weather(weather);
            }
            8 => {
                world.exec.note("TROUBLE the network is whole");
                world.net.mend();
                world.net.weather(Weather::default());
            }
            _ => {
                let how = how(rng);
                for node in 0..nodes as usize {
                    let wait = rng.range(100 * MILLI, 3 * SECOND);
                    restart(world, node, how, wait);
                }
            }
        }
    }
    world.pass(rng.range(100 * MILLI, 4 * SECOND));
    if let Some(leader) = world.leader()
        && rng.permille(150)
    {
        world
            .exec
            .note(&format!("TROUBLE n{leader} is cut off for long"));
        isolate(world, leader);
        world.pass(125 * SECOND);
    }
}

/// Nothing gets to the node or from it.
fn isolate(world: &Arc<World>, node: usize) {
    for other in (0..world.nodes()).filter(|other| *other != node) {
        world.net.cut(node, other);
        world.net.cut(other, node);
    }
}
