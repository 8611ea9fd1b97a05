//! A panic ends the process: one thread less behind a mount or a daemon that still seems to serve would let its callers
//! wait for ever.

use std::backtrace::Backtrace;
use std::io::Write;

/// From now on a panic of any thread is written to standard error (where the log goes), with its backtrace, and ends
/// the process at once, unless `caught` says that whoever called will deal with it. What was acknowledged is safe: it
/// is in the logs of the bricks.
pub fn end_on_panic(caught: fn() -> bool) {
    std::panic::set_hook(Box::new(move |info| {
        let trace = Backtrace::force_capture();
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("?").to_owned();
        // In one piece, so that no other thread's line gets between; that it cannot be written changes nothing.
        let text = format!("PANIC in thread {thread}: {info}\n{trace}\n");
        let _ = std::io::stderr().write_all(text.as_bytes());
        if !caught() {
            std::process::abort();
        }
    }));
}
