//! The components alone: codec, log, extents, tree, QUIC.
//!
//! ```text
//! cargo bench-one components            all
//! cargo bench-one components -- wal     those whose name contains "wal"
//! ```
//!
//! Each line is the median of many samples, how far the middle four fifths of them lie apart, and the unit. Devices are
//! files in `MORTAR_BENCH_DIR`, or else in the system's temporary directory: whether a flush costs anything depends on
//! what that lies on.

mod codec;
mod extents;
mod measure;
mod quic;
mod tree;
mod wal;

use measure::{Bench, Fail};

fn main() -> Result<(), Fail> {
    // Cargo's own arguments begin with a dash.
    let filter = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    let bench = Bench::new(filter);
    println!("{:52} {:>12} {:>8}", "component", "median", "spread");
    codec::run(&bench)?;
    wal::run(&bench)?;
    extents::run(&bench)?;
    tree::run(&bench)?;
    quic::run(&bench)
}
