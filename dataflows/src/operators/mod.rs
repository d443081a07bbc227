//! Operators: one verb, one file. They know rows and epochs, and nothing of what the rows mean.
//!
//! | operator | state it keeps | what it promises |
//! |---|---|---|
//! | [`upsert`](upsert::upsert) | the row of each key | the last change of a key in an epoch wins |
//! | [`score`](score::score) | the score of each live text | a text is scored once while any row holds it |
//! | [`tally`](tally::tally) | the aggregate of each key | one row a key, changed only when it differs |
//! | [`persist`](persist::persist) | where each row of a table lies | a table gets the difference, nothing else |
//! | [`checkpoint`](checkpoint::checkpoint) | nothing | all tables and positions of an epoch, in one commit |

pub mod batches;
pub mod checkpoint;
mod memory_order;
pub mod persist;
pub mod score;
mod stash;
pub mod tally;
pub mod upsert;
