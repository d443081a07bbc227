//! Turns overwrites by key into retractions and insertions of rows.
//!
//! ```text
//!  what sources tell ─▶ by key: held rows ─▶ changes of rows
//!                          ▲          │
//!                          └──────────┘ rows whose key has changed, on their way to the new one
//! ```

use std::collections::BTreeMap;
use std::collections::hash_map::Entry;
use std::hint::black_box;
use std::mem::ManuallyDrop;

use differential_dataflow::{AsCollection, ExchangeData};
use foldhash::{HashMap, HashMapExt};
use serde::{Deserialize, Serialize};
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::{Concat, ConnectLoop, Enter, Leave, LoopVariable, OkErr};
use timely::order::Product;

use super::stash::Stash;
use crate::change::{Change, Collection, Diff, Epoch, Text};
use crate::record::place;

/// What a source told of one key.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Upsert<V> {
    /// The key; where a table was truncated, what the keys of its rows begin with.
    pub key: Text,
    /// When it was told, by the source's own log; 0 if not known.
    pub at: i64,
    /// What was told.
    pub state: State<V>,
}

/// The new state of a key.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub enum State<V> {
    /// The row is this.
    Row(V),
    /// The row is this, but for fields that were not told because they had not changed.
    Patch(Box<Patch<V>>),
    /// There is no row.
    Gone,
    /// There is no row, for it has this other key now; what was not told of it there is as it was here.
    Left(Text),
    /// The row as it was under the key that it had before. It comes from another key, never from a source.
    Arrived(Box<V>),
    /// There is no row of any key that begins so on this worker, but for what was told later. Every
    /// worker is told, each by a copy of its own.
    Truncated(u64),
    /// What this worker holds and could not be used is to be tried again.
    Retry(u64),
    /// What this worker holds is to be told as it was before this epoch.
    Tell(u64),
    /// There is one more copy of this row. Copies of a row have one key, and are told of in no other way.
    More(V),
    /// There is one copy less. If that is told before the copy itself is, this is what stands for it until then.
    Fewer(V),
    /// The row is this, if none is known that was told later. It was tried again, and comes from no source.
    Retried(Box<V>),
}

/// A row that lacks some of its fields.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Patch<V> {
    /// The row with the fields that were told.
    pub row: V,
    /// Which were not: a bit for each field, in the order of the source row's.
    pub absent: u64,
    /// What the row is where none is known to take them from.
    pub otherwise: V,
}

impl<V> Upsert<V> {
    /// The row of a key is this.
    pub fn row(key: Text, row: V) -> Self {
        let (at, state) = (0, State::Row(row));
        Self { key, at, state }
    }

    /// The row that has this key now was this before.
    fn arrived(key: Text, at: i64, row: V) -> Self {
        let state = State::Arrived(Box::new(row));
        Self { key, at, state }
    }

    /// The key has no row.
    pub fn gone(key: Text) -> Self {
        let (at, state) = (0, State::Gone);
        Self { key, at, state }
    }
}

/// Compares and completes the states of a row.
pub trait Revision: Sized {
    /// Whether `newer` differs in nothing but where and when it was read.
    fn same_as(&self, newer: &Self) -> bool;

    /// This row with the absent fields (a bit each) as `older` has them; `None` if that has none.
    fn completed(&self, older: &Self, absent: u64) -> Option<Self>;
}

impl<T: Revision, E: Revision> Revision for Result<T, E> {
    fn same_as(&self, newer: &Self) -> bool {
        match (self, newer) {
            (Ok(row), Ok(newer)) => row.same_as(newer),
            (Err(error), Err(newer)) => error.same_as(newer),
            _ => false,
        }
    }

    fn completed(&self, older: &Self, absent: u64) -> Option<Self> {
        match (self, older) {
            (Ok(row), Ok(older)) => row.completed(older, absent).map(Ok),
            _ => None,
        }
    }
}

impl<T: Revision> Revision for Box<T> {
    fn same_as(&self, newer: &Self) -> bool {
        T::same_as(self, newer)
    }

    fn completed(&self, older: &Self, absent: u64) -> Option<Self> {
        T::completed(self, older, absent).map(Self::new)
    }
}

impl<T: Revision> Revision for std::sync::Arc<T> {
    fn same_as(&self, newer: &Self) -> bool {
        T::same_as(self, newer)
    }

    fn completed(&self, older: &Self, absent: u64) -> Option<Self> {
        T::completed(self, older, absent).map(Self::new)
    }
}

/// Returns the current row of each key; and, at epochs at which that is asked for, all rows as they were
/// before.
///
/// Within an epoch the last change of a key wins, in the order in which its source sent it; so the
/// changes of a key must all come from one source on one worker. A change to what the row already
/// is yields nothing and leaves the row as it is, which makes redelivery harmless. Rows that are replaced within
/// their own epoch come and go in it, and cancel.
///
/// A row whose key changes may lack what did not change otherwise, as large values of PostgreSQL do. The
/// row under its old key completes it, within the same epoch if the source told of both in it.
///
/// State: one row a key, with its place in the source's log; and of changed keys what waits for its
/// other half, which is told elsewhere.
///
/// # Examples
/// ```
/// use dataflows::operators::upsert::{Revision, Upsert, never, upsert};
/// use timely::dataflow::operators::{Capture, ToStream, capture::Extract};
///
/// #[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, serde::Serialize, serde::Deserialize)]
/// struct Row(i64);
///
/// impl Revision for Row {
///     fn same_as(&self, newer: &Self) -> bool {
///         self == newer
///     }
///
///     fn completed(&self, _: &Self, _: u64) -> Option<Self> {
///         None
///     }
/// }
///
/// let changes = timely::example(|scope| {
///     let row = |number| Upsert::row("a".into(), Row(number));
///     let upserts = vec![row(1), Upsert::gone("a".into()), row(2)];
///     upsert(upserts.to_stream(scope), "Rows", never).0.inner.capture()
/// });
/// let mut changes = changes.extract().remove(0).1;
/// differential_dataflow::consolidation::consolidate_updates(&mut changes);
/// assert_eq!(changes, [(Row(2), 0, 1)]);
/// ```
pub fn upsert<'s, V: ExchangeData + Revision>(
    upserts: StreamVec<'s, Epoch, Upsert<V>>,
    name: &str,
    retry: impl Fn() -> TryAgain<V> + 'static,
) -> (Collection<'s, V>, StreamVec<'s, Epoch, V>) {
    let by_key = Exchange::new(|upsert: &Upsert<V>| match upsert.state {
        State::Truncated(worker) | State::Retry(worker) | State::Tell(worker) => worker,
        _ => place(&upsert.key),
    });
    let outer = upserts.scope();
    let (changes, told) = outer.iterative::<Round, _, _>(|inner| {
        let (arrivals, arrived) = inner.loop_variable(1);
        let told = upserts.enter(inner).concat(arrived);
        let applied: StreamVec<_, Result<Change<V>, Aside<V>>> =
            told.unary_frontier(by_key, name, move |_, _| {
                let mut stash: Stash<Upsert<V>, Product<Epoch, Round>> = Stash::new();
                let mut rows = Rows::new(retry);
                move |(input, frontier), output| {
                    input.for_each(|capability, data| stash.append(&capability, data));
                    while let Some((capability, upserts)) = stash.pop_complete(&[frontier]) {
                        let epoch = capability.time().outer;
                        let mut session = output.session(&capability);
                        if upserts
                            .iter()
                            .any(|upsert| matches!(upsert.state, State::Tell(_)))
                        {
                            let told = rows.all().map(|row| Err(Aside::Told(row.clone())));
                            session.give_iterator(told);
                        }
                        let (mut moved, mut told) = (Vec::new(), Vec::new());
                        rows.apply(upserts, &mut moved, &mut |row, diff| {
                            told.push(Ok((row, epoch, diff)));
                            if told.len() == BATCH {
                                session.give_container(&mut told);
                                // What comes back may hold anything.
                                told.clear();
                                told.reserve(BATCH);
                            }
                        });
                        session.give_container(&mut told);
                        session.give_iterator(moved.into_iter().map(|row| Err(Aside::Moved(row))));
                    }
                }
            });
        let (changes, asides): (_, StreamVec<_, Aside<V>>) = applied.ok_err(|applied| applied);
        let (moved, told) = asides.ok_err(|aside| match aside {
            Aside::Moved(upsert) => Ok(upsert),
            Aside::Told(row) => Err(row),
        });
        moved.connect_loop(arrivals);
        (changes.leave(outer), told.leave(outer))
    });
    (changes.as_collection(), told)
}

/// What leaves the operator besides changes of rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Aside<V> {
    /// A row on its way to another key.
    Moved(Upsert<V>),
    /// A row as it was before the epoch.
    Told(V),
}

/// What a row that could not be used says when it is tried again, if it can be used now.
pub type TryAgain<V> = Box<dyn FnMut(&V) -> Option<Upsert<V>>>;

/// For rows that can always be used.
pub fn never<V: 'static>() -> TryAgain<V> {
    Box::new(|_| None)
}

/// How many upserts are looked up together, and how many changes handed on.
const BATCH: usize = 512;

/// How often a row has changed its key within an epoch.
type Round = u32;

/// The rows of one worker.
struct Rows<V> {
    /// Never freed: it lives as long as its process, and to free millions of rows one by one would hold up its end.
    held: ManuallyDrop<HashMap<Text, Held<V>>>,
    /// What was truncated, with the place in the log: what was told before counts no more, even if
    /// it arrives later, over another partition.
    truncated: BTreeMap<Text, i64>,
    /// Rows of which something is not known, with the place in the log since when.
    lacking: HashMap<Text, (i64, Patch<V>)>,
    /// Rows that came here with a change of key that the source has not told of yet. Both halves of
    /// such a change have the same place in the log.
    arrived: HashMap<Text, (i64, V)>,
    /// Rows that left while something of them was not known: where to, and the place in the log.
    passing: HashMap<Text, (i64, Patch<V>, Text, i64)>,
    retry: Box<dyn Fn() -> TryAgain<V>>,
}

struct Held<V> {
    row: V,
    at: i64,
    /// How many copies of the row there are: one, unless copies are counted. Of fewer than none, the row is what
    /// stands for those that are lacking.
    copies: i32,
}

impl<V> Rows<V> {
    fn new(retry: impl Fn() -> TryAgain<V> + 'static) -> Self {
        Self {
            retry: Box::new(retry),
            held: ManuallyDrop::new(HashMap::new()),
            truncated: BTreeMap::new(),
            lacking: HashMap::new(),
            arrived: HashMap::new(),
            passing: HashMap::new(),
        }
    }
}

impl<V: Clone + Revision> Rows<V> {
    /// Applies an epoch's upserts one after another, so that the rows do not depend on where an epoch
    /// ends. Tells each change of a row at once, although another of the same epoch may take it back: few do, and to
    /// look each key up again at the epoch's end would cost more. Rows on their way to other keys go to `moved`.
    fn apply(
        &mut self,
        upserts: Vec<Upsert<V>>,
        moved: &mut Vec<Upsert<V>>,
        tell: &mut impl FnMut(V, Diff),
    ) {
        let mut upserts = upserts.into_iter();
        while !upserts.as_slice().is_empty() {
            // The waits for the memory of all of them overlap, as in `batches::fetch`.
            let next = upserts.as_slice().iter().take(BATCH);
            black_box(
                next.filter(|next| self.held.contains_key(&next.key))
                    .count(),
            );
            for upsert in upserts.by_ref().take(BATCH) {
                self.apply_one(upsert, moved, tell);
            }
        }
    }

    fn apply_one(
        &mut self,
        Upsert { key, at, state }: Upsert<V>,
        moved: &mut Vec<Upsert<V>>,
        tell: &mut impl FnMut(V, Diff),
    ) {
        if self.is_truncated(&key, at) {
            return;
        }
        match state {
            State::Row(row) => {
                self.known(&key);
                self.put(key, at, row, tell);
            }
            State::Patch(patch) => {
                let row = self.patched(&key, at, *patch);
                self.put(key, at, row, tell);
            }
            State::Gone => {
                self.known(&key);
                self.remove(&key, tell);
            }
            State::Left(to) => {
                self.leave(&key, at, to, moved);
                self.remove(&key, tell);
            }
            State::Arrived(older) => {
                if let Some(row) = self.arrive(&key, at, *older, moved) {
                    self.put(key, at, row, tell);
                }
            }
            State::Retried(row) => {
                if self.held.get(&key).is_none_or(|held| held.at < at) {
                    self.put(key, at, *row, tell);
                }
            }
            State::Truncated(_) => self.truncate(key, at, tell),
            State::Retry(_) => self.retry(moved, tell),
            State::More(row) => self.count(key, at, 1, row, tell),
            State::Fewer(lacking) => self.count(key, at, -1, lacking, tell),
            State::Tell(_) => {}
        }
    }

    /// Makes this the row of a key.
    fn put(&mut self, key: Text, at: i64, new: V, tell: &mut impl FnMut(V, Diff)) {
        match self.held.entry(key) {
            Entry::Occupied(mut entry) => {
                let held = entry.get_mut();
                held.at = at;
                if !held.row.same_as(&new) {
                    let copies = held.copies.unsigned_abs() as Diff;
                    let old = std::mem::replace(&mut held.row, new.clone());
                    tell(old, -copies);
                    tell(new, copies);
                }
            }
            Entry::Vacant(entry) => {
                tell(new.clone(), 1);
                entry.insert(Held {
                    row: new,
                    at,
                    copies: 1,
                });
            }
        }
    }

    /// Takes the key's row away; returns how many copies of it there were.
    fn remove(&mut self, key: &Text, tell: &mut impl FnMut(V, Diff)) -> usize {
        let Some(held) = self.held.remove(key) else {
            return 0;
        };
        let copies = held.copies.unsigned_abs() as usize;
        tell(held.row, -(copies as Diff));
        copies
    }

    /// Adds a copy of a row, or takes one away; if then there is one, or one is lacking, this is what it is.
    fn count(&mut self, key: Text, at: i64, copies: i32, first: V, tell: &mut impl FnMut(V, Diff)) {
        match self.held.entry(key) {
            Entry::Vacant(entry) => {
                tell(first.clone(), 1);
                let row = first;
                entry.insert(Held { row, at, copies });
            }
            Entry::Occupied(mut entry) => {
                let held = entry.get_mut();
                // One copy more of what there is, or of what is lacking one less.
                let more = held.copies.signum() == copies.signum();
                held.copies += copies;
                held.at = at;
                tell(held.row.clone(), if more { 1 } else { -1 });
                if held.copies == 0 {
                    entry.remove();
                }
            }
        }
    }

    /// All rows, each copy of them.
    fn all(&self) -> impl Iterator<Item = &V> {
        let copies = |held: &Held<V>| held.copies.unsigned_abs() as usize;
        let held = self.held.values();
        held.flat_map(move |held| std::iter::repeat_n(&held.row, copies(held)))
    }

    /// The row that a key has now.
    fn row(&self, key: &Text) -> Option<&V> {
        self.held.get(key).map(|held| &held.row)
    }

    /// All of the key's row is known, so nothing waits for more. These maps are empty but for a moment now and
    /// then; a key is not even hashed for an empty one.
    fn known(&mut self, key: &Text) {
        if !self.lacking.is_empty() {
            self.lacking.remove(key);
        }
        if !self.arrived.is_empty() {
            self.arrived.remove(key);
        }
    }

    /// The row of a key of which not everything was told.
    fn patched(&mut self, key: &Text, at: i64, patch: Patch<V>) -> V {
        let held = self.row(key);
        let completed = held.and_then(|row| patch.row.completed(row, patch.absent));
        if let Some(row) = completed {
            return row;
        }
        let (since, patch) = match self.lacking.remove(key) {
            Some((since, earlier)) => (since, patch.after(&earlier)),
            None => (at, patch),
        };
        let arrived = self.arrived.remove(key).filter(|(with, _)| *with == since);
        let older = arrived.and_then(|(_, older)| patch.row.completed(&older, patch.absent));
        if let Some(row) = older.or_else(|| (patch.absent == 0).then(|| patch.row.clone())) {
            return row;
        }
        let otherwise = patch.otherwise.clone();
        self.lacking.insert(key.clone(), (since, patch));
        otherwise
    }

    /// Sends the key's row on to its other key, now or when it is known.
    fn leave(&mut self, key: &Text, at: i64, to: Text, moved: &mut Vec<Upsert<V>>) {
        self.arrived.remove(key);
        if let Some((since, patch)) = self.lacking.remove(key) {
            self.passing.insert(key.clone(), (since, patch, to, at));
        } else if let Some(row) = self.row(key) {
            moved.push(Upsert::arrived(to, at, row.clone()));
        }
    }

    /// The key's row, now that it is known what it was before; `None` if that is of no use here.
    fn arrive(&mut self, key: &Text, at: i64, older: V, moved: &mut Vec<Upsert<V>>) -> Option<V> {
        if let Entry::Occupied(lacking) = self.lacking.entry(key.clone())
            && lacking.get().0 == at
        {
            let (_, patch) = lacking.remove();
            return patch.row.completed(&older, patch.absent);
        }
        if let Entry::Occupied(passing) = self.passing.entry(key.clone())
            && passing.get().0 == at
        {
            let (_, patch, to, at) = passing.remove();
            let completed = patch.row.completed(&older, patch.absent);
            moved.extend(completed.map(|row| Upsert::arrived(to, at, row)));
        } else if self.row(key).is_none() {
            self.arrived.insert(key.clone(), (at, older));
        }
        None
    }

    /// Tries again what could not be used. What then has another key goes there, lest it takes the place of
    /// what was told of that later.
    fn retry(&mut self, moved: &mut Vec<Upsert<V>>, tell: &mut impl FnMut(V, Diff)) {
        let mut retry = (self.retry)();
        let held = self.held.iter();
        let retried = held.filter_map(|(key, held)| Some((key.clone(), retry(&held.row)?)));
        for (key, upsert) in retried.collect::<Vec<_>>() {
            let at = upsert.at;
            let row = match upsert.state {
                State::Row(row) => row,
                State::Patch(patch) if key == upsert.key => self.patched(&key, at, *patch),
                State::More(row) if key == upsert.key => row,
                State::More(row) => {
                    let copies = self.remove(&key, tell);
                    let copy = Upsert {
                        state: State::More(row),
                        ..Upsert::gone(upsert.key)
                    };
                    moved.extend(std::iter::repeat_n(copy, copies));
                    continue;
                }
                _ => continue,
            };
            if key == upsert.key {
                self.put(key, at, row, tell);
                continue;
            }
            self.remove(&key, tell);
            moved.push(Upsert {
                key: upsert.key,
                at,
                state: State::Retried(Box::new(row)),
            });
        }
    }

    fn truncate(&mut self, prefix: Text, at: i64, tell: &mut impl FnMut(V, Diff)) {
        let stays = |key: &Text, since: i64| !key.starts_with(&*prefix) || since > at;
        self.held.retain(|key, held| {
            let stays = stays(key, held.at);
            if !stays {
                tell(held.row.clone(), -(held.copies.unsigned_abs() as Diff));
            }
            stays
        });
        self.lacking.retain(|key, (since, _)| stays(key, *since));
        self.arrived.retain(|key, (since, _)| stays(key, *since));
        let known = self.truncated.entry(prefix).or_default();
        *known = at.max(*known);
    }

    /// Whether a truncation came after what is told now.
    fn is_truncated(&self, key: &Text, at: i64) -> bool {
        at > 0
            && self
                .truncated
                .iter()
                .any(|(prefix, truncated)| at < *truncated && key.starts_with(&**prefix))
    }
}

impl<V: Revision> Patch<V> {
    /// What is told by this patch, and before it by another.
    fn after(self, earlier: &Self) -> Self {
        let told_before = self.absent & !earlier.absent;
        match self.row.completed(&earlier.row, told_before) {
            Some(row) => Self {
                row,
                absent: self.absent & earlier.absent,
                otherwise: self.otherwise,
            },
            None => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use differential_dataflow::consolidation::consolidate;

    use super::*;

    /// A row of two fields.
    type Pair = (i64, i64);

    impl Revision for Pair {
        fn same_as(&self, newer: &Self) -> bool {
            self == newer
        }

        fn completed(&self, older: &Self, absent: u64) -> Option<Self> {
            let field = |bit, own, older| if absent & bit == 0 { own } else { older };
            Some((field(1, self.0, older.0), field(2, self.1, older.1)))
        }
    }

    fn told(key: &str, at: i64, state: State<Pair>) -> Upsert<Pair> {
        Upsert {
            key: key.into(),
            at,
            state,
        }
    }

    fn patch(row: Pair, absent: u64) -> State<Pair> {
        let otherwise = (-1, -1);
        State::Patch(Box::new(Patch {
            row,
            absent,
            otherwise,
        }))
    }

    /// Applies an epoch; returns what it changed, and what moves to other keys.
    fn apply(
        rows: &mut Rows<Pair>,
        upserts: Vec<Upsert<Pair>>,
    ) -> (Vec<(Pair, Diff)>, Vec<Upsert<Pair>>) {
        let (mut changes, mut moved) = (Vec::new(), Vec::new());
        rows.apply(upserts, &mut moved, &mut |row, diff| {
            changes.push((row, diff))
        });
        consolidate(&mut changes);
        (changes, moved)
    }

    fn left(rows: &Rows<Pair>) -> Vec<(&str, Pair)> {
        let mut left: Vec<_> = rows
            .held
            .iter()
            .map(|(key, held)| (&**key, held.row))
            .collect();
        left.sort_unstable();
        left
    }

    #[test]
    fn fields_that_were_not_told_are_as_they_were() {
        let mut rows = Rows::new(never);
        apply(
            &mut rows,
            vec![
                told("a", 1, State::Row((1, 2))),
                told("a", 2, patch((3, 0), 2)),
            ],
        );
        apply(&mut rows, vec![told("b", 3, patch((4, 0), 2))]);
        assert_eq!(left(&rows), [("a", (3, 2)), ("b", (-1, -1))]);
        // Within an epoch as well, and what was there at its start is what is taken back.
        let (changes, _) = apply(
            &mut rows,
            vec![
                told("a", 4, State::Gone),
                told("a", 5, State::Row((7, 8))),
                told("a", 6, patch((0, 9), 1)),
            ],
        );
        assert_eq!(changes, [((3, 2), -1), ((7, 9), 1)]);
        assert_eq!(left(&rows)[0], ("a", (7, 9)));
    }

    #[test]
    fn what_could_not_be_used_is_tried_again_where_it_is_held() {
        // A row of -1 could not be used; it says its key by its other number.
        let retry = || -> TryAgain<Pair> {
            Box::new(|row| {
                let key = row.1.to_string();
                (row.0 == -1 && row.1 > 0).then(|| told(&key, 7, State::Row((1, 1))))
            })
        };
        let mut rows = Rows::new(retry);
        let refused = |key: &str, own| told(key, 5, State::Row((-1, own)));
        let upserts = vec![
            refused("1", 1),
            refused("t/0/3", 2),
            refused("t/0/4", 3),
            refused("x", 0),
        ];
        apply(&mut rows, upserts);
        apply(&mut rows, vec![told("3", 9, State::Row((8, 8)))]);
        let (_, moved) = apply(&mut rows, vec![told("", 0, State::Retry(0))]);
        apply(&mut rows, moved);
        // What was told later of a key counts more than what was tried again.
        let expected = [("1", (1, 1)), ("2", (1, 1)), ("3", (8, 8)), ("x", (-1, 0))];
        assert_eq!(left(&rows), expected);
    }

    #[test]
    fn copies_are_counted_and_what_is_lacking_is_told() {
        let mut rows = Rows::new(never);
        let more = |row| told("k", 0, State::More(row));
        let fewer = || told("k", 0, State::Fewer((-1, -1)));
        let (changes, _) = apply(&mut rows, vec![fewer(), fewer(), more((1, 1))]);
        assert_eq!(changes, [((-1, -1), 1)]);
        let (changes, _) = apply(&mut rows, vec![more((1, 1)), more((1, 1)), more((1, 2))]);
        assert_eq!(changes, [((-1, -1), -1), ((1, 1), 2)]);
        assert_eq!(rows.all().count(), 2);
        let (changes, _) = apply(&mut rows, vec![fewer(), fewer()]);
        assert_eq!(changes, [((1, 1), -2)]);
        assert!(rows.held.is_empty());
    }

    #[test]
    fn copies_that_are_tried_again_are_all_there() {
        // What could not be used was told under another key.
        let retry = || -> TryAgain<Pair> {
            Box::new(|row| (row.0 == -1).then(|| told("good", 0, State::More((1, 1)))))
        };
        let mut rows = Rows::new(retry);
        let bad = |key| told(key, 0, State::More((-1, 0)));
        let good = told("good", 0, State::More((1, 1)));
        apply(&mut rows, vec![bad("a"), bad("a"), bad("b"), good]);
        let (_, moved) = apply(&mut rows, vec![told("", 0, State::Retry(0))]);
        apply(&mut rows, moved);
        assert_eq!(left(&rows), [("good", (1, 1))]);
        assert_eq!(rows.all().count(), 4);
    }

    #[test]
    fn a_truncation_takes_what_was_told_before_it_whatever_arrives_first() {
        let mut rows = Rows::new(never);
        apply(
            &mut rows,
            vec![
                told("t/restored", 0, State::Row((0, 0))),
                told("t/before", 10, State::Row((1, 1))),
                told("t/after", 30, State::Row((2, 2))),
                told("u/other", 10, State::Row((3, 3))),
            ],
        );
        let (changes, _) = apply(&mut rows, vec![told("t/", 20, State::Truncated(0))]);
        assert_eq!(changes, [((0, 0), -1), ((1, 1), -1)]);
        apply(
            &mut rows,
            vec![
                told("t/late", 15, State::Row((4, 4))),
                told("t/new", 40, State::Row((5, 5))),
            ],
        );
        assert_eq!(
            left(&rows),
            [("t/after", (2, 2)), ("t/new", (5, 5)), ("u/other", (3, 3))]
        );
    }
}
