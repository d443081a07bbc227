//! Turns overwrites by key into retractions and insertions of rows.

use std::collections::hash_map::Entry;

use differential_dataflow::{AsCollection, ExchangeData};
use foldhash::{HashMap, HashMapExt};
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::Operator;

use super::stash::Stash;
use crate::change::{Collection, Epoch, Text};
use crate::record::place;

/// An overwrite (`Some`) or a removal (`None`) of the row of a key.
pub type Upsert<V> = (Text, Option<V>);

/// Tells whether a new state of a row says anything new.
pub trait Revision {
    /// Whether `newer` differs in nothing but where and when it was read.
    fn same_as(&self, newer: &Self) -> bool;
}

impl<T: Revision, E: Revision> Revision for Result<T, E> {
    fn same_as(&self, newer: &Self) -> bool {
        match (self, newer) {
            (Ok(row), Ok(newer)) => row.same_as(newer),
            (Err(error), Err(newer)) => error.same_as(newer),
            _ => false,
        }
    }
}

impl<T: Revision> Revision for std::sync::Arc<T> {
    fn same_as(&self, newer: &Self) -> bool {
        T::same_as(self, newer)
    }
}

/// Returns the current row of each key.
///
/// Within an epoch the last change of a key wins, in the order in which its source sent it; so the
/// changes of a key must all come from one source on one worker. A change to what the row already
/// is yields nothing and leaves the row as it is, which makes redelivery harmless.
///
/// State: one row a key.
///
/// # Examples
/// ```
/// use dataflows::operators::upsert::{Revision, upsert};
/// use timely::dataflow::operators::{Capture, ToStream, capture::Extract};
///
/// #[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, serde::Serialize, serde::Deserialize)]
/// struct Row(i64);
///
/// impl Revision for Row {
///     fn same_as(&self, newer: &Self) -> bool {
///         self == newer
///     }
/// }
///
/// let changes = timely::example(|scope| {
///     let upserts = vec![("a".into(), Some(Row(1))), ("a".into(), None), ("a".into(), Some(Row(2)))];
///     upsert(upserts.to_stream(scope), "Rows").inner.capture()
/// });
/// assert_eq!(changes.extract(), [(0, vec![(Row(2), 0, 1)])]);
/// ```
pub fn upsert<'s, V: ExchangeData + Revision>(
    upserts: StreamVec<'s, Epoch, Upsert<V>>,
    name: &str,
) -> Collection<'s, V> {
    let by_key = Exchange::new(|upsert: &Upsert<V>| place(&upsert.0));
    let changes = upserts.unary_frontier(by_key, name, |_, _| {
        let mut stash: Stash<Upsert<V>> = Stash::new();
        let mut rows: HashMap<Text, V> = HashMap::new();
        move |(input, frontier), output| {
            input.for_each(|capability, data| {
                let epoch = *capability.time();
                stash.at(&capability, epoch).append(data);
            });
            while let Some((capability, upserts)) = stash.pop_complete(&[frontier]) {
                let mut session = output.session(&capability);
                for (key, old) in apply(&mut rows, upserts) {
                    let new = rows.get(&key).cloned();
                    if old == new {
                        continue;
                    }
                    session.give_iterator(old.map(|row| (row, *capability.time(), -1)).into_iter());
                    session.give_iterator(new.map(|row| (row, *capability.time(), 1)).into_iter());
                }
            }
        }
    });
    changes.as_collection()
}

/// Applies an epoch's upserts one after another; returns each key they touched with the row it had
/// before. One at a time, so that the rows do not depend on where an epoch ends.
fn apply<V: Clone + Revision>(
    rows: &mut HashMap<Text, V>,
    upserts: Vec<Upsert<V>>,
) -> HashMap<Text, Option<V>> {
    let mut before = HashMap::with_capacity(upserts.len());
    for (key, new) in upserts {
        let old = match (rows.entry(key.clone()), new) {
            (Entry::Occupied(entry), Some(new)) if entry.get().same_as(&new) => continue,
            (Entry::Occupied(mut entry), Some(new)) => Some(entry.insert(new)),
            (Entry::Occupied(entry), None) => Some(entry.remove()),
            (Entry::Vacant(entry), Some(new)) => {
                entry.insert(new);
                None
            }
            (Entry::Vacant(_), None) => continue,
        };
        before.entry(key).or_insert(old);
    }
    before
}
