//! Whether a record of the namespace can be read.

use mortar_protocol::error::Fault;
use mortar_protocol::fop::Cut;
use serde::de::DeserializeOwned;

use crate::namespace::records::{
    Claims, Counters, Decision, DirPart, Dirent, Holder, Inode, Intent, Locks, Orphan, decode,
    parse_dirent_key,
};

/// What is wrong with a record; `None` also for records of other layers.
pub(super) fn problem(key: &[u8], value: &[u8]) -> Option<String> {
    fn reads<T: DeserializeOwned>(value: &[u8]) -> Result<(), Fault> {
        decode::<T>(value).map(drop)
    }
    let (letter, _) = key.split_first()?;
    let (what, result) = match letter {
        b'I' => ("inode", reads::<Inode>(value)),
        b'D' => ("directory entry", reads::<Dirent>(value)),
        b'P' => ("directory", reads::<DirPart>(value)),
        b'U' => ("cut number", reads::<Cut>(value)),
        b'L' => ("locks", reads::<Locks>(value)),
        b'O' => ("orphan", reads::<Orphan>(value)),
        b'T' => ("transaction", reads::<Intent>(value)),
        b'C' => ("decision", reads::<Decision>(value)),
        b'K' => ("lock of a record", reads::<Vec<Holder>>(value)),
        b'N' => ("counters", reads::<Counters>(value)),
        b'W' => ("claims", reads::<Claims>(value)),
        _ => return None,
    };
    let well_formed = match letter {
        b'D' => parse_dirent_key(key).is_some(),
        b'I' | b'P' | b'U' | b'L' | b'O' => key.len() == 9,
        _ => true,
    };
    if result.is_ok() && well_formed {
        return None;
    }
    let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("{what} record {key} is damaged"))
}
