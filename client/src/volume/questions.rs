//! Attributes that are questions about a file: programs written for GlusterFS ask them. They are computed, never stored
//! and never listed.

use std::fmt::Write as _;

use bytes::Bytes;
use mortar_protocol::error::Errno;
use mortar_protocol::fop::{Fop, Reply};
use mortar_protocol::ids::InodeId;
use mortar_protocol::view::{SetKind, VolumeInfo};

use super::Volume;
use super::call::unexpected;
use super::types::Res;

const GFID: &[u8] = b"glusterfs.gfid.string";
const PATH: &[u8] = b"trusted.glusterfs.pathinfo";
/// Directories above a file, at most.
const DEPTH: usize = 4_096;

/// Whether an attribute of this name is a question.
pub fn is_question(name: &[u8]) -> bool {
    name == GFID || name == PATH
}

impl Volume {
    /// Answers a question.
    ///
    /// # Errors
    /// ENODATA if it is none; those of look-ups.
    pub(super) async fn answer(&self, id: InodeId, name: &[u8]) -> Res<Bytes> {
        match name {
            GFID => Ok(self.getattr(id).await?.gfid.to_string().into()),
            PATH => {
                let path = self.path_of(id).await?;
                let info = self.info();
                let set = info.layout.inode_set(id).0 as usize;
                Ok(path_info(&info, set, &path).into())
            }
            _ => Err(Errno::ENODATA),
        }
    }

    /// A path of an inode from the root on, by its first name; with a leading slash unless it is the root.
    async fn path_of(&self, mut id: InodeId) -> Res<Vec<u8>> {
        let mut names = Vec::new();
        while id != InodeId::ROOT {
            let set = self.inode_set(id);
            let links = match self.look(&set, Fop::Links { id }).await?.reply {
                Reply::Links { links, .. } => links,
                other => return Err(unexpected(&other)),
            };
            let (parent, name) = links.into_iter().next().ok_or(Errno::ENOENT)?;
            names.push(name);
            id = parent;
            if names.len() > DEPTH {
                return Err(Errno::ELOOP);
            }
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        Ok(path)
    }
}

/// Where a file lies, as GlusterFS says it.
fn path_info(info: &VolumeInfo, set: usize, path: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    let bricks = info.sets.get(set).map(Vec::as_slice).unwrap_or_default();
    let mut head = String::from("(");
    let distributed = info.sets.len() > 1 || info.kind == SetKind::Plain;
    if distributed {
        let _ = write!(head, "<DISTRIBUTE:{}-dht> ", info.name);
    }
    let replicated = info.kind != SetKind::Plain;
    if replicated {
        let inner = if distributed { "(" } else { "" };
        let _ = write!(head, "{inner}<REPLICATE:{}-replicate-{set}> ", info.name);
    }
    text.extend_from_slice(head.as_bytes());
    for (at, brick) in bricks.iter().enumerate() {
        if at > 0 {
            text.push(b' ');
        }
        let place = format!("<POSIX({}):{}:{}", brick.path, brick.host, brick.path);
        text.extend_from_slice(place.as_bytes());
        text.extend_from_slice(path);
        text.push(b'>');
    }
    text.extend_from_slice(if distributed && replicated {
        b"))"
    } else {
        b")"
    });
    text
}
