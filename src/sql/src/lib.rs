//! SQL over live relations, all of them at one epoch.
//!
//! The crate keeps DataFusion, and what takes long to build with it, away from everything else. It
//! knows nothing of dataflows: [`Snapshots`] is all it asks for. A query can change nothing.
//!
//! - [`query`] answers one query; [`postgres`] serves clients of PostgreSQL.
//! - [`Condition`] is what stands after `where`, by itself.

mod codes;
mod condition;
mod live;
pub mod postgres;
mod session;
mod views;

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::common::DataFusionError;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

pub use self::condition::Condition;
pub use self::session::{AnswerStream, Limits, query, relations_of, rows};

/// A relation that can be read.
#[derive(Clone, Debug)]
pub struct Relation {
    /// Its name.
    pub name: String,
    /// Its columns.
    pub schema: SchemaRef,
    /// The columns by whose values rows are found without reading all of them.
    pub look_ups: Vec<String>,
}

/// Which rows of a relation to read, and what of them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Selection {
    /// A column of [`Relation::look_ups`], and the values that its rows must have; all rows if none.
    pub look_up: Option<(String, Vec<String>)>,
    /// The columns to read, by their names and in this order.
    pub columns: Vec<String>,
    /// How many rows are enough.
    pub limit: Option<usize>,
}

/// Rows as they come.
pub type RowStream = BoxStream<'static, Result<RecordBatch, ReadError>>;

/// How far a relation is complete.
#[derive(Clone, Debug)]
pub struct Progress {
    /// The relation's name.
    pub relation: String,
    /// Its newest complete epoch.
    pub epoch: u64,
    /// By how many milliseconds that is behind the clock.
    pub lag_ms: u64,
}

/// The relations as they are at one epoch.
pub trait Relations: Send + Sync + fmt::Debug {
    /// The epoch.
    fn epoch(&self) -> u64;

    /// All relations that can be read.
    fn relations(&self) -> Vec<Relation>;

    /// The selected rows of a relation. At least those are read that the selection asks for: more than
    /// the limit may come.
    fn read(&self, relation: &str, selection: Selection) -> RowStream;

    /// How far each relation is complete by now.
    fn progress(&self) -> BoxFuture<'static, Result<Vec<Progress>, ReadError>>;
}

/// Where snapshots come from.
pub trait Snapshots: Send + Sync + fmt::Debug {
    /// All relations that can be read.
    fn relations(&self) -> Vec<Relation>;

    /// The relations at the newest epoch that is complete for those named.
    fn pin(&self, named: Vec<String>) -> BoxFuture<'_, Result<Arc<dyn Relations>, ReadError>>;
}

/// Why a relation could not be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The epoch is no longer readable; ask again at a newer one.
    #[error("the epoch is no longer readable")]
    Compacted,
    /// The dataflow did not answer.
    #[error("{0}")]
    Unavailable(String),
}

/// Why a query was not answered.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The query is at fault, or took more than it may; the message says where.
    #[error("{message}")]
    Query {
        /// What is wrong.
        message: String,
        /// PostgreSQL's code for it (appendix A of its manual).
        code: &'static str,
    },
    /// A relation could not be read.
    #[error(transparent)]
    Read(ReadError),
}

impl QueryError {
    /// PostgreSQL's code for the error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Query { code, .. } => code,
            Self::Read(_) => codes::CANNOT_CONNECT_NOW,
        }
    }
}

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> Self {
        if let DataFusionError::External(source) = error.find_root()
            && let Some(read) = source.downcast_ref::<ReadError>()
        {
            return Self::Read(read.clone());
        }
        Self::Query {
            code: codes::code_of(&error),
            message: error.strip_backtrace(),
        }
    }
}

/// The rows of an answer, and their columns even if there are none.
#[derive(Debug)]
pub struct Answer {
    /// The columns.
    pub schema: SchemaRef,
    /// The rows.
    pub batches: Vec<RecordBatch>,
}

/// The rows as JSON objects, one a line, nulls included.
///
/// # Errors
/// If a column's type has no JSON form.
pub fn to_json_lines(rows: &RecordBatch) -> Result<String, QueryError> {
    let mut json = Vec::new();
    let mut writer = arrow::json::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow::json::writer::LineDelimited>(&mut json);
    let written = writer.write(rows).and_then(|()| writer.finish());
    written.map_err(|error| unfit(&error))?;
    drop(writer);
    String::from_utf8(json).map_err(|error| unfit(&error))
}

fn unfit(error: &dyn fmt::Display) -> QueryError {
    QueryError::Query {
        message: format!("cannot show the rows: {error}"),
        code: codes::FEATURE_NOT_SUPPORTED,
    }
}

/// The answer's rows as JSON objects, one a row, nulls included.
///
/// # Errors
/// If a column's type has no JSON form.
pub fn to_json(batches: &[RecordBatch]) -> Result<Vec<serde_json::Value>, QueryError> {
    let mut json = Vec::new();
    let mut writer = arrow::json::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow::json::writer::JsonArray>(&mut json);
    let batches: Vec<_> = batches.iter().collect();
    writer
        .write_batches(&batches)
        .map_err(|error| unfit(&error))?;
    writer.finish().map_err(|error| unfit(&error))?;
    drop(writer);
    if json.is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_slice(&json).map_err(|error| unfit(&error))
}

#[cfg(test)]
mod tests;
