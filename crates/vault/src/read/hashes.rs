//! Hashes of keys that are compared in one process only.

use foldhash::quality::RandomState;
use model::Batch;
use std::hash::BuildHasher;

/// Hashes the keys of one kind space of a collection, with a secret of its own: whoever writes documents
/// cannot make many hashes alike. Costs a third of what the hashes of a vault cost.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hashes(RandomState);

impl Hashes {
    /// The hash of a key.
    #[inline]
    pub fn of(&self, key: &[u8]) -> u64 {
        self.0.hash_one(key)
    }

    /// The hashes of all keys of a batch, in the place of what is there.
    pub fn of_batch(&self, batch: &Batch, into: &mut Vec<u64>) {
        into.clear();
        into.extend((0..batch.len()).map(|i| self.of(batch.key_of(i))));
    }
}
