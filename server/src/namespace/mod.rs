//! File operations as pure functions from state to effects.
