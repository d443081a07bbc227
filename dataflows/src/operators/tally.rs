//! Keeps one aggregate a key: counts, and extremes that survive retraction.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::mem::ManuallyDrop;

use differential_dataflow::{AsCollection, ExchangeData};
use foldhash::HashMap;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::Operator;

use super::memory_order::MemoryOrder;
use super::stash::Stash;
use crate::change::{Collection, Diff, Epoch};
use crate::record::place;

/// What is kept for one key of a [`tally`].
///
/// The answer must depend only on the multiset of values added, never on their order.
pub trait Aggregate: Default + 'static {
    /// The key whose rows are gathered.
    type Key: ExchangeData + Hash;
    /// What one row contributes.
    type Value: ExchangeData;
    /// The row that tells the aggregate.
    type Row: ExchangeData;

    /// Adds the value `diff` times, or takes it away.
    fn add(&mut self, value: &Self::Value, diff: Diff);

    /// The row to show, or `None` if nothing is left to tell, and the state can be dropped.
    fn row(&self, key: &Self::Key) -> Option<Self::Row>;
}

/// A key with what one row contributes to it.
type Pair<A> = (<A as Aggregate>::Key, <A as Aggregate>::Value);

/// Returns one row for each key that has something to tell.
///
/// Each epoch touches only the keys that changed in it, at a cost that does not depend on how many
/// rows they hold; a key whose row stays equal yields nothing.
///
/// State: one aggregate a key.
pub fn tally<'s, A: Aggregate>(
    values: Collection<'s, (A::Key, A::Value)>,
    name: &str,
) -> Collection<'s, A::Row> {
    let by_key = Exchange::new(|((key, _), _, _): &(Pair<A>, Epoch, Diff)| place(key));
    let changes = values.inner.unary_frontier(by_key, name, |_, _| {
        let mut stash: Stash<(Pair<A>, Diff)> = Stash::new();
        // Never freed: it lives as long as its process, and to free it key by key would hold up its end.
        let mut aggregates: ManuallyDrop<HashMap<A::Key, A>> = ManuallyDrop::default();
        move |(input, frontier), output| {
            input.for_each(|capability, data| stash.add(&capability, data));
            while let Some((capability, updates)) = stash.pop_complete(&[frontier]) {
                let epoch = *capability.time();
                let mut session = output.session(&capability);
                apply(&mut aggregates, updates, &mut |row, diff| {
                    session.give((row, epoch, diff));
                });
            }
        }
    });
    changes.as_collection()
}

/// Applies an epoch's updates, key by key; tells how the rows change.
fn apply<A: Aggregate>(
    aggregates: &mut HashMap<A::Key, A>,
    mut updates: Vec<(Pair<A>, Diff)>,
    tell: &mut impl FnMut(A::Row, Diff),
) {
    let order = MemoryOrder::of(aggregates);
    updates.sort_by_cached_key(|((key, _), _)| order.place(key));
    for of_key in updates.chunk_by(|((a, _), _), ((b, _), _)| a == b) {
        let [((key, _), _), ..] = of_key else {
            continue;
        };
        // Nearly all keys are known, and an entry would have to be handed its key.
        let aggregate = match aggregates.get_mut(key) {
            Some(aggregate) => aggregate,
            None => aggregates.entry(key.clone()).or_default(),
        };
        let old = aggregate.row(key);
        for ((_, value), diff) in of_key {
            aggregate.add(value, *diff);
        }
        let new = aggregate.row(key);
        if new.is_none() {
            aggregates.remove(key);
        }
        if old != new {
            old.into_iter().for_each(|row| tell(row, -1));
            new.into_iter().for_each(|row| tell(row, 1));
        }
    }
}

/// The least and the greatest of a multiset of values, under additions and removals.
///
/// Most keys hold one value, so a single value is kept inline and only more of them in a tree.
#[derive(Debug, Default)]
pub struct Extent<V> {
    values: Values<V>,
}

#[derive(Debug, Default)]
enum Values<V> {
    #[default]
    None,
    One(V, Diff),
    Many(BTreeMap<V, Diff>),
}

impl<V: Ord + Clone> Extent<V> {
    /// Adds the value `diff` times, or takes it away.
    pub fn add(&mut self, value: V, diff: Diff) {
        self.values = match std::mem::take(&mut self.values) {
            Values::None => Values::One(value, diff),
            Values::One(only, count) if only == value => Values::One(only, count + diff),
            Values::One(only, count) => {
                // By insertion, because to collect them would sort them first.
                let mut values = BTreeMap::new();
                values.insert(only, count);
                values.insert(value, diff);
                Values::Many(values)
            }
            Values::Many(mut values) => {
                let count = values.entry(value.clone()).or_insert(0);
                *count += diff;
                if *count == 0 {
                    values.remove(&value);
                }
                Values::Many(values)
            }
        };
        self.shrink();
    }

    fn shrink(&mut self) {
        match &mut self.values {
            Values::One(_, 0) => self.values = Values::None,
            Values::Many(values) if values.len() == 1 => {
                if let Some((value, count)) = values.pop_first() {
                    self.values = Values::One(value, count);
                }
            }
            _ => {}
        }
    }

    /// The least value, or `None` if there is none.
    pub fn min(&self) -> Option<&V> {
        match &self.values {
            Values::None => None,
            Values::One(value, _) => Some(value),
            Values::Many(values) => values.first_key_value().map(|(value, _)| value),
        }
    }

    /// The greatest value, or `None` if there is none.
    pub fn max(&self) -> Option<&V> {
        match &self.values {
            Values::None => None,
            Values::One(value, _) => Some(value),
            Values::Many(values) => values.last_key_value().map(|(value, _)| value),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_extent_equals_the_extremes_of_what_is_left(
            steps in prop::collection::vec((0..6i64, -2..3isize), 0..60),
        ) {
            let mut extent = Extent::default();
            let mut model: BTreeMap<i64, isize> = BTreeMap::new();
            for (value, diff) in steps.into_iter().filter(|(_, diff)| *diff != 0) {
                extent.add(value, diff);
                *model.entry(value).or_default() += diff;
                model.retain(|_, count| *count != 0);
                prop_assert_eq!(extent.min(), model.keys().next());
                prop_assert_eq!(extent.max(), model.keys().next_back());
            }
        }
    }
}
