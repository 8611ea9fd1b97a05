//! mortard: brick servers and the control plane of one node.
//!
//! Layers, downward only: `device` -> `wal`, `alloc`, `tree` -> `store` -> `namespace` and `setlog` -> `brick` ->
//! `control` -> `node`.

pub mod alloc;
pub mod brick;
pub mod control;
pub mod device;
pub mod guard;
pub mod namespace;
pub mod node;
pub mod offline;
pub mod setlog;
pub mod store;
pub mod superblock;
pub mod tree;
pub mod wal;
