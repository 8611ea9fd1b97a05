//! Bricks that are not what they were, on real files.

use mortar_protocol::ids::{BrickId, VolumeId};
use mortar_protocol::placement::Layout;
use mortar_protocol::view::{SetKind, VolumeState};

use super::*;

const SIZE: u64 = 256 << 20;

struct Rig {
    dir: tempfile::TempDir,
    stores: Arc<FileStores>,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let stores = FileStores::new(ClusterId(1), NodeId(2));
        Self { dir, stores }
    }

    fn volume(&self, number: u128) -> VolumeInfo {
        let path = self.dir.path().join(format!("b{number}"));
        let brick = BrickInfo {
            id: BrickId(number),
            node: NodeId(2),
            host: "here".into(),
            path: path.to_str().unwrap().into(),
        };
        VolumeInfo {
            id: VolumeId(number),
            name: format!("v{number}"),
            kind: SetKind::Plain,
            sets: vec![vec![brick]],
            layout: Layout::even(1),
            shard_size: 64 << 20,
            state: VolumeState::Created,
            options: std::collections::BTreeMap::new(),
            version: 1,
        }
    }

    fn format(&self, volume: &VolumeInfo, force: bool) -> Result<(), String> {
        self.stores.format(&BrickTask {
            volume: volume.clone(),
            set: SetIndex(0),
            brick: volume.sets[0][0].clone(),
            size: Some(SIZE),
            force,
        })
    }

    fn open(&self, volume: &VolumeInfo) -> Result<(), String> {
        let opened = self.stores.open(volume, SetIndex(0), &volume.sets[0][0]);
        opened.map(drop).map_err(|failure| failure.message)
    }

    /// Superblocks and log of a brick.
    fn head(&self, volume: &VolumeInfo) -> Vec<u8> {
        let path = Path::new(&volume.sets[0][0].path).join(BRICK_FILE);
        let mut bytes = std::fs::read(path).unwrap();
        bytes.truncate(10 << 20);
        bytes
    }
}

#[test]
fn a_brick_of_a_deleted_volume_is_kept_and_never_opened() {
    let rig = Rig::new();
    let volume = rig.volume(7);
    rig.format(&volume, false).unwrap();
    rig.open(&volume).unwrap();
    rig.stores.mark_deleted(&volume.sets[0][0]).unwrap();
    let before = rig.head(&volume);
    let error = rig.open(&volume).unwrap_err();
    assert!(error.contains("'v7' of this brick was deleted"), "{error}");
    assert!(rig.head(&volume) == before, "nothing was written");
    // Only by force is its place used again.
    assert!(rig.format(&volume, false).is_err());
    assert!(rig.head(&volume) == before, "nothing was written");
    rig.format(&volume, true).unwrap();
    rig.open(&volume).unwrap();
}

#[test]
fn another_brick_in_its_place_is_left_alone() {
    let rig = Rig::new();
    let (ours, other) = (rig.volume(7), rig.volume(8));
    rig.format(&ours, false).unwrap();
    rig.format(&other, false).unwrap();
    let place = |volume: &VolumeInfo| Path::new(&volume.sets[0][0].path).join(BRICK_FILE);
    std::fs::rename(place(&other), place(&ours)).unwrap();
    let before = rig.head(&ours);
    let error = rig.open(&ours).unwrap_err();
    assert!(error.contains("of volume 'v8'"), "{error}");
    assert!(rig.stores.mark_deleted(&ours.sets[0][0]).is_err());
    assert!(rig.head(&ours) == before, "nothing was written");
    std::fs::remove_file(place(&ours)).unwrap();
    let error = rig.open(&ours).unwrap_err();
    assert!(error.contains("does not exist"), "{error}");
    assert!(!place(&ours).exists(), "nothing was made");
}
