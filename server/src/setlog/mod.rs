//! The set log: replication inside a view, view changes, openings. A pure core.
