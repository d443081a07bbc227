//! Keeps a table equal to a relation, by writing only what differs.
//!
//! ```text
//!  rows ──▶ Persist ── new rows ──▶ Sink::append
//!              │
//!              └── (file, row number) of old rows ──▶ Rewrite ──▶ Sink::rewrite
//! ```
//!
//! `Persist` remembers where each row lies, so an old row is found without a scan. Rows are placed
//! by digest, files by name: whichever worker wrote a file in an earlier run, one worker owns it now.
//! Both wait for a checkpoint's epoch, and hold it until the sink has answered.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use differential_dataflow::consolidation::consolidate;
use serde::{Deserialize, Serialize};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::{Operator, OutputBuilderSession};
use timely::dataflow::operators::vec::{Map, ToStream};
use timely::dataflow::operators::{Capability, Concat, OkErr};

use super::checkpoint::Change;
use super::stash::Stash;
use crate::change::{Collection, Diff, Epoch, Text, checkpoint_epoch};
use crate::ports::{Answers, Sink, Written, own_files};
use crate::record::{Record, digest, place};

/// Writes the relation's changes to its table at every checkpoint; returns what the table's log
/// must say.
///
/// What the table held at the restored checkpoint is read first and compared with the relation at
/// epoch 0: rows that differ are mended with the first checkpoint, rows that agree are not touched.
///
/// State: 24 bytes and the map's overhead for each row of the table.
///
/// # Errors
/// If a file of the table cannot be read.
pub fn persist<'s, D: Record>(
    rows: Collection<'s, D>,
    sink: Box<dyn Sink>,
    interval: u64,
    restored_epoch: Epoch,
) -> Result<StreamVec<'s, Epoch, Change>, String> {
    let scope = rows.scope();
    let stored = stored_rows::<D>(&*sink, &scope)?.to_stream(scope);
    let files = sink.files().to_vec();
    let sink: SharedSink = Rc::new(RefCell::new(sink));
    let first_checkpoint = checkpoint_epoch(restored_epoch + 1, interval);
    let schedule = move |epoch| match epoch {
        RESTORED => RESTORED,
        epoch => checkpoint_epoch(epoch, interval).max(first_checkpoint),
    };

    let by_row = Exchange::new(|(row, _, _): &(D, Epoch, Diff)| digest(row) as u64);
    let by_digest = Exchange::new(|stored: &StoredRow| stored.digest as u64);
    let appending_sink = Rc::clone(&sink);
    let name = format!("Persist: {}", D::RELATION);
    let output =
        rows.inner
            .binary_frontier(stored, by_row, by_digest, &name, |capability, info| {
                let answers: Answers<Written> = Answers::new(&scope, &info);
                let mut stash: Stash<(D, Diff)> = Stash::new();
                // The table is compared even where the relation holds nothing.
                stash.defer(&capability, RESTORED);
                let mut table = Locations::new(files);
                let mut in_flight: Option<(Capability<Epoch>, Vec<u128>)> = None;
                move |(rows, rows_frontier), (stored, stored_frontier), output| {
                    // 1. Take in: rows wait for their checkpoint, stored rows are known at once.
                    stored.for_each(|_, data| data.drain(..).for_each(|row| table.restore(row)));
                    rows.for_each(|capability, data| {
                        for (row, epoch, diff) in data.drain(..) {
                            stash.at(&capability, schedule(epoch)).push((row, diff));
                        }
                    });
                    // 2. When the new rows of a checkpoint have been written, remember where.
                    if let (Some(_), Some(written)) = (&in_flight, answers.try_next())
                        && let Some((capability, digests)) = in_flight.take()
                    {
                        table.append(digests, written.file);
                        let done = written.actions.into_iter().map(ToFiles::Written);
                        output.session(&capability).give_iterator(done);
                    }
                    // 3. Start the next checkpoint that is complete, one at a time.
                    while in_flight.is_none() {
                        let frontiers = [rows_frontier, stored_frontier];
                        let Some((capability, mut changes)) = stash.pop_complete(&frontiers) else {
                            break;
                        };
                        consolidate(&mut changes);
                        if *capability.time() == RESTORED {
                            let first = capability.delayed(&first_checkpoint);
                            let (missing, surplus) = table.reconcile(changes);
                            appending_sink
                                .borrow_mut()
                                .compared(missing.len(), surplus.len());
                            give_deletions(output, &first, surplus);
                            stash.defer(&first, first_checkpoint).extend(missing);
                            continue;
                        }
                        let (new, deletions) = table.split(changes);
                        give_deletions(output, &capability, deletions);
                        if !new.is_empty() {
                            let digests = new.iter().map(digest).collect();
                            appending_sink
                                .borrow_mut()
                                .append(D::to_batch(&new), answers.reply());
                            in_flight = Some((capability, digests));
                        }
                    }
                }
            });
    let (written, deletions) = output.ok_err(|part| match part {
        ToFiles::Written(action) => Ok(action),
        ToFiles::Deletion(deletion) => Err(deletion),
    });
    let rewritten = rewrite(deletions, sink, D::RELATION);
    let relation: Text = D::RELATION.into();
    let change = move |action| Change {
        relation: relation.clone(),
        action,
    };
    Ok(written
        .container::<Vec<Text>>()
        .concat(rewritten)
        .map(change))
}

/// The epoch of what the last checkpoint held.
const RESTORED: Epoch = 0;

type SharedSink = Rc<RefCell<Box<dyn Sink>>>;

/// A row of the table as it was found at start.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct StoredRow {
    digest: u128,
    location: Location,
}

/// Where a row lies: a file, by its place in the list of files, and a row number.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Location {
    file: u32,
    row: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum ToFiles {
    Written(Text),
    Deletion(Deletion),
}

/// A row to take out of a file, by the row number it had when the file was first written or read.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Deletion {
    file: Text,
    row: u32,
}

fn give_deletions(
    output: &mut OutputBuilderSession<'_, Epoch, CapacityContainerBuilder<Vec<ToFiles>>>,
    capability: &Capability<Epoch>,
    deletions: Vec<Deletion>,
) {
    let deletions = deletions.into_iter().map(ToFiles::Deletion);
    output.session(capability).give_iterator(deletions);
}

fn stored_rows<D: Record>(
    sink: &dyn Sink,
    scope: &timely::dataflow::Scope<'_, Epoch>,
) -> Result<Vec<StoredRow>, String> {
    let mut stored = Vec::new();
    for (file, name) in own_files(sink, scope) {
        let mut row = 0;
        for batch in sink.read(name)? {
            for record in D::from_batch(&batch).map_err(|error| format!("{name}: {error}"))? {
                let location = Location {
                    file: file as u32,
                    row,
                };
                stored.push(StoredRow {
                    digest: digest(&record),
                    location,
                });
                row += 1;
            }
        }
    }
    Ok(stored)
}

/// Where this worker's rows of a table lie.
///
/// Equal rows take neighbouring slots: the n-th copy lies under the digest plus n steps, so copies
/// 0 to n-1 are always taken and the last one is the one to remove.
struct Locations {
    files: Vec<Text>,
    slots: HashMap<u128, Location>,
}

/// An odd step, so that the slots of a row's copies are all different.
const STEP: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;

fn slot(digest: u128, copy: usize) -> u128 {
    digest.wrapping_add(STEP.wrapping_mul(copy as u128))
}

impl Locations {
    fn new(files: Vec<Text>) -> Self {
        Self {
            files,
            slots: HashMap::new(),
        }
    }

    fn copies(&self, digest: u128) -> usize {
        (0..)
            .find(|copy| !self.slots.contains_key(&slot(digest, *copy)))
            .unwrap_or(0)
    }

    fn insert(&mut self, digest: u128, location: Location) {
        let copy = self.copies(digest);
        self.slots.insert(slot(digest, copy), location);
    }

    fn restore(&mut self, row: StoredRow) {
        self.insert(row.digest, row.location);
    }

    /// Remembers the rows of a new file, in the order in which they were written.
    fn append(&mut self, digests: Vec<u128>, file: Option<Text>) {
        let index = self.files.len() as u32;
        self.files.extend(file);
        for (row, digest) in (0..).zip(digests) {
            self.insert(digest, Location { file: index, row });
        }
    }

    /// Forgets one copy of a row and says where it lies.
    ///
    /// # Panics
    /// If the table does not hold the row: a relation never retracts what it did not contain.
    fn remove(&mut self, digest: u128) -> Deletion {
        let copies = self.copies(digest);
        let location = copies
            .checked_sub(1)
            .and_then(|last| self.slots.remove(&slot(digest, last)));
        let location = location.expect("a retracted row is in the table");
        self.deletion(location)
    }

    fn deletion(&self, location: Location) -> Deletion {
        Deletion {
            file: self.files[location.file as usize].clone(),
            row: location.row,
        }
    }

    /// Splits consolidated changes into the rows to write and the places to clear.
    fn split<D: Record>(&mut self, changes: Vec<(D, Diff)>) -> (Vec<D>, Vec<Deletion>) {
        let mut new = Vec::new();
        let mut deletions = Vec::new();
        for (row, diff) in changes {
            if diff > 0 {
                new.extend(std::iter::repeat_n(row, diff.unsigned_abs()));
            } else {
                let digest = digest(&row);
                deletions.extend((0..diff.unsigned_abs()).map(|_| self.remove(digest)));
            }
        }
        (new, deletions)
    }

    /// Compares the table with the relation: what it lacks, and what it has too much of.
    fn reconcile<D: Record>(&mut self, wanted: Vec<(D, Diff)>) -> (Vec<(D, Diff)>, Vec<Deletion>) {
        let mut found = HashMap::with_capacity(self.slots.len());
        let mut missing = Vec::new();
        for (row, count) in wanted {
            let digest = digest(&row);
            let slots = (0..count.max(0) as usize).map(|copy| slot(digest, copy));
            let mut lacking = 0;
            for slot in slots {
                match self.slots.remove(&slot) {
                    Some(location) => drop(found.insert(slot, location)),
                    None => lacking += 1,
                }
            }
            if lacking > 0 {
                missing.push((row, lacking));
            }
        }
        let surplus = std::mem::replace(&mut self.slots, found);
        let surplus = surplus
            .into_values()
            .map(|location| self.deletion(location))
            .collect();
        (missing, surplus)
    }
}

/// Takes rows out of files, each file on the one worker that owns it.
fn rewrite<'s>(
    deletions: StreamVec<'s, Epoch, Deletion>,
    sink: SharedSink,
    relation: &str,
) -> StreamVec<'s, Epoch, Text> {
    let scope = deletions.scope();
    let by_file = Exchange::new(|deletion: &Deletion| place(&deletion.file));
    deletions.unary_frontier(by_file, &format!("Rewrite: {relation}"), |_, info| {
        let answers: Answers<Vec<Written>> = Answers::new(&scope, &info);
        let mut stash: Stash<Deletion> = Stash::new();
        let mut files: HashMap<Text, ShrinkingFile> = HashMap::new();
        let mut in_flight: Option<(Capability<Epoch>, Vec<Text>)> = None;
        move |(input, frontier), output| {
            input.for_each(|capability, data| {
                let epoch = *capability.time();
                stash.at(&capability, epoch).append(data);
            });
            if let (Some(_), Some(written)) = (&in_flight, answers.try_next())
                && let Some((capability, names)) = in_flight.take()
            {
                let mut session = output.session(&capability);
                for (name, written) in names.into_iter().zip(written) {
                    session.give_iterator(written.actions.into_iter());
                    match (written.file, files.get_mut(&name)) {
                        (Some(file), Some(state)) => state.current = file,
                        _ => drop(files.remove(&name)),
                    }
                }
            }
            if in_flight.is_none()
                && let Some((capability, deletions)) = stash.pop_complete(&[frontier])
            {
                let (names, work) = plan_rewrites(&mut files, deletions);
                sink.borrow_mut().rewrite(work, answers.reply());
                in_flight = Some((capability, names));
            }
        }
    })
}

/// A file that has been rewritten without some of its rows.
///
/// Rows are still named by the numbers they had at first, so that no one needs to hear of the
/// rewriting; the number in the current file is what is left after those removed before it.
struct ShrinkingFile {
    current: Text,
    /// Original numbers of the rows removed, sorted.
    removed: Vec<u32>,
}

impl ShrinkingFile {
    fn current_row(&self, original: u32) -> u32 {
        let removed_before = self.removed.partition_point(|removed| *removed < original);
        original - removed_before as u32
    }

    /// Removes rows by their original numbers; returns their current ones, sorted.
    fn remove(&mut self, mut originals: Vec<u32>) -> Vec<u32> {
        originals.sort_unstable();
        let current = originals
            .iter()
            .map(|original| self.current_row(*original))
            .collect();
        self.removed.append(&mut originals);
        self.removed.sort_unstable();
        current
    }
}

/// The files to rewrite: their first names, and their current names with the rows to leave out.
fn plan_rewrites(
    files: &mut HashMap<Text, ShrinkingFile>,
    deletions: Vec<Deletion>,
) -> (Vec<Text>, Vec<(Text, Vec<u32>)>) {
    let mut by_file: BTreeMap<Text, Vec<u32>> = BTreeMap::new();
    for deletion in deletions {
        by_file.entry(deletion.file).or_default().push(deletion.row);
    }
    let plan = by_file.into_iter().map(|(name, rows)| {
        let state = files.entry(name.clone()).or_insert_with(|| ShrinkingFile {
            current: name.clone(),
            removed: Vec::new(),
        });
        let work = (state.current.clone(), state.remove(rows));
        (name, work)
    });
    plan.unzip()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_numbers_follow_the_rows_that_left() {
        let mut file = ShrinkingFile {
            current: "a".into(),
            removed: Vec::new(),
        };
        assert_eq!(file.remove(vec![5, 2]), [2, 5]);
        // Rows 0 1 3 4 6 7 are left, now numbered 0 to 5.
        assert_eq!(file.remove(vec![7, 0, 3]), [0, 2, 5]);
        assert_eq!(file.remove(vec![6, 4, 1]), [0, 1, 2]);
    }

    #[test]
    fn equal_rows_are_removed_one_copy_at_a_time() {
        let mut table = Locations::new(vec!["old".into()]);
        table.append(vec![7, 7, 8], Some("new".into()));
        assert_eq!((table.remove(7).row, table.remove(7).row), (1, 0));
        assert_eq!(&*table.remove(8).file, "new");
    }
}
