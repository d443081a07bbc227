//! A table of PostgreSQL as a sink.

use std::collections::HashMap;

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::interleave_record_batch;
use arrow::datatypes::{Int64Type, SchemaRef};
use arrow::error::ArrowError;
use connectors::postgres::{Mirror, MirrorSettings, keys};
use dataflows::change::Epoch;
use dataflows::index::DIFF;

use super::{Failure, Sink};
use crate::query::peek::Changes;

/// Which relation is mirrored where.
#[derive(Clone, Debug)]
pub struct MirrorPlan {
    /// The relation; its rows are told apart by its first column.
    pub relation: String,
    /// The table.
    pub settings: MirrorSettings,
}

pub(super) struct MirrorSink(Mirror);

impl Sink for MirrorSink {
    type Plan = MirrorPlan;

    const NAME: &'static str = "postgres";

    fn relation(plan: &MirrorPlan) -> &str {
        &plan.relation
    }

    async fn open(plan: &MirrorPlan, schema: SchemaRef) -> Result<Self, Failure> {
        Ok(Self(Mirror::open(&plan.settings, schema).await?))
    }

    async fn reset(&mut self, _: Epoch, rows: &[RecordBatch]) -> Result<(usize, usize), Failure> {
        Ok(self.0.reset(rows).await?)
    }

    async fn apply(&mut self, changes: &Changes) -> Result<(usize, usize), Failure> {
        let Some((rows, removed)) = folded(&changes.batches)? else {
            return Ok((0, 0));
        };
        self.0.apply(&rows, &removed).await?;
        Ok((rows.num_rows(), removed.len()))
    }
}

/// What some epochs' changes amount to: the rows of keys that have one at the end, and the keys that have
/// none; `None` if nothing changed.
fn folded(batches: &[RecordBatch]) -> Result<Option<(RecordBatch, Vec<String>)>, ArrowError> {
    // Where a key's row is, if it has one.
    let mut last: HashMap<&str, Option<(usize, usize)>> = HashMap::new();
    for (batch, rows) in batches.iter().enumerate() {
        let diffs = rows
            .column_by_name(DIFF)
            .map(AsArray::as_primitive::<Int64Type>);
        let diffs = diffs.map_or(&[][..], |diffs| diffs.values());
        let keys = keys(rows);
        // A batch is of one epoch, and all of a key's changes are in one batch: the row that goes may
        // come after the one that comes.
        for removes in [true, false] {
            for (row, diff) in diffs.iter().enumerate() {
                if removes == (*diff < 0) {
                    let place = (!removes).then_some((batch, row));
                    last.insert(keys.value(row), place);
                }
            }
        }
    }
    let Some(first) = batches.first().filter(|_| !last.is_empty()) else {
        return Ok(None);
    };
    let columns: Vec<_> = (0..first.num_columns() - 2).collect();
    let places: Vec<_> = last.values().flatten().copied().collect();
    let all: Vec<_> = batches.iter().collect();
    let rows = interleave_record_batch(&all, &places)?.project(&columns)?;
    let removed = last.iter().filter(|(_, place)| place.is_none());
    let removed = removed.map(|(key, _)| (*key).to_owned()).collect();
    Ok(Some((rows, removed)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};

    use super::*;

    fn changes(epoch: i64, changes: &[(&str, i64, i64)]) -> RecordBatch {
        let numbers = |numbers: Vec<i64>| Arc::new(Int64Array::from(numbers)) as ArrayRef;
        let keys = StringArray::from_iter_values(changes.iter().map(|change| change.0));
        RecordBatch::try_from_iter([
            ("key", Arc::new(keys) as ArrayRef),
            (
                "n",
                numbers(changes.iter().map(|change| change.1).collect()),
            ),
            ("epoch", numbers(vec![epoch; changes.len()])),
            (
                DIFF,
                numbers(changes.iter().map(|change| change.2).collect()),
            ),
        ])
        .unwrap()
    }

    #[test]
    fn the_last_row_of_each_key_counts_and_those_without_are_removed() {
        let batches = [
            changes(1, &[("a", 2, 1), ("a", 1, -1), ("b", 5, 1)]),
            changes(2, &[("b", 5, -1), ("c", 7, -1)]),
            changes(3, &[("c", 8, 1)]),
        ];
        let (rows, mut removed) = folded(&batches).unwrap().unwrap();
        removed.sort();
        let mut rows: Vec<_> = sql::to_json(&[rows])
            .unwrap()
            .iter()
            .map(|row| row.to_string())
            .collect();
        rows.sort();
        assert_eq!(rows, [r#"{"key":"a","n":2}"#, r#"{"key":"c","n":8}"#]);
        assert_eq!(removed, ["b"]);
        assert!(folded(&[changes(4, &[])]).unwrap().is_none());
    }
}
