//! The consensus library's runtime over [`Env`]: its tasks, sleeps, clock and randomness come from the seam, so that a
//! simulation drives it as it drives everything else.
//!
//! The library asks for time and tasks through functions without an object. So the seam is noted for the time in which
//! a task of it is polled ([`within`]), and what such a task starts inherits it.

use std::cell::RefCell;
use std::future::Future;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use mortar_protocol::env::{Env, Mono};
use mortar_protocol::env_real::{mono_now, random};
use openraft::async_runtime::AsyncOneshotSendExt;
use openraft::{AsyncRuntime, Instant, OptionalSend};
use parking_lot::Mutex;
use tokio::sync::oneshot;

thread_local! {
    static CURRENT: RefCell<Option<Arc<dyn Env>>> = const { RefCell::new(None) };
}

/// A future during whose polls `env` is the current seam.
struct Within<F> {
    env: Arc<dyn Env>,
    inner: Pin<Box<F>>,
}

impl<F: Future> Future for Within<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let before = CURRENT.replace(Some(Arc::clone(&self.env)));
        let polled = self.inner.as_mut().poll(cx);
        CURRENT.set(before);
        polled
    }
}

/// Runs `future` with `env` as the library's clock, timer, randomness and executor.
pub(super) fn within<F: Future>(
    env: &Arc<dyn Env>,
    future: F,
) -> impl Future<Output = F::Output> + use<F> {
    Within {
        env: Arc::clone(env),
        inner: Box::pin(future),
    }
}

fn current() -> Option<Arc<dyn Env>> {
    CURRENT.with_borrow(Clone::clone)
}

/// A moment on the seam's monotonic clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Moment(Mono);

impl Instant for Moment {
    fn now() -> Self {
        Self(current().map_or_else(mono_now, |env| env.now()))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.after(span))
    }
}

impl AddAssign<Duration> for Moment {
    fn add_assign(&mut self, span: Duration) {
        *self = *self + span;
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    fn sub(self, span: Duration) -> Self {
        Self(Mono(self.0.0.saturating_sub(span.as_nanos() as u64)))
    }
}

impl SubAssign<Duration> for Moment {
    fn sub_assign(&mut self, span: Duration) {
        *self = *self - span;
    }
}

impl Sub for Moment {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.0.since(earlier.0)
    }
}

/// A task that was started. Dropping it lets the task go on.
#[derive(Debug)]
pub struct Started<T>(oneshot::Receiver<T>);

/// A task ended without a result: it was dropped with its process.
#[derive(Debug, thiserror::Error)]
#[error("the task has ended")]
pub struct Ended;

impl<T> Future for Started<T> {
    type Output = Result<T, Ended>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(cx)
            .map(|done| done.map_err(|_| Ended))
    }
}

/// Completes at a moment.
pub struct Sleep(Mutex<BoxFuture<'static, ()>>);

impl Sleep {
    fn of(span: Duration) -> Self {
        Self(Mutex::new(match current() {
            Some(env) => env.sleep(span),
            // Without a seam there is nobody to wake it.
            None => Box::pin(std::future::pending()),
        }))
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.get_mut().as_mut().poll(cx)
    }
}

/// A future with an end in time.
pub struct Timeout<F> {
    inner: Pin<Box<F>>,
    sleep: Sleep,
}

/// The time was over first.
#[derive(Debug, thiserror::Error)]
#[error("timed out")]
pub struct Elapsed;

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(done) = self.inner.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        Pin::new(&mut self.sleep).poll(cx).map(|()| Err(Elapsed))
    }
}

/// The seam's randomness.
pub struct EnvRng;

impl rand::RngCore for EnvRng {
    fn next_u32(&mut self) -> u32 {
        self.next_u64() as u32
    }

    fn next_u64(&mut self) -> u64 {
        current().map_or_else(random, |env| env.random())
    }

    fn fill_bytes(&mut self, out: &mut [u8]) {
        for piece in out.chunks_mut(8) {
            let bytes = self.next_u64().to_le_bytes();
            piece.copy_from_slice(&bytes[..piece.len()]);
        }
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), rand::Error> {
        self.fill_bytes(out);
        Ok(())
    }
}

/// The sending end of a channel for one value.
pub struct Sender<T>(oneshot::Sender<T>);

impl<T> std::fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sender")
    }
}

impl<T: OptionalSend> AsyncOneshotSendExt<T> for Sender<T> {
    fn send(self, value: T) -> Result<(), T> {
        self.0.send(value)
    }
}

/// See the module.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct EnvRuntime;

impl AsyncRuntime for EnvRuntime {
    type JoinError = Ended;
    type JoinHandle<T: OptionalSend + 'static> = Started<T>;
    type Sleep = Sleep;
    type Instant = Moment;
    type TimeoutError = Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = Timeout<T>;
    type ThreadLocalRng = EnvRng;
    type OneshotSender<T: OptionalSend> = Sender<T>;
    type OneshotReceiver<T: OptionalSend> = oneshot::Receiver<T>;
    type OneshotReceiverError = oneshot::error::RecvError;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        let (tell, told) = oneshot::channel();
        // Without a seam the task is dropped, and its handle says so.
        if let Some(env) = current() {
            let task = within(&env, async move {
                // Whoever started it may not care.
                let _ = tell.send(future.await);
            });
            env.spawn(Box::pin(task));
        }
        Started(told)
    }

    fn sleep(span: Duration) -> Self::Sleep {
        Sleep::of(span)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        Sleep::of(deadline - Moment::now())
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        span: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        Timeout {
            inner: Box::pin(future),
            sleep: Sleep::of(span),
        }
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        Self::timeout(deadline - Moment::now(), future)
    }

    fn is_panic(_: &Self::JoinError) -> bool {
        // A panic ends the process.
        false
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        EnvRng
    }

    fn oneshot<T>() -> (Self::OneshotSender<T>, Self::OneshotReceiver<T>)
    where
        T: OptionalSend,
    {
        let (tell, told) = oneshot::channel();
        (Sender(tell), told)
    }
}
