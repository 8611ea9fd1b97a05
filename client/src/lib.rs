//! Mortar's client: [`volume`] (the translator stack as a library), the FUSE mount and the `mortar` command.
//!
//! Layers, downward only: `remote` -> `volume` -> `vfs` -> `fuse`; `cli` and `demo` use them.

pub mod cli;
pub mod credentials;
pub mod demo;
pub mod fuse;
pub mod mount;

pub mod remote;
pub mod vfs;
pub mod volume;
