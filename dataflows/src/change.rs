//! The words every operator speaks: epochs, diffs and collections of changes.

use differential_dataflow::VecCollection;
use smol_str::SmolStr;

/// Dataflow time: milliseconds since 1970, strictly increasing across restarts.
///
/// Epoch 0 is the restored state: what the last checkpoint held, before anything new was read.
pub type Epoch = u64;

/// How often a row is added (positive) or taken away (negative).
pub type Diff = isize;

/// A string that many rows share without copying it. Up to 23 bytes stand in the value itself: most keys, names
/// and labels take no allocation, and a map that is asked for one looks nowhere else.
pub type Text = SmolStr;

/// A row, when it changes, and by how many copies.
pub type Change<D> = (D, Epoch, Diff);

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
