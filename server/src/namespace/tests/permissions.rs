//! What a session bound to a uid may do.

use mortar_protocol::attr::SetAttr;

use super::*;

const ROOT: InodeId = InodeId::ROOT;

/// A volume whose root holds `open` (1777, root's) and `private` (755, root's), used as uid 7, group 70.
fn bound() -> (Sets, Attr, Attr) {
    let mut v = Sets::new(1);
    let (open, private) = (v.dir(b"open"), v.dir(b"private"));
    let set = SetAttr {
        perm: Some(0o1777),
        ..SetAttr::default()
    };
    v.change(open.gfid.id, vec![InodeOp::SetAttr(set)], b"")
        .unwrap();
    (v, open, private)
}

fn become_user(v: &mut Sets, uid: u32) {
    v.bound = uid;
    v.cred = Cred {
        uid,
        gid: uid * 10,
        groups: vec![],
    };
}

#[test]
fn creating_and_removing_need_the_directory() {
    let (mut v, open, private) = bound();
    become_user(&mut v, 7);
    let refused_there = v.make(private.gfid.id, b"x", FileKind::File, 0o644);
    assert_eq!(refused_there, refused(Errno::EACCES));
    let mine = v.make(open.gfid.id, b"x", FileKind::File, 0o600).unwrap();
    assert_eq!(mine.uid, 7);
    let device = v.make(open.gfid.id, b"d", FileKind::BlockDevice, 0o600);
    assert_eq!(device, refused(Errno::EPERM));
    let gfid = v.draw(open.gfid.id, b"forged");
    let mut parts = v.new_parts(open.gfid.id, b"forged", gfid, FileKind::File, 0o4755);
    if let Part::InodeNew { uid, .. } = &mut parts[0] {
        *uid = 0;
    }
    assert_eq!(v.commit(0, parts), refused(Errno::EPERM));

    become_user(&mut v, 8);
    let parts = unlink_parts(open.gfid.id, b"x", mine.gfid, false);
    assert_eq!(v.commit(0, parts.clone()), refused(Errno::EPERM), "sticky");
    become_user(&mut v, 7);
    assert_eq!(v.commit(0, parts), Ok(vec![]));
}

#[test]
fn data_and_attributes_need_rights() {
    let (mut v, open, _) = bound();
    become_user(&mut v, 7);
    let mine = v.make(open.gfid.id, b"x", FileKind::File, 0o600).unwrap();
    let id = mine.gfid.id;
    let chmod = |perm| {
        vec![InodeOp::SetAttr(SetAttr {
            perm: Some(perm),
            ..SetAttr::default()
        })]
    };
    let chown = vec![InodeOp::SetAttr(SetAttr {
        uid: Some(8),
        ..SetAttr::default()
    })];
    v.write(id, 0, b"secret").unwrap();
    assert_eq!(v.change(id, chown, b""), refused(Errno::EPERM));
    become_user(&mut v, 8);
    assert_eq!(v.read(id, 0, 10), refused(Errno::EACCES));
    assert_eq!(v.write(id, 0, b"x"), refused(Errno::EACCES));
    assert_eq!(v.change(id, chmod(0o666), b""), refused(Errno::EPERM));
    become_user(&mut v, 7);
    v.change(id, chmod(0o4646), b"").unwrap();
    become_user(&mut v, 8);
    assert_eq!(v.read(id, 0, 10).unwrap(), b"secret");
    let after = v.write(id, 0, b"S").unwrap();
    assert_eq!(
        after.perm, 0o646,
        "setuid does not survive a stranger's write"
    );
    become_user(&mut v, 7);
    assert_eq!(v.look(ROOT, b"open"), Ok(open.gfid));
}

#[test]
fn a_list_entry_grants() {
    let (mut v, open, _) = bound();
    let file = v.make(open.gfid.id, b"x", FileKind::File, 0o600).unwrap();
    let id = file.gfid.id;
    v.write(id, 0, b"data").unwrap();
    // user::rw-, user:7:r--, group::---, mask::r--, other::---
    let mut acl = vec![2, 0, 0, 0];
    for (tag, perm, who) in [
        (1u16, 6u16, u32::MAX),
        (2, 4, 7),
        (4, 0, u32::MAX),
        (16, 4, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&perm.to_le_bytes());
        acl.extend_from_slice(&who.to_le_bytes());
    }
    let set = InodeOp::SetXattr {
        name: Bytes::from_static(b"system.posix_acl_access"),
        value: acl.into(),
        mode: mortar_protocol::fop::XattrMode::Set,
    };
    assert_eq!(v.change(id, vec![set], b"").unwrap().perm, 0o640);
    become_user(&mut v, 7);
    assert_eq!(v.read(id, 0, 10).unwrap(), b"data");
    assert_eq!(v.write(id, 0, b"x"), refused(Errno::EACCES));
    become_user(&mut v, 8);
    assert_eq!(v.read(id, 0, 10), refused(Errno::EACCES));
}
