//! Tests: reads of members that answer late or not at all, on virtual time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::env::Env;
use mortar_protocol::error::Fault;
use mortar_protocol::fop::{Fop, Reply};
use mortar_protocol::ids::{BrickId, InodeId, SetIndex};
use parking_lot::Mutex;

use super::scripted::{Act, Scripted, TestEnv};
use super::{Cluster, How, Set};

/// What each of the three bricks does with a read.
type Manners = Arc<Mutex<[fn() -> Act; 3]>>;

struct Rig {
    set: Arc<Set>,
    /// Keeps the set alive.
    _cluster: Arc<Cluster>,
    env: Arc<dyn Env>,
    manners: Manners,
    /// Which bricks were sent reads.
    asked: Arc<Mutex<Vec<BrickId>>>,
}

fn good() -> Act {
    Act::Reply(Reply::Done)
}

fn late() -> Act {
    Act::Late(Duration::from_secs(2), Reply::Done)
}

impl Rig {
    async fn new() -> Self {
        let manners: Manners = Arc::new(Mutex::new([good; 3]));
        let asked: Arc<Mutex<Vec<BrickId>>> = Arc::default();
        let (now, log) = (manners.clone(), asked.clone());
        let servers = Scripted::new(1, move |call, _| match &call.fop {
            Fop::GetAttr { .. } => {
                log.lock().push(call.brick);
                let manners = *now.lock();
                manners[call.brick.0 as usize - 1]()
            }
            _ => good(),
        });
        let env = TestEnv::start();
        let servers_at = ["127.0.0.1:1".parse().unwrap()];
        let limit = Duration::from_secs(4);
        let cluster = Cluster::connect(env.clone(), servers, &servers_at, "vol", limit).await;
        let cluster = cluster.unwrap();
        Self {
            set: cluster.set(SetIndex(0)),
            _cluster: cluster,
            env,
            manners,
            asked,
        }
    }

    /// The primary answered, and has ceased to; a read has noticed.
    async fn with_hung_primary() -> Self {
        let rig = Self::new().await;
        rig.reads(20).await;
        rig.manners([|| Act::Hang, good, good]);
        rig.read().await;
        rig
    }

    /// From now on.
    fn manners(&self, manners: [fn() -> Act; 3]) {
        *self.manners.lock() = manners;
        self.asked.lock().clear();
    }

    /// Milliseconds that a read takes.
    async fn read(&self) -> u128 {
        let begun = self.env.now();
        let id = InodeId(9);
        let mut call = self.set.request(Fop::GetAttr { id }, How::default());
        let read = self.set.run(&mut call, &Bytes::new()).await;
        assert_eq!(read.expect("an answer").reply, Reply::Done);
        self.env.now().since(begun).as_millis()
    }

    async fn reads(&self, count: usize) -> u128 {
        let mut longest = 0;
        for _ in 0..count {
            longest = longest.max(self.read().await);
        }
        longest
    }

    fn asked(&self) -> Vec<u128> {
        let asked = std::mem::take(&mut *self.asked.lock());
        asked.into_iter().map(|brick| brick.0).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_answers_late_or_never_holds_no_read_up() {
    for slow in [late, || Act::Hang] {
        let rig = Rig::new().await;
        assert_eq!(rig.reads(20).await, 0);
        assert_eq!(rig.asked(), [1; 20], "reads go to the primary");
        rig.manners([slow, good, good]);
        let first = rig.read().await;
        assert!((1..=20).contains(&first), "{first} ms");
        assert_eq!(rig.asked(), [1, 2]);
        // From then on the other one is asked alone.
        assert_eq!(rig.reads(100).await, 0);
        assert_eq!(rig.asked(), [2; 100]);
        // One read looks whether the primary answers again.
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        assert!(rig.reads(10).await <= 20);
        assert_eq!(rig.asked(), [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]);
        rig.manners([good; 3]);
        tokio::time::sleep(Duration::from_millis(2_100)).await;
        assert_eq!(rig.reads(10).await, 0);
        assert_eq!(rig.asked(), [1; 10]);
        assert_eq!(rig.set.state().reads_sent_twice, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn servers_that_have_much_to_do_get_few_reads_twice() {
    let rig = Rig::new().await;
    rig.reads(20).await;
    let busy = || Act::Late(Duration::from_millis(30), Reply::Done);
    rig.manners([busy; 3]);
    rig.reads(2_000).await;
    let asked = rig.asked().len();
    assert!(asked <= 2_000 * 21 / 20 + 8, "{asked}");
}

#[tokio::test(start_paused = true)]
async fn another_member_that_does_not_serve_ends_no_read() {
    let rig = Rig::new().await;
    rig.reads(20).await;
    let refuses = || Act::Fault(Fault::NotServing);
    rig.manners([
        || Act::Late(Duration::from_millis(300), Reply::Done),
        refuses,
        refuses,
    ]);
    assert_eq!(rig.read().await, 300);
    assert_eq!(rig.asked(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_member_asked_in_place_of_the_primary_is_left_when_it_ceases_to_serve() {
    let rig = Rig::with_hung_primary().await;
    rig.manners([good, || Act::Fault(Fault::UnknownSession), good]);
    assert!(rig.read().await <= 20);
    let asked = rig.asked();
    assert_eq!(asked, [2, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_member_asked_in_place_of_the_primary_may_hang_too() {
    let rig = Rig::with_hung_primary().await;
    rig.manners([|| Act::Hang, || Act::Hang, good]);
    assert!(rig.read().await <= 20);
    assert_eq!(rig.reads(5).await, 0);
    assert_eq!(rig.asked(), [2, 3, 3, 3, 3, 3, 3]);
}

#[tokio::test(start_paused = true)]
async fn what_only_the_primary_answers_waits_for_it() {
    let rig = Rig::with_hung_primary().await;
    // Other requests still go to the primary, alone.
    let mut call = rig.set.request(Fop::StatFs, How::default());
    rig.set.run(&mut call, &Bytes::new()).await.unwrap();
    assert_eq!(call.brick, BrickId(1));
}
