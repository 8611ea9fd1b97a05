//! The set log: replication inside a view, view changes, openings, joining. A pure core: events in, actions out.
//!
//! [`SetLog`] is one member's side of it. The brick tells it what arrived and what its own store has done, performs
//! the [`Action`]s, and ends each batch of events with [`SetLog::finish`].

mod backup;
mod core;
mod history;
mod primary;

pub use self::core::{Action, LogGone, LogReader, Me, SetLog};
pub use self::history::Positions;
pub use self::primary::PeerState;
