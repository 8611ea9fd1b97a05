//! What happens during one operation, with times: spans that begin and end on any thread of this process.

use std::sync::Arc;

use mortar_protocol::env::Mono;
use mortar_protocol::env_real::mono_now;
use mortar_protocol::fop::Request;
use mortar_protocol::frame::Frame;
use parking_lot::Mutex;

/// Something that takes time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Span {
    /// A request of the client, from the transport's call to its answer.
    Call,
    /// The meaning of a file operation is decided.
    Execute,
    /// A record is read.
    Records,
    /// Entries go into a brick's log.
    Append,
    /// Data is read and verified.
    ReadData,
    /// A brick is flushed.
    Flush,
    /// A brick applies earlier entries, or looks whether it should.
    Apply,
}

struct Event {
    at: Mono,
    span: Span,
    begins: bool,
}

/// All spans of the operation that is under way, and the requests made for it.
#[derive(Default)]
pub(crate) struct Trace {
    events: Mutex<Vec<Event>>,
    requests: Mutex<Vec<Frame>>,
}

/// An open span; ends when dropped.
pub(crate) struct Open {
    trace: Arc<Trace>,
    span: Span,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.trace.note(self.span, false);
    }
}

impl Trace {
    fn note(&self, span: Span, begins: bool) {
        let mut events = self.events.lock();
        // Read under the lock, so that events are in the order of their times.
        let at = mono_now();
        events.push(Event { at, span, begins });
    }

    /// Begins a span.
    pub(crate) fn open(self: &Arc<Self>, span: Span) -> Open {
        self.note(span, true);
        Open {
            trace: Arc::clone(self),
            span,
        }
    }

    /// Begins a request. It is only kept: what it was is found out later.
    pub(crate) fn request(self: &Arc<Self>, frame: &Frame) -> Open {
        self.requests.lock().push(frame.clone());
        self.open(Span::Call)
    }

    /// Names of the requests of the last operation.
    pub(crate) fn requests(&self) -> Vec<&'static str> {
        let requests = self.requests.lock();
        let name = |frame: &Frame| match frame.message::<Request>() {
            Ok(Request::Fop(call)) => call.fop.name(),
            Ok(Request::Stage(_)) => "stage",
            _ => "other",
        };
        requests.iter().map(name).collect()
    }

    /// Runs an operation and says how much of its time each step took, and the whole, in microseconds.
    pub(crate) fn watch(
        &self,
        operation: impl FnOnce() -> Result<(), String>,
    ) -> Result<Steps, String> {
        self.events.lock().clear();
        self.requests.lock().clear();
        let start = mono_now();
        operation()?;
        let end = mono_now();
        let events = std::mem::take(&mut *self.events.lock());
        Ok(split(&events, start, end))
    }
}

/// Steps in the order in which they are shown.
pub(crate) const STEPS: [&str; 15] = [
    "system call, kernel, FUSE request, mount layer",
    "request: encoded, QUIC and UDP on both sides, queue",
    "earlier entries applied to the tree meanwhile",
    "file operation decided (namespace, checks)",
    "records read for it (pending map, tree)",
    "data read and verified",
    "log of the primary: encoded, checksum, write",
    "log of the first backup",
    "log of the second backup",
    "set log, sessions, messages between the bricks",
    "bricks flushed",
    "answer: encoded, QUIC and UDP on both sides, wakeups",
    "client between two requests",
    "mount layer, FUSE answer, return to the program",
    "no request went to the daemon",
];

/// Microseconds of each step, and of the whole.
#[derive(Clone, Copy, Default)]
pub(crate) struct Steps {
    /// By place in [`STEPS`].
    pub(crate) each: [f64; STEPS.len()],
    /// From begin to end.
    pub(crate) whole: f64,
    /// Requests to the daemon.
    pub(crate) calls: usize,
}

/// Gives every moment of the operation to one step: while a request is under way to the innermost thing that the
/// daemon does at that moment, otherwise to the client.
fn split(events: &[Event], start: Mono, end: Mono) -> Steps {
    let mut steps = Steps {
        whole: micros(start, end),
        ..Steps::default()
    };
    // Server spans that are open, and the number of calls; logs written so far; what the open call has seen.
    let mut open: Vec<Span> = Vec::new();
    let (mut calls, mut appends, mut served) = (0usize, 0usize, false);
    let mut last = start;
    for (place, event) in events.iter().enumerate() {
        let rest = &events[place..];
        steps.each[step(&open, calls, appends, served, steps.calls, rest)] +=
            micros(last, event.at);
        last = event.at;
        match (event.span, event.begins) {
            (Span::Call, true) => {
                calls += 1;
                steps.calls += 1;
                served = false;
            }
            (Span::Call, false) => calls = calls.saturating_sub(1),
            (span, true) => {
                open.push(span);
                appends += usize::from(span == Span::Append);
                served |= span != Span::Apply;
            }
            (span, false) => {
                if let Some(at) = open.iter().rposition(|open| *open == span) {
                    open.remove(at);
                }
            }
        }
    }
    steps.each[step(&open, calls, appends, served, steps.calls, &[])] += micros(last, end);
    steps
}

fn micros(from: Mono, to: Mono) -> f64 {
    to.since(from).as_nanos() as f64 / 1_000.0
}

/// The step that the time before `rest` belongs to.
fn step(
    open: &[Span],
    calls: usize,
    appends: usize,
    served: bool,
    begun: usize,
    rest: &[Event],
) -> usize {
    if calls == 0 {
        let more = rest
            .iter()
            .any(|event| event.span == Span::Call && event.begins);
        return match (begun, more) {
            (0, true) => 0,
            (0, false) => 14,
            (_, true) => 12,
            (_, false) => 13,
        };
    }
    match open.last() {
        Some(Span::Apply) => 2,
        Some(Span::Execute) => 3,
        Some(Span::Records) => 4,
        Some(Span::ReadData) => 5,
        Some(Span::Append) => 6 + appends.clamp(1, 3) - 1,
        Some(Span::Flush) => 10,
        Some(Span::Call) | None => {
            // Does the daemon still do something for this call?
            let more = rest
                .iter()
                .take_while(|event| event.span != Span::Call)
                .any(|event| event.begins && event.span != Span::Apply);
            match (served, more) {
                (false, _) => 1,
                (true, true) => 9,
                (true, false) => 11,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(list: &[(u64, Span, bool)]) -> Vec<Event> {
        list.iter()
            .map(|(at, span, begins)| Event {
                at: Mono(*at * 1_000),
                span: *span,
                begins: *begins,
            })
            .collect()
    }

    #[test]
    fn every_moment_belongs_to_one_step() {
        let list = events(&[
            (10, Span::Call, true),
            (40, Span::Execute, true),
            (42, Span::Records, true),
            (45, Span::Records, false),
            (50, Span::Execute, false),
            (52, Span::Append, true),
            (60, Span::Append, false),
            (61, Span::Append, true),
            (70, Span::Append, false),
            (72, Span::Append, true),
            (80, Span::Append, false),
            (81, Span::Apply, true),
            (82, Span::Apply, false),
            (110, Span::Call, false),
        ]);
        let steps = split(&list, Mono(0), Mono(125_000));
        let expected = [
            10.0, 30.0, 1.0, 7.0, 3.0, 0.0, 8.0, 9.0, 8.0, 5.0, 0.0, 29.0, 0.0, 15.0, 0.0,
        ];
        assert_eq!(steps.each, expected);
        assert_eq!((steps.whole, steps.calls), (125.0, 1));
        assert_eq!(steps.each.iter().sum::<f64>(), steps.whole);
    }

    #[test]
    fn what_the_client_answers_alone_and_two_requests() {
        let steps = split(&[], Mono(0), Mono(5_000));
        assert_eq!((steps.each[14], steps.calls), (5.0, 0));
        let list = events(&[
            (1, Span::Call, true),
            (11, Span::Call, false),
            (14, Span::Call, true),
            (24, Span::Call, false),
        ]);
        let steps = split(&list, Mono(0), Mono(30_000));
        assert_eq!(steps.each[0], 1.0);
        assert_eq!(steps.each[1], 20.0);
        assert_eq!(steps.each[12], 3.0);
        assert_eq!(steps.each[13], 6.0);
    }
}
