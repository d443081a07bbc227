//! The relations as they were: answered from earlier versions of their tables.
//!
//! Every version that a checkpoint made carries its epoch, so the versions of all tables that belong
//! to one moment are found without a clock, and always fit together.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::row::{OwnedRow, RowConverter, SortField};
use chrono::{DateTime, NaiveDate, NaiveDateTime};
use connectors::delta::{DataFile, Table, further};
use dataflows::change::Epoch;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryFutureExt};
use sql::{
    Answer, Limits, Progress, QueryError, ReadError, Relation, Relations, RowStream, Selection,
};

use crate::checkpoint::store::{TablesPlan, settled_epoch, table_at};
use crate::now_ms;

/// Later than every checkpoint.
pub const NEWEST: Epoch = i64::MAX as Epoch;

/// Understands an epoch, or a time: RFC 3339, or without a zone (UTC), or a date alone.
///
/// ```
/// use assay::query::past::parse_epoch;
/// assert_eq!(parse_epoch("1767225600000"), Ok(1_767_225_600_000));
/// assert_eq!(parse_epoch("2026-01-01"), Ok(1_767_225_600_000));
/// assert_eq!(parse_epoch("2026-01-01 00:00:01.5"), Ok(1_767_225_601_500));
/// assert_eq!(parse_epoch("2026-01-01T01:00:00+01:00"), Ok(1_767_225_600_000));
/// ```
///
/// # Errors
/// If it is neither; the message says what would be.
pub fn parse_epoch(text: &str) -> Result<Epoch, String> {
    let text = text.trim();
    if let Ok(epoch) = text.parse() {
        return Ok(epoch);
    }
    let plain = text.replacen(' ', "T", 1);
    let zoned = DateTime::parse_from_rfc3339(&plain).map(|time| time.timestamp_millis());
    let milliseconds = zoned.or_else(|_| {
        let time = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M"]
            .iter()
            .find_map(|format| NaiveDateTime::parse_from_str(&plain, format).ok());
        let midnight = || {
            NaiveDate::parse_from_str(&plain, "%Y-%m-%d")
                .ok()?
                .and_hms_opt(0, 0, 0)
        };
        time.or_else(midnight)
            .map(|time| time.and_utc().timestamp_millis())
            .ok_or(())
    });
    let epoch = milliseconds
        .ok()
        .and_then(|time| Epoch::try_from(time).ok());
    epoch.ok_or_else(|| {
        format!("\"{text}\" is no epoch or time: write 1767225600000, 2026-01-01 or \"2026-01-01 12:30:00\" (UTC)")
    })
}

/// Answers a query from the last checkpoint at or before an epoch; returns the newest epoch at which
/// one of its relations had changed.
///
/// # Errors
/// If the query is not understood or would change something, or the tables do not reach back.
pub async fn answer(
    plan: &TablesPlan,
    query: &str,
    at: Epoch,
    limits: Limits,
) -> Result<(Epoch, Answer), QueryError> {
    let at = settled(plan, at).await.map_err(QueryError::Read)?;
    let mut tables = BTreeMap::new();
    let mut epoch = 0;
    for name in sql::relations_of(query)? {
        if plan.relations.iter().any(|(relation, _)| *relation == name) {
            let (changed, table) = version_of(plan, &name, at)
                .await
                .map_err(QueryError::Read)?;
            epoch = epoch.max(changed);
            tables.insert(name, table);
        }
    }
    let relations = Arc::new(AtVersions {
        epoch,
        schemas: plan.relations.clone(),
        tables,
    });
    Ok((epoch, sql::query(query, relations, limits).await?))
}

/// What changed in a relation between two epochs, later minus earlier: the rows that differ, sorted,
/// after a column `diff` that says how many more of each there are.
///
/// # Errors
/// If there is no such relation, or its table does not reach back.
pub async fn diff(
    plan: &TablesPlan,
    relation: &str,
    from: Epoch,
    to: Epoch,
) -> Result<(Epoch, Answer), ReadError> {
    let (from, to) = (settled(plan, from).await?, settled(plan, to).await?);
    let (_, before) = version_of(plan, relation, from).await?;
    let (epoch, after) = version_of(plan, relation, to).await?;
    let (gone, came) = (before.files().await, after.files().await);
    let (gone, came) = (gone.map_err(unavailable)?, came.map_err(unavailable)?);
    // What both versions hold in the same file, less the same rows, has not changed.
    let state = |file: &DataFile| {
        serde_json::to_string(&file.entry.deletion_vector).unwrap_or_default() + &file.entry.path
    };
    let states = |files: &[DataFile]| files.iter().map(state).collect::<HashSet<_>>();
    let (in_gone, in_came) = (states(&gone), states(&came));
    let mut counts = Counts::new(after.schema()).map_err(unavailable)?;
    for file in gone.iter().filter(|file| !in_came.contains(&state(file))) {
        let rows = before
            .data_files()
            .present(file)
            .await
            .map_err(unavailable)?;
        counts.add(&rows, -1).map_err(unavailable)?;
    }
    for file in came.iter().filter(|file| !in_gone.contains(&state(file))) {
        let rows = after
            .data_files()
            .present(file)
            .await
            .map_err(unavailable)?;
        counts.add(&rows, 1).map_err(unavailable)?;
    }
    let mut answer = counts.answer().map_err(unavailable)?;
    let further = after.further().map_err(unavailable)?;
    answer.schema = further::shown(&answer.schema, &further);
    for batch in &mut answer.batches {
        *batch = further::expand(batch, &further).map_err(unavailable)?;
    }
    Ok((epoch, answer))
}

fn unavailable(error: impl Into<anyhow::Error>) -> ReadError {
    ReadError::Unavailable(format!("{:#}", error.into()))
}

async fn settled(plan: &TablesPlan, epoch: Epoch) -> Result<Epoch, ReadError> {
    settled_epoch(plan, epoch).await.map_err(unavailable)
}

/// A table as of the last checkpoint at or before a settled epoch, and when that table had last changed.
async fn version_of(
    plan: &TablesPlan,
    relation: &str,
    at: Epoch,
) -> Result<(Epoch, Table), ReadError> {
    let found = table_at(plan, relation, at).await.map_err(unavailable)?;
    found.ok_or_else(|| {
        ReadError::Unavailable(format!(
            "table \"{relation}\" does not reach back to epoch {at}: see `assay tables history`, and \
             tables.history_hours in the configuration"
        ))
    })
}

/// All relations that a query names, each at its version.
struct AtVersions {
    epoch: Epoch,
    schemas: Vec<(&'static str, SchemaRef)>,
    tables: BTreeMap<String, Table>,
}

impl std::fmt::Debug for AtVersions {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_list().entries(self.tables.keys()).finish()
    }
}

impl AtVersions {
    /// The further columns that a table had.
    fn further(&self, relation: &str) -> Vec<String> {
        let table = self.tables.get(relation);
        let further = table.and_then(|table| table.further().ok());
        further.unwrap_or_default()
    }
}

impl Relations for AtVersions {
    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn relations(&self) -> Vec<Relation> {
        let schemas = self.schemas.iter();
        let relation = |(name, schema): &(&str, SchemaRef)| Relation {
            name: (*name).to_owned(),
            schema: further::shown(schema, &self.further(name)),
            // Files are read whole, whatever is looked for.
            look_ups: Vec::new(),
        };
        schemas.map(relation).collect()
    }

    fn read(&self, relation: &str, selection: Selection) -> RowStream {
        let unnamed = ReadError::Unavailable(format!("\"{relation}\" was not opened"));
        let table = self.tables.get(relation).cloned().ok_or(unnamed);
        let rows = async move {
            let batches = table?.rows().await.map_err(unavailable)?;
            let columns = move |batch: RecordBatch| {
                further::select(&batch, &selection.columns).map_err(unavailable)
            };
            Ok(futures::stream::iter(batches.into_iter().map(columns)))
        };
        rows.try_flatten_stream().boxed()
    }

    fn progress(&self) -> BoxFuture<'static, Result<Vec<Progress>, ReadError>> {
        let now = now_ms();
        let tables = self.schemas.iter();
        let progress = tables.map(|(name, _)| Progress {
            relation: (*name).to_owned(),
            epoch: self.epoch,
            lag_ms: now.saturating_sub(self.epoch),
        });
        std::future::ready(Ok(progress.collect())).boxed()
    }
}

/// How many more of each row there are.
struct Counts {
    schema: SchemaRef,
    converter: RowConverter,
    counts: BTreeMap<OwnedRow, i64>,
}

impl Counts {
    fn new(schema: SchemaRef) -> Result<Self, ArrowError> {
        let fields = schema.fields().iter();
        let fields = fields.map(|field| SortField::new(field.data_type().clone()));
        Ok(Self {
            converter: RowConverter::new(fields.collect())?,
            schema,
            counts: BTreeMap::new(),
        })
    }

    fn add(&mut self, rows: &RecordBatch, count: i64) -> Result<(), ArrowError> {
        for row in &self.converter.convert_columns(rows.columns())? {
            *self.counts.entry(row.owned()).or_default() += count;
        }
        Ok(())
    }

    fn answer(mut self) -> Result<Answer, ArrowError> {
        self.counts.retain(|_, count| *count != 0);
        let mut fields = vec![Arc::new(Field::new("diff", DataType::Int64, false))];
        fields.extend(self.schema.fields().iter().cloned());
        let schema = Arc::new(Schema::new(fields));
        let counts: ArrayRef =
            Arc::new(Int64Array::from_iter_values(self.counts.values().copied()));
        let mut columns = vec![counts];
        columns.extend(
            self.converter
                .convert_rows(self.counts.keys().map(OwnedRow::row))?,
        );
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns)?;
        Ok(Answer {
            schema,
            batches: vec![batch],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_time_is_told() {
        for text in ["", "yesterday", "-5", "2026-13-01", "2026-01-01 25:00"] {
            let error = parse_epoch(text).unwrap_err();
            assert!(error.contains("2026-01-01"), "{error}");
        }
    }

    #[test]
    fn rows_cancel_and_counts_are_kept() {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
        let batch = |numbers: Vec<Option<i64>>| {
            let column = Arc::new(Int64Array::from(numbers));
            RecordBatch::try_new(Arc::clone(&schema), vec![column]).unwrap()
        };
        let mut counts = Counts::new(Arc::clone(&schema)).unwrap();
        counts
            .add(&batch(vec![Some(1), Some(2), None]), -1)
            .unwrap();
        counts
            .add(&batch(vec![Some(3), Some(1), Some(3)]), 1)
            .unwrap();
        let answer = counts.answer().unwrap();
        let rows = serde_json::to_string(&sql::to_json(&answer.batches).unwrap()).unwrap();
        assert_eq!(
            rows,
            r#"[{"diff":-1,"n":null},{"diff":-1,"n":2},{"diff":2,"n":3}]"#
        );
    }
}
