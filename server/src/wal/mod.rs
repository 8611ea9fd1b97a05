//! The write-ahead log: a member's copy of its set log.
