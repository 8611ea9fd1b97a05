//! A compact form of a sparse image.
//!
//! ```text
//! magic "MORTARGI", length of the image u64, then for each page of 4 KiB that is not zero, in order:
//!   number u32, length of its form u16, its form
//! ```
//! All numbers are little-endian. A page's form is a list of pieces: `n` in 1..=127 is followed by that many bytes as they
//! are; `0x80 | n` stands for `n` groups of 8 zeros.

use std::sync::Arc;

use mortar_server::device::sim::SimDisk;

const MAGIC: &[u8; 8] = b"MORTARGI";
const PAGE: usize = 4096;
/// Zeros are counted in groups of so many.
const GROUP: usize = 8;
const MOST: usize = 127;

/// The compact form of what a disk of `len` bytes holds.
pub fn pack(disk: &SimDisk, len: u64) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&len.to_le_bytes());
    for (number, page) in disk.pages() {
        let form = squeeze(&page);
        out.extend_from_slice(&(number as u32).to_le_bytes());
        out.extend_from_slice(&(form.len() as u16).to_le_bytes());
        out.extend_from_slice(&form);
    }
    out
}

fn squeeze(page: &[u8; PAGE]) -> Vec<u8> {
    let mut form = Vec::new();
    let mut at = 0;
    let is_zero = |at: usize| page[at..at + GROUP].iter().all(|byte| *byte == 0);
    while at < PAGE {
        let from = at;
        if is_zero(at) {
            while at < PAGE && is_zero(at) && (at - from) / GROUP < MOST {
                at += GROUP;
            }
            form.push(0x80 | ((at - from) / GROUP) as u8);
        } else {
            while at < PAGE && !is_zero(at) && at - from + GROUP <= MOST {
                at += GROUP;
            }
            form.push((at - from) as u8);
            form.extend_from_slice(&page[from..at]);
        }
    }
    form
}

/// The disk that a compact form tells.
///
/// # Errors
/// If it is none.
pub fn unpack(bytes: &[u8]) -> Result<Arc<SimDisk>, String> {
    let mut rest = bytes;
    if take(&mut rest, 8)? != MAGIC {
        return Err("not a compact image".to_owned());
    }
    let len = u64::from_le_bytes(take(&mut rest, 8)?.try_into().unwrap_or_default());
    let mut pages = Vec::new();
    while !rest.is_empty() {
        let number = u32::from_le_bytes(take(&mut rest, 4)?.try_into().unwrap_or_default());
        let size = u16::from_le_bytes(take(&mut rest, 2)?.try_into().unwrap_or_default());
        pages.push((
            u64::from(number),
            expand(take(&mut rest, usize::from(size))?)?,
        ));
    }
    Ok(SimDisk::with_pages(len, pages))
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8], String> {
    let (taken, left) = rest.split_at_checked(count).ok_or("the image ends early")?;
    *rest = left;
    Ok(taken)
}

fn expand(mut form: &[u8]) -> Result<[u8; PAGE], String> {
    let mut page = [0; PAGE];
    let mut at = 0;
    while !form.is_empty() {
        let head = take(&mut form, 1)?[0];
        let count = usize::from(head & 0x7f);
        if head & 0x80 != 0 {
            at += count * GROUP;
        } else {
            let bytes = take(&mut form, count)?;
            let place = page.get_mut(at..at + count).ok_or("a page is too long")?;
            place.copy_from_slice(bytes);
            at += count;
        }
    }
    if at == PAGE {
        Ok(page)
    } else {
        Err(format!("a page of {at} bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mortar_server::device::Device;

    #[test]
    fn images_come_back_as_they_were() {
        let disk = SimDisk::new(1 << 20, 0);
        let text: Vec<u8> = (0..9_000)
            .map(|at| if at % 300 < 40 { 0 } else { at as u8 })
            .collect();
        disk.write_at(4_000, &text).expect("a write");
        disk.write_at((1 << 20) - 1, b"x").expect("a write");
        let packed = pack(&disk, 1 << 20);
        let again = unpack(&packed).expect("an image");
        assert_eq!(again.pages(), disk.pages());
        assert_eq!(again.len(), 1 << 20);
        assert!(unpack(&packed[..packed.len() - 1]).is_err());
    }
}
