//! Answers to the kernel.

use std::time::Duration;

use bytes::Bytes;
use fuser::{Generation, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyWrite, ReplyXattr};
use mortar_protocol::attr::Attr;

use super::convert::{attr, errno};
use crate::vfs::{Entry, Res};

pub(super) fn generation(attr: &Attr) -> Generation {
    Generation(attr.gfid.generation)
}

pub(super) fn reply_entry(reply: ReplyEntry, result: Res<Entry>) {
    match result {
        Ok(entry) => reply.entry_with_ttls(
            &entry.attr_ttl,
            &entry.entry_ttl,
            &attr(&entry.attr),
            generation(&entry.attr),
        ),
        Err(error) => reply.error(errno(error)),
    }
}

pub(super) fn reply_attr(reply: ReplyAttr, result: Res<(Attr, Duration)>) {
    match result {
        Ok((found, ttl)) => reply.attr(&ttl, &attr(&found)),
        Err(error) => reply.error(errno(error)),
    }
}

pub(super) fn reply_empty(reply: ReplyEmpty, result: Res<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

pub(super) fn reply_data(reply: ReplyData, result: Res<Bytes>) {
    match result {
        Ok(data) => reply.data(&data),
        Err(error) => reply.error(errno(error)),
    }
}

pub(super) fn reply_written(reply: ReplyWrite, len: u32, result: Res<()>) {
    match result {
        Ok(()) => reply.written(len),
        Err(error) => reply.error(errno(error)),
    }
}

/// Answers getxattr and listxattr: the size alone if none was given.
pub(super) fn reply_xattr(reply: ReplyXattr, size: u32, result: Res<Bytes>) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(fuser::Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(errno(error)),
    }
}
