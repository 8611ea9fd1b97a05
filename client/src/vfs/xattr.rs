//! Extended attributes.

use bytes::Bytes;
use mortar_protocol::attr::Cred;
use mortar_protocol::error::Errno;
use mortar_protocol::fop::XattrMode;
use mortar_protocol::ids::InodeId;
use mortar_protocol::limits::{MAX_XATTR_NAME, MAX_XATTR_VALUE};

use super::Vfs;
use super::backend::{Backend, FileOp, Res};
use crate::volume::questions::is_question;

/// The extended attributes that hold ACLs.
const ACL_NAMES: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

impl<B: Backend> Vfs<B> {
    /// Whether it is known that an inode has no extended attributes.
    pub fn has_no_xattr(&self, id: InodeId) -> bool {
        let core = &self.0;
        if let Some(node) = core.node(id)
            && let Some((attr, _)) = core.shown(&node)
        {
            return !attr.has_xattr;
        }
        core.recent.fact(id).is_some_and(|fact| {
            !fact.has_xattr && core.now().since(fact.at) <= core.options.attr_ttl
        })
    }

    /// Value of an extended attribute.
    ///
    /// # Errors
    ///
    /// ENODATA if it is absent; those of the volume.
    pub async fn getxattr(&self, id: InodeId, name: Bytes) -> Res<Bytes> {
        if self.has_no_xattr(id) && !is_question(&name) {
            return Err(Errno::ENODATA);
        }
        self.0.backend.getxattr(id, name).await
    }

    /// Names of all extended attributes, each followed by a zero byte.
    ///
    /// # Errors
    ///
    /// Those of the volume.
    pub async fn listxattr(&self, id: InodeId) -> Res<Bytes> {
        if self.has_no_xattr(id) {
            return Ok(Bytes::new());
        }
        self.0.backend.listxattr(id).await
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    ///
    /// ERANGE and E2BIG for sizes Linux does not allow; those of the volume.
    pub async fn setxattr(
        &self,
        cred: Cred,
        id: InodeId,
        name: Bytes,
        value: Bytes,
        mode: XattrMode,
    ) -> Res<()> {
        if name.is_empty() || name.len() > MAX_XATTR_NAME {
            return Err(Errno::ERANGE);
        }
        if value.len() > MAX_XATTR_VALUE {
            return Err(Errno::E2BIG);
        }
        // ACLs change permission bits and what is checked, which the kernel keeps.
        let acl = ACL_NAMES.contains(&&name[..]);
        let op = FileOp::SetXattr { name, value, mode };
        self.0.change_now(cred, id, vec![op], false).await?;
        if acl {
            self.0.recent.forget(id);
        }
        Ok(())
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    ///
    /// ENODATA if it is absent; those of the volume.
    pub async fn removexattr(&self, cred: Cred, id: InodeId, name: Bytes) -> Res<()> {
        let op = FileOp::RemoveXattr { name };
        self.0.change_now(cred, id, vec![op], false).await.map(drop)
    }
}
