//! Bad input: damaged, truncated and forged brick images, messages and files nobody in his right mind would write.
//! Nothing panics, what is refused is refused with a reason and changes nothing, and no read shows bytes that were not
//! written.
//!
//! `HOSTILE_SEED` and `HOSTILE_ROUNDS` vary and lengthen the runs.

mod commands;
mod images;
mod messages;
mod peers;

/// Numbers of a seeded sequence.
struct Draw(u64);

impl Draw {
    fn new(seed: u64) -> Self {
        Self(seed ^ number("HOSTILE_SEED", 0))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

fn number(variable: &str, default: u64) -> u64 {
    let text = std::env::var(variable).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn rounds(default: u64) -> u64 {
    number("HOSTILE_ROUNDS", default)
}

/// The text of a refusal or problem; it must say something.
fn said(text: &str) {
    assert!(text.len() > 8, "{text:?} says nothing");
}

/// Bytes of a message, changed in one of several ways.
fn mutated(bytes: &[u8], draw: &mut Draw) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=draw.below(3) {
        let at = draw.below(bytes.len() + 1);
        match draw.below(6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, draw.next() as u8),
            // The longest numbers there are.
            2 => {
                let long = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
                let end = (at + 1 + draw.below(4)).min(bytes.len());
                bytes.splice(at.min(end)..end, long);
            }
            3 => bytes.extend((0..draw.below(40)).map(|_| draw.next() as u8)),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = draw.next() as u8;
                }
            }
        }
    }
    bytes
}
