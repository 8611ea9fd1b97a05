//! Mortar's measurements. Four programs, each of which says in its own page how it is run:
//!
//! - `compare`: Mortar and GlusterFS side by side, on mounted volumes;
//! - `memory`: what client and daemon take while a million files are walked;
//! - `steps`: where the time of one operation goes;
//! - `components` (`cargo bench-one components`): codec, log, extents, tree and QUIC alone.
//!
//! What they share is here: the backing, a started Mortar, other programs and their end, medians and spreads.

pub mod backing;
pub mod driven;
pub mod mortar;
pub mod process;
pub mod stats;
