//! The Vfs over a volume in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use mortar_protocol::attr::{Cred, SetAttr, Time};
use mortar_protocol::env::{Env, Mono};
use mortar_protocol::error::Errno;
use mortar_protocol::fop::{LockKind, LockOutcome, LockRequest};
use mortar_protocol::ids::InodeId;
use proptest::prelude::*;

use super::mem::Mem;
use super::*;

/// tokio's paused clock as an environment.
struct TestEnv {
    start: tokio::time::Instant,
}

impl Env for TestEnv {
    fn now(&self) -> Mono {
        Mono(self.start.elapsed().as_nanos() as u64 + 1)
    }

    fn wall(&self) -> Time {
        let now = self.now().0;
        Time {
            secs: 1000 + (now / 1_000_000_000) as i64,
            nanos: (now % 1_000_000_000) as u32,
        }
    }

    fn random(&self) -> u64 {
        4
    }

    fn sleep(&self, span: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(span))
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }
}

#[derive(Default)]
struct CountKernel(AtomicUsize);

impl Kernel for Arc<CountKernel> {
    fn invalidate(&self, _: InodeId) -> BoxFuture<'static, ()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::ready(()))
    }
}

struct Rig {
    mem: Mem,
    vfs: Vfs<Mem>,
    kernel: Arc<CountKernel>,
}

fn rig() -> Rig {
    rig_with(Options::default())
}

fn rig_with(options: Options) -> Rig {
    let mem = Mem::new();
    let env = Arc::new(TestEnv {
        start: tokio::time::Instant::now(),
    });
    let vfs = Vfs::new(mem.clone(), env, options);
    let kernel = Arc::new(CountKernel::default());
    vfs.set_kernel(Arc::new(kernel.clone()));
    Rig { mem, vfs, kernel }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(test);
}

fn root() -> Cred {
    Cred::default()
}

fn how(flags: i32) -> WriteHow {
    WriteHow {
        flags,
        ..WriteHow::default()
    }
}

impl Rig {
    async fn create(&self, name: &'static str) -> (InodeId, u64) {
        let made = self
            .vfs
            .create(
                root(),
                InodeId::ROOT,
                Bytes::from_static(name.as_bytes()),
                (0o644, 0),
                libc::O_RDWR,
            )
            .await
            .unwrap();
        (made.0.gfid.id, made.1.handle)
    }

    /// Closed files "a" to "g".
    async fn seven(&self) -> Vec<InodeId> {
        let mut ids = Vec::new();
        for name in ["a", "b", "c", "d", "e", "f", "g"] {
            let (id, handle) = self.create(name).await;
            ids.push(id);
            self.vfs.drop_handle(handle);
        }
        ids
    }
}

#[test]
fn a_small_file_is_one_create_and_one_change() {
    run(async {
        let rig = rig();
        let (id, handle) = rig.create("a").await;
        assert_eq!(rig.vfs.try_write(handle, 0, b"hello", how(0)), Some(Ok(())));
        let set = SetAttr {
            perm: Some(0o600),
            mtime: Some(Time { secs: 5, nanos: 6 }),
            ..SetAttr::default()
        };
        let shown = rig
            .vfs
            .try_setattr(&root(), id, set, None)
            .unwrap()
            .unwrap()
            .0;
        assert_eq!((shown.size, shown.perm, shown.mtime.secs), (5, 0o600, 5));
        let read = rig.vfs.try_read(handle, 1, 100).unwrap().unwrap();
        assert_eq!(&read[..], b"ello");
        assert_eq!(rig.vfs.try_flush(handle, 1), None);
        rig.vfs.flush(root(), handle, 1).await.unwrap();
        rig.vfs.drop_handle(handle);
        assert_eq!(rig.mem.log(), ["create", "change 2"]);
        assert_eq!(rig.mem.contents(id), b"hello");
        let attr = rig.mem.attr(id);
        assert_eq!(
            (attr.perm, attr.mtime.secs, attr.ctime),
            (0o600, 5, shown.ctime)
        );
        assert_eq!((rig.vfs.known_inodes(), rig.vfs.held_bytes()), (0, 0));
    });
}

#[test]
fn what_is_held_is_sent_after_a_second() {
    run(async {
        let rig = rig();
        let (id, handle) = rig.create("a").await;
        rig.vfs.try_write(handle, 0, b"x", how(0)).unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(rig.mem.contents(id), b"");
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(rig.mem.contents(id), b"x");
        assert_eq!(rig.vfs.held_bytes(), 0);
    });
}

#[test]
fn reads_move_atime_where_the_volume_wants_it() {
    run(async {
        let rig = rig_with(Options {
            atime: true,
            ..Options::default()
        });
        let (id, handle) = rig.create("a").await;
        rig.vfs.try_write(handle, 0, b"x", how(0)).unwrap().unwrap();
        rig.vfs.fsync(handle).await.unwrap();
        let written = rig.mem.attr(id);
        rig.mem.log();
        tokio::time::sleep(Duration::from_millis(10)).await;
        let read = async || rig.vfs.read(handle, 0, 10).await.unwrap();
        assert_eq!(&read().await[..], b"x");
        let shown = rig.vfs.try_getattr(id).unwrap().0;
        assert!(shown.atime > written.mtime);
        assert_eq!(rig.mem.log(), ["read 0 10"], "told later");
        assert_eq!(rig.vfs.try_flush(handle, 1), Some(Ok(())), "nobody waits");
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        assert_eq!(rig.mem.log(), ["change 1"]);
        let told = rig.mem.attr(id);
        let atime = shown.atime;
        assert_eq!(told, Attr { atime, ..written }, "nothing else has changed");
        // It says already that the file was read since it was changed.
        read().await;
        rig.vfs.flush_all().await;
        assert_eq!(rig.mem.log(), ["read 0 10"]);
        // A change takes it along; a day later it moves without one.
        rig.vfs.try_write(handle, 0, b"y", how(0)).unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
        read().await;
        rig.vfs.flush(root(), handle, 1).await.unwrap();
        assert_eq!(rig.mem.log(), ["change 2"]);
        assert!(rig.mem.attr(id).atime > rig.mem.attr(id).mtime);
        tokio::time::sleep(Duration::from_secs(24 * 60 * 60)).await;
        read().await;
        rig.mem.log();
        // Servers that refuse it bother nobody.
        rig.mem.fail_next(Errno::EROFS);
        rig.vfs.flush_all().await;
        assert_eq!(rig.mem.log(), ["change 1"]);
        rig.vfs.flush(root(), handle, 1).await.unwrap();
        read().await;
        rig.vfs.set_atime(false);
        rig.vfs.drop_handle(handle);
        rig.vfs.flush_all().await;
        assert_eq!(rig.vfs.known_inodes(), 0);
        // Handles that were opened so, and volumes that say so, leave it alone.
        let before = rig.mem.attr(id);
        for (flags, on) in [(libc::O_NOATIME, true), (0, false)] {
            tokio::time::sleep(Duration::from_secs(48 * 60 * 60)).await;
            rig.vfs.set_atime(on);
            let handle = rig.vfs.open(root(), id, flags).await.unwrap().handle;
            rig.vfs.read(handle, 0, 10).await.unwrap();
            rig.vfs.drop_handle(handle);
            rig.vfs.flush_all().await;
        }
        assert_eq!(rig.mem.attr(id), before);
    });
}

#[test]
fn fsync_sends_changes_and_flush_in_one_request() {
    run(async {
        let rig = rig();
        let (_, handle) = rig.create("a").await;
        rig.mem.log();
        rig.vfs.try_write(handle, 0, b"x", how(0)).unwrap().unwrap();
        rig.vfs.fsync(handle).await.unwrap();
        assert_eq!(rig.mem.log(), ["change 1 sync"]);
        rig.vfs.fsync(handle).await.unwrap();
        assert_eq!(rig.mem.log(), ["fsync"]);
        rig.vfs
            .write(handle, 1, Bytes::from_static(b"y"), how(libc::O_DSYNC))
            .await
            .unwrap();
        assert_eq!(rig.mem.log(), ["change 1 sync"]);
    });
}

#[test]
fn direct_writes_and_mapped_pages_are_never_held() {
    run(async {
        let rig = rig();
        let (id, handle) = rig.create("a").await;
        rig.vfs
            .try_write(handle, 0, b"held", how(0))
            .unwrap()
            .unwrap();
        let mapped = WriteHow {
            mapped: true,
            ..WriteHow::default()
        };
        for how in [how(libc::O_DIRECT), mapped] {
            assert_eq!(rig.vfs.try_write(handle, 1, b"Z", how), None);
        }
        rig.vfs
            .write(handle, 1, Bytes::from_static(b"Z"), mapped)
            .await
            .unwrap();
        assert_eq!(rig.mem.contents(id), b"hZld");
    });
}

#[test]
fn a_failed_change_is_told_to_every_handle_once() {
    run(async {
        let rig = rig();
        let (id, first) = rig.create("a").await;
        let second = rig.vfs.open(root(), id, libc::O_RDWR).await.unwrap().handle;
        rig.mem.fail_next(Errno::ENOSPC);
        rig.vfs
            .try_write(first, 0, b"lost", how(0))
            .unwrap()
            .unwrap();
        assert_eq!(rig.vfs.fsync(first).await, Err(Errno::ENOSPC));
        assert_eq!(rig.kernel.0.load(Ordering::Relaxed), 1);
        assert_eq!(rig.vfs.fsync(first).await, Ok(()));
        assert_eq!(
            rig.vfs.try_write(second, 0, b"x", how(0)),
            Some(Err(Errno::ENOSPC))
        );
        assert_eq!(rig.vfs.getattr(id).await.unwrap().0.size, 0);
        let data = Bytes::from_static(b"new");
        rig.vfs.write(second, 0, data, how(0)).await.unwrap();
        rig.vfs.flush(root(), second, 1).await.unwrap();
        assert_eq!(rig.mem.contents(id), b"new");
        assert_eq!(rig.vfs.held_bytes(), 0);
    });
}

#[test]
fn pages_are_kept_over_own_changes_and_dropped_after_others() {
    run(async {
        let rig = rig();
        let (id, handle) = rig.create("a").await;
        rig.vfs
            .try_write(handle, 0, b"mine", how(0))
            .unwrap()
            .unwrap();
        rig.vfs.flush(root(), handle, 1).await.unwrap();
        rig.vfs.drop_handle(handle);
        let set = SetAttr {
            perm: Some(0o600),
            ..SetAttr::default()
        };
        rig.vfs.setattr(root(), id, set, None).await.unwrap();
        let again = rig.vfs.open(root(), id, libc::O_RDONLY).await.unwrap();
        assert!(again.keep_pages);
        let data = rig.vfs.try_read(again.handle, 0, 10);
        assert!(data.is_none(), "the kernel has them");
        rig.vfs.drop_handle(again.handle);
        rig.vfs.kernel_forgot(id);
        let again = rig.vfs.open(root(), id, libc::O_RDONLY).await.unwrap();
        assert!(!again.keep_pages);
        let data = rig.vfs.try_read(again.handle, 0, 10).unwrap().unwrap();
        assert_eq!(&data[..], b"mine", "the kernel has forgotten them");
        rig.vfs.drop_handle(again.handle);
        rig.mem.foreign_write(id, 0, b"your");
        let again = rig.vfs.open(root(), id, libc::O_RDONLY).await.unwrap();
        assert!(!again.keep_pages);
        let data = rig.vfs.try_read(again.handle, 0, 10).unwrap().unwrap();
        assert_eq!(&data[..], b"your", "small contents came with the open");
        assert_eq!(rig.kernel.0.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn a_foreign_change_between_own_ones_drops_the_pages() {
    run(async {
        let rig = rig();
        let (id, handle) = rig.create("a").await;
        rig.vfs
            .try_write(handle, 0, b"mine", how(0))
            .unwrap()
            .unwrap();
        rig.mem.foreign_write(id, 10, b"your");
        rig.vfs.flush(root(), handle, 1).await.unwrap();
        assert_eq!(rig.kernel.0.load(Ordering::Relaxed), 1);
        assert_eq!(rig.vfs.try_getattr(id).unwrap().0.size, 14);
    });
}

#[test]
fn appends_go_to_the_end_that_the_servers_know() {
    run(async {
        let rig = rig();
        let (id, handle) = rig.create("a").await;
        let append = how(libc::O_APPEND);
        rig.vfs
            .try_write(handle, 0, b"one", append)
            .unwrap()
            .unwrap();
        rig.mem.foreign_write(id, 0, b"other");
        rig.vfs.flush(root(), handle, 1).await.unwrap();
        assert_eq!(rig.mem.contents(id), b"otherone");
        assert_eq!(rig.kernel.0.load(Ordering::Relaxed), 1);
        rig.vfs
            .try_write(handle, 8, b"two", append)
            .unwrap()
            .unwrap();
        rig.vfs.flush(root(), handle, 1).await.unwrap();
        assert_eq!(rig.mem.contents(id), b"otheronetwo");
        assert_eq!(rig.kernel.0.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn a_rename_sends_what_is_held_first() {
    run(async {
        let rig = rig();
        let (id, handle) = rig.create("a").await;
        rig.vfs.try_write(handle, 0, b"x", how(0)).unwrap().unwrap();
        let (a, b) = (Bytes::from_static(b"a"), Bytes::from_static(b"b"));
        let (from, to) = ((InodeId::ROOT, a), (InodeId::ROOT, b.clone()));
        rig.vfs
            .rename(root(), from, to, RenameMode::Replace)
            .await
            .unwrap();
        assert_eq!(rig.mem.contents(id), b"x");
        rig.vfs.try_write(handle, 1, b"y", how(0)).unwrap().unwrap();
        rig.vfs
            .remove(root(), InodeId::ROOT, b, false)
            .await
            .unwrap();
        assert_eq!(rig.mem.contents(id), b"xy", "still open");
        assert_eq!(rig.vfs.try_getattr(id).unwrap().0.nlink, 0);
    });
}

#[test]
fn a_name_that_another_client_has_removed_is_looked_up_again() {
    run(async {
        let rig = rig();
        let (id, handle) = rig.create("a").await;
        rig.mem.foreign_unlink(id);
        // What is open here lives on.
        let again = rig.vfs.open(root(), id, libc::O_RDONLY).await.unwrap();
        rig.vfs.drop_handle(again.handle);
        rig.vfs.drop_handle(handle);
        let gone = rig.vfs.open(root(), id, libc::O_RDONLY).await;
        assert_eq!(gone.err(), Some(Errno::ESTALE));
    });
}

#[test]
fn the_window_bounds_what_is_held() {
    run(async {
        let options = Options {
            window: 1 << 20,
            ..Options::default()
        };
        let rig = rig_with(options);
        let (id, handle) = rig.create("a").await;
        let block = Bytes::from(vec![7; 128 << 10]);
        for i in 0..64 {
            let offset = i * block.len() as u64;
            if rig.vfs.try_write(handle, offset, &block, how(0)).is_none() {
                rig.vfs
                    .write(handle, offset, block.clone(), how(0))
                    .await
                    .unwrap();
            }
            assert!(rig.vfs.held_bytes() <= 1 << 20);
        }
        rig.vfs.flush(root(), handle, 1).await.unwrap();
        assert_eq!(rig.mem.contents(id), vec![7; 8 << 20]);
        assert_eq!(rig.vfs.held_bytes(), 0);
    });
}

#[test]
fn sequential_reads_are_answered_from_what_was_read_ahead() {
    run(async {
        let rig = rig();
        let (id, handle) = rig.create("a").await;
        let all: Vec<u8> = (0..4 << 20).map(|i: u32| (i / 4096) as u8).collect();
        rig.mem.foreign_write(id, 0, &all);
        rig.vfs.drop_handle(handle);
        let handle = rig
            .vfs
            .open(root(), id, libc::O_RDONLY)
            .await
            .unwrap()
            .handle;
        let mut quick = 0;
        for i in 0..33 {
            let offset = i * (128 << 10);
            let data = match rig.vfs.try_read(handle, offset, 128 << 10) {
                Some(data) => {
                    quick += 1;
                    data.unwrap()
                }
                None => rig.vfs.read(handle, offset, 128 << 10).await.unwrap(),
            };
            let first = (offset as usize).min(all.len());
            assert_eq!(data, all[first..(first + (128 << 10)).min(all.len())]);
            tokio::task::yield_now().await;
        }
        assert!(quick > 25, "{quick}");
    });
}

/// A lock caller that gives up at once.
struct Leaver;

impl Waiter for Leaver {
    fn wants_to_leave(&self) -> bool {
        true
    }
}

#[test]
fn a_lock_call_sends_what_is_held_and_can_be_left() {
    run(async {
        let rig = rig();
        let (id, handle) = rig.create("a").await;
        rig.vfs.try_write(handle, 0, b"x", how(0)).unwrap().unwrap();
        let mut request = LockRequest {
            id,
            owner: 3,
            start: 0,
            end: u64::MAX,
            kind: LockKind::Write,
            pid: 1,
            wait: true,
        };
        rig.vfs
            .lock(root(), request.clone(), &Leaver)
            .await
            .unwrap();
        assert_eq!(rig.mem.contents(id), b"x");
        assert_eq!(rig.vfs.try_flush(handle, 3), None);
        rig.vfs.flush(root(), handle, 3).await.unwrap();
        assert_eq!(rig.vfs.try_flush(handle, 3), Some(Ok(())));
        let log = rig.mem.log();
        assert_eq!(log, ["create", "change 1", "lock Write", "lock Unlock"]);
        request.owner = 7;
        let left = rig.vfs.lock(root(), request, &Leaver).await;
        assert_eq!(left, Err(Errno::EINTR));
        assert_eq!(rig.mem.log(), ["lock Write", "lock Unlock"]);
    });
}

#[test]
fn a_file_whose_locks_went_with_the_session_fails_until_it_is_closed() {
    run(async {
        let rig = rig();
        let (id, handle) = rig.create("a").await;
        let request = LockRequest {
            id,
            owner: 3,
            start: 0,
            end: 9,
            kind: LockKind::Write,
            pid: 1,
            wait: false,
        };
        rig.vfs
            .lock(root(), request.clone(), &Leaver)
            .await
            .unwrap();
        rig.mem.new_session();
        let eio = Err(Errno::EIO);
        assert_eq!(rig.vfs.try_write(handle, 0, b"x", how(0)), Some(eio));
        assert_eq!(rig.vfs.read(handle, 0, 9).await, Err(Errno::EIO));
        assert_eq!(rig.vfs.lock(root(), request, &Leaver).await, eio);
        rig.vfs.flush(root(), handle, 3).await.unwrap();
        assert_eq!(rig.vfs.try_write(handle, 0, b"x", how(0)), Some(Ok(())));
    });
}

#[test]
fn a_file_fails_for_a_lost_lock_until_its_holder_closes() {
    run(async {
        let rig = rig();
        let (id, handle) = rig.create("a").await;
        let lock = |owner| LockRequest {
            id,
            owner,
            start: 0,
            end: 9,
            kind: LockKind::Read,
            pid: 1,
            wait: false,
        };
        for owner in [3, 4] {
            let granted = rig.vfs.lock(root(), lock(owner), &Leaver).await;
            assert_eq!(granted, Ok(()));
        }
        rig.mem.lose_lock(id, 4);
        let eio = Err(Errno::EIO);
        assert_eq!(rig.vfs.try_write(handle, 0, b"x", how(0)), Some(eio));
        assert_eq!(rig.vfs.lock(root(), lock(5), &Leaver).await, eio);
        rig.vfs.flush(root(), handle, 3).await.unwrap();
        assert_eq!(rig.vfs.try_write(handle, 0, b"x", how(0)), Some(eio));
        rig.vfs.flush(root(), handle, 4).await.unwrap();
        assert_eq!(rig.vfs.try_write(handle, 0, b"x", how(0)), Some(Ok(())));
    });
}

/// A lock caller that has time.
struct Stayer;

impl Waiter for Stayer {
    fn wants_to_leave(&self) -> bool {
        false
    }
}

#[test]
fn a_wait_that_the_set_has_forgotten_is_asked_for_again() {
    run(async {
        let rig = rig();
        let (id, _handle) = rig.create("a").await;
        rig.mem.log();
        let request = LockRequest {
            id,
            owner: 7,
            start: 0,
            end: 9,
            kind: LockKind::Write,
            pid: 1,
            wait: true,
        };
        use LockOutcome::{Busy, Granted, Queued};
        rig.mem.answer_lock_waits(&[Granted, Queued, Busy, Queued]);
        let granted = rig.vfs.lock(root(), request.clone(), &Stayer).await;
        assert_eq!(granted, Ok(()));
        assert_eq!(rig.mem.log(), ["lock Write", "lock Write"]);
    });
}

#[test]
fn a_lock_drops_pages_that_another_client_outdated() {
    run(async {
        let rig = rig();
        let (id, _handle) = rig.create("a").await;
        let request = LockRequest {
            id,
            owner: 3,
            start: 0,
            end: 9,
            kind: LockKind::Read,
            pid: 1,
            wait: false,
        };
        rig.vfs
            .lock(root(), request.clone(), &Leaver)
            .await
            .unwrap();
        assert_eq!(rig.kernel.0.load(Ordering::Relaxed), 0);
        rig.mem.foreign_write(id, 0, b"your");
        rig.vfs.lock(root(), request, &Leaver).await.unwrap();
        assert_eq!(rig.kernel.0.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn listings_continue_where_the_kernel_had_no_room() {
    run(async {
        let rig = rig();
        rig.seven().await;
        let dir = rig.vfs.open_dir(root(), InodeId::ROOT);
        rig.mem.log();
        let (mut after, mut names) = (0, Vec::new());
        loop {
            let mut piece = rig.vfs.readdir(dir, after, true).await.unwrap();
            if piece.entries.is_empty() {
                break;
            }
            // The kernel takes two at a time.
            let rest = piece.entries.split_off(piece.entries.len().min(2));
            after = piece.entries.last().unwrap().offset;
            names.extend(piece.entries.iter().map(|e| e.name.clone()));
            piece.entries = rest;
            rig.vfs.unread(dir, after, true, piece);
        }
        assert_eq!(names, ["a", "b", "c", "d", "e", "f", "g"]);
        assert_eq!(rig.mem.log(), ["readdir", "readdir"]);
    });
}

#[test]
fn the_next_piece_of_a_listing_is_fetched_while_one_is_taken() {
    run(async {
        let rig = rig();
        rig.seven().await;
        let dir = rig.vfs.open_dir(root(), InodeId::ROOT);
        rig.mem.log();
        let first = rig.vfs.readdir(dir, 0, true).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert_eq!(rig.mem.log(), ["readdir", "readdir"]);
        let after = first.entries.last().unwrap().offset;
        let next = rig.vfs.readdir(dir, after, true).await.unwrap();
        assert_eq!((next.entries.len(), next.end), (2, true));
        assert_eq!(rig.vfs.age(&next), Duration::from_millis(10));
        assert!(rig.mem.log().is_empty());
        // Elsewhere, and late, it is asked for again.
        rig.vfs.readdir(dir, 3, true).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        rig.vfs.readdir(dir, 8, true).await.unwrap();
        assert_eq!(rig.mem.log().len(), 3);
    });
}

#[test]
fn a_listing_shows_what_this_client_changed_since_it_was_fetched() {
    run(async {
        let rig = rig();
        let ids = rig.seven().await;
        let perm = |perm| SetAttr {
            perm: Some(perm),
            ..SetAttr::default()
        };
        let dir = rig.vfs.open_dir(root(), InodeId::ROOT);
        let mut piece = rig.vfs.readdir(dir, 0, true).await.unwrap();
        let rest = piece.entries.split_off(2);
        let after = piece.entries.last().unwrap().offset;
        piece.entries = rest;
        rig.vfs.unread(dir, after, true, piece);
        for id in [ids[3], ids[6]] {
            rig.vfs
                .setattr(root(), id, perm(0o600), None)
                .await
                .unwrap();
        }
        let rest = rig.vfs.readdir(dir, after, true).await.unwrap();
        assert_eq!(rest.entries[1].attr.unwrap().perm, 0o600);
        let after = rest.entries.last().unwrap().offset;
        let last = rig.vfs.readdir(dir, after, true).await.unwrap();
        let changed = last.entries.iter().find(|e| e.gfid.id == ids[6]);
        assert!(changed.is_none_or(|e| e.attr.unwrap().perm == 0o600));
    });
}

#[test]
fn the_end_of_a_listing_is_not_asked_for_again_without_attributes() {
    run(async {
        let rig = rig();
        let (_, handle) = rig.create("a").await;
        rig.vfs.drop_handle(handle);
        let dir = rig.vfs.open_dir(root(), InodeId::ROOT);
        rig.mem.log();
        let mut piece = rig.vfs.readdir(dir, 0, true).await.unwrap();
        assert!(piece.end);
        let after = piece.entries.drain(..).next_back().unwrap().offset;
        rig.vfs.unread(dir, after, true, piece);
        let rest = rig.vfs.readdir(dir, after, false).await.unwrap();
        assert!(rest.entries.is_empty() && rest.end);
        assert_eq!(rig.mem.log(), ["readdir"]);
    });
}

/// One step of the property test.
#[derive(Clone, Debug)]
enum Step {
    Write(bool, u32, u32, u8, bool),
    Truncate(u32),
    Read(bool, u32, u32),
    Chmod(u32),
    Flush(bool),
    Fsync,
    Sleep(u16),
    Punch(u32, u32),
    Direct(u32, u8),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    const SPAN: u32 = 700_000;
    let len = prop_oneof![4 => 1..5_000u32, 1 => 1..400_000u32];
    let at = prop_oneof![2 => 0..20_000u32, 2 => 0..SPAN, 1 => (0..170u32).prop_map(|b| b * 4096)];
    let step = prop_oneof![
        8 => (any::<bool>(), at.clone(), len.clone(), any::<u8>(), any::<bool>())
            .prop_map(|(h, o, l, b, a)| Step::Write(h, o, l, b, a && b < 40)),
        1 => at.clone().prop_map(Step::Truncate),
        6 => (any::<bool>(), at.clone(), len.clone()).prop_map(|(h, o, l)| Step::Read(h, o, l)),
        1 => (0..0o7777u32).prop_map(Step::Chmod),
        1 => any::<bool>().prop_map(Step::Flush),
        1 => Just(Step::Fsync),
        1 => (0..2_000u16).prop_map(Step::Sleep),
        1 => (at.clone(), len).prop_map(|(o, l)| Step::Punch(o, l)),
        1 => (at, any::<u8>()).prop_map(|(o, b)| Step::Direct(o, b)),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..60)
}

/// A file as it should be.
#[derive(Default)]
struct Model {
    data: Vec<u8>,
    perm: u32,
}

impl Model {
    fn write(&mut self, offset: usize, data: &[u8]) {
        let end = offset + data.len();
        self.data.resize(self.data.len().max(end), 0);
        self.data[offset..end].copy_from_slice(data);
    }
}

async fn check(steps: Vec<Step>) {
    let rig = rig();
    let (id, first) = rig.create("a").await;
    let second = rig.vfs.open(root(), id, libc::O_RDWR).await.unwrap().handle;
    let mut handles = [first, second];
    let mut model = Model {
        perm: 0o644,
        ..Model::default()
    };
    for step in steps {
        match step {
            Step::Write(h, offset, len, byte, append) => {
                let data: Vec<u8> = (0..len).map(|i| byte.wrapping_add(i as u8)).collect();
                let (offset, how) = match append {
                    true => (model.data.len(), how(libc::O_APPEND)),
                    false => (offset as usize, how(0)),
                };
                let handle = handles[usize::from(h)];
                match rig.vfs.try_write(handle, offset as u64, &data, how) {
                    Some(done) => done.unwrap(),
                    None => {
                        let data = Bytes::from(data.clone());
                        rig.vfs
                            .write(handle, offset as u64, data, how)
                            .await
                            .unwrap();
                    }
                }
                model.write(offset, &data);
            }
            Step::Truncate(size) => {
                let new = Some(u64::from(size));
                rig.vfs
                    .setattr(root(), id, SetAttr::default(), new)
                    .await
                    .unwrap();
                model.data.resize(size as usize, 0);
            }
            Step::Read(h, offset, len) => {
                let handle = handles[usize::from(h)];
                let got = match rig.vfs.try_read(handle, u64::from(offset), len) {
                    Some(data) => data.unwrap(),
                    None => rig.vfs.read(handle, u64::from(offset), len).await.unwrap(),
                };
                let from = (offset as usize).min(model.data.len());
                let to = (from + len as usize).min(model.data.len());
                assert!(got == model.data[from..to], "read {offset} {len}");
            }
            Step::Chmod(perm) => {
                let set = SetAttr {
                    perm: Some(perm),
                    ..SetAttr::default()
                };
                rig.vfs.setattr(root(), id, set, None).await.unwrap();
                model.perm = perm;
            }
            Step::Flush(h) => {
                let handle = handles[usize::from(h)];
                rig.vfs.flush(root(), handle, 1).await.unwrap();
                assert!(rig.mem.contents(id) == model.data, "after close");
            }
            Step::Fsync => {
                rig.vfs.fsync(handles[0]).await.unwrap();
                assert!(rig.mem.contents(id) == model.data, "after fsync");
            }
            Step::Sleep(ms) => tokio::time::sleep(Duration::from_millis(ms.into())).await,
            Step::Punch(offset, len) => {
                let (offset, len) = (u64::from(offset), u64::from(len));
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                rig.vfs
                    .fallocate(handles[0], offset, len, mode)
                    .await
                    .unwrap();
                let size = model.data.len();
                let from = (offset as usize).min(size);
                model.data[from..((offset + len) as usize).min(size)].fill(0);
            }
            Step::Direct(offset, byte) => {
                let data = Bytes::from(vec![byte; 512]);
                let how = how(libc::O_DIRECT);
                rig.vfs
                    .write(handles[1], u64::from(offset), data.clone(), how)
                    .await
                    .unwrap();
                model.write(offset as usize, &data);
            }
            Step::Reopen => {
                rig.vfs.drop_handle(handles[0]);
                handles[0] = rig.vfs.open(root(), id, libc::O_RDWR).await.unwrap().handle;
            }
        }
        let shown = match rig.vfs.try_getattr(id) {
            Some((attr, _)) => attr,
            None => rig.vfs.getattr(id).await.unwrap().0,
        };
        assert_eq!(shown.size, model.data.len() as u64);
        assert_eq!(shown.perm, model.perm);
    }
    let shown = rig.vfs.getattr(id).await.unwrap().0;
    for handle in handles {
        rig.vfs.drop_handle(handle);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(rig.mem.contents(id) == model.data, "in the end");
    let stored = rig.mem.attr(id);
    assert_eq!(
        (stored.perm, stored.mtime, stored.ctime),
        (model.perm, shown.mtime, shown.ctime)
    );
    assert_eq!((rig.vfs.known_inodes(), rig.vfs.held_bytes()), (0, 0));
    assert_eq!(rig.kernel.0.load(Ordering::Relaxed), 0, "nobody else wrote");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn two_handles_see_one_file(steps in steps()) {
        run(check(steps));
    }
}
