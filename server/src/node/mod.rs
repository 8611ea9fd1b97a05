//! The daemon: threads, transport, sockets.
