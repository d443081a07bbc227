//! Relations that can be read while they change: all their rows at an epoch, or what changed after one.
//!
//! Reading never holds a worker up: rows come in chunks, between which the dataflow goes on. What has
//! been opened stays as it was, because a trace's batches never change; only merging makes new ones.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use differential_dataflow::operators::arrange::TraceAgent;
use differential_dataflow::trace::cursor::CursorList;
use differential_dataflow::trace::implementations::ValSpine;
use differential_dataflow::trace::{BatchReader, Cursor, Navigable, TraceReader};
use foldhash::{HashSet, HashSetExt};
use serde::{Deserialize, Serialize};
use timely::dataflow::operators::Probe as _;
use timely::dataflow::operators::probe::Handle as Probe;
use timely::dataflow::operators::vec::Filter as _;
use timely::progress::frontier::AntichainRef;

use crate::change::{Collection, Diff, Epoch};
use crate::record::{Record, place, place_any_case};

/// Which rows to read, and what of them.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Selection {
    /// Only rows found by these values; all rows if none.
    pub look_up: Option<LookUp>,
    /// The columns, by their places in the relation; all if none.
    pub columns: Option<Vec<usize>>,
    /// How many rows each worker reads at most.
    pub limit: Option<usize>,
}

/// Rows by the values of a column.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct LookUp {
    /// The column, one of [`Index::look_ups`].
    pub column: String,
    /// The values.
    pub values: Vec<String>,
    /// Whether values that differ only in case are meant too.
    pub any_case: bool,
}

/// A relation on one worker, readable at any epoch of a short past.
pub trait Index {
    /// The relation's name.
    fn relation(&self) -> &'static str;

    /// The relation's columns.
    fn schema(&self) -> SchemaRef;

    /// The columns by whose values rows are found.
    fn look_ups(&self) -> &'static [&'static str];

    /// The first epoch that may still change; `None` once nothing can change any more.
    fn frontier(&self) -> Option<Epoch>;

    /// This worker's rows at the epoch.
    ///
    /// # Errors
    /// If the epoch is no longer readable because later ones have been merged into it.
    fn open(&mut self, epoch: Epoch, selection: &Selection) -> Result<Box<dyn Rows>, Compacted>;

    /// What changed on this worker from the first epoch on and before the second, by epoch: the selected
    /// columns, then `epoch` and `diff`.
    ///
    /// # Errors
    /// If the first epoch is no longer remembered.
    fn changes(
        &self,
        from: Epoch,
        before: Epoch,
        selection: &Selection,
    ) -> Result<RecordBatch, Compacted>;

    /// Gives up the past before `readable`, and the changes before `remembered` or beyond a bound, so
    /// that memory follows what is live.
    fn compact(&mut self, readable: Epoch, remembered: Epoch);
}

/// The epoch asked for has been merged into later ones.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Compacted;

/// Rows that are being read.
pub trait Rows {
    /// The next rows, possibly none, and whether they are the last.
    fn next_chunk(&mut self) -> (RecordBatch, bool);
}

/// Rows that are looked at for a chunk: about a millisecond's work.
const CHUNK: usize = 8_192;

/// Changes that an index remembers at most.
const MOST_REMEMBERED: usize = 200_000;

/// Rows by the hash of a value: numbers are sorted and merged faster than texts, and take less room.
type Trace<D> = TraceAgent<ValSpine<u64, D, Epoch, Diff>>;
type Batch<D> = <Trace<D> as TraceReader>::Batch;

/// Arranges a relation once for each column that rows are found by.
pub(crate) fn index<D: Record>(rows: Collection<'_, D>) -> Box<dyn Index> {
    let probe = Probe::new();
    let remembered: Rc<RefCell<Remembered<D>>> = Rc::default();
    let traces = (0..D::LOOK_UPS.len()).map(|look_up| {
        let arranged = rows
            .clone()
            .map(move |row| (place_of(look_up, &row.look_up(look_up)), row))
            .arrange_by_key_named(D::RELATION);
        let remembered = Rc::clone(&remembered);
        // Batches are remembered before the probe hears of them, so what is complete is remembered.
        let stream = arranged.stream.filter(move |batch| {
            if look_up == 0 {
                remembered.borrow_mut().push(batch.clone());
            }
            false
        });
        stream.probe_with(&probe);
        arranged.trace
    });
    let traces = traces.collect();
    Box::new(ArrangedIndex {
        probe,
        traces,
        remembered,
    })
}

struct ArrangedIndex<D: Record> {
    probe: Probe<Epoch>,
    /// One for each of [`Record::LOOK_UPS`].
    traces: Vec<Trace<D>>,
    remembered: Rc<RefCell<Remembered<D>>>,
}

/// The batches of late, in order, for those who follow the changes.
struct Remembered<D: Record> {
    batches: VecDeque<Batch<D>>,
    updates: usize,
    /// The first epoch from which on all changes are remembered.
    since: Epoch,
}

impl<D: Record> Default for Remembered<D> {
    fn default() -> Self {
        Self {
            batches: VecDeque::new(),
            updates: 0,
            since: 0,
        }
    }
}

impl<D: Record> Remembered<D> {
    fn push(&mut self, batch: Batch<D>) {
        if batch.len() > 0 {
            self.updates += batch.len();
            self.batches.push_back(batch);
        }
    }

    fn forget(&mut self, before: Epoch, complete: Epoch) {
        while let Some(first) = self.batches.front() {
            let Some(upper) = first.upper().elements().first().copied() else {
                return;
            };
            if upper > complete || (upper > before && self.updates <= MOST_REMEMBERED) {
                return;
            }
            self.updates -= first.len();
            self.since = self.since.max(upper);
            self.batches.pop_front();
        }
    }
}

impl<D: Record> Index for ArrangedIndex<D> {
    fn relation(&self) -> &'static str {
        D::RELATION
    }

    fn schema(&self) -> SchemaRef {
        D::schema()
    }

    fn look_ups(&self) -> &'static [&'static str] {
        D::LOOK_UPS
    }

    fn frontier(&self) -> Option<Epoch> {
        self.probe
            .with_frontier(|frontier| frontier.first().copied())
    }

    fn open(&mut self, epoch: Epoch, selection: &Selection) -> Result<Box<dyn Rows>, Compacted> {
        let wanted = Wanted::of::<D>(selection);
        let trace = &mut self.traces[wanted.look_up];
        if !trace.get_logical_compaction().less_equal(&epoch) {
            return Err(Compacted);
        }
        let (cursor, storage) = trace.cursor();
        Ok(Box::new(TraceRows::<D> {
            cursor,
            storage,
            epoch,
            wanted,
            columns: columns_of::<D>(selection),
            left: selection.limit.unwrap_or(usize::MAX),
            repeated: 0,
        }))
    }

    fn changes(
        &self,
        from: Epoch,
        before: Epoch,
        selection: &Selection,
    ) -> Result<RecordBatch, Compacted> {
        let remembered = self.remembered.borrow();
        if from < remembered.since {
            return Err(Compacted);
        }
        let wanted = Wanted::of::<D>(selection);
        let mut changes: Vec<(Epoch, &D, Diff)> = Vec::new();
        for batch in &remembered.batches {
            let [lower, upper] = [batch.lower(), batch.upper()];
            let ended = upper.elements().first().is_some_and(|upper| *upper <= from);
            let ahead = lower
                .elements()
                .first()
                .is_none_or(|lower| *lower >= before);
            if ended || ahead {
                continue;
            }
            let mut cursor = batch.cursor();
            while let Some(row) = next_row::<D, _>(&mut cursor, batch) {
                if wanted.holds(row) {
                    cursor.map_times(batch, |epoch, diff| {
                        if (from..before).contains(epoch) {
                            changes.push((*epoch, row, *diff));
                        }
                    });
                }
                cursor.step_val(batch);
            }
        }
        changes.sort_by_key(|(epoch, _, _)| *epoch);
        Ok(change_batch(&changes, &columns_of::<D>(selection)))
    }

    fn compact(&mut self, readable: Epoch, remembered: Epoch) {
        for trace in &mut self.traces {
            trace.set_logical_compaction(AntichainRef::new(&[readable]));
            trace.set_physical_compaction(AntichainRef::new(&[readable]));
        }
        // What is not complete has not been told to anyone.
        if let Some(complete) = self.frontier() {
            self.remembered.borrow_mut().forget(remembered, complete);
        }
    }
}

/// Where rows with a value lie. By their key they are placed as everywhere; by other columns so that values
/// which differ only in case lie together.
fn place_of(look_up: usize, value: &str) -> u64 {
    match look_up {
        0 => place(value),
        _ => place_any_case(value),
    }
}

/// The selected columns, by their places.
fn columns_of<D: Record>(selection: &Selection) -> Vec<usize> {
    let all = || (0..D::schema().fields().len()).collect();
    selection.columns.clone().unwrap_or_else(all)
}

fn change_batch<D: Record>(changes: &[(Epoch, &D, Diff)], columns: &[usize]) -> RecordBatch {
    let rows: Vec<&D> = changes.iter().map(|(_, row, _)| *row).collect();
    let rows = D::columns(&rows, columns);
    let mut fields: Vec<_> = rows.schema().fields().iter().cloned().collect();
    let mut arrays = rows.columns().to_vec();
    let epochs = changes.iter().map(|(epoch, _, _)| *epoch as i64);
    let diffs = changes.iter().map(|(_, _, diff)| *diff as i64);
    for (name, numbers) in [
        (EPOCH, Int64Array::from_iter_values(epochs)),
        (DIFF, Int64Array::from_iter_values(diffs)),
    ] {
        fields.push(Field::new(name, DataType::Int64, false).into());
        arrays.push(Arc::new(numbers) as ArrayRef);
    }
    // Each array has an element a change, and a field made for it.
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).expect("changes have one length")
}

/// The columns that [`Index::changes`] adds at the end.
pub const EPOCH: &str = "epoch";
/// How many more of a row there are.
pub const DIFF: &str = "diff";

/// The values that are looked for, and by which trace.
struct Wanted {
    look_up: usize,
    /// The places of the values in order, each once; none for all rows.
    places: Option<VecDeque<u64>>,
    /// In lower case if any case is meant.
    values: HashSet<String>,
    any_case: bool,
}

impl Wanted {
    fn of<D: Record>(selection: &Selection) -> Self {
        let Some(asked) = &selection.look_up else {
            return Self {
                look_up: 0,
                places: None,
                values: HashSet::new(),
                any_case: false,
            };
        };
        let look_up = D::LOOK_UPS.iter().position(|name| **name == asked.column);
        let values = match look_up {
            Some(_) => asked.values.as_slice(),
            // A column that is no look-up finds nothing; those who ask choose among the look-ups.
            None => &[],
        };
        let look_up = look_up.unwrap_or(0);
        let mut places: Vec<_> = values
            .iter()
            .map(|value| place_of(look_up, value))
            .collect();
        places.sort_unstable();
        places.dedup();
        Self {
            look_up,
            places: Some(places.into()),
            values: match asked.any_case {
                true => values.iter().map(|value| value.to_lowercase()).collect(),
                false => values.iter().cloned().collect(),
            },
            any_case: asked.any_case,
        }
    }

    fn holds<D: Record>(&self, row: &D) -> bool {
        let found = |value: &str| match self.any_case {
            true => self.values.contains(&value.to_lowercase()),
            false => self.values.contains(value),
        };
        self.places.is_none() || found(&row.look_up(self.look_up))
    }
}

struct TraceRows<D: Record> {
    cursor: CursorList<<Batch<D> as Navigable>::Cursor>,
    storage: Vec<Batch<D>>,
    epoch: Epoch,
    wanted: Wanted,
    columns: Vec<usize>,
    left: usize,
    /// How often the row under the cursor has been given already.
    repeated: usize,
}

impl<D: Record> Rows for TraceRows<D> {
    fn next_chunk(&mut self) -> (RecordBatch, bool) {
        let mut last = false;
        let (cursor, storage) = (&mut self.cursor, &self.storage);
        let mut rows: Vec<&D> = Vec::new();
        for _ in 0..CHUNK {
            if self.left == 0 {
                last = true;
                break;
            }
            if let Some(places) = &mut self.wanted.places
                && !seek(cursor, storage, places)
            {
                last = true;
                break;
            }
            let Some(row) = next_row::<D, _>(cursor, storage) else {
                last = true;
                break;
            };
            if self.wanted.holds(row) {
                let mut count: Diff = 0;
                cursor.map_times(storage, |at, diff| {
                    if *at <= self.epoch {
                        count += *diff
                    }
                });
                let remaining = count.max(0).unsigned_abs() - self.repeated;
                let given = remaining.min(self.left).min(CHUNK);
                rows.extend(std::iter::repeat_n(row, given));
                self.left -= given;
                self.repeated += given;
                if given < remaining {
                    break;
                }
            }
            self.repeated = 0;
            cursor.step_val(storage);
        }
        (D::columns(&rows, &self.columns), last)
    }
}

/// Moves to the next wanted place that has rows left; returns whether there is one.
fn seek<C>(cursor: &mut C, storage: &C::Storage, places: &mut VecDeque<u64>) -> bool
where
    C: for<'a> Cursor<Key<'a> = &'a u64>,
{
    while let Some(place) = places.front() {
        if cursor.get_key(storage).is_some_and(|key| key < place) {
            cursor.seek_key(storage, place);
        }
        if cursor.get_key(storage) == Some(place) && cursor.val_valid(storage) {
            return true;
        }
        places.pop_front();
    }
    false
}

/// The row under the cursor, or the first of the next key that has one.
fn next_row<'a, D: 'a, C>(cursor: &mut C, storage: &'a C::Storage) -> Option<&'a D>
where
    C: Cursor<Val<'a> = &'a D>,
{
    while cursor.key_valid(storage) {
        if let Some(row) = cursor.get_val(storage) {
            return Some(row);
        }
        cursor.step_key(storage);
    }
    None
}
