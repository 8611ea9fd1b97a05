//! A facade with paths and files, for programs that use a volume as a library.
//!
//! Paths are bytes separated by `/`, from the root of the volume; symbolic links are followed as `open` does.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use mortar_protocol::attr::{Attr, Cred, FileKind};
use mortar_protocol::error::Errno;
use mortar_protocol::fop::DirEntry;
use mortar_protocol::ids::InodeId;
use parking_lot::Mutex;

use super::types::{FileOp, NewInode, RenameMode, Res};
use super::{Inner, Volume};

/// Symbolic links followed on one way.
const MAX_LINKS: usize = 40;
/// Bytes read or written with one request.
const CHUNK: usize = 4 << 20;
const LISTING: u32 = 128 << 10;

/// Files open through this facade.
#[derive(Default, Debug)]
pub(super) struct Opens(Mutex<BTreeMap<InodeId, usize>>);

impl Opens {
    pub(super) fn is_open(&self, id: InodeId) -> bool {
        self.0.lock().contains_key(&id)
    }

    fn add(&self, id: InodeId) {
        *self.0.lock().entry(id).or_default() += 1;
    }

    fn drop_one(&self, id: InodeId) {
        let mut opens = self.0.lock();
        if let Some(count) = opens.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                opens.remove(&id);
            }
        }
    }
}

/// A volume by paths, on behalf of one user.
#[derive(Clone, Debug)]
pub struct Paths {
    volume: Volume,
    cred: Cred,
}

/// An open file. It stays readable and writable when its last name is removed.
pub struct File {
    volume: Volume,
    cred: Cred,
    id: InodeId,
    inner: Arc<Inner>,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "File({})", self.id)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        self.inner.opens.drop_one(self.id);
    }
}

type Walk<'a> = Pin<Box<dyn Future<Output = Res<Attr>> + Send + 'a>>;

impl Volume {
    /// This volume by paths; what is made belongs to `cred`.
    pub fn paths(&self, cred: Cred) -> Paths {
        Paths {
            volume: self.clone(),
            cred,
        }
    }
}

fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
}

impl Paths {
    /// Attributes of what a path leads to, symbolic links followed.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, ELOOP.
    pub async fn stat(&self, path: &[u8]) -> Res<Attr> {
        let attr = self.walk(InodeId::ROOT, path, 0).await?;
        match attr.kind {
            FileKind::Dir => self.volume.getattr(attr.gfid.id).await,
            _ => Ok(attr),
        }
    }

    fn walk<'a>(&'a self, from: InodeId, path: &'a [u8], links: usize) -> Walk<'a> {
        Box::pin(async move {
            let start = if path.starts_with(b"/") {
                InodeId::ROOT
            } else {
                from
            };
            let mut at = self.volume.getattr(start).await?;
            for name in components(path) {
                if at.kind != FileKind::Dir {
                    return Err(Errno::ENOTDIR);
                }
                let dir = at.gfid.id;
                if name == b".." {
                    let above = self.volume.parent(dir).await?;
                    at = self.volume.getattr(above).await?;
                    continue;
                }
                let name = Bytes::copy_from_slice(name);
                at = self.volume.lookup(self.cred.clone(), dir, name).await?.attr;
                if at.kind == FileKind::Symlink {
                    if links >= MAX_LINKS {
                        return Err(Errno::ELOOP);
                    }
                    let target = self.volume.readlink(at.gfid.id).await?;
                    at = self.walk(dir, &target, links + 1).await?;
                }
            }
            Ok(at)
        })
    }

    /// The directory and the name that a path ends with.
    async fn split(&self, path: &[u8]) -> Res<(InodeId, Bytes)> {
        let name = components(path).last().ok_or(Errno::EEXIST)?;
        // `name` is a part of `path`.
        let start = name.as_ptr() as usize - path.as_ptr() as usize;
        let dir = self.walk(InodeId::ROOT, &path[..start], 0).await?;
        if dir.kind != FileKind::Dir {
            return Err(Errno::ENOTDIR);
        }
        Ok((dir.gfid.id, Bytes::copy_from_slice(name)))
    }

    /// Makes an inode.
    ///
    /// # Errors
    /// EEXIST, ENOENT, ENOTDIR.
    pub async fn make(&self, path: &[u8], new: NewInode) -> Res<Attr> {
        let (parent, name) = self.split(path).await?;
        self.volume
            .create(self.cred.clone(), parent, name, new)
            .await
    }

    /// Makes a directory, and those above it, unless they are there.
    ///
    /// # Errors
    /// ENOTDIR if something else is in the way.
    pub async fn create_dir_all(&self, path: &[u8]) -> Res<InodeId> {
        let mut at = InodeId::ROOT;
        for name in components(path) {
            let name = Bytes::copy_from_slice(name);
            let found = self.volume.lookup(self.cred.clone(), at, name.clone());
            let attr = match found.await {
                Ok(found) => found.attr,
                Err(Errno::ENOENT) => {
                    let new = NewInode::dir(0o755);
                    let made = self.volume.create(self.cred.clone(), at, name.clone(), new);
                    match made.await {
                        // Somebody else was faster.
                        Err(Errno::EEXIST) => {
                            let found = self.volume.lookup(self.cred.clone(), at, name);
                            found.await?.attr
                        }
                        other => other?,
                    }
                }
                Err(errno) => return Err(errno),
            };
            if attr.kind != FileKind::Dir {
                return Err(Errno::ENOTDIR);
            }
            at = attr.gfid.id;
        }
        Ok(at)
    }

    /// Opens a file.
    ///
    /// # Errors
    /// ENOENT; EISDIR.
    pub async fn open(&self, path: &[u8]) -> Res<File> {
        let attr = self.walk(InodeId::ROOT, path, 0).await?;
        if attr.kind == FileKind::Dir {
            return Err(Errno::EISDIR);
        }
        Ok(self.file(attr.gfid.id))
    }

    /// Opens a file, made if it is not there.
    ///
    /// # Errors
    /// EISDIR; as [`Self::make`].
    pub async fn create(&self, path: &[u8], perm: u32) -> Res<File> {
        match self.make(path, NewInode::file(perm)).await {
            Ok(attr) => Ok(self.file(attr.gfid.id)),
            Err(Errno::EEXIST) => self.open(path).await,
            Err(errno) => Err(errno),
        }
    }

    fn file(&self, id: InodeId) -> File {
        self.volume.0.opens.add(id);
        File {
            volume: self.volume.clone(),
            cred: self.cred.clone(),
            id,
            inner: Arc::clone(&self.volume.0),
        }
    }

    /// The contents of a file.
    ///
    /// # Errors
    /// As [`Self::open`] and [`File::read_at`].
    pub async fn read(&self, path: &[u8]) -> Res<Bytes> {
        let file = self.open(path).await?;
        file.read_all().await
    }

    /// Makes a file with these contents, or replaces them.
    ///
    /// # Errors
    /// As [`Self::create`] and [`File::write_at`].
    pub async fn write(&self, path: &[u8], contents: Bytes) -> Res<()> {
        let file = self.create(path, 0o644).await?;
        file.set_len(0).await?;
        file.write_at(0, contents).await
    }

    /// All entries of a directory.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR.
    pub async fn list(&self, path: &[u8]) -> Res<Vec<DirEntry>> {
        let dir = self.walk(InodeId::ROOT, path, 0).await?.gfid.id;
        let mut entries = Vec::new();
        let mut after = 0;
        loop {
            let part = self.volume.readdir(dir, after, LISTING, false).await?;
            after = part.entries.last().map_or(after, |entry| entry.offset);
            entries.extend(part.entries);
            if part.end {
                return Ok(entries);
            }
        }
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// EINVAL if it is none.
    pub async fn read_link(&self, path: &[u8]) -> Res<Bytes> {
        let (parent, name) = self.split(path).await?;
        let found = self.volume.lookup(self.cred.clone(), parent, name).await?;
        self.volume.readlink(found.attr.gfid.id).await
    }

    /// Removes a name that is not a directory's.
    ///
    /// # Errors
    /// ENOENT, EISDIR.
    pub async fn remove_file(&self, path: &[u8]) -> Res<()> {
        self.remove(path, false).await
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, ENOTEMPTY.
    pub async fn remove_dir(&self, path: &[u8]) -> Res<()> {
        self.remove(path, true).await
    }

    async fn remove(&self, path: &[u8], dir: bool) -> Res<()> {
        let (parent, name) = self.split(path).await?;
        let removed = self.volume.remove(self.cred.clone(), parent, name, dir);
        removed.await.map(drop)
    }

    /// Renames; what is in the way is replaced as `rename` does.
    ///
    /// # Errors
    /// As [`Volume::rename`].
    pub async fn rename(&self, from: &[u8], to: &[u8]) -> Res<()> {
        let (from, to) = (self.split(from).await?, self.split(to).await?);
        let renamed = self
            .volume
            .rename(self.cred.clone(), from, to, RenameMode::Replace);
        renamed.await.map(drop)
    }

    /// Gives a file another name.
    ///
    /// # Errors
    /// As [`Volume::link`].
    pub async fn hard_link(&self, path: &[u8], new: &[u8]) -> Res<()> {
        let attr = self.walk(InodeId::ROOT, path, 0).await?;
        let (parent, name) = self.split(new).await?;
        let linked = self
            .volume
            .link(self.cred.clone(), attr.gfid.id, parent, name);
        linked.await.map(drop)
    }
}

impl File {
    /// Its inode.
    pub fn id(&self) -> InodeId {
        self.id
    }

    /// Its attributes.
    ///
    /// # Errors
    /// ENOTCONN.
    pub async fn stat(&self) -> Res<Attr> {
        self.volume.getattr(self.id).await
    }

    /// Up to `len` bytes from `offset`; fewer at the end of the file only.
    ///
    /// # Errors
    /// EIO.
    pub async fn read_at(&self, offset: u64, len: u32) -> Res<Bytes> {
        self.volume.read(self.id, offset, len).await
    }

    /// All of it.
    ///
    /// # Errors
    /// EIO.
    pub async fn read_all(&self) -> Res<Bytes> {
        let first = self.read_at(0, CHUNK as u32).await?;
        if first.len() < CHUNK {
            return Ok(first);
        }
        let mut all = bytes::BytesMut::from(&first[..]);
        loop {
            let more = self.read_at(all.len() as u64, CHUNK as u32).await?;
            all.extend_from_slice(&more);
            if more.len() < CHUNK {
                return Ok(all.freeze());
            }
        }
    }

    /// Writes all of `data` at `offset`.
    ///
    /// # Errors
    /// ENOSPC, EFBIG.
    pub async fn write_at(&self, offset: u64, data: Bytes) -> Res<()> {
        let mut at = 0;
        while at < data.len() {
            let end = data.len().min(at + CHUNK);
            let data = data.slice(at..end);
            let offset = offset + at as u64;
            self.change(FileOp::Write { offset, data }).await?;
            at = end;
        }
        Ok(())
    }

    /// Writes at the end and says where that was.
    ///
    /// # Errors
    /// ENOSPC, EFBIG.
    pub async fn append(&self, data: Bytes) -> Res<u64> {
        let time = self.volume.env().wall();
        let ops = vec![FileOp::Append { data }];
        let cred = self.cred.clone();
        let changed = self.volume.change(cred, self.id, ops, time, false).await?;
        changed.appended_at.ok_or(Errno::EIO)
    }

    /// Sets the size.
    ///
    /// # Errors
    /// EFBIG.
    pub async fn set_len(&self, size: u64) -> Res<()> {
        self.change(FileOp::Truncate { size }).await
    }

    async fn change(&self, op: FileOp) -> Res<()> {
        let time = self.volume.env().wall();
        let cred = self.cred.clone();
        let changed = self.volume.change(cred, self.id, vec![op], time, false);
        changed.await.map(drop)
    }

    /// Until everything written, and the file's name, is on the medium of every member.
    ///
    /// # Errors
    /// EIO, once, if some of it is lost.
    pub async fn sync(&self) -> Res<()> {
        self.volume.fsync(self.id).await
    }
}
