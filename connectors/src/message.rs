//! The one shape of all sources: messages with positions, read one after another.

use std::sync::Arc;
use std::time::Duration;

/// A message as the connector delivers it, valid until the next one.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    /// The key: a Kafka message's key, or the file's path in its folder.
    pub key: Option<&'a [u8]>,
    /// The value; none says that the key's row is gone.
    pub value: Option<&'a [u8]>,
    /// Looks a header up by its name.
    pub headers: &'a dyn Fn(&str) -> Option<Vec<u8>>,
    /// Where the message came from: a partition, `topic/number`, or the file's path.
    pub origin: &'a str,
    /// Its offset in the partition.
    pub offset: Option<u64>,
}

/// The next offset to read of a partition, which is named `topic/partition`.
pub type Offset = (Arc<str>, i64);

/// Up to where a partition has been read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reached {
    /// The partition's name, `topic/partition`.
    pub partition: Arc<str>,
    /// The next offset to read.
    pub next_offset: i64,
    /// When the last message before it was written, in milliseconds since 1970, if that is known: by that it is found
    /// out whether the partition is still the same one.
    pub last_written: Option<i64>,
}

/// What came of one turn of a source.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Polled {
    /// More may wait.
    Some,
    /// Everything that the source held a moment ago has been delivered.
    CaughtUp,
}

/// A source of messages: each worker has one, which delivers that worker's share.
pub trait Source: Send {
    /// Delivers some messages, after waiting for the first no longer than `wait`.
    ///
    /// # Errors
    /// See [`SourceError`].
    fn poll(
        &mut self,
        wait: Duration,
        deliver: &mut dyn FnMut(&Message<'_>),
    ) -> Result<Polled, SourceError>;

    /// Delivers nothing of these partitions until called again without them.
    fn hold(&mut self, _partitions: &[&str]) {}

    /// The partitions that have been read on since the last call.
    fn moved(&mut self) -> Vec<Reached>;

    /// Hears which offsets have become durable, so that others can watch the lag.
    fn durable(&mut self, offsets: &[Offset]);

    /// How many messages of each partition wait in the source, as far as is known.
    fn lag(&self) -> Vec<Offset>;

    /// Whether the source tells its whole present state at start, instead of resuming at an offset.
    fn replays(&self) -> bool;

    /// Whether this share would deliver the row of this key, if there were one.
    fn holds(&self, key: &str) -> bool;
}

/// Why a source cannot deliver.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It may work later: worth trying again.
    #[error("{0}")]
    Retry(String),
    /// It will not work until someone changes something.
    #[error("{0}")]
    Fatal(String),
}
