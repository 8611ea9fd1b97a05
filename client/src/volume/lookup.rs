//! Names and attributes: lookup, getattr with the parts of a directory merged, listings.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join, join_all};
use mortar_protocol::attr::{Attr, Cred, FileKind, Time};
use mortar_protocol::error::Errno;
use mortar_protocol::fop::{Cut, DirEntry, Fop, Reply};
use mortar_protocol::ids::{Gfid, InodeId, SetIndex, Slot};

use super::Volume;
use super::call::unexpected;
use super::hints::Target;
use super::types::{Found, Listing, Res};
use crate::remote::Set;

/// Parts of a listing fetched at once, once the first was not enough.
const AT_ONCE: usize = 8;

/// What a set says about its part of a directory.
struct Part {
    entries: u64,
    subdirs: u64,
    mtime: Time,
    change: u64,
}

/// A directory's attributes as its own set tells them.
struct Own {
    attr: Attr,
    cut: Cut,
    /// A time set by hand: the other parts' counters under which it holds, and the time otherwise.
    by_hand: Option<(u64, Time)>,
}

/// What a set says about a name.
pub(super) struct Dirent {
    pub(super) target: Target,
    pub(super) attr: Option<Attr>,
    /// The inode should be on the same set and is not.
    pub(super) missing: bool,
}

impl Volume {
    /// Directory entry and attributes.
    ///
    /// # Errors
    /// ENOENT; EIO if the name leads to an inode that is not there.
    pub async fn lookup(&self, _cred: Cred, parent: InodeId, name: Bytes) -> Res<Found> {
        let mut lost: Option<Gfid> = None;
        loop {
            let dirent = self.dirent(parent, &name).await?.ok_or(Errno::ENOENT)?;
            let (gfid, kind) = dirent.target;
            let attr = match dirent.attr {
                Some(attr) => Some(attr),
                None if dirent.missing => None,
                None => match self.own_attr(gfid.id).await {
                    Ok(own) => Some(own.attr),
                    Err(Errno::ESTALE | Errno::ENOENT) => None,
                    Err(errno) => return Err(errno),
                },
            };
            if let Some(attr) = attr.filter(|attr| attr.gfid == gfid) {
                return Ok(Found {
                    attr,
                    whole: kind != FileKind::Dir || !self.is_distributed(),
                });
            }
            // It may have been renamed or removed in between; the same again means that it dangles.
            if lost == Some(gfid) {
                tracing::error!(%parent, ?name, inode = %gfid.id, "a name leads to an inode that is not there");
                return Err(Errno::EIO);
            }
            lost = Some(gfid);
        }
    }

    /// A directory entry, and what comes with it.
    pub(super) async fn dirent(&self, parent: InodeId, name: &Bytes) -> Res<Option<Dirent>> {
        let set = self.name_set(parent, name);
        let fop = Fop::Lookup {
            parent,
            name: name.clone(),
        };
        match self.look(&set, fop).await.map(|answered| answered.reply) {
            Ok(Reply::Found {
                gfid,
                kind,
                attr,
                missing,
            }) => {
                self.0.names.put(parent, name, Some((gfid, kind)));
                if let Some(attr) = &attr {
                    self.seen(attr);
                }
                Ok(Some(Dirent {
                    target: (gfid, kind),
                    attr,
                    missing,
                }))
            }
            Ok(other) => Err(unexpected(&other)),
            Err(Errno::ENOENT) => {
                self.0.names.put(parent, name, None);
                Ok(None)
            }
            Err(errno) => Err(errno),
        }
    }

    /// Takes note of attributes that came without a cut number.
    pub(super) fn seen(&self, attr: &Attr) {
        if self.is_distributed() {
            self.0.files.put_kind(attr.gfid.id, attr.kind);
        }
        self.0.files.changed(attr, self.shard_size());
    }

    /// Attributes, merged over the sets for a directory.
    ///
    /// # Errors
    /// ESTALE if the inode is gone.
    pub async fn getattr(&self, id: InodeId) -> Res<Attr> {
        if !self.is_distributed() || self.0.files.kind(id).is_some_and(|k| k != FileKind::Dir) {
            return Ok(self.own_attr(id).await?.attr);
        }
        let home = self.info().layout.inode_set(id);
        if self.0.files.kind(id) == Some(FileKind::Dir) {
            let (own, parts) = join(self.own_attr(id), self.other_parts(id, home)).await;
            return Ok(merge(own?, &parts?));
        }
        let own = self.own_attr(id).await?;
        if own.attr.kind != FileKind::Dir {
            return Ok(own.attr);
        }
        let parts = self.other_parts(id, home).await?;
        Ok(merge(own, &parts))
    }

    /// Attributes of a directory from the answer to a change of this client, if they are younger than `max`, and their
    /// age. Only on volumes of one set: else they are merged from several.
    pub fn recent_dir(&self, id: InodeId, max: Duration) -> Option<(Attr, Duration)> {
        if self.is_distributed() {
            return None;
        }
        self.0.dirs.get(id, self.env().now(), max)
    }

    async fn own_attr(&self, id: InodeId) -> Res<Own> {
        let set = self.inode_set(id);
        let own = match self.look(&set, Fop::GetAttr { id }).await?.reply {
            Reply::Attr(attr, cut) => Own {
                attr,
                cut,
                by_hand: None,
            },
            Reply::DirAttr {
                attr,
                others,
                otherwise,
            } => Own {
                attr,
                cut: Cut::default(),
                by_hand: Some((others, otherwise)),
            },
            other => return Err(unexpected(&other)),
        };
        if self.is_distributed() {
            self.0.files.put_kind(id, own.attr.kind);
        }
        let size = self.shard_size();
        self.0.files.told(&own.attr, own.cut, size);
        Ok(own)
    }

    /// Attributes as the inode's set tells them, and the cut number.
    pub(super) async fn attr_and_cut(&self, id: InodeId) -> Res<(Attr, Cut)> {
        let own = self.own_attr(id).await?;
        Ok((own.attr, own.cut))
    }

    async fn other_parts(&self, dir: InodeId, home: SetIndex) -> Res<Vec<Part>> {
        let sets = self.info().layout.sets();
        let others = sets.into_iter().filter(|set| *set != home);
        let parts = others.map(|index| self.dir_part(self.set(index), dir));
        join_all(parts).await.into_iter().collect()
    }

    async fn dir_part(&self, set: std::sync::Arc<Set>, dir: InodeId) -> Res<Part> {
        let nothing = Part {
            entries: 0,
            subdirs: 0,
            mtime: Time {
                secs: i64::MIN,
                nanos: 0,
            },
            change: 0,
        };
        match self.look(&set, Fop::DirPart { dir }).await.map(|a| a.reply) {
            Ok(Reply::DirPart {
                entries,
                subdirs,
                mtime,
                change,
            }) if change > 0 || entries > 0 => Ok(Part {
                entries,
                subdirs,
                mtime,
                change,
            }),
            Ok(Reply::DirPart { .. }) | Err(Errno::ENOENT | Errno::ESTALE) => Ok(nothing),
            Ok(other) => Err(unexpected(&other)),
            Err(errno) => Err(errno),
        }
    }

    /// The sum of the change counters of a directory's parts on other sets than its own.
    pub(super) async fn other_counters(&self, dir: InodeId) -> Res<u64> {
        let home = self.info().layout.inode_set(dir);
        let parts = self.other_parts(dir, home).await?;
        Ok(counters(&parts))
    }

    /// The directory that holds this inode (the first of several; the root holds itself).
    ///
    /// # Errors
    /// ENOENT if it has no name left.
    pub async fn parent(&self, id: InodeId) -> Res<InodeId> {
        if id == InodeId::ROOT {
            return Ok(id);
        }
        let set = self.inode_set(id);
        match self.look(&set, Fop::Links { id }).await?.reply {
            Reply::Links { links, .. } => links
                .first()
                .map(|(parent, _)| *parent)
                .ok_or(Errno::ENOENT),
            other => Err(unexpected(&other)),
        }
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// EINVAL if it is none.
    pub async fn readlink(&self, id: InodeId) -> Res<Bytes> {
        let set = self.inode_set(id);
        match self.look(&set, Fop::ReadLink { id }).await?.reply {
            Reply::Bytes(target) => Ok(target),
            other => Err(unexpected(&other)),
        }
    }

    /// Part of a listing: entries with offsets above `after`, of about `max` bytes, at least one unless that was all.
    /// An offset starts with the slot of its name, so the sets are gone through in the order of the layout.
    ///
    /// # Errors
    /// ENOTDIR, ENOENT.
    pub async fn readdir(&self, dir: InodeId, after: u64, max: u32, plus: bool) -> Res<Listing> {
        let layout = self.info().layout.clone();
        let ranges = layout.ranges();
        let slot = (after >> 47) as Slot;
        let mut at = ranges.partition_point(|range| range.0 <= slot).max(1) - 1;
        let mut entries: Vec<DirEntry> = Vec::new();
        let mut room = i64::from(max.max(1));
        let mut width = 1;
        loop {
            let upto = (at + width).min(ranges.len());
            let pieces = (at..upto).map(|range| {
                let start = u64::from(ranges[range].0) << 47;
                let begin = after.max(start.saturating_sub(1));
                let end = ranges.get(range + 1).map(|next| u64::from(next.0) << 47);
                self.range(dir, ranges[range].1, (begin, end), room as u32, plus)
            });
            for piece in join_all(pieces).await {
                let piece = piece?;
                for entry in piece.entries {
                    if room <= 0 {
                        return Ok(Listing {
                            entries,
                            end: false,
                        });
                    }
                    room -= encoded_len(&entry, plus);
                    entries.push(entry);
                }
                if !piece.end {
                    if entries.is_empty() {
                        // A set gives at least one entry unless it has no more.
                        return Err(Errno::EIO);
                    }
                    return Ok(Listing {
                        entries,
                        end: false,
                    });
                }
            }
            at = upto;
            width = AT_ONCE;
            if at >= ranges.len() {
                return Ok(Listing { entries, end: true });
            }
            if room <= 0 {
                return Ok(Listing {
                    entries,
                    end: false,
                });
            }
        }
    }

    /// Entries of one range of slots; `end`: there are no more in it.
    async fn range(
        &self,
        dir: InodeId,
        set: SetIndex,
        (after, below): (u64, Option<u64>),
        max: u32,
        plus: bool,
    ) -> Res<Listing> {
        let fop = Fop::ReadDir {
            dir,
            after,
            max,
            plus,
        };
        let (mut entries, mut end) = match self.look(&self.set(set), fop).await {
            Ok(answered) => match answered.reply {
                Reply::Entries { entries, end } => (entries, end),
                other => return Err(unexpected(&other)),
            },
            // A set on which nothing was ever made in it may not know the directory.
            Err(Errno::ENOENT | Errno::ESTALE) if set != self.info().layout.inode_set(dir) => {
                (Vec::new(), true)
            }
            Err(errno) => return Err(errno),
        };
        if let Some(below) = below
            && entries.last().is_some_and(|entry| entry.offset >= below)
        {
            entries.retain(|entry| entry.offset < below);
            end = true;
        }
        let distributed = self.is_distributed();
        for entry in &mut entries {
            match &entry.attr {
                // Only one part of several.
                Some(attr) if distributed && attr.kind == FileKind::Dir => entry.attr = None,
                Some(attr) => self.seen(attr),
                None => {}
            }
        }
        Ok(Listing { entries, end })
    }
}

fn encoded_len(entry: &DirEntry, plus: bool) -> i64 {
    let attr = if plus && entry.attr.is_some() { 100 } else { 0 };
    entry.name.len() as i64 + 32 + attr
}

fn counters(parts: &[Part]) -> u64 {
    parts
        .iter()
        .fold(0, |sum, part| sum.wrapping_add(part.change))
}

/// A directory's attributes over all sets.
fn merge(own: Own, parts: &[Part]) -> Attr {
    let Own {
        mut attr, by_hand, ..
    } = own;
    let holds = match by_hand {
        Some((others, _)) if counters(parts) == others => true,
        Some((_, otherwise)) => {
            attr.mtime = otherwise;
            false
        }
        None => false,
    };
    for part in parts {
        attr.size = attr.size.saturating_add(part.entries);
        let subdirs = u32::try_from(part.subdirs).unwrap_or(u32::MAX);
        attr.nlink = attr.nlink.saturating_add(subdirs);
        attr.change = attr.change.wrapping_add(part.change);
        if !holds {
            attr.mtime = attr.mtime.max(part.mtime);
            attr.ctime = attr.ctime.max(part.mtime);
        }
    }
    attr
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(secs: i64) -> Time {
        Time { secs, nanos: 0 }
    }

    fn attr() -> Attr {
        Attr {
            gfid: Gfid::ROOT,
            kind: FileKind::Dir,
            perm: 0o755,
            nlink: 3,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 4,
            blocks: 0,
            atime: time(1),
            mtime: time(10),
            ctime: time(10),
            btime: time(1),
            change: 5,
            has_xattr: false,
        }
    }

    fn part(entries: u64, subdirs: u64, secs: i64, change: u64) -> Part {
        Part {
            entries,
            subdirs,
            mtime: time(secs),
            change,
        }
    }

    #[test]
    fn parts_add_up_and_the_latest_time_counts() {
        let own = Own {
            attr: attr(),
            cut: Cut::default(),
            by_hand: None,
        };
        let merged = merge(own, &[part(2, 1, 20, 7), part(1, 0, 15, 1)]);
        assert_eq!((merged.size, merged.nlink, merged.change), (7, 4, 13));
        assert_eq!((merged.mtime, merged.ctime), (time(20), time(20)));
    }

    #[test]
    fn a_time_set_by_hand_holds_until_a_part_changes() {
        let own = |others| Own {
            attr: attr(),
            cut: Cut::default(),
            by_hand: Some((others, time(12))),
        };
        let parts = [part(2, 1, 20, 7), part(1, 0, 15, 1)];
        assert_eq!(merge(own(8), &parts).mtime, time(10));
        assert_eq!(merge(own(7), &parts).mtime, time(20));
        assert_eq!(merge(own(7), &[part(0, 0, 3, 9)]).mtime, time(12));
    }
}
