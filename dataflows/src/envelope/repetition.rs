//! Which events tell again what has been told, because their connector went back.
//!
//! PostgreSQL's events come in the order of commits and, within one, of the log. An event at or before the last one in
//! that order is a repetition, unless it was made later: then the database itself went back, to a backup.

use std::cmp::Ordering;
use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use foldhash::{HashMap, HashMapExt};

use super::event::EventOrder;

/// Up to where each connector has told a partition what its database did.
pub(super) struct Repetitions {
    /// By a hash of the partition and the connector's name: several may fill one topic.
    heard: HashMap<u64, Heard>,
    hashing: RandomState,
}

/// The last event that a connector told a partition.
#[derive(Default)]
struct Heard {
    /// The commit before its own, and its place in the log.
    last: (Option<i64>, i64),
    committed_ms: i64,
    /// The events at that very place.
    events: Vec<u64>,
    /// Whether the connector went back and has not come to that place again.
    goes_back: bool,
}

/// What tells an event from others at its place in the log.
#[derive(Hash)]
pub(super) struct Identity<'e> {
    pub(super) op: Option<&'e str>,
    pub(super) key: Option<&'e [u8]>,
    /// Of a table without a key, digests of the row as it was and as it is; equal events are told apart only by whether the
    /// connector went back.
    pub(super) rows: Option<[Option<u128>; 2]>,
}

impl Repetitions {
    pub(super) fn new() -> Self {
        Self {
            heard: HashMap::new(),
            hashing: RandomState::default(),
        }
    }

    /// Forgets all that was told.
    pub(super) fn clear(&mut self) {
        self.heard.clear();
    }

    /// Whether an event of a partition is a repetition; otherwise takes note of it.
    pub(super) fn contain(
        &mut self,
        partition: &str,
        order: &EventOrder<'_>,
        event: &Identity<'_>,
    ) -> bool {
        let streamed = matches!(event.op, Some("c" | "u" | "d" | "t"));
        if !streamed || order.lsn == 0 || order.commit.is_none() {
            return false;
        }
        let teller = self.hashing.hash_one((partition, &order.connector));
        let heard = self.heard.entry(teller).or_default();
        // One change of a key is two events at the same place, and so are rows that were copied in together.
        let identity = self.hashing.hash_one(event);
        let now = (order.commit, order.lsn);
        match now.cmp(&heard.last) {
            _ if order.committed_ms > heard.committed_ms => heard.goes_back = false,
            Ordering::Less => {
                heard.goes_back = true;
                return true;
            }
            Ordering::Equal if heard.events.contains(&identity) => {
                if event.rows.is_none() || heard.goes_back {
                    return true;
                }
            }
            Ordering::Equal | Ordering::Greater => {}
        }
        if now != heard.last {
            heard.events.clear();
            heard.goes_back = false;
        }
        heard.last = now;
        heard.committed_ms = order.committed_ms;
        heard.events.push(identity);
        false
    }
}
