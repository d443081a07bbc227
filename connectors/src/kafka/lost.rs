//! What is done about messages that are no longer where reading is to go on.

use std::ops::RangeInclusive;

use crate::message::SourceError;

/// What is done where messages are missing; told by the client's property `auto.offset.reset`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum OnLoss {
    /// To stop, with an error: `error`, and the default.
    Stop,
    /// To go on with the first message that is there: `earliest`.
    GoOn,
}

impl OnLoss {
    pub(super) fn named(name: Option<&String>) -> Self {
        match name.map(String::as_str) {
            Some("earliest") => Self::GoOn,
            _ => Self::Stop,
        }
    }

    /// Where reading of a partition goes on that holds these offsets: at this one, unless it is not there.
    pub(super) fn offset(
        self,
        partition: &str,
        next: i64,
        held: &RangeInclusive<i64>,
    ) -> Result<i64, SourceError> {
        let (first, end) = (*held.start(), *held.end());
        if held.contains(&next) {
            return Ok(next);
        }
        let what = match next < first {
            true => format!(
                "the messages {next} to {} were deleted before they were read; the first left is {first}",
                first - 1
            ),
            false => format!(
                "it ends at {end}, before {next}, up to which it has been read: it was truncated, or its \
                 topic made anew"
            ),
        };
        self.lost(partition, &what)?;
        Ok(first)
    }

    /// A partition is not there any more.
    pub(super) fn gone(self, partition: &str) -> Result<(), SourceError> {
        let what =
            "it is not there any more: its topic was deleted, or made anew with fewer partitions";
        self.lost(partition, what)
    }

    /// A partition has other messages than those that were read of it.
    pub(super) fn made_anew(self, partition: &str) -> Result<(), SourceError> {
        let what =
            "the last message that was read of it is another one now: its topic was made anew";
        self.lost(partition, what)
    }

    fn lost(self, partition: &str, what: &str) -> Result<(), SourceError> {
        match self {
            Self::Stop => Err(SourceError::Fatal(format!(
                "kafka partition \"{partition}\": {what}. Rows that it told of are kept, and what was missed \
                 is not known. Start with empty tables to read what is there, or set \"auto.offset.reset\" to \
                 \"earliest\" to go on without"
            ))),
            Self::GoOn => {
                tracing::warn!(partition, "{what}; going on without");
                Ok(())
            }
        }
    }
}
