//! Handles, write-behind, read-ahead.
