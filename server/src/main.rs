//! mortard, the node daemon.

fn main() {}
