//! Tables of PostgreSQL: one that mirrors a relation, and one to try a pipeline out with.

mod mirror;
mod tweets;

pub use self::mirror::{Mirror, MirrorError, MirrorSettings, keys};
pub use self::tweets::{TweetWriter, Write, WriteError};

/// A table's name, with its schema if it has one, quoted as PostgreSQL does.
fn quoted(table: &str) -> String {
    let parts = table
        .split('.')
        .map(|part| format!("\"{}\"", part.replace('"', "\"\"")));
    parts.collect::<Vec<_>>().join(".")
}
