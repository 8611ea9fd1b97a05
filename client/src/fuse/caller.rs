//! The process behind a waiting lock call. fuser does not pass on the kernel's interrupts, so it is watched.

use crate::vfs::Waiter;

/// A thread that waits in a call, by the id the kernel gave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    /// Thread id; 0 if it lives in a process namespace not visible here.
    pub(super) pid: u32,
}

impl Waiter for Caller {
    fn wants_to_leave(&self) -> bool {
        if self.pid == 0 {
            return false;
        }
        match std::fs::read_to_string(format!("/proc/{}/status", self.pid)) {
            Ok(status) => has_signal(&status),
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        }
    }
}

/// Whether `/proc/PID/status` shows a signal that is pending and neither blocked nor ignored.
fn has_signal(status: &str) -> bool {
    let mask = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|value| u64::from_str_radix(value.trim(), 16).ok())
            .unwrap_or(0)
    };
    (mask("SigPnd") | mask("ShdPnd")) & !mask("SigBlk") & !mask("SigIgn") != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_signals_that_would_be_delivered_count() {
        let status = |pending: u64, shared: u64, blocked: u64, ignored: u64| {
            format!(
                "Name:\tx\nSigPnd:\t{pending:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\n"
            )
        };
        assert!(!has_signal(&status(0, 0, 0, 0)));
        assert!(has_signal(&status(2, 0, 0, 0)));
        assert!(has_signal(&status(0, 0x4000, 0, 0)));
        assert!(!has_signal(&status(0, 0x4000, 0x4000, 0)));
        assert!(!has_signal(&status(2, 0, 0, 2)));
        assert!(has_signal(&status(6, 0, 2, 0)));
    }

    #[test]
    fn a_process_that_is_gone_has_left() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let caller = Caller { pid: child.id() };
        child.wait().unwrap();
        assert!(caller.wants_to_leave());
        let own = Caller {
            pid: std::process::id(),
        };
        assert!(!own.wants_to_leave());
    }
}
