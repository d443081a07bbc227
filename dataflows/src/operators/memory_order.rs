//! The order in which a map's entries lie in memory.
//!
//! An epoch's keys that are looked up in that order make one pass over a map that is larger than the caches, where in any
//! other order each look-up waits for memory, and for the page that it is on.

use std::hash::{BuildHasher, Hash};

use foldhash::HashMap;
use foldhash::fast::RandomState;

/// Tells where keys stand in the memory of a map.
///
/// Maps of the standard library find a key's bucket by the low bits of its hash. Were that to change, look-ups
/// would be as slow as in any order, and as right.
pub(super) struct MemoryOrder {
    hashing: RandomState,
    bits: u32,
}

impl MemoryOrder {
    /// The order of this map as it is now.
    pub(super) fn of<K, V>(map: &HashMap<K, V>) -> Self {
        // Seven of eight buckets are filled at most.
        let buckets = (map.capacity() * 8 / 7).next_power_of_two();
        Self {
            hashing: map.hasher().clone(),
            bits: buckets.trailing_zeros(),
        }
    }

    /// A number by which keys are sorted; equal for equal keys.
    pub(super) fn place<K: Hash>(&self, key: &K) -> u64 {
        self.hashing.hash_one(key).rotate_right(self.bits)
    }
}
