//! POSIX access control lists, in the encoding of the `system.posix_acl_*` attributes (little-endian: version 2, then
//! tag, permissions and id of each entry).

use bytes::Bytes;
use mortar_protocol::attr::Cred;
use mortar_protocol::error::{Errno, Fault};

/// Attribute that holds a file's ACL.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
/// Attribute that holds what new entries of a directory inherit.
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

/// A valid list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Acl(Vec<Entry>);

impl Acl {
    /// Decodes an attribute's value; `None` for a list without entries, which means "no list".
    ///
    /// # Errors
    /// EINVAL (EOPNOTSUPP for another version) if it is malformed, as Linux answers.
    pub(super) fn parse(value: &[u8]) -> Result<Option<Self>, Fault> {
        let (head, rest) = value
            .split_first_chunk::<4>()
            .ok_or(Fault::Refused(Errno::EINVAL))?;
        if u32::from_le_bytes(*head) != VERSION {
            return Err(Errno::EOPNOTSUPP.into());
        }
        if rest.len() % 8 != 0 {
            return Err(Errno::EINVAL.into());
        }
        let entries: Vec<Entry> = rest
            .chunks_exact(8)
            .map(|e| Entry {
                tag: u16::from_le_bytes([e[0], e[1]]),
                perm: u16::from_le_bytes([e[2], e[3]]),
                id: u32::from_le_bytes([e[4], e[5], e[6], e[7]]),
            })
            .collect();
        if entries.is_empty() {
            return Ok(None);
        }
        let acl = Self(entries);
        match acl.is_valid() {
            true => Ok(Some(acl)),
            false => Err(Errno::EINVAL.into()),
        }
    }

    fn is_valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|e| e.tag == tag).count();
        let known = self.0.iter().all(|e| {
            e.perm <= 7 && [USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER].contains(&e.tag)
        });
        let named = count(USER) + count(GROUP) > 0;
        known
            && self.0.windows(2).all(|pair| pair[0].tag <= pair[1].tag)
            && [USER_OBJ, GROUP_OBJ, OTHER]
                .iter()
                .all(|tag| count(*tag) == 1)
            && (count(MASK) == 1 || (count(MASK) == 0 && !named))
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut out = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            out.extend_from_slice(&entry.tag.to_le_bytes());
            out.extend_from_slice(&entry.perm.to_le_bytes());
            out.extend_from_slice(&entry.id.to_le_bytes());
        }
        Bytes::from(out)
    }

    fn perm(&self, tag: u16) -> Option<u16> {
        self.0.iter().find(|e| e.tag == tag).map(|e| e.perm)
    }

    fn change(&mut self, tag: u16, f: impl Fn(u16) -> u16) {
        for entry in self.0.iter_mut().filter(|e| e.tag == tag) {
            entry.perm = f(entry.perm);
        }
    }

    fn group_class(&self) -> u16 {
        match self.perm(MASK) {
            Some(_) => MASK,
            None => GROUP_OBJ,
        }
    }

    /// The nine permission bits that the list stands for.
    pub(super) fn mode(&self) -> u32 {
        let bits = |tag| u32::from(self.perm(tag).unwrap_or(0));
        bits(USER_OBJ) << 6 | bits(self.group_class()) << 3 | bits(OTHER)
    }

    /// Whether it says no more than the permission bits.
    pub(super) fn is_plain(&self) -> bool {
        self.0.len() == 3
    }

    /// What chmod does to it.
    pub(super) fn chmod(&mut self, perm: u32) {
        let class = self.group_class();
        self.change(USER_OBJ, |_| (perm >> 6 & 7) as u16);
        self.change(class, |_| (perm >> 3 & 7) as u16);
        self.change(OTHER, |_| (perm & 7) as u16);
    }

    /// Makes an inherited list that of a new file created with `perm`; its mode then is the file's.
    pub(super) fn restrict(&mut self, perm: u32) {
        let class = self.group_class();
        self.change(USER_OBJ, |old| old & (perm >> 6 & 7) as u16);
        self.change(class, |old| old & (perm >> 3 & 7) as u16);
        self.change(OTHER, |old| old & (perm & 7) as u16);
    }

    /// Whether a caller who does not own the file may do `want` (bits 4, 2, 1) to it.
    pub(super) fn permits(&self, gid: u32, cred: &Cred, want: u32) -> bool {
        let mask = self.perm(MASK).unwrap_or(7);
        let grants = |perm: u16| u32::from(perm & mask) & want == want;
        if let Some(user) = self.0.iter().find(|e| e.tag == USER && e.id == cred.uid) {
            return grants(user.perm);
        }
        let mut member = false;
        for entry in &self.0 {
            let matches = match entry.tag {
                GROUP_OBJ => cred.in_group(gid),
                GROUP => cred.in_group(entry.id),
                _ => false,
            };
            if matches && grants(entry.perm) {
                return true;
            }
            member |= matches;
        }
        !member && u32::from(self.perm(OTHER).unwrap_or(0)) & want == want
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(in super::super) fn value(entries: &[(u16, u16, u32)]) -> Bytes {
        Acl(entries
            .iter()
            .map(|(tag, perm, id)| Entry {
                tag: *tag,
                perm: *perm,
                id: *id,
            })
            .collect())
        .encode()
    }

    #[test]
    fn parse_refuses_what_linux_refuses() {
        assert_eq!(Acl::parse(&value(&[])), Ok(None));
        for bad in [
            value(&[(USER_OBJ, 7, 0), (GROUP_OBJ, 5, 0)]),
            value(&[
                (USER_OBJ, 7, 0),
                (USER, 7, 5),
                (GROUP_OBJ, 5, 0),
                (OTHER, 0, 0),
            ]),
            value(&[(GROUP_OBJ, 7, 0), (USER_OBJ, 5, 0), (OTHER, 0, 0)]),
            value(&[(USER_OBJ, 9, 0), (GROUP_OBJ, 5, 0), (OTHER, 0, 0)]),
            Bytes::from_static(b"\x02\0\0\0abc"),
            Bytes::from_static(b"\x02"),
        ] {
            assert_eq!(Acl::parse(&bad), Err(Errno::EINVAL.into()), "{bad:?}");
        }
        assert_eq!(Acl::parse(b"\x03\0\0\0"), Err(Errno::EOPNOTSUPP.into()));
    }

    #[test]
    fn mask_is_the_group_class() {
        let bytes = value(&[
            (USER_OBJ, 7, 0),
            (USER, 6, 10),
            (GROUP_OBJ, 5, 0),
            (MASK, 4, 0),
            (OTHER, 1, 0),
        ]);
        let mut acl = Acl::parse(&bytes).unwrap().unwrap();
        assert_eq!(acl.encode(), bytes);
        assert_eq!(acl.mode(), 0o741);
        assert!(!acl.is_plain());
        let user = Cred {
            uid: 10,
            gid: 9,
            groups: vec![],
        };
        assert!(acl.permits(1, &user, 4));
        assert!(!acl.permits(1, &user, 2), "masked");
        acl.chmod(0o621);
        assert_eq!(acl.mode(), 0o621);
        assert!(acl.permits(1, &user, 2));
        acl.restrict(0o400);
        assert_eq!(acl.mode(), 0o400);
    }

    #[test]
    fn a_group_that_is_denied_does_not_fall_to_other() {
        let bytes = value(&[(USER_OBJ, 7, 0), (GROUP_OBJ, 0, 0), (OTHER, 7, 0)]);
        let acl = Acl::parse(&bytes).unwrap().unwrap();
        let cred = |gid| Cred {
            uid: 10,
            gid,
            groups: vec![],
        };
        assert!(!acl.permits(5, &cred(5), 4));
        assert!(acl.permits(5, &cred(6), 4));
    }
}
