//! Which parts of the extent area have space on the host: a file brick is sparse, and its file system may be full.
//!
//! Data goes only to regions for which the host has promised space, so that writing it cannot fail.

/// Blocks of a region (1 MiB).
pub const REGION_BLOCKS: u64 = 256;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Nothing is promised; may hold data all the same (from an earlier run).
    Unknown,
    /// All of it has space.
    Backed,
    /// Its space is being given back.
    Returning,
}

/// The regions of one extent area.
pub(super) struct Regions {
    blocks: u64,
    states: Vec<State>,
    /// Busy blocks of each.
    used: Vec<u16>,
    /// Regions that may have space on the host without being in use.
    returnable: Vec<bool>,
    backed_free: u64,
    /// Behind the last backed region.
    end: usize,
}

impl Regions {
    pub(super) fn new(blocks: u64) -> Self {
        let count = blocks.div_ceil(REGION_BLOCKS) as usize;
        Self {
            blocks,
            states: vec![State::Unknown; count],
            used: vec![0; count],
            returnable: vec![false; count],
            backed_free: 0,
            end: 0,
        }
    }

    fn size(&self, region: usize) -> u64 {
        REGION_BLOCKS.min(self.blocks - region as u64 * REGION_BLOCKS)
    }

    /// A block has become busy or free.
    pub(super) fn changed(&mut self, block: u64, busy: bool) {
        let region = (block / REGION_BLOCKS) as usize;
        let backed = self.states[region] == State::Backed;
        if busy {
            self.used[region] += 1;
            self.backed_free -= u64::from(backed);
            self.returnable[region] = true;
        } else {
            self.used[region] -= 1;
            self.backed_free += u64::from(backed);
        }
    }

    /// Free blocks that have space on the host.
    pub(super) fn backed_free(&self) -> u64 {
        self.backed_free
    }

    /// Block behind the last one that has space on the host.
    pub(super) fn end(&self) -> u64 {
        (self.end as u64 * REGION_BLOCKS).min(self.blocks)
    }

    /// Where to go on from `block`: itself if its region is backed.
    pub(super) fn skip(&self, block: u64) -> u64 {
        let region = (block / REGION_BLOCKS) as usize;
        let ahead = self.states[region..self.end.max(region)].iter();
        match ahead.take_while(|state| **state != State::Backed).count() {
            0 if self.is_backed(block) => block,
            unbacked => (region + unbacked.max(1)) as u64 * REGION_BLOCKS,
        }
    }

    pub(super) fn is_backed(&self, block: u64) -> bool {
        self.states[(block / REGION_BLOCKS) as usize] == State::Backed
    }

    /// The first region with free blocks that is not backed, and how many such follow it, at most `most`.
    pub(super) fn next_unbacked(&self, most: usize) -> Option<(usize, usize)> {
        let wanted = |region: usize| {
            self.states[region] == State::Unknown
                && u64::from(self.used[region]) < self.size(region)
        };
        let first = (0..self.states.len()).find(|region| wanted(*region))?;
        let more = (first..self.states.len()).take(most);
        Some((first, more.take_while(|region| wanted(*region)).count()))
    }

    /// The host has promised space for these regions.
    pub(super) fn back(&mut self, first: usize, count: usize) {
        for region in first..(first + count).min(self.states.len()) {
            if self.states[region] != State::Backed {
                self.states[region] = State::Backed;
                self.returnable[region] = true;
                self.backed_free += self.size(region) - u64::from(self.used[region]);
            }
            self.end = self.end.max(region + 1);
        }
    }

    /// Takes regions that are free altogether and may have space on the host, as long as `keep` free blocks stay
    /// backed: their space can be given back.
    pub(super) fn take_free(&mut self, keep: u64) -> Vec<usize> {
        let mut taken = Vec::new();
        for region in (0..self.states.len()).rev() {
            if self.used[region] > 0 || !self.returnable[region] {
                continue;
            }
            match self.states[region] {
                State::Returning => continue,
                State::Backed if self.backed_free < keep + self.size(region) => continue,
                State::Backed => self.backed_free -= self.size(region),
                State::Unknown => {}
            }
            self.states[region] = State::Returning;
            self.returnable[region] = false;
            taken.push(region);
        }
        taken.reverse();
        taken
    }

    /// The space of these regions has been given back.
    pub(super) fn returned(&mut self, regions: &[usize]) {
        for region in regions {
            self.states[*region] = State::Unknown;
        }
    }
}
