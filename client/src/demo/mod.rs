//! `mortar demo`: a volume to try, in one command.
