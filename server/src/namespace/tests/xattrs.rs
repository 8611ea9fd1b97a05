//! Extended attributes and ACLs.

use mortar_protocol::attr::SetAttr;
use mortar_protocol::fop::XattrMode;

use super::*;

const ROOT: InodeId = InodeId::ROOT;
const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

fn set(name: &str, value: &[u8], mode: XattrMode) -> Vec<InodeOp> {
    vec![InodeOp::SetXattr {
        name: Bytes::copy_from_slice(name.as_bytes()),
        value: Bytes::copy_from_slice(value),
        mode,
    }]
}

fn remove(name: &str) -> Vec<InodeOp> {
    vec![InodeOp::RemoveXattr {
        name: Bytes::copy_from_slice(name.as_bytes()),
    }]
}

fn get(v: &Sets, id: InodeId, name: &str) -> Result<Bytes, Fault> {
    let name = Bytes::copy_from_slice(name.as_bytes());
    match v.ask(v.set_of(id), Fop::GetXattr { id, name })?.0 {
        Reply::Bytes(bytes) => Ok(bytes),
        other => panic!("{other:?}"),
    }
}

/// user::U, [user:7:N, mask::M,] group::G, other::O
fn acl(u: u16, named: Option<(u16, u16)>, g: u16, o: u16) -> Vec<u8> {
    let mut entries = vec![(1u16, u, u32::MAX)];
    if let Some((perm, _)) = named {
        entries.push((2, perm, 7));
    }
    entries.push((4, g, u32::MAX));
    if let Some((_, mask)) = named {
        entries.push((16, mask, u32::MAX));
    }
    entries.push((32, o, u32::MAX));
    let mut out = vec![2, 0, 0, 0];
    for (tag, perm, id) in entries {
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&perm.to_le_bytes());
        out.extend_from_slice(&id.to_le_bytes());
    }
    out
}

#[test]
fn set_get_list_remove() {
    let mut v = Sets::new(1);
    let file = v.file(b"file");
    let id = file.gfid.id;
    assert!(!file.has_xattr);
    assert_eq!(get(&v, id, "user.a"), refused(Errno::ENODATA));
    let after = v
        .change(id, set("user.a", b"1", XattrMode::Set), b"")
        .unwrap();
    assert!(after.has_xattr && after.ctime > file.ctime && after.mtime == file.mtime);
    v.change(id, set("trusted.b", b"", XattrMode::Create), b"")
        .unwrap();
    let again = v.change(id, set("user.a", b"2", XattrMode::Create), b"");
    assert_eq!(again, refused(Errno::EEXIST));
    let absent = v.change(id, set("user.c", b"2", XattrMode::Replace), b"");
    assert_eq!(absent, refused(Errno::ENODATA));
    v.change(id, set("user.a", b"two", XattrMode::Replace), b"")
        .unwrap();
    assert_eq!(get(&v, id, "user.a"), Ok(Bytes::from_static(b"two")));
    let list = v.ask(0, Fop::ListXattr { id }).unwrap().0;
    assert_eq!(
        list,
        Reply::Bytes(Bytes::from_static(b"trusted.b\0user.a\0"))
    );
    v.cred.uid = 5;
    let list = v.ask(0, Fop::ListXattr { id }).unwrap().0;
    assert_eq!(list, Reply::Bytes(Bytes::from_static(b"user.a\0")));
    v.change(id, remove("user.a"), b"").unwrap();
    assert_eq!(v.change(id, remove("user.a"), b""), refused(Errno::ENODATA));
    assert!(!v.change(id, remove("trusted.b"), b"").unwrap().has_xattr);
    assert!(!v.sets[0].records.keys().any(|key| key[0] == b'X'));
}

#[test]
fn bad_attributes_are_refused() {
    let mut v = Sets::new(1);
    let id = v.file(b"file").gfid.id;
    let long = format!("user.{}", "n".repeat(251));
    for (name, value, errno) in [
        ("other.x", 1, Errno::EOPNOTSUPP),
        ("user.", 1, Errno::EOPNOTSUPP),
        ("", 1, Errno::ERANGE),
        (long.as_str(), 1, Errno::ERANGE),
        ("user.x", 65_537, Errno::E2BIG),
        (ACCESS, 5, Errno::EOPNOTSUPP),
    ] {
        let ops = set(name, &vec![b'v'; value], XattrMode::Set);
        assert_eq!(v.change(id, ops, b""), refused(errno), "{name}");
    }
    let big = vec![0; 65_536];
    for n in 0..3 {
        let ops = set(&format!("user.{n}"), &big, XattrMode::Set);
        v.change(id, ops, b"").unwrap();
    }
    let ops = set("user.3", &big, XattrMode::Set);
    assert_eq!(v.change(id, ops, b""), refused(Errno::ENOSPC));
    let link = v.make(ROOT, b"link", FileKind::Symlink, 0o777).unwrap();
    let ops = set("user.x", b"v", XattrMode::Set);
    assert_eq!(v.change(link.gfid.id, ops, b""), refused(Errno::EPERM));
}

#[test]
fn an_access_list_and_the_mode_follow_each_other() {
    let mut v = Sets::new(1);
    let id = v.file(b"file").gfid.id;
    let list = acl(6, Some((7, 4)), 0, 1);
    let after = v
        .change(id, set(ACCESS, &list, XattrMode::Set), b"")
        .unwrap();
    assert_eq!((after.perm, after.has_xattr), (0o641, true));
    assert_eq!(get(&v, id, ACCESS), Ok(list.into()));
    let chmod = SetAttr {
        perm: Some(0o4770),
        ..SetAttr::default()
    };
    let after = v.change(id, vec![InodeOp::SetAttr(chmod)], b"").unwrap();
    assert_eq!(after.perm, 0o4770);
    assert_eq!(get(&v, id, ACCESS), Ok(acl(7, Some((7, 7)), 0, 0).into()));
    let plain = acl(6, None, 4, 4);
    let after = v
        .change(id, set(ACCESS, &plain, XattrMode::Set), b"")
        .unwrap();
    assert_eq!((after.perm, after.has_xattr), (0o4644, false));
    assert_eq!(v.change(id, remove(ACCESS), b"").unwrap().perm, 0o4644);
    let ops = set(DEFAULT, &plain, XattrMode::Set);
    assert_eq!(v.change(id, ops, b""), refused(Errno::EACCES));
}

#[test]
fn new_entries_inherit() {
    let mut v = Sets::new(1);
    let dir = v.dir(b"dir").gfid.id;
    let list = acl(7, Some((6, 7)), 5, 0);
    v.change(dir, set(DEFAULT, &list, XattrMode::Set), b"")
        .unwrap();
    let file = v.make(dir, b"file", FileKind::File, 0o664).unwrap();
    assert_eq!(file.perm, 0o660, "the umask does not count");
    let expected = acl(6, Some((6, 6)), 5, 0);
    assert_eq!(get(&v, file.gfid.id, ACCESS), Ok(expected.into()));
    assert_eq!(get(&v, file.gfid.id, DEFAULT), refused(Errno::ENODATA));
    let sub = v.make(dir, b"sub", FileKind::Dir, 0o777).unwrap();
    assert_eq!(sub.perm, 0o770);
    assert_eq!(get(&v, sub.gfid.id, DEFAULT), Ok(list.clone().into()));
    let link = v.make(dir, b"link", FileKind::Symlink, 0o777).unwrap();
    assert_eq!((link.perm, link.has_xattr), (0o777, false));

    v.change(dir, set(DEFAULT, &acl(7, None, 5, 0), XattrMode::Set), b"")
        .unwrap();
    let plain = v.make(dir, b"plain", FileKind::File, 0o666).unwrap();
    assert_eq!((plain.perm, plain.has_xattr), (0o640, false));
}

#[test]
fn setgid_directories_give_their_group() {
    let mut v = Sets::new(1);
    let dir = v.dir(b"dir").gfid.id;
    let set = SetAttr {
        perm: Some(0o2777),
        gid: Some(33),
        ..SetAttr::default()
    };
    v.change(dir, vec![InodeOp::SetAttr(set)], b"").unwrap();
    let file = v.make(dir, b"file", FileKind::File, 0o666).unwrap();
    assert_eq!((file.gid, file.perm), (33, 0o644));
    let sub = v.make(dir, b"sub", FileKind::Dir, 0o777).unwrap();
    assert_eq!((sub.gid, sub.perm), (33, 0o2755));
}

#[test]
fn a_hint_stands_for_a_parent_elsewhere() {
    let mut v = Sets::new(2);
    let dir = v.dir(b"dir").gfid.id;
    let other = 1 - v.set_of(dir);
    let name = (0..)
        .map(|n: u32| format!("n{n}"))
        .find(|name| v.name_set(dir, name.as_bytes()) == other)
        .unwrap();
    let gfid = v.draw(dir, name.as_bytes());
    let mut parts = v.new_parts(dir, name.as_bytes(), gfid, FileKind::Dir, 0o777);
    if let Part::InodeNew { hint, .. } = &mut parts[0] {
        *hint = Some(mortar_protocol::fop::ParentHint {
            setgid: Some(44),
            default_acl: Some(acl(7, None, 0, 0).into()),
        });
    }
    let made = v.commit(other, parts).unwrap()[0];
    assert_eq!((made.gid, made.perm, made.has_xattr), (44, 0o2700, true));
}
