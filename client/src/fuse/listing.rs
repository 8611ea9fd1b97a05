//! Listings as the kernel asks for them: as much as it has room for.

use std::time::Duration;

use bytes::Bytes;
use mortar_protocol::attr::FileKind;
use mortar_protocol::fop::DirEntry;
use mortar_protocol::ids::InodeId;

use crate::vfs::{Backend, Piece, Res, Vfs};

/// Fills a listing through `add`, which gets each entry and the age of its attributes and says when there is no room;
/// gives back what did not fit.
pub(super) async fn list<B: Backend>(
    vfs: &Vfs<B>,
    (dir, handle): (InodeId, u64),
    offset: u64,
    plus: bool,
    mut add: impl FnMut(&DirEntry, Duration) -> bool,
) -> Res<()> {
    let dot = |name: &'static [u8], inode: InodeId, offset| DirEntry {
        name: Bytes::from_static(name),
        gfid: mortar_protocol::ids::Gfid {
            id: inode,
            generation: 0,
        },
        kind: FileKind::Dir,
        offset,
        attr: None,
    };
    let read = vfs.readdir(handle, offset.max(2), plus);
    let mut piece: Piece = if offset < 2 {
        let (above, piece) = futures_util::future::join(vfs.dir_parent(dir), read).await;
        // A directory that was removed has nothing above it any more.
        let above = above.unwrap_or(dir);
        let (here, above) = (dot(b".", dir, 1), dot(b"..", above, 2));
        if offset == 0 && add(&here, Duration::ZERO) || add(&above, Duration::ZERO) {
            return Ok(());
        }
        piece?
    } else {
        read.await?
    };
    let mut after = offset.max(2);
    let mut taken = 0;
    let age = vfs.age(&piece);
    for entry in &piece.entries {
        if add(entry, age) {
            break;
        }
        after = entry.offset;
        taken += 1;
    }
    piece.entries.drain(..taken);
    vfs.unread(handle, after, plus, piece);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mortar_protocol::attr::Cred;
    use mortar_protocol::env_real::RealEnv;

    use super::*;
    use crate::vfs::{NewInode, Options, mem::Mem};

    /// Lists the root with room for `room` entries per call.
    async fn listing(vfs: &Vfs<Mem>, room: usize, plus: bool) -> Vec<Bytes> {
        let handle = vfs.open_dir(Cred::default(), InodeId::ROOT);
        let mut names = Vec::new();
        let mut offset = 0;
        loop {
            let mut got = Vec::new();
            let add = |entry: &DirEntry, _| {
                let full = got.len() == room;
                if !full {
                    got.push((entry.name.clone(), entry.offset));
                }
                full
            };
            list(vfs, (InodeId::ROOT, handle), offset, plus, add)
                .await
                .unwrap();
            match got.last() {
                Some((_, last)) => offset = *last,
                None => break,
            }
            names.extend(got.into_iter().map(|(name, _)| name));
        }
        vfs.drop_handle(handle);
        names
    }

    #[test]
    fn listings_are_whole_however_little_room_there_is() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let env = Arc::new(RealEnv::new(runtime.handle().clone()));
        let vfs = Vfs::new(Mem::new(), env, Options::default());
        runtime.block_on(async {
            let mut expected = vec![Bytes::from_static(b"."), Bytes::from_static(b"..")];
            for i in 0..12 {
                let name = Bytes::from(format!("file{i:02}"));
                let new = NewInode {
                    kind: FileKind::File,
                    perm: 0o644,
                    umask: 0,
                    rdev: 0,
                    target: Bytes::new(),
                };
                let root = InodeId::ROOT;
                vfs.make(Cred::default(), root, name.clone(), new)
                    .await
                    .unwrap();
                expected.push(name);
            }
            for room in [1, 2, 3, 5, 100] {
                for plus in [false, true] {
                    assert_eq!(listing(&vfs, room, plus).await, expected, "room for {room}");
                }
            }
        });
    }
}
