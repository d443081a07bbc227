//! The words every operator speaks: epochs, diffs and collections of changes.

use std::sync::Arc;

use differential_dataflow::VecCollection;

/// Dataflow time: milliseconds since 1970, strictly increasing across restarts.
///
/// Epoch 0 is the restored state: what the last checkpoint held, before anything new was read.
pub type Epoch = u64;

/// How often a row is added (positive) or taken away (negative).
pub type Diff = isize;

/// A string that many rows share without copying it.
pub type Text = Arc<str>;

/// A multiset of rows that changes with the epochs.
pub type Collection<'s, D> = VecCollection<'s, Epoch, D, Diff>;

/// The epoch at which the state of `epoch` is checkpointed: the next multiple of `interval`.
///
/// Every worker computes the same answer, so no one has to announce a checkpoint.
///
/// ```
/// use dataflows::change::checkpoint_epoch;
/// assert_eq!(checkpoint_epoch(20_001, 10_000), 30_000);
/// assert_eq!(checkpoint_epoch(30_000, 10_000), 30_000);
/// ```
pub fn checkpoint_epoch(epoch: Epoch, interval: u64) -> Epoch {
    epoch.div_ceil(interval) * interval
}
