//! Keeps a table equal to a relation, by writing only what differs.
//!
//! ```text
//!  rows ──▶ Persist ── new rows ──▶ Sink::append
//!              │  ▲
//!              │  └── rows of small files ── Sink::fetch      (compaction)
//!              └── files written, row numbers taken out ──▶ Remove ──▶ Sink::remove
//! ```
//!
//! `Persist` remembers where each row lies, so an old row is found without a scan. Rows are placed
//! by digest, files by name: whichever workers hold the rows of a file, one worker changes it.
//! Both wait for a checkpoint's epoch, and hold it until the sink has answered.
//!
//! A row's number is its place in the file as it was first written, and never changes.

mod compaction;
mod locations;
mod remove;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use arrow::array::RecordBatch;
use differential_dataflow::consolidation::consolidate;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::{Operator, OutputBuilderSession};
use timely::dataflow::operators::vec::{Map, ToStream};
use timely::dataflow::operators::{Capability, Concat, OkErr};
use timely::dataflow::{Scope, StreamVec};

use self::compaction::Compaction;
pub use self::locations::StoredRow;
use self::locations::{Locations, Removals};
use self::remove::{FileChange, remove};
use super::checkpoint::Change;
use super::stash::Stash;
use crate::change::{Collection, Diff, Epoch, Text, checkpoint_epoch};
use crate::ports::{Answers, Reply, Sink, Written, own_files};
use crate::record::{Record, digest};

/// Writes the relation's changes to its table at every checkpoint; returns what the table's log
/// must say.
///
/// What the table held at the restored checkpoint is read first and compared with the relation at
/// epoch 0: rows that differ are mended with the first checkpoint, rows that agree are not touched.
/// `stored` says where they lie, if they were read already.
///
/// State: 24 bytes and the map's overhead for each row of the table, and a bit set for each file.
///
/// # Errors
/// If a file of the table cannot be read.
pub fn persist<'s, D: Record>(
    rows: Collection<'s, D>,
    sink: Box<dyn Sink>,
    stored: Option<Vec<StoredRow>>,
    interval: u64,
    restored_epoch: Epoch,
) -> Result<StreamVec<'s, Epoch, Change>, String> {
    let scope = rows.scope();
    let stored = match stored {
        Some(stored) => stored,
        None => stored_rows::<D>(&*sink, &scope)?,
    };
    let stored = stored.to_stream(scope);
    let names = sink.files().iter().map(|file| file.name.clone()).collect();
    let sink: SharedSink = Rc::new(RefCell::new(sink));
    let first_checkpoint = checkpoint_epoch(restored_epoch + 1, interval);
    let schedule = move |epoch| match epoch {
        RESTORED => RESTORED,
        epoch => checkpoint_epoch(epoch, interval).max(first_checkpoint),
    };

    let by_row = Exchange::new(|(row, _, _): &(D, Epoch, Diff)| digest(row) as u64);
    let by_digest = Exchange::new(|stored: &StoredRow| stored.digest() as u64);
    let appending_sink = Rc::clone(&sink);
    let name = format!("Persist: {}", D::RELATION);
    let output =
        rows.inner
            .binary_frontier(stored, by_row, by_digest, &name, |capability, info| {
                let answers: Answers<Written> = Answers::new(&scope, &info);
                let mut stash: Stash<(D, Diff)> = Stash::new();
                // The table is compared even where the relation holds nothing.
                stash.defer(&capability, RESTORED);
                let mut table = Locations::new(names);
                let mut compaction = Compaction::new(&scope, &info);
                let mut writing: Option<Writing> = None;
                move |(rows, rows_frontier), (stored, stored_frontier), output| {
                    let mut sink = appending_sink.borrow_mut();
                    // 1. Take in: rows wait for their checkpoint, stored rows are known at once.
                    stored.for_each(|_, data| data.drain(..).for_each(|row| table.restore(row)));
                    rows.for_each(|capability, data| {
                        for (row, epoch, diff) in data.drain(..) {
                            stash.at(&capability, schedule(epoch)).push((row, diff));
                        }
                    });
                    compaction.take_answer();
                    // 2. When new rows have been written, remember where.
                    if let (Some(current), Some(written)) = (&mut writing, answers.try_next()) {
                        current.written(written, &mut table, output);
                        if !current.write_next(&mut **sink, answers.reply()) {
                            writing = None;
                        }
                    }
                    // 3. Start the next checkpoint that is complete, one at a time.
                    while writing.is_none() {
                        let frontiers = [rows_frontier, stored_frontier];
                        let Some((capability, mut changes)) = stash.pop_complete(&frontiers) else {
                            break;
                        };
                        consolidate(&mut changes);
                        if *capability.time() == RESTORED {
                            let first = capability.delayed(&first_checkpoint);
                            let (missing, surplus) = table.reconcile(changes);
                            sink.compared(missing.len(), surplus.len());
                            give_removals(output, &first, surplus);
                            stash.defer(&first, first_checkpoint).extend(missing);
                            continue;
                        }
                        let (new, mut removals) = table.split(changes);
                        let mut next = Writing::new(capability);
                        next.add_rows(&new);
                        if let Some(files) = compaction.ready() {
                            let (moved, digests) = table.take_out::<D>(files, &mut removals);
                            next.add(moved, digests, true);
                        }
                        give_removals(output, &next.capability, removals);
                        compaction.start(&table, &mut **sink);
                        if next.write_next(&mut **sink, answers.reply()) {
                            writing = Some(next);
                        }
                    }
                }
            });
    let (entries, changes) = output.ok_err(|part| match part {
        Output::Log(action) => Ok(action),
        Output::File(change) => Err(change),
    });
    let removed = remove(changes, sink, D::RELATION)?;
    let relation: Text = D::RELATION.into();
    let change = move |action| Change {
        relation: relation.clone(),
        action,
    };
    Ok(entries.container::<Vec<Text>>().concat(removed).map(change))
}

/// The epoch of what the last checkpoint held.
const RESTORED: Epoch = 0;

type SharedSink = Rc<RefCell<Box<dyn Sink>>>;

/// What `Persist` tells: entries of the table's log, and to `Remove` what happens to files.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
enum Output {
    Log(Text),
    File(FileChange),
}

type PersistOutput<'o> = OutputBuilderSession<'o, Epoch, CapacityContainerBuilder<Vec<Output>>>;

fn give_removals(
    output: &mut PersistOutput<'_>,
    capability: &Capability<Epoch>,
    removals: Removals,
) {
    let changes = removals.into_changes().map(Output::File);
    output.session(capability).give_iterator(changes);
}

/// The files of one checkpoint that are still to be written, one after another.
struct Writing {
    capability: Capability<Epoch>,
    /// Rows, their digests, and whether they only move from other files.
    waiting: VecDeque<(RecordBatch, Vec<u128>, bool)>,
    /// The digests of the file being written.
    current: Vec<u128>,
}

impl Writing {
    fn new(capability: Capability<Epoch>) -> Self {
        Self {
            capability,
            waiting: VecDeque::new(),
            current: Vec::new(),
        }
    }

    fn add_rows<D: Record>(&mut self, rows: &[D]) {
        if !rows.is_empty() {
            let digests = rows.iter().map(digest).collect();
            self.add(D::to_batch(rows), digests, false);
        }
    }

    fn add(&mut self, rows: RecordBatch, digests: Vec<u128>, moved: bool) {
        if !digests.is_empty() {
            self.waiting.push_back((rows, digests, moved));
        }
    }

    /// Has the next file written; returns whether there is one.
    fn write_next(&mut self, sink: &mut dyn Sink, reply: Reply<Written>) -> bool {
        let Some((rows, digests, moved)) = self.waiting.pop_front() else {
            return false;
        };
        self.current = digests;
        sink.append(rows, moved, reply);
        true
    }

    fn written(&mut self, written: Written, table: &mut Locations, output: &mut PersistOutput<'_>) {
        let digests = std::mem::take(&mut self.current);
        let mut session = output.session(&self.capability);
        if let Some(file) = written.file {
            table.append(digests, file.name.clone());
            session.give(Output::File(FileChange::Written(file)));
        }
        session.give_iterator(written.actions.into_iter().map(Output::Log));
    }
}

fn stored_rows<D: Record>(
    sink: &dyn Sink,
    scope: &Scope<'_, Epoch>,
) -> Result<Vec<StoredRow>, String> {
    let mut stored = Vec::new();
    for (file, stored_file) in own_files(sink, scope) {
        sink.read(stored_file)?.for_each(|row, record: D| {
            stored.push(StoredRow::new(&record, file, row));
        })?;
    }
    Ok(stored)
}
