//! Input that could not be used, kept as data so that nothing is lost and a correction undoes it.

use crate::change::Text;
use crate::operators::upsert::Revision;
use crate::record;
use crate::record::{Bytes, Timestamp};

record! { "rejects";
    /// A message or row that could not be used.
    pub struct Reject {
        /// Where it came from: `topic/partition/offset`, or the file's path; of stage `score` the row's key.
        position: Text,
        /// The row's key, where one could be read.
        key: Option<Text>,
        /// The step that refused it: [`DECODE`], the relation it did not reach, or `score` if it has no label there.
        stage: Text,
        /// What was wrong, and where in the row.
        reason: Text,
        /// The bytes as they came; a later stage keeps the field that it refused.
        raw: Bytes,
        /// When it was read; of stage `score` the tweet's date.
        first_seen: Timestamp,
        /// The field that could not be used, by its path in the message, if it was one.
        field: Option<Text>,
    }
}

/// The field that a reason speaks of, as every reason does that is about one: `field "after.text": ...`.
pub fn field_of(reason: &str) -> Option<Text> {
    let (field, _) = reason.strip_prefix("field \"")?.split_once("\": ")?;
    Some(field.into())
}

/// The stage of rejects that never became a row.
pub const DECODE: &str = "decode";

impl Revision for Reject {
    fn same_as(&self, newer: &Self) -> bool {
        self.stage == newer.stage && self.reason == newer.reason && self.raw == newer.raw
    }

    fn completed(&self, _: &Self, _: u64) -> Option<Self> {
        None
    }
}

impl Reject {
    /// The key under which the source keeps this reject's place, until a usable message replaces it.
    pub fn source_key(&self) -> Text {
        self.key.as_ref().unwrap_or(&self.position).clone()
    }

    /// The kind of the reason: the field or what was expected, without what differs from row to row.
    pub fn class(&self) -> String {
        let class = self.reason.split(": ").next().unwrap_or_default();
        class
            .split(" at byte ")
            .next()
            .unwrap_or_default()
            .to_owned()
    }
}
