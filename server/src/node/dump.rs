//! "What is it doing": the state dump of SIGUSR1, and a line for each request that takes long.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mortar_protocol::env_real::mono_now;
use mortar_protocol::logfile::write_whole;
use mortar_protocol::watch::{FlightState, OpStats};
use serde::Serialize;

use super::bricks::Bricks;
use crate::brick::BrickState;
use crate::control::store::Control;

/// How often requests that take long are looked for.
const LOOK: Duration = Duration::from_secs(1);
/// Name of the dump in the data directory.
pub const DUMP: &str = "state.json";

/// A request in flight.
#[derive(Serialize)]
struct Request {
    brick: String,
    session: u64,
    number: u64,
    operation: &'static str,
    inode: u64,
    age_ms: u64,
    waits_for: &'static str,
}

#[derive(Serialize)]
struct VolumeState {
    name: String,
    state: String,
    sessions: Vec<u64>,
}

#[derive(Serialize)]
struct BrickStats {
    brick: String,
    operations: Vec<OpStats>,
}

#[derive(Serialize)]
struct State {
    pid: u32,
    version: &'static str,
    requests_in_flight: Vec<Request>,
    volumes: Vec<VolumeState>,
    /// Bytes of entries not applied in all bricks, and the bound.
    pending: (usize, usize),
    bricks: Vec<BrickState>,
    operations: Vec<BrickStats>,
}

/// What the request waits for, as the bricks tell.
fn request(brick: String, flight: FlightState, states: &[BrickState]) -> Request {
    let own = states.iter().find(|state| state.brick == brick);
    let unanswered = own.iter().flat_map(|state| &state.unanswered);
    let found = unanswered.into_iter().find(|waiting| {
        (waiting.session, waiting.number) == (flight.asker, flight.number)
            && waiting.operation == flight.operation
    });
    let waits_for = match (found, own) {
        (Some(waiting), _) => waiting.waits_for,
        (None, Some(_)) => "all members to write or flush it, or the disk",
        (None, None) => "the brick's thread",
    };
    Request {
        brick,
        session: flight.asker,
        number: flight.number,
        operation: flight.operation,
        inode: flight.inode,
        age_ms: flight.age_ms,
        waits_for,
    }
}

/// Writes the state to a file of the data directory; gives its path.
///
/// # Errors
/// The system's.
pub async fn write(bricks: &Bricks, control: &Control, dir: &Path) -> std::io::Result<PathBuf> {
    let states = bricks.states().await;
    let now = mono_now();
    let mut requests = Vec::new();
    let mut operations = Vec::new();
    for (brick, watch) in bricks.watches() {
        let flights = watch.states(now).into_iter();
        requests.extend(flights.map(|flight| request(brick.to_string(), flight, &states)));
        operations.push(BrickStats {
            brick: brick.to_string(),
            operations: watch.stats(),
        });
    }
    requests.sort_by_key(|request| std::cmp::Reverse(request.age_ms));
    let known = control.state();
    let volumes = known.volumes.values().map(|volume| VolumeState {
        name: volume.info.name.clone(),
        state: format!("{:?}", volume.info.state),
        sessions: volume.sessions.keys().map(|session| session.0).collect(),
    });
    let state = State {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION"),
        requests_in_flight: requests,
        volumes: volumes.collect(),
        pending: bricks.pending(),
        bricks: states,
        operations,
    };
    let path = dir.join(DUMP);
    let mut text = serde_json::to_vec_pretty(&state).map_err(std::io::Error::other)?;
    text.push(b'\n');
    write_whole(&path, &text)?;
    Ok(path)
}

/// Logs each request that has taken long, once.
pub async fn follow_slow(bricks: Arc<Bricks>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let now = mono_now();
        let mut slow = Vec::new();
        for (brick, watch) in bricks.watches() {
            let flights = watch.newly_slow(now).into_iter();
            slow.extend(flights.map(|flight| (brick.to_string(), flight)));
        }
        if slow.is_empty() {
            continue;
        }
        let states = bricks.states().await;
        for (brick, flight) in slow {
            let request = request(brick, flight, &states);
            tracing::warn!(
                brick = request.brick,
                session = request.session,
                number = request.number,
                inode = request.inode,
                "{} has taken {:.1} s: waits for {}",
                request.operation,
                request.age_ms as f64 / 1e3,
                request.waits_for
            );
        }
    }
}
