//! Which keys a frame may hold: a Bloom filter of 10 bits for each key, so that one lookup in 120
//! reads a frame for nothing.

const BITS_PER_KEY: usize = 10;
const PROBES: u64 = 7;

/// The filter of some keys' hashes.
pub(crate) fn filter_of(hashes: &[u64]) -> Vec<u8> {
    let mut hashes = hashes.to_vec();
    hashes.sort_unstable();
    hashes.dedup();
    let mut filter = vec![0u8; (hashes.len() * BITS_PER_KEY).div_ceil(8)];
    for hash in hashes {
        for bit in bits(hash, filter.len()) {
            filter[bit / 8] |= 1 << (bit % 8);
        }
    }
    filter
}

/// Whether a key with this hash may be among those of the filter.
pub(crate) fn may_hold(filter: &[u8], hash: u64) -> bool {
    !filter.is_empty() && bits(hash, filter.len()).all(|bit| filter[bit / 8] & (1 << (bit % 8)) != 0)
}

/// The bits of a hash in a filter of so many bytes.
fn bits(hash: u64, bytes: usize) -> impl Iterator<Item = usize> {
    let (step, count) = (hash.rotate_left(32) | 1, bytes as u64 * 8);
    (0..PROBES).map(move |i| (hash.wrapping_add(step.wrapping_mul(i)) % count) as usize)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn random(i: u64) -> u64 {
        blake3::hash(&i.to_le_bytes()).as_bytes()[..8].try_into().map(u64::from_le_bytes).unwrap()
    }

    #[test]
    fn keys_are_found_and_few_others() {
        for count in [1, 10, 5000] {
            let hashes: Vec<u64> = (0..count).map(random).collect();
            let filter = filter_of(&hashes);
            assert!(hashes.iter().all(|h| may_hold(&filter, *h)));
            let wrong = (1_000_000..1_010_000).filter(|i| may_hold(&filter, random(*i))).count();
            assert!(wrong < 300, "{wrong} of 10000 with {count} keys");
        }
        assert!(!may_hold(&filter_of(&[]), 1));
    }
}
