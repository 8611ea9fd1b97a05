//! mortar, the command.

fn main() {}
