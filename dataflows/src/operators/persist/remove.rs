//! Takes rows out of files, each file on the one worker that changes it.

use std::collections::{BTreeMap, HashMap};

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::Operator;

use super::SharedSink;
use crate::change::{Epoch, Text};
use crate::operators::stash::Stash;
use crate::ports::{Answers, Removal, StoredFile, Written};
use crate::record::place;

/// What happens to a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum FileChange {
    /// It is new.
    Written(StoredFile),
    /// Rows are no longer in it.
    Removed {
        file: Text,
        rows: Vec<u32>,
        /// Whether all of them are in another file now.
        moved: bool,
    },
}

impl FileChange {
    fn file(&self) -> &Text {
        match self {
            Self::Written(file) => &file.name,
            Self::Removed { file, .. } => file,
        }
    }
}

/// A file of the table, and what is no longer in it.
struct OwnedFile {
    file: StoredFile,
    removed: RoaringBitmap,
}

/// Has the sink take rows out of files; returns what the table's log must say.
///
/// # Errors
/// If it cannot be read which rows of a file had been removed at the restored checkpoint.
pub(super) fn remove<'s>(
    changes: StreamVec<'s, Epoch, FileChange>,
    sink: SharedSink,
    relation: &str,
) -> Result<StreamVec<'s, Epoch, Text>, String> {
    let scope = changes.scope();
    let mut files = own_files(&sink, scope.index(), scope.peers())?;
    let by_file = Exchange::new(|change: &FileChange| place(change.file()));
    let name = format!("Remove: {relation}");
    let removed = changes.unary_frontier(by_file, &name, |_, info| {
        let answers: Answers<Vec<Written>> = Answers::new(&scope, &info);
        let mut stash: Stash<FileChange> = Stash::new();
        let mut in_flight: Option<(Capability<Epoch>, Vec<Text>)> = None;
        move |(input, frontier), output| {
            input.for_each(|capability, data| stash.append(&capability, data));
            if let (Some(_), Some(written)) = (&in_flight, answers.try_next())
                && let Some((capability, names)) = in_flight.take()
            {
                let mut session = output.session(&capability);
                for (name, written) in names.into_iter().zip(written) {
                    session.give_iterator(written.actions.into_iter());
                    if let (Some(changed), Some(owned)) = (written.file, files.get_mut(&name)) {
                        owned.file.entry = changed.entry;
                    }
                }
            }
            while in_flight.is_none() {
                let Some((capability, changes)) = stash.pop_complete(&[frontier]) else {
                    break;
                };
                let (names, removals) = plan_removals(&mut files, changes);
                if !removals.is_empty() {
                    sink.borrow_mut().remove(removals, answers.reply());
                    in_flight = Some((capability, names));
                }
            }
        }
    });
    Ok(removed)
}

/// The files that this worker changes, of those that were there at start.
fn own_files(
    sink: &SharedSink,
    worker: usize,
    workers: usize,
) -> Result<HashMap<Text, OwnedFile>, String> {
    let sink = sink.borrow();
    let own = sink
        .files()
        .iter()
        .filter(|file| place(&file.name) as usize % workers == worker);
    own.map(|file| {
        let removed = sink.removed(file)?;
        let file = file.clone();
        Ok((file.name.clone(), OwnedFile { file, removed }))
    })
    .collect()
}

/// Takes note of what happened to the files; returns those that must change, with their names.
fn plan_removals(
    files: &mut HashMap<Text, OwnedFile>,
    changes: Vec<FileChange>,
) -> (Vec<Text>, Vec<Removal>) {
    let mut by_file: BTreeMap<Text, (RoaringBitmap, bool)> = BTreeMap::new();
    for change in changes {
        match change {
            FileChange::Written(file) => {
                let owned = OwnedFile {
                    removed: RoaringBitmap::new(),
                    file,
                };
                files.insert(owned.file.name.clone(), owned);
            }
            FileChange::Removed { file, rows, moved } => {
                let (removed, only_moved) =
                    by_file.entry(file).or_insert((RoaringBitmap::new(), true));
                removed.extend(rows);
                *only_moved &= moved;
            }
        }
    }
    let mut names = Vec::new();
    let mut removals = Vec::new();
    for (name, (rows, moved)) in by_file {
        let owned = files.get_mut(&name).expect("rows were placed in this file");
        let removed_before = owned.removed.clone();
        owned.removed |= &rows;
        let file = owned.file.clone();
        if owned.removed.len() == u64::from(file.rows) {
            files.remove(&name);
        }
        names.push(name);
        removals.push(Removal {
            file,
            removed_before,
            rows,
            moved,
        });
    }
    (names, removals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_forgotten_when_its_last_row_has_gone() {
        let mut files = HashMap::new();
        let name: Text = "a".into();
        let written = FileChange::Written(StoredFile {
            name: name.clone(),
            rows: 3,
            entry: "entry".into(),
        });
        let removed = |rows: &[u32], moved| FileChange::Removed {
            file: name.clone(),
            rows: rows.to_vec(),
            moved,
        };
        let (names, removals) = plan_removals(&mut files, vec![written, removed(&[1], true)]);
        assert_eq!((names.len(), removals[0].rows.len()), (1, 1));
        assert!(removals[0].moved && removals[0].removed_before.is_empty());
        let both = vec![removed(&[0], true), removed(&[2], false)];
        let (_, removals) = plan_removals(&mut files, both);
        assert!(!removals[0].moved && removals[0].removed_before.contains(1));
        assert!(files.is_empty());
    }
}
