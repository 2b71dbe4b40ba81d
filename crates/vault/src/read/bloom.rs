//! Tells of most keys in one look that nothing has changed them: a Bloom filter whose bits for one
//! key all stand in one line of the processor's cache.

/// Words of a line.
const LINE: usize = 8;
/// The most bits for one key.
const PROBES: u32 = 7;

/// Which hashes may be in a set.
#[derive(Debug)]
pub(crate) struct Bloom {
    lines: Vec<[u64; LINE]>,
    probes: u32,
}

impl Bloom {
    /// A filter for so many hashes, of at most so many bytes: with 2 bytes for each it errs once in
    /// about 1,500 times; with fewer more often.
    pub fn new(count: u64, most: usize) -> Self {
        let bytes = usize::try_from(count.saturating_mul(2)).unwrap_or(usize::MAX).min(most);
        // Of the bits that there are for each, a little more than half set tells most.
        let probes = (bytes as u64 * 8 * 7 / 10).checked_div(count).unwrap_or(1).clamp(1, PROBES.into()) as u32;
        Bloom { lines: vec![[0; LINE]; bytes.div_ceil(LINE * 8).max(1)], probes }
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> u64 {
        (self.lines.len() * LINE * 8) as u64
    }

    /// Brings near to the processor what tells of some hashes, all at once.
    pub fn near(&self, hashes: &[u64]) {
        std::hint::black_box(hashes.iter().fold(0, |all, hash| all ^ self.lines[self.line(*hash)][0]));
    }

    pub fn insert(&mut self, hash: u64) {
        let line = self.line(hash);
        bits(hash, self.probes).for_each(|(word, bit)| self.lines[line][word] |= bit);
    }

    /// Whether a hash may be in it.
    pub fn may_hold(&self, hash: u64) -> bool {
        let line = &self.lines[self.line(hash)];
        bits(hash, self.probes).all(|(word, bit)| line[word] & bit != 0)
    }

    fn line(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.lines.len() as u128) >> 64) as usize
    }
}

/// The words of a line and the bits in them: from other bits of the hash than those that tell the line.
fn bits(hash: u64, probes: u32) -> impl Iterator<Item = (usize, u64)> {
    let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..probes).map(move |i| {
        let nine = mixed >> (i * 9) & 511;
        ((nine >> 6) as usize, 1 << (nine & 63))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn random(i: u64) -> u64 {
        blake3::hash(&i.to_le_bytes()).as_bytes()[..8].try_into().map(u64::from_le_bytes).unwrap()
    }

    #[test]
    fn all_that_is_in_it_is_found_and_little_else() {
        for (count, most, errors) in
            [(0, 1000, 0), (1, 1000, 1), (100_000, 1 << 20, 400), (100_000, 100_000, 12_000), (100_000, 25_000, 45_000)]
        {
            let mut bloom = Bloom::new(count, most);
            (0..count).for_each(|i| bloom.insert(random(i)));
            assert!((0..count).all(|i| bloom.may_hold(random(i))));
            let wrong = (1_000_000..1_100_000).filter(|i| bloom.may_hold(random(*i))).count();
            assert!(wrong <= errors, "{wrong} of 100,000 with {count} in {most}");
            assert!(bloom.bytes() <= most as u64 + 64);
        }
    }
}
