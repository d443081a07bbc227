//! What changes in a relation, put together from all workers, epoch by epoch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{Array, Int64Array, RecordBatch};
use dataflows::change::Epoch;
use dataflows::index::EPOCH;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{Ask, Peeker};

/// Changes that may wait for someone who follows a relation before they are let go.
const MOST_WAITING: usize = 500_000;

/// Why someone cannot follow a relation any more.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FollowError {
    /// What changed since the epoch asked for is no longer remembered.
    #[error("what changed since that epoch is no longer remembered: begin anew with a snapshot")]
    Forgotten,
    /// The changes were not taken as fast as they came.
    #[error("changes came faster than they were taken: begin anew with a snapshot")]
    TooSlow,
}

/// What one worker tells of the changes.
pub(super) struct ChangesPart {
    pub worker: usize,
    /// Everything before this epoch has been told by this worker; all there will ever be if none.
    pub before: Option<Epoch>,
    /// Sorted by the column [`EPOCH`].
    pub changes: RecordBatch,
}

type Part = Result<ChangesPart, FollowError>;

/// The worker's end of a [`ChangeStream`].
pub(super) struct ChangesSender {
    parts: UnboundedSender<Part>,
    waiting: Arc<AtomicUsize>,
}

pub(super) struct ChangesReceiver {
    parts: UnboundedReceiver<Part>,
    waiting: Arc<AtomicUsize>,
}

pub(super) fn channel() -> (ChangesSender, ChangesReceiver) {
    let (sender, receiver) = unbounded_channel();
    let waiting = Arc::<AtomicUsize>::default();
    let sender = ChangesSender {
        parts: sender,
        waiting: Arc::clone(&waiting),
    };
    let parts = receiver;
    (sender, ChangesReceiver { parts, waiting })
}

impl ChangesSender {
    /// Passes changes on; returns whether there is a use for more.
    pub(super) fn send(&self, part: ChangesPart) -> bool {
        let changes = part.changes.num_rows();
        if self.waiting.fetch_add(changes, Ordering::Relaxed) + changes > MOST_WAITING {
            self.end(FollowError::TooSlow);
            return false;
        }
        self.parts.send(Ok(part)).is_ok()
    }

    pub(super) fn end(&self, error: FollowError) {
        // Whoever followed may have gone away.
        let _ = self.parts.send(Err(error));
    }
}

/// The changes of some epochs.
#[derive(Debug)]
pub struct Changes {
    /// All changes of this epoch and of those before are known now.
    pub complete: Epoch,
    /// The changes since, in the order of their epochs: the selected columns, `epoch` and `diff`.
    pub batches: Vec<RecordBatch>,
}

/// What changes in a relation, as epochs complete. To drop it ends the following.
pub struct ChangeStream {
    peeker: Peeker,
    number: u64,
    parts: ChangesReceiver,
    /// How far each worker has told, of those that have told anything.
    workers: BTreeMap<usize, Option<Epoch>>,
    complete: Epoch,
    /// Changes of epochs that are not complete.
    held: BTreeMap<Epoch, Vec<RecordBatch>>,
}

impl ChangeStream {
    pub(super) fn new(peeker: Peeker, number: u64, after: Epoch, parts: ChangesReceiver) -> Self {
        Self {
            peeker,
            number,
            parts,
            workers: BTreeMap::new(),
            complete: after,
            held: BTreeMap::new(),
        }
    }

    /// The changes of the epochs that have become complete, possibly none; `None` when the dataflow has
    /// ended.
    ///
    /// # Errors
    /// If what changed is not known any more.
    pub async fn next(&mut self) -> Result<Option<Changes>, FollowError> {
        while let Some(part) = self.parts.parts.recv().await {
            let part = part?;
            let changes = part.changes.num_rows();
            self.parts.waiting.fetch_sub(changes, Ordering::Relaxed);
            self.workers.insert(part.worker, part.before);
            self.hold(&part.changes);
            let all = self.peeker.shared.workers.get().copied();
            if all != Some(self.workers.len()) {
                continue;
            }
            let unfinished = self.workers.values().flatten().min();
            let complete = match unfinished {
                Some(before) => before.saturating_sub(1),
                None => self.held.keys().last().copied().unwrap_or_default(),
            };
            if complete > self.complete {
                let later = self.held.split_off(&(complete + 1));
                let told = std::mem::replace(&mut self.held, later);
                self.complete = complete;
                return Ok(Some(Changes {
                    complete,
                    batches: told.into_values().flatten().collect(),
                }));
            }
        }
        Ok(None)
    }

    fn hold(&mut self, changes: &RecordBatch) {
        let epochs = changes.column_by_name(EPOCH);
        let epochs = epochs.and_then(|epochs| epochs.as_any().downcast_ref::<Int64Array>());
        let Some(epochs) = epochs else {
            return;
        };
        let mut start = 0;
        for run in epochs.values().chunk_by(|one, next| one == next) {
            let epoch = run[0].unsigned_abs();
            let of_epoch = changes.slice(start, run.len());
            self.held.entry(epoch).or_default().push(of_epoch);
            start += run.len();
        }
        debug_assert_eq!(start, epochs.len());
    }
}

impl Drop for ChangeStream {
    fn drop(&mut self) {
        self.peeker.send(Ask::Cancel(self.number));
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;
    use crate::query::peek::peeker;

    /// Changes of these epochs, as a worker tells them.
    fn told(worker: usize, before: Option<Epoch>, epochs: Vec<i64>) -> ChangesPart {
        let schema = Schema::new(vec![Field::new(EPOCH, DataType::Int64, false)]);
        let epochs = Arc::new(Int64Array::from(epochs));
        ChangesPart {
            worker,
            before,
            changes: RecordBatch::try_new(Arc::new(schema), vec![epochs]).unwrap(),
        }
    }

    fn stream(workers: usize) -> (ChangesSender, ChangeStream, super::super::Asks) {
        let (peeker, asks) = peeker(Arc::default());
        asks.shared.workers.set(workers).unwrap();
        let (sender, parts) = channel();
        (sender, ChangeStream::new(peeker, 0, 0, parts), asks)
    }

    #[tokio::test]
    async fn an_epoch_is_told_once_all_workers_have_told_it() {
        let (sender, mut stream, _asks) = stream(2);
        assert!(sender.send(told(0, Some(4), vec![1, 3])));
        assert!(sender.send(told(1, Some(3), vec![1, 2])));
        let first = stream.next().await.unwrap().unwrap();
        assert_eq!((first.complete, first.batches.len()), (2, 3));
        assert!(sender.send(told(1, None, vec![])));
        let second = stream.next().await.unwrap().unwrap();
        assert_eq!((second.complete, second.batches.len()), (3, 1));
        assert!(sender.send(told(0, None, vec![5])));
        let last = stream.next().await.unwrap().unwrap();
        assert_eq!((last.complete, last.batches.len()), (5, 1));
        drop(sender);
        assert!(stream.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn whoever_falls_behind_is_let_go() {
        let (sender, mut stream, _asks) = stream(1);
        assert!(sender.send(told(0, Some(2), vec![1; MOST_WAITING])));
        assert!(!sender.send(told(0, Some(3), vec![2])));
        assert!(stream.next().await.unwrap().is_some());
        assert_eq!(stream.next().await.unwrap_err(), FollowError::TooSlow);
    }
}
