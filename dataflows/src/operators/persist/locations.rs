//! Where the rows of a table lie.

use std::collections::BTreeMap;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::{concat_batches, filter_record_batch};
use foldhash::{HashMap, HashMapExt};
use serde::{Deserialize, Serialize};

use super::compaction::FetchedFile;
use super::remove::FileChange;
use crate::change::{Diff, Text};
use crate::record::{Record, digest};

/// A row of the table as it was found at start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoredRow {
    digest: u128,
    location: Location,
}

impl StoredRow {
    /// A row of this worker, by the places of its file in the table and of itself in the file.
    pub(crate) fn new<D: Record>(record: &D, file: usize, row: u32) -> Self {
        let file = file as u32;
        Self {
            digest: digest(record),
            location: Location { file, row },
        }
    }

    /// Tells rows apart.
    pub(super) fn digest(&self) -> u128 {
        self.digest
    }
}

/// Where a row lies: a file, by the number that [`Locations`] gave it, and a row number.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub(super) struct Location {
    pub(super) file: u32,
    pub(super) row: u32,
}

/// Where this worker's rows of a table lie.
///
/// Equal rows take neighbouring slots: the n-th copy lies under the digest plus n steps, so copies
/// 0 to n-1 are always taken and the last one is the one to remove.
pub(super) struct Locations {
    slots: HashMap<u128, Location>,
    /// The files that hold rows of this worker, by number; numbers are not used again.
    files: BTreeMap<u32, HeldFile>,
    next_file: u32,
}

/// A file, as far as it concerns one worker.
pub(super) struct HeldFile {
    name: Text,
    /// This worker's rows in it.
    pub(super) live: u32,
    /// As many as there once were.
    pub(super) most: u32,
}

/// Marks a row that was found while table and relation are compared: files have fewer rows than that.
const FOUND: u32 = 1 << 31;

/// An odd step, so that the slots of a row's copies are all different.
const STEP: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;

fn slot(digest: u128, copy: usize) -> u128 {
    digest.wrapping_add(STEP.wrapping_mul(copy as u128))
}

impl Locations {
    /// Knows the files that are there at start, numbered in this order.
    pub(super) fn new(files: Vec<Text>) -> Self {
        let next_file = files.len() as u32;
        let held = |name| HeldFile {
            name,
            live: 0,
            most: 0,
        };
        Self {
            slots: HashMap::new(),
            files: (0..).zip(files.into_iter().map(held)).collect(),
            next_file,
        }
    }

    /// The files that hold rows of this worker.
    pub(super) fn files(&self) -> impl Iterator<Item = (u32, &HeldFile)> {
        self.files.iter().map(|(number, file)| (*number, file))
    }

    pub(super) fn name(&self, file: u32) -> Option<&Text> {
        self.files.get(&file).map(|file| &file.name)
    }

    /// Makes the newest file lose rows until so many are left.
    #[cfg(test)]
    pub(super) fn shrink_last(&mut self, live: u32) {
        let newest = self.files.last_entry();
        newest.expect("a file").get_mut().live = live;
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

    pub(super) fn restore(&mut self, row: StoredRow) {
        if let Some(file) = self.files.get_mut(&row.location.file) {
            file.live += 1;
            file.most += 1;
        }
        self.insert(row.digest, row.location);
    }

    /// Remembers the rows of a new file, in the order in which they were written.
    pub(super) fn append(&mut self, digests: Vec<u128>, name: Text) {
        let number = self.next_file;
        self.next_file += 1;
        let rows = digests.len() as u32;
        let held = HeldFile {
            name,
            live: rows,
            most: rows,
        };
        self.files.insert(number, held);
        self.slots.reserve(digests.len());
        for (row, digest) in (0..).zip(digests) {
            self.insert(digest, Location { file: number, row });
        }
    }

    /// Forgets one copy of a row and notes where it lies.
    ///
    /// # Panics
    /// If the table does not hold the row: a relation never retracts what it did not contain.
    fn remove(&mut self, digest: u128, removals: &mut Removals) {
        let copies = self.copies(digest);
        let location = copies
            .checked_sub(1)
            .and_then(|last| self.slots.remove(&slot(digest, last)));
        let location = location.expect("a retracted row is in the table");
        self.vacate(location, false, removals);
    }

    /// Notes that nothing lies at the location any more.
    fn vacate(&mut self, location: Location, moved: bool, removals: &mut Removals) {
        let Some(file) = self.files.get_mut(&location.file) else {
            return;
        };
        removals.add(location, &file.name, moved);
        file.live -= 1;
        if file.live == 0 {
            self.files.remove(&location.file);
        }
    }

    /// Splits consolidated changes into the rows to write and the places to clear.
    pub(super) fn split<D: Record>(&mut self, changes: Vec<(D, Diff)>) -> (Vec<D>, Removals) {
        let mut new = Vec::new();
        let mut removals = Removals::default();
        for (row, diff) in changes {
            if diff > 0 {
                new.extend(std::iter::repeat_n(row, diff.unsigned_abs()));
            } else {
                let digest = digest(&row);
                for _ in 0..diff.unsigned_abs() {
                    self.remove(digest, &mut removals);
                }
            }
        }
        (new, removals)
    }

    /// Compares the table with the relation: what it lacks, and what it has too much of.
    pub(super) fn reconcile<D: Record>(
        &mut self,
        wanted: Vec<(D, Diff)>,
    ) -> (Vec<(D, Diff)>, Removals) {
        let mut missing = Vec::new();
        for (row, count) in wanted {
            let digest = digest(&row);
            let mut lacking = 0;
            for copy in 0..count.max(0) as usize {
                let slot = slot(digest, copy);
                match self.slots.get_mut(&slot) {
                    Some(location) => location.row |= FOUND,
                    None => lacking += 1,
                }
            }
            if lacking > 0 {
                missing.push((row, lacking));
            }
        }
        let mut surplus = Removals::default();
        let mut not_found = Vec::new();
        self.slots.retain(|_, location| {
            let found = location.row & FOUND != 0;
            location.row &= !FOUND;
            if !found {
                not_found.push(*location);
            }
            found
        });
        for location in not_found {
            self.vacate(location, false, &mut surplus);
        }
        self.files.retain(|_, file| file.live > 0);
        (missing, surplus)
    }

    /// Takes this worker's rows out of files that were fetched, to be written to a new one.
    ///
    /// A row that went meanwhile is left out; so is one that another worker holds.
    pub(super) fn take_out<D: Record>(
        &mut self,
        files: Vec<FetchedFile>,
        removals: &mut Removals,
    ) -> (RecordBatch, Vec<u128>) {
        let mut digests = Vec::new();
        let mut taken = Vec::new();
        for FetchedFile { number, batches } in files {
            let mut row = 0;
            for batch in batches {
                // A file of other columns is not one that this worker placed rows in.
                let records = D::from_batch(&batch).unwrap_or_default();
                let keep: Vec<bool> = records
                    .iter()
                    .map(|record| {
                        let location = Location { file: number, row };
                        row += 1;
                        let digest = digest(record);
                        let kept = self.clear(digest, location, removals);
                        digests.extend(kept.then_some(digest));
                        kept
                    })
                    .collect();
                let kept = filter_record_batch(&batch, &BooleanArray::from(keep));
                taken.push(kept.expect("one flag for each row"));
            }
        }
        let rows = concat_batches(&D::schema(), &taken).expect("batches of one relation");
        (rows, digests)
    }

    /// Forgets the copy of a row that lies at the location, if one does; the others close up.
    fn clear(&mut self, digest: u128, location: Location, removals: &mut Removals) -> bool {
        let copies = self.copies(digest);
        let here = (0..copies).find(|copy| self.slots[&slot(digest, *copy)] == location);
        let Some(here) = here else { return false };
        let last = self.slots.remove(&slot(digest, copies - 1));
        if let Some(last) = last.filter(|_| here + 1 < copies) {
            self.slots.insert(slot(digest, here), last);
        }
        self.vacate(location, true, removals);
        true
    }
}

/// Rows to take out of files, by file.
#[derive(Default)]
pub(super) struct Removals(BTreeMap<u32, (Text, Vec<u32>, bool)>);

impl Removals {
    fn add(&mut self, location: Location, name: &Text, moved: bool) {
        let file = self.0.entry(location.file);
        let (_, rows, only_moved) = file.or_insert_with(|| (Text::clone(name), Vec::new(), true));
        rows.push(location.row);
        *only_moved &= moved;
    }

    /// How many rows.
    pub(super) fn len(&self) -> usize {
        self.0.values().map(|(_, rows, _)| rows.len()).sum()
    }

    pub(super) fn into_changes(self) -> impl Iterator<Item = FileChange> {
        let files = self.0.into_values();
        files.map(|(file, rows, moved)| FileChange::Removed { file, rows, moved })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(removals: Removals) -> Vec<(String, Vec<u32>, bool)> {
        let changes = removals.0.into_values();
        changes
            .map(|(file, rows, moved)| (file.to_string(), rows, moved))
            .collect()
    }

    #[test]
    fn equal_rows_are_removed_one_copy_at_a_time() {
        let mut table = Locations::new(vec!["old".into()]);
        table.append(vec![7, 7, 8], "new".into());
        let mut removals = Removals::default();
        table.remove(7, &mut removals);
        table.remove(7, &mut removals);
        assert_eq!(removed(removals), [("new".to_owned(), vec![1, 0], false)]);
        assert_eq!(table.files[&1].live, 1);
        table.remove(8, &mut Removals::default());
        assert!(!table.files.contains_key(&1));
    }

    #[test]
    fn a_copy_is_moved_from_where_it_lies_and_no_other() {
        let mut table = Locations::new(Vec::new());
        table.append(vec![7], "first".into());
        table.append(vec![7, 9], "second".into());
        table.append(vec![7], "third".into());
        let mut removals = Removals::default();
        let at = |file, row| Location { file, row };
        assert!(!table.clear(7, at(1, 1), &mut removals));
        assert!(table.clear(7, at(0, 0), &mut removals));
        assert!(!table.clear(7, at(0, 0), &mut removals));
        assert_eq!(removed(removals), [("first".to_owned(), vec![0], true)]);
        assert_eq!(table.copies(7), 2);
        let left: Vec<_> = (0..2).map(|copy| table.slots[&slot(7, copy)]).collect();
        assert!(left.contains(&at(1, 0)) && left.contains(&at(2, 0)));
    }
}
