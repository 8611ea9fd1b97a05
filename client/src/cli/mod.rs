//! The commands of `mortar`.
